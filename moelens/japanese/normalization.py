"""The copy of a text that the analysers read: one form for each character, with offsets back to the text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from moelens.japanese.spellings import ROWS, may_be_respelled

#: What is made uniform, as `Normalized.counts` names it: the forms of characters, and the spellings of words.
KINDS = ("decomposed", "width", "zero-width", "compatibility", "unreadable", *dict.fromkeys(kind for kind, *_ in ROWS))

#: Characters that end a line, as `str.splitlines` knows them.
LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

#: What ends a sentence, as a regular expression; a point does so after Japanese only, and not in 3.5 or A.B.
SENTENCE_STOP = (
    r"(?:[。｡！？!?]|(?<=[ぁ-ヿｦ-ﾟ㐀-鿿々〆」』）)】”])[．.]+(?![．.0-9A-Za-z０-９Ａ-Ｚａ-ｚ]))+[」』）)\]】”]*"
)

# Characters without a width of their own: they join, hide or direct other characters. Among them are the variation
# selectors of kanji, which choose a glyph of the same character.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\ufff9-\ufffb\U0001bca0-\U0001bca3\U000e0000-\U000e0fff"
)
_ZERO_WIDTH = re.compile(f"[{_INVISIBLE}]")
# Characters that compose with the character before them although their combining class is 0; and the half-width and the
# spacing voiced sound marks.
_CONTINUING = (
    "\u1161-\u1175\u11a8-\u11c2\u09be\u09d7\u0b3e\u0b56\u0b57\u0bbe\u0bd7\u0cc2\u0cd5\u0cd6\u0d3e\u0d57\u0dcf\u0ddf"
    "\u102e\u1b35\U00011127\U0001133e\U00011357\U000114b0\U000114ba\U000114bd\U000115af\U00011930ﾞﾟ゛゜"
)
_SPACING_MARKS = str.maketrans("゛゜", "\u3099\u309a")

# UniDic has punctuation in full width, and numbers and Latin words of either width as unknown words.
_ALPHANUMERIC = {ord(c): ord(c) - 0xFEE0 for c in map(chr, range(0xFF01, 0xFF5F)) if c.isalnum()}
_PUNCTUATION = {code: code + 0xFEE0 for code in range(0x21, 0x7F) if not chr(code).isalnum()}
# Characters that UTF-8 cannot encode, or that end the text or a field in the output of MeCab, which reads C strings.
_UNREADABLE = "\x00\ufdd0\ufdd1\ud800-\udfff"
_UNREADABLE_CHARACTER = re.compile(f"[{_UNREADABLE}]")
_WIDTH = _ALPHANUMERIC | _PUNCTUATION
# For a quick look whether NFKC would change anything but width: what stays as it is stands for a letter.
_AS_THEY_ARE = "\u00a0¨¯´¸‥…\u3000"
_TIDY = re.compile("[ぁ-ゔァ-ヺー一-\u9fff々、。「」！？ \n\u3000]*")
_PROBE = dict.fromkeys(map(ord, _AS_THEY_ARE), "a") | dict.fromkeys(range(0xFF01, 0xFF5F), "a")


class Normalized(NamedTuple):
    """A text in one form: NFKC, punctuation in full width, letters and digits in half width, no zero-width characters.

    Ruby is left out, and small or drawn-out kana and former spellings of honorifics are read as today's (`spellings`).

    Attributes:
        text: The uniform copy.
        starts: For each character of the copy, and for its end, the index of its first character in the original.
        ends: For each character of the copy, the index after its last character in the original.
        counts: How many characters of the original had another form, by kind.
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]
    counts: Mapping[str, int]


def normalize(text: str) -> Normalized:
    """Return the copy of a text that the analysers read.

    Unicode has several forms of a character (が and か + ゙, カ and ｶ, ! and ！, ㍿ and 株式会社), and analysers know one
    of them. Zero-width characters are left out where they stand beside a visible character. Of the spellings that the
    dictionaries lack (先生《せんせい》, ございま〜す, くださぃ, ませう), those in `spellings` are read as usual ones.

    Example:
        >>> normalize("ｺﾞ覧\\u200bください!").text
        'ゴ覧ください！'
        >>> dict(normalize("ｺﾞ覧\\u200bください!").counts)
        {'width': 3, 'zero-width': 1}
        >>> normalize("召（め）し上がりませう").text
        '召し上がりましょう'
    """
    copy = _one_form(text)
    return _respelled(copy) if may_be_respelled(copy.text) else copy


def _one_form(text: str) -> Normalized:
    """Return the copy with one form for each character, its words spelled as in the text."""
    if _TIDY.fullmatch(text):
        return Normalized(text, range(len(text) + 1), range(1, len(text) + 1), {})
    if text.isascii() and "\0" not in text:
        tidy = True
    else:
        tidy = unicodedata.is_normalized("NFKC", text.translate(_PROBE)) and not (
            _ZERO_WIDTH.search(text) or _UNREADABLE_CHARACTER.search(text) or "゛" in text or "゜" in text
        )
    if tidy:
        copy = text.translate(_WIDTH)
        wide = 0 if copy == text else sum(a != b for a, b in zip(text, copy, strict=True))
        return Normalized(copy, range(len(text) + 1), range(1, len(text) + 1), {"width": wide} if wide else {})
    return _normalize_untidy(text)


def visible_ends(text: str) -> Sequence[int]:
    """Return for each index from 0 to `len(text)` the index after the last visible character before it, or 0.

    Example:
        >>> visible_ends("茶\u200bを")
        [0, 1, 1, 3]
    """
    ends = list(range(len(text) + 1))
    for found in _ZERO_WIDTH.finditer(text):
        ends[found.end()] = ends[found.start()]
    return ends


def _respelled(copy: Normalized) -> Normalized:
    """Return a copy with the words of `ROWS` in the spelling of the dictionaries.

    What is left out belongs to the character before it; after white space and at the beginning, to the one after it.
    """
    counts, before = dict(copy.counts), copy.text
    for kind, pattern, reading in ROWS:
        read: list[str] | None = None
        for found in pattern.finditer(copy.text):
            read = list(copy.text) if read is None else read
            read[found.start() : found.end()] = reading(found[0])
        if read is not None and any(read):
            counts[kind] = counts.get(kind, 0) + sum(a != b for a, b in zip(read, copy.text, strict=True))
            copy = _with_characters(copy, read)
    read_once = Normalized(copy.text, copy.starts, copy.ends, counts)
    return read_once if copy.text == before else _respelled(read_once)  # 先生《せん》《せい》


def _with_characters(copy: Normalized, read: Sequence[str]) -> Normalized:
    """Return a copy in which each character is read as given."""
    starts: list[int] = []
    ends: list[int] = []
    before, left_out = " ", -1  # the last character, and where what is left out before the next one begins
    for start, end, form in zip(copy.starts, copy.ends, read, strict=False):
        if form:
            starts += [start if left_out < 0 else left_out] * len(form)
            ends += [end] * len(form)
            before, left_out = form, -1
        elif before.isspace():
            left_out = start if left_out < 0 else left_out
        else:
            last = ends[-1]
            for i in range(len(ends) - 1, -1, -1):  # several characters may stand for the one before
                if ends[i] != last:
                    break
                ends[i] = end
    return Normalized("".join(read), [*starts, copy.starts[-1]], ends, copy.counts)


def _normalize_untidy(text: str) -> Normalized:
    copy: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    counts = dict.fromkeys(KINDS, 0)
    for found in _cluster().finditer(text):
        cluster, start, end = found[0], *found.span()
        visible = _ZERO_WIDTH.sub("", cluster) or cluster
        counts["zero-width"] += len(cluster) - len(visible)
        form, kind = _uniform(visible)
        if kind:
            counts[kind] += len(visible)
        copy.append(form)
        starts += [start] * len(form)
        ends += [end] * len(form)
    return Normalized("".join(copy), [*starts, len(text)], ends, {k: n for k, n in counts.items() if n})


@cache
def _cluster() -> re.Pattern[str]:
    """Return the pattern of a visible character with the marks and zero-width characters that belong to it."""
    marks = "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.combining(chr(code)))
    return re.compile(rf"[{_INVISIBLE}]*[^\s{_INVISIBLE}][{_INVISIBLE}{_CONTINUING}{marks}]*|.", re.DOTALL)


@lru_cache(maxsize=1 << 14)
def _uniform(cluster: str) -> tuple[str, str]:
    """Return the form of a character with its marks, and what was changed: one of `KINDS`, or ""."""
    if _UNREADABLE_CHARACTER.search(cluster):
        return _UNREADABLE_CHARACTER.sub("\ufffd", cluster), "unreadable"
    joined = unicodedata.normalize("NFC", cluster.translate(_SPACING_MARKS)) if len(cluster) > 1 else cluster
    composed = joined if len(joined) == 1 else unicodedata.normalize("NFC", cluster)
    form = unicodedata.normalize("NFKC", composed)
    if form[0] == " " or "." in form:  # spaces, spacing accents and …, which would end a sentence
        form = composed
    form = form.translate(_WIDTH)
    if form == cluster:
        return form, ""
    if composed != cluster and len(composed) == 1:
        return form, "decomposed"
    width = unicodedata.east_asian_width(cluster[0]) in ("F", "H") or cluster.isascii()
    return form, "width" if width else "compatibility"
