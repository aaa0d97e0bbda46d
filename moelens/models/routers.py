"""Routers' rules: how a router gets from logits to scores, selection scores, chosen experts and weights.

Engines return only the two ends of this chain, and what lies between differs. In DeepSeek-V3 the experts with the
largest logits are not the chosen ones, because a bias is added and groups of experts are chosen first. Which rule a
router follows is found by trying (`moelens.models.identification`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from moelens.texts import Texts

_Scorer = Callable[[Tensor], Tensor]


def widen(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or as it is in float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


SCORES: dict[str, _Scorer] = {
    "softmax": lambda logits: widen(logits).softmax(-1),
    "sigmoid": lambda logits: widen(logits).sigmoid(),
    "sqrtsoftplus": lambda logits: nn.functional.softplus(widen(logits)).sqrt(),  # DeepSeek-V4
    "identity": widen,  # PhiMoE
}
"""Functions from router logits to scores, by the name that configurations use (`scoring_func`)."""

GROUP_SCORES: dict[str, _Scorer] = {
    "top2": lambda grouped: grouped.topk(2, dim=-1).values.sum(-1),  # DeepSeek-V3, arXiv 2412.19437
    "max": lambda grouped: grouped.max(-1).values,  # DeepSeek-V2, arXiv 2405.04434
}
"""Functions from the biased scores of a group's experts to the score of the group."""


@dataclass(frozen=True, kw_only=True)
class RouterRule:
    """How one router chooses experts. All tensors are `[token, expert]` or `[token, slot]`, in float32 (in float64
    where the logits are).

    Attributes:
        score: score function: "softmax", "sigmoid", "sqrtsoftplus" or "identity".
        top_k: number of experts chosen for a token.
        bias: attribute path, below the block, of the bias that is added to the scores for the selection only; "" for
            none.
        groups: number of groups of experts; 1 for none.
        kept_groups: number of groups from which experts are chosen.
        group_score: score of a group: "top2" (sum of its two largest biased scores) or "max".
        normalised: whether the weights of the chosen experts are divided by their sum.
        epsilon: what is added to that sum.
        scale: constant factor of the weights.
        fill: selection score of the experts in the other groups.
        on_logits: whether the bias is added to the logits, before the sigmoid (Kolibri).
        expert_scale: attribute path, below the block, of a factor for each expert's weight (Gemma 4); "" for none.
        skip: the column that stands for no expert; a slot that chooses it gets expert 0 and weight 0 (Zaya). None for
            routers without one.
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
    epsilon: float = 1e-20
    scale: float = 1.0
    fill: float = float("-inf")
    on_logits: bool = False
    expert_scale: str = ""
    skip: int | None = None
    jitter: float | None = None

    def scores(self, logits: Tensor) -> Tensor:
        """Compute scores `[token, expert]` from logits `[token, expert]`."""
        return SCORES[self.score](logits)

    def biased(self, scores: Tensor, bias: Tensor | None, logits: Tensor | None = None) -> Tensor:
        """Add the selection bias to the scores; groups and experts are chosen by the result.

        Args:
            scores: `[token, expert]`.
            bias: `[expert]`, or None.
            logits: `[token, expert]`, for a rule that adds the bias to them; None computes them from the scores, which
                do not tell logits apart that a sigmoid has rounded to 1.
        """
        base = scores
        if self.on_logits:
            base = scores.clamp(0, 1).logit() if logits is None else widen(logits)
        return base if bias is None else base + bias.to(scores)

    def selection(self, biased: Tensor) -> Tensor:
        """Choose groups: the result is `biased` with the experts of all other groups set to `fill`."""
        if self.groups == 1:
            return biased
        grouped = biased.reshape(*biased.shape[:-1], self.groups, -1)
        best = GROUP_SCORES[self.group_score](grouped).topk(self.kept_groups, dim=-1).indices
        in_best = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=best.device).scatter_(-1, best, True)
        masked: Tensor = grouped.masked_fill(~in_best.unsqueeze(-1), self.fill)
        return masked.flatten(-2)

    def indices(self, selection: Tensor, logits: Tensor | None = None) -> Tensor:
        """Choose the `top_k` experts of each token: ids `[token, slot]`, the best first.

        Args:
            selection: `[token, expert]`.
            logits: `[token, expert]`; of experts with equal selection scores, those with the larger logits are chosen.
                Many engines choose by the logits, and tell experts apart whose scores are rounded to 0 or 1.
        """
        if logits is None:
            return selection.topk(self.top_k, dim=-1, sorted=True).indices
        by_logits = logits.argsort(dim=-1, descending=True, stable=True)
        best = selection.gather(-1, by_logits).argsort(dim=-1, descending=True, stable=True)[..., : self.top_k]
        return by_logits.gather(-1, best)

    def weights(self, scores: Tensor, indices: Tensor, expert_scale: Tensor | None = None) -> Tensor:
        """Compute the weights `[token, slot]` of the chosen experts.

        Args:
            scores: `[token, expert]`, without the selection bias.
            indices: the chosen experts' ids, `[token, slot]`.
            expert_scale: a factor for each expert `[expert]`, where the rule has one.
        """
        weights = scores.gather(-1, indices) if self.jitter is None else _sparsemixer(scores, indices, self.jitter)
        if self.normalised:
            weights = weights / (weights.sum(-1, keepdim=True) + self.epsilon)
        if expert_scale is not None:
            weights = weights * expert_scale.to(weights)[indices]
        return weights * self.scale

    def without_skips(self, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Give the slots `[token, slot]` that chose no expert what the router gives them: expert 0 and weight 0."""
        if self.skip is None:
            return indices, weights
        skipped = indices == self.skip
        return indices.masked_fill(skipped, 0), weights.masked_fill(skipped, 0)

    def in_words(self, lang: str | Texts = "en") -> str:
        """Return the rule in one phrase, in English ("en") or "ja"."""
        say = Texts(lang)
        score = self.score if self.jitter is None else "sparsemixer"
        chosen = {"k": self.top_k, "kept": self.kept_groups, "groups": self.groups}
        parts = [
            say("rule.biased", score=score) if self.bias else score,
            say("rule.top_of_groups" if self.groups > 1 else "rule.top", **chosen),
            say("rule.maximum") if self.groups > 1 and self.group_score == "max" else "",
            say("rule.none") if self.skip is not None else "",
            say("rule.normalised") if self.normalised else "",
            say("rule.factors") if self.expert_scale else "",
            say("rule.scale", scale=f"{self.scale:.4g}") if abs(self.scale - 1) > 1e-4 else "",
        ]
        return "".join(parts)

    def __str__(self) -> str:
        return self.in_words()


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


def expert_vector(block: nn.Module, path: str) -> Tensor | None:
    """Read a vector with a number for each expert.

    Args:
        block: the module below which it is.
        path: its attribute path; "" for none.

    Returns:
        Its present values `[expert]`, also if accelerate has offloaded them; None if there is no path.
    """
    if not path:
        return None
    holder, _, name = path.rpartition(".")
    owner = block.get_submodule(holder)
    with align_module_device(owner):
        value: Tensor = getattr(owner, name).reshape(-1)
    return value


def router_output_parts(output: Any, n_experts: int) -> dict[str, int]:
    """Find what a router returns, by the tensors' types and last dimensions.

    Args:
        output: a tensor or a tuple.
        n_experts: number of experts the router chooses among.

    Returns:
        The positions of "indices", "weights" and "logits" in the output, as far as it has them.
    """
    parts: dict[str, int] = {}
    items = output if isinstance(output, tuple) else (output,)
    tensors = [(i, t) for i, t in enumerate(items) if isinstance(t, Tensor) and t.ndim >= 2]
    for i, t in tensors:
        if not t.is_floating_point():
            parts.setdefault("indices", i)
    k = items[parts["indices"]].shape[-1] if "indices" in parts else 0
    for i, t in tensors:
        if t.is_floating_point() and t.shape[-1] in (n_experts, n_experts + 1) and "logits" not in parts:
            parts["logits"] = i  # one more than there are experts: the choice to skip them (Zaya)
        elif t.is_floating_point() and t.shape[-1] == k:
            parts.setdefault("weights", i)
    return parts
