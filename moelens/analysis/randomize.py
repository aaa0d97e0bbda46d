"""A randomisation test over documents and intervals, computed from tables alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from moelens.analysis.arrays import Bools, Floats, divide
from moelens.analysis.counting import LabelScores, RouteTables, TokenKinds
from moelens.analysis.tables import number
from moelens.bars import progress_bar
from moelens.texts import Texts

ALPHA = 0.05
"""Level of significance."""
_TOLERANCE = 1e-4  # of float32 sums


@dataclass(frozen=True, eq=False, kw_only=True)
class Excess:
    """What each group of documents adds to a count beyond what the strata of its tokens predict.

    The part of a document is the sum over its tokens of (R − r)(L − l): R is 1 if the expert was chosen, L is 1 if the
    token has the label, r and l are their means in the token's stratum. The sum over documents is the observed count
    minus Σ n·m/N over strata, the mean over all ways to permute labels within strata (Mantel and Haenszel 1959).

    Attributes:
        by_group: the parts, corrected as `LabelScores` says, so that their squares add up to the variance of `total`
            `[group, layer, expert, label]`.
        total: the sum of the uncorrected parts `[layer, expert, label]`.
        within: variance of the total if labels were permuted within strata `[layer, expert, label]`.
        variance: the same if whole documents were exchanged too `[layer, expert, label]`.
    """

    by_group: NDArray[np.float32]
    total: Floats
    within: Floats
    variance: Floats

    @classmethod
    def of(cls, tables: RouteTables, kinds: TokenKinds, copies: float = 1.0) -> Excess:
        """Compute the excess from the label scores at each expert, `tables.excess`, which is overwritten.

        The variance is that of labels permuted within strata, plus that of whole documents exchanged (Hoeffding 1951):
        Σ N²/(N−1) r(1−r) l(1−l) over strata + Σ A²/n · Σ B²/n / documents, with A and B the sums of R − r and L − l
        over the n tokens of a document. Copies of a text do not vary on their own: with c `copies` of each on average,
        the first sum is c times as large.
        """
        n_groups, n_layers, n_experts, n_labels = tables.cells.shape
        scores, stratum = LabelScores.of(kinds, tables.kind_tokens), kinds.strata[0]
        size = scores.size
        routing = (tables.by_stratum / np.maximum(size, 1)[:, None, None]).astype(np.float32)
        routing = routing.reshape(len(size), n_layers * n_experts)
        routes, labels = np.zeros((n_layers, n_experts)), np.zeros(n_labels)
        for group, kind_tokens in enumerate(tables.kind_tokens):
            present = np.flatnonzero((kind_tokens > 0) & (stratum >= 0))
            if not len(present):
                continue
            tokens, predicted = kind_tokens[present], routing[stratum[present]]
            surplus = (tokens[:, None] * scores.of_group(kind_tokens, present)).astype(np.float32)
            tables.excess[group] -= (predicted.T @ surplus).reshape(tables.excess.shape[1:])
            off = tables.informative[group] - (tokens.astype(np.float32) @ predicted).reshape(routes.shape)
            routes += off**2 / tokens.sum()
            labels += (tokens @ scores.residuals[present]) ** 2 / tokens.sum()
        spread = (size**2 / np.maximum(size - 1, 1))[:, None] * (routing * (1 - routing))
        within = copies * (spread.T @ (scores.rate * (1 - scores.rate))).reshape(n_layers, n_experts, n_labels)
        return cls(
            by_group=tables.excess,
            total=tables.total_excess[0],
            within=within,
            variance=within + routes[:, :, None] * labels / n_groups,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class CellTests:
    """Tests of cells. All arrays are `[layer, expert, label]`, with NaN where a cell was not tested.

    Attributes:
        p: p of the cell alone.
        p_family: family-wise p of the cell among all tested cells.
        null_sd: standard deviation of the excess under the null.
        low, high: 95 % interval of observed over expected; NaN also where there is none.
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
    *,
    documents: float,
    progress: bool | None = None,
) -> CellTests:
    """Test whether the excess of each cell differs from 0, two-sided.

    Under the null, labels and routes are unrelated, and the excess d of a document has either sign with the same
    probability. The test flips the sign of each document at random, for all cells of the document at once
    (sign-flipping score test: Hemerik, Goeman and Finos 2020, JRSS B 82:841). The statistic of a flip is the sum over
    √Σ d². The observed total is divided by the larger of √Σ d² and the root of `Excess.variance`, since an expert that
    never takes a token of the label has no spread of its own.

    p = (1 + flips that reach the observed value) / (1 + flips). If no flip reaches it, p is at most Hoeffding's bound
    on that share, 2·exp(−z²/2). p is never less than the normal tail of z, since few sums are possible where one
    document outweighs all others, and never less than 2^(1 − documents), see `smallest_p`. For the family-wise p, each
    flip is represented by its largest value of all tested cells (Westfall and Young 1993, single step).

    Args:
        cells: counts `[group, layer, expert, label]`.
        excess: the excess of the same cells.
        tested: cells to test, bool `[layer, expert, label]`.
        permutations: number of sign flips.
        seed: seed of the flips.
        documents: effective number of documents, see `effective_number`.
        progress: show a progress bar; None shows it in a terminal or notebook.
    """
    n_groups, n_layers = excess.by_group.shape[:2]
    signs = (2 * np.random.default_rng(seed).integers(0, 2, (permutations, n_groups)) - 1).astype(np.float32)
    z, p, low, high = (np.full(tested.shape, np.nan) for _ in range(4))
    null_sd = np.sqrt(excess.variance)
    largest = np.zeros(permutations, np.float32)
    for layer in progress_bar(range(n_layers), show=progress, desc="layers"):
        at = tested[layer]
        if not at.any():
            continue
        d, total = excess.by_group[:, layer][:, at], excess.total[layer][at]
        length = np.sqrt((d.astype(float) ** 2).sum(0))
        null_sd[layer][at] = np.maximum(length, null_sd[layer][at])
        z[layer][at] = np.nan_to_num(divide(np.abs(total), null_sd[layer][at]))
        flipped = np.abs(signs @ (d / np.where(length > 0, length, 1).astype(np.float32)))
        reached = (flipped >= (z[layer][at] - _TOLERANCE).astype(np.float32)).sum(0)
        p[layer][at] = _p_values(reached, permutations, z[layer][at])
        largest = np.maximum(largest, flipped.max(1))
        observed = cells[:, layer][:, at]
        low[layer][at], high[layer][at] = _ratio_interval(observed, d, total, documents, excess.within[layer][at])
    reached = permutations - np.searchsorted(np.sort(largest), z - _TOLERANCE)
    p_family = np.where(tested, (1 + reached) / (1 + permutations), np.nan)
    least = 2.0 ** (1 - documents)
    return CellTests(
        p=np.maximum(p, least),
        p_family=np.maximum(p_family, least),
        null_sd=np.where(tested, null_sd, np.nan),
        low=low,
        high=high,
    )


def effective_number(sizes: ArrayLike) -> float:
    """Compute how many documents of one size vary as much as documents of these sizes: (Σ n)² / Σ n² (Kish 1965).

    >>> effective_number([5, 5, 5, 5]), round(effective_number([100, 5, 5, 5]), 2)
    (4.0, 1.31)
    """
    sizes = np.asarray(sizes, float)
    return float(sizes.sum() ** 2 / max((sizes**2).sum(), 1e-300))


def smallest_p(documents: float, permutations: int) -> float:
    """Compute the smallest p that a test over so many documents can reach.

    n documents have 2^n flips of signs, and the observed ones and their opposite have the same statistic.

    >>> [round(smallest_p(n, 999), 4) for n in (3, 5, 6, 20)]
    [0.25, 0.0625, 0.0312, 0.001]
    """
    return float(max(2.0 ** (1 - documents), 1 / (1 + permutations)))


def limits_of_test(documents: float, permutations: int, say: Texts | None = None) -> str:
    """Say what a test over so many documents can show, in one line.

    >>> print(limits_of_test(3, 999))
    effective number of documents 3.0: p is at least 0.250, so nothing can be significant, and no interval is given
    >>> print(limits_of_test(60, 999))
    effective number of documents 60.0: p is at least 0.00100
    """
    least = smallest_p(documents, permutations)
    say = say or Texts()
    line = say("result.documents", documents=f"{documents:.1f}", least=number(least))
    return say("result.documents_few", text=line) if 2.0 ** (1 - documents) > ALPHA else line


def _p_values(reached: NDArray[np.integer], permutations: int, z: Floats) -> Floats:
    """Compute p from the number of flips that reach z, see `document_test`.

    >>> _p_values(np.array([0, 0, 30]), 999, np.array([5.0, 1.0, 2.0])).round(6).tolist()
    [7e-06, 0.317311, 0.0455]
    """
    p = (1 + reached) / (1 + permutations)
    p = np.where(reached == 0, np.minimum(p, 2 * np.exp(-(z**2) / 2)), p)
    return np.maximum(p, [erfc(x / sqrt(2)) for x in z])


def _ratio_interval(
    observed: NDArray[np.number],
    excess: NDArray[np.floating],
    total: ArrayLike,
    documents: float,
    within: ArrayLike = 0.0,
) -> tuple[Floats, Floats]:
    """Compute the 95 % interval of the ratio of observed to expected over documents (Fieller 1954, JRSS B 16:175).

    The ratio is λ if the parts c − λe of the documents, observed and expected, have the mean 0. The interval holds
    every λ for which their sum is less than t standard errors away from 0: (C − λE)² ≤ q² [Σ (c − λe)² + λv]. t has n −
    1 degrees of freedom and, since the squares are taken from 0 and not from their mean, q² = t²n / (n − 1 + t²). v is
    by how much the variance under permutation exceeds the squares at λ = 1, as it does for labels and experts that meet
    in a handful of tokens. There is no interval where the inequality holds for arbitrarily large λ, since few documents
    make up the expected count, nor for fewer documents than a test needs.

    Args:
        observed: c, observed in each document `[document, cell]`.
        excess: c − e `[document, cell]`; e is what is expected.
        total: C − E `[cell]`, the sum of the excess before any correction of its parts.
        documents: n, the effective number of documents.
        within: variance of the excess under permutation `[cell]`.

    Returns:
        The lower and the upper ends `[cell]`, NaN where there is no interval.
    """
    c, d = np.asarray(observed, float), np.asarray(excess, float)
    counted = c.sum(0)
    if 2.0 ** (1 - documents) > ALPHA:
        return np.full(counted.shape, np.nan), np.full(counted.shape, np.nan)
    t2 = float(student_t.ppf(0.975, documents - 1)) ** 2
    q2 = t2 * documents / (documents - 1 + t2)
    cc, cd, dd = (c * c).sum(0), (c * d).sum(0), (d * d).sum(0)
    expected, unseen = counted - total, np.maximum(within - dd, 0)
    square = expected**2 - q2 * (cc - 2 * cd + dd)  # c − λe = (1 − λ)c + λd
    linear = 2 * counted * expected + q2 * (2 * cd - 2 * cc + unseen)
    root = np.sqrt(np.maximum(linear**2 - 4 * square * (counted**2 - q2 * cc), 0))
    scale = np.where(square > 0, 2 * square, np.nan)
    return np.asarray(np.maximum(linear - root, 0) / scale), np.asarray((linear + root) / scale)


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
