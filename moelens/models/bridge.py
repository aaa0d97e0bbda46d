"""TransformerLens's own bridge on the same weights, with moelens's hook points beside its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformer_lens.hook_points import HookPoint

from moelens.errors import UnsupportedModelError


def build_bridge(hf_model: Any, hook_points: Mapping[str, HookPoint], *, tokenizer: Any, name: str) -> Any:
    """Build a `TransformerBridge` around the transformers model of a `HookedMoE`.

    The bridge wraps the model's modules in place, and hooks at moelens's points still run in the modules it wraps. The
    points are added to the bridge's registry under their own names. Where the bridge has a point of the same name, its
    own stays, except for the stages of the routing decision: the bridge names these, but does not call them for every
    architecture.

    Args:
        hf_model: the transformers model, hooked.
        hook_points: the hook points of the `HookedMoE`, by name.
        tokenizer: the model's tokenizer, or None.
        name: the model's name.

    Returns:
        The bridge.

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
    bridge = build_bridge_from_module(
        hf_model, architecture, hf_config=hf_model.config, tokenizer=tokenizer, model_name=name
    )
    own = set(bridge.hook_dict)
    for point_name, point in hook_points.items():
        if point_name not in own or ".mlp.hook_router_" in point_name:
            bridge._hook_registry[point_name] = point
    return bridge
