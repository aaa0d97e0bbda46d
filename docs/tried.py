"""Write `docs/tried.md`, the table of unusual inputs that the tests try and of what happens.

A test adds a row with the marker `@pytest.mark.tried(AREA, TRIED, HAPPENS)`, three plain strings. It may also mark a
case of a table, as in `pytest.param(…, marks=pytest.mark.tried(…))`.

python docs/tried.py            # write the page
python docs/tried.py --check    # exit with 1 if the page differs from the tests
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
HEAD = """# What was tried

The tests give moelens models and inputs that cannot be true, or that other programs get wrong without a word. This page
lists them, with what happens and the test that shows it. `python docs/tried.py` generates it from the tests.
"""


def rows() -> dict[str, list[tuple[str, str, str]]]:
    """Return what was tried, what happens and the test, by area; areas and rows in the order of the files."""
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        owners = {id(n): f.name for f in functions for decorator in f.decorator_list for n in ast.walk(decorator)}
        calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "pytest.mark.tried")
        for call in sorted(calls, key=lambda n: n.lineno):
            area, tried, happens = (ast.literal_eval(argument) for argument in call.args)
            found[area].append((tried, happens, f"{path.name} {owners.get(id(call), '')}".strip()))
    return found


def page() -> str:
    """Return the content of `docs/tried.md`."""
    lines = [HEAD]
    for area, tried in rows().items():
        lines += [f"## {area}\n", "| tried | what happens | test |", "|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in tried]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
