"""Formats in which models are published: what is captured in each, what it needs, and which cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers.integrations.finegrained_fp8 import FP8Experts

from moelens.errors import MoeLensError, UnsupportedModelError
from moelens.models.packed import PACKED

_PACKED_EXPERT = re.compile(r"experts\.\d+\..*qweight$")
_ALL = "every hook point of the architecture"


@dataclass(frozen=True, kw_only=True)
class Format:
    """What moelens captures of models in one format.

    Attributes:
        title: the format's name.
        captured: what is captured.
        missing: what is not, and how to get it; "" where everything is captured.
        packages: the packages without which transformers cannot read the format.
    """

    title: str
    captured: str = _ALL
    missing: str = ""
    packages: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "": Format(title="float32, bfloat16, float16"),
    "fp8": Format(
        title="FP8 in blocks",
        captured=f"{_ALL}; without FP8 kernels the weights are unpacked at load, and hooks inside the experts unpack "
        "those of the chosen experts",
    ),
    "mxfp4": Format(
        title="MXFP4 (GPT-OSS)",
        captured="routing and edits of it, residual stream; every hook point on a CPU, where the experts are unpacked",
        missing="inside the experts while they stay packed; load with quantization_config=Mxfp4Config(dequantize=True)",
    ),
    "gguf": Format(
        title="GGUF",
        captured=f"{_ALL}, where the experts are unpacked at load, as they are without GGUF kernels; else routing and "
        "edits of it, shared experts, residual stream",
        missing="inside the experts while they stay packed; load with quantization_config=GgufConfig(dequantize=True)",
        packages=("gguf",),
    ),
    "compressed-tensors": Format(
        title="compressed-tensors (INT4, FP8)",
        captured=f"{_ALL}; the experts are unpacked at load",
        packages=("compressed-tensors",),
    ),
    "bitsandbytes": Format(
        title="bitsandbytes (8 and 4 bits)",
        captured=f"{_ALL}; linear layers are packed, fused experts stay at 16 bits",
        packages=("bitsandbytes",),
    ),
    "awq": Format(
        title="AWQ",
        captured=f"{_ALL}, where the experts are not packed",
        missing="checkpoints with packed experts: transformers cannot unpack them, and the model is refused by name",
        packages=("gptqmodel",),
    ),
    "gptq": Format(
        title="GPTQ",
        captured=f"{_ALL}, where the experts are not packed",
        missing="checkpoints with packed experts: transformers cannot unpack them, and the model is refused by name",
        packages=("optimum", "gptqmodel"),
    ),
    "nvfp4": Format(
        title="NVFP4 and other FP4 but MXFP4",
        captured="nothing: the model is refused by name",
        missing="transformers cannot unpack such experts",
    ),
}
"""Formats by the method that `quantization_config` names; "" for models without one."""


def quantisation(config: Any, given: Any = None) -> dict[str, Any]:
    """Return the quantisation that a configuration describes, or the one given to `from_pretrained`, as a dict."""
    found = getattr(config, "quantization_config", None) or given or {}
    return dict(found) if isinstance(found, dict) else dict(found.to_dict())


def format_name(quantised: dict[str, Any]) -> str:
    """Return the key in `FORMATS` of a quantisation; the method's own name where `FORMATS` lacks it.

    Example:
        >>> format_name({"quant_method": "modelopt", "quant_algo": "NVFP4"})
        'nvfp4'
    """
    method = str(getattr(quantised.get("quant_method", ""), "value", quantised.get("quant_method", "")))
    if quantised.get("load_in_4bit") or quantised.get("load_in_8bit"):
        return "bitsandbytes"
    groups = [group.get("weights") or {} for group in (quantised.get("config_groups") or {}).values()]
    fp4 = any(weights.get("type") == "float" and weights.get("num_bits") == 4 for weights in groups)
    if fp4 or any("nvfp4" in str(quantised.get(key, "")).lower() for key in ("quant_method", "quant_algo", "format")):
        return "nvfp4"
    return method


def require_format(model: str, quantised: dict[str, Any], stored: Iterable[str] = ()) -> None:
    """Refuse a format that cannot be read, before any weights are.

    Args:
        model: the model's name.
        quantised: its quantisation.
        stored: the names of the tensors in its checkpoint, as far as they are known.

    Raises:
        UnsupportedModelError: transformers cannot unpack experts in this format.
        MoeLensError: a package is missing.
    """
    name = format_name(quantised)
    if name == "nvfp4":
        raise UnsupportedModelError(
            f"{model!r} is packed in NVFP4 or another FP4 format, whose experts transformers cannot unpack; use the "
            "model in another format (`moelens info --architectures` lists them)"
        )
    packed = next(filter(_PACKED_EXPERT.search, stored), None) if name in ("awq", "gptq") else None
    if packed is not None:
        raise UnsupportedModelError(
            f"{model!r} holds experts packed in {FORMATS[name].title} ('{packed}'), which transformers cannot unpack "
            "with any package; use the model in another format (`moelens info --architectures` lists them)"
        )
    absent = [p for p in FORMATS[name].packages if find_spec(p.replace("-", "_")) is None] if name in FORMATS else []
    if absent:
        raise MoeLensError(
            f"{model!r} is in the format {FORMATS[name].title}, which needs packages that are not installed; run "
            f"`pip install {' '.join(absent)}`"
        )


def describe_format(hf_model: Any, stored: str = "") -> Format:
    """Describe the format of a loaded transformers model, as it is held in memory.

    Args:
        hf_model: the transformers model.
        stored: the key in `FORMATS` of the files' format, which the model itself no longer says where it was unpacked.

    Example:
        >>> describe_format(demo_model.hf_model).title
        'float32'
    """
    dtype = str(hf_model.dtype).removeprefix("torch.")
    classes = {type(m).__name__ for m in hf_model.modules()}
    for name, (title, how) in PACKED.items():
        if name in classes:
            inside = f"inside the experts, which stay packed; load with {how}"
            return Format(
                title=title, captured="routing and edits of it, shared experts, residual stream", missing=inside
            )
    if FP8Experts.__name__ in classes:
        return Format(title=FORMATS["fp8"].title, captured=f"{_ALL}; hooks inside the experts unpack their weights")
    quantiser = getattr(hf_model, "hf_quantizer", None)
    name = stored if quantiser is None else format_name(quantisation(None, quantiser.quantization_config))
    title = FORMATS[name].title if name in FORMATS else name
    if not name:
        return Format(title=dtype)
    if any(p.dtype in (torch.int8, torch.uint8, torch.int32) for p in hf_model.parameters()):
        return Format(title=f"{title}; experts in {dtype}", captured=f"{_ALL}; linear layers alone are packed")
    return Format(title=f"{title}, unpacked to {dtype} at load")
