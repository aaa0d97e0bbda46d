"""The rules of `rules.toml`: patterns over morphemes, read once and made quick to match."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, reduce
from importlib.resources import files
from operator import or_
from typing import Any

from moelens.errors import MoeLensError
from moelens.japanese.morphology import Word

#: The five classes: respectful, humble toward someone, courteous, polite, beautifying.
CLASSES = ("尊敬語", "謙譲語I", "謙譲語II", "丁寧語", "美化語")

#: Whom an honorific raises: the subject or the object of its predicate, the person addressed, the person named.
RAISED = ("subject", "object", "addressee", "referent")

#: What an honorific says of the sentence's register; "noun" is for names and things, which need a polite predicate.
TELLS = ("honorific", "noun", "polite", "nothing")

_RAISES = {
    "尊敬語": ("subject",),
    "謙譲語I": ("object",),
    "謙譲語II": ("addressee",),
    "丁寧語": ("addressee",),
    "美化語": (),
}
_FEATURES = ("surface", "lemma", "pos", "ctype", "cform", "reading", "goshu")
_PLAIN = ("lemma", "verb", "noun")
_HEAD = 3  # words of a match that tell whether it is worth a try
EDGE = Word("", ("文境界", "*", "*", "*"))
Test = tuple[str, bool, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Step:
    """One to `most` morphemes (none, if `optional`) that fit every test.

    A `context` step is required, but not marked; the morphemes of the `word` steps are what the honorific is made of.
    `bit` stands for the tests in the bits of `RuleBook.fits`.
    """

    bit: int
    most: int = 1
    optional: bool = False
    context: bool = False
    word: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern over the morphemes of one sentence, with its examples for and against.

    `heads` holds, for each of the first words of a match, the bits of the steps that it may fit; all bits where the
    match may have ended before. The other attributes are as in the table.
    """

    name: str
    classes: tuple[str, ...]
    pattern: tuple[Step, ...]
    yes: tuple[str, ...]
    no: tuple[str, ...]
    raises: tuple[str, ...] = ()
    plain: tuple[str, ...] | str = ()
    readings: tuple[str, ...] = ()
    tells: str = "nothing"
    double: bool = False
    heads: tuple[int, ...] = ()

    @property
    def guards(self) -> bool:
        """A rule that says nothing keeps its words away from the rules below it."""
        return not (self.classes or self.readings) and self.tells == "nothing"


@dataclass(frozen=True, slots=True)
class RuleBook:
    """The rules in order of precedence, the plain equivalents by lemma, and the version of the table."""

    version: str
    rules: tuple[Rule, ...]
    plain: Mapping[str, tuple[str, ...]]
    tests: tuple[tuple[Test, ...], ...] = field(repr=False)


@cache
def rulebook() -> RuleBook:
    """The rules of `rules.toml`.

    >>> rulebook().rules[-1].name
    'prefix'
    """
    return read_rules(files("moelens.japanese").joinpath("rules.toml").read_text("utf-8"))


def read_rules(toml: str) -> RuleBook:
    """A rule book from the text of a table such as `rules.toml`; raises `MoeLensError` naming what is wrong in it."""
    table = tomllib.loads(toml)
    bits: dict[tuple[Test, ...], int] = {}
    rules = tuple(_rule(entry, table["words"], bits) for entry in table["rule"])
    plain = {lemma: tuple(equivalents) for lemma, equivalents in table.get("plain", {}).items()}
    return RuleBook(str(table["version"]), rules, plain, tuple(bits))


def _rule(entry: Mapping[str, Any], words: Mapping[str, Sequence[str]], bits: dict[tuple[Test, ...], int]) -> Rule:
    name = str(entry["name"])
    classes = tuple(entry["classes"])
    raises = tuple(entry.get("raises", dict.fromkeys(who for c in classes for who in _RAISES.get(c, ()))))
    tells = entry.get("tells", _tells(classes))
    plain = entry.get("plain", ())
    for kind, values, allowed in (
        ("class", classes, CLASSES),
        ("raised", raises, RAISED),
        ("tells", (tells,), TELLS),
        ("plain", (plain,) if isinstance(plain, str) else (), _PLAIN),
    ):
        for wrong in (value for value in values if value not in allowed):
            raise MoeLensError(
                f"rule {name!r} has the {kind} {wrong!r}; allowed: {', '.join(allowed)}; correct rules.toml"
            )
    pattern = tuple(_step(name, step, words, bits) for step in entry["pattern"])
    return Rule(
        name,
        classes,
        pattern,
        tuple(entry["yes"]),
        tuple(entry.get("no", ())),
        raises,
        plain if isinstance(plain, str) else tuple(plain),
        tuple(entry.get("readings", ())),
        tells,
        bool(entry.get("double", False)),
        heads=tuple(_heads(pattern)),
    )


def _tells(classes: Sequence[str]) -> str:
    beyond = [c for c in classes if c not in ("丁寧語", "美化語")]
    return "honorific" if beyond else "polite" if "丁寧語" in classes else "nothing"


def _heads(pattern: Sequence[Step]) -> Iterator[int]:
    each = [(step.bit, step.optional or i > 0) for step in pattern for i in range(step.most)]  # a word each
    reached = {0}
    for _ in range(_HEAD):
        for i, (_, optional) in enumerate(each):
            if optional and i in reached:
                reached.add(i + 1)
        yield -1 if len(each) in reached else reduce(or_, (each[i][0] for i in reached))
        reached = {min(i + 1, len(each)) for i in reached}


def _step(
    rule: str, step: Mapping[str, Any], words: Mapping[str, Sequence[str]], bits: dict[tuple[Test, ...], int]
) -> Step:
    def values(value: str | Sequence[str]) -> frozenset[str]:
        listed = [value] if isinstance(value, str) else value
        return frozenset(w for v in listed for w in (words[v[1:]] if v.startswith("$") else [v]))

    tests = dict(step)
    options = {key: tests.pop(key) for key in ("most", "optional", "context", "word") if key in tests}
    pairs = [(feature, True, value) for feature, value in tests.items() if feature != "not"]
    pairs += [(feature, False, value) for feature, value in tests.get("not", {}).items()]
    for wrong in (feature for feature, _, _ in pairs if feature not in _FEATURES):
        raise MoeLensError(f"rule {rule!r} tests {wrong!r}; allowed: {', '.join(_FEATURES)}; correct rules.toml")
    key = tuple((feature, wanted, values(value)) for feature, wanted, value in pairs)
    return Step(1 << bits.setdefault(key, len(bits)), **options)


@lru_cache(maxsize=1 << 16)
def places(word: Word) -> tuple[int, ...]:
    """The bits of the steps that a word fits; then of the rules of whose matches it may be the first word, the second,
    and the third."""
    by_lemma, others = _tests_by_lemma()
    candidates = (*by_lemma.get(word.lemma, ()), *others)
    fitting = sum(bit for bit, tests in candidates if all(_holds(word, *test) for test in tests))
    return fitting, *_rules_at(fitting)


@lru_cache(maxsize=1 << 12)
def _rules_at(fitting: int) -> tuple[int, ...]:
    rules = rulebook().rules
    return tuple(
        sum(1 << i for i, rule in enumerate(rules) if rule.heads[at] < 0 or rule.heads[at] & fitting)
        for at in range(_HEAD)
    )


@cache
def beyond() -> tuple[tuple[int, ...], ...]:
    """What `places` says of the places behind a sentence, where nothing fits."""
    return ((0, *_rules_at(0)),) * (_HEAD - 1)


@cache
def _tests_by_lemma() -> tuple[dict[str, list[tuple[int, tuple[Test, ...]]]], list[tuple[int, tuple[Test, ...]]]]:
    """Tests that ask for a lemma, by that lemma; and the others. Most words are asked few of them."""
    by_lemma: dict[str, list[tuple[int, tuple[Test, ...]]]] = {}
    others = []
    for place, tests in enumerate(rulebook().tests):
        lemmas = [values for feature, wanted, values in tests if feature == "lemma" and wanted]
        for lemma in lemmas[0] if lemmas else ():
            by_lemma.setdefault(lemma, []).append((1 << place, tests))
        if not lemmas:
            others.append((1 << place, tests))
    return by_lemma, others


def _holds(word: Word, feature: str, wanted: bool, values: frozenset[str]) -> bool:
    if feature == "pos":
        found = any("-".join(word.pos[:depth]) in values for depth in (1, 2, 3, 4))
    else:
        value = getattr(word, feature)
        found = value in values
        if feature in ("ctype", "cform"):  # 五段 fits 五段-ラ行
            found = found or value.partition("-")[0] in values
    return found == wanted
