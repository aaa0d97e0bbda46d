"""Crossed contrasts: two contexts, each of which licenses one of two continuations, made from `contrasts.toml`."""

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
from moelens.japanese.families import FAMILIES
from moelens.japanese.honorific_spans import honorifics


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast(Displayed):
    """Two contexts A and B and two continuations X and Y: A licenses X, and B licenses Y.

    What is measured is the interaction, [log P(X|A) − log P(Y|A)] − [log P(X|B) − log P(Y|B)], in which the frequency
    and the length of X and Y cancel.

    Attributes:
        id: stable: kind, frame and words ("subject-honorification/teacher-place/行く").
        kind: what the contrast is, one of `contrast_kinds()`.
        frame: the frame within the kind; all contrasts of a frame belong to the same `split`.
        context_a, context_b: the contexts.
        x, y: the continuations.
        control: the contrast is not honorific (tense, polarity, animacy, noun).
        split: "discovery" or "test": look for experts in one half of the frames, test them on the other.
    """

    id: str
    kind: str
    frame: str
    context_a: str
    context_b: str
    x: str
    y: str
    control: bool
    split: Literal["discovery", "test"]

    def _repr_html_(self) -> str:
        """The four texts; the licensed ones are marked ○."""
        rows = [
            ("○", self.context_a, self.x),
            ("×", self.context_a, self.y),
            ("×", self.context_b, self.x),
            ("○", self.context_b, self.y),
        ]
        lines = [
            f'{mark} {escape(context)}<span style="border-bottom: 2px solid {"#0072B2" if mark == "○" else "#D55E00"}">'
            f"{escape(text)}</span>".replace("\n", "<br>&emsp;")
            for mark, context, text in rows
        ]
        return f'<div>{escape(self.id)}<div lang="ja" style="line-height: 1.8">{"<br>".join(lines)}</div></div>'


KIND_OF_LABEL: Mapping[str, str] = {
    "尊敬語": "subject-honorification",
    "謙譲語I": "humble-object",
    "謙譲語II": "in-out-group",
    "丁寧語": "style-agreement",
    "美化語": "beautification",
    **{name: "first-person" for name in FAMILIES["reference"] if name.startswith("一人称")},
    **{name: "second-person" for name in FAMILIES["reference"] if name.startswith("二人称")},
}
"""The kind of contrasts that tests a label, where there is one."""


def contrast_kinds() -> tuple[str, ...]:
    """The kinds of contrasts, the controls last.

    >>> contrast_kinds()[:2], contrast_kinds()[-1]
    (('subject-honorification', 'humble-object'), 'control-noun')
    """
    return tuple(kind["name"] for kind in _table()["kind"])


def contrasts(kind: str | None = None, split: str | None = None) -> tuple[Contrast, ...]:
    """The contrasts of a kind, or of all; of one half of the frames, or of both.

    Args:
        kind: one of `contrast_kinds()`.
        split: "discovery" or "test".

    Raises:
        UnknownNameError: no such kind or split.

    Example:
        >>> c = contrasts("style-agreement")[0]
        >>> c.context_a + c.x, c.context_b + c.y
        ('昨日は雨でした。私は一人で本を読みました。', '昨日は雨だった。私は一人で本を読んだ。')
    """
    if kind is not None and kind not in contrast_kinds():
        raise unknown("kind of contrasts", kind, contrast_kinds())
    if split not in (None, "discovery", "test"):
        raise unknown("split", split, ("discovery", "test"))
    return tuple(c for c in _all() if kind in (None, c.kind) and split in (None, c.split))


def expected_classes(kind: str) -> tuple[str, str]:
    """The honorific class that X must have after A, and Y after B, by the table; "" where none is asked for."""
    entry = next(k for k in _table()["kind"] if k["name"] == kind)
    return str(entry["x_class"]), str(entry["y_class"])


def classes_within(context: str, continuation: str) -> tuple[str, ...]:
    """The honorific classes that the tagger finds within a continuation of a context."""
    spans = honorifics(context + continuation)
    return tuple(dict.fromkeys(c for span in spans if span.end > len(context) for c in span.classes))


def as_contrast_dataset(kind: str | None = None, split: str | None = None) -> Any:
    """The contrasts as a `datasets.Dataset`, a column for each attribute of `Contrast`."""
    from datasets import Dataset

    return Dataset.from_list([asdict(contrast) for contrast in contrasts(kind, split)])


@cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads(files("moelens.japanese").joinpath("contrasts.toml").read_text("utf-8"))


@cache
def _all() -> tuple[Contrast, ...]:
    return tuple(contrast for kind in _table()["kind"] for contrast in _of(kind))


def _of(kind: Mapping[str, Any]) -> Iterator[Contrast]:
    for place, frame in enumerate(kind["frame"]):
        for row in _table()["words"][frame["words"]]:
            a, b, x, y = (frame[part].format(**row) for part in ("a", "b", "x", "y"))
            yield Contrast(
                id=f"{kind['name']}/{frame['name']}/{row['id']}",
                kind=kind["name"],
                frame=frame["name"],
                context_a=a,
                context_b=b,
                x=x,
                y=y,
                control=bool(kind["control"]),
                split="test" if place % 2 else "discovery",
            )
