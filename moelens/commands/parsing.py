"""Argument parsers of the command line and of `%moe`, built from the command table."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from moelens.commands.completion import listed_names
from moelens.commands.definitions import Command
from moelens.commands.table import COMMANDS, SAVE
from moelens.errors import MoeLensError
from moelens.files import require_suffix, require_writable

_Out = TypeVar("_Out")
_Parser = TypeVar("_Parser", bound=argparse.ArgumentParser)


# What arguments complete whose values may be Japanese words that are no paths.
_JAPANESE = ("label", "family", "family or label", "given", "text")


def _as_utf8(word: str) -> str:
    """Decode a word of the command line as UTF-8 if the locale, such as C, could not decode it.

    >>> _as_utf8("尊敬語".encode().decode("ascii", "surrogateescape")), _as_utf8("sonkeigo")
    ('尊敬語', 'sonkeigo')
    """
    try:
        return word.encode("ascii", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return word


def _out(kind: Callable[[str], _Out], result: bool, word: str) -> _Out:
    """Read the value of `--out`, and check that it can be written before anything is computed for it."""
    if not word:
        raise argparse.ArgumentTypeError("expected a path, got an empty text; name what to write")
    try:
        if result:
            require_suffix(Path(word))
        if "://" not in word:
            require_writable(word)
    except MoeLensError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return kind(word)


def _help_with_lists(format_help: Callable[[], str], command: Command) -> str:
    """Return the help of a command with the names that its arguments can have, before the example."""
    width = shutil.get_terminal_size().columns - 2
    lists = [
        textwrap.fill(f"{heading}: {', '.join(names)}", width, subsequent_indent="  ", break_on_hyphens=False)
        for heading, names in listed_names(command).items()
    ]
    before, example, after = format_help().rpartition("example:")
    return before + "".join(f"{text}\n\n" for text in lists) + example + after


def add_commands(parser: _Parser, parser_class: type[_Parser], interface: str, *, prog: str) -> dict[str, _Parser]:
    """Add the commands of an interface to a parser, as subparsers.

    Args:
        parser: the parser.
        parser_class: the class of the subparsers.
        interface: "command line" or "magics".
        prog: what a command line begins with, such as "moelens".

    Returns:
        The subparsers by the name of the command.
    """
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=parser_class)
    made: dict[str, _Parser] = {}
    for name, command in COMMANDS.items():
        if interface not in command.interfaces:
            continue
        subparser = subparsers.add_parser(
            name,
            prog=f"{prog} {name}",
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]} (moelens.{command.function}).",
            epilog=f"example: {prog} {command.example}",
            formatter_class=argparse.HelpFormatter,
            add_help=True,  # the parser of IPython has no --help by default
        )
        for argument in command.arguments:
            options: dict[str, Any] = dict(argument.options)
            if argument.completes in _JAPANESE:
                options["type"] = _as_utf8
            if argument.names == ("--out",):
                options["type"] = partial(_out, options.get("type", str), argument is SAVE)
            subparser.add_argument(*argument.names, help=argument.help, **options)
        # The lists are made when the help is shown, so that they do not delay other commands.
        subparser.format_help = partial(_help_with_lists, subparser.format_help, command)  # type: ignore[method-assign]
        made[name] = subparser
    return made
