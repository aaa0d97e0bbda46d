"""The explorer and the live trace, as Python sees them: what is sent, what is linked, what a removal shows."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.damage import write_manifest
from helpers.results import payload, result_of

import moelens
from moelens.analysis import Specialization
from moelens.checksums import file_checksums
from moelens.recording import Recording
from moelens.texts import Texts
from moelens.tracing import align_tokens
from moelens.tracing.passages import Excerpt, Passages
from moelens.views.explorer import Explorer, verdict
from moelens.views.trace_view import TraceView

TEXTS = ["社長がいらっしゃいました。<b>太字</b>", "資料をお送りいたします。", "雨が降っていた。"] * 12


@pytest.fixture(scope="module")
def model() -> moelens.HookedMoE:
    return moelens.load("demo")


@pytest.fixture(scope="module")
def recording(model: moelens.HookedMoE, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    out = tmp_path_factory.mktemp("explore") / "run"
    return moelens.record(model, TEXTS, out, capture=["routes", "margin"], progress=False)


@pytest.fixture
def explorer(recording: Recording, model: moelens.HookedMoE) -> Explorer:
    return moelens.explore(recording, model, "丁寧語", given=None, permutations=50)


def test_the_views_follow_the_chosen_expert(explorer: Explorer, recording: Recording) -> None:
    layer, expert = 2, int(recording.indices()[5, 2, 0])
    explorer.map.selected = [layer, expert]
    name = recording.layers[layer]
    assert f"L{name} · E{expert}" in explorer.card.value
    assert explorer.effect.target == f"L{name} · E{expert}"
    assert (explorer.trace.layer, explorer.trace.highlight) == (name, expert)
    experts = np.frombuffer(explorer.trace.experts, "<u2").reshape(-1, recording.top_k)
    assert (experts == expert).any(), "its sentences are those in which it is chosen"
    lengths = [len(line) for line in explorer.trace.lines]
    first = np.split(experts, np.cumsum(lengths)[:-1])
    assert all((line == expert).any() for line in first)
    values = np.frombuffer(explorer.trace.values, "<f4").reshape(len(explorer.trace.measures), -1)
    assert explorer.trace.measures == ["margin", "load"]
    recorded = recording.column(f"margin_L0{name}").astype("<f4")
    assert np.isin(values[0], recorded).all()
    explorer.trace.layer = recording.layers[0]
    assert explorer.trace.highlight == -1, "an expert has no identity across layers"
    explorer.map.label = "尊敬語"
    assert explorer.effect.kind == "subject-honorification"


def test_removal_is_the_public_effect(explorer: Explorer, model: moelens.HookedMoE) -> None:
    from moelens.interventions import remove

    states: list[str] = []
    explorer.effect.observe(lambda change: states.append(change["new"]), "status")
    explorer.map.selected, explorer.effect.kind, explorer.effect.controls = [3, 7], "control-noun", False
    explorer.effect.clicks += 1
    expected = moelens.effect(model, "control-noun", remove(4, [7]), controls=None, texts=()).kinds[0]
    (row,) = explorer.effect.rows
    assert states == ["running", "idle"]
    assert (row["target"], row["items"]) == ("L4 · E7", expected.items)
    assert row["change"] == pytest.approx(expected.change)
    assert row["low"] <= row["change"] <= row["high"]
    assert row["p"] is None
    assert explorer.effect.message == verdict(row)
    json.dumps(explorer.effect.rows, allow_nan=False)
    assert "remove E7 in layer 4" in explorer.card.value
    explorer.map.selected = [3, 8]
    assert "remove E7" not in explorer.card.value, "an effect is on the card of its expert"


def test_a_recording_of_another_model_says_what_it_needs(recording: Recording) -> None:
    manifest = {**recording.manifest, "model": {"name": "elsewhere/large"}}
    found = moelens.explore(Recording(recording.folder, manifest), given=None, permutations=50)
    found.effect.clicks += 1
    assert found.effect.status == "failed"
    assert found.effect.message == (
        "expected the model that made the recording, 'elsewhere/large', got None; give it with model= or --model"
    )
    found.remove = None
    found.effect.clicks += 1
    assert found.effect.message == (
        "expected a model to remove an expert from, got none; open the explorer with moelens.explore(recording, model)"
    )
    with pytest.raises(moelens.MoeLensError, match="unknown label '尊敬'; did you mean '尊敬語'"):
        moelens.explore(recording, label="尊敬", given=None, permutations=50)


def test_whatever_goes_wrong_the_button_comes_back(explorer: Explorer) -> None:
    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    explorer.remove = broken
    with pytest.raises(KeyboardInterrupt):
        explorer.effect.clicks += 1
    assert explorer.effect.status == "failed"
    assert explorer.effect.rows == []


def test_a_result_of_other_layers(explorer: Explorer, recording: Recording) -> None:
    with pytest.raises(
        moelens.MoeLensError, match=r"the layers of the result, \(3, 4\), got one with \(1, 2, 3, 4\); give the"
    ):
        moelens.explore(recording, result=result_of(2, 32))


def test_an_expert_that_nobody_chose(explorer: Explorer, recording: Recording) -> None:
    routes = recording.indices().swapaxes(0, 1).reshape(4, -1)
    unused = np.argwhere([np.bincount(layer, minlength=32) == 0 for layer in routes])
    explorer.map.selected = unused[0].tolist()
    assert explorer.trace.lines == []
    assert explorer.trace.heading.startswith("no such sentence · 0 tokens")
    assert "chosen for no token of this recording" in explorer.card.value


def test_verdicts_are_careful() -> None:
    row = {"target": "L1 · E2", "change": 0.2, "low": -0.1, "high": 0.4, "p": 0.31}
    start = "Without L1 · E2, the preference rises by 0.200 nats; the 95 % interval includes 0."
    same, larger = "It cannot be distinguished from the changes", "The change is larger than"
    assert verdict(row) == f"{start} {same} under matched controls (p 0.310)."
    assert verdict(row | {"p": 0.01}) == f"{start} {larger} under matched controls (p 0.0100)."
    told = "p 0.0200, corrected for 2 removals; the smallest that 99 controls allow is 0.0200"
    assert verdict(row | {"p": 0.01, "draws": 99}, 2) == f"{start} {larger} under matched controls ({told})."


def test_a_pair_is_aligned_and_its_routes_compared(model: moelens.HookedMoE) -> None:
    first, second = (moelens.trace(model, t) for t in ("先生は明日いらっしゃいます。", "先生は明日来ます。"))
    view = first.explore(second)
    lines = [first.tokens, second.tokens]
    assert view.lines == [list(line) for line in lines]
    for line, tokens in enumerate(lines):
        assert [c[line] for c in view.columns if c[line] >= 0] == list(range(len(tokens))), "each token once, in order"
    for layer in first.layers:
        view.layer = layer
        at = first.layers.index(layer)
        differs = np.frombuffer(view.differs, "<u2")
        for (a, b), n in zip(view.columns, differs, strict=True):
            if min(a, b) < 0:
                assert n == 65535
            else:
                assert n == 4 - len(np.intersect1d(first.experts[a, at], second.experts[b, at]))
    assert differs[0] == 0, "the same beginning takes the same route"
    assert (differs[differs < 65535] > 0).any()


def test_how_undecided_the_router_was(model: moelens.HookedMoE) -> None:
    trace = moelens.trace(model, "先生は明日いらっしゃいます。")
    layer = trace.layers[1]
    point = f"blocks.{layer}.mlp.hook_router_"
    ids = model.to_tokens(trace.text)
    _, cache = model.run_with_cache(ids, names_filter=[point + "scores", point + "selection"])
    scores, selection = (cache[point + stage][0].double().numpy() for stage in ("scores", "selection"))
    p = scores / scores.sum(-1, keepdims=True)
    ordered = -np.sort(-selection, -1)
    np.testing.assert_allclose(trace.entropy[:, 1], -(p * np.log(p)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(trace.margin[:, 1], ordered[:, 3] - ordered[:, 4], rtol=1e-5)
    view = trace.select([layer]).explore()
    assert view.colours == ["expert", "weight", "margin", "entropy", "label"]
    sent = np.frombuffer(view.values, "<f4").reshape(2, -1)
    np.testing.assert_allclose(sent, [trace.margin[:, 1], trace.entropy[:, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    "first, second, columns",
    [
        ("abc", "abc", [(0, 0), (1, 1), (2, 2)]),
        ("axyc", "abc", [(0, 0), (1, -1), (2, 1), (3, 2)]),
        ("", "ab", [(-1, 0), (-1, 1)]),
    ],
)
def test_alignment(first: str, second: str, columns: list[tuple[int, int]]) -> None:
    assert list(align_tokens(first, second)) == columns


def test_traces_that_cannot_be_shown(model: moelens.HookedMoE) -> None:
    one = moelens.trace(model, "雨だ。")
    with pytest.raises(moelens.MoeLensError, match=r"expected 1 or more traces, got 0; make them with moelens\.trace"):
        TraceView([])
    with pytest.raises(moelens.MoeLensError, match="expected 2 traces for a pair, got 1"):
        TraceView([one], pair=True)
    with pytest.raises(moelens.MoeLensError, match=r"traces of the same layers, got \(1, 2, 3, 4\) and \(1, 2\)"):
        one.explore(one.select([1, 2]))
    with pytest.raises(moelens.MoeLensError, match="unknown layer '9'"):
        TraceView([one], layer=9)


def test_only_the_first_tokens_of_a_large_recording_are_held(recording: Recording) -> None:
    entry = recording.manifest["shards"][0]
    large = Recording(recording.folder, {**recording.manifest, "shards": [entry] * 3, "n_tokens": 3 * entry["rows"]})
    held = Excerpt(large, entry["rows"] + 1)
    assert held.n_tokens == len(held.indices()) == len(held.weights()) == len(held.column("pos")) == entry["rows"] + 1
    assert (held.indices()[: entry["rows"]] == recording.indices()[: entry["rows"]]).all()
    assert held.indices() is held.indices()
    n, of = f"{entry['rows'] + 1:,}", f"{3 * entry['rows']:,}"
    assert held.extent(Texts("en")) == f"the first {n} of {of} tokens"
    assert held.extent(Texts("ja")) == f"{of}トークンのうち最初の{n}トークン"
    assert not Excerpt(recording).extent(Texts("en"))


def test_what_shows_a_part_says_so(explorer: Explorer, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the first" not in words_of(explorer)
    entry = recording.manifest["shards"][0]
    large = Recording(recording.folder, {**recording.manifest, "shards": [entry] * 2, "n_tokens": 2 * entry["rows"]})
    monkeypatch.setattr("moelens.tracing.passages._EXCERPT_TOKENS", entry["rows"])
    extent = f"the first {entry['rows']:,} of {2 * entry['rows']:,} tokens"
    found = moelens.explore(large, result=explorer.result, labels=moelens.Labels.open(recording))
    assert words_of(found).count(extent) == 2


def words_of(explorer: Explorer) -> str:
    """The card and the headings above the views."""
    return " ".join([explorer.card.value, *(text for _, text, _ in explorer.sections)])


NOT_RECORDINGS = [
    ("result", r"expected a Recording or the path of one, got Specialization; use its own .explore\(\)"),
    ("model", "expected a Recording or the path of one, got HookedMoE; make one with moelens.record"),
]


@pytest.mark.parametrize("name, message", NOT_RECORDINGS)
def test_what_is_no_recording_is_refused(explorer: Explorer, model: moelens.HookedMoE, name: str, message: str) -> None:
    given = {"result": explorer.result, "model": model}[name]
    with pytest.raises(moelens.MoeLensError, match=message):
        moelens.explore(given)
    if name == "model":  # a report can be on a result
        with pytest.raises(moelens.MoeLensError, match="expected"):
            moelens.report(given, "report.html")


def test_where_no_kernel_answers_there_are_picture_and_card(explorer: Explorer) -> None:
    data = explorer._repr_mimebundle_()
    assert data["text/html"].startswith('<img src="data:image/png;base64,')
    assert data["text/html"].endswith(explorer.card.value)
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_file_of_the_explorer(explorer: Explorer, tmp_path: Path) -> None:
    page = explorer.save_html(tmp_path / "explorer.html").read_text(encoding="utf-8")
    assert len(page) < 3_000_000
    assert "https://" not in page
    assert "<b>太字" not in page


def large_recording(folder: Path, layers: int = 58, experts: int = 256, tokens: int = 100_000) -> Recording:
    """Random routes over real sentences, written as a recording is laid out."""
    rng, k = np.random.default_rng(0), 8
    text = "社長がいらっしゃいました。資料をお送りいたします。雨が降っていた。"
    docs, length = tokens // len(text), len(text)
    place = np.tile(np.arange(length), docs)
    columns: dict[str, Any] = {
        "doc": np.repeat(np.arange(docs, dtype=np.int32), length),
        "pos": place.astype(np.int32),
        "token_id": np.array([ord(c) for c in text] * docs, np.int32),
        "char_start": place.astype(np.int32),
        "char_end": (place + 1).astype(np.int32),
        "partial": np.zeros(docs * length, bool),
    }
    for layer in range(3, 3 + layers):
        first = rng.integers(0, experts, (docs * length, 1))
        chosen = ((first + np.arange(k) * 31) % experts).astype(np.uint8)
        columns[f"experts_L{layer:02d}"] = pa.FixedSizeListArray.from_arrays(pa.array(chosen.ravel()), k)
        weights = np.full(chosen.size, 1 / k, np.float16)
        columns[f"weights_L{layer:02d}"] = pa.FixedSizeListArray.from_arrays(pa.array(weights), k)
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "tokens.parquet")
    pq.write_table(pa.table({"doc": np.arange(docs, dtype=np.int32), "text": [text] * docs}), folder / "d.parquet")
    tokens_file, documents_file = (file_checksums(folder / name) for name in ("tokens.parquet", "d.parquet"))
    moe = list(range(3, 3 + layers))
    manifest = {
        "format": 1,
        "moelens": moelens.__version__,
        "corpus": "made",
        "model": {"name": "large"},
        "shape": {"moe_layers": moe, "n_experts": experts, "top_k": k},
        "capture": {"captures": ["routes"], "layers": moe, "dtype": "float16", "weights": True}
        | {"index_dtype": "uint8", "stored_as": "float16"},
        "n_tokens": docs * length,
        "n_documents": docs,
        "shards": [{"path": "tokens.parquet", "rows": docs * length, **tokens_file}],
        "tables": {},
        "documents": {"path": "d.parquet", "rows": docs, **documents_file},
    }
    write_manifest(folder, manifest)
    return Recording.open(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Specialization, Recording]:
    recording = large_recording(tmp_path_factory.mktemp("large") / "run")
    moelens.label(recording, processes=1)
    return replace(result_of(58, 256, tokens=200, k=8), family="honorifics"), recording


@pytest.mark.slow
def test_at_full_size_every_answer_is_a_small_slice(large: tuple[Specialization, Recording]) -> None:
    result, recording = large
    began = time.perf_counter()
    found = Explorer(result, Passages(recording, moelens.Labels.open(recording), "honorifics"), label="尊敬語")
    print(f"\n58 x 256 experts, {recording.n_tokens:,} tokens: explorer made in {time.perf_counter() - began:.2f} s")
    rng, spent = np.random.default_rng(1), []
    for _ in range(20):
        began = time.perf_counter()
        found.map.selected = [int(rng.integers(58)), int(rng.integers(256))]
        spent.append(time.perf_counter() - began)
        assert payload(found.trace) < 500_000
        assert len(found.card.value) < 500_000
    print(f"choosing an expert: median {1000 * np.median(spent):.0f} ms, most {1000 * max(spent):.0f} ms")
    began = time.perf_counter()
    found.map.label = "丁寧語"
    print(f"choosing a label: {1000 * (time.perf_counter() - began):.0f} ms")
    began = time.perf_counter()
    found.trace.layer = 20
    print(f"choosing a layer: {1000 * (time.perf_counter() - began):.0f} ms")
    assert payload(found.map) < 500_000
