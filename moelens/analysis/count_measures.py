"""Measures of how groups of text use experts, each a pure function of counts or of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, divide
from moelens.analysis.count_tables import CountTables
from moelens.analysis.experts import standing_committee
from moelens.analysis.routing import router_entropy
from moelens.errors import CheckError

_LEAST_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class ExclusiveExpert:
    """An expert that one label uses nearly alone.

    Attributes:
        layer: number of the layer in the model.
        expert: number of the expert.
        label: the label.
        exclusivity: see `exclusivity`.
        share: share of the label's tokens that the expert takes.
        other_share: the largest share of another label's tokens that it takes.
        tokens: tokens of the label at the expert, which stand behind these figures.
    """

    layer: int
    expert: int
    label: str
    exclusivity: float
    share: float
    other_share: float
    tokens: float


def usage(counts: CountTables) -> Floats:
    """Compute the distribution of a label over the experts of a layer: what each expert gets of what the label gives.

    Args:
        counts: the counts.

    Returns:
        `[layer, expert, label]`; each label sums to 1 in each layer. NaN for a label without tokens.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[3], [1]]], [[6, 4]], [4], ["ja"], layers=[0], top_k=1)
        >>> usage(counts)[0, :, 0].tolist()
        [0.75, 0.25]
    """
    return divide(counts.count, counts.count.sum(1, keepdims=True))


def usage_entropy(counts: CountTables) -> Floats:
    """Compute the entropy of each label's distribution over the experts of a layer, −Σ p log2 p.

    Args:
        counts: the counts.

    Returns:
        Bits, `[layer, label]`; log2 E if the label uses all experts evenly, NaN for a label without tokens.

    Example:
        >>> from moelens.analysis import Counts
        >>> usage_entropy(Counts.from_table([[[2], [2]]], [[6, 4]], [4], ["ja"], layers=[0], top_k=1)).tolist()
        [[1.0]]
    """
    bits = router_entropy(np.moveaxis(usage(counts), 1, 2)) / np.log(2)
    return np.where(counts.count.any(1), bits, np.nan)


def coverage(shares: NDArray[np.floating], n: int) -> Floats:
    """Compute the share that the n most used experts take together.

    Args:
        shares: distributions over experts `[…, expert, label]`, such as `usage` returns.
        n: number of experts.

    Returns:
        `[…, label]`.

    Raises:
        CheckError: there are fewer than `n` experts, or `n` is below 1.

    Example:
        >>> coverage(np.array([[0.5, 0.1], [0.3, 0.4], [0.2, 0.5]]), 2).round(2).tolist()  # [expert, label]
        [0.8, 0.9]
    """
    _check_top(shares, n)
    return np.asarray(np.sort(shares, axis=-2)[..., -n:, :].sum(-2))


def most_used(shares: NDArray[np.floating], n: int) -> Bools:
    """Find the n most used experts of each label; of equally used ones, those with the smaller numbers.

    Args:
        shares: distributions over experts `[…, expert, label]`, such as `usage` returns.
        n: number of experts.

    Returns:
        Bool `[…, expert, label]`.

    Raises:
        CheckError: there are fewer than `n` experts, or `n` is below 1.

    Example:
        >>> most_used(np.array([[0.5, 0.1], [0.3, 0.4], [0.2, 0.5]]), 1).T.tolist()  # [expert, label]
        [[True, False, False], [False, False, True]]
    """
    _check_top(shares, n)
    chosen = np.zeros(shares.shape, bool)
    np.put_along_axis(chosen, np.argsort(-shares, axis=-2, kind="stable")[..., :n, :], True, -2)
    return chosen


def _check_top(shares: NDArray[np.floating], n: int) -> None:
    """Raise `CheckError` unless there are `n` experts to choose."""
    if not 1 <= n <= shares.shape[-2]:
        raise CheckError(
            f"expected a number of most used experts from 1 to {shares.shape[-2]}, got {n}; give another top_n"
        )


def jaccard(shares: NDArray[np.floating], n: int) -> Floats:
    """Compute how alike two labels are in their n most used experts: `|A ∩ B| / |A ∪ B|`.

    Give the distributions of each layer for a value in each layer. Their mean over layers gives the single value for
    two categories that arXiv 2606.25092 publishes, with half of the experts as `n`.

    Args:
        shares: distributions over experts `[…, expert, label]`, such as `usage` returns.
        n: number of experts.

    Returns:
        `[…, label, label]`, 1 on the diagonal.

    Raises:
        CheckError: there are fewer than `n` experts, or `n` is below 1.

    Example:
        >>> shares = np.array([[0.5, 0.1], [0.3, 0.4], [0.2, 0.5]])  # [expert, label]
        >>> jaccard(shares, 2).round(2).tolist()
        [[1.0, 0.33], [0.33, 1.0]]
    """
    chosen = most_used(shares, n).astype(float)
    both = np.swapaxes(chosen, -1, -2) @ chosen
    return np.asarray(both / (2 * n - both))


def jensen_shannon(shares: NDArray[np.floating]) -> Floats:
    """Compute the Jensen–Shannon divergence of the distributions of two labels (Lin 1991).

    H(½(p + q)) − ½(H(p) + H(q)), with logarithms to base 2.

    Args:
        shares: distributions over experts `[…, expert, label]`, such as `usage` returns.

    Returns:
        Bits, `[…, label, label]`: 0 for equal distributions, 1 for those that share no expert. NaN for a label
        without tokens.

    Example:
        >>> jensen_shannon(np.array([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    by_label = np.moveaxis(shares, -2, -1)
    entropy = router_entropy(by_label)
    mixed = router_entropy((by_label[..., :, None, :] + by_label[..., None, :, :]) / 2)
    inside = (entropy[..., :, None] + entropy[..., None, :]) / 2
    missing = np.isnan(by_label).any(-1)
    bits = np.maximum(mixed - inside, 0) / np.log(2)
    return np.where(missing[..., :, None] | missing[..., None, :], np.nan, bits)


def exclusivity(counts: CountTables) -> Floats:
    """Compute a label's share at an expert over the sum of the shares of all labels there.

    Each label counts the same, however many tokens it has. The labels should not overlap, as languages do not.

    Args:
        counts: the counts.

    Returns:
        `[layer, expert, label]`: 1 where only this label uses the expert, 1 / labels where all use it alike. NaN for an
        expert that was never chosen.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[30, 10], [0, 30]]], [[40, 30]], [30, 40], ["ja", "en"], layers=[0], top_k=1)
        >>> exclusivity(counts).round(2).tolist()
        [[[0.8, 0.2], [0.0, 1.0]]]
    """
    shares = np.nan_to_num(counts.share())
    return divide(shares, shares.sum(2, keepdims=True))


def exclusive_experts(
    counts: CountTables, least: float = 0.9, min_tokens: float = _LEAST_TOKENS
) -> tuple[ExclusiveExpert, ...]:
    """Find the experts that one label uses nearly alone, those with most tokens first.

    Args:
        counts: the counts.
        least: the least `exclusivity`.
        min_tokens: the least number of tokens of the label at the expert.

    Returns:
        The experts with the figures behind the claim.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[30, 0], [0, 30]]], [[30, 30]], [30, 30], ["ja", "en"], layers=[7], top_k=1)
        >>> [(e.layer, e.expert, e.label, e.tokens) for e in exclusive_experts(counts)]
        [(7, 0, 'ja', 30.0), (7, 1, 'en', 30.0)]
    """
    if len(counts.names) < 2:
        return ()
    alone, shares = exclusivity(counts), np.nan_to_num(counts.share())
    found = []
    for layer, expert, label in np.argwhere((alone >= least) & (counts.count >= min_tokens)).tolist():
        found.append(
            ExclusiveExpert(
                layer=counts.layers[layer],
                expert=expert,
                label=counts.names[label],
                exclusivity=float(alone[layer, expert, label]),
                share=float(shares[layer, expert, label]),
                other_share=float(np.delete(shares[layer, expert], label).max()),
                tokens=float(counts.count[layer, expert, label]),
            )
        )
    return tuple(sorted(found, key=lambda e: (-e.tokens, e.layer, e.expert)))


def label_committee(counts: CountTables) -> Bools:
    """Find the experts that nearly every label uses: `standing_committee` with the labels as domains.

    Args:
        counts: the counts.

    Returns:
        Bool `[layer, expert]`.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[30, 30], [0, 10]]], [[60, 10]], [30, 40], ["ja", "en"], layers=[0], top_k=1)
        >>> label_committee(counts).tolist()
        [[True, False]]
    """
    return standing_committee(np.moveaxis(np.nan_to_num(usage(counts)), 2, 0), counts.top_k)


def mean_gate(counts: CountTables) -> Floats:
    """Compute the mean gate weight of an expert where it is chosen for a label, Σ g / N.

    Args:
        counts: counts with sums of gate weights.

    Returns:
        `[layer, expert, label]`; NaN where the expert was never chosen.

    Raises:
        CheckError: the counts have no sums of gate weights.

    Example:
        >>> tables = {"cells": [[[[4], [4]]]], "gates": [[[[3.0], [1.0]]]], "experts": [[[4, 4]]]}
        >>> arrays = {name: np.array(table) for name, table in (tables | {"labels": [[4]], "tokens": [4]}).items()}
        >>> mean_gate(CountTables(**arrays, names=("ja",), layers=(0,), top_k=2))[0, :, 0].tolist()
        [0.75, 0.25]
    """
    if counts.gates is None:
        raise CheckError(
            "expected counts with sums of gate weights, got counts without; import a table with a column of gate sums"
        )
    return divide(counts.gates.sum(0), counts.count)
