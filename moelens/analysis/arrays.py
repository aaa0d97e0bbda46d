"""Array types, division, and what is asked of routes and labels that come as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moelens.errors import CheckError

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Routes: TypeAlias = NDArray[np.integer]
"""Expert ids."""


def divide(a: NDArray[np.generic], b: NDArray[np.generic]) -> Floats:
    """a / b in float64, NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return np.asarray(np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0))


def log(a: NDArray[np.generic]) -> Floats:
    """Natural logarithm, −inf at 0 without a warning, NaN below."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(a))


def check_routes(
    indices: Routes,
    n_experts: int,
    layers: Sequence[int] | None = None,
    labels: Bools | None = None,
    names: Sequence[str] = (),
) -> None:
    """Raise `CheckError` unless routes, layers, labels and names agree with each other and with the model's size."""
    n_layers = indices.shape[1] if layers is None and indices.ndim == 3 else len(layers or ())
    if indices.ndim != 3 or indices.shape[1] != n_layers:
        raise CheckError(f"indices have shape {list(indices.shape)}; allowed: [token, layer, slot], {n_layers} layers")
    if labels is not None and (labels.ndim != 2 or labels.shape != (len(indices), len(names))):
        raise CheckError(
            f"labels have shape {list(labels.shape)}; allowed: [{len(indices)} tokens, {len(names)} labels], "
            "label the recording again"
        )
    if not indices.size:
        return
    if (nothing := (indices < 0).all((0, 2))).any():
        at = int(np.argmax(nothing))
        raise CheckError(f"layer {layers[at] if layers else at} has no routes; leave it out of indices and layers")
    if not 0 <= int(indices.min()) <= int(indices.max()) < n_experts:
        raise CheckError(
            f"expert ids run from {indices.min()} to {indices.max()}; allowed: 0 to {n_experts - 1}, "
            "pass the recording's own n_experts"
        )
