"""Measures of routing and comparisons of two models as matplotlib axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from moelens.analysis.comparison import label_in
from moelens.analysis.routing import cluster_order
from moelens.analysis.tables import number
from moelens.errors import MoeLensError, unknown
from moelens.japanese.classes import CLASS_STYLE, GLOSS, label_text
from moelens.japanese.families import require_name
from moelens.texts import Texts
from moelens.views.maps import (
    cell_colours,
    colour_limit,
    diverging_scale,
    draw_message,
    grid_size,
    layer_ticks,
    name_axes,
    new_axes,
)
from moelens.views.style import PALETTE, class_marker, japanese_font
from moelens.views.token_html import expert_colour

if TYPE_CHECKING:
    from moelens.analysis import Comparison, Measure
    from moelens.analysis.arrays import Floats

_MARKERS = "os^vD*X"
_MOST_LINES = len(PALETTE)
_STREAMS = 10
_OTHER_COLOUR = (0.6, 0.6, 0.6)
_SHARES, _FLOW = "route_shares", "route_flow"
_UNITS = {
    "load": "1 = even",
    "coactivation": "share of the row's tokens",
    "coactivation_adjacent": "share of the row's tokens",
    "coactivation_lift": "log2 lift",
    _FLOW: "share of the row's tokens",
}


_CURVE_UNITS = {
    "layer_information": "mutual information in bits",
    "layer_curve": "mutual information in bits",
    "usage_entropy": "entropy in bits",
    "jensen_shannon": "divergence in bits",
    "phases": "overlap as a share, divergence in bits",
}


def measure_size(measure: Measure) -> tuple[float, float]:
    """Return a width and height in inches for the plot of a measure."""
    if "other" in measure.axes and "expert" in measure.axes:
        return (9.0, 4.4) if measure.name == _SHARES else (5.6, 5.0)
    return (8.0, 3.2) if "expert" not in measure.axes else grid_size(len(measure.axes["layer"]))


def is_drawable(measure: Measure) -> bool:
    """Return whether `measure_plot` can draw a measure.

    It draws measures by layer, except those by label too. The flow between layers has no layer, and cannot be drawn,
    where the recording has one layer only.
    """
    axes = tuple(measure.axes)
    return axes[:1] == ("layer",) and axes != ("layer", "expert", "label") and len(measure.axes["layer"]) > 0


def measure_plot(measure: Measure, layer: int | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw a measure: curves over layers, a map of layers × experts, or pairs of experts of one layer.

    Args:
        measure: a result of `moelens.measure`. `route_shares` is drawn by `flow_plot`.
        layer: number of the layer, for a measure of pairs of experts; None for the first.
        ax: axes to draw on; None makes a new pyplot figure.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the measure does not have this layer.
        MoeLensError: the measure has labels too (plot a `Specialization` instead), or is not by layer.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = measure_plot(moelens.measure(demo_recording, "load"), ax=Figure().subplots())
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('expert', 'layer')
    """
    axes, layers = tuple(measure.axes), measure.axes.get("layer", ())
    if measure.name == _SHARES:
        return flow_plot(measure, ax=ax)
    if axes == ("layer", "expert", "label"):
        raise MoeLensError(
            f"expected a measure of layers and experts, got {measure.name!r}, which is by label too; "
            "draw a Specialization with .plot(label)"
        )
    if not is_drawable(measure):
        raise MoeLensError(
            f"expected a measure with one or more layers as its first axis, got {measure.name!r} with the axes "
            f"{', '.join(axes)}; print it or use its values"
        )
    if layer is not None and layer not in layers:
        raise unknown("layer", layer, layers)
    with japanese_font():
        ax = ax or new_axes(measure_size(measure))
        if axes == ("layer", "expert", "other"):
            return _pairs(measure, ax, layers[0] if layer is None else layer)
        return _grid(measure, ax) if axes == ("layer", "expert") else _curves(measure, ax)


def _curves(measure: Measure, ax: Axes) -> Axes:
    """One line for each label, those with the highest values first; with the band of the control where there is one."""
    layers = measure.axes["layer"]
    x = np.arange(len(layers))
    values, names = _lines(measure)
    shown = np.argsort(-np.nan_to_num(values[..., 0]).max(0), kind="stable")[:_MOST_LINES]
    for at, i in enumerate(shown):
        name = names[i]
        colour = CLASS_STYLE[name].color if name in CLASS_STYLE else PALETTE[at % len(PALETTE)]
        mark, size = (class_marker(name), 8) if name in CLASS_STYLE else (_MARKERS[at % len(_MARKERS)], 5)
        label = f"{name} ({GLOSS[name]})" if name in GLOSS else name
        ax.plot(x, values[:, i, 0], marker=mark, markersize=size, color=colour, linewidth=1.6, label=label)
        if values.shape[-1] == 3:
            ax.fill_between(x, values[:, i, 1], values[:, i, 2], color=colour, alpha=0.18, linewidth=0)
    if len(names) > 1:
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    layer_ticks(ax.xaxis, layers)
    ax.tick_params(labelsize=8, length=2)
    ax.set_xlabel("layer", fontsize=8)
    ax.set_ylabel(_CURVE_UNITS.get(measure.name, measure.name.replace("_", " ")), fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    moved = "phases" if measure.name == "phases" else "labels"
    control = f"\nbands: middle 95 % of the values for {moved} that are shifted along the text (control)"
    band = control if values.shape[-1] == 3 else ""
    part = f" · {_MOST_LINES} of {len(names)} labels" if len(names) > _MOST_LINES else ""
    return _titled(ax, measure, f"{band}{part}")


def _lines(measure: Measure) -> tuple[Floats, tuple[str, ...]]:
    """The values of each line `[layer, line, value]`, and their names; pairs of labels are lines too."""
    values = np.asarray(measure.values, float)
    if "value" in measure.axes:
        return values, measure.axes["label"]
    if "other" in measure.axes:
        labels = measure.axes["label"]
        pairs = [(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))]
        lines = [values[:, i, j] for i, j in pairs] or [values[:, 0, 0]]
        return np.stack(lines, 1)[:, :, None], tuple(f"{labels[i]} – {labels[j]}" for i, j in pairs) or labels
    return values.reshape(len(values), -1, 1), measure.axes.get("label", (measure.name,))


def _grid(measure: Measure, ax: Axes) -> Axes:
    values = np.asarray(measure.values, float)
    if not np.nan_to_num(values).any():
        return _titled(draw_message(ax, "", "0 for every expert of every layer"), measure)
    shown = ax.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
    _colour_bar(ax, shown, measure, pad=0.012, fraction=0.03, aspect=14)
    layer_ticks(ax.yaxis, measure.axes["layer"])
    ax.tick_params(labelsize=8, length=2)
    ax.set_xlabel("expert", fontsize=8)
    ax.set_ylabel("layer", fontsize=8)
    ax.spines[:].set_visible(False)
    return _titled(ax, measure)


def _pairs(measure: Measure, ax: Axes, layer: int) -> Axes:
    """Experts × experts: of one layer, clustered so that groups are adjacent, or of a layer and the next."""
    layers, experts = measure.axes["layer"], measure.axes["expert"]
    at = layers.index(layer)
    values = np.array(measure.values[at], float)
    if measure.name == _FLOW:
        order, subtitle = np.arange(len(experts)), f"\nrows: L{layer}, columns: {_next_layer(measure, at)}"
    else:
        order, subtitle = cluster_order(values), f"\nlayer {layer}, experts clustered"
        values = values[np.ix_(order, order)]
        np.fill_diagonal(values, np.nan)
    if measure.name.endswith("lift"):
        with np.errstate(divide="ignore"):
            values = np.log2(values)
        limit = colour_limit(values)
        scale: ScalarMappable = diverging_scale(ax, limit)
        shown = np.clip(values, -limit, limit)
        ax.imshow(shown, cmap=scale.cmap, vmin=-limit, vmax=limit, interpolation="nearest")
    else:
        scale = ax.imshow(values, cmap="viridis", interpolation="nearest")
    _colour_bar(ax, scale, measure, fraction=0.04, pad=0.02)
    step = max(1, len(order) // 32)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(0, len(order), step), [f"E{e}" for e in order[::step]], fontsize=6)
    ax.tick_params(axis="x", rotation=90)
    ax.spines[:].set_visible(False)
    return _titled(ax, measure, subtitle)


def _colour_bar(ax: Axes, scale: ScalarMappable, measure: Measure, **place: float) -> None:
    bar = ax.figure.colorbar(scale, ax=ax, **place)  # type: ignore[arg-type]
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(_UNITS.get(measure.name, ""), fontsize=8)


def _next_layer(measure: Measure, at: int) -> str:
    """The name of the layer after position `at`; the layer axis of a measure of flow does not have the last one."""
    layers = measure.provenance.get("layers", measure.axes["layer"])
    return f"L{layers[at + 1]}" if at + 1 < len(layers) else f"layer after L{layers[at]}"


def flow_plot(
    measure: Measure, layers: Sequence[int] | None = None, *, streams: int = _STREAMS, ax: Axes | None = None
) -> Axes:
    """Draw which experts the tokens of an expert go to in the next layer, as streams between 2 to 5 layers.

    Args:
        measure: the measure `route_shares`.
        layers: 1 to 4 successive layer numbers; None for the first four. The layer after the last one is drawn too.
        streams: number of experts to draw in each layer, those with most tokens; all others are drawn together as
            "other". Widths are shares of a layer's assignments.
        ax: axes to draw on; None makes a new pyplot figure.

    Returns:
        The axes.

    Raises:
        UnknownNameError: the flow from one of the layers to the next was not measured.
        MoeLensError: the layers are not successive, or more than four.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = flow_plot(moelens.measure(demo_recording, "route_shares"), [1, 2], ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['L1', 'L2', 'L3']
    """
    known = measure.axes["layer"]
    chosen = list(known[:4] if layers is None else layers)
    for layer in chosen:
        if layer not in known:
            raise unknown("layer", layer, known, "layers whose flow to the next layer was measured")
    at = [known.index(layer) for layer in chosen]
    if not 1 <= len(at) <= 4 or at != list(range(at[0], at[0] + len(at))):
        raise MoeLensError(f"expected 1 to 4 successive layers, got {chosen}; the measure has {list(known)}")
    with japanese_font():
        ax = ax or new_axes((9.0, 4.4))
        flows = [np.asarray(measure.values[i], float) for i in at]
        sizes = [flows[0].sum(1), *(flow.sum(0) for flow in flows)]
        shown = [np.sort(np.argsort(-size, kind="stable")[:streams]) for size in sizes]
        tops = [_column(ax, x, sizes[x] / sizes[x].sum(), shown[x]) for x in range(len(sizes))]
        for x, flow in enumerate(flows):
            _streams(ax, x, _folded(flow / flow.sum(), shown[x], shown[x + 1]), tops[x], tops[x + 1], shown[x])
        ax.set_xticks(range(len(sizes)), [*(f"L{n}" for n in chosen), _next_layer(measure, at[-1])])
        ax.set_yticks([])
        ax.set_xlim(-0.2, len(sizes) - 0.8)
        ax.set_ylim(1.02, -0.02)
        ax.spines[:].set_visible(False)
        what = (
            f"{streams} most used experts of each layer, grey: all others; heights: shares of the layer's assignments"
        )
        return _titled(ax, measure, f"\n{what}")


def _column(ax: Axes, x: int, share: Floats, shown: Any) -> list[float]:
    """Draw the boxes of a layer from top to bottom; returns where each begins."""
    heights = [*share[shown], 1 - share[shown].sum()]
    tops = np.concatenate([[0], np.cumsum(heights)[:-1]])
    for top, height, expert in zip(tops, heights, [*shown, None], strict=True):
        colour = _OTHER_COLOUR if expert is None else _rgba(expert_colour(int(expert), 1.0))
        ax.add_patch(Rectangle((x - 0.035, top), 0.07, height, facecolor=colour, edgecolor="none"))
        if height > 0.02:
            name = "other" if expert is None else f"E{expert}"
            ax.text(x + 0.045, top + height / 2, name, fontsize=7, va="center")
    return [float(top) for top in tops]


def _folded(flow: Floats, rows: Any, columns: Any) -> Floats:
    """The flow between the drawn experts, with one more row and column for all others."""
    whole = np.vstack([flow[rows], np.delete(flow, rows, 0).sum(0)])
    return np.hstack([whole[:, columns], np.delete(whole, columns, 1).sum(1, keepdims=True)])


def _streams(ax: Axes, x: int, flow: Floats, tops: list[float], next_tops: list[float], shown: Any) -> None:
    out, into = list(tops), list(next_tops)
    for i, row in enumerate(flow):
        colour = _rgba(expert_colour(int(shown[i]), 0.35)) if i < len(shown) else (*_OTHER_COLOUR, 0.18)
        for j, width in enumerate(row):
            ax.add_patch(PathPatch(_ribbon(x, out[i], into[j], width), facecolor=colour, edgecolor="none"))
            out[i] += width
            into[j] += width


def _ribbon(x: int, top: float, next_top: float, width: float) -> Path:
    a, b, middle = x + 0.035, x + 0.965, x + 0.5
    upper = [(a, top), (middle, top), (middle, next_top), (b, next_top)]
    lower = [(b, next_top + width), (middle, next_top + width), (middle, top + width), (a, top + width)]
    points = [*upper, *lower, (a, top)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    return Path(points, codes)


def _rgba(css: str) -> tuple[float, ...]:
    """A CSS `rgba(…)` as a colour of matplotlib."""
    *rgb, alpha = (float(part) for part in css.removeprefix("rgba(").rstrip(")").split(","))
    return (*(c / 255 for c in rgb), alpha)


def comparison_plot(
    comparison: Comparison, label: str | None = None, *, ax: Axes | None = None, lang: str | Texts = "en"
) -> Axes:
    """Draw layers × experts: how many percentage points more of a label's tokens b sends to the expert than a.

    Cells that are not significant after correction are grey.

    Args:
        comparison: a result of `moelens.compare`.
        label: the label; None for all tokens.
        ax: axes to draw on; None makes a new pyplot figure.
        lang: language of the texts, "en" or "ja".

    Returns:
        The axes.

    Raises:
        UnknownNameError: the comparison does not have this label.
    """
    label = comparison.names[0] if label is None else require_name(label, comparison.names)
    index = comparison.names.index(label)
    change = 100 * comparison.change[:, :, index]
    a, b = (comparison.provenance.get(name) or name for name in ("a", "b"))
    say = Texts(lang)
    sizes = [comparison.label_tokens[index], *([] if (in_b := comparison.label_tokens_b) is None else [in_b[index]])]
    tokens = say("result.tokens", tokens=say("table.and").join(f"{int(size):,}" for size in sizes))
    head = f"{a} → {b} · {label_text(label_in(label, say), gloss=say.glossed)} · {tokens}"
    if in_b is None:
        kept = number(100 * float(np.nanmean(comparison.overlap[:, index])))
        head += f" · {say('comparison.in_common', kept=kept)}"
    with japanese_font():
        ax = ax or new_axes(grid_size(len(comparison.layers)))
        if not np.nan_to_num(change).any():
            return draw_message(ax, head, say("comparison.no_difference"))
        scale = diverging_scale(ax, float(np.nanpercentile(np.abs(change), 99.5)))
        colours = cell_colours(change, comparison.significant[:, :, index], scale, to_rgb(ax.get_facecolor()))
        ax.imshow(colours, aspect="auto", interpolation="nearest")
        bar = ax.figure.colorbar(scale, ax=ax, pad=0.012, fraction=0.03, aspect=14)
        bar.outline.set_visible(False)
        bar.ax.set_title(say("comparison.points"), fontsize=7.5)
        layer_ticks(ax.yaxis, comparison.layers)
        name_axes(ax, say)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{head}\n{say('comparison.what')}", loc="left", fontsize=9, linespacing=1.4)
    return ax


def _titled(ax: Axes, measure: Measure, more: str = "") -> Axes:
    model = measure.provenance.get("model") or "model"
    size = " × ".join(
        f"{len(names):,} {axis}s" for axis, names in measure.axes.items() if axis not in ("value", "other")
    )
    tokens = measure.provenance.get("n_tokens")
    head = f"{model} · {size}" + (f" · {tokens:,} tokens" if tokens else "")
    ax.set_title(f"{head} · {measure.name.replace('_', ' ')}{more}", loc="left", fontsize=9, linespacing=1.4)
    return ax
