"""Loading: folders, FP8 checkpoints, offloaded models, and architectures without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from helpers.fp8 import BLOCK, dequantise, fp8_checkpoint, quantise
from helpers.tiny import ARCHITECTURES, logits_of, save_tiny, tiny_model
from safetensors.torch import load_file, save_file
from transformers.integrations import finegrained_fp8 as fp8

import moelens
from moelens.errors import MoeLensError, UnknownNameError, UnsupportedModelError
from moelens.models import experts, loading
from moelens.models.loading import architectures, inspect_architecture
from moelens.models.structure import find_moe_layers


def test_folder(tmp_path: Path) -> None:
    model = moelens.load(str(save_tiny(tiny_model("qwen3_moe"), tmp_path)), dtype=torch.float32)
    logits, cache = model.run_with_cache("t5 t6 t7", names_filter="blocks.1.mlp.hook_expert_indices")
    assert logits.shape == (1, 3, 160)
    assert cache["blocks.1.mlp.hook_expert_indices"].shape == (1, 3, 2)
    assert model.to_str_tokens("t5 t6") == ["t5", "t6"]


def test_fp8_checkpoint_loads_and_is_hooked(tmp_path: Path, ids: torch.Tensor) -> None:
    meant = fp8_checkpoint(tmp_path / "fp8")
    plain = save_tiny(tiny_model("deepseek_v3", moe_intermediate_size=64), tmp_path / "plain")
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    reference = moelens.load(str(plain), dtype=torch.float32)
    model = moelens.load(str(tmp_path / "fp8"), dtype=torch.float32)
    assert all(c.passed for c in model.checks), model.checks
    expected, clean = reference.run_with_cache(ids)
    logits, cache = model.run_with_cache(ids)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(cache["blocks.2.mlp.hook_expert_indices"], clean["blocks.2.mlp.hook_expert_indices"])


def test_fp8_weights_that_are_no_multiple_of_a_block(tmp_path: Path) -> None:
    """As `kv_a_proj_with_mqa` of DeepSeek-V3: 576 rows in blocks of 128."""
    fp8_checkpoint(tmp_path)
    packed, meant = load_file(tmp_path / "model.safetensors"), torch.randn(24, 64).to(torch.float8_e4m3fn)
    name = next(n for n in packed if n.endswith("kv_a_proj_with_mqa.weight"))
    assert packed[name].shape == meant.shape
    scales = torch.tensor([[0.5, 2.0]])
    save_file(packed | {name: meant, name + "_scale_inv": scales}, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"].remove("kv_a_proj_with_mqa")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = moelens.load(str(tmp_path), dtype=torch.float32)
    expected = meant.float() * scales.repeat_interleave(BLOCK, 1)
    held = dict(model.hf_model.named_parameters())[name]
    torch.testing.assert_close(held.float(), expected, atol=2e-2, rtol=1e-2)


def test_fp8_experts_kept_in_fp8_are_reached_through_their_own_registry(ids: torch.Tensor) -> None:
    """What a GPU with FP8 kernels runs: `FP8Experts`. Its weights are dequantised where there are hooks inside."""
    model, packed = (tiny_model("deepseek_v3", moe_intermediate_size=64) for _ in range(2))
    linears = [n for n, m in packed.named_modules() if isinstance(m, torch.nn.Linear)]
    from transformers import FineGrainedFP8Config

    fp8.replace_with_fp8_linear(
        packed, modules_to_not_convert=linears, quantization_config=FineGrainedFP8Config(weight_block_size=(32, 32))
    )
    layers = [
        (a.mlp.experts, b.mlp.experts) for a, b in zip(model.model.layers[1:], packed.model.layers[1:], strict=True)
    ]
    for dense, held in layers:
        assert isinstance(held, fp8.FP8Experts)
        for name in ("gate_up_proj", "down_proj"):
            parts = [quantise(w) for w in getattr(dense, name).data]
            for suffix, tensors in zip(("", "_scale_inv"), zip(*parts, strict=True), strict=True):
                setattr(held, name + suffix, torch.nn.Parameter(torch.stack(tensors), requires_grad=False))
            getattr(dense, name).data = torch.stack([dequantise(*p) for p in parts])
    plain = logits_of(model(ids))
    hooked = moelens.hook(packed)
    logits, cache = hooked.run_with_cache(ids)
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)
    assert cache["blocks.2.mlp.experts.hook_post"].shape == (2, 12, 2, 64)
    assert all(c.passed for c in hooked.checks), hooked.checks


OFFLOADED = ("deepseek_v3", "gpt_oss", *(n for n in ("step3p7", "llama4") if n in ARCHITECTURES))


@pytest.mark.parametrize("name", OFFLOADED)
def test_layers_on_disk_keep_logits_and_records(name: str, tmp_path: Path, ids: torch.Tensor) -> None:
    model = tiny_model(name)
    plain = logits_of(model(ids))
    layers = next(n for n, _ in model.named_modules() if n.endswith("layers"))
    others = {n.rpartition(".")[0] for n, _ in [*model.named_parameters(), *model.named_buffers()]}
    places = {n: "cpu" for n in others if not n.startswith(layers)}
    dispatch_model(
        model,
        places | {f"{layers}.{i}": ("cpu", "disk")[i % 2] for i in range(4)},
        main_device="cpu",
        offload_dir=str(tmp_path),
    )
    hooked = moelens.hook(model)
    with torch.no_grad():
        logits, cache = hooked.run_with_cache(ids)
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-5)
    layer = hooked.shape.moe_layers[-1]
    assert cache[f"blocks.{layer}.mlp.experts.hook_out"].shape[:3] == (2, 12, 2)
    hooked.unhook()


def test_full_size_without_weights() -> None:
    shape, rule, names = inspect_architecture("deepseek_v3")
    assert (shape.n_layers, len(shape.moe_layers), shape.n_experts, shape.top_k) == (61, 58, 256, 8)
    assert (shape.n_groups, shape.topk_groups, shape.n_shared, shape.d_model) == (8, 4, 1, 7168)
    assert rule is not None
    assert str(rule) == "sigmoid + bias, top-8 in 4 of 8 groups, normalised, times 2.5"
    assert "blocks.60.mlp.hook_router_logits" in names


def test_the_table_of_architectures_says_how_or_why_not() -> None:
    table = architectures()
    assert table["deepseek_v3"] == "experts interface"
    assert table["llama4"] == "adapter"
    assert table["switch_transformers"].startswith("no: it is an encoder-decoder model")


ERRORS = [
    ("no/such-folder", UnknownNameError, "unknown model 'no/such-folder'.*give a folder, a hub name"),
    ("demoo", UnknownNameError, "did you mean 'demo'"),
]


@pytest.mark.parametrize("name, error, text", ERRORS)
def test_unknown_models(name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        moelens.load(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(MoeLensError, match="is not a model transformers can load"):
        moelens.load(str(tmp_path))


def test_experts_that_cannot_be_hooked() -> None:
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts = torch.nn.ModuleList([torch.nn.Linear(64, 64)])
    with pytest.raises(
        UnsupportedModelError,
        match="keeps its experts outside transformers' experts interface, where moelens cannot hook them",
    ):
        moelens.hook(model)


def test_an_installation_without_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "DEMO", tmp_path)
    with pytest.raises(MoeLensError, match="the bundled model is missing from this installation; install moelens"):
        moelens.load("demo")


def test_experts_packed_in_fp4() -> None:
    with pytest.raises(
        UnsupportedModelError, match="expected expert weights in FP8 or wider, got FP4; load the model dequantised"
    ):
        experts.dequantise(torch.zeros(2, 2, dtype=torch.int8), torch.ones(1), None)


def test_architecture_errors() -> None:
    with pytest.raises(UnknownNameError, match="unknown architecture 'deepseek-v3'; did you mean 'deepseek_v3'"):
        inspect_architecture("deepseek-v3")
    with pytest.raises(UnsupportedModelError, match="doge cannot be hooked: its experts are rows"):
        inspect_architecture("doge")
    with pytest.raises(
        MoeLensError,
        match="the default configuration of 'dbrx' does not describe a whole model with experts; give a folder",
    ):
        inspect_architecture("dbrx")


@pytest.mark.slow
def test_the_table_says_which_architectures_have_no_whole_default() -> None:
    hooked = (name for name, how in architectures().items() if not how.startswith(("no: ", "text model: ")))
    without = set()
    for name in hooked:
        try:
            find_moe_layers(loading._build_on_meta(name))
        except MoeLensError:
            without.add(name)
    assert without == loading.WITHOUT_DEFAULT
