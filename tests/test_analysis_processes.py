"""Tests of analyses of a recording on disk: controls, comparison with itself, measures, and two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moelens
from moelens.analysis import counts_of, measure

OPENINGS = ("今朝", "昨日", "午後", "先週", "夕方", "駅前で", "会議のあと", "事務所で")
SENTENCES = ("社長がいらっしゃいました。", "資料をお送りいたします。", "雨が降っていた。", "召し上がってください。")
# All are different, since equal texts count as one document.
TEXTS = [f"{opening}、{sentence}" for opening in OPENINGS for sentence in SENTENCES]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> moelens.Recording:
    folder = tmp_path_factory.mktemp("analysis") / "run"
    recording = moelens.record(moelens.load("demo"), TEXTS, folder, progress=False)
    moelens.label(recording)
    return recording


@pytest.mark.parametrize("given", ["script", ("position", "script")])
def test_controls_of_a_recording(recording: moelens.Recording, given: str | tuple[str, ...]) -> None:
    found = moelens.analyze(recording, "pos", labels=moelens.Labels.open(recording), given=given, permutations=19)
    assert found.provenance["given"] == " × ".join((given,) if isinstance(given, str) else given)
    assert found.provenance["recording"] == str(recording.path)
    assert found.provenance["moelens"] == moelens.__version__
    assert "ends in it" in found.provenance["labels"]
    assert found.significant.any()
    assert (found.low[found.significant] <= found.lift_given[found.significant]).all()
    assert (found.lift_given[found.significant] <= found.high[found.significant]).all()


def test_a_recording_compared_with_itself(recording: moelens.Recording) -> None:
    found = moelens.compare(recording, recording, permutations=19)
    assert (found.overlap[:, found.label_tokens > 0] == 1).all()
    assert not found.significant.any()


def test_measures_of_a_recording(recording: moelens.Recording) -> None:
    labels = moelens.Labels.open(recording)
    assert measure(recording, "layer_information", "pos", labels=labels).values.max() > 0.05
    assert (measure(recording, "gate_score").values.sum(1) > 0).all()
    whole = counts_of(recording, "pos", labels=labels)
    assert measure(recording, "load").values == pytest.approx(whole.load())


@pytest.mark.slow
def test_two_processes_count_the_same_as_one(recording: moelens.Recording, tmp_path: Path) -> None:
    alone = moelens.analyze(recording, labels=moelens.Labels.open(recording), given="position", permutations=99)
    out = tmp_path / "two.json"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "-m", "moelens"]
    command += ["analyze", str(recording.path), "--given", "position", "--permutations", "99", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("specialists of honorifics") == 1
    assert moelens.Specialization.open(out).to_dict() == alone.to_dict()
