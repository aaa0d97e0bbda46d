"""Recording a model whose routes are known: every row for every division into batches, and the text of every error."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.known_model import TEXTS, Model, Shape, assert_recorded, expected
from hypothesis import given, settings
from hypothesis import strategies as st

import moelens
from moelens.errors import CheckError, MoeLensError, RecordingError, UnknownNameError
from moelens.recording import Corpus, Recording, pieces, record, recorder
from moelens.recording.windows import batches, windows


@pytest.fixture
def made(tmp_path: Path) -> Recording:
    return record(Model(), TEXTS, tmp_path / "run", progress=False)


# Rows


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
@pytest.mark.parametrize("context_length", [None, 1, 7, 4096])
def test_every_row(tmp_path: Path, batch_tokens: int, context_length: int | None) -> None:
    model = Model(context_length=context_length)
    recording = record(model, TEXTS, tmp_path / "run", batch_tokens=batch_tokens, progress=False)
    assert_recorded(recording, model, TEXTS)
    assert all(rows * width <= batch_tokens or rows == 1 for rows, width in model.runs)
    assert max(width for _, width in model.runs) <= (context_length or 10**6)
    recording.verify()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text("先生あa", max_size=12), min_size=1, max_size=12),
    st.integers(1, 60),
    st.sampled_from([None, 5]),
)
def test_rows_do_not_depend_on_batches(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], batch_tokens: int, context_length: int | None
) -> None:
    out = tmp_path_factory.mktemp("runs") / "run"
    model = Model(context_length=context_length)
    assert_recorded(record(model, texts, out, batch_tokens=batch_tokens, progress=False), model, texts)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 100), st.one_of(st.none(), st.integers(1, 20)))
def test_batches_hold_every_row_once(lengths: list[int], tokens: int, context: int | None) -> None:
    found = list(batches(windows(lengths, context), tokens))
    assert sorted(row for batch in found for w in batch for row in range(w.first, w.stop)) == list(range(sum(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= tokens for batch in found)
    assert all(len(sequence) <= (context or 50) for batch in found for sequence in batch)


def test_columns(made: Recording) -> None:
    schema = {
        name: str(kind) for name, kind in zip(made.tokens().schema.names, made.tokens().schema.types, strict=True)
    }
    plain = dict.fromkeys(("doc", "pos", "token_id", "char_start", "char_end"), "int32") | {"partial": "bool"}
    assert schema == plain | {
        f"{kind}_L{layer}": f"fixed_size_list<element: {item}>[2]"
        for layer in ("01", "02", "12")
        for kind, item in (("experts", "uint8"), ("weights", "halffloat"))
    }
    spans = made.tokens(["doc", "char_start", "char_end", "partial"]).to_pylist()[:4]
    assert [tuple(row.values()) for row in spans] == [(0, 0, 0, False), *[(0, 0, 1, True)] * 3]
    assert made.column("experts_L12").shape == (made.n_tokens, 2)
    assert made.indices().dtype == np.uint8
    assert made.weights().dtype == np.float32
    assert (made.layers, made.n_experts, made.top_k) == ((1, 2, 12), 32, 2)


def test_more_than_256_experts_are_uint16(tmp_path: Path) -> None:
    model = Model(shape=Shape(n_experts=300))
    recording = record(model, TEXTS, tmp_path / "run", progress=False)
    assert recording.indices().dtype == np.uint16
    assert_recorded(recording, model, TEXTS)


def test_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 10)
    recording = record(Model(), TEXTS, tmp_path / "run", batch_tokens=1, progress=False)
    assert [s["path"] for s in recording.manifest["shards"]] == [f"tokens/tokens-0000{i}.parquet" for i in range(3)]
    assert_recorded(recording, Model(), TEXTS)
    recording.verify()
    assert list(recording.texts()) == TEXTS
    n = recording.n_tokens
    for start, stop in [(0, None), (0, 1), (1, n - 1), (n - 1, n), (3, 3)]:
        parts, routes = list(recording.columns(["pos"], start, stop)), list(recording.parts(start, stop))
        at = np.concatenate([np.arange(rows.start, rows.stop) for rows, _ in parts] or [np.arange(0)])
        np.testing.assert_array_equal(at, np.arange(n)[start:stop])
        assert [rows for rows, _ in routes] == [rows for rows, _ in parts]
        for rows, (pos,) in parts:
            np.testing.assert_array_equal(pos, recording.column("pos")[rows])
        for rows, experts in routes:
            np.testing.assert_array_equal(np.stack(experts, 1), recording.indices()[rows])


def test_manifest_card_and_repr(made: Recording) -> None:
    manifest = made.manifest
    assert (manifest["format"], manifest["corpus"], manifest["n_documents"]) == (1, "texts", 5)
    assert manifest["n_tokens"] == sum(s["rows"] for s in manifest["shards"]) == len(expected(Model(), TEXTS)["doc"])
    assert manifest["model"] == {
        "name": "known",
        "revision": None,
        "dtype": "bfloat16",
        "format": "float32, bfloat16, float16",
        "checks": [],
    }
    assert manifest["engine"]["experts"] == "grouped_mm"
    assert manifest["shape"] == {
        "moe_layers": [1, 2, 12],
        "n_experts": 32,
        "top_k": 2,
        "n_layers": 13,
        "d_model": 8,
        "d_expert": 4,
    }
    assert manifest["capture"]["stored_as"] == "float16"
    assert manifest["tokenizer"]["documents_by_spans"] == {"bytes": 5}
    assert len(manifest["tokenizer"]["sha256"]) == 64
    assert manifest["created"].endswith("+00:00")
    assert {"python", "torch", "transformers", "pyarrow"} <= manifest["libraries"].keys()
    assert "83 tokens of 5 documents (corpus: texts), in layers\n1, 2, 12, with 2 of 32" in (
        made.path / "README.md"
    ).read_text("utf-8")
    assert repr(made) == (
        f"Recording('{made.path}': 83 tokens of 5 documents, model 'known', 3 MoE layers, top 2 of 32 experts)"
    )


def test_documents_keep_their_metadata(tmp_path: Path) -> None:
    rows = [
        {"text": "行く", "id": 1, "honorifics": []},
        {"text": "いらっしゃる", "id": 2.5, "honorifics": ["尊敬語"], "empty": {}},
        {"text": "参る", "honorifics": ["謙譲語II", "丁寧語"]},
    ]
    table = record(Model(), rows, tmp_path / "run", progress=False).documents()
    assert table.schema.names == ["doc", "text", "id", "honorifics", "empty"]
    assert table.column("doc").to_pylist() == [0, 1, 2]
    assert table.column("id").to_pylist() == [1.0, 2.5, None]
    assert table.column("honorifics").to_pylist() == [r["honorifics"] for r in rows]


# Other readers


def test_ordinary_tools_read_the_tokens(made: Recording) -> None:
    pandas, shards = pytest.importorskip("pandas"), str(made.path / "tokens")
    frame = pandas.read_parquet(shards)
    np.testing.assert_array_equal(np.stack(frame["weights_L02"]), made.column("weights_L02"))
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(shards + "/*.parquet")
    np.testing.assert_array_equal(frame["weights_L02"].to_numpy(), made.column("weights_L02"))
    duckdb = pytest.importorskip("duckdb")
    rows = duckdb.sql(f"select experts_L02, weights_L02 from '{shards}/*.parquet'").fetchall()
    np.testing.assert_array_equal([r[0] for r in rows], made.column("experts_L02"))
    np.testing.assert_array_equal([r[1] for r in rows], made.column("weights_L02"))


@pytest.mark.parametrize("how", ["folder", "parquet"])
def test_datasets_reads_the_tokens(made: Recording, tmp_path: Path, how: str) -> None:
    datasets = pytest.importorskip("datasets")
    source = (
        {"path": str(made.path)}
        if how == "folder"
        else {"path": "parquet", "data_files": str(made.path / "tokens" / "*.parquet")}
    )
    rows = datasets.load_dataset(**source, cache_dir=str(tmp_path / "cache"))["train"]
    np.testing.assert_array_equal(rows["weights_L12"], made.column("weights_L12"))


# Folders


def test_a_recording_is_not_overwritten_by_default(made: Recording) -> None:
    with pytest.raises(RecordingError) as error:
        record(Model(), ["はい"], made.path)
    assert str(error.value).startswith(f"'{made.path}' already holds a recording of another run (")
    assert "corpus_sha256" in str(error.value)
    assert str(error.value).endswith(
        f"; open it with moelens.open('{made.path}'), choose another folder, or replace it with force=True (--force)"
    )
    assert Recording.open(made.path).n_documents == 5
    assert record(Model(), ["はい"], made.path, force=True, progress=False).n_documents == 1
    assert [p.name for p in made.path.parent.iterdir()] == ["run"]


def test_the_same_call_again_opens_the_recording(tmp_path: Path) -> None:
    model = moelens.load("demo")
    made = record(model, TEXTS, tmp_path / "run", progress=False)
    before = {path: path.stat().st_mtime_ns for path in made.path.rglob("*")}
    again = record(model, list(TEXTS), tmp_path / "run", progress=False)
    assert {path: path.stat().st_mtime_ns for path in made.path.rglob("*")} == before
    assert again.manifest == made.manifest
    hooked = r"already holds a recording of another run \(hooks: None and \['blocks.3"
    with pytest.raises(RecordingError, match=hooked), model.intervene(moelens.remove(layer=3, experts=[17])):
        record(model, TEXTS, tmp_path / "run", progress=False)
    with model.intervene(moelens.remove(layer=4, experts=[17])):  # the last layer: other routes are as without
        record(model, TEXTS, tmp_path / "changed", progress=False)
    with pytest.raises(RecordingError, match=r"run \(hooks: \['blocks.4.mlp.hook_expert_weights'\] and None"):
        record(model, TEXTS, tmp_path / "changed", progress=False)
    with pytest.raises(RecordingError, match=r"already holds a recording of another run \(capture"):
        record(model, TEXTS, tmp_path / "run", capture=["routes", "margin"], progress=False)
    record(model, TEXTS, tmp_path / "residuals", capture="residuals", progress=False)
    with pytest.raises(RecordingError, match=r"already holds a recording; open it with"):  # no routes tell the model
        record(model, TEXTS, tmp_path / "residuals", capture="residuals", progress=False)
    for parameter in model.hf_model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    with pytest.raises(
        RecordingError, match=r", of whose first tokens this model chooses \d+% of the experts; open it"
    ):
        record(model, TEXTS, tmp_path / "run", progress=False)


def test_other_things_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("言葉")
    for out, force in ((tmp_path, True), (tmp_path, False), (tmp_path / "thesis.txt", True)):
        with pytest.raises(RecordingError) as error:
            record(Model(), ["はい"], out, force=force)
        assert str(error.value) == (
            f"expected a new or empty folder, got '{out}', which exists and is not a recording;"
            " choose another folder, or remove it yourself"
        )
    (tmp_path / "empty").mkdir()
    assert record(Model(), ["はい"], tmp_path / "empty", progress=False).n_documents == 1
    assert record(Model(), ["はい"], tmp_path / "new" / "run", progress=False).n_documents == 1


def crashing(run: int, error: type[BaseException] = RuntimeError) -> Model:
    """Return a model that raises an error in one of its runs, counted from 1."""
    model = Model()

    def crash(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if len(model.runs) == run:
            raise error("out of memory")
        return tensor

    model.edit = crash
    return model


def test_a_slow_run_commits_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "PIECE_BATCHES", 1)
    monkeypatch.setattr(recorder, "_waiting_chunks", lambda model: 0)  # each piece is written before the next one runs
    monkeypatch.setattr(pieces, "COMMIT_SECONDS", math.inf)
    texts = TEXTS * 5

    def stopped(out: Path) -> list[str]:
        with pytest.raises(RuntimeError, match="out of memory"):
            record(crashing(12), texts, out, batch_tokens=30, progress=False)
        return sorted(path.name for path in out.glob("progress/0*.json"))

    assert stopped(tmp_path / "fast") == []
    monkeypatch.setattr(pieces, "COMMIT_SECONDS", 0)
    out = tmp_path / "slow"
    commits = stopped(out)
    assert len(commits) >= 3
    kept = {p: p.stat().st_mtime_ns for p in (out / "tokens").iterdir()}
    monkeypatch.setattr(pieces, "COMMIT_SECONDS", math.inf)
    for name in commits[:2]:  # recorded again, as one shard, before a piece that is committed
        (out / "progress" / name).unlink()
    rest = Model()
    made = record(rest, texts, out, batch_tokens=30, progress=False)
    assert_recorded(made, rest, texts)
    assert made.documents()["text"].to_pylist() == texts
    assert len(made.manifest["shards"]) == len(commits)  # what was left is one shard
    assert sum(p.exists() and p.stat().st_mtime_ns == time for p, time in kept.items()) == len(commits) - 2
    assert moelens.verify(made)  # no file is left of the second of them


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_continues(tmp_path: Path, stop: type[BaseException], monkeypatch: Any) -> None:
    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 30)
    out, texts = tmp_path / "run", TEXTS * 5
    with pytest.raises(stop, match="out of memory"):
        record(crashing(9, stop), texts, out, batch_tokens=30, progress=False)
    kept = {p: p.stat().st_mtime_ns for p in (out / "tokens").iterdir()}
    assert kept
    assert not [p for p in kept if p.suffix == ".partial"]
    with pytest.raises(
        RecordingError, match="is an unfinished recording; repeat the command that began it to continue"
    ):
        Recording.open(out)
    with pytest.raises(RecordingError) as error:
        record(Model(), texts, out, batch_tokens=31, progress=False)
    assert str(error.value).startswith(f"'{out}' holds an unfinished recording with other settings (capture")
    whole = Model()
    assert_recorded(record(whole, texts, out, batch_tokens=30, progress=False), whole, texts)
    assert len(whole.runs) < 25
    assert all(p.stat().st_mtime_ns == time for p, time in kept.items())


def test_a_crash_before_anything_is_kept_leaves_nothing(tmp_path: Path) -> None:
    def crash(name: str, tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        record(Model(edit=crash), TEXTS, tmp_path / "run", progress=False)
    assert not list(tmp_path.iterdir())


# Invalid values


def first_layer(point: str, value: float | None) -> Any:
    """Return an edit of one number in layer 2, for the second token of the last row, or of the whole tensor."""

    def edit(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        if name == f"blocks.2.mlp.{point}":
            if value is None:
                return None
            tensor[-1, 1, 1] = value
        return tensor

    return edit


@pytest.mark.parametrize(
    "point, value, message",
    [
        ("hook_expert_indices", 32, "layer 2, document 1: expected experts from 0 to 31, got 32; load the model again"),
        ("hook_expert_indices", -1, "layer 2, document 1: expected experts from 0 to 31, got -1; load the model again"),
        (
            "hook_topk_weights",
            float("nan"),
            "layer 2, document 1: expected finite routing weights, got nan; load the model with dtype=torch.float32"
            " (--dtype float32)",
        ),
        (
            "hook_topk_weights",
            70000.0,
            "layer 2, document 1: expected routing weights within the range of float16 (65504), got 70000.0;"
            " record with store_dtype='bfloat16' (--store-dtype bfloat16)",
        ),
        (
            "hook_topk_weights",
            None,
            "expected a value at hook point 'blocks.2.mlp.hook_topk_weights' of model 'known', got none;"
            " it cannot be recorded",
        ),
    ],
)
def test_wrong_routes_are_refused(tmp_path: Path, point: str, value: float | None, message: str) -> None:
    with pytest.raises(CheckError) as error:
        record(Model(edit=first_layer(point, value)), ["お荷物", "はい"], tmp_path / "run", progress=False)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


# Opening


def test_opening_something_else_than_a_recording(tmp_path: Path, made: Recording) -> None:
    with pytest.raises(RecordingError) as error:
        Recording.open(tmp_path / "none")
    assert str(error.value) == (
        f"'{tmp_path / 'none'}' is not a recording: there is no such folder;"
        " make one with moelens.record(model, corpus, out) (moelens record)"
    )
    manifest = made.path / "manifest.json"
    manifest.write_text(json.dumps(made.manifest | {"format": 2, "moelens": "9.0"}))
    with pytest.raises(RecordingError) as error:
        Recording.open(made.path)
    assert str(error.value) == (
        f"expected a recording of format 1 or older, got '{made.path}' of format 2, made with moelens 9.0;"
        " upgrade with pip install -U moelens"
    )
    manifest.write_text("{")
    with pytest.raises(RecordingError, match=r"manifest\.json' is damaged"):
        Recording.open(made.path)


def test_unknown_column(made: Recording) -> None:
    with pytest.raises(UnknownNameError, match="unknown column 'expert_L02'; did you mean 'experts_L02'"):
        made.column("expert_L02")


SHARD = "tokens/tokens-00000.parquet"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name, harm, what",
    [
        (SHARD, damage, "is damaged: its SHA-256 differs from that in the manifest"),
        ("documents.parquet", damage, "is damaged: its SHA-256 differs from that in the manifest"),
        (SHARD, Path.unlink, "is missing"),
    ],
)
def test_verify_names_the_damaged_file(made: Recording, name: str, harm: Any, what: str) -> None:
    made.verify()
    harm(made.path / name)
    with pytest.raises(RecordingError) as error:
        made.verify()
    assert str(error.value) == (
        f"'{name}' of recording '{made.path}' {what}; copy it again, or record again with force=True (--force)"
    )


def test_verify_counts_rows(made: Recording) -> None:
    made.manifest["shards"][0]["rows"] -= 1
    with pytest.raises(RecordingError, match=f"'{SHARD}' of recording .* has 83 rows instead of 82"):
        made.verify()


def test_reading_a_broken_shard(made: Recording) -> None:
    (made.path / SHARD).write_bytes(b"PAR1")
    with pytest.raises(RecordingError, match=f"'{SHARD}' of recording .* is damaged"):
        made.indices()
    shutil.rmtree(made.path / "tokens")
    with pytest.raises(RecordingError, match=f"'{SHARD}' of recording .* is missing"):
        made.tokens()


def test_the_disk_holds_nothing_but_parquet_and_text(made: Recording) -> None:
    files = sorted(p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file())
    assert files == ["README.md", "documents.parquet", "manifest.json", SHARD]
    assert pq.read_table(made.path / SHARD).num_rows == made.n_tokens


# Corpora

LINES = [{"text": "先生", "id": 1}, {"text": "行く", "id": 2}]
JSONL = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in LINES) + "\n"


@pytest.mark.parametrize(
    "name, data",
    [
        ("c.jsonl", JSONL.encode()),
        ("c.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)),
        ("c.jsonl", b"\xef\xbb\xbf" + JSONL.replace("\n", "\r\n").encode()),
    ],
)
def test_jsonl_files(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    corpus = Corpus.of(tmp_path / name)
    for _ in range(2):
        assert [(d.text, d.metadata) for d in corpus] == [("先生", {"id": 1}), ("行く", {"id": 2})]


def test_other_corpora(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("先生\n\n　行く\n", "utf-8")
    assert [d.text for d in Corpus.of(str(tmp_path / "c.txt"))] == ["先生", "　行く"]
    once = Corpus.of(line for line in LINES)
    assert [d.text for d in once] == [d.text for d in once] == ["先生", "行く"]
    assert Corpus.of(once) is once
    sentences = Corpus.of([{"sentence": "先生", "id": 1}], text_column="sentence")
    assert [(d.text, d.metadata) for d in sentences] == [("先生", {"id": 1})]


@pytest.mark.parametrize(
    "name, data, kind, message",
    [
        (
            "c.jsonl",
            b'{"text": "a"}\n{"text"\n',
            MoeLensError,
            "c.jsonl line 2 is not JSON (Expecting ':' delimiter, column 8); write one JSON object per line",
        ),
        (
            "c.jsonl",
            b'["a"]\n',
            MoeLensError,
            "c.jsonl line 1: expected a string or a dict with a text, got list; convert it",
        ),
        (
            "c.jsonl",
            b'{"body": "a", "id": 1}\n',
            UnknownNameError,
            "unknown text column 'text'; allowed: body, id (c.jsonl line 1; choose with text_column or --text-column)",
        ),
        (
            "c.jsonl",
            b'{"text": null}\n',
            MoeLensError,
            "c.jsonl line 1: expected 'text' to be a string or a list of messages, got NoneType; convert it",
        ),
        (
            "c.jsonl",
            b'{"text": "a", "doc": 1}\n',
            MoeLensError,
            "c.jsonl line 1: metadata 'doc' has the name of a column of recordings; rename it",
        ),
        (
            "c.jsonl",
            b'{"text": "a\\ud83d"}\n',
            MoeLensError,
            "c.jsonl line 1: expected valid Unicode, got half a surrogate pair at character 1; write the whole pair",
        ),
        (
            "c.txt",
            "a\n先生\n".encode("cp932"),
            MoeLensError,
            "expected UTF-8 in c.txt line 2, got what looks like CP932; give encoding='cp932' (--encoding cp932), or ",
        ),
        ("c.txt", b"\n", MoeLensError, "expected documents in corpus '{path}', got none; give at least one document"),
        (
            "c.jsonl.gz",
            gzip.compress(JSONL.encode(), mtime=0)[:-9],
            MoeLensError,
            "c.jsonl.gz cannot be read after line ",
        ),
        (
            "c.xlsx",
            b"text\na\n",
            MoeLensError,
            "expected a file of type .txt, .csv, .tsv, .jsonl (or with .gz), .parquet, got 'c.xlsx'; convert",
        ),
    ],
)
def test_corpora_that_cannot_be_read(
    tmp_path: Path, name: str, data: bytes, kind: type[Exception], message: str
) -> None:
    """Recording one stops before the model runs."""
    path, model = tmp_path / name, Model()
    path.write_bytes(data)
    with pytest.raises(kind) as error:
        record(model, path, tmp_path / "run", progress=False)
    assert str(error.value).startswith(message.format(path=path))
    assert not model.runs
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "model, corpus, options, message",
    [
        (
            Model(),
            "先生",
            {},
            "no such file: '先生'; give 'demo', a .txt, .csv, .tsv, .jsonl (or with .gz), .parquet file,"
            " the owner/name of a data set on the hub, or a list of texts",
        ),
        (Model(), [], {}, "expected documents in corpus 'texts', got none; give at least one document with text"),
        (Model(), [3], {}, "document 0: expected a string or a dict with a text, got int; convert it"),
        (
            Model(),
            [{"text": "a", "id": 1}, {"text": "b", "id": "x"}],
            {},
            "document 1: expected values of one type that Parquet holds in metadata column 'id', got str 'x' (",
        ),
        (
            Model(),
            ["a"],
            {"batch_tokens": 0},
            "expected batch_tokens to be at least 1, got 0; give a number such as 4096",
        ),
        (
            Model(tokenizer=None),
            ["a"],
            {},
            "expected a model with a tokenizer, got 'known' without one; put its files into the folder of ",
        ),
    ],
)
def test_what_cannot_be_recorded(
    tmp_path: Path, model: Model, corpus: Any, options: dict[str, int], message: str
) -> None:
    with pytest.raises(MoeLensError) as error:
        record(model, corpus, tmp_path / "run", progress=False, **options)
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_the_progress_bar_can_be_turned_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(Model(), TEXTS, tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""
    record(Model(), TEXTS, tmp_path / "default")
    assert capsys.readouterr().err == "", "tests do not run in a terminal"
    record(Model(), TEXTS, tmp_path / "shown", progress=True)
    assert "recording" in capsys.readouterr().err
