"""Loading models: from the hub, a folder or the package itself, and architectures at full size without weights."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moelens.errors import MoeLensError, MoeLensWarning, UnsupportedModelError, unknown
from moelens.models.adapters import ADAPTERS, UNSUPPORTED
from moelens.models.checkpoints import (
    check_weights,
    incomplete_weights,
    kept_report,
    require_whole_files,
    stored_names,
    weight_files,
)
from moelens.models.experts import allow_partial_blocks
from moelens.models.formats import format_name, quantisation, require_format
from moelens.models.gguf_files import as_in_file, gguf_config, require_gguf, unread_tensors
from moelens.models.hooked import HookedMoE
from moelens.models.identification import identify_untrained_router
from moelens.models.routers import RouterRule
from moelens.models.structure import MoEShape, find_moe_layers, read_shape, unsupported_architecture
from moelens.models.tokenizers import find_tokenizer

_OF_THE_REMOTE_CODE = ("model_type", "auto_map")
WITHOUT_DEFAULT = frozenset(
    [
        "dbrx",
        "deepseek_ocr2",
        "diffusion_gemma",
        "dots1",
        "gemma4",
        "hunyuan_v1_moe",
        "inkling",
        "lfm2_moe",
        "qwen3_omni_moe",
        "qwen4_exp",
    ]
)
"""Architectures whose default configuration in transformers does not describe a whole model with experts."""
DEMO = Path(str(files("moelens.demo") / "model"))
"""The folder of the bundled model."""


def load(
    model: str,
    *,
    tokenizer: Any = None,
    device_map: Any = None,
    dtype: Any = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
    gguf_file: str | None = None,
    **kwargs: Any,
) -> HookedMoE:
    """Load a model and its tokenizer, and hook the model.

    Args:
        model: "demo" (the bundled model), a folder, a name on the hub, or the path of a GGUF file.
        tokenizer: a tokenizer, or the folder or name to load it from; by default the one that comes with the model.
        device_map: as in transformers' `from_pretrained`.
        dtype: as in transformers' `from_pretrained`.
        revision: as in transformers' `from_pretrained`.
        trust_remote_code: as in transformers' `from_pretrained`.
        check: whether to compare the model with itself on a short input, and to refuse a model whose routers or experts
            are not those of its checkpoint.
        gguf_file: the name of a GGUF file in the folder or repository; it gives configuration, tokenizer and weights.
        kwargs: further arguments of transformers' `from_pretrained`, such as `quantization_config`.

    Returns:
        The hooked model. Its `checks` say whether its weights come from the checkpoint. Without a tokenizer there it
        has none, and a check says so.

    Raises:
        UnknownNameError: `model` is neither a folder nor a model on the hub or in its cache, or there is no such dtype.
        MoeLensError: transformers cannot load the model, a file is damaged, the download was interrupted, or the
            model's format needs a package that is not installed.
        UnsupportedModelError: the model has no experts, or moelens cannot reach them, or it is in a format that
            transformers cannot unpack.
        CheckError: routers or experts are not those of the checkpoint, or the model's numbers contradict each other.

    Example:
        >>> model = load("demo")
        >>> model.shape.model_type, model.shape.top_k
        ('deepseek_v3', 4)
    """
    require_dtype(dtype)
    source = str(DEMO) if model == "demo" else model
    if model == "demo" and not (DEMO / "model.safetensors").exists():
        raise MoeLensError("the bundled model is missing from this installation; install moelens again")
    if model == "demo":
        transformers.utils.logging.disable_progress_bar()  # it loads in a quarter of a second
    if Path(source).suffix == ".gguf" and Path(source).is_file():
        source, gguf_file = str(Path(source).parent), Path(source).name
    trust_remote_code = bool(trust_remote_code)  # for None, transformers would ask
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    files = {"gguf_file": gguf_file} if gguf_file else {}
    with _explained(model, source):
        if Path(source).is_dir():
            require_whole_files(Path(source))
        gguf_path = require_gguf(source, gguf_file, revision) if gguf_file else None
        config = gguf_config(source, gguf_path) if gguf_path else _read_config(source, options)
        for part in (config, config.get_text_config(decoder=True)):
            if part.model_type in UNSUPPORTED:
                raise unsupported_architecture(repr(model), part.model_type)
        quantised = quantisation(config, kwargs.get("quantization_config"))
        require_format(model, quantised, stored_names(source, revision) if quantised else ())
        given, (tokenizer, note) = tokenizer, find_tokenizer(tokenizer, source, options | files)
        if gguf_path and given is None and tokenizer is not None:
            tokenizer, note = as_in_file(gguf_path, tokenizer)
        arguments = files | kwargs | {"output_loading_info": True, "ignore_mismatched_sizes": True}
        with allow_partial_blocks(quantised.get("weight_block_size")), kept_report() as reports:
            try:
                loaded, report = _auto_class(config).from_pretrained(
                    source,
                    config=config,
                    device_map=device_map,
                    dtype=dtype,
                    revision=revision,
                    trust_remote_code=trust_remote_code,
                    **arguments,
                )
            except RuntimeError as error:
                raise (incomplete_weights(model, reports) or error) from error
        if gguf_path:
            report["unexpected_keys"] |= unread_tensors(gguf_path, loaded)
        stored = [] if gguf_path else weight_files(source, revision)
        weights = check_weights(model, loaded, report, stored, refuse=check)
    hooked = HookedMoE(loaded.eval(), tokenizer, name=model, check=check)
    hooked.checks = (*hooked.checks, *([note] if note else []), weights)
    hooked.stored_format = "gguf" if gguf_path else format_name(quantised)
    for found in hooked.checks[-2:]:
        if found in (note, weights) and not found.passed:
            warnings.warn(f"{model}: {found.detail}", MoeLensWarning, stacklevel=2)
    return hooked


def require_dtype(dtype: Any) -> None:
    """Raise `UnknownNameError` unless a dtype is "auto", a dtype of torch or the name of one."""
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise unknown("dtype", dtype, ["auto", "bfloat16", "float16", "float32", "float64", "float8_e4m3fn"])


@contextmanager
def _explained(model: str, source: str) -> Iterator[None]:
    """Turn what transformers raises while it loads a model into errors of moelens."""
    try:
        yield
    except MoeLensError:
        raise
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            raise MoeLensError(
                f"expected safetensors weights in {model!r}, got files that have to be unpickled, which can run any "
                "code; use a checkpoint in safetensors, or convert it where you trust it"
            ) from error
        if os.path.exists(source) or not isinstance(error, OSError):  # Path.exists raises for a name that is too long
            text = _one_line(error) or type(error).__name__
            raise MoeLensError(f"{model!r} is not a model transformers can load: {text}") from error
        if interrupted := _interrupted_download(model, error):
            raise interrupted from error
        raise unknown(
            "model",
            model,
            ["demo"],
            "give a folder, a hub name that can be reached or is in its cache, an architecture, or 'demo'",
        ) from error


def _read_config(source: str, options: dict[str, Any]) -> Any:
    """Read a model's configuration.

    Checkpoints whose `model_type` transformers does not know, but whose class it has, are read as models of that class:
    Kimi K2 is a `DeepseekV3ForCausalLM`.

    Args:
        source: a folder or a hub name.
        options: arguments of transformers' `from_pretrained`.
    """
    options = {"trust_remote_code": False} | options
    content, _ = transformers.PretrainedConfig.get_config_dict(source, revision=options.get("revision"))
    if not options["trust_remote_code"]:
        _require_no_kernels(source, content)
    if content.get("model_type") not in CONFIG_MAPPING:
        classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
        known = [t for t, name in classes if name in (content.get("architectures") or []) and t in CONFIG_MAPPING]
        if known:
            return CONFIG_MAPPING[known[0]].from_dict(
                {k: v for k, v in content.items() if k not in _OF_THE_REMOTE_CODE}
            )
    trusted = options.pop("trust_remote_code")
    return transformers.AutoConfig.from_pretrained(source, trust_remote_code=trusted, **options)


def _require_no_kernels(source: str, content: Mapping[str, Any]) -> None:
    """Raise `MoeLensError` if a configuration names kernels to download from the hub, which transformers would run."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            _require_no_kernels(source, value)
        elif "_implementation" in key and isinstance(value, str) and "/" in value:
            raise MoeLensError(
                f"expected a configuration without code to download in {source!r}, got {key} {value!r}; if you trust"
                " it, use moelens.load(…, trust_remote_code=True)"
            )


def _interrupted_download(model: str, error: BaseException) -> MoeLensError | None:
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


def _auto_class(config: Any) -> Any:
    """Return the transformers class that loads models with this configuration for text generation."""
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText, transformers.AutoModel):
        if type(config) in auto._model_mapping:
            return auto
    return transformers.AutoModelForCausalLM  # its error says what is missing


def inspect_architecture(architecture: str) -> tuple[MoEShape, RouterRule | None, list[str]]:
    """Describe an architecture at the size of its default configuration, without memory for its weights.

    Args:
        architecture: transformers' `model_type`, such as "deepseek_v3".

    Returns:
        The sizes; the rule of the first router that follows a known one, found by running it alone on random numbers,
        or None; and the names of the hook points.

    Raises:
        UnknownNameError: transformers has no such architecture.
        UnsupportedModelError: moelens cannot hook it.
        MoeLensError: its default configuration does not describe a whole model with experts.
    """
    table = architectures()
    if architecture not in table:
        raise unknown("architecture", architecture, table, "`moelens info --architectures` lists them")
    if architecture in UNSUPPORTED:
        raise unsupported_architecture(architecture, architecture)
    model = _build_on_meta(architecture)
    try:
        shape, rule = _describe(model)
    except UnsupportedModelError as error:
        raise _no_default(architecture) from error
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
    with _explained(model, str(DEMO) if model == "demo" else model):
        return _describe(model_without_weights(model))


def _describe(model: Any) -> tuple[MoEShape, RouterRule | None]:
    """Find the sizes and the rule of a model on the meta device."""
    layers, moe_layers = find_moe_layers(model)
    rule = next((r for r in map(identify_untrained_router, (moe_layers[0], moe_layers[-1])) if r), None)
    return read_shape(model, layers, moe_layers, rule.score if rule else "unknown"), rule


def model_without_weights(model: str) -> Any:
    """Build a model on the meta device, from its configuration alone.

    Args:
        model: as in `describe_configuration`.

    Raises:
        UnknownNameError: there is no such model.
        MoeLensError: transformers cannot build it from its configuration, or needs code that comes with it.
    """
    if model in architectures() and not Path(model).is_dir():
        return _build_on_meta(model)
    source = str(DEMO) if model == "demo" else model
    with _explained(model, source):
        config = _read_config(source, {})
        with torch.device("meta"):
            return _auto_class(config)._model_mapping[type(config)](config)


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model without the model.

    Args:
        name: "demo", a folder, or a name on the hub.

    Raises:
        UnknownNameError: there is no such tokenizer.

    Example:
        >>> load_tokenizer("demo")("先生は")["input_ids"]
        [0, 1306, 272]
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(DEMO) if name == "demo" else name, trust_remote_code=False
        )
    except Exception as error:  # of transformers, the hub's library, or tokenizers, which raises the class itself
        if interrupted := _interrupted_download(name, error):
            raise interrupted from error
        raise unknown(
            "tokenizer", name, ["demo"], f"give a folder, or the name of a model; {_one_line(error)}"
        ) from error


def _build_on_meta(architecture: str) -> Any:
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
                return _auto_class(config)._model_mapping[type(config)](config)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # an incomplete configuration
            reason = reason or error
    raise _no_default(architecture) from reason


def _no_default(architecture: str) -> MoeLensError:
    return MoeLensError(
        f"the default configuration of {architecture!r} does not describe a whole model with experts; "
        "give a folder or a hub name instead"
    )


@cache
def architectures() -> dict[str, str]:
    """List the architectures of the installed transformers that have experts.

    Returns:
        By the architecture's folder in transformers, how moelens reaches its experts: "experts interface", "adapter",
        "text model: " and the architecture that its text part has by default, or "no: " and the reason why it does not.

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
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/configuration_*.py")):
        name, text = path.parent.name, path.read_text(encoding="utf-8")
        inner = re.search(r'"text_config": SubConfigSpec\([^)]*model_type="(\w+)"', text)
        if name not in table and inner and not table.get(inner[1], "no: ").startswith("no: "):
            table[name] = f"text model: {inner[1]}"
    return dict(sorted(table.items()))
