"""Findings as HTML tables with inline styles only, which notebooks keep as they are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from moelens.analysis.tables import bracketed, number, percent
from moelens.views.style import label_html

if TYPE_CHECKING:
    from moelens.analysis.result import Finding, Specialization

_LEFT = "text-align: left; padding: 3px 12px 3px 0"
_RIGHT = "text-align: right; padding: 3px 0 3px 16px"
_TABLE = '<table style="border-collapse: collapse; margin: 6px 0">'
_SOFT = "opacity: 0.75"
_GREYED = "opacity: 0.45"
_DASH = "–"
_FINDINGS_PER_LABEL = 2
LEAST_TOKENS = 10
"""An expert that takes fewer tokens of a label is not called its strongest."""
_LIFT = "Lift: the share of the label's tokens that go to the expert, divided by the share of all tokens that do"
_LEGENDS = {
    "test": f"{_LIFT}; its interval is over documents. Lift given token: the same among tokens of one id; near 1, the "
    "words explain the lift. Sorted by the share of the label's tokens at the expert beyond chance, significant "
    "ones first. q (false discovery rate) and family-wise p are corrected for all layers, experts and labels; grey: "
    "neither is below .05.",
    "bounds": f"{_LIFT}. Which tokens of a type went to the expert is not known: the lift lies between the bounds, "
    "whichever they were. Exact: the share of the tokens for which both bounds are the same. Grey: the bounds include "
    "1. Nothing was tested.",
    "none": f"{_LIFT}. Nothing was tested: the counts have no documents.",
}


def findings_html(result: Specialization, findings: Sequence[Finding] | None = None) -> str:
    """Return a table of findings; those that are not significant after correction are grey.

    A result of counts has bounds or nothing where others have intervals and tests.

    Args:
        result: a result of `analyze`.
        findings: the findings to show; None for the two strongest experts of each label.
    """
    if findings is None:
        tested = [name for name in result.names if name not in result.too_rare]
        findings = [f for name in tested for f in result.top(_FINDINGS_PER_LABEL, name)]
    chance = f"{number(100 * result.counts.chance)} %"
    lift = lift_name(result)
    token = ["lift given token"] if result.evidence == "test" and "token" not in result.given else []
    interval = {"test": ["95 %"], "bounds": ["bounds"], "none": []}[result.evidence]
    further = {"test": [*token, "q", "family-wise p"], "bounds": ["exact"], "none": []}[result.evidence]
    header = ("label", "expert", lift, *interval, f"share (chance {chance})", "tokens", *further)
    rows = []
    for f in findings:
        evidence = [*[number(f.lift_given_token) for _ in token], number(f.q), number(f.p_family)]
        if result.evidence != "test":
            evidence = [percent(f.exact) for _ in further if f.exact is not None]
        cells = (
            label_html(f.label),
            f"L{f.layer} · E{f.expert}",
            number(f.lift_given),
            *[bracketed(f.low, f.high) or _DASH for _ in interval],
            f"{number(100 * f.share)} %",
            f"{f.count:,.0f}",
            *evidence,
        )
        rows.append(_row(cells, "" if f.certain else _GREYED))
    if not findings:
        rows = [
            _row(("no expert is chosen for any of these labels more often than chance", *[_DASH] * (len(header) - 1)))
        ]
    about = (result.headline, f"specialists of {result.family}", result.control, result.token_control)
    head = " · ".join(map(escape, about))
    limits = "".join(f'<div style="{_SOFT}">{escape(line)}</div>' for line in result.limits)
    below = f'{_too_rare_html(result)}{limits}<div style="{_SOFT}">{_LEGENDS[result.evidence]}</div>'
    return f"<div>{head}{_table(header, rows)}{below}</div>"


def strongest(result: Specialization, label: str) -> Finding | None:
    """Return the strongest certain finding of a label, over ten or more of its tokens; None if there is none."""
    found = result.top(result.n_experts * len(result.layers), label)
    return next((f for f in found if f.certain and f.count >= LEAST_TOKENS), None)


def lift_name(result: Specialization) -> str:
    """Return the name of `lift_given` in views: "lift", or "lift given" and the controls."""
    return f"lift given {' and '.join(result.given)}" if result.given else "lift"


def summary_html(result: Specialization) -> str:
    """Return a table with a row for each label: its tokens, its significant experts, and the strongest of them."""
    above = (result.certain & (result.lift_given > 1)).sum((0, 1))
    tested = result.evidence == "test"
    given = [lift_name(result)] if result.given else []
    token = ["lift given token"] if tested and "token" not in result.given else []
    header = ("label", "tokens", "experts above chance", "strongest", "lift", *given, *token)
    rows = []
    for index, name in enumerate(result.names):
        tokens, best = result.label_tokens[index], result.top(1, name)
        if not tokens or name in result.too_rare or not best:
            why = result.why_untested(name) if name in result.too_rare else "no expert above chance"
            rows.append(_row((label_html(name), f"{tokens:,.0f}", why, *[_DASH] * (len(header) - 3)), _GREYED))
            continue
        first = strongest(result, name) or best[0]
        figures = [
            number(first.lift),
            *[number(first.lift_given) for _ in given],
            *[number(first.lift_given_token) for _ in token],
        ]
        compared = np.isfinite(result.p if tested else result.lift)[:, :, index].sum()
        size = f"{above[index]:,} of {compared:,}"
        cells = (label_html(name), f"{tokens:,.0f}", size, f"L{first.layer} · E{first.expert}", *figures)
        rows.append(_row(cells, "" if first.certain else _GREYED))
    return _table(header, rows)


def _too_rare_html(result: Specialization) -> str:
    if not result.too_rare:
        return ""
    tokens = result.label_tokens
    rare = (
        f"{label_html(name)}, {tokens[result.label_index(name)]:,.0f} tokens: {escape(result.why_untested(name))}"
        for name in result.too_rare
    )
    return f'<div style="{_SOFT}">Not tested: {"; ".join(rare)}.</div>'


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f'<th style="{_RIGHT if i else _LEFT}">{escape(name)}</th>' for i, name in enumerate(header))
    return f"{_TABLE}<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(cells: Sequence[str], style: str = "") -> str:
    inner = "".join(
        f'<td style="{_RIGHT if i else _LEFT}; white-space: nowrap">{cell}</td>' for i, cell in enumerate(cells)
    )
    return f'<tr style="{style}">{inner}</tr>' if style else f"<tr>{inner}</tr>"
