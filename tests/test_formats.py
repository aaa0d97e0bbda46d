"""Formats: which are named, which are refused before weights are read, and what is captured in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import CONDITIONAL, logits_of, save_tiny, tiny_conditional, tiny_inputs, tiny_model
from safetensors.torch import load_file, save_file
from torch import nn

import moelens
from moelens.errors import MoeLensError, UnsupportedModelError
from moelens.models import formats
from moelens.models.formats import FORMATS, describe_format, format_name
from moelens.models.loading import architectures
from moelens.models.packed import PACKED
from moelens.models.summary import list_supported

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


@pytest.mark.tried("Formats", "NVFP4", "refused by name, before the weights are read")
@pytest.mark.parametrize("quantised", [q for q, name in NAMES if name == "nvfp4"])
def test_fp4_is_refused_by_name(tmp_path: Path, quantised: dict[str, Any]) -> None:
    for call in (moelens.load, moelens.info):
        with pytest.raises(
            UnsupportedModelError, match="is packed in NVFP4 or another FP4 format, whose experts transfo"
        ):
            call(quantised_folder(tmp_path, quantised))


@pytest.mark.tried(
    "Formats", "a format whose package is not installed", "refused before the weights are read; names the package"
)
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


@pytest.mark.tried(
    "Formats",
    "AWQ and GPTQ with packed experts, which transformers cannot unpack with any package",
    "refused before the weights are read; names a packed expert",
)
@pytest.mark.parametrize("method, title", [("awq", "AWQ"), ("gptq", "GPTQ")])
@pytest.mark.parametrize("sharded", [False, True])
def test_packed_experts_that_no_package_unpacks(tmp_path: Path, method: str, title: str, sharded: bool) -> None:
    folder = quantised_folder(tmp_path, {"quant_method": method, "bits": 4})
    name = "model.layers.0.mlp.experts.0.down_proj.qweight"
    shard = "model-00001-of-00001.safetensors" if sharded else "model.safetensors"
    save_file({name: torch.zeros(8, 8, dtype=torch.int32)}, tmp_path / shard, {"format": "pt"})
    if sharded:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: shard}}))
    for call in (moelens.load, moelens.info):
        with pytest.raises(UnsupportedModelError, match=rf"holds experts packed in {title} \('{name}'\), which transf"):
            call(folder)


PACKINGS = [
    ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}),
    ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
]


def packed(weight: torch.Tensor, format: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A weight as compressed-tensors stores it, and what it stands for."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    if format == "float-quantized":
        scale = weight.abs().amax(-1, keepdim=True) / 448
        small = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": small, "weight_scale": scale}, small.float() * scale
    groups = weight.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    whole = (groups / scale).round().to(torch.int8)
    parts = {"weight_packed": pack_to_int32(whole.flatten(-2), 4), "weight_scale": scale.squeeze(-1)}
    return parts | {"weight_shape": torch.tensor(weight.shape)}, (whole * scale).flatten(-2)


@pytest.mark.tried(
    "Formats",
    "compressed-tensors with experts in INT4 (as Kimi K2) and FP8, packed on the spot",
    "every hook point, equal to those of a model with the unpacked weights; edits work",
)
@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("format, weights", PACKINGS)
def test_compressed_tensors(tmp_path: Path, name: str, format: str, weights: dict[str, Any]) -> None:
    pytest.importorskip("compressed_tensors")
    dense, stored = {}, {}
    folder, plain = (save_tiny(tiny_model(name), tmp_path / n) for n in ("packed", "plain"))
    for key, tensor in load_file(plain / "model.safetensors").items():
        dense[key] = stored[key] = tensor
        if re.search(r"\.experts\.\d+\.", key):
            parts, dense[key] = packed(stored.pop(key), format)
            stored |= {key.removesuffix("weight") + part: t.contiguous() for part, t in parts.items()}
    assert len(stored) > len(dense), "nothing was packed"
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(dense, plain / "model.safetensors", {"format": "pt"})
    group = {"targets": [r"re:.*\.experts\.\d+\..*proj$"], "weights": weights | {"symmetric": True}}
    quantised = {"quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed"}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantised | {"config_groups": {"group_0": group}}
    (folder / "config.json").write_text(json.dumps(config))
    model, reference = (moelens.load(str(f), dtype=torch.float32) for f in (folder, plain))
    assert model.format.title == "compressed-tensors (INT4, FP8), unpacked to float32 at load"
    assert not [c for c in model.checks if not c.passed]
    ids, point = torch.tensor([[5, 6, 7, 8]]), f"blocks.{model.shape.moe_layers[-1]}.mlp.experts.hook_post"
    _, cache = model.run_with_cache(ids)
    _, want = reference.run_with_cache(ids)
    assert list(cache) == list(want)
    assert all(torch.equal(cache[n], want[n]) for n in want)
    edited, expected = (m.run_with_hooks(ids, fwd_hooks=[(point, lambda t, hook: t * 2)]) for m in (model, reference))
    assert torch.equal(edited, expected)
    assert not torch.equal(edited, model(ids))


@pytest.mark.tried(
    "Formats", "GPT-OSS in MXFP4, packed", "routes and edits of them; points inside the experts are refused by name"
)
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
    listed = list_supported()
    for name, format in FORMATS.items():
        assert f"format {format.title}" in listed, name
    assert "kimi_k25" in listed
    assert set(PACKED) == {"Mxfp4GptOssExperts", "GgufExperts"}
    ways = {how.partition(": ")[0] for how in architectures().values()}
    legend = listed.partition("captured of an architecture\n")[2].partition("\n\n")[0]
    assert all(f"\n  {way}" in f"\n{legend}" for way in ways), "a reader cannot tell what is captured"


def test_the_format_is_that_of_the_weights_now() -> None:
    model = moelens.hook(tiny_model("mixtral"))
    assert model.format.title == "float32"
    model.hf_model.to(torch.bfloat16)
    assert model.format.title == "bfloat16"


@pytest.mark.tried("Formats", "bitsandbytes in 4 bits", "works; `info` says in which dtype the fused experts are")
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


@pytest.mark.tried(
    "Formats",
    "checkpoints of classes that read images too (Kimi K2.5, Qwen3-VL-MoE, Qwen3.5-MoE, Llama 4), with text alone",
    "listed by `info`; loaded, recorded and edited as text models",
)
@pytest.mark.parametrize("name", CONDITIONAL)
def test_classes_that_read_images_too(tmp_path: Path, name: str) -> None:
    assert any(line.startswith(f"{name} ") for line in list_supported().splitlines())
    plain, ids = tiny_conditional(name), torch.tensor([[5, 6, 7, 8, 9, 10]])
    model = moelens.load(str(save_tiny(plain, tmp_path)), dtype=torch.float32)
    assert not [c for c in model.checks if not c.passed]
    layer = model.shape.moe_layers[-1]
    _, cache = model.run_with_cache(ids)
    logits = model(ids)
    edits = [(f"blocks.{layer}.mlp.hook_expert_indices", lambda t, hook: (t + 1) % 8)]
    assert not torch.allclose(model.run_with_hooks(ids, fwd_hooks=edits), logits)
    assert cache[f"blocks.{layer}.mlp.hook_expert_indices"].shape == (1, 6, model.shape.top_k)
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 8)
    plain = model.unhook() if name == "llama4" else plain  # transformers' class of Llama 4 fails without images
    with torch.no_grad():
        assert torch.equal(logits_of(plain(input_ids=ids)), logits)
    assert set(moelens.hook(plain).hook_dict) == set(cache)
