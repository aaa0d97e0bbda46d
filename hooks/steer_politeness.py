"""Steer the routing towards the experts that polite sentences use, or away from them with a negative strength.

The sentences below have the same content in polite and in plain style. The hook adds to the selection score of each
expert `strength` times the difference between the shares of polite and of plain tokens that use the expert (the
specialist difference of SteerMoE, arXiv 2509.09660). Replace the sentences to steer by another property. Measure
whether the style of the text really changes, for example with `moelens.prefer`.

    recipe = moelens.load_hooks("hooks/steer_politeness.py", strength=2.0)
    with model.hooks(fwd_hooks=recipe(model)):
        print(model.generate("今日は", max_new_tokens=20))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import moelens

POLITE = [
    "明日は学校へ行きます。",
    "雨が降っています。",
    "この本は面白いです。",
    "駅まで歩きました。",
    "母は家にいます。",
]
PLAIN = ["明日は学校へ行く。", "雨が降っている。", "この本は面白い。", "駅まで歩いた。", "母は家にいる。"]


def expert_shares(model: moelens.HookedMoE, texts: list[str], layer: int) -> Tensor:
    """Return the share of the tokens of `texts` for which each expert of `layer` is chosen, `[expert]`."""
    name = f"blocks.{layer}.mlp.hook_expert_indices"
    chosen = [model.run_with_cache(text, names_filter=name)[1][name][0].long() for text in texts]
    counts = torch.bincount(torch.cat(chosen).flatten(), minlength=model.shape.n_experts)
    return counts / sum(len(c) for c in chosen)


def hooks(model: moelens.HookedMoE, strength: float = 1.0) -> list[tuple[str, Callable[..., Tensor]]]:
    """Return hooks that add `strength` × (share in polite − share in plain text) to each selection score.

    Args:
        model: the hooked model.
        strength: factor of the shift; negative to steer towards plain style.
    """
    pairs = []
    with torch.no_grad():
        for layer in model.shape.moe_layers:
            shift = strength * (expert_shares(model, POLITE, layer) - expert_shares(model, PLAIN, layer))

            def steer(biased: Tensor, hook: object, shift: Tensor = shift) -> Tensor:  # [batch, pos, expert]
                return biased + shift.to(biased)

            pairs.append((f"blocks.{layer}.mlp.hook_router_biased", steer))
    return pairs
