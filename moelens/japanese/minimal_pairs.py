"""Minimal pairs: a context and two continuations of which only the first suits it, made from `pairs.toml`."""

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

#: Endings of the polite style, and what the past and the negative make of them.
_POLITE = {
    "past": (("ます", "ました"), ("です", "でした")),
    "negative": (("ます", "ません"), ("です", "ではありません")),
}


@dataclass(frozen=True, slots=True)
class Pair(Displayed):
    """A context with a continuation that suits it and one that does not.

    Attributes:
        id: stable: kind, frame and word ("respectful/teacher/行く").
        kind: what the contrast is, one of `kinds()`.
        frame: the frame within the kind; all pairs of a frame belong to the same `split`.
        context: what comes before.
        good, bad: the continuations; they differ as little as the contrast allows.
        good_classes, bad_classes: the honorific classes within each of them, as the tagger finds them.
        control: the contrast is not honorific (tense, polarity, noun).
        split: "discovery" or "test": look for experts in one half of the frames, test them on the other.
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
        """Both texts, one above the other, what differs coloured and marked."""
        start = next((i for i, (a, b) in enumerate(zip(self.good, self.bad, strict=False)) if a != b), 0)
        rows = []
        for mark, colour, text in (("○", "#0072B2", self.good), ("×", "#D55E00", self.bad)):
            same, differs = escape(self.context + text[:start]), escape(text[start:])
            rows.append(f'{mark} {same}<span style="border-bottom: 2px solid {colour}">{differs}</span>')
        return f'<div>{escape(self.id)}<div lang="ja" style="line-height: 1.8">{"<br>".join(rows)}</div></div>'


def kinds() -> tuple[str, ...]:
    """The kinds of pairs, the controls last.

    >>> kinds()[:3]
    ('polite-ending', 'respectful', 'humble')
    """
    return tuple(kind["name"] for kind in _table()["kind"])


def pairs(kind: str | None = None, split: str | None = None) -> tuple[Pair, ...]:
    """The pairs of a kind, or of all; of one half of the frames, or of both.

    Raises `UnknownNameError` for a kind that is not one of `kinds()`, or a split other than discovery and test.

    >>> pair = pairs("respectful")[0]
    >>> pair.context + pair.good, pair.context + pair.bad
    ('先生は明日、京都へいらっしゃいます。', '先生は明日、京都へ行きます。')
    """
    if kind is not None and kind not in kinds():
        raise unknown("kind of pairs", kind, kinds())
    if split not in (None, "discovery", "test"):
        raise unknown("split", split, ("discovery", "test"))
    return tuple(p for p in _all() if kind in (None, p.kind) and split in (None, p.split))


def as_dataset(kind: str | None = None, split: str | None = None) -> Any:
    """The pairs as a `datasets.Dataset`, a column for each attribute of `Pair`."""
    from datasets import Dataset

    return Dataset.from_list([asdict(pair) for pair in pairs(kind, split)])


@cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads(files("moelens.japanese").joinpath("pairs.toml").read_text("utf-8"))


@cache
def _all() -> tuple[Pair, ...]:
    return tuple(pair for kind in _table()["kind"] for pair in _of(kind))


def _of(kind: Mapping[str, Any]) -> Iterator[Pair]:
    for place, frame in enumerate(kind["frame"]):
        for row in _table()["words"][frame["words"]]:
            context, good, bad = (frame[part].format(**_forms(row)) for part in ("context", "good", "bad"))
            yield Pair(
                f"{kind['name']}/{frame['name']}/{row['word']}",
                kind["name"],
                frame["name"],
                context,
                good,
                bad,
                _classes(context, good),
                _classes(context, bad),
                bool(kind.get("control", False)),
                "test" if place % 2 else "discovery",
            )


def _forms(row: Mapping[str, str]) -> dict[str, str]:
    """The columns of a row, and the past and the negative of those that end in ます or です."""
    forms = dict(row)
    for column, value in row.items():
        for name, endings in _POLITE.items():
            for ending, other in endings:
                if value.endswith(ending):
                    forms[f"{column}_{name}"] = value.removesuffix(ending) + other
    return forms


def _classes(context: str, continuation: str) -> tuple[str, ...]:
    spans = honorifics(context + continuation)
    return tuple(dict.fromkeys(c for span in spans if span.end > len(context) for c in span.classes))
