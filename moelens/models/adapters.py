"""Architectures whose experts do not use transformers' experts interface: one row of a table for each.

While a model is hooked, the `forward` of the class of its experts module (or block) is replaced; the last `unhook`
restores it. A module without hooks still runs its own code.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers.integrations.moe import _grouped_linear

from moelens.models.experts import LISTENERS, ExpertMath, compute_experts, stacked_math
from moelens.models.wrappers import adapted_parameters, unwrap

_NativeRouting = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A function from logits `[token, expert]` to expert ids and weights, `[token, slot]` each."""


@dataclass(frozen=True)
class Adapter:
    """What one architecture does differently from those that use the experts interface.

    Attributes:
        math: returns what an experts module computes.
        block_forward: the forward of the whole block, for blocks that do not pass ids and weights to their experts;
            None where they do.
        block_is_experts: whether the block holds the experts' weights itself, without an experts module.
    """

    math: Callable[[Any], ExpertMath] = stacked_math
    block_forward: Callable[[Any, Tensor, Any], Any] | None = None
    block_is_experts: bool = False


def _route(tap: Any, logits: Tensor, native: _NativeRouting) -> tuple[Tensor, Tensor]:
    """Run the hooks of the routing decision.

    Returns:
        Expert ids and weights `[token, slot]`: by the block's own rule (`native`), or by the replayed rule where a hook
        has edited a stage.
    """
    if tap.observed is not None:
        tap.observed.logits = logits
        tap.observed.router_indices, tap.observed.router_weights = native(logits)
    logits, indices, weights = tap.decide(logits)
    if indices is None or weights is None:
        indices, weights = native(logits)
    chosen: tuple[Tensor, Tensor] = tap.choose(indices, weights.to(logits.dtype))
    return chosen


def _gated(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A gated activation of `[row, 2 * d_expert]`: the gate half, activated, times the up half."""

    def act(pre: Tensor) -> Tensor:
        gate, up = pre.chunk(2, dim=-1)
        return activation(gate) * up

    return act


def _each(experts: nn.ModuleList, part: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A projection of experts that are modules of their own, by the name of its linear layer."""

    def apply(rows: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        starts = [0, *offsets.tolist()]
        spans = [(e, slice(start, end)) for e, (start, end) in enumerate(zip(starts, starts[1:], strict=False))]
        return torch.cat([getattr(experts[e], part)(rows[span]) for e, span in spans if span.stop > span.start])

    return apply


def _llama4_math(experts: Any) -> ExpertMath:
    if isinstance(experts, nn.ModuleList):  # in checkpoints that hold them packed
        gate, up = _each(experts, "gate_proj"), _each(experts, "up_proj")
        return ExpertMath(
            num_experts=len(experts),
            up=lambda x, ids, offsets: torch.cat([gate(x, ids, offsets), up(x, ids, offsets)], -1),
            act=_gated(experts[0].activation_fn),
            down=_each(experts, "down_proj"),
            weights_on_input=True,
        )
    return ExpertMath(
        num_experts=experts.num_experts,
        up=lambda x, ids, offsets: _grouped_linear(x, experts.gate_up_proj, offsets, is_transposed=True),
        act=_gated(experts.act_fn),
        down=lambda x, ids, offsets: _grouped_linear(x, experts.down_proj, offsets, is_transposed=True),
        weights_on_input=True,
    )


def _llama4_forward(block: Any, hidden: Tensor, tap: Any) -> tuple[Tensor, Tensor]:
    hidden = hidden.reshape(-1, block.hidden_dim)
    _, logits = block.router(hidden)

    def native(logits: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = logits.topk(block.top_k, dim=1)
        return indices, values.float().sigmoid().to(logits.dtype)

    indices, weights = _route(tap, logits, native)
    with adapted_parameters(block.experts):
        math = _llama4_math(unwrap(block.experts))
        routed = compute_experts(math, tap, hidden, indices, weights, mask_outside=False)
    return block.shared_expert(hidden) + routed, logits


def _dbrx_math(experts: Any) -> ExpertMath:
    glu, shape = unwrap(experts.mlp), (experts.num_experts, experts.ffn_hidden_size, experts.hidden_size)

    def up(x: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        return torch.cat([_grouped_linear(x, weight.view(shape), offsets) for weight in (glu.w1, glu.v1)], -1)

    return ExpertMath(
        num_experts=experts.num_experts,
        up=up,
        act=_gated(glu.activation_fn),
        down=lambda x, ids, offsets: _grouped_linear(x, glu.w2.view(shape), offsets, is_transposed=True),
    )


def _dbrx_forward(block: Any, hidden: Tensor, tap: Any) -> Tensor:
    def native(logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, indices = block.route_tokens_to_experts(logits)
        return indices, weights

    flat = hidden.reshape(-1, hidden.shape[-1])
    indices, weights = _route(tap, block.router(hidden), native)
    with adapted_parameters(block.experts):
        math = _dbrx_math(unwrap(block.experts))
        routed = compute_experts(math, tap, flat, indices, weights, mask_outside=False)
    return routed.view(hidden.shape)


def _jetmoe_math(block: Any) -> ExpertMath:
    return ExpertMath(
        num_experts=block.router.num_experts,
        up=lambda x, ids, offsets: _grouped_linear(x, unwrap(block.input_linear).weight, offsets),
        act=_gated(block.activation),
        down=lambda x, ids, offsets: _grouped_linear(x, unwrap(block.output_linear).weight, offsets),
    )


def _jetmoe_forward(block: Any, hidden: Tensor, tap: Any) -> Tensor:
    def native(logits: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = logits.topk(block.router.top_k, dim=1)
        return indices, values.softmax(dim=1).type_as(hidden)

    flat = hidden.reshape(-1, hidden.shape[-1])
    indices, weights = _route(tap, block.router.layer(flat).float(), native)
    with adapted_parameters(block.input_linear, block.output_linear):
        routed = compute_experts(_jetmoe_math(block), tap, flat, indices, weights.to(flat.dtype), mask_outside=False)
    with_bias: Tensor = routed.view(hidden.shape) + block.bias
    return with_bias


def _longcat_math(experts: Any) -> ExpertMath:
    """Experts with ids from `num_routed_experts` on return their input; the up projection has unused rows for them."""
    n_routed = experts.num_routed_experts

    def up(x: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        result: Tensor = _grouped_linear(x, experts.gate_up_proj[:n_routed], offsets)
        return result

    stacked = stacked_math(experts, num_experts=n_routed)
    return replace(stacked, up=up, act=_gated(experts.act_fn), identity=True)


ADAPTERS: dict[str, Adapter] = {
    "Step3p7Experts": Adapter(),
    "LongcatFlashExperts": Adapter(math=_longcat_math),
    "Llama4TextExperts": Adapter(math=_llama4_math, block_forward=_llama4_forward),
    "SequentialLlama4TextExperts": Adapter(math=_llama4_math, block_forward=_llama4_forward),
    "DbrxExperts": Adapter(math=_dbrx_math, block_forward=_dbrx_forward),
    "JetMoeMoE": Adapter(math=_jetmoe_math, block_forward=_jetmoe_forward, block_is_experts=True),
}
"""Adapters by the class name of the experts module, or of the block where there is no experts module (JetMoE)."""

UNSUPPORTED: dict[str, str] = {
    "doge": "its experts are rows of an embedding retrieved by product keys, not modules a router selects",
    "nllb_moe": "it is an encoder-decoder translation model; moelens reads causal language models",
    "switch_transformers": "it is an encoder-decoder model; moelens reads causal language models",
}
"""Architectures of transformers with experts that moelens cannot hook, and the reason why."""

_PATCHED: dict[type, tuple[Callable[..., Any], int]] = {}
"""By class, its own forward and the number of hooked modules of the class."""


def install_forward(module: nn.Module, adapter: Adapter) -> None:
    """Replace the forward of a module's class by one that runs the hooks of the modules in `LISTENERS`.

    Args:
        module: an experts module, or a block whose whole forward the adapter computes.
        adapter: the row for its class.
    """
    cls = type(module)
    original, users = _PATCHED.get(cls, (cls.forward, 0))
    _PATCHED[cls] = (original, users + 1)
    if users == 0:

        def forward(self: Any, hidden: Tensor, *args: Any) -> Any:
            tap: Any = LISTENERS.get(self)
            if adapter.block_forward is not None:
                if tap is None or not tap.is_active():
                    return original(self, hidden)
                with ExitStack() as stack:  # accelerate loads offloaded weights only for a module's own forward
                    for part in (self if adapter.block_is_experts else self.experts).modules():
                        stack.enter_context(align_module_device(part))
                    return adapter.block_forward(self, hidden, tap)
            if tap is None or not tap.is_active_inside():
                return original(self, hidden, *args)
            return compute_experts(adapter.math(self), tap, hidden, *args)

        cls.forward = forward
    _rebind(module)


def restore_forward(module: nn.Module) -> None:
    """Undo one `install_forward`; the last one restores the class's own forward."""
    cls = type(module)
    original, users = _PATCHED.pop(cls)
    if users > 1:
        _PATCHED[cls] = (original, users - 1)
    else:
        cls.forward = original
    _rebind(module)


def _rebind(module: Any) -> None:
    """Give a module that accelerate has dispatched its class's present forward; accelerate keeps an earlier one."""
    if "_old_forward" in module.__dict__:
        module._old_forward = MethodType(type(module).forward, module)
