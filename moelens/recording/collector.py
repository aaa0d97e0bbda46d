"""Collecting captures during a forward pass: hooks that select, reduce and convert, and one check at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moelens.errors import CheckError
from moelens.models.points import only_reading
from moelens.recording.captures import (
    INDICES_POINT,
    QUANTITIES,
    SLOT_TABLES,
    Capture,
    CaptureRequest,
    index_type,
    value_column,
)

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_Reduction = Callable[[Tensor, Capture, int], dict[str, Tensor]]
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class LayerCapture:
    """What one capture gave in one layer.

    Attributes:
        capture: Name of the capture.
        layer: The layer.
        columns: Arrays by the name of their column, `[row, …]`, all of the same length.
        token: For rows of experts, which of the selected tokens each row belongs to, `[row]`; None if each row is a
            token.
    """

    capture: str
    layer: int
    columns: dict[str, NDArray[Any]]
    token: NDArray[Any] | None = None


class Collector:
    """Collects the captures of a request in forward passes.

    Use `hooks` as forward hooks, call `begin` before each pass and `take` after it.

    Args:
        model: The model.
        request: The captures, layers and experts to keep.
    """

    def __init__(self, model: HookedMoE, request: CaptureRequest) -> None:
        self.request, self.shape, self.name = request, model.shape, model.name
        self._captured: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._bounds: dict[tuple[str, int], Tensor] = {}
        self._indices: dict[int, Tensor] = {}
        self._called: set[str] = set()
        self._rows: Tensor | None = None

    @property
    def hooks(self) -> list[tuple[str, Callable[..., None]]]:
        """The names of the hook points with their hooks, for `HookedMoE.hooks`."""
        hooks: list[tuple[str, Callable[..., None]]] = []
        if self.request.needs_indices:
            for layer in self.request.moe_layers:
                hooks.append((f"blocks.{layer}.{INDICES_POINT}", self._indices_hook(layer)))
        for capture in self.request.captures:
            for layer in self.request.layers_of(capture):
                hooks.append((f"blocks.{layer}.{capture.point}", self._capture_hook(capture, layer)))
        return hooks

    def begin(self, rows: Tensor) -> None:
        """Prepare for a forward pass.

        Args:
            rows: Indices of the tokens to keep among the flat `[batch * pos]` tokens of the pass, `[token]` int64, on
                the CPU.
        """
        # In pinned memory, so that the host does not wait during the forward pass when they are copied to a GPU.
        self._rows = rows.pin_memory() if torch.cuda.is_available() else rows
        self._rows_by_device = {rows.device: self._rows}
        for state in (self._captured, self._bounds, self._indices, self._called):
            state.clear()

    def take(self, document_of: Callable[[int], object]) -> list[LayerCapture]:
        """Return what the pass gave, on the CPU.

        Args:
            document_of: Returns the document of a kept token, for error messages.

        Raises:
            CheckError: If a hook was not called, an expert does not exist, or a number is not finite or does not fit.
        """
        missing = next((name for name, _ in self.hooks if name not in self._called), None)
        if missing is not None:
            raise CheckError(
                f"expected a value at hook point {missing!r} of model {self.name!r}, got none; it cannot be recorded"
            )
        host = {key: {n: _to_host(t) for n, t in columns.items()} for key, columns in self._captured.items()}
        bounds = {key: _to_host(t) for key, t in self._bounds.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        for (capture, layer), bound in bounds.items():
            if capture == "indices":
                self._check_indices(layer, bound, document_of)
            else:
                self._check_values(capture, layer, bound, host[capture, layer], document_of)
        found = []
        for (capture, layer), columns in host.items():
            arrays = {n: t.numpy() for n, t in columns.items()}
            if "experts" in arrays:
                arrays["experts"] = arrays["experts"].astype(index_type(self.shape.n_experts))
            if "neurons" in arrays:
                arrays["neurons"] = arrays["neurons"].astype(np.uint16)
            found.append(LayerCapture(capture, layer, arrays, arrays.pop("token", None)))
        return found

    # Hooks. Each copies what it keeps, because parallel models sum outputs in place.

    def _select_rows(self, tensor: Tensor) -> Tensor:
        """Return the rows of the kept tokens, `[token, …]`, of a tensor `[batch, pos, …]`."""
        assert self._rows is not None
        if tensor.device not in self._rows_by_device:
            self._rows_by_device[tensor.device] = self._rows.to(tensor.device, non_blocking=True)
        return tensor.detach().flatten(0, 1).index_select(0, self._rows_by_device[tensor.device])

    def _indices_hook(self, layer: int) -> Callable[..., None]:
        def hook(tensor: Tensor, hook: Any) -> None:
            self._called.add(hook.name)
            self._indices[layer] = indices = self._select_rows(tensor)
            self._bounds["indices", layer] = torch.stack(indices.aminmax())
            if "routes" in self.request:
                self._captured["routes", layer] = {"experts": indices}

        return only_reading(hook)

    def _capture_hook(self, capture: Capture, layer: int) -> Callable[..., None]:
        reduce: _Reduction = _REDUCTIONS.get(capture.name, lambda rows, capture, top_k: {"values": rows})

        def hook(tensor: Tensor, hook: Any) -> None:
            self._called.add(hook.name)
            rows = self._select_rows(tensor)
            columns: dict[str, Tensor] = {}
            if capture.name in SLOT_TABLES:
                rows, columns = self._slot_rows(rows, layer)
            columns |= reduce(rows, capture, self.shape.top_k)
            name = value_column(capture.name)
            values = columns[name]
            if values.numel():
                self._bounds[capture.name, layer] = torch.stack(values.aminmax()).float()
            stored = values.to(getattr(torch, self.request.dtype))
            columns[name] = stored.float() if self.request.dtype == "bfloat16" else stored
            self._captured[capture.name, layer] = self._captured.get((capture.name, layer), {}) | columns

        return only_reading(hook)

    def _slot_rows(self, rows: Tensor, layer: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the rows of the experts to keep, `[row, ·]`, of a tensor `[token, slot, ·]`.

        The columns that are returned with them give the token, the slot and the expert of each row.
        """
        indices = self._indices[layer].to(rows.device)
        token, slot = (t.reshape(-1) for t in torch.meshgrid(*map(torch.arange, indices.shape), indexing="ij"))
        columns = {"token": token, "slot": slot.to(torch.uint8), "experts": indices.reshape(-1)}
        rows = rows.flatten(0, 1)
        if self.request.experts is not None:
            experts = torch.tensor(self.request.experts, device=rows.device)
            selected = torch.isin(columns["experts"], experts).nonzero().squeeze(1)
            rows = rows.index_select(0, selected)
            columns = {n: t.index_select(0, selected.to(t.device)) for n, t in columns.items()}
        return rows, columns

    # Checks

    def _check_indices(self, layer: int, bound: Tensor, document_of: Callable[[int], object]) -> None:
        low, high = bound.tolist()
        if low >= 0 and high < self.shape.n_experts:
            return
        wrong = low if low < 0 else high
        token = int((self._indices[layer].cpu() == wrong).nonzero()[0, 0])
        raise CheckError(
            f"layer {layer}, document {document_of(token)}: expected experts from 0 to {self.shape.n_experts - 1},"
            f" got {int(wrong)}; load the model again"
        )

    def _check_values(
        self,
        capture: str,
        layer: int,
        bound: Tensor,
        columns: dict[str, Tensor],
        document_of: Callable[[int], object],
    ) -> None:
        low, high = bound.tolist()
        worst = low if abs(low) > high else high
        if capture == "margin" and high == float("inf"):
            worst = low  # a margin is infinite where every expert is chosen
        limit = _FLOAT16_MAX if self.request.dtype == "float16" else float("inf")
        if abs(worst) <= limit and np.isfinite(worst):
            return
        values = columns[value_column(capture)]
        row = int((~torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None])).nonzero()[0, 0])
        place = f"layer {layer}, document {document_of(int(columns['token'][row]) if 'token' in columns else row)}"
        if np.isfinite(worst):
            raise CheckError(
                f"{place}: expected {QUANTITIES[capture]} within the range of float16 (65504), got {worst};"
                " record with store_dtype='bfloat16' (--store-dtype bfloat16)"
            )
        raise CheckError(
            f"{place}: expected finite {QUANTITIES[capture]}, got {worst}; load the model with "
            "dtype=torch.float32 (--dtype float32)"
        )


def _margin(selection: Tensor, capture: Capture, top_k: int) -> dict[str, Tensor]:
    """Return the selection score of the last chosen expert minus that of the next one.

    The margin is infinite if there is no other expert to choose.
    """
    if selection.shape[-1] <= top_k:
        return {"margin": selection.new_full(selection.shape[:-1], float("inf"))}
    best = selection.float().topk(top_k + 1, dim=-1).values
    return {"margin": best[..., -2] - best[..., -1]}


def _largest(name: str, dtype: torch.dtype, by_magnitude: bool) -> _Reduction:
    """Return a reduction that keeps all values of a row, or the largest ones with their indices in a column `name`."""

    def reduce(rows: Tensor, capture: Capture, top_k: int) -> dict[str, Tensor]:
        if capture.top is None:
            return {"values": rows}
        n = min(capture.top, rows.shape[-1])
        indices = (rows.abs() if by_magnitude else rows).topk(n, dim=-1).indices
        return {name: indices.to(dtype), "values": rows.gather(-1, indices)}

    return reduce


_REDUCTIONS: dict[str, _Reduction] = {
    "routes": lambda rows, capture, top_k: {"weights": rows},
    "margin": _margin,
    "expert_norms": lambda rows, capture, top_k: {"expert_norms": rows.float().norm(dim=-1)},
    "logits": _largest("experts", torch.int64, by_magnitude=False),
    "neurons": _largest("neurons", torch.int32, by_magnitude=True),
}


def _to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU; a copy from a GPU is complete only after the next synchronisation."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
