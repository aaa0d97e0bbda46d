"""Architectures whose experts do not go through transformers' experts interface, as rows of one table.

Their classes' `forward` is replaced while a model is hooked and put back with the last one; a module that nobody
listens to still runs its own code.
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

from moelens.models.experts import LISTENERS, ExpertMath, listen_to_experts, stacked_math

Native = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Row:
    """What an architecture does differently.

    Attributes:
        math: what an experts module computes.
        block_forward: the whole block's forward, where ids and weights never meet the experts as arguments.
        block_is_experts: there is no experts module; the block holds the weights itself.
    """

    math: Callable[[Any], ExpertMath] = stacked_math
    block_forward: Callable[[Any, Tensor, Any], Any] | None = None
    block_is_experts: bool = False


def _route(tap: Any, logits: Tensor, native: Native) -> tuple[Tensor, Tensor]:
    """Ids and weights `[token, slot]` by the block's own rule, or by the replay where a stage was edited."""
    if tap.observed is not None:
        tap.observed.logits = logits
        tap.observed.router_indices, tap.observed.router_weights = native(logits)
    logits, indices, weights = tap.decide(logits)
    if indices is None or weights is None:
        indices, weights = native(logits)
    chosen: tuple[Tensor, Tensor] = tap.choose(indices, weights.to(logits.dtype))
    return chosen


def llama4_math(experts: Any) -> ExpertMath:
    def act(pre: Tensor) -> Tensor:
        gate, up = pre.chunk(2, dim=-1)
        neurons: Tensor = up * experts.act_fn(gate)
        return neurons

    return ExpertMath(
        experts.num_experts,
        lambda x, ids, offsets: _grouped_linear(x, experts.gate_up_proj, offsets, is_transposed=True),
        act,
        lambda x, ids, offsets: _grouped_linear(x, experts.down_proj, offsets, is_transposed=True),
        weights_on_input=True,
    )


def llama4_forward(block: Any, hidden: Tensor, tap: Any) -> tuple[Tensor, Tensor]:
    hidden = hidden.reshape(-1, block.hidden_dim)
    _, logits = block.router(hidden)

    def native(logits: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = logits.topk(block.top_k, dim=1)
        return indices, values.float().sigmoid().to(logits.dtype)

    indices, weights = _route(tap, logits, native)
    routed = listen_to_experts(llama4_math(block.experts), tap, hidden, indices, weights, mask_outside=False)
    return block.shared_expert(hidden) + routed, logits


def dbrx_math(experts: Any) -> ExpertMath:
    glu, shape = experts.mlp, (experts.num_experts, experts.ffn_hidden_size, experts.hidden_size)

    def act(pre: Tensor) -> Tensor:
        gate, up = pre.chunk(2, dim=-1)
        neurons: Tensor = glu.activation_fn(gate) * up
        return neurons

    return ExpertMath(
        experts.num_experts,
        lambda x, ids, offsets: torch.cat([_grouped_linear(x, w.view(shape), offsets) for w in (glu.w1, glu.v1)], -1),
        act,
        lambda x, ids, offsets: _grouped_linear(x, glu.w2.view(shape), offsets, is_transposed=True),
    )


def dbrx_forward(block: Any, hidden: Tensor, tap: Any) -> Tensor:
    def native(logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, indices = block.route_tokens_to_experts(logits)
        return indices, weights

    flat = hidden.reshape(-1, hidden.shape[-1])
    indices, weights = _route(tap, block.router(hidden), native)
    routed = listen_to_experts(dbrx_math(block.experts), tap, flat, indices, weights, mask_outside=False)
    return routed.view(hidden.shape)


def jetmoe_math(block: Any) -> ExpertMath:
    def act(pre: Tensor) -> Tensor:
        gate, up = pre.chunk(2, dim=-1)
        neurons: Tensor = block.activation(gate) * up
        return neurons

    return ExpertMath(
        block.router.num_experts,
        lambda x, ids, offsets: _grouped_linear(x, block.input_linear.weight, offsets),
        act,
        lambda x, ids, offsets: _grouped_linear(x, block.output_linear.weight, offsets),
    )


def jetmoe_forward(block: Any, hidden: Tensor, tap: Any) -> Tensor:
    def native(logits: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = logits.topk(block.router.top_k, dim=1)
        return indices, values.softmax(dim=1).type_as(hidden)

    flat = hidden.reshape(-1, hidden.shape[-1])
    indices, weights = _route(tap, block.router.layer(flat).float(), native)
    routed = listen_to_experts(jetmoe_math(block), tap, flat, indices, weights.to(flat.dtype), mask_outside=False)
    with_bias: Tensor = routed.view(hidden.shape) + block.bias
    return with_bias


def longcat_math(experts: Any) -> ExpertMath:
    """Ids from `num_routed_experts` on return their input; the projection up holds unused rows for them."""
    plain, held = stacked_math(experts, num_experts=experts.num_routed_experts), experts.num_routed_experts

    def act(pre: Tensor) -> Tensor:
        gate, up = pre.chunk(2, dim=-1)
        neurons: Tensor = experts.act_fn(gate) * up
        return neurons

    def up(x: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        result: Tensor = _grouped_linear(x, experts.gate_up_proj[:held], offsets)
        return result

    return replace(plain, up=up, act=act, identity=True)


ADAPTED: dict[str, Row] = {
    "Step3p7Experts": Row(),
    "LongcatFlashExperts": Row(math=longcat_math),
    "Llama4TextExperts": Row(math=llama4_math, block_forward=llama4_forward),
    "DbrxExperts": Row(math=dbrx_math, block_forward=dbrx_forward),
    "JetMoeMoE": Row(math=jetmoe_math, block_forward=jetmoe_forward, block_is_experts=True),
}
"""By the class name of the experts module (JetMoE has none: by that of its block)."""

REFUSED: dict[str, str] = {
    "doge": "its experts are rows of an embedding retrieved by product keys, not modules a router selects",
    "nllb_moe": "it is an encoder-decoder translation model; moelens reads causal language models",
    "switch_transformers": "it is an encoder-decoder model; moelens reads causal language models",
}
"""Architectures of transformers with experts that moelens cannot hook, and why."""

_PATCHED: dict[type, tuple[Callable[..., Any], int]] = {}


def install(module: nn.Module, row: Row) -> None:
    """Replace the forward of the module's class by one that asks `LISTENERS` first."""
    cls = type(module)
    original, users = _PATCHED.get(cls, (cls.forward, 0))
    _PATCHED[cls] = (original, users + 1)
    if users == 0:

        def forward(self: Any, hidden: Tensor, *args: Any) -> Any:
            tap: Any = LISTENERS.get(self)
            if row.block_forward is not None:
                if tap is None or not tap.listens():
                    return original(self, hidden)
                with ExitStack() as stack:  # weights that accelerate has offloaded, and that no forward brings back
                    for part in (self if row.block_is_experts else self.experts).modules():
                        stack.enter_context(align_module_device(part))
                    return row.block_forward(self, hidden, tap)
            if tap is None or not tap.listens_inside():
                return original(self, hidden, *args)
            return listen_to_experts(row.math(self), tap, hidden, *args)

        cls.forward = forward
    _rebind(module)


def remove(module: nn.Module) -> None:
    """Undo one `install`."""
    cls = type(module)
    original, users = _PATCHED.pop(cls)
    if users > 1:
        _PATCHED[cls] = (original, users - 1)
    else:
        cls.forward = original
    _rebind(module)


def _rebind(module: Any) -> None:
    """accelerate keeps the forward that a module had when it was dispatched: give it the present one."""
    if "_old_forward" in module.__dict__:
        module._old_forward = MethodType(type(module).forward, module)
