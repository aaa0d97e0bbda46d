"""A randomisation test and a bootstrap over documents, from tables alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, expm1, sqrt

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, divide
from moelens.analysis.counting import Kinds, Tables
from moelens.bars import progress_bar

TOLERANCE = 1e-4  # of float32 sums


@dataclass(frozen=True, eq=False)
class Excess:
    """What each group of documents adds to a count beyond what its tokens' strata predict.

    A document's share is the sum over its tokens of (R − r)(L − l): R says whether the expert was chosen, L whether
    the token has the label, r and l are their means in the token's stratum. Summed over documents this is the observed
    count less Σ n·m/N over strata, the mean over all ways to permute labels within strata (Mantel and Haenszel 1959).
    """

    by_group: NDArray[np.float32]
    """`[group, layer, expert, label]`."""
    variance: Floats
    """Of their sum, if labels were exchanged within strata and between documents `[layer, expert, label]`."""

    @classmethod
    def of(cls, tables: Tables, kinds: Kinds, copies: float = 1.0) -> Excess:
        """Turns `tables.excess`, label residuals at each expert, into the above; it is overwritten.

        Copies of a document do not vary alone: with c `copies` of each on average, the first sum below is c times as
        large.

        The variance is that of labels permuted within strata, plus that of whole documents exchanged (Hoeffding 1951):
        Σ N²/(N−1) r(1−r) l(1−l) over strata + Σ A²/n · Σ B²/n / documents, with A and B the sums of R − r and L − l
        over the n tokens of a document.
        """
        n_groups, n_layers, n_experts, n_labels = tables.cells.shape
        size, rate = kinds.rates(tables.kind_tokens.sum(0), 0)
        routing = (tables.by_stratum / np.maximum(size, 1)[:, None, None]).astype(np.float32)
        routing = routing.reshape(len(size), n_layers * n_experts)
        residual, stratum = kinds.residuals(tables.kind_tokens.sum(0), 0), kinds.strata[0]
        routes, labels = np.zeros((n_layers, n_experts)), np.zeros(n_labels)
        for g, kind_tokens in enumerate(tables.kind_tokens):
            here = np.flatnonzero((kind_tokens > 0) & (stratum >= 0))
            if not len(here):
                continue
            tokens = kind_tokens[here]
            surplus = (tokens[:, None] * residual[here]).astype(np.float32)
            predicted = routing[stratum[here]]
            tables.excess[g] -= (predicted.T @ surplus).reshape(tables.excess.shape[1:])
            off = tables.undecided[g] - (tokens.astype(np.float32) @ predicted).reshape(routes.shape)
            routes += off**2 / tokens.sum()
            labels += surplus.sum(0, dtype=float) ** 2 / tokens.sum()
        spread = (size**2 / np.maximum(size - 1, 1))[:, None] * (routing * (1 - routing))
        within = (spread.T @ (rate * (1 - rate))).reshape(n_layers, n_experts, n_labels)
        return cls(tables.excess, copies * within + routes[:, :, None] * labels / n_groups)


@dataclass(frozen=True, eq=False)
class Verdict:
    """All `[layer, expert, label]`; NaN where not tested."""

    p: Floats
    p_family: Floats
    null_sd: Floats
    low: Floats
    high: Floats


def document_test(
    cells: NDArray[np.integer],
    excess: Excess,
    tested: Bools,
    permutations: int,
    seed: int,
    progress: bool | None = None,
) -> Verdict:
    """Test whether the excess of each `tested` cell `[layer, expert, label]` of `cells` is other than 0, two-sided.

    If labels say nothing about routes, a document's excess is as likely to be turned the other way, so its sign is
    flipped at random, for all cells of a document at once (sign-flipping score test: Hemerik, Goeman and Finos 2020,
    JRSS B 82:841). The statistic is the sum over √Σ d² of what is flipped; what is observed is divided by the larger
    of √Σ d² and the root of `Excess.variance`, since an expert that never meets a label shows no spread of its own.

    p = (1 + flips that reach the observed value) / (1 + flips); where none does, Hoeffding's bound 2·exp(−z²/2) on
    that share if it is smaller; never less than a normal tail of z, since one document that outweighs all others leaves
    few sums to reach. For the family-wise p the flips compete with the largest of all tested cells (Westfall
    and Young 1993, single step). `low` and `high` bound the 95 % `interval` of observed over expected when documents
    are drawn with replacement.
    """
    n_groups, n_layers = excess.by_group.shape[:2]
    rng = np.random.default_rng(seed)
    signs = (2 * rng.integers(0, 2, (permutations, n_groups)) - 1).astype(np.float32)
    draws = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), permutations).astype(np.float32)
    z, p, low, high = (np.full(tested.shape, np.nan) for _ in range(4))
    null_sd = np.sqrt(excess.variance)
    largest = np.zeros(permutations, np.float32)
    for layer in progress_bar(range(n_layers), show=progress, desc="layers"):
        at = tested[layer]
        if not at.any():
            continue
        d = excess.by_group[:, layer][:, at]
        length = np.sqrt((d.astype(float) ** 2).sum(0))
        null_sd[layer][at] = np.maximum(length, null_sd[layer][at])
        z[layer][at] = np.nan_to_num(divide(np.abs(d.sum(0, dtype=float)), null_sd[layer][at]))
        flipped = np.abs(signs @ (d / np.where(length > 0, length, 1).astype(np.float32)))
        reached = (flipped >= (z[layer][at] - TOLERANCE).astype(np.float32)).sum(0)
        p[layer][at] = p_value(reached, permutations, z[layer][at])
        largest = np.maximum(largest, flipped.max(1))
        c = cells[:, layer][:, at].astype(np.float32)
        low[layer][at], high[layer][at] = interval(draws @ c, draws @ (c - d), n_groups)
    beaten_by = permutations - np.searchsorted(np.sort(largest), z - TOLERANCE)
    p_family = np.where(tested, (1 + beaten_by) / (1 + permutations), np.nan)
    return Verdict(p, p_family, np.where(tested, null_sd, np.nan), low, high)


def p_value(reached: NDArray[np.integer], permutations: int, z: Floats) -> Floats:
    """p from the flips that reach z, see `document_test`.

    >>> p_value(np.array([0, 0, 30]), 999, np.array([5.0, 1.0, 2.0])).round(6).tolist()
    [7e-06, 0.317311, 0.0455]
    """
    p = (1 + reached) / (1 + permutations)
    p = np.where(reached == 0, np.minimum(p, 2 * np.exp(-(z**2) / 2)), p)
    return np.maximum(p, [erfc(x / sqrt(2)) for x in z])


def interval(observed: NDArray[np.float32], expected: NDArray[np.float32], n_groups: int) -> tuple[Floats, Floats]:
    """The 95 % interval of observed over expected `[draw, cell]`; a draw that expects nothing counts as infinite.

    The middle 95 % of draws of n groups are too narrow by √((n − 1)/n), and by the normal quantile over that of t. So
    all are taken but Φ(−t√(n/(n − 1))) at either end (expanded percentile interval, Hesterberg 2015, Am. Stat. 69:371).
    In 300 simulated corpora of 20 or 60 documents 94 % of them held the true value (91 and 93 % of the middle 95 %),
    but 91 % where most experts met the label fewer than 5 times.
    """
    ratio = np.divide(observed, expected, out=np.full_like(observed, np.inf), where=expected > 0)
    ratio.sort(axis=0)
    outside = erfc(student(n_groups - 1) * sqrt(n_groups / (n_groups - 1) / 2)) / 2
    tail = max(0, int(outside * (len(ratio) + 1)) - 1)
    return ratio[tail].astype(float), ratio[-1 - tail].astype(float)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, for 2 or more degrees of freedom (Gaver and Kafadar 1984, Am. Stat. 38:308).

    >>> [round(student(n), 2) for n in (2, 5, 19, 199)]
    [4.34, 2.58, 2.09, 1.97]
    """
    scaled = 1.959964**2 * (freedom - 5 / 6) / (freedom - 2 / 3 + 0.1 / freedom) ** 2
    return sqrt(freedom * expm1(scaled))


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
    q[finite] = np.minimum(adjusted, 1)
    return q
