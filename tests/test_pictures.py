"""The README's pictures, drawn from the real thing: MOELENS_PICTURES=docs/images pytest tests/test_pictures.py"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from helpers.jupyter_server import Lab
from PIL import Image

import moelens
from moelens.views.map_view import ExpertMap
from moelens.workflows.demo_run import DemoRun

OUT = os.environ.get("MOELENS_PICTURES", "")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not OUT, reason="set MOELENS_PICTURES to the folder the pictures go to"),
]
SIZE = 200_000
AIR = 6


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    return moelens.run_demo(tmp_path_factory.mktemp("pictures") / "demo", progress=False)


def saved(name: str, page: Any, place: Any = None) -> None:
    """Keep what the page shows, or one element of it with some air around."""
    page.mouse.move(0, 0)
    clip = None
    if place is not None:
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        clip = {"x": max(0, box["x"] - AIR), "y": max(0, box["y"] - AIR)}
        clip |= {"width": box["width"] + 2 * AIR, "height": box["height"] + 2 * AIR}
    taken = Image.open(BytesIO(page.screenshot(clip=clip)))
    few = taken.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(Path(OUT) / name, optimize=True)
    assert (Path(OUT) / name).stat().st_size < SIZE


@pytest.fixture
def page(browser: Any) -> Any:
    page = browser.new_page(viewport={"width": 1060, "height": 900})
    yield page
    page.close()


def test_explorer(demo: DemoRun, lab: Lab) -> None:
    page = lab.open("look.ipynb", [f"import moelens\nmoelens.explore({str(demo.recording.path)!r}, label='謙譲語I')"])
    output = page.locator(".jp-OutputArea-output")
    button = output.get_by_role("button", name="Remove")
    button.wait_for(timeout=120_000)
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    output.get_by_title("run matched controls too").check()
    for expert in ("L3 E10", "L4 E17"):
        search = output.get_by_title("go to an expert")
        search.fill(expert)
        search.press("Enter")
        output.get_by_role("button", name=f"Remove {expert.replace(' ', ' · ')}").click(timeout=60_000)
        output.get_by_text(f"Without {expert.replace(' ', ' · ')}, the preference").wait_for(timeout=240_000)
    saved("explorer.png", page, output.last)
    page.close()


def test_trace(page: Any, tmp_path: Path) -> None:
    model = moelens.load("demo")
    polite = "先生は明日こちらへいらっしゃいます。資料をご覧になりましたか。"
    plain = "先生は明日こちらへ来ます。資料を見ましたか。"
    view = moelens.trace(model, polite).explore(moelens.trace(model, plain))
    view.layer, view.selected = 3, 7
    page.goto(view.save_html(tmp_path / "trace.html").as_uri())
    figure = page.locator(".moelens")
    figure.wait_for()
    page.set_viewport_size({"width": 860, "height": 600})
    saved("trace.png", page, figure)


def test_map(page: Any, demo: DemoRun, tmp_path: Path) -> None:
    view = ExpertMap(demo.results["honorifics"], "丁寧語")
    page.goto(view.save_html(tmp_path / "map.html").as_uri())
    figure = page.locator(".moelens")
    figure.wait_for()
    saved("map.png", page, figure)


def test_report(page: Any, demo: DemoRun) -> None:
    page.goto((demo.path / "report.html").as_uri())
    page.locator(".alive").last.wait_for()
    page.locator("section").nth(1).evaluate("(section) => section.scrollIntoView()")
    saved("report.png", page)
