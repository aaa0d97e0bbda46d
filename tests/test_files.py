"""Faults of the machine while files are written: one line, and nothing half-written left."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import moelens
from moelens.commands.command_line import main
from moelens.errors import RecordingError
from moelens.files import lock_folder, require_writable, writing
from moelens.japanese.families import LABEL_FILES


@pytest.fixture
def run(demo_recording: moelens.Recording, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_recording.path, tmp_path / "run"))


def everything_in(folder: Path) -> set[Path]:
    return {p.relative_to(folder) for p in folder.rglob("*")}


@pytest.mark.parametrize(
    "command",
    [
        "label run",
        "export run --to csv --out new/csv",
        "export run --to npz --out new/npz",
        "report run --out new.html",
    ],
)
def test_files_that_may_not_grow(command: str, run: Path) -> None:
    before = everything_in(run.parent)
    code = f"""
import resource, sys
from moelens.commands.command_line import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))
sys.exit(main({command.split()!r}))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=run.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("moelens: no space is left in ")
    assert "Traceback" not in done.stderr
    assert everything_in(run.parent) - before <= {Path("new")}


@pytest.mark.parametrize("out", ["/proc/x", "file/below", ""])
@pytest.mark.parametrize(
    "command",
    ["record demo demo", "demo", "report run", "explore run", "analyze run", "export run --to csv", "measure run load"],
)
def test_unwritable_places_are_refused_first(
    command: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    if out and command.startswith(("analyze", "measure")):
        out += ".json"
    with pytest.raises(SystemExit):
        main([*command.split(), "--out", out])
    line = capsys.readouterr().err
    expected = f"cannot write to '{out}'" if out else "expected a path, got an empty text; name what to write"
    assert f"argument --out: {expected}" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--context 0", "expected context to be None or at least 1, got 0; give a number such as 2048"),
        ("--dtype float17", "invalid choice: 'float17'"),
        ("--capture rotes", "unknown capture 'rotes'; did you mean 'routes'"),
        ("--store-dtype float17", "float17"),
        ("--batch-tokens 0", "expected batch_tokens to be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(
    options: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["record", str(tmp_path / "no-model"), "demo", "--out", str(tmp_path / "run"), *options.split()]
    with pytest.raises(SystemExit) as stopped:  # argparse stops by itself where it knows the choices
        sys.exit(main(command))
    line = capsys.readouterr().err
    assert (stopped.value.code, line.count("\n")) == (2, 1)
    assert text in line
    assert not (tmp_path / "run").exists()


def test_one_of_two_label_runs_is_refused(run: Path) -> None:
    moelens.label(run)
    before = {name: (run / "labels" / f"{name}.parquet").read_bytes() for name in LABEL_FILES}
    with (
        lock_folder(run / "labels"),
        pytest.raises(RecordingError, match=r"another run is writing to '.*labels'; wait until it has ended"),
    ):
        moelens.label(run, policy="any")
    assert {name: (run / "labels" / f"{name}.parquet").read_bytes() for name in LABEL_FILES} == before


def test_a_file_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(UnicodeEncodeError), writing(tmp_path / "old.txt") as partial:
        partial.write_text("ne\ud800", encoding="utf-8")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("old.txt", "old")]
    with writing(tmp_path / "deep" / "new.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "deep" / "new.txt").read_text() == "new"
    with writing(Path("/dev/null")) as device:
        device.write_text("new")
    assert Path("/dev/null").is_char_device()
    require_writable(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()
