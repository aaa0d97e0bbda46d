"""The command line `moelens`. Each command calls one public function; an error is printed as one line."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from moelens.commands.parsing import add_commands
from moelens.commands.session import Session
from moelens.commands.table import COMMANDS
from moelens.errors import MoeLensError, MoeLensWarning
from moelens.files import explain_write_errors
from moelens.version import __version__


class CommandLineParser(argparse.ArgumentParser):
    """A parser that prints an error as one line and exits with status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> CommandLineParser:
    """Return the parser of the command line."""
    parser = CommandLineParser(
        prog="moelens",
        description="Find the experts of a Mixture-of-Experts model that handle Japanese morphology and honorifics.",
    )
    parser.add_argument("--version", action="version", version=f"moelens {__version__}", help="version of moelens")
    parser.add_argument("--debug", action="store_true", help="full traceback of an error")
    add_commands(parser, CommandLineParser, "command line", prog="moelens")
    return parser


def _wait_passively() -> None:
    """Let threads of OpenMP sleep while they wait, unless the environment says otherwise; before torch is imported.

    A thread that spins takes the core from the one it waits for if other programs use the cores too.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _quieten_libraries() -> None:
    """Silence the warnings of libraries, and let a terminal that cannot show a character print its code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    plain = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *rest: (
        f"moelens: {message}\n" if issubclass(category, MoeLensWarning) else plain(message, category, *rest)
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after `moelens`; None for those of the process.

    Returns:
        The exit status: 0 if the command succeeded, 2 after an error, 130 after an interrupt.
    """
    args: Any = build_parser().parse_args(argv)
    _wait_passively()
    _quieten_libraries()
    command = COMMANDS[args.command]
    try:
        text = command.show(command.run(Session(), args, None), args)
        if text is not None:
            with explain_write_errors("standard output"):
                print(text, flush=True)
    except MoeLensError as error:
        if args.debug:
            raise
        print(f"moelens: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("moelens: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
        sys.stderr.close()
    finally:
        _leave_process_group()
    return 0


def _leave_process_group() -> None:
    """Close the connections between processes; otherwise their threads can abort the interpreter when it exits."""
    dist = sys.modules.get("torch.distributed")  # not imported here: the command may not have needed torch
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
