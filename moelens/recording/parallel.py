"""Several processes that record together: who does what, and who writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from moelens.errors import MoeLensError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # ranks finish at different times


@dataclass(frozen=True)
class Ranks:
    """One process among those that record.

    Processes whose model is sharded over each other (tensor or expert parallelism) form a team: it runs every forward
    pass together, and its first member writes. The documents are divided among the teams.

    Attributes:
        rank, size: this process and how many there are.
        team_size: processes that share one model.
    """

    rank: int = 0
    size: int = 1
    team_size: int = 1
    group: Any = None

    @classmethod
    def of(cls, model: Any) -> Ranks:
        """The processes that `accelerate launch` or `torchrun` started; one, where neither did.

        Raises:
            MoeLensError: the model is sharded over a number of processes that does not divide them all.
        """
        if not start():
            return cls()
        size, team = dist.get_world_size(), team_size(getattr(model, "hf_model", model))
        if size % team:
            raise MoeLensError(f"the model is sharded over {team} of {size} processes; start a multiple of {team}")
        return cls(dist.get_rank(), size, team, dist.new_group(backend="gloo", timeout=PATIENCE))

    @property
    def first(self) -> bool:
        """Whether this is the process that plans, finishes and speaks."""
        return self.rank == 0

    @property
    def writes(self) -> bool:
        return self.rank % self.team_size == 0

    @property
    def team(self) -> int:
        return self.rank // self.team_size

    @property
    def teams(self) -> int:
        return self.size // self.team_size

    def first_makes(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; its mistake too, as they would wait for it in vain."""
        box: list[Any] = [None]
        if self.first:
            try:
                box = [make()]
            except MoeLensError as error:
                box = [error]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self.group)
        if isinstance(box[0], MoeLensError):
            raise box[0]
        made: T = box[0]
        return made

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier(group=self.group)


def start() -> bool:
    """Join the processes of this launch. Whether there are several."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return True


def local_device() -> str:
    """The device of this process, for a model that each process holds whole."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def team_size(model: Any) -> int:
    """Over how many processes transformers' tensor or expert parallelism has sharded a model; 1 if it has not."""
    mesh = getattr(model, "_device_mesh", None) or getattr(model, "device_mesh", None)
    return int(mesh.size()) if mesh is not None else 1


def sharding(*, by_expert: bool) -> Any:
    """transformers' configuration that shards a model, or its experts, over all processes."""
    from transformers.distributed import DistributedConfig

    size = dist.get_world_size()
    return DistributedConfig(tp_size=size, ep_size=size) if by_expert else DistributedConfig(tp_size=size)
