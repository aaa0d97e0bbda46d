"""One pass over routes, into tables whose size does not depend on the number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, Ints, Routes
from moelens.analysis.processes import add_up

Part: TypeAlias = tuple[slice, Iterable[Routes]]
STEP = 1 << 15  # tokens counted at once: their keys stay in the cache of a core
BLOCK = 1 << 22  # cells by kind, layer and expert that are multiplied at once: few products, each worth a thread
PART = 1 << 19
GROUPS = 200  # of documents: enough for statistics, few enough for memory


@dataclass(frozen=True, eq=False)
class Kinds:
    """Distinct combinations of labels, and of strata, that tokens have.

    Tokens share few combinations, so counting them costs the same for one label and for sixty.
    A stratum in which all tokens have the same labels tells nothing about these: its tokens have stratum −1.
    """

    labels: Bools
    """`[kind, label]`."""
    strata: Ints
    """`[stratification, kind]`, numbered from 0 within each stratification."""

    @classmethod
    def of(cls, labels: Bools, stratifications: Sequence[NDArray[np.integer]] = ()) -> tuple[Kinds, Ints]:
        """The kinds of tokens with `labels` `[token, label]` in strata `[token]`, and the kind of each `[token]`."""
        pattern = np.zeros(len(labels), np.int64)
        for byte in np.packbits(labels, axis=1).T:
            pattern = distinct(pattern * 256 + byte)[1]
        strata = [undecided(codes, pattern) for codes in stratifications]
        kind = pattern
        for codes in strata:
            kind = distinct(kind * (int(codes.max(initial=-1)) + 2) + codes + 1)[1]
        first = np.zeros(int(kind.max(initial=-1)) + 1, np.int64)
        first[kind] = np.arange(len(kind))  # any token of the kind will do
        found = np.array([codes[first] for codes in strata], np.int64).reshape(len(strata), len(first))
        return cls(labels[first], found), kind

    def rates(self, kind_tokens: Ints, which: int) -> tuple[Ints, Floats]:
        """Tokens of each stratum `[stratum]`, and the share of them that has each label `[stratum, label]`."""
        stratum, inside = self.strata[which], self.strata[which] >= 0
        size = np.bincount(stratum[inside], kind_tokens[inside])
        labelled = np.zeros((len(size), self.labels.shape[1]))
        np.add.at(labelled, stratum[inside], kind_tokens[inside, None] * self.labels[inside])
        return size.astype(np.int64), labelled / size[:, None]

    def residuals(self, kind_tokens: Ints, which: int) -> Floats:
        """Each kind's labels less what its stratum has on average `[kind, label]`; 0 where the stratum is −1."""
        _, rate = self.rates(kind_tokens, which)
        stratum = self.strata[which]
        values = np.zeros(self.labels.shape)
        inside = stratum >= 0
        values[inside] = self.labels[inside] - rate[stratum[inside]]
        return values


@dataclass(frozen=True, eq=False)
class Tables:
    """All that statistics need of the routes; everything is a sum over tokens."""

    cells: NDArray[np.int32]
    """Tokens of the label at the expert `[group, layer, expert, label]`."""
    experts: Ints
    """Tokens at the expert `[group, layer, expert]`."""
    kind_tokens: Ints
    """Tokens of the kind `[group, kind]`."""
    undecided: Ints
    """Tokens at the expert whose stratum does not decide their labels `[group, layer, expert]`."""
    by_stratum: NDArray[np.int32]
    """Tokens of the stratum at the expert `[stratum, layer, expert]`."""
    excess: NDArray[np.float32]
    """Label residuals of the tokens at the expert `[group, layer, expert, label]`."""
    beyond: Floats
    """The same by each further stratification, summed over groups `[stratification, layer, expert, label]`."""

    def over_processes(self) -> Tables:
        """The sum over the processes of torch.distributed, in all of them; kinds are known to each already."""
        names = [f.name for f in fields(self) if f.name != "kind_tokens"]
        return replace(self, **dict(zip(names, add_up([getattr(self, n) for n in names]), strict=True)))


def tabulate(
    parts: Iterable[Part],
    kind: NDArray[np.integer],
    bounds: Ints,
    kinds: Kinds,
    n_experts: int,
    n_layers: int,
    group: Ints | None = None,
) -> Tables:
    """Count `parts`: rows of tokens, and their routes `[token, slot]` for each layer.

    `kind` is `[token]` of all tokens; one of kind −1 is left out. Stretch s holds the tokens from `bounds[s]` to
    `bounds[s + 1]`, and belongs to group `group[s]`, by default s. Label residuals by the first stratification of
    `kinds` are kept for each group, by the others in all.
    """
    group = np.arange(len(bounds) - 1) if group is None else group
    n_groups, (n_kinds, n_labels) = int(group.max(initial=-1)) + 1, kinds.labels.shape
    kind_tokens = np.zeros((n_groups, n_kinds), np.int64)
    for g, start, stop in zip(group.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        here = kind[start:stop]
        np.add.at(kind_tokens[g], here[here >= 0], 1)
    residuals = [kinds.residuals(kind_tokens.sum(0), which) for which in range(len(kinds.strata))]
    stratum = kinds.strata[0] if residuals else np.full(len(kinds.labels), -1)
    shape = n_groups, n_layers, n_experts
    tables = Tables(
        np.zeros((*shape, n_labels), np.int32),
        np.zeros(shape, np.int64),
        kind_tokens,
        np.zeros(shape, np.int64),
        np.zeros((int(stratum.max(initial=-1)) + 1, n_layers, n_experts), np.int32),
        np.zeros((*shape, n_labels) if residuals else (0,), np.float32),
        np.zeros((max(0, len(residuals) - 1), n_layers, n_experts, n_labels)),
    )
    for rows, routes in parts:
        for g, run in runs(kind, bounds, rows, group):
            present, local = distinct(kind[rows][run])
            # Matrix products in a type that holds every count of this run exactly.
            exact: type[np.floating[Any]] = np.float32 if len(local) < 1 << 24 else np.float64
            weights = np.hstack([kinds.labels[present], *(r[present] for r in residuals)]).astype(exact)
            order, starts, strata = sorted_strata(stratum[present])
            layers, together = list(routes), max(1, BLOCK // (len(present) * n_experts))
            for first in range(0, n_layers, together):
                at = slice(first, min(first + together, n_layers))
                table = tally([chosen[run] for chosen in layers[at]], local, len(present), n_experts, exact)
                sums = np.split(np.tensordot(table, weights, (0, 0)), 1 + len(residuals), axis=2)
                tables.cells[g, at] += sums[0].astype(np.int32)
                tables.experts[g, at] += table.sum(0).astype(np.int64)
                if len(residuals):
                    tables.excess[g, at] += sums[1].astype(np.float32)
                for further, values in zip(tables.beyond, sums[2:], strict=True):
                    further[at] += values
                if len(starts):
                    found = np.add.reduceat(table[order], starts, axis=0)
                    tables.by_stratum[strata, at] += found.astype(np.int32)
                    tables.undecided[g, at] += found.sum(0).astype(np.int64)
    return tables


def tally(
    routes: Sequence[Routes], kind: Ints, n_kinds: int, n_experts: int, exact: type[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Tokens by kind, layer and expert `[kind, layer, expert]`, of routes `[token, slot]` and kinds `[token]`."""
    table = np.empty((n_kinds, len(routes), n_experts), exact)
    keys = (kind * n_experts)[:, None]
    for layer, chosen in enumerate(routes):
        counted = np.zeros(n_kinds * n_experts, np.int64)
        for i in range(0, len(kind), STEP):
            counted += np.bincount((chosen[i : i + STEP] + keys[i : i + STEP]).ravel(), minlength=len(counted))
        table[:, layer] = counted.reshape(n_kinds, n_experts)
    return table


def in_parts(indices: Routes, rows: Ints) -> Iterator[Part]:
    """These rows of `indices` `[token, layer, slot]`, in parts with the layer first."""
    for i in range(0, len(rows), PART):
        chosen = indices[rows[i : i + PART]]
        yield slice(i, i + len(chosen)), np.ascontiguousarray(np.moveaxis(chosen, 1, 0))


def runs(kind: NDArray[np.integer], bounds: Ints, rows: slice, group: Ints) -> Iterator[tuple[int, slice | Ints]]:
    """Each group that has tokens among `rows`, and where in these they stand, but for those of kind −1.

    >>> found = runs(np.zeros(9, int), np.array([0, 4, 5, 9]), slice(2, 8), np.array([0, 1, 0]))
    >>> [(g, np.arange(6)[run].tolist()) for g, run in found]
    [(0, [0, 1, 3, 4, 5]), (1, [2])]
    """
    first, last = np.searchsorted(bounds, [rows.start + 1, rows.stop]) - [1, 0]
    edges = np.clip(bounds[first : last + 1], rows.start, rows.stop) - rows.start
    for g in dict.fromkeys(group[first:last].tolist()):
        own = np.flatnonzero(group[first:last] == g)
        start, stop = edges[own], edges[own + 1]
        if len(own) == 1 and (kind[rows][start[0] : stop[0]] >= 0).all():
            yield g, slice(int(start[0]), int(stop[0]))  # which copies no routes
            continue
        places = np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)])
        kept = places[kind[rows][places] >= 0]
        if len(kept):
            yield g, kept


def sorted_strata(stratum: Ints) -> tuple[Ints, Ints, Ints]:
    """Rows in the order of their strata, −1 left out; where each stratum starts; which it is."""
    order = np.argsort(stratum, kind="stable")
    order = order[np.searchsorted(stratum[order], 0) :]
    strata, starts = np.unique(stratum[order], return_index=True)
    return order, starts, strata


def undecided(codes: NDArray[np.integer], pattern: Ints) -> Ints:
    """Strata `[token]` numbered from 0, or −1 where all tokens of the stratum have the same pattern of labels."""
    stratum = distinct(codes)[1]
    n = int(stratum.max(initial=-1)) + 1
    pairs = np.unique(stratum * (int(pattern.max(initial=0)) + 1) + pattern)
    several = np.bincount(pairs // (int(pattern.max(initial=0)) + 1), minlength=n) > 1
    return np.where(several, np.cumsum(several) - 1, -1)[stratum]


def distinct(codes: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """The distinct values in ascending order, and the place of each code among them.

    As `np.unique`, without sorting where the values lie close together.

    >>> distinct(np.array([7, 3, 7])).__repr__()
    '(array([3, 7]), array([1, 0, 1]))'
    """
    codes = np.asarray(codes, np.int64)
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    if high - low > 4 * len(codes) + PART:
        values, place = np.unique(codes, return_inverse=True)
        return values, place.reshape(-1)
    there = np.zeros(high - low + 1, bool)
    there[codes - low] = True
    return np.flatnonzero(there) + low, (np.cumsum(there) - 1)[codes - low]


def document_bounds(sizes: Ints, counted: Ints, groups: int) -> Ints:
    """Where groups of documents begin, and where the last one ends `[group + 1]`.

    A group is a document, or neighbours put together. Documents have `sizes` tokens, of which `counted` are looked at;
    one of which none is does not count as one.

    >>> document_bounds(np.array([3, 1, 4]), np.array([2, 0, 4]), 200).tolist()
    [0, 4, 8]
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])
    used = np.flatnonzero(counted)
    first = np.unique(balanced(counted[used], groups), return_index=True)[1]
    return np.concatenate([[0], starts[used[first[1:]]], starts[-1:]]).astype(np.int64)


def document_groups(sizes: Ints, counted: Ints, groups: int, texts: Ints) -> tuple[Ints, Ints]:
    """As `document_bounds`, but documents of the same text, by `texts` `[document]`, are in one group.

    Returns where stretches of documents begin, and where the last one ends `[stretch + 1]`; the group of each.

    >>> [x.tolist() for x in document_groups(np.array([3, 1, 4]), np.array([3, 1, 4]), 200, np.array([0, 1, 0]))]
    [[0, 3, 4, 8], [0, 1, 0]]
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])
    used = np.flatnonzero(counted)
    text = distinct(texts[used])[1]
    of_document = balanced(np.bincount(text, counted[used]).astype(np.int64), groups)[text]
    changes = np.flatnonzero(np.diff(of_document)) + 1
    bounds = np.concatenate([[0], starts[used[changes]], starts[-1:]]).astype(np.int64)
    return bounds, of_document[np.append(0, changes)] if len(used) else np.zeros(1, np.int64)


def balanced(sizes: NDArray[np.integer], groups: int) -> Ints:
    """Neighbours put together to at most `groups` groups of like total size, `[item]`.

    >>> balanced(np.array([1, 1, 2, 4]), 2).tolist(), balanced(np.array([5, 1]), 4).tolist()
    ([0, 0, 0, 1], [0, 1])
    """
    if len(sizes) <= groups:
        return np.arange(len(sizes))
    middle = np.cumsum(sizes) - sizes / 2
    return distinct((middle * groups / sizes.sum()).astype(np.int64))[1]
