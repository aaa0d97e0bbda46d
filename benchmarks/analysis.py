"""Compare the speed of counting routes with DuckDB, NumPy and pandas.

    python -m benchmarks.analysis [--tokens N] [--routing FILE] [--json] [--out FILE]

The benchmark writes routes of 26 layers, top-6 of 64 experts, to Parquet in the format of a recording, with one label
column and 60 more. Each tool counts the tokens by layer, expert and label from these files. `--routing FILE.npz`
repeats the real routes in its `expert_ids` `[token, layer, slot]`; without it, the routes are random and skewed. pandas
counts only a part of the tokens, and for 60 labels so do DuckDB and NumPy, because their rates do not depend on the
number of tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import machine
from moelens.analysis.counting import MAX_GROUPS, RouteTables, balanced
from moelens.analysis.randomize import Excess, document_test
from moelens.analysis.samples import Sample, TokenBlock
from moelens.recording import as_array
from moelens.recording.writer import read_ahead

SHARD = 1 << 19
LABELS = 60
DOCUMENT = 500  # tokens
EXPERTS, LAYERS, SLOTS = 64, 26, 6
ONE = ["one"]
SIXTY = [f"label_{i:02d}" for i in range(LABELS)]
COLUMNS = [f"experts_L{layer:02d}" for layer in range(LAYERS)]


def routes(path: Path | None) -> np.ndarray:
    """Return the expert ids `[token, layer, slot]` to repeat; random ones if `path` is None."""
    if path is not None:
        return np.asarray(np.load(path)["expert_ids"])
    rng = np.random.default_rng(0)
    popularity = 1.5 * rng.gumbel(size=(LAYERS, EXPERTS))
    return np.argsort(-(popularity + rng.gumbel(size=(8192, LAYERS, EXPERTS))), axis=2)[:, :, :SLOTS].astype(np.uint8)


def write_shards(folder: Path, ids: np.ndarray, tokens: int) -> None:
    """Write shards of tokens with their documents, their routes by layer, and their labels.

    One label is true for a twentieth of the tokens. The 60 others occur in 400 combinations.
    """
    rng = np.random.default_rng(1)
    combinations = rng.random((400, LABELS)) < 0.05
    for start in range(0, tokens, SHARD):
        rows = np.arange(start, min(start + SHARD, tokens))
        many = combinations[rng.integers(0, len(combinations), len(rows))]
        columns = {"doc": pa.array((rows // DOCUMENT).astype(np.int32)), "one": pa.array(rng.random(len(rows)) < 0.05)}
        columns |= {name: pa.array(many[:, i]) for i, name in enumerate(SIXTY)}
        for layer, name in enumerate(COLUMNS):
            flat = pa.array(ids[rows % len(ids), layer].ravel())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, SLOTS)
        pq.write_table(pa.table(columns), folder / f"tokens-{start // SHARD:05d}.parquet", compression="zstd")


def shards(folder: Path, columns: list[str], limit: int) -> Iterator[pa.Table]:
    """Yield these columns of the shards, up to `limit` tokens in total."""
    row = 0
    for path in sorted(folder.glob("*.parquet")):
        if row < limit:
            table = pq.read_table(path, columns=columns).slice(0, limit - row)
            yield table
            row += len(table)


def column(folder: Path, name: str, limit: int) -> np.ndarray:
    """Return one column of the first `limit` tokens."""
    return np.concatenate([as_array(table[name]) for table in shards(folder, [name], limit)])


def only_read(folder: Path, names: list[str], limit: int) -> None:
    """Read the columns that counting needs, and count nothing."""
    for _ in shards(folder, ["doc", *names, *COLUMNS], limit):
        pass


def count_with_moelens(folder: Path, names: list[str], limit: int) -> RouteTables:
    """Count all that `moelens.analyze` needs, in groups of documents."""

    def described() -> Iterator[TokenBlock]:
        for table in read_ahead(shards(folder, ["doc", *names], limit)):
            labels = np.stack([as_array(table[name]) for name in names]).T
            yield within_all(as_array(table["doc"]), labels)

    sample = Sample.of(described(), names, [("all",)] if len(names) > 1 else [])

    def routes_by_layer() -> Iterator[tuple[slice, list[np.ndarray]]]:
        row = 0
        for table in read_ahead(shards(folder, COLUMNS, limit)):
            yield slice(row, row + len(table)), [as_array(table[name]) for name in COLUMNS]
            row += len(table)

    return sample.count(routes_by_layer(), EXPERTS, range(LAYERS))


def count_with_duckdb(folder: Path, names: list[str], limit: int) -> np.ndarray:
    """Count layer by layer: GROUP BY expert and label, or by expert with a sum for each of several labels."""
    import duckdb

    files, tables = f"'{folder}/*.parquet'", []
    for name in COLUMNS:
        tokens = f"(select unnest({name}) as expert, {', '.join(names)} from (select * from {files} limit {limit}))"
        if len(names) == 1:
            query = f"select expert, {names[0]}, count(*) from {tokens} group by all"
            rows = duckdb.sql(query).fetchnumpy()
            table = np.zeros((EXPERTS, 1))
            has = rows[names[0]].astype(bool)
            table[rows["expert"][has], 0] = rows["count_star()"][has]
        else:
            sums = ", ".join(f"sum({label}::int) as {label}" for label in names)
            rows = duckdb.sql(f"select expert, {sums} from {tokens} group by expert order by expert").fetchnumpy()
            table = np.zeros((EXPERTS, len(names)))
            table[rows["expert"]] = np.stack([rows[label] for label in names], axis=1)
        tables.append(table)
    return np.stack(tables)


def count_with_numpy(folder: Path, names: list[str], limit: int) -> np.ndarray:
    """Count with one bincount for each layer and label."""
    labels = [column(folder, name, limit) for name in names]
    counts = np.zeros((LAYERS, EXPERTS, len(names)))
    for layer, name in enumerate(COLUMNS):
        chosen = column(folder, name, limit).astype(np.int64)
        for i, label in enumerate(labels):
            keys = (chosen * 2 + label[:, None]).ravel()
            counts[layer, :, i] = np.bincount(keys, minlength=2 * EXPERTS).reshape(-1, 2)[:, 1]
    return counts


def count_with_pandas(folder: Path, names: list[str], limit: int) -> np.ndarray:
    """Count with read_parquet, explode and groupby, layer by layer."""
    import pandas as pd

    tables = []
    for name in COLUMNS:
        frame = pd.concat(table.to_pandas() for table in shards(folder, [name, *names], limit)).explode(name)
        sums = frame.groupby(name)[names].sum().reindex(range(EXPERTS), fill_value=0)
        tables.append(sums.to_numpy())
    return np.stack(tables)


OTHERS = {"duckdb": count_with_duckdb, "numpy": count_with_numpy, "pandas": count_with_pandas}


def timed(call: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    value = call(*args)
    return time.perf_counter() - start, value


def compare_rates(folder: Path, names: list[str], tokens: int, part: int) -> dict[str, Any]:
    """Return the rate of each tool in million assignments per second, and check that all counts agree.

    Args:
        folder: the shards, which are read once before the first measurement.
        names: columns of the labels.
        tokens: how many tokens moelens counts.
        part: how many tokens pandas counts, and for several labels the other tools too.
    """
    only_read(folder, names, tokens)
    rates = {}
    others = tokens if len(names) == 1 else part
    limits = {"floor": tokens, "moelens": tokens, "duckdb": others, "numpy": others, "pandas": part}
    for name, call in {"floor": only_read, "moelens": count_with_moelens, **OTHERS}.items():
        seconds, counts = timed(call, folder, names, limits[name])
        rates[name] = round(limits[name] * LAYERS * SLOTS / seconds / 1e6, 1)
        if name in OTHERS:
            ours = count_with_moelens(folder, names, limits[name]).cells.sum(0)
            assert np.array_equal(ours, counts), f"{name} and moelens differ in their counts"
    ratios = {f"times {name}": round(rates["moelens"] / rates[name], 1) for name in OTHERS}
    return (
        {"million assignments a second": rates} | ratios | {"of reading": round(rates["moelens"] / rates["floor"], 2)}
    )


def sample_of(labels: np.ndarray, docs: np.ndarray) -> Sample:
    """Return a sample of sixty labels `[token, label]` in documents `[token]`, compared within all tokens."""
    return Sample.of([within_all(docs, labels)], SIXTY, [("all",)])


def within_all(docs: np.ndarray, labels: np.ndarray) -> TokenBlock:
    """Describe tokens that are compared with all other tokens."""
    return TokenBlock(docs, np.ones(len(docs), bool), labels, {"all": np.zeros((len(docs), 1), np.int64)})


def permutations(folder: Path, tokens: int) -> dict[str, Any]:
    """Time 1,000 permutations of 60 labels on tables of counts."""
    labels = np.stack([column(folder, name, tokens) for name in SIXTY], axis=1)
    sample = sample_of(labels, column(folder, "doc", tokens))
    tables = count_with_moelens(folder, SIXTY, tokens)
    excess = Excess.of(tables, sample.kinds)
    tested = excess.variance > 0
    seconds, _ = timed(document_test, tables.cells, excess, tested, 1000, 0)
    return {"cells": int(tested.sum()), "groups": len(tables.cells), "seconds": round(seconds, 1)}


def memory() -> dict[str, Any]:
    """Measure the peak memory of counting and testing 58 layers × 256 experts × 60 labels in 200 document groups."""
    rng, tokens, layers, experts, slots = np.random.default_rng(0), 40_000, 58, 256, 8
    labels = (rng.random((400, LABELS)) < 0.05)[rng.integers(0, 400, tokens)]
    group = balanced(np.full(400, tokens // 400), MAX_GROUPS).repeat(tokens // 400)
    sample = sample_of(labels, group)
    chosen = ((rng.integers(0, 32, (layers, tokens, 1)) + 32 * np.arange(slots)) % experts).astype(np.uint8)
    tables = sample.count([(slice(0, tokens), chosen)], experts, range(layers))
    excess = Excess.of(tables, sample.kinds)
    seconds, _ = timed(document_test, tables.cells, excess, excess.variance > 0, 1000, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 1024
    return {
        "cells in groups": tables.cells.size,
        "peak GiB": round(peak, 2),
        "1,000 permutations, seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000_000, help="tokens to write and count (%(default)s)")
    parser.add_argument(
        "--part", type=int, default=500_000, help="tokens that pandas counts, and the others for 60 labels"
    )
    parser.add_argument("--routing", type=Path, help=".npz with expert_ids to repeat")
    parser.add_argument("--json", action="store_true", help="print JSON at the end")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--memory", action="store_true", help="measure only the peak memory, as JSON")
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(memory()))
        return
    result: dict[str, Any] = {
        "machine": machine("duckdb", "pandas"),
        "tokens": args.tokens,
        "routing": args.routing.name if args.routing else "drawn",
    }
    for name, figures in measurements(args.tokens, min(args.part, args.tokens), args.routing):
        result[name] = figures
        if not args.json:
            print(f"{name}\n{table(figures)}", flush=True)
    if args.json:
        print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measurements(tokens: int, part: int, routing: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the figures of each measurement as soon as they are known."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, routes(routing), tokens)
        yield "one label", compare_rates(folder, ONE, tokens, part)
        yield f"{LABELS} labels", compare_rates(folder, SIXTY, tokens, part) | {"tokens of the others": part}
        yield "1,000 permutations", permutations(folder, tokens)
    command = [sys.executable, "-m", "benchmarks.analysis", "--memory"]  # a process of its own has a peak of its own
    yield "largest size", json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def table(figures: dict[str, Any]) -> str:
    """Format one line for each figure.

    >>> print(table({"rates": {"numpy": 5.5}, "groups": 200}))
      numpy, rates                               5.5
      groups                                     200
    """
    lines = []
    for name, value in figures.items():
        several = value.items() if isinstance(value, dict) else [("", value)]
        lines += [f"  {f'{key}, {name}' if key else name:<38}{figure:>8,}" for key, figure in several]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
