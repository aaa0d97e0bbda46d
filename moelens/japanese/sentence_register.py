"""The register of each sentence of a text (plain, polite or honorific) with the evidence for it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from moelens.japanese.honorific_spans import HonorificSpan, honorifics, split_sentences
from moelens.japanese.morphology import Morpheme, parse_morphemes
from moelens.japanese.normalization import normalize

#: The registers, from the least to the most polite.
REGISTERS = ("plain", "polite", "honorific")

#: The style of the end of a sentence: polite (です・ます・ください), plain, unfinished, or a noun without a predicate.
ENDINGS = ("敬体", "常体", "言いさし", "体言止め")

_UNFINISHED = ("連用形", "仮定形", "未然形")
_AFTER_PREDICATE = ("助詞", "補助記号", "記号", "空白")
_NOMINAL = ("名詞", "代名詞", "接尾辞", "形状詞", "副詞", "感動詞", "接続詞", "連体詞", "接頭辞")
_POLITE = ("です", "ます")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A sentence with its register.

    Attributes:
        start: Index of the first character.
        end: Index after the last character.
        register: One of `REGISTERS`.
        evidence: The honorifics that decide the register; empty for a plain sentence.
        predicate: Start and end of the last predicate with the auxiliaries that follow it.
        ending: Style of the last predicate, one of `ENDINGS`; "" for a sentence without words.
        length: Number of characters in one form (see `normalize`), so that it does not depend on how they are encoded.
    """

    start: int
    end: int
    register: str
    evidence: tuple[HonorificSpan, ...]
    predicate: tuple[int, int]
    ending: str
    length: int


def register(text: str) -> tuple[Sentence, ...]:
    """Find the register of each sentence of a text.

    A sentence is honorific if one of its predicates is an honorific (申します, いらっしゃる, でございます), or if one
    of its nouns or names is (お名前, 貴社) and its last predicate is not plain. Otherwise it is polite if it contains
    です, ます or a request with ください, and plain if not. Words in quotation marks do not count for the sentence
    around them.

    Args:
        text: Text to analyse.

    Returns:
        The sentences in order.

    Example:
        >>> [sentence.register for sentence in register("お名前は。先生がいらした。雨です。「行きます」と言った。")]
        ['honorific', 'honorific', 'polite', 'plain']
    """
    morphemes = parse_morphemes(text)
    return tuple(sentence_registers(text, morphemes, honorifics(text, morphemes)))


def sentence_registers(text: str, morphemes: Sequence[Morpheme], spans: Sequence[HonorificSpan]) -> Iterator[Sentence]:
    """Yield what `register` returns, for a text whose morphemes and honorifics are known."""
    rest = list(spans)[::-1]
    places = normalize(text).starts
    for sentence in split_sentences(text, morphemes):
        start, end = sentence[0].start, sentence[-1].end
        inside = []
        while rest and rest[-1].start < end:
            inside.append(rest.pop())
        predicate, ending = _ending(sentence)
        outside = _outside_quotations(sentence)
        counted = [s for s in inside if s.start in outside]
        evidence = tuple(s for s in counted if s.tells == "honorific" or (s.tells == "noun" and ending != "常体"))
        name = "honorific" if evidence else "plain"
        if not evidence:
            evidence = tuple(s for s in counted if s.tells == "polite")
            name = "polite" if evidence else "plain"
        yield Sentence(
            start=start,
            end=end,
            register=name,
            evidence=evidence,
            predicate=predicate,
            ending=ending,
            length=bisect_left(places, end) - bisect_left(places, start),
        )


def document_register(sentences: Sequence[Sentence]) -> str:
    """Return the register that covers the most characters of a document's sentences.

    Only sentences with a predicate count, unless there are none. Of two registers with equally many characters, the
    more polite one is returned.

    Example:
        >>> document_register(register("雨です。風が強いです。寒い。"))
        'polite'
    """
    return heaviest_register(register_weights(sentences))


def register_weights(sentences: Iterable[Sentence]) -> Counter[tuple[bool, str]]:
    """Return the characters of sentences by whether they have a predicate, and by register."""
    weights: Counter[tuple[bool, str]] = Counter()
    for sentence in sentences:
        weights[sentence.ending not in ("", "体言止め"), sentence.register] += sentence.length
    return weights


def heaviest_register(weights: Mapping[tuple[bool, str], int]) -> str:
    """Return what `document_register` returns, from `register_weights`, which may be added up over parts of a text."""
    predicate = any(has for has, _ in weights)
    return max(REGISTERS, key=lambda name: (weights.get((predicate, name), 0), REGISTERS.index(name)))


def _ending(sentence: Sequence[Morpheme]) -> tuple[tuple[int, int], str]:
    """Return the place of the last predicate of a sentence, and its style ("" for a sentence without words)."""
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
    if polite:
        ending = "敬体"
    elif nominal:
        ending = "体言止め"
    else:
        ending = "言いさし" if unfinished else "常体"
    return (tail[0].start, tail[-1].end), ending


def _outside_quotations(sentence: Sequence[Morpheme]) -> frozenset[int]:
    """Return the starts of the morphemes outside quotation marks, or of all if those include no predicate."""
    depth, outside, predicate = 0, [], False
    for m in sentence:
        if m.normal in ("「", "『"):
            depth += 1
        elif m.normal in ("」", "』"):
            depth = max(depth - 1, 0)
        if depth == 0:
            outside.append(m.start)
            predicate = predicate or m.pos[0] in ("動詞", "形容詞", "助動詞")
    return frozenset(outside if predicate else (m.start for m in sentence))
