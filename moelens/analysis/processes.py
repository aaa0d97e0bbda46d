"""Sums over the processes of torch.distributed; without it there is one process, and torch is not imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray


def rank_and_size() -> tuple[int, int]:
    """Which process this is, and of how many."""
    distributed = _distributed()
    return (distributed.get_rank(), distributed.get_world_size()) if distributed else (0, 1)


def add_up(arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """Each array summed over the processes, in all of them; the arrays given are overwritten."""
    distributed = _distributed()
    if distributed:
        import torch

        for array in arrays:
            distributed.all_reduce(torch.from_numpy(array))
    return arrays


def _distributed() -> Any:
    if "torch.distributed" not in sys.modules:
        return None
    distributed = sys.modules["torch.distributed"]
    return distributed if distributed.is_available() and distributed.is_initialized() else None
