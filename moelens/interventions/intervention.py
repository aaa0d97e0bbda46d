"""`Intervention`: one operation on some experts, and the TransformerLens hooks that do it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from moelens.errors import CheckError, MoeLensError, UnknownNameError, unknown
from moelens.interventions.token_masks import Phase, TokenSelector, token_mask
from moelens.japanese.families import require_label, text_labels
from moelens.texts import Texts

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_Hooks = list[tuple[str, Callable[..., Any]]]

# Beyond any score, and still finite, so that sums over a group stay numbers; a forced expert outweighs a barred one.
_FORCED, _BARRED = torch.finfo(torch.float32).max / 4, -torch.finfo(torch.float32).max / 8
_REMOVAL = re.compile(r"^remove (E\d+(?:, E\d+)*) in layer (\d+)")
_ON_SELECTION = ("reroute", "force", "shift")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Intervention:
    """One operation on some experts of a layer, at some tokens. Made by `remove`, `reroute`, `force` and others.

    Attributes:
        operation: name of the function that made it.
        layer: number of the layer; None for every layer with experts (`patch_routes`, `patch_outputs`, `replay`).
        experts: their ids, or "shared"; empty for all.
        at: the tokens at which it acts, see `moelens.interventions.token_masks.TokenSelector`; None for all.
        phase: "prefill" (the prompt), "generation" (what `generate` adds), or "all".
        value: the factor of `scale` or the strength of `shift`.
        source: what another run computed, by hook name, for the operations that patch.
    """

    operation: str
    layer: int | None
    experts: tuple[int, ...] | Literal["shared"]
    at: TokenSelector = None
    phase: Phase = "all"
    value: float = 0.0
    source: Mapping[str, Tensor] | None = None

    def hooks(self, model: HookedMoE) -> _Hooks:
        """Return the hooks that do it, for `model.hooks` or `run_with_hooks`; `model.intervene` calls this itself.

        Args:
            model: the hooked model.

        Returns:
            `[(hook_name, function), …]`.

        Raises:
            UnknownNameError: a layer, expert or label does not exist.
            MoeLensError: the operation needs the router replayed, and the router of this model cannot be replayed.

        Example:
            >>> [name for name, _ in moelens.remove(layer=3, experts=[5]).hooks(demo_model)]
            ['blocks.3.mlp.hook_expert_weights']
        """
        self.require(model)
        layers = model.shape.moe_layers if self.layer is None else (self.layer,)
        return [hook for layer in layers for hook in _BUILDERS[self.operation](self, model, layer)]

    def with_experts(self, layer: int, experts: Sequence[int]) -> Intervention:
        """Return the same operation on other experts, for controls.

        Args:
            layer: number of the layer.
            experts: ids of the experts.

        Example:
            >>> moelens.remove(layer=3, experts=[5]).with_experts(4, [7])
            remove E7 in layer 4
        """
        return replace(self, layer=layer, experts=tuple(experts))

    def require(self, model: HookedMoE) -> None:
        """Check that a model can do it.

        Args:
            model: the model; before it is loaded, anything with its `shape`, its `name` and what it `refused`.

        Raises:
            UnknownNameError: a layer, expert or label does not exist.
            MoeLensError: the operation needs the router replayed, and the router of this model cannot be replayed.
        """
        shape = model.shape
        if self.layer is not None and self.layer not in shape.moe_layers:
            raise unknown("layer", self.layer, shape.moe_layers, f"layers of {model.name!r} with experts")
        if isinstance(self.at, str):
            require_label(self.at, text_labels())
        if self.experts == "shared":
            self._require_shared(model)
            return
        for expert in self.experts:
            if not 0 <= expert < shape.n_experts:
                raise UnknownNameError(
                    f"expected experts from 0 to {shape.n_experts - 1}, got {expert}; give an expert of {model.name!r}"
                )
        if self.operation in _ON_SELECTION:
            name = f"blocks.{self.layer}.mlp.hook_router_biased"
            if name in model.refused:
                raise MoeLensError(
                    f"expected a router that can be replayed for {self.operation}, got one that cannot in layer "
                    f"{self.layer}: {model.refused[name]}; use remove, remove_renorm, scale, swap or patch_routes"
                )

    def _require_shared(self, model: HookedMoE) -> None:
        if model.shape.n_shared == 0:
            raise MoeLensError(
                f"expected a model with a shared expert, got {model.name!r}, which has none; give ids of routed experts"
            )
        if self.operation not in ("remove", "scale", "patch_outputs"):
            raise MoeLensError(
                f"expected ids of routed experts for {self.operation}, got 'shared': every token uses the shared "
                "expert, and the router gives it no weight; use remove, scale or patch_outputs"
            )

    def __str__(self) -> str:
        experts = "shared expert" if self.experts == "shared" else ", ".join(f"E{e}" for e in self.experts)
        parts = [
            self.operation,
            f"by {self.value:g}" if self.operation in ("scale", "shift") else "",
            experts,
            "in all layers" if self.layer is None else f"in layer {self.layer}",
            f"at {self.at}" if isinstance(self.at, str) else "at some tokens" if self.at is not None else "",
            f"in {self.phase}" if self.phase != "all" else "",
        ]
        return " ".join(part for part in parts if part)

    __repr__ = __str__


def intervention_names(names: Sequence[str], lang: str | Texts = "en") -> str:
    """Return interventions in words, as results keep them, in one phrase; in Japanese only removals are translated.

    Example:
        >>> intervention_names(["remove E5, E9 in layer 3", "scale by 2 E1 in layer 3"], "ja")
        '層3のE5, E9を除去 + scale by 2 E1 in layer 3'
    """
    say = Texts(lang)
    return " + ".join(_REMOVAL.sub(lambda m: say("intervention.remove", experts=m[1], layer=m[2]), n) for n in names)


def _hook_name(layer: int, point: str) -> str:
    return f"blocks.{layer}.mlp.{point}"


def _masked(i: Intervention, model: HookedMoE, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    """Return a hook function that applies `edit` at the tokens of the intervention."""

    def function(tensor: Tensor, hook: Any) -> Tensor:
        mask = token_mask(model, i.at, i.phase)
        if mask is None:
            return edit(tensor)
        if not mask.any():
            return tensor
        mask = mask.to(tensor.device).reshape(*mask.shape, *[1] * (tensor.ndim - 2))
        return torch.where(mask, edit(tensor), tensor)

    return function


def _edit_weights(i: Intervention, model: HookedMoE, layer: int) -> _Hooks:
    """Build `remove`, `remove_renorm`, `scale` and `swap`, on the weights by expert `[batch, pos, expert]`."""
    experts: list[int] = [] if i.experts == "shared" else list(i.experts)

    def edit(weights: Tensor) -> Tensor:
        new = weights.clone()
        if i.operation == "swap":
            new[..., experts] = weights[..., experts[::-1]]
            return new
        new[..., experts] *= i.value  # 0 for removal
        if i.operation == "remove_renorm":
            left = new.sum(-1, keepdim=True)
            new = torch.where(left != 0, new * (weights.sum(-1, keepdim=True) / left), new)
        return new

    if i.experts == "shared":
        return [(_hook_name(layer, "shared.hook_out"), _masked(i, model, lambda output: output * i.value))]
    return [(_hook_name(layer, "hook_expert_weights"), _masked(i, model, edit))]


def _edit_selection(i: Intervention, model: HookedMoE, layer: int) -> _Hooks:
    """Build `reroute`, `force` and `shift`, on the biased scores `[batch, pos, expert]`, before groups are chosen."""
    rule, experts = model.rules[layer], [int(e) for e in i.experts]

    def edit(biased: Tensor) -> Tensor:
        new = biased.clone()
        if i.operation == "shift":
            new[..., experts] += i.value
        else:
            new[..., experts] = _FORCED if i.operation == "force" else _BARRED
        return new

    masked = _masked(i, model, edit)

    def function(biased: Tensor, hook: Any) -> Tensor:
        new = masked(biased, hook)
        edited = new[(new != biased).any(-1)]
        if not len(edited):
            return biased
        chosen = torch.isin(rule.indices(rule.selection(edited)), torch.tensor(experts, device=new.device)).sum(-1)
        if i.operation == "force" and (chosen < len(experts)).any():
            groups = f" from {rule.kept_groups} groups" if rule.groups > 1 else ""
            raise MoeLensError(
                f"expected experts that fit into the {rule.top_k} experts{groups} of a token, got '{i}'; force fewer"
            )
        if i.operation == "reroute" and chosen.any():
            raise MoeLensError(
                f"expected {rule.top_k} or more other experts for each token, got fewer after '{i}'; reroute fewer"
            )
        return new

    return [(_hook_name(layer, "hook_router_biased"), function)]


def _from_source(i: Intervention, layer: int, point: str, like: Tensor, start: int) -> Tensor:
    """Return the source's values at the running tokens `[batch, pos, …]`, fewer positions if the source ends first."""
    assert i.source is not None
    name = _hook_name(layer, point)
    try:
        values = i.source[name].to(like.device)
    except KeyError as error:
        raise MoeLensError(
            f"expected a source with '{name}' for {i.operation}, got one without; cache this hook point as well"
        ) from error
    if len(values) not in (1, len(like)):
        raise CheckError(
            f"expected a source of 1 or {len(like)} sequences for {i.operation}, got {len(values)}; "
            "run the source on as many"
        )
    part = values[:, start : start + like.shape[1]]
    return part.expand(len(like), *part.shape[1:])


def _patch_route_hooks(i: Intervention, model: HookedMoE, layer: int) -> _Hooks:
    """Build `patch_routes` and `replay`, on the weights by expert `[batch, pos, expert]`."""

    def edit(weights: Tensor) -> Tensor:
        indices = _from_source(i, layer, "hook_expert_indices", weights, model.running.start).long()
        slots = _from_source(i, layer, "hook_topk_weights", weights, model.running.start).to(weights.dtype)
        own = weights[:, : indices.shape[1]]
        routes = torch.zeros_like(own).scatter_add(-1, indices.clamp(min=0), slots)
        recorded = (indices >= 0).all(-1, keepdim=True)
        return torch.cat([torch.where(recorded, routes, own), weights[:, indices.shape[1] :]], 1)

    return [(_hook_name(layer, "hook_expert_weights"), _masked(i, model, edit))]


def _patch_output_hooks(i: Intervention, model: HookedMoE, layer: int) -> _Hooks:
    """Build `patch_outputs`, on the outputs by slot `[batch, pos, k, d_model]` or of the shared expert."""
    point = "shared.hook_out" if i.experts == "shared" else "experts.hook_out"

    def edit(outputs: Tensor) -> Tensor:
        source = _from_source(i, layer, point, outputs, model.running.start).to(outputs.dtype)
        n = source.shape[1]
        if i.experts != "shared":
            ours = model.running.slots[layer][:, :n]
            theirs = _from_source(i, layer, "hook_expert_indices", outputs, model.running.start)
            same = ours.unsqueeze(-1) == theirs.unsqueeze(-2)  # [batch, pos, own slot, source slot]
            if i.experts:
                same &= torch.isin(ours, torch.tensor(i.experts, device=ours.device)).unsqueeze(-1)
            slot = same.int().argmax(-1, keepdim=True).expand(*ours.shape, outputs.shape[-1])
            source = torch.where(same.any(-1, keepdim=True), source.gather(2, slot), outputs[:, :n])
        return torch.cat([source, outputs[:, n:]], 1)

    return [(_hook_name(layer, point), _masked(i, model, edit))]


_BUILDERS: dict[str, Callable[[Intervention, HookedMoE, int], _Hooks]] = {
    **dict.fromkeys(("remove", "remove_renorm", "scale", "swap"), _edit_weights),
    **dict.fromkeys(_ON_SELECTION, _edit_selection),
    **dict.fromkeys(("patch_routes", "replay"), _patch_route_hooks),
    "patch_outputs": _patch_output_hooks,
}
