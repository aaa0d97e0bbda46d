"""Names, colours and marks of labels, shared by text, plots and tables. This module holds data and draws nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class ClassStyle:
    """The look of one honorific class in every view.

    The colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish.

    Attributes:
        color: Hexadecimal colour.
        mark: Character that stands for the class where colour is not enough.
        gloss: Short English name.
    """

    color: str
    mark: str
    gloss: str


#: The style of each class in `moelens.japanese.CLASSES`.
CLASS_STYLE: Mapping[str, ClassStyle] = MappingProxyType(
    {
        "尊敬語": ClassStyle("#D55E00", "▲", "respectful"),
        "謙譲語I": ClassStyle("#0072B2", "▼", "humble I"),
        "謙譲語II": ClassStyle("#56B4E9", "▽", "humble II, courteous"),
        "丁寧語": ClassStyle("#009E73", "●", "polite"),
        "美化語": ClassStyle("#CC79A7", "✿", "beautifying"),
    }
)

#: English glosses of Japanese labels.
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
        "一人称・改まった": "first person, formal",
        "一人称・普通": "first person",
        "一人称・くだけた": "first person, casual",
        "二人称・改まった": "second person, formal",
        "二人称・普通": "second person",
        "二人称・くだけた": "second person, casual",
        "二人称・呼称": "title or name of the addressee",
        "三人称・改まった": "third person, formal",
        "三人称・普通": "third person",
        "三人称・くだけた": "third person, casual",
        "三人称・呼称": "title or name of another",
        "再帰": "reflexive",
        "指示コ": "this",
        "指示ソ": "that",
        "指示ア": "that over there",
        "指示ド": "which",
        "主語なし・話し手": "no subject: the speaker",
        "主語なし・聞き手": "no subject: the addressee",
        "主語なし・敬う第三者": "no subject: a respected third person",
        "主語なし・不明": "no subject: unknown",
    }
    | {name: style.gloss for name, style in CLASS_STYLE.items()}
)

#: Headings of the label families in reports.
FAMILY_TITLE: Mapping[str, str] = MappingProxyType(
    {
        "honorifics": "Honorifics",
        "honorifics within token": "Honorifics, within token identity",
        "pos": "Parts of speech",
        "reference": "References to persons",
        "script": "Scripts",
        "ending": "Sentence endings",
    }
)


def label_text(name: str) -> str:
    """Return a label with its mark and its English gloss, as far as it has them.

    Example:
        >>> label_text("尊敬語"), label_text("名詞"), label_text("latin")
        ('▲ 尊敬語 (respectful)', '名詞 (noun)', 'latin')
    """
    mark = f"{CLASS_STYLE[name].mark} " if name in CLASS_STYLE else ""
    return f"{mark}{name}" + (f" ({GLOSS[name]})" if name in GLOSS else "")
