"""The magics `%moe COMMAND …` and `%%moe COMMAND …`, after `%load_ext moelens`. Each calls one public function."""

from __future__ import annotations

import os
import time
import weakref
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import MagicArgumentParser
from traitlets import Enum, Int, Unicode, observe

from moelens.analysis.comparison import Comparison
from moelens.analysis.count_tables import CountTables
from moelens.analysis.result import Specialization
from moelens.commands.completion import completions
from moelens.commands.parsing import add_commands
from moelens.commands.session import DEFAULTS, Session
from moelens.commands.table import COMMANDS
from moelens.commands.words import split_words
from moelens.display import find_view
from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.interventions import Attribution, Causes, Effect, Preferences, Steering
from moelens.models.hooked import HookedMoE
from moelens.recording import Recording
from moelens.texts import LANGUAGES
from moelens.tracing import Trace


class MagicError(UsageError):  # type: ignore[misc]
    """An error that is shown as one line and makes the cell fail.

    IPython writes a plain `UsageError` to stderr, and programs that read the outputs of the cell do not find it.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class MagicParser(MagicArgumentParser):  # type: ignore[misc]
    """A parser that raises an error as a `MagicError`."""

    def error(self, message: str) -> None:
        raise MagicError(f"{self.prog}: {message}; see {self.prog} --help")


def _help() -> str:
    """The text of `%moe --help`, from the command table."""
    commands = [c for c in COMMANDS.values() if "magics" in c.interfaces]
    lines = [f"%moe {c.name:<9} {c.help}" for c in commands]
    cells = [f"%%moe {c.name:<8} the same for the lines below it: {c.cell}" for c in commands if c.cell]
    return "\n".join(
        [
            *lines,
            *cells,
            "",
            "%moe COMMAND --help shows the arguments of a command. -o NAME at the end assigns the result to a name.",
            "Models, recordings and corpora can be variables of the notebook. The model may follow %%moe COMMAND;",
            "without a model, a command uses the one that was loaded last. %config MoeMagics shows and sets defaults.",
        ]
    )


_TEXT_OPTIONS = {
    c.name: [flag for a in c.arguments for flag in a.names if flag.startswith("-")]
    for c in COMMANDS.values()
    if c.takes_text
}


# Results whose texts are in the table of texts.
_IN_LANGUAGE: tuple[type, ...] = (
    Attribution,
    Causes,
    Comparison,
    Effect,
    Preferences,
    Specialization,
    Steering,
    Trace,
)


def _text(result: Any, lang: str) -> str:
    """The printed form of a result, in this language if it has one."""
    has_table = isinstance(result, _IN_LANGUAGE) and hasattr(result, "table")
    return str(result.table(lang=lang)) if has_table else str(result)


@magics_class
class MoeMagics(Magics, Session):  # type: ignore[misc]
    """The magics of moelens and their defaults.

    `%config MoeMagics` lists the defaults, and `%config MoeMagics.model = "…"` sets one.
    """

    model = Unicode("demo", help="model of a command that names none: demo, a folder or a hub name").tag(config=True)
    out = Unicode(DEFAULTS["out"], help="folder that %moe record writes").tag(config=True)
    pairs = Unicode(DEFAULTS["pairs"], help="kind of minimal pairs").tag(config=True)
    family = Unicode(DEFAULTS["family"], help="family of labels").tag(config=True)
    lang = Enum(LANGUAGES, DEFAULTS["lang"], help="language of results and reports: en or ja").tag(config=True)
    seed = Int(DEFAULTS["seed"], help="seed of all random draws").tag(config=True)

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.loaded: dict[str, HookedMoE] = {}
        self._asked: dict[int, str] = {}  # languages of --lang, by the id of the result
        self.parser = MagicParser(prog="%moe")
        self.commands: dict[str, Any] = add_commands(self.parser, MagicParser, "magics", prog="%moe")

    @observe("lang")
    def _follow_language(self, change: Any) -> None:
        """Let this notebook show results in the language that was set."""
        self._register_bundles()

    def _register_bundles(self) -> None:
        """Have results shown in the language that `--lang` or `%config` asked for, if any did."""
        bundles = self.shell.display_formatter.mimebundle_formatter
        for cls in _IN_LANGUAGE:
            bundles.pop(cls, None)
            if self.lang != LANGUAGES[0] or self._asked:
                bundles.for_type(cls, self._bundle)

    def _bundle(self, result: Any) -> dict[str, str]:
        """A result as text and HTML in its language."""
        lang = self._asked.get(id(result), str(self.lang))
        html = find_view(type(result), "html")(result, lang=lang)
        return {"text/plain": _text(result, lang), "text/html": html}

    def _show_in_language(self, result: Any, asked: str | None) -> str:
        """Have a result shown in the language of `--lang`; without one, in that of the notebook. It is returned."""
        lang = str(self.lang if asked is None else asked)
        if asked is not None and isinstance(result, _IN_LANGUAGE):
            self._asked[id(result)] = lang
            weakref.finalize(result, self._asked.pop, id(result), None)
            self._register_bundles()
        return lang

    @no_var_expand  # type: ignore[untyped-decorator]
    @line_cell_magic  # type: ignore[untyped-decorator]
    def moe(self, line: str, cell: str | None = None) -> Any:
        """Find the experts of a Mixture-of-Experts model that handle Japanese; `%moe --help` lists the commands."""
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
        except SystemExit:  # argparse has printed the help of a command
            return None
        lang = self._show_in_language(result, getattr(args, "lang", None))
        if command.timed:
            summary = f"{len(result)} results" if isinstance(result, tuple) else _text(result, lang).splitlines()[0]
            print(f"{command.name}: {summary} ({time.perf_counter() - began:.1f} s)")
        if output:
            self.shell.user_ns[output] = result
        return result

    def complete(self, shell: Any, event: Any) -> list[str]:
        """Return the completions for the Tab key."""
        variables = self.shell.user_ns.items()
        models = [*self.loaded, *(n for n, v in variables if isinstance(v, HookedMoE))]
        recordings = [n for n, v in variables if isinstance(v, Recording)]
        counted = [n for n, v in variables if isinstance(v, (Recording, CountTables, Specialization))]
        line = event.text_until_cursor
        names = [n for n in self.commands if COMMANDS[n].cell or not line.startswith("%%")]
        return completions(line, names, {"model": models, "recording": recordings, "source": counted})

    def _variable(self, name: str | None, *types: type) -> Any:
        """The variable of this name in the notebook if it is of one of these types, else None."""
        value = self.shell.user_ns.get(name) if name else None
        return value if isinstance(value, types) else None

    def default(self, option: str) -> Any:
        return getattr(self, option)

    def find_model(self, name: str | None, *, fresh: bool = False, **options: Any) -> HookedMoE:
        """Return the model of a variable or name, which is loaded once; without a name, the model loaded last.

        Args:
            name: a variable of the notebook, demo, a folder or a hub name.
            fresh: whether to load the model again, even if it is loaded already.
            options: further arguments of `moelens.load`.
        """
        found = self.find_name(name)
        if isinstance(found, HookedMoE):
            return found
        if fresh or found not in self.loaded:
            self.loaded.pop(found, None)  # the last key is the default
            self.loaded[found] = super().find_model(found, **options)
        return self.loaded[found]

    def find_name(self, name: str | None) -> Any:
        given = self._variable(name, HookedMoE)
        return given if given is not None else name or next(reversed(self.loaded), self.model)

    def find_recording(self, name: str, *, checked: bool = True) -> Recording:
        given: Recording | None = self._variable(name, Recording)
        if given is not None:
            return given
        if name.isidentifier() and not os.path.exists(name):
            raise RecordingError(
                f"expected a variable or the folder of a recording, got '{name}', which is neither; make one with"
                " %moe record"
            )
        return super().find_recording(name, checked=checked)

    def find_source(self, name: str) -> Any:
        given = self._variable(name, Recording, CountTables, Specialization)
        return super().find_source(name) if given is None else given

    def find_corpus(self, name: str) -> Any:
        given = self.shell.user_ns.get(name)
        return name if given is None else given
