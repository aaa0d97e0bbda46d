"""Killed runs continue, full disks and damage are reported, and every file system works."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.known_model import TEXTS, Model, assert_recorded, tokenizer
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

import moelens
from moelens.commands.command_line import main
from moelens.errors import MoeLensError, RecordingError
from moelens.recording import Recording, import_routes, parallel, record, recorder
from moelens.recording.progress import MANIFEST, SETTINGS
from moelens.recording.storage import Folder

LONG = TEXTS * 8


def run_and_die(out: Path, shards: int) -> None:
    """Record in a child process, and kill it with SIGKILL once it has written this many shards, unless it has ended."""
    child = os.fork()
    if child == 0:
        try:
            record(Model(), LONG, out, batch_tokens=30, progress=False)
        finally:
            os._exit(0)
    ended = 0
    while not ended and len(list(out.glob("tokens/*"))) < shards:
        ended, _ = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.slow
def test_a_killed_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 20)
    shards = len(record(Model(), LONG, tmp_path / "undisturbed", batch_tokens=30, progress=False).manifest["shards"])
    generator, unfinished = random.Random(0), 0
    for i in range(20):
        out = tmp_path / str(i)
        run_and_die(out, generator.randint(0, shards))
        unfinished += not (out / MANIFEST).exists()
        if not (out / MANIFEST).exists() or (out / SETTINGS).exists():
            record(Model(), LONG, out, batch_tokens=30, progress=False)
        recording = Recording.open(out)
        assert_recorded(recording, Model(), LONG)
        assert recording.documents()["text"].to_pylist() == LONG
        recording.verify()
        assert {p.name for p in out.iterdir()} == {"README.md", "documents.parquet", MANIFEST, "tokens"}
        assert len(list((out / "tokens").iterdir())) == len(recording.manifest["shards"])
    assert unfinished >= 10


@pytest.mark.parametrize("stop", ["documents.parquet", "README.md", MANIFEST, "progress/00001.json", "progress/00000"])
def test_an_interrupted_end_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 10)
    real = Folder.writing

    def writing(self: Folder, name: str) -> Any:
        if name.startswith(stop):
            raise KeyboardInterrupt
        return real(self, name)

    monkeypatch.setattr(Folder, "writing", writing)
    with pytest.raises(KeyboardInterrupt):
        record(Model(), TEXTS, tmp_path / "run", progress=False)
    monkeypatch.setattr(Folder, "writing", real)
    assert_recorded(record(Model(), TEXTS, tmp_path / "run", progress=False), Model(), TEXTS)


@pytest.mark.parametrize(
    "number, message",
    [
        (errno.ENOSPC, "no space is left in '{out}'; free some and run the same command again to continue"),
        (errno.EACCES, "cannot write to '{out}' (Permission denied); choose another folder, or change its permissions"),
    ],
)
def test_a_full_disk_costs_only_the_current_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 10)
    out, real = tmp_path / "run", Folder.at(tmp_path).fs.open

    def full(path: str, *args: Any, **kwargs: Any) -> Any:
        if "tokens-00001" in path:
            raise OSError(number, os.strerror(number))
        return real(path, *args, **kwargs)

    fs = type(Folder.at(tmp_path).fs)
    monkeypatch.setattr(fs, "open", lambda self, path, *args, **kwargs: full(path, *args, **kwargs))
    with pytest.raises(RecordingError) as error:
        record(Model(), TEXTS, out, progress=False)
    assert str(error.value) == message.format(out=out)
    kept = (out / "tokens" / "tokens-00000.parquet").read_bytes()
    monkeypatch.undo()
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 10)
    assert_recorded(record(Model(), TEXTS, out, progress=False), Model(), TEXTS)
    assert (out / "tokens" / "tokens-00000.parquet").read_bytes() == kept


def test_a_missing_committed_shard_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 10)
    model, out = Model(), tmp_path / "run"

    def crash(name: str, tensor: Any) -> Any:
        if len(model.runs) == 3:
            raise RuntimeError("out of memory")
        return tensor

    model.edit = crash
    with pytest.raises(RuntimeError):
        record(model, TEXTS, out, progress=False)
    (out / "tokens" / "tokens-00000.parquet").unlink()
    with pytest.raises(
        RecordingError, match=r"'tokens/tokens-00000\.parquet' of the unfinished recording .* is missing"
    ):
        record(Model(), TEXTS, out, progress=False)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_cell_leaves_no_hooks_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 20)
    monkeypatch.setattr(recorder, "CHUNK_BATCHES", 1)
    model, texts, calls = moelens.load("demo"), ["社長がいらっしゃいました。", "お荷物をお持ちいたします。"] * 3, [0]
    options: dict[str, Any] = {"capture": ["routes", "neurons"], "batch_tokens": 10, "progress": False}

    def interrupt(module: Any, args: Any) -> None:
        calls[0] += 1
        if calls[0] == 4:
            raise kind

    handle = model.hf_model.lm_head.register_forward_pre_hook(interrupt)
    with pytest.raises(kind):
        moelens.record(model, texts, tmp_path / "run", **options)
    handle.remove()
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
    assert not [t for t in threading.enumerate() if t.name.startswith("moelens-")]
    assert not list((tmp_path / "run").rglob("*.partial"))
    committed = {p.name: p.read_bytes() for p in (tmp_path / "run" / "progress").glob("[0-9]*.json")}
    assert 0 < len(committed) < 6
    with pytest.raises(RecordingError, match="is an unfinished recording; repeat the command that began it"):
        Recording.open(tmp_path / "run")
    went_on = moelens.record(model, texts, tmp_path / "run", **options)
    undisturbed = moelens.record(model, texts, tmp_path / "undisturbed", **options)
    assert went_on.tokens().equals(undisturbed.tokens())
    assert went_on.vectors("neurons", 3).equals(undisturbed.vectors("neurons", 3))
    assert moelens.verify(went_on)


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    out, model = tmp_path / "run", Model()

    def meanwhile(name: str, tensor: Any) -> Any:
        for force in (False, True):
            with pytest.raises(RecordingError) as error:
                record(Model(), TEXTS, out, force=force, progress=False)
            refused.append(str(error.value))
        return tensor

    refused: list[str] = []
    model.edit = meanwhile
    assert_recorded(record(model, TEXTS, out, progress=False), Model(), TEXTS)
    assert set(refused) == {f"another run is writing to '{out}'; wait until it has ended, or choose another folder"}
    assert_recorded(record(Model(), TEXTS, out, force=True, progress=False), Model(), TEXTS)


@pytest.mark.tried("Imports", "`import` into a folder in which `record` is writing", "refused; the recording goes on")
@pytest.mark.parametrize("force", [False, True])
def test_an_import_does_not_write_to_the_folder_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 10)
    out, model, refused = tmp_path / "run", Model(), []
    np.savez(tmp_path / "r.npz", expert_ids=np.zeros((2, 1, 1), int))

    def meanwhile(name: str, tensor: Any) -> Any:
        with pytest.raises(RecordingError) as error:
            import_routes(tmp_path / "r.npz", out, force=force)
        refused.append(str(error.value))
        return tensor

    model.edit = meanwhile
    assert_recorded(record(model, TEXTS, out, batch_tokens=1, progress=False), Model(), TEXTS)
    assert set(refused) == {f"another run is writing to '{out}'; wait until it has ended, or choose another folder"}
    assert moelens.verify(out)


def test_an_import_does_not_replace_an_unfinished_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    unfinished(out, monkeypatch)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    np.savez(tmp_path / "r.npz", expert_ids=np.zeros((2, 1, 1), int))
    with pytest.raises(RecordingError, match="holds an unfinished recording with other settings"):
        import_routes(tmp_path / "r.npz", out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert_recorded(record(Model(), TEXTS, out, progress=False), Model(), TEXTS)


def test_an_interrupted_import_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "r.npz", expert_ids=np.zeros((2, 1, 1), int))
    for stop in ("progress/00000", MANIFEST):
        with monkeypatch.context() as patch:
            real = Folder.writing

            def writing(self: Folder, name: str, stop: str = stop, real: Any = real) -> Any:
                if name.startswith(stop):
                    raise KeyboardInterrupt
                return real(self, name)

            patch.setattr(Folder, "writing", writing)
            with pytest.raises(KeyboardInterrupt):
                import_routes(tmp_path / "r.npz", tmp_path / "run")
        made = import_routes(tmp_path / "r.npz", tmp_path / "run")
        assert moelens.verify(made)
        shutil.rmtree(made.path)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    assert_recorded(record(Model(), TEXTS, tmp_path / "run", progress=False), Model(), TEXTS)


@pytest.mark.parametrize("when", [1, 3])
def test_two_runs_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """The recording is that of the later run; the earlier one says so."""
    fcntl = pytest.importorskip("fcntl")

    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 10)
    out, first, passes = tmp_path / "run", Model(), []

    def meanwhile(name: str, tensor: Any) -> Any:
        passes.append(name)
        if len(passes) == when * 6:
            assert_recorded(record(Model(), TEXTS, out, progress=False), Model(), TEXTS)
        return tensor

    first.edit = meanwhile
    with pytest.raises(
        RecordingError, match=r"^another run began later to write to '.*run', where nothing can be locked; this run has"
    ):
        record(first, TEXTS, out, batch_tokens=4096, progress=False)
    assert_recorded(Recording.open(out), Model(), TEXTS)
    assert moelens.verify(out)


def unfinished(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a recording whose pieces are all committed, and stop before its end."""
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 10)
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "_conclude", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            record(Model(), TEXTS, out, progress=False)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:20] + bytes([data[20] ^ 1]) + data[21:]


@pytest.mark.parametrize(
    "name, harm, message",
    [
        ("tokens/tokens-00000.parquet", cut, "is damaged; delete 'progress/00000.json' there to record it again"),
        ("tokens/tokens-00000.parquet", lambda data: b"", "is damaged; delete 'progress/00000.json' there to record"),
        ("progress/documents-00001.parquet", flip, "is damaged; delete 'progress/00001.json' there to record it again"),
        ("progress/00001.json", cut, "is damaged; delete 'progress/00001.json' there to record it again"),
        ("progress/settings.json", lambda data: b"", "is damaged; delete the whole folder"),
    ],
)
def test_damage_to_an_unfinished_recording_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, harm: Any, message: str
) -> None:
    out = tmp_path / "run"
    unfinished(out, monkeypatch)
    (out / name).write_bytes(harm((out / name).read_bytes()))
    with pytest.raises(RecordingError) as error:
        record(Model(), TEXTS, out, progress=False)
    assert str(error.value).startswith(f"'{name}' of the unfinished recording '{out}' {message}")
    if "progress/0" in message:  # the file that the message names
        (out / message.split("'")[1]).unlink()
    recording = record(Model(), TEXTS, out, force=name == SETTINGS, progress=False)
    assert_recorded(recording, Model(), TEXTS)
    assert moelens.verify(recording)


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished(tmp_path / "run", monkeypatch)
    begun = json.loads((tmp_path / "run" / SETTINGS).read_text("utf-8"))["created"]

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Earlier:
            return cls(1970, 1, 1, tzinfo=tz)

    monkeypatch.setattr(recorder, "datetime", Earlier)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    recording = record(Model(), TEXTS, tmp_path / "run", progress=False)
    assert_recorded(recording, Model(), TEXTS)
    assert recording.manifest["created"] == begun


LINES = "先生がいらっしゃる。\r\nはい\r\n\r\n  \r\nお荷物\r\n"


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl"])
def test_windows_line_ends_are_not_recorded(tmp_path: Path, name: str) -> None:
    texts = ["先生がいらっしゃる。", "はい", "お荷物"]
    lines = LINES if name == "c.txt" else "\r\n".join(json.dumps({"text": t}) for t in texts) + "\r\n"
    (tmp_path / name).write_bytes(lines.encode())
    recording = record(Model(), tmp_path / name, tmp_path / "run", progress=False)
    assert_recorded(recording, Model(), texts)
    assert recording.documents()["text"].to_pylist() == texts


def test_a_line_of_50_megabytes(tmp_path: Path) -> None:
    path, text = tmp_path / "c.jsonl", "社" * (50 * 2**20 // 3)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in ("一", text, "二"))
    assert [len(d.text) for d in moelens.Corpus.of(path)] == [1, len(text), 1]
    path.write_bytes(b'{"text": "a"}\n{"text": "' + b"x" * (50 * 2**20))
    with pytest.raises(MoeLensError, match=r"^c\.jsonl line 2 is not JSON \(Unterminated string .{,200}$"):
        record(Model(), path, tmp_path / "run", progress=False)
    path.write_bytes(b"[" * 2**20 + b"\n")
    with pytest.raises(
        MoeLensError, match=r"^c\.jsonl line 1 is nested too deeply; write one flat JSON object per line$"
    ):
        record(Model(), path, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_documents_of_special_tokens_only(tmp_path: Path) -> None:
    assert_recorded(record(Model(), ["", ""], tmp_path / "known", progress=False), Model(), ["", ""])
    model = moelens.load("demo")
    special = model.tokenizer.eos_token
    recording = record(
        model, [special * 3, "はい", special], tmp_path / "demo", capture=["routes", "neurons"], progress=False
    )
    ids = [model.tokenizer(text)["input_ids"] for text in (special * 3, "はい", special)]
    assert recording.column("token_id").tolist() == [i for row in ids for i in row]
    assert ids[0].count(model.tokenizer.eos_token_id) >= 3
    assert recording.indices().shape[0] == sum(map(len, ids))
    assert moelens.verify(recording)


def test_stretches_without_tokens_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    bare.post_processor = processors.ByteLevel(trim_offsets=False)  # an empty text has no tokens
    model = Model(tokenizer=PreTrainedTokenizerFast(tokenizer_object=bare))
    texts = ["", "先生がいらっしゃる。", "", "", "はい", "", ""]
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 2)  # the last piece is the two empty ones
    recording = record(model, texts, tmp_path / "run", batch_tokens=4, progress=False)
    assert recording.column("doc").tolist() == [1] * 30 + [4] * 6
    assert recording.documents()["text"].to_pylist() == texts
    assert len(list((tmp_path / "run" / "tokens").iterdir())) == len(recording.manifest["shards"])
    assert moelens.verify(recording)


@pytest.mark.parametrize("url", ["memory://{new}/one", "file://{tmp}/run"])
def test_recordings_behind_urls(tmp_path: Path, url: str) -> None:
    url = url.format(tmp=tmp_path, new=uuid.uuid4())  # the memory file system is shared by all tests
    recording = record(Model(), TEXTS, url, force=True, progress=False)
    assert_recorded(recording, Model(), TEXTS)
    recording.verify()
    assert Recording.open(url).documents()["text"].to_pylist() == TEXTS
    if url.startswith("memory"):
        with pytest.raises(RecordingError, match=f"expected a local recording, got '{url}'; copy it to a local folder"):
            _ = recording.path


def test_urls_that_cannot_be_reached() -> None:
    with pytest.raises(
        MoeLensError, match=r"cannot open 'nonsense://x' \(.*\); give a local folder or another fsspec URL"
    ):
        Folder.at("nonsense://x")


def test_verify_names_every_damaged_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 10)
    out = tmp_path / "run"
    record(Model(), TEXTS, out, progress=False)
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out == f"{Recording.open(out)}: 4 files verified\n"
    first, second = sorted((out / "tokens").iterdir())[:2]
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:100])
    assert main(["verify", str(out)]) == 2
    err = capsys.readouterr().err
    assert f"'tokens/{first.name}' of recording '{out}' is damaged" in err
    assert f"'tokens/{second.name}' of recording '{out}' is damaged" in err
    assert "is not part of" not in err


def test_reading_vectors_of_a_broken_shard(tmp_path: Path) -> None:
    recording = record(moelens.load("demo"), ["はい"], tmp_path / "run", capture="residuals", progress=False)
    shard = tmp_path / "run" / "residuals" / "residuals-L01-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(
        RecordingError, match=r"'residuals/residuals-L01-00000\.parquet' of recording .* is damaged: its checksum"
    ):
        recording.vectors("residuals", 1)
    shard.unlink()
    with pytest.raises(RecordingError, match=r"'residuals/residuals-L01-00000\.parquet' of recording .* is missing;"):
        recording.vectors("residuals", 1)
    assert len(recording.vectors("residuals", 2)) == recording.n_tokens  # each layer has its own files


def test_verify_names_a_file_too_many(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert moelens.verify(record(Model(), TEXTS, out, progress=False))
    shutil.copy(out / "tokens" / "tokens-00000.parquet", out / "tokens" / "tokens-00007.parquet")
    found = moelens.verify(out)
    assert not found
    assert repr(found) == f"'tokens/tokens-00007.parquet' is not part of recording '{out}'; remove it"


def test_few_chunks_wait_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moelens.recording import pieces

    alive, most = 0, 0
    real = pieces.PieceWriter.write

    def slow(self: Any, *args: Any) -> None:
        nonlocal alive
        time.sleep(0.01)
        real(self, *args)
        alive -= 1

    def counted(*args: Any) -> Any:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return run(*args)

    run = recorder.run_chunk
    monkeypatch.setattr(pieces.PieceWriter, "write", slow)
    monkeypatch.setattr(recorder, "run_chunk", counted)
    monkeypatch.setattr(recorder, "CHUNK_BATCHES", 1)
    recording = record(Model(), TEXTS * 10, tmp_path / "run", batch_tokens=10, progress=False)
    assert most <= 4
    assert len(np.unique(recording.column("doc"))) == 50


def test_processes_that_the_model_does_not_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    model._device_mesh = SimpleNamespace(size=lambda: 2)  # type: ignore[attr-defined]
    monkeypatch.setattr(parallel, "join_processes", lambda: True)
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 3)
    with pytest.raises(
        MoeLensError, match="expected a multiple of 2 processes, over which the model is sharded, got 3; start another"
    ):
        record(model, TEXTS, "never-made", progress=False)
    assert not Path("never-made").exists()


LAUNCH = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    "change, message",
    [
        pytest.param(
            {"RANK": "", "MASTER_ADDR": "", "MASTER_PORT": ""},
            "expected RANK, MASTER_ADDR and MASTER_PORT of 2 processes, as torchrun and accelerate launch set them"
            " beside WORLD_SIZE, got no RANK, no MASTER_ADDR, no MASTER_PORT; start the processes with one of these",
            marks=pytest.mark.tried(
                "Launches", "a scheduler that sets WORLD_SIZE alone", "refused; says what is missing"
            ),
        ),
        ({"RANK": "2"}, "expected RANK, MASTER_ADDR and MASTER_PORT of 2 processes, as torchrun and accelerate launch"),
        ({"RANK": "-1", "MASTER_PORT": "x"}, "beside WORLD_SIZE, got RANK=-1, MASTER_PORT=x; start the processes with"),
        ({"WORLD_SIZE": "auto"}, "expected a number of processes in WORLD_SIZE, got 'auto'; unset WORLD_SIZE to work"),
        ({"WORLD_SIZE": "-2"}, "expected a number of processes in WORLD_SIZE, got '-2'; unset WORLD_SIZE to work"),
    ],
)
def test_a_launch_that_is_none(monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str) -> None:
    for name, value in (LAUNCH | change).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MoeLensError) as error:
        record(Model(), TEXTS, "never-made", progress=False)
    assert message in str(error.value)
    assert not Path("never-made").exists()


@pytest.mark.tried("Launches", "WORLD_SIZE of two, and one process", "a line on stderr says what is waited for")
def test_a_process_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (LAUNCH | {"MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel, "_PATIENCE", 0.05)
    monkeypatch.setattr(parallel, "_JOIN_TIMEOUT", timedelta(seconds=1))
    awaited = f"2 processes (WORLD_SIZE) at 127.0.0.1:{port} (MASTER_ADDR)"
    with pytest.raises(MoeLensError) as error:
        record(Model(), TEXTS, tmp_path / "run", progress=False)
    assert str(error.value).startswith(f"expected {awaited}, which did not all come (")
    assert str(error.value).endswith("); start them all, or unset WORLD_SIZE to work with one process")
    line = f"moelens: process 0 waits for {awaited}; unset WORLD_SIZE to work with one process"
    assert line in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.tried("Launches", "WORLD_SIZE=1 with any RANK", "one process, which prints and writes")
def test_a_rank_without_others_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "3")
    out = record(moelens.load("demo"), TEXTS, tmp_path / "run", progress=False).path
    assert main(["measure", str(out), "load", "--out", str(tmp_path / "load.json")]) == 0
    assert (tmp_path / "load.json").exists()
    assert main(["record", "demo", "demo", "--out", str(tmp_path / "again"), "--layers", "1"]) == 0
    assert "Recording(" in capsys.readouterr().out


class Many:
    """Yields the same document repeatedly."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[str]:
        return repeat("先生がいらっしゃいました。お荷物をお持ちいたします。" * 3, self.n)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    process, peaks = psutil.Process(), []
    for n in (100, 300, 3000):  # the first warms up
        peak, done = [0], threading.Event()

        def watch(peak: list[int] = peak, done: threading.Event = done) -> None:
            while not done.wait(0.01):
                peak[0] = max(peak[0], process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        recording = record(Model(), Many(n), tmp_path / str(n), progress=False)
        done.set()
        watcher.join()
        assert recording.n_documents == n
        peaks.append(peak[0])
    assert peaks[2] < 1.05 * peaks[1]
