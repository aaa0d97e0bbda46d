"""The operations on experts, each a value that says what it does and gives TransformerLens hooks that do it.

Four of them look alike and are not: `remove` leaves the routing as it is and takes away what the expert adds, which is
its direct effect; `remove_renorm` gives its weight to the other chosen experts; `reroute` lets the router choose again
without it, another model, in which removal and replacement cannot be told apart; `force` puts it among the chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from moelens.errors import CheckError, MoeLensError, UnknownNameError, unknown
from moelens.interventions.sources import recorded
from moelens.interventions.where import At, Phase, token_mask
from moelens.japanese.families import require_label, text_labels

Hooks = list[tuple[str, Callable[..., Any]]]
Edit = Callable[[Tensor, Any], Tensor]
Experts = Sequence[int] | Literal["shared"]

# Beyond any score, and still finite, so that sums over a group stay numbers; a forced expert outweighs a barred one.
FORCED, BARRED = torch.finfo(torch.float32).max / 4, -torch.finfo(torch.float32).max / 8
ON_SELECTION = ("reroute", "force", "steer")
ON_WEIGHTS = "remove, remove_renorm, scale, swap and patch_routes"


@dataclass(frozen=True, eq=False, repr=False)
class Intervention:
    """One operation on some experts of a layer, at some tokens. Made by `remove`, `reroute`, `force`…

    Attributes:
        operation: the name of the function that made it.
        layer: number of the layer; None for every layer with experts (`patch_routes`, `patch_outputs`, `replay`).
        experts: their ids, or "shared"; empty for all.
        at: the tokens it acts at, see `moelens.interventions.where.At`; None for all.
        phase: "prefill" (the prompt), "generation" (what `generate` adds), or "all".
        value: the factor of `scale`, the strength of `steer`.
        source: by hook name, what another run computed, for the operations that patch.
    """

    operation: str
    layer: int | None
    experts: tuple[int, ...] | Literal["shared"]
    at: At = None
    phase: Phase = "all"
    value: float = 0.0
    source: Mapping[str, Tensor] | None = None

    def hooks(self, model: Any) -> Hooks:
        """`[(hook_name, function), …]` for `model.hooks` or `run_with_hooks`; `model.intervene` does it for you.

        Raises:
            UnknownNameError: a layer, expert or label that does not exist.
            MoeLensError: the model's router cannot be replayed and the operation needs that, by name.
        """
        self._require(model)
        layers = model.shape.moe_layers if self.layer is None else (self.layer,)
        return [pair for layer in layers for pair in BUILDERS[self.operation](self, model, layer)]

    def with_experts(self, layer: int, experts: Sequence[int]) -> Intervention:
        """The same operation on other experts, as controls need it."""
        return replace(self, layer=layer, experts=tuple(experts))

    def _require(self, model: Any) -> None:
        shape = model.shape
        if self.layer is not None and self.layer not in shape.moe_layers:
            raise unknown("layer", self.layer, shape.moe_layers, f"layers of {model.name!r} with experts")
        if isinstance(self.at, str):
            require_label(self.at, text_labels())
        if self.experts == "shared":
            if shape.n_shared == 0:
                raise MoeLensError(f"{model.name!r} has no shared expert; give ids of routed experts")
            if self.operation not in ("remove", "scale", "patch_outputs"):
                raise MoeLensError(
                    f"{self.operation} cannot act on the shared expert, which every token passes and no router weighs; "
                    "use remove, scale or patch_outputs"
                )
            return
        for expert in self.experts:
            if not 0 <= expert < shape.n_experts:
                raise UnknownNameError(f"unknown expert {expert}; allowed: 0 to {shape.n_experts - 1}")
        if self.operation in ON_SELECTION:
            name = f"blocks.{self.layer}.mlp.hook_router_biased"
            if name in model.refused:
                raise MoeLensError(
                    f"{self.operation} needs the router of layer {self.layer} replayed, and {model.refused[name]}; "
                    f"{ON_WEIGHTS} work without"
                )

    def __str__(self) -> str:
        experts = "shared expert" if self.experts == "shared" else ", ".join(f"E{e}" for e in self.experts)
        parts = [
            self.operation,
            f"by {self.value:g}" if self.operation in ("scale", "steer") else "",
            experts,
            "in all layers" if self.layer is None else f"in layer {self.layer}",
            f"at {self.at}" if isinstance(self.at, str) else "at some tokens" if self.at is not None else "",
            f"in {self.phase}" if self.phase != "all" else "",
        ]
        return " ".join(part for part in parts if part)

    __repr__ = __str__


def _named(operation: str, layer: int, experts: Experts, at: At, phase: Phase, value: float = 0.0) -> Intervention:
    chosen: tuple[int, ...] | Literal["shared"] = "shared"
    if isinstance(experts, str):
        if experts != "shared":
            raise MoeLensError(f"experts are {experts!r}; allowed: a list of ids, such as [5, 9], or 'shared'")
    else:
        chosen = tuple(int(e) for e in experts)
        if not chosen or len(set(chosen)) < len(chosen):
            raise MoeLensError(f"experts are {list(chosen)}; give at least one id, each once, such as [5, 9]")
    if phase not in ("all", "prefill", "generation"):
        raise unknown("phase", phase, ("all", "prefill", "generation"))
    return Intervention(operation, layer, chosen, at, phase, value)


def remove(layer: int, experts: Experts, *, at: At = None, phase: Phase = "all") -> Intervention:
    """The experts' gate weight becomes 0; the routing and the other weights stay. "shared": its output becomes 0."""
    return _named("remove", layer, experts, at, phase)


def remove_renorm(layer: int, experts: Experts, *, at: At = None, phase: Phase = "all") -> Intervention:
    """As `remove`, and the weights of the other chosen experts grow so that a token's weights sum to what they did."""
    return _named("remove_renorm", layer, experts, at, phase)


def reroute(layer: int, experts: Experts, *, at: At = None, phase: Phase = "all") -> Intervention:
    """The experts are barred, after the selection bias is added, and groups and experts are chosen again."""
    return _named("reroute", layer, experts, at, phase)


def force(layer: int, experts: Experts, *, at: At = None, phase: Phase = "all") -> Intervention:
    """The experts, and the groups they are in, are chosen; the router's own choice fills the other slots.

    Their weights are what the router's rule gives them: in DeepSeek-V3 the unbiased sigmoid, normalised and scaled.
    """
    return _named("force", layer, experts, at, phase)


def scale(layer: int, experts: Experts, factor: float, *, at: At = None, phase: Phase = "all") -> Intervention:
    """The experts' gate weight, where they are chosen, times `factor`. "shared": its output times `factor`."""
    return _named("scale", layer, experts, at, phase, factor)


def swap(layer: int, first: int, second: int, *, at: At = None, phase: Phase = "all") -> Intervention:
    """Tokens routed to one of two experts go to the other, with the weight they had; a token of both swaps weights."""
    return _named("swap", layer, (first, second), at, phase)


def steer(layer: int, experts: Experts, strength: float, *, at: At = None, phase: Phase = "all") -> Intervention:
    """`strength` is added to the experts' selection score (after the bias), softer than `force` or `reroute`.

    The unit is the router's: sigmoid and softmax scores lie between 0 and 1, so 0.1 is much; weights come from the
    scores as they were.
    """
    return _named("steer", layer, experts, at, phase, strength)


def patch_routes(
    source: Mapping[str, Tensor], layer: int | None = None, *, at: At = None, phase: Phase = "all"
) -> Intervention:
    """Chosen experts and weights are those of another run, at the same positions.

    Args:
        source: by hook name, `hook_expert_indices` and `hook_topk_weights` `[batch, pos, k]`, such as the cache of
            `run_with_cache`. Positions beyond its end keep their routes.
        layer: one layer, or None for all with experts.
    """
    return Intervention("patch_routes", layer, (), at, phase, source=source)


def patch_outputs(
    source: Mapping[str, Tensor],
    layer: int | None = None,
    experts: Experts = (),
    *,
    at: At = None,
    phase: Phase = "all",
) -> Intervention:
    """Experts' outputs are those of another run, where that run chose the same expert at the same position.

    Gate weights stay; after `patch_routes` from the same source every chosen expert is patched.

    Args:
        source: by hook name, `hook_expert_indices` `[batch, pos, k]` and `experts.hook_out` `[batch, pos, k, d_model]`
            (for "shared": `shared.hook_out` `[batch, pos, d_model]`), such as the cache of `run_with_cache`.
        experts: their ids, none for all, or "shared".
    """
    chosen: tuple[int, ...] | Literal["shared"] = "shared" if experts == "shared" else tuple(map(int, experts))
    return Intervention("patch_outputs", layer, chosen, at, phase, source=source)


def replay(recording: Any, docs: Sequence[int] = (0,), *, at: At = None) -> Intervention:
    """Every layer's routes are those of a recording, whose documents `docs` are the sequences that run, in this order.

    Recordings keep weights as float16. Gate weights beyond a document's last token are left as they are.

    Raises:
        UnknownNameError: a document that the recording does not have.
    """
    return Intervention("replay", None, (), at, source=recorded(recording, docs))


BY_NAME: dict[str, Callable[..., Intervention]] = {
    f.__name__: f for f in (remove, remove_renorm, reroute, force, scale, swap, steer)
}
"""The operations on experts of one layer, by name."""


def named(operation: str, layer: int, experts: Experts, value: float | None = None, **where: Any) -> Intervention:
    """The operation of this name; `value` is the factor of `scale` or the strength of `steer`.

    >>> named("scale", 3, [5], 0.5)
    scale by 0.5 E5 in layer 3
    """
    if operation not in BY_NAME:
        raise unknown("operation", operation, BY_NAME)
    if (value is not None) != (operation in ("scale", "steer")):
        raise MoeLensError(f"{operation} {'needs a value' if value is None else f'takes no value, and got {value}'}")
    if operation == "swap" and len(experts) != 2:
        raise MoeLensError(f"swap takes two experts, and got {list(experts)}")
    arguments = experts if operation == "swap" else (experts,)
    return BY_NAME[operation](layer, *arguments, *(() if value is None else (value,)), **where)


# How each is done


def _at(layer: int, point: str) -> str:
    return f"blocks.{layer}.mlp.{point}"


def _masked(i: Intervention, model: Any, edit: Callable[[Tensor], Tensor]) -> Edit:
    """A hook function that applies `edit` at the tokens of the intervention."""

    def function(tensor: Tensor, hook: Any) -> Tensor:
        mask = token_mask(model, i.at, i.phase)
        if mask is None:
            return edit(tensor)
        if not mask.any():
            return tensor
        mask = mask.to(tensor.device).reshape(*mask.shape, *[1] * (tensor.ndim - 2))
        return torch.where(mask, edit(tensor), tensor)

    return function


def _on_weights(i: Intervention, model: Any, layer: int) -> Hooks:
    """`remove`, `remove_renorm`, `scale` and `swap`, on the weights by expert `[batch, pos, expert]`."""
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
        return [(_at(layer, "shared.hook_out"), _masked(i, model, lambda output: output * i.value))]
    return [(_at(layer, "hook_expert_weights"), _masked(i, model, edit))]


def _on_selection(i: Intervention, model: Any, layer: int) -> Hooks:
    """`reroute`, `force` and `steer`, on the biased scores `[batch, pos, expert]`, before groups are chosen."""
    rule, experts = model.rules[layer], [int(e) for e in i.experts]

    def edit(biased: Tensor) -> Tensor:
        new = biased.clone()
        if i.operation == "steer":
            new[..., experts] += i.value
        else:
            new[..., experts] = FORCED if i.operation == "force" else BARRED
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
                f"{i}: a token has {rule.top_k} experts{groups}, and not room for all of these; force fewer"
            )
        if i.operation == "reroute" and chosen.any():
            raise MoeLensError(f"{i}: fewer than {rule.top_k} other experts are left to a token; reroute fewer")
        return new

    return [(_at(layer, "hook_router_biased"), function)]


def _from_source(i: Intervention, layer: int, point: str, like: Tensor, start: int) -> Tensor:
    """The source's values at the running tokens, `[batch, pos, …]`, of fewer positions where it ends before them."""
    assert i.source is not None
    name = _at(layer, point)
    try:
        found = i.source[name].to(like.device)
    except KeyError as error:
        raise MoeLensError(
            f"{i.operation} needs '{name}', which its source does not hold; cache that as well"
        ) from error
    if len(found) not in (1, len(like)):
        raise CheckError(f"{i.operation}: a source of {len(found)} sequences for {len(like)}; run as many")
    part = found[:, start : start + like.shape[1]]
    return part.expand(len(like), *part.shape[1:])


def _patch_routes(i: Intervention, model: Any, layer: int) -> Hooks:
    def edit(weights: Tensor) -> Tensor:
        indices = _from_source(i, layer, "hook_expert_indices", weights, model.running.start).long()
        slots = _from_source(i, layer, "hook_topk_weights", weights, model.running.start).to(weights.dtype)
        here = weights[:, : indices.shape[1]]
        routes = torch.zeros_like(here).scatter_add(-1, indices.clamp(min=0), slots)
        recorded = (indices >= 0).all(-1, keepdim=True)
        return torch.cat([torch.where(recorded, routes, here), weights[:, indices.shape[1] :]], 1)

    return [(_at(layer, "hook_expert_weights"), _masked(i, model, edit))]


def _patch_outputs(i: Intervention, model: Any, layer: int) -> Hooks:
    point = "shared.hook_out" if i.experts == "shared" else "experts.hook_out"

    def edit(outputs: Tensor) -> Tensor:
        source = _from_source(i, layer, point, outputs, model.running.start).to(outputs.dtype)
        n = source.shape[1]
        if i.experts != "shared":
            ours = model.running.slots[layer][:, :n]
            theirs = _from_source(i, layer, "hook_expert_indices", outputs, model.running.start)
            same = ours.unsqueeze(-1) == theirs.unsqueeze(-2)  # [batch, pos, slot here, slot there]
            if i.experts:
                same &= torch.isin(ours, torch.tensor(i.experts, device=ours.device)).unsqueeze(-1)
            slot = same.int().argmax(-1, keepdim=True).expand(*ours.shape, outputs.shape[-1])
            source = torch.where(same.any(-1, keepdim=True), source.gather(2, slot), outputs[:, :n])
        return torch.cat([source, outputs[:, n:]], 1)

    return [(_at(layer, point), _masked(i, model, edit))]


BUILDERS: dict[str, Callable[[Intervention, Any, int], Hooks]] = {
    **dict.fromkeys(("remove", "remove_renorm", "scale", "swap"), _on_weights),
    **dict.fromkeys(ON_SELECTION, _on_selection),
    **dict.fromkeys(("patch_routes", "replay"), _patch_routes),
    "patch_outputs": _patch_outputs,
}
