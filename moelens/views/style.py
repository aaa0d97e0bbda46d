"""Labels as HTML, the marks of honorific classes as matplotlib markers, and the Japanese font."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from moelens.errors import MoeLensError
from moelens.japanese.classes import CLASS_STYLE, GLOSS

# The rest of their colours, for lines that are no honorific class.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")


def label_html(name: str, *, gloss: bool = True) -> str:
    """The same as HTML: the mark in the class colour, `lang="ja"` on whatever is not ASCII, inline styles only."""
    style = CLASS_STYLE.get(name)
    mark = f'<span style="color: {style.color}">{style.mark}</span> ' if style else ""
    text = escape(name) if name.isascii() else f'<span lang="ja">{escape(name)}</span>'
    english = f" ({escape(GLOSS[name])})" if gloss and name in GLOSS else ""
    return f'<span style="white-space: nowrap">{mark}{text}</span>{english}'


# Runs of Japanese, with the numeral of 謙譲語I and 謙譲語II.
JAPANESE = re.compile(r"[\u3005-\u30ff\u4e00-\u9fff\uff01-\uff9f][\u3000-\u30ff\u4e00-\u9fff\uff01-\uff9f]*(?:II?\b)?")


def text_html(text: str) -> str:
    """Escaped text, its Japanese parts marked as such.

    >>> text_html("who handles 謙譲語II & why")
    'who handles <span lang="ja">謙譲語II</span> &amp; why'
    """
    return JAPANESE.sub(lambda match: f'<span lang="ja">{match.group()}</span>', escape(text))


@contextmanager
def japanese_font() -> Iterator[None]:
    """Figures made inside can draw Japanese; matplotlib's settings are as before afterwards.

    Raises `MoeLensError` when the font's package is not installed.
    """
    _register_font()
    with matplotlib.rc_context({"font.family": ["IPAexGothic", "DejaVu Sans"]}):
        yield
        interactive = matplotlib.is_interactive()
    matplotlib.interactive(interactive)  # a notebook's backend, chosen inside by the first figure, turns it on


@cache
def class_marker(name: str) -> Outline:
    """The mark of a class as a matplotlib marker, the same as in text."""
    _register_font()
    family = FontProperties(family=["IPAexGothic", "DejaVu Sans"])
    outline = TextPath((0, 0), CLASS_STYLE[name].mark, prop=family)
    (x, y), (right, top) = outline.get_extents().get_points()
    return Affine2D().translate(-(x + right) / 2, -(y + top) / 2).transform_path(outline)


@cache
def _register_font() -> None:
    # The package is found, not imported: its import changes rcParams for everybody.
    spec = find_spec("matplotlib_fontja")
    if spec is None or spec.origin is None:
        raise MoeLensError("package 'matplotlib-fontja' (font IPAexGothic) is missing; pip install matplotlib-fontja")
    fontManager.addfont(Path(spec.origin).parent / "fonts" / "ipaexg.ttf")
