"""The families of labels, character by character."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moelens.errors import MoeLensError, unknown
from moelens.japanese.functions import FUNCTIONS, REFERENCES, functions, references
from moelens.japanese.honorific_spans import HonorificSpan, honorifics
from moelens.japanese.morphology import GOSHU, POS, SCRIPTS, Analyser, Morpheme, parse_morphemes
from moelens.japanese.rules import CLASSES, RAISED
from moelens.japanese.sentence_register import ENDINGS, REGISTERS, document_register, registers

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

#: UniDic's conjugation forms, at the top level.
FORMS = ("語幹", "未然形", "連用形", "終止形", "連体形", "仮定形", "已然形", "命令形", "意志推量形")

#: What can be asked for, and the names within it; a name that a recording never shows is False throughout.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "pos": POS,
    "script": SCRIPTS,
    "goshu": GOSHU,
    "conjugation": FORMS,
    "position": ("begin", "inside", "end", "whole"),
    "ending": ENDINGS,
    "function": FUNCTIONS,
    "honorifics": CLASSES,
    "raises": RAISED,
    "honorific_form": ("prefix", "suffix", "ambiguous", "double"),
    "reference": REFERENCES,
    "register": REGISTERS,
    "document_register": REGISTERS,
    "register_evidence": ("evidence",),
}
#: The families of each file, in `labels/`.
FILES: Mapping[str, tuple[str, ...]] = {
    "morphology": ("pos", "script", "goshu", "conjugation", "position", "ending"),
    "function": ("function",),
    "honorifics": ("honorifics", "raises", "honorific_form"),
    "reference": ("reference",),
    "register": ("register", "document_register", "register_evidence"),
}
COLUMNS = tuple(f"{family}.{name}" for family, names in FAMILIES.items() for name in names)
_PLACE = {column: i for i, column in enumerate(COLUMNS)}


@dataclass(frozen=True)
class CharacterLabels:
    """The labels of a text's characters.

    Attributes:
        has: bool `[character, column]`, the columns those of `COLUMNS`.
        morpheme: `[character]`, the number of the morpheme that holds it; -1 between morphemes.
        morphemes: the morphemes.
        honorific: `[character]`, the honorific that holds it, None for none.
    """

    has: Bools
    morpheme: Ints
    morphemes: tuple[Morpheme, ...]
    honorific: list[HonorificSpan | None]


def character_labels(text: str, analyser: Analyser = "fugashi") -> CharacterLabels:
    """The labels of all families; those of `position`, which only tokens have, are False."""
    morphemes = parse_morphemes(text, analyser)
    has: Bools = np.zeros((len(text), len(COLUMNS)), dtype=np.bool_)
    inside = np.full(len(text), -1, dtype=np.int64)
    honorific: list[HonorificSpan | None] = [None] * len(text)
    for number, m in enumerate(morphemes):
        inside[m.start : m.end] = number
    for start, end, column in _labels(text, morphemes, honorific):
        place = _PLACE.get(column)
        if place is not None:
            has[start:end, place] = True
    return CharacterLabels(has, inside, morphemes, honorific)


def _labels(
    text: str, morphemes: tuple[Morpheme, ...], honorific: list[HonorificSpan | None]
) -> Iterator[tuple[int, int, str]]:
    """Start, end and column of every label; writes the honorifics to `honorific`."""
    for m in morphemes:
        form = m.cform.partition("-")[0]
        for column in (f"pos.{m.pos[0]}", f"script.{m.script}", f"goshu.{m.goshu}", f"conjugation.{form}"):
            yield m.start, m.end, column
    yield from ((start, end, f"function.{name}") for start, end, name in functions(morphemes))
    spans = honorifics(text, morphemes)
    prefixes = {m.start: m.end for m in morphemes if m.lemma == "御" and m.pos[0] == "接頭辞"}
    for span in spans:
        honorific[span.start : span.end] = [span] * (span.end - span.start)
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
    yield from ((start, end, f"reference.{name}") for start, end, name in references(text, morphemes, spans))
    sentences = tuple(registers(text, morphemes, spans))
    for sentence in sentences:
        yield *sentence.predicate, f"ending.{sentence.ending}"
        yield sentence.start, sentence.end, f"register.{sentence.register}"
        yield from ((span.start, span.end, "register_evidence.evidence") for span in sentence.evidence)
    if sentences:
        yield 0, len(text), f"document_register.{document_register(sentences)}"


def require_label(name: str, columns: Iterable[str]) -> str:
    """The one of `columns` ("honorifics.尊敬語") that a label means, written so or without its family.

    Raises:
        UnknownNameError: there is none.
        MoeLensError: several families have a label of this name.
    """
    columns = tuple(columns)
    found = [c for c in columns if name in (c, c.partition(".")[2])]
    if not found:
        raise unknown("label", name, [*(c.partition(".")[2] for c in columns), *columns])
    if len(found) > 1:
        raise MoeLensError(f"label {name!r} is one of several families; write {' or '.join(found)}")
    return found[0]


def text_labels() -> tuple[str, ...]:
    """The labels that a text tells; those of a token's place in its word need a recording's labels."""
    return tuple(c for c in COLUMNS if not c.startswith("position."))
