"""Count routes in one pass, into tables whose size does not depend on the number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, Ints, Routes
from moelens.analysis.processes import sum_over_processes

RoutePart: TypeAlias = tuple[slice, Iterable[Routes]]
"""Rows of tokens, and their routes `[token, slot]` for each layer."""
MAX_GROUPS = 200  # of documents: enough for the statistics, few enough for memory
_STEP = 1 << 15  # tokens counted at once: their keys stay in the cache of a core
_BLOCK = 1 << 22  # cells by kind, layer and expert that are multiplied at once: few products, each worth a thread
_PART = 1 << 19  # tokens in a part
_LEAST_LEFT = 1e-9  # of 1 − 2h + Σ h², which is 0 where one group has the whole stratum


@dataclass(frozen=True, eq=False)
class TokenKinds:
    """The distinct combinations of labels and strata that tokens have, called kinds.

    Tokens share few kinds, so counting costs the same for one label and for sixty.
    A stratum in which all tokens have the same labels carries no information about the labels: its tokens get the
    stratum −1.

    Attributes:
        labels: the labels of each kind, bool `[kind, label]`.
        strata: the stratum of each kind, numbered from 0 within each stratification `[stratification, kind]`.
    """

    labels: Bools
    strata: Ints

    @classmethod
    def of(cls, labels: Bools, stratifications: Sequence[NDArray[np.integer]] = ()) -> tuple[TokenKinds, Ints]:
        """Find the kinds of tokens.

        Args:
            labels: bool `[token, label]`.
            stratifications: integer codes of the strata, each `[token]`.

        Returns:
            The kinds, and the kind of each token `[token]`.
        """
        pattern = np.zeros(len(labels), np.int64)
        for byte in np.packbits(labels, axis=1).T:
            pattern = distinct(pattern * 256 + byte)[1]
        strata = [_informative_strata(codes, pattern) for codes in stratifications]
        kind = pattern
        for codes in strata:
            kind = distinct(kind * (int(codes.max(initial=-1)) + 2) + codes + 1)[1]
        token_of_kind = np.zeros(int(kind.max(initial=-1)) + 1, np.int64)
        token_of_kind[kind] = np.arange(len(kind))  # any token of the kind will do
        kind_strata = np.array([codes[token_of_kind] for codes in strata], np.int64)
        return cls(labels[token_of_kind], kind_strata.reshape(len(strata), len(token_of_kind))), kind

    def rates(self, kind_tokens: Ints, which: int) -> tuple[Ints, Floats]:
        """Return the number of tokens of each stratum `[stratum]`, and the share with each label `[stratum, label]`."""
        stratum, inside = self.strata[which], self.strata[which] >= 0
        size = np.bincount(stratum[inside], kind_tokens[inside])
        labelled = np.zeros((len(size), self.labels.shape[1]))
        np.add.at(labelled, stratum[inside], kind_tokens[inside, None] * self.labels[inside])
        return size.astype(np.int64), labelled / np.maximum(size, 1)[:, None]

    def residuals(self, kind_tokens: Ints, which: int) -> Floats:
        """Return the labels of each kind minus the mean of its stratum `[kind, label]`; 0 where the stratum is −1."""
        _, rate = self.rates(kind_tokens, which)
        stratum = self.strata[which]
        values = np.zeros(self.labels.shape)
        inside = stratum >= 0
        values[inside] = self.labels[inside] - rate[stratum[inside]]
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelScores:
    """What the label of a token adds to the excess of its group of documents, corrected for few documents.

    A group's part of the excess is measured from the mean of the stratum, to which the group belongs itself. The
    squares of the parts therefore add up to less than the variance of the whole: to (n − 1)/n of it with n groups of
    one size, and to next to nothing where one group outweighs the others. This concerns the part between groups, n_g
    (r_g − r)(l_g − l), where r_g and l_g are the shares of the group's tokens in the stratum that the expert takes and
    that have the label. It is divided by √(1 − 2h_g + Σ h²), where h_g is the group's share of the stratum. If
    documents add independent amounts of one variance to r_g and of one variance to l_g, the mean of the squares is then
    the variance of the whole, Σ n_g² (1 − 2h_g + Σ h²). Since the part between groups is linear in the labels, the
    label of a token gets the score (L − l) + (l_g − l) · [1 / √(1 − 2h_g + Σ h²) − 1].

    Attributes:
        kinds: the kinds of tokens; the strata are those of their first stratification.
        residuals: labels of each kind minus the mean of its stratum `[kind, label]`, see `TokenKinds.residuals`.
        size: tokens of each stratum `[stratum]`.
        rate: share of them with each label `[stratum, label]`.
        concentration: Σ h² of each stratum `[stratum]`.
    """

    kinds: TokenKinds
    residuals: Floats
    size: Ints
    rate: Floats
    concentration: Floats

    @classmethod
    def of(cls, kinds: TokenKinds, kind_tokens: Ints) -> LabelScores:
        """Prepare the scores from the tokens of each kind in each group `[group, kind]`."""
        size, rate = kinds.rates(kind_tokens.sum(0), 0)
        stratum, inside = kinds.strata[0], kinds.strata[0] >= 0
        concentration = np.zeros(len(size))
        for tokens in kind_tokens:
            in_group = np.bincount(stratum[inside], tokens[inside], minlength=len(size))
            concentration += (in_group / np.maximum(size, 1)) ** 2
        residuals = kinds.residuals(kind_tokens.sum(0), 0)
        return cls(kinds=kinds, residuals=residuals, size=size, rate=rate, concentration=concentration)

    def of_group(self, kind_tokens: Ints, wanted: Ints) -> Floats:
        """Return the scores of the `wanted` kinds in a group that has these tokens of each kind `[wanted, label]`."""
        present = np.flatnonzero(kind_tokens)
        order, starts, strata = _sorted_strata(self.kinds.strata[0][present])
        scores = self.residuals[wanted]
        if not len(strata):
            return scores
        tokens, labels = kind_tokens[present[order]], self.kinds.labels[present[order]]
        in_group = np.add.reduceat(tokens, starts)
        labelled = np.add.reduceat(tokens[:, None] * labels, starts, axis=0)
        share = in_group / self.size[strata]
        left = np.maximum(1 - 2 * share + self.concentration[strata], _LEAST_LEFT)
        between = (1 / np.sqrt(left) - 1)[:, None] * (labelled / in_group[:, None] - self.rate[strata])
        stratum = self.kinds.strata[0][wanted]
        scores[stratum >= 0] += between[np.searchsorted(strata, stratum[stratum >= 0])]
        return scores


@dataclass(frozen=True, eq=False, kw_only=True)
class RouteTables:
    """What the statistics need to know of the routes. Every entry is a sum over tokens.

    Attributes:
        cells: tokens of the label at the expert `[group, layer, expert, label]`.
        experts: tokens at the expert `[group, layer, expert]`.
        kind_tokens: tokens of the kind `[group, kind]`.
        informative: tokens at the expert whose stratum is not −1 `[group, layer, expert]`.
        by_stratum: tokens of the stratum at the expert `[stratum, layer, expert]`.
        excess: sum of the label scores of the tokens at the expert, by the first stratification, see `LabelScores`
            `[group, layer, expert, label]`.
        total_excess: sum of the label residuals of the tokens at the expert, by each stratification
            `[stratification, layer, expert, label]`.
    """

    cells: NDArray[np.int32]
    experts: Ints
    kind_tokens: Ints
    informative: Ints
    by_stratum: NDArray[np.int32]
    excess: NDArray[np.float32]
    total_excess: Floats

    def over_processes(self) -> RouteTables:
        """Sum the tables over the processes of torch.distributed; every process already knows all kinds."""
        names = [f.name for f in fields(self) if f.name != "kind_tokens"]
        sums = sum_over_processes([getattr(self, name) for name in names])
        return replace(self, **dict(zip(names, sums, strict=True)))


def tabulate(
    parts: Iterable[RoutePart],
    kind: NDArray[np.integer],
    bounds: Ints,
    kinds: TokenKinds,
    n_experts: int,
    n_layers: int,
    group: Ints | None = None,
) -> RouteTables:
    """Count the routes of `parts`.

    Args:
        parts: rows of tokens, and their routes `[token, slot]` for each layer.
        kind: the kind of every token of the corpus `[token]`; tokens of kind −1 are left out.
        bounds: stretch s holds the tokens from `bounds[s]` to `bounds[s + 1]`, `[stretch + 1]`.
        kinds: the kinds. Label residuals are kept by group for the first stratification, in total for the others.
        n_experts: number of experts in each layer.
        n_layers: number of layers.
        group: the group of documents to which each stretch belongs `[stretch]`; None makes each stretch a group.

    Returns:
        The tables of this process.
    """
    group_of = np.arange(len(bounds) - 1) if group is None else group
    kind_tokens = _tokens_of_kinds(kind, bounds, group_of, len(kinds.labels))
    residuals = [kinds.residuals(kind_tokens.sum(0), which) for which in range(len(kinds.strata))]
    scores = LabelScores.of(kinds, kind_tokens) if residuals else None
    stratum = kinds.strata[0] if residuals else np.full(len(kinds.labels), -1)
    tables = _empty_tables(kind_tokens, stratum, len(residuals), (n_layers, n_experts, kinds.labels.shape[1]))
    for rows, routes in parts:
        for g, tokens in _tokens_of_groups(kind, bounds, group_of, rows):
            present, local = distinct(kind[rows][tokens])
            # Matrix products in a type that holds every count of this run exactly.
            exact: type[np.floating[Any]] = np.float32 if len(local) < 1 << 24 else np.float64
            columns = [kinds.labels[present], *(r[present] for r in residuals)]
            if scores is not None:
                columns.append(scores.of_group(kind_tokens[g], present))
            weights = np.hstack(columns).astype(exact)
            order, starts, strata = _sorted_strata(stratum[present])
            layers, layers_at_once = list(routes), max(1, _BLOCK // (len(present) * n_experts))
            for first in range(0, n_layers, layers_at_once):
                at = slice(first, min(first + layers_at_once, n_layers))
                table = _tally([chosen[tokens] for chosen in layers[at]], local, len(present), n_experts, exact)
                sums = np.split(np.tensordot(table, weights, (0, 0)), len(columns), axis=2)
                tables.cells[g, at] += sums[0].astype(np.int32)
                tables.experts[g, at] += table.sum(0).astype(np.int64)
                for total, values in zip(tables.total_excess, sums[1:], strict=False):
                    total[at] += values
                if scores is not None:
                    tables.excess[g, at] += sums[-1].astype(np.float32)
                if len(starts):
                    by_stratum = np.add.reduceat(table[order], starts, axis=0)
                    tables.by_stratum[strata, at] += by_stratum.astype(np.int32)
                    tables.informative[g, at] += by_stratum.sum(0).astype(np.int64)
    return tables


def _tokens_of_kinds(kind: NDArray[np.integer], bounds: Ints, group_of: Ints, n_kinds: int) -> Ints:
    """Return the tokens of each kind in each group `[group, kind]`; kind −1 is not counted."""
    counts = np.zeros((int(group_of.max(initial=-1)) + 1, n_kinds), np.int64)
    for g, (start, stop) in zip(group_of.tolist(), pairwise(bounds.tolist()), strict=True):
        counted = kind[start:stop]
        np.add.at(counts[g], counted[counted >= 0], 1)
    return counts


def _empty_tables(kind_tokens: Ints, stratum: Ints, n_strata: int, shape: tuple[int, int, int]) -> RouteTables:
    """Return tables of zeros for `n_strata` stratifications; `shape` is that of `[layer, expert, label]`."""
    n_layers, n_experts, n_labels = shape
    by_group = len(kind_tokens), n_layers, n_experts
    return RouteTables(
        cells=np.zeros((*by_group, n_labels), np.int32),
        experts=np.zeros(by_group, np.int64),
        kind_tokens=kind_tokens,
        informative=np.zeros(by_group, np.int64),
        by_stratum=np.zeros((int(stratum.max(initial=-1)) + 1, n_layers, n_experts), np.int32),
        excess=np.zeros((*by_group, n_labels) if n_strata else (0,), np.float32),
        total_excess=np.zeros((n_strata, n_layers, n_experts, n_labels)),
    )


def _tally(
    routes: Sequence[Routes], kind: Ints, n_kinds: int, n_experts: int, exact: type[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Count tokens by kind, layer and expert `[kind, layer, expert]`, of routes `[token, slot]` and kinds `[token]`."""
    table = np.empty((n_kinds, len(routes), n_experts), exact)
    keys = (kind * n_experts)[:, None]
    for layer, chosen in enumerate(routes):
        counted = np.zeros(n_kinds * n_experts, np.int64)
        for i in range(0, len(kind), _STEP):
            counted += np.bincount((chosen[i : i + _STEP] + keys[i : i + _STEP]).ravel(), minlength=len(counted))
        table[:, layer] = counted.reshape(n_kinds, n_experts)
    return table


def in_parts(indices: Routes, rows: Ints) -> Iterator[RoutePart]:
    """Yield the given rows of `indices` `[token, layer, slot]` in parts, with the layer as the first axis."""
    for i in range(0, len(rows), _PART):
        chosen = indices[rows[i : i + _PART]]
        yield slice(i, i + len(chosen)), np.ascontiguousarray(np.moveaxis(chosen, 1, 0))


def _tokens_of_groups(
    kind: NDArray[np.integer], bounds: Ints, group_of: Ints, rows: slice
) -> Iterator[tuple[int, slice | Ints]]:
    """Yield each group that has tokens among `rows`, and their places within `rows`; kind −1 is left out.

    >>> groups = _tokens_of_groups(np.zeros(9, int), np.array([0, 4, 5, 9]), np.array([0, 1, 0]), slice(2, 8))
    >>> [(group, np.arange(6)[tokens].tolist()) for group, tokens in groups]
    [(0, [0, 1, 3, 4, 5]), (1, [2])]
    """
    first, last = np.searchsorted(bounds, [rows.start + 1, rows.stop]) - [1, 0]
    edges = np.clip(bounds[first : last + 1], rows.start, rows.stop) - rows.start
    for group in dict.fromkeys(group_of[first:last].tolist()):
        own = np.flatnonzero(group_of[first:last] == group)
        start, stop = edges[own], edges[own + 1]
        if len(own) == 1 and (kind[rows][start[0] : stop[0]] >= 0).all():
            yield group, slice(int(start[0]), int(stop[0]))  # which copies no routes
            continue
        places = np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)])
        counted = places[kind[rows][places] >= 0]
        if len(counted):
            yield group, counted


def _sorted_strata(stratum: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the rows sorted by stratum without those of −1, the start of each stratum, and its number."""
    order = np.argsort(stratum, kind="stable")
    order = order[np.searchsorted(stratum[order], 0) :]
    strata, starts = np.unique(stratum[order], return_index=True)
    return order, starts, strata


def _informative_strata(codes: NDArray[np.integer], pattern: Ints) -> Ints:
    """Number the strata from 0 `[token]`; −1 where all tokens of the stratum have the same pattern of labels."""
    stratum = distinct(codes)[1]
    n = int(stratum.max(initial=-1)) + 1
    pairs = np.unique(stratum * (int(pattern.max(initial=0)) + 1) + pattern)
    several = np.bincount(pairs // (int(pattern.max(initial=0)) + 1), minlength=n) > 1
    return np.where(several, np.cumsum(several) - 1, -1)[stratum]


def distinct(codes: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """Return the distinct values in ascending order, and the index of each code among them.

    The result is that of `np.unique(codes, return_inverse=True)`; where the values are close together nothing is
    sorted.

    >>> values, index = distinct(np.array([7, 3, 7]))
    >>> values.tolist(), index.tolist()
    ([3, 7], [1, 0, 1])
    """
    codes = np.asarray(codes, np.int64)
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    if high - low > 4 * len(codes) + _PART:
        values, index = np.unique(codes, return_inverse=True)
        return values, index.reshape(-1)
    occurs = np.zeros(high - low + 1, bool)
    occurs[codes - low] = True
    return np.flatnonzero(occurs) + low, (np.cumsum(occurs) - 1)[codes - low]


def document_bounds(sizes: Ints, counted: Ints, groups: int) -> Ints:
    """Return where each group of documents begins, and where the last one ends `[group + 1]`.

    A group is one document or several neighbouring ones. A document of which no token is counted does not count as a
    document.

    Args:
        sizes: tokens of each document `[document]`.
        counted: how many of them are counted `[document]`.
        groups: the largest number of groups.

    >>> document_bounds(np.array([3, 1, 4]), np.array([2, 0, 4]), 200).tolist()
    [0, 4, 8]
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])
    used = np.flatnonzero(counted)
    first = np.unique(balanced(counted[used], groups), return_index=True)[1]
    return np.concatenate([[0], starts[used[first[1:]]], starts[-1:]]).astype(np.int64)


def document_groups(sizes: Ints, counted: Ints, groups: int, texts: Ints) -> tuple[Ints, Ints]:
    """Group documents as `document_bounds` does, with all documents of the same text in one group.

    Such a group need not be a single stretch of tokens.

    Args:
        sizes: tokens of each document `[document]`.
        counted: how many of them are counted `[document]`.
        groups: the largest number of groups.
        texts: number of the text of each document `[document]`.

    Returns:
        Where each stretch of documents begins, and where the last one ends `[stretch + 1]`, and the group of each
        stretch `[stretch]`.

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
    """Join neighbouring items into at most `groups` groups of similar total size; return the group of each `[item]`.

    >>> balanced(np.array([1, 1, 2, 4]), 2).tolist(), balanced(np.array([5, 1]), 4).tolist()
    ([0, 0, 0, 1], [0, 1])
    """
    if len(sizes) <= groups:
        return np.arange(len(sizes))
    middle = np.cumsum(sizes) - sizes / 2
    return distinct((middle * groups / sizes.sum()).astype(np.int64))[1]
