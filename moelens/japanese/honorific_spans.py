"""Honorifics of a text: the five classes of 文化審議会『敬語の指針』(2007), found with the rules of `rules.toml`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import or_

from moelens.display import Displayed
from moelens.japanese.morphology import Morpheme, parse_morphemes
from moelens.japanese.normalization import LINE_BREAKS
from moelens.japanese.ruby import AnnotatedText, Ruby, ruby_block, ruby_html
from moelens.japanese.rules import SENTENCE_EDGE, Rule, Step, padding_bits, rulebook, rules_of, word_bits

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

    A point before a digit or a Latin letter (3.5, www.example.com) ends none.
    """
    sentence: list[Morpheme] = []
    end, stopped = 0, False
    for morpheme in morphemes:
        word = morpheme.word
        breaks = word.normal in LINE_BREAKS
        stopped = stopped and not (sentence[-1].word.normal == "．" and word.script in ("digit", "latin"))
        broken = end < morpheme.start and _LINE_BREAK.search(text, end, morpheme.start)
        if sentence and (stopped or broken) and not breaks:
            yield sentence
            sentence = []
        sentence.append(morpheme)
        end, stopped = morpheme.end, breaks or word.pos[1] == "句点"
    if sentence:
        yield sentence


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
    fitting, *heads = zip(edge, *(word_bits(m.word) for m in sentence), edge, *padding_bits(), strict=True)
    absent = ~reduce(or_, fitting)  # the steps that no word of the sentence passes
    rules = rulebook().rules
    candidates = []
    for at, (first, second, third) in enumerate(zip(heads[0], heads[1][1:], heads[2][2:], strict=False)):
        for number, required in rules_of(first & second & third):
            if not required & absent:
                candidates.append((number, at))
    taken: set[int] = set()
    for number, at in sorted(candidates):  # in the order of the rules
        rule = rules[number]
        if match := _match_at(rule, fitting, at):
            marked, words = match
            if taken.isdisjoint(marked):
                taken.update(marked)
                yield rule, range(marked.start - 1, marked.stop - 1), [sentence[i - 1] for i in words]


def _match_at(rule: Rule, fitting: Sequence[int], at: int) -> tuple[range, list[int]] | None:
    """Return the positions that a rule marks and those of its words if its pattern matches at `at`, or None."""
    pattern = rule.pattern
    if rule.layout:  # one word for each step, which leaves no choice
        for i, step in enumerate(pattern):
            if not fitting[at + i] & step.bit:
                return None
        (first, last), words = rule.layout
        return range(at + first, at + last + 1), [at + i for i in words]
    ends = _step_ends(pattern, fitting, at)
    if ends is None:
        return None
    starts = (at, *ends)
    marked = [i for i, step in enumerate(pattern) if not step.context]
    own = [j for i, step in enumerate(pattern) if step.word for j in range(starts[i], ends[i])]
    return range(starts[marked[0]], ends[marked[-1]]), own


def _step_ends(pattern: Sequence[Step], fitting: Sequence[int], at: int, first: int = 0) -> tuple[int, ...] | None:
    """Match the steps of a pattern from `first` on at position `at`, longest match first.

    Returns:
        The position after each step, or None if the steps do not match.
    """
    single = []  # most steps take exactly one morpheme, which leaves no choice
    for step in pattern[first:]:
        if step.optional or step.most > 1:
            break
        if not fitting[at] & step.bit:
            return None
        at += 1
        single.append(at)
    else:
        return tuple(single)
    limit = at
    while limit < at + step.most and fitting[limit] & step.bit:  # ends with the sentence, where no step fits
        limit += 1
    for end in range(limit, at - step.optional, -1):
        rest = _step_ends(pattern, fitting, end, first + len(single) + 1)
        if rest is not None:
            return *single, end, *rest
    return None
