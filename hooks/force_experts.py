"""Force experts of one layer into the choice of every token; the router fills the other slots.

The score is raised after the selection bias is added and before groups are chosen, so the experts' group is chosen with
them; their weights are those the router gives them. Editing logits instead would not do: where a bias decides, the
largest logits are not the chosen experts.

    recipe = moelens.load_hooks("hooks/force_experts.py", layer=3, experts=[5])
    with model.hooks(fwd_hooks=recipe(model)):
        logits = model("先生がいらっしゃいました。")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import moelens

ABOVE_ALL = 1e6  # finite, so that the score of the experts' group stays a number


def hooks(model: moelens.HookedMoE, layer: int, experts: Sequence[int]) -> list[tuple[str, Callable[..., Tensor]]]:
    """Hooks that have `experts` chosen in `layer`."""
    for expert in experts:
        if not 0 <= expert < model.shape.n_experts:
            raise moelens.MoeLensError(f"expert {expert} does not exist; allowed: 0 to {model.shape.n_experts - 1}")

    def force(biased: Tensor, hook: object) -> Tensor:  # [batch, pos, expert]
        raised = biased.clone()
        raised[..., list(experts)] = ABOVE_ALL
        return raised

    return [(f"blocks.{layer}.mlp.hook_router_biased", force)]
