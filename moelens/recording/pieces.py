"""From forward passes to files: the rows of a chunk of documents, and the writer of a piece of a recording."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moelens.models.tokens import TokenSpans
from moelens.recording.captures import SLOT_TABLES, TABLES, TOKEN_COLUMNS
from moelens.recording.collector import Taken
from moelens.recording.corpus import Document
from moelens.recording.generation import RouteCheck
from moelens.recording.progress import Types, commit, documents_table, part_name
from moelens.recording.storage import Folder
from moelens.recording.writer import ShardWriter, as_column, layer_label

Array = NDArray[Any]
Pass = tuple[Array, list[Taken]]
"""What a forward pass gave: for each kept token its row in the chunk, `[token]`, and the captures."""

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Tokenized:
    """A document and its tokens: `ids` `[token]` int32, and where they stand in its text."""

    document: Document
    ids: NDArray[np.int32]
    spans: TokenSpans


@dataclass(frozen=True)
class Chunk:
    """Documents that are written together; `first` is the number of the first, and `last` ends its piece."""

    piece: int
    first: int
    items: Sequence[Tokenized]
    last: bool


@dataclass(frozen=True)
class Rows:
    """Tokens of a chunk, `[row]` each: first all that were read, then all that were generated."""

    doc: Array
    pos: Array
    ids: Array
    start: Array
    end: Array
    partial: Array
    decode: Array | None = None

    @classmethod
    def of(cls, chunk: Chunk) -> Rows:
        lengths = [len(item.ids) for item in chunk.items]
        spans = [item.spans for item in chunk.items]
        return cls(
            np.repeat(np.arange(chunk.first, chunk.first + len(lengths), dtype=np.int32), lengths),
            np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            np.concatenate([item.ids for item in chunk.items]),
            np.concatenate([s.start for s in spans]),
            np.concatenate([s.end for s in spans]),
            np.concatenate([s.partial for s in spans]),
        )

    def columns(self) -> dict[str, Array]:
        return {"doc": self.doc, "pos": self.pos, "token_id": self.ids, "char_start": self.start,
                "char_end": self.end, "partial": self.partial}  # fmt: skip


def phase_column(decode: Array) -> pa.Array:
    return pa.DictionaryArray.from_arrays(decode.astype(np.int8), PHASES)


def token_table(rows: Rows, passes: Sequence[Pass]) -> pa.Table:
    """A row a token, in the order of the documents; a column for each layer and capture with one value a slot."""
    columns = rows.columns()
    for at, taken in passes:
        for t in (t for t in taken if t.capture in TOKEN_COLUMNS):
            for name, values in t.columns.items():
                full = f"{name}_{layer_label(t.layer)}"
                if full not in columns:
                    columns[full] = np.zeros((len(rows.doc), *values.shape[1:]), values.dtype)
                columns[full][at] = values
    order = None if rows.decode is None else np.lexsort((rows.pos, rows.doc))
    ordered = columns if order is None else {n: v[order] for n, v in columns.items()}
    table = pa.table({name: as_column(values) for name, values in ordered.items()})
    if rows.decode is not None:
        table = table.add_column(6, "phase", phase_column(rows.decode[order]))
    return table


def vector_table(rows: Rows, passes: Sequence[Pass], capture: str, layer: int) -> pa.Table:
    """A row a token, or a token and chosen expert, in the order of the documents."""
    at, found = [], []
    for row, taken in passes:
        for t in (t for t in taken if (t.capture, t.layer) == (capture, layer)):
            at.append(row if t.token is None else row[t.token])
            found.append(t.columns)
    row = np.concatenate(at)
    order = np.lexsort((rows.pos[row], rows.doc[row]))
    row = row[order]
    columns = {"doc": rows.doc[row], "pos": rows.pos[row], "layer": np.full(len(row), layer, np.int16)}
    names = {"experts": "expert"} if capture in SLOT_TABLES else {}
    for name in found[0]:
        columns[names.get(name, name)] = np.concatenate([f[name] for f in found])[order]
    table = pa.table({name: as_column(values) for name, values in columns.items()})
    if rows.decode is not None:
        table = table.add_column(2, "phase", phase_column(rows.decode[row]))
    return table


@dataclass
class PieceWriter:
    """Writes one piece after another; the calls come in order. The files of a chunk are written side by side."""

    folder: Folder
    types: Types
    writers: dict[str, ShardWriter] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    methods: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)

    def write(
        self,
        chunk: Chunk,
        rows: Rows,
        passes: Sequence[Pass],
        generated: Sequence[str] | None,
        check: RouteCheck | None = None,
    ) -> None:
        """Append a chunk; the last one of a piece commits it."""
        documents = [item.document for item in chunk.items]
        tables: dict[str, Callable[[], pa.Table]] = {
            part_name(chunk.piece): lambda: documents_table(chunk.first, documents, self.types, generated),
            f"tokens/tokens-{chunk.piece:05d}.parquet": lambda: token_table(rows, passes),
        }
        for capture, layer in sorted({(t.capture, t.layer) for _, taken in passes for t in taken}):
            if capture in TABLES:
                name = f"{capture}/{capture}-{layer_label(layer)}-{chunk.piece:05d}.parquet"
                self.layers[name] = layer
                tables[name] = partial(vector_table, rows, passes, capture, layer)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in [pool.submit(self._append, name, table) for name, table in tables.items()]:
                done.result()
        self.methods.update(item.spans.method for item in chunk.items)
        if check is not None and check.choices:
            self.routes.update(choices=check.choices, agreeing=check.agreeing)
        if chunk.last:
            shards = {n: replace(w.close(), layer=self.layers.get(n)) for n, w in self.writers.items()}
            documents_part = shards.pop(part_name(chunk.piece))
            kept = [s for s in shards.values() if s.rows]
            commit(self.folder, chunk.piece, kept, documents_part, self.methods, self.routes)
            self.writers, self.layers, self.methods, self.routes = {}, {}, Counter(), Counter()

    def _append(self, name: str, table: Callable[[], pa.Table]) -> None:
        if name not in self.writers:
            self.writers[name] = ShardWriter(self.folder, name)
        self.writers[name].write(table())

    def abandon(self, error: BaseException) -> None:
        for writer in self.writers.values():
            writer.abandon(error)
        self.writers = {}
