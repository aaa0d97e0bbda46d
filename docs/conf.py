"""Sphinx: `sphinx-build -W docs docs/_build` builds the site; pytest runs the examples in the docstrings.

`MOELENS_EXECUTE=1` executes the notebooks of the gallery during the build, which takes minutes.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import site_tables  # noqa: E402

import moelens  # noqa: E402

project = "moelens"
author = copyright = "the moelens developers"
version = release = moelens.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute"]  # the second is what myst-nb keeps beside a build
templates_path = ["_templates"]
default_role = "code"
suppress_warnings = [
    "ref.python",  # a class is found under its room and under moelens
    "misc.highlighting_failure",  # %%moe cells of the notebooks are text, not Python
]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force" if os.environ.get("MOELENS_EXECUTE") else "off"
nb_execution_timeout = 300
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # it is on other servers; a view is shown by its picture

smartquotes = False  # a name in quotation marks is text to be typed

html_theme = "furo"
html_title = "moelens"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
# System fonts only: nothing is loaded from the network.
_FONTS = (
    '-apple-system, "Segoe UI", "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans JP", "Yu Gothic UI", Meiryo, sans-serif'
)
html_theme_options = {
    "light_css_variables": {"font-stack": _FONTS},
    "dark_css_variables": {"font-stack": _FONTS},
}
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}


def other_language(page: str, pages: set[str]) -> str:
    """The page in the other language, or the first page of that language where there is none."""
    if "gallery/" in page:
        counterpart = page.removesuffix(".ja") if page.endswith(".ja") else f"{page}.ja"
        return counterpart if counterpart in pages else "ja/index"
    if page.startswith("ja/"):
        english = next((p for p in pages if not p.startswith("ja/") and p.split("/")[-1] == page[3:]), None)
        return english or "index"
    name = f"ja/{page.split('/')[-1]}"
    return name if name in pages else "ja/index"


def _set_language(app, page, template, context, tree) -> None:  # type: ignore[no-untyped-def]
    context["other_language"] = other_language(page, set(app.env.found_docs))
    if page.startswith("ja/") or page.endswith(".ja"):
        context["language"] = "ja"


def setup(app) -> None:  # type: ignore[no-untyped-def]
    """Copy notebooks and recipes beside the gallery, fill in the tables, and tell each page its language."""
    for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
        copy = HERE / "gallery" / notebook.name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")
    if nb_execution_mode != "off":  # a notebook takes recipes from ../hooks
        shutil.copytree(
            HERE.parent / "hooks", HERE / "hooks", ignore=lambda _, names: {"README.md"}, dirs_exist_ok=True
        )
    app.connect("source-read", lambda app, page, source: source.__setitem__(0, site_tables.fill(source[0])))
    app.connect("html-page-context", _set_language)
