"""HTML for morphemes and honorifics in notebooks: the text, with ruby annotations above the analysed words."""

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
    """The annotation of one word.

    Attributes:
        above: Text above the word.
        color_class: Honorific class whose colour the word takes; "" for none.
        details: Names and values in the tooltip; empty values are left out.
    """

    above: str
    color_class: str
    details: Mapping[str, str]


class _Annotated(Protocol):
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    def ruby(self) -> Ruby: ...


_Item = TypeVar("_Item", bound=_Annotated)


class AnnotatedText(tuple[_Item, ...], Displayed):
    """A tuple of the items found in a text; notebooks show it as the text with annotations.

    Attributes:
        text: The whole text.
    """

    text: str

    def __new__(cls, text: str, items: Sequence[_Item]) -> AnnotatedText[_Item]:
        made = super().__new__(cls, items)
        made.text = text
        return made

    def __getnewargs__(self) -> tuple[str, tuple[_Item, ...]]:
        return self.text, tuple(self)

    def _repr_html_(self) -> str:
        pieces, end = [], 0
        for item in self:
            pieces += [escape(self.text[end : item.start]), ruby_html(self.text[item.start : item.end], item.ruby())]
            end = item.end
        pieces.append(escape(self.text[end:]))
        return ruby_block("".join(pieces).replace("\n", "<br>"))


def ruby_block(html: str) -> str:
    """Wrap HTML of Japanese text in a block whose lines leave room for ruby."""
    return f'<div lang="ja" style="line-height: 2.4">{html}</div>'


def ruby_html(surface: str, ruby: Ruby) -> str:
    """Return the HTML of one word with its annotation."""
    colour = CLASS_STYLE[ruby.color_class].color if ruby.color_class else _NEUTRAL
    tooltip = "; ".join(f"{name}: {value}" for name, value in ruby.details.items() if value)
    return (
        f'<ruby title="{escape(tooltip)}" style="border-bottom: 2px solid {colour}; margin-right: 2px">'
        f'{escape(surface)}<rt style="color: {colour}">{escape(ruby.above)}</rt></ruby>'
    )
