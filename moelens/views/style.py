"""Colours, marks, glosses and the Japanese font: the same in text, plots and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import matplotlib
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from moelens.errors import MoeLensError


@dataclass(frozen=True)
class ClassStyle:
    """How one honorific class looks everywhere. Colours are from Okabe and Ito 2008, safe for colour-blind readers."""

    color: str
    mark: str
    gloss: str


CLASS_STYLE: Mapping[str, ClassStyle] = MappingProxyType(
    {
        "尊敬語": ClassStyle("#D55E00", "▲", "respectful"),
        "謙譲語I": ClassStyle("#0072B2", "▼", "humble I"),
        "謙譲語II": ClassStyle("#56B4E9", "▽", "humble II, courteous"),
        "丁寧語": ClassStyle("#009E73", "●", "polite"),
        "美化語": ClassStyle("#CC79A7", "✿", "beautifying"),
    }
)

# The rest of their colours, for lines that are no honorific class.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")

GLOSS: Mapping[str, str] = MappingProxyType(
    {
        "名詞": "noun",
        "代名詞": "pronoun",
        "動詞": "verb",
        "形容詞": "adjective",
        "形状詞": "adjectival noun",
        "副詞": "adverb",
        "連体詞": "adnominal",
        "接続詞": "conjunction",
        "感動詞": "interjection",
        "助詞": "particle",
        "助動詞": "auxiliary",
        "接頭辞": "prefix",
        "接尾辞": "suffix",
        "記号": "symbol",
        "補助記号": "punctuation",
        "空白": "space",
        "漢字": "kanji",
        "ひらがな": "hiragana",
        "カタカナ": "katakana",
    }
    | {name: style.gloss for name, style in CLASS_STYLE.items()}
)

FAMILY_TITLE: Mapping[str, str] = MappingProxyType(
    {
        "honorifics": "Honorifics",
        "honorifics within token": "Honorifics, within token identity",
        "pos": "Parts of speech",
        "script": "Scripts",
        "ending": "Sentence endings",
    }
)


def label_text(name: str) -> str:
    """A label with its mark and its English gloss.

    >>> label_text("尊敬語"), label_text("名詞"), label_text("latin")
    ('▲ 尊敬語 (respectful)', '名詞 (noun)', 'latin')
    """
    mark = f"{CLASS_STYLE[name].mark} " if name in CLASS_STYLE else ""
    return f"{mark}{name}" + (f" ({GLOSS[name]})" if name in GLOSS else "")


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
