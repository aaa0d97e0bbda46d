"""Loading models: from the hub, a folder or the package itself, and architectures at full size without weights."""

from __future__ import annotations

import copy
import inspect
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from moelens.errors import MoeLensError, unknown
from moelens.models.adapters import ADAPTERS, UNSUPPORTED
from moelens.models.experts import allow_partial_blocks
from moelens.models.hooked import HookedMoE
from moelens.models.routers import RouterRule, identify_rule
from moelens.models.structure import MoELayer, MoEShape, find_moe_layers, read_shape, unsupported_architecture
from moelens.models.taps import router_output_parts

DEMO = Path(str(files("moelens.demo") / "model"))
"""The folder of the bundled model."""


def load(
    model: str,
    *,
    device_map: Any = None,
    dtype: Any = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
    **kwargs: Any,
) -> HookedMoE:
    """Load a model and its tokenizer, and hook the model.

    Args:
        model: "demo" (the bundled model), a folder, or a name on the hub.
        device_map: as in transformers' `from_pretrained`.
        dtype: as in transformers' `from_pretrained`.
        revision: as in transformers' `from_pretrained`.
        trust_remote_code: as in transformers' `from_pretrained`.
        check: whether to compare the model with itself on a short input.
        kwargs: further arguments of transformers' `from_pretrained`.

    Returns:
        The hooked model.

    Raises:
        UnknownNameError: `model` is neither a folder nor a model on the hub or in its cache.
        MoeLensError: transformers cannot load the model, or the download was interrupted.
        UnsupportedModelError: the model has no experts, or moelens cannot reach them.
        CheckError: the model's numbers contradict each other.

    Example:
        >>> model = load("demo")
        >>> model.shape.model_type, model.shape.top_k
        ('deepseek_v3', 4)
    """
    source = str(DEMO) if model == "demo" else model
    if model == "demo" and not (DEMO / "model.safetensors").exists():
        raise MoeLensError("the bundled model is missing from this installation; install moelens again")
    if model == "demo":
        transformers.utils.logging.disable_progress_bar()  # it loads in a quarter of a second
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        for part in (config, config.get_text_config(decoder=True)):
            if part.model_type in UNSUPPORTED:
                raise unsupported_architecture(repr(model), part.model_type)
        quantised = getattr(config, "quantization_config", None) or {}
        with allow_partial_blocks(quantised.get("weight_block_size")):
            loaded = auto_class(config).from_pretrained(source, device_map=device_map, dtype=dtype, **options, **kwargs)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if Path(model).exists() or isinstance(error, RuntimeError):
            raise MoeLensError(f"{model!r} is not a model transformers can load: {_one_line(error)}") from error
        if interrupted := interrupted_download(model, error):
            raise interrupted from error
        raise unknown(
            "model", model, ["demo"], "give a folder, a hub name that can be reached or is in its cache, or 'demo'"
        ) from error
    return HookedMoE(loaded.eval(), tokenizer, name=model, check=check)


def interrupted_download(model: str, error: BaseException) -> MoeLensError | None:
    """Make the error to raise if a download was interrupted.

    Args:
        model: the model's name.
        error: what transformers raised.

    Returns:
        The error if `error` comes from a connection that ended; None if it does not, or if no connection was made.
    """
    cause: BaseException | None = error
    while cause:  # classes are compared by name, because the hub's library has changed its HTTP client before
        names = {c.__name__ for c in type(cause).__mro__}
        if "TransportError" in names and "ConnectError" not in names:
            return MoeLensError(f"the download of {model!r} was interrupted ({_one_line(cause)}); try again")
        cause = cause.__cause__ or cause.__context__
    return None


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:300]


def auto_class(config: Any) -> Any:
    """Return the transformers class that loads models with this configuration for text generation."""
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText, transformers.AutoModel):
        if type(config) in auto._model_mapping:
            return auto
    return transformers.AutoModelForCausalLM  # its error says what is missing


def inspect_architecture(architecture: str) -> tuple[MoEShape, RouterRule | None, list[str]]:
    """Describe an architecture at its published size, without memory for its weights.

    Args:
        architecture: transformers' `model_type`, such as "deepseek_v3".

    Returns:
        The sizes; the rule of the first router that follows a known one, found by running it alone on random numbers,
        or None; and the names of the hook points.

    Raises:
        UnknownNameError: transformers has no such architecture.
        UnsupportedModelError: moelens cannot hook it.
        MoeLensError: its default configuration does not describe a whole model.
    """
    table = architectures()
    if architecture not in table:
        raise unknown("architecture", architecture, table, "`moelens info --architectures` lists them")
    if architecture in UNSUPPORTED:
        raise unsupported_architecture(architecture, architecture)
    model = build_on_meta(architecture)
    shape, rule = _describe(model)
    hooked = HookedMoE(model, name=architecture)
    names = list(hooked.hook_dict)
    hooked.unhook()
    return shape, rule, names


def describe_configuration(model: str) -> tuple[MoEShape, RouterRule | None]:
    """Describe a model from its configuration alone.

    Args:
        model: "demo", a folder, an architecture such as "deepseek_v3" at its published size, or a name on the hub.

    Returns:
        The sizes, and the rule of the first router that follows a known one, or None.

    Raises:
        UnknownNameError: there is no such model.
        UnsupportedModelError: it has no experts, or moelens cannot reach them.

    Example:
        >>> shape, rule = describe_configuration("demo")
        >>> shape.moe_layers, rule.normalised
        ((1, 2, 3, 4), True)
    """
    return _describe(model_without_weights(model))


def _describe(model: Any) -> tuple[MoEShape, RouterRule | None]:
    """Find the sizes and the rule of a model on the meta device."""
    layers, moe_layers = find_moe_layers(model)
    rule = next((r for r in map(_try_router, (moe_layers[0], moe_layers[-1])) if r), None)
    return read_shape(model, layers, moe_layers, rule.score if rule else "unknown"), rule


def model_without_weights(model: str) -> Any:
    """Build a model on the meta device, from its configuration alone.

    Args:
        model: as in `describe_configuration`.

    Raises:
        UnknownNameError: there is no such model.
    """
    if model in architectures() and not Path(model).is_dir():
        return build_on_meta(model)
    try:
        config = transformers.AutoConfig.from_pretrained(str(DEMO) if model == "demo" else model)
    except (OSError, ValueError) as error:
        if interrupted := interrupted_download(model, error):
            raise interrupted from error
        raise unknown("model", model, ["demo"], "give a folder, an architecture or a name on the hub") from error
    with torch.device("meta"):
        return auto_class(config)._model_mapping[type(config)](config)


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model without the model.

    Args:
        name: "demo", a folder, or a name on the hub.

    Raises:
        UnknownNameError: there is no such tokenizer.

    Example:
        >>> load_tokenizer("demo")("先生は")["input_ids"]
        [0, 1050, 271]
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(str(DEMO) if name == "demo" else name)
    except Exception as error:  # of transformers, the hub's library, or tokenizers, which raises the class itself
        if interrupted := interrupted_download(name, error):
            raise interrupted from error
        raise unknown(
            "tokenizer", name, ["demo"], f"give a folder, or the name of a model; {_one_line(error)}"
        ) from error


def build_on_meta(architecture: str) -> Any:
    """Build an architecture's model, or its text part, with the default configuration on the meta device.

    Args:
        architecture: transformers' `model_type`.

    Returns:
        The transformers model, whose weights have shapes but no memory.

    Raises:
        MoeLensError: the default configuration does not describe a whole model.
    """
    reason: Exception | None = None
    for text_part in (False, True):
        try:
            config = transformers.AutoConfig.for_model(architecture)
            config = config.get_text_config(decoder=True) if text_part else config
            with torch.device("meta"):
                return auto_class(config)._model_mapping[type(config)](config)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # an incomplete configuration
            reason = reason or error
    raise MoeLensError(
        f"the default configuration of {architecture!r} does not describe a whole model; "
        "give a folder or a hub name instead"
    ) from reason


def _try_router(layer: MoELayer) -> RouterRule | None:
    """Find a router's rule by running it, with random weights, on random hidden states."""
    if layer.router is None:
        return None
    block = nn.Module()
    block.router = copy.deepcopy(layer.router).to_empty(device="cpu").float()
    width = next((p.shape[-1] for p in block.router.parameters() if p.ndim == 2), 0)
    generator = torch.Generator().manual_seed(0)
    arguments = list(inspect.signature(layer.router.forward).parameters)[1:]
    for name in (a for a in arguments if "bias" in a):  # the block holds it and passes it to the router
        block.register_buffer(name, torch.empty(layer.n_experts))
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        hidden = torch.randn(32, width, generator=generator)
        try:
            output = block.router.eval()(hidden, **dict(block.named_buffers(recurse=False)))
        except (TypeError, RuntimeError, ValueError, AttributeError):
            return None  # it needs more than hidden states
    parts = router_output_parts(output, layer.n_experts)
    if {"logits", "weights", "indices"} - set(parts):
        return None
    logits, weights, indices = (output[parts[n]].flatten(0, -2) for n in ("logits", "weights", "indices"))
    return identify_rule(block, logits, indices, weights, layer.groups)


@cache
def architectures() -> dict[str, str]:
    """List the architectures of the installed transformers that have experts.

    Returns:
        By the architecture's folder in transformers, how moelens reaches its experts: "experts interface", "adapter",
        or "no: " and the reason why it does not.

    Example:
        >>> architectures()["deepseek_v3"], architectures()["llama4"]
        ('experts interface', 'adapter')
    """
    table: dict[str, str] = {}
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        classes = set(re.findall(r"^class (\w+)\(", text, re.MULTILINE))
        name = path.parent.name
        if "@use_experts_implementation" in text:
            table[name] = "experts interface"
        elif classes & set(ADAPTERS):
            table[name] = "adapter"
        elif name in UNSUPPORTED:
            table[name] = f"no: {UNSUPPORTED[name]}"
    return table
