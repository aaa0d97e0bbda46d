"""Views of results, as matplotlib axes and as static HTML."""

from __future__ import annotations

from moelens.japanese.classes import CLASS_STYLE
from moelens.views.cards import card_html
from moelens.views.maps import expert_map, load_plot
from moelens.views.measure_plots import flow_plot
from moelens.views.report import Example, Report, report_html
from moelens.views.token_html import pair_trace_html, tokens_html

__all__ = [
    "CLASS_STYLE",
    "Example",
    "Report",
    "card_html",
    "expert_map",
    "flow_plot",
    "load_plot",
    "pair_trace_html",
    "report_html",
    "tokens_html",
]
