"""One layer's hook points, and the torch hooks through which a forward pass reaches them.

A point with no hooks is passed by; what a hook returns is put back into the computation, and whatever lies downstream
of it in the routing decision is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from moelens.errors import CheckError, MoeLensError
from moelens.models import adapters
from moelens.models.experts import LISTENERS
from moelens.models.routers import Replay, vector
from moelens.models.sharding import Division, division_of
from moelens.models.structure import Site

ROUTER_STAGES = ("hook_router_logits", "hook_router_scores", "hook_router_biased", "hook_router_selection")
INSIDE = ("hook_pre", "hook_post", "hook_out")


class Points(nn.Module):
    """A branch of the tree of hook points; attribute names are the last parts of their names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, HookPoint())


class Slots(dict[int, Tensor]):
    """Experts by layer, known while somebody listens inside the experts of the layer."""

    def __missing__(self, layer: int) -> Tensor:
        raise MoeLensError(
            f"running.slots has no layer {layer}: nobody listens inside its experts; add a hook at "
            f"'blocks.{layer}.mlp.experts.hook_out', or look at 'blocks.{layer}.mlp.hook_expert_indices'"
        )


@dataclass
class Grid:
    """How the flat tokens of the running forward pass are laid out, and where `generate`, if it runs, has got to.

    Attributes:
        start: position of the first token in its sequence; above 0 while `generate` decodes with a cache.
        prompt: tokens of the prompt while `generate` runs, None outside it.
        ids: the sequences so far, `[batch, start + pos]`; None where embeddings were given.
        slots: by layer, the experts `[batch, pos, k]` that the slots of `experts.hook_out` are, edits included.
    """

    batch: int = 1
    pos: int = 0
    start: int = 0
    prompt: int | None = None
    ids: Tensor | None = None
    slots: Slots = field(default_factory=Slots)

    @property
    def generating(self) -> bool:
        return self.prompt is not None

    def begin(self, batch: int, pos: int, ids: Tensor | None) -> None:
        """Note the tokens of a forward pass. With a cache, `generate` gives the new ones only."""
        seen = self.start + self.pos
        follows = self.prompt is not None and seen > 0 and pos != seen + 1
        self.start = seen if follows else 0
        earlier = self.ids if follows else None
        self.ids = ids if ids is None or earlier is None else torch.cat([earlier, ids], 1)
        self.batch, self.pos = batch, pos
        self.slots.clear()

    @contextmanager
    def generation(self, prompt: int) -> Iterator[None]:
        self.prompt, self.start, self.pos = prompt, 0, 0
        try:
            yield
        finally:
            self.prompt, self.start, self.ids = None, 0, None

    def shape(self, tokens: int) -> tuple[int, int]:
        return (self.batch, self.pos) if self.batch * self.pos == tokens else (1, tokens)


@dataclass
class Observed:
    """What one forward pass of the load-time checks saw in one layer; tensors are `[token, ·]`."""

    logits: Tensor | None = None
    router_indices: Tensor | None = None
    router_weights: Tensor | None = None
    indices: Tensor | None = None
    weights: Tensor | None = None


def listening(point: nn.Module | None) -> bool:
    """Whether anyone asked for this point (None: the layer does not have it)."""
    return isinstance(point, HookPoint) and bool(point.fwd_hooks or point.bwd_hooks)


def fire(point: Any, tensor: Tensor) -> tuple[Tensor, bool]:
    """Run the hooks of a point. Returns what they leave, and whether it may differ from what they got.

    An edit in place counts: the tensor's version tells, or, under `inference_mode`, which keeps no versions, a copy.
    """
    if not listening(point):
        return tensor, False
    inference = tensor.is_inference()
    before: Any = tensor.clone() if inference else tensor._version
    result: Tensor = point(tensor)
    if result is not tensor:
        return result, True
    return tensor, not torch.equal(before, tensor) if inference else before != tensor._version


def parts_of(output: Any, n_experts: int) -> dict[str, int]:
    """Where a router's output holds `indices`, `weights` and `logits`, told by type and last dimension."""
    parts: dict[str, int] = {}
    items = output if isinstance(output, tuple) else (output,)
    tensors = [(i, t) for i, t in enumerate(items) if isinstance(t, Tensor) and t.ndim >= 2]
    for i, t in tensors:
        if not t.is_floating_point():
            parts.setdefault("indices", i)
    k = items[parts["indices"]].shape[-1] if "indices" in parts else 0
    for i, t in tensors:
        if t.is_floating_point() and t.shape[-1] in (n_experts, n_experts + 1) and "logits" not in parts:
            parts["logits"] = i  # one more than there are experts: a choice to skip them (Zaya)
        elif t.is_floating_point() and t.shape[-1] == k:
            parts.setdefault("weights", i)
    return parts


@dataclass
class Tap:
    """Connects the modules of one MoE layer (`site`) with its hook points (`points`, the layer's `mlp` branch)."""

    site: Site
    points: Any
    grid: Grid
    native: str = "grouped_mm"
    division: Division | None = None
    replay: Replay | None = None
    observed: Observed | None = None
    scores: Tensor | None = None
    patched: nn.Module | None = None  # module whose class's forward was replaced
    handles: list[Any] = field(default_factory=list)

    def attach(self) -> None:
        site = self.site
        self.division = division_of(site.experts)
        if site.row.block_forward is None:
            LISTENERS[site.experts] = self
            self.handles.append(site.experts.register_forward_pre_hook(self.on_experts, with_kwargs=True))
            if site.router is not None:
                self.handles.append(site.router.register_forward_hook(self.on_router))
        else:
            LISTENERS[site.block] = self
        if site.block is not site.layer:
            self.handles.append(site.block.register_forward_hook(self.on_block))
        if site.shared is not None:
            self.handles.append(site.shared.register_forward_hook(self.on_shared))

    def detach(self) -> None:
        while self.handles:
            self.handles.pop().remove()
        for module in (self.site.experts, self.site.block):
            if module is not None and LISTENERS.get(module) is self:
                del LISTENERS[module]
        if self.patched is not None:
            adapters.remove(self.patched)
            self.patched = None

    # Inside the experts (the interface of moelens.models.experts.Listener)

    def listens_inside(self) -> bool:
        return any(map(self.listens_to, INSIDE))

    def listens(self) -> bool:
        """Whether anyone listens to anything of this layer's routing or experts, or the checks do."""
        names = (*ROUTER_STAGES, "hook_expert_indices", "hook_topk_weights", "hook_expert_weights")
        return (
            self.observed is not None
            or self.listens_inside()
            or any(listening(getattr(self.points, n, None)) for n in names)
        )

    def listens_to(self, stage: str) -> bool:
        return listening(getattr(self.points.experts, stage, None))

    def fire_inside(self, stage: str, slots: Tensor) -> tuple[Tensor, bool]:
        """Fire a stage with `[token, slot, ·]` of all processes; returns this one's, and whether they were edited."""
        whole = self.division.whole(stage, slots) if self.division else slots
        shown = whole.reshape(*self.grid.shape(whole.shape[0]), *whole.shape[1:])
        fired, edited = fire(getattr(self.points.experts, stage), shown)
        fired = fired.flatten(0, 1)
        return (self.division.own(stage, fired) if self.division else fired), edited

    def implementation(self, module: nn.Module) -> str:
        """The implementation to hand over to: `generate` would decode with "batched_mm" on an accelerator."""
        decoding = self.grid.generating and self.grid.pos == 1 and self.native == "grouped_mm"
        device = next((p.device.type for p in module.parameters()), "cpu")
        return "batched_mm" if decoding and device != "cpu" else self.native

    # The routing decision

    def fire_grid(self, name: str, flat: Tensor) -> tuple[Tensor, bool]:
        """Fire a point with `[token, ·]` shown as `[batch, pos, ·]`."""
        point = getattr(self.points, name, None)
        if not listening(point):
            return flat, False
        shown, edited = fire(point, flat.reshape(*self.grid.shape(flat.shape[0]), flat.shape[-1]))
        return shown.reshape(flat.shape[0], -1), edited

    def need_replay(self, point: str) -> Replay:
        if self.replay is None:
            reason = self.site.refusals.get("replay", "the checks at load were switched off")
            raise MoeLensError(
                f"an edit at 'blocks.{self.site.index}.mlp.{point}' cannot take effect: {reason}; "
                f"edit hook_topk_weights or hook_expert_weights instead"
            )
        return self.replay

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Fire the stages of a decision. Returns the logits and, if the choice has to be made again, ids and weights.

        Args:
            logits: `[token, expert]`.
        """
        logits, edited = self.fire_grid("hook_router_logits", logits)
        later = any(listening(getattr(self.points, n, None)) for n in ROUTER_STAGES[1:])
        indexed = listening(self.points.hook_expert_indices)
        if not (edited or later or indexed):
            return logits, None, None
        if self.replay is None:
            if edited:
                self.need_replay("hook_router_logits")
            return logits, None, None
        rule = self.replay
        if not (edited or later):  # an edit of the indices, which may follow, needs no more
            self.scores = rule.scores(logits)
            return logits, None, None
        scores, changed = self.fire_grid("hook_router_scores", rule.scores(logits))
        edited |= changed
        self.scores = scores
        biased, changed = self.fire_grid("hook_router_biased", rule.biased(scores, vector(self.site.block, rule.bias)))
        edited |= changed
        selection, changed = self.fire_grid("hook_router_selection", rule.selection(biased))
        edited |= changed
        if not edited:
            return logits, None, None
        indices = rule.indices(selection)
        return logits, indices, self.weigh(rule, scores, indices)

    def weigh(self, rule: Replay, scores: Tensor, indices: Tensor) -> Tensor:
        return rule.weights(scores, indices, vector(self.site.block, rule.expert_scale))

    def on_router(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self.listens():
            return None
        items = list(output) if isinstance(output, tuple) else [output]
        at = parts_of(output, self.site.n_experts)
        if "logits" not in at:
            return None
        raw = items[at["logits"]]
        flat = raw.reshape(-1, raw.shape[-1])
        if self.observed is not None:
            self.observed.logits = flat
            if "indices" in at and "weights" in at:
                self.observed.router_indices = items[at["indices"]].flatten(0, -2)
                self.observed.router_weights = items[at["weights"]].flatten(0, -2)
        logits, indices, weights = self.decide(flat)
        if logits is not flat:
            items[at["logits"]] = logits.reshape(raw.shape).to(raw.dtype)
        if indices is not None and weights is not None and "indices" in at:
            items[at["indices"]] = indices.reshape(items[at["indices"]].shape).to(items[at["indices"]].dtype)
            items[at["weights"]] = weights.reshape(items[at["weights"]].shape).to(items[at["weights"]].dtype)
        return tuple(items) if isinstance(output, tuple) else items[0]

    def choose(self, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Fire indices, weights by slot and weights by expert; each `[token, ·]`. Returns what the experts get."""
        if self.observed is not None:
            self.observed.indices, self.observed.weights = indices, weights
        shown, edited = self.fire_grid("hook_expert_indices", indices)
        if edited:
            self.require_experts(shown)
            rule = self.need_replay("hook_expert_indices")
            assert self.scores is not None  # the router ran before, and saw that someone listens here
            indices = shown.to(indices.dtype)
            weights = self.weigh(rule, self.scores, indices).to(weights.dtype)
        weights, _ = self.fire_grid("hook_topk_weights", weights)
        if listening(self.points.hook_expert_weights):
            dense = weights.new_zeros(len(weights), self.site.n_experts).scatter_add(-1, indices.long(), weights)
            dense, edited = self.fire_grid("hook_expert_weights", dense)
            if edited:
                wanted = (dense != 0).sum(-1).max().item()
                if wanted > indices.shape[-1] or (dense.scatter(-1, indices.long(), 0) != 0).any():
                    indices = dense.abs().topk(max(int(wanted), 1), dim=-1).indices.to(indices.dtype)
                weights = dense.gather(-1, indices.long())
        self.scores = None
        if self.listens_inside():
            self.grid.slots[self.site.index] = indices.reshape(*self.grid.shape(len(indices)), -1).long()
        return indices, weights

    def require_experts(self, indices: Tensor) -> None:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.site.n_experts:
            raise CheckError(
                f"expert {low if low < 0 else high} at 'blocks.{self.site.index}.mlp.hook_expert_indices' does not "
                f"exist; allowed: 0 to {self.site.n_experts - 1}"
            )

    def on_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.listens():
            return None
        names = ("hidden_states", "top_k_index", "top_k_weights")
        hidden, indices, weights = (*args, *(kwargs[n] for n in names[len(args) :]))
        rest = {k: v for k, v in kwargs.items() if k not in names}
        return (hidden, *self.choose(indices, weights)), rest

    # What leaves the block

    def on_block(self, module: nn.Module, args: Any, output: Any) -> Any:
        point = self.points.hook_out
        if not listening(point):
            return None
        return replace_first(output, self.fire_rows(point, first(output)))

    def on_shared(self, module: nn.Module, args: Any, output: Any) -> Any:
        point = self.points.shared.hook_out
        return self.fire_rows(point, output.clone()) if listening(point) else None  # Llama 4 adds to it in place

    def fire_rows(self, point: Any, output: Tensor) -> Tensor:
        """Fire a point with `[batch, pos, d_model]`; some blocks work on flat tokens."""
        if output.ndim == 3:
            return fire(point, output)[0]
        rows = output.reshape(self.grid.batch * self.grid.pos, -1)
        shown, _ = fire(point, rows.reshape(*self.grid.shape(len(rows)), -1))
        return shown.reshape(output.shape)


def first(output: Any) -> Tensor:
    """The hidden states of a module that returns them alone or first in a tuple."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def replace_first(output: Any, tensor: Tensor) -> Any:
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


@dataclass
class Residual:
    """Connects one decoder layer with `hook_resid_pre`, `hook_resid_mid` and `hook_resid_post`.

    Layers keep a second reference to the stream between attention and MLP, so an edit in the middle is written into
    the stream's own memory, before the norm that reads it.
    """

    points: Any
    handles: list[Any] = field(default_factory=list)

    def attach(self, layer: nn.Module, norm: nn.Module | None, dense: nn.Module | None) -> None:
        self.handles = [
            layer.register_forward_pre_hook(self.before, with_kwargs=True),
            layer.register_forward_hook(self.after),
        ]
        if norm is not None:
            self.handles.append(norm.register_forward_pre_hook(self.middle))
        if dense is not None:
            self.handles.append(dense.register_forward_hook(self.on_dense))

    def detach(self) -> None:
        while self.handles:
            self.handles.pop().remove()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        point = getattr(self.points, "hook_resid_pre", None)
        if not listening(point):
            return None
        if args:
            return (fire(point, args[0])[0], *args[1:]), kwargs
        return args, kwargs | {"hidden_states": fire(point, kwargs["hidden_states"])[0]}

    def middle(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        point = getattr(self.points, "hook_resid_mid", None)
        if listening(point):
            args[0].copy_(fire(point, args[0].clone())[0])

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        point = getattr(self.points, "hook_resid_post", None)
        return replace_first(output, fire(point, first(output))[0]) if listening(point) else None

    def on_dense(self, module: nn.Module, args: Any, output: Any) -> Any:
        point = self.points.mlp.hook_out
        return replace_first(output, fire(point, first(output))[0]) if listening(point) else None
