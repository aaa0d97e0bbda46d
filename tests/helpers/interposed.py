"""Run an action in a process that is killed at a system call, or whose file system fails from one on.

The process of `Interposed` is started with the library of `faults.c`. It imports moelens and loads the model once, and
forks for each action.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

LIBRARY = "MOELENS_TEST_FAULTS"


@dataclass(frozen=True)
class Ended:
    """How an action ended.

    Attributes:
        status: 0 after success, 2 after an error of moelens, 1 after another one; -9 if it was killed.
        calls: number of system calls that change files, unless it was killed.
        error: The message of the error.
    """

    status: int
    calls: int
    error: str


class Interposed:
    """The process that runs the actions of `ACTIONS`."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or not sys.platform.startswith("linux"):
            pytest.skip("system calls are interposed with a C compiler on Linux")
        library = folder / "faults.so"
        source = Path(__file__).with_name("faults.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), LIBRARY: str(library), "OMP_NUM_THREADS": "1"}
        paths = [str(Path(__file__).parents[1]), *sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "helpers.interposed", str(folder)],
            env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, action: str, root: Path, *, at: int = 0, error: int = 0, removals: bool = False) -> Ended:
        """Run an action.

        Args:
            action: Its name.
            root: The folder below which system calls are counted.
            at: The call at which the process is killed, or from which on calls fail; 0 for none.
            error: The number of the error with which calls fail; 0 kills the process.
            removals: Whether calls that remove or rename fail too.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([action, str(root), at, error, removals]), file=self.process.stdin, flush=True)
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class _Given:
    """What the actions use: a model, a labelled recording, and what `analyze` finds in it."""

    model: Any
    recording: Any
    result: Any

    @classmethod
    def of(cls, folder: Path) -> _Given:
        import moelens

        recording = moelens.Recording.open(folder / "labelled")
        return cls(moelens.load("demo"), recording, moelens.analyze(recording, given=None, permutations=20))


def _record(root: Path, given: _Given) -> None:
    import moelens

    moelens.record(given.model, TEXTS, root / "run", capture=["routes", "residuals"], batch_tokens=40, progress=False)


def _label(root: Path, given: _Given) -> None:
    import moelens

    moelens.label(root / "run", "any", processes=1)


def _import(root: Path, given: _Given) -> None:
    import moelens

    moelens.import_routes(root.parent / "routes.npz", root / "run", force=True)


def _export(kind: str) -> Callable[[Path, _Given], None]:
    def run(root: Path, given: _Given) -> None:
        import moelens

        moelens.export(given.recording, kind, root / "exported", split="a:0.5,b:0.5", force=True)

    return run


def _report(root: Path, given: _Given) -> None:
    import moelens

    results = {"honorifics": given.result}
    moelens.report(given.recording, root / "report.html", results=results, permutations=20, progress=False)


def _explorer(root: Path, given: _Given) -> None:
    import moelens

    moelens.explore(given.recording, result=given.result).save_html(root / "explorer.html")


def _save(name: str) -> Callable[[Path, _Given], None]:
    return lambda root, given: given.result.save(root / name)


def _counts(root: Path, given: _Given) -> None:
    import moelens

    sources = [("ja", root.parent / "ja.csv"), ("en", root.parent / "en.csv")]
    moelens.import_counts(sources, root / "counts.json", top_k=1)


def _experts(root: Path, given: _Given) -> None:
    from moelens.analysis import found_experts

    found_experts(given.result, "丁寧語", "keep").save(root / "experts.json")


TEXTS = ["先生がいらっしゃいました。", "雨が降る。", "お荷物をお持ちいたします。", "本を読みます。"]
ACTIONS: dict[str, Callable[[Path, _Given], None]] = {
    "record": _record,
    "label": _label,
    "import": _import,
    **{f"export to {kind}": _export(kind) for kind in ("datasets", "safetensors", "npz", "csv")},
    "report": _report,
    "explore": _explorer,
    "save as JSON": _save("result.json"),
    "save as Parquet": _save("result.parquet"),
    "export experts": _experts,
    "import counts": _counts,
}


def _run(library: Any, given: _Given, action: str, root: str, at: int, error: int, removals: bool, pipe: int) -> None:
    """Run an action in this process, which a fork made, and write how it ended to a pipe."""
    from moelens.errors import MoeLensError

    status, message = 0, ""
    library.faults_arm(root.encode(), at, error, removals)
    try:
        ACTIONS[action](Path(root), given)
    except MoeLensError as problem:
        status, message = 2, str(problem)
    except BaseException:
        status, message = 1, traceback.format_exc()
    calls = library.faults_count()
    library.faults_arm(b"", 0, 0, 0)
    os.write(pipe, json.dumps({"status": status, "calls": calls, "error": message}).encode())


def main() -> None:
    """Run the actions that standard input names, each in a fork of this process."""
    import datasets  # imported before the forks, which then begin at once

    import moelens.views.explorer  # noqa: F401
    from moelens.recording import recorder

    datasets.disable_progress_bars()

    library = ctypes.CDLL(os.environ[LIBRARY])
    library.faults_count.restype = ctypes.c_long
    library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    recorder.SHARD_CHARACTERS = 20
    given = _Given.of(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:  # what is done once in a process is done here
        np.savez(Path(folder) / "routes.npz", expert_ids=np.zeros((2, 1, 1), int))
        for action in ("record", "import", "report"):
            (Path(folder) / action).mkdir()
            ACTIONS[action](Path(folder) / action, given)
    for line in sys.stdin:
        action, root, at, error, removals = json.loads(line)
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reading)
            try:
                _run(library, given, action, root, at, error, removals, writing)
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(said or json.dumps({"status": -9 if killed else status, "calls": 0, "error": ""}), flush=True)


if __name__ == "__main__":
    main()
