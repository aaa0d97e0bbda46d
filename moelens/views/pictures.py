"""Figures as PNG inside HTML, drawn once for light and once for dark pages, without pyplot."""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from moelens.views.style import japanese_font

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 112  # as wide as a report on a screen; more makes the file larger than it has to be
_INK = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_PAPER = ("figure.facecolor", "axes.facecolor")
# The backgrounds are those of report.css.
_THEMES = {
    "light": dict.fromkeys(_INK, "#1d1d21") | dict.fromkeys(_PAPER, "#fdfdfb"),
    "dark": dict.fromkeys(_INK, "#e8e8ea") | dict.fromkeys(_PAPER, "#17171a"),
}


def picture_html(draw: Callable[[Axes], object], size: tuple[float, float], alt: str) -> str:
    """Draw a figure as a `<picture>` that follows the colour scheme of the reader.

    Args:
        draw: draws on the axes that it is given.
        size: width and height in inches.
        alt: text for readers who do not see the picture.
    """
    light, dark = (_drawn(draw, size, theme) for theme in ("light", "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}" style="max-width: 100%; height: auto"></picture>'
    )


def image_html(figure: Figure, alt: str) -> str:
    """Return a finished figure as an `<img>`."""
    return f'<img src="{_png(figure)}" alt="{escape(alt)}">'


def _png(figure: Figure) -> str:
    """A figure as a `data:` URL."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor=figure.get_facecolor())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _drawn(draw: Callable[[Axes], object], size: tuple[float, float], theme: str) -> str:
    with matplotlib.rc_context(_THEMES[theme]), japanese_font():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        return _png(figure)
