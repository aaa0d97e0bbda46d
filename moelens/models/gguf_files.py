"""GGUF files, the format of llama.cpp: what transformers leaves out when it reads one, and whether it read all."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers.utils import cached_file

from moelens.errors import MoeLensError, UnsupportedModelError
from moelens.models.formats import require_format
from moelens.models.load_checks import Check
from moelens.models.tokens import byte_alphabet

# Attributes of configurations that transformers leaves at their defaults, by the file's key after the architecture.
_LEFT_OUT = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_shared_count": "n_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "leading_dense_block_count": "first_k_dense_replace",
}
_MISREAD = {
    "llama": "reads it as a model without experts",
    "gpt-oss": "does not read its experts",
}
"""By GGUF architecture, what transformers does with its Mixture-of-Experts models instead of reading them."""


def require_gguf(source: str, name: str, revision: str | None = None) -> Path:
    """Find a GGUF file and refuse one that cannot be read.

    Args:
        source: a folder or a hub name.
        name: the file's name there.
        revision: as in transformers' `from_pretrained`.

    Raises:
        MoeLensError: the package gguf is missing, there is no such file, or it is damaged or a part of a split one.
        UnsupportedModelError: it holds a model that transformers does not read whole.
    """
    require_format(name, {"quant_method": "gguf"})
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        if not path.is_file():
            there = ", ".join(f"'{p.name}'" for p in sorted(folder.glob("*.gguf"))) or "none"
            raise MoeLensError(f"'{folder}' has no file '{name}'; its GGUF files: {there}")
    else:
        path = Path(cached_file(source, name, revision=revision))
    fields = _read(path)[0]
    if int(fields.get("split.count", 1)) > 1:
        raise MoeLensError(
            f"'{path.name}' is one of {fields['split.count']} parts, and transformers reads a single file; put them "
            "together with llama-gguf-split --merge"
        )
    architecture = fields["general.architecture"]
    if reason := _MISREAD.get(architecture) if f"{architecture}.expert_count" in fields else None:
        raise UnsupportedModelError(
            f"'{path.name}' holds experts in the GGUF architecture '{architecture}', and transformers {reason}; use "
            "the model in another format"
        )
    return path


def _read(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A file's metadata by key, and the names of its tensors."""
    return _read_once(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_once(path: Path, changed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise MoeLensError(f"'{path}' is damaged, incomplete or no GGUF file ({text}); download it again") from error
    return fields, tuple(tensor.name for tensor in reader.tensors)


def gguf_config(source: str, path: Path) -> Any:
    """Read the configuration of a model from its GGUF file, with what transformers leaves at its defaults.

    Args:
        source: the folder or hub name that the file is in.
        path: the file.

    Raises:
        UnsupportedModelError: its rotary embedding is scaled in a way that is not known here.
    """
    fields, _ = _read(path)
    architecture = fields["general.architecture"]
    config = transformers.AutoConfig.from_pretrained(source, gguf_file=path.name, trust_remote_code=False)
    for key, attribute in _LEFT_OUT.items():
        if f"{architecture}.{key}" in fields and hasattr(config, attribute):
            setattr(config, attribute, fields[f"{architecture}.{key}"])
    scaling = {k.rpartition(".")[2]: v for k, v in fields.items() if k.startswith(f"{architecture}.rope.scaling.")}
    kind = scaling.get("type", "none")
    if kind in ("linear", "yarn"):
        scaled = {"rope_type": kind, "factor": float(scaling["factor"])}
        if "original_context_length" in scaling:
            scaled["original_max_position_embeddings"] = int(scaling["original_context_length"])
        config.rope_parameters = (config.rope_parameters or {}) | scaled
    elif kind != "none":
        raise UnsupportedModelError(
            f"'{path.name}' scales its rotary embedding by '{kind}', which is not read from GGUF files; use the model "
            "in another format"
        )
    return config


def unread_tensors(path: Path, hf_model: Any) -> set[str]:
    """Return the tensors of a GGUF file that transformers left out without a word, by their names in the file.

    Args:
        path: the file.
        hf_model: the model that was loaded from it.
    """
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.integrations.gguf import GGUF_ARCHS

    fields, names = _read(path)
    architecture = fields["general.architecture"]
    if architecture in GGUF_ARCHS:  # they are in transformers' report
        return set()
    processor = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)(config=hf_model.config.to_dict())
    read = reading.get_gguf_hf_weights_map(hf_model, processor)
    return {n for n in names if not {n, n.removesuffix(".weight")} & read.keys() and not n.startswith("rope_freqs")}


def as_in_file(path: Path, tokenizer: Any) -> tuple[Any, Check]:
    """Take out of a tokenizer the tokens that its class added to those of the GGUF file, and check the others.

    Args:
        path: the file.
        tokenizer: the tokenizer that transformers made from it.

    Returns:
        The tokenizer, and the check that its tokens are those of the file.
    """
    fields, _ = _read(path)
    stated = fields["tokenizer.ggml.tokens"]
    if len(tokenizer) > len(stated):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < len(stated)]
        names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in names.items()}
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(content)),
            chat_template=tokenizer.chat_template,
            **{f"{name}_token": stated[i] for name, i in ids.items() if i is not None},
        )
    made = tokenizer.convert_ids_to_tokens(list(range(min(len(stated), len(tokenizer)))))
    differing = sum(_spelt(a) != _spelt(b) for a, b in zip(stated, made, strict=False)) + len(stated) - len(made)
    detail = f"{len(stated):,} tokens in '{path.name}', of which {differing:,} differ in the tokenizer made from it"
    return tokenizer, Check("tokens of the file", not differing, detail)


def _spelt(token: str) -> bytes:
    """The bytes of a token, which files and tokenizers write in different ways."""
    alphabet = byte_alphabet()
    if alphabet.keys() >= set(token):
        return bytes(alphabet[c] for c in token)
    return token.replace("▁", " ").encode()
