"""Recording what a model writes: greedily, whatever the checkpoint's generation configuration says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moelens
from moelens import MoeLensError
from moelens.recording.generation import Greedy

SETTINGS: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"repetition_penalty": 5.0},
    {"do_sample": True, "temperature": 2.0},
    {"return_dict_in_generate": True},
    {"num_beams": 3, "num_return_sequences": 2},
    {"prompt_lookup_num_tokens": 3},
    {"stop_strings": ["。"]},
    {"sequence_bias": {(5, 6): -10.0}},
]


@pytest.fixture(scope="module")
def demo() -> moelens.HookedMoE:
    return moelens.load("demo", dtype=torch.float32)


@pytest.mark.tried(
    "Generation",
    "a `generation_config` with beams, penalties, sampling, stop strings, candidates of a lookup",
    "`record(generate=N)` decodes greedily all the same; its settings are in the manifest",
)
@pytest.mark.parametrize("settings", SETTINGS, ids=[",".join(s) for s in SETTINGS])
def test_the_checkpoint_does_not_decide_what_is_written(
    demo: moelens.HookedMoE, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are those of a greedy run by hand, and the routes those of a forward pass over them."""
    for name, value in settings.items():
        monkeypatch.setattr(demo.hf_model.generation_config, name, value)
    recording = moelens.record(demo, ["先生がいらっしゃいました。"], tmp_path / "run", generate=6, progress=False)
    ids = demo.to_tokens("先生がいらっしゃいました。")
    with torch.no_grad():
        while ids.shape[1] < recording.column("token_id").size:
            ids = torch.cat([ids, demo(ids)[:, -1:].argmax(-1)], 1)
    np.testing.assert_array_equal(recording.column("token_id"), ids[0].numpy())
    _, cache = demo.run_with_cache(ids)
    for n, layer in enumerate(demo.shape.moe_layers):
        want = cache[f"blocks.{layer}.mlp.hook_expert_indices"][0].sort(-1).values.numpy()
        np.testing.assert_array_equal(np.sort(recording.indices()[:, n], -1), want)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert '"strategy": "greedy"' in json.dumps(manifest)


@pytest.mark.tried(
    "Generation",
    "settings that JSON cannot hold: a dict with tuples as keys, NaN, half a surrogate pair, any object",
    "in the manifest as Python writes them",
)
@pytest.mark.parametrize(
    "value, written",
    [
        ({(5, 6): -10.0}, "{(5, 6): -10.0}"),
        (float("nan"), "nan"),
        (["\ud800"], r"['\ud800']"),
        ({1}, "{1}"),
        (b"x", "b'x'"),
        ([1, {"a": None}], [1, {"a": None}]),
    ],
)
def test_settings_that_json_cannot_hold(
    demo: moelens.HookedMoE, value: Any, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.hf_model.generation_config, "own_setting", value, raising=False)
    unused = Greedy.of(demo).to_dict()["unused_settings_of_the_model"]
    assert unused["own_setting"] == written
    assert json.loads(json.dumps(unused, allow_nan=False, ensure_ascii=False).encode()) == unused


def test_a_model_that_cannot_generate(demo: moelens.HookedMoE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.hf_model, "generation_config", None)
    with pytest.raises(MoeLensError, match="DeepseekV3ForCausalLM cannot generate; record without generate"):
        moelens.record(demo, ["はい。"], tmp_path / "run", generate=2, progress=False)
