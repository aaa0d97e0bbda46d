"""The command line: each command is one call of a public function, and a mistake is one line."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from moelens.commands.parsing import build
from moelens.commands.session import Session
from moelens.commands.table import COMMANDS
from moelens.errors import MoeLensError, MoeLensWarning
from moelens.version import __version__


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> Parser:
    """The parser of the command line."""
    main = Parser(prog="moelens", description="See which experts of a Mixture-of-Experts model handle which Japanese.")
    main.add_argument("--version", action="version", version=f"moelens {__version__}")
    main.add_argument("--debug", action="store_true", help="show the traceback of an error")
    build(main, Parser, "command line", prog="moelens")
    return main


def _quieten_libraries() -> None:
    """Keep what libraries print apart from the lines of moelens, and ask no network for what is on this machine."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    plain = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *rest: (
        f"moelens: {message}\n" if issubclass(category, MoeLensWarning) else plain(message, category, *rest)
    )
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without a character shows its number
        sys.stdout.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 2 for a mistake, 130 if interrupted."""
    args: Any = build_parser().parse_args(argv)
    _quieten_libraries()
    command = COMMANDS[args.command]
    try:
        shown = command.show(command.run(Session(), args, None), args)
        if shown is not None:
            print(shown)
    except MoeLensError as error:
        if args.debug:
            raise
        print(f"moelens: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("moelens: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed
        sys.stderr.close()
    finally:
        _leave_process_group()
    return 0


def _leave_process_group() -> None:
    """Close the connections between processes: left open, their threads can abort the interpreter as it exits."""
    dist = sys.modules.get("torch.distributed")  # a command that did not need torch does not load it now
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
