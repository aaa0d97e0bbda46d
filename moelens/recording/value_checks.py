"""The schema of the files of a recording, to which their columns and values are held when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moelens.recording.captures import TABLES
from moelens.recording.progress import UNCAPTURED
from moelens.recording.writer import layer_label

_Array = NDArray[Any]
_INT32, _NUMBERS = pa.int32(), {"float16": pa.float16(), "float32": pa.float32()}
_PLACES = {
    "doc": _INT32,
    "pos": _INT32,
    "token_id": _INT32,
    "char_start": _INT32,
    "char_end": _INT32,
    "partial": pa.bool_(),
}
_INFINITE = {np.dtype(np.float16): 0x7C00, np.dtype(np.float32): 0x7F800000}  # the bits of infinity


def column_types(manifest: Mapping[str, Any], room: str) -> dict[str, pa.DataType]:
    """Return the columns that a file must have, with their types.

    Args:
        manifest: The manifest of the recording.
        room: "tokens", "uncaptured", "documents", or the name of a table of vectors.
    """
    capture, shape = manifest["capture"], manifest["shape"]
    if room == "documents":
        return {"doc": _INT32, "text": pa.string()}
    if room == UNCAPTURED:
        return _PLACES
    index = {"uint8": pa.uint8(), "uint16": pa.uint16()}.get(capture["index_dtype"], pa.uint16())
    number = _NUMBERS.get(capture["stored_as"], pa.float32())
    if room in TABLES:
        return {"doc": _INT32, "pos": _INT32, "layer": pa.int16()}
    names, slots = {c.partition(":")[0] for c in capture["captures"]}, shape["top_k"]
    columns = {"experts": pa.list_(index, slots)} if "routes" in names else {}
    if "routes" in names and capture.get("weights") is not False:
        columns["weights"] = pa.list_(number, slots)
    if "margin" in names:
        columns["margin"] = number
    if "expert_norms" in names:
        columns["expert_norms"] = pa.list_(number, slots)
    layers = [layer for layer in shape["moe_layers"] if layer in capture["layers"]]
    return _PLACES | {f"{name}_{layer_label(n)}": kind for n in layers for name, kind in columns.items()}


def wrong_columns(schema: pa.Schema, expected: Mapping[str, pa.DataType]) -> str:
    """Return what is wrong with the columns of a file, as the end of a sentence; "" if nothing is."""
    for name, kind in expected.items():
        if schema.get_field_index(name) < 0:
            return f"has no column {name!r}" if schema.names.count(name) == 0 else f"has two columns {name!r}"
        found = schema.field(name).type
        if not found.equals(kind) and not (pa.types.is_string(kind) and pa.types.is_large_string(found)):
            return f"has column {name!r} of {found} instead of {kind}"
    return ""


def wrong_values(table: pa.Table, manifest: Mapping[str, Any], lengths: Callable[[], _Array | None]) -> str:
    """Return what is wrong with the values of some columns of a file, as the end of a sentence; "" if nothing is.

    Args:
        table: The columns, of rows that follow one another.
        manifest: The manifest of the recording.
        lengths: Returns the number of characters of each document, `[document]`; None if there are no texts.
    """
    columns = {name: table[name] for name in table.schema.names if name not in ("text", "generated")}
    n_experts = manifest["shape"]["n_experts"]
    for name, column in columns.items():
        parts = [_flat(chunk) for chunk in column.chunks]
        if column.null_count or any(part.null_count for part in parts):
            return f"has rows without {name!r}"
        if name.startswith("weights_") and not all(_is_finite(part.to_numpy()) for part in parts):
            return f"has numbers in {name!r} that are not finite"
        if name in ("expert", "experts") or name.startswith("experts_"):
            largest = max((int(part.to_numpy().max(initial=0)) for part in parts), default=0)
            if largest >= n_experts:
                return f"has expert {largest} in {name!r}, of {n_experts} experts"
    if "doc" not in columns:
        return ""
    doc = columns["doc"].to_numpy()
    if len(doc) and not (doc[0] >= 0 and doc[-1] < manifest["n_documents"] and (doc[1:] >= doc[:-1]).all()):
        return f"has numbers in 'doc' that are not in ascending order or not below {manifest['n_documents']}"
    same = doc[1:] == doc[:-1]
    if "pos" in columns and "layer" not in columns:  # rows of vectors repeat a position for each slot
        pos = columns["pos"].to_numpy()
        if len(pos) and (pos.min() < 0 or not (pos[1:] > pos[:-1])[same].all()):
            return "has positions in 'pos' that are not in ascending order within a document"
    if "char_start" in columns and "char_end" in columns:
        return _wrong_spans(doc, columns["char_start"].to_numpy(), columns["char_end"].to_numpy(), lengths())
    return ""


def _wrong_spans(doc: _Array, start: _Array, end: _Array, lengths: _Array | None) -> str:
    edges = np.append(0, np.flatnonzero(doc[1:] != doc[:-1]) + 1)
    if not len(doc) or (
        start.min() >= 0
        and (end >= start).all()
        and (lengths is None or (np.maximum.reduceat(end, edges) <= lengths[doc[edges]]).all())
    ):
        return ""
    wrong = (start < 0) | (end < start) | (False if lengths is None else end > lengths[doc])
    row = int(wrong.argmax())
    return f"has characters {start[row]} to {end[row]} for a token of document {doc[row]}, beyond its text"


def wrong_documents(numbers: pa.ChunkedArray | pa.Array, first: int) -> str:
    """Return what is wrong with numbers of documents that should count from `first`; "" if nothing is."""
    right = np.arange(first, first + len(numbers))
    return "" if np.array_equal(numbers.to_numpy(), right) else f"does not number its documents from {first} on"


def text_lengths(text: pa.Array) -> _Array:
    """Return the number of characters of texts, `[document]`; 0 for one that is not known."""
    lengths: _Array = pc.utf8_length(text).fill_null(0).to_numpy(zero_copy_only=False)
    return lengths


def _flat(chunk: pa.Array) -> pa.Array:
    """Return the numbers in fixed-size lists; another column as it is."""
    return chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk


def _is_finite(values: _Array) -> bool:
    """Return whether all numbers are finite; of numbers that are not negative, by the largest of their bits.

    This is many times as fast: weights are seldom negative, and arithmetic with float16 is slow.
    """
    infinite = _INFINITE.get(values.dtype)
    if infinite is not None and values.view(f"u{values.dtype.itemsize}").max(initial=0) < infinite:
        return True
    return bool(np.isfinite(values).all())
