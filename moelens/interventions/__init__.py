"""Interventions on routing and experts, their effects, and attribution: does an expert cause what it occurs with?

>>> from moelens.interventions import remove
>>> print(remove(layer=3, experts=[5, 9]))
remove E5, E9 in layer 3
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_OPERATIONS = (
    "force",
    "listed_interventions",
    "patch_outputs",
    "patch_routes",
    "remove",
    "remove_renorm",
    "replay",
    "reroute",
    "scale",
    "steer",
    "swap",
)
_MODULES = dict.fromkeys(_OPERATIONS, "operations") | {
    "Attribution": "attribution",
    "Causes": "causal",
    "Effect": "effects",
    "ExpertLens": "lens",
    "Intervention": "intervention",
    "Preferences": "preference",
    "TextContrast": "items",
    "TextPair": "items",
    "attribute": "attribution",
    "causes": "causal",
    "effect": "effects",
    "expert_lens": "lens",
    "listed_interventions": "listed_experts",
    "prefer": "preference",
    "recorded_tensors": "recorded_routes",
}

if TYPE_CHECKING:
    from moelens.interventions.attribution import Attribution, attribute
    from moelens.interventions.causal import Causes, causes
    from moelens.interventions.effects import Effect, effect
    from moelens.interventions.intervention import Intervention
    from moelens.interventions.items import TextContrast, TextPair
    from moelens.interventions.lens import ExpertLens, expert_lens
    from moelens.interventions.listed_experts import listed_interventions
    from moelens.interventions.operations import (
        force,
        patch_outputs,
        patch_routes,
        remove,
        remove_renorm,
        replay,
        reroute,
        scale,
        steer,
        swap,
    )
    from moelens.interventions.preference import Preferences, prefer
    from moelens.interventions.recorded_routes import recorded_tensors

__all__ = [
    "Attribution",
    "Causes",
    "Effect",
    "ExpertLens",
    "Intervention",
    "Preferences",
    "TextContrast",
    "TextPair",
    "attribute",
    "causes",
    "effect",
    "expert_lens",
    "force",
    "listed_interventions",
    "patch_outputs",
    "patch_routes",
    "prefer",
    "recorded_tensors",
    "remove",
    "remove_renorm",
    "replay",
    "reroute",
    "scale",
    "steer",
    "swap",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line can list its commands without torch."""
    if name in _MODULES:
        return getattr(import_module(f"moelens.interventions.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
