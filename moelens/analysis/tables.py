"""Numbers and tables as plain text: three significant digits, columns aligned, full-width characters too."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence


def number(value: float) -> str:
    """A ratio or probability with three significant digits, so that columns line up; a dash where it is undefined.

    >>> [number(x) for x in (3.14159, 4.2, 0.0019960, 1234.5, float("nan"))]
    ['3.14', '4.20', '0.00200', '1230', '–']
    """
    if not math.isfinite(value):
        return "–"
    text = f"{value:#.3g}".removesuffix(".")
    return f"{float(text):.0f}" if "e+" in text else text


def width(text: str) -> int:
    """Columns that `text` takes in a terminal: a full-width character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows right-aligned under their header."""
    table = [list(header), *map(list, rows)]
    widths = [max(map(width, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(" " * (w - width(cell)) + cell for cell, w in zip(row, widths, strict=True)) for row in table
    )
