"""Measures that pick experts out: scores, saliency, super experts, standing committee; pure functions on arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.arrays import Bools, Floats, Routes, check_routes, divide
from moelens.analysis.routing import expert_counts
from moelens.errors import CheckError, MoeLensError


def token_score(indices: Routes, n_experts: int) -> Floats:
    """Share of a layer's choices that went to the expert `[layer, expert]`: n_i / (k N); a layer sums to 1.

    ESFT, Wang et al. 2024, arXiv 2407.01906.
    """
    return np.asarray(expert_counts(indices, n_experts) / (len(indices) * indices.shape[2]))


def gate_score(indices: Routes, weights: NDArray[np.floating] | None, n_experts: int) -> Floats:
    """Routing weight of the expert, averaged over all tokens `[layer, expert]`: Σ g_i / N.

    ESFT, Wang et al. 2024, arXiv 2407.01906: the mean over tokens, not normalised over experts. `weights` are
    `[token, layer, slot]`. Raises `MoeLensError` without weights.
    """
    check_routes(indices, n_experts)
    if weights is None:
        raise MoeLensError("gate scores of routes without weights; use token_score, or record the weights as well")
    if weights.shape != indices.shape:
        raise CheckError(f"weights have shape {list(weights.shape)}; allowed: that of indices, {list(indices.shape)}")
    sums = [
        np.bincount(indices[:, layer].ravel(), weights[:, layer].ravel().astype(float), minlength=n_experts)
        for layer in range(indices.shape[1])
    ]
    return np.array(sums).reshape(indices.shape[1], n_experts) / len(indices)


def selected_experts(scores: Floats, p: float) -> Bools:
    """The experts of largest score that together reach share `p` of their layer's sum `[layer, expert]`.

    ESFT, Wang et al. 2024, arXiv 2407.01906: the fewest that reach it. Raises `CheckError` for p out of (0, 1].

    >>> selected_experts(np.array([[0.1, 0.6, 0.3]]), p=0.7).tolist()
    [[False, True, True]]
    """
    if not 0 < p <= 1:
        raise CheckError(f"p is {p}; allowed: above 0, up to 1")
    order = np.argsort(-scores, axis=1, kind="stable")
    shares = divide(np.take_along_axis(scores, order, 1), scores.sum(1, keepdims=True))
    before = np.cumsum(shares, axis=1) - shares
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, order, before < p - 1e-12, 1)
    return chosen


def saliency(indices: Routes, weights: NDArray[np.floating], norms: NDArray[np.floating], n_experts: int) -> Floats:
    """Mean over the tokens of an expert of weight · ‖output‖ `[layer, expert]`; NaN where it was never chosen.

    REAP, Lasby et al. 2025, arXiv 2510.13999. `norms` `[token, layer, slot]` are those of the unweighted
    outputs. What happens without an expert is another question: see interventions.
    """
    total = gate_score(indices, np.asarray(weights, float) * norms, n_experts) * len(indices)
    return divide(total, expert_counts(indices, n_experts))


def super_experts(largest: NDArray[np.floating], massive: ArrayLike | None = None) -> Bools:
    """Experts with extreme outputs `[layer, expert]`.

    `largest` `[layer, expert]` is the greatest absolute activation of the expert's down projection. Super experts lie
    above the 99.5th percentile of all and above a tenth of the maximum (Su et al. 2025, arXiv 2507.23279), in layers
    where massive activations form: `massive` `[layer]`, all layers without it.
    """
    extreme = (largest > np.percentile(largest, 99.5)) & (largest > largest.max() / 10)
    return np.asarray(extreme if massive is None else extreme & np.asarray(massive, bool)[:, None])


def standing_committee(load: NDArray[np.floating], top_k: int, domains: float = 0.8) -> Bools:
    """Experts that nearly every domain uses `[layer, expert]`, from their `load` `[domain, layer, expert]`.

    Candidates are among the `top_k` most used in at least a share `domains` of the domains; of these, those that no
    other candidate beats in mean rank without being beaten in variance of rank: a Pareto set (arXiv 2601.03425).
    """
    rank = np.argsort(np.argsort(-load, axis=2, kind="stable"), axis=2, kind="stable")
    candidate = (rank < top_k).mean(0) >= domains - 1e-12
    mean, variance = rank.mean(0), rank.var(0)
    committee = np.zeros(candidate.shape, bool)
    for layer, experts in enumerate(candidate):
        m, v = mean[layer][experts], variance[layer][experts]
        no_worse = (m[:, None] <= m) & (v[:, None] <= v)
        better = (m[:, None] < m) | (v[:, None] < v)
        committee[layer, np.flatnonzero(experts)] = ~(no_worse & better).any(0)
    return committee
