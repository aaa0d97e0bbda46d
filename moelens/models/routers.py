"""Routers' rules: how a router gets from logits to scores, selection scores, chosen experts and weights.

Engines return only the two ends of this chain, and what lies between differs. In DeepSeek-V3 the experts with the
largest logits are not the chosen ones, because a bias is added and groups of experts are chosen first. A rule is not
looked up by the model's name but found: every combination of the parts below is tried on the router's own output, and
the rule that gives the same experts and the same weights is used. Where none does, hook points that need the rule are
not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

_Scorer = Callable[[Tensor], Tensor]

_SCORES: dict[str, _Scorer] = {
    "softmax": lambda logits: logits.softmax(-1, dtype=torch.float32),
    "sigmoid": lambda logits: logits.float().sigmoid(),
    "sqrtsoftplus": lambda logits: nn.functional.softplus(logits.float()).sqrt(),  # DeepSeek-V4
    "identity": lambda logits: logits.float(),  # routers that return probabilities, such as Gemma 4's
}
"""Functions from router logits to scores, by the name that configurations use (`scoring_func`)."""

_GROUP_SCORES: dict[str, _Scorer] = {
    "top2": lambda grouped: grouped.topk(2, dim=-1).values.sum(-1),  # DeepSeek-V3, arXiv 2412.19437
    "max": lambda grouped: grouped.max(-1).values,  # DeepSeek-V2, arXiv 2405.04434
}
"""Functions from the biased scores of a group's experts to the score of the group."""


@dataclass(frozen=True, kw_only=True)
class RouterRule:
    """How one router chooses experts. All tensors are `[token, expert]` or `[token, slot]`, in float32.

    Attributes:
        score: score function: "softmax", "sigmoid", "sqrtsoftplus" or "identity".
        top_k: number of experts chosen for a token.
        bias: attribute path, below the block, of the bias that is added to the scores for the selection only; "" for
            none.
        groups: number of groups of experts; 1 for none.
        kept_groups: number of groups from which experts are chosen.
        group_score: score of a group: "top2" (sum of its two largest biased scores) or "max".
        normalised: whether the weights of the chosen experts are divided by their sum.
        scale: constant factor of the weights.
        fill: selection score of the experts in the other groups.
        on_logits: whether the bias is added to the logits, before the sigmoid (Kolibri).
        expert_scale: attribute path, below the block, of a factor for each expert's weight (Gemma 4); "" for none.
        jitter: relative distance of sparsemixer (arXiv 2409.12136, in evaluation): the weight of a slot is its softmax
            over the experts not chosen before it and within this distance of it; None for other routers.

    Example:
        >>> rule = RouterRule(score="softmax", top_k=2, normalised=True)
        >>> scores = rule.scores(torch.tensor([[0.0, 2.0, 1.0]]))
        >>> indices = rule.indices(rule.selection(rule.biased(scores, None)))
        >>> indices.tolist(), rule.weights(scores, indices).sum(-1).tolist()
        ([[1, 2]], [1.0])
        >>> print(rule)
        softmax, top-2, normalised
    """

    score: str
    top_k: int
    bias: str = ""
    groups: int = 1
    kept_groups: int = 1
    group_score: str = "top2"
    normalised: bool = False
    scale: float = 1.0
    fill: float = float("-inf")
    on_logits: bool = False
    expert_scale: str = ""
    jitter: float | None = None

    def scores(self, logits: Tensor) -> Tensor:
        """Compute scores `[token, expert]` from logits `[token, expert]`."""
        return _SCORES[self.score](logits)

    def biased(self, scores: Tensor, bias: Tensor | None) -> Tensor:
        """Add the selection bias `[expert]` to the scores; groups and experts are chosen by the result."""
        base = scores.logit() if self.on_logits else scores
        return base if bias is None else base + bias.to(scores)

    def selection(self, biased: Tensor) -> Tensor:
        """Choose groups: the result is `biased` with the experts of all other groups set to `fill`."""
        if self.groups == 1:
            return biased
        grouped = biased.reshape(*biased.shape[:-1], self.groups, -1)
        best = _GROUP_SCORES[self.group_score](grouped).topk(self.kept_groups, dim=-1).indices
        in_best = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=best.device).scatter_(-1, best, True)
        masked: Tensor = grouped.masked_fill(~in_best.unsqueeze(-1), self.fill)
        return masked.flatten(-2)

    def indices(self, selection: Tensor) -> Tensor:
        """Choose the `top_k` experts of each token: ids `[token, slot]`, the best first."""
        return selection.topk(self.top_k, dim=-1, sorted=True).indices

    def weights(self, scores: Tensor, indices: Tensor, expert_scale: Tensor | None = None) -> Tensor:
        """Compute the weights `[token, slot]` of the chosen experts.

        Args:
            scores: `[token, expert]`, without the selection bias.
            indices: the chosen experts' ids, `[token, slot]`.
            expert_scale: a factor for each expert `[expert]`, where the rule has one.
        """
        weights = scores.gather(-1, indices) if self.jitter is None else _sparsemixer(scores, indices, self.jitter)
        if self.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if expert_scale is not None:
            weights = weights * expert_scale.to(weights)[indices]
        return weights * self.scale

    def __str__(self) -> str:
        return "".join(
            [
                self.score if self.jitter is None else "sparsemixer",
                " + bias" if self.bias else "",
                f", top-{self.top_k}",
                f" in {self.kept_groups} of {self.groups} groups" if self.groups > 1 else "",
                ", normalised" if self.normalised else "",
                f", times {self.scale:.4g}" if abs(self.scale - 1) > 1e-4 else "",
            ]
        )


def _sparsemixer(logits: Tensor, indices: Tensor, jitter: float) -> Tensor:
    """Weights `[token, slot]` of experts chosen one after another: softmax over those that remain and are near."""
    remaining, weights = logits, []
    for chosen in indices.unbind(-1):
        column = chosen.unsqueeze(-1)
        value = logits.gather(-1, column)
        far = (value - logits) / logits.abs().maximum(value) > jitter
        weights.append(remaining.masked_fill(far, float("-inf")).softmax(-1).gather(-1, column))
        remaining = remaining.scatter(-1, column, float("-inf"))
    return torch.cat(weights, -1)


def _expert_vectors(block: nn.Module, n_experts: int) -> list[str]:
    """Attribute paths, below `block`, of vectors with a number for each expert, except the experts' own weights."""
    named = [*block.named_buffers(), *block.named_parameters()]
    shapes = ((n_experts,), (1, n_experts))
    vectors = (n for n, t in named if t.shape in shapes and "experts." not in n and t.is_floating_point())
    return list(dict.fromkeys(vectors))


def _candidates(block: nn.Module, n_experts: int, top_k: int, groups: tuple[int, int] | None) -> Iterator[RouterRule]:
    """Yield the rules to try, the most specific first.

    A rule without bias or groups can agree by chance with a router that has them; the reverse does not happen.
    """
    jitter = next((j for m in block.children() if (j := getattr(m, "router_jitter_noise", None)) is not None), None)
    if jitter is not None:
        yield RouterRule(score="identity", top_k=top_k, jitter=2 * jitter)
    vectors = _expert_vectors(block, n_experts)
    groupings: list[dict[str, Any]] = [{}]
    if groups is not None and groups[0] > 1:
        n_groups, kept_groups = groups
        groupings = [
            {"groups": n_groups, "kept_groups": kept_groups, "group_score": by, "fill": fill}
            for by in _GROUP_SCORES
            for fill in (float("-inf"), 0.0)
        ] + groupings
    scales = ["", *(v for v in vectors if "scale" in v)]
    for grouping, bias, score, normalised, expert_scale in product(
        groupings, [*vectors, ""], _SCORES, (True, False), scales
    ):
        for on_logits in (False, True) if bias and score == "sigmoid" else (False,):
            yield RouterRule(
                score=score,
                top_k=top_k,
                bias=bias,
                normalised=normalised,
                on_logits=on_logits,
                expert_scale=expert_scale,
                **grouping,
            )


def identify_rule(
    block: nn.Module,
    logits: Tensor,
    indices: Tensor,
    weights: Tensor,
    groups: tuple[int, int] | None = None,
) -> RouterRule | None:
    """Find the rule by which a router got from logits to chosen experts and weights.

    Args:
        block: the module that holds the router; selection biases are searched below it.
        logits: `[token, expert]`.
        indices: the chosen experts' ids, `[token, slot]`.
        weights: their weights, `[token, slot]`.
        groups: number of groups of experts and of groups from which experts are chosen; None if the model has none.

    Returns:
        The first rule that chooses the same experts for every token and gives weights that are equal up to one constant
        factor; None if there is none.
    """
    tolerance = 1e-4 if weights.dtype == torch.float32 and logits.dtype == torch.float32 else 2e-2
    wanted, actual = indices.sort(-1).values, weights.float()
    for rule in _candidates(block, logits.shape[-1], indices.shape[-1], groups):
        scores = rule.scores(logits)
        selection = rule.selection(rule.biased(scores, expert_vector(block, rule.bias)))
        if selection.isnan().any() or not torch.equal(rule.indices(selection).sort(-1).values, wanted):
            continue
        replayed = rule.weights(scores, indices, expert_vector(block, rule.expert_scale))
        scale = float((actual.sum() / replayed.sum()).item())
        if torch.allclose(replayed * scale, actual, rtol=tolerance, atol=tolerance * abs(scale)):
            return replace(rule, scale=1.0 if abs(scale - 1) < tolerance else scale)
    return None


def expert_vector(block: nn.Module, path: str) -> Tensor | None:
    """Read a vector with a number for each expert.

    Args:
        block: the module below which it is.
        path: its attribute path; "" for none.

    Returns:
        Its present values `[expert]`; None if there is no path, or while the vector is offloaded.
    """
    if not path:
        return None
    value: Any = block
    for part in path.split("."):
        value = getattr(value, part)
    return None if value.is_meta else value.detach().reshape(-1)
