"""Minimal pairs: a context with one continuation that suits it and one that does not, made from `pairs.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, Literal

from moelens.display import Displayed
from moelens.errors import unknown
from moelens.japanese.honorific_spans import honorifics


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Displayed):
    """A context with a continuation that suits it and one that does not.

    Attributes:
        id: Stable identifier of kind, frame and word ("title/reservation/佐藤").
        kind: The contrast, one of `kinds()`.
        frame: The frame within the kind; all pairs of a frame belong to the same `split`.
        context: The text before the continuation.
        good: The continuation that suits the context.
        bad: The continuation that does not; it differs from `good` as little as the contrast allows.
        good_classes: The honorific classes that `honorifics` finds in `good`.
        bad_classes: The honorific classes that `honorifics` finds in `bad`.
        control: Whether the contrast is not about honorifics (tense, polarity, noun).
        split: "discovery" or "test": find experts with the frames of one half and test them on the other.
    """

    id: str
    kind: str
    frame: str
    context: str
    good: str
    bad: str
    good_classes: tuple[str, ...]
    bad_classes: tuple[str, ...]
    control: bool
    split: Literal["discovery", "test"]

    def _repr_html_(self) -> str:
        """Return both texts, one above the other, with their difference coloured and underlined."""
        start = next((i for i, (a, b) in enumerate(zip(self.good, self.bad, strict=False)) if a != b), 0)
        rows = []
        for mark, colour, text in (("○", "#0072B2", self.good), ("×", "#D55E00", self.bad)):
            same, differs = escape(self.context + text[:start]), escape(text[start:])
            rows.append(f'{mark} {same}<span style="border-bottom: 2px solid {colour}">{differs}</span>')
        return f'<div>{escape(self.id)}<div lang="ja" style="line-height: 1.8">{"<br>".join(rows)}</div></div>'


def kinds() -> tuple[str, ...]:
    """Return the kinds of pairs.

    Example:
        >>> kinds()
        ('humble-direction', 'title')
    """
    return tuple(kind["name"] for kind in _table()["kind"])


def pairs(kind: str | None = None, split: str | None = None) -> tuple[Pair, ...]:
    """Return the bundled minimal pairs.

    Args:
        kind: One of `kinds()`; None for all kinds.
        split: "discovery" or "test", each with half of the frames of a kind; None for both.

    Raises:
        UnknownNameError: If there is no such kind or split.

    Example:
        >>> pair = pairs("humble-direction")[0]
        >>> pair.context + pair.good, pair.context + pair.bad
        ('部長、私は明日、空港へ参ります。', '部長、私は明日、空港へ伺います。')
    """
    if kind is not None and kind not in kinds():
        raise unknown("kind of pairs", kind, kinds())
    if split not in (None, "discovery", "test"):
        raise unknown("split", split, ("discovery", "test"))
    return tuple(p for p in _all_pairs() if kind in (None, p.kind) and split in (None, p.split))


def as_dataset(kind: str | None = None, split: str | None = None) -> Any:
    """Return the pairs as a `datasets.Dataset` with one column for each attribute of `Pair`.

    Args:
        kind: As in `pairs`.
        split: As in `pairs`.

    Raises:
        UnknownNameError: If there is no such kind or split.

    Example:
        >>> as_dataset("title").column_names[:4]
        ['id', 'kind', 'frame', 'context']
    """
    from datasets import Dataset

    return Dataset.from_list([asdict(pair) for pair in pairs(kind, split)])


@cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads(files("moelens.japanese").joinpath("pairs.toml").read_text("utf-8"))


@cache
def _all_pairs() -> tuple[Pair, ...]:
    return tuple(pair for kind in _table()["kind"] for pair in _pairs_of(kind))


def _pairs_of(kind: Mapping[str, Any]) -> Iterator[Pair]:
    for number, frame in enumerate(kind["frame"]):
        for row in _table()["words"][frame["words"]]:
            context, good, bad = (frame[part].format(**row) for part in ("context", "good", "bad"))
            yield Pair(
                id=f"{kind['name']}/{frame['name']}/{row['word']}",
                kind=kind["name"],
                frame=frame["name"],
                context=context,
                good=good,
                bad=bad,
                good_classes=_classes(context, good),
                bad_classes=_classes(context, bad),
                control=bool(kind.get("control", False)),
                split="test" if number % 2 else "discovery",
            )


def _classes(context: str, continuation: str) -> tuple[str, ...]:
    spans = honorifics(context + continuation)
    return tuple(dict.fromkeys(c for span in spans if span.end > len(context) for c in span.classes))
