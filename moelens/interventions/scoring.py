"""What is measured of a model: its preference in minimal pairs, and how much an intervention changes it elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moelens.analysis.arrays import Floats
from moelens.interventions.intervention import Intervention
from moelens.interventions.text_pairs import MinimalPair

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


@torch.no_grad()
def margins(model: HookedMoE, pairs: Sequence[MinimalPair], batch_tokens: int = 2048) -> Floats:
    """Return by how many nats the model prefers the good text of each pair `[pair]`."""
    values = np.empty(len(pairs))
    for batch in text_batches(model, pair_texts(pairs), batch_tokens, group_size=2):
        values[np.array(batch.rows[::2]) // 2] = batch_margins(batch.logits(model), batch).double().cpu().numpy()
    return values


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


def bootstrap_interval(values: Floats, groups: Sequence[object], seed: int, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values` `[pair]`; whole groups are drawn with replacement."""
    _, group = np.unique([str(g) for g in groups], return_inverse=True)
    sums, sizes = np.bincount(group, weights=values), np.bincount(group)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
