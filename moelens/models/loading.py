"""Models by name: from a hub, a folder, the package itself, or at full size without weights."""

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
from moelens.models.adapters import ADAPTED, REFUSED
from moelens.models.experts import partial_blocks
from moelens.models.hooked import HookedMoE
from moelens.models.routers import Replay, identify
from moelens.models.structure import MoEShape, Site, describe, find_sites, refused
from moelens.models.taps import parts_of

DEMO = Path(str(files("moelens.demo") / "model"))


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
    """Load and hook a model.

    Args:
        model: "demo" (the bundled one), a folder, or a name on the hub.
        device_map, dtype, revision, trust_remote_code, kwargs: as in transformers' `from_pretrained`.
        check: compare the model with itself on a short input.

    Raises:
        UnknownNameError: neither a folder nor a model that the hub or its cache has.
        MoeLensError: transformers cannot load it, or the connection ended before it was fetched.
        UnsupportedModelError: no experts, or experts that moelens cannot reach.
        CheckError: the model's numbers contradict each other.

    Example:
        >>> model = moelens.load("demo")  # doctest: +SKIP
        >>> model.shape.n_experts         # doctest: +SKIP
        32
    """
    source = str(DEMO) if model == "demo" else model
    if model == "demo" and not (DEMO / "model.safetensors").exists():
        raise MoeLensError("the bundled model is missing from this installation; install moelens again")
    if model == "demo":
        transformers.utils.logging.disable_progress_bar()  # a quarter of a second is no progress to watch
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        for part in (config, config.get_text_config(decoder=True)):
            if part.model_type in REFUSED:
                raise refused(repr(model), part.model_type)
        quantised = getattr(config, "quantization_config", None) or {}
        with partial_blocks(quantised.get("weight_block_size")):
            loaded = auto_class(config).from_pretrained(source, device_map=device_map, dtype=dtype, **options, **kwargs)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if Path(model).exists() or isinstance(error, RuntimeError):
            raise MoeLensError(f"{model!r} is not a model transformers can load: {one_line(error)}") from error
        if broken_off := not_fetched(model, error):
            raise broken_off from error
        raise unknown(
            "model", model, ["demo"], "give a folder, a hub name that can be reached or is in its cache, or 'demo'"
        ) from error
    return HookedMoE(loaded.eval(), tokenizer, name=model, check=check)


def not_fetched(model: str, error: BaseException) -> MoeLensError | None:
    """The error to raise if `error` comes from a connection that ended; not from one that was never made."""
    found: BaseException | None = error
    while found:  # named, not imported: the hub's library has changed its HTTP client, and may again
        names = {c.__name__ for c in type(found).__mro__}
        if "TransportError" in names and "ConnectError" not in names:
            return MoeLensError(f"{model!r} was not fetched whole ({one_line(found)}); run it again")
        found = found.__cause__ or found.__context__
    return None


def one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:300]


def auto_class(config: Any) -> Any:
    """The transformers class for text generation with this configuration."""
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText, transformers.AutoModel):
        if type(config) in auto._model_mapping:
            return auto
    return transformers.AutoModelForCausalLM  # its own error says what is missing


def without_weights(architecture: str) -> tuple[MoEShape, Replay | None, list[str]]:
    """An architecture at its published size, on the meta device.

    Args:
        architecture: transformers' `model_type`, such as "deepseek_v3".

    Returns:
        Shape, the first router's rule (found by running that one router on random numbers; None where it cannot run
        alone or follows no known rule) and the names of the hook points.
    """
    table = architectures()
    if architecture not in table:
        raise unknown("architecture", architecture, table, "`moelens info --architectures` lists them")
    if architecture in REFUSED:
        raise refused(architecture, architecture)
    model = on_meta(architecture)
    layers, sites = find_sites(model)
    rule = next((r for r in map(try_router, (sites[0], sites[-1])) if r), None)
    hooked = HookedMoE(model, name=architecture)
    names = list(hooked.hook_dict)
    hooked.unhook()
    return describe(model, layers, sites, rule.score if rule else "unknown"), rule, names


def on_meta(architecture: str) -> Any:
    """An architecture's model with its default configuration, or the text part of it, without memory for weights."""
    reason: Exception | None = None
    for part in (False, True):
        try:
            config = transformers.AutoConfig.for_model(architecture)
            config = config.get_text_config(decoder=True) if part else config
            with torch.device("meta"):
                return auto_class(config)._model_mapping[type(config)](config)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # an unfinished configuration
            reason = reason or error
    raise MoeLensError(
        f"the default configuration of {architecture!r} is not a whole model; give a folder or a hub name instead"
    ) from reason


def try_router(site: Site) -> Replay | None:
    """Find a router's rule by running it, with random weights, on random hidden states."""
    if site.router is None:
        return None
    block = nn.Module()
    block.router = copy.deepcopy(site.router).to_empty(device="cpu").float()
    width = next((p.shape[-1] for p in block.router.parameters() if p.ndim == 2), 0)
    generator = torch.Generator().manual_seed(0)
    arguments = list(inspect.signature(site.router.forward).parameters)[1:]
    for name in (a for a in arguments if "bias" in a):  # held by the block and passed in
        block.register_buffer(name, torch.empty(site.n_experts))
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        hidden = torch.randn(32, width, generator=generator)
        try:
            output = block.router.eval()(hidden, **dict(block.named_buffers(recurse=False)))
        except (TypeError, RuntimeError, ValueError, AttributeError):
            return None  # it takes more than hidden states
    at = parts_of(output, site.n_experts)
    if {"logits", "weights", "indices"} - set(at):
        return None
    logits, weights, indices = (output[at[n]].flatten(0, -2) for n in ("logits", "weights", "indices"))
    return identify(block, logits, indices, weights, site.groups)


@cache
def architectures() -> dict[str, str]:
    """Every architecture of the installed transformers with experts, and how moelens reaches them.

    Returns:
        By `model_type` folder: "experts interface", "adapter", or "no: " and the reason.
    """
    table: dict[str, str] = {}
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        classes = set(re.findall(r"^class (\w+)\(", text, re.MULTILINE))
        name = path.parent.name
        if "@use_experts_implementation" in text:
            table[name] = "experts interface"
        elif classes & set(ADAPTED):
            table[name] = "adapter"
        elif name in REFUSED:
            table[name] = f"no: {REFUSED[name]}"
    return table
