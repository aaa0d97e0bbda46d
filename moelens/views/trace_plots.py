"""A trace as a matplotlib figure: tokens × layers, with the expert that has the largest weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import hsv_to_rgb

from moelens.texts import Texts
from moelens.views.maps import new_axes
from moelens.views.style import japanese_font

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moelens.tracing import Trace

_LONGEST_UPRIGHT = 2
_GOLDEN = 0.618034  # of a turn between the colours of successive experts, as in the live view


def trace_plot(trace: Trace, *, ax: Axes | None = None, lang: str | Texts = "en") -> Axes:
    """Draw tokens × layers with the number of the expert that has the largest weight, in a colour for each expert.

    Args:
        trace: a result of `moelens.trace`.
        ax: axes to draw on; None makes a new pyplot figure.
        lang: language of the title, "en" or "ja".

    Returns:
        The axes.
    """
    best, say = trace.best().T, Texts(lang)
    names = [token.replace("\n", "↵") or "∅" for token in trace.tokens]
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}  # long names would cover one another
    style: dict[str, Any] = slanted if max(map(len, names), default=0) > _LONGEST_UPRIGHT else {}
    with japanese_font():
        ax = ax or new_axes((max(4.0, 0.42 * best.shape[1]), max(1.6, 0.3 * best.shape[0] + 0.9)))
        hue = best * _GOLDEN % 1
        ax.imshow(hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.35), np.full_like(hue, 0.95)], -1)), aspect="auto")
        for (layer, token), expert in np.ndenumerate(best):
            ax.text(token, layer, str(expert), ha="center", va="center", fontsize=7, color="#1d1d21")
        ax.set_xticks(range(len(trace.tokens)), names, fontsize=9, **style)
        ax.set_yticks(range(len(trace.layers)), [f"L{layer}" for layer in trace.layers], fontsize=8)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{trace.model} · {say('trace.largest')}", loc="left", fontsize=9)
    return ax
