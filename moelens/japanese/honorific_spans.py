"""Honorifics of a text: the five classes of 文化審議会『敬語の指針』(2007), found with the rules of `rules.toml`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import and_, or_

from moelens.display import Displayed
from moelens.japanese.morphology import Morpheme, parse_morphemes
from moelens.japanese.normalization import LINE_BREAKS
from moelens.japanese.ruby import AnnotatedText, Ruby, ruby_block, ruby_html
from moelens.japanese.rules import SENTENCE_EDGE, Rule, padding_bits, rulebook, rules_of, word_bits

_LINE_BREAK = re.compile(f"[{LINE_BREAKS}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class HonorificSpan(Displayed):
    """An honorific in its place in a text.

    Attributes:
        start: Index of the first character.
        end: Index after the last character.
        surface: The characters from `start` to `end`.
        classes: The classes from `CLASSES` that are certain; empty if they depend on the situation (see `readings`).
        rule: Name of the rule that found the honorific.
        raises: Whom it raises: "subject", "object", "addressee" or "referent" (the person whom a noun names, or to whom
            its referent belongs).
        plain: Plain equivalents in dictionary form; several if the honorific replaces several words.
        readings: Possible readings if the form is ambiguous (来られる: 尊敬, 可能, 受身), the most likely first.
        double: Whether it is 二重敬語; the accepted double forms (お召し上がりになる, お伺いする) are not.
        manual: Whether it is マニュアル敬語, a set form of shops (お釣りになります for お釣りです).
        tells: What it implies for the register of its sentence: "honorific", "noun" (honorific unless the predicate is
            plain), "polite" or "nothing".
    """

    start: int
    end: int
    surface: str
    classes: tuple[str, ...]
    rule: str
    raises: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    readings: tuple[str, ...] = ()
    double: bool = False
    manual: bool = False
    tells: str = "nothing"

    @property
    def certain(self) -> bool:
        """Whether the form has a single reading."""
        return not self.readings

    def _repr_html_(self) -> str:
        return ruby_block(ruby_html(self.surface, self.ruby()))

    def ruby(self) -> Ruby:
        """Return the annotation for notebooks: the classes, in the colour of the first."""
        details = {
            "rule": self.rule,
            "raises": ", ".join(self.raises),
            "plain": ", ".join(self.plain),
            "possible readings": ", ".join(self.readings),
            "double": "二重敬語" if self.double else "",
            "manual": "マニュアル敬語" if self.manual else "",
        }
        return Ruby("・".join(self.classes) or "？", (*self.classes, "")[0], details)


def honorifics(text: str, morphemes: Sequence[Morpheme] | None = None) -> AnnotatedText[HonorificSpan]:
    """Find the honorifics of a text.

    Where several rules match the same morpheme, the first one in the table applies. A span may have several classes.

    Args:
        text: Text to analyse.
        morphemes: The morphemes of `text`, if they are known already; by default the text is analysed with fugashi.

    Returns:
        The honorifics in order, without overlap. Notebooks show them as coloured text.

    Example:
        >>> [(s.surface, s.classes, s.plain) for s in honorifics("お届けいたします")]
        [('お届けいたし', ('謙譲語I', '謙譲語II'), ('届ける',)), ('ます', ('丁寧語',), ())]
    """
    found: list[HonorificSpan] = []
    for sentence in split_sentences(text, parse_morphemes(text) if morphemes is None else morphemes):
        found += (
            _span(text, rule, sentence[marked.start : marked.stop], words)
            for rule, marked, words in _matches(sentence)
            if not rule.is_guard
        )
    return AnnotatedText(text, sorted(found, key=lambda span: span.start))


def split_sentences(text: str, morphemes: Sequence[Morpheme]) -> Iterator[list[Morpheme]]:
    """Yield the morphemes of each sentence; a full stop or a line break ends a sentence.

    A point before or after a digit or a Latin letter (3.5, www.example.com, Mr. 田中) ends none.
    """
    lines = _LINE_BREAK.search(text) is not None
    begin, stopped = 0, False
    for i, morpheme in enumerate(morphemes):
        word, breaks = morpheme.word, False
        if stopped or lines:
            breaks = word.normal in LINE_BREAKS
            if stopped and morphemes[i - 1].normal == "．":
                stopped = not any(m.script in ("digit", "latin") for m in morphemes[max(i - 2, 0) : i + 1])
            broken = i and _LINE_BREAK.search(text, morphemes[i - 1].end, morpheme.start)
            if i and (stopped or broken) and not breaks:
                yield list(morphemes[begin:i])
                begin = i
        stopped = breaks or word.pos[1] == "句点"
    if begin < len(morphemes):
        yield list(morphemes[begin:])


def _span(text: str, rule: Rule, marked: Sequence[Morpheme], words: Sequence[Morpheme]) -> HonorificSpan:
    start, end = marked[0].start, marked[-1].end
    return HonorificSpan(
        start=start,
        end=end,
        surface=text[start:end],
        classes=rule.classes,
        rule=rule.name,
        raises=rule.raises,
        plain=_plain(rule, marked, words),
        readings=rule.readings,
        double=rule.double,
        manual=rule.manual,
        tells=rule.tells,
    )


def _plain(rule: Rule, marked: Sequence[Morpheme], words: Sequence[Morpheme]) -> tuple[str, ...]:
    """Return the plain equivalents of the marked morphemes: those that the rule lists, or those of its words."""
    if not isinstance(rule.plain, str):
        return rule.plain
    words = words or marked
    written = "".join(m.normal for m in words)
    if rule.plain == "noun":
        return (written,)
    table = rulebook().plain
    candidates = words if rule.plain == "verb" else marked  # お届けいたす: the plain form of 届ける, not of 致す
    listed = next((table[m.lemma] for m in candidates if m.lemma in table), None)
    return (_dictionary_form(written),) if listed is None else listed


@lru_cache(maxsize=1 << 12)
def _dictionary_form(stem: str) -> str:
    """Return the dictionary form of the verb that a stem belongs to.

    >>> [_dictionary_form(stem) for stem in ("待ち", "届け", "案内", "読ま")]
    ['待つ', '届ける', '案内する', '読む']
    """
    for ending in ("ます", "ない"):
        found = parse_morphemes(stem + ending)
        if len(found) > 1 and found[-1].surface == ending and found[-2].pos[0] == "動詞":
            return f"{stem[: found[-2].start]}{found[-2].base}"
    return stem + "する"


def _matches(sentence: Sequence[Morpheme]) -> Iterator[tuple[Rule, range, list[Morpheme]]]:
    """Yield each rule that matches, the positions that it marks, and its words; each morpheme is marked once."""
    edge = word_bits(SENTENCE_EDGE)
    bits = [word_bits(m.word) for m in sentence]
    fitting, first, second, third = zip(edge, *bits, edge, *padding_bits(), strict=True)
    possible = map(and_, map(and_, first, second[1:]), third[2:])
    starts = [(at, numbers) for at, numbers in enumerate(possible) if numbers]  # where rules may match, and which
    if not starts:
        return
    absent = ~reduce(or_, fitting)  # the steps that no word of the sentence passes
    book = rulebook()
    fitting += (0,) * book.longest  # no step takes what follows the sentence
    candidates = [
        (number, at) for at, numbers in starts for number, required in rules_of(numbers) if not required & absent
    ]
    taken: set[int] = set()
    for number, at in sorted(candidates):  # in the order of the rules
        rule = book.rules[number]
        for steps, begin, end, words in rule.layouts:
            if all(map(and_, steps, fitting[at : at + len(steps)])):
                marked = range(at + begin - 1, at + end - 1)  # the edge of the sentence precedes its words
                if taken.isdisjoint(marked):
                    taken.update(marked)
                    yield rule, marked, [sentence[at + i - 1] for i in words]
                break
