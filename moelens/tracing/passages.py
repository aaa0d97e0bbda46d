"""Sentences of a recording, kept in memory for a view that asks for others at every click."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from moelens.japanese.labels import require_alignment
from moelens.models.tokens import TokenSpans
from moelens.recording import Recording
from moelens.recording.writer import layer_label
from moelens.tracing.traces import Span, Trace, token_texts

if TYPE_CHECKING:
    from moelens.japanese import Labels

_T = TypeVar("_T")

_EXCERPT_TOKENS = 100_000
_MOST_PASSAGES = 5
_TOKENS_AROUND = 20


class Excerpt:
    """The first shards of a recording, whose arrays stay in memory once they are read.

    Args:
        recording: the recording.
        tokens: the excerpt ends with the shard that reaches this number of tokens; 100,000 by default.

    Attributes:
        recording: the recording, with these shards only.
        extent: the tokens that the excerpt holds, in words; empty where it holds all of them.
    """

    def __init__(self, recording: Recording, tokens: int | None = None) -> None:
        shards, rows = [], 0
        for entry in recording.manifest["shards"]:
            if rows < (_EXCERPT_TOKENS if tokens is None else tokens):
                shards.append(entry)
                rows += entry["rows"]
        self.recording = Recording(recording.folder, {**recording.manifest, "shards": shards, "n_tokens": rows})
        self.extent = "" if rows == recording.n_tokens else f"the first {rows:,} of {recording.n_tokens:,} tokens"
        self._cache: dict[str, Any] = {}

    def _cached(self, name: str, read: Callable[[], _T]) -> _T:
        if name not in self._cache:
            self._cache[name] = read()
        value: _T = self._cache[name]
        return value

    def indices(self) -> NDArray[np.unsignedinteger[Any]]:
        """See `Recording.indices`."""
        return self._cached("indices", self.recording.indices)

    def weights(self) -> Any:
        """See `Recording.weights`; in float16, as on disk."""
        return self._cached("weights", lambda: self.recording.weights().astype(np.float16))

    def column(self, name: str) -> NDArray[Any]:
        """See `Recording.column`."""
        return self._cached(name, lambda: self.recording.column(name))

    def texts(self) -> list[str]:
        """Return the texts of the documents."""
        return self._cached("texts", lambda: list(self.recording.texts()))


class Passages:
    """Finds sentences in which an expert is chosen for tokens of a label.

    Args:
        recording: the recording. Only its first 100,000 tokens or so are searched, see `Excerpt`.
        labels: its labels.
        family: the family that the labels given to `find` belong to.
    """

    def __init__(self, recording: Recording, labels: Labels, family: str) -> None:
        """Read what is needed. Raises `RecordingError` if the characters of the tokens are not known."""
        require_alignment(recording)
        self.excerpt = excerpt = Excerpt(recording)
        self.recording = excerpt.recording
        n_tokens = self.recording.n_tokens
        # The label tables have a row for every token of the whole recording, so a part cannot be read with them.
        self.labels = None if excerpt.extent else labels
        self.texts = excerpt.texts()
        self.classes, class_mask = labels.matrix("honorifics")
        known = family in labels.families  # a result may be about labels that no family has
        self.names, label_mask = labels.matrix(family) if known else ((), class_mask)
        self.label_mask, self.class_mask = label_mask[:n_tokens], class_mask[:n_tokens]
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
        """Return up to five passages from different texts, those with the largest density of such tokens first.

        Args:
            layer: number of the layer.
            expert: id of the expert.
            label: the expert is chosen for tokens of this label. If it is chosen for none of them, passages in which
                it is chosen for any token are returned.
        """
        at = self.recording.layers.index(layer)
        takes = (self.experts[:, at] == expert).any(-1) & (self.end > self.start)
        both = takes & self.label_mask[:, self.names.index(label)] if label in self.names else takes
        taken = both if both.any() else takes
        rows = np.flatnonzero(taken)
        docs, first, counts = np.unique(self.doc[rows], return_index=True, return_counts=True)
        found: dict[str, Trace] = {}
        for i in np.argsort(-counts / np.sqrt(self.lengths[docs]), kind="stable").tolist():
            if self.texts[docs[i]] not in found:
                found[self.texts[docs[i]]] = self.passage(int(rows[first[i]]))
            if len(found) == _MOST_PASSAGES:
                break
        return list(found.values())

    def passage(self, row: int) -> Trace:
        """Return the tokens of a document around a row of the recording, as a trace."""
        doc = int(self.doc[row])
        near = np.arange(max(0, row - _TOKENS_AROUND), min(len(self.doc), row + _TOKENS_AROUND))
        near = near[(self.doc[near] == doc) & (self.end[near] > self.start[near])]
        text, part = self.texts[doc], TokenSpans(self.start[near], self.end[near], self.partial[near], "bytes")
        return Trace(
            model=self.recording.manifest["model"]["name"],
            text=text,
            tokens=token_texts(text, part),
            layers=self.recording.layers,
            experts=self.experts[near].astype(np.int64),
            weights=self.weights[near].astype(np.float32),
            spans=spans_from_labels(self.class_mask[near], self.classes),
            margin=None if self.margin is None else self.margin[near],
        )


def spans_from_labels(labels: NDArray[np.bool_], names: Sequence[str]) -> tuple[Span, ...]:
    """Return the runs of tokens that have a label, in reading order.

    Args:
        labels: whether a token has a label, `[token, label]`.
        names: names of the labels.

    Example:
        >>> spans_from_labels(np.array([[1, 0], [1, 0], [0, 1]], bool), ["尊敬語", "丁寧語"])
        ((0, 2, '尊敬語'), (2, 3, '丁寧語'))
    """
    spans = []
    for name, column in zip(names, np.asarray(labels, bool).T, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], column.astype(int), [0]])))
        spans += [(int(start), int(end), name) for start, end in edges.reshape(-1, 2)]
    return tuple(sorted(spans))
