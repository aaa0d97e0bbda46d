"""Text as tokens, coloured by expert, with honorifics underlined, as static HTML."""

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
from moelens.texts import Texts
from moelens.views.style import label_html

if TYPE_CHECKING:
    from moelens.tracing import Span, Trace

_GOLDEN = 0.618034
_PLAIN = "display: inline-block; border-bottom: 3px solid transparent; padding-bottom: 1px"


def tokens_html(
    tokens: Sequence[str],
    experts: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    spans: Sequence[Span] = (),
    layer: int | None = None,
    values: ArrayLike | None = None,
    values_name: str = "",
    marked: int | None = None,
    lang: str | Texts = "en",
) -> str:
    """Return a text as tokens, each coloured by an expert or by a number, as HTML with inline styles only.

    The background of a token has the colour of its expert with the largest weight, whose id is written below it. A
    tooltip lists all its experts and their weights.

    Args:
        tokens: texts of the tokens.
        experts: ids of their experts, `[token, slot]`.
        weights: routing weights, `[token, slot]`; without them, or if all are NaN, one of the experts is shown.
        spans: honorifics, each as first token, token after the last, and class. They are underlined in the colour of
            their class and bear its mark.
        layer: number of the layer, for the heading.
        values: a number for each token, `[token]`, to show instead of the expert; the larger, the deeper the colour.
        values_name: name of `values`, for the heading.
        marked: id of an expert; tokens for which it is chosen have a dotted underline, and the heading counts them.
        lang: language of the texts, "en" or "ja".

    Raises:
        CheckError: the shapes do not fit.

    Example:
        >>> experts, weights = [[3, 1], [0, 2]], [[0.7, 0.3], [0.6, 0.4]]
        >>> html = tokens_html(["いらっしゃい", "ます"], experts, weights, spans=[(0, 1, "尊敬語")])
        >>> "E3 0.700" in html and "▲" in html
        True
    """
    ids, say = np.asarray(experts), Texts(lang)
    gates = None if weights is None else np.asarray(weights, float)
    if ids.ndim != 2 or len(ids) != len(tokens) or (gates is not None and gates.shape != ids.shape):
        raise CheckError(
            f"expected experts and weights of shape [{len(tokens)} tokens, slots], got experts {list(ids.shape)} and "
            f"weights {None if gates is None else list(gates.shape)}; give a row for each token"
        )
    if not len(tokens):
        return f"<div>{say('trace.no_tokens')}</div>"
    weighed = gates is not None and bool(np.isfinite(gates).any())
    expert = say("trace.largest" if weighed else "trace.one_of")
    head = [] if layer is None else [say("trace.shown_layer", layer=layer)]
    cells = _cells(tokens, ids, gates, spans, say, None if values is None else np.asarray(values, float), marked)
    head.append(say("trace.shows", what=values_name or expert))
    if marked is not None:
        taken = (ids == marked).any(-1).sum()
        head.append(say("trace.dotted", expert=marked, n=taken, tokens=len(ids)))
    return _line_html(" · ".join(head), spans, cells, say)


def shared_layers(traces: Sequence[Trace]) -> tuple[int, ...]:
    """Return the layers of traces that are shown together.

    Raises:
        MoeLensError: the traces have different layers.
    """
    layers = traces[0].layers
    for trace in traces[1:]:
        if trace.layers != layers:
            raise MoeLensError(
                f"expected traces of the same layers, got {layers} and {trace.layers}; choose them with trace.select"
            )
    return layers


def trace_html(
    trace: Trace, colour: str = "expert", *, load: NDArray[np.float64] | None = None, lang: str | Texts = "en"
) -> str:
    """Return a trace as HTML; see `Trace.html`."""
    say = Texts(lang)
    measures = {name: getattr(trace, name) for name in ("margin", "entropy")}
    if load is not None:
        measures["load"] = np.asarray(load)[np.arange(len(trace.layers)), trace.best()]
    known = ["expert", *(name for name, values in measures.items() if values is not None)]
    if colour not in known:
        raise unknown("colour", colour, known)
    values = None if colour == "expert" else measures[colour]
    rows = []
    for layer in trace.shown_layers():
        at = trace.layers.index(layer)
        rows.append(
            tokens_html(
                trace.tokens,
                trace.experts[:, at],
                trace.weights[:, at],
                spans=trace.spans,
                layer=layer,
                values=None if values is None else values[:, at],
                values_name="" if values is None else say(f"trace.colour_{colour}"),
                lang=say,
            )
        )
    head = [escape(trace.model), say("trace.tokens", n=len(trace.tokens))]
    head.append(say("trace.experts", n=trace.experts.shape[-1]))
    if trace.spans:
        honorifics = all(name in CLASS_STYLE for _, _, name in trace.spans)
        head.append(say("trace.ends_honorific" if honorifics else "trace.ends_label"))
    return f"<div>{' · '.join(head)}{''.join(rows)}</div>"


def pair_trace_html(first: Trace, second: Trace, *, lang: str | Texts = "en") -> str:
    """Return two traced texts as HTML with inline styles, aligned tokens in columns, layer by layer.

    Below a column, "≠ 2" means that two of its experts differ, "·" that one text has no token there, and nothing that
    the routes are the same.

    Args:
        first: a trace.
        second: a trace of the same layers.
        lang: language of the texts, "en" or "ja".

    Raises:
        MoeLensError: the traces have different layers.

    Example:
        >>> first = moelens.trace(demo_model, "先生が来た。")
        >>> html = pair_trace_html(first, moelens.trace(demo_model, "先生がいらっしゃった。"))
        >>> "aligned tokens" in html
        True
    """
    from moelens.tracing import align_tokens, route_differences  # imports torch, which tokens_html does not need

    shared_layers((first, second))
    columns, parts, say = align_tokens(first.tokens, second.tokens), [], Texts(lang)
    for layer in first.shown_layers():
        at = first.layers.index(layer)
        rows = [_cells(t.tokens, t.experts[:, at], t.weights[:, at], t.spans, say) for t in (first, second)]
        differences = route_differences(columns, first.experts[:, at], second.experts[:, at])
        shared = [n for n in differences if n is not None]
        differ = say("trace.differ", n=sum(n > 0 for n in shared), tokens=len(shared))
        heading = f"{say('trace.shown_layer', layer=layer)} · {differ}"
        above, below = (
            [row[i] if i >= 0 else "" for i in places] for row, places in zip(rows, np.transpose(columns), strict=True)
        )
        stacked = [_column_html(*cells) for cells in zip(above, below, differences, strict=True)]
        parts.append(_line_html(heading, (*first.spans, *second.spans), stacked, say))
    size = say("trace.tokens_of_both", first=len(first.tokens), second=len(second.tokens))
    head = (escape(first.model), size, say("trace.experts", n=first.experts.shape[-1]), say("trace.how_pair"))
    return f"<div>{' · '.join(head)}{''.join(parts)}</div>"


def _column_html(above: str, below: str, difference: int | None) -> str:
    mark = "·" if difference is None else f"≠ {difference}" if difference else "&nbsp;"
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
    say: Texts,
    values: NDArray[Any] | None = None,
    marked: int | None = None,
) -> list[str]:
    sizes = np.zeros(len(tokens)) if values is None else np.nan_to_num(values, posinf=0.0)
    most = sizes.max() or 1.0
    cells = []
    for i, token in enumerate(tokens):
        shade = None if values is None else (float(values[i]), float(sizes[i] / most))
        cells.append(_token_html(token, ids[i], None if gates is None else gates[i], say, shade, marked))
    plain = set(range(len(tokens)))
    for start, end, label in spans:
        for i in range(max(start, 0), min(end, len(tokens))):
            cells[i] = _underlined(cells[i], label, say, marked=i == start)
            plain.discard(i)
    # Where one token of a row is underlined, the others are as high, so that the rows of a pair do not jump.
    return [f'<span style="{_PLAIN}">{cell}</span>' if spans and i in plain else cell for i, cell in enumerate(cells)]


def _line_html(heading: str, spans: Sequence[Span], cells: Sequence[str], say: Texts) -> str:
    labels = dict.fromkeys(label for _, _, label in spans)
    legend = "".join(f" · {label_html(label, gloss=say.glossed)}" for label in labels)
    return (
        f'<div><div style="font-size: 85%; opacity: 0.75">{heading}{legend}</div>'
        f'<div lang="ja" style="line-height: 1.3; margin-top: 4px">{"".join(cells)}</div></div>'
    )


def expert_colour(expert: int, alpha: float = 0.3) -> str:
    """Return a colour for an expert id; successive ids differ. It is translucent, for light and dark pages."""
    red, green, blue = (round(255 * c) for c in colorsys.hls_to_rgb(expert * _GOLDEN % 1, 0.5, 0.75))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def _token_html(
    token: str,
    ids: NDArray[Any],
    gates: NDArray[Any] | None,
    say: Texts,
    value: tuple[float, float] | None = None,
    marked: int | None = None,
) -> str:
    """One token; `value` is the number to show and its share of the largest one."""
    order = range(len(ids)) if gates is None else np.argsort(-gates, kind="stable")
    listed = [f"E{ids[i]}" + ("" if gates is None else f" {number(gates[i])}") for i in order]
    best = int(ids[order[0]])
    below, colour = str(best), expert_colour(best)
    if value is not None:
        below, colour = number(value[0]), f"rgba(0, 114, 178, {0.04 + 0.56 * value[1]:.2f})"
    shown = escape(token.replace("\n", "↵")).replace(" ", "&nbsp;") or "∅"  # a special token has no text
    if marked is not None and marked in ids:
        shown = f'<span style="font-weight: 700; text-decoration: underline dotted 2px">{shown}</span>'
    title = escape(f"{token or say('trace.no_text')}: {', '.join(listed)}")
    return (
        f'<span title="{title}" style="display: inline-block; text-align: center; '
        f'margin-right: 1px; padding: 1px 2px; border-radius: 3px; background-color: {colour}">'
        f'{shown}<br><span style="font-size: 60%; opacity: 0.7">{below}</span></span>'
    )


def _underlined(cell: str, label: str, say: Texts, *, marked: bool) -> str:
    # Each token gets its own underline, so that spans can overlap and break across lines.
    style = CLASS_STYLE.get(label)
    colour, sign = (style.color, style.mark) if style else ("#888888", "")
    mark = f'<span style="color: {colour}; font-size: 70%; vertical-align: top">{sign}</span>' if marked else ""
    title = escape(label_text(label, gloss=say.glossed))
    return (
        f'<span title="{title}" style="display: inline-block; border-bottom: 3px solid {colour}; '
        f'padding-bottom: 1px">{mark}{cell}</span>'
    )
