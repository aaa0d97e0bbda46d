"""Recording with several processes: how the documents are divided, and which processes write."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from moelens.errors import MoeLensError

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_T = TypeVar("_T")
_TIMEOUT = timedelta(days=7)  # processes end at different times, and wait for each other
_JOIN_TIMEOUT: timedelta | None = None  # for the others at the start; None is that of torch
_PATIENCE = 10.0  # seconds without the others, after which a line says so
_ALONE = "unset WORLD_SIZE to work with one process"


@dataclass(frozen=True)
class Ranks:
    """One of the processes that record together.

    Processes whose model is sharded over them (tensor or expert parallelism) form a team. A team runs each forward
    pass together, and its first process writes. The documents are divided among the teams.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        team_size: Number of processes that share one model.
        group: Process group for the communication on the CPU; None for a single process.
    """

    rank: int = 0
    size: int = 1
    team_size: int = 1
    group: Any = None

    @classmethod
    def of(cls, model: HookedMoE | None) -> Ranks:
        """Return this process among those that `accelerate launch` or `torchrun` started.

        Args:
            model: The model, which may be sharded; None if no model is used.

        Raises:
            MoeLensError: If the number of processes is not a multiple of the number that share the model.
        """
        if not join_processes():
            return cls()
        size, team = dist.get_world_size(), _team_size(getattr(model, "hf_model", model))
        if size % team:
            raise MoeLensError(
                f"expected a multiple of {team} processes, over which the model is sharded, got {size};"
                " start another number of processes"
            )
        return cls(dist.get_rank(), size, team, dist.new_group(backend="gloo", timeout=_TIMEOUT))

    @property
    def first(self) -> bool:
        """Whether this process plans and finishes the recording and prints messages."""
        return self.rank == 0

    @property
    def writes(self) -> bool:
        """Whether this process writes the documents of its team."""
        return self.rank % self.team_size == 0

    @property
    def team(self) -> int:
        """Number of the team of this process."""
        return self.rank // self.team_size

    @property
    def teams(self) -> int:
        """Number of teams."""
        return self.size // self.team_size

    def run_on_first(self, compute: Callable[[], _T]) -> _T:
        """Call a function in the first process, and return its result in all of them.

        A `MoeLensError` of the function is raised in all processes, so that none waits for a result.
        """
        box: list[Any] = [None]
        if self.first:
            try:
                box = [compute()]
            except MoeLensError as error:
                box = [error]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self.group)
        if isinstance(box[0], MoeLensError):
            raise box[0]
        result: _T = box[0]
        return result

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.size > 1:
            dist.barrier(group=self.group)


def join_processes() -> bool:
    """Join the other processes of this launch, and return whether there are any.

    While they do not come, a line on stderr says what this process waits for.

    Raises:
        MoeLensError: If WORLD_SIZE announces other processes, but they are not described, or do not come.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    size = os.environ.get("WORLD_SIZE") or "1"
    if not size.isdecimal():
        raise MoeLensError(f"expected a number of processes in WORLD_SIZE, got {size!r}; {_ALONE}")
    if int(size) < 2:
        return False
    if wrong := _wrong_variables(int(size)):
        raise MoeLensError(
            f"expected RANK, MASTER_ADDR and MASTER_PORT of {size} processes, as torchrun and accelerate launch set"
            f" them beside WORLD_SIZE, got {', '.join(wrong)}; start the processes with one of these, or {_ALONE}"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(_gpu())
    awaited = f"{size} processes (WORLD_SIZE) at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR)"
    notice = threading.Timer(
        _PATIENCE, print, [f"moelens: process {os.environ['RANK']} waits for {awaited}; {_ALONE}"], {"file": sys.stderr}
    )
    notice.start()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=_JOIN_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise MoeLensError(
            f"expected {awaited}, which did not all come ({reason}); start them all, or {_ALONE}"
        ) from error
    finally:
        notice.cancel()
    return True


def _wrong_variables(size: int) -> list[str]:
    """Return the environment variables of a launch that do not describe one of `size` processes, with their values."""
    given = {name: os.environ.get(name, "") for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")}
    valid = {
        "RANK": given["RANK"].isdecimal() and int(given["RANK"]) < size,
        "MASTER_ADDR": bool(given["MASTER_ADDR"]),
        "MASTER_PORT": given["MASTER_PORT"].isdecimal(),
    }
    return [f"{name}={given[name]}" if given[name] else f"no {name}" for name in given if not valid[name]]


def local_device() -> str:
    """Return the device of this process, for a model that each process holds completely."""
    return f"cuda:{_gpu()}" if torch.cuda.is_available() else "cpu"


def _gpu() -> int:
    """Return the number of the GPU of this process; if there are more processes than GPUs, they share them."""
    return int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()


def _team_size(hf_model: Any) -> int:
    """Return over how many processes the parallelism of transformers has sharded a model; 1 if it has not."""
    mesh = getattr(hf_model, "_device_mesh", None) or getattr(hf_model, "device_mesh", None)
    return int(mesh.size()) if mesh is not None else 1


def sharding(*, by_expert: bool) -> Any:
    """Return the configuration of transformers that shards a model over all processes.

    Args:
        by_expert: Shard the experts of the model only; otherwise shard all layers.
    """
    from transformers.distributed import DistributedConfig

    size = dist.get_world_size()
    return DistributedConfig(tp_size=size, ep_size=size) if by_expert else DistributedConfig(tp_size=size)
