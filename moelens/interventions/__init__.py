"""Whether an expert causes what it is found to go with: interventions on routing, their effects, attribution.

>>> from moelens.interventions import remove
>>> print(remove(layer=3, experts=[5, 9]))
remove E5, E9 in layer 3
"""

from __future__ import annotations

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

__all__ = [
    "Intervention",
    "force",
    "patch_outputs",
    "patch_routes",
    "remove",
    "remove_renorm",
    "replay",
    "reroute",
    "scale",
    "steer",
    "swap",
]
