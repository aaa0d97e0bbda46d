"""Remove experts from one layer: their gate weight becomes 0, and no other expert replaces them.

This measures the direct effect of what the experts add. The routing is unchanged, and the other chosen experts keep
their weights. If the router should choose replacements instead, set `hook_router_biased` of the same experts to a large
negative number.

    recipe = moelens.load_hooks("hooks/remove_experts.py", layer=3, experts=[5, 9])
    with model.hooks(fwd_hooks=recipe(model)):
        logits = model("先生がいらっしゃいました。")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import moelens


def hooks(model: moelens.HookedMoE, layer: int, experts: Sequence[int]) -> list[tuple[str, Callable[..., Tensor]]]:
    """Return hooks that set the gate weight of `experts` in `layer` to 0.

    Args:
        model: the hooked model.
        layer: number of the layer.
        experts: their ids.
    """
    for expert in experts:
        if not 0 <= expert < model.shape.n_experts:
            raise moelens.MoeLensError(f"expert {expert} does not exist; allowed: 0 to {model.shape.n_experts - 1}")

    def remove(weights: Tensor, hook: object) -> Tensor:  # [batch, pos, expert]
        removed = weights.clone()
        removed[..., list(experts)] = 0
        return removed

    return [(f"blocks.{layer}.mlp.hook_expert_weights", remove)]
