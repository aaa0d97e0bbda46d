"""Morphemes: UniDic's short units, with exact character offsets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

#: UniDic's parts of speech (first level), in the order in which they are reported.
POS = (
    "名詞", "代名詞", "形状詞", "連体詞", "副詞", "接続詞", "感動詞", "動詞", "形容詞", "助動詞", "助詞",
    "接頭辞", "接尾辞", "記号", "補助記号", "空白",
)  # fmt: skip

#: Writing systems of a morpheme; "other" is a letter of any other writing system.
SCRIPTS = ("kanji", "hiragana", "katakana", "mixed", "latin", "digit", "punctuation", "other")

#: Where a word comes from (UniDic's 語種): native, Sino-Japanese, foreign, hybrid, proper noun, symbol, unknown.
GOSHU = ("和", "漢", "外", "混", "固", "記号", "不明")

# The long-vowel mark and the iteration marks of the kana follow what they lengthen or repeat: they are neutral.
_SCRIPT_OF = re.compile(
    r"(?P<neutral>[ーｰゝゞヽヾ゛゜\u3099\u309a])"
    r"|(?P<kanji>[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff々〆〇ヶヵ])"
    r"|(?P<hiragana>[\u3041-\u309f])"
    r"|(?P<katakana>[\u30a0-\u30fa\u30ff\u31f0-\u31ff\uff66-\uff9f])"
    r"|(?P<latin>[A-Za-zＡ-Ｚａ-ｚ\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f])"
    r"|(?P<digit>\d)"
    r"|(?P<other>[^\W_])"
    r"|(?P<punctuation>.)",
    re.DOTALL,
)

# MeCab reads C strings of UTF-8: these characters would end the text or cannot be written.
_UNREADABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Morpheme:
    """One short unit of UniDic at characters `start` to `end` (exclusive) of the text.

    `pos` holds UniDic's four levels ("*" where a level is unused); `ctype` and `cform` are the conjugation type and
    form ("" for words without); `lemma` joins spellings (いたす and 致す are both 致す); `reading` is in katakana.
    """

    surface: str
    start: int
    end: int
    pos: tuple[str, str, str, str]
    ctype: str
    cform: str
    lemma: str
    reading: str
    goshu: str
    script: str


def script(surface: str) -> str:
    """The writing system of a word, one of `SCRIPTS`.

    >>> [script(s) for s in ("敬語", "ください", "サーバー", "申し上げ", "API", "２０", "。")]
    ['kanji', 'hiragana', 'katakana', 'mixed', 'latin', 'digit', 'punctuation']
    """
    found = {match.lastgroup for match in _SCRIPT_OF.finditer(surface)} - {"neutral"}
    letters = found - {"punctuation"}
    if len(letters) > 1:
        return "mixed"
    return str(next(iter(letters or found), "katakana"))


@cache
def _tagger() -> Any:
    import fugashi
    import unidic_lite

    # Named explicitly: another UniDic on the machine must not change the labels.
    return fugashi.Tagger(f'-r "{unidic_lite.DICDIR}/mecabrc" -d "{unidic_lite.DICDIR}"')


def provenance() -> dict[str, str]:
    """Name and version of the analyser and of its dictionary."""
    return {"analyser": f"fugashi {version('fugashi')}", "dictionary": f"unidic-lite {version('unidic-lite')}"}


def analyze(text: str) -> tuple[Morpheme, ...]:
    """The morphemes of `text`, in order; only white space lies between them.

    >>> [(m.surface, m.pos[0], m.lemma) for m in analyze("私が参ります")]
    [('私', '代名詞', '私'), ('が', '助詞', 'が'), ('参り', '動詞', '参る'), ('ます', '助動詞', 'ます')]
    """
    morphemes = []
    end = 0
    for node in _tagger()(_UNREADABLE.sub("\ufffd", text)):
        start = end + len(node.white_space)
        end = start + len(node.surface)
        morphemes.append(_morpheme(text[start:end], start, node.feature))
    return tuple(morphemes)


def _morpheme(surface: str, start: int, feature: Any) -> Morpheme:
    def known(value: str | None) -> str:
        return "" if value in (None, "*") else str(value)

    lemma = known(feature.lemma) or surface
    return Morpheme(
        surface=surface,
        start=start,
        end=start + len(surface),
        pos=(feature.pos1, feature.pos2, feature.pos3, feature.pos4),
        ctype=known(feature.cType),
        cform=known(feature.cForm),
        # UniDic tells homographs apart by a suffix (私-代名詞, パソコン-personal computer).
        lemma=lemma.partition("-")[0] or lemma,
        reading=known(feature.kana),
        goshu=known(feature.goshu) or "不明",
        script=script(surface),
    )
