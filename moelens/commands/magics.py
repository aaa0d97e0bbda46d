"""`%load_ext moelens`: `%moe COMMAND …` and `%%moe COMMAND …`, each one call of a public function."""

from __future__ import annotations

import time
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import MagicArgumentParser
from traitlets import Int, Unicode

from moelens.commands.completion import completions
from moelens.commands.parsing import build
from moelens.commands.session import DEFAULTS, Session
from moelens.commands.table import COMMANDS
from moelens.commands.words import split_words
from moelens.errors import MoeLensError, unknown
from moelens.models.hooked import HookedMoE
from moelens.recording import Recording


class MagicError(UsageError):  # type: ignore[misc]
    """One line, and a failed cell: IPython prints a plain `UsageError` beside the outputs, where tools miss it."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class Parser(MagicArgumentParser):  # type: ignore[misc]
    """A parser whose errors are one line."""

    def error(self, message: str) -> None:
        raise MagicError(f"{self.prog}: {message}; see {self.prog} --help")


def _help() -> str:
    """The text of `%moe --help`, from the command table."""
    shown = [c for c in COMMANDS.values() if "magics" in c.faces]
    lines = [f"%moe {c.name:<9} {c.help}" for c in shown]
    cells = [f"%%moe {c.name:<8} the same of the cell: {c.cell}" for c in shown if c.cell]
    return "\n".join(
        [
            *lines,
            *cells,
            "",
            "%moe COMMAND --help shows the arguments of a command. -o NAME at the end puts the result into a variable.",
            "A variable of the notebook may stand for any model, recording or corpus; without a model, a command uses",
            "the one that was loaded last. %config MoeMagics shows and sets the defaults.",
        ]
    )


_TEXT_OPTIONS = {
    c.name: [flag for a in c.arguments for flag in a.names if flag.startswith("-")]
    for c in COMMANDS.values()
    if c.takes_text
}


@magics_class
class MoeMagics(Magics, Session):  # type: ignore[misc]
    """Defaults of the moelens magics; `%config MoeMagics` lists them, `%config MoeMagics.model = "…"` sets one."""

    model = Unicode("demo", help="model that is used where none is given: demo, a folder or a hub name").tag(
        config=True
    )
    out = Unicode(DEFAULTS["out"], help="folder that %moe record writes").tag(config=True)
    pairs = Unicode(DEFAULTS["pairs"], help="kind of minimal pairs").tag(config=True)
    family = Unicode(DEFAULTS["family"], help="family of labels").tag(config=True)
    seed = Int(DEFAULTS["seed"], help="of tests, halves, controls and folds").tag(config=True)

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.loaded: dict[str, HookedMoE] = {}
        self.parser = Parser(prog="%moe")
        self.commands: dict[str, Any] = build(self.parser, Parser, "magics", prog="%moe")

    @no_var_expand  # type: ignore[untyped-decorator]
    @line_cell_magic  # type: ignore[untyped-decorator]
    def moe(self, line: str, cell: str | None = None) -> Any:
        """See which experts of a Mixture-of-Experts model handle which Japanese; `%moe --help` lists the commands."""
        texts = {} if cell is not None else _TEXT_OPTIONS
        try:
            words, output = split_words(line, texts)
        except MoeLensError as error:
            raise MagicError(str(error)) from error
        if words[:1] == ["help"] and len(words) > 1:
            words = [words[1], "--help"]
        if not words or words[0] in ("--help", "-h", "help"):
            print(_help())
            return None
        try:
            if words[0] not in self.commands:
                raise unknown("%moe command", words[0], self.commands, "%moe --help lists them")
            command = COMMANDS[words[0]]
            args = self.parser.parse_args(words)
            if cell is not None and not command.cell:
                raise MoeLensError(f"%%moe {command.name} takes no cell; write %moe {command.name} on one line")
            began = time.perf_counter()
            result = command.run(self, args, cell)
        except MoeLensError as error:
            raise MagicError(str(error)) from error
        except SystemExit:  # the help of a command has been printed
            return None
        if command.timed:
            summary = f"{len(result)} results" if isinstance(result, tuple) else str(result).splitlines()[0]
            print(f"{command.name}: {summary} ({time.perf_counter() - began:.1f} s)")
        if output:
            self.shell.user_ns[output] = result
        return result

    def complete(self, shell: Any, event: Any) -> list[str]:
        """For the Tab key."""
        variables = self.shell.user_ns.items()
        models = [*self.loaded, *(n for n, v in variables if isinstance(v, HookedMoE))]
        recordings = [n for n, v in variables if isinstance(v, Recording)]
        line = event.text_until_cursor
        names = [n for n in self.commands if COMMANDS[n].cell or not line.startswith("%%")]
        return completions(line, names, {"model": models, "recording": recordings})

    # What names stand for

    def _variable(self, name: str | None, *types: type) -> Any:
        """What the notebook holds under a name, if it is of one of these types."""
        value = self.shell.user_ns.get(name) if name else None
        return value if isinstance(value, types) else None

    def default(self, option: str) -> Any:
        return getattr(self, option)

    def find_model(self, name: str | None, *, fresh: bool = False, **options: Any) -> HookedMoE:
        """A model by variable or name, loaded once; without a name the one that was loaded last."""
        found = self.find_name(name)
        if isinstance(found, HookedMoE):
            return found
        if fresh or found not in self.loaded:
            self.loaded.pop(found, None)  # the last is the default
            self.loaded[found] = super().find_model(found, **options)
        return self.loaded[found]

    def find_name(self, name: str | None) -> Any:
        given = self._variable(name, HookedMoE)
        return given if given is not None else name or next(reversed(self.loaded), self.model)

    def find_recording(self, name: str) -> Recording:
        return self._variable(name, Recording) or super().find_recording(name)

    def find_corpus(self, name: str) -> Any:
        given = self.shell.user_ns.get(name)
        return name if given is None else given
