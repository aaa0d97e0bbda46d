"""A small checkpoint in block-quantised FP8."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from helpers.tiny import save_tiny, tiny_model

BLOCK = 32


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-wise FP8 as in DeepSeek-V3's checkpoints: e4m3 values and one scale a block."""
    rows, columns = weight.shape
    blocks = weight.float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3)).clamp(min=1e-12) / 448
    packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).view(rows, columns)
    return packed, scale


def dequantise(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    blocks = packed.float().view(packed.shape[0] // BLOCK, BLOCK, packed.shape[1] // BLOCK, BLOCK)
    return (blocks * scale[:, None, :, None]).view(packed.shape)


def fp8_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Write a small DeepSeek-V3 checkpoint in block-quantised FP8; returns the weights it stands for."""
    save_tiny(tiny_model("deepseek_v3", moe_intermediate_size=64), folder)
    stored, meant = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        projection = "_proj" in name and "a_proj" not in name and all(n % BLOCK == 0 for n in tensor.shape)
        if tensor.ndim == 2 and projection:
            packed, scale = quantise(tensor)
            stored |= {name: packed, name.replace(".weight", ".weight_scale_inv"): scale}
            meant[name] = dequantise(packed, scale)
        else:
            stored[name] = meant[name] = tensor
    assert any("experts.0" in n for n in meant)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["q_a_proj", "kv_a_proj_with_mqa", "lm_head", "gate"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return meant
