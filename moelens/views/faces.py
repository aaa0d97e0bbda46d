"""Which view belongs to which result: its plot, and its face in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from moelens.views import causes, maps, measures
from moelens.views.pictures import picture
from moelens.views.tables import findings_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOTS: Mapping[str, Callable[..., Any]] = {
    "Attribution": causes.attribution_plot,
    "Causes": causes.causes_plot,
    "Comparison": measures.comparison_plot,
    "Effect": causes.effect_plot,
    "Measure": measures.measure_plot,
    "Preferences": causes.preference_plot,
    "ProbeResult": causes.probe_plot,
    "Specialization": maps.expert_map,
}
# Those that show a picture of themselves above their table, and how large it is for a result.
PICTURES: Mapping[str, Callable[[Any], tuple[float, float]]] = {
    "Attribution": lambda r: (8.0, causes.height(len(r.top))),
    "Causes": lambda r: (8.0, causes.height(len(r.effects) + (r.joint is not None))),
    "Comparison": lambda r: maps.grid_size(len(r.layers)),
    "Effect": lambda r: (8.0, causes.height(len(r.kinds))),
    "Measure": measures.size_of,
    "Preferences": lambda r: (8.0, causes.height(len(r.kinds))),
    "ProbeResult": lambda r: (8.0, 3.2),
}
PLAIN = "font-family: monospace; line-height: 1.35; margin: 4px 0; overflow-x: auto"


def plot(result: Any, *what: Any, ax: Axes | None = None, **options: Any) -> Any:
    """Draw a result with the view that belongs to its class."""
    return PLOTS[type(result).__name__](result, *what, ax=ax, **options)


def html(result: Any) -> str:
    """The face of a result in a notebook: a picture where it has one, and its table; inline styles only."""
    name = type(result).__name__
    if name == "Specialization":
        return findings_html(result)
    table = f'<pre style="{PLAIN}">{escape(str(result))}</pre>'
    if name not in PICTURES or (name == "Measure" and not measures.drawable(result)):
        return f"<div>{table}</div>"
    return f"<div>{picture(lambda ax: plot(result, ax=ax), PICTURES[name](result), name)}{table}</div>"
