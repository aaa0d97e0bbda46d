"""Two layers of DeepSeek-V3 in FP8, as wide as memory permits, are recorded as the whole model would be."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import DeepseekV3Config

import moelens
from moelens.recording.progress import PROGRESS

DEMO = Path(moelens.__file__).parent / "demo"
BLOCK = 128
GIB = 1 << 30
# Without FP8 kernels the weights are dequantised to bfloat16, and held twice while they are put together.
WIDTHS = {1: 64 * GIB, 2: 18 * GIB, 4: 6 * GIB}
# The recording has several pieces, so that one that was killed can be resumed.
RECORD = (
    "from moelens.recording import recorder; recorder.SHARD_CHARACTERS = 60; "
    "from moelens.commands.command_line import main; main({})"
)


def configuration(divisor: int) -> DeepseekV3Config:
    """Two of DeepSeek-V3's layers, a dense one and one with all 256 experts; hidden sizes over `divisor`."""
    config = DeepseekV3Config()
    config.num_hidden_layers, config.first_k_dense_replace = 2, 1
    config.vocab_size = json.loads((DEMO / "model" / "config.json").read_text("utf-8"))["vocab_size"]
    for name in ("hidden_size", "intermediate_size", "moe_intermediate_size"):
        setattr(config, name, getattr(config, name) // divisor)
    config.num_attention_heads = config.num_key_value_heads = 128 // divisor
    config.architectures = ["DeepseekV3ForCausalLM"]
    config.quantization_config = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    }
    return config


def linears(c: DeepseekV3Config) -> Iterator[tuple[str, int, int]]:
    """Every matrix that DeepSeek-V3's checkpoints hold in FP8: its name, rows and columns."""
    heads, hidden = c.num_attention_heads, c.hidden_size
    for layer in range(c.num_hidden_layers):
        at = f"model.layers.{layer}."
        yield at + "self_attn.q_a_proj", c.q_lora_rank, hidden
        yield at + "self_attn.q_b_proj", heads * (c.qk_nope_head_dim + c.qk_rope_head_dim), c.q_lora_rank
        yield at + "self_attn.kv_a_proj_with_mqa", c.kv_lora_rank + c.qk_rope_head_dim, hidden
        yield at + "self_attn.kv_b_proj", heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank
        yield at + "self_attn.o_proj", hidden, heads * c.v_head_dim
        if layer < c.first_k_dense_replace:
            mlps = [("mlp.", c.intermediate_size)]
        else:
            mlps = [(f"mlp.experts.{i}.", c.moe_intermediate_size) for i in range(c.n_routed_experts)]
            mlps.append(("mlp.shared_experts.", c.moe_intermediate_size * c.n_shared_experts))
        for mlp, width in mlps:
            yield from ((f"{at}{mlp}{name}_proj", width, hidden) for name in ("gate", "up"))
            yield f"{at}{mlp}down_proj", hidden, width


def others(c: DeepseekV3Config) -> dict[str, torch.Tensor]:
    """The weights that stay in bfloat16."""
    found = {
        "model.embed_tokens.weight": torch.randn(c.vocab_size, c.hidden_size),
        "lm_head.weight": torch.randn(c.vocab_size, c.hidden_size) / 50,
        "model.norm.weight": torch.ones(c.hidden_size),
    }
    for layer in range(c.num_hidden_layers):
        at = f"model.layers.{layer}."
        found |= {at + f"{n}_layernorm.weight": torch.ones(c.hidden_size) for n in ("input", "post_attention")}
        found[at + "self_attn.q_a_layernorm.weight"] = torch.ones(c.q_lora_rank)
        found[at + "self_attn.kv_a_layernorm.weight"] = torch.ones(c.kv_lora_rank)
        if layer >= c.first_k_dense_replace:
            found[at + "mlp.gate.weight"] = torch.randn(c.n_routed_experts, c.hidden_size) / c.hidden_size**0.5
            found[at + "mlp.gate.e_score_correction_bias"] = torch.zeros(c.n_routed_experts)
    return {name: tensor.to(torch.bfloat16) for name, tensor in found.items()}


def write_checkpoint(folder: Path, config: DeepseekV3Config) -> None:
    """Write random weights in files of about 1 GiB; matrices of one shape are one matrix, rolled differently."""
    torch.manual_seed(0)
    folder.mkdir()
    patterns: dict[tuple[int, int], torch.Tensor] = {}
    where: dict[str, str] = {}
    stored = others(config)

    def flush() -> None:
        name = f"model-{len(set(where.values())):05d}.safetensors"
        save_file(stored, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(stored, name))
        stored.clear()

    for number, (name, rows, columns) in enumerate(linears(config)):
        if (rows, columns) not in patterns:
            patterns[rows, columns] = (torch.randn(rows, columns) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
        rolled = patterns[rows, columns].view(torch.uint8).roll((number * 7, number * 13), (0, 1))
        stored[name + ".weight"] = rolled.view(torch.float8_e4m3fn)
        scales = torch.full((-(-rows // BLOCK), -(-columns // BLOCK)), 0.01 / columns**0.5)
        stored[name + ".weight_scale_inv"] = scales * (0.5 + torch.rand_like(scales))
        if sum(t.nbytes for t in stored.values()) > GIB:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / "model" / name, folder / name)


@pytest.mark.slow
def test_recorded_killed_resumed_verified_analysed(tmp_path: Path) -> None:
    free = psutil.virtual_memory().available
    divisor = next((d for d, needed in WIDTHS.items() if free >= needed), None)
    if divisor is None:
        pytest.skip(f"{free / GIB:.1f} GiB of memory are free; a quarter of the width needs 6")
    model, out, corpus = tmp_path / "model", tmp_path / "run", tmp_path / "corpus.txt"
    write_checkpoint(model, configuration(divisor))
    texts = ["先生がいらっしゃいました。", "明日は雨が降るそうです。", "この本を読んでください。", "私が参ります。"] * 6
    corpus.write_text("\n".join(texts), "utf-8")
    argv = ["record", str(model), str(corpus), "--out", str(out), "--capture", "routes", "margin"]
    command = [sys.executable, "-c", RECORD.format([*argv, "--batch-tokens", "64"])]

    process = subprocess.Popen(command)
    while process.poll() is None and len([*out.glob(f"{PROGRESS}/*")]) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the recording was finished before it could be killed"
    left = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    assert left
    subprocess.run(command, check=True)

    recording = moelens.Recording.open(out)
    recording.verify()
    assert (recording.n_experts, recording.top_k, recording.layers) == (256, 8, (1,))
    assert recording.documents()["text"].to_pylist() == texts
    experts = recording.indices()[:, 0]
    assert len({*experts.ravel().tolist()}) > 100, "random routers spread tokens over experts"
    assert all(len({*row}) == 8 and len({e // 32 for e in row}) <= 4 for row in experts.tolist())
    labels = moelens.label(recording)
    result = moelens.analyze(
        recording, "honorifics", labels=labels, given=None, permutations=50, min_tokens=5, progress=False
    )
    assert result.lift.shape[:2] == (1, 256)
