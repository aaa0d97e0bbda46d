"""Every error is raised in one place, listed in docs/errors.md, and its text is asserted in the tests."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__)
PAGE = HERE.parents[1] / "docs" / "errors.py"
LONG = 8  # characters of a piece that says something by itself


def load_page() -> Any:
    spec = importlib.util.spec_from_file_location("errors_page", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["errors_page"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


errors = load_page()


def words(text: str) -> str:
    """Without the backslashes of patterns, and with single spaces, one at each end."""
    return f" {' '.join(text.replace(chr(92), '').split())} "


def literals() -> str:
    """Every string of the tests' sources, as Python joins them; what is computed in f-strings is left out."""
    found = []
    for path in sorted(HERE.parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and path != HERE:
                found.append(words(node.value))
    return "\n".join(found)


def runs(pieces: tuple[str, ...]) -> list[str]:
    """Four words in a row, of each long piece; short texts whole."""
    found = []
    for piece in [p for p in pieces if len(p.strip()) >= LONG] or [p for p in pieces if p.strip()]:
        split = piece.split()
        found += [" ".join(split[i : i + 4]) for i in range(max(1, len(split) - 3))]
    return found


ASSERTED = literals()
RAISED = [error for error in errors.raised() if error.text.strip("… ")]


def test_the_page_is_what_the_source_says() -> None:
    assert PAGE.with_suffix(".md").read_text("utf-8") == errors.page(), "run python docs/errors.py"


@pytest.mark.parametrize("error", RAISED, ids=lambda e: f"{e.module}-{e.text[:60]}")
def test_every_text_is_asserted(error: Any) -> None:
    assert any(run in ASSERTED for run in runs(error.pieces)), f"{error.module}, line {error.line}: {error.text}"


def test_no_text_is_raised_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for error in RAISED:
        if error.pieces[1:] != ("; ", ""):  # `unknown` makes that text, in one place
            places[error.text].append(f"{error.module}, line {error.line}")
    assert not {text: where for text, where in places.items() if len(where) > 1}


def test_what_is_not_asserted_would_be_found() -> None:
    assert not any(run in ASSERTED for run in runs(("pears are kept in a cellar; ",)))
    assert any(run in ASSERTED for run in runs(("the download of … was interrupted (", "); try again")))
