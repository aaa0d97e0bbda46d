"""Effects, causes, attributions, preferences and probes as matplotlib axes, with their intervals and controls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from moelens.analysis.tables import number
from moelens.texts import Texts
from moelens.views.maps import new_axes
from moelens.views.style import PALETTE, japanese_font

if TYPE_CHECKING:
    from moelens.interventions import Attribution, Causes, Effect, Preferences, Steering
    from moelens.probes import ProbeResult

# Okabe and Ito 2008. The intervention is orange and round, what it is compared with is blue and square.
_RESULT_COLOUR, _CONTROL_COLOUR = "#D55E00", "#0072B2"


def plot_height(rows: int) -> float:
    """Return the height in inches of a plot with so many rows of dots."""
    return 1.25 + 0.3 * max(rows, 1)


def effect_plot(effect: Effect, *, ax: Axes | None = None, lang: str | Texts = "en") -> Axes:
    """Draw the change of the margin for each kind of contrast or pair, with its interval, beside the controls.

    Args:
        effect: a result of `moelens.effect`.
        ax: axes to draw on; None makes a new pyplot figure.
        lang: language of the texts, "en" or "ja".

    Returns:
        The axes.
    """
    from moelens.interventions.intervention import intervention_names  # imports torch, which other plots do not need

    say = Texts(lang)
    with japanese_font():
        ax = ax or new_axes((8.0, plot_height(len(effect.kinds))))
        _name_rows(ax, [f"{say.name('kind', k.kind)} ({k.items})" for k in effect.kinds])
        changes = [(k.change, k.low, k.high) for k in effect.kinds]
        _dots(ax, changes, _RESULT_COLOUR, "o", say("plot.intervention"), -0.12)
        controls = [(k.control, k.control_low, k.control_high) for k in effect.kinds]
        matched = say("plot.controls", draws=effect.draws, control=say.name("effects", effect.control))
        _dots(ax, controls, _CONTROL_COLOUR, "s", matched, 0.12)
        what = intervention_names(effect.interventions, say) or say("plot.no_intervention")
        text = say("plot.change", half=_half(effect.half, say))
        text = say("plot.kl", text=text, kl=number(effect.text.kl)) if effect.text else text
        return _titled(ax, f"{effect.model} · {what}", text)


def causes_plot(causes: Causes, *, ax: Axes | None = None, lang: str | Texts = "en") -> Axes:
    """Draw what removing each expert that attribution found changes, beside the removal of matched experts.

    Args:
        causes: a result of `moelens.causes`.
        ax: axes to draw on; None makes a new pyplot figure.
        lang: language of the texts, "en" or "ja".

    Returns:
        The axes.
    """
    from moelens.interventions.intervention import intervention_names  # imports torch, which other plots do not need

    say = Texts(lang)
    with japanese_font():
        effects = [*causes.effects, *([causes.joint] if causes.joint else [])]
        ax = ax or new_axes((8.0, plot_height(len(effects))))
        names = [intervention_names(e.interventions, say) for e in causes.effects]
        kinds = [e.kinds[0] for e in effects]
        _name_rows(ax, names if causes.joint is None else [*names, say("effects.all_of_these")])
        changes = [(k.change, k.low, k.high) for k in kinds]
        _dots(ax, changes, _RESULT_COLOUR, "o", say("plot.removal"), -0.12)
        controls = [(k.control, k.control_low, k.control_high) for k in kinds]
        _dots(ax, controls, _CONTROL_COLOUR, "s", say("plot.matched"), 0.12)
        attribution = causes.attribution
        head = f"{attribution.model} · {', '.join(attribution.kinds)}"
        return _titled(ax, head, say("plot.change", half=_half("test", say)))


def dose_plot(causes: Causes, *, ax: Axes | None = None, lang: str | Texts = "en") -> Axes:
    """Draw the change of the margin by the number of experts removed, beside random sets of as many.

    There is a line for each ranking; the band is that of the random sets for the ranking by attribution.

    Args:
        causes: a result of `moelens.causes`, with `doses`.
        ax: axes to draw on; None makes a new pyplot figure.
        lang: language of the texts, "en" or "ja".

    Returns:
        The axes.
    """
    say = Texts(lang)
    with japanese_font():
        ax = ax or new_axes((8.0, 3.2))
        by_ranking = {name: [d for d in causes.doses if d.ranking == name] for name in _rankings(causes)}
        marks = zip(cycle((_RESULT_COLOUR, *PALETTE[2:])), cycle("o^vD"), strict=False)
        for at, ((name, doses), (colour, mark)) in enumerate(zip(by_ranking.items(), marks, strict=False)):
            x = np.array([d.experts for d in doses])
            low, high = [d.random_low for d in doses], [d.random_high for d in doses]
            if not at:
                ax.fill_between(x, low, high, color=_CONTROL_COLOUR, alpha=0.2, label=say("plot.random"))
                ax.plot(x, [d.random for d in doses], color=_CONTROL_COLOUR, marker="s")
            change = np.array([d.change for d in doses])
            spread = np.abs(np.array([[d.low, d.high] for d in doses]).T - change)
            by_choice = say("plot.choices", corpus=say.name("corpus", name))
            label = say("plot.largest") if name == "attribution" else by_choice
            places = x * 2 ** (0.06 * at)  # beside each other, where intervals would hide one another
            ax.errorbar(places, change, yerr=spread, color=colour, marker=mark, capsize=3, label=label)
        ax.axhline(0, color="#777777", linewidth=1)
        ax.set_xscale("log", base=2)
        ticks = list(dict.fromkeys(d.experts for d in causes.doses))
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xticks([], minor=True)
        ax.set_ylabel(say("plot.margin"), fontsize=8)
        ax.tick_params(labelsize=8, length=2)
        ax.spines[["top", "right"]].set_visible(False)
        head = f"{causes.attribution.model} · {', '.join(causes.attribution.kinds)} · {_half('test', say)}"
        return _titled(ax, head, say("plot.together"))


def _rankings(causes: Causes) -> list[str]:
    """Return the names of the rankings, in order."""
    return list(dict.fromkeys(d.ranking for d in causes.doses))


def steering_plot(steering: Steering, *, ax: Axes | None = None, lang: str | Texts = "en") -> Axes:
    """Draw the shares of polite and honorific sentences by strength, beside the control sets.

    The perplexity of what was written, for the model without steering, stands below each strength.

    Args:
        steering: a result of `moelens.steer`.
        ax: axes to draw on; None makes a new pyplot figure.
        lang: language of the texts, "en" or "ja".

    Returns:
        The axes.
    """
    say = Texts(lang)
    with japanese_font():
        ax = ax or new_axes((8.0, 3.4))
        steps = sorted(steering.steps, key=lambda s: s.strength)
        x = [s.strength for s in steps]
        for name, colour, mark in (("polite", _RESULT_COLOUR, "o"), ("honorific", PALETTE[2], "^")):
            shares = [getattr(s, name) for s in steps]
            middle = np.array([s.share for s in shares])
            spread = np.abs(np.array([[s.low, s.high] for s in shares]).T - middle)
            label = say(f"plot.{name}_interval")
            ax.errorbar(x, middle, yerr=spread, color=colour, marker=mark, capsize=3, label=label)
            ax.plot(x, [s.control for s in shares], color=colour, linestyle=":", label=say(f"plot.{name}_controls"))
            low, high = [s.control_low for s in shares], [s.control_high for s in shares]
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_ylim(-0.02, 1.02)
        ax.set_xticks(x, [f"{s.strength:+g}\n{number(s.perplexity)}" for s in steps], fontsize=8)
        ax.set_ylabel(say("plot.sentences"), fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        size = {"experts": len(steering.experts), "prompts": f"{steering.prompts:,}"}
        return _titled(ax, say("plot.steered", model=steering.model, **size), say("plot.strength"))


def attribution_plot(attribution: Attribution, *, ax: Axes | None = None, lang: str | Texts = "en") -> Axes:
    """Draw the contributions of the strongest experts by attribution, beside what removing each of them costs.

    Args:
        attribution: a result of `moelens.attribute`.
        ax: axes to draw on; None makes a new pyplot figure.
        lang: language of the texts, "en" or "ja".

    Returns:
        The axes.
    """
    say = Texts(lang)
    with japanese_font():
        ax = ax or new_axes((8.0, plot_height(len(attribution.top))))
        _name_rows(ax, [c.name for c in attribution.top])
        attributed = [(c.attributed, np.nan, np.nan) for c in attribution.top]
        _dots(ax, attributed, _CONTROL_COLOUR, "s", say("plot.attributed"), 0.12)
        cost = [(-c.change, -c.high, -c.low) for c in attribution.top]
        _dots(ax, cost, _RESULT_COLOUR, "o", say("plot.lost"), -0.12)
        about = {"kinds": ", ".join(attribution.kinds), "rank": number(attribution.rank_correlation)}
        return _titled(ax, say("plot.attribution", model=attribution.model, **about), say("plot.contribution"))


def preference_plot(preferences: Preferences, *, ax: Axes | None = None, lang: str | Texts = "en") -> Axes:
    """Draw for each kind how often the model prefers what the context licenses; chance is 0.5.

    Args:
        preferences: a result of `moelens.prefer`.
        ax: axes to draw on; None makes a new pyplot figure.
        lang: language of the texts, "en" or "ja".

    Returns:
        The axes.
    """
    say = Texts(lang)
    with japanese_font():
        ax = ax or new_axes((8.0, plot_height(len(preferences.kinds))))
        _name_rows(ax, [f"{say.name('kind', k.kind)} ({k.items})" for k in preferences.kinds])
        control_kinds = {i.kind for i in preferences.items if getattr(i, "control", False)}
        for colour, mark, label, is_control in (
            (_RESULT_COLOUR, "o", say("plot.honorific"), False),
            (_CONTROL_COLOUR, "s", say("plot.control"), True),
        ):
            rows = [
                (k.accuracy, k.accuracy_low, k.accuracy_high)
                if (k.kind in control_kinds) == is_control
                else (np.nan,) * 3
                for k in preferences.kinds
            ]
            _dots(ax, rows, colour, mark, label, 0)
        ax.lines[0].set_xdata([0.5, 0.5])
        ax.set_xlim(-0.02, 1.02)
        head = say("plot.preferences", model=preferences.model, items=f"{len(preferences.items):,}")
        return _titled(ax, head, say("plot.accuracy"))


def probe_plot(result: ProbeResult, *, ax: Axes | None = None) -> Axes:
    """Draw accuracy by layer for each feature and probe, with the control task (dotted) and two baselines.

    Args:
        result: a result of `moelens.probe`.
        ax: axes to draw on; None makes a new pyplot figure.

    Returns:
        The axes.
    """
    with japanese_font():
        ax = ax or new_axes((8.0, 3.2))
        for at, (feature, kind) in enumerate(dict.fromkeys((r.feature, r.probe) for r in result.rows)):
            rows = sorted((r for r in result.rows if (r.feature, r.probe) == (feature, kind)), key=lambda r: r.layer)
            layers, accuracy = [r.layer for r in rows], [r.accuracy for r in rows]
            colour, mark = PALETTE[at % len(PALETTE)], "o" if kind == "logistic" else "s"
            ax.plot(layers, accuracy, marker=mark, label=f"{feature}, {kind}", color=colour)
            ax.fill_between(layers, [r.low for r in rows], [r.high for r in rows], color=colour, alpha=0.2)
            ax.plot(layers, [r.control for r in rows], linestyle=":", color=colour)
            draws = [r.control_low for r in rows], [r.control_high for r in rows]
            ax.fill_between(layers, *draws, color=colour, alpha=0.1)
        per_token = "most frequent class of the token"
        ax.axhline(result.per_token, color="#777777", linestyle="--", linewidth=1, label=per_token)
        ax.axhline(result.majority, color="#777777", linestyle="-.", linewidth=1, label="most frequent class")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel("accuracy", fontsize=8)
        ax.tick_params(labelsize=8, length=2)
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        ax.spines[["top", "right"]].set_visible(False)
        size = f"{len(result.classes)} classes, {result.tokens:,} tokens of {result.documents:,} documents"
        ax.set_xlabel("layer", fontsize=8)
        ax.set_title(f"{result.family} · {size} · dotted: control task", loc="left", fontsize=9)
        return ax


def _half(half: str, say: Texts) -> str:
    return say("plot.all_sentences") if half == "all" else say("plot.half", half=say.name("effects", half))


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.axvline(0, color="#888888", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(labelsize=8, length=2)
    ax.spines[["top", "right"]].set_visible(False)


def _dots(
    ax: Axes, values: Sequence[tuple[float, float, float]], colour: str, mark: str, label: str, offset: float
) -> None:
    """Draw one dot with its interval for each row; `values` are middle, low and high."""
    array: Any = np.array(values, float).reshape(-1, 3)
    if not np.isfinite(array[:, 0]).any():
        return
    y = np.arange(len(array)) + offset
    ax.hlines(y, array[:, 1], array[:, 2], color=colour, linewidth=2, alpha=0.55)
    ax.plot(array[:, 0], y, mark, color=colour, markersize=6, label=label or None)


def _titled(ax: Axes, head: str, x_label: str) -> Axes:
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set_xlabel(x_label, fontsize=8)
    ax.set_title(head, loc="left", fontsize=9)
    return ax
