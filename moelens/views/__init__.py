"""Result objects as matplotlib axes and static HTML."""

from __future__ import annotations

from moelens.views.maps import expert_map, load_plot
from moelens.views.report import Example, Report, report_html
from moelens.views.style import CLASS_STYLE
from moelens.views.text import spans_from_labels, tokens_html

__all__ = [
    "CLASS_STYLE",
    "Example",
    "Report",
    "expert_map",
    "load_plot",
    "report_html",
    "spans_from_labels",
    "tokens_html",
]
