"""What `%moe` commands take, and how the Tab key completes it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser

MANIFEST = "manifest.json"
# Options that several commands share: flags, and what argparse is told of them.
SHARED: dict[str, dict[str, Any]] = {
    "--model": {"help": "demo, a folder, a hub name or a variable (the one loaded last)"},
    "--pairs": {"help": "kind of minimal pairs, Tab lists them, or a .jsonl file (%%config MoeMagics.pairs)"},
    "--labels": {"metavar": "FAMILY", "help": "family of labels, Tab lists them (%%config MoeMagics.labels)"},
    "--hooks": {"metavar": "FILE", "help": "recipe to run the model with, see hooks/README.md"},
    "--set": {"action": "append", "default": [], "metavar": "NAME=VALUE", "help": "option of the recipe"},
    "--force": {"action": "store_true", "help": "replace what is there"},
    "--draws": {"type": int, "default": 20, "help": "matched controls for each (%(default)s)"},
}
RECORDING = {"help": "a folder, or a variable"}
# Of each command: what it does, the shared options, its own arguments.
COMMANDS: dict[str, tuple[str, str, dict[str, dict[str, Any]]]] = {
    "load": ("load and hook a model; the others then use it", "", {
        "model": {"nargs": "?", "help": "demo, a folder or a hub name (%%config MoeMagics.model)"},
        "--dtype": {"help": "of the weights (the model's own)"},
        "--device-map": {"help": "auto: over all GPUs, the CPU and disk"},
        "--revision": {"help": "commit, tag or branch on the hub"}}),
    "info": ("what a model is made of", "", {
        "model": {"nargs": "?", "help": "a model, or an architecture such as deepseek_v3"}}),
    "record": ("run a model over a corpus and keep what it did", "--model --hooks --set --force", {
        "corpus": {"nargs": "?", "help": "demo, a file, a data set's name or a variable; above a cell, the model"},
        "--out": {"help": "folder or fsspec URL to write (%%config MoeMagics.out)"},
        "--capture": {"nargs": "+", "default": ["routes"], "help": "routes, margin, logits[:N], neurons[:N] …"},
        "--layers": {"type": int, "nargs": "+", "help": "layers to capture (all with experts)"},
        "--generate": {"type": int, "default": 0, "metavar": "N", "help": "tokens to write after each document"}}),
    "label": ("label a recording's tokens", "", {
        "recording": RECORDING,
        "--policy": {"default": "last", "help": "token's morpheme: last, majority or any (%(default)s)"},
        "--analyser": {"default": "fugashi", "help": "fugashi or sudachi (%(default)s)"}}),
    "analyze": ("which experts specialise in a family of labels", "--labels", {
        "recording": RECORDING,
        "--given": {"metavar": "CONTROL", "help": "compare within: token, position, a family, or token,script"},
        "--permutations": {"type": int, "default": 1000, "help": "of documents, for the test (%(default)s)"}}),
    "compare": ("what differs between two models that read the same text", "--labels", {
        "a": RECORDING, "b": RECORDING}),
    "trace": ("which experts a text takes, token by token", "--model", {
        "text": {"nargs": "*", "help": "the text; above a cell with the text, the model"}}),
    "pairs": ("which text of each pair the model prefers", "--model --pairs --hooks --set", {}),
    "effect": ("find the experts that cause a preference, and test them by removal", "--model --pairs --draws", {
        "--top": {"type": int, "default": 5, "help": "experts to remove (%(default)s)"}}),
    "remove": ("what removing experts changes, beside matched controls", "--model --pairs --draws", {
        "--layer": {"type": int, "required": True, "help": "of the experts"},
        "--experts": {"required": True, "help": "ids such as 5,9, or shared"}}),
    "probe": ("what can be read from a recording, or a file of probes and effects", "--hooks --set", {
        "recording": {"help": "a folder or variable, or a .toml file"},
        "label": {"nargs": "?", "help": "a family or one label (%%config MoeMagics.labels)"},
        "--features": {"nargs": "+", "default": ["experts"], "help": "experts, weights, paths, logits …"}}),
    "export": ("write a recording in another format", "--force", {
        "recording": RECORDING,
        "format": {"help": "datasets, safetensors, npz or csv"},
        "--out": {"help": "folder to write"},
        "--labels": {"nargs": "+", "default": [], "metavar": "FAMILY", "help": "families of labels beside them"},
        "--split": {"default": "", "help": "shares of the documents, such as train:0.8,test:0.2"}}),
    "report": ("one HTML file that holds everything it shows", "", {
        "recording": RECORDING,
        "--out": {"default": "report.html", "help": "file to write (%(default)s)"}}),
    "hooks": ("a recipe's hooks, for model.hooks(fwd_hooks=…)", "--model --set", {
        "file": {"help": "the recipe, a Python file"}}),
}  # fmt: skip


class Mistake(UsageError):  # type: ignore[misc]
    """One line, and a failed cell: IPython prints a plain `UsageError` beside the outputs, where tools miss it."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class Parser(MagicArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{self.prog}: {message}; see {self.prog} --help")


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of what follows `%moe`, and that of each command."""
    plain = argparse.HelpFormatter  # IPython's own writes reStructuredText
    parser, made = Parser(prog="%moe", formatter_class=plain), {}
    below = parser.add_subparsers(dest="command", required=True)
    for name, (summary, shared, own) in COMMANDS.items():
        command = below.add_parser(name, prog=f"%moe {name}", description=summary, add_help=True, formatter_class=plain)
        for flag, options in own.items():
            command.add_argument(flag, **options)
        for flag in shared.split():
            command.add_argument(flag, **SHARED[flag])
        command.add_argument("-o", "--output", metavar="NAME", help="variable to put the result into")
        made[name] = command
    return parser, made


def completions(
    line: str, commands: Mapping[str, Parser], models: Iterable[str], recordings: Iterable[str]
) -> list[str]:
    """What the last word of a line that begins with `%moe` may become.

    Args:
        commands: the second result of `build_parser`.
        models, recordings: names that stand for some.
    """
    words = line.split()[1:] + ([""] if line[-1:].isspace() else [])
    if len(words) <= 1:
        found: Iterable[str] = commands
    elif words[0] not in commands:
        return []
    else:
        found = _candidates(commands[words[0]], words[1:], [*models], [*recordings, *folders()])
    return sorted(name for name in dict.fromkeys(found) if name.startswith(words[-1] if words else ""))


def _candidates(command: Parser, words: list[str], models: list[str], recordings: list[str]) -> Iterable[str]:
    options: Mapping[str, Any] = command._option_string_actions
    if words[-1].startswith("-"):
        return options
    before = words[-2] if len(words) > 1 else ""
    if before in options and options[before].nargs != 0:
        name = options[before].dest
    else:
        places = [a.dest for a in command._get_positional_actions()]
        at = sum(not w.startswith("-") and (i == 0 or words[i - 1] not in options) for i, w in enumerate(words[:-1]))
        name = places[min(at, len(places) - 1)] if places else ""
    return {
        "model": lambda: ["demo", *models],
        "corpus": lambda: ["demo", *models],
        "text": lambda: models,
        "recording": lambda: recordings,
        "a": lambda: recordings,
        "b": lambda: recordings,
        "pairs": _kinds,
        "labels": _families,
        "given": lambda: ["token", *_families()],
        "label": _families,
        "format": lambda: ["datasets", "safetensors", "npz", "csv"],
        "capture": _captures,
    }.get(name, list)()


def _kinds() -> Iterable[str]:
    from moelens.japanese.pairs import kinds

    return kinds()


def _families() -> Iterable[str]:
    from moelens.japanese.families import FAMILIES

    return FAMILIES


def _captures() -> Iterable[str]:
    from moelens.recording.captures import POINTS

    return POINTS


def folders() -> list[str]:
    """Folders with a recording in them, here and one below."""
    return sorted(str(path.parent) for pattern in ("*", "*/*") for path in Path().glob(f"{pattern}/{MANIFEST}"))


def split(line: str) -> list[str]:
    """Words as a shell would see them. Raises `Mistake` for a quotation mark that is not closed."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise Mistake(f"%moe: {error} in {line!r}; close the quotation mark") from error


def integers(text: str) -> list[int]:
    """Ids such as `5,9`. Raises `Mistake` for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise Mistake(f"%moe: experts {text!r} are not ids; give some such as 5,9, or shared") from error
