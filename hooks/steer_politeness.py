"""Steer the routing towards the experts that polite sentences use, or, with a negative strength, away from them.

The sentences below say the same in polite and in plain style. Each expert gets the difference of how often the two use
it (the specialist difference of SteerMoE, arXiv 2509.09660), times `strength`, added to its selection score. Put your
own sentences in their place to steer by something else. Whether it changes the style is for you to measure.

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


def use(model: moelens.HookedMoE, texts: list[str], layer: int) -> Tensor:
    """Share of the tokens of `texts` for which each expert of `layer` is chosen, `[expert]`."""
    name = f"blocks.{layer}.mlp.hook_expert_indices"
    chosen = [model.run_with_cache(text, names_filter=name)[1][name][0].long() for text in texts]
    counts = torch.bincount(torch.cat(chosen).flatten(), minlength=model.shape.n_experts)
    return counts / sum(len(c) for c in chosen)


def hooks(model: moelens.HookedMoE, strength: float = 1.0) -> list[tuple[str, Callable[..., Tensor]]]:
    """Hooks that add `strength` × (share in polite − share in plain text) to every expert's selection score."""
    pairs = []
    with torch.no_grad():
        for layer in model.shape.moe_layers:
            shift = strength * (use(model, POLITE, layer) - use(model, PLAIN, layer))

            def steer(biased: Tensor, hook: object, shift: Tensor = shift) -> Tensor:  # [batch, pos, expert]
                return biased + shift.to(biased)

            pairs.append((f"blocks.{layer}.mlp.hook_router_biased", steer))
    return pairs
