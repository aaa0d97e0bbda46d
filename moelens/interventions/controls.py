"""Controls: other experts, as busy, as strongly weighted and as loud as those an intervention acts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moelens.errors import MoeLensError
from moelens.interventions.operations import Intervention
from moelens.interventions.readout import Floats, batches

LEAST_DRAWS = 20
TRIALS = 50  # for each draw, before a layer is found to have too few sets of experts


@dataclass(frozen=True, eq=False)
class Usage:
    """How much each expert does on some texts, `[layer, expert]`; 0 for one that was never chosen.

    Attributes:
        load: share of the tokens it was chosen for.
        weight: mean gate weight where it was chosen.
        norm: mean norm of its output, before the weight, where it was chosen.
    """

    layers: tuple[int, ...]
    load: Floats
    weight: Floats
    norm: Floats

    def features(self) -> Floats:
        """What experts are matched on, standardised in each layer, `[layer, expert, feature]`.

        Load and norm count by their ratio, so their logarithms are taken.
        """
        raw = np.stack([np.log(self.load + 1e-4), self.weight, np.log(self.norm + 1e-4)], -1)
        spread = raw.std(1, keepdims=True)
        return np.asarray((raw - raw.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1))


@torch.no_grad()
def usage(model: Any, texts: Sequence[str], batch_tokens: int = 2048) -> Usage:
    """Run the model over texts and see how much each expert does."""
    layers, n = model.shape.moe_layers, model.shape.n_experts
    sums, tokens = np.zeros((3, len(layers), n)), 0
    weights: dict[int, Tensor] = {}
    mask = torch.empty(0)

    def see(tensor: Tensor, hook: Any) -> None:
        layer = int(hook.name.split(".")[1])
        if hook.name.endswith("hook_topk_weights"):
            weights[layer] = tensor
            return
        chosen = model.running.slots[layer]
        here = mask.to(chosen.device)
        experts = chosen[here].flatten().cpu().numpy()
        for i, values in enumerate((None, weights[layer][here], tensor[here].float().norm(dim=-1))):
            given = None if values is None else values.flatten().double().cpu().numpy()
            sums[i, layers.index(layer)] += np.bincount(experts, weights=given, minlength=n)

    points = [f"blocks.{layer}.mlp.{name}" for layer in layers for name in ("hook_topk_weights", "experts.hook_out")]
    with model.hooks([(name, see) for name in points]):
        for batch in batches(model, texts, batch_tokens):
            mask = batch.mask
            tokens += int(mask.sum())
            batch.logits(model)
    count = np.maximum(sums[0], 1)
    return Usage(tuple(layers), sums[0] / tokens, sums[1] / count, sums[2] / count)


Group = tuple[int, tuple[int, ...]]
"""A layer's number and experts of it."""


def control_sets(
    found: Usage, groups: Sequence[Group], draws: int, seed: int, matched: bool = True
) -> list[tuple[Group, ...]]:
    """`draws` different counterparts of `groups`: as many other experts, each like the one in whose place it is.

    Matched, an expert is drawn from those nearest to its counterpart in load, weight and norm (`Usage.features`): the
    `draws` nearest for a single expert, the 10 nearest where there are several. They come from the same layers; where
    those have too few sets, from all.

    Raises:
        MoeLensError: fewer than `draws` sets of other experts exist, or `draws` is below 20.
    """
    if draws < LEAST_DRAWS:
        raise MoeLensError(f"{draws} control draws cannot reach p = .05; give {LEAST_DRAWS} or more, or controls=None")
    rng, features, n = np.random.default_rng(seed), found.features(), sum(len(experts) for _, experts in groups)
    nearest = features.shape[1] if not matched else draws if n == 1 else 10
    own = {found.layers.index(layer): list(experts) for layer, experts in groups}
    sets: dict[tuple[Group, ...], None] = {}
    for same_layer in (True, False):
        for _ in range(TRIALS * draws):
            taken = {place: own.get(place, []).copy() for place in range(len(found.layers))}
            drawn: list[Group] = []
            for layer, experts in groups:
                here = found.layers.index(layer)
                place = here if same_layer else int(rng.integers(len(found.layers)))
                chosen: list[int] = []
                for expert in experts:
                    distance = np.linalg.norm(features[place] - features[here, expert], axis=-1)
                    distance[taken[place]] = np.inf
                    near = np.argsort(distance)[:nearest]
                    near = near[np.isfinite(distance[near])]
                    chosen += [int(rng.choice(near))] if len(near) else []
                    taken[place] += chosen[-1:]
                drawn.append((found.layers[place], tuple(sorted(chosen))))
            if sum(len(experts) for _, experts in drawn) == n:
                sets[tuple(drawn)] = None
            if len(sets) == draws:
                return list(sets)
    raise MoeLensError(
        f"the model has {len(sets)} sets of {n} other experts for {draws} controls; "
        "give fewer draws (20 or more), or controls=None"
    )


def control_interventions(
    found: Usage, interventions: Sequence[Intervention], draws: int, seed: int, matched: bool = True
) -> list[tuple[Intervention, ...]]:
    """The interventions on control experts, `draws` times.

    Raises:
        MoeLensError: an intervention that does not act on routed experts of one layer.
    """
    groups: list[Group] = []
    for i in interventions:
        if i.layer is None or i.experts == "shared" or not i.experts:
            raise MoeLensError(
                f"'{i}' has no other experts to be controlled by; use controls=None, or experts of one layer"
            )
        groups.append((i.layer, i.experts))
    return [
        tuple(i.with_experts(layer, experts) for i, (layer, experts) in zip(interventions, drawn, strict=True))
        for drawn in control_sets(found, groups, draws, seed, matched)
    ]
