"""Morphological analysis: the short units of UniDic, with exact character offsets."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise, starmap
from typing import Any, Literal, get_args

from moelens.errors import MoeLensError, unknown
from moelens.japanese.katakana import in_hiragana, is_honorific, katakana_runs
from moelens.japanese.normalization import LINE_BREAKS, Normalized, normalize
from moelens.japanese.ruby import AnnotatedText, Ruby

Analyser = Literal["fugashi", "sudachi"]
_ANALYSERS = get_args(Analyser)

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
# Parsing one string for a text is faster than reading an object for each word. Unicode noncharacters end the fields;
# `normalize` leaves none in a text.
_FIELD, _WORD = "\ufdd0", "\ufdd1"
_FORMAT = f"%pS{_FIELD}%m{_FIELD}%H{_WORD}"
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
# The analysers read one sentence or line at a time, so that its words do not depend on the text around it. Both fail on
# very long input (MeCab crashes, Sudachi refuses more than 49,149 bytes); a longer sentence is read in windows that
# overlap, and its words pass from one window to the next where both have the same boundary.
_SENTENCE = re.compile(f"[^。！？{LINE_BREAKS}]*(?:[。！？]+[」』）】〉》〕］｝”’]*|[{LINE_BREAKS}]+|\\Z)")
_WINDOW, _OVERLAP = 2_000, 200  # characters
_CONTEXT = 20  # words before and characters after katakana that is read again as hiragana
# Every sentence is analysed after a full stop: at the beginning of a text UniDic and Sudachi misread おっしゃる.
_BEFORE = "。"
_CACHED_WORDS = 1 << 17  # in each cache: making a word takes longer than looking it up


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # compared by identity, which is fast
class Word:
    """A form of a dictionary entry, shared by all morphemes that have it.

    Attributes:
        surface: The word as written.
        normal: The word as the analyser read it (see `normalize`), with honorifics in katakana written in hiragana.
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
    normal: str
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
        word: The word. Its attributes, such as `lemma` and `reading`, are also those of the morpheme; see `Word`.
        start: Index of the first character.
        end: Index after the last character.

    Example:
        >>> morpheme = parse_morphemes("雨が降った。")[2]
        >>> morpheme.surface, morpheme.lemma, morpheme.pos[0], morpheme.start
        ('降っ', '降る', '動詞', 2)
    """

    word: Word
    start: int
    end: int

    def __init__(self, word: Word, start: int, end: int) -> None:
        _put_word(self, word)
        _put_start(self, start)
        _put_end(self, end)

    surface = property(lambda self: self.word.surface, doc="See `Word.surface`.")
    normal = property(lambda self: self.word.normal, doc="See `Word.normal`.")
    pos = property(lambda self: self.word.pos, doc="See `Word.pos`.")
    ctype = property(lambda self: self.word.ctype, doc="See `Word.ctype`.")
    cform = property(lambda self: self.word.cform, doc="See `Word.cform`.")
    lemma = property(lambda self: self.word.lemma, doc="See `Word.lemma`.")
    lemma_reading = property(lambda self: self.word.lemma_reading, doc="See `Word.lemma_reading`.")
    base = property(lambda self: self.word.base, doc="See `Word.base`.")
    reading = property(lambda self: self.word.reading, doc="See `Word.reading`.")
    goshu = property(lambda self: self.word.goshu, doc="See `Word.goshu`.")
    script = property(lambda self: self.word.script, doc="See `Word.script`.")

    def ruby(self) -> Ruby:
        """Return the annotation for notebooks: the reading above words with kanji."""
        above = "" if self.script in ("hiragana", "katakana", "punctuation") else self.reading
        pos = "-".join(level for level in self.pos if level != "*")
        return Ruby(above, "", {"pos": pos, "lemma": self.lemma, "form": self.cform})


# The generated constructor of a frozen dataclass takes nearly twice as long, and a corpus has millions of morphemes.
_put_word, _put_start, _put_end = (vars(Morpheme)[name].__set__ for name in ("word", "start", "end"))


_Placed = tuple[Word, int, int]  # a word, its start and its end
_Analyse = Callable[[str], Iterable[_Placed]]  # from a sentence of at most `_WINDOW` characters


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
    if analyser not in _ANALYSERS:
        raise unknown("analyser", analyser, _ANALYSERS)
    copy = normalize(text)
    words = _words(copy.text, _by_fugashi if analyser == "fugashi" else _by_sudachi)
    if copy.text == text:
        return AnnotatedText(text, tuple(starmap(Morpheme, words)))
    return AnnotatedText(text, tuple(_in_original(text, copy, words)))


def disagreement(text: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Find where fugashi and SudachiPy give different words or parts of speech.

    Each analyser is right by its own dictionary. A label of a passage that is returned depends on the analyser.

    Args:
        text: A text.

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


def _words(copy: str, analyse: _Analyse) -> Iterator[_Placed]:
    """Yield the words of a normalised text, sentence by sentence."""
    for found in _SENTENCE.finditer(copy):
        sentence, start = found[0], found.start()
        if not sentence:
            continue
        words = analyse(sentence) if len(sentence) <= _WINDOW else _in_windows(sentence, analyse)
        if any(katakana_runs(sentence)):
            words = _katakana_as_hiragana(sentence, list(words), analyse)
        yield from _moved(words, start) if start else words


def _moved(words: Iterable[_Placed], by: int) -> Iterator[_Placed]:
    return ((word, start + by, end + by) for word, start, end in words)


def _in_windows(sentence: str, analyse: _Analyse) -> Iterator[_Placed]:
    """Yield the words of a long sentence, analysed in windows that overlap."""
    words, end = list(analyse(sentence[:_WINDOW])), _WINDOW
    while end < len(sentence):
        begin = next((start for _, start, _ in words if start >= end - _OVERLAP), end)
        following = list(_moved(analyse(sentence[begin : begin + _WINDOW]), begin))
        shared = {start for _, start, _ in words} & {start for _, start, _ in following}
        cut = min((at for at in shared if at >= begin + _OVERLAP // 2), default=begin)
        yield from (placed for placed in words if placed[1] < cut)
        words, end = [placed for placed in following if placed[1] >= cut], begin + _WINDOW
    yield from words


def _katakana_as_hiragana(sentence: str, words: Sequence[_Placed], analyse: _Analyse) -> Iterator[_Placed]:
    """Yield the words of a sentence, those of its katakana honorifics as if they were written in hiragana."""
    done = 0
    for begin, end in katakana_runs(sentence):
        for number, (word, start, _) in enumerate(words):
            loan = word.goshu == "外" and len(word.normal) > 2  # ロボットデス: not a part of the honorific
            if begin <= start < end and not loan and (read := _read_again(sentence, words, number, end, analyse)):
                yield from (placed for placed in words if done <= placed[1] < start)
                yield from read
                done = end
                break
    yield from (placed for placed in words if done <= placed[1])


def _read_again(
    sentence: str, words: Sequence[_Placed], number: int, end: int, analyse: _Analyse
) -> list[_Placed] | None:
    """Return the words from a word to `end` as read in hiragana, if they are an honorific."""
    start = words[number][1]
    left = words[max(number - _CONTEXT, 0)][1]
    read = list(_moved(analyse(in_hiragana(sentence[left : end + _CONTEXT], start - left, end - left)), left))
    within = [(_respelled(word, sentence[a:b]), a, b) for word, a, b in read if start <= a < end]
    if not within or (within[0][1], within[-1][2]) != (start, end):
        return None
    as_written, ends = zip(*((word, to) for word, at, to in words if start <= at < end), strict=True)
    if ends[-1] > end:  # a word that goes on in hiragana
        return None
    after = next((word for word, at, _ in read if at >= end), None)
    before = words[number - 1][0] if number else None
    found = [word for word, _, _ in within]
    return within if is_honorific(as_written, found, before=before, after=after) else None


def _in_original(text: str, copy: Normalized, words: Iterable[_Placed]) -> Iterator[Morpheme]:
    """Yield the words of a normalised copy in their places in the text.

    A character of the text that stands for several words (㍿ for 株式 and 会社) becomes one morpheme, the last of these
    words that is no punctuation.
    """
    held: tuple[Word, int, int] | None = None
    for word, first, last in words:
        start, end = copy.starts[first], copy.ends[last - 1]
        if text[end - 1] in " \u3000" and text[end - 1] != copy.text[last - 1]:
            end -= 1  # お 客 様 へ: the space after 様, which the copy leaves out
        if held is not None and start < held[2]:
            word = held[0] if word.pos[0] == "補助記号" else word
            start = held[1]
        elif held is not None:
            yield _as_written(text, *held)
        held = word, start, end
    if held is not None:
        yield _as_written(text, *held)


def _as_written(text: str, word: Word, start: int, end: int) -> Morpheme:
    surface = text[start:end]
    return Morpheme(word if surface == word.surface else _respelled(word, surface), start, end)


@lru_cache(maxsize=_CACHED_WORDS)
def _respelled(word: Word, surface: str) -> Word:
    return replace(word, surface=surface)


def _by_fugashi(sentence: str) -> list[_Placed]:
    first, *lines = map(_parse_line, _unidic().parse(_BEFORE + sentence).split(_WORD)[:-1])
    end = 0
    if first[2] != len(_BEFORE):  # symbols at the beginning of the sentence form one word with the full stop
        lines = [*map(_parse_line, _unidic().parse(sentence).split(_WORD)[:-1])]
    words = []
    for word, white, length in lines:
        start = end + white
        end = start + length
        words.append((word, start, end))
    return words


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
        normal=surface,
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


def _by_sudachi(sentence: str, before: str = _BEFORE) -> Iterator[_Placed]:
    for unit in _sudachi().tokenize(before + sentence):
        start, end = unit.begin() - len(before), unit.end() - len(before)
        if start < 0 < end:
            yield from _by_sudachi(sentence, before="")
            return
        if 0 <= start < end and not sentence[start:end].isspace():
            entry = unit.part_of_speech(), unit.normalized_form(), unit.dictionary_form(), unit.reading_form()
            yield _sudachi_word(sentence[start:end], *entry), start, end


@lru_cache(maxsize=_CACHED_WORDS)
def _sudachi_word(surface: str, pos: tuple[str, ...], lemma: str, base: str, reading: str) -> Word:
    ctype, cform = ("" if level == "*" else level for level in pos[4:6])
    return Word(
        surface=surface,
        normal=surface,
        pos=(pos[0], pos[1], pos[2], pos[3]),
        ctype=ctype,
        cform=cform,
        lemma=lemma,
        base=base,
        reading=reading,
        goshu="不明",
        script=script_of(surface),
    )
