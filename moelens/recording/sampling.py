"""Documents of a recording that are drawn at random, and its files read as if they held no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.errors import RecordingError
from moelens.recording.progress import UNCAPTURED
from moelens.recording.reading import RecordingFiles

MOST_DOCUMENTS = 20_000
MOST_TOKENS = 2_000_000
LEAST_DOCUMENTS = 200  # into so many groups a test over documents joins them
_Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class DrawnDocuments:
    """Documents that were drawn from a recording without replacement.

    Attributes:
        numbers: Their numbers in the recording, ascending `[document]`.
        starts: The first token of each in the recording `[document]`.
        sizes: The number of its tokens `[document]`.
        seed: Seed of the draw.
        manifest: The manifest of the recording.
    """

    numbers: _Ints
    starts: _Ints
    sizes: _Ints
    seed: int
    manifest: dict[str, Any]

    @classmethod
    def draw(cls, sizes: _Ints, documents: int | None, seed: int, manifest: dict[str, Any]) -> DrawnDocuments:
        """Draw documents in an order that only the seed decides, so that fewer of them are the first of more.

        Args:
            sizes: Tokens of each document of the recording `[document]`.
            documents: How many to draw; None as `Recording.sample` says.
            seed: Seed of the draw.
            manifest: The manifest of the recording.

        Example:
            >>> drawn = DrawnDocuments.draw(np.array([3, 1, 4, 1]), 2, 0, {})
            >>> drawn.numbers.tolist(), drawn.starts.tolist(), drawn.n_tokens
            ([0, 2], [0, 4], 7)
        """
        order = np.random.default_rng(seed).permutation(len(sizes))
        if documents is None:
            within = int(np.searchsorted(np.cumsum(sizes[order]), MOST_TOKENS, "right"))
            documents = min(MOST_DOCUMENTS, max(within, LEAST_DOCUMENTS))
        numbers = np.sort(order[:documents])
        starts = (np.cumsum(sizes) - sizes)[numbers]
        return cls(numbers=numbers, starts=starts, sizes=sizes[numbers], seed=seed, manifest=manifest)

    @property
    def n_tokens(self) -> int:
        """Number of their tokens."""
        return int(self.sizes.sum())

    def tokens_before(self, row: int) -> int:
        """Return how many of their tokens are before a row of the recording."""
        at = int(np.searchsorted(self.starts, row))
        return int(self.sizes[:at].sum()) - max(0, int(self.starts[at - 1] + self.sizes[at - 1]) - row if at else 0)

    @cached_property
    def rows(self) -> _Ints:
        """The row in the recording of each of their tokens `[token]`.

        Example:
            >>> DrawnDocuments.draw(np.array([3, 1, 4, 1]), 2, 0, {}).rows.tolist()
            [0, 1, 2, 4, 5, 6, 7]
        """
        before = np.cumsum(self.sizes) - self.sizes
        rows: _Ints = np.repeat(self.starts - before, self.sizes) + np.arange(self.n_tokens)
        return rows

    def pick(self, table: pa.Table) -> pa.Table:
        """Return the rows of a table that are of these documents, whose numbers in `doc` are then 0, 1, …"""
        doc = table["doc"].to_numpy()
        place = np.searchsorted(self.numbers, doc)
        drawn = self.numbers[np.minimum(place, len(self.numbers) - 1)] == doc
        at = table.schema.get_field_index("doc")
        numbers = pa.array(place.astype(np.int32), table.schema.field(at).type)
        return table.set_column(at, table.schema.field(at), numbers).filter(pa.array(drawn))


@dataclass(frozen=True)
class SampledFiles(RecordingFiles):
    """The files of a recording, of whose rows only those of documents that were drawn are returned.

    Files and row groups of tokens that hold none of them are not read.

    Attributes:
        whole: The files.
        drawn: The documents.
    """

    whole: RecordingFiles
    drawn: DrawnDocuments

    @contextmanager
    def open(self, name: str) -> Iterator[pq.ParquetFile]:
        """See `RecordingFiles.open`."""
        with self.whole.open(name) as file:
            yield file

    def read(
        self, name: str, columns: Sequence[str] | None = None, rows: NDArray[np.integer] | None = None
    ) -> pa.Table:
        """See `RecordingFiles.read`."""
        if name in self._places:
            first, start, stop = self._places[name]
            rows = self.drawn.rows[start:stop] - first
        return self._selected(self.whole.read(name, _with_doc(columns), rows), columns)

    def batches(self, name: str, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """See `RecordingFiles.batches`."""
        for table in self.whole.batches(name, rows, _with_doc(columns)):
            if len(kept := self._selected(table, columns)):
                yield kept

    def damage(self) -> Iterator[RecordingError]:
        """See `RecordingFiles.damage`."""
        return self.whole.damage()

    @cached_property
    def _places(self) -> dict[str, tuple[int, int, int]]:
        """Of each shard the first row in the recording, and which of the tokens that were drawn it holds."""
        found, row, start = {}, 0, 0
        for of_all, own in zip(self.whole.manifest["shards"], self.manifest["shards"], strict=True):
            found[own["path"]] = row, start, start + own["rows"]
            row, start = row + of_all["rows"], start + own["rows"]
        return found

    def _selected(self, table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        picked = self.drawn.pick(table)
        return picked if columns is None else picked.select([c for c in columns if c in picked.schema.names])


def _with_doc(columns: Sequence[str] | None) -> Sequence[str] | None:
    return columns if columns is None or "doc" in columns else ["doc", *columns]


def draws_all(n_documents: int, n_tokens: int, documents: int | None) -> bool:
    """Return whether a draw leaves out no document, as far as these numbers tell; see `DrawnDocuments.draw`."""
    if documents is None:
        documents = MOST_DOCUMENTS if n_tokens <= MOST_TOKENS else LEAST_DOCUMENTS
    return n_documents <= documents


def document_sizes(files: RecordingFiles) -> _Ints:
    """Return the number of tokens of each document of a recording `[document]`."""
    sizes = np.zeros(files.manifest["n_documents"], np.int64)
    for _, table in files.shards(["doc"]):
        sizes += np.bincount(table["doc"].to_numpy(), minlength=len(sizes))
    return sizes


def sample_manifest(files: RecordingFiles, drawn: DrawnDocuments) -> dict[str, Any]:
    """Return the manifest of a recording as if it held only the documents that were drawn, and what they are."""
    manifest = drawn.manifest
    ends = np.cumsum([entry["rows"] for entry in manifest["shards"]])
    rows = np.diff([0, *map(drawn.tokens_before, ends.tolist())]).tolist()
    uncaptured = manifest.get(UNCAPTURED)
    if uncaptured:
        kept = drawn.pick(files.read(uncaptured["path"], ["doc"]))
        uncaptured = {**uncaptured, "rows": len(kept)}
    return {
        **manifest,
        **({UNCAPTURED: uncaptured} if uncaptured else {}),
        "shards": [{**entry, "rows": n} for entry, n in zip(manifest["shards"], rows, strict=True)],
        "n_tokens": drawn.n_tokens,
        "n_documents": len(drawn.numbers),
        "sample": {"documents": len(drawn.numbers), "of": manifest["n_documents"], "seed": drawn.seed},
    }
