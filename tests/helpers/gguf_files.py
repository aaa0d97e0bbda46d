"""GGUF files of tiny models, written on the spot with llama.cpp's package gguf."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants

from moelens.models.tokens import byte_alphabet

Tensors = dict[str, np.ndarray]
ARCHITECTURES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "minimax_m2": "minimax-m2", "gpt_oss": "gpt-oss"}
QWEN35 = {  # llama.cpp's names of what Qwen3.5 has beside other models
    r"linear_attn\.in_proj_qkv\.": "attn_qkv.",
    r"linear_attn\.in_proj_z\.": "attn_gate.",
    r"linear_attn\.in_proj_a\.": "ssm_alpha.",
    r"linear_attn\.in_proj_b\.": "ssm_beta.",
    r"linear_attn\.conv1d\.": "ssm_conv1d.",
    r"linear_attn\.norm\.": "ssm_norm.",
    r"linear_attn\.out_proj\.": "ssm_out.",
    r"linear_attn\.A_log": "ssm_a",
    r"linear_attn\.dt_bias": "ssm_dt.bias",
    r"input_layernorm\.": "attn_norm.",
    r"post_attention_layernorm\.": "post_attention_norm.",
    r"self_attn\.(.)_norm\.": r"attn_\1_norm.",
    r"self_attn\.(.)_proj\.": r"attn_\1.",
    r"attn_o\.": "attn_output.",
    r"mlp\.gate\.": "ffn_gate_inp.",
    r"mlp\.shared_expert_gate\.": "ffn_gate_inp_shexp.",
    r"mlp\.shared_expert\.(\w+)_proj\.": r"ffn_\1_shexp.",
    r"mlp\.experts\.(\w+)_proj\.": r"ffn_\1_exps.",
    r"^model\.layers\.": "blk.",
    r"^model\.embed_tokens\.": "token_embd.",
    r"^model\.norm\.": "output_norm.",
    r"^lm_head\.": "output.",
}


def plain_tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The model's tensors by name, with gate and up projections apart, as published checkpoints have them."""
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(values, 2, axis=1)
            stem = name.removesuffix("gate_up_proj")
            yield stem + "gate_proj.weight", gate
            yield stem + "up_proj.weight", up
        else:
            yield name + (".weight" if name.endswith("experts.down_proj") else ""), values


def named_as_in_llama_cpp(model: Any, architecture: str) -> Tensors:
    """The model's tensors by their names in a GGUF file."""
    key = next(k for k, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names, tensors = get_tensor_name_map(key, model.config.num_hidden_layers), {}
    for name, values in plain_tensors(model):
        if name.endswith("e_score_correction_bias"):
            tensors[f"blk.{name.split('.')[2]}.exp_probs_b.bias"] = values
        else:
            tensors[names.get_name(name, try_suffixes=(".weight", ".bias")) or name] = values.squeeze()
    return tensors


def qwen35_tensors(model: Any) -> Tensors:
    """Qwen3.5's tensors as llama.cpp writes them: norms plus 1, and the decay as it is used."""
    tensors = {}
    for name, values in plain_tensors(model):
        if name.endswith("norm.weight") and "linear_attn" not in name:
            values = values + 1
        if name.endswith("A_log"):
            values = -np.exp(values)
        for pattern, replacement in QWEN35.items():
            name = re.sub(pattern, replacement, name)
        tensors[name] = values.squeeze()
    return tensors


def write(
    model: Any, path: Path, architecture: str, tensors: Tensors, quantisation: GGMLQuantizationType | None = None
) -> Tensors:
    """Write a GGUF file; returns the values that its tensors stand for."""
    config = model.config
    writer = GGUFWriter(str(path), architecture)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_expert_count(getattr(config, "num_experts", None) or config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    for attribute, add in (
        ("intermediate_size", writer.add_feed_forward_length),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
        ("shared_expert_intermediate_size", writer.add_expert_shared_feed_forward_length),
        ("rotary_dim", writer.add_rope_dimension_count),
    ):
        if getattr(config, attribute, None) is not None:
            add(getattr(config, attribute))
    if architecture == "qwen35moe":
        add_linear_attention(writer, config, head)
    add_tokenizer(writer, config.vocab_size)
    meant: Tensors = {}
    for name, values in tensors.items():
        packed = quantisation is not None and values.ndim > 1 and values.shape[-1] % 32 == 0 and "gate_inp" not in name
        values = np.ascontiguousarray(values)
        if packed:
            data = quants.quantize(values, quantisation)
            writer.add_tensor(name, data, raw_dtype=quantisation)
            meant[name] = quants.dequantize(data, quantisation)
        else:
            writer.add_tensor(name, values)
            meant[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def add_linear_attention(writer: GGUFWriter, config: Any, head: int) -> None:
    writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    writer.add_rope_dimension_count(int(head * config.rope_parameters["partial_rotary_factor"]))


def add_tokenizer(writer: GGUFWriter, size: int) -> None:
    """Byte-level BPE with one merge, `a` and `b`."""
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    tokens = [*special, *byte_alphabet()][: size - 1] + ["ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3] * len(special) + [1] * (size - len(special)))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(3)


def put_back(model: Any, architecture: str, meant: Tensors) -> None:
    """Give a model's weights the values that a file's tensors stand for."""
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            parts = [torch.from_numpy(meant[f"blk.{layer}.ffn_{part}_exps.weight"]) for part in ("gate", "up", "down")]
            block.mlp.experts.gate_up_proj.copy_(torch.cat(parts[:2], 1))
            block.mlp.experts.down_proj.copy_(parts[2])
        key = next(k for k, name in MODEL_ARCH_NAMES.items() if name == architecture)
        names = get_tensor_name_map(key, model.config.num_hidden_layers)
        for name, tensor in model.state_dict().items():
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if found in meant and "experts" not in name:
                tensor.copy_(torch.from_numpy(meant[found]).view(tensor.shape))
