"""Killed, or out of space, at any system call that changes a file: what is written is whole, and the run continues."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.interposed import ACTIONS, TEXTS, Interposed
from helpers.routes import TRUE

import moelens
from moelens import Recording
from moelens.errors import RecordingError
from moelens.japanese import Labels

pytestmark = pytest.mark.slow
VARYING = ("created", "_fingerprint", "fingerprint")  # they differ from run to run
EVERY = pytest.param(10**9, marks=pytest.mark.exhaustive, id="every call")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the actions read."""
    base = tmp_path_factory.mktemp("calls")
    np.savez(base / "routes.npz", expert_ids=TRUE)
    for name in ("ja", "en"):
        (base / f"{name}.csv").write_text(f"layer,expert,count\n0,0,{len(name)}\n0,1,5\n", "utf-8")
    texts = [document.text for document in moelens.Corpus.of("demo")][::2]
    made = moelens.record(moelens.load("demo"), texts, base / "labelled", progress=False)
    moelens.label(made, processes=1)
    return base


@pytest.fixture(scope="module")
def process(base: Path) -> Iterator[Interposed]:
    process = Interposed(base)
    yield process
    process.close()


def prepare(action: str, base: Path, root: Path) -> None:
    """Make the folder in which an action is to write, with what an earlier one left there."""
    root.mkdir()
    if action == "label":
        made = moelens.record(moelens.load("demo"), TEXTS, root / "run", progress=False)
        moelens.label(made, processes=1)
    elif action == "import":
        np.savez(base / "other.npz", expert_ids=TRUE[::-1])
        moelens.import_routes(base / "other.npz", root / "run")
    elif action.startswith("export to"):
        moelens.export(base / "labelled", action.removeprefix("export to "), root / "exported")
    elif action != "record":
        for name in ("report.html", "explorer.html", "result.json", "result.parquet", "experts.json", "counts.json"):
            (root / name).write_text("old", "utf-8")


def fresh(base: Path, action: str) -> Path:
    """The folder in which an action writes, as it is before. Its path is always the same, since results name it."""
    root = base / "work"
    shutil.rmtree(root, ignore_errors=True)
    return Path(shutil.copytree(base / f"before {action}", root))


def contents(root: Path) -> dict[str, Any]:
    """What is in a folder, by path, without hidden files and what differs from run to run."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if path.suffix == ".json" and path.read_bytes() != b"old":
            value = json.loads(path.read_bytes())
            varying = [key for key in VARYING if key in value]
            found[name] = {k: v for k, v in value.items() if k not in varying} if varying else value
        else:
            found[name] = path.read_bytes()
    return found


def all_rows(path: Path) -> list[Any]:
    made = Recording.open(path)
    labels = []
    if (path / "labels").exists():
        opened = Labels.open(made)
        labels = [opened.metadata, *map(opened.table, opened.families)]
    return [made.tokens(), made.documents(), *(made.vectors(t, 3) for t in made.manifest["tables"]), labels]


def state(action: str, root: Path) -> Any:
    """What a reader finds: the rows of a recording with its labels, or the files; None if there is none."""
    if action in ("record", "label", "import"):
        try:
            return all_rows(root / "run")
        except RecordingError:
            return None
    return contents(root) or None


def some(action: str, calls: int, most: int) -> list[int]:
    """At most this many numbers of system calls, evenly spaced, with the last; half as many of what takes long."""
    most = most // 2 if most < calls and action in ("report", "explore") else most
    return sorted({int(n) for n in np.linspace(calls, 1, min(most, calls))})


@pytest.fixture(scope="module")
def undisturbed(base: Path, process: Interposed) -> Callable[[str], tuple[int, Any, Any, dict[str, Any]]]:
    """The number of calls of an action, what there is before and after it, and the files it leaves."""
    known: dict[str, tuple[int, Any, Any, dict[str, Any]]] = {}

    def of(action: str) -> tuple[int, Any, Any, dict[str, Any]]:
        if action not in known:
            prepare(action, base, base / f"before {action}")
            root = fresh(base, action)
            before = state(action, root)
            ended = process.run(action, root)
            assert (ended.status, ended.error) == (0, "")
            known[action] = ended.calls, before, state(action, root), contents(root)
        return known[action]

    return of


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("most", [pytest.param(4, id="some calls"), EVERY])
def test_killed_at_a_call(
    base: Path,
    process: Interposed,
    undisturbed: Callable[[str], tuple[int, Any, Any, dict[str, Any]]],
    action: str,
    most: int,
) -> None:
    """Half of what was to be written is written. A reader finds the old state, the new one, or an error of moelens."""
    calls, before, after, files = undisturbed(action)
    assert before != after
    seen = set()
    for n in some(action, calls, most):
        root = fresh(base, action)
        assert process.run(action, root, at=n).status == -9, f"call {n} of {calls}"
        found = state(action, root)
        assert found is None or found in (before, after), f"call {n} of {calls}"
        seen.add("none" if found is None else "before" if found == before else "after")
        again = process.run(action, root)
        assert (again.status, again.error) == (0, ""), f"call {n} of {calls}"
        assert state(action, root) == after, f"call {n} of {calls}"
        assert contents(root).keys() == files.keys(), f"call {n} of {calls}"
    assert seen & {"none", "before"}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("most", [pytest.param(3, id="some calls"), EVERY])
@pytest.mark.parametrize(
    "number, removals, message",
    [
        (errno.ENOSPC, False, "no space is left in '"),
        (errno.EFBIG, False, "no space is left in '"),
        (errno.EIO, False, "cannot write to '"),
        (errno.EROFS, True, "cannot write to '"),
    ],
    ids=["disk full", "file-size limit", "failing disk", "read-only"],
)
def test_calls_that_fail(
    base: Path,
    process: Interposed,
    undisturbed: Callable[[str], tuple[int, Any, Any, dict[str, Any]]],
    action: str,
    most: int,
    number: int,
    removals: bool,
    message: str,
) -> None:
    """One line says so, and what was there before is there, or nothing; a recording keeps its pieces and continues."""
    calls, before, after, files = undisturbed(action)
    for n in [1] if removals else some(action, calls, most):
        root = fresh(base, action)
        ended = process.run(action, root, at=n, error=number, removals=removals)
        if ended.status == 0:  # what failed was to be removed anyway
            assert state(action, root) == after, f"call {n} of {calls}"
            continue
        assert ended.status == 2, f"call {n} of {calls}: {ended.error}"
        assert ended.error.startswith(message)
        assert "\n" not in ended.error
        found = state(action, root)
        assert found == before or (action == "import" and found is None), f"call {n} of {calls}"
        assert not list(root.rglob(".*")), f"call {n} of {calls}"
        if action == "record":
            assert (process.run(action, root).status, state(action, root)) == (0, after)
            assert contents(root).keys() == files.keys()
        else:
            assert found is None or contents(root).keys() == contents(base / f"before {action}").keys()
