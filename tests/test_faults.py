"""Faults of the environment: an interrupted download, a read-only home directory, a terminal without a locale."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import moelens
from moelens.models.loading import DEMO

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """A hub with a single model, owner/demo, which is the bundled one."""

    torn = ""  # the file whose download is interrupted half way
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        place, parts = self.path.partition("?")[0], self.path.partition("?")[0].split("/")
        files = sorted(p for p in DEMO.iterdir() if p.is_file())
        if "/owner/demo" not in place:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in place:
            self.answer(200, json.dumps([{"type": "file", "path": p.name, "size": 1, "oid": COMMIT} for p in files]))
        elif "/resolve/" not in place:
            siblings = [{"rfilename": p.name} for p in files]
            self.answer(200, json.dumps({"id": "owner/demo", "sha": COMMIT, "siblings": siblings}))
        elif (file := DEMO / parts[-1]) in files:
            data = file.read_bytes()
            self.answer(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes | str, headers: dict[str, str] | None = None) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = bool(self.torn) and self.path.endswith(self.torn) and self.command == "GET"
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if self.close_connection else data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def hub(torn: str) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Torn", (Hub,), {"torn": torn}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def moelens_command(*argv: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `moelens …` with changed environment variables; the value "" removes a variable."""
    wanted = {k: v for k, v in (os.environ | environment).items() if v}
    return subprocess.run([sys.executable, "-m", "moelens", *argv], env=wanted, capture_output=True, check=False)


@pytest.mark.slow
def test_an_interrupted_download_is_reported_and_continues(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "", "NO_PROXY": "127.0.0.1"}
    for torn, command in (("config.json", "plan"), ("model.safetensors", "info")):
        with hub(torn) as address:
            done = moelens_command(command, "owner/demo", HF_ENDPOINT=address, **home)
        assert done.returncode == 2
        last = done.stderr.decode().splitlines()[-1]
        assert last.startswith("moelens: the download of 'owner/demo' was interrupted (")
        assert last.endswith("); try again")
        assert "Traceback" not in done.stderr.decode()
    with hub(torn="") as address:
        done = moelens_command("info", "owner/demo", HF_ENDPOINT=address, **home)
        assert b"ok     sums" in done.stdout, done.stderr
        done = moelens_command("info", "owner/domo", HF_ENDPOINT=address, **home)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("moelens: unknown model 'owner/domo'; ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    """The files that libraries write for themselves go to a place where not even root can create one."""
    (tmp_path / "file").write_text("")
    (tmp_path / "c.txt").write_text("先生がいらっしゃいました。", "utf-8")
    caches = ("HF_HOME", "HF_HUB_CACHE", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    environment = dict.fromkeys(caches, "") | {"HOME": str(tmp_path / "file" / "home")}
    run = str(tmp_path / "run")
    record = ["record", "demo", str(tmp_path / "c.txt"), "--out", run]
    for argv in (["demo", "--help"], ["info", "demo"], record, ["label", run], ["verify", run]):
        done = moelens_command(*argv, **environment)
        assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    days = ("明日", "来週", "今朝", "夏", "冬")
    texts = [text for day in days for text in (f"{day}は学校へ行きます。" * 6, f"{day}は本を読む。" * 6)]
    made = moelens.record(moelens.load("demo"), texts, tmp_path_factory.mktemp("runs") / "run", progress=False)
    moelens.label(made)
    return made.path


@pytest.mark.slow
@pytest.mark.parametrize("utf8, shown", [("", "丁寧語"), ("0", r"\u4e01\u5be7\u8a9e")])
def test_without_a_locale(labelled: Path, utf8: str, shown: str) -> None:
    """Japanese is printed in UTF-8 where Python may use it, and as escapes where it is restricted to ASCII."""
    environment = {"LC_ALL": "C", "LANG": "", "PYTHONUTF8": utf8, "PYTHONIOENCODING": ""}
    analyze = ["analyze", str(labelled), "--given", "none", "--permutations", "20"]
    for argv, part in ((["demo", "--help"], "usage"), (["info", "demo"], "ok     replay"), (analyze, shown)):
        done = moelens_command(*argv, **environment)
        assert done.returncode == 0, done.stderr.decode()
        assert part in done.stdout.decode("utf-8")
