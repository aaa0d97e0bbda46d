"""`export`: write a recording as datasets, safetensors, npz or csv, with a dataset card."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.files import explain_write_errors
from moelens.japanese import Labels
from moelens.recording.card import export_card
from moelens.recording.store import Recording, as_array
from moelens.recording.writer import layer_label

_Array = NDArray[Any]
_SETTINGS_FILE = "recording.json"  # what tells an export from other folders


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """The part of a recording to export.

    Attributes:
        table: "tokens", or the name of a table of vectors.
        layers: The layers.
        families: The families of labels.
        labels: The labels; None without families.
        splits: The shares of the documents, by the name of the split.
    """

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
    """Write the tokens of a recording, or one of its tables of vectors, in another format.

    Args:
        recording: The recording, or the path or fsspec URL of one.
        to: "datasets" (for `datasets.load_from_disk`), "safetensors", "npz" (arrays `[row, ·]`) or "csv" (with the text
            of each token). A recording is Parquet already.
        out: The folder to write; by default it is named after the recording, the table and the format.
        table: "tokens" with the routes, or "logits", "neurons", "expert_outputs", "shared" or "residuals". Arrays of
            vectors are written as one file per shard (`neurons-00000.npz`), because together they may not fit in
            memory.
        layers: The layers to export; by default all that were recorded.
        family: Families of labels, such as "honorifics", to add with one column per label.
        labels: The labels of the recording; None for those in its folder.
        split: Shares of the documents, such as "train:0.8,test:0.2"; each split is a file of its name. The text of a
            document decides its split. Without splits, the file is named after the table, and a `DatasetDict` has the
            single split "train".
        force: Replace an export that is in the folder.

    Returns:
        The folder.

    Raises:
        UnknownNameError: If there is no such format, table, layer or family.
        MoeLensError: If `split` cannot be read.
        RecordingError: If `out` is not empty, or a shard is damaged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     out = moelens.export(demo_recording, "csv", f"{folder}/csv", split="train:0.8,test:0.2")
        ...     sorted(path.name for path in out.iterdir())
        ['README.md', 'recording.json', 'test.csv', 'train.csv']
    """
    recording = Recording.open(recording)
    if to == "parquet":
        where = recording.folder.location
        raise MoeLensError(
            f"expected another format than parquet, got a recording that is Parquet already; read '{where}/tokens/"
            f"*.parquet' (a row for each token) and '{where}/documents.parquet', as its README.md shows"
        )
    if to not in _FORMATS:
        raise unknown("format", to, _FORMATS)
    if table not in ("tokens", *recording.manifest["tables"]):
        raise unknown("table", table, ["tokens", *recording.manifest["tables"]])
    recorded = recording.manifest["capture"]["layers"]
    for layer in layers or ():
        if layer not in recorded:
            raise unknown("layer", layer, recorded)
    families = (family,) if isinstance(family, str) else tuple(family)
    selection = _Selection(
        table=table,
        layers=tuple(layers or recorded),
        families=families,
        labels=(Labels.open(recording) if labels is None else labels.of(recording)) if families else None,
        splits=parse_split(split) if split else {"train" if to == "datasets" else table: 1.0},
    )
    name = Path(recording.folder.location).name
    out = Path(out or (f"{name}-{to}" if table == "tokens" else f"{name}-{table}-{to}"))
    _require_free(out, force)
    target = Path(os.path.realpath(out))
    with explain_write_errors(out), _scratch_beside(target) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        _FORMATS[to](recording, selection, new)
        manifest = recording.manifest | {"capture": recording.manifest["capture"] | {"layers": [*selection.layers]}}
        about = selection.labels.metadata if selection.labels else None
        (new / "README.md").write_text(export_card(manifest, to, table, _SETTINGS_FILE, about), "utf-8")
        (new / _SETTINGS_FILE).write_text(json.dumps(recording.manifest, ensure_ascii=False, indent=1), "utf-8")
        _put_in_place(new, target, Path(scratch) / "old")
    return out


def _put_in_place(new: Path, out: Path, old: Path) -> None:
    """Give the folder of an export its name. An export that has it moves to `old`; an empty folder is filled."""
    if out.exists() and not any(out.iterdir()):  # it may be the current folder, or a file system of its own
        for path in sorted(new.iterdir(), key=lambda path: path.name == _SETTINGS_FILE):
            path.rename(out / path.name)
        return
    if out.exists():
        out.rename(old)
    new.rename(out)


@contextmanager
def _scratch_beside(out: Path) -> Iterator[str]:
    """Give a temporary folder on the file system of `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        yield scratch


def _require_free(out: Path, force: bool) -> None:
    """Raise `RecordingError` unless a folder is new or empty, or holds an export that `force` replaces."""
    replaceable = force and (out / _SETTINGS_FILE).exists()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not replaceable)):
        raise RecordingError(
            f"expected a new or empty folder, got '{out}', which exists;"
            " choose another folder, or replace an export with force=True (--force)"
        )


def parse_split(text: str) -> dict[str, float]:
    """Read the names and shares of splits.

    Raises:
        MoeLensError: If the text cannot be read, or the shares are not positive or do not sum to 1.

    Example:
        >>> parse_split("train:0.8,test:0.2")
        {'train': 0.8, 'test': 0.2}
    """
    try:
        shares = {n.strip(): float(s) for n, s in (part.split(":") for part in text.split(","))}
    except ValueError as error:
        raise MoeLensError(
            f"expected a split such as train:0.8,test:0.2, got {text!r}; write names and shares"
        ) from error
    for name in shares:
        if not re.fullmatch(r"\w+", name):
            raise MoeLensError(f"expected names of splits of letters, digits and _, got {name!r}; rename it")
    if not all(s > 0 for s in shares.values()) or not abs(sum(shares.values()) - 1) <= 1e-6:  # NaN is neither
        raise MoeLensError(
            f"expected positive shares that sum to 1, got split {text!r} with a sum of {sum(shares.values()):g};"
            " correct the shares"
        )
    return shares


def split_of(texts: Sequence[str | None], shares: dict[str, float]) -> _Array:
    """Assign documents to splits by a hash of their text, so that equal texts are in the same split in every export.

    Args:
        texts: The text of each document; None if it is not known.
        shares: The share of each split.

    Returns:
        The number of the split of each document, `[document]`.
    """
    digests = [hashlib.sha256((t if t is not None else str(i)).encode()).digest() for i, t in enumerate(texts)]
    position = np.array([int.from_bytes(d[:8], "big") / 2**64 for d in digests])  # uniform in [0, 1)
    return np.minimum(np.searchsorted(np.cumsum([*shares.values()]), position, side="right"), len(shares) - 1)


def _shards(recording: Recording, selection: _Selection) -> Iterator[tuple[pa.Table, _Array]]:
    """Yield the selected columns and rows of each shard, and the split of each row, `[row]`."""
    texts: list[str | None] = [None] * recording.n_documents
    if recording.manifest.get("documents"):
        texts = recording.documents()["text"].to_pylist()
    split = split_of(texts, selection.splits)
    tokens = _keys(recording.column("doc"), recording.column("pos")) if selection.labels else np.zeros(0, np.int64)
    tables = _token_shards if selection.table == "tokens" else _vector_shards
    for table in tables(recording, selection):
        if selection.labels:
            row = np.searchsorted(tokens, _keys(table["doc"].to_numpy(), table["pos"].to_numpy()))
            for name, values in _label_columns(selection.labels, selection.families, row).items():
                table = table.append_column(name, pa.array(values))
        yield table, split[table["doc"].to_numpy()]


def _keys(doc: _Array, pos: _Array) -> _Array:
    """Return numbers that are in the order of the tokens, `[row]`."""
    return (doc.astype(np.int64) << 32) + pos


def _token_shards(recording: Recording, selection: _Selection) -> Iterator[pa.Table]:
    recorded = set(map(layer_label, recording.manifest["capture"]["layers"]))
    dropped = recorded - set(map(layer_label, selection.layers))
    for entry in recording.manifest["shards"]:
        table = recording.shard(entry["path"])
        yield table.select([n for n in table.schema.names if n.rpartition("_")[2] not in dropped])


def _vector_shards(recording: Recording, selection: _Selection) -> Iterator[pa.Table]:
    for entry in recording.vector_entries(selection.table, selection.layers):
        table = recording.shard(entry["path"])
        yield table.filter(pc.is_in(table["layer"], pa.array(selection.layers, table["layer"].type)))


def _label_columns(labels: Labels, families: Sequence[str], row: _Array) -> dict[str, _Array]:
    """Return the labels of some tokens, bool `[row]` by the name of the label with its family.

    All labels between the first and the last of these tokens are read.
    """
    start, stop = (int(row.min()), int(row.max()) + 1) if len(row) else (0, 0)
    columns: dict[str, _Array] = {}
    for family in families:
        names, has = labels.matrix(family, slice(start, stop))
        columns |= {f"{family}.{name}": has[row - start, i] for i, name in enumerate(names)}
    return columns


# Formats


def _write_datasets(recording: Recording, selection: _Selection, out: Path) -> None:
    """Write Arrow files for `datasets.load_from_disk`."""
    datasets = importlib.import_module("datasets")
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        paths: dict[str, list[str]] = {name: [] for name in selection.splits}
        schema = pa.schema([])
        for i, (table, split) in enumerate(_shards(recording, selection)):
            schema = table.schema
            for n, name in enumerate(selection.splits):
                part = table.filter(pa.array(split == n))
                if len(part):
                    paths[name].append(f"{scratch}/{name}-{i:05d}.parquet")
                    pq.write_table(part, paths[name][-1])
        splits = {
            name: datasets.Dataset.from_parquet(files, cache_dir=f"{scratch}/cache")
            if files
            else datasets.Dataset(datasets.table.InMemoryTable(schema.empty_table()))
            for name, files in paths.items()
        }
        # Without the number of files, an empty split gets none and cannot be loaded.
        files_of = {name: None if files else 1 for name, files in paths.items()}
        datasets.DatasetDict(splits).save_to_disk(str(out), num_shards=files_of)


def _array_files(recording: Recording, selection: _Selection) -> Iterator[tuple[str, dict[str, _Array]]]:
    """Yield the names and the arrays of files: one per split for tokens, and one per split and shard for vectors."""
    parts: dict[str, dict[str, list[_Array]]] = {name: {} for name in selection.splits}
    for i, (table, split) in enumerate(_shards(recording, selection)):
        for n, name in enumerate(selection.splits):
            part = table.filter(pa.array(split == n))
            arrays = {column: _plain_array(part[column]) for column in part.schema.names}
            if selection.table != "tokens":
                yield f"{name}-{i:05d}", arrays
                continue
            for column, array in arrays.items():
                parts[name].setdefault(column, []).append(array)
    if selection.table == "tokens":
        for name, columns in parts.items():
            yield name, _stack_layers({c: np.concatenate(v) for c, v in columns.items()}, selection.layers)


def _plain_array(values: pa.ChunkedArray) -> _Array:
    """Convert a column to an array of numbers or of strings of fixed width."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(pa.string())
    array = as_array(values)
    return array.astype(str) if array.dtype == object else array


def _stack_layers(columns: dict[str, _Array], layers: Sequence[int]) -> dict[str, _Array]:
    """Stack the columns of layers to arrays `[token, layer, ·]`, and add the layers, `[layer]`."""
    labels = [layer_label(layer) for layer in layers]
    result = {n: v for n, v in columns.items() if n.rpartition("_")[2] not in labels}
    for kind in dict.fromkeys(n.rpartition("_")[0] for n in columns if n not in result):
        result[kind] = np.stack([columns[f"{kind}_{label}"] for label in labels if f"{kind}_{label}" in columns], 1)
    return result | {"layers": np.array(layers, np.int32)}


def _write_npz(recording: Recording, selection: _Selection, out: Path) -> None:
    for name, arrays in _array_files(recording, selection):
        np.savez_compressed(out / f"{name}.npz", allow_pickle=False, **arrays)


def _write_safetensors(recording: Recording, selection: _Selection, out: Path) -> None:
    save = importlib.import_module("safetensors.numpy").save_file
    for name, arrays in _array_files(recording, selection):
        numbers = {n: np.ascontiguousarray(v) for n, v in arrays.items() if v.dtype.kind != "U"}
        if "phase" in arrays:
            numbers["decode"] = arrays["phase"] == "decode"
        save(numbers, out / f"{name}.safetensors", metadata={"model": recording.manifest["model"]["name"]})


def _write_csv(recording: Recording, selection: _Selection, out: Path) -> None:
    """Write one line per row of the table, with one column per slot or component of a vector, and the tokens' text.

    If a name or a text is not ASCII, a byte order mark begins the file, by which Excel knows that it is UTF-8.
    """
    files: dict[str, Any] = {}
    texts = list(recording.texts()) if recording.manifest.get("documents") and selection.table == "tokens" else []
    try:
        for table, split in _shards(recording, selection):
            if texts:
                token = pa.array(_texts_of_tokens(texts, table), pa.string())
                table = table.add_column(table.schema.get_field_index("token_id") + 1, "token", token)
            columns: dict[str, _Array] = {}
            for name in table.schema.names:
                array = _plain_array(table[name])
                columns |= (
                    {name: array} if array.ndim == 1 else {f"{name}_{k}": array[:, k] for k in range(array.shape[1])}
                )
            for n, name in enumerate(selection.splits):
                if name not in files:
                    encoding = "utf-8" if all(map(str.isascii, (*columns, *texts))) else "utf-8-sig"
                    files[name] = (out / f"{name}.csv").open("w", encoding=encoding, newline="")
                    csv.writer(files[name]).writerow(columns)
                rows = np.flatnonzero(split == n)
                csv.writer(files[name]).writerows(zip(*(v[rows].tolist() for v in columns.values()), strict=True))
    finally:
        for file in files.values():
            file.close()


def _texts_of_tokens(texts: Sequence[str], table: pa.Table) -> list[str]:
    """Return the characters that each token of a table stands for; tokens that share a character have it each."""
    places = (table[name].to_pylist() for name in ("doc", "char_start", "char_end"))
    return [texts[doc][start:end] for doc, start, end in zip(*places, strict=True)]


_FORMATS: dict[str, Callable[[Recording, _Selection, Path], None]] = {
    "datasets": _write_datasets,
    "safetensors": _write_safetensors,
    "npz": _write_npz,
    "csv": _write_csv,
}
