"""Findings as HTML tables with inline styles only, which notebooks keep as they are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from moelens.analysis import wording
from moelens.analysis.tables import bracketed, number, percent
from moelens.texts import Texts
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


def findings_html(
    result: Specialization, findings: Sequence[Finding] | None = None, *, lang: str | Texts = "en"
) -> str:
    """Return a table of findings; those that are not significant after correction are grey.

    A result of counts has bounds or nothing where others have intervals and tests.

    Args:
        result: a result of `analyze`.
        findings: the findings to show; None for the two strongest experts of each label.
        lang: language of the texts, "en" or "ja".
    """
    say = Texts(lang)
    if findings is None:
        tested = [name for name in result.names if name not in result.too_rare]
        findings = [f for name in tested for f in result.top(_FINDINGS_PER_LABEL, name)]
    chance = f"{number(100 * result.counts.chance)} %"
    token = [_lift_given_token(say)] if result.evidence == "test" and "token" not in result.given else []
    interval = {"test": ["interval"], "bounds": ["bounds"], "none": []}[result.evidence]
    further = {"test": ["q", "family_p"], "bounds": ["exact"], "none": []}[result.evidence]
    header = (
        say("table.label"),
        say("table.expert"),
        lift_name(result, say),
        *[say(f"table.{name}") for name in interval],
        say("table.share", chance=chance),
        say("table.tokens"),
        *token,
        *[say(f"table.{name}") for name in further],
    )
    rows = []
    for f in findings:
        evidence = [*[number(f.lift_given_token) for _ in token], number(f.q), number(f.p_family)]
        if result.evidence != "test":
            evidence = [percent(f.exact) for _ in further if f.exact is not None]
        cells = (
            label_html(f.label, gloss=say.glossed),
            f"L{f.layer} · E{f.expert}",
            number(f.lift_given),
            *[bracketed(f.low, f.high) or _DASH for _ in interval],
            f"{number(100 * f.share)} %",
            f"{f.count:,.0f}",
            *evidence,
        )
        rows.append(_row(cells, "" if f.certain else _GREYED))
    if not findings:
        rows = [_row((say("table.none"), *[_DASH] * (len(header) - 1)))]
    head = escape(wording.about(result, say))
    limits = "".join(f'<div style="{_SOFT}">{escape(line)}</div>' for line in wording.limits(result, say))
    legend = escape(say(f"table.legend_{result.evidence}"), quote=False)
    below = f'{_too_rare_html(result, say)}{limits}<div style="{_SOFT}">{legend}</div>'
    return f"<div>{head}{_table(header, rows)}{below}</div>"


def strongest(result: Specialization, label: str) -> Finding | None:
    """Return the strongest certain finding of a label, over ten or more of its tokens; None if there is none."""
    found = result.top(result.n_experts * len(result.layers), label)
    return next((f for f in found if f.certain and f.count >= LEAST_TOKENS), None)


def lift_name(result: Specialization, say: Texts) -> str:
    """Return the name of `lift_given` in views: "lift", or "lift given" and the controls."""
    if not result.given:
        return say("table.lift")
    return say("table.lift_given", given=wording.given_names(result.given, say, say("table.and")))


def family_name(family: str, say: Texts) -> str:
    """Return a family of labels by its name in commands; in Japanese, by its heading."""
    return family if say.glossed else say.name("family", family)


def _lift_given_token(say: Texts) -> str:
    return say("table.lift_given", given=say("given.token"))


def summary_html(result: Specialization, *, lang: str | Texts = "en") -> str:
    """Return a table with a row for each label: its tokens, its significant experts, and the strongest of them.

    Args:
        result: a result of `analyze`.
        lang: language of the texts, "en" or "ja".
    """
    say = Texts(lang)
    above = (result.certain & (result.lift_given > 1)).sum((0, 1))
    tested = result.evidence == "test"
    given = [lift_name(result, say)] if result.given else []
    token = [_lift_given_token(say)] if tested and "token" not in result.given else []
    columns = [say(f"table.{name}") for name in ("label", "tokens", "above", "strongest", "lift")]
    header = (*columns, *given, *token)
    rows = []
    for index, name in enumerate(result.names):
        tokens, best = result.label_tokens[index], result.top(1, name)
        if not tokens or name in result.too_rare or not best:
            why = wording.why_untested(result, name, say) if name in result.too_rare else say("table.none_above")
            label = label_html(name, gloss=say.glossed)
            rows.append(_row((label, f"{tokens:,.0f}", why, *[_DASH] * (len(header) - 3)), _GREYED))
            continue
        first = strongest(result, name) or best[0]
        figures = [
            number(first.lift),
            *[number(first.lift_given) for _ in given],
            *[number(first.lift_given_token) for _ in token],
        ]
        compared = np.isfinite(result.p if tested else result.lift)[:, :, index].sum()
        size = say("table.of", above=f"{above[index]:,}", tested=f"{compared:,}")
        label = label_html(name, gloss=say.glossed)
        cells = (label, f"{tokens:,.0f}", size, f"L{first.layer} · E{first.expert}", *figures)
        rows.append(_row(cells, "" if first.certain else _GREYED))
    return _table(header, rows)


def _too_rare_html(result: Specialization, say: Texts) -> str:
    if not result.too_rare:
        return ""
    tokens = result.label_tokens
    rare = (
        say(
            "table.rare",
            label=label_html(name, gloss=say.glossed),
            tokens=f"{tokens[result.label_index(name)]:,.0f}",
            reason=escape(wording.why_untested(result, name, say)),
        )
        for name in result.too_rare
    )
    listed = say("table.not_tested", listed=say("table.separator").join(rare))
    return f'<div style="{_SOFT}">{listed}</div>'


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f'<th style="{_RIGHT if i else _LEFT}">{escape(name)}</th>' for i, name in enumerate(header))
    return f"{_TABLE}<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(cells: Sequence[str], style: str = "") -> str:
    inner = "".join(
        f'<td style="{_RIGHT if i else _LEFT}; white-space: nowrap">{cell}</td>' for i, cell in enumerate(cells)
    )
    return f'<tr style="{style}">{inner}</tr>' if style else f"<tr>{inner}</tr>"
