"""Measures of routes and router scores, each a pure function of arrays.

`indices` are expert ids `[token, layer, slot]`. The order of the slots has no meaning: many routers do not sort their
choice by weight (the top-k of DeepSeek-V3 is unsorted). Measures of rank take the weights. Logarithms are natural.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Floats, Ints, Routes, check_routes, divide, log
from moelens.errors import CheckError, MoeLensError, unknown

_PAIRS = ("all", "adjacent")


def router_entropy(scores: NDArray[np.floating]) -> Floats:
    """Compute the entropy of the router's distribution: −Σ p log p with p = scores / Σ scores (arXiv 2202.08906).

    Args:
        scores: the router's values after softmax or sigmoid, 0 or more, `[…, expert]`.

    Returns:
        Nats, `[…]`; log E where all experts have the same score.

    Raises:
        CheckError: a score is negative.

    Example:
        >>> router_entropy(np.array([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0]])).round(4).tolist()
        [1.3863, 0.0]
    """
    if (np.asarray(scores) < 0).any():
        raise CheckError(f"expected scores of 0 or more, got {np.min(scores):.3g}; give scores instead of logits")
    p = divide(scores, np.sum(scores, axis=-1, keepdims=True))
    return np.asarray(np.maximum(-np.where(p > 0, p * log(np.where(p > 0, p, 1)), 0).sum(-1), 0))


def selection_margin(selection: NDArray[np.floating], k: int) -> Floats:
    """Compute the difference between the k-th largest value and the next one: how close the router's choice was.

    Args:
        selection: the values from which the top k are taken, with the bias added and masked groups at −inf,
            `[…, expert]`.
        k: number of experts chosen.

    Returns:
        `[…]`; infinite where all other experts are masked.

    Raises:
        CheckError: k is less than 1, or not less than the number of experts.

    Example:
        >>> selection_margin(np.array([[0.1, 0.7, 0.4]]), k=2).round(2).tolist()
        [0.3]
    """
    if not 0 < k < selection.shape[-1]:
        raise CheckError(
            f"expected k from 1 to {selection.shape[-1] - 1}, got {k} of {selection.shape[-1]} experts; "
            "give the number of experts chosen"
        )
    ordered = np.sort(selection, axis=-1).astype(float)
    return np.asarray(ordered[..., -k] - ordered[..., -k - 1])


def _by_weight(indices: Routes, weights: NDArray[np.floating] | None) -> Routes:
    """Sort the slots of `indices` by `weights` `[token, layer, slot]`, the largest first; ties stay in their order.

    Raises:
        MoeLensError: there are no weights, and so no ranks.
        CheckError: the shapes differ.

    >>> _by_weight(np.array([[[4, 7, 1]]]), np.array([[[0.2, 0.5, 0.3]]])).tolist()
    [[[7, 1, 4]]]
    """
    if weights is None:
        raise MoeLensError(
            "expected weights, by which the experts of a token are ranked, got none; give those of the routes, or use a"
            " measure without ranks, such as coactivation of all pairs"
        )
    if np.shape(weights) != indices.shape:
        raise CheckError(
            f"expected weights of shape {list(indices.shape)}, as the routes, got {list(np.shape(weights))}; give one"
            " weight for each expert"
        )
    return np.take_along_axis(indices, np.argsort(-np.asarray(weights, float), axis=-1, kind="stable"), -1)


def _pair_counts(
    indices: Routes,
    n_experts: int,
    pairs: Literal["all", "adjacent"] = "all",
    weights: NDArray[np.floating] | None = None,
) -> Ints:
    """Count the tokens that two experts share `[layer, expert, expert]`: symmetric, 0 on the diagonal.

    "all" counts each unordered pair of a token's experts, 28 for top-8. "adjacent" counts only neighbours in rank, 7
    for top-8, as the scripts published with OLMoE do, and needs the weights.
    """
    check_routes(indices, n_experts)
    if pairs not in _PAIRS:
        raise unknown("pairs", pairs, _PAIRS)
    slots = range(indices.shape[2])
    indices = _by_weight(indices, weights) if pairs == "adjacent" else indices
    both = np.zeros((indices.shape[1], n_experts * n_experts), np.int64)
    for a, b in combinations(slots, 2) if pairs == "all" else pairwise(slots):
        keys = indices[:, :, a].astype(np.int64) * n_experts + indices[:, :, b]
        for layer, key in enumerate(keys.T):
            both[layer] += np.bincount(key, minlength=both.shape[1])
    counts = both.reshape(-1, n_experts, n_experts)
    return np.asarray(counts + counts.swapaxes(1, 2))


def coactivation(
    indices: Routes,
    n_experts: int,
    pairs: Literal["all", "adjacent"] = "all",
    weights: NDArray[np.floating] | None = None,
) -> Floats:
    """Compute the share of the tokens of expert i that also chose expert j: N_ij / N_i (arXiv 2409.02060, eq. 6).

    Args:
        indices: expert ids `[token, layer, slot]`.
        n_experts: number of experts in each layer.
        pairs: "all" counts each unordered pair of a token's experts, 28 for top-8; "adjacent" counts only neighbours
            in rank, 7 for top-8, as the scripts published with OLMoE do.
        weights: routing weights `[token, layer, slot]`, by which "adjacent" ranks; "all" does not need them.

    Returns:
        `[layer, i, j]`; NaN where i was never chosen.

    Raises:
        CheckError: an expert id is out of range, or the weights have another shape.
        UnknownNameError: `pairs` is something else.
        MoeLensError: `pairs` is "adjacent", and there are no weights.

    Example:
        >>> coactivation(np.array([[[0, 1]], [[0, 2]]]), n_experts=3).tolist()
        [[[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]
    """
    return divide(_pair_counts(indices, n_experts, pairs, weights), expert_counts(indices, n_experts)[:, :, None])


def coactivation_lift(indices: Routes, n_experts: int) -> Floats:
    """Compute N_ij N / (N_i N_j): how much more often two experts are chosen together than if they were independent.

    The experts of a token differ, so a router that chooses at random has (k−1)E / (k(E−1)), which is below 1.

    Args:
        indices: expert ids `[token, layer, slot]`.
        n_experts: number of experts in each layer.

    Returns:
        `[layer, i, j]`, 1 where the two are independent; NaN where one was never chosen.

    Raises:
        CheckError: an expert id is out of range.

    Example:
        >>> coactivation_lift(np.array([[[0, 1]], [[0, 1]], [[2, 3]]]), n_experts=4)[0, 0].tolist()
        [0.0, 1.5, 0.0, 0.0]
    """
    n = expert_counts(indices, n_experts)
    return divide(_pair_counts(indices, n_experts) * len(indices), n[:, :, None] * n[:, None, :])


def cluster_order(similarity: NDArray[np.floating]) -> Ints:
    """Order experts so that similar ones are next to each other, by average linkage (Sokal and Michener 1958).

    The two groups that are most similar on average are joined until one group is left.

    Args:
        similarity: `[expert, expert]`; NaN counts as 0.

    Returns:
        The experts in order `[expert]`.

    Example:
        >>> cluster_order(np.array([[1, 0, 0.9], [0, 1, 0], [0.9, 0, 1]])).tolist()
        [0, 2, 1]
    """
    near = np.nan_to_num(np.asarray(similarity, float)).copy()
    near = (near + near.T) / 2
    np.fill_diagonal(near, -np.inf)
    groups = {i: [i] for i in range(len(near))}
    while len(groups) > 1:
        i, j = sorted(map(int, np.unravel_index(np.argmax(near), near.shape)))
        weights = np.array([len(groups[i]), len(groups[j])]) / (len(groups[i]) + len(groups[j]))
        near[i] = near[:, i] = weights @ near[[i, j]]
        near[i, i] = -np.inf
        near[j] = near[:, j] = -np.inf
        groups[i] += groups.pop(j)
    return np.array(groups.get(0, []), np.int64)


def expert_counts(indices: Routes, n_experts: int) -> Ints:
    """Count the tokens of each expert `[layer, expert]`."""
    check_routes(indices, n_experts)
    counts = [np.bincount(chosen.ravel(), minlength=n_experts) for chosen in np.moveaxis(indices, 1, 0)]
    return np.array(counts, np.int64).reshape(indices.shape[1], n_experts)


def consecutive_repetition(indices: Routes, docs: NDArray[np.integer], weights: NDArray[np.floating] | None) -> Floats:
    """Compute how often successive tokens of a document share their expert of the largest weight.

    P(top1_t = top1_{t+1}) (Jiang et al. 2024, arXiv 2401.04088, table 5). By chance it is 1/E, 0.39 % for 256 experts.

    Args:
        indices: expert ids `[token, layer, slot]`.
        docs: document of each token `[token]`.
        weights: routing weights `[token, layer, slot]`.

    Returns:
        The share `[layer]`; NaN where no token has a next one.

    Raises:
        MoeLensError: there are no weights.
        CheckError: the weights have another shape than the routes.

    Example:
        >>> routes = np.array([[[0, 1]], [[0, 2]], [[3, 2]]])  # [token, layer, slot]
        >>> consecutive_repetition(routes, np.array([0, 0, 0]), np.array([[[0.7, 0.3]]] * 3)).tolist()
        [0.5]
    """
    first, follows = _by_weight(indices, weights)[:, :, 0], docs[1:] == docs[:-1]
    same = first[:-1][follows] == first[1:][follows]
    return divide(same.sum(0), np.array(len(same)))


def consecutive_overlap(indices: Routes, docs: NDArray[np.integer]) -> Floats:
    """Compute how often successive tokens of a document share any expert.

    P(S_t ∩ S_{t+1} ≠ ∅) (Jiang et al. 2024, arXiv 2401.04088, table 5). By chance it is 1 − C(E−k, k)/C(E, k), 22.7 %
    for 8 of 256 experts.

    Args:
        indices: expert ids `[token, layer, slot]`.
        docs: document of each token `[token]`.

    Returns:
        The share `[layer]`; NaN where no token has a next one.

    Example:
        >>> consecutive_overlap(np.array([[[0, 1]], [[0, 2]], [[3, 1]]]), np.array([0, 0, 0])).tolist()
        [0.5]
    """
    follows = docs[1:] == docs[:-1]
    now, then = indices[:-1][follows], indices[1:][follows]
    layers = range(indices.shape[1])
    common = [(now[:, layer, :, None] == then[:, layer, None, :]).any((1, 2)).sum() for layer in layers]
    return divide(np.array(common, np.int64), np.array(len(now)))


def route_flow(indices: Routes, n_experts: int) -> Floats:
    """Compute the share of the tokens of expert i in one layer that choose expert j in the next layer.

    N(i in layer l, j in layer l + 1) / N(i in layer l).

    Args:
        indices: expert ids `[token, layer, slot]`.
        n_experts: number of experts in each layer.

    Returns:
        `[layer − 1, i, j]`; a row sums to k. NaN where i was never chosen.

    Raises:
        CheckError: an expert id is out of range.

    Example:
        >>> route_flow(np.array([[[0], [1]], [[0], [0]], [[1], [1]]]), n_experts=2).tolist()
        [[[0.5, 0.5], [0.0, 1.0]]]
    """
    counts = expert_counts(indices, n_experts)
    flow = np.zeros((max(indices.shape[1] - 1, 0), n_experts, n_experts), np.int64)
    for layer in range(len(flow)):
        keys = indices[:, layer, :, None].astype(np.int64) * n_experts + indices[:, layer + 1, None, :]
        flow[layer] = np.bincount(keys.ravel(), minlength=n_experts**2).reshape(n_experts, n_experts)
    return flow_shares(flow, counts[:-1])


def flow_shares(pairs: NDArray[np.integer], expert_tokens: NDArray[np.integer]) -> Floats:
    """Compute `route_flow` from counts of pairs of experts of two successive layers, such as published ones.

    Args:
        pairs: tokens that choose expert i in one layer and expert j in the next `[layer − 1, i, j]`.
        expert_tokens: tokens at expert i in the first of the two layers `[layer − 1, i]`.

    Returns:
        `[layer − 1, i, j]`; NaN where i was never chosen.

    Raises:
        CheckError: the shapes do not agree, or the pairs contradict the tokens.

    Example:
        >>> flow_shares(np.array([[[3, 1], [0, 2]]]), np.array([[4, 2]])).tolist()
        [[[0.75, 0.25], [0.0, 1.0]]]
    """
    pairs, expert_tokens = np.asarray(pairs), np.asarray(expert_tokens)
    if pairs.ndim != 3 or pairs.shape[:2] != expert_tokens.shape:
        raise CheckError(
            f"expected pairs [layer, expert, next expert] and expert_tokens [layer, expert], got shapes "
            f"{list(pairs.shape)} and {list(expert_tokens.shape)}; leave out the tokens of the last layer"
        )
    if (pairs > expert_tokens[:, :, None]).any():
        raise CheckError(
            "expected no pair with more tokens than its first expert, got some; give counts of the same text"
        )
    return divide(pairs, expert_tokens[:, :, None])


def overlap(a: Routes, b: Routes) -> Floats:
    """Compute the share of a token's experts that two routes have in common: the size of S_a ∩ S_b over k.

    Use it for the same tokens in two models, or in a checkpoint and the final model. The mean over tokens is the router
    saturation of Muennighoff et al. 2024, arXiv 2409.02060, eq. 5. By chance it is k/E.

    Args:
        a: expert ids `[token, layer, slot]`.
        b: expert ids of the same tokens, layers and top-k.

    Returns:
        `[token, layer]`.

    Raises:
        CheckError: the shapes differ.

    Example:
        >>> overlap(np.array([[[0, 1]], [[2, 3]]]), np.array([[[1, 4]], [[3, 2]]])).ravel().tolist()
        [0.5, 1.0]
    """
    if a.shape != b.shape or a.ndim != 3:
        raise CheckError(
            f"expected two routes of one shape [token, layer, slot], got {list(a.shape)} and {list(b.shape)}; "
            "give routes of the same tokens, layers and top-k"
        )
    shared: Floats = np.zeros(a.shape[:2])
    for slot in range(b.shape[2]):
        shared += (a == b[:, :, slot, None]).any(-1)
    shared /= a.shape[2]
    return shared


def saturation(a: Routes, b: Routes) -> Floats:
    """Compute the mean of `overlap` over tokens.

    Args:
        a: expert ids `[token, layer, slot]`.
        b: expert ids of the same tokens, layers and top-k.

    Returns:
        `[layer]`.

    Raises:
        CheckError: the shapes differ.

    Example:
        >>> saturation(np.array([[[0, 1]], [[2, 3]]]), np.array([[[1, 4]], [[3, 2]]])).tolist()
        [0.75]
    """
    return np.asarray(overlap(a, b).mean(0))


def vocabulary_specialization(
    indices: Routes, ids: NDArray[np.integer], n_experts: int, min_tokens: int = 10
) -> tuple[Ints, NDArray[np.float32]]:
    """Compute the share of the tokens of each token type that each expert takes: N_{x,i} / N_x.

    Muennighoff et al. 2024, arXiv 2409.02060, eq. 8.

    Args:
        indices: expert ids `[token, layer, slot]`.
        ids: token ids `[token]`: of the input tokens, the true next tokens (see `next_tokens`) or the predicted ones.
            Tokens with a negative id are left out.
        n_experts: number of experts in each layer.
        min_tokens: token types with fewer tokens are left out.

    Returns:
        The token types `[type]`, and their shares `[type, layer, expert]`.

    Raises:
        CheckError: an expert id is out of range.

    Example:
        >>> routes, ids = np.array([[[0]], [[1]], [[1]]]), np.array([7, 7, 9])
        >>> types, shares = vocabulary_specialization(routes, ids, n_experts=2, min_tokens=1)
        >>> types.tolist(), shares[:, 0].tolist()
        ([7, 9], [[0.5, 0.5], [0.0, 1.0]])
    """
    check_routes(indices, n_experts)
    types, place, size = np.unique(ids, return_inverse=True, return_counts=True)
    frequent = (size >= min_tokens) & (types >= 0)
    row = np.where(frequent, np.cumsum(frequent) - 1, -1)[place.reshape(-1)]
    chosen, row = indices[row >= 0], row[row >= 0]
    shares = np.zeros((int(frequent.sum()), indices.shape[1], n_experts), np.float32)
    for layer in range(indices.shape[1]):
        keys = row[:, None] * n_experts + chosen[:, layer]
        counts = np.bincount(keys.ravel(), minlength=len(shares) * n_experts).reshape(len(shares), n_experts)
        shares[:, layer] = counts / size[frequent, None]
    return types[frequent].astype(np.int64), shares


def next_tokens(ids: NDArray[np.integer], docs: NDArray[np.integer]) -> Ints:
    """Return the id of the next token of the same document.

    Args:
        ids: token ids `[token]`.
        docs: document of each token `[token]`.

    Returns:
        `[token]`; −1 for the last token of a document.

    Example:
        >>> next_tokens(np.array([5, 6, 7]), np.array([0, 0, 1])).tolist()
        [6, -1, -1]
    """
    following = np.full(len(ids), -1, np.int64)
    following[:-1] = np.where(docs[1:] == docs[:-1], ids[1:], -1)
    return following


def normalised_jsd(p: NDArray[np.floating], q: NDArray[np.floating]) -> Floats:
    """Compute the Jensen–Shannon divergence of two distributions over experts, normalised by their entropies.

    JSD(p, q) / (log E − ½(H(p) + H(q))), for gates pooled over the tokens of parallel sentences or of two corpora
    (Bandarkar et al. 2025, arXiv 2510.04694).

    Args:
        p: `[…, expert]`; scaled to sum to 1.
        q: `[…, expert]`; scaled to sum to 1.

    Returns:
        `[…]`; NaN where both are uniform.

    Example:
        >>> normalised_jsd(np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])).round(3).item()
        0.5
    """
    p, q = (divide(x, np.sum(x, axis=-1, keepdims=True)) for x in (p, q))
    inside = (router_entropy(p) + router_entropy(q)) / 2
    room = np.log(p.shape[-1]) - inside
    return divide(router_entropy((p + q) / 2) - inside, np.where(room > 1e-12, room, 0))


def pooled_gates(indices: Routes, weights: NDArray[np.floating], n_experts: int) -> Floats:
    """Compute the sum of each expert's gate weights over the sum of all, as `normalised_jsd` compares them.

    Args:
        indices: expert ids `[token, layer, slot]`.
        weights: gate weights `[token, layer, slot]`.
        n_experts: number of experts in each layer.

    Returns:
        `[layer, expert]`; each layer sums to 1.

    Raises:
        CheckError: an expert id is out of range.

    Example:
        >>> pooled_gates(np.array([[[0, 1]], [[0, 2]]]), np.array([[[0.75, 0.25]], [[0.5, 0.5]]]), n_experts=3).tolist()
        [[0.625, 0.125, 0.25]]
    """
    check_routes(indices, n_experts)
    gates = [
        np.bincount(chosen.ravel(), weight.ravel(), minlength=n_experts)
        for chosen, weight in zip(np.moveaxis(indices, 1, 0), np.moveaxis(weights, 1, 0), strict=True)
    ]
    return divide(np.array(gates), np.sum(gates, axis=1, keepdims=True))
