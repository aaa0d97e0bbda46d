"""Texts that a corpus holds several times, or nearly so: counted, and grouped for tests over documents."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

_NOT_LETTERS = re.compile(r"[\W\d_]+")
_SENTENCE_END = re.compile(r"[。．.！？!?\n]+")
_GRAM = 5  # characters
_LEAST_LETTERS = 20  # of texts that are compared by their pieces; shorter ones are near copies if their letters agree
_LEAST_IN_SENTENCE = 10  # letters; shorter sentences, such as greetings, recur in texts that have nothing in common
_MOST_SENTENCES = 1_000_000
_ROWS, _BANDS = 4, 8
_AT_ONCE = 1 << 14  # pieces of a text
_ALIKE = 0.8
# Odd multipliers; the smallest product of the pieces of a text is as good as a random piece (Broder 1997).
_MULTIPLIERS = np.random.default_rng(0).integers(1, 2**63, _ROWS * _BANDS, np.uint64) * np.uint64(2) + np.uint64(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class TextGroups:
    """Which documents have the same text.

    Two texts are near copies if they share about 80 % of their pieces of five letters, or if all their letters agree;
    digits, punctuation, spaces and width do not count.

    Attributes:
        ids: for each document the number of the first one of its group `[document]`; a document whose text is not
            known has its own number.
        copies: number of documents whose text an earlier document has, character by character.
        near: number of further documents that are near copies of others.
        repeated: share of sentences that occur in several groups; sentences of less than ten letters are left out.
    """

    ids: NDArray[np.int64]
    copies: int
    near: int
    repeated: float


def text_groups(texts: Iterable[str | None]) -> TextGroups:
    """Group the texts of a corpus, in one pass.

    Example:
        >>> text = "社長は本日の会議に出席なさいます。資料は私がお持ちいたします。"
        >>> groups = text_groups(["雨が降る。", text, text, text.replace("本日", "明日の"), None])
        >>> groups.ids.tolist(), groups.copies, groups.near
        ([0, 1, 1, 3, 4], 1, 0)
        >>> text_groups([text * 9, text * 8 + "以上です。"]).near
        1
    """
    first: dict[bytes, int] = {}
    ids: list[int] = []
    sketched: list[int] = []
    sketches: list[NDArray[np.uint32]] = []
    sentences: list[tuple[int, int]] = []
    copies = 0
    for text in texts:
        number = len(ids)
        if text is None:
            ids.append(number)
            continue
        found = first.setdefault(_digest(text), number)
        ids.append(found)
        if found != number:
            copies += 1
            continue
        letters = _letters(text)
        ids[-1] = first.setdefault(_digest(f"letters {letters}"), number) if letters else number
        if len(letters) >= _LEAST_LETTERS:
            sketched.append(number)
            sketches.append(_sketch(letters))
        if len(sentences) < _MOST_SENTENCES:
            sentences += [(number, code) for code in _sentences(text)]
    joined = _joined(np.array(ids, np.int64), np.array(sketched, np.int64), sketches)
    near = len(ids) - len(np.unique(joined)) - copies
    return TextGroups(ids=joined, copies=copies, near=near, repeated=_repeated(sentences, joined))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _letters(text: str) -> str:
    return _NOT_LETTERS.sub("", unicodedata.normalize("NFKC", text)).casefold()


def _sentences(text: str) -> list[int]:
    """A number for each different sentence of a text."""
    long = {s for s in map(_letters, _SENTENCE_END.split(text)) if len(s) >= _LEAST_IN_SENTENCE}
    return [int.from_bytes(hashlib.blake2b(s.encode(), digest_size=7).digest(), "big") for s in sorted(long)]


def _sketch(letters: str) -> NDArray[np.uint32]:
    """The smallest products of the pieces of five letters; two texts agree in about as many as they share pieces."""
    codes = np.frombuffer(letters.encode("utf-32-le"), np.uint32).astype(np.uint64)
    pieces = np.zeros(len(codes) - _GRAM + 1, np.uint64)
    for i in range(_GRAM):
        pieces = pieces * np.uint64(0x9E3779B97F4A7C15) + codes[i : len(codes) - _GRAM + 1 + i]
    pieces ^= pieces >> np.uint64(29)
    least = np.full(len(_MULTIPLIERS), 2**64 - 1, np.uint64)
    for at in range(0, len(pieces), _AT_ONCE):
        products = pieces[at : at + _AT_ONCE] * _MULTIPLIERS[:, None]
        np.minimum(least, products.min(1), out=least)
    return (least >> np.uint64(32)).astype(np.uint32)


def _joined(
    ids: NDArray[np.int64], sketched: NDArray[np.int64], sketches: list[NDArray[np.uint32]]
) -> NDArray[np.int64]:
    """Join the groups of documents whose sketches agree; a group has the number of its first document."""
    edges = [np.stack([np.arange(len(ids)), ids])]
    table = np.array(sketches, np.uint32).reshape(-1, _BANDS, _ROWS)
    for band in range(_BANDS):
        _, group = np.unique(table[:, band], axis=0, return_inverse=True)
        order = np.argsort(group.ravel(), kind="stable")
        runs = np.flatnonzero(np.diff(group.ravel()[order], prepend=-1))
        head = order[np.repeat(runs, np.diff(np.append(runs, len(order))))]
        alike = (table[order] == table[head]).mean((1, 2)) >= _ALIKE
        edges.append(np.stack([sketched[order[alike]], sketched[head[alike]]]))
    a, b = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(len(ids), len(ids)))
    label = connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.ravel()], np.int64)


def _repeated(sentences: list[tuple[int, int]], ids: NDArray[np.int64]) -> float:
    """The share of sentences that occur in several groups of documents."""
    if not sentences:
        return 0.0
    numbers, codes = np.array(sentences, np.int64).T
    pairs = np.unique(np.stack([codes, ids[numbers]]), axis=1)
    _, inverse, times = np.unique(pairs[0], return_inverse=True, return_counts=True)
    return float((times[inverse.ravel()] > 1).mean())
