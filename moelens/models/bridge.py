"""TransformerLens's own bridge on the same weights, with moelens's hook points beside its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformer_lens.hook_points import HookPoint

from moelens.errors import UnsupportedModelError

_HELD = ("_modules", "_parameters", "_buffers")


def build_bridge(
    hf_model: Any, hook_points: Mapping[str, HookPoint], *, tokenizer: Any, name: str
) -> tuple[Any, Callable[[], None]]:
    """Build a `TransformerBridge` around the transformers model of a `HookedMoE`.

    The bridge puts components of its own in the places of the model's modules, and hooks at moelens's points still run
    in the modules inside them. Every name of `hook_points` means moelens's point in the bridge too, also where the
    bridge has a point or an alias of the same name: the bridge's may hold another tensor.

    Args:
        hf_model: the transformers model, hooked.
        hook_points: the hook points of the `HookedMoE`, by name.
        tokenizer: the model's tokenizer, or None.
        name: the model's name.

    Returns:
        The bridge, and a function that takes the bridge's components out of the model again.

    Raises:
        UnsupportedModelError: TransformerLens has no adapter for the architecture.
    """
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    architecture = type(hf_model).__name__
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedModelError(
            f"TransformerLens has no adapter for {architecture}; use the HookedMoE itself, which has the same hooks"
        )
    restore = _restorer(hf_model)
    try:
        bridge = build_bridge_from_module(
            hf_model, architecture, hf_config=hf_model.config, tokenizer=_own_tokenizer(tokenizer), model_name=name
        )
    except Exception as error:
        restore()
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UnsupportedModelError(
            f"TransformerLens cannot build its bridge around {architecture} ({reason}); use the HookedMoE itself, "
            "which has the same hooks"
        ) from error
    add_aliases = bridge._add_aliases_to_hooks

    def add_ours_last(hooks: dict[str, HookPoint]) -> None:
        add_aliases(hooks)
        hooks.update(hook_points)

    bridge._hook_registry.update(hook_points)
    object.__setattr__(bridge, "_add_aliases_to_hooks", add_ours_last)
    return bridge, restore


def _own_tokenizer(tokenizer: Any) -> Any:
    """Copy a tokenizer for the bridge, which sets special tokens and loads it again unless it says that it adds BOS."""
    if tokenizer is None:
        return None
    own = copy.deepcopy(tokenizer)
    own.init_kwargs = own.init_kwargs | {"name_or_path": getattr(own, "name_or_path", ""), "add_bos_token": True}
    return own


def _restorer(model: Any) -> Callable[[], None]:
    """Note what a model's modules hold and its attention implementations; the function restores both."""
    held = [(module, {n: dict(vars(module)[n]) for n in _HELD}) for module in model.modules()]
    forwards = [(module, vars(module).get("forward")) for module in model.modules()]
    configs = [(c, c._attn_implementation_internal) for c in _configs(model)]

    def restore() -> None:
        for module, content in held:
            for name, before in content.items():
                vars(module)[name].clear()
                vars(module)[name].update(before)
        for module, forward in forwards:
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward
        for config, implementation in configs:
            config._attn_implementation_internal = implementation

    return restore


def _configs(model: nn.Module) -> list[Any]:
    configs = (getattr(m, "config", None) for m in model.modules())
    return [c for c in configs if hasattr(c, "_attn_implementation_internal")]
