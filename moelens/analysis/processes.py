"""Sums over the processes of torch.distributed. Without it there is one process, and torch is not imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray


def rank_and_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    distributed = _distributed()
    return (distributed.get_rank(), distributed.get_world_size()) if distributed else (0, 1)


def sum_over_processes(arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """Sum each array over the processes, in place; every process gets the sums."""
    distributed = _distributed()
    if distributed:
        import torch

        for array in arrays:
            distributed.all_reduce(torch.from_numpy(array))
    return arrays


def _distributed() -> Any:
    """Return torch.distributed where it is initialised, else None."""
    if "torch.distributed" not in sys.modules:
        return None
    distributed = sys.modules["torch.distributed"]
    return distributed if distributed.is_available() and distributed.is_initialized() else None
