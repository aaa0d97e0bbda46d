"""Give a text the routes of another text: each token gets the experts and weights of the token at the same position.

The experts still process the first text, so every change comes from the routing alone. Use two texts of the same number
of tokens, such as the two texts of a minimal pair. Tokens beyond the end of the other text keep their routes.

    recipe = moelens.load_hooks("hooks/patch_routes.py", text="先生が来た。", layers=[3, 4])
    with model.hooks(fwd_hooks=recipe(model)):
        logits = model("先生がお見えになった。")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import moelens


def hooks(
    model: moelens.HookedMoE, text: str, layers: Sequence[int] | None = None
) -> list[tuple[str, Callable[..., Any]]]:
    """Return hooks that use the routes of `text`.

    Args:
        model: the hooked model.
        text: the other text, whose routes are used.
        layers: numbers of the layers; None for every layer with experts.
    """
    with torch.no_grad():
        _, other = model.run_with_cache(text, names_filter=lambda name: "expert_indices" in name or "topk" in name)
    chosen = model.shape.moe_layers if layers is None else layers
    return [pair for layer in chosen for pair in moelens.patch_routes(other, layer).hooks(model)]
