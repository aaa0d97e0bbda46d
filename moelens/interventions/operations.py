"""The operations on experts, each a function that makes an `Intervention`.

Four of them are similar but differ in what they do to the routing:

- `remove` keeps the routing and takes away what the expert adds: its direct effect.
- `remove_renorm` gives the expert's weight to the other chosen experts.
- `reroute` lets the router choose again without the expert. The model then computes something else, so the effects of
  removal and of replacement cannot be distinguished.
- `force` puts the expert among the chosen ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from moelens.errors import MoeLensError, unknown
from moelens.interventions.intervention import Intervention
from moelens.interventions.recorded_routes import recorded_tensors
from moelens.interventions.token_masks import Phase, TokenSelector

if TYPE_CHECKING:
    from moelens.recording import Recording

Experts = Sequence[int] | Literal["shared"]
_PHASES = ("all", "prefill", "generation")


def _intervention(
    operation: str, layer: int, experts: Experts, at: TokenSelector, phase: Phase, value: float = 0.0
) -> Intervention:
    """Make an operation on experts of one layer, after a check of its arguments."""
    chosen: tuple[int, ...] | Literal["shared"] = "shared"
    if isinstance(experts, str):
        if experts != "shared":
            raise MoeLensError(f"expected a list of expert ids or 'shared', got {experts!r}; give ids such as [5, 9]")
    else:
        chosen = tuple(int(e) for e in experts)
        if not chosen or len(set(chosen)) < len(chosen):
            raise MoeLensError(
                f"expected different expert ids, one or more, got {list(chosen)}; give some such as [5, 9]"
            )
    if phase not in _PHASES:
        raise unknown("phase", phase, _PHASES)
    if not math.isfinite(value):
        raise MoeLensError(f"expected a finite value for {operation}, got {value}; give a number such as 0.5")
    return Intervention(operation=operation, layer=layer, experts=chosen, at=at, phase=phase, value=value)


def remove(layer: int, experts: Experts, *, at: TokenSelector = None, phase: Phase = "all") -> Intervention:
    """Set the gate weight of the experts to 0; the routing and the other weights stay as they are.

    Args:
        layer: number of the layer.
        experts: ids of routed experts, or "shared", whose output is then set to 0.
        at: the tokens at which to act: a bool mask `[pos]` or `[batch, pos]`, a label such as "尊敬語", or a function
            of the model and the token ids; None for all.
        phase: "prefill" (the prompt), "generation" (what `generate` adds), or "all".

    Raises:
        MoeLensError: no experts are given, or one is given twice.
        UnknownNameError: there is no such phase.

    Example:
        >>> remove(layer=3, experts=[5, 9])
        remove E5, E9 in layer 3
    """
    return _intervention("remove", layer, experts, at, phase)


def remove_renorm(layer: int, experts: Experts, *, at: TokenSelector = None, phase: Phase = "all") -> Intervention:
    """Set the gate weight of the experts to 0, and raise the other weights so that their sum stays the same.

    Args:
        layer: number of the layer.
        experts: ids of routed experts.
        at: the tokens at which to act, see `remove`.
        phase: the phase in which to act, see `remove`.

    Raises:
        MoeLensError: no experts are given, or one is given twice.
        UnknownNameError: there is no such phase.

    Example:
        >>> remove_renorm(layer=3, experts=[5, 9])
        remove_renorm E5, E9 in layer 3
    """
    return _intervention("remove_renorm", layer, experts, at, phase)


def reroute(layer: int, experts: Experts, *, at: TokenSelector = None, phase: Phase = "all") -> Intervention:
    """Bar the experts after the selection bias is added, and let the router choose groups and experts again.

    Args:
        layer: number of the layer.
        experts: ids of routed experts.
        at: the tokens at which to act, see `remove`.
        phase: the phase in which to act, see `remove`.

    Raises:
        MoeLensError: no experts are given, or one is given twice.
        UnknownNameError: there is no such phase.

    Example:
        >>> reroute(layer=3, experts=[5])
        reroute E5 in layer 3
    """
    return _intervention("reroute", layer, experts, at, phase)


def force(layer: int, experts: Experts, *, at: TokenSelector = None, phase: Phase = "all") -> Intervention:
    """Choose the experts and the groups they are in; the router's own choice fills the other slots.

    The experts get the weights that the router's rule gives them: in DeepSeek-V3 the sigmoid without bias, normalised
    and scaled.

    Args:
        layer: number of the layer.
        experts: ids of routed experts.
        at: the tokens at which to act, see `remove`.
        phase: the phase in which to act, see `remove`.

    Raises:
        MoeLensError: no experts are given, or one is given twice.
        UnknownNameError: there is no such phase.

    Example:
        >>> force(layer=3, experts=[5])
        force E5 in layer 3
    """
    return _intervention("force", layer, experts, at, phase)


def scale(
    layer: int, experts: Experts, factor: float, *, at: TokenSelector = None, phase: Phase = "all"
) -> Intervention:
    """Multiply the gate weight of the experts where they are chosen.

    Args:
        layer: number of the layer.
        experts: ids of routed experts, or "shared", whose output is then multiplied.
        factor: the factor.
        at: the tokens at which to act, see `remove`.
        phase: the phase in which to act, see `remove`.

    Raises:
        MoeLensError: no experts are given, or one is given twice; or the factor is not finite.
        UnknownNameError: there is no such phase.

    Example:
        >>> scale(layer=3, experts=[5, 9], factor=0.5)
        scale by 0.5 E5, E9 in layer 3
    """
    return _intervention("scale", layer, experts, at, phase, factor)


def swap(layer: int, first: int, second: int, *, at: TokenSelector = None, phase: Phase = "all") -> Intervention:
    """Route the tokens of each of two experts to the other, with the same weight; tokens of both swap the weights.

    Args:
        layer: number of the layer.
        first: id of one expert.
        second: id of the other expert.
        at: the tokens at which to act, see `remove`.
        phase: the phase in which to act, see `remove`.

    Raises:
        MoeLensError: the two are the same.
        UnknownNameError: there is no such phase.

    Example:
        >>> swap(layer=3, first=5, second=9)
        swap E5, E9 in layer 3
    """
    return _intervention("swap", layer, (first, second), at, phase)


def shift(
    layer: int, experts: Experts, strength: float, *, at: TokenSelector = None, phase: Phase = "all"
) -> Intervention:
    """Add `strength` to the selection score of the experts, after the bias; a softer form of `force` and `reroute`.

    Weights are computed from the unchanged scores.

    Args:
        layer: number of the layer.
        experts: ids of routed experts.
        strength: what to add, in the unit of the router's scores. Sigmoid and softmax scores are between 0 and 1, so
            0.1 is large.
        at: the tokens at which to act, see `remove`.
        phase: the phase in which to act, see `remove`.

    Raises:
        MoeLensError: no experts are given, or one is given twice; or the strength is not finite.
        UnknownNameError: there is no such phase.

    Example:
        >>> shift(layer=3, experts=[5], strength=0.1)
        shift by 0.1 E5 in layer 3
    """
    return _intervention("shift", layer, experts, at, phase, strength)


def patch_routes(
    source: Mapping[str, Tensor], layer: int | None = None, *, at: TokenSelector = None, phase: Phase = "all"
) -> Intervention:
    """Use the chosen experts and the gate weights of another run, at the same positions.

    Args:
        source: `hook_expert_indices` and `hook_topk_weights` `[batch, pos, k]` by hook name, such as the cache of
            `run_with_cache`. Positions after its end keep their routes.
        layer: number of the layer; None for all layers with experts.
        at: the tokens at which to act, see `remove`.
        phase: the phase in which to act, see `remove`.

    Example:
        >>> _, source = demo_model.run_with_cache("明日は学校へ行く。")
        >>> with demo_model.intervene(patch_routes(source)):
        ...     logits = demo_model("明日は学校へ行きます。")
    """
    return Intervention(operation="patch_routes", layer=layer, experts=(), at=at, phase=phase, source=source)


def patch_outputs(
    source: Mapping[str, Tensor],
    layer: int | None = None,
    experts: Experts = (),
    *,
    at: TokenSelector = None,
    phase: Phase = "all",
) -> Intervention:
    """Use the experts' outputs of another run, where that run chose the same expert at the same position.

    Gate weights stay as they are. After `patch_routes` from the same source, the output of every chosen expert is
    replaced.

    Args:
        source: `hook_expert_indices` `[batch, pos, k]` and `experts.hook_out` `[batch, pos, k, d_model]` by hook name
            (for "shared": `shared.hook_out` `[batch, pos, d_model]`), such as the cache of `run_with_cache`.
        layer: number of the layer; None for all layers with experts.
        experts: ids of routed experts, empty for all, or "shared".
        at: the tokens at which to act, see `remove`.
        phase: the phase in which to act, see `remove`.

    Example:
        >>> _, source = demo_model.run_with_cache("明日は学校へ行く。")
        >>> with demo_model.intervene(patch_routes(source), patch_outputs(source, layer=3)):
        ...     logits = demo_model("明日は学校へ行きます。")
    """
    chosen: tuple[int, ...] | Literal["shared"] = "shared" if experts == "shared" else tuple(map(int, experts))
    return Intervention(operation="patch_outputs", layer=layer, experts=chosen, at=at, phase=phase, source=source)


def replay(recording: Recording, docs: Sequence[int] = (0,), *, at: TokenSelector = None) -> Intervention:
    """Use the routes of a recording in every layer.

    Recordings keep weights as float16. Positions after the last token of a document keep their weights.

    Args:
        recording: a recording with routes and weights.
        docs: numbers of the documents that run, in this order.
        at: the tokens at which to act, see `remove`.

    Raises:
        UnknownNameError: the recording does not have a document.

    Example:
        >>> replay(demo_recording, docs=[0, 1])
        replay in all layers
    """
    return Intervention(operation="replay", layer=None, experts=(), at=at, source=recorded_tensors(recording, docs))


OPERATIONS: dict[str, Callable[..., Intervention]] = {
    f.__name__: f for f in (remove, remove_renorm, reroute, force, scale, swap, shift)
}
"""The operations on experts of one layer, by name."""


def operation_by_name(
    operation: str, layer: int, experts: Experts, value: float | None = None, **options: Any
) -> Intervention:
    """Make the operation of this name.

    Args:
        operation: one of `OPERATIONS`.
        layer: number of the layer.
        experts: ids of routed experts, or "shared".
        value: the factor of `scale` or the strength of `shift`.
        **options: `at` and `phase`, see `remove`.

    Raises:
        UnknownNameError: there is no such operation.
        MoeLensError: the operation needs a value or takes none, or takes two experts.

    Example:
        >>> operation_by_name("scale", 3, [5], 0.5)
        scale by 0.5 E5 in layer 3
    """
    if operation not in OPERATIONS:
        raise unknown("operation", operation, OPERATIONS)
    if value is None and operation in ("scale", "shift"):
        raise MoeLensError(f"expected a value for {operation}, got none; give a number such as 0.5")
    if value is not None and operation not in ("scale", "shift"):
        raise MoeLensError(f"expected no value for {operation}, got {value}; leave it out")
    if operation == "swap" and len(experts) != 2:
        raise MoeLensError(f"expected two experts for swap, got {list(experts)}; give ids such as [5, 9]")
    arguments = experts if operation == "swap" else (experts,)
    return OPERATIONS[operation](layer, *arguments, *(() if value is None else (value,)), **options)
