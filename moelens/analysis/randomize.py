"""A randomisation test and a bootstrap over documents, computed from tables alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, expm1, sqrt

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, divide
from moelens.analysis.counting import RouteTables, TokenKinds
from moelens.bars import progress_bar

_TOLERANCE = 1e-4  # of float32 sums


@dataclass(frozen=True, eq=False)
class Excess:
    """What each group of documents adds to a count beyond what the strata of its tokens predict.

    The part of a document is the sum over its tokens of (R − r)(L − l): R is 1 if the expert was chosen, L is 1 if the
    token has the label, r and l are their means in the token's stratum. The sum over documents is the observed count
    minus Σ n·m/N over strata, the mean over all ways to permute labels within strata (Mantel and Haenszel 1959).

    Attributes:
        by_group: `[group, layer, expert, label]`.
        variance: variance of the sum over groups, if labels were exchanged within strata and between documents
            `[layer, expert, label]`.
    """

    by_group: NDArray[np.float32]
    variance: Floats

    @classmethod
    def of(cls, tables: RouteTables, kinds: TokenKinds) -> Excess:
        """Compute the excess from the label residuals at each expert, `tables.excess`, which is overwritten.

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
        for group, kind_tokens in enumerate(tables.kind_tokens):
            present = np.flatnonzero((kind_tokens > 0) & (stratum >= 0))
            if not len(present):
                continue
            tokens = kind_tokens[present]
            surplus = (tokens[:, None] * residual[present]).astype(np.float32)
            predicted = routing[stratum[present]]
            tables.excess[group] -= (predicted.T @ surplus).reshape(tables.excess.shape[1:])
            off = tables.informative[group] - (tokens.astype(np.float32) @ predicted).reshape(routes.shape)
            routes += off**2 / tokens.sum()
            labels += surplus.sum(0, dtype=float) ** 2 / tokens.sum()
        spread = (size**2 / np.maximum(size - 1, 1))[:, None] * (routing * (1 - routing))
        within = (spread.T @ (rate * (1 - rate))).reshape(n_layers, n_experts, n_labels)
        return cls(tables.excess, within + routes[:, :, None] * labels / n_groups)


@dataclass(frozen=True, eq=False, kw_only=True)
class CellTests:
    """Tests of cells. All arrays are `[layer, expert, label]`, with NaN where a cell was not tested.

    Attributes:
        p: p of the cell alone.
        p_family: family-wise p of the cell among all tested cells.
        null_sd: standard deviation of the excess under the null.
        low, high: 95 % interval of observed over expected.
    """

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
) -> CellTests:
    """Test whether the excess of each cell differs from 0, two-sided.

    Under the null, labels and routes are unrelated, and the excess of a document has either sign with the same
    probability. The test flips the sign of each document at random, for all cells of the document at once
    (sign-flipping score test: Hemerik, Goeman and Finos 2020, JRSS B 82:841). The statistic of a flip is the sum over
    √Σ d². The observed sum is divided by the larger of √Σ d² and the root of `Excess.variance`, since an expert that
    never takes a token of the label has no spread of its own.

    p = (1 + flips that reach the observed value) / (1 + flips). If no flip reaches it, p is at most Hoeffding's bound
    on that share, 2·exp(−z²/2). p is never less than the normal tail of z, since few sums are possible where one
    document outweighs all others. For the family-wise p, each flip is represented by its largest value of all tested
    cells (Westfall and Young 1993, single step). `low` and `high` are the 95 % interval of observed over expected when
    documents are drawn with replacement.

    Args:
        cells: counts `[group, layer, expert, label]`.
        excess: the excess of the same cells.
        tested: cells to test, bool `[layer, expert, label]`.
        permutations: number of sign flips, and of bootstrap draws.
        seed: seed of both.
        progress: show a progress bar; None shows it in a terminal or notebook.
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
        reached = (flipped >= (z[layer][at] - _TOLERANCE).astype(np.float32)).sum(0)
        p[layer][at] = _p_values(reached, permutations, z[layer][at])
        largest = np.maximum(largest, flipped.max(1))
        c = cells[:, layer][:, at].astype(np.float32)
        low[layer][at], high[layer][at] = _ratio_interval(draws @ c, draws @ (c - d), n_groups)
    reached = permutations - np.searchsorted(np.sort(largest), z - _TOLERANCE)
    p_family = np.where(tested, (1 + reached) / (1 + permutations), np.nan)
    return CellTests(p=p, p_family=p_family, null_sd=np.where(tested, null_sd, np.nan), low=low, high=high)


def _p_values(reached: NDArray[np.integer], permutations: int, z: Floats) -> Floats:
    """Compute p from the number of flips that reach z, see `document_test`.

    >>> _p_values(np.array([0, 0, 30]), 999, np.array([5.0, 1.0, 2.0])).round(6).tolist()
    [7e-06, 0.317311, 0.0455]
    """
    p = (1 + reached) / (1 + permutations)
    p = np.where(reached == 0, np.minimum(p, 2 * np.exp(-(z**2) / 2)), p)
    return np.maximum(p, [erfc(x / sqrt(2)) for x in z])


def _ratio_interval(
    observed: NDArray[np.float32], expected: NDArray[np.float32], n_groups: int
) -> tuple[Floats, Floats]:
    """Compute the 95 % interval of observed over expected, each `[draw, cell]`, as two arrays `[cell]`.

    A draw whose expected count is 0 counts as infinite. The middle 95 % of the draws of n groups are too narrow by
    √((n − 1)/n), and by the quantile of the normal over that of t. The interval therefore leaves out only
    Φ(−t√(n/(n − 1))) at either end (expanded percentile interval, Hesterberg 2015, Am. Stat. 69:371). In 300 simulated
    corpora of 20 or 60 documents 94 % of these intervals held the true value (91 and 93 % of the middle 95 %), but 91 %
    where most experts took fewer than 5 tokens of the label.
    """
    ratio = np.divide(observed, expected, out=np.full_like(observed, np.inf), where=expected > 0)
    ratio.sort(axis=0)
    outside = erfc(_student_quantile(n_groups - 1) * sqrt(n_groups / (n_groups - 1) / 2)) / 2
    tail = max(0, int(outside * (len(ratio) + 1)) - 1)
    return ratio[tail].astype(float), ratio[-1 - tail].astype(float)


def _student_quantile(freedom: int) -> float:
    """Compute the 97.5 % quantile of Student's t (Gaver and Kafadar 1984, Am. Stat. 38:308).

    The approximation needs 2 or more degrees of freedom.

    >>> [round(_student_quantile(n), 2) for n in (2, 5, 19, 199)]
    [4.34, 2.58, 2.09, 1.97]
    """
    scaled = 1.959964**2 * (freedom - 5 / 6) / (freedom - 2 / 3 + 0.1 / freedom) ** 2
    return sqrt(freedom * expm1(scaled))


def benjamini_hochberg(p: Floats) -> Floats:
    """Compute q of every finite p, NaN elsewhere (Benjamini and Hochberg 1995).

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
