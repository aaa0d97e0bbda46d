"""Argument parsers of the command line and of `%moe`, built from the command table."""

from __future__ import annotations

import argparse
from typing import TypeVar

from moelens.commands.table import COMMANDS

P = TypeVar("P", bound=argparse.ArgumentParser)


def build(parser: P, kind: type[P], face: str, *, prog: str) -> dict[str, P]:
    """Add the commands that have this face to a parser, as subparsers of class `kind`; returns them by name."""
    below = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=kind)
    made: dict[str, P] = {}
    for name, command in COMMANDS.items():
        if face not in command.faces:
            continue
        sub = below.add_parser(
            name,
            prog=f"{prog} {name}",
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]} (moelens.{command.function}).",
            epilog=f"example: {prog} {command.example}",
            formatter_class=argparse.HelpFormatter,
            add_help=True,  # IPython's own parser has none
        )
        for argument in command.arguments:
            sub.add_argument(*argument.names, help=argument.help, **argument.options)
        made[name] = sub
    return made
