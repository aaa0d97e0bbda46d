"""Formats: which are named, which are refused before weights are read, and what is captured in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import save_tiny, tiny_inputs, tiny_model
from torch import nn

import moelens
from moelens.errors import MoeLensError, UnsupportedModelError
from moelens.models import formats
from moelens.models.formats import FORMATS, describe_format, format_name
from moelens.models.packed import PACKED

INT4 = {"group_0": {"weights": {"type": "int", "num_bits": 4}}}
FP4 = {"group_0": {"weights": {"type": "float", "num_bits": 4}}}
NAMES = [
    ({}, ""),
    ({"quant_method": "fp8"}, "fp8"),
    ({"quant_method": "mxfp4"}, "mxfp4"),
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "gptq"}, "gptq"),
    ({"quant_method": "compressed-tensors", "config_groups": INT4}, "compressed-tensors"),
    ({"quant_method": "compressed-tensors", "config_groups": FP4}, "nvfp4"),
    ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"load_in_8bit": True}, "bitsandbytes"),
    ({"quant_method": "hqq"}, "hqq"),
]


@pytest.mark.parametrize("quantised, name", NAMES)
def test_the_format_of_a_configuration(quantised: dict[str, Any], name: str) -> None:
    assert format_name(quantised) == name


def quantised_folder(folder: Path, quantised: dict[str, Any]) -> str:
    """A folder whose configuration states a format; there are no weights that could be read."""
    save_tiny(tiny_model("qwen3_moe"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    (folder / "model.safetensors").unlink()
    return str(folder)


@pytest.mark.parametrize("quantised", [q for q, name in NAMES if name == "nvfp4"])
def test_fp4_is_refused_by_name(tmp_path: Path, quantised: dict[str, Any]) -> None:
    for call in (moelens.load, moelens.info):
        with pytest.raises(
            UnsupportedModelError, match="is packed in NVFP4 or another FP4 format, whose experts transfo"
        ):
            call(quantised_folder(tmp_path, quantised))


@pytest.mark.parametrize(
    "quantised, title, packages",
    [
        ({"quant_method": "awq", "bits": 4}, "AWQ", "gptqmodel"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ", "optimum gptqmodel"),
        ({"quant_method": "compressed-tensors", "config_groups": INT4}, "compressed-tensors .*", "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes .*", "bitsandbytes"),
    ],
)
def test_a_missing_package_is_named_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantised: dict[str, Any], title: str, packages: str
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    text = f"in the format {title}, which needs packages that are not installed; run `pip install {packages}`"
    with pytest.raises(MoeLensError, match=text):
        moelens.load(quantised_folder(tmp_path, quantised))


def test_experts_that_stay_packed_are_refused_inside_by_name() -> None:
    """A stand-in for the class of packed experts: transformers' own needs kernels that a CPU has not."""
    model = tiny_model("gpt_oss")
    inputs, reference = tiny_inputs(model), moelens.hook(tiny_model("gpt_oss"))
    for layer in model.model.layers:
        layer.mlp.experts = Mxfp4GptOssExperts(layer.mlp.experts)
    hooked = moelens.hook(model)
    assert hooked.format.title == "MXFP4"
    assert "Mxfp4Config(dequantize=True)" in hooked.format.missing
    inside = "blocks.1.mlp.experts.hook_post"
    with pytest.raises(
        MoeLensError, match=r"does not offer .* stay packed in MXFP4, and their kernel shows no inside; load"
    ):
        hooked.run_with_cache(**inputs, names_filter=inside)
    shift = [("blocks.1.mlp.hook_expert_indices", lambda t, hook: (t + 1) % 8)]
    with torch.no_grad():
        for hooks in ([], shift):
            torch.testing.assert_close(
                hooked.run_with_hooks(**inputs, fwd_hooks=hooks), reference.run_with_hooks(**inputs, fwd_hooks=hooks)
            )
        _, cache = hooked.run_with_cache(**inputs)
        _, want = reference.run_with_cache(**inputs)
    assert set(want) - set(cache) == {n for n in want if ".experts." in n}
    assert all(torch.equal(cache[n], want[n]) for n in cache if n.endswith("hook_expert_indices"))


class Mxfp4GptOssExperts(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.num_experts = [inner], inner.num_experts
        self.gate_up_proj = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        inner = self.inner[0]
        return type(inner).forward.__wrapped__(inner, hidden, indices, weights)


def test_info_names_what_is_captured() -> None:
    text = repr(moelens.info("demo"))
    assert "format        float32" in text
    assert "captured      every hook point of the architecture" in text
    listed = moelens.models.summary.list_supported()
    for name, format in FORMATS.items():
        assert f"format {format.title}" in listed, name
    assert "kimi_k25" in listed
    assert set(PACKED) == {"Mxfp4GptOssExperts", "GgufExperts"}


def test_bitsandbytes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    folder = str(save_tiny(tiny_model("qwen3_moe"), tmp_path))
    model = moelens.load(folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.float32)
    assert model.format.title.startswith("bitsandbytes (8 and 4 bits); experts in float32")
    plain = moelens.load(folder, dtype=torch.float32)
    assert list(model.hook_dict) == list(plain.hook_dict)
    _, cache = model.run_with_cache(torch.tensor([[5, 6, 7]]))
    assert cache["blocks.1.mlp.experts.hook_post"].isfinite().all()
    assert describe_format(model.hf_model, "bitsandbytes") == model.format
