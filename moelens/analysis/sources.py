"""What analyses are made of: a recording's tokens, their labels, and what labels are compared within."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens import __version__
from moelens.analysis.arrays import Bools, Ints
from moelens.analysis.counting import GROUPS, Kinds, Part, Tables, distinct, document_groups, tabulate
from moelens.analysis.counts import Counts
from moelens.analysis.processes import rank_and_size
from moelens.errors import RecordingError, unknown

if TYPE_CHECKING:
    from moelens.recording import Recording

Given = str | Sequence[str] | None


class LabelFamilies(Protocol):
    """What is asked of `moelens.japanese.Labels`."""

    @property
    def families(self) -> tuple[str, ...]: ...

    def matrix(self, family: str) -> tuple[tuple[str, ...], Bools]: ...


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokens in the order of their documents, ready to be counted; all `[token]`, and −1 is left out."""

    names: tuple[str, ...]
    group: Ints
    kind: Ints
    kinds: Kinds
    documents: int

    @classmethod
    def of(
        cls,
        labels: Bools,
        names: Sequence[str],
        docs: NDArray[np.integer],
        strata: Sequence[NDArray[np.integer]],
        keep: Bools | None = None,
    ) -> Sample:
        """Tokens with `labels` `[token, label]`, `docs` and `strata` `[token]`; those not in `keep` are left out."""
        rows = slice(None) if keep is None else np.flatnonzero(keep)
        kinds, kind = Kinds.of(labels[rows], [codes[rows] for codes in strata])
        group = document_groups(docs[rows], GROUPS)
        documents = len(distinct(docs[rows])[0])
        if keep is not None:
            kind, group = (spread(values, keep) for values in (kind, group))
        return cls(tuple(names), group, kind, kinds, documents)

    def count(self, parts: Iterable[Part], n_experts: int, layers: Sequence[int]) -> Tables:
        """One pass over `parts`: rows, and their routes `[token, slot]` for each layer."""
        return tabulate(parts, self.group, self.kind, self.kinds, n_experts, len(layers)).over_processes()

    def counts(self, tables: Tables, layers: Sequence[int], top_k: int) -> Counts:
        """The part of `tables` that adds up from one corpus to another."""
        labels, tokens = tables.kind_tokens @ self.kinds.labels, tables.kind_tokens.sum(1)
        return Counts(tables.cells, tables.experts, labels, tokens, self.names, tuple(map(int, layers)), top_k)

    def mine(self) -> slice:
        """The tokens that this process counts: whole groups, about as many as each other process."""
        rank, size = rank_and_size()
        groups = int(self.group.max(initial=-1)) + 1
        filled = np.maximum.accumulate(self.group)
        start, stop = np.searchsorted(filled, [groups * rank // size, groups * (rank + 1) // size])
        return slice(int(start) if rank else 0, int(stop))


def spread(values: Ints, keep: Bools) -> Ints:
    """`values` of the kept tokens at their places among all, −1 elsewhere."""
    everywhere = np.full(len(keep), -1, np.int64)
    everywhere[keep] = values
    return everywhere


def matrix_of(recording: Recording, labels: LabelFamilies, family: str) -> tuple[tuple[str, ...], Bools]:
    """Names and `[token, label]` of a family. Raises unless the family exists and the labels are this recording's."""
    if family not in labels.families:
        raise unknown("label family", family, labels.families)
    names, matrix = labels.matrix(family)
    labelled, own = getattr(labels, "path", None), getattr(recording, "folder", None)
    if labelled is not None and own is not None and labelled.parent.resolve() != Path(own.where).resolve():
        raise RecordingError(
            f"labels of recording '{labelled.parent}' for recording '{own.where}'; "
            "label this recording with moelens.label(recording)"
        )
    if len(matrix) != recording.n_tokens:
        raise RecordingError(
            f"labels of {len(matrix)} tokens for a recording of {recording.n_tokens}; "
            "label this recording again with moelens.label(recording)"
        )
    return tuple(names), np.asarray(matrix, bool)


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


def control_codes(recording: Recording, labels: LabelFamilies, name: str) -> Ints:
    """The strata `[token]` of a control: "token", "position", or a family of labels."""
    if name == "token":
        return np.asarray(recording.column("token_id"), np.int64)
    if name == "position":
        return position_bins(recording.column("pos"))
    return Kinds.of(labels.matrix(name)[1])[1]


def provenance(recording: Recording, labels: LabelFamilies | None = None) -> dict[str, Any]:
    """Where a result is from: model, recording, labels, version."""
    manifest = recording.manifest
    model, shape = manifest.get("model", ""), manifest.get("shape", {})
    about = getattr(labels, "metadata", {})
    return {
        "model": str(model.get("name", "") if isinstance(model, Mapping) else model),
        "recording": str(recording.folder.where) if hasattr(recording, "folder") else "",
        "labels": ", ".join(f"{key} {value}" for key, value in about.items()),
        "moelens": __version__,
        "n_tokens": manifest.get("n_tokens"),
        "n_groups": shape.get("n_groups") if isinstance(shape, Mapping) else None,
    }
