"""Labels: which morphology and which honorifics each token of a recording belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moelens.errors import RecordingError, unknown
from moelens.japanese.honorifics import CLASSES, honorifics
from moelens.japanese.morphology import GOSHU, POS, SCRIPTS, Morpheme, analyze, provenance
from moelens.japanese.rules import rulebook

Policy = Literal["last", "any", "majority"]
Bools = npt.NDArray[np.bool_]

#: The last predicate of a sentence: polite (です・ます), plain, or no predicate but a noun.
ENDINGS = ("敬体", "常体", "体言止め")

#: What can be asked for, and the names within it; a name that a recording never shows is False throughout.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "pos": POS,
    "script": SCRIPTS,
    "goshu": GOSHU,
    "ending": ENDINGS,
    "honorifics": CLASSES,
}
_FILES = {"morphology.parquet": ("pos", "script", "goshu", "ending"), "honorifics.parquet": ("honorifics",)}


class _Recording(Protocol):
    """What labelling needs of a recording."""

    @property
    def path(self) -> Path: ...
    def tokens(self, columns: list[str] | None = None) -> Any: ...
    def documents(self) -> Any: ...


@dataclass(frozen=True)
class Labels:
    """The labels of a recording on disk; `label` writes them, `open` finds them again."""

    path: Path

    @classmethod
    def open(cls, recording: _Recording) -> Labels:
        """The labels written for `recording`; raises `RecordingError` if there are none, or not one row a token."""
        path = Path(recording.path) / "labels"
        missing = [name for name in _FILES if not (path / name).exists()]
        if missing:
            raise RecordingError(f"no {missing[0]} in {path}; write it with moelens.japanese.label(recording)")
        labels = cls(path)
        rows, tokens = labels._table("honorifics", []).num_rows, recording.tokens(["doc"]).num_rows
        if rows != tokens:
            raise RecordingError(f"{path} has {rows} rows for {tokens} tokens; write it anew with label(recording)")
        return labels

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(FAMILIES)

    @property
    def metadata(self) -> dict[str, str]:
        """Analyser, dictionary, version of the rules and policy."""
        stored = pq.read_schema(self.path / "honorifics.parquet").metadata
        return {k.decode().removeprefix("moelens."): v.decode() for k, v in stored.items() if k.startswith(b"moelens.")}

    def matrix(self, family: str) -> tuple[tuple[str, ...], Bools]:
        """The names of a family and, for each token in row order, which of them it has: bool `[token, label]`.

        A token may have several labels (お…いたす is 謙譲語I and 謙譲語II at once) or none (special tokens).
        Raises `UnknownNameError` for a family that is not one of `families`.
        """
        if family not in FAMILIES:
            raise unknown("label family", family, FAMILIES)
        names = FAMILIES[family]
        table = self._table(family, [f"{family}.{name}" for name in names])
        return names, np.stack([column.to_numpy() for column in table.columns], axis=1)

    def _table(self, family: str, columns: list[str]) -> Any:
        return pq.read_table(self.path / next(f for f, held in _FILES.items() if family in held), columns=columns)


def label(recording: _Recording, policy: Policy = "last") -> Labels:
    """Analyse the documents of `recording` and label each of its tokens.

    A token may cover several morphemes, or a part of one. `policy` says when it has a label: "last", if its last
    character has it (for a causal model, the label is known once the morpheme is complete); "any", if one of its
    characters has it; "majority", if more than half of them have it. White space between morphemes does not count.
    Special tokens, which cover no characters, have no label.

    Writes `labels/morphology.parquet` and `labels/honorifics.parquet`, one row a token, one column a label
    (`pos.名詞`, `honorifics.尊敬語`).

    >>> labels = label(recording)  # doctest: +SKIP
    >>> names, has = labels.matrix("honorifics")  # doctest: +SKIP
    >>> dict(zip(names, has.mean(axis=0)))  # doctest: +SKIP
    """
    if policy not in get_args(Policy):
        raise unknown("label policy", policy, get_args(Policy))
    tokens = recording.tokens(["doc", "char_start", "char_end"])
    doc, start, end = (tokens[name].to_numpy() for name in ("doc", "char_start", "char_end"))
    documents = recording.documents()
    texts = dict(zip(documents["doc"].to_pylist(), documents["text"].to_pylist(), strict=True))

    has: Bools = np.zeros((len(doc), sum(map(len, FAMILIES.values()))), dtype=np.bool_)
    for rows in _rows_of_documents(doc):
        has[rows] = on_tokens(character_labels(texts[int(doc[rows[0]])]), start[rows], end[rows], policy)
    return _write(Path(recording.path) / "labels", has, policy)


def _rows_of_documents(doc: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.intp]]:
    order = np.argsort(doc, kind="stable")
    return (rows for rows in np.split(order, np.flatnonzero(np.diff(doc[order])) + 1) if len(rows))


def character_labels(text: str) -> Bools:
    """Bool `[character, label]`: the labels of all families, one family after the other."""
    column = {(family, name): i for i, (family, name) in enumerate((f, n) for f in FAMILIES for n in FAMILIES[f])}
    has: Bools = np.zeros((len(text), len(column)), dtype=np.bool_)
    morphemes = analyze(text)
    for m in morphemes:
        for key in (("pos", m.pos[0]), ("script", m.script), ("goshu", m.goshu)):
            if key in column:
                has[m.start : m.end, column[key]] = True
    for start, end, ending in endings(morphemes):
        has[start:end, column["ending", ending]] = True
    for span in honorifics(text, morphemes):
        for name in span.classes:
            has[span.start : span.end, column["honorifics", name]] = True
    return has


def endings(morphemes: tuple[Morpheme, ...]) -> Iterator[tuple[int, int, str]]:
    """The last predicate of each sentence, as start, end and one of `ENDINGS`.

    It is the last verb, adjective or noun before the full stop, with the auxiliaries that follow it.

    >>> list(endings(analyze("雨が降りました。寒い。")))
    [(2, 7, '敬体'), (8, 10, '常体')]
    """
    stops = [i for i, m in enumerate(morphemes) if m.pos[1] == "句点"]
    for before, stop in pairwise([-1, *stops, len(morphemes)]):
        sentence = list(morphemes[before + 1 : stop])
        while sentence and sentence[-1].pos[0] in ("助詞", "補助記号", "記号", "空白"):
            sentence.pop()
        last = len(sentence) - 1
        while last > 0 and sentence[last].pos[0] == "助動詞":
            last -= 1
        if not sentence:
            continue
        tail = sentence[last:]
        lemmas = {m.lemma for m in tail if m.pos[0] == "助動詞"}
        polite = not lemmas.isdisjoint(("です", "ます"))
        nominal = len(tail) == 1 and tail[0].pos[0] in ("名詞", "代名詞", "接尾辞", "形状詞")
        yield tail[0].start, tail[-1].end, "敬体" if polite else "体言止め" if nominal else "常体"


def on_tokens(
    characters: Bools, start: npt.NDArray[np.int32], end: npt.NDArray[np.int32], policy: Policy = "last"
) -> Bools:
    """From bool `[character, label]` to bool `[token, label]`, by the policies of `label`."""
    if not len(characters):
        return np.zeros((len(start), characters.shape[1]), dtype=np.bool_)
    inside: Bools = np.asarray(characters.any(axis=1))  # false between morphemes
    if policy == "last":
        place = np.maximum.accumulate(np.where(inside, np.arange(len(inside)), -1))[np.maximum(end - 1, 0)]
        return np.asarray(characters[place] & (place >= start)[:, None] & (end > start)[:, None])
    summed = np.concatenate([np.zeros((1, characters.shape[1]), np.int64), np.cumsum(characters, axis=0)])
    counts = summed[end] - summed[start]
    if policy == "any":
        return np.asarray(counts > 0)
    lengths = np.concatenate([[0], np.cumsum(inside)])
    return np.asarray(2 * counts > (lengths[end] - lengths[start])[:, None])


def _write(folder: Path, has: Bools, policy: Policy) -> Labels:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**provenance(), "rules": rulebook().version, "policy": policy}
    metadata = {f"moelens.{name}": value for name, value in facts.items()}
    keys = [(family, name) for family, names in FAMILIES.items() for name in names]
    for file, families in _FILES.items():
        columns = {f"{family}.{name}": has[:, i] for i, (family, name) in enumerate(keys) if family in families}
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(table, folder / f".{file}", compression="zstd")
        os.replace(folder / f".{file}", folder / file)
    return Labels(folder)
