"""The site is built without a warning; both languages say the same; links lead somewhere."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moelens.commands.table import COMMANDS
from moelens.japanese.rules import rulebook
from moelens.texts import Texts

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("README*.md"), *DOCS.rglob("*.md")])


@pytest.mark.slow
def test_sphinx_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "-d",
        str(tmp_path / "trees"),
        str(DOCS),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "out"
    assert 'id="moelens.record"' in (site / "api.html").read_text("utf-8")
    for name in COMMANDS:
        assert f"moelens {name}" in (site / "reference/commands.html").read_text("utf-8") or name in ("load", "hooks")
    for rule in rulebook().rules:
        assert f">{rule.name}<" in (site / "reference/keigo-rules.html").read_text("utf-8")
    japanese = (site / "ja/tutorial.html").read_text("utf-8")
    assert '<html class="no-js" lang="ja"' in japanese
    assert 'href="../tutorial.html" lang="en"' in japanese
    assert 'href="ja/tutorial.html" lang="ja"' in (site / "tutorial.html").read_text("utf-8")
    for page in site.rglob("*.html"):  # nothing is loaded from another server
        assert not re.findall(r'(?:src|<link[^>]*href)="(?:https?:)?//[^"]*"', page.read_text("utf-8")), page


def test_notebooks_with_outputs_load_no_widgets_from_other_servers() -> None:
    assert runpy.run_path(str(DOCS / "conf.py"))["nb_ipywidgets_js"] == {}


CODE = re.compile(r"^    \S.*$|```[\s\S]*?```|`[^`\n]+`", re.MULTILINE)


def commands(page: str) -> list[str]:
    """The lines of code of a page, without comments."""
    return sorted(re.sub(r"  # .*", "", line) for block in CODE.findall(page) for line in block.splitlines())


def figures(page: str) -> list[str]:
    """The numbers in the prose of a page: those with decimals or %, since English writes small ones as words."""
    return sorted(re.findall(r"\d+\.\d+(?: %)?|\d+ %", re.sub(r"\]\([^)]*\)", "", CODE.sub("", page))))


def test_both_readmes_show_the_same_commands_and_figures() -> None:
    english, japanese = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.ja.md"))
    assert commands(japanese) == commands(english)
    assert figures(japanese) == figures(english)


@pytest.mark.parametrize("page", ["tutorial"])
def test_both_languages_of_a_page_show_the_same_blocks(page: str) -> None:
    english, japanese = ((DOCS / folder / f"{page}.md").read_text("utf-8") for folder in (".", "ja"))
    blocks = [re.findall(r"```.*?```", text, re.DOTALL) for text in (english, japanese)]
    assert blocks[0] == blocks[1]
    assert len(blocks[0]) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if not target.startswith(("http", "mailto")):
            target = re.sub(r"gallery/(?=\d)", "../notebooks/", target)
            assert (page.parent / target).resolve().exists(), target


def test_both_languages_of_a_notebook_run_the_same_code() -> None:
    def code(name: str) -> list[str]:
        cells = json.loads((ROOT / "notebooks" / name).read_text("utf-8"))["cells"]
        text = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        return [re.sub(r'  # .*|, lang="ja"|"ja"', "", cell) for cell in text]

    for japanese in (ROOT / "notebooks").glob("*.ja.ipynb"):
        assert code(japanese.name) == code(japanese.name.replace(".ja", ""))


def terms(page: str) -> list[list[str]]:
    """The words of each term of a glossary, in English: in parentheses where the term is Japanese."""
    heads = re.findall(r"^(.+)\n: ", (DOCS / page).read_text("utf-8"), re.MULTILINE)
    english = [re.sub(r".*\((.*)\)", r"\1", head).lower() for head in heads]
    return sorted(sorted(re.findall(r"\w+", term)) for term in english)


def test_both_glossaries_have_the_same_terms_and_each_column_of_a_table() -> None:
    assert terms("ja/glossary.md") == terms("reference/glossary.md")
    english = (DOCS / "reference/glossary.md").read_text("utf-8")
    table = ("lift", "lift_given", "part", "q", "p_family", "bounds", "exact")
    effects = ("margin", "accuracy", "change", "flip", "p", "p_holm", "kl", "imbalance", "selective")
    for key in [*(f"table.{name}" for name in table), *(f"effects.{name}" for name in effects)]:
        assert re.search(rf"(^|\*){Texts()(key, given='token')}($|\*|,)", english, re.MULTILINE), key


def public_functions() -> Iterator[tuple[str, Any, bool]]:
    """Name and function of what `docs/api.md` lists, and whether it is a method."""
    for room in re.findall(r"automodule:: (\S+)", (DOCS / "api.md").read_text("utf-8")):
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", dir(module)):
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{room}.{name}", value, False
            elif inspect.isclass(value) and value.__module__.startswith("moelens"):
                for method, found in vars(value).items():
                    found = getattr(found, "__func__", getattr(found, "fget", found))
                    if inspect.isfunction(found) and not method.startswith("_") and found.__name__ == method:
                        yield f"{room}.{name}.{method}", found, True


def test_docstrings_have_arguments_axes_and_examples() -> None:
    lacking = []
    for name, function, is_method in public_functions():
        text, signature = inspect.getdoc(function) or "", inspect.signature(function)
        arguments = [p for p in signature.parameters if p not in ("self", "cls", "lang")]
        returned = str(signature.return_annotation)
        if not text or (arguments and "Args:" not in text):
            lacking.append(f"{name}: its arguments")
        if arguments and not is_method and "Example:" not in text:
            lacking.append(f"{name}: an example")
        if re.search(r"NDArray|Floats|Bools|Numbers|Ints|Tensor", returned) and "[" not in text:
            lacking.append(f"{name}: the axes of what it returns")
    assert not lacking
