"""Sphinx: `sphinx-build -W docs docs/_build` builds the pages; pytest runs the examples in the docstrings."""

from __future__ import annotations

import moelens

project = "moelens"
author = "the moelens developers"
version = release = moelens.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
default_role = "code"
suppress_warnings = ["ref.python"]  # a class is found under its room and under moelens
html_theme = "alabaster"
html_theme_options = {"description": moelens.__doc__, "page_width": "70rem"}
html_show_sphinx = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
myst_heading_anchors = 3
