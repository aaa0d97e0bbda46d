"""What a command is: its name, arguments, help and example, and the public function that it calls."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from moelens.commands.printing import show_text
from moelens.commands.session import Session

INTERFACES = ("command line", "magics")


@dataclass(frozen=True)
class Argument:
    """An argument of a command.

    Attributes:
        names: the name of a positional argument, or the flags of an option.
        help: a noun phrase.
        options: further arguments of `ArgumentParser.add_argument`.
        completes: what the values name, for the Tab key: "model", "recording", "corpus", "pairs", "family", …
    """

    names: tuple[str, ...]
    help: str
    options: Mapping[str, Any] = field(default_factory=dict)
    completes: str = ""

    @property
    def dest(self) -> str:
        """The name under which argparse stores the value."""
        return str(self.options.get("dest", self.names[0].lstrip("-").replace("-", "_")))


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command.

    Attributes:
        name: the name that a person types.
        help: one line in the imperative.
        function: the public function of `moelens` that it calls.
        run: calls this function with what the arguments stand for, and returns its result. It takes the session, the
            arguments, and the text of the cell or None.
        arguments: the arguments, in the order of the help.
        example: a complete command line, without `moelens`.
        interfaces: those of `INTERFACES` that have the command.
        cell: the content of the cell below `%%moe COMMAND`, as a noun phrase; empty if the command takes no cell.
        show: returns what the command line prints of the result, or None.
        takes_text: whether the first argument is a text; after `%moe` it is the rest of the line, as typed.
        timed: whether `%moe` prints the time that it took.
    """

    name: str
    help: str
    function: str
    run: Callable[[Session, Namespace, str | None], Any]
    arguments: tuple[Argument, ...]
    example: str
    interfaces: tuple[str, ...] = INTERFACES
    cell: str = ""
    show: Callable[[Any, Namespace], str | None] = show_text
    takes_text: bool = False
    timed: bool = False


def positional(name: str, help: str, completes: str = "", **options: Any) -> Argument:
    """Make a positional argument; `options` are those of `ArgumentParser.add_argument`."""
    return Argument((name,), help, MappingProxyType(options), completes)


def option(*flags: str, help: str, completes: str = "", **options: Any) -> Argument:
    """Make an option; `options` are those of `ArgumentParser.add_argument`."""
    return Argument(flags, help, MappingProxyType(options), completes)


@cache
def at_least(low: int) -> Callable[[str], int]:
    """Return a function that reads an integer of at least `low`, for `type` of an option.

    >>> at_least(1)("5")
    5
    """

    def read(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = low - 1
        if number < low:
            raise ArgumentTypeError(f"expected an integer of at least {low}, got {word!r}; give another number")
        return number

    return read


def number_or_all(word: str) -> int | str:
    """Read a number of at least 1, or `all`, for `type` of an option.

    >>> number_or_all("500"), number_or_all("all")
    (500, 'all')
    """
    if word == "all":
        return word
    try:
        return at_least(1)(word)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"expected a number of at least 1, or all, got {word!r}; give one of them") from error
