"""Minimal pairs of texts: given as objects, as rows or by a file, and split into two halves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from moelens.errors import MoeLensError, UnknownNameError, unknown
from moelens.japanese.minimal_pairs import pairs as bundled_pairs

Half = Literal["all", "discovery", "test"]
PAIR_FIELDS = ("id", "kind", "frame", "context", "good", "bad")


class MinimalPair(Protocol):
    """A minimal pair: `context + good` and `context + bad` differ in one thing, and the context licenses the good one.

    `kind` is what they differ in. Pairs with the same `frame` are the same sentence with other words.
    """

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def frame(self) -> str: ...
    @property
    def context(self) -> str: ...
    @property
    def good(self) -> str: ...
    @property
    def bad(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """A `MinimalPair` of plain texts.

    Attributes:
        id: a name of the pair.
        kind: what the two texts differ in.
        frame: the sentence that the pair is made from.
        context: what precedes both continuations.
        good: the continuation that the context licenses.
        bad: the other continuation.
        split: "discovery" or "test", the half to which the frame belongs; empty if not fixed.

    Example:
        >>> pair = TextPair(
        ...     id="1", kind="plain-polite", frame="行く", context="明日は学校へ", good="行きます。", bad="行く。"
        ... )
        >>> pair.context + pair.good
        '明日は学校へ行きます。'
    """

    id: str
    kind: str
    frame: str
    context: str
    good: str
    bad: str
    split: str = ""


def as_pairs(source: str | Iterable[Any]) -> tuple[MinimalPair, ...]:
    """Return pairs from objects with their attributes, from mappings, or from a file or a kind.

    Args:
        source: objects such as `TextPair`; mappings such as the rows of a `datasets` Dataset or of JSON lines; or what
            `read_pairs` takes: a kind of the bundled pairs or a `.jsonl` file.

    Raises:
        UnknownNameError: the source is a string and neither a file nor a kind.
        MoeLensError: there are no pairs, or a pair lacks a field or has the same text twice.
    """
    if isinstance(source, str):
        return read_pairs(source)
    pairs: list[MinimalPair] = []
    for row in source:
        if isinstance(row, Mapping):
            missing = [name for name in PAIR_FIELDS if name not in row]
            if missing:
                raise MoeLensError(
                    f"expected pairs with {', '.join(PAIR_FIELDS)}, got pair {len(pairs)} without {missing[0]!r}; "
                    "add this field"
                )
            row = TextPair(**{name: str(row[name]) for name in PAIR_FIELDS}, split=str(row.get("split") or ""))
        pairs.append(cast(MinimalPair, row))
    if not pairs:
        raise MoeLensError(f"expected one or more pairs, got none; give pairs with {', '.join(PAIR_FIELDS)}")
    for pair in pairs:
        if pair.good == pair.bad:
            raise MoeLensError(
                f"expected two different texts in pair {pair.id!r}, got {pair.good!r} twice; change one of them"
            )
    return tuple(pairs)


def read_pairs(source: str) -> tuple[MinimalPair, ...]:
    """Read pairs from a `.jsonl` file with one pair a line, or return the bundled pairs of a kind.

    Raises:
        UnknownNameError: there is no such file or kind.
    """
    path = Path(source)
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise UnknownNameError(
                f"expected a .jsonl file with one pair a line, got '{source}', which does not exist; "
                "give the path of a file, or a kind of pair"
            )
        return as_pairs([json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()])
    return as_pairs(bundled_pairs(kind=source))


def read_pair_lines(text: str) -> list[dict[str, str]]:
    """Read pairs from lines of the form `context | better | worse`; the context may be empty.

    >>> read_pair_lines("明日は学校へ | 行きます。 | 行く。")[0]["good"]
    '行きます。'

    Raises:
        MoeLensError: a line is not of this form, or there is none.
    """
    rows = []
    for line_number, line in enumerate(text.splitlines(), 1):
        parts = [part.strip() for part in line.replace("｜", "|").split("|")]
        if not line.strip():
            continue
        if len(parts) != 3 or not parts[1] or not parts[2]:
            raise MoeLensError(
                f"expected context | better | worse in line {line_number}, got {line.strip()!r}; "
                "separate the three by | (the context may be empty)"
            )
        name = f"line-{line_number}"
        rows.append(dict(zip(PAIR_FIELDS, (name, "given", name, *parts), strict=True)))
    if not rows:
        raise MoeLensError("expected lines with pairs, got none; write one a line as context | better | worse")
    return rows


def half_of(pairs: Sequence[MinimalPair], half: Half, seed: int = 0) -> tuple[MinimalPair, ...]:
    """Return the pairs of one half of the frames, so that what is found in one half is tested on other sentences.

    Pairs that state their half in `split`, as the bundled ones do, stay in it. Otherwise frames are assigned at random
    within each kind; an odd frame goes to "discovery".

    Args:
        pairs: the pairs.
        half: "discovery", "test", or "all".
        seed: seed of the assignment.

    Raises:
        UnknownNameError: there is no such half.
        MoeLensError: a kind has a single frame.
    """
    if half not in ("all", "discovery", "test"):
        raise unknown("half", half, ("all", "discovery", "test"))
    if half == "all":
        return tuple(pairs)
    if all(getattr(p, "split", "") in ("discovery", "test") for p in pairs):
        return tuple(p for p in pairs if getattr(p, "split", "") == half)
    rng = np.random.default_rng(seed)
    discovery: set[tuple[str, str]] = set()
    for kind in dict.fromkeys(p.kind for p in pairs):
        frames = list(dict.fromkeys(p.frame for p in pairs if p.kind == kind))
        if len(frames) < 2:
            raise MoeLensError(
                f"expected two or more frames of kind {kind!r} to split into halves, got one, {frames[0]!r}; "
                "add pairs of other frames"
            )
        order = rng.permutation(len(frames))
        discovery |= {(kind, frames[i]) for i in order[: (len(frames) + 1) // 2]}
    return tuple(p for p in pairs if ((p.kind, p.frame) in discovery) == (half == "discovery"))
