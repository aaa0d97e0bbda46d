"""Tests of the recipes in hooks/, and of the errors of wrong recipes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import moelens
from moelens.commands.command_line import main as command_line
from moelens.recipes import parse_options

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


ARCHITECTURES = ["deepseek_v3", "mixtral", "gpt_oss"]
TEXT = "明日は学校へ行きます。"


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Iterator[moelens.HookedMoE]:
    recipe = (HOOKS / "steer_politeness.py").read_text("utf-8")
    hooked = moelens.hook(tiny_model(request.param), characters([recipe]))
    yield hooked
    hooked.unhook()


def characters(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single Japanese characters."""
    found = sorted({c for c in "".join(texts) if c > "\u3000"})[:150]
    vocabulary = {c: i + 5 for i, c in enumerate(found)} | {"[pad]": 0, "[unk]": 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[pad]", unk_token="[unk]")


def cached(model: moelens.HookedMoE, name: str, run: str = TEXT, **options: Any) -> Any:
    with model.hooks(moelens.load_hooks(HOOKS / f"{name}.py", **options)(model) if name else []):
        return model.run_with_cache(run)[1]


def test_force_experts(model: moelens.HookedMoE) -> None:
    layer = model.shape.moe_layers[-1]
    chosen = cached(model, "force_experts", layer=layer, experts=[6])[f"blocks.{layer}.mlp.hook_expert_indices"]
    assert (chosen == 6).any(-1).all()
    assert not (cached(model, "")[f"blocks.{layer}.mlp.hook_expert_indices"] == 6).any(-1).all()


def test_steer_politeness(model: moelens.HookedMoE) -> None:
    none = cached(model, "steer_politeness", strength=0)
    for layer in model.shape.moe_layers:
        name = f"blocks.{layer}.mlp.hook_expert_weights"
        torch.testing.assert_close(none[name], cached(model, "")[name], atol=1e-5, rtol=1e-4)

    def share(text: str, strength: float) -> float:
        """Return the share of tokens that use the expert polite text prefers most, in the first layer."""
        layer = model.shape.moe_layers[0]
        name = f"blocks.{layer}.mlp.hook_expert_indices"
        recipe = moelens.load_hooks(HOOKS / "steer_politeness.py", strength=1.0)(model)
        biased = torch.zeros(1, 1, 8)
        best = int(recipe[0][1](biased, None).argmax())
        found: torch.Tensor = cached(model, "steer_politeness", text, strength=strength)[name] == best
        return float(found.any(-1).float().mean())

    assert share(TEXT, 50.0) == 1
    assert share(TEXT, -50.0) == 0


def test_patch_routes(model: moelens.HookedMoE) -> None:
    other = "雨が降っています。"
    patched, source, clean = cached(model, "patch_routes", text=other), cached(model, "", other), cached(model, "")
    n = len(other)
    for layer in model.shape.moe_layers:
        name = f"blocks.{layer}.mlp.hook_expert_weights"
        torch.testing.assert_close(patched[name][0, :n], source[name][0, :n])
    first = f"blocks.{model.shape.moe_layers[0]}.mlp.hook_expert_weights"
    torch.testing.assert_close(patched[first][0, n:], clean[first][0, n:])


def test_record_norms(model: moelens.HookedMoE, tmp_path: Path) -> None:
    clean = cached(model, "")
    written = cached(model, "record_norms", out=str(tmp_path / "norms.csv"))
    rows = list(csv.DictReader((tmp_path / "norms.csv").open()))
    assert len(rows) == 8 * len(model.shape.moe_layers)
    for row in rows:
        at = f"blocks.{row['layer']}.mlp."
        assert torch.equal(written[at + "hook_out"], clean[at + "hook_out"])
        slots = clean[at + "hook_expert_indices"][0] == int(row["expert"])
        norms = clean[at + "experts.hook_out"][0][slots].norm(dim=-1)
        assert int(row["tokens"]) == len(norms)
        assert float(row["mean_norm"]) == pytest.approx(norms.mean().item() if len(norms) else 0, rel=1e-4)


def test_token_filter(model: moelens.HookedMoE) -> None:
    layer = model.shape.moe_layers[-1]
    name = f"blocks.{layer}.mlp.hook_expert_weights"
    options = {"layer": layer, "experts": list(range(8)), "pattern": "[ます]"}
    gone = cached(model, "token_filter", **options)[name][0].sum(-1) == 0
    assert gone.tolist() == [c in "ます" for c in TEXT]


def test_recipes_are_short_and_documented() -> None:
    table = (HOOKS / "README.md").read_text("utf-8")
    for path in HOOKS.glob("*.py"):
        text = path.read_text("utf-8")
        assert len(text.splitlines()) < 60
        assert text.startswith('"""')
        assert f'moelens.load_hooks("hooks/{path.name}"' in text
        assert f"| `{path.name}` |" in table


def test_options_of_a_recipe(tmp_path: Path) -> None:
    assert parse_options(["layer=1", "experts=[6]", "text=先生"]) == {"layer": 1, "experts": [6], "text": "先生"}
    with pytest.raises(
        moelens.MoeLensError, match=r"expected an option NAME=VALUE, got 'strength'; write it such as strength=2\.0"
    ):
        parse_options(["strength"])
    with pytest.raises(
        moelens.MoeLensError, match="expected --hooks FILE with --set, got --set a=1 alone; give the recipe"
    ):
        command_line(["--debug", "prefer", "demo", "--set", "a=1"])


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(
        moelens.MoeLensError, match=r"expected the path of a recipe, got 'nowhere\.py', which does not exist"
    ):
        moelens.load_hooks("nowhere.py")
    with pytest.raises(moelens.MoeLensError, match="unknown option 'expert'; did you mean 'experts'"):
        moelens.load_hooks(HOOKS / "remove_experts.py", layer=1, expert=[0])
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(
        moelens.MoeLensError,
        match=r"expected a recipe with a function hooks\(model, \*\*options\), got '.*' without one",
    ):
        moelens.load_hooks(empty)
    empty.write_text("def hooks(:")
    with pytest.raises(
        moelens.MoeLensError, match=r"expected a recipe in Python, got '.*' \(invalid syntax.*; correct it"
    ):
        moelens.load_hooks(empty)
    recipe = moelens.load_hooks(HOOKS / "remove_experts.py", layer=1, experts=[99])
    with pytest.raises(moelens.MoeLensError, match="expert 99 does not exist; allowed: 0 to 7"):
        recipe(moelens.hook(tiny_model("mixtral")))
