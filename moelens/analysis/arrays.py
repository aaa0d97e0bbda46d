"""Array types, safe division and logarithm, and the checks of routes and labels that are given as arrays."""

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
"""Expert ids, as a rule `[token, layer, slot]`."""


def divide(a: NDArray[np.generic], b: NDArray[np.generic]) -> Floats:
    """Return a / b in float64, broadcast; NaN where b is 0.

    >>> divide(np.array([1, 2]), np.array([2, 0])).tolist()
    [0.5, nan]
    """
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return np.asarray(np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0))


def log(a: NDArray[np.generic]) -> Floats:
    """Return the natural logarithm: −inf at 0 without a warning, NaN below 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(a))


def check_routes(
    indices: Routes,
    n_experts: int,
    layers: Sequence[int] | None = None,
    labels: Bools | None = None,
    names: Sequence[str] = (),
) -> None:
    """Check that routes, layers and labels agree with each other and with the number of experts.

    Args:
        indices: expert ids `[token, layer, slot]`.
        n_experts: number of experts in each layer.
        layers: layer numbers, one for each layer of `indices`; None skips this check.
        labels: labels `[token, label]`; None skips this check.
        names: names of the labels.

    Raises:
        CheckError: a shape is wrong, a layer has no routes, or an expert id is out of range.
    """
    n_layers = indices.shape[1] if layers is None and indices.ndim == 3 else len(layers or ())
    if indices.ndim != 3 or indices.shape[1] != n_layers:
        raise CheckError(
            f"expected indices of shape [token, layer, slot] with {n_layers} layers, got shape {list(indices.shape)}; "
            "give one layer number for each layer of indices"
        )
    if labels is not None and (labels.ndim != 2 or labels.shape != (len(indices), len(names))):
        raise CheckError(
            f"expected labels of shape [{len(indices)} tokens, {len(names)} labels], got shape {list(labels.shape)}; "
            "label the recording again"
        )
    if not indices.size:
        return
    if (no_routes := (indices < 0).all((0, 2))).any():
        index = int(np.argmax(no_routes))
        raise CheckError(
            f"expected routes in every layer, got none in layer {layers[index] if layers else index}; "
            "leave this layer out of indices and layers"
        )
    if not 0 <= int(indices.min()) <= int(indices.max()) < n_experts:
        raise CheckError(
            f"expected expert ids from 0 to {n_experts - 1}, got {indices.min()} to {indices.max()}; "
            "pass the n_experts of the recording"
        )
