"""Measures that single out experts: scores, saliency, super experts and standing committees, as functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.arrays import Bools, Floats, Routes, check_routes, divide
from moelens.analysis.routing import expert_counts
from moelens.errors import CheckError, MoeLensError


def token_score(indices: Routes, n_experts: int) -> Floats:
    """Compute the share of a layer's choices that each expert gets: n_i / (k N) (ESFT, arXiv 2407.01906).

    Args:
        indices: expert ids `[token, layer, slot]`.
        n_experts: number of experts in each layer.

    Returns:
        `[layer, expert]`; each layer sums to 1.

    Raises:
        CheckError: an expert id is out of range.

    Example:
        >>> token_score(np.array([[[0, 1]], [[0, 2]]]), n_experts=4).tolist()
        [[0.5, 0.25, 0.25, 0.0]]
    """
    return np.asarray(expert_counts(indices, n_experts) / (len(indices) * indices.shape[2]))


def gate_score(indices: Routes, weights: NDArray[np.floating] | None, n_experts: int) -> Floats:
    """Compute the routing weight of each expert, averaged over all tokens: Σ g_i / N (ESFT, arXiv 2407.01906).

    The mean is over tokens and is not normalised over experts.

    Args:
        indices: expert ids `[token, layer, slot]`.
        weights: gate weights `[token, layer, slot]`.
        n_experts: number of experts in each layer.

    Returns:
        `[layer, expert]`.

    Raises:
        MoeLensError: there are no weights.
        CheckError: the shapes differ, or an expert id is out of range.

    Example:
        >>> gate_score(np.array([[[0, 1]], [[0, 2]]]), np.array([[[0.5, 0.5]], [[0.75, 0.25]]]), n_experts=3).tolist()
        [[0.625, 0.25, 0.125]]
    """
    check_routes(indices, n_experts)
    if weights is None:
        raise MoeLensError("expected routes with weights, got none; use token_score, or record the weights as well")
    if weights.shape != indices.shape:
        raise CheckError(
            f"expected weights of the shape of indices, {list(indices.shape)}, got {list(weights.shape)}; "
            "give both of the same recording"
        )
    sums = [
        np.bincount(indices[:, layer].ravel(), weights[:, layer].ravel().astype(float), minlength=n_experts)
        for layer in range(indices.shape[1])
    ]
    return np.array(sums).reshape(indices.shape[1], n_experts) / len(indices)


def selected_experts(scores: Floats, p: float) -> Bools:
    """Select the fewest experts of each layer whose scores together reach the share `p` (ESFT, arXiv 2407.01906).

    Args:
        scores: scores `[layer, expert]`, such as those of `token_score` or `gate_score`.
        p: share of the layer's sum to reach, above 0 and up to 1.

    Returns:
        Bool `[layer, expert]`.

    Raises:
        CheckError: `p` is out of range.

    Example:
        >>> selected_experts(np.array([[0.1, 0.6, 0.3]]), p=0.7).tolist()
        [[False, True, True]]
    """
    if not 0 < p <= 1:
        raise CheckError(f"expected p above 0 and up to 1, got {p}; give a share such as 0.9")
    order = np.argsort(-scores, axis=1, kind="stable")
    shares = divide(np.take_along_axis(scores, order, 1), scores.sum(1, keepdims=True))
    before = np.cumsum(shares, axis=1) - shares
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, order, before < p - 1e-12, 1)
    return chosen


def saliency(indices: Routes, weights: NDArray[np.floating], norms: NDArray[np.floating], n_experts: int) -> Floats:
    """Compute the mean of weight · ‖output‖ over the tokens of each expert (REAP, Lasby et al. 2025, arXiv 2510.13999).

    Saliency does not tell what the model does without the expert; for that, see `moelens.interventions`.

    Args:
        indices: expert ids `[token, layer, slot]`.
        weights: gate weights `[token, layer, slot]`.
        norms: norms of the unweighted outputs `[token, layer, slot]`.
        n_experts: number of experts in each layer.

    Returns:
        `[layer, expert]`; NaN for an expert that was never chosen.

    Raises:
        CheckError: the shapes differ, or an expert id is out of range.

    Example:
        >>> routes = np.array([[[0]], [[0]], [[1]]])  # [token, layer, slot]
        >>> weights, norms = np.array([[[0.5]], [[0.5]], [[1.0]]]), np.array([[[2.0]], [[4.0]], [[1.0]]])
        >>> saliency(routes, weights, norms, n_experts=2).tolist()
        [[1.5, 1.0]]
    """
    total = gate_score(indices, np.asarray(weights, float) * norms, n_experts) * len(indices)
    return divide(total, expert_counts(indices, n_experts))


def super_experts(largest: NDArray[np.floating], massive: ArrayLike | None = None) -> Bools:
    """Find experts with extreme outputs (Su et al. 2025, arXiv 2507.23279).

    An expert is a super expert if its largest activation is above the 99.5th percentile of all and above a tenth of
    the maximum.

    Args:
        largest: largest absolute activation of each expert's down projection `[layer, expert]`.
        massive: layers in which massive activations form, bool `[layer]`; None considers all layers.

    Returns:
        Bool `[layer, expert]`.

    Example:
        >>> super_experts(np.array([[1.0, 2.0, 900.0, 1.5]])).tolist()
        [[False, False, True, False]]
    """
    extreme = (largest > np.percentile(largest, 99.5)) & (largest > largest.max() / 10)
    return np.asarray(extreme if massive is None else extreme & np.asarray(massive, bool)[:, None])


def standing_committee(load: NDArray[np.floating], top_k: int, domains: float = 0.8) -> Bools:
    """Find the experts that nearly every domain uses (arXiv 2601.03425).

    Candidates are among the `top_k` most used experts in at least a share `domains` of the domains. The committee is
    the Pareto set of the candidates in mean and variance of rank, lower being better in both.

    Args:
        load: use of each expert `[domain, layer, expert]`.
        top_k: number of most used experts to consider in each domain.
        domains: share of the domains in which a candidate must be among them.

    Returns:
        Bool `[layer, expert]`.

    Example:
        >>> standing_committee(np.array([[[9, 5, 1]], [[8, 1, 6]]]), top_k=1).tolist()  # [domain, layer, expert]
        [[True, False, False]]
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
