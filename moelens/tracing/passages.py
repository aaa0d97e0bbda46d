"""Sentences of a recording, kept in memory for a view that asks for others at every click."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from moelens.japanese.labels import require_alignment
from moelens.models.tokens import TokenSpans
from moelens.recording import Recording
from moelens.recording.writer import layer_label
from moelens.texts import Texts
from moelens.tracing.traces import Trace, spans_from_labels, token_texts

if TYPE_CHECKING:
    from moelens.japanese import Labels

_T = TypeVar("_T")

_EXCERPT_TOKENS = 50_000  # a report makes hundreds of cards from them
_MOST_PASSAGES = 5
_TOKENS_AROUND = 20


class Excerpt:
    """The first tokens of a recording, whose arrays stay in memory once they are read.

    The labels of its tokens are the first rows of those of the recording.

    Args:
        recording: the recording.
        tokens: the number of tokens; all if there are fewer. 50,000 by default.

    Attributes:
        recording: the recording.
        n_tokens: number of tokens in the excerpt.
    """

    def __init__(self, recording: Recording, tokens: int | None = None) -> None:
        self.recording = recording
        self.n_tokens = min(recording.n_tokens, _EXCERPT_TOKENS if tokens is None else tokens)
        self._cache: dict[str, Any] = {}

    def extent(self, say: Texts) -> str:
        """Return the tokens that the excerpt holds, in words; "" where it holds all of them."""
        n, of = self.n_tokens, self.recording.n_tokens
        return "" if n == of else say("excerpt.extent", n=f"{n:,}", all=f"{of:,}")

    def _cached(self, name: str, read: Callable[[], _T]) -> _T:
        if name not in self._cache:
            self._cache[name] = read()
        value: _T = self._cache[name]
        return value

    def indices(self) -> NDArray[np.unsignedinteger[Any]]:
        """See `Recording.indices`."""
        parts = self.recording.parts
        return self._cached("indices", lambda: np.concatenate([np.stack(p, 1) for _, p in parts(0, self.n_tokens)]))

    def weights(self) -> Any:
        """See `Recording.weights`; in float16, as on disk."""
        names = [f"weights_{layer_label(n)}" for n in self.recording.layers]
        columns = (self.column(name).astype(np.float16) for name in names)
        return self._cached("weights", lambda: np.stack([*columns], 1))

    def column(self, name: str) -> NDArray[Any]:
        """See `Recording.column`."""
        columns = self.recording.columns
        return self._cached(name, lambda: np.concatenate([c for _, (c,) in columns([name], 0, self.n_tokens)]))

    def texts(self) -> list[str]:
        """Return the texts of the documents up to the last one with a token in the excerpt."""
        return self._cached("texts", lambda: list(islice(self.recording.texts(), int(self.column("doc")[-1]) + 1)))


def _underlined(labels: Labels, family: str, rows: slice) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """Return the labels that sentences show beside the routes: references with their evidence, or honorifics."""
    if family != "reference":
        return labels.matrix("honorifics", rows)
    (names, has), (more, evidence) = (labels.matrix(f, rows) for f in ("reference", "reference_evidence"))
    return (*names, *more), np.concatenate([has, evidence], axis=1)


class Passages:
    """Finds sentences in which an expert is chosen for tokens of a label.

    Args:
        recording: the recording, of which only the first 50,000 tokens are searched, or an excerpt of it.
        labels: its labels.
        family: the family that the labels given to `find` belong to.
    """

    def __init__(self, recording: Recording | Excerpt, labels: Labels, family: str) -> None:
        """Read what is needed. Raises `RecordingError` if the characters of the tokens are not known."""
        self.excerpt = excerpt = recording if isinstance(recording, Excerpt) else Excerpt(recording)
        require_alignment(excerpt.recording)
        self.recording = excerpt.recording
        rows = slice(excerpt.n_tokens)
        self.labels = labels = labels.of(self.recording)
        self.texts = excerpt.texts()
        self.classes, self.class_mask = _underlined(labels, family, rows)
        known = family in labels.families  # a result may be about labels that no family has
        self.names, self.label_mask = labels.matrix(family, rows) if known else ((), self.class_mask)
        self.start, self.end, self.partial, self.doc = map(excerpt.column, ("char_start", "char_end", "partial", "doc"))
        self.lengths = np.bincount(self.doc)
        self.experts = excerpt.indices()
        margins = [
            excerpt.column(f"margin_{layer_label(n)}")
            for n in self.recording.layers
            if "margin" in self.recording.captures
        ]
        self.margin = np.stack(margins, 1).astype(float) if margins else None
        weighted = self.recording.manifest["capture"].get("weights", True)
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
