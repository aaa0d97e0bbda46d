"""Architectures whose experts do not use transformers' experts interface: one row of a table for each.

While a model is hooked, the `forward` of the class of its experts module (or block) is replaced; the last `unhook`
restores it. A module without hooks still runs its own code.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MethodType
from typing import Any, cast

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from moelens.models.experts import LISTENERS, ExpertMath, compute_experts, grouped_linear, stacked_math
from moelens.models.wrappers import adapted_parameters, unwrap


def _autocast_math(experts: Any) -> ExpertMath:
    return stacked_math(experts, autocast=True)


@dataclass(frozen=True)
class Adapter:
    """What one architecture does differently from those that use the experts interface.

    Attributes:
        math: returns what an experts module computes.
        block_forward: the forward of the whole block, for blocks that do not pass ids and weights to their experts;
            None where they do.
        route: for such a block, the block's own choice: from the block and logits `[token, expert]` to expert ids and
            weights, `[token, slot]` each.
        block_is_experts: whether the block holds the experts' weights itself, without an experts module.
    """

    math: Callable[[Any], ExpertMath] = _autocast_math
    block_forward: Callable[[Any, Tensor, Any], Any] | None = None
    route: Callable[[Any, Tensor], tuple[Tensor, Tensor]] | None = None
    block_is_experts: bool = False


def _route(tap: Any, block: Any, logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Run the hooks of the routing decision on logits `[token, expert]`; return expert ids, and weights of `dtype`."""
    indices, weights = tap.layer.adapter.route(block, logits)
    tap.decide(logits)
    chosen: tuple[Tensor, Tensor] = tap.choose(indices, weights.to(dtype))
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
        spans = [(e, slice(start, end)) for e, (start, end) in enumerate(pairwise(starts))]
        return torch.cat([getattr(experts[e], part)(rows[span]) for e, span in spans if span.stop > span.start])

    return apply


def _llama4_math(experts: Any) -> ExpertMath:
    if isinstance(experts, nn.ModuleList):  # in checkpoints that hold them packed
        gate, up = _each(experts, "gate_proj"), _each(experts, "up_proj")
        return ExpertMath(
            num_experts=len(experts),
            up=lambda x, ids, offsets: torch.cat([gate(x, ids, offsets), up(x, ids, offsets)], -1),
            act=_gated(cast("Any", experts[0]).activation_fn),
            down=_each(experts, "down_proj"),
            weights_on_input=True,
        )
    return ExpertMath(
        num_experts=experts.num_experts,
        up=lambda x, ids, offsets: grouped_linear(x, experts.gate_up_proj, offsets, transposed=True, autocast=True),
        act=_gated(experts.act_fn),
        down=lambda x, ids, offsets: grouped_linear(x, experts.down_proj, offsets, transposed=True, autocast=True),
        weights_on_input=True,
    )


def _llama4_route(block: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = logits.topk(block.top_k, dim=1)
    return indices, values.float().sigmoid().to(logits.dtype)


def _llama4_forward(block: Any, hidden: Tensor, tap: Any) -> tuple[Tensor, Tensor]:
    hidden = hidden.reshape(-1, block.hidden_dim)
    _, logits = block.router(hidden)
    indices, weights = _route(tap, block, logits, logits.dtype)
    with adapted_parameters(block.experts):
        math = _llama4_math(unwrap(block.experts))
        routed = compute_experts(math, tap, hidden, indices, weights, mask_outside=False)
    return block.shared_expert(hidden) + routed, logits


def _dbrx_math(experts: Any) -> ExpertMath:
    glu, shape = unwrap(experts.mlp), (experts.num_experts, experts.ffn_hidden_size, experts.hidden_size)

    def up(x: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        return torch.cat([grouped_linear(x, w.view(shape), offsets, autocast=True) for w in (glu.w1, glu.v1)], -1)

    return ExpertMath(
        num_experts=experts.num_experts,
        up=up,
        act=_gated(glu.activation_fn),
        down=lambda x, ids, offsets: grouped_linear(x, glu.w2.view(shape), offsets, transposed=True, autocast=True),
    )


def _dbrx_route(block: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, indices = block.route_tokens_to_experts(logits)
    return indices, weights


def _dbrx_forward(block: Any, hidden: Tensor, tap: Any) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = block.router(hidden)
    indices, weights = _route(tap, block, logits, logits.dtype)
    with adapted_parameters(block.experts):
        math = _dbrx_math(unwrap(block.experts))
        routed = compute_experts(math, tap, flat, indices, weights, mask_outside=False)
    return routed.view(hidden.shape)


def _jetmoe_math(block: Any) -> ExpertMath:
    return ExpertMath(
        num_experts=block.router.num_experts,
        up=lambda x, ids, offsets: grouped_linear(x, unwrap(block.input_linear).weight, offsets, autocast=True),
        act=_gated(block.activation),
        down=lambda x, ids, offsets: grouped_linear(x, unwrap(block.output_linear).weight, offsets, autocast=True),
    )


def _jetmoe_route(block: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = logits.topk(block.router.top_k, dim=1)
    return indices, values.softmax(dim=1)


def _jetmoe_forward(block: Any, hidden: Tensor, tap: Any) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    indices, weights = _route(tap, block, block.router.layer(flat).float(), flat.dtype)
    with adapted_parameters(block.input_linear, block.output_linear):
        routed = compute_experts(_jetmoe_math(block), tap, flat, indices, weights, mask_outside=False)
    with_bias: Tensor = routed.view(hidden.shape) + block.bias
    return with_bias


def _longcat_math(experts: Any) -> ExpertMath:
    """Experts with ids from `num_routed_experts` on return their input; the up projection has unused rows for them."""
    n_routed = experts.num_routed_experts

    def up(x: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        return grouped_linear(x, experts.gate_up_proj[:n_routed], offsets, autocast=True)

    stacked = stacked_math(experts, num_experts=n_routed, autocast=True)
    return replace(stacked, up=up, act=_gated(experts.act_fn), identity=True)


ADAPTERS: dict[str, Adapter] = {
    "Step3p7Experts": Adapter(),
    "LongcatFlashExperts": Adapter(math=_longcat_math),
    "Llama4TextExperts": Adapter(math=_llama4_math, block_forward=_llama4_forward, route=_llama4_route),
    "SequentialLlama4TextExperts": Adapter(math=_llama4_math, block_forward=_llama4_forward, route=_llama4_route),
    "DbrxExperts": Adapter(math=_dbrx_math, block_forward=_dbrx_forward, route=_dbrx_route),
    "JetMoeMoE": Adapter(math=_jetmoe_math, block_forward=_jetmoe_forward, route=_jetmoe_route, block_is_experts=True),
}
"""Adapters by the class name of the experts module, or of the block where there is no experts module (JetMoE)."""

UNSUPPORTED: dict[str, str] = {
    "doge": "its experts are rows of an embedding retrieved by product keys, not modules a router selects",
    "nllb_moe": "it is an encoder-decoder translation model; moelens reads causal language models",
    "switch_transformers": "it is an encoder-decoder model; moelens reads causal language models",
}
"""Architectures of transformers with experts that moelens cannot hook, and the reason why."""

KEYS_ONLY: dict[str, str] = {
    "DiffusionGemmaEncoderTextLayer": "the decoder reads this layer's keys and values, and nothing reads its output",
}
"""By class of the decoder layer, why the last one's output does not matter in stacks of which only keys and values are
read. Its expert ids and weights can be recorded; edits and gradients after its attention have no effect."""

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
