"""Exports opened without moelens, imports compared with their sources, and plans."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from helpers.damage import write_manifest
from helpers.known_model import TEXTS, Model
from hypothesis import given, settings
from hypothesis import strategies as st

import moelens
from moelens.commands.command_line import main
from moelens.errors import MoeLensError, RecordingError, UnknownNameError
from moelens.recording import Recording, as_array, export, import_routes, plan, record, recorder
from moelens.recording.exports import parse_split, split_of

ROUTING = Path(__file__).parents[2] / "shared" / "data" / "routing" / "esft_intent.npz"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(Model(), TEXTS, tmp_path_factory.mktemp("runs") / "run", progress=False)


SPLIT = "train:0.6,test:0.4"


def rows_of(recording: Recording, split: str) -> np.ndarray:
    of = split_of(recording.documents()["text"].to_pylist(), parse_split(SPLIT))
    return np.flatnonzero(of[recording.column("doc")] == list(parse_split(SPLIT)).index(split))


# Exports


def test_datasets(recording: Recording, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_from_disk(str(export(recording, "datasets", tmp_path / "out", split=SPLIT)))
    assert set(loaded) == {"train", "test"}
    features = loaded["train"].features
    assert features["doc"].dtype == "int32"
    assert (features["experts_L02"].length, features["experts_L02"].feature.dtype) == (2, "uint8")
    assert features["weights_L02"].feature.dtype == "float16"
    for name in loaded:
        rows = rows_of(recording, name)
        np.testing.assert_array_equal(loaded[name]["token_id"][:], recording.column("token_id")[rows])
        np.testing.assert_array_equal(loaded[name]["experts_L12"][:], recording.column("experts_L12")[rows])


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_arrays(recording: Recording, tmp_path: Path, form: str) -> None:
    out = export(recording, form, tmp_path / "out", layers=[1, 12], split=SPLIT)
    for name in ("train", "test"):
        path = out / f"{name}.{form}"
        if form == "npz":
            arrays: Any = np.load(path, allow_pickle=False)
        else:
            arrays = pytest.importorskip("safetensors.numpy").load_file(path)
        rows = rows_of(recording, name)
        np.testing.assert_array_equal(arrays["experts"], recording.indices()[rows][:, [0, 2]])
        np.testing.assert_array_equal(arrays["weights"], recording.weights()[rows][:, [0, 2]])
        np.testing.assert_array_equal(arrays["doc"], recording.column("doc")[rows])
        assert arrays["layers"].tolist() == [1, 12]


def test_csv(recording: Recording, tmp_path: Path) -> None:
    out = export(recording, "csv", tmp_path / "out")
    with (out / "tokens.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    texts = list(recording.texts())
    assert [r["token"] for r in rows] == [texts[int(r["doc"])][int(r["char_start"]) : int(r["char_end"])] for r in rows]
    assert "".join(r["token"] for r in rows if r["doc"] == "0" and r["partial"] == "False") in texts[0]
    assert [int(r["experts_L02_1"]) for r in rows] == recording.column("experts_L02")[:, 1].tolist()
    assert [np.float16(r["weights_L12_0"]) for r in rows] == recording.column("weights_L12")[:, 0].tolist()
    duckdb = pytest.importorskip("duckdb")
    assert duckdb.sql(f"select count(*) from '{out}/tokens.csv'").fetchall() == [(recording.n_tokens,)]


def read_routes(out: Path, form: str, layers: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the experts and weights `[token, layer, slot]` of an export with a single split, without moelens."""
    if form in ("npz", "safetensors"):
        path = out / f"tokens.{form}"
        arrays = np.load(path) if form == "npz" else pytest.importorskip("safetensors.numpy").load_file(path)
        return arrays["experts"], arrays["weights"]
    if form == "datasets":
        rows = pytest.importorskip("datasets").load_from_disk(str(out))["train"]
        found = [
            np.stack([np.array(rows[f"{kind}_L{i:02d}"][:]) for i in layers], 1) for kind in ("experts", "weights")
        ]
    else:
        with (out / "tokens.csv").open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
        found = [
            np.array([[[float(row[f"{kind}_L{i:02d}_{slot}"]) for slot in range(k)] for i in layers] for row in table])
            for kind in ("experts", "weights")
        ]
    return found[0], found[1]


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any),
    st.lists(st.integers(0, 120), min_size=1, max_size=3, unique=True).map(sorted),
    st.integers(1, 4),
    st.sampled_from([5, 256, 300]),
    st.sampled_from(["datasets", "safetensors", "npz", "csv"]),
)
@settings(max_examples=30, deadline=None)
def test_routes_come_back_from_every_format(
    seed: int, lengths: list[int], layers: list[int], k: int, experts: int, form: str
) -> None:
    rng = np.random.default_rng(seed)
    size = (sum(lengths), len(layers))
    routes = np.argsort(rng.random((*size, experts)))[:, :, :k]
    weights = rng.dirichlet(np.ones(k), size).astype(np.float16)
    with TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "r.npz", expert_ids=routes, gate_weights=weights, sequence_lengths=np.array(lengths))
        made = import_routes(folder / "r.npz", folder / "run", layers=layers, n_experts=experts)
        found = read_routes(export(made, form, folder / "out"), form, layers, k)
        np.testing.assert_array_equal(found[0], routes)
        np.testing.assert_array_equal(np.asarray(found[1], np.float16), weights)
        if form == "npz":  # and is what an import reads
            again = import_routes(folder / "out" / "tokens.npz", folder / "again", layers=layers, n_experts=experts)
            np.testing.assert_array_equal(again.indices(), routes)
            np.testing.assert_array_equal(again.weights(), weights)


VECTORS = ["logits:5", "neurons", "expert_outputs", "shared", "residuals"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    out = tmp_path_factory.mktemp("runs") / "vectors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "SHARD_CHARACTERS", 12)  # several shards
        return record(
            moelens.load("demo"),
            ["社長がいらっしゃいました。", "雨", "明日、資料をお送りいたします。"],
            out,
            capture=["routes", *VECTORS],
            layers=[1, 4],
            generate=2,
            progress=False,
        )


def opened(out: Path, form: str) -> list[dict[str, Any]]:
    """Return the rows of an export with a single split, as a dict of columns per file, without moelens."""
    if form == "datasets":
        rows = pytest.importorskip("datasets").load_from_disk(str(out))["train"]
        return [{name: np.array(rows[name][:]) for name in rows.column_names}]
    files = sorted(out.glob(f"*-*.{form}"))
    if form == "npz":
        return [dict(np.load(file, allow_pickle=False)) for file in files]
    if form == "safetensors":
        return [pytest.importorskip("safetensors.numpy").load_file(file) for file in files]
    (file,) = out.glob("*.csv")
    rows = pytest.importorskip("duckdb").sql(f"select * from '{file}'").fetchnumpy()
    names = sorted((n for n in rows if n.startswith("values_")), key=lambda n: int(n.split("_")[1]))
    return [{n: v for n, v in rows.items() if n not in names} | {"values": np.stack([rows[n] for n in names], 1)}]


@pytest.mark.parametrize("form", ["datasets", "safetensors", "npz", "csv"])
@pytest.mark.parametrize("table", [v.split(":")[0] for v in VECTORS])
def test_vectors(vectors: Recording, tmp_path: Path, table: str, form: str) -> None:
    assert len(vectors.manifest["tables"][table]) > 1
    parts = opened(export(vectors.path, form, tmp_path / "out", table=table, layers=[4]), form)
    want = vectors.vectors(table, 4)
    for name in ("doc", "pos", "layer", *(("slot", "expert") if table in ("neurons", "expert_outputs") else ())):
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), want[name].to_numpy())
    values = np.concatenate([p["values"] for p in parts])
    np.testing.assert_array_equal(values.astype(np.float16), as_array(want["values"]))
    decode = np.array(want["phase"].to_pylist()) == "decode"
    assert decode.any()
    found = [p["decode"] if form == "safetensors" else p["phase"] == "decode" for p in parts]
    np.testing.assert_array_equal(np.concatenate(found), decode)


def test_vectors_with_labels_a_card_and_splits(
    vectors: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names, has = moelens.label(vectors).matrix("honorifics")
    monkeypatch.chdir(tmp_path)
    command = ["export", str(vectors.path), "--to", "npz", "--table", "neurons", "--family", "honorifics"]
    assert main([*command, "--split", "a:0.5,b:0.5"]) == 0
    assert capsys.readouterr().out == "vectors-neurons-npz\n"
    card = (tmp_path / "vectors-neurons-npz" / "README.md").read_text("utf-8")
    assert "This npz export holds neurons: activations inside each chosen expert" in card
    assert "`recording.json` holds all settings" in card
    assert ".parquet" not in card
    of = split_of(vectors.documents()["text"].to_pylist(), parse_split("a:0.5,b:0.5"))
    tokens = {(d, p): row for row, (d, p) in enumerate(zip(vectors.column("doc"), vectors.column("pos"), strict=True))}
    seen = 0
    for file in sorted((tmp_path / "vectors-neurons-npz").glob("*.npz")):
        arrays = np.load(file, allow_pickle=False)
        assert set(of[arrays["doc"]]) <= {"ab".index(file.name[0])}
        rows = [tokens[key] for key in zip(arrays["doc"], arrays["pos"], strict=True)]
        for i, name in enumerate(names):
            np.testing.assert_array_equal(arrays[f"honorifics.{name}"], has[rows, i])
        seen += len(rows)
    assert seen == sum(len(vectors.vectors("neurons", layer)) for layer in (1, 4))
    assert has.any()


def test_exports_carry_their_card(recording: Recording, tmp_path: Path) -> None:
    out = export(recording, "npz", tmp_path / "out")
    text = (out / "README.md").read_text("utf-8")
    for part in ("| model | known |", "| dtype | bfloat16 |", "transformers", "(corpus: texts)", "Captured: routes"):
        assert part in text
    assert json.loads((out / "recording.json").read_text("utf-8")) == recording.manifest


def test_labels_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    made = record(Model(), TEXTS, out, progress=False)
    labels = moelens.label(made)
    assert main(["export", str(out), "--to", "npz", "--out", str(tmp_path / "x"), "--family", "honorifics"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x'}\n"
    names, has = labels.matrix("honorifics")
    arrays = np.load(tmp_path / "x" / "tokens.npz", allow_pickle=False)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(arrays[f"honorifics.{name}"], has[:, i])


def test_splits_are_by_document_and_stable() -> None:
    texts = [f"文{i}" for i in range(4000)]
    of = split_of(texts * 2, {"train": 0.8, "validation": 0.1, "test": 0.1})
    np.testing.assert_array_equal(of[:4000], of[4000:])
    np.testing.assert_allclose(np.bincount(of) / len(of), [0.8, 0.1, 0.1], atol=0.02)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"to": "cvs"}, UnknownNameError, "unknown format 'cvs'; did you mean 'csv'?"),
        ({"to": "csv", "table": "neurons"}, UnknownNameError, "unknown table 'neurons'; allowed: tokens"),
        ({"to": "csv", "layers": [4]}, UnknownNameError, "unknown layer '4'; allowed: 1, 2, 12"),
        (
            {"to": "csv", "split": "train"},
            MoeLensError,
            "expected a split such as train:0.8,test:0.2, got 'train'; write names and shares",
        ),
        (
            {"to": "csv", "split": "a:1,b:1"},
            MoeLensError,
            "expected positive shares that sum to 1, got split 'a:1,b:1' with a sum of 2; correct",
        ),
        (
            {"to": "csv", "split": "a:nan,b:0.5"},
            MoeLensError,
            "expected positive shares that sum to 1, got split 'a:nan,b:0.5' with a sum of nan; correct",
        ),
        (
            {"to": "csv", "split": "../a:1"},
            MoeLensError,
            "expected names of splits of letters, digits and _, got '../a'; rename it",
        ),
    ],
)
def test_what_cannot_be_exported(
    recording: Recording, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        export(recording, out=tmp_path / "out", **options)
    assert str(raised.value).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.tried("Exports", "a split without documents", "an empty split, in every format")
@pytest.mark.parametrize("form", ["datasets", "npz", "safetensors", "csv"])
@pytest.mark.parametrize("split", ["train:0.999999999,test:0.000000001", "test:0.000000001,train:0.999999999"])
def test_an_empty_split(recording: Recording, tmp_path: Path, form: str, split: str) -> None:
    out = export(recording, form, tmp_path / "out", split=split)
    if form == "datasets":
        loaded = pytest.importorskip("datasets").load_from_disk(str(out))
        assert {name: len(part) for name, part in loaded.items()} == {"train": recording.n_tokens, "test": 0}
        assert loaded["test"].features == loaded["train"].features
    elif form == "csv":
        train, test = ((out / f"{name}.csv").read_text("utf-8").splitlines() for name in ("train", "test"))
        assert test == train[:1]
    else:
        load = np.load if form == "npz" else pytest.importorskip("safetensors.numpy").load_file
        train, test = (load(out / f"{name}.{form}") for name in ("train", "test"))
        for name in ("experts", "doc"):
            assert test[name].shape == (0, *train[name].shape[1:])
            assert test[name].dtype == train[name].dtype


@pytest.mark.tried("Exports", "CSV with names that are not ASCII, for Excel", "begins with a byte order mark")
def test_csv_that_excel_reads(tmp_path: Path) -> None:
    made = record(moelens.load("demo"), ["先生がいらっしゃった。"], tmp_path / "run", progress=False)
    moelens.label(made)
    labelled = export(made, "csv", tmp_path / "labelled", family="honorifics") / "tokens.csv"
    assert labelled.read_bytes().startswith(b"\xef\xbb\xbfdoc,")
    with labelled.open(encoding="utf-8-sig", newline="") as file:
        assert "honorifics.尊敬語" in next(csv.reader(file))
    duckdb = pytest.importorskip("duckdb")
    assert duckdb.sql(f"select count(doc), count(\"honorifics.尊敬語\") from '{labelled}'").fetchall() == [
        (made.n_tokens, made.n_tokens)
    ]
    plain = record(moelens.load("demo"), ["OK"], tmp_path / "ascii", progress=False)
    assert (export(plain, "csv", tmp_path / "plain") / "tokens.csv").read_bytes().startswith(b"doc,")


def test_vectors_of_layers_without_rows(tmp_path: Path) -> None:
    made = record(moelens.load("demo"), ["はい"], tmp_path / "run", capture=["routes", "neurons"], progress=False)
    made.manifest["tables"]["neurons"] = [e for e in made.manifest["tables"]["neurons"] if e["layer"] != 3]
    for form in ("datasets", "npz", "safetensors", "csv"):
        with pytest.raises(RecordingError, match=r"expected rows of neurons in layers \[3\], got none; choose other"):
            export(made, form, tmp_path / "out", table="neurons", layers=[3])
    assert not (tmp_path / "out").exists()


@pytest.mark.tried("Exports", "`force=True` into a folder with a README.md that is no export", "refused")
def test_an_export_replaces_no_recording(tmp_path: Path) -> None:
    made = record(Model(), TEXTS, tmp_path / "run", progress=False)
    with pytest.raises(RecordingError, match="which exists; choose another folder"):
        export(made, "csv", made.path, force=True)
    assert moelens.verify(made)


def test_an_export_replaces_only_an_export(recording: Recording, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("言葉")
    with pytest.raises(
        RecordingError,
        match=r"expected a new or empty folder, got .*, which exists; choose another folder, or replace an export",
    ):
        export(recording, "csv", tmp_path, force=True)
    out = export(recording, "csv", tmp_path / "out")
    with pytest.raises(RecordingError, match="which exists; choose another folder"):
        export(recording, "npz", out)
    assert sorted(p.name for p in export(recording, "npz", out, force=True).iterdir()) == [
        "README.md",
        "recording.json",
        "tokens.npz",
    ]


# Imports

ROUTES = np.argsort(np.random.default_rng(0).random((7, 3, 16)))[:, :, :2]


def test_real_routing_from_arrays(tmp_path: Path) -> None:
    if not ROUTING.exists():
        pytest.skip(f"no {ROUTING.name} beside the project")
    made = import_routes(ROUTING, tmp_path / "run", layers=list(range(1, 27)), n_experts=64, model="esft")
    source = np.load(ROUTING)
    np.testing.assert_array_equal(made.indices(), source["expert_ids"])
    np.testing.assert_array_equal(made.weights(), source["gate_weights"].astype(np.float16))
    assert np.bincount(made.column("doc")).tolist() == source["sequence_lengths"].tolist()
    assert (made.layers[0], made.layers[-1], made.n_experts) == (1, 26, 64)
    size = sum((made.path / e["path"]).stat().st_size for e in made.manifest["shards"])
    assert size / (source["expert_ids"].size * 3) <= 0.70


@pytest.mark.tried(
    "Imports", "expert ids of −1, 300 of 256, 10⁹ or 2⁶³ − 1, of any integer type", "refused before they are narrowed"
)
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("n_experts", [None, 256])
@pytest.mark.parametrize("wrong", [-1, -128, 300, 65_536, 70_000, 10**9, 2**63 - 1, 2**64 - 1])
def test_ids_that_no_expert_has(tmp_path: Path, dtype: type, n_experts: int | None, wrong: int) -> None:
    if not np.iinfo(dtype).min <= wrong <= np.iinfo(dtype).max or (n_experts is None and 0 <= wrong < 65_536):
        return
    ids = np.arange(24).reshape(4, 3, 2).astype(dtype)
    ids[2, 1, 0] = wrong
    np.savez(tmp_path / "r.npz", expert_ids=ids, sequence_lengths=np.array([2, 2]))
    with pytest.raises(MoeLensError, match=rf"layer 5: expected experts from 0 to \d+, got {wrong}\b"):
        import_routes(tmp_path / "r.npz", tmp_path / "run", n_experts=n_experts, layers=[4, 5, 6])
    assert not (tmp_path / "run").exists()


def test_missing_weights_are_not_zeros(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", expert_ids=ROUTES)
    made = import_routes(tmp_path / "r.npz", tmp_path / "run")
    np.testing.assert_array_equal(made.indices(), ROUTES)
    assert not [n for n in made.tokens().schema.names if n.startswith("weights")]
    with pytest.raises(
        RecordingError, match=r"expected routes with weights, got .* without them, because its engine returned none"
    ):
        made.weights()
    made.verify()


def sglang(ids: list[int]) -> dict[str, Any]:
    data = base64.b64encode(ROUTES[: len(ids) - 1].astype(np.int32).tobytes()).decode()
    return {"text": "はい", "input_ids": ids[:5], "output_ids": ids[5:], "meta_info": {"routed_experts": data}}


def vllm(ids: list[int]) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, ROUTES[: len(ids) - 1].astype(np.int16))
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {
        "prompt": "はい",
        "prompt_token_ids": ids[:5],
        "outputs": [{"token_ids": ids[5:], "routed_experts": encoded}],
    }


def vllm_server(ids: list[int]) -> dict[str, Any]:
    """Return a response as of the server of vLLM: the experts of the prompt once, and those of each choice."""
    rows = ROUTES[: len(ids) - 1].tolist()
    return {
        "prompt": "はい",
        "prompt_token_ids": ids[:5],
        "prompt_routed_experts": rows[:5],
        "choices": [{"token_ids": ids[5:], "routed_experts": rows[5:]}],
    }


@pytest.mark.parametrize("kind, response", [("sglang", sglang), ("vllm", vllm), ("vllm", vllm_server)])
def test_responses_of_engines(tmp_path: Path, kind: str, response: Any) -> None:
    lengths, path = (8, 6), tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps(response(list(range(10, 10 + n)))) for n in lengths), "utf-8")
    argv = ["import", str(path), "--out", str(tmp_path / "run"), "--from", kind, "--shape", "3", "2", "--experts", "16"]
    assert main(argv) == 0
    made = Recording.open(tmp_path / "run")
    np.testing.assert_array_equal(made.indices(), np.concatenate([ROUTES[: n - 1] for n in lengths]))
    assert made.column("token_id").tolist() == [i for n in lengths for i in range(10, 10 + n - 1)]
    assert made.tokens(["phase"])["phase"].to_pylist()[:7] == ["prefill"] * 5 + ["decode"] * 2
    assert "はい" in made.documents().to_pylist()[1].values()


def test_choices_of_sglang_in_openai_form(tmp_path: Path) -> None:
    choice = {"text": "はい", "sgl_ext": sglang([1] * 8)["meta_info"]}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"choices": [choice, choice]}), "utf-8")
    made = import_routes(path, tmp_path / "run", kind="sglang", shape=(3, 2))
    np.testing.assert_array_equal(made.indices(), np.concatenate([ROUTES[:7]] * 2))


def test_lists_of_experts_and_some_layers(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"outputs": [{"routed_experts": ROUTES.tolist()}]}), "utf-8")
    made = import_routes(path, tmp_path / "run", kind="vllm", layers=[1, 2])
    np.testing.assert_array_equal(made.indices(), ROUTES[:, 1:])
    assert made.layers == (1, 2)


def test_an_import_without_its_texts(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", expert_ids=ROUTES)
    made = import_routes(tmp_path / "r.npz", tmp_path / "run")
    write_manifest(made.path, made.manifest | {"documents": None})
    with pytest.raises(
        RecordingError, match=r"expected a recording with documents, got .* without them; import its routes again"
    ):
        Recording.open(tmp_path / "run").documents()


@pytest.mark.parametrize(
    "name, data, options, message",
    [
        (
            "r.npz",
            {"a": np.zeros(3)},
            {},
            "expected integers 'expert_ids' [token, layer, slot] in r.npz, got a; save them under this name",
        ),
        (
            "r.npz",
            {"expert_ids": ROUTES, "sequence_lengths": np.array([3])},
            {},
            "expected sequence_lengths that sum to the 7 tokens in r.npz, got a sum of 3; correct them",
        ),
        (
            "r.npz",
            {"expert_ids": ROUTES, "gate_weights": np.zeros((7, 3))},
            {},
            "expected numbers 'gate_weights' [7, 3, 2] in r.npz, got [7, 3] of float64; save them under this name",
        ),
        (
            "r.npz",
            {"expert_ids": np.array([[[{}]]], dtype=object)},
            {},
            "expected an .npz of plain arrays, got r.npz (",
        ),
        (
            "r.npz",
            {"expert_ids": ROUTES},
            {"n_experts": 4},
            "document 0 (r.npz), row 0, layer 0: expected experts from 0 to 3, got",
        ),
        (
            "r.npz",
            {"expert_ids": ROUTES},
            {"n_experts": 10**9},
            "expected an integer from 1 to 65536 as n_experts, got 1000000000; correct it",
        ),
        (
            "r.jsonl",
            {"text": "a"},
            {"kind": "sglang"},
            "expected routed_experts in document 0 (r.jsonl line 1), got none; name the engine with",
        ),
        (
            "r.jsonl",
            sglang([1] * 8),
            {"kind": "sglang"},
            "expected the shape of SGLang's bytes in r.jsonl line 1, got none; give it with shape=",
        ),
        (
            "r.jsonl",
            sglang([1] * 8),
            {"kind": "sglang", "shape": (4, 4)},
            "expected base64 of int32 [token, 4, 4] in routed_experts of r.jsonl line 1, got other data; correct",
        ),
        (
            "r.jsonl",
            {"outputs": [{}]},
            {"kind": "vllm"},
            "expected routed_experts in document 0 (r.jsonl line 1), got none; name the engine with",
        ),
        (
            "r.jsonl",
            {"outputs": [{"routed_experts": ROUTES.tolist()}, {"routed_experts": ROUTES[:, 1:].tolist()}]},
            {"kind": "vllm"},
            "expected routes of one shape [layer, slot] in r.jsonl, got [3, 2] and [2, 2] in document 1 (r.jsonl",
        ),
        (
            "r.jsonl",
            {"prompt_token_ids": [1], "outputs": [{"token_ids": [2], "routed_experts": ROUTES.tolist()}]},
            {"kind": "vllm"},
            "expected rows of experts for the 1 prompt and 1 generated tokens in r.jsonl line 1, less the last",
        ),
        (
            "r.jsonl",
            [1],
            {"kind": "vllm"},
            "expected a response, which is a JSON object, in r.jsonl line 1, got int; write one response per line",
        ),
        (
            "r.jsonl",
            {"outputs": [{"routed_experts": [[1, 2]]}]},
            {"kind": "vllm"},
            "expected integers [token, layer, slot] as routed_experts in r.jsonl line 1, got [1, 2] of int64; save the",
        ),
        (
            "r.npz",
            {"expert_ids": ROUTES},
            {"layers": [2, 1, 0]},
            "expected 3 layers in ascending order in r.npz, got 3 layers and 2 slots; give the layers of the",
        ),
        (
            "r.npz",
            {"expert_ids": ROUTES},
            {"layers": [5, 6]},
            "expected 2 layers in ascending order in r.npz, got 3 layers and 2 slots; give the layers of the",
        ),
        (
            "r.npz",
            {"expert_ids": ROUTES},
            {"model": "demo"},
            "expected 4 layers in ascending order and 4 slots in r.npz, got 3 layers and 2 slots; give the layers",
        ),
        (
            "r.jsonl",
            {"outputs": [{"routed_experts": "%"}]},
            {"kind": "vllm"},
            "expected base64 of an .npy array as routed_experts in r.jsonl line 1, got other data (",
        ),
        ("r.jsonl", {}, {}, "unknown kind of routes ''; allowed: npz, sglang, vllm (choose with kind= (--from))"),
    ],
)
def test_what_cannot_be_imported(tmp_path: Path, name: str, data: Any, options: dict[str, Any], message: str) -> None:
    if name.endswith("npz"):
        np.savez(tmp_path / name, **data)
    else:
        (tmp_path / name).write_text(json.dumps(data), "utf-8")
    with pytest.raises(MoeLensError) as error:
        import_routes(tmp_path / name, tmp_path / "run", **options)
    assert str(error.value).startswith(message)
    assert not (tmp_path / "run").exists()


# Plans


def test_deepseek_v3_on_eight_gpus() -> None:
    fp8, bf16 = (
        plan("deepseek_v3", gpus=8, gpu_memory="141GiB", dtype=dtype, tokens=1e8, capture=capture)
        for dtype, capture in (("fp8", "residuals"), ("bf16", "routes"))
    )
    assert fp8.fits
    assert 670e9 < fp8.parameters < 672e9
    assert "fits on 8 x 141.0 GiB" in repr(fp8)
    start = "torchrun --nproc_per_node 8 -m moelens record deepseek_v3 CORPUS --out DIR"
    assert f"{start} --capture residuals --expert-parallel" in repr(fp8)
    assert fp8.token_bytes == {"residuals": 61 * 7168 * 2}  # of dense layers too, as `record` captures them
    assert not bf16.fits
    assert bf16.gpus_needed == 12
    assert "the weights exceed the usable 1,015.2 GiB by 387.5 GiB; 12 GPUs are needed" in repr(bf16)
    assert bf16.token_bytes == {"routes": 1392}
    assert bf16.disk == 139_200_000_000
    assert sum(fp8.devices) == fp8.weights
    assert max(fp8.devices) <= 0.9 * 141 * 2**30


def test_the_plan_of_a_small_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--gpus", "2", "--tokens", "10K", "--capture", "routes", "neurons:8"]) == 0
    out = capsys.readouterr().out
    assert "  neurons:8 512 bytes per token" in out
    assert (
        "accelerate launch --num_processes 2 -m moelens record demo CORPUS --out DIR --capture routes neurons:8" in out
    )


def test_what_cannot_be_planned() -> None:
    for amount in ("much", "1.2.3M", "."):
        with pytest.raises(
            MoeLensError, match=f"expected an amount such as 100M, 80GB or 141GiB, got '{amount}'; write a number and"
        ):
            plan("demo", gpu_memory=amount)
    with pytest.raises(UnknownNameError, match="unknown dtype 'fp9'; did you mean 'fp8'"):
        plan("demo", dtype="fp9")
