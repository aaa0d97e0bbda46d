"""Hooks inside the experts: one experts implementation, registered in both registries of transformers.

It repeats the operations of transformers' `grouped_mm_experts_forward` one by one, so that with hooks inside the
experts the logits are equal to those of `grouped_mm`, bit for bit. Without such hooks it calls the implementation that
the model had before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.integrations import finegrained_fp8 as fp8
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _grouped_linear

from moelens.errors import UnsupportedModelError

IMPLEMENTATION = "moelens"
"""The name of moelens's implementation in transformers' registries."""


class Installed(str):
    """`IMPLEMENTATION` in the configuration of a hooked model, with what it stands in for.

    Args:
        native: the implementation that the configuration had before.

    Attributes:
        native: the same.
        users: number of hooked models that share the configuration; a copy of it has none.
    """

    native: str | None
    users: int

    def __new__(cls, native: str | None) -> Installed:
        name = super().__new__(cls, IMPLEMENTATION)
        name.native, name.users = native, 0
        return name

    def __reduce__(self) -> Any:
        return Installed, (self.native,)

    def __deepcopy__(self, memo: Any) -> Installed:
        return Installed(self.native)


_Projection = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of rows sorted by expert `[row, ·]`, their expert ids `[row]` and the experts' row ends `[expert]`."""


class Listener(Protocol):
    """What runs the hooks of one layer's experts (a `moelens.models.taps.Tap`)."""

    native: str

    def is_active_inside(self) -> bool:
        """Whether there is a hook inside the experts."""
        ...

    def is_active_at(self, stage: str) -> bool:
        """Whether there is a hook at "hook_pre", "hook_post" or "hook_out"."""
        ...

    def run_hooks_inside(self, stage: str, slots: Tensor) -> Tensor:
        """Run the hooks of a stage on `[token, slot, ·]`; return what they leave."""
        ...

    def native_implementation(self, module: nn.Module) -> str:
        """The name of the implementation to use when there is no hook inside the experts."""
        ...


LISTENERS: WeakKeyDictionary[nn.Module, Listener] = WeakKeyDictionary()
"""The listeners of all hooked models, by the experts module or, for some adapted architectures, by the block."""


@dataclass(frozen=True, kw_only=True)
class ExpertMath:
    """What one experts module computes.

    The functions take rows that are sorted by expert, with the experts' ids `[row]` and `offsets` `[expert]`, the
    number of the row after the last one of each expert.

    Attributes:
        num_experts: number of experts the module holds. Rows with larger ids belong to other processes or to identity
            experts.
        up: the input `[row, d_model]` to the gate and up projections `[row, 2 * d_expert]` (`[row, d_expert]` if there
            is no gate).
        act: those to the neurons `[row, d_expert]`.
        down: the neurons to the unweighted outputs `[row, d_model]`.
        norm: applied to those, or None.
        identity: whether experts with ids from `num_experts` on return their input.
        weights_on_input: whether the routing weight multiplies the expert's input instead of its output (Llama 4).
    """

    num_experts: int
    up: _Projection
    act: Callable[[Tensor], Tensor]
    down: _Projection
    norm: Callable[[Tensor], Tensor] | None = None
    identity: bool = False
    weights_on_input: bool = False


def grouped_linear(
    rows: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None = None,
    *,
    transposed: bool = False,
    autocast: bool = False,
) -> Tensor:
    """Multiply rows, sorted by expert, by the weights of their experts.

    Args:
        rows: `[row, in]`.
        weight: `[expert, out, in]`, or `[expert, in, out]` if `transposed`.
        offsets: the number of the row after the last one of each expert, `[expert]`.
        bias: `[row, out]`, or None.
        transposed: the order of the weight's axes.
        autocast: whether `torch.autocast` counts; it does for `torch.nn.Linear`, but not for transformers' grouped
            product.

    Returns:
        `[row, out]`; rows after the last expert's are not written.
    """
    if autocast and torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if weight.dtype != torch.float64:
        result: Tensor = _grouped_linear(rows, weight, offsets, bias, transposed)
        return result
    stacked = weight if transposed else weight.transpose(-2, -1)  # the kernel takes no float64
    result = torch.ops.transformers.grouped_mm_fallback(rows.to(weight.dtype), stacked, offs=offsets)
    return result if bias is None else result + bias


def stacked_math(module: Any, num_experts: int | None = None, *, autocast: bool = False) -> ExpertMath:
    """Return what experts in transformers' usual form compute: three-dimensional `gate_up_proj` and `down_proj`.

    Args:
        module: the experts module; without a gate it has `up_proj` in place of `gate_up_proj`.
        num_experts: number of experts it holds; None reads `module.num_experts`.
        autocast: whether `torch.autocast` counts, as in `grouped_linear`.
    """
    gated, biased = getattr(module, "has_gate", True), getattr(module, "has_bias", False)
    transposed, name = getattr(module, "is_transposed", False), "gate_up_proj" if gated else "up_proj"

    def linear(weight: str) -> _Projection:
        def apply(rows: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
            bias = getattr(module, weight + "_bias")[ids] if biased else None
            return grouped_linear(
                rows, getattr(module, weight), offsets, bias, transposed=transposed, autocast=autocast
            )

        return apply

    return ExpertMath(
        num_experts=num_experts or module.num_experts,
        up=linear(name),
        act=module._apply_gate if gated and hasattr(module, "_apply_gate") else module.act_fn,
        down=linear("down_proj"),
        norm=module.post_expert_norm if getattr(module, "has_post_expert_norm", False) else None,
    )


def _fp8_math(module: Any) -> ExpertMath:
    """What block-quantised FP8 experts compute.

    The weights of the chosen experts are dequantised to the activations' type.
    """
    name = "gate_up_proj" if module.has_gate else "up_proj"

    def linear(weight: str) -> _Projection:
        def apply(rows: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
            packed, scale = getattr(module, weight), getattr(module, weight + "_scale_inv")
            parts, start = [], 0
            for expert, end in enumerate(offsets.tolist()):
                if end > start:
                    dense = dequantise(packed[expert], scale[expert], module.block_size).to(rows.dtype)
                    parts.append(rows[start:end] @ dense.T)
                    start = end
            parts.append(rows.new_zeros(len(rows) - start, packed.shape[1]))
            return torch.cat(parts)

        return apply

    act = module._apply_gate if module.has_gate else module.act_fn
    return ExpertMath(num_experts=module.num_experts, up=linear(name), act=act, down=linear("down_proj"))


def dequantise(weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> Tensor:
    """Dequantise one weight.

    Args:
        weight: `[out, in]` in FP8; a wider type is returned as it is.
        scale: `[out block, in block]`, or one number where `block` is None.
        block: rows and columns of a block.

    Returns:
        `[out, in]` in float32.

    Raises:
        UnsupportedModelError: the weight is in FP4.
    """
    if weight.dtype == torch.int8:
        raise UnsupportedModelError("expected expert weights in FP8 or wider, got FP4; load the model dequantised")
    if weight.element_size() > 1:
        return weight
    if block is None:
        return weight.float() * scale.float()
    return _scale_blocks(weight, scale, block)


def _scale_blocks(weight: Tensor, scale: Tensor, block: Sequence[int]) -> Tensor:
    """Multiply each block of a weight `[out, in]` by its scale, in float32; the last blocks may be smaller."""
    rows, columns = block
    by_row = scale.float().repeat_interleave(rows, 0)[: weight.shape[0]]
    return weight.float() * by_row.repeat_interleave(columns, 1)[:, : weight.shape[1]]


@contextmanager
def allow_partial_blocks(block: Sequence[int] | None) -> Iterator[None]:
    """Let transformers dequantise, while it loads a model, weights whose sizes are not multiples of the block's.

    transformers divides a weight evenly by its scales and raises an error where that is not possible: DeepSeek-V3's
    `kv_a_proj_with_mqa` has 576 rows in blocks of 128. Within this context the last block of a side may be smaller.

    Args:
        block: rows and columns of a block; None where the model is not quantised in blocks.
    """
    owner = getattr(fp8, "Fp8Dequantize", None)
    evenly = getattr(owner, "_dequantize_one", None)
    if block is None or evenly is None:
        yield
        return

    def convert(self: Any, quantized: Tensor, scales: Tensor, **options: Any) -> Any:
        sides = [*zip(quantized.shape[-2:], block, scales.shape[-2:], strict=True)]
        in_blocks = quantized.ndim == 2 and all(-(-size // side) == count for size, side, count in sides)
        if in_blocks and any(size % side for size, side, _ in sides):
            return _scale_blocks(quantized, scales, block).to(options.get("output_dtype"))
        return evenly(self, quantized, scales, **options)

    owner._dequantize_one = convert  # type: ignore[union-attr]
    try:
        yield
    finally:
        owner._dequantize_one = evenly  # type: ignore[union-attr]


def compute_experts(
    math: ExpertMath, listener: Listener, hidden: Tensor, indices: Tensor, weights: Tensor, mask_outside: bool = True
) -> Tensor:
    """Compute the experts' output and run the hooks at `hook_pre`, `hook_post` and `hook_out` on the way.

    Args:
        math: what the experts compute.
        listener: what runs the hooks, on `[token, slot, ·]` in the order of `indices`.
        hidden: the input, `[token, d_model]`.
        indices: the chosen experts' ids, `[token, slot]`.
        weights: their weights, `[token, slot]`.
        mask_outside: whether there may be ids from `num_experts` on (of other processes or identity experts).

    Returns:
        The weighted sum of the experts' outputs, `[token, d_model]`.
    """
    n, k = indices.shape
    ids, order = torch.sort(indices.reshape(-1))
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    countable = ids.float() if ids.device.type in ("cpu", "mps") else ids.int()  # histc takes no integers on the CPU
    per_expert = torch.histc(countable, bins=math.num_experts, min=0, max=math.num_experts - 1)
    offsets = torch.cumsum(per_expert, 0, dtype=torch.int32)
    outside = (ids >= math.num_experts).unsqueeze(-1) if mask_outside else None
    ids = ids.clamp(max=math.num_experts - 1)

    def fill_outside(rows: Tensor, value: Tensor | float = 0.0) -> Tensor:
        """Give rows outside the experts a value."""
        return rows if outside is None else torch.where(outside, value, rows)

    def project(projection: _Projection, rows: Tensor, value: Tensor | float = 0.0) -> Tensor:
        """Run a kernel. It leaves rows outside the experts unwritten, in its output and in its input's gradient."""
        return fill_outside(projection(fill_outside(rows), ids, offsets), value)

    def slots(stage: str, rows: Tensor) -> Tensor:
        """Put rows in the order of the slots `[token, slot, ·]`, and run the hooks of a stage on them."""
        by_slot = rows[back].view(n, k, -1)
        return listener.run_hooks_inside(stage, by_slot) if listener.is_active_at(stage) else by_slot

    def hooked(stage: str, rows: Tensor) -> Tensor:
        return slots(stage, rows).reshape(n * k, -1)[order] if listener.is_active_at(stage) else rows

    inputs = hidden[order // k]
    if math.weights_on_input:
        inputs = inputs * weights.reshape(-1)[order].unsqueeze(-1)
    pre = hooked("hook_pre", project(math.up, inputs))
    post = hooked("hook_post", fill_outside(math.act(pre)))
    rows = project(math.down, post, inputs if math.identity else 0.0)
    out = slots("hook_out", rows if math.norm is None else math.norm(rows))
    if not math.weights_on_input:
        out = out * weights.unsqueeze(-1)
    return out.sum(1).to(hidden.dtype)


def _native_forward(module: nn.Module, name: str) -> Callable[..., Tensor]:
    """The function that computed `module` before it was hooked."""
    registry = fp8.ALL_FP8_EXPERTS_FUNCTIONS if isinstance(module, fp8.FP8Experts) else ALL_EXPERTS_FUNCTIONS
    own = type(module).forward
    function: Callable[..., Tensor] = registry.get(name, getattr(own, "__wrapped__", own))
    return function


def _experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The implementation that transformers calls for the experts of a hooked model."""
    listener = LISTENERS.get(module)
    without_kernels = isinstance(module, fp8.FP8Experts) and hidden_states.device.type == "cpu"
    if listener is None or not (listener.is_active_inside() or without_kernels):
        # Experts outside the hooked layers, and those of an unhooked copy, have no listener.
        left = getattr(module.config._experts_implementation_internal, "native", None) or "grouped_mm"
        name = listener.native_implementation(module) if listener else left
        return _native_forward(module, name)(module, hidden_states, top_k_index, top_k_weights)
    if isinstance(module, fp8.FP8Experts):
        math = _fp8_math(module)
    else:
        math = stacked_math(module, autocast=listener.native != "grouped_mm")
    parallel = getattr(module, "_is_expert_parallel", True)  # older versions of transformers do not define it
    return compute_experts(math, listener, hidden_states, top_k_index, top_k_weights, mask_outside=parallel)


def register_implementation() -> None:
    """Register "moelens" as an experts implementation; FP8 experts look names up in a registry of their own."""
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)
    fp8.ALL_FP8_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)
