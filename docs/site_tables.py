"""The tables of the site that follow from the source: a page has `<!-- table: NAME -->` where one of them belongs."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.resources import files

from moelens.commands.parsing import add_commands
from moelens.commands.table import COMMANDS
from moelens.japanese import CLASSES, contrasts, pairs
from moelens.japanese.classes import CLASS_STYLE, GLOSS
from moelens.japanese.families import FAMILIES, LABEL_FILES
from moelens.japanese.minimal_pairs import kinds
from moelens.japanese.rules import rulebook


def fill(page: str) -> str:
    """Replace every `<!-- table: NAME -->` of a page by that table, in Markdown."""
    return re.sub(r"<!-- table: ([a-z-]+) -->", lambda found: TABLES[found[1]](), page)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def commands() -> str:
    """Each command with its arguments, its example and its function."""
    parts = []
    parser = argparse.ArgumentParser
    by_interface = {i: add_commands(parser(), parser, i, prog="moelens") for i in ("magics", "command line")}
    for name, command in COMMANDS.items():
        start = "moelens" if "command line" in command.interfaces else "%moe"
        made = by_interface[command.interfaces[0]][name]
        rows = []
        for action in made._actions[1:]:
            value = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
            if isinstance(action.metavar, tuple):
                value = " " + " ".join(action.metavar)
            flag = action.option_strings[0] if action.option_strings else action.dest
            rows.append((_code(flag + value), (action.help or "") % {"default": action.default}))
        parts += [
            f"## {start} {name}",
            f"{command.help[0].upper()}{command.help[1:]}. In Python: `moelens.{command.function}`"
            + (" (in notebooks only)." if start == "%moe" else ".")
            + (f" `%%moe {name}` takes {command.cell} from the cell." if command.cell else ""),
            f"```console\n$ {start} {command.example}\n```"
            if start == "moelens"
            else f"```\n%moe {command.example}\n```",
            _table(("argument", "meaning (default)"), rows) if rows else "",
        ]
    return "\n\n".join(parts)


def labels() -> str:
    """Each family with its labels, by the file that holds it."""
    parts = []
    for file, families in LABEL_FILES.items():
        shown = [
            (
                _code(family),
                "、".join(name + (f" ({GLOSS[name]})" if name in GLOSS else "") for name in FAMILIES[family]),
            )
            for family in families
        ]
        parts.append(f"## `labels/{file}.parquet`\n\n{_table(('family', 'labels'), shown)}")
    return "\n\n".join(parts)


def rules() -> str:
    """The rules of keigo by class, with the examples that they are tested on."""
    book = rulebook()
    groups = [*((name, [r for r in book.rules if name in r.classes]) for name in CLASSES)]
    groups.append(("readings that only the situation decides", [r for r in book.rules if r.readings and not r.classes]))
    rest = [r for r in book.rules if not (r.classes or r.readings)]
    groups.append(("forms that tell the register alone", [r for r in rest if not r.is_guard]))
    groups.append(("guards", [r for r in rest if r.is_guard]))
    parts = [f"The table has version {book.version} and {len(book.rules)} rules."]
    for name, found in groups:
        if not found:
            continue
        gloss = f" ({GLOSS[name]})" if name in GLOSS else ""
        mark = f"{CLASS_STYLE[name].mark} " if name in CLASS_STYLE else ""
        rows = [(_code(r.name), ", ".join(r.raises) or "–", " ".join(r.yes), " ".join(r.no)) for r in found]
        head = ("rule", "raises", "marks", "marks nothing in")
        parts.append(f"## {mark}{name}{gloss}\n\n{_table(head, rows)}")
    return "\n\n".join(parts)


def kinds_of_pairs() -> str:
    """Each kind of crossed contrasts and of minimal pairs, with an example."""
    about = {
        kind["name"]: kind["about"]
        for file in ("contrasts.toml", "pairs.toml")
        for kind in tomllib.loads(files("moelens.japanese").joinpath(file).read_text("utf-8"))["kind"]
    }
    numbers = Counter(item.kind for item in [*contrasts(), *pairs()])
    first = {c.kind: c for c in reversed(contrasts())}
    crossed = []
    for kind, c in first.items():
        lines = (f"○ {c.context_a}**{c.x}**", f"× {c.context_a}**{c.y}**", f"× {c.context_b}**{c.x}**")
        shown = "<br>".join((*lines, f"○ {c.context_b}**{c.y}**")).replace("\n", " ／ ")
        crossed.append((_code(kind), about[kind], numbers[kind], shown))
    crossed.sort(key=lambda row: ("control" in str(row[0]), list(about).index(str(row[0])[1:-1])))
    simple = []
    for kind in kinds():
        p = pairs(kind)[0]
        shown = f"○ {p.context}**{p.good}**<br>× {p.context}**{p.bad}**".replace("\n", " ／ ")
        simple.append((_code(kind), about[kind], numbers[kind], shown))
    head = ("kind", "what decides", "number", "an example")
    return f"## Crossed contrasts\n\n{_table(head, crossed)}\n\n## Minimal pairs\n\n{_table(head, simple)}"


TABLES = {"commands": commands, "labels": labels, "rules": rules, "kinds-of-pairs": kinds_of_pairs}
