"""Controls: sets of other experts that do as much on the texts as those that an intervention acts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moelens.analysis.arrays import Floats
from moelens.analysis.tables import number
from moelens.errors import MoeLensError
from moelens.interventions.intervention import Intervention
from moelens.interventions.scoring import text_batches
from moelens.texts import Texts

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_LEAST_DRAWS = 20
_CANDIDATES = 5_000  # sets among which the nearest are chosen
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
) -> tuple[list[tuple[LayerExperts, ...]], tuple[Balance, ...]]:
    """Draw `draws` different sets of as many other experts as `groups` has.

    Matched sets are those nearest to `groups` in `QUANTITIES`, sums over the experts of a set compared as logarithms,
    among random sets: with as many experts of the same layers, or, if these are not balanced, of any layers.

    Args:
        usage: how much all experts do.
        groups: the changed experts, by layer.
        draws: number of sets, 20 or more.
        seed: seed of the random sets.
        matched: choose the nearest; False takes any.

    Returns:
        The sets, and how they compare with `groups`.

    Raises:
        MoeLensError: `draws` is below 20, or there are fewer sets of other experts than `draws`.
    """
    if draws < _LEAST_DRAWS:
        raise MoeLensError(
            f"expected {_LEAST_DRAWS} or more control draws, since fewer cannot reach p = .05, got {draws}; "
            "give more, or controls=None (--draws 0)"
        )
    rng = np.random.default_rng(seed)
    sets = near = _random_sets(usage, groups, True, rng)
    logs = np.log(np.concatenate([_sums(usage, [groups]), _sums(usage, sets)]))
    scale = _scale(logs[1:])
    order = _nearest(logs, scale, draws) if matched else np.arange(draws)
    if len(sets) < draws or (matched and np.abs(_differences(logs, order, scale)).max() > BALANCED):
        sets = list({_members(s): s for s in [*near, *_random_sets(usage, groups, False, rng)]}.values())
        logs = np.log(np.concatenate([_sums(usage, [groups]), _sums(usage, sets)]))
        scale = _scale(logs[1:])
        order = _nearest(logs, scale, draws) if matched else np.arange(draws)
    if len(sets) < draws:
        n = sum(len(experts) for _, experts in groups)
        raise MoeLensError(
            f"expected {draws} or more sets of {n} other experts for the controls, got {len(sets)}; "
            "give fewer draws (20 or more), or controls=None (--draws 0)"
        )
    return [sets[i] for i in order], _balance(
        np.exp(logs[0]), np.exp(logs[1:][order]), _differences(logs, order, scale)
    )


def _random_sets(
    usage: ExpertUsage, groups: Sequence[LayerExperts], same_layers: bool, rng: np.random.Generator
) -> list[tuple[LayerExperts, ...]]:
    """Return different random sets of other experts, with the group sizes of `groups`; all of them if they are few."""
    n_layers, n_experts = usage.load.shape
    changed = {(usage.layers.index(layer), e) for layer, experts in groups for e in experts}
    layers = [usage.layers.index(layer) for layer, _ in groups]
    sizes = [len(experts) for _, experts in groups]
    if sizes == [1]:  # as many sets as there are other experts: take them all
        places = layers if same_layers else range(n_layers)
        others = [(place, e) for place in places for e in range(n_experts) if (place, e) not in changed]
        return [((usage.layers[place], (e,)),) for place, e in rng.permutation(np.array(others)).tolist()]
    sets: dict[frozenset[tuple[int, int]], tuple[LayerExperts, ...]] = {}
    for _ in range(_CANDIDATES):
        taken, drawn = set(changed), []
        for size, layer in zip(sizes, layers if same_layers else rng.integers(0, n_layers, len(sizes)), strict=True):
            free = [e for e in range(n_experts) if (int(layer), e) not in taken]
            if len(free) < size:
                break
            experts = tuple(sorted(rng.choice(free, size, replace=False).tolist()))
            taken |= {(int(layer), e) for e in experts}
            drawn.append((usage.layers[layer], experts))
        else:
            sets.setdefault(frozenset(taken - changed), tuple(drawn))
    return list(sets.values())


def _members(groups: Sequence[LayerExperts]) -> frozenset[tuple[int, int]]:
    return frozenset((layer, expert) for layer, experts in groups for expert in experts)


def _sums(usage: ExpertUsage, sets: Sequence[Sequence[LayerExperts]]) -> Floats:
    """Return the quantities of sets `[set, quantity]`, sums over their experts, with a small number for none."""
    quantities = usage.quantities()
    sums = np.zeros((len(sets), len(quantities)))
    for row, groups in zip(sums, sets, strict=True):
        for layer, experts in groups:
            row += quantities[:, usage.layers.index(layer)][:, list(experts)].sum(-1)
    return np.maximum(sums, 1e-9)


def _scale(logs: Floats) -> Floats:
    """Return the standard deviation of each quantity over sets, 1 where they do not differ."""
    spread = logs.std(0) if len(logs) else np.ones(logs.shape[1])
    return np.where(spread > 0, spread, 1.0)


def _nearest(logs: Floats, scale: Floats, draws: int) -> NDArray[np.int64]:
    """Return the places of the sets nearest to the first row of `logs`."""
    return np.argsort(np.linalg.norm((logs[1:] - logs[0]) / scale, axis=1), kind="stable")[:draws]


def _differences(logs: Floats, order: NDArray[np.int64], scale: Floats) -> Floats:
    return np.asarray((logs[0] - logs[1:][order].mean(0)) / scale)


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
) -> tuple[list[tuple[Intervention, ...]], tuple[Balance, ...]]:
    """Return the interventions on control experts, `draws` times, and their balance; for arguments see `control_sets`.

    Raises:
        MoeLensError: an intervention does not act on routed experts of one layer.
    """
    groups: list[LayerExperts] = []
    for i in interventions:
        if i.layer is None or i.experts == "shared" or not i.experts:
            raise MoeLensError(
                f"expected an intervention on routed experts of one layer for the controls, got '{i}'; "
                "use controls=None"
            )
        groups.append((i.layer, i.experts))
    sets, balance = control_sets(usage, groups, draws, seed, matched)
    return [
        tuple(i.with_experts(layer, experts) for i, (layer, experts) in zip(interventions, drawn, strict=True))
        for drawn in sets
    ], balance
