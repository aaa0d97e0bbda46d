"""Taking captures out of a forward pass: hooks that reduce, convert and move, and one check at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moelens.errors import CheckError
from moelens.recording.captures import INDICES, SLOT_TABLES, WHAT, Capture, Wanted, index_type, value_column

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

Array = NDArray[Any]
Reduce = Callable[[Tensor, Capture, int], dict[str, Tensor]]
HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Taken:
    """What one capture saw in one layer; `columns` are arrays of the same length.

    For a table of vectors, `token` `[row]` says which of the kept tokens a row belongs to (None: each to its own).
    """

    capture: str
    layer: int
    columns: dict[str, Array]
    token: Array | None = None


class Collector:
    """Keeps what is wanted of forward passes.

    Args:
        model: a `HookedMoE`.
        wanted: the captures, and of which layers and experts.

    Use `hooks` as forward hooks, call `begin` before a pass and `take` after it.
    """

    def __init__(self, model: HookedMoE, wanted: Wanted) -> None:
        self.wanted, self.shape, self.name = wanted, model.shape, model.name
        self._kept: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._bounds: dict[tuple[str, int], Tensor] = {}
        self._indices: dict[int, Tensor] = {}
        self._fired: set[str] = set()
        self._rows: Tensor | None = None

    @property
    def hooks(self) -> list[tuple[str, Callable[..., None]]]:
        found: list[tuple[str, Callable[..., None]]] = []
        if self.wanted.needs_indices:
            found += [(f"blocks.{layer}.{INDICES}", self._on_indices(layer)) for layer in self.wanted.moe_layers]
        for capture in self.wanted.captures:
            for layer in self.wanted.layers_of(capture):
                found.append((f"blocks.{layer}.{capture.point}", self._on(capture, layer)))
        return found

    def begin(self, rows: Tensor) -> None:
        """`rows` `[token]` int64, on the CPU: which of the flat `[batch * pos]` tokens of the next pass are kept."""
        # Pinned, so that the host need not wait inside the forward pass when they go to a GPU.
        self._rows = rows.pin_memory() if torch.cuda.is_available() else rows
        self._on_device = {rows.device: self._rows}
        for kept in (self._kept, self._bounds, self._indices, self._fired):
            kept.clear()

    def take(self, whose: Callable[[int], object]) -> list[Taken]:
        """What the pass gave, on the CPU; `whose` names the document of a kept token.

        Raises:
            CheckError: a hook did not fire, an expert does not exist, a number is not finite or does not fit.
        """
        missing = next((n for n, _ in self.hooks if n not in self._fired), None)
        if missing is not None:
            raise CheckError(f"model {self.name!r} ran without reporting {missing!r}; it cannot be recorded")
        host = {key: {n: to_host(t) for n, t in columns.items()} for key, columns in self._kept.items()}
        bounds = {key: to_host(t) for key, t in self._bounds.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._check(host, bounds, whose)
        taken = []
        for (capture, layer), columns in host.items():
            arrays = {n: t.numpy() for n, t in columns.items()}
            if "experts" in arrays:
                arrays["experts"] = arrays["experts"].astype(index_type(self.shape.n_experts))
            if "neurons" in arrays:
                arrays["neurons"] = arrays["neurons"].astype(np.uint16)
            taken.append(Taken(capture, layer, arrays, arrays.pop("token", None)))
        return taken

    # Hooks; each copies what it keeps, since parallel models sum outputs in place

    def _keep(self, tensor: Tensor) -> Tensor:
        """The kept tokens' rows `[token, …]` of a tensor `[batch, pos, …]`."""
        assert self._rows is not None
        if tensor.device not in self._on_device:
            self._on_device[tensor.device] = self._rows.to(tensor.device, non_blocking=True)
        return tensor.detach().flatten(0, 1).index_select(0, self._on_device[tensor.device])

    def _on_indices(self, layer: int) -> Callable[..., None]:
        def hook(tensor: Tensor, hook: Any) -> None:
            self._fired.add(hook.name)
            self._indices[layer] = indices = self._keep(tensor)
            self._bounds["indices", layer] = torch.stack(indices.aminmax())
            if "routes" in self.wanted:
                self._kept["routes", layer] = {"experts": indices}

        return hook

    def _on(self, capture: Capture, layer: int) -> Callable[..., None]:
        reduce: Reduce = REDUCE.get(capture.name, lambda rows, capture, top_k: {"values": rows})

        def hook(tensor: Tensor, hook: Any) -> None:
            self._fired.add(hook.name)
            rows = self._keep(tensor)
            columns: dict[str, Tensor] = {}
            if capture.name in SLOT_TABLES:
                rows, columns = self._slots(rows, layer)
            columns |= reduce(rows, capture, self.shape.top_k)
            name = value_column(capture.name)
            values = columns[name]
            if values.numel():
                self._bounds[capture.name, layer] = torch.stack(values.aminmax()).float()
            stored = values.to(getattr(torch, self.wanted.dtype))
            columns[name] = stored.float() if self.wanted.dtype == "bfloat16" else stored
            self._kept[capture.name, layer] = self._kept.get((capture.name, layer), {}) | columns

        return hook

    def _slots(self, rows: Tensor, layer: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows `[row, ·]` of the chosen experts that are wanted, of `[token, slot, ·]`, with what they are rows of."""
        indices = self._indices[layer].to(rows.device)
        token, slot = (t.reshape(-1) for t in torch.meshgrid(*map(torch.arange, indices.shape), indexing="ij"))
        columns = {"token": token, "slot": slot.to(torch.uint8), "experts": indices.reshape(-1)}
        rows = rows.flatten(0, 1)
        if self.wanted.experts is not None:
            wanted = torch.tensor(self.wanted.experts, device=rows.device)
            kept = torch.isin(columns["experts"], wanted).nonzero().squeeze(1)
            rows = rows.index_select(0, kept)
            columns = {n: t.index_select(0, kept.to(t.device)) for n, t in columns.items()}
        return rows, columns

    # What may not be

    def _check(self, host: dict[Any, dict[str, Tensor]], bounds: dict[Any, Tensor], whose: Any) -> None:
        for (capture, layer), bound in bounds.items():
            low, high = bound.tolist()
            if capture == "indices":
                if low < 0 or high >= self.shape.n_experts:
                    wrong, of = (low if low < 0 else high), self._indices[layer].cpu()
                    at = int((of == wrong).nonzero()[0, 0])
                    raise CheckError(
                        f"layer {layer}, document {whose(at)}: expert {int(wrong)} is not one of 0 to"
                        f" {self.shape.n_experts - 1}; load the model again"
                    )
                continue
            limit = HALF if self.wanted.dtype == "float16" else float("inf")
            worst = low if abs(low) > high else high
            if capture == "margin" and high == float("inf"):
                worst = low  # no other expert could be chosen
            if abs(worst) <= limit and np.isfinite(worst):
                continue
            columns = host[capture, layer]
            values = columns[value_column(capture)]
            row = int((~torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None])).nonzero()[0, 0])
            at = int(columns["token"][row]) if "token" in columns else row
            advice = (
                f"{worst} is beyond float16 (65504); record with store_dtype='bfloat16' (--store-dtype bfloat16)"
                if np.isfinite(worst)
                else f"{worst}; load the model with dtype=torch.float32"
            )
            raise CheckError(f"layer {layer}, document {whose(at)}: {WHAT[capture]} {advice}")


def margin(selection: Tensor, capture: Capture, top_k: int) -> dict[str, Tensor]:
    """Selection score of the last expert chosen minus that of the first one not chosen; infinite if there is none."""
    if selection.shape[-1] <= top_k:
        return {"margin": selection.new_full(selection.shape[:-1], float("inf"))}
    best = selection.float().topk(top_k + 1, dim=-1).values
    return {"margin": best[..., -2] - best[..., -1]}


def largest(name: str, dtype: torch.dtype, by_magnitude: bool) -> Reduce:
    """All values of a row, or the largest few of them with their numbers in a column `name`."""

    def reduce(rows: Tensor, capture: Capture, top_k: int) -> dict[str, Tensor]:
        if capture.top is None:
            return {"values": rows}
        n = min(capture.top, rows.shape[-1])
        at = (rows.abs() if by_magnitude else rows).topk(n, dim=-1).indices
        return {name: at.to(dtype), "values": rows.gather(-1, at)}

    return reduce


REDUCE: dict[str, Reduce] = {
    "routes": lambda rows, capture, top_k: {"weights": rows},
    "margin": margin,
    "expert_norms": lambda rows, capture, top_k: {"expert_norms": rows.float().norm(dim=-1)},
    "logits": largest("experts", torch.int64, by_magnitude=False),
    "neurons": largest("neurons", torch.int32, by_magnitude=True),
}


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU; from a GPU it runs beside the computation, until the next synchronisation."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
