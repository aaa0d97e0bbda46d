"""こちら, そちら and あちら where they mean the side of the speaker, of the addressee or of others, not a place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moelens.japanese.dropped_subjects import person_words
from moelens.japanese.honorific_spans import HonorificSpan
from moelens.japanese.morphology import Morpheme

_PERSON = {"此方": "一人称", "其方": "二人称", "彼方": "三人称"}
_CASUAL = ("こっち", "そっち", "あっち")
_TOPIC = ("は", "も", "が")
_ASKED = ("いかが", "如何", "どう", "変わる", "変わり", "元気")
_MOVING = ("入る", "出る", "回る", "乗る", "降りる", "上がる", "下りる", "渡る", "進む", "見る", "眺める")
_SAYING = ("言う", "申す", "思う", "考える", "怒る", "断る", "望む", "知る", "決める", "困る")


@dataclass(frozen=True, slots=True)
class Side:
    """A demonstrative of direction that stands for persons.

    Attributes:
        label: Its label by person and register, such as 二人称・改まった.
        reason: What decides: "尊敬語", "謙譲語", "依頼", "疑問", "対比", "持ち物", "述語", "こそ" or "呼びかけ".
        evidence: Start and end of each passage that decides.
        topic: Whether は, も or が makes it the subject or topic of its sentence.
    """

    label: str
    reason: str
    evidence: tuple[tuple[int, int], ...]
    topic: bool


@dataclass(frozen=True, slots=True)
class _Use:
    """One use of a demonstrative: what follows it, and the honorifics of its sentence."""

    sentence: Sequence[Morpheme]
    at: int
    spans: Sequence[HonorificSpan]

    @property
    def particle(self) -> str:
        return self.following(1)

    def following(self, by: int) -> str:
        place = self.at + by
        return self.sentence[place].normal if place < len(self.sentence) else ""

    @property
    def rest(self) -> Sequence[Morpheme]:
        return self.sentence[self.at + 1 :]

    def later(self, *lemmas: str) -> tuple[Morpheme, ...]:
        return tuple(m for m in self.rest if m.lemma in lemmas)

    @property
    def question(self) -> Morpheme | None:
        return next((m for m in reversed(self.sentence[-3:]) if m.normal in ("か", "？", "かい")), None)

    def raising(self, who: str) -> tuple[HonorificSpan, ...]:
        """The honorific acts after the demonstrative that raise someone."""
        start = self.sentence[self.at].end
        return tuple(s for s in self.spans if s.start >= start and who in s.raises and s.tells != "noun")


_Decision = tuple[str, tuple[Morpheme | HonorificSpan, ...]]  # the reason, and what is evidence
_Cue = Callable[[_Use], _Decision | None]


def side(sentence: Sequence[Morpheme], at: int, spans: Sequence[HonorificSpan]) -> Side | None:
    """Decide whether a word is こちら, そちら or あちら for persons.

    Args:
        sentence: The morphemes of a sentence.
        at: The index of the word.
        spans: The honorifics of the sentence.

    Example:
        >>> from moelens.japanese import honorifics, parse_morphemes
        >>> texts = ["そちらのご都合はいかがですか。", "そちらの棚にあります。"]
        >>> [side(parse_morphemes(text), 0, honorifics(text)) is not None for text in texts]
        [True, False]
    """
    word = sentence[at]
    person = _PERSON.get(word.lemma) if word.pos[0] == "代名詞" else None
    if person is None:
        return None
    use = _Use(sentence, at, spans)
    for cue in (_owner, _contrast, *_CUES[person]):
        if found := cue(use):
            reason, passages = found
            evidence = tuple(dict.fromkeys(((word.start, word.end), *((m.start, m.end) for m in passages))))
            register = "くだけた" if word.normal in _CASUAL else "改まった"
            return Side(f"{person}・{register}", reason, tuple(sorted(evidence)), use.particle in _TOPIC)
    return None


def _owner(use: _Use) -> _Decision | None:
    """こちらの手違い, そちらのご都合: what only persons have."""
    if use.particle != "の":
        return None
    prefix = use.following(2) in ("お", "ご", "御")
    owned = use.sentence[use.at + 2 + prefix : use.at + 3 + prefix]
    return ("持ち物", tuple(owned)) if owned and owned[0].lemma in person_words()["of_sides"] else None


def _contrast(use: _Use) -> _Decision | None:
    """こちらは元気ですが、そちらは…: two sides of which something is said of each."""
    own = use.sentence[use.at].lemma
    others = [
        m
        for m, after in zip(use.sentence, use.sentence[1:], strict=False)
        if {m.lemma, own} == {"此方", "其方"} and after.normal in ("は", "も")
    ]
    return ("対比", tuple(others)) if others and use.particle in ("は", "も") else None


def _speaker_by_particle(use: _Use) -> _Decision | None:
    """こちらこそ, こちらとしては, and もしもし、こちら… on the telephone."""
    if use.particle == "こそ":
        return "こそ", (use.sentence[use.at + 1],)
    if use.particle == "と" and use.following(2) == "し":
        return "述語", tuple(use.sentence[use.at + 1 : use.at + 4])
    greeting = [m for m in use.sentence[: use.at] if m.normal == "もしもし"]
    return ("呼びかけ", tuple(greeting)) if greeting else None


def _speaker_by_humble(use: _Use) -> _Decision | None:
    """こちらからご連絡します, こちらで手配いたします, こちらは山田と申します; not a place where one was or waits."""
    humble = [
        s
        for s in use.spans
        if {"謙譲語I", "謙譲語II"} & set(s.classes)
        and s.start > use.sentence[use.at].start
        and s.tells != "noun"
        and (not s.surface.startswith(("お", "ご", "御")) or not s.rule.endswith("itadaku") or "させて" in s.surface)
        and s.rule not in ("te-itadaku", "goran-itadaku", "o-negau", "onegai-suru")
    ]
    own = [s for s in humble if "謙譲語II" in s.classes or "sasete" in s.rule]
    placed = use.later("た", "居る")
    if use.particle == "から" and humble:
        return "謙譲語", tuple(humble)
    if use.particle == "で" and own and not placed:
        return "謙譲語", tuple(own)
    if use.particle in ("は", "も") and (named := use.later("申す")) and use.later("と"):
        return "謙譲語", named
    return None


def _addressee_by_respect(use: _Use) -> _Decision | None:
    """そちらは…いらっしゃいますか, そちらはいかがですか, そちらもお元気で."""
    if use.particle not in (*_TOPIC, "で"):
        return None
    respect = use.raising("subject")
    asked = use.question
    if respect and (asked or use.particle in ("は", "も")) and not use.later("下さる"):
        return "尊敬語", (*respect, *((asked,) if asked else ()))
    how = [m for m in use.rest if m.normal in _ASKED or m.lemma in _ASKED]
    adjective = [m for m in use.rest if m.pos[0] == "形容詞"]
    if use.particle in ("は", "も") and asked and (how or adjective):
        return "疑問", (*how, asked)
    return None


def _addressee_by_request(use: _Use) -> _Decision | None:
    """そちらからご連絡ください; not a door to enter by."""
    requested = [m for m in use.rest if m.lemma in ("下さる", "呉れる", "貰う", "頂く")]
    if use.particle == "から" and requested and not use.later(*_MOVING):
        return "依頼", tuple(requested)
    return None


def _addressee_by_humble(use: _Use) -> _Decision | None:
    """そちらへ伺います, そちらにお送りします: where the person is whom the speaker visits or sends something to."""
    raised = use.raising("object")
    going = use.later("参る")
    if use.particle in ("へ", "に", "まで") and (raised or going) and not use.later("た", "下さる", "御座る"):
        return "謙譲語", (*raised, *going)
    return None


def _others(use: _Use) -> _Decision | None:
    """あちらは…とおっしゃる: who speaks and thinks is a person."""
    if use.particle not in _TOPIC:
        return None
    respect = use.raising("subject")
    said = use.later(*_SAYING)
    return ("尊敬語", respect) if respect else ("述語", said) if said else None


_CUES: dict[str, tuple[_Cue, ...]] = {
    "一人称": (_speaker_by_particle, _speaker_by_humble),
    "二人称": (_addressee_by_respect, _addressee_by_request, _addressee_by_humble),
    "三人称": (_others,),
}
