"""Register: plain, polite or honorific, sentence by sentence, with the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from moelens.japanese.honorific_spans import HonorificSpan, honorifics, sentences
from moelens.japanese.morphology import Morpheme, parse_morphemes

#: From the least to the most polite.
REGISTERS = ("plain", "polite", "honorific")

#: The last predicate of a sentence: polite (です・ます・ください), plain, left unfinished, or no predicate but a noun.
ENDINGS = ("敬体", "常体", "言いさし", "体言止め")

_UNFINISHED = ("連用形", "仮定形", "未然形")
_AFTER_PREDICATE = ("助詞", "補助記号", "記号", "空白")
_NOMINAL = ("名詞", "代名詞", "接尾辞", "形状詞", "副詞", "感動詞", "接続詞", "連体詞", "接頭辞")
_POLITE = ("です", "ます")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence at characters `start` to `end` (exclusive) with its register, one of `REGISTERS`.

    `evidence` is what the register rests on, empty if it is plain. `predicate` is the last predicate with the
    auxiliaries that follow it, as start and end, and `ending` its style, one of `ENDINGS`; "" where there is none.
    """

    start: int
    end: int
    register: str
    evidence: tuple[HonorificSpan, ...]
    predicate: tuple[int, int]
    ending: str


def register(text: str) -> tuple[Sentence, ...]:
    """The sentences of `text`, each with its register.

    A sentence is honorific if one of its predicates raises someone (申します, いらっしゃる, でございます), or one
    of its nouns or names does (お名前, 貴社) and its last predicate is not plain; polite with です, ます or a
    request in ください; else plain. What stands in quotation marks says nothing of the sentence around it.

    >>> [sentence.register for sentence in register("お名前は。先生がいらした。雨です。「行きます」と言った。")]
    ['honorific', 'honorific', 'polite', 'plain']
    """
    morphemes = parse_morphemes(text)
    return tuple(registers(text, morphemes, honorifics(text, morphemes)))


def registers(text: str, morphemes: Sequence[Morpheme], spans: Sequence[HonorificSpan]) -> Iterator[Sentence]:
    """As `register`, of a text that has been analysed already."""
    rest = list(spans)[::-1]
    for sentence in sentences(text, morphemes):
        start, end = sentence[0].start, sentence[-1].end
        inside = []
        while rest and rest[-1].start < end:
            inside.append(rest.pop())
        predicate, ending = _ending(sentence)
        outside = _outside_quotations(sentence)
        told = [s for s in inside if s.start in outside]
        evidence = tuple(s for s in told if s.tells == "honorific" or (s.tells == "noun" and ending != "常体"))
        name = "honorific" if evidence else "plain"
        if not evidence:
            evidence = tuple(s for s in told if s.tells == "polite")
            name = "polite" if evidence else "plain"
        yield Sentence(start, end, name, evidence, predicate, ending)


def document_register(sentences: Sequence[Sentence]) -> str:
    """The register of most characters of a document's sentences with a predicate; of two equals the more polite.

    >>> document_register(register("雨です。風が強いです。寒い。"))
    'polite'
    """
    weight = dict.fromkeys(REGISTERS, 0)
    for sentence in [s for s in sentences if s.ending not in ("", "体言止め")] or sentences:
        weight[sentence.register] += sentence.end - sentence.start
    return max(REGISTERS, key=lambda name: (weight[name], REGISTERS.index(name)))


def _ending(sentence: Sequence[Morpheme]) -> tuple[tuple[int, int], str]:
    """Where the last predicate of a sentence is, and its style, one of `ENDINGS` ("" if there is no word)."""
    tail = list(sentence)
    while tail and tail[-1].pos[0] in _AFTER_PREDICATE:
        tail.pop()
    if not tail:
        return (sentence[0].start, sentence[0].start), ""
    auxiliaries = len(list(takewhile(lambda m: m.pos[0] == "助動詞", reversed(tail[1:]))))
    tail = tail[len(tail) - 1 - auxiliaries :]
    request = tail[-1].lemma == "下さる" and tail[-1].cform == "命令形"
    polite = request or any(m.lemma in _POLITE for m in tail if m.pos[0] == "助動詞")
    nominal = len(tail) == 1 and tail[0].pos[0] in _NOMINAL
    unfinished = tail[-1].cform.partition("-")[0] in _UNFINISHED
    ending = "敬体" if polite else "体言止め" if nominal else "言いさし" if unfinished else "常体"
    return (tail[0].start, tail[-1].end), ending


def _outside_quotations(sentence: Sequence[Morpheme]) -> frozenset[int]:
    """The starts of the morphemes that are not in quotation marks; all, where nothing else has a predicate."""
    depth, outside, predicate = 0, [], False
    for m in sentence:
        depth += (m.surface in ("「", "『")) - (m.surface in ("」", "』"))
        if depth <= 0:
            depth = 0
            outside.append(m.start)
            predicate = predicate or m.pos[0] in ("動詞", "形容詞", "助動詞")
    return frozenset(outside if predicate else (m.start for m in sentence))
