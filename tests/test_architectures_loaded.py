"""Every architecture: a checkpoint without a router's or an expert's weights is refused; a deep copy is hooked anew."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import ARCHITECTURES, logits_of, tiny_inputs, tiny_model
from safetensors.torch import load_file, save_file

import moelens
from moelens.errors import CheckError
from moelens.models.checkpoints import check_weights, weight_files
from moelens.models.load_checks import Check
from moelens.models.structure import MoELayer, find_moe_layers

SET_BY_TRANSFORMERS = ("zaya",)  # it writes over one number of the routers' biases when it loads them


def load(model: Any, folder: Path) -> Check:
    """Load a folder into the class of a model, and check the weights as `moelens.load` does."""
    loaded, report = type(model).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    return check_weights("tiny", loaded, report, weight_files(str(folder)))


def stored(router: bool, layer: MoELayer, weights: dict[str, torch.Tensor]) -> str:
    """The name in the checkpoint of the largest weight of a layer's router, or of one of its experts."""
    part = r"(router|gate)(\.|$)" if router else r"(experts|input_linear|moe\.\w+_proj)\."
    within = rf".*(layers|blocks)\.{layer.index}\.(?!.*(attn|share|indexer|expert_bias))"
    pattern = re.compile(rf"{within}(.*\.)?{part}")
    found = [n for n in weights if pattern.match(n) and (not router or "experts." not in n)]
    return max(found, key=lambda n: weights[n].numel())


@pytest.mark.tried("Checkpoints", "a router or an expert missing, for every architecture", "refused by name")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_missing_weights_of_routers_and_experts_are_refused(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    layer = find_moe_layers(model)[1][-1]
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if name in SET_BY_TRANSFORMERS:
        with pytest.raises(
            CheckError, match=r"'model.layers.0.mlp.gate.balancing_biases'.* set by transformers to other num"
        ):
            load(model, tmp_path)
    else:
        check = load(model, tmp_path)
        assert check.passed, check
    for router in (True, False):
        missing = stored(router, layer, weights)
        kept = {n: t for n, t in weights.items() if n != missing}
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises((CheckError, RuntimeError)) as raised:  # transformers stops where parts do not fit together
            load(model, tmp_path)
        if raised.type is CheckError:
            text = str(raised.value)
            assert "missing" in text or "of another shape" in text, text
            assert f".{layer.index}." in text, f"{missing} is missing, but the error says: {text}"
        else:
            assert "automatic conversion of the weights" in str(raised.value)


@pytest.mark.tried("Copies and wrappers", "a deep copy, for every architecture", "the same points; edits take effect")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_deep_copy_has_the_same_points_and_takes_edits(name: str) -> None:
    model = moelens.hook(tiny_model(name))
    inputs, copied = tiny_inputs(model.hf_model), copy.deepcopy(model)
    assert list(copied.hook_dict) == list(model.hook_dict)
    assert copied.shape == model.shape
    point = f"blocks.{model.shape.moe_layers[0]}.mlp.experts.hook_post"

    def run(hooked: moelens.HookedMoE, edit: bool) -> torch.Tensor:
        torch.manual_seed(7)  # diffusion_gemma starts from noise
        with torch.no_grad():
            return hooked.run_with_hooks(**inputs, fwd_hooks=[(point, lambda t, hook: t * 2)] if edit else [])

    assert torch.equal(run(copied, False), run(model, False))
    assert torch.equal(run(copied, True), run(model, True))
    assert not torch.equal(run(copied, True), run(copied, False))
    plain = copy.deepcopy(model.hf_model)
    expected = run(model, False)
    model.unhook()
    assert torch.equal(run(copied, False), expected), "the copy depends on the model that it was copied from"
    torch.manual_seed(7)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(plain(**inputs)), expected, atol=1e-5, rtol=1e-5)
    copied.unhook()
