"""What morphemes and honorifics look like in a notebook: the text, with ruby above what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol, TypeVar

from moelens.display import Displayed
from moelens.japanese.classes import CLASS_STYLE

_NEUTRAL = "#888888"


@dataclass(frozen=True, slots=True)
class Ruby:
    """What stands above a word, the class whose colour it has ("" for none), and what is told on hovering."""

    above: str
    colour_of: str
    details: Mapping[str, str]


class _Placed(Protocol):
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    def ruby(self) -> Ruby: ...


Found = TypeVar("Found", bound=_Placed)


class AnnotatedText(tuple[Found, ...], Displayed):
    """A tuple of what was found in `text`, which shows itself in a notebook as coloured text."""

    text: str

    def __new__(cls, text: str, found: Sequence[Found]) -> AnnotatedText[Found]:
        made = super().__new__(cls, found)
        made.text = text
        return made

    def __getnewargs__(self) -> tuple[str, tuple[Found, ...]]:
        return self.text, tuple(self)

    def _repr_html_(self) -> str:
        pieces, reach = [], 0
        for item in self:
            pieces += [escape(self.text[reach : item.start]), ruby_html(self.text[item.start : item.end], item.ruby())]
            reach = item.end
        pieces.append(escape(self.text[reach:]))
        return line("".join(pieces).replace("\n", "<br>"))


def line(html: str) -> str:
    """Japanese with room for what stands above it."""
    return f'<div lang="ja" style="line-height: 2.4">{html}</div>'


def ruby_html(surface: str, mark: Ruby) -> str:
    """A word with what stands above it, as HTML."""
    colour = CLASS_STYLE[mark.colour_of].color if mark.colour_of else _NEUTRAL
    told = "; ".join(f"{name}: {value}" for name, value in mark.details.items() if value)
    return (
        f'<ruby title="{escape(told)}" style="border-bottom: 2px solid {colour}; margin-right: 2px">'
        f'{escape(surface)}<rt style="color: {colour}">{escape(mark.above)}</rt></ruby>'
    )
