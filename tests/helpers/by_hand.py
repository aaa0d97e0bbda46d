"""What a Mixture-of-Experts layer computes, written out in float64 and apart from moelens's own code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moelens.models.routers import RouterRule

SCORES = {
    "softmax": lambda x: (
        (x - x.amax(-1, keepdim=True)).exp() / (x - x.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
    ),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "sqrtsoftplus": lambda x: (1 + x.exp()).log().sqrt(),
    "identity": lambda x: x,
}


def biased(rule: RouterRule, scores: Tensor, bias: Tensor | None) -> Tensor:
    if rule.on_logits:  # a score that an edit took out of its range is that of an infinite logit
        inside = scores.clamp(0, 1)
        scores = (inside / (1 - inside)).log()
    base = scores
    return base if bias is None else base + bias.double()


def selection(rule: RouterRule, values: Tensor) -> Tensor:
    """Leave the experts of the best groups, token by token."""
    if rule.groups == 1:
        return values
    left = torch.full_like(values, rule.fill)
    for row, kept in zip(values, left, strict=True):
        groups = row.view(rule.groups, -1)
        best = {"max": lambda g: g.max(), "top2": lambda g: g.sort().values[-2:].sum()}[rule.group_score]
        for group in sorted(range(rule.groups), key=lambda g: -float(best(groups[g])))[: rule.kept_groups]:
            kept.view(rule.groups, -1)[group] = groups[group]
    return left


def chosen(rule: RouterRule, values: Tensor) -> Tensor:
    ids = values.argsort(-1, descending=True)[:, : rule.top_k]
    return ids if rule.skip is None else ids.masked_fill(ids == rule.skip, 0)


def weights(rule: RouterRule, scores: Tensor, ids: Tensor, scale: Tensor | None) -> Tensor:
    w = scores.gather(-1, ids)
    if rule.jitter is not None:  # sparsemixer, arXiv 2409.12136
        w = torch.empty_like(w)
        for t, row in enumerate(scores):
            remaining = row.clone()
            for slot, expert in enumerate(ids[t].tolist()):
                near = (row[expert] - row) / row.abs().clamp(min=float(row[expert])) <= rule.jitter
                w[t, slot] = row[expert].exp() / remaining.exp()[near & remaining.isfinite()].sum()
                remaining[expert] = float("-inf")
    if rule.normalised:
        w = w / w.sum(-1, keepdim=True)
    if scale is not None:
        w = w * scale.double()[ids]
    return w * rule.scale


def project(experts: Any, name: str, ids: Tensor, rows: Tensor) -> Tensor:
    """The projection of each slot's expert: `rows` are `[token, in]` or `[token, slot, in]`."""
    weight = getattr(experts, name).double()
    weight = weight.transpose(-2, -1) if getattr(experts, "is_transposed", False) else weight
    rows = rows if rows.ndim == 3 else rows.unsqueeze(1).expand(-1, ids.shape[1], -1)
    out = torch.einsum("tkoi,tki->tko", weight[ids], rows.double())
    return out + getattr(experts, name + "_bias").double()[ids] if getattr(experts, "has_bias", False) else out


def activate(experts: Any, pre: Tensor) -> Tensor:
    if not getattr(experts, "has_gate", True):
        return experts.act_fn(pre)
    if hasattr(experts, "_apply_gate"):
        return experts._apply_gate(pre)
    gate, up = pre.chunk(2, dim=-1)
    return experts.act_fn(gate) * up
