"""A real JupyterLab or Notebook server in a real browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat


class Lab:
    """A running server; `open` shows a notebook with these cells and runs them all, `run` one that is there."""

    def __init__(self, base: str, root: Path, browser: Any, tree: str = "lab/tree") -> None:
        self.base, self.root, self.browser, self.tree = base, root, browser, tree
        self.elsewhere: list[str] = []

    def open(self, name: str, cells: Sequence[str]) -> Any:
        made = [nbformat.v4.new_code_cell(source) for source in cells]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # else Lab asks which one
        nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), self.root / name)
        return self.run(name)

    def show(self, name: str) -> Any:
        """A notebook as it was saved, not run."""
        page = self.browser.new_page(viewport={"width": 1400, "height": 1600})
        page.on("request", lambda request: self._sent(request.url))
        page.goto(f"{self.base}/{self.tree}/{name}?reset", wait_until="domcontentloaded")
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=60_000)
        return page

    def run(self, name: str) -> Any:
        page = self.show(name)
        page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.ready")
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        return page

    def _sent(self, url: str) -> None:
        if url.startswith(("http", "ws")) and self.base.removeprefix("http://") not in url:
            self.elsewhere.append(url)


@contextmanager
def serving(root: Path, browser: Any, module: str, application: str, tree: str) -> Iterator[Lab]:
    """A server of its own on a free port; at the end nothing may have been asked of anybody else."""
    news = root / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", module, "--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}"),
        *("--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={root}"),
        *(f"--{application}.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"),
    ]
    env = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces"),
    }
    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (root / "log").read_text()
            try:
                urllib.request.urlopen(base + "/api/status", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        lab = Lab(base, root, browser, tree)
        yield lab
        assert lab.elsewhere == []
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # a kernel that is still starting keeps it
            process.kill()
