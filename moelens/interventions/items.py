"""What a model is tested on: minimal pairs and crossed contrasts, as objects, rows or a file, split into two halves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from moelens.errors import MoeLensError, UnknownNameError, unknown
from moelens.japanese.crossed_contrasts import contrast_kinds, contrasts
from moelens.japanese.minimal_pairs import kinds as pair_kinds
from moelens.japanese.minimal_pairs import pairs as bundled_pairs
from moelens.text_files import read_json_lines, split_lines

Half = Literal["all", "discovery", "test"]
PAIR_FIELDS = ("id", "kind", "frame", "context", "good", "bad")
CONTRAST_FIELDS = ("id", "kind", "frame", "context_a", "context_b", "x", "y")


class Item(Protocol):
    """A minimal pair or a crossed contrast. Items with the same `frame` are the same sentence with other words."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def frame(self) -> str: ...


class MinimalPair(Item, Protocol):
    """`context + good` and `context + bad` differ in one thing, and the context licenses the good one."""

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


@dataclass(frozen=True, kw_only=True)
class TextContrast:
    """A crossed contrast of plain texts: context A licenses X, and context B licenses Y.

    Attributes:
        id: a name of the contrast.
        kind: what decides between X and Y.
        frame: the sentence that the contrast is made from.
        context_a, context_b: the contexts.
        x, y: the continuations.
        split: "discovery" or "test", the half to which the frame belongs; empty if not fixed.
    """

    id: str
    kind: str
    frame: str
    context_a: str
    context_b: str
    x: str
    y: str
    split: str = ""


def is_contrast(item: Item) -> bool:
    """Return whether an item is a crossed contrast; otherwise it is a minimal pair."""
    return hasattr(item, "context_a")


def pairs_within(item: Any) -> tuple[MinimalPair, ...]:
    """Return the minimal pairs whose margins add up to that of an item: a pair itself, or the two of a contrast.

    The interaction of a contrast, [log P(X|A) − log P(Y|A)] − [log P(X|B) − log P(Y|B)], is the sum of the margins of
    (A; good X, bad Y) and (B; good Y, bad X).
    """
    if not is_contrast(item):
        return (item,)
    shared = {"id": item.id, "kind": item.kind, "frame": item.frame}
    return (
        TextPair(**shared, context=item.context_a, good=item.x, bad=item.y),
        TextPair(**shared, context=item.context_b, good=item.y, bad=item.x),
    )


def as_items(source: str | Iterable[Any]) -> tuple[Item, ...]:
    """Return minimal pairs and crossed contrasts from objects with their attributes, from mappings, a file or a kind.

    Args:
        source: objects such as `TextPair`, `TextContrast` and those of `moelens.japanese`; mappings such as the rows
            of a `datasets` Dataset or of JSON lines; or what `read_items` takes: a kind of the bundled contrasts or
            pairs, or a `.jsonl` or `.jsonl.gz` file.

    Raises:
        UnknownNameError: the source is a string and neither a file nor a kind.
        MoeLensError: there are no items, or an item lacks a field, has a text that is not valid Unicode, or has the
            same text twice.
    """
    if isinstance(source, str):
        return read_items(source)
    return _checked_items((row, f"row {place}") for place, row in enumerate(source))


def _checked_items(rows: Iterable[tuple[Any, str]]) -> tuple[Item, ...]:
    """Return the items in rows, each given with its place, such as "pairs.jsonl line 3"."""
    items = [_checked_item(row, place) for row, place in rows]
    if not items:
        raise MoeLensError(
            f"expected one or more pairs or contrasts, got none; give pairs with {', '.join(PAIR_FIELDS)}"
        )
    for item in items:
        for pair in pairs_within(item):
            if pair.good == pair.bad:
                raise MoeLensError(
                    f"expected two different texts in {item.id!r}, got {pair.good!r} twice; change one of them"
                )
    return tuple(cast(list[Item], items))


def _checked_item(row: Any, place: str) -> Any:
    """Return the item that a row is or describes."""
    plain = isinstance(row, Mapping)
    values = row if plain else {n: getattr(row, n) for n in (*PAIR_FIELDS, *CONTRAST_FIELDS) if hasattr(row, n)}
    made: Any = TextContrast if "context_a" in values else TextPair
    fields = CONTRAST_FIELDS if made is TextContrast else PAIR_FIELDS
    missing = [name for name in fields if name not in values]
    if missing:
        raise MoeLensError(
            f"expected rows with {', '.join(fields)}, got {place} without {missing[0]!r}; add this field"
        )
    for name in fields[3:]:
        if not isinstance(values[name], str) or not _is_unicode(values[name]):
            raise MoeLensError(
                f"expected {name!r} in {place} to be a string of valid Unicode, got {values[name]!r}; correct it"
            )
    return made(**{n: str(row[n]) for n in fields}, split=str(row.get("split") or "")) if plain else row


def _is_unicode(text: str) -> bool:
    """Return whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def item_kinds() -> tuple[str, ...]:
    """Return the kinds of the bundled contrasts, then those of the bundled pairs."""
    return (*contrast_kinds(), *pair_kinds())


def read_items(source: str) -> tuple[Item, ...]:
    """Read pairs or contrasts from a `.jsonl` or `.jsonl.gz` file, one a line, or return the bundled ones of a kind.

    Raises:
        UnknownNameError: there is no such file or kind.
        MoeLensError: a line of the file is not a pair or contrast, or not UTF-8.
    """
    path = Path(source)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        if not path.is_file():
            raise UnknownNameError(
                f"expected a .jsonl file with one pair or contrast a line, got '{source}', which does not exist; "
                "give the path of a file, or a kind"
            )
        return _checked_items(read_json_lines(path))
    if source in contrast_kinds():
        return as_items(contrasts(source))
    if source not in pair_kinds():
        raise unknown("kind of contrasts or pairs", source, item_kinds())
    return as_items(bundled_pairs(source))


def read_pair_lines(text: str) -> list[dict[str, str]]:
    """Read pairs from lines of the form `context | better | worse`; the context may be empty.

    >>> read_pair_lines("明日は学校へ | 行きます。 | 行く。")[0]["good"]
    '行きます。'

    Raises:
        MoeLensError: a line is not of this form, or there is none.
    """
    rows = []
    for line_number, line in enumerate(split_lines(text), 1):
        parts = [part.strip(" \t\u3000") for part in line.replace("｜", "|").split("|")]
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


def half_of(items: Sequence[Item], half: Half, seed: int = 0) -> tuple[Item, ...]:
    """Return the items of one half of the frames, so that what is found in one half is tested on other sentences.

    Items that state their half in `split`, as the bundled ones do, stay in it. Otherwise frames are assigned at random
    within each kind; an odd frame goes to "discovery".

    Args:
        items: the pairs or contrasts.
        half: "discovery", "test", or "all".
        seed: seed of the assignment.

    Raises:
        UnknownNameError: there is no such half.
        MoeLensError: a kind has a single frame.
    """
    if half not in ("all", "discovery", "test"):
        raise unknown("half", half, ("all", "discovery", "test"))
    if half == "all":
        return tuple(items)
    if all(getattr(p, "split", "") in ("discovery", "test") for p in items):
        return tuple(p for p in items if getattr(p, "split", "") == half)
    rng = np.random.default_rng(seed)
    discovery: set[tuple[str, str]] = set()
    for kind in dict.fromkeys(p.kind for p in items):
        frames = list(dict.fromkeys(p.frame for p in items if p.kind == kind))
        if len(frames) < 2:
            raise MoeLensError(
                f"expected two or more frames of kind {kind!r} to split into halves, got one, {frames[0]!r}; "
                "add items of other frames"
            )
        order = rng.permutation(len(frames))
        discovery |= {(kind, frames[i]) for i in order[: (len(frames) + 1) // 2]}
    return tuple(p for p in items if ((p.kind, p.frame) in discovery) == (half == "discovery"))
