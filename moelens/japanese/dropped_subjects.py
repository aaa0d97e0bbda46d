"""Whose act a predicate is if its sentence does not say it, with the evidence."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from moelens.japanese.honorific_spans import HonorificSpan
from moelens.japanese.morphology import Morpheme

#: Whose act a predicate may be: the speaker's, the addressee's, that of a third person whom it raises, or unknown.
WHOSE = ("話し手", "聞き手", "敬う第三者", "不明")

_CLAUSE_END = ("が", "けれど", "けれども", "けど", "から", "ので", "のに", "し", "ば", "と")  # 接続助詞
_FINAL = ("助詞-終助詞", "補助記号", "助詞-準体助詞", "感動詞")
_GIVING = ("呉れる", "下さる")
_RECEIVING = ("貰う", "頂く", "頂戴")
_GIVING_TO_OTHERS = ("上げる", "遣る", "差し上げる")
_FORMAL_NOUNS = ("積り", "事", "筈", "様")
_NO_PERSONS = (
    "何",
    "何れ",
    "何時",
    "誰",
    "此れ",
    "其れ",
    "彼れ",
    "何処",
    "此処",
    "其処",
    "何方",
    "此方",
)  # asked for, or things
_AFTER_NAMES = ("様", "さん", "殿", "ちゃん", "君", "氏", "達", "共", "方")
_WELCOME = ("助かる", "有り難い", "嬉しい", "幸い", "幸甚")  # 知らせてくれると助かる
_THINKING = ("思う", "考える", "存ずる", "積り", "聞く", "伺う")  # and what is heard
_IDIOMS = {("腹", "減る"), ("喉", "渇く"), ("頭", "痛い"), ("気", "為る")}  # states that only the speaker can state


@cache
def person_words() -> Mapping[str, Any]:
    """Return the words of `persons.toml`.

    Example:
        >>> person_words()["persons"]["二人称・普通"][0]
        'あなた'
    """
    return tomllib.loads(files("moelens.japanese").joinpath("persons.toml").read_text("utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedSubject:
    """A predicate without a subject.

    Attributes:
        start: Index of the first character of the predicate.
        end: Index after its last character.
        whose: Whose act it is, one of `WHOSE`.
        reason: The kind of the evidence: "尊敬語", "謙譲語", "依頼", "命令", "意志", "感情", "くれる", "もらう",
            "てくる", "ていく", "疑問"; "" without evidence.
        evidence: Start and end of each passage that is evidence.
    """

    start: int
    end: int
    whose: str
    reason: str
    evidence: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clause:
    """A clause: its predicate, what follows it, its honorifics, and what makes it a question."""

    before: Sequence[Morpheme]
    predicate: Sequence[Morpheme]
    final: Sequence[Morpheme]
    spans: Sequence[HonorificSpan]
    asked: tuple[Morpheme, ...]

    def having(self, *lemmas: str) -> tuple[Morpheme, ...]:
        return tuple(m for m in self.predicate if m.lemma in lemmas)


_Evidence = tuple[str, str, tuple[tuple[int, int], ...]]  # whose act, the reason, the places
_Cue = Callable[[_Clause], _Evidence | None]


def dropped_subjects(sentence: Sequence[Morpheme], spans: Sequence[HonorificSpan]) -> Iterator[DroppedSubject]:
    """Yield the predicates of a sentence that have no subject: the last one, and others with evidence.

    A predicate has a subject if は follows a noun before it, or が in its clause; が after what one wants or feels is
    none. The first cue of `_CUES` that applies decides.

    Args:
        sentence: The morphemes of a sentence.
        spans: The honorifics in it.

    Example:
        >>> from moelens.japanese import honorifics, parse_morphemes
        >>> text = "駅まで送っていただきました。"
        >>> [(s.whose, s.reason) for s in dropped_subjects(parse_morphemes(text), honorifics(text))]
        [('話し手', 'もらう')]
    """
    start = 0
    for end in (*_clause_ends(sentence), len(sentence)):
        words, start = sentence[start:end], end
        clause = _clause(words, spans, last=end == len(sentence))
        if clause is None or _has_subject(sentence, clause):
            continue
        whose, reason, evidence = next((found for cue in _CUES if (found := cue(clause))), ("不明", "", ()))
        named = _is_nominal(clause) and not any(m.pos[0] == "助動詞" for m in clause.predicate)  # お名前は？
        if (evidence or end == len(sentence)) and not (named and reason in ("", "疑問")):
            yield DroppedSubject(
                start=clause.predicate[0].start,
                end=clause.predicate[-1].end,
                whose=whose,
                reason=reason,
                evidence=evidence,
            )


def _clause_ends(sentence: Sequence[Morpheme]) -> Iterator[int]:
    for i in range(len(sentence) - 2):
        if _ends_clause(sentence, i):
            yield i + 1


def _ends_clause(words: Sequence[Morpheme], i: int) -> bool:
    """Whether a word ends a clause: が, から, …, or the last part of ので and のに."""
    m = words[i]
    split = i > 0 and m.normal in ("で", "に") and words[i - 1].normal == "の" and words[i - 1].pos[1] == "準体助詞"
    return split or (m.pos[1] == "接続助詞" and m.normal in _CLAUSE_END)


def _clause(words: Sequence[Morpheme], spans: Sequence[HonorificSpan], *, last: bool) -> _Clause | None:
    """Return the predicate at the end of some words, with what follows it."""
    end = len(words)
    while end and ("-".join(words[end - 1].pos[:2]) in _FINAL or words[end - 1].pos[0] in ("補助記号", "感動詞")):
        end -= 1
    if end and _ends_clause(words, end - 1):
        end -= 1 if words[end - 1].pos[1] == "接続助詞" else 2
    start = _predicate_start(words[:end])
    if start == end:
        return None
    final = words[end:]
    inside = [s for s in spans if s.start < words[end - 1].end and s.end > words[start].start]
    start = next((i for i in range(start) if any(s.start <= words[i].start < s.end for s in inside)), start)
    asked = tuple(m for m in final if m.normal in ("？", "か", "の", "かい")) if last else ()
    if asked and not any(m.normal in ("？", "か", "かい") for m in asked):
        asked = ()  # 行くの。
    return _Clause(before=words[:start], predicate=words[start:end], final=final, spans=inside, asked=asked)


def _is_te(m: Morpheme) -> bool:
    return m.normal in ("て", "で", "ちゃ", "じゃ") and m.pos[1] == "接続助詞"


def _predicate_start(words: Sequence[Morpheme]) -> int:
    """Return where the last predicate of some words begins: its content word, with an お before it."""
    i = len(words)
    while i:
        m = words[i - 1]
        linked = i > 1 and _is_te(words[i - 2])
        joins = m.normal in ("て", "で", "の", "ん", "は", "も", "か") and (m.pos[1] != "格助詞" or m.normal == "の")
        dependent = m.pos[0] in ("助動詞", "接尾辞") or joins
        stem = m.pos[1] == "助動詞語幹" or m.lemma in _FORMAL_NOUNS or (m.pos[1] == "格助詞" and m.normal == "と")
        polite = m.lemma == "御座る" or (m.lemma == "無い" and m.pos[1] == "非自立可能")
        if dependent or stem or polite:
            i -= 1
        elif (linked and (m.pos[1] == "非自立可能" or m.lemma == "御覧")) or (
            m.lemma in _THINKING and i > 1 and words[i - 2].normal in ("と", "に")
        ):
            i -= 2
        else:
            break
    if not i or words[i - 1].pos[0] not in ("動詞", "形容詞", "形状詞", "名詞", "代名詞", "副詞"):
        return i
    i -= 1
    while i and ((words[i].pos[0] == "動詞" and words[i - 1].pos[2] == "サ変可能") or words[i - 1].lemma == "御"):
        i -= 1
    return i


def _has_subject(sentence: Sequence[Morpheme], clause: _Clause) -> bool:
    felt = bool(clause.having("たい", *person_words()["feelings"])) or _idiom(clause)
    began = clause.before[0].start if clause.before else clause.predicate[0].start
    for before, m in pairwise(sentence):
        if m.start >= clause.predicate[0].start:
            return False
        if m.normal in ("は", "も", "が") and _is_person(before):
            return True
        noun = before.pos[0] in ("名詞", "代名詞", "接尾辞") and before.pos[2] != "副詞可能"
        if m.normal == "は" and m.pos[1] == "係助詞" and noun and not felt and not _is_object(clause):
            return True
        if m.normal == "が" and m.pos[1] == "格助詞" and m.start >= began and not felt:
            return True
    return False


def _is_person(m: Morpheme) -> bool:
    words = person_words()
    pronoun = m.pos[0] == "代名詞" and m.lemma not in _NO_PERSONS and m.normal[:1] not in "こそあど"
    named = m.pos[:2] == ("接尾辞", "名詞的") and m.lemma in _AFTER_NAMES
    return pronoun or named or m.normal in words["titles"] or m.normal in words["kin"]


def _is_object(clause: _Clause) -> bool:
    """Whether は marks what is done rather than who does it, as the honorific or the request tells."""
    honoured = any("subject" in s.raises or "object" in s.raises for s in clause.spans if s.tells == "honorific")
    command = any(m.cform == "命令形" or m.cform.startswith("意志推量形") for m in clause.predicate)
    command = command or _direction(clause) is not None
    asked = bool(clause.asked) and not _is_nominal(clause)
    return honoured or command or asked or bool(clause.having(*_GIVING, *_RECEIVING))


def _is_nominal(clause: _Clause) -> bool:
    """Whether a predicate is a noun, with or without です, that names no act and no state of mind."""
    first = next((m for m in clause.predicate if m.lemma != "御"), clause.predicate[0])
    verbal = any(m.pos[0] in ("動詞", "形容詞", "形状詞") for m in clause.predicate)
    return first.pos[0] in ("名詞", "代名詞", "副詞") and not verbal


def _idiom(clause: _Clause) -> bool:
    lemmas = {m.lemma for m in (*clause.before[-2:], *clause.predicate)}
    return any(noun in lemmas and verb in lemmas for noun, verb in _IDIOMS)


def _after_object(clause: _Clause) -> bool:
    return bool(clause.before) and clause.before[-1].normal == "を"


def _places(words: Sequence[Morpheme]) -> tuple[tuple[int, int], ...]:
    return tuple((m.start, m.end) for m in words)


def _request(clause: _Clause) -> _Evidence | None:
    """ください, くれ; くれる？, もらえますか, いただけませんか; お願いします; a sentence that ends with て."""
    last = clause.predicate[-1]
    asked = [m for m in clause.predicate if m.cform == "命令形" and m.lemma in _GIVING] or clause.having("頂戴")[-1:]
    if asked and clause.predicate.index(asked[0]) >= len(clause.predicate) - 3 and not clause.having("た"):
        return "聞き手", "依頼", _places(asked)
    giving = clause.having(*_GIVING, *_RECEIVING)
    linked = any(map(_is_te, clause.predicate)) or any(s.rule.startswith("o-") for s in clause.spans)
    received = any(m.lemma in ("貰う", "頂く") and m.normal[-1:] not in "えけ" for m in giving)  # no 可能動詞
    linked = linked or _after_object(clause)
    if giving and clause.asked and linked and not received and not clause.having("た"):
        return "聞き手", "依頼", _places((*giving, *clause.asked))
    wish = clause.having("願う")
    if wish and any(s.start < wish[0].start < s.end for s in clause.spans) and clause.before:  # お願いします
        return "聞き手", "依頼", _places(wish)
    welcome = clause.having(*_WELCOME)
    given = [m for m in clause.before[-4:] if m.lemma in (*_GIVING, *_RECEIVING)]
    if welcome and given and any(m.normal in ("と", "ば", "たら") for m in clause.before[-2:]):
        return "聞き手", "依頼", _places((*given, *welcome))
    if (last.normal in ("て", "で") and last.pos[1] == "接続助詞") or last.normal in ("といて", "てて", "とい"):
        return "聞き手", "依頼", _places([last])
    return None


def _command(clause: _Clause) -> _Evidence | None:
    last = clause.predicate[-1]
    if last.cform == "命令形" or (last.lemma == "御覧" and len(clause.predicate) > 1):
        return "聞き手", "命令", _places([last])
    forbidden = [m for m in clause.final if m.normal == "な" and m.pos[1] == "終助詞"]
    if forbidden and last.cform.startswith("終止形") and last.pos[0] == "動詞" and clause.final[0] is forbidden[0]:
        return "聞き手", "命令", _places(forbidden)
    return None


def _volition(clause: _Clause) -> _Evidence | None:
    willing = [
        m for m in clause.predicate if m.cform.startswith("意志推量形") and m.lemma not in ("です", "だ", "た", "ない")
    ]
    if willing:
        return "話し手", "意志", _places(willing)
    meant = clause.having("積り")
    if meant and not clause.asked:
        return "話し手", "意志", _places(meant)
    return None


def _respectful(clause: _Clause) -> _Evidence | None:
    raising = [s for s in clause.spans if "尊敬語" in s.classes and "subject" in s.raises]
    places = tuple((s.start, s.end) for s in raising)
    if not raising:
        return None
    told = clause.having("そう", "らしい", "みたい", "様", "事")
    remarked = any(m.normal == "ね" for m in clause.final) and not told
    if any("下さる" in [m.lemma for m in clause.predicate if s.start <= m.start < s.end] for s in raising):
        return _giving(clause)
    if clause.asked or remarked:
        return "聞き手", "尊敬語", (*places, *_places(clause.asked))
    return "敬う第三者", "尊敬語", places


def _giving(clause: _Clause) -> _Evidence | None:
    giving = clause.having(*_GIVING)
    if not giving:
        return None
    honoured = giving[0].lemma == "下さる"
    reason = "くださる" if honoured else "くれる"
    thanked = any(m.lemma in ("有り難い", "有り難う") for m in (*clause.predicate, *clause.final))
    if clause.asked or thanked:
        return "聞き手", reason, _places((*giving, *clause.asked))
    return ("敬う第三者" if honoured else "不明"), reason, _places(giving)


def _humble(clause: _Clause) -> _Evidence | None:
    humble = [s for s in clause.spans if {"謙譲語I", "謙譲語II"} & set(s.classes) and s.tells == "honorific"]
    if not humble:
        return None
    receiving = bool(clause.having(*_RECEIVING))
    return "話し手", "もらう" if receiving else "謙譲語", tuple((s.start, s.end) for s in humble)


def _receiving(clause: _Clause) -> _Evidence | None:
    given = clause.having(*_GIVING_TO_OTHERS) if _after_object(clause) or any(map(_is_te, clause.predicate)) else ()
    found = clause.having(*_RECEIVING) or given
    return ("聞き手" if clause.asked else "話し手", "もらう", _places((*found, *clause.asked))) if found else None


def _feeling(clause: _Clause) -> _Evidence | None:
    if clause.having("がる", "たがる"):
        return "不明", "感情", _places(clause.having("がる", "たがる"))
    reported = clause.having("そう", "らしい", "みたい", "様")
    felt = clause.having("たい", *person_words()["feelings"])
    if not felt and _idiom(clause):
        felt = tuple(clause.predicate[:1])
    if felt and not reported:
        return "聞き手" if clause.asked else "話し手", "感情", _places((*felt, *clause.asked))
    thought = clause.having("思う", "考える", "存ずる")
    if thought and not reported and not clause.asked and any(m.normal == "と" for m in clause.predicate):
        return "話し手", "感情", _places(thought)
    return None


def _direction(clause: _Clause) -> _Evidence | None:
    words = clause.predicate
    for i, m in enumerate(words[:-1] if len(words) > 1 else ()):
        after = words[i + 1]
        if m.normal not in ("て", "で") or after.lemma not in ("来る", "行く"):
            continue
        past = bool(clause.having("た"))
        if after.lemma == "来る" and past:
            return "不明", "てくる", _places([after])
        if not past and not clause.asked:
            return "話し手", "てくる" if after.lemma == "来る" else "ていく", _places([after])
    return None


def _question(clause: _Clause) -> _Evidence | None:
    return ("聞き手", "疑問", _places(clause.asked)) if clause.asked else None


_CUES: tuple[_Cue, ...] = (
    _request,
    _command,
    _volition,
    _respectful,
    _humble,
    _giving,
    _receiving,
    _feeling,
    _direction,
    _question,
)
