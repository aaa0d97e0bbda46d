"""Register a view for each class of results. The package imports this module when a result is first shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from html import escape
from itertools import groupby
from typing import Any

from matplotlib.text import Text

from moelens.analysis import Comparison, Measure, Specialization
from moelens.display import Displayed, View, register_view
from moelens.interventions import Attribution, Causes, Effect, Preferences, Steering
from moelens.probes import ProbeResult
from moelens.texts import Texts
from moelens.tracing import Trace
from moelens.views import experiment_plots, maps, measure_plots
from moelens.views.explorer import Explorer
from moelens.views.finding_tables import findings_html
from moelens.views.pictures import picture_html
from moelens.views.style import FONTS
from moelens.views.token_html import trace_html
from moelens.views.trace_plots import trace_plot
from moelens.views.trace_view import TraceView

_PRE_STYLE = "font-family: monospace; line-height: 1.35; margin: 4px 0; overflow-x: auto"
_Size = tuple[float, float]


def _text_html(result: Any) -> str:
    """The printed form of an object as HTML with inline styles only."""
    return f"<div>{_pre_html(result)}</div>"


def _pre_html(text: object) -> str:
    """Tables as they are printed, and the lines around them, which wrap; cells of a table are two spaces apart."""
    blocks = groupby(str(text).split("\n"), lambda line: "  " in line.strip())
    return "".join(
        f'<pre style="{_PRE_STYLE}; white-space: {"pre" if table else "pre-wrap"}">{escape(chr(10).join(lines))}</pre>'
        for table, lines in blocks
    )


def _view_with_plot(plot: Callable[..., Any], size: Callable[[Any], _Size | None]) -> View:
    """A picture above the printed form; `size` returns inches, or None for a result that has no picture."""

    def html(result: Any) -> str:
        inches = size(result)
        if inches is None:
            return _text_html(result)
        picture = picture_html(lambda ax: plot(result, ax=ax), inches, type(result).__name__)
        return f"<div>{picture}{_pre_html(result)}</div>"

    return View(html=html, plot=_on_axes(plot))


def _experiment_view(plot: Callable[..., Any], size: Callable[[Any], _Size]) -> View:
    """A picture above the table, in one of two languages."""

    def html(result: Any, lang: str | Texts = "en") -> str:
        picture = picture_html(lambda ax: plot(result, ax=ax, lang=lang), size(result), type(result).__name__)
        return f"<div>{picture}{_pre_html(result.table(lang=lang))}</div>"

    return View(html=html, plot=_on_axes(plot))


def _causes_html(causes: Causes, lang: str | Texts = "en") -> str:
    """The removals beside their controls, the dose–response curve, and the printed form."""
    size = _rows_size(len(causes.effects) + (causes.joint is not None))
    pictures = picture_html(lambda ax: experiment_plots.causes_plot(causes, ax=ax, lang=lang), size, "Causes")
    if causes.doses:
        curve = Texts(lang)("plot.dose")
        dose = picture_html(lambda ax: experiment_plots.dose_plot(causes, ax=ax, lang=lang), (8.0, 3.2), curve)
        pictures += dose
    return f"<div>{pictures}{_pre_html(causes.table(lang))}</div>"


def _rows_size(rows: int) -> _Size:
    return 8.0, experiment_plots.plot_height(rows)


def _measure_size(measure: Measure) -> _Size | None:
    return measure_plots.measure_size(measure) if measure_plots.is_drawable(measure) else None


def _explore_trace(trace: Trace, other: Trace | None = None, *, load: Any = None) -> TraceView:
    return TraceView([trace] if other is None else [trace, other], pair=other is not None, load=load)


def _on_axes(plot: Callable[..., Any]) -> Callable[..., Any]:
    """A plot whose title can be given, and whose Japanese text has glyphs on axes that were made before."""

    @wraps(plot)
    def draw(result: Any, *what: Any, ax: Any = None, title: str | None = None, **options: Any) -> Any:
        axes = plot(result, *what, ax=ax, **options)
        if title is not None:
            for side in ("left", "center", "right"):
                axes.set_title("", loc=side)
            axes.set_title(title, loc="left", fontsize=9)
        for text in axes.findobj(Text):
            if not text.get_text().isascii():
                text.set_fontfamily(FONTS)
        return axes

    return draw


register_view(Displayed, View(html=_text_html))
register_view(Trace, View(html=trace_html, plot=_on_axes(trace_plot), explore=_explore_trace))
register_view(Specialization, View(html=findings_html, plot=_on_axes(maps.expert_map), explore=Explorer))
register_view(Attribution, _experiment_view(experiment_plots.attribution_plot, lambda r: _rows_size(len(r.top))))
register_view(Causes, View(html=_causes_html, plot=_on_axes(experiment_plots.causes_plot)))
register_view(Comparison, _experiment_view(measure_plots.comparison_plot, lambda r: maps.grid_size(len(r.layers))))
register_view(Effect, _experiment_view(experiment_plots.effect_plot, lambda r: _rows_size(len(r.kinds))))
register_view(Measure, _view_with_plot(measure_plots.measure_plot, _measure_size))
register_view(Preferences, _experiment_view(experiment_plots.preference_plot, lambda r: _rows_size(len(r.kinds))))
register_view(Steering, _experiment_view(experiment_plots.steering_plot, lambda r: (8.0, 3.4)))
register_view(ProbeResult, _view_with_plot(experiment_plots.probe_plot, lambda r: (8.0, 3.2)))
