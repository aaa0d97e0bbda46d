"""What connects the modules of one MoE layer with its hook points during a forward pass.

Points without hooks cost nothing. What a hook returns replaces the tensor in the computation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moelens.models import adapters, packed
from moelens.models.copies import TorchHook
from moelens.models.decisions import RoutingHooks
from moelens.models.experts import LISTENERS
from moelens.models.points import (
    CHOICE,
    EXPERT_STAGES,
    ROUTER_STAGES,
    first_tensor,
    has_hooks,
    replace_first_tensor,
    run_hooks,
)
from moelens.models.routers import router_output_parts
from moelens.models.sharding import Sharding, find_sharding


@dataclass(kw_only=True)
class Tap(RoutingHooks):
    """Runs the hooks of one MoE layer. It is a `moelens.models.experts.Listener`.

    Attributes:
        native: name of the experts implementation that the model had before.
        sharding: how the experts are divided among processes; None if they are not.
        patched: the module whose class's forward was replaced, if any.
    """

    native: str = "grouped_mm"
    sharding: Sharding | None = None
    patched: nn.Module | None = None
    _handles: list[Any] = field(default_factory=list, init=False)
    _raw_logits: Tensor | None = field(default=None, init=False)

    def attach(self) -> None:
        """Register the torch hooks, and the tap as the listener of the layer's experts."""
        layer = self.layer
        self.sharding = find_sharding(layer.experts)
        if layer.adapter.block_forward is None:
            LISTENERS[layer.experts] = self
            before_experts = TorchHook(self._before_experts)
            self._handles.append(layer.experts.register_forward_pre_hook(before_experts, with_kwargs=True))
            self._handles += packed.attach(layer.block, layer.experts, self.is_active)
            if layer.router is not None:
                self._handles.append(layer.router.register_forward_hook(TorchHook(self._after_router)))
        else:
            LISTENERS[layer.block] = self
        if layer.block is not layer.decoder_layer:
            self._handles.append(layer.block.register_forward_hook(TorchHook(self._after_block)))
        if layer.shared is not None:
            self._handles.append(layer.shared.register_forward_hook(TorchHook(self._after_shared)))

    def detach(self) -> None:
        """Undo `attach`, and the replacement of a class's forward."""
        while self._handles:
            self._handles.pop().remove()
        for module in (self.layer.experts, self.layer.block):
            if module is not None and LISTENERS.get(module) is self:
                del LISTENERS[module]
        if self.patched is not None:
            adapters.restore_forward(self.patched)
            self.patched = None

    def is_active(self) -> bool:
        """Whether the layer's routing or experts have hooks, or the checks at load observe them."""
        return self.observed is not None or self.is_active_inside() or self.has_hooks(*ROUTER_STAGES, *CHOICE)

    def read_logits_from(self, module: nn.Module) -> None:
        """Take the router's logits from the output of one of its parts; the router itself returns probabilities."""

        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            self._raw_logits = output if self.is_active() else None

        self._handles.append(module.register_forward_hook(TorchHook(keep)))

    # Inside the experts

    def is_active_inside(self) -> bool:
        """Whether there is a hook inside the experts."""
        return any(map(self.is_active_at, EXPERT_STAGES))

    def is_active_at(self, stage: str) -> bool:
        """Whether there is a hook at a stage inside the experts: "hook_pre", "hook_post" or "hook_out"."""
        return has_hooks(getattr(self.points.experts, stage, None))

    def run_hooks_inside(self, stage: str, slots: Tensor) -> Tensor:
        """Run the hooks of a stage inside the experts.

        Args:
            stage: "hook_pre", "hook_post" or "hook_out".
            slots: what this process computed, `[token, slot, ·]`; the hooks are given what all processes computed.

        Returns:
            This process's share of what the hooks leave.
        """
        whole = self.sharding.gather(stage, slots) if self.sharding else slots
        shown = whole.reshape(*self.running.shape(whole.shape[0]), *whole.shape[1:])
        left = run_hooks(getattr(self.points.experts, stage), shown, owned=self.sharding is None)
        if self.sharding is None:
            return left.flatten(0, 1)
        if not left.requires_grad and torch.equal(left, shown):
            return slots  # the sum of the processes' parts is rounded in another order
        return self.sharding.split(stage, left.flatten(0, 1))

    def native_implementation(self, module: nn.Module) -> str:
        """Return the implementation to use without hooks inside: on an accelerator, `generate` uses "batched_mm"."""
        decoding = self.running.generating and self.running.pos == 1 and self.native == "grouped_mm"
        device = next((p.device.type for p in module.parameters()), "cpu")
        return "batched_mm" if decoding and device != "cpu" else self.native

    def choose(self, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Run the hooks of the chosen experts and of their weights; see `RoutingHooks.choose`."""
        indices, weights = super().choose(indices, weights)
        if self.is_active_inside():
            self.running.slots[self.layer.index] = indices.reshape(*self.running.shape(len(indices)), -1).long()
        return indices, weights

    # Torch hooks

    def _after_router(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.is_active():
            return None
        items = list(output) if isinstance(output, tuple) else [output]
        parts = router_output_parts(output, self.layer.n_experts)
        if "logits" not in parts:
            return None
        own = items[parts["logits"]].flatten(0, -2)
        raw, self._raw_logits = self._raw_logits, None
        given = own if raw is None else raw.flatten(0, -2)
        left = self.decide(given)
        if left is given:
            return None
        left = left if raw is None or self.rule is None else self.rule.scores(left)
        items[parts["logits"]] = left.reshape(items[parts["logits"]].shape).to(own.dtype)
        return tuple(items) if isinstance(output, tuple) else items[0]

    def _before_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.is_active():
            return None
        names = ("hidden_states", "top_k_index", "top_k_weights")
        hidden, indices, weights = (*args, *(kwargs[n] for n in names[len(args) :]))
        rest = {k: v for k, v in kwargs.items() if k not in names}
        return (hidden, *self.choose(indices, weights)), rest

    def _after_block(self, module: nn.Module, args: Any, output: Any) -> Any:
        point = self.points.hook_out
        if not has_hooks(point):
            return None
        return replace_first_tensor(output, self._run_hooks_on_output(point, first_tensor(output)))

    def _after_shared(self, module: nn.Module, args: Any, output: Any) -> Any:
        point = self.points.shared.hook_out
        if not has_hooks(point):
            return None
        return self._run_hooks_on_output(point, output).clone()  # Llama 4 adds to it in place

    def _run_hooks_on_output(self, point: Any, output: Tensor) -> Tensor:
        """Run the hooks of a point on `[batch, pos, d_model]`, also where the block returns flat tokens."""
        if output.ndim == 3:
            return run_hooks(point, output)
        rows = output.reshape(self.running.batch * self.running.pos, -1)
        return run_hooks(point, rows.reshape(*self.running.shape(len(rows)), -1)).reshape(output.shape)
