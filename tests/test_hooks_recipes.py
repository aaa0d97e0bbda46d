"""The recipes in hooks/ work, and a recipe that does not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_model

import moelens

HOOKS = Path(__file__).parents[1] / "hooks"


@pytest.mark.parametrize("name", ["deepseek_v3", "mixtral", "gpt_oss"])
def test_remove_experts(name: str, ids: torch.Tensor) -> None:
    model = moelens.hook(tiny_model(name))
    layer = model.shape.moe_layers[-1]
    recipe = moelens.load_hooks(HOOKS / "remove_experts.py", layer=layer, experts=[0, 3])
    at = f"blocks.{layer}.mlp."
    _, clean = model.run_with_cache(ids)
    with model.hooks(fwd_hooks=recipe(model)):
        _, cache = model.run_with_cache(ids)
    weights = clean[at + "hook_topk_weights"]
    gone = (clean[at + "hook_expert_indices"] == 0) | (clean[at + "hook_expert_indices"] == 3)
    assert gone.any()
    outputs = clean[at + "experts.hook_out"]
    lost = (outputs * (weights * gone).unsqueeze(-1)).sum(2)
    torch.testing.assert_close(cache[at + "hook_out"], clean[at + "hook_out"] - lost, atol=1e-5, rtol=1e-4)
    model.unhook()


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(moelens.MoeLensError, match=r"no recipe at 'nowhere\.py'; give the path of a Python file"):
        moelens.load_hooks("nowhere.py")
    with pytest.raises(moelens.MoeLensError, match="unknown option 'expert'; did you mean 'experts'"):
        moelens.load_hooks(HOOKS / "remove_experts.py", layer=1, expert=[0])
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(moelens.MoeLensError, match=r"defines no function hooks\(model, \*\*options\)"):
        moelens.load_hooks(empty)
    recipe = moelens.load_hooks(HOOKS / "remove_experts.py", layer=1, experts=[99])
    with pytest.raises(moelens.MoeLensError, match="expert 99 does not exist; allowed: 0 to 7"):
        recipe(moelens.hook(tiny_model("mixtral")))
