"""Bundled beginnings of sentences that leave open whether a polite or a plain sentence follows."""

from __future__ import annotations

from importlib.resources import files


def prompts() -> tuple[str, ...]:
    """Return the bundled beginnings of sentences, written for moelens.

    None has a predicate in polite or plain style, so that either may follow.

    Example:
        >>> prompts()[0]
        '今日は朝から雨が'
    """
    return tuple((files("moelens.japanese") / "prompts.txt").read_text("utf-8").split())
