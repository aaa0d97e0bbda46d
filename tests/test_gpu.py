"""What differs on a GPU, against the CPU. Without a GPU the same code runs on the CPU, so that it is known to work.

`pytest -m gpu` runs only what needs a GPU; `.ci/gpu` runs it with the benchmark.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fp8 import fp8_checkpoint
from helpers.tiny import save_tiny, tiny_inputs, tiny_model
from safetensors.torch import save_file
from transformers.integrations import finegrained_fp8 as fp8

import moelens
from benchmarks import gpu as benchmark

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")],
    ),
]
ARCHITECTURES = ("qwen3_moe", "mixtral", "deepseek_v3", "olmoe", "gpt_oss")


@pytest.mark.parametrize("device", DEVICES)
def test_routes_are_those_of_the_cpu_where_the_margin_is_clear(device: str) -> None:
    found = benchmark.compare_routes(device == "cpu", device)
    assert found["choices"] > 0
    assert found["differ with a margin above 0.001"] == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_interiors_and_edits_are_those_of_float64_on_the_cpu(name: str, device: str) -> None:
    plain_model = tiny_model(name).double().eval()
    plain_model.set_experts_implementation("eager")  # the grouped kernel of torch has no float64
    reference = moelens.hook(plain_model)
    model = moelens.hook(tiny_model(name).float().eval().to(device))
    inputs = tiny_inputs(reference.hf_model)
    layer = reference.shape.moe_layers[-1]
    point = f"blocks.{layer}.mlp.hook_out"
    edit = [(point, lambda value, hook: value * 0.5)]
    outputs = []
    for each in (reference, model):
        ids = inputs["input_ids"].to(each.device)
        with torch.no_grad():
            plain, cache = each.run_with_cache(ids)
            edited = each.run_with_hooks(ids, fwd_hooks=edit)
        outputs.append([value.double().cpu() for value in (plain, cache[point], edited)])
    for expected, got in zip(*outputs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(outputs[0][0], outputs[0][2])


@pytest.mark.parametrize("device", DEVICES)
def test_an_interrupted_recording_is_resumed(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = moelens.load("demo", device_map=device)
    texts = [document.text for document in moelens.Corpus.of("demo")][:6]
    whole = moelens.record(model, texts, tmp_path / "whole", progress=False)
    begin, calls = model.hf_model.forward, []

    def forward(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return begin(*args, **kwargs)

    monkeypatch.setattr(model.hf_model, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        moelens.record(model, texts, tmp_path / "run", batch_tokens=64, progress=False)
    monkeypatch.undo()
    resumed = moelens.record(model, texts, tmp_path / "run", batch_tokens=64, progress=False)
    assert np.array_equal(whole.indices(), resumed.indices())


@pytest.mark.parametrize("device", DEVICES)
def test_fp8_weights_are_those_that_they_stand_for(device: str, tmp_path: Path, ids: torch.Tensor) -> None:
    """With the kernels of a GPU, which round activations to FP8 too; a CPU converts the weights when it loads them."""
    if device == "cuda":
        try:
            fp8.load_finegrained_fp8_kernel()
        except ImportError as error:
            pytest.skip(f"transformers finds no kernels for FP8: {error}")
    meant = fp8_checkpoint(tmp_path / "fp8")
    plain = save_tiny(tiny_model("deepseek_v3", moe_intermediate_size=64), tmp_path / "plain")
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    reference = moelens.load(str(plain), dtype=torch.float32)
    model = moelens.load(str(tmp_path / "fp8"), dtype="auto" if device == "cuda" else torch.float32, device_map=device)
    assert all(check.passed for check in model.checks), model.checks
    point = f"blocks.{reference.shape.moe_layers[0]}.mlp.hook_out"
    expected, clean = reference.run_with_cache(ids)
    got, cache = model.run_with_cache(ids.to(model.device))
    near = 0.1 if device == "cuda" else 1e-4
    for a, b in ((expected, got), (clean[point], cache[point])):
        assert (a - b.float().cpu()).norm() <= near * a.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_a_part_of_the_model_elsewhere_gives_the_same(device: str, tmp_path: Path) -> None:
    """The layers with odd numbers are on the CPU, or on disk for a model on the CPU."""
    other = "cpu" if device == "cuda" else "disk"
    where = {f"model.layers.{i}": other if i % 2 else device for i in range(5)}
    where |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), device)
    texts = [document.text for document in moelens.Corpus.of("demo")][:6]
    capture = ["routes", "margin", "neurons:4"]
    whole, parts = (
        moelens.record(model, texts, tmp_path / name, capture=capture, progress=False)
        for model, name in (
            (moelens.load("demo", device_map=device), "whole"),
            (moelens.load("demo", device_map=where, offload_folder=str(tmp_path / "offload")), "parts"),
        )
    )
    assert benchmark.differing(whole, parts)["differ with a margin above 0.001"] == 0


@pytest.mark.parametrize("device", DEVICES)
def test_two_processes_on_one_device(device: str, tmp_path: Path) -> None:
    """Each holds the model and records its share."""
    texts = [document.text for document in moelens.Corpus.of("demo")][:6]
    (tmp_path / "c.txt").write_text("\n".join(text.replace("\n", " ") for text in texts), "utf-8")
    capture = ["--capture", "routes", "margin"]
    command = ["-m", "moelens", "record", "demo", str(tmp_path / "c.txt"), *capture, "--out"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0" if device == "cuda" else "", "OMP_NUM_THREADS": "1"}
    found = []
    for launcher in ([], two):
        out = tmp_path / f"run{len(found)}"
        done = subprocess.run(
            [sys.executable, *launcher, *command, str(out)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(moelens.Recording.open(out))
    assert benchmark.differing(*found)["differ with a margin above 0.001"] == 0


def test_the_benchmark_runs_in_small_and_the_host_does_not_wait_for_captures() -> None:
    found = benchmark.measure_cost(tiny=True, rounds=1)
    waits = found["waits inside a forward"]
    assert waits["routes"] == waits["bare"]
    assert set(found["time over bare"]) == {"prefill", "decode"}
    assert found["parameters"] > 0
    assert found["recording"]["tokens per second over bare"]["median"] > 0
