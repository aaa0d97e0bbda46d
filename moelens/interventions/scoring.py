"""What is measured of a model: what it prefers in contrasts and pairs, and what an intervention changes elsewhere."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from moelens.analysis.arrays import Floats
from moelens.interventions.intervention import Intervention
from moelens.interventions.items import Item, MinimalPair, pairs_within
from moelens.models.running import evaluating

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE


@dataclass(frozen=True)
class Batch:
    """Texts that run together.

    Attributes:
        rows: places of the texts in the list they come from.
        ids: token ids `[batch, pos]`.
        mask: bool `[batch, pos]`, False for padding.
        start: before this position the texts of each group have the same tokens, so the logits cancel in a difference.
    """

    rows: list[int]
    ids: Tensor
    mask: Tensor
    start: int

    def logits(self, model: HookedMoE) -> Tensor:
        """Run the model and return the logits `[batch, pos, vocab]`.

        They begin at `start` if the model can leave out the earlier ones, which take most of the time of a pass.
        """
        fewer = self.start and "logits_to_keep" in inspect.signature(model.hf_model.forward).parameters
        options = {"logits_to_keep": self.ids.shape[1] - self.start} if fewer else {}
        with evaluating(model):
            logits: Tensor = model(self.ids, attention_mask=self.mask.long(), **options)
        return logits


def text_batches(model: HookedMoE, texts: Sequence[str], batch_tokens: int, group_size: int = 1) -> Iterator[Batch]:
    """Yield texts of similar length, padded on the right.

    Args:
        model: the hooked model, for its tokenizer.
        texts: the texts.
        batch_tokens: the largest number of tokens in a batch, padding included, unless a group alone has more.
        group_size: number of successive texts that stay in one batch.
    """
    ids = [model.to_tokens(text)[0] for text in texts]
    groups = [range(i, i + group_size) for i in range(0, len(ids), group_size)]
    starts = [max(_common_prefix([ids[i].tolist() for i in g]) - 1, 0) if group_size > 1 else 0 for g in groups]
    groups.sort(key=lambda group: max(len(ids[i]) for i in group))
    rows: list[int] = []
    for place, group in enumerate(groups):
        rows += group
        longest = max(len(ids[i]) for i in groups[min(place + 1, len(groups) - 1)])
        if place == len(groups) - 1 or longest * (len(rows) + group_size) > batch_tokens:
            padded = torch.nn.utils.rnn.pad_sequence([ids[i] for i in rows], batch_first=True)
            lengths = torch.tensor([[len(ids[i])] for i in rows], device=padded.device)
            mask = torch.arange(padded.shape[1], device=padded.device) < lengths
            yield Batch(rows, padded, mask, min(starts[i // group_size] for i in rows))
            rows = []


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Return the number of tokens with which all rows begin.

    >>> _common_prefix([[5, 6, 7], [5, 6, 8, 9]])
    2
    """
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """Return the log-probability of each token after the first of `logits` `[batch, pos - 1]`; 0 for padding."""
    ids, mask = (t[:, 1 - logits.shape[1] + t.shape[1] :].to(logits.device) for t in (batch.ids, batch.mask))
    return logits[:, :-1].float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1) * mask


def batch_margins(logits: Tensor, batch: Batch) -> Tensor:
    """Return log P(context + good) − log P(context + bad) `[pair]`, of a batch in which good and bad alternate.

    The tokens with which both texts begin cancel, so the context may end within a token.
    """
    scores = _log_probabilities(logits, batch).sum(-1)
    return scores[0::2] - scores[1::2]


def pair_texts(pairs: Sequence[MinimalPair]) -> list[str]:
    """Return the good and the bad text of each pair in turn."""
    return [p.context + text for p in pairs for text in (p.good, p.bad)]


def split_items(items: Sequence[Item]) -> tuple[list[MinimalPair], NDArray[np.int64]]:
    """Return the minimal pairs within items, and the place `[pair]` of the item that each belongs to."""
    within = [pairs_within(item) for item in items]
    return [pair for pairs in within for pair in pairs], np.repeat(np.arange(len(items)), [len(p) for p in within])


@torch.no_grad()
def margins(model: HookedMoE, items: Sequence[Item], batch_tokens: int = 2048) -> Floats:
    """Return by how many nats the model prefers what the context licenses `[item]`.

    For a pair this is log P(good) − log P(bad) after the context, for a contrast the interaction.
    """
    pairs, owner = split_items(items)
    values = np.empty(len(pairs))
    for batch in text_batches(model, pair_texts(pairs), batch_tokens, group_size=2):
        values[np.array(batch.rows[::2]) // 2] = batch_margins(batch.logits(model), batch).double().cpu().numpy()
    return np.bincount(owner, weights=values, minlength=len(items)).astype(float)


@torch.no_grad()
def text_divergence(
    model: HookedMoE, texts: Sequence[str], interventions: Sequence[Intervention], batch_tokens: int = 2048
) -> Floats:
    """Compare the model with and without interventions on each text.

    Returns:
        `[text, 4]`: sums over the tokens of the text except the first: the number of tokens, KL(before ‖ after) of the
        next token in nats, and the log-probability before and after.
    """
    values = np.zeros((len(texts), 4))
    for batch in text_batches(model, texts, batch_tokens):
        before = batch.logits(model)
        with model.intervene(*interventions):
            after = batch.logits(model)
        p, q = before[:, :-1].float().log_softmax(-1), after[:, :-1].float().log_softmax(-1)
        mask = batch.mask[:, 1:].to(p.device)
        kl = (p.exp() * (p - q)).sum(-1) * mask
        sums = (mask.float(), kl, _log_probabilities(before, batch), _log_probabilities(after, batch))
        values[batch.rows] = torch.stack([t.double().sum(-1) for t in sums], -1).cpu().numpy()
    return values


LEAST_FRAMES = 4
"""With fewer frames no interval over frames is given: none would be honest and useful."""


def mean_interval(values: Floats, frames: Sequence[object]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values` `[item]`, over frames; NaN for fewer than four frames.

    The items of a frame vary together. The variance of the mean is that of the sums of deviations over frames (the
    cluster-robust variance, Liang and Zeger 1986, times G / (G − 1)), and the quantile is Student's with G − 1 degrees
    of freedom, for G frames.

    >>> mean_interval(np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]), "aabbccdd")
    (0.445..., 4.554...)
    >>> mean_interval(np.zeros(0), [])
    (nan, nan)
    """
    spread, groups = _spread_over_frames(values, frames)
    if groups < LEAST_FRAMES:
        return float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, groups - 1)) * spread
    return float(values.mean() - half), float(values.mean() + half)


def share_interval(hits: Floats, frames: Sequence[object]) -> tuple[float, float]:
    """Return the 95 % interval of a share, over frames; NaN for fewer than four frames.

    Wilson's interval (1927) with the effective number of items: what the variance over frames leaves of it, and at most
    their number, with the correction of Korn and Graubard (1998) for the degrees of freedom.

    Args:
        hits: 1 or 0 for each item, or between, `[item]`.
        frames: the frame of each item.
    """
    spread, groups = _spread_over_frames(hits, frames)
    if groups < LEAST_FRAMES:
        return float("nan"), float("nan")
    share, n = float(hits.mean()), len(hits)
    size = min(share * (1 - share) / spread**2, n) if spread > 0 else groups
    degrees = (float(stats.t.ppf(0.975, n - 1)) / float(stats.t.ppf(0.975, groups - 1))) ** 2
    return _wilson_interval(share, size * degrees)


def _spread_over_frames(values: Floats, frames: Sequence[object]) -> tuple[float, int]:
    """Return the standard error of the mean over frames, and their number; NaN and 0 for no values."""
    if not len(values):
        return float("nan"), 0
    _, frame = np.unique([str(f) for f in frames], return_inverse=True)
    groups = int(frame.max()) + 1
    sums = np.bincount(frame, weights=values - values.mean())
    return float(np.sqrt((sums**2).sum() * groups / max(groups - 1, 1)) / len(values)), groups


def _wilson_interval(share: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a proportion of `n` (Wilson 1927).

    >>> [round(x, 3) for x in _wilson_interval(0.5, 100)]
    [0.404, 0.596]
    """
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(share * (1 - share) / n, 0) + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)
