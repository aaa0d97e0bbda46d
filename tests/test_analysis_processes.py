"""Counting a recording on two processes gives what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moelens


@pytest.mark.slow
def test_two_processes_count_what_one_counts(tmp_path: Path) -> None:
    texts = [
        "社長がいらっしゃいました。",
        "明日、資料をお送りいたします。",
        "雨が降っていた。",
        "どうぞ召し上がってください。",
    ]
    recording = moelens.record(moelens.load("demo"), texts * 8, tmp_path / "run", progress=False)
    alone = moelens.specialization(recording, moelens.label(recording), given="position", permutations=99)
    out = tmp_path / "two.json"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "-m", "moelens"]
    command += ["analyze", str(tmp_path / "run"), "--given", "position", "--permutations", "99", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("specialists of honorifics") == 1
    assert moelens.Specialization.open(out).to_dict() == alone.to_dict()
