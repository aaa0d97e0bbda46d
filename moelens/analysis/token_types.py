"""Labels of experts whose tokens are known by type only: estimates with sharp bounds.

A published table says how often each token id went to each expert, and not which of its occurrences did. Where the text
is known, so are the labels of its tokens in context. Of a type x with n occurrences, of which n_L have the label L, C
went to an expert. Of these C, between max(0, C − (n − n_L)) and min(C, n_L) have the label. Where a type always or
never has it, the number is exact. Sums over types bound the tokens of the label at the expert, and the bounds are
sharp: some assignment of occurrences to experts reaches each of them. The estimate C n_L / n takes the occurrences of a
type to be exchangeable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Floats, Ints
from moelens.analysis.count_files import check_lengths, read_columns
from moelens.analysis.count_rows import array_of, check_size, checked_ids, checked_numbers
from moelens.analysis.type_labels import LabelledTypes
from moelens.errors import CheckError
from moelens.recording.route_inputs import NUMBER_OF_EXPERTS, read_option

_COLUMNS = ("layer", "expert", "token_id", "count")
_LEAST_AGREEMENT = 0.5
_MOST_IDS = 1 << 24  # of a vocabulary; more than any has
_OPTIONS = {"n_experts": NUMBER_OF_EXPERTS, "top_k": NUMBER_OF_EXPERTS}


@dataclass(frozen=True, kw_only=True)
class TypeRows:
    """How often each token id went to each expert, as rows; there is one for each layer, expert and token id.

    Attributes:
        layer: position of the layer in `layers` `[row]`.
        expert: number of the expert `[row]`.
        token_id: token id `[row]`.
        count: occurrences of the token that went to the expert `[row]`.
        layers: numbers of the layers in the model.
        n_experts: number of experts in each layer.
        top_k: experts chosen for each token.
        occurrences: occurrences of each token id `[token id]`.
    """

    layer: Ints
    expert: Ints
    token_id: Ints
    count: Ints
    layers: tuple[int, ...]
    n_experts: int
    top_k: int
    occurrences: Ints

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return int(self.occurrences.sum())


def read_type_rows(
    source: str | Path | Mapping[str, Any], n_experts: int | None = None, top_k: int | None = None
) -> TypeRows:
    """Read how often each token id went to each expert.

    Args:
        source: a `.npz`, `.parquet` or `.csv` file, or columns by name: `layer`, `expert`, `token_id` and `count`.
        n_experts: number of experts in each layer; by default the largest number plus one.
        top_k: experts chosen for each token; by default the largest number that divides the sum of every token id over
            the experts of every layer.

    Raises:
        CheckError: columns are missing, or numbers contradict each other.

    Example:
        >>> types = {"layer": [0] * 3, "expert": [0, 1, 1], "token_id": [7, 7, 9], "count": [1, 1, 2]}
        >>> rows = read_type_rows(types, top_k=1)
        >>> rows.n_experts, rows.top_k, rows.n_tokens
        (2, 1, 4)
    """
    n_experts, top_k = (read_option(o, v, _OPTIONS) for o, v in (("n_experts", n_experts), ("top_k", top_k)))
    columns = read_columns(Path(source)) if isinstance(source, (str, Path)) else source
    name = Path(source).name if isinstance(source, (str, Path)) else "the columns"
    if missing := [c for c in _COLUMNS if c not in columns]:
        raise CheckError(
            f"expected columns {', '.join(_COLUMNS)} in {name}, got none named {', '.join(missing)}; name them so"
        )
    columns = {c: array_of(columns[c]) for c in _COLUMNS}
    check_lengths(columns, name)
    layer, expert = checked_ids(columns["layer"], "layer", name), checked_ids(columns["expert"], "expert", name)
    token_id, count = (checked_numbers(columns[c], name) for c in ("token_id", "count"))
    if "f" in (token_id.dtype.kind, count.dtype.kind) or not len(layer):
        raise CheckError(f"expected whole numbers of tokens by type in {name}, got others; give counts of token ids")
    if token_id.max() >= _MOST_IDS:
        raise CheckError(f"expected token ids below {_MOST_IDS} in {name}, got {token_id.max()}; correct them")
    found = int(expert.max()) + 1
    if n_experts is not None and found > n_experts:
        raise CheckError(
            f"expected experts from 0 to {n_experts - 1} in {name}, got {found - 1}; give the number of the model"
        )
    layers, at = np.unique(layer, return_inverse=True)
    size = int(token_id.max()) + 1
    keys, where = np.unique((at.reshape(-1) * found + expert) * size + token_id, return_inverse=True)
    count = np.bincount(where.reshape(-1), count, len(keys)).astype(np.int64)  # a sum of float64, exact below 2**53
    cell, token_id = np.divmod(keys, size)
    at, expert = np.divmod(cell, found)
    occurrences, k = _occurrences(at, token_id, count, layers, top_k, name)
    return TypeRows(
        layer=at,
        expert=expert,
        token_id=token_id,
        count=count,
        layers=tuple(layers.tolist()),
        n_experts=n_experts or found,
        top_k=k,
        occurrences=occurrences,
    )


def _occurrences(at: Ints, token_id: Ints, count: Ints, layers: Ints, top_k: int | None, name: str) -> tuple[Ints, int]:
    """Return the occurrences of each token id, and the number of experts for each token.

    Raises:
        CheckError: layers differ in their tokens, or an expert was chosen more often than a token occurs.
    """
    ids, row = np.unique(token_id, return_inverse=True)
    sums = np.zeros((len(layers), len(ids)), np.int64)
    np.add.at(sums, (at, row.reshape(-1)), count)
    if (differs := (sums != sums[0]).any(1)).any():
        index = int(np.argmax(differs))
        which = int(np.argmax(sums[index] != sums[0]))
        raise CheckError(
            f"expected the same number of each token id in every layer of {name}, got {sums[0, which]} of id "
            f"{ids[which]} in layer {layers[0]} and {sums[index, which]} in layer {layers[index]}; give counts of one "
            "text"
        )
    k = int(np.gcd.reduce(sums[0])) if top_k is None else top_k
    if k < 1 or (sums[0] % k).any() or (count > sums[0][row.reshape(-1)] // k).any():
        raise CheckError(
            f"expected numbers of each token id that are multiples of top_k = {k} in {name}, and at most one choice of "
            "an expert for each token, got others; give the top_k of the model"
        )
    occurrences = np.zeros(int(token_id.max()) + 1, np.int64)
    occurrences[ids] = sums[0] // k
    return occurrences, k


@dataclass(frozen=True, kw_only=True)
class TypeBounds:
    """Tokens of labels at experts, as far as counts by type tell, `[layer, expert, label]`.

    Attributes:
        estimate: Σ C n_L / n over types.
        low, high: the sharp bounds.
        exact: share of the estimate that comes from types for which both bounds are the same; NaN where it is 0.
        expert_tokens: tokens at each expert `[layer, expert]`.
        label_tokens: tokens of each label `[label]`.
    """

    estimate: Floats
    low: Floats
    high: Floats
    exact: Floats
    expert_tokens: Ints
    label_tokens: NDArray[Any]


def bound_labels(rows: TypeRows, types: LabelledTypes) -> TypeBounds:
    """Estimate and bound the tokens of each label at each expert; see the top of this module.

    Where the text has another number of a token id than the counts, the bounds allow for every way in which the labels
    of the missing or surplus occurrences may be.

    Args:
        rows: the published counts.
        types: the labels of the same text.

    Raises:
        CheckError: there are more cells than can be held.

    Example:
        >>> from moelens.analysis import TypeLabels, read_type_rows
        >>> ids = demo_recording.column("token_id").tolist()
        >>> experts = demo_recording.column("experts_L01")[:, 0].tolist()
        >>> columns = {"layer": [1] * len(ids), "expert": experts, "token_id": ids, "count": [1] * len(ids)}
        >>> rows = read_type_rows(columns, n_experts=32, top_k=1)
        >>> types = TypeLabels.of_recording(demo_recording).count("honorifics", rows.n_tokens)
        >>> bounds = bound_labels(rows, types)
        >>> bool((bounds.low <= bounds.high).all()), bounds.low.shape
        (True, (1, 32, 5))
    """
    n = rows.occurrences
    text_n, labelled = _fitted(types.tokens, len(n)), _fitted(types.labelled, len(n))
    extra = np.maximum(n - text_n, 0)[:, None]  # occurrences that the text lacks: with the label or without
    surplus = np.maximum(text_n - n, 0)[:, None]  # occurrences of the text that were not counted
    least = np.minimum(np.maximum(labelled - surplus, 0), n[:, None])
    most = np.minimum(labelled, n[:, None] - extra) + extra
    overall = types.labelled.sum(0) / max(int(types.tokens.sum()), 1)
    rate = np.where(text_n[:, None] > 0, labelled / np.maximum(text_n, 1)[:, None], overall)
    shape = len(rows.layers), rows.n_experts, len(types.names)
    check_size(shape, "the counts of token types")
    estimate, low, high, certain = (np.zeros(shape) for _ in range(4))
    experts = np.zeros(shape[:2], np.int64)
    np.add.at(experts, (rows.layer, rows.expert), rows.count)
    cell = rows.layer * rows.n_experts + rows.expert
    x, c = rows.token_id, rows.count
    for i in range(shape[2]):
        likely = c * rate[x, i]
        fewest, largest = np.maximum(c - (n[x] - least[x, i]), 0), np.minimum(c, most[x, i])
        sums = ((estimate, likely), (low, fewest), (high, largest), (certain, likely * (fewest == largest)))
        for table, values in sums:
            table[:, :, i] = np.bincount(cell, values, minlength=shape[0] * shape[1]).reshape(shape[:2])
    tokens = rate.T @ n
    whole = np.rint(tokens)
    return TypeBounds(
        estimate=estimate,
        low=low,
        high=high,
        exact=np.divide(certain, estimate, out=np.full(shape, np.nan), where=estimate > 1e-9),
        expert_tokens=experts,
        label_tokens=whole.astype(np.int64) if np.allclose(tokens, whole, atol=1e-6) else tokens,
    )


def _fitted(counts: Ints, size: int) -> Ints:
    """Return the rows of the first `size` token ids; those beyond were not counted."""
    fitted = np.zeros((size, *counts.shape[1:]), np.int64)
    fitted[: len(counts)] = counts[:size]
    return fitted


def difference_of_text(rows: TypeRows, types: LabelledTypes) -> str:
    """Return a sentence about how the tokens of the text differ from those counted; empty if they do not.

    Raises:
        CheckError: fewer than half of the tokens agree.
    """
    n = rows.occurrences
    text_n = _fitted(types.tokens, len(n))
    if (n == text_n).all():
        return ""
    missing = int(np.maximum(n - text_n, 0).sum())
    found = f"{missing:,} of {rows.n_tokens:,} counted tokens ({missing / rows.n_tokens:.2g} of them)"
    if missing > (1 - _LEAST_AGREEMENT) * rows.n_tokens:
        raise CheckError(
            f"expected the text that was counted, got another, in which {found} do not occur; give this text, and the "
            "tokenizer of the model"
        )
    return f"the text does not reproduce the counts: {found} do not occur in it; the bounds allow for them"
