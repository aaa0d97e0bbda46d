"""Experts divided among processes: their tensors are gathered for the hooks and split again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Sharding:
    """How one layer's experts are divided by transformers' tensor or expert parallelism.

    Attributes:
        group: the processes.
        by_expert: whether each process holds some experts whole (expert parallelism). Otherwise it holds a slice of
            every expert's neurons, and its outputs are parts of a sum (tensor parallelism).
        gated: whether the up projection consists of a gate half and an up half, so that a slice holds a part of each.
    """

    group: Any
    by_expert: bool
    gated: bool

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size(self.group)

    def gather(self, stage: str, slots: Tensor) -> Tensor:
        """Put together what all processes computed.

        Args:
            stage: "hook_pre", "hook_post" or "hook_out".
            slots: what this process computed, `[token, slot, ·]`, with zeros for experts of others.

        Returns:
            `[token, slot, ·]` of all processes.
        """
        if self.by_expert or stage == "hook_out":
            total = slots.clone()
            dist.all_reduce(total, group=self.group)
            return total
        parts = [torch.empty_like(slots) for _ in range(self.size)]
        dist.all_gather(parts, slots.contiguous(), group=self.group)
        halves = [part.chunk(self._halves(stage), dim=-1) for part in parts]
        return torch.cat([half for pair in zip(*halves, strict=True) for half in pair], dim=-1)

    def split(self, stage: str, slots: Tensor) -> Tensor:
        """Take this process's share of what `gather` returned; of a sum, each process takes an equal part."""
        if self.by_expert:
            return slots  # slots of other processes have no weight in this one
        if stage == "hook_out":
            return slots / self.size
        rank = dist.get_rank(self.group)
        halves = slots.chunk(self._halves(stage), dim=-1)
        return torch.cat([half.chunk(self.size, dim=-1)[rank] for half in halves], dim=-1)

    def _halves(self, stage: str) -> int:
        return 2 if self.gated and stage == "hook_pre" else 1


def find_sharding(experts: nn.Module | None) -> Sharding | None:
    """Find how the weights of an experts module are divided among processes; None if they are not."""
    for weight in experts.parameters() if experts is not None else ():
        if isinstance(weight, DTensor) and any(p.is_shard() for p in weight.placements):
            by_expert = bool(getattr(experts, "_is_expert_parallel", False))
            return Sharding(weight.device_mesh.get_group(), by_expert, getattr(experts, "has_gate", True))
    return None
