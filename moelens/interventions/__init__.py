"""Whether an expert causes what it is found to go with: interventions on routing, their effects, attribution.

>>> from moelens.interventions import remove
>>> print(remove(layer=3, experts=[5, 9]))
remove E5, E9 in layer 3
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_OPERATIONS = (
    *("Intervention", "force", "patch_outputs", "patch_routes", "remove", "remove_renorm", "replay", "reroute"),
    *("scale", "steer", "swap"),
)
_WHERE = dict.fromkeys(_OPERATIONS, "operations") | {
    "Attribution": "attribution",
    "Causes": "causal",
    "Effect": "effects",
    "ExpertLens": "lens",
    "Preferences": "preference",
    "TextPair": "readout",
    "attribute": "attribution",
    "causes": "causal",
    "effect": "effects",
    "expert_lens": "lens",
    "prefer": "preference",
    "recorded": "sources",
}

if TYPE_CHECKING:
    from moelens.interventions.attribution import Attribution, attribute
    from moelens.interventions.causal import Causes, causes
    from moelens.interventions.effects import Effect, effect
    from moelens.interventions.lens import ExpertLens, expert_lens
    from moelens.interventions.operations import (
        Intervention,
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
    from moelens.interventions.readout import TextPair
    from moelens.interventions.sources import recorded

__all__ = [
    "Attribution",
    "Causes",
    "Effect",
    "ExpertLens",
    "Intervention",
    "Preferences",
    "TextPair",
    "attribute",
    "causes",
    "effect",
    "expert_lens",
    "force",
    "patch_outputs",
    "patch_routes",
    "prefer",
    "recorded",
    "remove",
    "remove_renorm",
    "replay",
    "reroute",
    "scale",
    "steer",
    "swap",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: the command line adds its commands without torch."""
    if name in _WHERE:
        return getattr(import_module(f"moelens.interventions.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
