"""Result objects as matplotlib axes and static HTML."""

from __future__ import annotations

from moelens.japanese.classes import CLASS_STYLE
from moelens.views.cards import card_html
from moelens.views.maps import expert_map, load_plot
from moelens.views.measures import flow_plot
from moelens.views.report import Example, Report, report_html
from moelens.views.text import pair_trace_html, tokens_html

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
