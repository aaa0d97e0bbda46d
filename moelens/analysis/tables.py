"""Numbers and tables as plain text: three significant digits, columns aligned, full-width characters included."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence

_ROUNDING = 1e-14
"""Smaller numbers are what the addition of floats leaves of 0."""


def number(value: float) -> str:
    """Format a ratio or probability with three significant digits, so that columns line up; a dash if undefined.

    >>> [number(x) for x in (3.14159, 4.2, 0.0019960, 1234.5, float("nan"))]
    ['3.14', '4.20', '0.00200', '1230', '–']
    """
    if not math.isfinite(value):
        return "–"
    if abs(value) < _ROUNDING:
        return "0"
    text = f"{value:#.3g}".removesuffix(".")
    return f"{float(text):.0f}" if "e+" in text else text


def interval(low: float, high: float) -> str:
    """Format an interval of a ratio; a dash if undefined.

    >>> interval(0.5, 2), interval(float("nan"), float("nan"))
    ('0.500–2.00', '–')
    """
    return f"{number(low)}–{number(high)}" if math.isfinite(low) else "–"


def bracketed(low: float, high: float) -> str:
    """Format an interval of a ratio in brackets, each end a dash if undefined; "" if both are.

    >>> bracketed(1.2, float("nan")), bracketed(float("nan"), float("nan"))
    ('[1.20, –]', '')
    """
    return f"[{number(low)}, {number(high)}]" if math.isfinite(low) or math.isfinite(high) else ""


def percent(share: float) -> str:
    """Format a share in whole percent; a dash if undefined.

    >>> percent(0.876), percent(float("nan"))
    ('88 %', '–')
    """
    return f"{round(100 * share)} %" if math.isfinite(share) else "–"


def signed_number(value: float) -> str:
    """Format a difference with its sign and three decimals; a dash if undefined.

    >>> signed_number(-0.31234), signed_number(0.0001), signed_number(-5.5e-17), signed_number(float("nan"))
    ('-0.312', '+0.000', '+0.000', '–')
    """
    if not math.isfinite(value):
        return "–"
    return f"{0.0 if abs(value) < _ROUNDING else value:+.3f}"


def signed_interval(low: float, high: float) -> str:
    """Format an interval of a difference; an empty string if undefined.

    >>> signed_interval(-0.5, 0.25), signed_interval(float("nan"), float("nan"))
    ('[-0.500, +0.250]', '')
    """
    return f"[{signed_number(low)}, {signed_number(high)}]" if math.isfinite(low) else ""


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out rows as text, each column right-aligned under its header.

    >>> print(plain_table(("label", "tokens"), [("尊敬語", "12"), ("丁寧語", "3")]))
     label  tokens
    尊敬語      12
    丁寧語       3
    """
    table = [list(header), *map(list, rows)]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(" " * (w - _width(cell)) + cell for cell, w in zip(row, widths, strict=True)) for row in table
    )


def _width(text: str) -> int:
    """Return the number of terminal columns of `text`; a full-width character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
