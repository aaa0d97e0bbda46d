"""Morphemes: UniDic's short units, with exact character offsets."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Literal, get_args

from moelens.errors import MoeLensError, unknown
from moelens.japanese.ruby import AnnotatedText, Ruby

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

# What MeCab is to write of each word: the white space before it, the word and its features as in the dictionary. One
# string for a text is read faster than an object for each word. Noncharacters of Unicode end the fields.
_FIELD, _WORD = "\ufdd0", "\ufdd1"
_FORMAT = f"%pS{_FIELD}%m{_FIELD}%H{_WORD}"
# Characters that cannot be written in UTF-8, or would end the text (MeCab reads C strings) or a field.
_UNREADABLE = {
    "fugashi": re.compile(f"[\x00\ud800-\udfff{_FIELD}{_WORD}]"),
    "sudachi": re.compile("[\x00\ud800-\udfff]"),
}
# UniDic's features in their order, as far as they are used; an unknown word has the first six.
_FEATURES = (
    "pos1", "pos2", "pos3", "pos4", "cType", "cForm", "lForm", "lemma", "orth", "pron", "orthBase", "pronBase",
    "goshu", "iType", "iForm", "fType", "fForm", "kana",
)  # fmt: skip
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


@dataclass(frozen=True, slots=True, init=False)
class Morpheme:
    """One short unit at characters `start` to `end` (exclusive) of the text: a `Word` in its place.

    Everything that a `Word` holds can be asked of the morpheme itself (`morpheme.lemma`).
    """

    word: Word
    start: int
    end: int

    def __init__(self, word: Word, start: int, end: int) -> None:
        _put_word(self, word)
        _put_start(self, start)
        _put_end(self, end)

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

    def ruby(self) -> Ruby:
        above = "" if self.script in ("hiragana", "katakana", "punctuation") else self.reading
        pos = "-".join(level for level in self.pos if level != "*")
        return Ruby(above, "", {"pos": pos, "lemma": self.lemma, "form": self.cform})


# What a frozen dataclass does of itself takes nearly twice as long, and there is one for every word of a corpus.
_put_word, _put_start, _put_end = (vars(Morpheme)[name].__set__ for name in ("word", "start", "end"))


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
    folder = unidic_lite.DICDIR
    return fugashi.Tagger(f'-r "{folder}/mecabrc" -d "{folder}" -O "" -F "{_FORMAT}" -E ""')


@cache
def _sudachi() -> Any:
    try:
        sudachi = import_module("sudachipy")
    except ImportError as error:
        raise MoeLensError("analyser 'sudachi' is not installed; pip install sudachipy sudachidict-core") from error
    return sudachi.Dictionary(dict="core").tokenizer(mode=sudachi.SplitMode.A)


_KNOWN = 1 << 17  # words kept by each cache: making one costs more than finding it again


def provenance(analyser: Analyser = "fugashi") -> dict[str, str]:
    """Name and version of the analyser and of its dictionary.

    >>> list(provenance())
    ['analyser', 'dictionary']
    """
    tool, dictionary = {"fugashi": ("fugashi", "unidic-lite"), "sudachi": ("SudachiPy", "sudachidict-core")}[analyser]
    return {"analyser": f"{tool} {version(tool)}", "dictionary": f"{dictionary} {version(dictionary)}"}


def parse_morphemes(text: str, analyser: Analyser = "fugashi") -> AnnotatedText[Morpheme]:
    """The morphemes of `text`, in order; only white space lies between them. A notebook shows them with their readings.

    `analyser` is "fugashi" (UniDic's short units, the default) or "sudachi" (SudachiPy's units A, an extra with the
    same face; its parts of speech are UniDic's, its lemmas are its own normalised forms). Raises `UnknownNameError` for
    another name, `MoeLensError` if the analyser is not installed.

    >>> [(m.surface, m.pos[0], m.lemma) for m in parse_morphemes("私が参ります")]
    [('私', '代名詞', '私'), ('が', '助詞', 'が'), ('参り', '動詞', '参る'), ('ます', '助動詞', 'ます')]
    """
    if analyser not in get_args(Analyser):
        raise unknown("analyser", analyser, get_args(Analyser))
    readable = _UNREADABLE[analyser].sub("\ufffd", text)
    found = _by_fugashi(text, readable) if analyser == "fugashi" else _by_sudachi(text, readable)
    return AnnotatedText(text, tuple(found))


def disagreement(text: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Where fugashi and SudachiPy do not see the same words or parts of speech: the stretch, and both readings of it.

    Both analysers are right by their own dictionaries; a label that rests on such a stretch rests on the choice.

    >>> disagreement("存じ上げております")
    [('存じ上げ', ('存じ上げ 動詞',), ('存じ 動詞', '上げ 動詞'))]

    Raises:
        MoeLensError: SudachiPy is not installed.
    """
    readings = [parse_morphemes(text, "fugashi"), parse_morphemes(text, "sudachi")]
    shared = set.intersection(*({m.start for m in found} | {len(text)} for found in readings))
    cuts = sorted(shared | {0})
    stretches = []
    for start, end in pairwise(cuts):
        a, b = (tuple(f"{m.surface} {m.pos[0]}" for m in found if start <= m.start < end) for found in readings)
        if a != b:
            stretches.append((text[start:end].strip(), a, b))
    return stretches


def _by_fugashi(text: str, readable: str) -> Iterator[Morpheme]:
    lines = _unidic().parse(readable).split(_WORD)[:-1]
    if readable != text:
        lines = _as_written(text, lines)
    end = 0
    for line in lines:
        word, white, length = _line(line)
        start = end + white
        end = start + length
        yield Morpheme(word, start, end)


def _as_written(text: str, lines: list[str]) -> Iterator[str]:
    """The lines with the words as they are in the text."""
    end = 0
    for line in lines:
        white, surface, features = line.split(_FIELD)
        start = end + len(white)
        end = start + len(surface)
        yield _FIELD.join((white, text[start:end], features))


@lru_cache(maxsize=_KNOWN)
def _line(line: str) -> tuple[Word, int, int]:
    """The word of a line of `_FORMAT`, and how long the white space before it and the word itself are."""
    white, rest = line.split(_FIELD, 1)
    surface, features = rest.rsplit(_FIELD, 1)
    return _unidic_word(surface, features), len(white), len(surface)


@lru_cache(maxsize=_KNOWN)
def _unidic_word(surface: str, features: str) -> Word:
    of = dict(zip(_FEATURES, next(csv.reader([features])), strict=False))

    def known(name: str) -> str:
        value = of.get(name, "*")
        return "" if value == "*" else value

    lemma = known("lemma") or surface
    return Word(
        surface,
        (of["pos1"], of["pos2"], of["pos3"], of["pos4"]),
        known("cType"),
        known("cForm"),
        # UniDic tells homographs apart by a suffix (私-代名詞, パソコン-personal computer).
        lemma.partition("-")[0] or lemma,
        known("lForm"),
        known("orthBase") or surface,
        known("kana"),
        known("goshu") or "不明",
        script(surface),
    )


def _by_sudachi(text: str, readable: str) -> Iterator[Morpheme]:
    start = 0
    while start < len(readable):  # Sudachi reads at most 49,149 bytes at once
        piece = readable[start : start + _SUDACHI_READS]
        for unit in _sudachi().tokenize(piece):
            begin, end = start + unit.begin(), start + unit.end()
            if not text[begin:end].isspace() and begin < end:
                entry = unit.part_of_speech(), unit.normalized_form(), unit.dictionary_form(), unit.reading_form()
                yield Morpheme(_sudachi_word(text[begin:end], *entry), begin, end)
        start += len(piece)


@lru_cache(maxsize=_KNOWN)
def _sudachi_word(surface: str, pos: tuple[str, ...], lemma: str, base: str, reading: str) -> Word:
    ctype, cform = ("" if level == "*" else level for level in pos[4:6])
    levels = pos[0], pos[1], pos[2], pos[3]
    return Word(surface, levels, ctype, cform, lemma, "", base, reading, "不明", script(surface))
