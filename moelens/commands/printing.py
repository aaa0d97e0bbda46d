"""What the command line prints of results: `show_…` returns it as text, or None."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from moelens.commands.options import is_first

_LIFT = "lift: share of the label's tokens that go to the expert, divided by the share of all tokens that do"
_LEGENDS = {
    "test": f"""\
{_LIFT}
lift given token: the same among tokens of one id; near 1, the token explains the preference
the strongest first: significant ones, by the share of the label's tokens that go to the expert beyond chance
q: false discovery rate, p family: family-wise p, both over all layers, experts and labels; *: one is below .05""",
    "bounds": f"""\
{_LIFT}
bounds: between which the lift lies, whichever tokens of a type went to the expert; *: they exclude 1
exact: share of the tokens for which both bounds are the same""",
    "none": _LIFT,
}


def show_text(result: Any, args: Namespace) -> str | None:
    """The printed form of a result."""
    return str(result)


def show_table(result: Any, args: Namespace) -> str | None:
    """The printed form of an effect, causes or preferences, in the language that was asked for."""
    return str(result.table(args.lang or "en"))


def show_text_once(result: Any, args: Namespace) -> str | None:
    """The printed form of a result, from the first of several processes only."""
    return str(result) if is_first() else None


def show_findings(result: Any, args: Namespace) -> str | None:
    """The strongest findings with a legend, from the first of several processes only."""
    label = getattr(args, "label", None)
    text = f"{result.table(args.top, label=label)}\n\n{_LEGENDS[result.evidence]}"
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
