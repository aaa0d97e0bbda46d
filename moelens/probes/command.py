"""`moelens probe`: a script of probes and effects."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from moelens.recipes import add_arguments, from_arguments, parse_options


def add_command(commands: Any) -> None:
    """Add `moelens probe` to the subparsers of the command line."""
    command = commands.add_parser("probe", help="run a file of probes and effects; exit 1 where one is not as expected")
    command.add_argument("script", type=Path, help="TOML file with [[probe]] and [[effect]] entries")
    add_arguments(command)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from moelens.probes.script import run_script

    if args.hooks is None:
        from_arguments(args, None)  # says so where options are given without their recipe
    outcomes = run_script(args.script, hooks=args.hooks, options=parse_options(args.options))
    print("\n".join(map(str, outcomes)))
    if any(outcome.failed for outcome in outcomes):
        sys.exit(1)
