"""What can be around a transformers model or its modules: adapters, data parallelism, compilation.

Adapters (PEFT) and gradient checkpointing put a module of their own in a module's place and keep the original below it.
moelens looks through these, so that what it records includes the adapters' effect. Wrappers that take over how the
whole model runs are looked through where that changes nothing, and refused by name where it does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from moelens.errors import MoeLensError, UnsupportedModelError

_INNER = ("base_layer", "original_module", "_checkpoint_wrapped_module")
_INNER_NAME = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.[^.]+|_checkpoint_wrapped_module)(?=\.|$)")
_DIVIDED = {
    "FullyShardedDataParallel": "divides its weights among processes (FSDP)",
    "FSDPModule": "divides its weights among processes (FSDP)",
    "DeepSpeedEngine": "may divide its weights among processes (DeepSpeed)",
}
"""By class, why moelens cannot hook a model that is, or has inside it, a module of the class."""


def transformers_model(model: Any) -> Any:
    """Return the transformers model that a model is or wraps.

    `DataParallel`, `DistributedDataParallel` and PEFT's models are looked through.

    Args:
        model: a transformers model or a wrapper around one.

    Raises:
        MoeLensError: it is no model, is hooked already, or was compiled.
        UnsupportedModelError: its weights are divided by FSDP or DeepSpeed, or it adds virtual tokens to the input.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> config = MixtralConfig(vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        ...                        num_attention_heads=4, num_key_value_heads=2)
        >>> type(transformers_model(nn.DataParallel(MixtralForCausalLM(config)))).__name__
        'MixtralForCausalLM'
    """
    while True:
        name = type(model).__name__
        if hasattr(model, "hf_model"):
            raise hooked_already()
        if not isinstance(model, nn.Module):
            hint = "pass its attribute `model`" if isinstance(getattr(model, "model", None), nn.Module) else "load one"
            raise MoeLensError(f"expected a transformers model, got {name}; {hint}")
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "get_base_model"):  # PEFT
            adapted: Any = model
            if any(config.is_prompt_learning for config in adapted.peft_config.values()):
                raise UnsupportedModelError(
                    f"{name} puts virtual tokens before the input, where moelens would count positions wrongly; hook "
                    "the model without this adapter"
                )
            model = adapted.get_base_model()
        else:
            break
    _require_whole(model)
    if not hasattr(model, "config"):
        raise MoeLensError(f"expected a transformers model, got {name}, which has no configuration; load one")
    return model


def _require_whole(model: nn.Module) -> None:
    """Refuse a model whose weights are divided, or which was compiled."""
    for module in model.modules():
        for base in type(module).__mro__:
            if reason := _DIVIDED.get(base.__name__):
                raise UnsupportedModelError(
                    f"this model {reason}, where moelens cannot hook it; hook the model before it is wrapped, or load "
                    "it with device_map or distributed_config"
                )
        require_not_compiled(module)


def require_not_compiled(module: nn.Module) -> None:
    """Refuse a module of a model that was compiled, whole or its `forward` alone."""
    whole = module._compiled_call_impl is not None or "_orig_mod" in module._modules
    if whole or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
        raise MoeLensError(
            "this model was compiled by torch.compile, and compiled code does not run hooks; hook the model as it was "
            "before (`model._orig_mod`, or load it again)"
        )


def unwrap(module: Any) -> Any:
    """Return the module that adapters or checkpointing wrap; the module itself where nothing does."""
    while inner := [m for n in _INNER if (m := getattr(module, "_modules", {}).get(n)) is not None]:
        module = inner[0]
    return module


def original_of_bridge(module: Any) -> Any:
    """Return the module that a component of TransformerLens's bridge stands in for; other modules as they are."""
    while (original := module._modules.get("_original_component")) is not None:
        module = original
    return module


def unwrapped_name(name: str) -> str:
    """Return the attribute path that a module has where nothing wraps it or the modules above it.

    Example:
        >>> unwrapped_name("model.layers.1.mlp.experts.base_layer.base_layer")
        'model.layers.1.mlp.experts'
    """
    return _INNER_NAME.sub("", name)


@contextmanager
def adapted_parameters(*modules: Any) -> Iterator[None]:
    """Let the parameters below modules hold the effect of PEFT's active adapters.

    PEFT's adapters of single parameters (LoRA with `target_parameters`) act while the wrapper of the parameter's module
    runs. Within this context they act too, for code that reads the parameters itself.
    """
    with ExitStack() as stack:
        for part in (part for module in modules for part in module.modules() if hasattr(part, "parameter_name")):
            if part.disable_adapters and part.merged:
                part.unmerge()  # as the wrapper does when it runs
            elif not (part.disable_adapters or part.merged):
                stack.enter_context(part._activate_lora(part.active_adapters))
        yield


def hooked_already() -> MoeLensError:
    """Make the error for a model that is hooked."""
    return MoeLensError("this model is hooked already; call .unhook() on the HookedMoE that holds it first")
