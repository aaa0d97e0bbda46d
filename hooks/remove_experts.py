"""Remove experts from one layer, the routing left as it is: their gate weight becomes 0, nothing takes their place.

This measures the direct effect of what the experts add. The other chosen experts keep their weights; to let the router
choose replacements instead, set `hook_router_biased` to a very small number at the same experts.

    recipe = moelens.load_hooks("hooks/remove_experts.py", layer=3, experts=[5, 9])
    with model.hooks(fwd_hooks=recipe(model)):
        logits = model("先生がいらっしゃいました。")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import moelens


def hooks(model: moelens.HookedMoE, layer: int, experts: Sequence[int]) -> list[tuple[str, Callable[..., Tensor]]]:
    """Hooks that set the weight of `experts` in `layer` to 0."""
    for expert in experts:
        if not 0 <= expert < model.shape.n_experts:
            raise moelens.MoeLensError(f"expert {expert} does not exist; allowed: 0 to {model.shape.n_experts - 1}")

    def remove(weights: Tensor, hook: object) -> Tensor:  # [batch, pos, expert]
        kept = weights.clone()
        kept[..., list(experts)] = 0
        return kept

    return [(f"blocks.{layer}.mlp.hook_expert_weights", remove)]
