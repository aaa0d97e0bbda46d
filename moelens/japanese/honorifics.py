"""Honorifics: the five classes of 文化審議会『敬語の指針』(2007), found by the rules of `rules.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from moelens.errors import MoeLensError
from moelens.japanese.morphology import Morpheme, analyze

#: The five classes: respectful, humble toward someone, courteous, polite, beautifying.
CLASSES = ("尊敬語", "謙譲語I", "謙譲語II", "丁寧語", "美化語")

_FEATURES = ("surface", "lemma", "pos", "ctype", "cform", "reading")
_EDGE = Morpheme("", 0, 0, ("文境界", "*", "*", "*"), "", "", "", "", "", "")


@dataclass(frozen=True, slots=True)
class HonorificSpan:
    """An honorific at characters `start` to `end` (exclusive); `rule` is the name of the rule that found it."""

    start: int
    end: int
    surface: str
    classes: tuple[str, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class Step:
    """One to `most` morphemes (none, if `optional`) that fit every test; a `context` step is required, not marked."""

    tests: tuple[tuple[str, bool, frozenset[str]], ...]
    most: int = 1
    optional: bool = False
    context: bool = False

    def fits(self, morpheme: Morpheme) -> bool:
        return all((_value_in(morpheme, feature, values)) == wanted for feature, wanted, values in self.tests)


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern over the morphemes of one sentence, with its examples for and against."""

    name: str
    classes: tuple[str, ...]
    pattern: tuple[Step, ...]
    yes: tuple[str, ...]
    no: tuple[str, ...]

    def anchors(self) -> tuple[frozenset[str], ...]:
        """Sets of lemmas; a sentence that has none of one of them cannot match."""
        return tuple(
            values
            for step in self.pattern
            if not step.optional
            for feature, wanted, values in step.tests
            if feature == "lemma" and wanted
        )


def _value_in(morpheme: Morpheme, feature: str, values: frozenset[str]) -> bool:
    if feature == "pos":
        levels = morpheme.pos
        return any("-".join(levels[:depth]) in values for depth in (1, 2, 3, 4))
    value = getattr(morpheme, feature)
    if feature in ("ctype", "cform"):  # 五段 fits 五段-ラ行
        return value in values or value.partition("-")[0] in values
    return value in values


@dataclass(frozen=True, slots=True)
class RuleBook:
    """The rules in order of precedence, and the version of the table they came from."""

    version: str
    rules: tuple[Rule, ...]


@cache
def rulebook() -> RuleBook:
    """The rules of `rules.toml`, read once.

    >>> rulebook().rules[-1].name
    'prefix'
    """
    return read_rules(files("moelens.japanese").joinpath("rules.toml").read_text("utf-8"))


def read_rules(toml: str) -> RuleBook:
    """A rule book from the text of a table such as `rules.toml`; raises `MoeLensError` naming what is wrong in it."""
    table = tomllib.loads(toml)
    rules = tuple(_rule(entry, table["words"]) for entry in table["rule"])
    return RuleBook(str(table["version"]), rules)


def _rule(entry: Mapping[str, Any], words: Mapping[str, Sequence[str]]) -> Rule:
    name = str(entry["name"])
    for wrong in (c for c in entry["classes"] if c not in CLASSES):
        raise MoeLensError(f"rule {name!r} has the class {wrong!r}; allowed: {', '.join(CLASSES)}; correct rules.toml")
    steps = tuple(_step(name, step, words) for step in entry["pattern"])
    return Rule(name, tuple(entry["classes"]), steps, tuple(entry["yes"]), tuple(entry.get("no", ())))


def _step(rule: str, step: Mapping[str, Any], words: Mapping[str, Sequence[str]]) -> Step:
    def values(value: str | Sequence[str]) -> frozenset[str]:
        listed = [value] if isinstance(value, str) else value
        return frozenset(w for v in listed for w in (words[v[1:]] if v.startswith("$") else [v]))

    tests = dict(step)
    most, optional, context = (tests.pop(key, d) for key, d in (("most", 1), ("optional", False), ("context", False)))
    pairs = [(feature, True, value) for feature, value in tests.items() if feature != "not"]
    pairs += [(feature, False, value) for feature, value in tests.get("not", {}).items()]
    for wrong in (feature for feature, _, _ in pairs if feature not in _FEATURES):
        raise MoeLensError(f"rule {rule!r} tests {wrong!r}; allowed: {', '.join(_FEATURES)}; correct rules.toml")
    return Step(tuple((f, wanted, values(v)) for f, wanted, v in pairs), most, optional, context)


def honorifics(text: str, morphemes: Sequence[Morpheme] | None = None) -> tuple[HonorificSpan, ...]:
    """The honorifics of `text` in order of their place, none overlapping; one may have several classes.

    Earlier rules of the table win. Pass `morphemes` where the text has been analysed already.

    >>> [(s.surface, s.classes) for s in honorifics("お届けいたします")]
    [('お届けいたし', ('謙譲語I', '謙譲語II')), ('ます', ('丁寧語',))]
    """
    found: list[HonorificSpan] = []
    for sentence in _sentences(text, analyze(text) if morphemes is None else morphemes):
        for rule, first, last in _claims(sentence):
            if rule.classes:
                start, end = sentence[first].start, sentence[last].end
                found.append(HonorificSpan(start, end, text[start:end], rule.classes, rule.name))
    return tuple(sorted(found, key=lambda span: span.start))


def _sentences(text: str, morphemes: Sequence[Morpheme]) -> Iterator[list[Morpheme]]:
    """The morphemes sentence by sentence: a full stop or a line break ends one."""
    sentence: list[Morpheme] = []
    for morpheme in morphemes:
        if sentence and "\n" in text[sentence[-1].end : morpheme.start]:
            yield sentence
            sentence = []
        sentence.append(morpheme)
        if morpheme.pos[1] == "句点":
            yield sentence
            sentence = []
    if sentence:
        yield sentence


@cache
def _anchored_rules() -> tuple[tuple[Rule, tuple[frozenset[str], ...]], ...]:
    return tuple((rule, rule.anchors()) for rule in rulebook().rules)


def _claims(sentence: Sequence[Morpheme]) -> Iterator[tuple[Rule, int, int]]:
    """Each rule that matches, with the first and last morpheme it marks; a morpheme is marked once."""
    lemmas = {m.lemma for m in sentence}
    padded = [_EDGE, *sentence, _EDGE]
    taken: set[int] = set()
    for rule, anchors in _anchored_rules():
        if any(anchor.isdisjoint(lemmas) for anchor in anchors):
            continue
        for at in range(len(padded)):
            span = _match(rule.pattern, padded, at)
            if span and taken.isdisjoint(span):
                taken.update(span)
                yield rule, span[0] - 1, span[-1] - 1


def _match(pattern: Sequence[Step], row: Sequence[Morpheme], at: int) -> range:
    """The places in `row` that the pattern marks when it starts at `at`; an empty range if it does not match."""
    cuts = next(_cuts(pattern, row, at), None)
    if cuts is None:
        return range(0)
    marked = [i for i, step in enumerate(pattern) if not step.context]
    starts = (at, *cuts)
    return range(starts[marked[0]], cuts[marked[-1]])


def _cuts(pattern: Sequence[Step], row: Sequence[Morpheme], at: int) -> Iterator[tuple[int, ...]]:
    """Every way to lay the pattern from `at` on, longest first: the place after each step."""
    if not pattern:
        yield ()
        return
    step, *rest = pattern
    reach = 0
    while reach < step.most and at + reach < len(row) and step.fits(row[at + reach]):
        reach += 1
    for length in range(reach, -1 if step.optional else 0, -1):
        for tail in _cuts(rest, row, at + length):
            yield (at + length, *tail)
