"""An interpolated Kneser-Ney trigram model, the baseline for a small language model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Ints = NDArray[np.int64]


def _count(keys: _Ints, counts: _Ints, wanted: _Ints) -> NDArray[np.float64]:
    """Look `wanted` up in the sorted `keys`; 0 where a key does not occur."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, counts[at], 0).astype(np.float64)


def trigram_nats(train: _Ints, held_out: _Ints, vocab_size: int, discount: float = 0.75) -> NDArray[np.float64]:
    """Return the negative log-probability of every token of `held_out` except the first two.

    The model is an interpolated Kneser-Ney trigram with one absolute discount (Chen and Goodman 1999, eq. 24). It backs
    off from trigram counts to continuation counts of bigrams and unigrams.

    Args:
        train: token ids `[token]` to count.
        held_out: token ids `[token]` to predict, each from the two tokens before it.
        vocab_size: number of token types.
        discount: absolute discount, between 0 and 1.

    Returns:
        The negative log-probabilities in nats, `[len(held_out) - 2]`.

    Example:
        >>> nats = trigram_nats(np.array([0, 1, 2] * 50), np.array([0, 1, 2, 0, 1]), vocab_size=3)
        >>> bool((nats < 0.1).all())
        True
    """
    v = vocab_size
    tri, tri_n = np.unique((train[:-2] * v + train[1:-1]) * v + train[2:], return_counts=True)
    context, inverse = np.unique(tri // v, return_inverse=True)
    context_n = np.bincount(inverse, tri_n).astype(np.int64)
    context_types = np.bincount(inverse)

    bi, bi_n = np.unique(tri % (v * v), return_counts=True)  # number of contexts in which each bigram occurs
    bi_context_n = np.bincount(bi // v, bi_n, minlength=v)
    bi_types = np.bincount(bi // v, minlength=v)

    unigram = np.bincount(bi % v, minlength=v) + 0.5  # so that no token has probability 0
    p1 = unigram / unigram.sum()

    a, b, c = held_out[:-2], held_out[1:-1], held_out[2:]
    n2, t2 = _count(bi, bi_n, b * v + c), bi_context_n[b]
    p2 = np.where(
        t2 > 0,
        (np.maximum(n2 - discount, 0) + discount * bi_types[b] * p1[c]) / np.maximum(t2, 1),
        p1[c],
    )
    n3, t3 = _count(tri, tri_n, (a * v + b) * v + c), _count(context, context_n, a * v + b)
    types3 = _count(context, context_types, a * v + b)
    p3 = np.where(t3 > 0, (np.maximum(n3 - discount, 0) + discount * types3 * p2) / np.maximum(t3, 1), p2)
    return np.asarray(-np.log(p3))
