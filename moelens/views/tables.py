"""Findings as HTML tables with inline styles only, so that notebooks keep them as they are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from moelens.analysis.tables import number
from moelens.views.style import label_html

if TYPE_CHECKING:
    from moelens.analysis.result import Finding, Specialization

LEFT = "text-align: left; padding: 3px 12px 3px 0"
RIGHT = "text-align: right; padding: 3px 0 3px 16px"
TABLE = '<table style="border-collapse: collapse; margin: 6px 0">'
SOFT = "opacity: 0.75"
DASH = "–"
EACH = 2  # specialists shown of each label
LEGEND = (
    "Lift: how many times as often tokens of the label go to the expert as tokens do on the whole; its interval is "
    "over documents. Left: the share of its excess over chance that remains when the token is known. q (false "
    "discovery rate) and family-wise p are corrected for all layers, experts and labels; grey: neither is below .05."
)


def findings_html(result: Specialization, findings: Sequence[Finding] | None = None) -> str:
    """The strongest specialists of each label, or the given `findings`; what does not survive its control is greyed."""
    if findings is None:
        findings = [f for name in result.names if name not in result.too_rare for f in result.top(EACH, name)]
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
                f"{round(100 * f.excess_left)} %" if np.isfinite(f.excess_left) else DASH,
            ),
            "" if f.significant else "opacity: 0.45",
        )
        for f in findings
    ]
    if not findings:
        rows = [_row(("no expert takes any of these labels more often than chance", *[DASH] * 8))]
    about = (result.headline, f"specialists of {result.family}", result.control, result.token_control)
    head = " · ".join(map(escape, about))
    return f'<div>{head}{_table(header, rows)}{_rare(result)}<div style="{SOFT}">{LEGEND}</div></div>'


def summary_html(result: Specialization) -> str:
    """One row a label: tokens, experts that take it more often than chance, and the strongest of them."""
    above = (result.significant & (result.lift > 1)).sum((0, 1))
    header = ("label", "tokens", "experts above chance", "strongest", "lift", "lift given token")
    rows = []
    for index, name in enumerate(result.names):
        tokens, best = int(result.label_tokens[index]), result.top(1, name)
        if not tokens or name in result.too_rare or not best:
            why = "too rare to test" if tokens else "not in this recording"
            rows.append(_row((label_html(name), f"{tokens:,}", why, DASH, DASH, DASH), "opacity: 0.45"))
            continue
        (first,) = best
        cells = f"L{first.layer} · E{first.expert}", number(first.lift), number(first.lift_given_token)
        size = f"{above[index]:,} of {np.isfinite(result.p[:, :, index]).sum():,}"
        style = "" if first.significant else "opacity: 0.45"
        rows.append(_row((label_html(name), f"{tokens:,}", size, *cells), style))
    return _table(header, rows)


def _rare(result: Specialization) -> str:
    if not result.too_rare:
        return ""
    rare = (f"{label_html(name)}, {result.label_tokens[result.label_index(name)]:,} tokens" for name in result.too_rare)
    return f'<div style="{SOFT}">Too rare to test: {"; ".join(rare)}.</div>'


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f'<th style="{RIGHT if i else LEFT}">{escape(name)}</th>' for i, name in enumerate(header))
    return f"{TABLE}<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(cells: Sequence[str], style: str = "") -> str:
    inner = "".join(
        f'<td style="{RIGHT if i else LEFT}; white-space: nowrap">{cell}</td>' for i, cell in enumerate(cells)
    )
    return f'<tr style="{style}">{inner}</tr>' if style else f"<tr>{inner}</tr>"
