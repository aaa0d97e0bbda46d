"""A routing decision done again, by stages: logits, scores, selection, indices, weights.

Engines return only the ends of this chain, and their stages differ: in DeepSeek-V3 the largest logits are not the
chosen experts, because a bias and a choice of groups stand between. What a router does is not looked up but found:
every combination of the four parts below is tried on the router's own output, and the one that gives the same experts
and the same weights is used. Where none does, what needs a replay is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

Scorer = Callable[[Tensor], Tensor]

SCORES: dict[str, Scorer] = {
    "softmax": lambda logits: logits.softmax(-1, dtype=torch.float32),
    "sigmoid": lambda logits: logits.float().sigmoid(),
    "sqrtsoftplus": lambda logits: nn.functional.softplus(logits.float()).sqrt(),  # DeepSeek-V4
    "identity": lambda logits: logits.float(),  # routers that hand out probabilities, such as Gemma 4's
}
"""Router logits to scores, by the name that configurations use (`scoring_func`)."""

GROUP_SCORES: dict[str, Scorer] = {
    "top2": lambda grouped: grouped.topk(2, dim=-1).values.sum(-1),  # DeepSeek-V3, arXiv 2412.19437
    "max": lambda grouped: grouped.max(-1).values,  # DeepSeek-V2, arXiv 2405.04434
}
"""How good a group of experts is, from the selection scores of its members."""


@dataclass(frozen=True)
class Replay:
    """One router's rule. All tensors are `[token, expert]` or `[token, slot]`, computed in float32.

    Attributes:
        score: name in `SCORES`.
        bias: attribute path, below the block, of what is added to the scores for the selection only; "" for none.
        groups: number of groups, of which `kept` are selected from; 1 for none.
        group_score: name in `GROUP_SCORES`.
        normalised: the weights of the chosen experts are divided by their sum.
        scale: constant factor on the weights.
        fill: selection score of the experts in groups not kept.
        on_logits: the bias is added to the logits, before the sigmoid (Kolibri).
        expert_scale: attribute path of a factor for each expert's weight (Gemma 4); "" for none.
        jitter: each slot's weight is its softmax over the experts that are left and within this relative distance of
            it (sparsemixer, arXiv 2409.12136, in evaluation); None for none.
    """

    score: str
    top_k: int
    bias: str = ""
    groups: int = 1
    kept: int = 1
    group_score: str = "top2"
    normalised: bool = False
    scale: float = 1.0
    fill: float = float("-inf")
    on_logits: bool = False
    expert_scale: str = ""
    jitter: float | None = None

    def scores(self, logits: Tensor) -> Tensor:
        return SCORES[self.score](logits)

    def biased(self, scores: Tensor, bias: Tensor | None) -> Tensor:
        """Scores plus bias: what groups, and in the kept groups experts, are chosen by."""
        chosen = scores.logit() if self.on_logits else scores
        return chosen if bias is None else chosen + bias.to(scores)

    def selection(self, biased: Tensor) -> Tensor:
        """What top-k is taken of: experts of the groups not kept are at `fill` (minus infinity)."""
        if self.groups == 1:
            return biased
        grouped = biased.reshape(*biased.shape[:-1], self.groups, -1)
        best = GROUP_SCORES[self.group_score](grouped).topk(self.kept, dim=-1).indices
        kept = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=best.device).scatter_(-1, best, True)
        masked: Tensor = grouped.masked_fill(~kept.unsqueeze(-1), self.fill)
        return masked.flatten(-2)

    def indices(self, selection: Tensor) -> Tensor:
        return selection.topk(self.top_k, dim=-1, sorted=True).indices

    def weights(self, scores: Tensor, indices: Tensor, expert_scale: Tensor | None = None) -> Tensor:
        """Gate weights of the chosen experts, from the scores without the bias."""
        weights = scores.gather(-1, indices) if self.jitter is None else sparsemixer(scores, indices, self.jitter)
        if self.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if expert_scale is not None:
            weights = weights * expert_scale.to(weights)[indices]
        return weights * self.scale

    def describe(self) -> str:
        """The rule in words.

        >>> Replay("sigmoid", 8, "gate.e_score_correction_bias", 8, 4, normalised=True, scale=2.5).describe()
        'sigmoid + bias, top-8 in 4 of 8 groups, normalised, times 2.5'
        """
        return "".join(
            [
                self.score if self.jitter is None else "sparsemixer",
                " + bias" if self.bias else "",
                f", top-{self.top_k}",
                f" in {self.kept} of {self.groups} groups" if self.groups > 1 else "",
                ", normalised" if self.normalised else "",
                f", times {self.scale:.4g}" if abs(self.scale - 1) > 1e-4 else "",
            ]
        )


def sparsemixer(logits: Tensor, indices: Tensor, jitter: float) -> Tensor:
    """Weights `[token, slot]` of the experts chosen one after another: softmax over what is left and near enough."""
    left, weights = logits, []
    for chosen in indices.unbind(-1):
        at = chosen.unsqueeze(-1)
        value = logits.gather(-1, at)
        far = (value - logits) / logits.abs().maximum(value) > jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(-1, at))
        left = left.scatter(-1, at, float("-inf"))
    return torch.cat(weights, -1)


def biases(block: nn.Module, n_experts: int) -> dict[str, Tensor]:
    """Every vector of `n_experts` numbers below `block` that is not a layer's own bias, by attribute path."""
    named = [*block.named_buffers(), *block.named_parameters()]
    return {
        name: t
        for name, t in named
        if t.shape in ((n_experts,), (1, n_experts)) and "experts." not in name and t.is_floating_point()
    }


def candidates(block: nn.Module, n_experts: int, top_k: int, groups: tuple[int, int] | None) -> Iterator[Replay]:
    """Rules to try, the most specific first: one that ignores a bias or groups can fit by chance, not the reverse."""
    jitter = next((j for m in block.children() if (j := getattr(m, "router_jitter_noise", None)) is not None), None)
    if jitter is not None:
        yield Replay("identity", top_k, jitter=2 * jitter)
    vectors = list(biases(block, n_experts))
    grouping = [(*groups, by, fill) for by in GROUP_SCORES for fill in (float("-inf"), 0.0)] if groups else []
    if groups is None or groups[0] == 1:
        grouping = []
    scales = ["", *(v for v in vectors if "scale" in v)]
    for (n, kept, by, fill), bias, score, normalised, expert_scale in product(
        [*grouping, (1, 1, "top2", float("-inf"))], [*vectors, ""], SCORES, (True, False), scales
    ):
        for on_logits in (False, True) if bias and score == "sigmoid" else (False,):
            yield Replay(score, top_k, bias, n, kept, by, normalised, 1.0, fill, on_logits, expert_scale)


def identify(
    block: nn.Module,
    logits: Tensor,
    indices: Tensor,
    weights: Tensor,
    groups: tuple[int, int] | None = None,
) -> Replay | None:
    """The rule by which a router got from `logits` `[token, expert]` to `indices` and `weights` `[token, slot]`.

    Args:
        block: module that holds the router; selection biases are looked for below it.
        groups: number of groups and how many of them are kept, where the model says.

    Returns:
        The first rule that selects the same experts for every token and gives weights equal up to one constant
        factor, or None.
    """
    tolerance = 1e-4 if weights.dtype == torch.float32 and logits.dtype == torch.float32 else 2e-2
    wanted, actual = indices.sort(-1).values, weights.float()
    for rule in candidates(block, logits.shape[-1], indices.shape[-1], groups):
        scores = rule.scores(logits)
        selection = rule.selection(rule.biased(scores, vector(block, rule.bias)))
        if selection.isnan().any() or not torch.equal(rule.indices(selection).sort(-1).values, wanted):
            continue
        own = rule.weights(scores, indices, vector(block, rule.expert_scale))
        scale = float((actual.sum() / own.sum()).item())
        if torch.allclose(own * scale, actual, rtol=tolerance, atol=tolerance * abs(scale)):
            return replace(rule, scale=1.0 if abs(scale - 1) < tolerance else scale)
    return None


def vector(block: nn.Module, path: str) -> Tensor | None:
    """The vector `[expert]` at an attribute path below `block` as it is now; None for "" or while it is offloaded."""
    if not path:
        return None
    value: Any = block
    for part in path.split("."):
        value = getattr(value, part)
    return None if value.is_meta else value.detach().reshape(-1)
