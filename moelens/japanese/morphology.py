"""Morphemes: UniDic's short units, with exact character offsets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Literal, get_args

from moelens.errors import MoeLensError, unknown
from moelens.japanese.faces import Face, InText

Analyser = Literal["fugashi", "sudachi"]

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
_SUDACHI_READS = 12_000  # characters: Sudachi refuses more than 49,149 bytes


@dataclass(frozen=True, slots=True, eq=False)  # one object an entry: compared and hashed by identity, which is quick
class Word:
    """An entry of the dictionary in one of its forms, shared by all the places where it stands.

    `pos` holds four levels ("*" where a level is unused); `ctype` and `cform` are the conjugation type and form ("" for
    words without); `lemma` joins spellings (いたす and 致す are both 致す), `lemma_reading` is its reading, `base` the
    dictionary form as it is written here; `reading` is that of the surface. Readings are in katakana.
    """

    surface: str
    pos: tuple[str, str, str, str]
    ctype: str = ""
    cform: str = ""
    lemma: str = ""
    lemma_reading: str = ""
    base: str = ""
    reading: str = ""
    goshu: str = ""
    script: str = ""


@dataclass(frozen=True, slots=True)
class Morpheme:
    """One short unit at characters `start` to `end` (exclusive) of the text: a `Word` in its place.

    Everything that a `Word` holds can be asked of the morpheme itself (`morpheme.lemma`).
    """

    word: Word
    start: int
    end: int

    surface = property(lambda self: self.word.surface)
    pos = property(lambda self: self.word.pos)
    ctype = property(lambda self: self.word.ctype)
    cform = property(lambda self: self.word.cform)
    lemma = property(lambda self: self.word.lemma)
    lemma_reading = property(lambda self: self.word.lemma_reading)
    base = property(lambda self: self.word.base)
    reading = property(lambda self: self.word.reading)
    goshu = property(lambda self: self.word.goshu)
    script = property(lambda self: self.word.script)

    def face(self) -> Face:
        above = "" if self.script in ("hiragana", "katakana", "punctuation") else self.reading
        pos = "-".join(level for level in self.pos if level != "*")
        return Face(above, "", {"pos": pos, "lemma": self.lemma, "form": self.cform})


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
def _unidic() -> Any:
    import fugashi
    import unidic_lite

    # Named explicitly: another UniDic on the machine must not change the labels.
    return fugashi.Tagger(f'-r "{unidic_lite.DICDIR}/mecabrc" -d "{unidic_lite.DICDIR}"')


@cache
def _sudachi() -> Any:
    try:
        sudachi = import_module("sudachipy")
    except ImportError as error:
        raise MoeLensError("analyser 'sudachi' is not installed; pip install sudachipy sudachidict-core") from error
    return sudachi.Dictionary(dict="core").tokenizer(mode=sudachi.SplitMode.A)


Known = dict[tuple[str, str], Word]
_known: Known = {}  # words met so far: making one costs more than finding it again
_MOST_KNOWN = 200_000


def provenance(analyser: Analyser = "fugashi") -> dict[str, str]:
    """Name and version of the analyser and of its dictionary.

    >>> list(provenance())
    ['analyser', 'dictionary']
    """
    tool, dictionary = {"fugashi": ("fugashi", "unidic-lite"), "sudachi": ("SudachiPy", "sudachidict-core")}[analyser]
    return {"analyser": f"{tool} {version(tool)}", "dictionary": f"{dictionary} {version(dictionary)}"}


def analyze(text: str, analyser: Analyser = "fugashi") -> InText[Morpheme]:
    """The morphemes of `text`, in order; only white space lies between them. A notebook shows them with their readings.

    `analyser` is "fugashi" (UniDic's short units, the default) or "sudachi" (SudachiPy's units A, an extra with the
    same face; its parts of speech are UniDic's, its lemmas are its own normalised forms). Raises `UnknownNameError` for
    another name, `MoeLensError` if the analyser is not installed.

    >>> [(m.surface, m.pos[0], m.lemma) for m in analyze("私が参ります")]
    [('私', '代名詞', '私'), ('が', '助詞', 'が'), ('参り', '動詞', '参る'), ('ます', '助動詞', 'ます')]
    """
    if analyser not in get_args(Analyser):
        raise unknown("analyser", analyser, get_args(Analyser))
    if len(_known) > _MOST_KNOWN:
        _known.clear()
    readable = _UNREADABLE.sub("\ufffd", text)
    found = _by_fugashi(text, readable) if analyser == "fugashi" else _by_sudachi(text, readable)
    return InText(text, tuple(found))


def disagreement(text: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Where fugashi and SudachiPy do not see the same words or parts of speech: the stretch, and both readings of it.

    Both analysers are right by their own dictionaries; a label that rests on such a stretch rests on the choice.

    >>> disagreement("存じ上げております")
    [('存じ上げ', ('存じ上げ 動詞',), ('存じ 動詞', '上げ 動詞'))]

    Raises:
        MoeLensError: SudachiPy is not installed.
    """
    readings = [analyze(text, "fugashi"), analyze(text, "sudachi")]
    shared = set.intersection(*({m.start for m in found} | {len(text)} for found in readings))
    cuts = sorted(shared | {0})
    stretches = []
    for start, end in pairwise(cuts):
        a, b = (tuple(f"{m.surface} {m.pos[0]}" for m in found if start <= m.start < end) for found in readings)
        if a != b:
            stretches.append((text[start:end].strip(), a, b))
    return stretches


def _by_fugashi(text: str, readable: str) -> Iterator[Morpheme]:
    end = 0
    for node in _unidic()(readable):
        start = end + len(node.white_space)
        end = start + len(node.surface)
        key = text[start:end], node.feature_raw
        yield Morpheme(_known.get(key) or _unidic_word(key, node.feature), start, end)


def _unidic_word(key: tuple[str, str], feature: Any) -> Word:
    def known(value: str | None) -> str:
        return "" if value in (None, "*") else str(value)

    surface = key[0]
    lemma = known(feature.lemma) or surface
    word = _known[key] = Word(
        surface,
        (feature.pos1, feature.pos2, feature.pos3, feature.pos4),
        known(feature.cType),
        known(feature.cForm),
        # UniDic tells homographs apart by a suffix (私-代名詞, パソコン-personal computer).
        lemma.partition("-")[0] or lemma,
        known(feature.lForm),
        known(feature.orthBase) or surface,
        known(feature.kana),
        known(feature.goshu) or "不明",
        script(surface),
    )
    return word


def _by_sudachi(text: str, readable: str) -> Iterator[Morpheme]:
    start = 0
    while start < len(readable):  # Sudachi reads at most 49,149 bytes at once
        piece = readable[start : start + _SUDACHI_READS]
        for unit in _sudachi().tokenize(piece):
            begin, end = start + unit.begin(), start + unit.end()
            if not text[begin:end].isspace() and begin < end:
                yield Morpheme(_sudachi_word(text[begin:end], unit), begin, end)
        start += len(piece)


def _sudachi_word(surface: str, unit: Any) -> Word:
    pos = unit.part_of_speech()
    key = surface, ",".join((*pos, unit.reading_form(), unit.normalized_form()))
    if key not in _known:
        ctype, cform = ("" if level == "*" else level for level in pos[4:6])
        _known[key] = Word(
            surface, pos[:4], ctype, cform, unit.normalized_form(), "", unit.dictionary_form(), unit.reading_form(),
            "不明", script(surface),
        )  # fmt: skip
    return _known[key]
