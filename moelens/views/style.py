"""Labels as HTML, the marks of honorific classes as matplotlib markers, and the Japanese font."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from moelens.errors import MoeLensError
from moelens.japanese.classes import CLASS_STYLE, label_words

# Colours of Okabe and Ito 2008, for lines that do not stand for an honorific class.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")

FONTS = ["IPAexGothic", "DejaVu Sans"]
"""The families of fonts in which figures are drawn."""

_SMALL_TEXT = {"text.hinting": "none"}  # hints make blotches of 層 and the like at the sizes of labels

# Runs of Japanese characters, with the numeral of 謙譲語I and 謙譲語II.
_JAPANESE = re.compile(r"[\u3005-\u30ff\u4e00-\u9fff\uff01-\uff9f][\u3000-\u30ff\u4e00-\u9fff\uff01-\uff9f]*(?:II?\b)?")


def label_html(name: str, *, gloss: bool = True) -> str:
    """Return a label as HTML with inline styles: its mark in the class colour, its name, and its English gloss.

    Args:
        name: the label. Names that are not ASCII are marked with `lang="ja"`.
        gloss: whether to add the gloss in parentheses; see `label_words`.
    """
    style = CLASS_STYLE.get(name)
    mark = f'<span style="color: {style.color}">{style.mark}</span> ' if style else ""
    shown, other = label_words(name, gloss=gloss)
    text = escape(shown) if shown.isascii() else f'<span lang="ja">{escape(shown)}</span>'
    beside = f" ({escape(other)})" if other else ""
    return f'<span style="white-space: nowrap">{mark}{text}</span>{beside}'


def text_html(text: str) -> str:
    """Escape a text and mark its Japanese parts with `lang="ja"`.

    Example:
        >>> text_html("which experts prefer 謙譲語II & why")
        'which experts prefer <span lang="ja">謙譲語II</span> &amp; why'
    """
    return _JAPANESE.sub(lambda match: f'<span lang="ja">{match.group()}</span>', escape(text))


@contextmanager
def japanese_font() -> Iterator[None]:
    """Let figures that are made inside the context draw Japanese; matplotlib's settings are restored afterwards.

    Raises:
        MoeLensError: the package of the font is not installed.
    """
    _register_font()
    with matplotlib.rc_context({"font.family": FONTS} | _SMALL_TEXT):
        yield
        interactive = matplotlib.is_interactive()
    # The first figure made in a notebook selects its backend, which turns the interactive mode on.
    matplotlib.interactive(interactive)


class SmallTextFigure(Figure):
    """A figure whose text is drawn without hints, also where it is drawn after it was made, as in a notebook."""

    def draw(self, renderer: Any) -> None:
        with matplotlib.rc_context(_SMALL_TEXT):
            super().draw(renderer)


@cache
def class_marker(name: str) -> Outline:
    """Return the mark of an honorific class as a matplotlib marker."""
    _register_font()
    family = FontProperties(family=FONTS)
    outline = TextPath((0, 0), CLASS_STYLE[name].mark, prop=family)
    (x, y), (right, top) = outline.get_extents().get_points()
    return Affine2D().translate(-(x + right) / 2, -(y + top) / 2).transform_path(outline)


@cache
def _register_font() -> None:
    # The package is only located: importing it would change rcParams of the whole process.
    spec = find_spec("matplotlib_fontja")
    if spec is None or spec.origin is None:
        raise MoeLensError(
            "expected the package 'matplotlib-fontja' (font IPAexGothic), which is not installed; "
            "run pip install matplotlib-fontja"
        )
    fontManager.addfont(Path(spec.origin).parent / "fonts" / "ipaexg.ttf")
