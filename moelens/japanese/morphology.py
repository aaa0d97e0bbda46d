"""Morphological analysis: the short units of UniDic, with exact character offsets."""

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

#: The parts of speech of UniDic (first level), in the order in which they are reported.
POS = (
    "名詞",
    "代名詞",
    "形状詞",
    "連体詞",
    "副詞",
    "接続詞",
    "感動詞",
    "動詞",
    "形容詞",
    "助動詞",
    "助詞",
    "接頭辞",
    "接尾辞",
    "記号",
    "補助記号",
    "空白",
)

#: The writing systems of a morpheme; "other" is any other writing system.
SCRIPTS = ("kanji", "hiragana", "katakana", "mixed", "latin", "digit", "punctuation", "other")

#: The origins of words (語種 in UniDic): native, Sino-Japanese, foreign, hybrid, proper noun, symbol, unknown.
GOSHU = ("和", "漢", "外", "混", "固", "記号", "不明")

# The long-vowel mark and the iteration marks of kana belong to the writing system of the character before them.
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

# The output format for MeCab: for each word the white space before it, the word, and its features as in the dictionary.
# Parsing one string for a text is faster than reading an object for each word. Unicode noncharacters end the fields.
_FIELD, _WORD = "\ufdd0", "\ufdd1"
_FORMAT = f"%pS{_FIELD}%m{_FIELD}%H{_WORD}"
# Characters that UTF-8 cannot encode, or that would end the text (MeCab reads C strings) or a field.
_UNREADABLE = {
    "fugashi": re.compile(f"[\x00\ud800-\udfff{_FIELD}{_WORD}]"),
    "sudachi": re.compile("[\x00\ud800-\udfff]"),
}
# The features of UniDic in order, up to the last one in use; an unknown word has only the first six.
_FEATURES = (
    "pos1",
    "pos2",
    "pos3",
    "pos4",
    "cType",
    "cForm",
    "lForm",
    "lemma",
    "orth",
    "pron",
    "orthBase",
    "pronBase",
    "goshu",
    "iType",
    "iForm",
    "fType",
    "fForm",
    "kana",
)
_MECAB_CHARACTERS = 100_000  # per call: MeCab keeps all words that may begin at any character, about 1 KB for each
_SUDACHI_CHARACTERS = 12_000  # per call: Sudachi refuses more than 49,149 bytes, and a character has up to 4
_CACHED_WORDS = 1 << 17  # in each cache: making a word takes longer than looking it up


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # compared by identity, which is fast
class Word:
    """A form of a dictionary entry, shared by all morphemes that have it.

    Attributes:
        surface: The word as written.
        pos: The four levels of the part of speech; "*" for a level that is not used.
        ctype: Conjugation type; "" for words that do not conjugate.
        cform: Conjugation form; "" for words that do not conjugate.
        lemma: Lemma, which joins spellings (致す for both いたす and 致す).
        lemma_reading: Reading of the lemma, in katakana.
        base: Dictionary form in the spelling of the text.
        reading: Reading of the surface, in katakana.
        goshu: Origin, one of `GOSHU`.
        script: Writing system, one of `SCRIPTS`.
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
    """One short unit in its place in a text.

    Attributes:
        word: The word; its attributes are also those of the morpheme (`morpheme.lemma`).
        start: Index of the first character.
        end: Index after the last character.
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
        """Return the annotation for notebooks: the reading above words with kanji."""
        above = "" if self.script in ("hiragana", "katakana", "punctuation") else self.reading
        pos = "-".join(level for level in self.pos if level != "*")
        return Ruby(above, "", {"pos": pos, "lemma": self.lemma, "form": self.cform})


# The generated constructor of a frozen dataclass takes nearly twice as long, and a corpus has millions of morphemes.
_put_word, _put_start, _put_end = (vars(Morpheme)[name].__set__ for name in ("word", "start", "end"))


def script_of(surface: str) -> str:
    """Return the writing system of a word, one of `SCRIPTS`.

    Example:
        >>> [script_of(word) for word in ("敬語", "ください", "サーバー", "申し上げ", "API", "２０", "。")]
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

    # The dictionary is named explicitly, because another UniDic on the machine would change the labels.
    folder = unidic_lite.DICDIR
    return fugashi.Tagger(f'-r "{folder}/mecabrc" -d "{folder}" -O "" -F "{_FORMAT}" -E ""')


@cache
def _sudachi() -> Any:
    try:
        sudachi = import_module("sudachipy")
    except ImportError as error:
        raise MoeLensError(
            "analyser 'sudachi' is not installed; install it with pip install sudachipy sudachidict-core"
        ) from error
    return sudachi.Dictionary(dict="core").tokenizer(mode=sudachi.SplitMode.A)


def provenance(analyser: Analyser = "fugashi") -> dict[str, str]:
    """Return the names and versions of an analyser and of its dictionary.

    Example:
        >>> list(provenance())
        ['analyser', 'dictionary']
    """
    tool, dictionary = {"fugashi": ("fugashi", "unidic-lite"), "sudachi": ("SudachiPy", "sudachidict-core")}[analyser]
    return {"analyser": f"{tool} {version(tool)}", "dictionary": f"{dictionary} {version(dictionary)}"}


def parse_morphemes(text: str, analyser: Analyser = "fugashi") -> AnnotatedText[Morpheme]:
    """Split a text into morphemes.

    Args:
        text: Text to analyse.
        analyser: "fugashi" for the short units of UniDic, or "sudachi" for the units A of SudachiPy, an optional
            package. Both give the parts of speech of UniDic; the lemmas of SudachiPy are its normalised forms.

    Returns:
        The morphemes in order, with only white space between them. Notebooks show them as text with readings.

    Raises:
        UnknownNameError: If there is no such analyser.
        MoeLensError: If the analyser is not installed.

    Example:
        >>> [(m.surface, m.pos[0], m.lemma) for m in parse_morphemes("私が参ります")]
        [('私', '代名詞', '私'), ('が', '助詞', 'が'), ('参り', '動詞', '参る'), ('ます', '助動詞', 'ます')]
    """
    if analyser not in get_args(Analyser):
        raise unknown("analyser", analyser, get_args(Analyser))
    readable = _UNREADABLE[analyser].sub("\ufffd", text)
    found = _by_fugashi(text, readable) if analyser == "fugashi" else _by_sudachi(text, readable)
    return AnnotatedText(text, tuple(found))


def disagreement(text: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Find where fugashi and SudachiPy give different words or parts of speech.

    Each analyser is right by its own dictionary. A label of a passage that is returned depends on the analyser.

    Returns:
        For each such passage, its text, the words of fugashi and the words of SudachiPy, each with its part of speech.

    Raises:
        MoeLensError: If SudachiPy is not installed.

    Example:
        >>> disagreement("存じ上げております")
        [('存じ上げ', ('存じ上げ 動詞',), ('存じ 動詞', '上げ 動詞'))]
    """
    readings = [parse_morphemes(text, "fugashi"), parse_morphemes(text, "sudachi")]
    shared = set.intersection(*({m.start for m in found} | {len(text)} for found in readings))
    cuts = sorted(shared | {0})
    passages = []
    for start, end in pairwise(cuts):
        a, b = (tuple(f"{m.surface} {m.pos[0]}" for m in found if start <= m.start < end) for found in readings)
        if a != b:
            passages.append((text[start:end].strip(), a, b))
    return passages


def _by_fugashi(text: str, readable: str) -> Iterator[Morpheme]:
    for begin, stop in _pieces(readable):
        lines = _unidic().parse(readable[begin:stop]).split(_WORD)[:-1]
        if readable != text:
            lines = _restore_surfaces(text[begin:stop], lines)
        end = begin
        for line in lines:
            word, white, length = _parse_line(line)
            start = end + white
            end = start + length
            yield Morpheme(word, start, end)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Yield the places of the pieces of a text that MeCab analyses one by one, so that its memory is bounded.

    A text of up to `_MECAB_CHARACTERS` is one piece. A longer one is divided after a line or a sentence if it has any.
    """
    begin = 0
    while len(text) - begin > _MECAB_CHARACTERS:
        limit = begin + _MECAB_CHARACTERS
        cut = max(text.rfind("\n", begin, limit), text.rfind("。", begin, limit)) + 1 or limit
        yield begin, cut
        begin = cut
    yield begin, len(text)


def _restore_surfaces(text: str, lines: list[str]) -> Iterator[str]:
    """Yield the lines with their words replaced by the characters of the text."""
    end = 0
    for line in lines:
        white, surface, features = line.split(_FIELD)
        start = end + len(white)
        end = start + len(surface)
        yield _FIELD.join((white, text[start:end], features))


@lru_cache(maxsize=_CACHED_WORDS)
def _parse_line(line: str) -> tuple[Word, int, int]:
    """Return the word of a line of `_FORMAT`, and the lengths of the white space before it and of the word."""
    white, rest = line.split(_FIELD, 1)
    surface, features = rest.rsplit(_FIELD, 1)
    return _unidic_word(surface, features), len(white), len(surface)


@lru_cache(maxsize=_CACHED_WORDS)
def _unidic_word(surface: str, features: str) -> Word:
    values = dict(zip(_FEATURES, next(csv.reader([features])), strict=False))

    def value(name: str) -> str:
        found = values.get(name, "*")
        return "" if found == "*" else found

    lemma = value("lemma") or surface
    return Word(
        surface=surface,
        pos=(values["pos1"], values["pos2"], values["pos3"], values["pos4"]),
        ctype=value("cType"),
        cform=value("cForm"),
        # UniDic distinguishes homographs by a suffix (私-代名詞, パソコン-personal computer).
        lemma=lemma.partition("-")[0] or lemma,
        lemma_reading=value("lForm"),
        base=value("orthBase") or surface,
        reading=value("kana"),
        goshu=value("goshu") or "不明",
        script=script_of(surface),
    )


def _by_sudachi(text: str, readable: str) -> Iterator[Morpheme]:
    start = 0
    while start < len(readable):
        piece = readable[start : start + _SUDACHI_CHARACTERS]
        for unit in _sudachi().tokenize(piece):
            begin, end = start + unit.begin(), start + unit.end()
            if not text[begin:end].isspace() and begin < end:
                entry = unit.part_of_speech(), unit.normalized_form(), unit.dictionary_form(), unit.reading_form()
                yield Morpheme(_sudachi_word(text[begin:end], *entry), begin, end)
        start += len(piece)


@lru_cache(maxsize=_CACHED_WORDS)
def _sudachi_word(surface: str, pos: tuple[str, ...], lemma: str, base: str, reading: str) -> Word:
    ctype, cform = ("" if level == "*" else level for level in pos[4:6])
    return Word(
        surface=surface,
        pos=(pos[0], pos[1], pos[2], pos[3]),
        ctype=ctype,
        cform=cform,
        lemma=lemma,
        base=base,
        reading=reading,
        goshu="不明",
        script=script_of(surface),
    )
