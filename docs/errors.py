"""Lists every error that moelens raises, with its text, in `docs/errors.md`.

python docs/errors.py            # write the page
python docs/errors.py --check    # exit with 1 if the page is not what the source says
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

What moelens refuses, and in which words. Each line names the value, what is allowed and what to do next; `…` stands for
values of the case at hand. All are subclasses of `moelens.MoeLensError`; on the command line they are printed after
`moelens: ` and the exit status is 2. Written by `python docs/errors.py` from the source; every text is raised in one
place, and the tests assert it.
"""


@dataclass(frozen=True)
class Raised:
    """An error where it is made: its class, the module and line, the pieces of its text that do not vary."""

    kind: str
    module: str
    line: int
    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        return "…".join(self.pieces)


def raised() -> list[Raised]:
    """Every error of the package, in the order of modules and lines."""
    classes = {n.name for n in tree(ROOT / "moelens/errors.py").body if isinstance(n, ast.ClassDef)}
    found = []
    for path in sorted((ROOT / "moelens").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module == "moelens.errors":
            continue
        for call in (n for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)):
            if call.func.id in classes and call.args:
                found += [Raised(call.func.id, module, call.lineno, p) for p in texts(call.args[0])]
            elif call.func.id == "unknown":
                found += [Raised("UnknownNameError", module, call.lineno, (f"unknown {p[0]} ", "; ", ""))
                          for p in texts(call.args[0])]  # fmt: skip
    return sorted(found, key=lambda r: (r.module, r.line))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def texts(node: ast.expr) -> Iterator[tuple[str, ...]]:
    """The pieces of a literal; of each branch of a choice; nothing for a text that is made elsewhere."""
    if isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    elif isinstance(node, ast.BinOp):
        for left in texts(node.left):
            for right in texts(node.right):
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
