"""The families of labels, and the labels of each character of a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from moelens.errors import MoeLensError, unknown
from moelens.japanese.grammatical_functions import FUNCTIONS, function_labels
from moelens.japanese.honorific_spans import HonorificSpan, honorifics
from moelens.japanese.katakana import read_in_hiragana
from moelens.japanese.label_names import find_labels, typed_names
from moelens.japanese.morphology import GOSHU, POS, SCRIPTS, Analyser, Morpheme, parse_morphemes
from moelens.japanese.normalization import normalize, visible_ends
from moelens.japanese.person_references import REFERENCES, reference_spans
from moelens.japanese.rules import CLASSES, RAISED
from moelens.japanese.sentence_register import (
    ENDINGS,
    REGISTERS,
    Sentence,
    document_register,
    register_weights,
    sentence_registers,
)

Bools = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]

# The conjugation forms of UniDic, at the top level.
_FORMS = ("語幹", "未然形", "連用形", "終止形", "連体形", "仮定形", "已然形", "命令形", "意志推量形")

#: The families of labels, with the names of the labels in each.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "pos": POS,
    "script": SCRIPTS,
    "goshu": GOSHU,
    "conjugation": _FORMS,
    "position": ("begin", "inside", "end", "whole"),
    "ending": ENDINGS,
    "function": FUNCTIONS,
    "honorifics": CLASSES,
    "raises": RAISED,
    "honorific_form": ("prefix", "suffix", "ambiguous", "double", "manual"),
    "reference": REFERENCES,
    "reference_evidence": ("evidence",),
    "register": REGISTERS,
    "document_register": REGISTERS,
    "register_evidence": ("evidence",),
}
#: The files in `labels/`, with the families in each.
LABEL_FILES: Mapping[str, tuple[str, ...]] = {
    "morphology": ("pos", "script", "goshu", "conjugation", "position", "ending"),
    "function": ("function",),
    "honorifics": ("honorifics", "raises", "honorific_form"),
    "reference": ("reference", "reference_evidence"),
    "register": ("register", "document_register", "register_evidence"),
}

#: The families that describe a whole sentence or document, and so each of its tokens.
WHOLE = ("register", "document_register")

#: All labels, with their families ("honorifics.尊敬語").
COLUMNS = tuple(f"{family}.{name}" for family, names in FAMILIES.items() for name in names)
_INDEX = {column: i for i, column in enumerate(COLUMNS)}


def family_columns(family: str) -> list[int]:
    """Return the places of a family's labels in `COLUMNS`.

    Example:
        >>> [COLUMNS[i] for i in family_columns("register_evidence")]
        ['register_evidence.evidence']
    """
    return [i for i, column in enumerate(COLUMNS) if column.partition(".")[0] == family]


@dataclass(frozen=True, kw_only=True)
class CharacterLabels:
    """The labels of the characters of a text.

    Attributes:
        has: Whether a character has a label, bool `[character, column]`, with the columns of `COLUMNS`.
        ends: Whether a character is the last one of a morpheme or span with a label, bool `[character, column]`. Every
            character of a sentence counts as the last one for the labels in `WHOLE`.
        morpheme: Index of the morpheme that a character belongs to, `[character]`; -1 between morphemes.
        morphemes: The morphemes of the text.
        honorific: The honorific that a character belongs to, `[character]`; None for other characters.
        normalized: How many characters the analyser read in another form, by kind (see `normalize`); for "katakana",
            how many words it read in hiragana.
        registers: The characters of the sentences, by whether they have a predicate, and by register.
    """

    has: Bools
    ends: Bools
    morpheme: _Ints
    morphemes: tuple[Morpheme, ...]
    honorific: list[HonorificSpan | None]
    normalized: Mapping[str, int]
    registers: Mapping[tuple[bool, str], int]


def character_labels(text: str, analyser: Analyser = "fugashi") -> CharacterLabels:
    """Label the characters of a text.

    Args:
        text: Text to analyse.
        analyser: "fugashi" or "sudachi".

    Returns:
        The labels of all families. Those of `position`, which only tokens have, are False.

    Example:
        >>> labels = character_labels("先生がいらっしゃる。")
        >>> labels.has.shape == (10, len(COLUMNS)), labels.morpheme.tolist()
        (True, [0, 0, 1, 2, 2, 2, 2, 2, 2, 3])
    """
    morphemes = parse_morphemes(text, analyser)
    has: Bools = np.zeros((len(text), len(COLUMNS)), dtype=np.bool_)
    ends = has.copy()
    visible = visible_ends(text)
    inside = np.full(len(text), -1, dtype=np.int64)
    honorific: list[HonorificSpan | None] = [None] * len(text)
    for number, m in enumerate(morphemes):
        inside[m.start : m.end] = number
    spans = honorifics(text, morphemes)
    for span in spans:
        honorific[span.start : span.end] = [span] * (span.end - span.start)
    sentences = tuple(sentence_registers(text, morphemes, spans))
    for start, end, column in _label_spans(text, morphemes, spans, sentences):
        index = _INDEX.get(column)
        if index is not None:
            has[start:end, index] = True
            if column.partition(".")[0] in WHOLE:
                ends[start:end, index] = True
            else:
                ends[max(visible[end] - 1, start), index] = True
    return CharacterLabels(
        has=has,
        ends=ends,
        morpheme=inside,
        morphemes=morphemes,
        honorific=honorific,
        normalized=_normalized(text, morphemes),
        registers=register_weights(sentences),
    )


def _normalized(text: str, morphemes: Sequence[Morpheme]) -> dict[str, int]:
    """Return `CharacterLabels.normalized`."""
    katakana = sum(m.surface != m.normal and read_in_hiragana(normalize(m.surface).text, m.normal) for m in morphemes)
    return {**normalize(text).counts, **({"katakana": katakana} if katakana else {})}


def _label_spans(
    text: str, morphemes: Sequence[Morpheme], spans: Sequence[HonorificSpan], sentences: Sequence[Sentence]
) -> Iterator[tuple[int, int, str]]:
    """Yield the start, end and column of every label."""
    for m in morphemes:
        form = m.cform.partition("-")[0]
        for column in (f"pos.{m.pos[0]}", f"script.{m.script}", f"goshu.{m.goshu}", f"conjugation.{form}"):
            yield m.start, m.end, column
    yield from ((start, end, f"function.{name}") for start, end, name in function_labels(morphemes))
    prefixes = {m.start: m.end for m in morphemes if m.lemma == "御" and m.pos[0] == "接頭辞"}
    for span in spans:
        yield from ((span.start, span.end, f"honorifics.{name}") for name in span.classes)
        yield from ((span.start, span.end, f"raises.{name}") for name in span.raises if span.classes)
        if span.start in prefixes:
            yield span.start, prefixes[span.start], "honorific_form.prefix"
        if span.plain == ("",):
            yield span.start, span.end, "honorific_form.suffix"
        if not span.certain:
            yield span.start, span.end, "honorific_form.ambiguous"
        if span.double:
            yield span.start, span.end, "honorific_form.double"
        if span.manual:
            yield span.start, span.end, "honorific_form.manual"
    for reference in reference_spans(text, morphemes, spans):
        yield reference.start, reference.end, f"reference.{reference.label}"
        yield from ((*place, "reference_evidence.evidence") for place in reference.evidence)
    for sentence in sentences:
        yield *sentence.predicate, f"ending.{sentence.ending}"
        yield sentence.start, sentence.end, f"register.{sentence.register}"
        yield from ((span.start, span.end, "register_evidence.evidence") for span in sentence.evidence)
    if sentences:
        yield 0, len(text), f"document_register.{document_register(sentences)}"


def require_label(name: str, columns: Iterable[str]) -> str:
    """Find the column of a label.

    Args:
        name: A label with its family ("honorifics.尊敬語") or without it ("尊敬語"), or its romanised or English name
            ("sonkeigo", "respectful").
        columns: The columns to choose from, with their families.

    Raises:
        UnknownNameError: If no column has this label.
        MoeLensError: If several families have this label.

    Example:
        >>> require_label("尊敬語", COLUMNS), require_label("kenjogo-1", COLUMNS)
        ('honorifics.尊敬語', 'honorifics.謙譲語I')
    """
    columns = tuple(columns)
    names = {c: c.partition(".")[2] for c in columns}
    meant = find_labels(name, columns) or set(find_labels(name, dict.fromkeys(names.values())))
    found = [c for c in columns if c in meant or names[c] in meant]
    if not found:
        typed = chain.from_iterable(map(typed_names, names.values()))
        raise unknown("label", name, [*names.values(), *columns, *typed])
    if len(found) > 1:
        raise MoeLensError(
            f"expected a label of one family, got {name!r}, which several families have; write {' or '.join(found)}"
        )
    return found[0]


def require_name(name: str, names: Iterable[str], hint: str = "") -> str:
    """Find a label among those of one family or result.

    Args:
        name: The label, or its romanised or English name.
        names: The labels to choose from.
        hint: Further advice for the message of the error.

    Raises:
        UnknownNameError: If there is no such label.

    Example:
        >>> require_name("sonkeigo", FAMILIES["honorifics"])
        '尊敬語'
    """
    names = tuple(names)
    found = find_labels(name, names)
    if not found:
        raise unknown("label", name, names, hint)
    return found[0]


def text_labels() -> tuple[str, ...]:
    """Return the columns that a text alone decides: all but `position`, which depends on the tokens."""
    return tuple(c for c in COLUMNS if not c.startswith("position."))
