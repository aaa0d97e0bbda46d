"""From forward passes to files: the rows of a chunk of documents, and the writer of the pieces of a recording."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moelens.models.tokens import TokenSpans
from moelens.recording.captures import SLOT_TABLES, TABLES, TOKEN_COLUMNS
from moelens.recording.collector import LayerCapture
from moelens.recording.corpus import Document
from moelens.recording.generation import RouteCheck
from moelens.recording.progress import commit_piece, documents_part_name
from moelens.recording.storage import Folder
from moelens.recording.survey import ColumnTypes, documents_table
from moelens.recording.writer import ShardWriter, as_column, layer_label

_Array = NDArray[Any]
PassResult = tuple[_Array, list[LayerCapture]]
"""The result of a forward pass: the row in the chunk of each kept token, `[token]`, and the captures."""

SpecialTokens = Literal["tokenizer", "text", "none"]
"""Where the special tokens at the ends are from: the tokenizer added them, the text has them, or there are none."""

_PHASES = ("prefill", "decode")
COMMIT_SECONDS = 60.0  # after which complete pieces are committed, however few there are


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """A tokenised document.

    Attributes:
        document: The document.
        ids: Token ids, `[token]` int32.
        spans: The places of the tokens in the text.
        special_tokens: Where the special tokens at the ends are from.
        turn: Number of the message of a conversation, `[token]`, −1 for what the chat template writes; None for texts.
    """

    document: Document
    ids: NDArray[np.int32]
    spans: TokenSpans
    special_tokens: SpecialTokens
    turn: NDArray[np.int32] | None = None

    @property
    def role(self) -> _Array:
        """Who speaks, `[token]` strings; "" for what the chat template writes."""
        assert self.turn is not None
        roles = [str(message["role"]) for message in self.document.messages or ()]
        return np.array([*roles, ""], object)[self.turn]


@dataclass(frozen=True)
class Chunk:
    """Documents that are written together.

    Attributes:
        piece: Number of the piece of the recording that they belong to.
        first: Number of the first document.
        items: The documents.
        last: Whether the chunk is the last of its piece.
        final: Whether the next piece, if there is any, does not follow this one.
    """

    piece: int
    first: int
    items: Sequence[Tokenized]
    last: bool
    final: bool = True


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The tokens of a chunk, first all that were read and then all that were generated.

    Attributes:
        doc: Number of the document, `[row]`.
        pos: Position in the document, `[row]`.
        ids: Token id, `[row]`.
        start: Index of the first character, `[row]`.
        end: Index after the last character, `[row]`.
        partial: Whether the token holds only a part of a character, `[row]`.
        turn: Number of the message, `[row]`, −1 for what the chat template writes; None unless of conversations.
        role: Who speaks, `[row]`, "" for what the chat template writes; None unless of conversations.
        decode: Whether the model generated the token, `[row]`; None in a recording without generation.
    """

    doc: _Array
    pos: _Array
    ids: _Array
    start: _Array
    end: _Array
    partial: _Array
    turn: _Array | None = None
    role: _Array | None = None
    decode: _Array | None = None

    @classmethod
    def of(cls, chunk: Chunk) -> Rows:
        """Return the tokens that are read."""
        lengths = [len(item.ids) for item in chunk.items]
        spans = [item.spans for item in chunk.items]
        turns = [item.turn for item in chunk.items if item.turn is not None]
        return cls(
            doc=np.repeat(np.arange(chunk.first, chunk.first + len(lengths), dtype=np.int32), lengths),
            pos=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            ids=np.concatenate([item.ids for item in chunk.items]),
            start=np.concatenate([s.start for s in spans]),
            end=np.concatenate([s.end for s in spans]),
            partial=np.concatenate([s.partial for s in spans]),
            turn=np.concatenate(turns) if turns else None,
            role=np.concatenate([item.role for item in chunk.items]) if turns else None,
        )

    def with_generated(self, generated: Sequence[Rows]) -> Rows:
        """Return these rows followed by those of generated tokens."""
        parts = [self, *generated]
        names = [f.name for f in fields(self) if f.name != "decode" and getattr(self, f.name) is not None]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return Rows(**columns, decode=np.arange(len(columns["doc"])) >= len(self.doc))

    def columns(self) -> dict[str, _Array]:
        """Return the columns of the table of tokens that do not depend on the captures."""
        columns = {
            "doc": self.doc,
            "pos": self.pos,
            "token_id": self.ids,
            "char_start": self.start,
            "char_end": self.end,
            "partial": self.partial,
            "turn": self.turn,
            "role": self.role,
        }
        return {name: values for name, values in columns.items() if values is not None}


def phase_column(decode: _Array) -> pa.Array:
    """Return the column `phase` of tokens, from whether the model generated them, bool `[row]`."""
    return pa.DictionaryArray.from_arrays(decode.astype(np.int8), _PHASES)


def token_table(rows: Rows, passes: Sequence[PassResult]) -> pa.Table:
    """Return the table of tokens, in the order of the documents, with a column per layer for each capture."""
    columns = rows.columns()
    for row, captures in passes:
        for found in captures:
            if found.capture not in TOKEN_COLUMNS:
                continue
            for name, values in found.columns.items():
                column = f"{name}_{layer_label(found.layer)}"
                if column not in columns:
                    columns[column] = np.zeros((len(rows.doc), *values.shape[1:]), values.dtype)
                columns[column][row] = values
    order = None if rows.decode is None else np.lexsort((rows.pos, rows.doc))
    ordered = columns if order is None else {n: v[order] for n, v in columns.items()}
    table = pa.table({name: as_column(values) for name, values in ordered.items()})
    if rows.decode is not None:
        table = table.add_column(6, "phase", phase_column(rows.decode[order]))
    return table


def _vector_table(rows: Rows, passes: Sequence[PassResult], capture: str, layer: int) -> pa.Table:
    """Return the table of a capture of vectors in one layer, in the order of the documents."""
    vector_rows, found = [], []
    for row, captures in passes:
        for c in captures:
            if (c.capture, c.layer) == (capture, layer):
                vector_rows.append(row if c.token is None else row[c.token])
                found.append(c.columns)
    row = np.concatenate(vector_rows)
    order = np.lexsort((rows.pos[row], rows.doc[row]))
    row = row[order]
    columns = {"doc": rows.doc[row], "pos": rows.pos[row], "layer": np.full(len(row), layer, np.int16)}
    renamed = {"experts": "expert"} if capture in SLOT_TABLES else {}
    for name in found[0]:
        columns[renamed.get(name, name)] = np.concatenate([f[name] for f in found])[order]
    table = pa.table({name: as_column(values) for name, values in columns.items()})
    if rows.decode is not None:
        table = table.add_column(2, "phase", phase_column(rows.decode[row]))
    return table


@dataclass(kw_only=True)
class PieceWriter:
    """Writes the pieces of a recording, chunk by chunk in order. The files of a chunk are written in parallel.

    Pieces that follow each other are written to the same files and committed together, when these have enough text, or
    after a minute.

    Attributes:
        folder: The folder of the recording.
        types: The types of the metadata columns.
        characters: How much text is enough.
        piece: The first of the pieces that are not committed yet; None before the first chunk of them.
        size: The characters of these pieces.
        began: When the first of them began, by `time.monotonic`.
        writers: The writers of the files of these pieces, by name.
        layers: The layers of the files of vectors, by name.
        methods: The number of documents by the method that located their tokens.
        special_tokens: The number of documents by where their special tokens are from.
    """

    folder: Folder
    types: ColumnTypes
    characters: int = 1
    piece: int | None = None
    size: int = 0
    began: float = 0.0
    writers: dict[str, ShardWriter] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    methods: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    special_tokens: Counter[str] = field(default_factory=Counter)

    def write(
        self,
        chunk: Chunk,
        rows: Rows,
        passes: Sequence[PassResult],
        generated: Sequence[str] | None,
        check: RouteCheck,
    ) -> None:
        """Append a chunk; the last chunk of a piece may commit it, with the pieces before it.

        Args:
            chunk: The documents.
            rows: Their tokens.
            passes: The results of the forward passes over them.
            generated: The text that the model generated after each document; None without generation.
            check: The comparison of the routes of generated tokens.
        """
        if self.piece is None:
            self.piece, self.size, self.began = chunk.piece, 0, self.began or time.monotonic()
        piece = self.piece
        documents = [item.document for item in chunk.items]
        tables: dict[str, Callable[[], pa.Table]] = {
            documents_part_name(piece): partial(documents_table, chunk.first, documents, self.types, generated),
            f"tokens/tokens-{piece:05d}.parquet": partial(token_table, rows, passes),
        }
        for capture, layer in sorted({(c.capture, c.layer) for _, captures in passes for c in captures}):
            if capture in TABLES:
                name = f"{capture}/{capture}-{layer_label(layer)}-{piece:05d}.parquet"
                self.layers[name] = layer
                tables[name] = partial(_vector_table, rows, passes, capture, layer)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in [pool.submit(self._append, name, table) for name, table in tables.items()]:
                done.result()
        self.methods.update(item.spans.method for item in chunk.items)
        self.special_tokens.update(item.special_tokens for item in chunk.items)
        if check.choices:
            self.routes.update(choices=check.choices, agreeing=check.agreeing)
        self.size += sum(len(document.text) for document in documents)
        waited = time.monotonic() - self.began
        if chunk.last and (chunk.final or self.size >= self.characters or waited >= COMMIT_SECONDS):
            self._finish_pieces(piece, chunk.piece)

    def _append(self, name: str, table: Callable[[], pa.Table]) -> None:
        if name not in self.writers:
            self.writers[name] = ShardWriter(self.folder, name)
        self.writers[name].write(table())

    def _finish_pieces(self, piece: int, last: int) -> None:
        shards = {n: replace(w.close(), layer=self.layers.get(n)) for n, w in self.writers.items()}
        documents = shards.pop(documents_part_name(piece))
        written = [s for s in shards.values() if s.rows]
        counted = self.methods, self.routes, self.special_tokens
        commit_piece(self.folder, piece, written, documents, *counted, last=last)
        self.piece, self.began = None, time.monotonic()
        self.writers, self.layers = {}, {}
        self.methods, self.routes, self.special_tokens = Counter(), Counter(), Counter()

    def abandon(self, error: BaseException) -> None:
        """Remove the unfinished files after an error."""
        for writer in self.writers.values():
            writer.abandon(error)
        self.writers = {}
