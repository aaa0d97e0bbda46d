"""Honorifics: the five classes of 文化審議会『敬語の指針』(2007), found by the rules of `rules.toml`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from moelens.display import Displayed
from moelens.japanese.morphology import Morpheme, parse_morphemes
from moelens.japanese.ruby import AnnotatedText, Ruby, line, ruby_html
from moelens.japanese.rules import CLASSES, EDGE, Rule, Step, beyond, places, rulebook

__all__ = ["CLASSES", "HonorificSpan", "honorifics", "sentences"]


@dataclass(frozen=True, slots=True)
class HonorificSpan(Displayed):
    """An honorific at characters `start` to `end` (exclusive).

    Attributes:
        surface: the text from `start` to `end`.
        classes: the classes it has for certain, of `CLASSES`; none where only the situation tells (`readings`).
        rule: the name of the rule that found it.
        raises: whom it raises: "subject", "object", "addressee", or "referent" (the person a noun names or belongs to).
        plain: what would be said without it, in dictionary form; several where it stands for several words.
        readings: what it may be, if that is not certain (来られる: 尊敬, 可能, 受身), the likeliest first.
        double: it is 二重敬語; the sanctioned double forms (お召し上がりになる, お伺いする) are not.
        tells: what it says of the register of its sentence: "honorific", "noun" (honorific, if the predicate is not
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
    tells: str = "nothing"

    @property
    def certain(self) -> bool:
        return not self.readings

    def _repr_html_(self) -> str:
        return line(ruby_html(self.surface, self.ruby()))

    def ruby(self) -> Ruby:
        details = {
            "rule": self.rule,
            "raises": ", ".join(self.raises),
            "plain": ", ".join(self.plain),
            "or": ", ".join(self.readings),
            "double": "二重敬語" if self.double else "",
        }
        return Ruby("・".join(self.classes) or "？", (*self.classes, "")[0], details)


def honorifics(text: str, morphemes: Sequence[Morpheme] | None = None) -> AnnotatedText[HonorificSpan]:
    """The honorifics of `text` in order of their place, none overlapping; one may have several classes.
    A notebook shows them as coloured text.

    Earlier rules of the table win. Pass `morphemes` where the text has been analysed already.

    >>> [(s.surface, s.classes, s.plain) for s in honorifics("お届けいたします")]
    [('お届けいたし', ('謙譲語I', '謙譲語II'), ('届ける',)), ('ます', ('丁寧語',), ())]
    """
    found: list[HonorificSpan] = []
    for sentence in sentences(text, parse_morphemes(text) if morphemes is None else morphemes):
        found += (
            _span(text, rule, sentence[span.start : span.stop], words)
            for rule, span, words in _claims(sentence)
            if not rule.guards
        )
    return AnnotatedText(text, sorted(found, key=lambda span: span.start))


def sentences(text: str, morphemes: Sequence[Morpheme]) -> Iterator[list[Morpheme]]:
    """The morphemes sentence by sentence: a full stop or a line break ends one."""
    sentence: list[Morpheme] = []
    end = 0
    for morpheme in morphemes:
        if sentence and end < morpheme.start and "\n" in text[end : morpheme.start]:
            yield sentence
            sentence = []
        sentence.append(morpheme)
        end = morpheme.end
        if morpheme.word.pos[1] == "句点":
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _span(text: str, rule: Rule, marked: Sequence[Morpheme], words: Sequence[Morpheme]) -> HonorificSpan:
    start, end = marked[0].start, marked[-1].end
    return HonorificSpan(
        start,
        end,
        text[start:end],
        rule.classes,
        rule.name,
        rule.raises,
        _plain(rule, marked, words),
        rule.readings,
        rule.double,
        rule.tells,
    )


def _plain(rule: Rule, marked: Sequence[Morpheme], words: Sequence[Morpheme]) -> tuple[str, ...]:
    """What the marked morphemes stand for, as the rule says: a list, or from its words."""
    if not isinstance(rule.plain, str):
        return rule.plain
    words = words or marked
    written = "".join(m.surface for m in words)
    if rule.plain == "noun":
        return (written,)
    table = rulebook().plain
    asked = words if rule.plain == "verb" else marked  # お届けいたす: of 届ける, not of 致す
    known = next((table[m.lemma] for m in asked if m.lemma in table), None)
    if known is not None:
        return known
    return (dictionary_form(written),)


@lru_cache(maxsize=1 << 12)
def dictionary_form(stem: str) -> str:
    """The verb that a stem belongs to, in its dictionary form.

    >>> [dictionary_form(stem) for stem in ("待ち", "届け", "案内", "読ま")]
    ['待つ', '届ける', '案内する', '読む']
    """
    for ending in ("ます", "ない"):
        found = parse_morphemes(stem + ending)
        if len(found) > 1 and found[-1].surface == ending and found[-2].pos[0] == "動詞":
            return f"{stem[: found[-2].start]}{found[-2].base}"
    return stem + "する"


def _claims(sentence: Sequence[Morpheme]) -> Iterator[tuple[Rule, range, list[Morpheme]]]:
    """Each rule that matches, the places it marks and the morphemes of its words; a morpheme is marked once."""
    edge = places(EDGE)
    fitting, *heads = zip(edge, *(places(m.word) for m in sentence), edge, *beyond(), strict=True)
    tries = []
    for at, (first, second, third) in enumerate(zip(heads[0], heads[1][1:], heads[2][2:], strict=False)):
        possible = first & second & third
        while possible:
            bit = possible & -possible
            possible ^= bit
            tries.append((bit.bit_length() - 1, at))
    taken: set[int] = set()
    rules = rulebook().rules
    for number, at in sorted(tries):  # the earliest rule first
        rule = rules[number]
        if laid := _lay(rule.pattern, fitting, at):
            marked, words = laid
            if taken.isdisjoint(marked):
                taken.update(marked)
                yield rule, range(marked.start - 1, marked.stop - 1), [sentence[i - 1] for i in words]


def _lay(pattern: Sequence[Step], row: Sequence[int], at: int) -> tuple[range, list[int]] | None:
    """The places in `row` that the pattern marks when it starts at `at`, and those of its words."""
    cuts = _cuts(pattern, row, at)
    if cuts is None:
        return None
    starts = (at, *cuts)
    marked = [i for i, step in enumerate(pattern) if not step.context]
    words = [j for i, step in enumerate(pattern) if step.word for j in range(starts[i], cuts[i])]
    return range(starts[marked[0]], cuts[marked[-1]]), words


def _cuts(pattern: Sequence[Step], row: Sequence[int], at: int, i: int = 0) -> tuple[int, ...] | None:
    """The pattern's steps from `i` on laid from `at` on, the longest way first: the place after each step."""
    single = []  # most steps are one morpheme, and leave no choice
    for step in pattern[i:]:
        if step.optional or step.most > 1:
            break
        if not row[at] & step.bit:
            return None
        at += 1
        single.append(at)
    else:
        return tuple(single)
    reach = at
    while reach < at + step.most and row[reach] & step.bit:  # nothing fits beyond the sentence
        reach += 1
    for end in range(reach, at - step.optional, -1):
        tail = _cuts(pattern, row, end, i + len(single) + 1)
        if tail is not None:
            return *single, end, *tail
    return None
