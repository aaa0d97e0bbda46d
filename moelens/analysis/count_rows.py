"""Counts as files hold them: rows of layer, expert and group, put into tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moelens.errors import CheckError

COUNT_NAMES = ("count", "counts", "activation_tokens", "tokens", "activations", "frequency", "mass", "routing_mass")
"""Names of fields and columns that hold numbers of tokens, or sums of gate weights instead of them."""
GATE_NAMES = ("gates", "gate_values_sum", "gate_sum", "gate", "weight_sum", "gate_weight_sum")
"""Names of fields and columns that hold sums of gate weights beside numbers of tokens."""
_MOST_EXPERTS, _MOST_LAYERS, _MOST_CELLS = 1 << 16, 1 << 12, 1 << 26


@dataclass(frozen=True, kw_only=True)
class FileCounts:
    """The counts of one file, before they are checked against each other.

    Attributes:
        count: numbers of tokens, or sums of gate weights `[layer, expert, group]`.
        groups: names of the groups of text.
        layers: numbers of the layers in the model.
        gates: sums of gate weights beside numbers of tokens, of the same shape; None if the file has none.
        tokens: tokens of each group, for those that the file states.
        top_k: experts chosen for each token, if the file states it.
        model: name of the model, if the file states it.
        notes: sentences about what was read, for the provenance.
    """

    count: NDArray[Any]
    groups: tuple[str, ...]
    layers: tuple[int, ...]
    gates: NDArray[np.floating] | None = None
    tokens: Mapping[str, float] = field(default_factory=dict)
    top_k: int | None = None
    model: str = ""
    notes: tuple[str, ...] = ()


def table_of_rows(
    name: str,
    layers: Sequence[int] | NDArray[Any],
    experts: Sequence[int] | NDArray[Any],
    groups: Sequence[str],
    values: Sequence[float] | NDArray[Any],
    gates: Sequence[float] | NDArray[Any] | None = None,
    n_experts: int = 0,
    add: bool = False,
) -> FileCounts:
    """Put rows into tables; what no row names is 0.

    Args:
        name: name of the file, for errors.
        layers: layer of each row.
        experts: expert of each row.
        groups: group of each row.
        values: number of tokens, or sum of gate weights, of each row.
        gates: sum of gate weights of each row.
        n_experts: the least number of experts.
        add: add up rows of the same layer, expert and group.

    Raises:
        CheckError: a number cannot be true, or a layer, expert and group have two rows.
    """
    layer, expert = checked_ids(layers, "layer", name), checked_ids(experts, "expert", name)
    if not len(layer):
        raise CheckError(f"expected rows of counts in {name}, got none; give a table with a row for each expert")
    names = tuple(dict.fromkeys(groups))
    numbers, at_layer = np.unique(layer, return_inverse=True)
    at_group = np.array([{g: i for i, g in enumerate(names)}[group] for group in groups])
    n = max(n_experts, int(expert.max()) + 1)
    shape = len(numbers), n, len(names)
    check_size(shape, name)
    places = at_layer.reshape(-1), expert, at_group
    if not add:
        _check_single(name, np.ravel_multi_index(places, shape), shape, numbers, names)
    return FileCounts(
        count=_filled(shape, places, values, name),
        groups=names,
        layers=tuple(numbers.tolist()),
        gates=None if gates is None else _filled(shape, places, gates, name).astype(float),
    )


def check_size(shape: Sequence[int], name: str) -> None:
    """Raise `CheckError` if a table `[layer, expert, group]` is larger than that of any model."""
    layers, experts, groups = shape
    if np.prod(shape, dtype=float) > _MOST_CELLS or layers > _MOST_LAYERS or experts > _MOST_EXPERTS:
        raise CheckError(
            f"expected at most {_MOST_CELLS:,} cells in {name}, got {layers} layers × {experts} experts × {groups} "
            "groups; correct the numbers, or import fewer groups at a time"
        )


def _check_single(
    name: str, cells: NDArray[Any], shape: tuple[int, ...], layers: NDArray[Any], groups: Sequence[str]
) -> None:
    """Raise `CheckError` if two rows name the same cell."""
    values, occurrences = np.unique(cells, return_counts=True)
    if (occurrences > 1).any():
        layer, expert, group = np.unravel_index(values[np.argmax(occurrences > 1)], shape)
        raise CheckError(
            f"expected one row for each layer, expert and group in {name}, got two or more for layer {layers[layer]}, "
            f"expert {expert}, group {groups[group]!r}; add them up, or name the column that tells them apart 'group'"
        )


def checked_ids(values: Sequence[Any] | NDArray[Any], what: Literal["layer", "expert"], name: str) -> NDArray[np.int64]:
    """Return layer or expert numbers as int64.

    Raises:
        CheckError: one is not a whole number from 0 to a limit that no model reaches.
    """
    most = _MOST_LAYERS if what == "layer" else _MOST_EXPERTS
    array = array_of(values)
    if not array.size:
        return np.zeros(array.shape, np.int64)
    if array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) >= most:
        bad = array if array.dtype.kind not in "iu" else array[(array < 0) | (array >= most)]
        shown = repr(bad.ravel()[:1].tolist())[1:-1]
        raise CheckError(
            f"expected {what} numbers from 0 to {most - 1} in {name}, got {shown}; number {what}s from 0 on"
        )
    return array.astype(np.int64)


def _filled(shape: tuple[int, ...], places: Any, values: Sequence[Any] | NDArray[Any], name: str) -> NDArray[Any]:
    """Return a table with the sums of `values` at `places`: int64 if all of them are integers, else float64."""
    array = checked_numbers(values, name)
    table = np.zeros(shape, array.dtype)
    np.add.at(table, places, array)
    return table


def checked_numbers(values: Sequence[Any] | NDArray[Any], name: str) -> NDArray[Any]:
    """Return counts or masses as int64, or as float64 if some are fractions.

    Raises:
        CheckError: a value is not a number, not finite, negative, or too large to add up.
    """
    array = array_of(values)
    if array.dtype.kind == "O" and all(type(v) in (int, float) for v in array.ravel().tolist()):
        array = array.astype(float)  # an integer beyond 64 bits
    if array.dtype.kind not in "iuf":
        items = array.ravel().tolist()
        shown = next((v for v in items if isinstance(v, bool) or not isinstance(v, int | float)), items[:1])
        raise CheckError(f"expected numbers as counts in {name}, got {_short(shown)}; write plain numbers")
    wrong = ~np.isfinite(array) | (array < 0) | (array >= 2**53)
    if wrong.any():
        raise CheckError(
            f"expected counts of 0 or more and below 2**53 in {name}, got {array[wrong].ravel()[0]}; correct or leave "
            "out this value"
        )
    whole = array.dtype.kind != "f" or bool((array == np.rint(array)).all())
    return array.astype(np.int64 if whole else float)


def checked_top_k(value: Any, name: str) -> int:
    """Return the number of experts for each token that a file states.

    Raises:
        CheckError: it is no such number.
    """
    array = array_of(value)
    if array.size != 1 or array.dtype.kind not in "iu" or not 0 < array.item() <= _MOST_EXPERTS:
        raise CheckError(
            f"expected a number of experts for each token from 1 to {_MOST_EXPERTS} in {name}, got "
            f"{_short(value)}; correct it"
        )
    return int(array.item())


def array_of(values: Any) -> NDArray[Any]:
    """Return an array of any values; of objects if they are lists of different lengths."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError):
        array = np.empty(len(values), object)
        for i, value in enumerate(values):
            array[i] = value
        return array


def _short(value: Any) -> str:
    """Return a value in a few characters of one line."""
    return " ".join(ascii(value).split())[:40]
