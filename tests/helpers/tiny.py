"""Tiny random models of every mixture-of-experts architecture of the installed transformers.

`tiny_model(name)` shrinks the default configuration of an architecture (four layers, hidden size 64, eight experts,
two of them chosen) and fills it with random weights large enough that routing differs between tokens.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

MODELS = Path(transformers.__file__).parent / "models"

# Architectures that do not dispatch through the experts interface and are adapted one by one.
ADAPTED = tuple(n for n in ("step3p7", "llama4", "dbrx", "longcat_flash", "jetmoe") if (MODELS / n).is_dir())

NO_IDS = ("llama4", "dbrx", "jetmoe")
"""Architectures whose experts are not given ids and weights."""


def _on_interface() -> tuple[str, ...]:
    files = sorted(MODELS.glob("*/modeling_*.py"))
    return tuple(dict.fromkeys(f.parent.name for f in files if "@use_experts_implementation" in f.read_text("utf-8")))


INTERFACE: tuple[str, ...] = _on_interface()
ARCHITECTURES: tuple[str, ...] = INTERFACE + ADAPTED

N_LAYERS = 4
VOCABULARY = 160

# Configuration attributes are lowered to these values; smaller values stay.
SIZES: dict[str, int] = {
    name: size
    for size, names in {
        VOCABULARY: "vocab_size text_vocab_size vocab_size_per_layer_input unpadded_vocab_size",
        96: "intermediate_size intermediate_size_mlp dense_intermediate_size ffn_hidden_size "
        "projection_intermediate_size",
        64: "hidden_size d_model embed_dim out_hidden_size sliding_window sliding_window_size attention_chunk_size",
        32: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
        "shared_intermediate_size shared_experts_intermediate_size share_expert_dim expert_ffn_hidden_size "
        "moe_latent_size moe_hidden_size router_hidden_size q_lora_rank",
        16: "head_dim attention_head_dim swa_head_dim global_head_dim kv_channels v_head_dim swa_v_head_dim "
        "qk_nope_head_dim kv_lora_rank index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim "
        "mamba_d_head mamba_head_dim mamba_d_state ssm_state_size mamba_chunk_size chunk_size "
        "hidden_size_per_layer_input",
        8: "num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts "
        "qk_rope_head_dim index_topk mamba_n_heads mamba_num_heads mamba_dt_rank",
        4: "num_attention_heads n_heads num_heads swa_num_attention_heads index_n_heads "
        "linear_num_heads linear_num_key_heads linear_num_value_heads",
        2: "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_global_key_value_heads "
        "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k top_k_experts "
        "mamba_n_groups n_groups depth",
        256: "max_position_embeddings max_seq_len seq_length max_sequence_length original_max_position_embeddings",
    }.items()
    for name in names.split()
}
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
# Where an architecture has these, they do something in every tiny model.
FIXED = {"n_group": 2, "num_expert_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "residual_multiplier": 0.5}
FIRST_DENSE = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "image_token_id", "video_token_id", "audio_token_id")
NOT_A_SETTING = ("architectures", "transformers_version", "model_type", "dtype")

# Classes used where an architecture has no text-only `ForCausalLM`.
TEXT = {
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeTextModel",
    "glm4v_moe": "Glm4vMoeTextModel",
    "muse_spark": "MuseSparkTextModel",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerTextModel",
}
HEADS = ("ForCausalLM", "ForConditionalGeneration", "ForBlockDiffusion", "ForTokenClassification")

# Arguments without which the default configuration has no experts, or is not valid.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": 6, "n_routed_experts": 64, "num_hidden_layers": 12}},
    "deepseek_v2": {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "num_experts_per_tok": 6},
    "diffusion_gemma": {"text_config": {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "gemma4": {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 64, "moe_topk": 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "qwen4_exp": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "output_gate_type": "silu",
    },
}

SPARSE = ["dense", "sparse", "sparse", "sparse"]
LINEAR = ["linear_attention", "full_attention"] * 2
INDEXED = ["linear_attention", "indexed_attention"] * 2
SLIDING = ["sliding_attention", "full_attention"] * 2
ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# Settings that depend on one another, so that lowering them one by one is not enough.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": LINEAR},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0, "kv_n_heads": 2},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": 64},
    },
    "deepseek_ocr2": {"mlp_layer_types": SPARSE},
    "deepseek_v4": {
        "head_dim": 64,
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 16,
        "hc_mult": 2,
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ],
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "diffusion_gemma": {"layer_types": SLIDING},
    "dots3_note": {"head_dim": 24},  # 16 without and 8 with rotation
    "ernie4_5_vl_moe": {"moe_intermediate_size": [48, 32], "rope_parameters": ROPE | {"mrope_section": [2, 2, 4]}},
    "flex_olmo": {"num_experts": 8},
    "gemma4": {"layer_types": SLIDING},
    "glm4v_moe": {"head_dim": 16, "rope_parameters": ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}},
    "glm5_next": {
        "index_kpool": 4,
        "qk_rope_head_dim": 0,
        "layer_types": INDEXED,
        "mlp_layer_types": SPARSE,
        "indexer_types": ["full"] * N_LAYERS,
    },
    "granitemoehybrid": {"layer_types": LINEAR, "mamba_n_groups": 1},
    "hy_v4_vl": {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
    "inkling2_loop": {"n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1, "loop_layer_index_end": 3},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": LINEAR},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4": {"num_experts_per_tok": 2},
    "longcat_flash": {"head_dim": 8, "qk_head_dim": 24, "num_key_value_heads": 4, "zero_expert_num": 4, "moe_topk": 3},
    "mistral4": {"qk_nope_head_dim": 8},
    "muse_spark": {"output_multiplier": 0.5},
    "qwen4_exp": {
        "indexer_head_dim": 16,
        "layer_types": INDEXED,
        "hc_lowrank": 16,
        "ple_embed_dim": 32,
        "ngram_vocab_size_base": 200,
        "split_ngram_parts": 2,
        "make_ngram_vocab_size_divisible_by": 8,
    },
    "step3p7": {
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "mlp_layer_types": SPARSE,
        "swiglu_limits": [0.0, 0.0, 0.5, 0.5],
        "swiglu_limits_shared": [0.0] * 4,
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
        "num_sliding_attention_heads": 4,
    },
}

# A selection bias changes which experts are chosen, not their weights.
SELECTION_BIAS = re.compile(r"correction_bias|expert_bias|balancing_bias")
# Tokens that differ keep their routes apart.
EMBEDDING = re.compile(r"embed_tokens|wte|tok_embed")
KEPT = re.compile(r"norm|scale|scalar|A_log|dt_bias|\bD\b")


def _model_class(name: str) -> type[PreTrainedModel]:
    file = next(f for f in sorted((MODELS / name).glob("modeling_*.py")) if "xpert" in f.read_text("utf-8"))
    module = importlib.import_module(f"transformers.models.{name}.{file.stem}")
    classes = re.findall(r"^class (\w+)\(", file.read_text("utf-8"), re.M)
    chosen = TEXT.get(name) or next(c for head in HEADS for c in classes if c.endswith(head))
    model_class: type[PreTrainedModel] = getattr(module, chosen)
    return model_class


def _small(key: str, value: Any, config: dict[str, Any]) -> Any:
    """One setting made small; attention without grouped keys stays without."""
    if key in FIXED:
        return FIXED[key]
    if key == "pad_token_id" or (key in TOKEN_IDS and value is not None):
        return None if value is None else int(key != "pad_token_id")
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if key in LAYER_COUNTS:
        return min(value, N_LAYERS)
    if key in FIRST_DENSE:
        return min(value, 1)
    if key == "moe_layer_end_index":
        return N_LAYERS - 1
    if key in ("num_key_value_heads", "kv_n_heads") and value == config.get("num_attention_heads"):
        return SIZES["num_attention_heads"]
    return min(value, SIZES.get(key, value))


def _shrunk(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    layers = next((config[k] for k in LAYER_COUNTS if isinstance(config.get(k), int)), 0)
    # With multi-head latent attention the whole head dimension follows from its parts.
    derived = ("head_dim", "qk_head_dim") if "qk_rope_head_dim" in config else ()
    small: dict[str, Any] = {}
    for key, value in config.items():
        if key in overrides:
            small[key] = overrides[key]
        elif key in NOT_A_SETTING or key in derived:
            continue
        elif key == "per_layer_config":
            small[key] = {layer: _shrunk(c, overrides) for layer, c in value.items() if int(layer) < N_LAYERS}
        elif isinstance(value, dict) and key.endswith("_config"):
            small[key] = _shrunk(value, overrides) | {k: value[k] for k in ("model_type",) if k in value}
        elif isinstance(value, (list, tuple)) and layers > N_LAYERS and len(value) in (layers, layers + 1):
            continue  # one entry per layer: the configuration makes it anew
        else:
            small[key] = _small(key, value, config)
    return small


def _keys(config: dict[str, Any]) -> set[str]:
    return set(config).union(*(_keys(value) for value in config.values() if isinstance(value, dict)))


def tiny_config(name: str, **overrides: Any) -> PretrainedConfig:
    """The default configuration of architecture `name`, made small.

    An override holds wherever the configuration has that attribute, in a nested text configuration too; one that it
    has nowhere raises `KeyError`.
    """
    config_class = _model_class(name).config_class
    default = config_class(**ARGUMENTS.get(name, {})).to_dict()
    if unknown := overrides.keys() - _keys(default):
        raise KeyError(f"{config_class.__name__} has no attribute {', '.join(sorted(unknown))}")
    return config_class(**_shrunk(default, OVERRIDES.get(name, {}) | overrides))


@torch.no_grad()
def _randomize(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, scale: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if SELECTION_BIAS.search(name):
            normal(tensor, 0.05)
        elif name.endswith("tid2eid"):
            tensor.copy_(torch.rand(len(tensor), 8, generator=generator).argsort(-1)[:, : tensor.shape[1]])
        elif not tensor.is_floating_point():
            continue
        elif isinstance(tensor, torch.nn.Parameter) and not (tensor.ndim == 1 and KEPT.search(name)):
            normal(tensor, 0.3 if tensor.ndim == 1 else 0.5 if EMBEDDING.search(name) else tensor.shape[-1] ** -0.5)
        else:
            tensor.nan_to_num_(0.0)


def tiny_model(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random float32 model of architecture `name` in eval mode; the global random state stays as it was.

    >>> tiny_model("qwen3_moe").config.num_experts
    8
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model_class(name)(tiny_config(name, **overrides)).float().eval()
    _randomize(model, seed)
    return model


# Classes that read images too. Those of Llama 4 are loaded as text models.
CONDITIONAL = {
    "kimi_k25": "Kimi_K25ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}


def tiny_conditional(name: str) -> PreTrainedModel:
    """A random float32 model in eval mode of the class of architecture `name` that reads images too."""
    model_class = getattr(transformers, CONDITIONAL[name])
    default = model_class.config_class().to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**_shrunk(default, OVERRIDES.get(name, {})))).float().eval()
    _randomize(model, 0)
    return model


def tiny_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Token ids and attention mask `[2, 12]`, both int64, of text only."""
    ids = torch.randint(5, VOCABULARY - 10, (2, 12), generator=torch.Generator().manual_seed(1))
    ids = ids.to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits_of(output: Any) -> torch.Tensor:
    return output.logits if hasattr(output, "logits") else output[0]


def save_tiny(model: Any, folder: Path) -> Path:
    """Write a model with a tokenizer of words t2, t3, … to a folder."""
    vocabulary = {"<s>": 0, "</s>": 1} | {f"t{i}": i for i in range(2, 150)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
