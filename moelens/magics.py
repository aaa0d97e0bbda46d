"""`%load_ext moelens`: `%moe info MODEL` and `%%moe trace [MODEL]`, thin over the public functions."""

from __future__ import annotations

import shlex
from functools import lru_cache
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class

from moelens.errors import MoeLensError, unknown

COMMANDS = {
    "info": "%moe info MODEL          what a model is made of",
    "trace": "%%moe trace [MODEL]      which experts the text in the cell takes, token by token",
}


@lru_cache(maxsize=1)
def model(name: str) -> Any:
    """The model that was named last, kept: a notebook asks for the same one again and again."""
    from moelens.models.loading import load

    return load(name)


@magics_class
class MoeMagics(Magics):  # type: ignore[misc]
    """The moelens magics."""

    @line_cell_magic  # type: ignore[untyped-decorator]
    def moe(self, line: str, cell: str | None = None) -> Any:
        """Look at a Mixture-of-Experts model.

        %moe info MODEL          what a model is made of
        %%moe trace [MODEL]      which experts the text in the cell takes, token by token

        MODEL is "demo" (the default), a folder, a hub name, a HookedMoE in a variable, or for info an architecture.
        """
        command, *arguments = shlex.split(line) or ["--help"]
        if command in ("--help", "-h"):
            print("\n".join(COMMANDS.values()))
            return None
        try:
            if command not in COMMANDS:
                raise unknown("%moe command", command, COMMANDS)
            if len(arguments) > 1:
                raise MoeLensError(f"%moe {command} takes one model, not {arguments}: {COMMANDS[command]}")
            return getattr(self, command)(arguments[0] if arguments else "demo", cell)
        except MoeLensError as error:
            raise UsageError(str(error)) from error

    def info(self, name: str, cell: str | None) -> Any:
        from moelens.models.info import describe, info

        given = self.variable(name)
        return info(name) if given is None else describe(given)

    def trace(self, name: str, cell: str | None) -> Any:
        from moelens.tracing import trace

        text = (cell or "").strip()
        if not text:
            raise MoeLensError("%%moe trace has no text; write it in the lines below, in the same cell")
        return trace(self.variable(name) or model(name), text)

    def variable(self, name: str) -> Any:
        """A HookedMoE that the notebook holds under this name, or None."""
        from moelens.models.hooked import HookedMoE

        value = self.shell.user_ns.get(name)
        return value if isinstance(value, HookedMoE) else None
