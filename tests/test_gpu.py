"""What differs on a GPU, against the CPU. Without a GPU the same code runs on the CPU, so that it is known to work.

`pytest -m gpu` runs only what needs a GPU; `.ci/gpu` runs it with the benchmark.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_inputs, tiny_model

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


def test_the_benchmark_runs_in_small() -> None:
    found = benchmark.measure_cost(tiny=True, rounds=1)
    assert set(found["time over bare"]) == {"prefill", "decode"}
    assert found["parameters"] > 0
