"""So what: effects, attributions, preferences and probes as matplotlib axes, with their intervals and controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moelens.analysis.tables import number
from moelens.views.maps import new_axes
from moelens.views.style import PALETTE, japanese_font

if TYPE_CHECKING:
    from moelens.interventions import Attribution, Causes, Effect, Preferences
    from moelens.probes import ProbeResult

# Okabe and Ito 2008: what was done is orange and round, what it is held against blue and square.
DONE, AGAINST = "#D55E00", "#0072B2"


def height(rows: int) -> float:
    """Inches for so many rows of dots."""
    return 1.25 + 0.3 * max(rows, 1)


def effect_plot(effect: Effect, *, ax: Axes | None = None) -> Axes:
    """Change of the margin by kind of pair with its interval, and the middle 95 % of the controls beside it."""
    with japanese_font():
        ax = ax or new_axes((8.0, height(len(effect.kinds))))
        _rows(ax, [f"{k.kind} ({k.pairs})" for k in effect.kinds])
        _dots(ax, [(k.change, k.low, k.high) for k in effect.kinds], DONE, "o", "the intervention", -0.12)
        controls = [(k.control, k.control_low, k.control_high) for k in effect.kinds]
        _dots(ax, controls, AGAINST, "s", f"{effect.draws} {effect.control} controls, 95 % of them", 0.12)
        what = " + ".join(effect.interventions) or "nothing"
        half = "all pairs" if effect.half == "all" else f"{effect.half} half"
        text = effect.text and f" · unrelated text: KL {number(effect.text.kl)} nats a token"
        return _titled(ax, f"{effect.model} · {what}", f"change of the margin in nats, {half}{text or ''}")


def causes_plot(causes: Causes, *, ax: Axes | None = None) -> Axes:
    """What removing each of the experts that attribution found changes, and what removing others like it does."""
    with japanese_font():
        effects = [*causes.effects, *([causes.joint] if causes.joint else [])]
        ax = ax or new_axes((8.0, height(len(effects))))
        names = [" + ".join(e.interventions) for e in causes.effects] + ["all of these"] * (causes.joint is not None)
        kinds = [e.kinds[0] for e in effects]
        _rows(ax, names)
        _dots(ax, [(k.change, k.low, k.high) for k in kinds], DONE, "o", "removed", -0.12)
        _dots(ax, [(k.control, k.control_low, k.control_high) for k in kinds], AGAINST, "s", "matched controls", 0.12)
        found = causes.attribution
        return _titled(ax, f"{found.model} · {', '.join(found.kinds)}", "change of the margin in nats, test half")


def attribution_plot(attribution: Attribution, *, ax: Axes | None = None) -> Axes:
    """What the experts that contribute most are said to contribute, and what removing them costs on other frames."""
    with japanese_font():
        ax = ax or new_axes((8.0, height(len(attribution.top))))
        _rows(ax, [c.name for c in attribution.top])
        said = [(c.attributed, np.nan, np.nan) for c in attribution.top]
        _dots(ax, said, AGAINST, "s", "attributed, discovery half", 0.12)
        cost = [(-c.change, -c.high, -c.low) for c in attribution.top]
        _dots(ax, cost, DONE, "o", "lost by removing it, test half", -0.12)
        rank = number(attribution.rank_correlation)
        head = f"{attribution.model} · contributions to {', '.join(attribution.kinds)} · rank correlation {rank}"
        return _titled(ax, head, "nats")


def preference_plot(preferences: Preferences, *, ax: Axes | None = None) -> Axes:
    """In which share of the pairs of each kind the model prefers the good text, with its interval; chance is .5."""
    with japanese_font():
        ax = ax or new_axes((8.0, height(len(preferences.kinds))))
        _rows(ax, [f"{k.kind} ({k.pairs})" for k in preferences.kinds])
        controls = {p.kind for p in preferences.pairs if getattr(p, "control", False)}
        for colour, mark, label, held in ((DONE, "o", "honorific", False), (AGAINST, "s", "control", True)):
            rows = [
                (k.preferred, k.low, k.high) if (k.kind in controls) == held else (np.nan,) * 3
                for k in preferences.kinds
            ]
            _dots(ax, rows, colour, mark, label, 0)
        ax.lines[0].set_xdata([0.5, 0.5])
        ax.set_xlim(-0.02, 1.02)
        head = f"{preferences.model} · {len(preferences.pairs):,} pairs · how often the better text is preferred"
        return _titled(ax, head, "share of pairs, with Wilson's 95 % interval; dashed: chance")


def probe_plot(result: ProbeResult, *, ax: Axes | None = None) -> Axes:
    """Accuracy over layers of each feature and probe, with the control task (dotted) and both baselines (dashed)."""
    with japanese_font():
        ax = ax or new_axes((8.0, 3.2))
        for at, (feature, kind) in enumerate(dict.fromkeys((r.feature, r.probe) for r in result.rows)):
            rows = sorted((r for r in result.rows if (r.feature, r.probe) == (feature, kind)), key=lambda r: r.layer)
            x, y = [r.layer for r in rows], [r.accuracy for r in rows]
            (line,) = ax.plot(x, y, marker="o" if kind == "logistic" else "s", label=f"{feature}, {kind}",
                              color=PALETTE[at % len(PALETTE)])  # fmt: skip
            ax.fill_between(x, [r.low for r in rows], [r.high for r in rows], color=line.get_color(), alpha=0.2)
            ax.plot(x, [r.control for r in rows], linestyle=":", color=line.get_color())
        ax.axhline(result.per_token, color="#777777", linestyle="--", linewidth=1, label="most frequent of the token")
        ax.axhline(result.majority, color="#777777", linestyle="-.", linewidth=1, label="majority")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel("accuracy", fontsize=8)
        ax.tick_params(labelsize=8, length=2)
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        ax.spines[["top", "right"]].set_visible(False)
        size = f"{len(result.classes)} classes, {result.tokens:,} tokens of {result.documents:,} documents"
        ax.set_xlabel("layer", fontsize=8)
        ax.set_title(f"{result.family} · {size} · dotted: control task", loc="left", fontsize=9)
        return ax


def _rows(ax: Axes, names: Sequence[str]) -> None:
    ax.axvline(0, color="#888888", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(labelsize=8, length=2)
    ax.spines[["top", "right"]].set_visible(False)


def _dots(
    ax: Axes, values: Sequence[tuple[float, float, float]], colour: str, mark: str, label: str, offset: float
) -> None:
    """Middle, low and high of each row."""
    array: Any = np.array(values, float).reshape(-1, 3)
    if not np.isfinite(array[:, 0]).any():
        return
    y = np.arange(len(array)) + offset
    ax.hlines(y, array[:, 1], array[:, 2], color=colour, linewidth=2, alpha=0.55)
    ax.plot(array[:, 0], y, mark, color=colour, markersize=6, label=label or None)


def _titled(ax: Axes, head: str, axis: str) -> Axes:
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_xlabel(axis, fontsize=8)
    ax.set_title(head, loc="left", fontsize=9)
    return ax
