"""TransformerLens's own bridge on the same weights, with moelens's hook points beside its own."""

from __future__ import annotations

from typing import Any

from moelens.errors import UnsupportedModelError


def to_transformer_bridge(hooked: Any) -> Any:
    """Boot a `TransformerBridge` around a hooked model.

    The bridge wraps the model's modules in place, and the hooked model's points keep firing in the modules it wraps;
    they are added to the bridge's registry under their own names. Where both have a name, the bridge's point stays,
    but for the routing stages, which the bridge names without firing them for every architecture.

    Raises:
        UnsupportedModelError: an architecture that TransformerLens has no adapter for.
    """
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = hooked.hf_model
    architecture = type(model).__name__
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedModelError(
            f"TransformerLens has no adapter for {architecture}; use the HookedMoE itself, which has the same hooks"
        )
    bridge = build_bridge_from_module(
        model, architecture, hf_config=model.config, tokenizer=hooked.tokenizer, model_name=hooked.name
    )
    own = set(bridge.hook_dict)
    for name, point in hooked.hook_dict.items():
        if name not in own or ".mlp.hook_router_" in name:
            bridge._hook_registry[name] = point
    return bridge
