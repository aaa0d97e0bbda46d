"""`moelens.report` and `moelens report`: one file about any recording, without a network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import moelens
from moelens.cli import main

TEXTS = ["社長がいらっしゃいました。<script>alert(1)</script>", "資料をお送りいたします。", "雨が降っていた。"] * 12


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> moelens.Recording:
    out = tmp_path_factory.mktemp("report") / "run"
    return moelens.record(moelens.load("demo"), TEXTS, out, progress=False)


def test_a_report_of_a_recording(recording: moelens.Recording, tmp_path: Path) -> None:
    out = moelens.report(recording, tmp_path / "made" / "report.html", permutations=50, notes=["Few texts."])
    page = out.read_text(encoding="utf-8")
    assert (Path(recording.path) / "labels" / "honorifics.parquet").exists(), "labels are written where none were"
    left_out = "Left out, honorifics within token"
    for words in ("36 documents", "尊敬語", "Parts of speech", left_out, "Few texts.", "50 draws"):
        assert words in re.sub("<[^>]*>", "", page)
    assert "<script>alert" not in page
    assert not re.search(r"https?://", page)


def test_given_results_are_shown_as_they_are(recording: moelens.Recording, tmp_path: Path) -> None:
    labels = moelens.label(recording)
    result = moelens.specialization(recording, labels, "script", permutations=50)
    page = moelens.report(recording, tmp_path / "r.html", labels, results={"script": result}, title="A & B").read_text()
    assert "<h1>A &amp; B</h1>" in page
    assert "Scripts: layers and experts" in page
    assert "Honorifics" not in page


def test_the_command_is_the_function(
    recording: moelens.Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(recording.path), "--out", str(out), "--permutations", "50"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "HOW SURE" in out.read_text(encoding="utf-8")
    assert main(["report", str(recording.path), "--out", str(tmp_path)]) == 2  # a folder
    assert f"out='{tmp_path}' is a folder; give a file such as" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", str(out)]) == 2
    assert "is not a recording" in capsys.readouterr().err


def test_nothing_to_report(tmp_path: Path) -> None:
    single = moelens.record(moelens.load("demo"), ["雨が降っていた。"], tmp_path / "one", progress=False)
    with pytest.raises(moelens.MoeLensError, match="nothing to report: Left out, honorifics: "):
        moelens.report(single, tmp_path / "report.html")
