"""The command table, and that the command line, `%moe`, README and docs say what it says."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

import moelens
from moelens.analysis import found_experts
from moelens.commands.command_line import build_parser, main
from moelens.commands.definitions import INTERFACES
from moelens.commands.magics import MagicParser
from moelens.commands.parsing import add_commands
from moelens.commands.table import COMMANDS
from moelens.interventions.operations import OPERATIONS
from moelens.japanese.families import FAMILIES

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.ja.md",
    ROOT / "SECURITY.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "hooks").glob("*.md"),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def line() -> dict[str, argparse.ArgumentParser]:
    return add_commands(argparse.ArgumentParser(), argparse.ArgumentParser, "command line", prog="moelens")


@pytest.fixture(scope="module")
def magic() -> dict[str, Any]:
    return add_commands(MagicParser(prog="%moe"), MagicParser, "magics", prog="%moe")


def options(parser: argparse.ArgumentParser) -> list[tuple[Any, ...]]:
    """What a parser takes: flags or name, default, number, help."""
    return [(tuple(a.option_strings) or a.dest, a.default, a.nargs, a.help) for a in parser._actions]


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if c.interfaces == INTERFACES])
def test_both_interfaces_take_the_same(name: str, line: dict[str, Any], magic: dict[str, Any]) -> None:
    assert options(line[name]) == options(magic[name])
    assert [a.help for a in COMMANDS[name].arguments] == [a.help for a in line[name]._actions if a.dest != "help"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_one_public_function(name: str) -> None:
    command = COMMANDS[name]
    assert command.function.partition(".")[0] in moelens.__all__  # a function, or a class with its constructor
    assert callable(attrgetter(command.function)(moelens))
    assert (
        f"moelens.{command.function}"
        in add_commands(MagicParser(prog="%moe"), MagicParser, command.interfaces[-1], prog="")[name].format_help()
    )
    assert len(command.help) < 100
    assert command.help[0].islower()


def test_help_lists_the_names_that_arguments_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "effect": {"kinds of contrasts and pairs": ["subject-honorification", "title"], "operations": [*OPERATIONS]},
        "analyze": {"families of labels": [*FAMILIES]},
        "measure": {"measures": ["load", "npmi"], "families of labels": ["honorifics"]},
        "probe": {"families of labels": ["pos"]},
        "export": {"formats": ["datasets", "csv"]},
    }
    for command, lists in expected.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert f"(moelens.{COMMANDS[command].function})" in text
        assert text.rpartition("example: ")[2] == f"moelens {COMMANDS[command].example}"
        for heading, names in lists.items():
            listed = text.partition(f"{heading}: ")[2].split("example: ")[0]
            assert set(names) <= set(listed.replace(",", "").split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_understood(name: str) -> None:
    command = COMMANDS[name]
    parser = add_commands(argparse.ArgumentParser(), argparse.ArgumentParser, command.interfaces[0], prog="moelens")[
        name
    ]
    words = shlex.split(command.example)
    assert words[0] == name
    parser.parse_args(words[1:])


def test_one_flag_means_one_thing() -> None:
    """An option of the same name has the same help, or says in its help what it is of; `-o` is no option at all."""
    meanings: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for argument in command.arguments:
            for flag in argument.names:
                meanings.setdefault(flag, set()).add(str(argument.options.get("type", str)))
    assert "-o" not in meanings
    assert {flag for flag, types in meanings.items() if len(types) > 1} <= {"--out", "--experts"}


def written(text: str, start: str) -> list[str]:
    """The commands a page shows, each as one line."""
    joined = re.sub(r"\\\n\s*", "", text)
    return re.findall(rf"(?:^|\$ |`|-m |\n\s*(?:!)?){start} ([a-z][^`\n#|]*)", joined)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_on_pages_are_understood(page: Path) -> None:
    for shown in written(page.read_text(encoding="utf-8"), "moelens"):
        words = shlex.split(re.sub(r"\$\([^)]*\)", "3", shown.replace("…", "").replace("&& pytest", "")))
        if not words or words[0] not in COMMANDS or len(words) == 1:
            continue
        build_parser().parse_args([w for w in words if w])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_magics_in_notebooks_are_understood(notebook: Path, magic: dict[str, Any]) -> None:
    from moelens.commands.words import split_words

    for shown in re.findall(r'"(%%?moe [^"]*?)\\?n?"', notebook.read_text(encoding="utf-8")):
        words, _ = split_words(shown.split(maxsplit=1)[1].replace("\\\\", "").replace('\\"', '"'))
        if words[0] in magic:
            magic[words[0]].parse_args(words[1:])


_PRINTED_IN = ("analyze", "causes", "compare")
"""Commands whose `--lang` is that of what they print, and no argument of their function."""


def test_the_public_functions_take_what_their_commands_say() -> None:
    """Every option of a command is a parameter of its function, but those that say where names and results are."""
    elsewhere = {"out", "top", "hooks", "set", "model", "pairs", "text", "value", "layer", "experts", "operation"}
    elsewhere.add("export_experts")
    for name in ("analyze", "compare", "measure", "label", "export", "report", "explore", "plan", "record", "causes"):
        command = COMMANDS[name]
        taken = set(inspect.signature(getattr(moelens, command.function)).parameters)
        if name == "analyze":  # what --export-experts does
            taken |= set(inspect.signature(found_experts).parameters) | {"baseline"}  # --baseline: with_baseline
        given = {a.dest for a in command.arguments} - elsewhere - ({"lang"} if name in _PRINTED_IN else set())
        placement = {"dtype", "revision", "device_map", "offload_folder", "tensor_parallel", "expert_parallel"}
        corpus = {"text_column", "license"}
        assert given - taken <= placement | corpus, (name, given - taken)
