"""What the command line prints of results: `show_…` returns it as text, or None."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from moelens.commands.options import is_first
from moelens.texts import LANGUAGES, Texts

_LEGENDS = {
    "test": ("lift", "lift_token", "sorted", "corrected"),
    "bounds": ("lift", "bounds", "exact"),
    "none": ("lift",),
}
"""The texts below a table of findings."""


def show_text(result: Any, args: Namespace) -> str | None:
    """The printed form of a result."""
    return str(result)


def show_table(result: Any, args: Namespace) -> str | None:
    """The printed form of a result, in the language that was asked for."""
    from moelens.analysis import Measure

    return str(result) if isinstance(result, Measure) else str(result.table(lang=args.lang or LANGUAGES[0]))


def show_text_once(result: Any, args: Namespace) -> str | None:
    """The printed form of a result, from the first of several processes only."""
    return str(result) if is_first() else None


def show_findings(result: Any, args: Namespace) -> str | None:
    """The strongest findings with a legend, from the first of several processes only."""
    say = Texts(args.lang or LANGUAGES[0])
    table = result.table(args.top, label=getattr(args, "label", None), lang=say)
    text = "\n".join([table, "", *(say(f"findings.{key}") for key in _LEGENDS[result.evidence])])
    return text if is_first() else None


def show_outcomes(result: Any, args: Namespace) -> str | None:
    """A line for each entry of a script; exits with status 1 if an entry does not meet its expectations."""
    if not isinstance(result, tuple):
        return str(result)
    if any(outcome.failed for outcome in result):
        print("\n".join(map(str, result)))
        sys.exit(1)
    return "\n".join(map(str, result))


def show_explorer_path(result: Any, args: Namespace) -> str | None:
    """The path of the HTML file of an explorer, which is written here if `--out` did not name one."""
    return str(args.out or result.save_html(Path("explorer.html")))
