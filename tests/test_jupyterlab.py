"""A real JupyterLab in a real browser: live views answer through the kernel, and nothing leaves the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.browser import CHROMIUM
from helpers.jupyter_server import Lab

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="chromium is not installed"),
]
RECORD = (
    "import moelens, tempfile\nmodel = moelens.load('demo')\n"
    "texts = ['社長がいらっしゃいました。', '資料をお送りいたします。', '雨が降っていた。'] * 10\n"
    "recording = moelens.record(model, texts, tempfile.mkdtemp() + '/run', progress=False)"
)
MAP = [
    "%load_ext moelens",
    RECORD,
    "%%moe trace model\n先生がいらっしゃいました。<img src=x onerror=alert(1)>",
    "result = moelens.analyze(recording, 'pos', labels=moelens.label(recording), given=None, permutations=50)",
    "import ipywidgets\nlog, box = ipywidgets.Label(), moelens.explore(recording, result=result)\n"
    "box.map.observe(lambda c: setattr(log, 'value', f'chosen {c.new}'), 'selected')\n"
    "box.map.observe(lambda c: setattr(log, 'value', f'brushed {c.new}'), 'brushed')\n"
    "ipywidgets.VBox([box, log])",
]
EXPLORER = [RECORD, "moelens.explore(recording, model, family='pos', given=None, permutations=50)"]


def test_the_live_map(lab: Lab) -> None:
    from playwright.sync_api import expect

    page = lab.open("map.ipynb", MAP)
    output = page.locator(".jp-OutputArea-output")
    canvas = output.locator("canvas")
    expect(canvas).to_be_visible(timeout=120_000)

    shown = output.filter(has_text="expert with the largest weight").first
    expect(shown).to_contain_text("<")  # as text, token by token
    assert shown.locator("img").count() == 0

    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] / 2, "y": 10})
    expect(output.get_by_text("chosen [0,")).to_be_visible(timeout=20_000)
    card = output.get_by_text("× the mean")
    before = card.inner_text()
    canvas.press("ArrowDown")
    canvas.press("x")  # with the canvas focused, this must not cut the cell
    expect(output.get_by_text("chosen [1,")).to_be_visible(timeout=20_000)
    expect(card).not_to_have_text(before)
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 12)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    page.mouse.up()
    expect(output.get_by_text("brushed [0, 1,")).to_be_visible(timeout=20_000)
    page.close()


def test_the_explorer(lab: Lab) -> None:
    from playwright.sync_api import expect

    page = lab.open("explorer.ipynb", EXPLORER)
    output = page.locator(".jp-OutputArea-output")
    tokens = output.locator(".moelens-tokens")
    expect(tokens).to_be_visible(timeout=120_000)

    slider = output.get_by_title("layer")
    for _ in range(4):
        slider.press("ArrowLeft")
    below = tokens.locator("small").first
    expect(output.get_by_text("tokens · layer 1")).to_be_visible(timeout=20_000)
    first = tokens.inner_text()
    slider.press("End")
    expect(output.get_by_text("tokens · layer 4")).to_be_visible(timeout=20_000)
    assert tokens.inner_text() != first, "another layer, other experts"
    tokens.press("d")  # nor may two of these delete the cell
    tokens.press("d")
    expect(below).to_be_visible()

    output.get_by_title("run matched controls too").uncheck()
    button = output.get_by_role("button", name="Remove L")
    changes = output.locator(".moelens-effects td:nth-child(4)")
    button.press("Enter")
    expect(changes).to_have_count(1, timeout=60_000)
    output.get_by_title("go to an expert").fill("L1 E5")
    output.get_by_title("go to an expert").press("Enter")
    expect(output.get_by_role("button", name="Remove L1 · E5")).to_be_enabled(timeout=20_000)
    button.press("Enter")
    expect(changes).to_have_count(2, timeout=60_000)
    after, before = changes.all_inner_texts()
    assert after != before, "another removal, another number"
    expect(output.get_by_text("Without L1 · E5, the preference")).to_be_visible()
    gone = output.get_by_text("No kernel answers. Run the cell again")
    expect(gone.first).to_be_hidden()
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    expect(gone.first).to_be_visible(timeout=60_000)
    assert gone.count() == 3, "the map, the sentences and the removal each say it"
    page.close()


def test_a_notebook_without_a_kernel_shows_the_last_state(lab: Lab) -> None:
    from playwright.sync_api import expect

    page = lab.open("kept.ipynb", EXPLORER)
    output = page.locator(".jp-OutputArea-output")
    expect(output.locator("canvas")).to_be_visible(timeout=120_000)
    kept = output.locator(".moelens-kept")
    expect(kept).to_be_attached()
    expect(kept).to_be_hidden()
    first = kept.inner_html()
    output.get_by_title("go to an expert").fill("L1 E5")
    output.get_by_title("go to an expert").press("Enter")
    expect(kept.get_by_text("L1 · E5").first).to_be_attached(timeout=60_000)
    assert kept.inner_html() != first
    expect(kept).to_be_hidden()
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()
    page = lab.show("kept.ipynb")
    output = page.locator(".jp-OutputArea-output")
    expect(output.locator(".moelens-kept")).to_be_visible(timeout=60_000)
    expect(output.get_by_text("L1 · E5").first).to_be_visible()
    error = page.locator(".jp-OutputArea:has(.moelens-kept)").get_by_text("Error displaying widget")
    expect(error).to_have_count(2, timeout=60_000)  # the progress bar of the analysis, and the explorer
    assert not any(message.is_visible() for message in error.all())
    page.close()


def test_the_quickstart(lab: Lab) -> None:
    from playwright.sync_api import expect

    project = Path(__file__).parents[1]
    for folder in ("notebooks", "hooks"):
        shutil.copytree(project / folder, lab.root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    page = lab.run("notebooks/01_quickstart.ipynb")
    page.wait_for_function(
        """() => { const cells = [...window.jupyterapp.shell.currentWidget.content.model.cells];
        return cells.filter((cell) => cell.type === "code").every((cell) => cell.executionCount); }""",
        timeout=240_000,
    )
    outputs = page.evaluate(
        """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter((cell) => cell.type === "code")
        .flatMap((cell) => cell.outputs.toJSON()).map((output) => output.output_type)"""
    )
    assert "error" not in outputs
    assert len(outputs) >= 10
    expect(page.locator(".jp-OutputArea-output table").first).to_be_attached()
    page.close()
