"""A trace as a matplotlib figure: tokens × layers, with the expert that has the largest weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import hsv_to_rgb

from moelens.views.maps import new_axes
from moelens.views.style import japanese_font

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moelens.tracing import Trace

_GOLDEN = 0.618034  # of a turn between the colours of successive experts, as in the live view


def trace_plot(trace: Trace, *, ax: Axes | None = None) -> Axes:
    """Draw tokens × layers with the number of the expert that has the largest weight, in a colour for each expert.

    Args:
        trace: a result of `moelens.trace`.
        ax: axes to draw on; None makes a new pyplot figure.

    Returns:
        The axes.
    """
    best = trace.best().T
    with japanese_font():
        ax = ax or new_axes((max(4.0, 0.42 * best.shape[1]), max(1.6, 0.3 * best.shape[0] + 0.9)))
        hue = best * _GOLDEN % 1
        ax.imshow(hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.35), np.full_like(hue, 0.95)], -1)), aspect="auto")
        for (layer, token), expert in np.ndenumerate(best):
            ax.text(token, layer, str(expert), ha="center", va="center", fontsize=7, color="#1d1d21")
        ax.set_xticks(range(len(trace.tokens)), [t.replace("\n", "↵") or "∅" for t in trace.tokens], fontsize=9)
        ax.set_yticks(range(len(trace.layers)), [f"L{layer}" for layer in trace.layers], fontsize=8)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{trace.model} · expert with the largest weight, by token and layer", loc="left", fontsize=9)
    return ax
