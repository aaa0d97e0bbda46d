"""The inside of the experts, made listenable: one implementation, registered with both of transformers' registries.

It copies `grouped_mm_experts_forward` operation for operation, so that with hooks inside the experts the logits stay
equal to those of `grouped_mm`, bit for bit. While nobody listens it hands over to the implementation the model had.
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

NAME = "moelens"


class Listener(Protocol):
    """What the experts of one layer report to."""

    native: str

    def listens_inside(self) -> bool: ...
    def listens_to(self, stage: str) -> bool: ...
    def fire_inside(self, stage: str, slots: Tensor) -> tuple[Tensor, bool]: ...
    def implementation(self, module: nn.Module) -> str: ...


LISTENERS: WeakKeyDictionary[nn.Module, Listener] = WeakKeyDictionary()


@dataclass(frozen=True)
class ExpertMath:
    """What one experts module computes, on rows sorted by expert: `ids` `[row]`, `offsets` `[expert]` row ends.

    Attributes:
        num_experts: experts held here; rows with larger ids belong to other ranks or to identity experts.
        up: `[row, d_model]` to the gate and up projection `[row, 2 * d_expert]` (or `[row, d_expert]` without gate).
        act: that to the neurons `[row, d_expert]`.
        down: the neurons to the outputs `[row, d_model]`, unweighted.
        identity: ids from `num_experts` on return their input.
        weights_on_input: the routing weight multiplies the input, so outputs are summed as they are (Llama 4).
    """

    num_experts: int
    up: Callable[[Tensor, Tensor, Tensor], Tensor]
    act: Callable[[Tensor], Tensor]
    down: Callable[[Tensor, Tensor, Tensor], Tensor]
    identity: bool = False
    weights_on_input: bool = False


def stacked_math(module: Any, **options: Any) -> ExpertMath:
    """Experts in transformers' usual form: three-dimensional `gate_up_proj` (or `up_proj`) and `down_proj`."""
    gated, biased = getattr(module, "has_gate", True), getattr(module, "has_bias", False)
    transposed, name = getattr(module, "is_transposed", False), "gate_up_proj" if gated else "up_proj"

    def linear(weight: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def apply(rows: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
            bias = getattr(module, weight + "_bias")[ids] if biased else None
            result: Tensor = _grouped_linear(rows, getattr(module, weight), offsets, bias, transposed)
            return result

        return apply

    down = linear("down_proj")
    if getattr(module, "has_post_expert_norm", False):
        plain = down

        def down(rows: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
            normed: Tensor = module.post_expert_norm(plain(rows, ids, offsets))
            return normed

    act = module._apply_gate if gated and hasattr(module, "_apply_gate") else module.act_fn
    return ExpertMath(options.pop("num_experts", None) or module.num_experts, linear(name), act, down, **options)


def fp8_math(module: Any) -> ExpertMath:
    """Block-quantised FP8 experts: the weights of the experts that were hit, dequantised to the activations' type."""
    name = "gate_up_proj" if module.has_gate else "up_proj"

    def linear(weight: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def apply(rows: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
            packed, scale = getattr(module, weight), getattr(module, weight + "_scale_inv")
            parts, start = [], 0
            for expert, end in enumerate(offsets.tolist()):
                if end > start:
                    parts.append(
                        rows[start:end] @ dequantise(packed[expert], scale[expert], module.block_size).to(rows.dtype).T
                    )
                    start = end
            parts.append(rows.new_zeros(len(rows) - start, packed.shape[1]))
            return torch.cat(parts)

        return apply

    act = module._apply_gate if module.has_gate else module.act_fn
    return ExpertMath(module.num_experts, linear(name), act, linear("down_proj"))


def dequantise(weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> Tensor:
    """A weight `[out, in]` in FP8, with one scale a block (or, without blocks, one in all), in float32.

    Raises:
        UnsupportedModelError: packed in FP4.
    """
    if weight.dtype == torch.int8:
        raise UnsupportedModelError("experts packed in FP4 cannot be listened to inside; load the model dequantised")
    if weight.element_size() > 1:
        return weight
    if block is None:
        return weight.float() * scale.float()
    return scaled(weight, scale, block)


def scaled(weight: Tensor, scale: Tensor, block: Sequence[int]) -> Tensor:
    """A weight `[out, in]` times one scale a block, in float32; the last block of a side may be a part of one."""
    rows, columns = block
    every = scale.float().repeat_interleave(rows, 0)[: weight.shape[0]]
    return weight.float() * every.repeat_interleave(columns, 1)[:, : weight.shape[1]]


@contextmanager
def partial_blocks(block: Sequence[int] | None) -> Iterator[None]:
    """Let transformers dequantise, while it loads, weights whose sizes are no multiples of their `block`.

    It divides a weight evenly by its scales, and raises where that does not work out: 576 rows of DeepSeek-V3's
    `kv_a_proj_with_mqa` in blocks of 128. The last block of a side is then a part of one.
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
            return scaled(quantized, scales, block).to(options.get("output_dtype"))
        return evenly(self, quantized, scales, **options)

    owner._dequantize_one = convert  # type: ignore[union-attr]
    try:
        yield
    finally:
        owner._dequantize_one = evenly  # type: ignore[union-attr]


def listen_to_experts(
    math: ExpertMath, listener: Listener, hidden: Tensor, indices: Tensor, weights: Tensor, mask_outside: bool = True
) -> Tensor:
    """Compute the experts' output `[token, d_model]`, firing `hook_pre`, `hook_post` and `hook_out` on the way.

    Args:
        hidden: `[token, d_model]`.
        indices, weights: `[token, slot]`. Rows are reported in this order, `[token, slot, ·]`.
        mask_outside: there may be ids from `num_experts` on (other ranks, identity experts).
    """
    n, k = indices.shape
    ids, order = torch.sort(indices.reshape(-1))
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    counted = ids.float() if ids.device.type in ("cpu", "mps") else ids.int()  # histc takes no integers on the CPU
    per_expert = torch.histc(counted, bins=math.num_experts, min=0, max=math.num_experts - 1)
    offsets = torch.cumsum(per_expert, 0, dtype=torch.int32)
    outside = (ids >= math.num_experts).unsqueeze(-1) if mask_outside else None
    ids = ids.clamp(max=math.num_experts - 1)

    def written(rows: Tensor, outside_is: Tensor | float = 0.0) -> Tensor:
        return rows if outside is None else torch.where(outside, outside_is, rows)  # the kernel leaves them unwritten

    def fired(stage: str, rows: Tensor) -> tuple[Tensor, bool]:
        """The slots `[token, slot, ·]` of rows, and whether hooks left them such that it is with them to go on."""
        slots = rows[back].view(n, k, -1)
        if not listener.listens_to(stage):
            return slots, False
        left, edited = listener.fire_inside(stage, slots)
        # Where gradients flow, what the hooks saw has to lie on their way.
        return (left, True) if edited or left.requires_grad else (slots, False)

    def report(stage: str, rows: Tensor) -> Tensor:
        if not listener.listens_to(stage):
            return rows
        slots, go_on = fired(stage, rows)
        return slots.reshape(n * k, -1)[order] if go_on else rows

    inputs = hidden[order // k]
    if math.weights_on_input:
        inputs = inputs * weights.reshape(-1)[order].unsqueeze(-1)
    elif outside is not None and not math.identity:
        inputs = inputs.masked_fill(outside, 0.0)
    pre = report("hook_pre", written(math.up(inputs, ids, offsets)))
    post = report("hook_post", written(math.act(pre)))
    out, _ = fired("hook_out", written(math.down(post, ids, offsets), inputs if math.identity else 0.0))
    if not math.weights_on_input:
        out = out * weights.unsqueeze(-1)
    return out.sum(1).to(hidden.dtype)


def native_forward(module: nn.Module, name: str) -> Callable[..., Tensor]:
    """The function that `module` ran before it was hooked."""
    registry = fp8.ALL_FP8_EXPERTS_FUNCTIONS if isinstance(module, fp8.FP8Experts) else ALL_EXPERTS_FUNCTIONS
    own = type(module).forward
    function: Callable[..., Tensor] = registry.get(name, getattr(own, "__wrapped__", own))
    return function


def experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The implementation transformers calls for a hooked model."""
    listener = LISTENERS.get(module)
    without_kernels = isinstance(module, fp8.FP8Experts) and hidden_states.device.type == "cpu"
    if listener is None or not (listener.listens_inside() or without_kernels):
        name = listener.implementation(module) if listener else "grouped_mm"
        return native_forward(module, name)(module, hidden_states, top_k_index, top_k_weights)
    math = fp8_math(module) if isinstance(module, fp8.FP8Experts) else stacked_math(module)
    parallel = getattr(module, "_is_expert_parallel", True)  # older versions do not say
    return listen_to_experts(math, listener, hidden_states, top_k_index, top_k_weights, mask_outside=parallel)


def register() -> None:
    """Make "moelens" a name of transformers' experts implementations; FP8 experts look it up in a registry apart."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    fp8.ALL_FP8_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
