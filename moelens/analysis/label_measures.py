"""Measures of load and of labels, each a pure function of counts. Logarithms are natural unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moelens.analysis.arrays import Bools, Floats, divide, log
from moelens.analysis.count_tables import CountTables, Numbers
from moelens.analysis.counting import TokenKinds
from moelens.errors import CheckError

_ROUNDING = 1e-9


def max_violation(counts: CountTables) -> Floats:
    """Compute MaxVio, the largest relative load of each layer minus 1 (Wang et al. 2024, arXiv 2408.15664).

    Args:
        counts: the counts.

    Returns:
        `[layer]`; 0 where the layer is evenly loaded.

    Example:
        >>> from moelens.analysis import Counts
        >>> max_violation(Counts.from_table(np.zeros((1, 2, 0)), [[30, 10]], [], (), layers=[0], top_k=1)).tolist()
        [0.5]
    """
    return np.asarray(counts.load().max(1) - 1)


def dead_experts(counts: CountTables) -> Bools:
    """Find the experts that were never chosen.

    Args:
        counts: the counts.

    Returns:
        Bool `[layer, expert]`.

    Example:
        >>> from moelens.analysis import Counts
        >>> dead_experts(Counts.from_table([[[5], [0]]], [[8, 0]], [5], ["ja"], layers=[0], top_k=1)).tolist()
        [[False, True]]
    """
    return np.asarray(counts.expert_tokens == 0)


def risk_difference(counts: CountTables) -> Floats:
    """Compute P(expert | label) − P(expert | not label) = c/m − (n − c)/(N − m).

    This is the specialist Δ of SteerMoE, arXiv 2509.09660.

    Args:
        counts: the counts.

    Returns:
        `[layer, expert, label]`; NaN for a label that all tokens or no tokens have.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[30], [20]]], [[40, 60]], [50], ["ja"], layers=[0], top_k=1)
        >>> risk_difference(counts)[0, :, 0].round(2).tolist()
        [0.4, -0.4]
    """
    others = counts.expert_tokens[:, :, None] - counts.count
    return np.asarray(counts.share() - divide(others, counts.n_tokens - counts.label_tokens))


def log_odds(counts: CountTables) -> Floats:
    """Compute the log odds ratio of expert and label, with ½ added to each of the four counts.

    log[(c + ½)(N − n − m + c + ½) / ((n − c + ½)(m − c + ½))] (Haldane 1956, Anscombe 1956).

    Args:
        counts: the counts.

    Returns:
        `[layer, expert, label]`, finite everywhere.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[30], [20]]], [[40, 60]], [50], ["ja"], layers=[0], top_k=1)
        >>> log_odds(counts)[0, :, 0].round(2).tolist()
        [1.75, -1.75]
    """
    c, n, m = counts.count, counts.expert_tokens[:, :, None], counts.label_tokens
    neither = counts.n_tokens - n - m + c
    return np.asarray(log(c + 0.5) + log(neither + 0.5) - log(n - c + 0.5) - log(m - c + 0.5))


def npmi(counts: CountTables) -> Floats:
    """Compute the normalised pointwise mutual information of expert and label: log[p(x,y) / p(x)p(y)] / −log p(x,y).

    It is 1 where the two only occur together, 0 where they are independent and −1 where they never occur together
    (Bouma 2009; RICE, arXiv 2505.14681).

    Args:
        counts: the counts.

    Returns:
        `[layer, expert, label]`; NaN where expert or label never occurs, 1 where both occur at every token.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[30], [20]]], [[40, 60]], [50], ["ja"], layers=[0], top_k=1)
        >>> npmi(counts)[0, :, 0].round(2).tolist()
        [0.34, -0.25]
    """
    both = counts.count / max(counts.n_tokens, 1)
    pointwise = log(counts.lift())
    with np.errstate(invalid="ignore"):
        values = divide(pointwise, -log(both))
    values = np.where(both == 0, -1.0, np.where(both == 1, 1.0, values))
    return np.asarray(np.where(np.isnan(counts.lift()), np.nan, values))


def expert_information(counts: CountTables) -> Floats:
    """Compute the mutual information of "the expert is chosen" and "the token has the label".

    Σ p(r, l) log2[p(r, l) / p(r) p(l)] over the four cells.

    Args:
        counts: the counts.

    Returns:
        Bits, `[layer, expert, label]`.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[30], [20]]], [[40, 60]], [50], ["ja"], layers=[0], top_k=1)
        >>> expert_information(counts)[0, :, 0].round(3).tolist()
        [0.125, 0.125]
    """
    c, n, m, total = counts.count, counts.expert_tokens[:, :, None], counts.label_tokens, counts.n_tokens
    chosen = _bits(c, n, m, total) + _bits(n - c, n, total - m, total)
    return chosen + _bits(m - c, total - n, m, total) + _bits(total - n - m + c, total - n, total - m, total)


def layer_information(counts: CountTables) -> Floats:
    """Compute the mutual information of a layer's choice and the label.

    The choice is one of the token's experts, each with the same probability: p(i, l) = c / (k N). The information is at
    most the label's entropy. Estimated from samples, it is too high by about (E − 1) / (2 k N ln 2) bits (Miller 1955).

    Args:
        counts: the counts.

    Returns:
        Bits, `[layer, label]`.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[30], [20]]], [[40, 60]], [50], ["ja"], layers=[0], top_k=1)
        >>> layer_information(counts).round(3).tolist()
        [[0.125]]
    """
    n, m, k = counts.expert_tokens[:, :, None], counts.label_tokens, counts.per_token
    rest = counts.n_tokens - m
    labelled = _bits(counts.count, n, k * m, k * counts.n_tokens)
    return np.asarray((labelled + _bits(n - counts.count, n, k * rest, k * counts.n_tokens)).sum(1))


def family_information(counts: CountTables) -> Floats:
    """Compute the mutual information of a layer's choice and the label, over all labels of a family together.

    Each token has one label or none; tokens without a label are a class of their own. The choice is that of
    `layer_information`: I = Σ p(i, l) log2[p(i, l) / p(i) p(l)] over experts and classes. Of counts of tokens, it is at
    most log2(E / k), since nothing tells which of a token's k experts is drawn. Estimated from samples, it is too high
    by about (E − 1)(L − 1) / (2 k N ln 2) bits with L classes (Miller 1955).

    Args:
        counts: the counts. If tokens can have several labels, count by `label_combinations`.

    Returns:
        Bits, `[layer]`.

    Raises:
        CheckError: tokens have several labels.

    Example:
        >>> from moelens.analysis import Counts
        >>> counts = Counts.from_table([[[3, 0], [0, 1]]], [[3, 1]], [3, 1], ["ja", "en"], layers=[0], top_k=1)
        >>> family_information(counts).round(3).tolist()
        [0.811]
    """
    total_tokens = counts.tokens.sum()
    rest, rest_tokens = counts.expert_tokens - counts.count.sum(2), total_tokens - counts.label_tokens.sum()
    rounding = _ROUNDING * total_tokens  # of estimates and sums of weights
    if rest_tokens < -rounding or (rest < -rounding).any():
        raise CheckError(
            "expected counts of labels of which each token has one or none, got tokens with several; "
            "count by moelens.analysis.label_combinations"
        )
    count = np.concatenate([counts.count, np.maximum(rest, 0)[:, :, None]], axis=2)
    label_tokens = np.append(counts.label_tokens, max(rest_tokens, 0))
    k, total = counts.per_token, counts.per_token * total_tokens
    return np.asarray(_bits(count, counts.expert_tokens[:, :, None], k * label_tokens, total).sum((1, 2)))


def label_combinations(labels: Bools, names: Sequence[str]) -> tuple[tuple[str, ...], Bools]:
    """Return the combinations of labels that tokens have, as labels of which each token has exactly one.

    Args:
        labels: bool `[token, label]`.
        names: names of the labels.

    Returns:
        The names, such as "尊敬語 + 丁寧語", or "none" for tokens without a label, and bool `[token, combination]`.

    Example:
        >>> label_combinations(np.array([[True, True], [False, False]]), ["尊敬語", "丁寧語"])[0]
        ('none', '尊敬語 + 丁寧語')
    """
    kinds, kind = TokenKinds.of(np.asarray(labels, bool))
    found = tuple(" + ".join(np.array(names, object)[row]) or "none" for row in kinds.labels)
    return found, kind[:, None] == np.arange(len(found))


def _bits(both: Numbers, a: Numbers, b: Numbers, total: float) -> Floats:
    """Return p log2[p / (p_a p_b)] from counts, 0 where p is 0."""
    p = both / max(total, 1)
    ratio = divide(both * float(total), a * b.astype(float))
    return np.where(p > 0, p * log(np.where(p > 0, ratio, 1)) / np.log(2), 0.0)
