"""Controls: other experts with a similar load, gate weight and output norm as those that an intervention acts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moelens.analysis.arrays import Floats
from moelens.errors import MoeLensError
from moelens.interventions.intervention import Intervention
from moelens.interventions.scoring import batches

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_LEAST_DRAWS = 20
_TRIALS = 50  # for each draw, before a layer is found to have too few sets of experts
LayerExperts = tuple[int, tuple[int, ...]]
"""A layer's number and experts of it."""


@dataclass(frozen=True, eq=False)
class ExpertUsage:
    """How each expert is used on some texts. The arrays are `[layer, expert]`, with 0 for one that was never chosen.

    Attributes:
        layers: numbers of the layers.
        load: share of the tokens for which it was chosen.
        weight: mean gate weight where it was chosen.
        norm: mean norm of its output, before the weight, where it was chosen.
    """

    layers: tuple[int, ...]
    load: Floats
    weight: Floats
    norm: Floats

    def features(self) -> Floats:
        """Return what experts are matched on, standardised in each layer `[layer, expert, feature]`.

        Load and norm are compared as ratios, so their logarithms are used.
        """
        raw = np.stack([np.log(self.load + 1e-4), self.weight, np.log(self.norm + 1e-4)], -1)
        spread = raw.std(1, keepdims=True)
        return np.asarray((raw - raw.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1))


@torch.no_grad()
def expert_usage(model: HookedMoE, texts: Sequence[str], batch_tokens: int = 2048) -> ExpertUsage:
    """Run the model over texts and measure how each expert is used."""
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
        for i, values in enumerate((None, weights[layer][not_padding], tensor[not_padding].float().norm(dim=-1))):
            summands = None if values is None else values.flatten().double().cpu().numpy()
            sums[i, layers.index(layer)] += np.bincount(experts, weights=summands, minlength=n)

    points = [f"blocks.{layer}.mlp.{name}" for layer in layers for name in ("hook_topk_weights", "experts.hook_out")]
    with model.hooks([(name, add) for name in points]):
        for batch in batches(model, texts, batch_tokens):
            mask = batch.mask
            tokens += int(mask.sum())
            batch.logits(model)
    count = np.maximum(sums[0], 1)
    return ExpertUsage(tuple(layers), sums[0] / tokens, sums[1] / count, sums[2] / count)


def control_sets(
    usage: ExpertUsage, groups: Sequence[LayerExperts], draws: int, seed: int, matched: bool = True
) -> list[tuple[LayerExperts, ...]]:
    """Draw different counterparts of `groups`: sets of as many other experts.

    If matched, each expert is replaced by one of the experts nearest to it in load, weight and norm
    (`ExpertUsage.features`): one of the `draws` nearest for a single expert, one of the 10 nearest for several. They
    come from the same layers; if these have too few sets, from all layers.

    Args:
        usage: the use of all experts.
        groups: the experts to replace.
        draws: number of sets, 20 or more.
        seed: seed of the draws.
        matched: draw similar experts; False draws any.

    Raises:
        MoeLensError: `draws` is below 20, or there are fewer sets of other experts than `draws`.
    """
    if draws < _LEAST_DRAWS:
        raise MoeLensError(
            f"expected {_LEAST_DRAWS} or more control draws, since fewer cannot reach p = .05, got {draws}; "
            "give more, or controls=None"
        )
    rng, features, n = np.random.default_rng(seed), usage.features(), sum(len(experts) for _, experts in groups)
    nearest = features.shape[1] if not matched else draws if n == 1 else 10
    sets: dict[tuple[LayerExperts, ...], None] = {}
    for same_layer in (True, False):
        for _ in range(_TRIALS * draws):
            drawn = _draw_set(usage, groups, features, nearest, same_layer, rng)
            if sum(len(experts) for _, experts in drawn) == n:
                sets[tuple(drawn)] = None
            if len(sets) == draws:
                return list(sets)
    raise MoeLensError(
        f"expected {draws} or more sets of {n} other experts for the controls, got {len(sets)}; "
        "give fewer draws (20 or more), or controls=None"
    )


def _draw_set(
    usage: ExpertUsage,
    groups: Sequence[LayerExperts],
    features: Floats,
    nearest: int,
    same_layer: bool,
    rng: np.random.Generator,
) -> list[LayerExperts]:
    """Draw one counterpart of `groups`; it has fewer experts where a layer has none left."""
    taken: dict[int, list[int]] = {place: [] for place in range(len(usage.layers))}
    for layer, experts in groups:
        taken[usage.layers.index(layer)] += experts
    drawn: list[LayerExperts] = []
    for layer, experts in groups:
        original = usage.layers.index(layer)
        place = original if same_layer else int(rng.integers(len(usage.layers)))
        chosen: list[int] = []
        for expert in experts:
            distance = np.linalg.norm(features[place] - features[original, expert], axis=-1)
            distance[taken[place]] = np.inf
            near = np.argsort(distance)[:nearest]
            near = near[np.isfinite(distance[near])]
            if len(near):
                chosen.append(int(rng.choice(near)))
            taken[place] += chosen[-1:]
        drawn.append((usage.layers[place], tuple(sorted(chosen))))
    return drawn


def control_interventions(
    usage: ExpertUsage, interventions: Sequence[Intervention], draws: int, seed: int, matched: bool = True
) -> list[tuple[Intervention, ...]]:
    """Return the interventions on control experts, `draws` times; for the arguments see `control_sets`.

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
    return [
        tuple(i.with_experts(layer, experts) for i, (layer, experts) in zip(interventions, drawn, strict=True))
        for drawn in control_sets(usage, groups, draws, seed, matched)
    ]
