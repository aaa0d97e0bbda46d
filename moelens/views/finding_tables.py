"""Findings as HTML tables with inline styles only, which notebooks keep as they are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from moelens.analysis.tables import number
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
_LEGEND = (
    "Lift: the share of the label's tokens that go to the expert, divided by the share of all tokens that do; its "
    "interval is over documents. Left: the share of the excess over chance that remains when token "
    "identity is controlled. q (false discovery rate) and family-wise p are corrected for all layers, experts and "
    "labels; grey: neither is below .05."
)


def findings_html(result: Specialization, findings: Sequence[Finding] | None = None) -> str:
    """Return a table of findings; those that are not significant after correction are grey.

    Args:
        result: a result of `analyze`.
        findings: the findings to show; None for the two strongest experts of each label.
    """
    if findings is None:
        tested = [name for name in result.names if name not in result.too_rare]
        findings = [f for name in tested for f in result.top(_FINDINGS_PER_LABEL, name)]
    chance = f"{number(100 * result.top_k / result.n_experts)} %"
    within = f"lift within {' and '.join(result.given)}" if result.given else "lift"
    header = ("label", "expert", within, "95 %", f"share (chance {chance})", "tokens", "q", "family-wise p", "left")
    rows = [
        _row(
            (
                label_html(f.label),
                f"L{f.layer} · E{f.expert}",
                number(f.lift_given),
                f"[{number(f.low)}, {number(f.high)}]",
                f"{number(100 * f.share)} %",
                f"{f.count:,}",
                number(f.q),
                number(f.p_family),
                f"{round(100 * f.excess_left)} %" if np.isfinite(f.excess_left) else _DASH,
            ),
            "" if f.significant else _GREYED,
        )
        for f in findings
    ]
    if not findings:
        rows = [_row(("no expert is chosen for any of these labels more often than chance", *[_DASH] * 8))]
    about = (result.headline, f"specialists of {result.family}", result.control, result.token_control)
    head = " · ".join(map(escape, about))
    limits = "".join(f'<div style="{_SOFT}">{escape(line)}</div>' for line in result.limits)
    below = f'{_too_rare_html(result)}{limits}<div style="{_SOFT}">{_LEGEND}</div>'
    return f"<div>{head}{_table(header, rows)}{below}</div>"


def summary_html(result: Specialization) -> str:
    """Return a table with a row for each label: its tokens, its significant experts, and the strongest of them."""
    above = (result.significant & (result.lift > 1)).sum((0, 1))
    header = ("label", "tokens", "experts above chance", "strongest", "lift", "lift given token")
    rows = []
    for index, name in enumerate(result.names):
        tokens, best = int(result.label_tokens[index]), result.top(1, name)
        if not tokens or name in result.too_rare or not best:
            why = "too rare to test" if tokens else "not in this recording"
            rows.append(_row((label_html(name), f"{tokens:,}", why, _DASH, _DASH, _DASH), _GREYED))
            continue
        (first,) = best
        cells = f"L{first.layer} · E{first.expert}", number(first.lift), number(first.lift_given_token)
        size = f"{above[index]:,} of {np.isfinite(result.p[:, :, index]).sum():,}"
        style = "" if first.significant else _GREYED
        rows.append(_row((label_html(name), f"{tokens:,}", size, *cells), style))
    return _table(header, rows)


def _too_rare_html(result: Specialization) -> str:
    if not result.too_rare:
        return ""
    rare = (f"{label_html(name)}, {result.label_tokens[result.label_index(name)]:,} tokens" for name in result.too_rare)
    return f'<div style="{_SOFT}">Too rare to test: {"; ".join(rare)}.</div>'


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f'<th style="{_RIGHT if i else _LEFT}">{escape(name)}</th>' for i, name in enumerate(header))
    return f"{_TABLE}<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(cells: Sequence[str], style: str = "") -> str:
    inner = "".join(
        f'<td style="{_RIGHT if i else _LEFT}; white-space: nowrap">{cell}</td>' for i, cell in enumerate(cells)
    )
    return f'<tr style="{style}">{inner}</tr>' if style else f"<tr>{inner}</tr>"
