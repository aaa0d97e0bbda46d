"""Where: layers × experts as matplotlib axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

from moelens.errors import unknown
from moelens.japanese.classes import label_text
from moelens.views.style import japanese_font

if TYPE_CHECKING:
    from moelens.analysis.arrays import Bools, Floats
    from moelens.analysis.result import Specialization

# Purple below chance, orange above, the middle as the paper: safe for the common forms of colour blindness.
LIGHT = LinearSegmentedColormap.from_list(
    "moelens", ["#3b1a72", "#8073ac", "#cfcbe3", "#f6f5f3", "#fbcf99", "#e08214", "#8a3a05"]
)
DARK = LinearSegmentedColormap.from_list(
    "moelens_dark", ["#d4c8ff", "#8f7fd0", "#473f6b", "#26262b", "#6b4420", "#d98324", "#ffd9a0"]
)
VALUES = {
    "lift": "lift",
    "share": "share over chance k/E",
    "lift_given_token": "lift given the token",
}
CLIP = 99.5
SMALL = 1500


def expert_map(
    result: Specialization, label: str | None = None, *, value: str = "lift", ax: Axes | None = None
) -> Axes:
    """Layers × experts for one label, diverging around chance; where the lift does not survive its control, grey.

    `value` is "lift", "share" (over chance k/E) or "lift_given_token". Colours are in log2, clipped at the 99.5th
    percentile. Without a `label`, the first that is not too rare; without `ax`, a new pyplot figure. Raises
    `UnknownNameError` for an unknown label or value.

        expert_map(result, "尊敬語")
    """
    if label is None:
        label = next((name for name in result.names if name not in result.too_rare), result.names[0])
    index, ratio = result.label_index(label), ratios(result, label, value)
    with japanese_font():
        ax = ax or new_axes(map_size(result, label))
        if not result.label_tokens[index]:
            head = f"{result.headline} · {result.control}"
            return empty(ax, head, f"no label {label} in this recording (0 tokens)")
        _draw(ax, ratio, result.significant[:, :, index])
        _axes(ax, result)
        ax.set_title(map_title(result, label, VALUES[value]), loc="left", fontsize=9, linespacing=1.4)
    return ax


def ratios(result: Specialization, label: str, value: str = "lift") -> Floats:
    """What a map shows, `[layer, expert]`, 1 = chance. Raises `UnknownNameError` for an unknown label or value."""
    index = result.label_index(label)
    if value not in VALUES:
        raise unknown("value", value, VALUES)
    if value == "share":
        return np.asarray(result.share[:, :, index] * result.n_experts / result.top_k)
    return np.asarray(getattr(result, value)[:, :, index])


def clip_of(logs: Floats) -> float:
    """Where the colours of log2 ratios end: the 99.5th percentile of their size, within a factor of 2 and of 8.

    In a small model the percentile is the extreme, one expert that a label hardly ever takes, and all else would pale.
    """
    finite = np.abs(logs[np.isfinite(logs)])
    return float(np.clip(np.percentile(finite, CLIP), 1.0, 3.0)) if finite.size else 1.0


def load_plot(result: Specialization, *, ax: Axes | None = None) -> Axes:
    """Relative load of every expert, layer by layer: one dot an expert, 1 = even."""
    with japanese_font():
        ax = ax or new_axes((9.6, 3.0))
        place = np.repeat(np.arange(len(result.layers)), result.n_experts)
        # A fixed golden-ratio spread keeps dots of one layer apart and every drawing the same.
        spread = (np.tile(np.arange(result.n_experts), len(result.layers)) * 0.618034) % 1 - 0.5
        size, alpha = (10, 0.6) if result.n_experts <= 64 else (3, 0.4)
        ax.scatter(place + 0.6 * spread, result.load.ravel(), s=size, alpha=alpha, linewidths=0, color="#8073ac")
        ax.axhline(1, color="#e08214", linewidth=1, linestyle="--")
        ax.set_xlim(-0.6, len(result.layers) - 0.4)
        ax.set_ylim(bottom=0)
        layer_ticks(ax.xaxis, result.layers)
        ax.set_xlabel("layer")
        ax.set_ylabel("relative load (1 = even)")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_title(f"{result.headline} · load per expert · control: none, a description", loc="left", fontsize=9)
    return ax


def map_size(result: Specialization, label: str) -> tuple[float, float]:
    """Width and height in inches that suit the map of `label`."""
    if not result.label_tokens[result.label_index(label)]:
        return 9.6, 1.3
    return grid_size(len(result.layers))


def grid_size(layers: int) -> tuple[float, float]:
    """Width and height in inches of layers × experts."""
    return 9.6, min(7.5, 1.35 + (0.24 if layers <= 16 else 0.09) * layers)


def new_axes(size: tuple[float, float]) -> Axes:
    """Axes of a new figure of `size` inches."""
    # pyplot, so that a notebook shows the figure at the end of its cell.
    from matplotlib import pyplot

    axes: Axes = pyplot.subplots(figsize=size, layout="constrained")[1]
    return axes


def diverging(ax: Axes, limit: float) -> ScalarMappable:
    """Colours from −limit to limit, the middle as the paper of `ax`."""
    dark = float(np.dot(to_rgb(ax.get_facecolor()), (0.30, 0.59, 0.11))) < 0.5
    return ScalarMappable(Normalize(-limit, limit, clip=True), DARK if dark else LIGHT)


def _draw(ax: Axes, ratio: Floats, significant: Bools) -> None:
    with np.errstate(divide="ignore"):
        logs = np.log2(ratio)
    limit = clip_of(logs)
    scale = diverging(ax, limit)
    ax.imshow(greyed(logs, significant, scale, to_rgb(ax.get_facecolor())), aspect="auto", interpolation="nearest")
    bar = ax.figure.colorbar(scale, ax=ax, pad=0.012, fraction=0.03, aspect=14, shrink=0.95)
    bar.outline.set_visible(False)
    step = 1 if limit < 3.5 else 2
    top = int(limit / step) * step
    bar.ax.yaxis.set_major_locator(FixedLocator(range(-top, top + 1, step)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{2**x:.3g}×" if x >= 0 else f"1/{2**-x:.3g}×"))
    bar.ax.tick_params(labelsize=7.5, length=2)
    bar.ax.set_title("ratio", fontsize=7.5, loc="left")


def greyed(logs: Floats, significant: Bools, scale: ScalarMappable, paper: tuple[float, float, float]) -> Floats:
    """RGB `[layer, expert, 3]`: colour where significant, else a pale grey of the same order, paper where undefined."""
    limit = scale.get_clim()[1] or 1.0
    undefined = np.isnan(logs)
    rgb = np.array(scale.to_rgba(np.clip(np.where(undefined, 0, logs), -limit, limit)))[:, :, :3]
    grey = rgb @ (0.30, 0.59, 0.11)
    pale = 0.3 * grey + 0.7 * float(np.dot(paper, (0.30, 0.59, 0.11)))
    rgb = np.where(significant[:, :, None], rgb, pale[:, :, None])
    rgb[undefined] = paper
    return rgb


def _axes(ax: Axes, result: Specialization) -> None:
    n_layers, n_experts = len(result.layers), result.n_experts
    layer_ticks(ax.yaxis, result.layers)
    ax.xaxis.set_major_locator(MultipleLocator(max(1, 2 ** round(np.log2(max(n_experts, 16) / 16)))))
    ax.tick_params(labelsize=7.5, length=2)
    ax.set_xlabel("expert", fontsize=8)
    ax.set_ylabel("layer", fontsize=8)
    ax.spines[:].set_visible(False)
    paper = ax.get_facecolor()
    if n_layers * n_experts <= SMALL:
        ax.vlines(np.arange(1, n_experts) - 0.5, -0.5, n_layers - 0.5, colors=paper, linewidth=1.2)
        ax.hlines(np.arange(1, n_layers) - 0.5, -0.5, n_experts - 0.5, colors=paper, linewidth=1.2)
    groups = result.provenance.get("n_groups") or 1
    if groups > 1:
        edges = np.arange(1, groups) * n_experts / groups - 0.5
        ax.vlines(edges, -0.5, n_layers - 0.5, colors="#888888", linewidth=0.7)


def layer_ticks(axis: object, layers: tuple[int, ...]) -> None:
    """Name layers along an axis, a dozen at most."""
    step = max(1, len(layers) // 12)
    places = range(0, len(layers), step)
    axis.set_ticks(list(places), [f"L{layers[i]}" for i in places])  # type: ignore[attr-defined]


def map_title(result: Specialization, label: str, what: str) -> str:
    index = result.label_index(label)
    above = result.significant[:, :, index] & (result.lift[:, :, index] > 1)
    if label in result.too_rare:
        verdict = "too rare to test, so all grey"
    else:
        verdict = f"lift above chance at {above.sum():,} of {above.size:,} experts; grey does not survive the control"
    tokens = f"{result.label_tokens[index]:,} tokens"
    return f"{result.headline} · {what} · {result.control}\n{label_text(label)} · {tokens} · {verdict}"


def empty(ax: Axes, head: str, message: str) -> Axes:
    """Says in words why there is nothing to draw."""
    ax.text(0.5, 0.5, message, ha="center", va="center", transform=ax.transAxes, fontsize=10)
    ax.set_title(head, loc="left", fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(linestyle=":", color="#888888")
    return ax
