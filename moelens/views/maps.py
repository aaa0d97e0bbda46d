"""Maps of layers × experts, and the load of the experts, as matplotlib axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

from moelens.analysis import wording
from moelens.errors import unknown
from moelens.japanese.classes import label_text
from moelens.texts import Texts
from moelens.views.style import FONTS, SmallTextFigure, japanese_font

if TYPE_CHECKING:
    from moelens.analysis.arrays import Bools, Floats
    from moelens.analysis.result import Specialization

# Purple below chance, orange above, and in the middle the colour of the page. Readers with the common forms of colour
# blindness can tell them apart.
LIGHT_COLOURS = LinearSegmentedColormap.from_list(
    "moelens", ["#3b1a72", "#8073ac", "#cfcbe3", "#f6f5f3", "#fbcf99", "#e08214", "#8a3a05"]
)
DARK_COLOURS = LinearSegmentedColormap.from_list(
    "moelens_dark", ["#d4c8ff", "#8f7fd0", "#473f6b", "#26262b", "#6b4420", "#d98324", "#ffd9a0"]
)
METRICS = ("lift", "share", "lift_given_token")
"""What a map can show."""
_CLIP_PERCENTILE = 99.5
_MOST_CELLS_WITH_LINES = 1500
_GREY_WEIGHTS = (0.30, 0.59, 0.11)


def expert_map(
    result: Specialization,
    label: str | None = None,
    *,
    value: str | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    lang: str | Texts = "en",
) -> Axes:
    """Draw layers × experts for one label; cells that are not significant after correction are grey.

    Cells of experts that are never chosen for the label are empty. In a result with bounds, cells whose bounds
    include 1 are grey; in one without tests and bounds, none is. The colours diverge around chance. They show log2
    of the ratio, clipped at its 99.5th percentile.

    Args:
        result: a result of `analyze`.
        label: the label; None for the first one that was tested.
        value: "lift", "share" (relative to chance k/E), or "lift_given_token"; None for the
            lift that was tested.
        ax: axes to draw on; None makes a new pyplot figure.
        title: title of the axes; None for what is shown, in two lines.
        lang: language of the texts, "en" or "ja".

    Returns:
        The axes.

    Raises:
        UnknownNameError: the result has no such label, or there is no such value.

    Example:
        >>> result = moelens.analyze(demo_recording, permutations=20, progress=False)
        >>> from matplotlib.figure import Figure
        >>> ax = expert_map(result, "丁寧語", ax=Figure().subplots())
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('expert', 'layer')
    """
    if label is None:
        label = next((name for name in result.names if name not in result.too_rare), result.names[0])
    value = value or tested_metric(result)
    index, say = result.label_index(label), Texts(lang)
    label, ratio = result.names[index], ratios(result, label, value)
    with japanese_font():
        ax = ax or new_axes(map_size(result, label))
        if not result.label_tokens[index]:
            head = f"{wording.result_headline(result, say)} · {wording.control(result, say)}"
            return draw_message(ax, head, say("map.no_label", label=label))
        _draw(ax, ratio, result.certain[:, :, index], say)
        _label_axes(ax, result, say)
        text = map_title(result, label, value, say) if title is None else title
        ax.set_title(text, loc="left", fontsize=9, linespacing=1.4, fontfamily=FONTS)
    return ax


def tested_metric(result: Specialization) -> str:
    """Return the metric that was tested: the lift given token where the token is controlled, else the lift."""
    return "lift_given_token" if "token" in result.given else "lift"


def ratios(result: Specialization, label: str, value: str = "lift") -> Floats:
    """Return the ratios that a map shows, `[layer, expert]`; 1 is chance.

    Raises:
        UnknownNameError: the result has no such label, or there is no such value.
    """
    index = result.label_index(label)
    if value not in METRICS:
        raise unknown("value", value, METRICS)
    if value == "share":
        return np.asarray(result.share[:, :, index] / result.counts.chance)
    return np.asarray(getattr(result, value)[:, :, index])


def colour_limit(logs: Floats) -> float:
    """Return the size of log2 ratios at which the colours end: the 99.5th percentile, but at least 1 and at most 3.

    In a small model the percentile is the extreme value, often of one expert that is hardly ever chosen for the label.
    Without the bounds all other cells would be pale.
    """
    finite = np.abs(logs[np.isfinite(logs)])
    return float(np.clip(np.percentile(finite, _CLIP_PERCENTILE), 1.0, 3.0)) if finite.size else 1.0


def load_plot(result: Specialization, *, ax: Axes | None = None, lang: str | Texts = "en") -> Axes:
    """Draw the relative load of each expert by layer, one dot for each expert; 1 is an even load.

    Args:
        result: a result of `analyze`.
        ax: axes to draw on; None makes a new pyplot figure.
        lang: language of the texts, "en" or "ja".

    Returns:
        The axes.

    Example:
        >>> from matplotlib.figure import Figure
        >>> result = moelens.analyze(demo_recording, permutations=20, progress=False)
        >>> load_plot(result, ax=Figure().subplots()).get_ylabel()
        'relative load (1 = even)'
    """
    say = Texts(lang)
    with japanese_font():
        ax = ax or new_axes((9.6, 3.0))
        place = np.repeat(np.arange(len(result.layers)), result.n_experts)
        # Steps of the golden ratio keep the dots of a layer apart, in the same way in every drawing.
        spread = (np.tile(np.arange(result.n_experts), len(result.layers)) * 0.618034) % 1 - 0.5
        size, alpha = (10, 0.6) if result.n_experts <= 64 else (3, 0.4)
        ax.scatter(place + 0.6 * spread, result.load.ravel(), s=size, alpha=alpha, linewidths=0, color="#8073ac")
        ax.axhline(1, color="#e08214", linewidth=1, linestyle="--")
        ax.set_xlim(-0.6, len(result.layers) - 0.4)
        ax.set_ylim(bottom=0)
        layer_ticks(ax.xaxis, result.layers)
        ax.set_xlabel(say("map.layer"))
        ax.set_ylabel(say("map.relative_load"))
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_title(say("map.load", headline=wording.result_headline(result, say)), loc="left", fontsize=9)
    return ax


def map_size(result: Specialization, label: str) -> tuple[float, float]:
    """Return a width and height in inches for the map of a label."""
    if not result.label_tokens[result.label_index(label)]:
        return 9.6, 1.3
    return grid_size(len(result.layers))


def grid_size(layers: int) -> tuple[float, float]:
    """Return a width and height in inches for a map of so many layers."""
    return 9.6, min(7.5, 1.35 + (0.24 if layers <= 16 else 0.09) * layers)


def new_axes(size: tuple[float, float]) -> Axes:
    """Make axes in a new pyplot figure of `size` inches, which a notebook shows at the end of the cell."""
    from matplotlib import pyplot

    axes: Axes = pyplot.subplots(figsize=size, layout="constrained", FigureClass=SmallTextFigure)[1]
    return axes


def diverging_scale(ax: Axes, limit: float) -> ScalarMappable:
    """Return colours from −limit to limit, with the background of `ax` in the middle."""
    dark = float(np.dot(to_rgb(ax.get_facecolor()), _GREY_WEIGHTS)) < 0.5
    return ScalarMappable(Normalize(-limit, limit, clip=True), DARK_COLOURS if dark else LIGHT_COLOURS)


def _draw(ax: Axes, ratio: Floats, significant: Bools, say: Texts) -> None:
    with np.errstate(divide="ignore"):
        logs = np.log2(ratio)
    limit = colour_limit(logs)
    scale = diverging_scale(ax, limit)
    colours = cell_colours(logs, significant, scale, to_rgb(ax.get_facecolor()))
    ax.imshow(colours, aspect="auto", interpolation="nearest")
    bar = ax.figure.colorbar(scale, ax=ax, pad=0.012, fraction=0.03, aspect=14, shrink=0.95)
    bar.outline.set_visible(False)
    step = 1 if limit < 3.5 else 2
    top = int(limit / step) * step
    bar.ax.yaxis.set_major_locator(FixedLocator(range(-top, top + 1, step)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{2**x:.3g}×" if x >= 0 else f"1/{2**-x:.3g}×"))
    bar.ax.tick_params(labelsize=7.5, length=2)
    bar.ax.set_title(say("map.ratio"), fontsize=7.5, loc="left")


def cell_colours(
    logs: Floats, significant: Bools, scale: ScalarMappable, background: tuple[float, float, float]
) -> Floats:
    """Return the colours of the cells of a map.

    Args:
        logs: log2 ratios `[layer, expert]`; NaN where undefined, −inf where an expert is never chosen for the label.
        significant: bool `[layer, expert]`. Other cells are pale grey, darker where the colour would be darker.
        scale: the colours of the ratios.
        background: RGB of undefined cells.

    Returns:
        RGB `[layer, expert, 3]`; experts that are never chosen have the background.
    """
    limit = scale.get_clim()[1] or 1.0
    undefined = ~np.isfinite(logs)
    rgb = np.array(scale.to_rgba(np.clip(np.where(undefined, 0, logs), -limit, limit)))[:, :, :3]
    grey = rgb @ _GREY_WEIGHTS
    dark = float(np.dot(background, _GREY_WEIGHTS)) < 0.5
    pale = 0.2 * grey + 0.8 * (58 if dark else 219) / 255  # the grey of map.js
    rgb = np.where(significant[:, :, None], rgb, pale[:, :, None])
    rgb[undefined] = background
    return rgb


def _label_axes(ax: Axes, result: Specialization, say: Texts) -> None:
    n_layers, n_experts = len(result.layers), result.n_experts
    layer_ticks(ax.yaxis, result.layers)
    ax.xaxis.set_major_locator(MultipleLocator(max(1, 2 ** round(np.log2(max(n_experts, 16) / 16)))))
    ax.tick_params(labelsize=7.5, length=2)
    name_axes(ax, say)
    ax.spines[:].set_visible(False)
    background = ax.get_facecolor()
    if n_layers * n_experts <= _MOST_CELLS_WITH_LINES:
        ax.vlines(np.arange(1, n_experts) - 0.5, -0.5, n_layers - 0.5, colors=background, linewidth=1.2)
        ax.hlines(np.arange(1, n_layers) - 0.5, -0.5, n_experts - 0.5, colors=background, linewidth=1.2)
    groups = result.provenance.get("n_groups") or 1
    if groups > 1:
        edges = np.arange(1, groups) * n_experts / groups - 0.5
        ax.vlines(edges, -0.5, n_layers - 0.5, colors="#888888", linewidth=0.7)


def name_axes(ax: Axes, say: Texts) -> None:
    """Name the axes of a map: experts and layers. A Japanese name of one character is not turned on its side."""
    ax.set_xlabel(say("map.expert"), fontsize=8)
    name = ax.set_ylabel(say("map.layer"), fontsize=8)
    if say.lang == "ja":
        name.set(rotation=0, ha="right", va="center")


def layer_ticks(axis: object, layers: tuple[int, ...]) -> None:
    """Label an axis with layer numbers, with about a dozen of them."""
    step = max(1, len(layers) // 12)
    places = range(0, len(layers), step)
    axis.set_ticks(list(places), [f"L{layers[i]}" for i in places])  # type: ignore[attr-defined]


def map_title(result: Specialization, label: str, metric: str, say: Texts) -> str:
    """Return the two lines above a map: model, metric and control; label, tokens and number of significant experts."""
    index = result.label_index(label)
    above = (result.certain[:, :, index] & (result.lift_given[:, :, index] > 1)).sum()
    key = {"test": "map.significant", "bounds": "map.above_bounds", "none": "map.above_1"}[result.evidence]
    compared = np.isfinite(result.p if result.evidence == "test" else result.lift)[:, :, index].sum()
    verdict = say(key, above=f"{above:,}", cells=f"{compared:,}")
    if label in result.too_rare:
        verdict = say("map.all_grey", why=wording.why_untested(result, label, say))
    tokens = say("result.tokens", tokens=f"{result.label_tokens[index]:,.0f}")
    head, control = wording.result_headline(result, say), wording.control(result, say)
    name = say(f"metric.{metric}")
    return f"{head} · {name} · {control}\n{label_text(label, gloss=say.glossed)} · {tokens} · {verdict}"


def draw_message(ax: Axes, head: str, message: str) -> Axes:
    """Draw a title and a message that says why there is nothing else to draw."""
    ax.text(0.5, 0.5, message, ha="center", va="center", transform=ax.transAxes, fontsize=10)
    ax.set_title(head, loc="left", fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(linestyle=":", color="#888888")
    return ax
