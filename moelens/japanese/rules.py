"""The rules of `rules.toml`: patterns over morphemes, read once and prepared for fast matching."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache, reduce
from importlib.resources import files
from itertools import accumulate, product
from operator import or_
from typing import Any

from moelens.errors import MoeLensError
from moelens.japanese.morphology import Word, parse_morphemes

#: The five classes: respectful, humble toward someone, courteous, polite, beautifying.
CLASSES = ("尊敬語", "謙譲語I", "謙譲語II", "丁寧語", "美化語")

#: Whom an honorific raises: the subject or the object of its predicate, the person addressed, or the person named.
RAISED = ("subject", "object", "addressee", "referent")

#: The word that stands for the start and the end of a sentence in a pattern.
SENTENCE_EDGE = Word(surface="", normal="", pos=("文境界", "*", "*", "*"))

# What an honorific implies for the register of its sentence; "noun" marks names and things, which imply an honorific
# register only together with a polite predicate.
_TELLS = ("honorific", "noun", "polite", "nothing")
_RAISED_BY_CLASS = {
    "尊敬語": ("subject",),
    "謙譲語I": ("object",),
    "謙譲語II": ("addressee",),
    "丁寧語": ("addressee",),
    "美化語": (),
}
_FEATURES = ("surface", "lemma", "pos", "ctype", "cform", "reading", "goshu")
_PLAIN = ("lemma", "verb", "noun")
_HEAD = 3  # the first words of a match, by which rules that cannot match are ruled out
_left_out: frozenset[str] = frozenset()  # see `words_left_out`
# The bits of the steps for successive words, the first word that is marked, the one after the last, the rule's words.
_Layout = tuple[tuple[int, ...], int, int, tuple[int, ...]]
_Test = tuple[str, bool, frozenset[str]]  # a feature, whether it has to have one of the values, the values


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a pattern: one or more successive morphemes that pass all its tests.

    Attributes:
        bit: The bit that stands for the step's tests; see `word_bits`.
        most: The largest number of morphemes that the step takes.
        optional: Whether the step may take no morpheme.
        context: Whether the morphemes are required but not part of the honorific.
        word: Whether the morphemes are the word that the honorific is made of (the 待ち of お待ちする).
    """

    bit: int
    most: int = 1
    optional: bool = False
    context: bool = False
    word: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A pattern over the morphemes of one sentence, with examples for and against it.

    Attributes:
        heads: For each of the first words of a match, the bits of the steps that may take it; all bits if the match
            may end before that word.
        required: The bits of the steps that take at least one word.
        layouts: The ways to lay the steps on words, the longest first.

    The other attributes are the entries of `rules.toml`, which explains them.
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
    manual: bool = False
    heads: tuple[int, ...] = ()
    required: int = 0
    layouts: tuple[_Layout, ...] = ()

    @property
    def is_guard(self) -> bool:
        """Whether the rule finds no honorific and only keeps its words from the rules below it."""
        return not (self.classes or self.readings) and self.tells == "nothing"


@dataclass(frozen=True, slots=True)
class RuleBook:
    """A whole table of rules.

    Attributes:
        version: The version of the table.
        rules: The rules in order of precedence.
        plain: The plain equivalents of honorific words, by lemma.
        tests: The tests of the steps; a test's index is the number of its bit.
        longest: The largest number of words that a rule takes.
    """

    version: str
    rules: tuple[Rule, ...]
    plain: Mapping[str, tuple[str, ...]]
    tests: tuple[tuple[_Test, ...], ...] = field(repr=False)
    longest: int = 0


@cache
def rulebook() -> RuleBook:
    """Return the rules of `rules.toml`.

    Example:
        >>> rulebook().rules[-1].name
        'prefix'
    """
    return read_rules(files("moelens.japanese").joinpath("rules.toml").read_text("utf-8"))


@contextmanager
def words_left_out(words: Iterable[str]) -> Iterator[None]:
    """Within the context, no rule names these words as the word that its honorific is made of.

    The lists of verbs and nouns in `rules.toml` then lack them, which tells how the rules do on words that nobody
    listed. Words that form the construction itself (the なる of お待ちになる) remain.

    Args:
        words: Lemmas of UniDic.

    Example:
        >>> from moelens.japanese import honorifics
        >>> with words_left_out(["茶"]):
        ...     honorifics("お茶を飲む")[0].classes
        ('尊敬語',)
    """
    global _left_out
    before = _left_out
    _left_out = before | frozenset(words)
    try:
        _forget_rules()
        yield
    finally:
        _left_out = before
        _forget_rules()


def _forget_rules() -> None:
    for function in (rulebook, word_bits, _with_rules, rules_of, padding_bits, _tests_by_lemma):
        function.cache_clear()


def read_rules(toml: str) -> RuleBook:
    """Read a rule book from the text of a table such as `rules.toml`.

    Raises:
        MoeLensError: If a rule has a value or tests a feature that does not exist.
    """
    table = tomllib.loads(toml)
    bits: dict[tuple[_Test, ...], int] = {}
    rules = tuple(_read_rule(entry, table["words"], bits) for entry in table["rule"])
    plain = {lemma: tuple(equivalents) for lemma, equivalents in table.get("plain", {}).items()}
    longest = max((len(steps) for rule in rules for steps, *_ in rule.layouts), default=0)
    return RuleBook(str(table["version"]), rules, plain, tuple(bits), longest)


def _read_rule(
    entry: Mapping[str, Any], words: Mapping[str, Sequence[str]], bits: dict[tuple[_Test, ...], int]
) -> Rule:
    name = str(entry["name"])
    classes = tuple(entry["classes"])
    raises = tuple(entry.get("raises", dict.fromkeys(who for c in classes for who in _RAISED_BY_CLASS.get(c, ()))))
    tells = entry.get("tells", _default_tells(classes))
    plain = entry.get("plain", ())
    for key, values, allowed in (
        ("classes", classes, CLASSES),
        ("raises", raises, RAISED),
        ("tells", (tells,), _TELLS),
        ("plain", (plain,) if isinstance(plain, str) else (), _PLAIN),
    ):
        for value in values:
            if value not in allowed:
                raise MoeLensError(
                    f"rule {name!r}: expected {key} to be one of {', '.join(allowed)}, got {value!r};"
                    " correct rules.toml"
                )
    pattern = tuple(_read_step(name, step, words, bits) for step in entry["pattern"])
    return Rule(
        name=name,
        classes=classes,
        pattern=pattern,
        yes=tuple(entry["yes"]),
        no=tuple(entry.get("no", ())),
        raises=raises,
        plain=plain if isinstance(plain, str) else tuple(plain),
        readings=tuple(entry.get("readings", ())),
        tells=tells,
        double=bool(entry.get("double", False)),
        manual=bool(entry.get("manual", False)),
        heads=tuple(_heads(pattern)),
        required=reduce(or_, (step.bit for step in pattern if not step.optional)),
        layouts=tuple(_layouts(pattern)),
    )


def _is_verbal(word: Word) -> bool:
    """Whether a word names an act: a verb, a noun that する makes a verb of, or a noun that is the stem of a verb.

    Example:
        >>> from moelens.japanese import parse_morphemes
        >>> [_is_verbal(parse_morphemes(noun)[0].word) for noun in ("利用", "返し", "話", "席", "子")]
        [True, True, True, False, False]
    """
    if word.pos[0] == "動詞" or "サ変" in word.pos[2]:
        return True
    if word.pos[0] not in ("名詞", "接尾辞"):  # UniDic reads the 建て of お建てになる as a suffix
        return word.pos[0] == "形状詞"
    stems = (word.normal,) if word.script != "kanji" else (word.normal, word.normal + "し")  # 話 for 話し
    return any(_is_stem(stem) for stem in stems)


def _is_stem(stem: str) -> bool:
    *found, last = parse_morphemes(stem + "ます")
    return last.normal == "ます" and [m.pos[0] for m in found] in (["動詞"], ["動詞", "助動詞"])  # 返し, 知らせ


def _default_tells(classes: Sequence[str]) -> str:
    if any(c not in ("丁寧語", "美化語") for c in classes):
        return "honorific"
    return "polite" if "丁寧語" in classes else "nothing"


def _heads(pattern: Sequence[Step]) -> Iterator[int]:
    """Yield `Rule.heads` of a pattern."""
    slots = [(step.bit, step.optional or i > 0) for step in pattern for i in range(step.most)]  # one morpheme each
    reached = {0}
    for _ in range(_HEAD):
        for i, (_, optional) in enumerate(slots):
            if optional and i in reached:
                reached.add(i + 1)
        yield -1 if len(slots) in reached else reduce(or_, (slots[i][0] for i in reached))
        reached = {min(i + 1, len(slots)) for i in reached}


def _layouts(pattern: Sequence[Step]) -> Iterator[_Layout]:
    """Yield `Rule.layouts` of a pattern."""
    for lengths in product(*(range(step.most, -step.optional, -1) for step in pattern)):
        steps = [step for step, length in zip(pattern, lengths, strict=True) for _ in range(length)]
        ends = list(accumulate(lengths))
        marked = [i for i, step in enumerate(pattern) if not step.context]
        first, last = marked[0], marked[-1]
        words = tuple(i for i, step in enumerate(steps) if step.word)
        yield tuple(step.bit for step in steps), ends[first] - lengths[first], ends[last], words


def _read_step(
    rule: str, step: Mapping[str, Any], words: Mapping[str, Sequence[str]], bits: dict[tuple[_Test, ...], int]
) -> Step:
    def values(value: str | Sequence[str]) -> frozenset[str]:
        listed = [value] if isinstance(value, str) else value
        named = frozenset(w for v in listed for w in (words[v[1:]] if v.startswith("$") else [v]))
        return named - _left_out if step.get("word") else named

    tests = dict(step)
    options = {key: tests.pop(key) for key in ("most", "optional", "context", "word") if key in tests}
    verbal = tests.pop("verbal", False)
    conditions = [(feature, True, value) for feature, value in tests.items() if feature != "not"]
    conditions += [(feature, False, value) for feature, value in tests.get("not", {}).items()]
    for feature, _, _ in conditions:
        if feature not in _FEATURES:
            raise MoeLensError(
                f"rule {rule!r}: expected a step to test {', '.join(_FEATURES)}, got {feature!r}; correct rules.toml"
            )
    key = tuple((feature, wanted, values(value)) for feature, wanted, value in conditions)
    key += (("verbal", True, frozenset()),) if verbal else ()
    return Step(bit=1 << bits.setdefault(key, len(bits)), **options)


@lru_cache(maxsize=1 << 16)
def word_bits(word: Word) -> tuple[int, ...]:
    """Return which steps may take a word, and which rules may match there.

    Returns:
        Four sets of bits: the steps whose tests the word passes, and the rules (bit i for rule i) in whose matches it
        may be the first, the second and the third word.
    """
    by_lemma, others = _tests_by_lemma()
    candidates = (*by_lemma.get(word.lemma, ()), *others)
    fitting = sum(bit for bit, tests in candidates if all(_passes(word, *test) for test in tests))
    return _with_rules(fitting)


@lru_cache(maxsize=1 << 12)
def _with_rules(fitting: int) -> tuple[int, ...]:
    """Return `word_bits` of a word that passes the tests of these steps; many words share it."""
    rules = rulebook().rules
    return fitting, *(
        sum(1 << i for i, rule in enumerate(rules) if rule.heads[position] < 0 or rule.heads[position] & fitting)
        for position in range(_HEAD)
    )


@lru_cache(maxsize=1 << 14)
def rules_of(bits: int) -> tuple[tuple[int, int], ...]:
    """Return the rules in a set of bits: the number and the `required` of each, in order."""
    return tuple((i, rule.required) for i, rule in enumerate(rulebook().rules) if bits >> i & 1)


@cache
def padding_bits() -> tuple[tuple[int, ...], ...]:
    """Return the `word_bits` of the positions after the end of a sentence, which no step takes."""
    return (_with_rules(0),) * (_HEAD - 1)


@cache
def _tests_by_lemma() -> tuple[dict[str, list[tuple[int, tuple[_Test, ...]]]], list[tuple[int, tuple[_Test, ...]]]]:
    """Return the tests that require a lemma, by that lemma, and the others, so that each word takes few tests."""
    by_lemma: dict[str, list[tuple[int, tuple[_Test, ...]]]] = {}
    others = []
    for number, tests in enumerate(rulebook().tests):
        lemmas = [values for feature, wanted, values in tests if feature == "lemma" and wanted]
        for lemma in lemmas[0] if lemmas else ():
            by_lemma.setdefault(lemma, []).append((1 << number, tests))
        if not lemmas:
            others.append((1 << number, tests))
    return by_lemma, others


def _passes(word: Word, feature: str, wanted: bool, values: frozenset[str]) -> bool:
    if feature == "verbal":
        found = _is_verbal(word)
    elif feature == "pos":
        found = any("-".join(word.pos[:depth]) in values for depth in (1, 2, 3, 4))
    else:
        value = word.normal if feature == "surface" else getattr(word, feature)
        found = value in values
        if feature in ("ctype", "cform"):  # 五段 matches 五段-ラ行
            found = found or value.partition("-")[0] in values
    return found == wanted
