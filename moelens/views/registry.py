"""Which view belongs to which class of results. The package imports this module when a result is first shown."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from moelens.analysis import Comparison, Measure, Specialization
from moelens.display import Displayed, View, register_view
from moelens.interventions import Attribution, Causes, Effect, Preferences
from moelens.probes import ProbeResult
from moelens.tracing import Trace
from moelens.views import causes, maps, measures
from moelens.views.explorer import Explorer
from moelens.views.pictures import picture
from moelens.views.tables import findings_html
from moelens.views.text import trace_html
from moelens.views.trace_view import TraceView

PLAIN = "font-family: monospace; line-height: 1.35; margin: 4px 0; overflow-x: auto"
Size = tuple[float, float]


def _table_html(result: Any) -> str:
    """The printed form of an object; inline styles only."""
    return f'<div><pre style="{PLAIN}">{escape(str(result))}</pre></div>'


def _pictured(plot: Callable[..., Any], size: Callable[[Any], Size | None]) -> View:
    """A picture above the printed table; `size` is in inches, None for a result without a picture."""

    def html(result: Any) -> str:
        inches = size(result)
        if inches is None:
            return _table_html(result)
        drawn = picture(lambda ax: plot(result, ax=ax), inches, type(result).__name__)
        return f'<div>{drawn}<pre style="{PLAIN}">{escape(str(result))}</pre></div>'

    return View(html=html, plot=plot)


def _explore_trace(trace: Trace, other: Trace | None = None, *, load: Any = None) -> TraceView:
    return TraceView([trace] if other is None else [trace, other], pair=other is not None, load=load)


register_view(Displayed, View(html=_table_html))
register_view(Trace, View(html=trace_html, explore=_explore_trace))
register_view(Specialization, View(html=findings_html, plot=maps.expert_map, explore=Explorer))
register_view(Attribution, _pictured(causes.attribution_plot, lambda r: (8.0, causes.height(len(r.top)))))
register_view(
    Causes, _pictured(causes.causes_plot, lambda r: (8.0, causes.height(len(r.effects) + (r.joint is not None))))
)
register_view(Comparison, _pictured(measures.comparison_plot, lambda r: maps.grid_size(len(r.layers))))
register_view(Effect, _pictured(causes.effect_plot, lambda r: (8.0, causes.height(len(r.kinds)))))
register_view(
    Measure, _pictured(measures.measure_plot, lambda r: measures.size_of(r) if measures.drawable(r) else None)
)
register_view(Preferences, _pictured(causes.preference_plot, lambda r: (8.0, causes.height(len(r.kinds)))))
register_view(ProbeResult, _pictured(causes.probe_plot, lambda r: (8.0, 3.2)))
