"""What: text as tokens, coloured by expert, honorifics underlined."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.tables import number
from moelens.errors import CheckError, MoeLensError, unknown
from moelens.japanese.classes import CLASS_STYLE, label_text
from moelens.views.style import label_html

if TYPE_CHECKING:
    from moelens.tracing import Span, Trace


GOLDEN = 0.618034


def tokens_html(
    tokens: Sequence[str],
    experts: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    spans: Sequence[Span] = (),
    layer: int | None = None,
    values: ArrayLike | None = None,
    what: str = "",
) -> str:
    """A text as tokens, each on the colour of the expert with the largest weight, whose id stands below it.

    With `values` `[token]`, the number that is called `what` instead: the larger, the deeper the colour.

    `experts` `[token, slot]`, `weights` `[token, slot]`; without weights, or with NaN, one of the experts is shown.
    Hovering lists all ids and weights. `spans` underlines tokens in the colour of their honorific class, with its
    mark. Only inline styles, so that notebooks keep it as it is. Raises `CheckError` where lengths differ.

    >>> experts, weights = [[3, 1], [0, 2]], [[0.7, 0.3], [0.6, 0.4]]
    >>> html = tokens_html(["いらっしゃい", "ます"], experts, weights, spans=[(0, 1, "尊敬語")])
    >>> "E3 0.700" in html and "▲" in html
    True
    """
    ids = np.asarray(experts)
    gates = None if weights is None else np.asarray(weights, float)
    if ids.ndim != 2 or len(ids) != len(tokens) or (gates is not None and gates.shape != ids.shape):
        shapes = (
            f"{len(tokens)} tokens, experts {list(ids.shape)}, weights {None if gates is None else list(gates.shape)}"
        )
        raise CheckError(f"{shapes} do not fit; allowed: experts and weights both [token, slot]")
    if not len(tokens):
        return "<div>no tokens to show</div>"
    weighed = gates is not None and bool(np.isfinite(gates).any())
    expert = "expert with the largest weight" if weighed else "one of the experts, whose weights are not known"
    where = "" if layer is None else f"layer {layer} · "
    cells = _cells(tokens, ids, gates, spans, None if values is None else np.asarray(values, float))
    return _line(f"{where}colour and number: {what or expert}", spans, cells)


def shared_layers(traces: Sequence[Trace]) -> tuple[int, ...]:
    """The layers of traces to be shown together. Raises `MoeLensError` where they are not the same."""
    layers = traces[0].layers
    for trace in traces[1:]:
        if trace.layers != layers:
            raise MoeLensError(f"traces of layers {layers} and {trace.layers}; select the same of both: trace.select")
    return layers


def trace_html(trace: Trace, colour: str = "expert", *, load: NDArray[np.float64] | None = None) -> str:
    """See `Trace.html`."""
    measures = {name: getattr(trace, name) for name in ("margin", "entropy")}
    if load is not None:
        measures["load"] = np.asarray(load)[np.arange(len(trace.layers)), trace.best()]
    known = ["expert", *(name for name, values in measures.items() if values is not None)]
    if colour not in known:
        raise unknown("colour", colour, known)
    what, values = ("", None) if colour == "expert" else (colour, measures[colour])
    rows = []
    for layer in trace.shown_layers():
        at = trace.layers.index(layer)
        shown = None if values is None else values[:, at]
        experts, weights = trace.experts[:, at], trace.weights[:, at]
        rows.append(
            tokens_html(trace.tokens, experts, weights, spans=trace.spans, layer=layer, values=shown, what=what)
        )
    head = f"{escape(trace.model)} · {len(trace.tokens)} tokens · {trace.experts.shape[-1]} experts a token"
    return f"<div>{head}{''.join(rows)}</div>"


def pair_trace_html(first: Trace, second: Trace) -> str:
    """Two traced texts, tokens that belong together above one another, layer by layer, as inline-styled HTML.

    Beneath a column, "≠ 2": two of its experts differ; nothing: the routes are the same; "·": a token without a
    counterpart. Raises `MoeLensError` for traces of different layers.

        pair_trace_html(moelens.trace(model, "先生が来た。"), moelens.trace(model, "先生がいらっしゃった。"))
    """
    from moelens.tracing import aligned, routes_that_differ  # imports torch, which tokens_html does without

    shared_layers((first, second))
    columns, parts = aligned(first.tokens, second.tokens), []
    for layer in first.shown_layers():
        at = first.layers.index(layer)
        rows = [_cells(t.tokens, t.experts[:, at], t.weights[:, at], t.spans) for t in (first, second)]
        differ = routes_that_differ(columns, first.experts[:, at], second.experts[:, at])
        shared = [n for n in differ if n is not None]
        told = f"layer {layer} · routes differ at {sum(n > 0 for n in shared)} of {len(shared)} aligned tokens"
        above, below = (
            [row[i] if i >= 0 else "" for i in at] for row, at in zip(rows, np.transpose(columns), strict=True)
        )
        stacked = [_column(*cells) for cells in zip(above, below, differ, strict=True)]
        parts.append(_line(told, (*first.spans, *second.spans), stacked))
    size = f"{len(first.tokens)} and {len(second.tokens)} tokens · {first.experts.shape[-1]} experts a token"
    how = "colour and number: expert with the largest weight · ≠: so many experts differ"
    return f"<div>{escape(first.model)} · {size} · {how}{''.join(parts)}</div>"


def _column(above: str, below: str, differ: int | None) -> str:
    mark = "·" if differ is None else f"≠ {differ}" if differ else "&nbsp;"
    empty = '<span style="display: inline-block; padding: 1px 2px; opacity: 0.4">–<br>&nbsp;</span>'
    return (
        '<div style="display: inline-block; text-align: center; vertical-align: bottom; margin-top: 4px">'
        f"<div>{above or empty}</div><div>{below or empty}</div>"
        f'<div style="font-size: 70%; font-weight: bold">{mark}</div></div>'
    )


def _cells(
    tokens: Sequence[str],
    ids: NDArray[Any],
    gates: NDArray[Any] | None,
    spans: Sequence[Span],
    values: NDArray[Any] | None = None,
) -> list[str]:
    sizes = np.zeros(len(tokens)) if values is None else np.nan_to_num(values, posinf=0.0)
    most = sizes.max() or 1.0
    cells = []
    for i, token in enumerate(tokens):
        shade = None if values is None else (float(values[i]), float(sizes[i] / most))
        cells.append(_token(token, ids[i], None if gates is None else gates[i], shade))
    for start, end, label in spans:
        for i in range(max(start, 0), min(end, len(tokens))):
            cells[i] = _underlined(cells[i], label, marked=i == start)
    return cells


def _line(told: str, spans: Sequence[Span], cells: Sequence[str]) -> str:
    legend = "".join(f" · {label_html(label)}" for label in dict.fromkeys(label for _, _, label in spans))
    return (
        f'<div><div style="font-size: 85%; opacity: 0.75">{told}{legend}</div>'
        f'<div lang="ja" style="line-height: 1.3; margin-top: 4px">{"".join(cells)}</div></div>'
    )


def expert_colour(expert: int, alpha: float = 0.3) -> str:
    """A colour for an expert id; neighbours differ. It is translucent, to suit light and dark pages."""
    red, green, blue = (round(255 * c) for c in colorsys.hls_to_rgb(expert * GOLDEN % 1, 0.5, 0.75))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def _token(token: str, ids: NDArray[Any], gates: NDArray[Any] | None, value: tuple[float, float] | None = None) -> str:
    """`value`: a number and its share of the largest."""
    order = range(len(ids)) if gates is None else np.argsort(-gates, kind="stable")
    listed = [f"E{ids[i]}" + ("" if gates is None else f" {number(gates[i])}") for i in order]
    best = int(ids[order[0]])
    below, colour = str(best), expert_colour(best)
    if value is not None:
        below, colour = number(value[0]), f"rgba(0, 114, 178, {0.04 + 0.56 * value[1]:.2f})"
    shown = escape(token.replace("\n", "↵")).replace(" ", "&nbsp;") or "∅"  # a special token has no text
    told = escape(f"{token or 'no text'}: {', '.join(listed)}")
    return (
        f'<span title="{told}" style="display: inline-block; text-align: center; '
        f'margin-right: 1px; padding: 1px 2px; border-radius: 3px; background-color: {colour}">'
        f'{shown}<br><span style="font-size: 60%; opacity: 0.7">{below}</span></span>'
    )


def _underlined(cell: str, label: str, *, marked: bool) -> str:
    # Token by token, so that spans may overlap and lines may break inside them.
    style = CLASS_STYLE.get(label)
    colour, sign = (style.color, style.mark) if style else ("#888888", "")
    mark = f'<span style="color: {colour}; font-size: 70%; vertical-align: top">{sign}</span>' if marked else ""
    return (
        f'<span title="{escape(label_text(label))}" style="display: inline-block; border-bottom: 3px solid {colour}; '
        f'padding-bottom: 1px">{mark}{cell}</span>'
    )
