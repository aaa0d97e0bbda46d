"""Measures of routes and router scores, each a pure function on arrays; `indices` is `[token, layer, slot]`.

The order of slots means nothing: many routers do not sort their choice by weight (DeepSeek-V3's top-k is unsorted).
Measures of rank take the weights. Logarithms are natural.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Floats, Ints, Routes, check_routes, divide, log
from moelens.errors import CheckError, MoeLensError, unknown

PAIRS = ("all", "adjacent")


def router_entropy(scores: NDArray[np.floating]) -> Floats:
    """Entropy of the router's distribution over the last axis, in nats; log E where it does not care.

    H(p) = −Σ p log p with p = scores / Σ scores (Zoph et al. 2022, ST-MoE, arXiv 2202.08906). `scores` are what the
    router gives after softmax or sigmoid, never negative.

    >>> router_entropy(np.array([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0]])).round(4).tolist()
    [1.3863, 0.0]
    """
    if (np.asarray(scores) < 0).any():
        raise CheckError(f"scores go down to {np.min(scores):.3g}; allowed: 0 or more, give scores and not logits")
    p = divide(scores, np.sum(scores, axis=-1, keepdims=True))
    return np.asarray(np.maximum(-np.where(p > 0, p * log(np.where(p > 0, p, 1)), 0).sum(-1), 0))


def selection_margin(selection: NDArray[np.floating], k: int) -> Floats:
    """The k-th largest value less the next one, over the last axis: how close the choice was.

    `selection` is what top-k was taken of, with bias and with masked groups at −inf; the margin is then infinite.

    >>> selection_margin(np.array([[0.1, 0.7, 0.4]]), k=2).round(2).tolist()
    [0.3]
    """
    if not 0 < k < selection.shape[-1]:
        raise CheckError(f"k is {k} of {selection.shape[-1]} experts; allowed: 1 to {selection.shape[-1] - 1}")
    ordered = np.sort(selection, axis=-1).astype(float)
    return np.asarray(ordered[..., -k] - ordered[..., -k - 1])


def by_weight(indices: Routes, weights: NDArray[np.floating] | None) -> Routes:
    """Sort the slots of `indices` by `weights` `[token, layer, slot]`, the largest first; ties stay in their order.

    Raises:
        MoeLensError: there are no weights, and so no ranks.
        CheckError: the shapes differ.

    >>> by_weight(np.array([[[4, 7, 1]]]), np.array([[[0.2, 0.5, 0.3]]])).tolist()
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


def pair_counts(
    indices: Routes,
    n_experts: int,
    pairs: Literal["all", "adjacent"] = "all",
    weights: NDArray[np.floating] | None = None,
) -> Ints:
    """Tokens that two experts share `[layer, expert, expert]`, symmetric, 0 on the diagonal.

    "all" counts each unordered pair of a token's experts, 28 for top-8. "adjacent" counts neighbours in rank only, 7
    for top-8, as the scripts published with OLMoE do, and needs the `weights`, see `by_weight`.
    """
    check_routes(indices, n_experts)
    if pairs not in PAIRS:
        raise unknown("pairs", pairs, PAIRS)
    slots = range(indices.shape[2])
    indices = by_weight(indices, weights) if pairs == "adjacent" else indices
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
    """Of the tokens of expert i, the share that also chose j: N_ij / N_i `[layer, i, j]`.

    Muennighoff et al. 2024, arXiv 2409.02060, eq. 6; see `pair_counts` for `pairs` and `weights`. NaN where i was
    never chosen.
    """
    return divide(pair_counts(indices, n_experts, pairs, weights), expert_counts(indices, n_experts)[:, :, None])


def coactivation_lift(indices: Routes, n_experts: int) -> Floats:
    """N_ij N / (N_i N_j) `[layer, i, j]`: 1 where two experts are chosen independently of each other.

    Experts of one token differ, so a router that does not care has (k−1)E / (k(E−1)), below 1.
    """
    n = expert_counts(indices, n_experts)
    return divide(pair_counts(indices, n_experts) * len(indices), n[:, :, None] * n[:, None, :])


def cluster_order(similarity: NDArray[np.floating]) -> Ints:
    """An order of experts `[expert]` that puts those together which are similar, for `similarity` `[expert, expert]`.

    Average linkage (Sokal and Michener 1958): the two groups that are most similar on average are joined, again and
    again, and stand side by side in the result. NaN counts as 0.
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
    """Tokens of each expert `[layer, expert]`."""
    check_routes(indices, n_experts)
    found = [np.bincount(chosen.ravel(), minlength=n_experts) for chosen in np.moveaxis(indices, 1, 0)]
    return np.array(found, np.int64).reshape(indices.shape[1], n_experts)


def consecutive_repetition(indices: Routes, docs: NDArray[np.integer], weights: NDArray[np.floating] | None) -> Floats:
    """How often a token and the next one of its document have the same expert of largest weight `[layer]`.

    P(top1_t = top1_{t+1}) (Jiang et al. 2024, arXiv 2401.04088, table 5); 1/E by chance, 0.39 % of 256. NaN where no
    token has a next one. `weights` are those of `by_weight`.
    """
    first, follows = by_weight(indices, weights)[:, :, 0], docs[1:] == docs[:-1]
    same = first[:-1][follows] == first[1:][follows]
    return divide(same.sum(0), np.array(len(same)))


def consecutive_overlap(indices: Routes, docs: NDArray[np.integer]) -> Floats:
    """How often a token and the next one of its document have any expert in common `[layer]`.

    P(S_t ∩ S_{t+1} ≠ ∅) (Jiang et al. 2024, arXiv 2401.04088, table 5); by chance 1 − C(E−k, k)/C(E, k), 22.7 % for 8
    of 256. NaN where no token has a next one.
    """
    follows = docs[1:] == docs[:-1]
    now, then = indices[:-1][follows], indices[1:][follows]
    layers = range(indices.shape[1])
    common = [(now[:, layer, :, None] == then[:, layer, None, :]).any((1, 2)).sum() for layer in layers]
    return divide(np.array(common, np.int64), np.array(len(now)))


def route_flow(indices: Routes, n_experts: int) -> Floats:
    """Of the tokens of expert i in one layer, the share that choose j in the next `[layer − 1, i, j]`; a row sums to k.

    N(i in layer l, j in layer l + 1) / N(i in layer l). NaN where i was never chosen.
    """
    counts = expert_counts(indices, n_experts)
    flow = np.zeros((max(indices.shape[1] - 1, 0), n_experts, n_experts), np.int64)
    for layer in range(len(flow)):
        keys = indices[:, layer, :, None].astype(np.int64) * n_experts + indices[:, layer + 1, None, :]
        flow[layer] = np.bincount(keys.ravel(), minlength=n_experts**2).reshape(n_experts, n_experts)
    return divide(flow, counts[:-1, :, None])


def overlap(a: Routes, b: Routes) -> Floats:
    """Share of a token's experts that both routes have: the size of S_a ∩ S_b over k, `[token, layer]`.

    Of the same tokens in two models, or in a checkpoint and the final model; its mean over tokens is router saturation
    (Muennighoff et al. 2024, arXiv 2409.02060, eq. 5). By chance k/E. Raises `CheckError` for routes that do not match.

    >>> overlap(np.array([[[0, 1]], [[2, 3]]]), np.array([[[1, 4]], [[3, 2]]])).ravel().tolist()
    [0.5, 1.0]
    """
    if a.shape != b.shape or a.ndim != 3:
        raise CheckError(
            f"routes have shapes {list(a.shape)} and {list(b.shape)}; allowed: both [token, layer, slot] of the same "
            "tokens, layers and top-k"
        )
    shared: Floats = np.zeros(a.shape[:2])
    for slot in range(b.shape[2]):
        shared += (a == b[:, :, slot, None]).any(-1)
    shared /= a.shape[2]
    return shared


def saturation(a: Routes, b: Routes) -> Floats:
    """The mean of `overlap` over tokens `[layer]`."""
    return np.asarray(overlap(a, b).mean(0))


def vocabulary_specialization(
    indices: Routes, ids: NDArray[np.integer], n_experts: int, min_tokens: int = 10
) -> tuple[Ints, NDArray[np.float32]]:
    """Of the tokens of each type, the share that the expert takes: N_{x,i} / N_x.

    Muennighoff et al. 2024, arXiv 2409.02060, eq. 8. `ids` `[token]` are the input tokens, the true next ones (see
    `next_tokens`) or the predicted ones; tokens of a negative id are left out. Returns the types seen at least
    `min_tokens` times `[type]`, and their shares `[type, layer, expert]`.
    """
    check_routes(indices, n_experts)
    types, place, size = np.unique(ids, return_inverse=True, return_counts=True)
    kept = (size >= min_tokens) & (types >= 0)
    row = np.where(kept, np.cumsum(kept) - 1, -1)[place.reshape(-1)]
    chosen, row = indices[row >= 0], row[row >= 0]
    shares = np.zeros((int(kept.sum()), indices.shape[1], n_experts), np.float32)
    for layer in range(indices.shape[1]):
        keys = row[:, None] * n_experts + chosen[:, layer]
        counts = np.bincount(keys.ravel(), minlength=len(shares) * n_experts).reshape(len(shares), n_experts)
        shares[:, layer] = counts / size[kept, None]
    return types[kept].astype(np.int64), shares


def next_tokens(ids: NDArray[np.integer], docs: NDArray[np.integer]) -> Ints:
    """The id of the token that follows in the same document `[token]`, −1 for the last.

    >>> next_tokens(np.array([5, 6, 7]), np.array([0, 0, 1])).tolist()
    [6, -1, -1]
    """
    following = np.full(len(ids), -1, np.int64)
    following[:-1] = np.where(docs[1:] == docs[:-1], ids[1:], -1)
    return following


def normalised_jsd(p: NDArray[np.floating], q: NDArray[np.floating]) -> Floats:
    """Divergence of two distributions over experts, on the last axis, less what their own entropy makes of it.

    JSD(p, q) / (log E − ½(H(p) + H(q))), of gates pooled over the tokens of parallel sentences or of two corpora
    (Bandarkar et al. 2025, arXiv 2510.04694). p and q are made to sum to 1. NaN where both are uniform.

    >>> normalised_jsd(np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])).round(3).item()
    0.5
    """
    p, q = (divide(x, np.sum(x, axis=-1, keepdims=True)) for x in (p, q))
    inside = (router_entropy(p) + router_entropy(q)) / 2
    room = np.log(p.shape[-1]) - inside
    return divide(router_entropy((p + q) / 2) - inside, np.where(room > 1e-12, room, 0))


def pooled_gates(indices: Routes, weights: NDArray[np.floating], n_experts: int) -> Floats:
    """Σ of an expert's weights over Σ of all `[layer, expert]`: what `normalised_jsd` compares."""
    check_routes(indices, n_experts)
    gates = [
        np.bincount(chosen.ravel(), weight.ravel(), minlength=n_experts)
        for chosen, weight in zip(np.moveaxis(indices, 1, 0), np.moveaxis(weights, 1, 0), strict=True)
    ]
    return divide(np.array(gates), np.sum(gates, axis=1, keepdims=True))
