"""Sentences of a recording, at hand for a view that is asked for others at every click."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from moelens.models.tokens import TokenSpans
from moelens.recording import Recording
from moelens.recording.writer import layer_label
from moelens.tracing.traces import Trace, pieces, spans_from_labels

if TYPE_CHECKING:
    from moelens.japanese import Labels

T = TypeVar("T")

MOST_TOKENS = 100_000
PASSAGES, AROUND = 5, 20


class Excerpt:
    """The first shards of a recording, up to about so many tokens, whose arrays stay in memory once they are read.

    Attributes:
        recording: the recording, with these shards alone.
        part: which tokens these are, in words; empty where they are all.
    """

    def __init__(self, recording: Recording, tokens: int | None = None) -> None:
        shards, rows = [], 0
        for entry in recording.manifest["shards"]:
            if rows < (MOST_TOKENS if tokens is None else tokens):
                shards.append(entry)
                rows += entry["rows"]
        self.recording = Recording(recording.folder, {**recording.manifest, "shards": shards, "n_tokens": rows})
        self.part = "" if rows == recording.n_tokens else f"the first {rows:,} of {recording.n_tokens:,} tokens"
        self._read: dict[str, Any] = {}

    def _once(self, name: str, read: Callable[[], T]) -> T:
        if name not in self._read:
            self._read[name] = read()
        found: T = self._read[name]
        return found

    def indices(self) -> NDArray[np.unsignedinteger[Any]]:
        """See `Recording.indices`."""
        return self._once("indices", self.recording.indices)

    def weights(self) -> Any:
        """See `Recording.weights`; as float16, as they are on disk."""
        return self._once("weights", lambda: self.recording.weights().astype(np.float16))

    def column(self, name: str) -> NDArray[Any]:
        """See `Recording.column`."""
        return self._once(name, lambda: self.recording.column(name))

    def texts(self) -> list[str]:
        """The texts of the documents."""
        return self._once("texts", lambda: list(self.recording.texts()))


def _underlined(labels: Labels, family: str) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """What sentences show beside the routes: references with their evidence, or honorifics."""
    if family != "reference":
        return labels.matrix("honorifics")
    (names, has), (more, evidence) = labels.matrix("reference"), labels.matrix("reference_evidence")
    return (*names, *more), np.concatenate([has, evidence], axis=1)


class Passages:
    """Finds, for an expert and a label, sentences in which the expert takes tokens of the label."""

    def __init__(self, recording: Recording, labels: Labels, family: str) -> None:
        self.excerpt = excerpt = Excerpt(recording)
        self.recording = excerpt.recording
        n_tokens = self.recording.n_tokens
        self.labels = None if excerpt.part else labels  # those of a part would be misread
        self.texts = excerpt.texts()
        self.classes, spans = _underlined(labels, family)
        known = family in labels.families  # a result may be about labels of its own
        self.names, has = labels.matrix(family) if known else ((), spans)
        self.has, self.spans = has[:n_tokens], spans[:n_tokens]
        self.start, self.end, self.partial, self.doc = map(excerpt.column, ("char_start", "char_end", "partial", "doc"))
        self.lengths = np.bincount(self.doc)
        self.experts = excerpt.indices()
        margins = [
            excerpt.column(f"margin_{layer_label(n)}") for n in recording.layers if "margin" in recording.captures
        ]
        self.margin = np.stack(margins, 1).astype(float) if margins else None
        weighted = recording.manifest["capture"].get("weights", True)
        self.weights = excerpt.weights() if weighted else np.broadcast_to(np.float16(np.nan), self.experts.shape)

    def find(self, layer: int, expert: int, label: str) -> list[Trace]:
        """Up to five, of different texts, those dense with such tokens first.

        Where the expert takes no token of the label, those in which it takes any.
        """
        at = self.recording.layers.index(layer)
        takes = (self.experts[:, at] == expert).any(-1) & (self.end > self.start)
        both = takes & self.has[:, self.names.index(label)] if label in self.names else takes
        taken = both if both.any() else takes
        rows = np.flatnonzero(taken)
        docs, first, counts = np.unique(self.doc[rows], return_index=True, return_counts=True)
        found: dict[str, Trace] = {}
        for i in np.argsort(-counts / np.sqrt(self.lengths[docs]), kind="stable").tolist():
            if self.texts[docs[i]] not in found:
                found[self.texts[docs[i]]] = self.passage(int(rows[first[i]]))
            if len(found) == PASSAGES:
                break
        return list(found.values())

    def passage(self, row: int) -> Trace:
        """The tokens of a document around a row, as a trace."""
        doc = int(self.doc[row])
        near = np.arange(max(0, row - AROUND), min(len(self.doc), row + AROUND))
        near = near[(self.doc[near] == doc) & (self.end[near] > self.start[near])]
        text, part = self.texts[doc], TokenSpans(self.start[near], self.end[near], self.partial[near], "bytes")
        return Trace(
            self.recording.manifest["model"]["name"],
            text,
            pieces(text, part),
            self.recording.layers,
            self.experts[near].astype(np.int64),
            self.weights[near].astype(np.float32),
            spans_from_labels(self.spans[near], self.classes),
            margin=None if self.margin is None else self.margin[near],
        )
