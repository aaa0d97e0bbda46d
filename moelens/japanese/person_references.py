"""References to persons: words for persons, and subjects that a predicate implies, each with its evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from moelens.display import Displayed
from moelens.japanese.dropped_subjects import WHOSE, dropped_subjects, person_words
from moelens.japanese.honorific_spans import HonorificSpan, honorifics, split_sentences
from moelens.japanese.morphology import Morpheme, parse_morphemes
from moelens.japanese.ruby import AnnotatedText, Ruby, ruby_block, ruby_html
from moelens.japanese.sides import side

_PERSON_OF = {word: name for name, words in person_words()["persons"].items() for word in words}
_TITLES = frozenset(person_words()["titles"])
_LONGEST = 3  # morphemes in a word for a person (私 + ども, あの + お + 方)
_DEMONSTRATIVES = {"こ": "指示コ", "そ": "指示ソ", "あ": "指示ア", "ど": "指示ド"}
_SUFFIXES = ("様", "さん", "殿", "ちゃん", "君", "くん", "氏", "さま")
_PREDICATES = ("動詞", "形容詞", "形状詞")
_TELLING = ("聞く", "聞かせる", "教える", "知らせる", "伺う", "窺う", "示す")
_GOING = frozenset(("帰る", "返る", "戻る", "居る", "着く", "行く", "来る", "送る", "入る"))  # うちに帰る: home

#: Labels of persons by person and register, of titles and names used for the addressee and for others, of
#: demonstratives, and of predicates by whose act they are if no word says it.
REFERENCES = (
    *person_words()["persons"],
    "二人称・呼称",
    "三人称・呼称",
    *_DEMONSTRATIVES.values(),
    *(f"主語なし・{whose}" for whose in WHOSE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(Displayed):
    """A reference to a person, or a demonstrative, in its place in a text.

    Attributes:
        start: Index of the first character.
        end: Index after the last character.
        surface: The characters from `start` to `end`.
        label: One of `REFERENCES`.
        reason: What decides: "word" for the word itself, "呼びかけ", "疑問", "尊敬語", "くれる", … (see
            `moelens.japanese.sides` and `moelens.japanese.dropped_subjects`); "" if nothing does.
        evidence: Start and end of each passage that decides; empty if nothing does.
    """

    start: int
    end: int
    surface: str
    label: str
    reason: str = "word"
    evidence: tuple[tuple[int, int], ...] = ()

    def _repr_html_(self) -> str:
        return ruby_block(ruby_html(self.surface, self.ruby()))

    def ruby(self) -> Ruby:
        """Return the annotation for notebooks: the label above the words."""
        return Ruby(self.label, "", {"reason": self.reason})


def references(text: str) -> AnnotatedText[Reference]:
    """Find the words for persons of a text, and whose act the predicates without a subject are.

    Pronouns are labelled as the reader understands them: 僕 is the second person where someone calls a boy so, 自分 is
    reflexive except as a subject before です or in an address, and あなた in a plain address is the one of a couple. A
    title or name is the second person in an address (先生、…), as the topic of a question (部長はご存じですか), and in
    a request about itself (お客様のお名前をお聞かせください). こちら, そちら and あちら are persons where they act or
    own (そちらのご都合), and otherwise places. The subject of a predicate is found from its honorifics, giving and
    receiving (くれる, もらう, いただく), directions (てくる, ていく), commands, volition and feelings; a request counts
    as an act of the addressee.

    Args:
        text: Text to analyse.

    Returns:
        The references in order.

    Example:
        >>> [(r.surface, r.label, r.reason) for r in references("僕も行く。召し上がった？")]
        [('僕', '一人称・くだけた', 'word'), ('召し上がった', '主語なし・聞き手', '尊敬語')]
    """
    morphemes = parse_morphemes(text)
    return AnnotatedText(text, tuple(reference_spans(text, morphemes, honorifics(text, morphemes))))


def reference_spans(text: str, morphemes: Sequence[Morpheme], spans: Sequence[HonorificSpan]) -> Iterator[Reference]:
    """Yield what `references` returns, for a text whose morphemes and honorifics are known."""
    rest = list(spans)[::-1]
    for sentence in split_sentences(text, morphemes):
        inside: list[HonorificSpan] = []
        while rest and rest[-1].start < sentence[-1].end:
            inside.append(rest.pop())
        found = [
            Reference(start=a, end=b, surface=text[a:b], label=label, reason=reason, evidence=evidence)
            for a, b, label, reason, evidence in (*_persons(sentence, inside), *_subjects(sentence, inside))
        ]
        yield from sorted(found, key=lambda reference: (reference.start, reference.end))


_Found = tuple[int, int, str, str, tuple[tuple[int, int], ...]]


def _subjects(sentence: Sequence[Morpheme], spans: Sequence[HonorificSpan]) -> Iterator[_Found]:
    topics = [m.start for i, m in enumerate(sentence) if (found := side(sentence, i, spans)) and found.topic]
    for subject in dropped_subjects(sentence, spans):
        if not any(start < subject.start for start in topics):
            yield subject.start, subject.end, f"主語なし・{subject.whose}", subject.reason, subject.evidence


def _persons(sentence: Sequence[Morpheme], spans: Sequence[HonorificSpan]) -> Iterator[_Found]:
    at = 0
    while at < len(sentence):
        length = _person_length(sentence, at)
        first, last = sentence[at], sentence[at + max(length, 1) - 1]
        title = 0 if length else _title_length(sentence, at)
        if length:
            name = _PERSON_OF["".join(m.normal for m in sentence[at : at + length])]
            yield from _in_context(sentence, at, length, name)
        elif title:
            yield _title(sentence, at, title, spans)
        elif persons := side(sentence, at, spans):
            yield first.start, first.end, persons.label, persons.reason, persons.evidence
        elif first.pos[0] in ("代名詞", "連体詞") and first.normal[:1] in _DEMONSTRATIVES:
            yield first.start, last.end, _DEMONSTRATIVES[first.normal[:1]], "word", ((first.start, last.end),)
        at += max(length, title, 1)


def _person_length(sentence: Sequence[Morpheme], at: int) -> int:
    """Return how many morphemes from `at` on are a word for a person."""
    for length in range(min(_LONGEST, len(sentence) - at), 0, -1):
        words = sentence[at : at + length]
        joined = "".join(m.normal for m in words)
        adjacent = all(a.end == b.start for a, b in pairwise(words))
        if joined in _PERSON_OF and adjacent and words[-1].pos[0] in ("代名詞", "名詞", "接尾辞", "副詞"):
            suffix = words[0].pos[0] == "接尾辞"  # 山田君
            return 0 if suffix else length
    return 0


def _in_context(sentence: Sequence[Morpheme], at: int, length: int, name: str) -> Iterator[_Found]:
    """Yield the label of a word for a person where its neighbours decide what it means."""
    first, last = sentence[at], sentence[at + length - 1]
    word = "".join(m.normal for m in sentence[at : at + length])
    before = sentence[at - 1] if at else None
    after = sentence[at + length] if at + length < len(sentence) else None
    behind = "" if after is None else after.normal
    place = first.start, last.end
    here = (place,)
    opened = behind in ("、", "！", "…") and all(m.pos[0] in ("感動詞", "補助記号") for m in sentence[:at])
    if word in ("うち", "ウチ", "お宅", "おたく"):
        modified = before is not None and (
            before.normal in ("の", "が") or before.pos[0] in ("動詞", "助動詞", "連体詞", "形容詞")
        )
        house = behind in ("に", "へ", "まで") and any(m.lemma in _GOING for m in sentence[at + length :])
        if (
            modified
            or (house and word in ("うち", "ウチ"))
            or behind not in ("の", "は", "も", "が", "、", "で", "に", "と", "さん")
        ):
            return
    called = opened and (_question(sentence) is not None or _requests(sentence))
    comma = () if after is None else ((after.start, after.end),)
    to_husband = opened and word in ("あなた", "貴方") and not _polite(sentence)
    if to_husband or (called and word in ("僕", "ぼく", "ボク", "自分")):
        yield *place, "二人称・くだけた", "呼びかけ", (place, *comma)
    elif word == "自分" and (polite := _own(sentence, at, opened=opened)):
        yield *place, "一人称・普通", "丁寧語", (place, *((m.start, m.end) for m in polite))
    else:
        yield *place, name, "word", here


def _own(sentence: Sequence[Morpheme], at: int, *, opened: bool) -> tuple[Morpheme, ...]:
    """Return です and ます that tell that 自分 is the speaker: 自分は田中であります, 自分が行きます."""
    polite = tuple(m for m in sentence if m.lemma in ("です", "ます"))
    behind = sentence[at + 1].normal if at + 1 < len(sentence) else ""
    stated = sentence[-1].pos[1] != "終助詞" and _polite(sentence) and _question(sentence) is None
    acts = [m for before, m in pairwise(sentence[at:]) if m.pos[0] in _PREDICATES and before.normal not in ("て", "で")]
    alone = len(acts) <= 1
    return polite if stated and (behind in ("は", "も") or opened or (at == 0 and behind == "が" and alone)) else ()


def _requests(sentence: Sequence[Morpheme]) -> bool:
    """Whether a sentence ends with a command or a request: 泣かないで, 待ちなさい, 来てね."""
    tail = [m for m in sentence if m.pos[0] != "補助記号" and m.pos[1] != "終助詞"][-1:]
    return any(m.cform == "命令形" or (m.normal in ("て", "で") and m.pos[1] == "接続助詞") for m in tail)


def _title_length(sentence: Sequence[Morpheme], at: int) -> int:
    """Return how many morphemes from `at` on are a title, or a name with a title or suffix."""
    end = at
    while (
        end < len(sentence)
        and end - at < _LONGEST
        and (sentence[end].normal in ("お", "ご", "御") or sentence[end].pos[0] in ("名詞", "代名詞"))
    ):
        if sentence[end].normal in _TITLES:
            suffix = end + 1 < len(sentence) and sentence[end + 1].normal in _SUFFIXES
            return end + 1 + suffix - at
        end += 1
        if end < len(sentence) and sentence[end].normal in _SUFFIXES and sentence[end].pos[0] == "接尾辞":
            return end + 1 - at
    return 0


def _title(sentence: Sequence[Morpheme], at: int, length: int, spans: Sequence[HonorificSpan]) -> _Found:
    start, end = sentence[at].start, sentence[at + length - 1].end
    after = sentence[at + length] if at + length < len(sentence) else None
    opening = all(m.pos[0] in ("感動詞", "接続詞", "補助記号") for m in sentence[:at])
    if after is not None and opening and after.normal in ("、", "！", "？"):
        return start, end, "二人称・呼称", "呼びかけ", ((start, end), (after.start, after.end))
    asked = _question(sentence)
    if after is not None and after.normal in ("は", "も", "の") and asked:
        honoured = tuple((s.start, s.end) for s in spans if s.start >= end and "尊敬語" in s.classes)
        titled = any(m.normal in _TITLES for m in sentence[at : at + length])
        titled = titled and not any(
            s.plain[:2] == ("行く", "来る") for s in spans if s.start >= end
        )  # 部長はいらっしゃいますか
        first = not any(m.pos[0] in ("動詞", "形容詞", "助動詞") for m in sentence[:at])
        if opening or (honoured and titled and first and after.normal != "の"):  # この件、部長はどうお考えですか
            return start, end, "二人称・呼称", "疑問", ((start, end), *(() if opening else honoured), asked)
    if after is not None and after.normal == "の" and opening and (told := _told(sentence, at + length + 1)):
        return start, end, "二人称・呼称", "依頼", ((start, end), (told.start, told.end))
    return start, end, "三人称・呼称", "word", ((start, end),)


def _told(sentence: Sequence[Morpheme], at: int) -> Morpheme | None:
    """Return the verb by which the speaker asks someone about himself: お客様のお名前をお聞かせください."""
    if at >= len(sentence) or sentence[at].lemma != "御":
        return None
    asking = any(m.lemma in ("下さる", "頂く", "貰う", "たい", "致す", "願う") for m in sentence[at:])
    return next((m for m in sentence[at:] if m.lemma in _TELLING), None) if asking else None


def _question(sentence: Sequence[Morpheme]) -> tuple[int, int] | None:
    """Return the place of what makes a sentence a question: か, or a question mark."""
    for m in reversed(sentence):
        if m.normal in ("？", "か", "かい", "の") and m.pos[0] in ("補助記号", "助詞"):
            if m.normal == "の" and m.pos[1] != "終助詞":
                return None
            if m.normal != "の":
                return m.start, m.end
        elif m.pos[0] not in ("補助記号", "助詞"):
            return None
    return None


def _polite(sentence: Sequence[Morpheme]) -> bool:
    return any(m.lemma in ("です", "ます") for m in sentence[-4:])
