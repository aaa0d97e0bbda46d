"""What analyses are made of: a recording's tokens, their labels, and what labels are compared within."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.arrays import Bools, Ints
from moelens.analysis.counting import GROUPS, Kinds, Part, Tables, distinct, document_groups, tabulate
from moelens.analysis.counts import Counts
from moelens.analysis.processes import rank_and_size
from moelens.errors import RecordingError, unknown
from moelens.japanese import Labels
from moelens.recording import Recording
from moelens.version import __version__

Given = str | Sequence[str] | None


class LabelFamilies(Protocol):
    """What is asked of `moelens.japanese.Labels`."""

    @property
    def families(self) -> tuple[str, ...]: ...

    def matrix(self, family: str, rows: slice | None = None) -> tuple[tuple[str, ...], Bools]: ...


def opened(recording: Recording | str | Path) -> Recording:
    """A recording, or the one in a folder."""
    return Recording.open(recording) if isinstance(recording, (str, Path)) else recording


def labels_for(recording: Recording, labels: LabelFamilies | None, family: str | None) -> LabelFamilies | None:
    """The labels given, or those of the recording, created first where there are none; None without a family."""
    return labels if labels is not None or family is None else Labels.open_or_create(recording)


class Described(NamedTuple):
    """What is known of some tokens besides their routes; those not in `keep` are left out."""

    docs: NDArray[np.integer]
    """`[token]`, ascending."""
    keep: Bools
    """`[token]`."""
    labels: Bools
    """`[token, label]`."""
    controls: Mapping[str, NDArray[np.integer]]
    """Each `[token, column]`; tokens are alike in a control if all its columns are."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokens in the order of their documents, ready to be counted: four bytes of each are held."""

    names: tuple[str, ...]
    kind: NDArray[np.int32]
    """`[token]`, −1 where left out."""
    kinds: Kinds
    bounds: Ints
    """Where stretches of documents begin, and where the last one ends `[stretch + 1]`."""
    group: Ints
    """The group of each stretch `[stretch]`; copies of a text are in one group."""
    documents: int
    """Of different texts."""
    copies: float
    """How many documents have the text of a token, on average over tokens; 1 without copies."""

    @classmethod
    def of(
        cls,
        parts: Iterable[Described],
        names: Sequence[str],
        given: Sequence[Sequence[str]] = (),
        groups: int = GROUPS,
        texts: Ints | None = None,
    ) -> Sample:
        """Tokens of `parts` with the labels `names`; each of `given` is a stratification by some of the controls.

        `texts` are numbers of the texts of all documents `[document]`; without them all texts are different.
        """
        controls = {name: Numbering() for by in given for name in by}
        patterns, combinations = Numbering(), Numbering()
        kind, documents = [np.zeros(0, np.int32)], [np.zeros((3, 0), np.int64)]
        for part in parts:
            keep = slice(None) if part.keep.all() else part.keep
            columns = [patterns(np.packbits(part.labels[keep], axis=1))]
            columns += [number(part.controls[name][keep]) for name, number in controls.items()]
            kind.append(np.full(len(part.docs), -1, np.int32))
            kind[-1][keep] = combinations(np.stack(columns, axis=1))
            docs, place = distinct(part.docs)
            documents.append(np.stack([docs, np.bincount(place), np.bincount(place, part.keep).astype(np.int64)]))
        pattern, *codes = combinations.rows(1 + len(controls), np.int64).T
        labels = patterns.rows(-(-len(names) // 8), np.uint8)
        labels = np.unpackbits(labels, axis=1, count=len(names)).astype(bool)[pattern]
        strata = [strata_of(by, dict(zip(controls, codes, strict=True)), len(pattern)) for by in given]
        kinds, of_combination = Kinds.of(labels, strata)
        docs, *sizes = np.concatenate(documents, axis=1)
        document = distinct(docs)[1]
        size, kept = (np.bincount(document, n).astype(np.int64) for n in sizes)
        text = np.unique(docs) if texts is None else texts[np.unique(docs)]
        copies = np.bincount(text[kept > 0], minlength=int(text.max(initial=0)) + 1)[text]
        return cls(
            tuple(names),
            np.append(of_combination, -1).astype(np.int32)[np.concatenate(kind)],
            kinds,
            *document_groups(size, kept, groups, text),
            len(np.unique(text[kept > 0])),
            float((kept * copies).sum() / max(kept.sum(), 1)) if len(kept) else 1.0,
        )

    def count(self, parts: Iterable[Part], n_experts: int, layers: Sequence[int]) -> Tables:
        """One pass over `parts`: rows, and their routes `[token, slot]` for each layer."""
        tables = tabulate(parts, self.kind, self.bounds, self.kinds, n_experts, len(layers), self.group)
        return tables.over_processes()

    def counts(self, tables: Tables, layers: Sequence[int], top_k: int) -> Counts:
        """The part of `tables` that adds up from one corpus to another."""
        labels, tokens = tables.kind_tokens @ self.kinds.labels, tables.kind_tokens.sum(1)
        return Counts(tables.cells, tables.experts, labels, tokens, self.names, tuple(map(int, layers)), top_k)

    def mine(self) -> slice:
        """The tokens that this process counts: whole stretches, about as many as each other process."""
        rank, size = rank_and_size()
        stretches = len(self.group)
        return slice(int(self.bounds[stretches * rank // size]), int(self.bounds[stretches * (rank + 1) // size]))

    def has(self, rows: slice) -> Bools:
        """The labels of these tokens `[token, label]`, none of those left out."""
        return np.asarray(self.kinds.labels[self.kind[rows]] & (self.kind[rows] >= 0)[:, None])


class Numbering:
    """Numbers distinct rows from 0, the same row alike in every part.

    >>> numbering = Numbering()
    >>> numbering(np.array([[7, 1], [7, 0], [7, 1]])).tolist(), numbering(np.array([[5, 5], [7, 0]])).tolist()
    ([1, 0, 1], [2, 0])
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def __call__(self, rows: NDArray[np.integer]) -> Ints:
        """The number of each of `rows` `[row, column]`, `[row]`."""
        place = np.zeros(len(rows), np.int64)
        for column in rows.T:
            values, code = distinct(column)
            place = distinct(place * max(len(values), 1) + code)[1]
        first = np.zeros(int(place.max(initial=-1)) + 1, np.int64)
        first[place] = np.arange(len(rows))  # any of the equal rows will do
        keys = (row.tobytes() for row in rows[first])
        return np.array([self._numbers.setdefault(key, len(self._numbers)) for key in keys], np.int64)[place]

    def rows(self, columns: int, dtype: Any) -> NDArray[Any]:
        """The distinct rows `[number, column]`."""
        return np.frombuffer(b"".join(self._numbers), dtype).reshape(len(self._numbers), columns)


def described(
    recording: Recording, labels: LabelFamilies | None, family: str, given: Sequence[str] = (), text: bool = True
) -> Iterator[Described]:
    """The tokens of a recording, a shard at a time; with `text`, those without text (special tokens) are left out.

    Controls are "token", "position" and families of `labels`; without labels there are none of either.
    """
    columns = {"token": "token_id", "position": "pos"}
    names = ["doc", "char_start", "char_end", *(columns[name] for name in given if name in columns)]
    for rows, arrays in recording.columns(names):
        of = dict(zip(names, arrays, strict=True))
        controls = {}
        for name in given:
            if name == "token":
                controls[name] = of["token_id"][:, None]
            elif name == "position":
                controls[name] = position_bins(of["pos"])[:, None]
            elif labels is not None:
                controls[name] = np.packbits(labels.matrix(name, rows)[1], axis=1)
        has = np.zeros((len(of["doc"]), 0), bool) if labels is None else labels.matrix(family, rows)[1]
        keep = of["char_end"] > of["char_start"] if text else np.ones(len(of["doc"]), bool)
        yield Described(of["doc"], keep, np.asarray(has, bool), controls)


def names_of(recording: Recording, labels: LabelFamilies, family: str) -> tuple[str, ...]:
    """The names of a family. Raises unless the family exists and the labels are this recording's."""
    if family not in labels.families:
        raise unknown("label family", family, labels.families)
    labelled, own = getattr(labels, "path", None), getattr(recording, "folder", None)
    if labelled is not None and own is not None and labelled.parent.resolve() != Path(own.location).resolve():
        raise RecordingError(
            f"labels of recording '{labelled.parent}' for recording '{own.location}'; "
            "label this recording with moelens.label(recording)"
        )
    names, last = labels.matrix(family, slice(recording.n_tokens - 1, None))
    if len(last) != 1:
        raise RecordingError(
            f"labels of {len(labels.matrix(family)[1])} tokens for a recording of {recording.n_tokens}; "
            "label this recording again with moelens.label(recording)"
        )
    return tuple(names)


def given_names(given: Given, allowed: Sequence[str]) -> tuple[str, ...]:
    """What to compare within, as a tuple of names. Raises `UnknownNameError`."""
    names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if name not in allowed:
            raise unknown("control", name, allowed, "given=")
    return names


def strata_of(given: Sequence[str], codes: Mapping[str, ArrayLike], n_tokens: int) -> Ints:
    """One number for each combination of what is given `[token]`, from the codes of each."""
    stratum = np.zeros(n_tokens, np.int64)
    for name in given:
        values = distinct(np.asarray(codes[name]))[1]
        stratum = distinct(stratum * (int(values.max(initial=0)) + 1) + values)[1]
    return stratum


def position_bins(position: NDArray[np.integer]) -> Ints:
    """Places in a document in doubling bins: 0, 1, 2–3, 4–7, …

    >>> position_bins(np.array([0, 1, 2, 3, 4, 7, 8])).tolist()
    [0, 1, 2, 2, 3, 3, 4]
    """
    return np.asarray(np.frexp(position)[1], np.int64)


def provenance(recording: Recording, labels: LabelFamilies | None = None) -> dict[str, Any]:
    """Where a result is from: model, recording, labels, version."""
    manifest = recording.manifest
    model, shape = manifest.get("model", ""), manifest.get("shape", {})
    about = getattr(labels, "metadata", {})
    return {
        "model": str(model.get("name", "") if isinstance(model, Mapping) else model),
        "recording": str(recording.folder.location) if hasattr(recording, "folder") else "",
        "labels": ", ".join(f"{key} {value}" for key, value in about.items()),
        "moelens": __version__,
        "n_tokens": manifest.get("n_tokens"),
        "n_groups": shape.get("n_groups") if isinstance(shape, Mapping) else None,
    }
