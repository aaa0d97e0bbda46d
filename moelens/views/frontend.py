"""The JavaScript and CSS files of the live views."""

from __future__ import annotations

from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"


@cache
def static_text(name: str) -> str:
    """Return the text of a file in `static`."""
    return (STATIC / name).read_text("utf-8")


def view_module(name: str) -> str:
    """Return the JavaScript module of a view, with the functions that all views share; it imports nothing."""
    return static_text("common.js") + static_text(name)
