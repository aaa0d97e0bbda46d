"""A real JupyterLab in a real browser: the live map answers through the kernel, and nothing leaves the machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import CHROMIUM, FLAGS

CELLS = [
    "%load_ext moelens\nimport moelens, tempfile\nmodel = moelens.load('demo')",
    "%%moe trace model\n先生がいらっしゃいました。<img src=x onerror=alert(1)>",
    "texts = ['社長がいらっしゃいました。', '資料をお送りいたします。', '雨が降っていた。'] * 10\n"
    "recording = moelens.record(model, texts, tempfile.mkdtemp() + '/run', progress=False)\n"
    "result = moelens.specialization(recording, moelens.label(recording), 'pos', permutations=50)",
    "import ipywidgets\nlog, box = ipywidgets.Label(), result.explore(recording)\n"
    "box.map.observe(lambda c: setattr(log, 'value', f'chosen {c.new}'), 'selected')\n"
    "ipywidgets.VBox([box, log])",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # without it Lab asks which one
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "look.ipynb")
    news = tmp_path / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}"),
        *("--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"),
        *("--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"),
    ]
    env = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                urllib.request.urlopen(base + "/api/status", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield base
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="chromium is not installed")
def test_the_live_map_in_jupyterlab(server: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        remote: list[str] = []
        page.on(
            "request",
            lambda r: None if server in r.url or not r.url.startswith(("http", "ws")) else remote.append(r.url),
        )
        page.goto(f"{server}/lab/tree/look.ipynb?reset", wait_until="domcontentloaded")
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=60_000)
        page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.ready")
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        output = page.locator(".jp-OutputArea-output")
        canvas = output.locator("canvas")
        expect(canvas).to_be_visible(timeout=120_000)

        shown = output.filter(has_text="expert with the largest weight").first
        expect(shown).to_contain_text("<")  # as text, token by token
        assert shown.locator("img").count() == 0

        canvas.click(position={"x": canvas.bounding_box()["width"] / 2, "y": 10})
        expect(output.get_by_text("chosen [0,")).to_be_visible(timeout=20_000)
        card = output.get_by_text("× the mean")
        before = card.inner_text()
        canvas.press("ArrowDown")
        canvas.press("x")  # with the canvas focused, this must not cut the cell
        expect(output.get_by_text("chosen [1,")).to_be_visible(timeout=20_000)
        expect(card).not_to_have_text(before)
        expect(canvas).to_be_visible()
        page.screenshot(path=str(tmp_path / "lab.png"))
        browser.close()
    host = server.removeprefix("http://")
    assert [url for url in remote if host not in url] == []
