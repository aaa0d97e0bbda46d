"""What routes have to be to be true: the checks of imported routes, all of which name document, row and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.errors import MoeLensError
from moelens.models.routers import RouterRule
from moelens.models.summary import ranges
from moelens.recording.route_inputs import MAX_EXPERTS

_Array = NDArray[Any]
_Bools = NDArray[np.bool_]

_NOT_CAPTURED = (-1, 2**8 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1)  # −1, also as an unsigned integer
_FLOAT16_MAX = 65504.0
_SUM_TOLERANCE = 0.01  # of the sum; bfloat16 has 8 bits
_SUMS_FOR_A_RULE = 8
_ROWS_OF_A_DENSE_LAYER = 16  # of zeros that top-1 routing does not have by chance


@dataclass(frozen=True, kw_only=True)
class RouteChecks:
    """What is known of the model, with which the routes of each document are compared.

    Attributes:
        layers: The layers on the second axis.
        n_experts: Number of experts in a layer; None if it is not known.
        rule: The rule of the routers; None if it is not known.
        skip_uncaptured: Whether rows that are marked as not captured are left out, and not an error.
    """

    layers: Sequence[int]
    n_experts: int | None
    rule: RouterRule | None = None
    skip_uncaptured: bool = False

    def captured(self, indices: _Array, place: str) -> _Bools:
        """Check the chosen experts of a document.

        Args:
            indices: `[row, layer, slot]`, of any integer type.
            place: The document and where it was read, for messages.

        Returns:
            Whether the engine captured the routes of a row, `[row]`.

        Raises:
            MoeLensError: If an expert does not exist or is chosen twice, or a layer or a row has no routes.
        """
        marked = self._marked(indices)
        captured = np.asarray(~marked.all(axis=1))
        if not captured.all() and not self.skip_uncaptured:
            raise MoeLensError(
                f"{self._where(~captured[:, None], place)}: expected routes, got {int((~captured).sum())} rows in all"
                " that are marked as not captured; leave them out with skip_uncaptured=True (--skip-uncaptured), or"
                " serve without a cache of prefixes"
            )
        self._require_layers(indices[captured], place)
        if where := self._where(marked & captured[:, None], place):
            raise MoeLensError(
                f"{where}: expected routes in all layers of a row or in none, got a layer that is marked as not"
                " captured; choose the captured ones with layers= (--layers)"
            )
        several = indices.shape[2] > 1
        nothing = (indices == 0).all(axis=2) & captured[:, None] & several
        if where := self._where(nothing, place):
            raise MoeLensError(
                f"{where}: expected {indices.shape[2]} experts, got only zeros, as from a kernel that returned nothing;"
                " serve with another backend of the experts, or leave the response out"
            )
        wrong = (indices < 0) | (indices >= (self.n_experts or MAX_EXPERTS))
        if where := self._where(wrong.any(axis=2) & captured[:, None], place):
            n = f"from 0 to {(self.n_experts or MAX_EXPERTS) - 1}"
            raise MoeLensError(
                f"{where}: expected experts {n}, got {int(indices[captured][wrong[captured]][0])}; give the number of"
                " experts of the model (--experts), or correct the shape or the integer width of the buffer"
            )
        ordered = np.sort(indices, axis=2)
        twice = (ordered[:, :, 1:] == ordered[:, :, :-1]).any(axis=2)
        if where := self._where(twice & captured[:, None], place):
            row, layer = np.argwhere(twice & captured[:, None])[0]
            raise MoeLensError(
                f"{where}: expected different experts in one token, got {indices[row, layer].tolist()}; correct the"
                " shape or the layers, or serve with another backend of the experts"
            )
        return captured

    def _marked(self, indices: _Array) -> _Bools:
        """Return where all slots hold the mark of a row that was not captured, `[row, layer]`.

        A mark that is also the id of an expert is one only if other slots hold it too.
        """
        first = indices[:, :, 0]
        marked = np.isin(first, _marks(indices.dtype)) & (indices == first[:, :, None]).all(axis=2)
        if indices.shape[2] > 1:
            return np.asarray(marked)
        return np.asarray(marked & ((first < 0) | (first >= (self.n_experts or MAX_EXPERTS))))

    def _require_layers(self, indices: _Array, place: str) -> None:
        """Raise `MoeLensError` if some layers hold nothing but zeros or marks in all rows, as dense layers do."""
        if not len(indices) or (indices.shape[2] == 1 and len(indices) < _ROWS_OF_A_DENSE_LAYER):
            return
        empty = ((indices == 0).all(axis=2) | self._marked(indices)).all(axis=0)
        if not empty.any() or empty.all():
            return
        dense = [self.layers[i] for i in np.flatnonzero(empty)]
        others = [self.layers[i] for i in np.flatnonzero(~empty)]
        raise MoeLensError(
            f"{place}, rows 0 to {len(indices) - 1}, layer {dense[0]}: expected layers with experts, got only"
            f" placeholders in layers {ranges(dense)}; keep the others with layers= (--layers"
            f" {' '.join(map(str, others))})"
        )

    def _where(self, wrong: _Bools, place: str) -> str:
        """Return the document, row and layer of the first fault, `[row, layer]`; "" if there is none."""
        if not wrong.any():
            return ""
        row, layer = np.argwhere(wrong)[0]
        return f"{place}, row {row}, layer {self.layers[layer]}"

    def check_weights(self, weights: _Array, captured: _Bools, place: str) -> None:
        """Check that the routing weights of a document are numbers that can be stored.

        Args:
            weights: `[row, layer, slot]`.
            captured: Whether the engine captured the routes of a row, `[row]`.
            place: The document and where it was read, for messages.

        Raises:
            MoeLensError: If they are not; the message names the first.
        """
        wrong = ~((weights >= 0) & (weights <= _FLOAT16_MAX)) & captured[:, None, None]  # NaN is neither
        if where := self._where(np.asarray(wrong.any(axis=2)), place):
            raise MoeLensError(
                f"{where}: expected routing weights from 0 to {_FLOAT16_MAX:.0f}, got {weights[wrong][0]}; save"
                " the factors of the experts"
            )

    def check_sums(self, sums: Sequence[_Array], places: Sequence[str]) -> None:
        """Check that the routing weights of a token sum as the rule of the routers says.

        Normalised weights sum to the rule's factor, and others to at most what their scores allow. If the rule is not
        known, but most of the sums are equal, all have to be.

        Args:
            sums: Sum of the routing weights of each token, `[row, layer]` for each document; NaN without routes.
            places: The documents and where they were read, for messages.

        Raises:
            MoeLensError: If a sum differs; the message names the first.
        """
        low, high = self._allowed_sums(np.concatenate([s.ravel() for s in sums] or [np.zeros(0)]))
        for found, place in zip(sums, places, strict=True):
            wrong = (found < low * (1 - _SUM_TOLERANCE)) | (found > high * (1 + _SUM_TOLERANCE))
            if where := self._where(wrong, place):
                expected = f"{low:.4g}" if low == high else f"at most {high:.4g}"
                raise MoeLensError(
                    f"{where}: expected routing weights with a sum of {expected}, got a sum of {found[wrong][0]:.4g};"
                    " save all slots with their own weights"
                )

    def _allowed_sums(self, sums: _Array) -> tuple[float, float]:
        """Return the smallest and the largest sum of the weights of a token, from all sums or from the rule."""
        rule = self.rule
        if rule is not None and not rule.expert_scale and rule.jitter is None:
            if rule.normalised:
                return rule.scale, rule.scale
            if rule.score in ("softmax", "sigmoid"):
                return 0.0, rule.scale * (1 if rule.score == "softmax" else rule.top_k)
        sums = sums[~np.isnan(sums)]
        if len(sums) >= _SUMS_FOR_A_RULE:
            usual = float(np.median(sums))
            if (np.abs(sums - usual) <= _SUM_TOLERANCE * usual).mean() > 1 / 2:
                return usual, usual
        return 0.0, np.inf


def _marks(dtype: np.dtype[Any]) -> _Array:
    """Return the marks that an integer type can hold."""
    limits = np.iinfo(dtype)
    return np.array([mark for mark in _NOT_CAPTURED if limits.min <= mark <= limits.max], dtype)
