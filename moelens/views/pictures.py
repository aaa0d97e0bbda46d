"""Figures as PNG inside HTML, one drawing for light and one for dark pages, without pyplot."""

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

DPI = 130
INK = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
PAPER = ("figure.facecolor", "axes.facecolor")
# The papers are the page colours of report.css.
THEMES = {
    "light": dict.fromkeys(INK, "#1d1d21") | dict.fromkeys(PAPER, "#fdfdfb"),
    "dark": dict.fromkeys(INK, "#e8e8ea") | dict.fromkeys(PAPER, "#17171a"),
}


def picture(draw: Callable[[Axes], object], size: tuple[float, float], alt: str) -> str:
    """What `draw` puts on axes of `size` inches, as a `<picture>` that follows the reader's colour scheme."""
    light, dark = (_drawn(draw, size, theme) for theme in ("light", "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}" style="max-width: 100%; height: auto"></picture>'
    )


def image(figure: Figure, alt: str) -> str:
    """A finished figure as `<img>`."""
    return f'<img src="{png(figure)}" alt="{escape(alt)}">'


def png(figure: Figure) -> str:
    """A figure as a `data:` address."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=figure.get_facecolor())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _drawn(draw: Callable[[Axes], object], size: tuple[float, float], theme: str) -> str:
    with matplotlib.rc_context(THEMES[theme]), japanese_font():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        return png(figure)
