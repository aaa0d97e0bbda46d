"""The files of the front end, which the browser runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"


@cache
def source(name: str) -> str:
    """A file of the front end."""
    return (STATIC / name).read_text("utf-8")


def module(name: str) -> str:
    """The module of a view, together with what all of them share: it imports nothing."""
    return source("common.js") + source(name)
