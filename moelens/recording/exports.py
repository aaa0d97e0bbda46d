"""A recording in the formats of others: datasets, safetensors, npz, csv, each with its card."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.japanese import Labels
from moelens.recording.card import export_card
from moelens.recording.store import Recording, as_array
from moelens.recording.writer import layer_label

Array = NDArray[Any]


@dataclass(frozen=True)
class Selection:
    """What is exported: a table, layers, families of labels, shares of the documents by the name of a split."""

    table: str
    layers: tuple[int, ...]
    families: tuple[str, ...]
    labels: Labels | None
    splits: dict[str, float]


def export(
    recording: Recording | str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    table: str = "tokens",
    layers: Sequence[int] | None = None,
    family: str | Sequence[str] = (),
    labels: Labels | None = None,
    split: str = "",
    force: bool = False,
) -> Path:
    """Write the tokens of a recording, or a table of its vectors, and labels beside them, in another format.

    Args:
        recording: what to export, or its folder or fsspec URL.
        to: "datasets" (for `datasets.load_from_disk`), "safetensors", "npz" (arrays `[row, ·]`) or "csv".
        out: a folder to write; by default named by the recording, the table and the format, here.
        table: "tokens", with the routes, or "logits", "neurons", "expert_outputs", "shared" or "residuals"; arrays of
            these come as a file a shard, `train-00000.npz`, as all together may not fit into memory.
        layers: all that were recorded, by default.
        family: of labels to put beside them, such as "honorifics", or several; a column for each label.
        labels: of the recording; None for those in its folder.
        split: shares of the documents, as "train:0.8,test:0.2"; a document goes whole into one of them, by its text.
        force: replace the folder.

    Returns:
        The folder.

    Raises:
        UnknownNameError: no such format, table, layer or family.
        RecordingError: `out` is taken, or a shard is damaged.

    Example:
        >>> moelens.export("runs/demo", "csv", split="train:0.8,test:0.2")  # doctest: +SKIP
        PosixPath('demo-csv')
    """
    recording = Recording.open(recording)
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if table not in ("tokens", *recording.manifest["tables"]):
        raise unknown("table", table, ["tokens", *recording.manifest["tables"]])
    recorded = recording.manifest["capture"]["layers"]
    for layer in layers or ():
        if layer not in recorded:
            raise unknown("layer", layer, recorded)
    families = (family,) if isinstance(family, str) else tuple(family)
    known = (labels or Labels.open(recording)) if families else None
    chosen = Selection(table, tuple(layers or recorded), families, known, parse_split(split))
    name = Path(recording.folder.where).name
    out = Path(out or (f"{name}-{to}" if table == "tokens" else f"{name}-{table}-{to}"))
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (force and (out / "README.md").exists()))):
        raise RecordingError(f"'{out}' is in the way; choose another folder, or replace an export with force=True")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
        new = Path(beside) / "new"
        new.mkdir()
        FORMATS[to](recording, chosen, new)
        manifest = recording.manifest | {"capture": recording.manifest["capture"] | {"layers": [*chosen.layers]}}
        (new / "README.md").write_text(export_card(manifest, to, table, "recording.json"), "utf-8")
        (new / "recording.json").write_text(json.dumps(recording.manifest, ensure_ascii=False, indent=1), "utf-8")
        if out.exists():
            shutil.rmtree(out)
        new.rename(out)
    return out


def parse_split(text: str) -> dict[str, float]:
    """Names and shares, which sum to one; nothing is one split, "train".

    >>> parse_split("train:0.8,test:0.2")
    {'train': 0.8, 'test': 0.2}
    """
    if not text:
        return {"train": 1.0}
    try:
        shares = {n: float(s) for n, s in (part.split(":") for part in text.split(","))}
    except ValueError as error:
        raise MoeLensError(f"split {text!r} is not understood; write it as train:0.8,test:0.2") from error
    if any(s <= 0 for s in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise MoeLensError(f"the shares of split {text!r} sum to {sum(shares.values()):g}; they have to sum to 1")
    return shares


def split_of(texts: Sequence[str | None], shares: dict[str, float]) -> Array:
    """The number of the split `[document]` of each text: equal texts go together, and it never changes."""
    digests = [hashlib.sha256((t if t is not None else str(i)).encode()).digest() for i, t in enumerate(texts)]
    place = np.array([int.from_bytes(d[:8], "big") / 2**64 for d in digests])
    return np.minimum(np.searchsorted(np.cumsum([*shares.values()]), place, side="right"), len(shares) - 1)


def shards(recording: Recording, chosen: Selection) -> Iterator[tuple[pa.Table, Array]]:
    """For each shard the chosen columns and rows, and the split of each row, `[row]`."""
    texts: list[str | None] = [None] * recording.n_documents
    if recording.manifest["documents"]:
        texts = recording.documents()["text"].to_pylist()
    of = split_of(texts, chosen.splits)
    doc = recording.column("doc") if chosen.labels else np.zeros(0, np.int32)
    for table in token_shards(recording, chosen) if chosen.table == "tokens" else vector_shards(recording, chosen):
        if chosen.labels:
            row = np.searchsorted(doc, table["doc"].to_numpy()) + table["pos"].to_numpy()  # each position is recorded
            for name, values in label_columns(chosen.labels, chosen.families, row).items():
                table = table.append_column(name, pa.array(values))
        yield table, of[table["doc"].to_numpy()]


def token_shards(recording: Recording, chosen: Selection) -> Iterator[pa.Table]:
    dropped = {layer_label(x) for x in recording.manifest["capture"]["layers"]} - set(map(layer_label, chosen.layers))
    for entry in recording.manifest["shards"]:
        table = recording.shard(entry["path"])
        yield table.select([n for n in table.schema.names if n.rpartition("_")[2] not in dropped])


def vector_shards(recording: Recording, chosen: Selection) -> Iterator[pa.Table]:
    for entry in recording.vector_entries(chosen.table, chosen.layers):
        table = recording.shard(entry["path"])
        yield table.filter(pc.is_in(table["layer"], pa.array(chosen.layers, table["layer"].type)))


def label_columns(labels: Labels, families: Sequence[str], row: Array) -> dict[str, Array]:
    """Bool by the name of a label, `family.name`, of tokens `row`, which stand near each other."""
    start, stop = (int(row.min()), int(row.max()) + 1) if len(row) else (0, 0)
    columns: dict[str, Array] = {}
    for family in families:
        names, has = labels.matrix(family, slice(start, stop))
        columns |= {f"{family}.{name}": has[row - start, i] for i, name in enumerate(names)}
    return columns


# Formats


def to_datasets(recording: Recording, chosen: Selection, out: Path) -> None:
    """Arrow files for `datasets.load_from_disk`, with its features."""
    datasets = importlib.import_module("datasets")
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        paths: dict[str, list[str]] = {name: [] for name in chosen.splits}
        for i, (table, of) in enumerate(shards(recording, chosen)):
            for n, name in enumerate(chosen.splits):
                part = table.filter(pa.array(of == n))
                if len(part) or not paths[name]:
                    paths[name].append(f"{scratch}/{name}-{i:05d}.parquet")
                    pq.write_table(part, paths[name][-1])
        found = {
            name: datasets.Dataset.from_parquet(files, cache_dir=f"{scratch}/cache") for name, files in paths.items()
        }
        datasets.DatasetDict(found).save_to_disk(str(out))


def to_arrays(recording: Recording, chosen: Selection) -> Iterator[tuple[str, dict[str, Array]]]:
    """Names of files, and every column as an array: of the tokens a file a split, of vectors one a split and shard."""
    parts: dict[str, dict[str, list[Array]]] = {name: {} for name in chosen.splits}
    for i, (table, of) in enumerate(shards(recording, chosen)):
        for n, name in enumerate(chosen.splits):
            part = table.filter(pa.array(of == n))
            arrays = {column: plain(part[column]) for column in part.schema.names}
            if chosen.table != "tokens":
                yield f"{name}-{i:05d}", arrays
                continue
            for column, array in arrays.items():
                parts[name].setdefault(column, []).append(array)
    for name, columns in parts.items() if chosen.table == "tokens" else ():
        yield name, stacked({c: np.concatenate(v) for c, v in columns.items()}, chosen.layers)


def plain(values: pa.ChunkedArray) -> Array:
    """A column as numbers, or as strings of fixed width."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(pa.string())
    array = as_array(values)
    return array.astype(str) if array.dtype == object else array


def stacked(columns: dict[str, Array], layers: Sequence[int]) -> dict[str, Array]:
    """Columns of layers put together, `[token, layer, ·]`, with `layers` `[layer]`."""
    labels = [layer_label(layer) for layer in layers]
    result = {n: v for n, v in columns.items() if n.rpartition("_")[2] not in labels}
    for kind in dict.fromkeys(n.rpartition("_")[0] for n in columns if n not in result):
        result[kind] = np.stack([columns[f"{kind}_{label}"] for label in labels if f"{kind}_{label}" in columns], 1)
    return result | {"layers": np.array(layers, np.int32)}


def to_npz(recording: Recording, chosen: Selection, out: Path) -> None:
    for name, arrays in to_arrays(recording, chosen):
        np.savez_compressed(out / f"{name}.npz", allow_pickle=False, **arrays)


def to_safetensors(recording: Recording, chosen: Selection, out: Path) -> None:
    save = importlib.import_module("safetensors.numpy").save_file
    for name, arrays in to_arrays(recording, chosen):
        numbers = {n: np.ascontiguousarray(v) for n, v in arrays.items() if v.dtype.kind != "U"}
        if "phase" in arrays:
            numbers["decode"] = arrays["phase"] == "decode"
        save(numbers, out / f"{name}.safetensors", metadata={"model": recording.manifest["model"]["name"]})


def to_csv(recording: Recording, chosen: Selection, out: Path) -> None:
    """A row of the table a line; a column for each slot, or number of a vector."""
    files: dict[str, Any] = {}
    try:
        for table, of in shards(recording, chosen):
            columns: dict[str, Array] = {}
            for name in table.schema.names:
                array = plain(table[name])
                columns |= (
                    {name: array} if array.ndim == 1 else {f"{name}_{k}": array[:, k] for k in range(array.shape[1])}
                )
            for n, name in enumerate(chosen.splits):
                if name not in files:
                    files[name] = (out / f"{name}.csv").open("w", encoding="utf-8", newline="")
                    csv.writer(files[name]).writerow(columns)
                rows = np.flatnonzero(of == n)
                csv.writer(files[name]).writerows(zip(*(v[rows].tolist() for v in columns.values()), strict=True))
    finally:
        for file in files.values():
            file.close()


FORMATS: dict[str, Callable[[Recording, Selection, Path], None]] = {
    "datasets": to_datasets,
    "safetensors": to_safetensors,
    "npz": to_npz,
    "csv": to_csv,
}
