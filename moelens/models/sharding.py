"""Experts divided among processes: what each of them holds made whole for the hooks, and taken apart again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Division:
    """How one layer's experts are divided by transformers' tensor or expert parallelism.

    Attributes:
        group: the processes.
        by_expert: each holds some experts whole (expert parallelism); else each holds a slice of every expert's
            neurons (tensor parallelism), and its outputs are parts of a sum.
        gated: the projection up holds a gate and an up half, and a slice of each.
    """

    group: Any
    by_expert: bool
    gated: bool

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    def whole(self, stage: str, slots: Tensor) -> Tensor:
        """`[token, slot, ·]` of this process (zeros for what others hold) made that of all."""
        if self.by_expert or stage == "hook_out":
            total = slots.clone()
            dist.all_reduce(total, group=self.group)
            return total
        parts = [torch.empty_like(slots) for _ in range(self.size)]
        dist.all_gather(parts, slots.contiguous(), group=self.group)
        halves = [part.chunk(self.halves(stage), dim=-1) for part in parts]
        return torch.cat([half for pair in zip(*halves, strict=True) for half in pair], dim=-1)

    def own(self, stage: str, slots: Tensor) -> Tensor:
        """This process's share of what `whole` made; of a sum, an equal part."""
        if self.by_expert:
            return slots  # others' slots have no weight here
        if stage == "hook_out":
            return slots / self.size
        rank = dist.get_rank(self.group)
        halves = slots.chunk(self.halves(stage), dim=-1)
        return torch.cat([half.chunk(self.size, dim=-1)[rank] for half in halves], dim=-1)

    def halves(self, stage: str) -> int:
        return 2 if self.gated and stage == "hook_pre" else 1


def division_of(experts: nn.Module | None) -> Division | None:
    """How a module's weights are divided; None if they are not."""
    for weight in experts.parameters() if experts is not None else ():
        if isinstance(weight, DTensor) and any(p.is_shard() for p in weight.placements):
            by_expert = bool(getattr(experts, "_is_expert_parallel", False))
            return Division(weight.device_mesh.get_group(), by_expert, getattr(experts, "has_gate", True))
    return None
