"""Notebooks as files, converted, reopened, and in Notebook 7; that each runs is tested by nbmake."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers.browser import CHROMIUM
from helpers.jupyter_server import Lab, serving
from nbclient import NotebookClient
from nbconvert import HTMLExporter

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
HOSTILE = "%%moe trace\n先生<script>window.hostile = 1</script><img src=x onerror='window.hostile = 1'>"
LIVE = "moelens.explore(recording, model, result=result)"
browser_tests = pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="chromium is not installed")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs, cell.execution_count) == ([], None)
    assert not {"widgets", "signature"} & notebook.metadata.keys()


def test_each_is_shown_with_a_picture() -> None:
    readme = (NOTEBOOKS / "README.md").read_text("utf-8")
    pictures = NOTEBOOKS.parent / "docs" / "images" / "notebooks"
    for path in FILES:
        assert f"({path.name})" in readme
        assert f"../docs/images/notebooks/{path.stem}.png" in readme
        assert (pictures / f"{path.stem}.png").stat().st_size < 150_000


@pytest.fixture(scope="module")
def executed() -> Any:
    """The quickstart with its outputs, and a cell of text that would like to be code."""
    notebook = nbformat.read(FILES[0], as_version=4)
    notebook.cells.insert(2, nbformat.v4.new_code_cell(HOSTILE))
    notebook.cells.insert(-2, nbformat.v4.new_code_cell(LIVE))
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    # Without the state of widgets, as JupyterLab saves notebooks.
    return NotebookClient(notebook, timeout=300, resources=resources, store_widget_state=False).execute()


@pytest.mark.slow
def test_nbconvert_keeps_every_view(executed: Any) -> None:
    html, _ = HTMLExporter(template_name="lab").from_notebook_node(executed)
    assert "expert with the largest weight" in html, "the trace"
    assert "family-wise p" in html, "the findings"
    assert "× the mean" in html, "the explorer, as a picture of its map and its card"
    assert "cdn." not in html.split("<body", 1)[1], "nothing of the views comes from elsewhere"
    assert html.count("data:image/png;base64,") + html.count("image/png") >= 3, "the maps"
    assert "&lt;" in html
    for code in ("<script>window.hostile", "<img src=x", '<img src="x"'):
        assert code not in html


@pytest.mark.slow
@pytest.mark.e2e
@browser_tests
def test_saved_and_reopened(executed: Any, tmp_path: Path, browser: Any) -> None:
    """Not run and without trust, as somebody gets a notebook by mail."""
    from playwright.sync_api import expect

    with serving(tmp_path, browser, "jupyterlab", "LabApp", "lab/tree") as lab:
        nbformat.write(executed, lab.root / "mailed.ipynb")
        page = lab.show("mailed.ipynb")
        outputs = page.locator(".jp-OutputArea-output")
        trace = outputs.filter(has_text="expert with the largest weight").first
        expect(trace.locator("span[style*=background]").nth(10)).to_be_attached(timeout=60_000)
        expect(outputs.filter(has_text="family-wise p").first.locator("td").nth(20)).to_be_attached(timeout=60_000)
        expect(outputs.locator("img").nth(1)).to_be_attached(timeout=60_000)
        assert page.evaluate("window.hostile") is None
        page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.ready")  # a server that starts one hangs
        page.close()


@pytest.fixture
def notebook7(tmp_path: Path, browser: Any) -> Iterator[Lab]:
    with serving(tmp_path, browser, "notebook", "JupyterNotebookApp", "notebooks") as server:
        yield server


@pytest.mark.slow
@pytest.mark.e2e
@browser_tests
def test_the_quickstart_in_notebook_7(notebook7: Lab) -> None:
    from playwright.sync_api import expect

    (notebook7.root / "hooks").symlink_to(NOTEBOOKS.parent / "hooks")
    (notebook7.root / "notebooks").mkdir()
    cells = nbformat.read(FILES[0], as_version=4)
    cells.cells.append(nbformat.v4.new_code_cell("print('at the end')"))
    nbformat.write(cells, notebook7.root / "notebooks" / "quickstart.ipynb")
    page = notebook7.run("notebooks/quickstart.ipynb")
    outputs = page.locator(".jp-OutputArea-output")
    expect(outputs.filter(has_text="at the end").last).to_be_visible(timeout=180_000)
    assert page.locator(".jp-OutputArea-output[data-mime-type*=error]").count() == 0
    expect(outputs.locator("img").nth(1)).to_be_attached()
    page.close()
