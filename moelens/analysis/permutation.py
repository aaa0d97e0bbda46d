"""A permutation test that respects documents: whole label sequences move, tokens do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.counts import Bools, Floats, Ints, count_layer

STRATUM = 20
TOLERANCE = 1e-9


def document_shuffles(docs: NDArray[np.integer], permutations: int, seed: int) -> Iterator[Ints]:
    """Rows `[token]` whose labels each token gets, once for each permutation. `docs` `[token]` is sorted.

    Documents are sorted by length and exchange their label sequences at random within strata of about 20; a sequence
    is rotated by a random offset and cut or repeated to the length of its new document. As in any permutation, a
    document may draw its own sequence: where few documents can be exchanged the test then stays honest and gets weak.
    """
    rng = np.random.default_rng(seed)
    _, start, document, length = np.unique(docs, return_index=True, return_inverse=True, return_counts=True)
    position = np.arange(len(docs)) - start[document]
    by_length = np.argsort(length, kind="stable")
    n_strata = max(1, len(length) // STRATUM)
    stratum = np.arange(len(length)) * n_strata // len(length)
    donor = np.empty_like(by_length)
    for _ in range(permutations):
        donor[by_length] = by_length[np.lexsort((rng.random(len(length)), stratum))]
        offset = rng.integers(0, length[donor])
        yield start[donor][document] + (position + offset[document]) % length[donor][document]


def standardised(count: Floats, expert_tokens: Ints, label_tokens: Floats, n_tokens: int) -> Floats:
    """Risk difference over its binomial standard error `[expert, label]`; 0 where that is 0.

    Risk difference = P(expert | label) − P(expert | not label), the specialist Δ of SteerMoE (arXiv 2509.09660);
    over √(p(1−p)(1/n + 1/(N−n))) it reduces to (count − n p) / √(p(1−p) n (1−n/N)) with p = expert's tokens / N.
    """
    p = expert_tokens[:, None] / n_tokens
    variance = p * (1 - p) * label_tokens * (1 - label_tokens / n_tokens)
    difference = count - label_tokens * p
    return np.asarray(np.divide(difference, np.sqrt(variance), out=np.zeros_like(difference), where=variance > 0))


@dataclass(frozen=True)
class Routes:
    """What stays in place: `routes` `[layer, token, slot]`, `expert_tokens` `[layer, expert]`."""

    routes: NDArray[np.integer]
    expert_tokens: Ints

    def statistics(self, pattern: Ints, patterns: Bools) -> Iterator[Floats]:
        """Layer by layer, |standardised share difference| `[expert, label]`; two-sided."""
        n_tokens = len(pattern)
        label_tokens = np.bincount(pattern, minlength=len(patterns)).astype(float) @ patterns
        for routes, expert_tokens in zip(self.routes, self.expert_tokens, strict=True):
            count = count_layer(routes, pattern, patterns, len(expert_tokens))
            yield np.abs(standardised(count, expert_tokens, label_tokens, n_tokens))


def permutation_p(
    routes: Routes, pattern: Ints, patterns: Bools, tested: Bools, shuffles: Iterator[Ints]
) -> tuple[Floats, Floats]:
    """p of each cell and p among all `tested` cells, both `[layer, expert, label]`, NaN where not tested.

    p = (1 + permutations with a statistic at least as large) / (1 + permutations); for the second the statistic is
    the largest of all tested cells (Westfall and Young 1993, single step).
    """
    observed = np.stack(list(routes.statistics(pattern, patterns))) - TOLERANCE
    reached = np.zeros(observed.shape, np.int64)
    largest: list[float] = []
    for rows in shuffles:
        shuffled = pattern[rows]
        maximum = 0.0
        for i, statistic in enumerate(routes.statistics(shuffled, patterns)):
            reached[i] += statistic >= observed[i]
            maximum = max(maximum, float(statistic.max(where=tested[i], initial=0.0)))
        largest.append(maximum)
    ordered = np.sort(largest)
    reached_by_largest = len(ordered) - np.searchsorted(ordered, observed, side="left")
    p, p_family = ((1 + n) / (1 + len(ordered)) for n in (reached, reached_by_largest))
    return np.where(tested, p, np.nan), np.where(tested, p_family, np.nan)


def benjamini_hochberg(p: Floats) -> Floats:
    """q of every finite p, NaN elsewhere (Benjamini and Hochberg 1995).

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, np.nan])).round(3).tolist()
    [0.03, 0.04, 0.04, nan]
    """
    q = np.full(p.shape, np.nan)
    finite = np.isfinite(p)
    values = p[finite]
    order = np.argsort(values)[::-1]
    ranks = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum.accumulate(values[order] * len(values) / ranks)
    q[finite] = adjusted
    return q
