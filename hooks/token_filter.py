"""Act at some tokens only: remove experts where the token's text matches a pattern, and nowhere else.

Here it is a regular expression over the text of single tokens; any function from token ids `[batch, pos]` to a bool
mask of that shape will do, in any hook. For linguistic labels there is `remove(3, [5], at="尊敬語")`.

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
    """Hooks that set the weight of `experts` in `layer` to 0 at the tokens in whose text `pattern` is found."""
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
