"""What docs/reliability.md promises of `import_counts`: its inputs by description, and by what contradicts it.

Whatever is in a file, the end is counts that hold it or an error of moelens, and no file is left.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from helpers.fuzz import ANY_ARRAY, ANY_JSON, replace_somewhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moelens import MoeLensError
from moelens.analysis import Counts, TypeLabels, import_counts
from moelens.analysis.count_imports import OPTIONS

MANY = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
CELLS = {
    (layer, expert, group): 10 + (layer + g) % 2 * (1 if expert < 2 else -1)
    for layer in (3, 7)
    for expert in range(4)
    for g, group in enumerate(("ja", "en"))
}  # each layer and group sums to 40
Cells = Mapping[tuple[int, int, str], float]


def ends_well(path: Any, holds: Cells | None = None, **options: Any) -> Counts | None:
    """Import; require that the counts are those of the file, and what was saved the same, or an error of one line."""
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    out = folder / "counts.json"
    try:
        made = import_counts(path, out, **({"top_k": 2} | options))
    except MoeLensError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 600  # noqa: PT017
        assert not list(folder.iterdir())
        return None
    assert (made.count >= 0).all()
    assert np.isfinite(made.count).all()
    assert (made.label_tokens > 0).all()
    if holds is not None:
        found = {
            (layer, expert, group): made.count[x, expert, g]
            for x, layer in enumerate(made.layers)
            for expert in range(made.n_experts)
            for g, group in enumerate(made.names)
        }
        assert {at: n for at, n in found.items() if n} == pytest.approx({at: n for at, n in holds.items() if n})
    np.testing.assert_array_equal(Counts.open(out).count, made.count)
    return made


def columns() -> dict[str, Any]:
    layers, experts, groups = (list(column) for column in zip(*CELLS, strict=True))
    counts = list(CELLS.values())
    return {"layer": layers, "expert": experts, "group": groups, "count": counts, "gates": [n * 0.3 for n in counts]}


def write_columns(folder: Path, form: str, found: Mapping[str, Any]) -> Path:
    path = folder / f"ja.{form}"
    if form == "npz":
        np.savez(path, **{name: np.asarray(column) for name, column in found.items()})
    elif form == "parquet":
        pyarrow.parquet.write_table(pa.table({name: pa.array(column) for name, column in found.items()}), path)
    else:
        delimiter = "\t" if "tsv" in form else ","
        lines = [found.keys(), *zip(*found.values(), strict=True)]
        text = "\n".join(delimiter.join(map(str, line)) for line in lines)
        path.write_bytes(gzip.compress(text.encode()) if form.endswith("gz") else text.encode())
    return path


VALUES = (
    st.integers(-(2**70), 2**70)
    | st.floats()
    | st.booleans()
    | st.none()
    | st.sampled_from(["", "x", "1e3", "0x1", "１", " 7 ", "NaN", "-inf", "2026-01-01", "true"])
)


@given(st.data())
@MANY
def test_columns_and_their_negations(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["csv", "tsv", "csv.gz", "parquet", "npz"]))
    found = columns()
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(sorted(found)))
        what = data.draw(st.sampled_from(["value", "column", "name", "nothing", "twice"]))
        if what == "value":
            found[name][data.draw(st.integers(0, len(found[name]) - 1))] = data.draw(VALUES)
        elif what == "column":
            found[name] = data.draw(st.lists(VALUES, min_size=len(CELLS), max_size=len(CELLS)))
        elif what == "name":
            found[data.draw(st.sampled_from(["Layer", "layer_3", "7", "gate", "top_k", "token_id"]))] = found.pop(name)
        elif what == "nothing" and len(found) > 1:
            del found[name]
        else:
            for column in found.values():
                column[-1] = column[0]
    named = ("layer", "expert", "group", "count")
    whole = all(name in found and {type(v) for v in found[name]} <= {int, str} for name in named)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = write_columns(Path(folder), form, found)
        except (pa.ArrowException, OverflowError, ValueError, TypeError, UnicodeError):
            return  # the form cannot hold these values
        alone = "token_id" not in found and "top_k" not in found
        rows = zip(*(found[name] for name in named), strict=True) if whole and alone else ()
        holds = {(x, e, str(g)): n for x, e, g, n in rows if not any(isinstance(v, str) for v in (x, e, n))}
        ends_well(path, holds if whole and alone and len(holds) == len(CELLS) else None)


@given(st.data())
@MANY
def test_arrays_and_their_negations(data: st.DataObject) -> None:
    count = np.array([[[CELLS[x, e, g] for g in ("ja", "en")] for e in range(4)] for x in (3, 7)])
    found: dict[str, Any] = {
        "count": data.draw(st.sampled_from([count, count / 2, np.moveaxis(count, 2, 0)])),
        "layers": np.array([3, 7]),
        "groups": np.array(["ja", "en"]),
        "tokens": np.array([20, 20]),
        "gates": count * 0.3,
        "top_k": np.array(2),
    }
    for name in data.draw(st.sets(st.sampled_from(sorted(found)), max_size=2)):
        found[name] = data.draw(ANY_ARRAY)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/a.npz", **found)
        ends_well(Path(folder) / "a.npz", top_k=data.draw(st.sampled_from([None, 2])))


@given(st.data())
@MANY
def test_json_and_its_negations(data: st.DataObject) -> None:
    routing: dict[str, Any] = {"ja": {}, "en": {}}
    for (layer, expert, group), n in CELLS.items():
        whole = {"activation_tokens": n, "gate_values_sum": n * 0.3}
        routing[group].setdefault(str(layer), {})[str(expert)] = whole
    answer: Any = {"model": "m", "top_k": 2, "routing": routing}
    changes = data.draw(st.integers(0, 2))
    for _ in range(changes):
        replace_somewhere(data, answer, ANY_JSON)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.json").write_text(json.dumps(answer), "utf-8")
        ends_well(Path(folder) / "a.json", None if changes else CELLS, top_k=data.draw(st.sampled_from([None, 2])))


@given(st.data())
@MANY
def test_dumps_of_sglang_and_their_negations(data: st.DataObject) -> None:
    count = torch.full((2, 3, 4), 5)
    dump: dict[str, Any] = {"rank": 0, "logical_count": count}
    if data.draw(st.booleans()):
        records = [{"forward_mode": mode, "global_physical_count": count[mode - 1].clone()} for mode in (1, 2)]
        dump = {"records": records, "last_physical_to_logical_map": torch.arange(4).repeat(3, 1)}
    anything = ANY_JSON | st.tuples(st.sampled_from([torch.int64, torch.float32, torch.bool, torch.bfloat16])).map(
        lambda of: torch.ones((2, 3), dtype=of[0])
    )
    for _ in range(data.draw(st.integers(0, 2))):
        replace_somewhere(data, dump, anything)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(dump, f"{folder}/a.pt")
        ends_well(Path(folder) / "a.pt")


@given(st.data())
@MANY
def test_traces_and_their_negations(data: st.DataObject) -> None:
    lines = [[pos, layer, (pos + 3) % 4, (pos + 4) % 4] for pos in range(-2, 2) for layer in (3, 7)]
    holds: dict[tuple[int, int, str], int] = {}
    for pos, layer, *experts in lines:
        for expert in experts:
            at = layer, expert, "prefill" if pos < 0 else "decode"
            holds[at] = holds.get(at, 0) + 1
    changes = data.draw(st.integers(0, 2))
    for _ in range(changes):
        line: list[Any] = data.draw(st.sampled_from(lines))
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(VALUES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        path.write_text("\n".join(",".join(map(str, line)) for line in lines), "utf-8")
        ends_well(path, None if changes else holds, kind="moe-trace", top_k=None)


@given(st.data())
@MANY
def test_bytes(data: st.DataObject) -> None:
    """Anything, and a good file of which some bytes are others or the end is missing."""
    form = data.draw(st.sampled_from(["csv", "tsv", "csv.gz", "parquet", "npz", "json", "json.gz", "pt"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"ja.{form}"
        if form == "pt":
            torch.save({"logical_count": torch.full((2, 4), 5)}, path)
        elif "json" in form:
            text = json.dumps({"3": {"0": 5, "1": 7}}).encode()
            path.write_bytes(gzip.compress(text) if form.endswith("gz") else text)
        else:
            write_columns(Path(folder), form, columns())
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(data.draw(st.sampled_from([content, content[:cut], b"", data.draw(st.binary(max_size=40))])))
        ends_well(path, kind=data.draw(st.sampled_from(["", "", "json", "table", "sglang", "moe-trace"])))


@given(st.data())
@MANY
def test_token_types_and_their_negations(data: st.DataObject) -> None:
    """Rows that name a cell twice count as one of their sum."""
    ids, routes = [5, 5, 7, 9, 9, 9], [[0, 1], [1, 2], [0, 2], [0, 1], [0, 1], [1, 2]]
    cells = [(layer, expert, i) for layer in (3, 7) for i, chosen in zip(ids, routes, strict=True) for expert in chosen]
    names = ("layer", "expert", "token_id", "count")
    found: dict[str, Any] = dict(zip(names, map(list, zip(*((*cell, 1) for cell in cells), strict=True)), strict=True))
    changes = data.draw(st.integers(0, 2))
    for _ in range(changes):
        name = data.draw(st.sampled_from(names))
        if isinstance(found[name], list) and found[name] and data.draw(st.booleans()):
            found[name][data.draw(st.integers(0, len(found[name]) - 1))] = data.draw(VALUES)
        else:
            found[name] = data.draw(ANY_ARRAY).tolist()
    has = np.array([1, 0, 1, 1, 1, 0], bool)
    labels = TypeLabels(np.array(ids), {"f": (("L",), has[:, None])})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = Counts.from_types(found, labels, family="f", top_k=2)
        except MoeLensError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return
    assert (made.low <= made.lift + 1e-9).all()
    assert (made.lift <= made.high + 1e-9).all()
    if not changes:
        assert made.n_tokens == 6
        one_row = {cell: cells.count(cell) for cell in cells}
        columns_of_one = dict(zip(names, zip(*((*cell, n) for cell, n in one_row.items()), strict=True), strict=True))
        same = Counts.from_types(columns_of_one, labels, family="f", top_k=2)
        np.testing.assert_array_equal(made.high, same.high)


@pytest.mark.parametrize("name", OPTIONS)
def test_arguments_of_another_kind(tmp_path: Path, name: str) -> None:
    path = write_columns(tmp_path, "csv", columns())
    wrong: list[Any] = [True, b"x", {"a": 1}]
    wrong += [[1.5], ["a"], [-1], [10**9], "a", 2.0] if OPTIONS[name].high is not None else []
    wrong += [0, -1, 10**9] if name in ("n_experts", "top_k") else []
    wrong += [-0.1, 1.0, float("nan"), float("inf"), "a"] if name == "tolerance" else []
    wrong += [[5], "", [None]] if name == "groups" else [5] if name in ("total", "model", "kind") else []
    for value in wrong:
        if name == "sources" and isinstance(value, dict):
            continue  # files by the name of their group
        chosen = {"sources": path, "out": tmp_path / "c.json", "top_k": 2} | {name: value}
        with pytest.raises(MoeLensError, match=rf"^expected .* as {name}, got .*; correct it$"):
            import_counts(**chosen)
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("sources", [{"ja": 5}, [None], [("ja", "a", "b")], [("ja", 5)], {5: "a.csv"}, [b"a.csv"]])
def test_sources_of_another_kind(sources: Any) -> None:
    with pytest.raises(MoeLensError, match=r"^expected paths of files, or names of groups with them, as sources, got "):
        import_counts(sources, top_k=2)
