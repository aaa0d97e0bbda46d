"""Make the router choose given experts of one layer for every token; the router fills the other slots.

The hook raises the selection score after the bias is added and before groups are chosen, so the group of the experts is
chosen as well. The experts keep the weights that the router's rule gives them. Editing the logits is not enough: if the
router has a selection bias, the experts with the largest logits are not always the chosen ones.

    recipe = moelens.load_hooks("hooks/force_experts.py", layer=3, experts=[5])
    with model.hooks(fwd_hooks=recipe(model)):
        logits = model("先生がいらっしゃいました。")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import moelens

LARGEST = 1e6  # finite, so that the summed score of a group is finite


def hooks(model: moelens.HookedMoE, layer: int, experts: Sequence[int]) -> list[tuple[str, Callable[..., Tensor]]]:
    """Return hooks that make the router choose `experts` in `layer`.

    Args:
        model: the hooked model.
        layer: number of the layer.
        experts: their ids.
    """
    for expert in experts:
        if not 0 <= expert < model.shape.n_experts:
            raise moelens.MoeLensError(f"expert {expert} does not exist; allowed: 0 to {model.shape.n_experts - 1}")

    def force(biased: Tensor, hook: object) -> Tensor:  # [batch, pos, expert]
        raised = biased.clone()
        raised[..., list(experts)] = LARGEST
        return raised

    return [(f"blocks.{layer}.mlp.hook_router_biased", force)]
