"""What connects the modules of one MoE layer with its hook points during a forward pass.

Points without hooks cost nothing. What a hook returns replaces the tensor in the computation, and the later stages of
the routing decision are computed again from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from moelens.errors import CheckError, MoeLensError
from moelens.models import adapters, packed
from moelens.models.copies import TorchHook
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
from moelens.models.routers import RouterRule, expert_vector
from moelens.models.running import RunningPass
from moelens.models.sharding import Sharding, find_sharding
from moelens.models.structure import MoELayer


@dataclass(kw_only=True)
class ObservedRouting:
    """The routing of one layer in a forward pass of the checks at load.

    Attributes:
        logits: the router's logits, `[token, expert]`.
        router_indices: the expert ids that the router returned, `[token, slot]`.
        router_weights: the weights that it returned, `[token, slot]`.
        indices: the ids that the experts were given, `[token, slot]`.
        weights: the weights that the experts were given, `[token, slot]`.
    """

    logits: Tensor | None = None
    router_indices: Tensor | None = None
    router_weights: Tensor | None = None
    indices: Tensor | None = None
    weights: Tensor | None = None


def router_output_parts(output: Any, n_experts: int) -> dict[str, int]:
    """Find what a router returns, by the tensors' types and last dimensions.

    Args:
        output: a tensor or a tuple.
        n_experts: number of experts the router chooses among.

    Returns:
        The positions of "indices", "weights" and "logits" in the output, as far as it has them.
    """
    parts: dict[str, int] = {}
    items = output if isinstance(output, tuple) else (output,)
    tensors = [(i, t) for i, t in enumerate(items) if isinstance(t, Tensor) and t.ndim >= 2]
    for i, t in tensors:
        if not t.is_floating_point():
            parts.setdefault("indices", i)
    k = items[parts["indices"]].shape[-1] if "indices" in parts else 0
    for i, t in tensors:
        if t.is_floating_point() and t.shape[-1] in (n_experts, n_experts + 1) and "logits" not in parts:
            parts["logits"] = i  # one more than there are experts: the choice to skip them (Zaya)
        elif t.is_floating_point() and t.shape[-1] == k:
            parts.setdefault("weights", i)
    return parts


@dataclass(kw_only=True)
class Tap:
    """Runs the hooks of one MoE layer. It is a `moelens.models.experts.Listener`.

    Attributes:
        layer: the layer's modules.
        points: the layer's hook points, those at `blocks.{l}.mlp`.
        running: how the tokens of the running forward pass are laid out.
        native: name of the experts implementation that the model had before.
        sharding: how the experts are divided among processes; None if they are not.
        rule: the router's rule; None where no known rule explains the router.
        observed: what the checks at load observe; None outside them.
        scores: the scores of the running decision `[token, expert]`, kept from the router to the experts.
        patched: the module whose class's forward was replaced, if any.
    """

    layer: MoELayer
    points: Any
    running: RunningPass
    native: str = "grouped_mm"
    sharding: Sharding | None = None
    rule: RouterRule | None = None
    observed: ObservedRouting | None = None
    scores: Tensor | None = None
    patched: nn.Module | None = None
    _handles: list[Any] = field(default_factory=list, init=False)

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
        return (
            self.observed is not None
            or self.is_active_inside()
            or any(has_hooks(getattr(self.points, name, None)) for name in (*ROUTER_STAGES, *CHOICE))
        )

    # Inside the experts

    def is_active_inside(self) -> bool:
        """Whether there is a hook inside the experts."""
        return any(map(self.is_active_at, EXPERT_STAGES))

    def is_active_at(self, stage: str) -> bool:
        """Whether there is a hook at a stage inside the experts: "hook_pre", "hook_post" or "hook_out"."""
        return has_hooks(getattr(self.points.experts, stage, None))

    def run_hooks_inside(self, stage: str, slots: Tensor) -> tuple[Tensor, bool]:
        """Run the hooks of a stage inside the experts.

        Args:
            stage: "hook_pre", "hook_post" or "hook_out".
            slots: what this process computed, `[token, slot, ·]`; the hooks are given what all processes computed.

        Returns:
            This process's share of what the hooks leave, and whether they edited it.
        """
        whole = self.sharding.gather(stage, slots) if self.sharding else slots
        shown = whole.reshape(*self.running.shape(whole.shape[0]), *whole.shape[1:])
        left, edited = run_hooks(getattr(self.points.experts, stage), shown)
        left = left.flatten(0, 1)
        return (self.sharding.split(stage, left) if self.sharding else left), edited

    def native_implementation(self, module: nn.Module) -> str:
        """Return the implementation to use without hooks inside: on an accelerator, `generate` uses "batched_mm"."""
        decoding = self.running.generating and self.running.pos == 1 and self.native == "grouped_mm"
        device = next((p.device.type for p in module.parameters()), "cpu")
        return "batched_mm" if decoding and device != "cpu" else self.native

    # The routing decision

    def require_rule(self, point: str) -> RouterRule:
        """Return the router's rule, which an edit at `point` needs; raise `MoeLensError` where there is none."""
        if self.rule is None:
            reason = self.layer.refusals.get("replay", "the checks at load were switched off")
            raise MoeLensError(
                f"an edit at 'blocks.{self.layer.index}.mlp.{point}' cannot take effect: {reason}; "
                f"edit hook_topk_weights or hook_expert_weights instead"
            )
        return self.rule

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the hooks of the stages of a routing decision.

        Args:
            logits: `[token, expert]`.

        Returns:
            The logits, and the experts' ids and weights `[token, slot]` if a hook edited a stage, so that the choice
            was made again; else None for both.
        """
        logits, edited = self._run_hooks_on_tokens("hook_router_logits", logits)
        later = any(has_hooks(getattr(self.points, name, None)) for name in ROUTER_STAGES[1:])
        if not (edited or later or has_hooks(self.points.hook_expert_indices)):
            return logits, None, None
        if self.rule is None:
            if edited:
                self.require_rule("hook_router_logits")
            return logits, None, None
        rule = self.rule
        if not (edited or later):  # only the indices have hooks; an edit of them needs the scores
            self.scores = rule.scores(logits)
            return logits, None, None
        scores, changed = self._run_hooks_on_tokens("hook_router_scores", rule.scores(logits))
        edited |= changed
        self.scores = scores
        biased = rule.biased(scores, expert_vector(self.layer.block, rule.bias))
        biased, changed = self._run_hooks_on_tokens("hook_router_biased", biased)
        edited |= changed
        selection, changed = self._run_hooks_on_tokens("hook_router_selection", rule.selection(biased))
        edited |= changed
        if not edited:
            return logits, None, None
        indices = rule.indices(selection)
        return logits, indices, self._weigh(rule, scores, indices)

    def choose(self, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Run the hooks of the chosen experts and of their weights, by slot and by expert.

        Args:
            indices: ids of the chosen experts, `[token, slot]`.
            weights: their weights, `[token, slot]`.

        Returns:
            The ids and weights to give to the experts.
        """
        if self.observed is not None:
            self.observed.indices, self.observed.weights = indices, weights
        edited_indices, edited = self._run_hooks_on_tokens("hook_expert_indices", indices)
        if edited:
            self._require_experts(edited_indices)
            rule = self.require_rule("hook_expert_indices")
            assert self.scores is not None  # `decide` keeps them when hook_expert_indices has hooks
            indices = edited_indices.to(indices.dtype)
            weights = self._weigh(rule, self.scores, indices).to(weights.dtype)
        weights, _ = self._run_hooks_on_tokens("hook_topk_weights", weights)
        if has_hooks(self.points.hook_expert_weights):
            dense = weights.new_zeros(len(weights), self.layer.n_experts).scatter_add(-1, indices.long(), weights)
            dense, edited = self._run_hooks_on_tokens("hook_expert_weights", dense)
            if edited:
                wanted = (dense != 0).sum(-1).max().item()
                if wanted > indices.shape[-1] or (dense.scatter(-1, indices.long(), 0) != 0).any():
                    indices = dense.abs().topk(max(int(wanted), 1), dim=-1).indices.to(indices.dtype)
                weights = dense.gather(-1, indices.long())
        self.scores = None
        if self.is_active_inside():
            self.running.slots[self.layer.index] = indices.reshape(*self.running.shape(len(indices)), -1).long()
        return indices, weights

    def _run_hooks_on_tokens(self, name: str, flat: Tensor) -> tuple[Tensor, bool]:
        """Run the hooks of a point on `[token, ·]`, which they see as `[batch, pos, ·]`."""
        point = getattr(self.points, name, None)
        if not has_hooks(point):
            return flat, False
        left, edited = run_hooks(point, flat.reshape(*self.running.shape(flat.shape[0]), flat.shape[-1]))
        return left.reshape(flat.shape[0], -1), edited

    def _weigh(self, rule: RouterRule, scores: Tensor, indices: Tensor) -> Tensor:
        return rule.weights(scores, indices, expert_vector(self.layer.block, rule.expert_scale))

    def _require_experts(self, indices: Tensor) -> None:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.layer.n_experts:
            raise CheckError(
                f"expert {low if low < 0 else high} at 'blocks.{self.layer.index}.mlp.hook_expert_indices' does not "
                f"exist; allowed: 0 to {self.layer.n_experts - 1}"
            )

    # Torch hooks

    def _after_router(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.is_active():
            return None
        items = list(output) if isinstance(output, tuple) else [output]
        parts = router_output_parts(output, self.layer.n_experts)
        if "logits" not in parts:
            return None
        raw = items[parts["logits"]]
        flat = raw.reshape(-1, raw.shape[-1])
        if self.observed is not None:
            self.observed.logits = flat
            if "indices" in parts and "weights" in parts:
                self.observed.router_indices = items[parts["indices"]].flatten(0, -2)
                self.observed.router_weights = items[parts["weights"]].flatten(0, -2)
        logits, indices, weights = self.decide(flat)
        if logits is not flat:
            items[parts["logits"]] = _as(raw, logits)
        if indices is not None and weights is not None and "indices" in parts:
            items[parts["indices"]] = _as(items[parts["indices"]], indices)
            items[parts["weights"]] = _as(items[parts["weights"]], weights)
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
        return self._run_hooks_on_output(point, output.clone())  # Llama 4 adds to it in place

    def _run_hooks_on_output(self, point: Any, output: Tensor) -> Tensor:
        """Run the hooks of a point on `[batch, pos, d_model]`, also where the block returns flat tokens."""
        if output.ndim == 3:
            return run_hooks(point, output)[0]
        rows = output.reshape(self.running.batch * self.running.pos, -1)
        left, _ = run_hooks(point, rows.reshape(*self.running.shape(len(rows)), -1))
        return left.reshape(output.shape)


def _as(like: Tensor, tensor: Tensor) -> Tensor:
    """The tensor with the shape and type of another."""
    return tensor.reshape(like.shape).to(like.dtype)
