"""Several processes on the CPU: each way of sharing the work gives the recording of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moelens
from moelens import Recording
from moelens.recording import as_array

CAPTURE = ["routes", "expert_norms", "neurons:4", "expert_outputs", "shared"]
TEXTS = [
    "社長がいらっしゃいました。",
    "雨",
    "明日、資料をお送りいたします。",
    "行く",
    "どうぞ召し上がってください。",
] * 3
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "moelens"]
ACCELERATE = [
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "moelens"),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(TEXTS), "utf-8")
    return path


@pytest.fixture(scope="module")
def one(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    out = tmp_path_factory.mktemp("runs") / "one"
    return moelens.record(moelens.load("demo"), corpus, out, capture=CAPTURE, layers=[1, 3], progress=False)


def command(launcher: list[str], corpus: Path, out: Path, *options: str) -> dict[str, Any]:
    """Return the arguments of `subprocess` for a run on the CPU."""
    what = ["--layers", "1", "3", "--capture", *CAPTURE]
    arguments = ["record", "demo", str(corpus), "--out", str(out), *what, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {
        "args": [sys.executable, *launcher, *arguments],
        "env": environment,
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def launch(launcher: list[str], corpus: Path, out: Path, *options: str) -> Recording:
    done = subprocess.run(**command(launcher, corpus, out, *options), timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Recording(") == 1  # only one process prints
    return Recording.open(out)


def assert_same(a: Recording, b: Recording, tolerance: float) -> None:
    for name in ("doc", "pos", "token_id", "char_start"):
        np.testing.assert_array_equal(a.column(name), b.column(name))
    np.testing.assert_array_equal(a.indices(), b.indices())
    np.testing.assert_allclose(a.weights(), b.weights(), atol=tolerance)
    np.testing.assert_allclose(a.column("expert_norms_L03"), b.column("expert_norms_L03"), rtol=1e-2, atol=tolerance)
    for name in ("expert_outputs", "shared"):
        mine, theirs = a.vectors(name, 3), b.vectors(name, 3)
        np.testing.assert_allclose(as_array(mine["values"]), as_array(theirs["values"]), rtol=1e-2, atol=tolerance)
    mine, theirs = a.vectors("neurons", 3), b.vectors("neurons", 3)
    np.testing.assert_array_equal(mine["expert"].to_numpy(), theirs["expert"].to_numpy())
    np.testing.assert_allclose(
        abs(as_array(mine["values"])), abs(as_array(theirs["values"])), rtol=1e-2, atol=tolerance
    )
    b.verify()


@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=["accelerate", "torchrun"])
def test_documents_divided_among_processes(one: Recording, corpus: Path, tmp_path: Path, launcher: list[str]) -> None:
    several = launch(launcher, corpus, tmp_path / "run")
    first_pieces = [int(Path(shard["path"]).stem.rpartition("-")[2]) for shard in several.manifest["shards"]]
    assert first_pieces[0] == 0
    assert 3 in first_pieces  # six pieces, of which the second process wrote the last three
    assert_same(one, several, 1e-3)


@pytest.mark.parametrize("how", ["--tensor-parallel", "--expert-parallel"])
def test_a_model_sharded_over_processes(one: Recording, corpus: Path, tmp_path: Path, how: str) -> None:
    assert_same(one, launch(TORCHRUN, corpus, tmp_path / "run", how), 2e-3)


def test_sharding_needs_processes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from moelens.commands.command_line import main

    assert main(["record", "demo", "demo", "--out", str(tmp_path / "x"), "--tensor-parallel"]) == 2
    assert "start them with torchrun --nproc_per_node N -m moelens" in capsys.readouterr().err


def test_a_rank_that_was_killed(one: Recording, corpus: Path, tmp_path: Path) -> None:
    """One of two processes is killed after the first piece is committed; the same command then continues."""
    psutil, out = pytest.importorskip("psutil"), tmp_path / "run"
    options = ("--batch-tokens", "1")
    process = subprocess.Popen(**command(TORCHRUN, corpus, out, *options))
    while process.poll() is None and not list((out / "progress").glob("0*.json")):
        time.sleep(0.01)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "moelens" in " ".join(p.cmdline())]
    for rank in ranks[-1:]:
        rank.kill()
    process.communicate(timeout=300)
    ended = (out / "manifest.json").exists()  # before the kill
    commits = [out / "manifest.json"] if ended else list((out / "progress").glob("0*.json"))
    # A shard that has its name but is not committed yet is written again.
    paths = [shard["path"] for file in commits for shard in json.loads(file.read_text(encoding="utf-8"))["shards"]]
    kept = {path: (out / path).stat().st_mtime_ns for path in paths}
    assert kept
    if not ended:
        launch(TORCHRUN, corpus, out, *options)
    assert all((out / path).stat().st_mtime_ns == time for path, time in kept.items())
    assert_same(one, Recording.open(out), 1e-3)
