"""The house: imports go down the floors of docs/architecture.md, and no two files import each other in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "moelens"


def floors(page: str) -> dict[str, int]:
    """The floor of each room, from the table in docs/architecture.md."""
    found = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"`([\w.]+?)(?:\.py|/)?`", rooms), int(floor))
    return found


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module, modules: set[str], name: str) -> Iterator[tuple[str, int]]:
    """Modules of the package that a file imports, anywhere in it: at the top, in functions, for typing, by a string."""
    data = {id(a) for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "files" for a in n.args}
    for node in ast.walk(tree):
        if id(node) in data:  # a file beside the code is read, nothing is imported
            continue
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative to the package
                base = ".".join([*name.split(".")[: -node.level], *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (whole if whole in modules else base), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in modules - {PACKAGE}:
            yield node.value, node.lineno
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            start = str(node.values[0].value)
            if start.startswith(f"{PACKAGE}.") and start != f"{PACKAGE}.":  # the root looks its public names up so
                yield from ((m, node.lineno) for m in modules if m.startswith(start) and m != name)


def arrows(root: Path) -> dict[str, list[tuple[str, int]]]:
    """Every import between the package's modules: by the importing one, what it imports and on which line."""
    paths = {module_name(p, root): p for p in (root / PACKAGE).rglob("*.py")}
    found = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[name] = [(m, n) for m, n in imported(tree, set(paths), name) if m in paths and m != name]
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def climbing(found: dict[str, list[tuple[str, int]]], floor: dict[str, int]) -> list[str]:
    """Imports that go up, or to another room of the same floor (the ground floor is one room)."""
    bad = []
    for name, targets in found.items():
        for target, line in targets:
            here, there = floor[room(name)], floor[room(target)]
            same = room(name) == room(target) or here == there == 0
            if there > here or (there == here and not same):
                bad.append(f"{name}, line {line}, imports {target}: floor {here} to {there}")
    return bad


def circles(found: dict[str, list[tuple[str, int]]]) -> list[set[str]]:
    """Groups of files that import each other (strongly connected components, Tarjan 1972); packages are not files."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target, _ in found[name]:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(group)

    for name in found:
        if name not in index:
            visit(name)
    return groups


@pytest.fixture(scope="module")
def floor() -> dict[str, int]:
    return floors((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))


def test_every_room_has_a_floor(floor: dict[str, int]) -> None:
    rooms = {room(name) for name in arrows(ROOT)}
    assert rooms == set(floor)


def test_no_import_climbs(floor: dict[str, int]) -> None:
    found = arrows(ROOT)
    assert sum(map(len, found.values())) > 200
    assert climbing(found, floor) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(arrows(ROOT)) == []


UPWARD = [
    "from moelens.views import maps\n",
    "def f():\n    from moelens.recording import Recording\n",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from moelens.analysis import Counts\n",
    "from importlib import import_module\nimport_module('moelens.views.maps')\n",
    "import moelens.interventions\n",
    "import moelens\n",
    "from moelens import analyze\n",
    "from moelens.japanese import honorifics\n",
]


@pytest.mark.parametrize("source", UPWARD)
def test_an_upward_import_is_found(source: str, floor: dict[str, int], tmp_path: Path) -> None:
    """`models` may import the ground floor alone: whatever else it imports, however, is named."""
    for name in ("models", "views", "recording", "analysis", "interventions", "japanese"):
        (tmp_path / PACKAGE / name).mkdir(parents=True)
        (tmp_path / PACKAGE / name / "__init__.py").write_text("")
    (tmp_path / PACKAGE / "__init__.py").write_text("")
    (tmp_path / PACKAGE / "views" / "maps.py").write_text("")
    (tmp_path / PACKAGE / "models" / "added.py").write_text(source)
    assert len(climbing(arrows(tmp_path), floor)) == 1


def test_a_circle_is_found(tmp_path: Path) -> None:
    folder = tmp_path / PACKAGE / "models"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("from moelens.models.b import x\n")
    (folder / "b.py").write_text("def f():\n    from moelens.models.a import y\n")
    assert circles(arrows(tmp_path)) == [{"moelens.models.a", "moelens.models.b"}]
