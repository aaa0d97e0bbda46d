"""What SECURITY.md promises: no pickle, no network, no code that was not named, nothing outside a folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moelens
from moelens.commands.command_line import main
from moelens.errors import RecordingError
from moelens.recording import Recording
from moelens.recording.storage import Folder

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for room in ("moelens", "hooks", "benchmarks") for p in (ROOT / room).rglob("*.py"))

# Before the demo: every socket that is not within this machine is refused, and said.
OFFLINE = """
import socket, sys
def refuse(self, address):
    raise AssertionError(f"a connection to {address}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *args, **options: refuse(None, args)
from moelens.commands.command_line import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.search(
        r"\bimport (c?[pP]ickle|dill|joblib|shelve)\b|\btorch\.(load|save)\(|allow_pickle\s*=\s*True", text
    )
    assert not found, found


@pytest.mark.slow
def test_the_demo_needs_no_network(tmp_path: Path) -> None:
    """With every connection refused, and no cache of a hub to fall back on."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, "demo", "--out", str(tmp_path / "demo")],
        env=environment | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "report.html").exists()


def test_import_opens_no_socket_and_switches_telemetry_off() -> None:
    code = (
        "import socket, os; socket.socket.connect = socket.getaddrinfo = None; import moelens; "
        "moelens.load; moelens.record; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("name", ["../secret.parquet", "/etc/passwd", "tokens/../../secret", r"..\secret", "C:/secret"])
def test_paths_of_a_manifest_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    made = moelens.record(moelens.load("demo"), ["はい。"], tmp_path / "run", progress=False)
    manifest = json.loads((made.path / "manifest.json").read_text("utf-8"))
    manifest["shards"][0]["path"] = name
    (made.path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(RecordingError, match=re.escape(f"file {name!r} is not within '{made.path}'; do not use a")):
        Recording.open(made.path).tokens()
    assert main(["verify", str(made.path)]) == 2


def test_names_within_a_folder() -> None:
    folder = Folder.at("memory://security")
    assert folder.full_path("tokens/a..b.parquet").endswith("security/tokens/a..b.parquet")


def test_code_of_a_model_runs_only_when_trusted(tmp_path: Path) -> None:
    """A folder whose configuration names code of its own is refused, and the code is not run."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(moelens.MoeLensError, match="is not a model transformers can load"):
        moelens.load(str(tmp_path))
    assert not (tmp_path / "ran").exists()
