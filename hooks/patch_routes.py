"""Give a text the routes of another one: each token the experts and weights of the token at the same position there.

What changes is due to the routing alone, since every expert still sees this text. Use two texts of the same length,
such as the halves of a minimal pair; tokens beyond the other text keep their routes.

    recipe = moelens.load_hooks("hooks/patch_routes.py", text="先生が来た。", layers=[3, 4])
    with model.hooks(fwd_hooks=recipe(model)):
        logits = model("先生がお見えになった。")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import moelens
from moelens.interventions import patch_routes


def hooks(
    model: moelens.HookedMoE, text: str, layers: Sequence[int] | None = None
) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks that route as for `text`, in `layers` (default: every layer with experts)."""
    with torch.no_grad():
        _, other = model.run_with_cache(text, names_filter=lambda name: "expert_indices" in name or "topk" in name)
    chosen = model.shape.moe_layers if layers is None else layers
    return [pair for layer in chosen for pair in patch_routes(other, layer).hooks(model)]
