"""Routes that no model made: an .npz file of them, and a generation for the forms of engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.engine import Generation

EXPERTS, LAYERS, SLOTS = 16, 3, 2
LENGTHS = np.array([7, 5])


def routes(rows: int, layers: int = LAYERS, slots: int = SLOTS, experts: int = EXPERTS, seed: int = 0) -> np.ndarray:
    """Return routes that can be true, `[row, layer, slot]`."""
    scores = np.random.default_rng(seed).random((rows, layers, experts))
    return np.argsort(-scores, axis=2)[:, :, :slots]


TRUE = routes(12)


def npz(path: Path, **arrays: Any) -> Path:
    """Write an importable file; `arrays` replace its arrays."""
    np.savez(path / "r.npz", **{"expert_ids": TRUE, "sequence_lengths": LENGTHS} | arrays)
    return path / "r.npz"


def generation(rows: int = 8, prompt: int = 5, **options: Any) -> Generation:
    """Return a generation that no model made."""
    ids = list(range(10, 11 + rows))
    return Generation("", ids[:prompt], ids[prompt:], "", routes(rows, **options).astype(np.int32))
