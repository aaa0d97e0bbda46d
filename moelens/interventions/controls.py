"""Controls: sets of other experts that do as much on the texts as those that an intervention acts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moelens.analysis.arrays import Floats
from moelens.analysis.tables import number
from moelens.errors import MoeLensError
from moelens.interventions.control_search import Groups, SetSearch, members
from moelens.interventions.intervention import Intervention
from moelens.interventions.scoring import text_batches
from moelens.texts import Texts

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_LEAST_DRAWS = 20
BALANCED = 0.25
"""Largest standardised difference of balanced controls (Stuart 2010, doi 10.1214/09-STS313)."""
LayerExperts = tuple[int, tuple[int, ...]]
"""A layer's number and experts of it."""


@dataclass(frozen=True, eq=False)
class ExpertUsage:
    """How much each expert does on some texts, means over tokens, `[layer, expert]`; 0 for one that was never chosen.

    Attributes:
        layers: numbers of the layers.
        weight: routed weight, the gate weight with which it is chosen.
        norm: norm of what it adds, gate weight times output.
        load: share of the tokens for which it is chosen.
    """

    layers: tuple[int, ...]
    weight: Floats
    norm: Floats
    load: Floats

    def quantities(self) -> Floats:
        """Return what controls are matched on, `[quantity, layer, expert]`, in the order of `QUANTITIES`."""
        return np.stack([self.weight, self.norm, self.load])


QUANTITIES = ("routed weight", "output norm", "load")


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How the controls compare with the changed experts in one quantity, a sum over the experts of a set.

    Attributes:
        quantity: one of `QUANTITIES`.
        changed: of the changed experts.
        control, control_low, control_high: mean over the controls, and their range.
        difference: standardised difference, (log changed − mean log of controls) / standard deviation of the log over
            random sets of as many experts.
    """

    quantity: str
    changed: float
    control: float
    control_low: float
    control_high: float
    difference: float


def imbalance(balance: Sequence[Balance]) -> float:
    """Return the largest absolute standardised difference; NaN without controls."""
    return max((abs(b.difference) for b in balance), default=float("nan"))


def is_balanced(balance: Sequence[Balance]) -> bool:
    """Return whether the standardised difference of every quantity is at most `BALANCED`."""
    return all(abs(b.difference) <= BALANCED for b in balance)


def balance_lines(balance: Sequence[Balance], lang: str | Texts = "en") -> list[str]:
    """Return the balance in one line: each quantity with that of the controls and the standardised difference."""
    say = Texts(lang)
    parts = [
        say(
            "effects.balance",
            quantity=say.name("effects", b.quantity),
            changed=number(b.changed),
            control=number(b.control),
            low=number(b.control_low),
            high=number(b.control_high),
            difference=f"{b.difference:+.2f}",
        )
        for b in balance
    ]
    key = "effects.balanced" if is_balanced(balance) else "effects.not_balanced"
    return [say(key, listed=say("answer.comma").join(parts))] if parts else []


@torch.no_grad()
def expert_usage(model: HookedMoE, texts: Sequence[str], batch_tokens: int = 2048) -> ExpertUsage:
    """Run the model over texts and measure how much each expert does."""
    layers, n = model.shape.moe_layers, model.shape.n_experts
    sums, tokens = np.zeros((3, len(layers), n)), 0
    weights: dict[int, Tensor] = {}
    mask = torch.empty(0)

    def add(tensor: Tensor, hook: Any) -> None:
        layer = int(hook.name.split(".")[1])
        if hook.name.endswith("hook_topk_weights"):
            weights[layer] = tensor
            return
        chosen = model.running.slots[layer]
        not_padding = mask.to(chosen.device)
        experts = chosen[not_padding].flatten().cpu().numpy()
        weight = weights[layer][not_padding].double()
        added = weight.abs() * tensor[not_padding].double().norm(dim=-1)
        for i, values in enumerate((weight, added, torch.ones_like(weight))):
            sums[i, layers.index(layer)] += np.bincount(experts, weights=values.flatten().cpu().numpy(), minlength=n)

    points = [f"blocks.{layer}.mlp.{name}" for layer in layers for name in ("hook_topk_weights", "experts.hook_out")]
    with model.hooks([(name, add) for name in points]):
        for batch in text_batches(model, texts, batch_tokens):
            mask = batch.mask
            tokens += int(mask.sum())
            batch.logits(model)
    return ExpertUsage(tuple(layers), *(sums / tokens))


def control_sets(
    usage: ExpertUsage, groups: Sequence[LayerExperts], draws: int, seed: int, matched: bool = True
) -> tuple[list[tuple[LayerExperts, ...]], tuple[Balance, ...], Floats]:
    """Draw `draws` different sets of as many other experts as `groups` has.

    Matched sets are those nearest to `groups` in `QUANTITIES`, sums over the experts of a set compared as logarithms,
    among random sets and sets that a search finds by exchanging one expert at a time: with as many experts of the same
    layers, or, if these are not balanced, of any layers.

    Args:
        usage: how much all experts do.
        groups: the changed experts, by layer.
        draws: number of sets, 20 or more.
        seed: seed of the random sets.
        matched: choose the nearest; False takes any.

    Returns:
        The sets, how they compare with `groups`, and the routed weights of `groups` and of each set `[1 + set]`.

    Raises:
        MoeLensError: `draws` is below 20, or there are fewer sets of other experts than `draws`.
    """
    require_draws(draws)
    rng = np.random.default_rng(seed)
    n_experts = usage.load.shape[1]
    changed = tuple(tuple(usage.layers.index(layer) * n_experts + e for e in experts) for layer, experts in groups)
    sets: list[Groups] = []
    for same_layers in (True, False):
        search = SetSearch(np.moveaxis(usage.quantities(), 0, -1), changed, same_layers)
        found = search.random_sets(rng, draws)
        target, sums = search.sums([changed])[0], search.sums(found or [changed])
        scale = _scale(sums)
        if matched and len(members(changed)) > 1:
            found += search.near_sets(target, scale, draws, rng)
        sets = list({frozenset(members(s)): s for s in [*sets, *found]}.values())
        off = (search.sums(sets or [changed]) - target) / scale
        order = np.argsort(np.linalg.norm(off, axis=1), kind="stable")[:draws] if matched else np.arange(draws)
        if len(sets) >= draws and (not matched or np.abs(off[order].mean(0)).max() <= BALANCED):
            break
    if len(sets) < draws:
        raise MoeLensError(
            f"expected {draws} or more sets of {len(members(changed))} other experts for the controls, got "
            f"{len(sets)}; give fewer draws (20 or more), or controls=None (--draws 0)"
        )
    chosen = [sets[i] for i in order]
    done = np.exp(search.sums(chosen))
    balance = _balance(np.exp(target), done, -off[order].mean(0))
    weights = np.array([usage.weight.ravel()[members(s)].sum() for s in (changed, *chosen)])
    return [_by_layer(usage, s) for s in chosen], balance, weights


def require_draws(draws: int) -> None:
    """Raise `MoeLensError` unless as many control sets can be significant."""
    if draws < _LEAST_DRAWS:
        raise MoeLensError(
            f"expected {_LEAST_DRAWS} or more control draws, since fewer cannot reach p = .05, got {draws}; "
            "give more, or to effect alone controls=None (--draws 0)"
        )


def _by_layer(usage: ExpertUsage, groups: Groups) -> tuple[LayerExperts, ...]:
    n = usage.load.shape[1]
    return tuple((usage.layers[group[0] // n], tuple(e % n for e in group)) for group in groups)


def _scale(logs: Floats) -> Floats:
    """Return the standard deviation of each quantity over sets, 1 where they do not differ."""
    spread = logs.std(0)
    return np.where(spread > 0, spread, 1.0)


def _balance(changed: Floats, controls: Floats, differences: Floats) -> tuple[Balance, ...]:
    return tuple(
        Balance(
            quantity=name,
            changed=float(changed[i]),
            control=float(controls[:, i].mean()),
            control_low=float(controls[:, i].min()),
            control_high=float(controls[:, i].max()),
            difference=float(differences[i]),
        )
        for i, name in enumerate(QUANTITIES)
    )


def control_interventions(
    usage: ExpertUsage, interventions: Sequence[Intervention], draws: int, seed: int, matched: bool = True
) -> tuple[list[tuple[Intervention, ...]], tuple[Balance, ...], Floats]:
    """Return the interventions on control experts, `draws` times, their balance and weights; see `control_sets`.

    Raises:
        MoeLensError: an intervention does not act on routed experts of one layer.
    """
    groups: list[LayerExperts] = []
    for i in interventions:
        if i.layer is None or i.experts == "shared" or not i.experts:
            raise MoeLensError(
                f"expected an intervention on routed experts of one layer for the controls, got '{i}'; "
                "use controls=None (--draws 0)"
            )
        groups.append((i.layer, i.experts))
    sets, balance, weights = control_sets(usage, groups, draws, seed, matched)
    return (
        [
            tuple(i.with_experts(layer, experts) for i, (layer, experts) in zip(interventions, drawn, strict=True))
            for drawn in sets
        ],
        balance,
        weights,
    )
