"""Honorifics written in katakana (オハヨウゴザイマス), which the dictionaries have in hiragana only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

_HIRAGANA = {code: code - 0x60 for code in range(ord("ァ"), ord("ヶ"))}
# What katakana has to contain to be read again as hiragana: a stem of です, ます or of a frequent honorific.
_RUN = re.compile(
    "[ァ-ヴー]*(?:デス|デシ|マス|マシ|マセ|ゴザ|クダサ|イラッシャ|オッシャ|ナサ|メシアガ|イタダ|イタシ|モウシ|マイリ|ウカガ|オネガイ)[ァ-ヴー]*"
)
_HONORIFIC = frozenset(
    (
        "です",
        "ます",
        "御座る",
        "下さる",
        "いらっしゃる",
        "仰る",
        "為さる",
        "召し上がる",
        "頂く",
        "致す",
        "申す",
        "申し上げる",
    )
    + ("参る", "伺う", "存ずる", "畏まる", "承る")
)
_AFTER_NAMES = ("を", "に", "へ", "の", "は")  # particles that do not follow です and ます
_POLITE = ("です", "ます")
_UNKNOWN = "不明"


class _Word(Protocol):
    @property
    def normal(self) -> str: ...
    @property
    def pos(self) -> tuple[str, str, str, str]: ...
    @property
    def lemma(self) -> str: ...
    @property
    def goshu(self) -> str: ...


def katakana_runs(sentence: str) -> Iterator[tuple[int, int]]:
    """Yield the places of katakana that may be an honorific.

    Example:
        >>> list(katakana_runs("お願いシマス。"))
        [(3, 6)]
    """
    return (found.span() for found in _RUN.finditer(sentence))


def in_hiragana(sentence: str, start: int, end: int) -> str:
    """Return a sentence with its katakana from `start` to `end` in hiragana.

    Example:
        >>> in_hiragana("お願いシマス。", 3, 6)
        'お願いします。'
    """
    return sentence[:start] + sentence[start:end].translate(_HIRAGANA) + sentence[end:]


def read_in_hiragana(written: str, read: str) -> bool:
    """Whether a word with katakana was read in hiragana.

    Example:
        >>> read_in_hiragana("マス", "ます"), read_in_hiragana("マスク", "マスク"), read_in_hiragana("まーす", "ます")
        (True, False, False)
    """
    return any("ァ" <= c <= "ヶ" and c not in read for c in written)


def is_honorific(
    as_written: Sequence[_Word], as_hiragana: Sequence[_Word], *, before: _Word | None, after: _Word | None
) -> bool:
    """Whether katakana is an honorific: read as hiragana it has only known words and one of them is an honorific.

    Words that the dictionary has in katakana (クリスマス, デスク) stay what they are. Names may end in デス or マス as
    well (アルキメデス): です after a single noun counts only where more of a clause is in katakana.

    Args:
        as_written: The words of the katakana.
        as_hiragana: The words of the same characters in hiragana.
        before: The word that precedes it in its sentence, if any.
        after: The word that follows it, if any.
    """
    if any(word.goshu == _UNKNOWN for word in as_hiragana) or not any(word.lemma in _HONORIFIC for word in as_hiragana):
        return False
    known = any(word.lemma in _HONORIFIC and word.normal != "ス" for word in as_written)
    if known and as_written[0].normal != "シ":  # the dictionary has デス and マス after ordinary words, シ of する not
        return False
    if len(as_written) == 1 and as_written[0].goshu != _UNKNOWN:
        ended = after is None or after.pos[1] in ("終助詞", "句点")
        return len(as_hiragana) == 1 and before is not None and ended
    if as_hiragana[0].pos[0] in ("助詞", "助動詞") and before is None:
        return False
    return all(
        _is_possible(as_hiragana, i, before, after) for i, word in enumerate(as_hiragana) if word.lemma in _POLITE
    )


def _is_possible(words: Sequence[_Word], at: int, before: _Word | None, after: _Word | None) -> bool:
    """Whether です or ます may stand at this place of a clause in katakana."""
    last = words[at - 1] if at else before
    following = words[at + 1] if at + 1 < len(words) else after
    inside = at + 1 < len(words)
    if following is not None and (following.normal in _AFTER_NAMES or following.normal == "た"):
        return words[at].normal not in ("です", "ます")
    if inside and following is not None and following.pos[0] not in ("助詞", "助動詞"):
        return False
    if words[at].lemma == "ます":
        return last is not None and last.pos[0] in ("動詞", "助動詞")
    if last is None or last.normal in ("は", "が", "を", "に", "も"):
        return False
    clause = at == 0 or inside or any(word.pos[0] == "助詞" for word in words[: at - 1])
    return clause or last.pos[0] != "名詞"
