"""Write `docs/errors.md`, the list of every error that moelens raises, with its text.

python docs/errors.py            # write the page
python docs/errors.py --check    # exit with 1 if the page differs from the source
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Errors

This page lists the errors that moelens raises. Each message is one line. It states what was expected, what was given
and what to do next; `…` stands for values of the case. All errors are subclasses of `moelens.MoeLensError`. The command
line prints them after `moelens: ` and exits with status 2. `python docs/errors.py` generates this page from the source.
Each text is raised in one place, and the tests assert it.
"""


@dataclass(frozen=True)
class Raised:
    """An error in the source: its class, its module and line, and the constant pieces of its text."""

    kind: str
    module: str
    line: int
    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        return "…".join(self.pieces)


def raised() -> list[Raised]:
    """Every error that the package raises, ordered by module and line."""
    classes = {n.name for n in _tree(ROOT / "moelens/errors.py").body if isinstance(n, ast.ClassDef)}
    found = []
    for path in sorted((ROOT / "moelens").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module == "moelens.errors":
            continue
        for call in (n for n in ast.walk(_tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)):
            if call.func.id in classes and call.args:
                found += [Raised(call.func.id, module, call.lineno, p) for p in _texts(call.args[0])]
            elif call.func.id == "unknown":
                for pieces in _texts(call.args[0]):
                    text = (f"unknown {pieces[0]} ", "; ", "")
                    found.append(Raised("UnknownNameError", module, call.lineno, text))
    return sorted(found, key=lambda r: (r.module, r.line))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _texts(node: ast.expr) -> Iterator[tuple[str, ...]]:
    """Yield the constant pieces of a string, one tuple for each branch of a conditional expression.

    A text that is computed elsewhere yields empty pieces.
    """
    if isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)
    elif isinstance(node, ast.BinOp):
        for left in _texts(node.left):
            for right in _texts(node.right):
                yield (*left[:-1], left[-1] + right[0], *right[1:])
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield (node.value,)
    elif isinstance(node, ast.JoinedStr):
        pieces = [""]
        for part in node.values:
            if isinstance(part, ast.Constant):
                pieces[-1] += part.value
            else:
                pieces.append("")
        yield tuple(pieces)
    else:
        yield ("", "")


def page() -> str:
    """The content of `docs/errors.md`."""
    lines, module = [HEAD], ""
    for error in raised():
        if error.text.strip("… ") == "":
            continue
        if error.module != module:
            module = error.module
            lines.append(f"\n## `{module}`\n")
        lines.append(f"- {error.kind}: {' '.join(error.text.split())}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
