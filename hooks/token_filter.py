"""Remove experts only at tokens whose text matches a pattern.

The pattern is a regular expression that is searched in the text of each token. You can replace `matches` by any
function from token ids `[batch, pos]` to a bool mask of the same shape, and use it in any hook. To select tokens by a
linguistic label, use `moelens.remove(3, [5], at="尊敬語")` instead.

    recipe = moelens.load_hooks("hooks/token_filter.py", layer=3, experts=[5], pattern="ます|です|ました")
    with model.hooks(fwd_hooks=recipe(model)):
        logits = model("先生がいらっしゃいました。")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import moelens


def hooks(
    model: moelens.HookedMoE, layer: int, experts: Sequence[int], pattern: str
) -> list[tuple[str, Callable[..., Tensor]]]:
    """Return hooks that set the gate weight of `experts` to 0 at the tokens that match `pattern`.

    Args:
        model: the hooked model.
        layer: number of the layer.
        experts: their ids.
        pattern: regular expression that is searched in the text of each token.
    """
    wanted = re.compile(pattern)

    def matches(ids: Tensor) -> Tensor:
        found = [[bool(wanted.search(model.tokenizer.decode([i]))) for i in row] for row in ids.tolist()]
        return torch.tensor(found, device=ids.device)

    def remove(weights: Tensor, hook: object) -> Tensor:  # [batch, pos, expert]
        assert model.running.ids is not None
        mask = matches(model.running.ids[:, model.running.start :]).to(weights.device)
        removed = weights.clone()
        removed[..., list(experts)] = 0
        return torch.where(mask.unsqueeze(-1), removed, weights)

    return [(f"blocks.{layer}.mlp.hook_expert_weights", remove)]
