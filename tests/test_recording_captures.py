"""Captures equal the values at the hook points, token by token, for every division into batches and with offload."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.known_model import TEXTS, Model, assert_recorded, expected

import moelens
from moelens import HookedMoE, Recording
from moelens.errors import CheckError, MoeLensError, UnknownNameError
from moelens.recording import Corpus, as_array, record, recorder
from moelens.recording.captures import Capture
from moelens.recording.windows import windows

DOCUMENTS = ["社長がいらっしゃいました。", "雨", "明日、資料をお送りいたします。どうぞよろしくお願いします。", "行く"]
ALL = ["routes", "margin", "logits", "expert_norms", "neurons", "expert_outputs", "shared", "residuals"]
HALF = {"rtol": 2e-3, "atol": 1e-3}
TOLERANCE = 1e-4  # of the margin, below which float32 rounding may choose another expert


@pytest.fixture(scope="module")
def demo() -> HookedMoE:
    return moelens.load("demo")


@pytest.fixture(scope="module")
def everything(demo: HookedMoE, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    out = tmp_path_factory.mktemp("runs") / "run"
    return record(demo, DOCUMENTS, out, capture=ALL, layers=[1, 3], batch_tokens=30, progress=False)


def caches(model: HookedMoE) -> list[dict[str, np.ndarray]]:
    """Return the values at every hook point for each document, run alone, `[token, …]`."""
    found = []
    with torch.no_grad():
        for text in DOCUMENTS:
            _, cache = model.run_with_cache(text)
            found.append({n: t[0].float().numpy() for n, t in cache.items()})
    return found


def flat(runs: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([run[name] for run in runs])


def test_every_capture_equals_the_hooks(demo: HookedMoE, everything: Recording) -> None:
    runs = caches(demo)
    assert everything.layers == (1, 3)
    for i, layer in enumerate(everything.layers):
        mlp = f"blocks.{layer}.mlp"
        indices = flat(runs, f"{mlp}.hook_expert_indices").astype(int)
        np.testing.assert_array_equal(everything.indices()[:, i], indices)
        np.testing.assert_allclose(everything.weights()[:, i], flat(runs, f"{mlp}.hook_topk_weights"), **HALF)
        selection = np.sort(flat(runs, f"{mlp}.hook_router_selection"), -1)
        k = indices.shape[1]
        np.testing.assert_allclose(
            everything.column(f"margin_L{layer:02d}"), selection[:, -k] - selection[:, -k - 1], **HALF
        )
        outputs = flat(runs, f"{mlp}.experts.hook_out")
        norms = np.linalg.norm(outputs, axis=-1)
        np.testing.assert_allclose(everything.column(f"expert_norms_L{layer:02d}"), norms, **HALF)
        for capture, point in (("neurons", "experts.hook_post"), ("expert_outputs", "experts.hook_out")):
            table, want = everything.vectors(capture, layer), flat(runs, f"{mlp}.{point}")
            np.testing.assert_allclose(as_array(table["values"]), want.reshape(-1, want.shape[-1]), **HALF)
            np.testing.assert_array_equal(table["expert"].to_numpy(), indices.reshape(-1))
            np.testing.assert_array_equal(table["slot"].to_numpy(), np.tile(np.arange(k), len(indices)))
            np.testing.assert_array_equal(table["pos"].to_numpy(), np.repeat(everything.column("pos"), k))
        for capture, point in (
            ("logits", f"{mlp}.hook_router_logits"),
            ("shared", f"{mlp}.shared.hook_out"),
            ("residuals", f"blocks.{layer}.hook_resid_post"),
        ):
            table = everything.vectors(capture, layer)
            parts = list(everything.vector_parts(capture, layer, rows=50))
            assert pa.concat_tables(parts).to_pydict() == table.to_pydict()
            assert max(part.num_rows for part in parts) <= 50
            np.testing.assert_array_equal(table["doc"].to_numpy(), everything.column("doc"))
            np.testing.assert_allclose(as_array(table["values"]), flat(runs, point), **HALF)
    everything.verify()


def test_the_largest_only_and_some_experts(demo: HookedMoE, everything: Recording, tmp_path: Path) -> None:
    some = record(
        demo,
        DOCUMENTS,
        tmp_path / "run",
        capture=["logits:5", "neurons:3", "residuals:pre"],
        layers=[3],
        experts=[0, 5, 9, 17],
        progress=False,
    )
    with pytest.raises(
        moelens.MoeLensError,
        match=r"expected a recording with routes, got .* with logits:5, neurons:3, residuals:pre; record with capture",
    ):
        some.indices()
    with pytest.raises(UnknownNameError, match="unknown vectors 'neuron'; did you mean 'neurons'"):
        some.vectors("neuron", 3)
    with pytest.raises(UnknownNameError, match="unknown expert '32'"):
        some.vectors("neurons", 3, experts=[32])
    with pytest.raises(
        MoeLensError,
        match=r"expected vectors of experts \(neurons or expert_outputs\) with experts=\[1\], got logits; leave",
    ):
        some.vectors("logits", 3, experts=[1])
    logits = as_array(everything.vectors("logits", 3)["values"]).astype(np.float32)
    table = some.vectors("logits", 3)
    np.testing.assert_allclose(np.sort(as_array(table["values"]), -1), np.sort(logits, -1)[:, -5:], **HALF)
    np.testing.assert_allclose(
        np.take_along_axis(logits, as_array(table["experts"]).astype(int), 1), as_array(table["values"]), **HALF
    )
    whole, part = everything.vectors("neurons", 3, experts=[0, 5, 9, 17]), some.vectors("neurons", 3)
    assert 0 < len(part) == len(whole)
    for name in ("doc", "pos", "slot", "expert"):
        assert part[name].to_pylist() == whole[name].to_pylist()
    neurons = as_array(whole["values"]).astype(np.float32)
    np.testing.assert_allclose(np.sort(abs(as_array(part["values"])), -1), np.sort(abs(neurons), -1)[:, -3:], **HALF)
    np.testing.assert_allclose(
        np.take_along_axis(neurons, as_array(part["neurons"]).astype(int), 1), as_array(part["values"]), **HALF
    )


def test_routes_do_not_depend_on_batches(demo: HookedMoE, tmp_path: Path) -> None:
    alone, together = (
        record(demo, "demo", tmp_path / str(n), capture=["routes", "margin"], batch_tokens=n, progress=False)
        for n in (1, 2000)
    )
    same = (np.sort(alone.indices(), -1) == np.sort(together.indices(), -1)).all(-1)
    margins = np.stack([alone.column(f"margin_L{layer:02d}") for layer in alone.layers], 1)
    assert same[margins > TOLERANCE].all()
    assert (~same).mean() < 1e-3, f"{(~same).sum()} of {same.size} choices differ"


def test_layers_on_the_disk_give_the_same(demo: HookedMoE, tmp_path: Path) -> None:
    where: dict[str, Any] = {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(5)}
    where |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    offloaded = moelens.load("demo", device_map=where, offload_folder=str(tmp_path / "offload"))
    capture = ["routes", "neurons:4", "shared"]
    a, b = (
        record(m, DOCUMENTS, tmp_path / name, capture=capture, progress=False)
        for m, name in ((demo, "whole"), (offloaded, "offloaded"))
    )
    np.testing.assert_array_equal(a.indices(), b.indices())
    np.testing.assert_array_equal(a.weights(), b.weights())
    for name in ("neurons", "shared"):
        assert a.vectors(name, 3).equals(b.vectors(name, 3))
    offloaded.unhook()


def test_generated_tokens_are_recorded_with_their_phase(demo: HookedMoE, tmp_path: Path) -> None:
    n = 5
    recording = record(demo, DOCUMENTS, tmp_path / "run", capture=["routes", "neurons:2"], generate=n, progress=False)
    tokens = recording.tokens(["doc", "pos", "token_id", "phase"]).to_pandas()
    assert (np.diff(tokens["doc"]) >= 0).all()
    generated = recording.documents()["generated"].to_pylist()
    assert list(recording.texts()) == [text + more for text, more in zip(DOCUMENTS, generated, strict=True)]
    indices = recording.indices()
    for doc, text in enumerate(DOCUMENTS):
        rows = np.flatnonzero(tokens["doc"] == doc)
        assert tokens["pos"][rows].tolist() == list(range(len(rows)))
        read = int((tokens["phase"][rows] == "prefill").sum())
        ids = demo.to_tokens(text)
        assert read == ids.shape[1]
        want = demo.generate(ids, max_new_tokens=n, do_sample=False)[0].numpy()
        want = want[: len(rows)]
        np.testing.assert_array_equal(tokens["token_id"][rows], want)
        assert generated[doc] == demo.tokenizer.decode(want[read:], skip_special_tokens=True)
        _, cache = demo.run_with_cache(torch.from_numpy(want)[None])
        for i, layer in enumerate(recording.layers):
            assert (
                np.sort(cache[f"blocks.{layer}.mlp.hook_expert_indices"][0].numpy(), -1)
                == np.sort(indices[rows, i], -1)
            ).mean() > 0.99
    table = recording.vectors("neurons", 2)
    assert len(table) == recording.n_tokens * recording.top_k


# Numbers


def scaled(value: float) -> Model:
    def edit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone().fill_(value) if name.endswith("hook_topk_weights") else tensor

    return Model(edit=edit)


@pytest.mark.parametrize("dtype, stored", [("float16", "halffloat"), ("bfloat16", "float"), ("float32", "float")])
def test_element_types(tmp_path: Path, dtype: str, stored: str) -> None:
    value = 0.123456789
    recording = record(scaled(value), ["先生"], tmp_path / "run", store_dtype=dtype, progress=False)
    column = recording.tokens(["weights_L02"])["weights_L02"]
    assert str(column.type.value_type) == stored
    want = torch.tensor(value).to(getattr(torch, dtype)).float().item()
    assert set(recording.weights().ravel().tolist()) == {want}


def test_what_does_not_fit_is_an_error_and_fits_in_bfloat16(tmp_path: Path) -> None:
    with pytest.raises(
        CheckError,
        match=r"routing weights within the range of float16 \(65504\), got 131072\.0; record with store_dtype='bf",
    ):
        record(scaled(131072.0), ["先生"], tmp_path / "run", progress=False)
    kept = record(scaled(131072.0), ["先生"], tmp_path / "run", store_dtype="bfloat16", progress=False)
    assert kept.weights().max() == 131072.0
    with pytest.raises(CheckError, match="expected finite routing weights, got inf; load the model with dtype"):
        record(scaled(float("inf")), ["先生"], tmp_path / "inf", store_dtype="float32", progress=False)


# Windows


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_windows_record_each_token_once(tmp_path: Path, overlap: int) -> None:
    context = 5
    recording = record(Model(), TEXTS, tmp_path / "run", context=context, overlap=overlap, progress=False)
    want = expected(Model(), TEXTS)
    for name in ("doc", "pos", "token_id"):
        np.testing.assert_array_equal(recording.column(name), want[name])
    step = context - overlap
    position = [p if p < context else overlap + (p - context) % step for p in want["pos"]]
    model = Model()
    for i, layer in enumerate(model.shape.moe_layers):
        chosen = [
            model.routes(layer, np.array([t]), np.array([p]))[0][0]
            for t, p in zip(want["token_id"], position, strict=True)
        ]
        np.testing.assert_array_equal(recording.indices()[:, i], chosen)
    assert recording.manifest["capture"]["overlap"] == overlap


def test_an_overlap_must_leave_something_to_record() -> None:
    with pytest.raises(
        MoeLensError, match="expected overlap to be from 0 to 4 in windows of 5 tokens, got 5; give another number"
    ):
        windows([9], 5, 5)
    with pytest.raises(MoeLensError, match="expected overlap to be at least 0, got -1"):
        windows([9], None, -1)


# Corpora

ROWS = [{"text": t, "id": i} for i, t in enumerate(TEXTS)]


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz", "dataset", "iterable"])
def test_every_form_of_corpus_gives_the_same(tmp_path: Path, form: str) -> None:
    source: Any = tmp_path / f"c.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), source)
    elif form == "jsonl.gz":
        source.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    else:
        datasets = pytest.importorskip("datasets")
        source = datasets.Dataset.from_list(ROWS)
        source = source.to_iterable_dataset() if form == "iterable" else source
    recording = record(Model(), Corpus.of(source, license="CC0"), tmp_path / "run", progress=False)
    assert_recorded(recording, Model(), TEXTS)
    assert recording.documents()["id"].to_pylist() == [0, 1, 2, 3, 4]
    assert "The licence of the texts is CC0." in (recording.path / "README.md").read_text("utf-8")


def test_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        if args[0] == "no/such":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist on the Hub")
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [d.text for d in Corpus.of("owner/texts:ja:test")] == TEXTS
    assert asked == [(("owner/texts", "ja"), {"split": "test", "streaming": True})]
    with pytest.raises(UnknownNameError, match=r"no such data set: 'no/such' .*; give owner/name"):
        Corpus.of("no/such")


def test_a_torn_parquet_file_names_its_row(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MoeLensError, match=r"c\.parquet cannot be read after row 0 .*; download it again"):
        list(Corpus.of(path))


# Invalid arguments


@pytest.mark.parametrize(
    "options, message",
    [
        ({"capture": "route"}, "unknown capture 'route'; did you mean 'routes'?"),
        ({"capture": "routes:3"}, "expected a capture such as routes, logits:N or neurons:N with N at least 1, got"),
        ({"capture": ["routes", "routes"]}, "expected at least one capture, each once, got ['routes', 'routes']; name"),
        ({"capture": "residuals:up"}, "unknown place of residuals 'up'; allowed: pre, mid, post"),
        ({"layers": [0]}, "expected layers with experts, got dense layer 0; choose from [1, 2, 12]"),
        ({"layers": [99]}, "unknown layer '99'"),
        ({"capture": "neurons", "experts": [40]}, "unknown expert '40'"),
        ({"experts": [1]}, "expected a capture that experts=[1] applies to, got routes; capture neurons or"),
        ({"store_dtype": "int8"}, "unknown store_dtype 'int8'"),
        ({"generate": -1}, "expected generate to be at least 0, got -1; give another number"),
        ({"generate": 2.5}, "expected generate to be a whole number of tokens, got 2.5; give one"),
        ({"generate": 4, "context": 4}, "expected generate to be from 0 to 3 in a context of 4 tokens, got 4"),
    ],
)
def test_invalid_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MoeLensError) as error:
        record(Model(), TEXTS, tmp_path / "run", **options)
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_point_that_a_model_lacks_is_named(demo: HookedMoE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(demo.hook_dict, "blocks.2.mlp.shared.hook_out")
    with pytest.raises(
        MoeLensError,
        match=r"capture shared needs hook point 'blocks\.2\.mlp\.shared\.hook_out', which this model does not offer",
    ):
        record(demo, DOCUMENTS, tmp_path / "run", capture="shared")


def test_no_routes_of_dense_layers(demo: HookedMoE, tmp_path: Path) -> None:
    message = r"expected layers with experts for capture neurons, got \[0\]; choose from \[1"
    with pytest.raises(MoeLensError, match=message):
        record(demo, DOCUMENTS, tmp_path / "run", capture=["residuals", "neurons"], layers=[0])


@pytest.mark.parametrize("capture", ["neurons", "logits"])
def test_activations_that_are_not_finite_are_refused(demo: HookedMoE, tmp_path: Path, capture: str) -> None:
    point = {"neurons": "experts.hook_post", "logits": "hook_router_logits"}[capture]
    demo.add_hook(f"blocks.3.mlp.{point}", lambda tensor, hook: tensor.clone().fill_(float("nan")))
    try:
        with pytest.raises(CheckError, match=r"layer 3, document 2: .* nan; load the model with dtype=torch.float32"):
            record(demo, DOCUMENTS, tmp_path / "run", capture=capture, layers=[3], progress=False)
    finally:
        demo.reset_hooks()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["routes", "logits:8", "neurons", "residuals", "residuals:mid"])
def test_captures_are_written_as_they_are_read(text: str) -> None:
    assert str(Capture.parse(text)) == text


def test_small_chunks_and_pieces_change_nothing(
    demo: HookedMoE, everything: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "CHUNK_BYTES", 1)
    monkeypatch.setattr(recorder, "SHARD_BYTES", 1)
    cut = record(demo, DOCUMENTS, tmp_path / "run", capture=ALL, layers=[1, 3], batch_tokens=1, progress=False)
    assert len(cut.manifest["shards"]) == 4
    np.testing.assert_array_equal(cut.indices(), everything.indices())
    for name in ("neurons", "residuals"):
        a, b = cut.vectors(name, 3), everything.vectors(name, 3)
        assert a.drop(["values"]).equals(b.drop(["values"]))
        np.testing.assert_allclose(as_array(a["values"]), as_array(b["values"]), **HALF)
