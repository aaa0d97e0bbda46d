"""Tests of probes: planted signals, baselines, code lengths, and scripts that resume and fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

import moelens
from moelens import MoeLensError
from moelens.commands.command_line import main
from moelens.commands.script import run_script, unmet_expectations
from moelens.probes import classifiers, probe
from moelens.probes.classifiers import Scaler, fit_probe
from moelens.probes.features import Feature, FeatureStore
from moelens.probes.probing import control_labels, document_interval, fold_of, per_token_accuracy

E, K, LAYERS, DOCS, LENGTH = 16, 2, (1, 3), 40, 30
N = DOCS * LENGTH


class Fake:
    """A recording whose routes depend on the class of a token in layer 3, and not in layer 1."""

    layers, n_experts, captures = LAYERS, E, ("routes", "residuals")

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.classes = rng.integers(0, 3, N)
        routes = np.stack([np.stack([rng.choice(E, K, replace=False) for _ in range(N)]) for _ in LAYERS], 1)
        follows = rng.random(N) < 0.8
        routes[follows, 1, 0] = self.classes[follows]
        routes[follows, 1, 1] = rng.integers(8, E, int(follows.sum()))
        self.columns: dict[str, Any] = {
            "doc": np.repeat(np.arange(DOCS), LENGTH).astype(np.int32),
            "pos": np.tile(np.arange(LENGTH), DOCS).astype(np.int32),
            "token_id": rng.integers(0, 50, N).astype(np.int32),
            "char_start": np.zeros(N, np.int32),
            "char_end": np.ones(N, np.int32),
        }
        for i, layer in enumerate(LAYERS):
            self.columns[f"experts_L{layer:02d}"] = routes[:, i].astype(np.uint8)
            self.columns[f"weights_L{layer:02d}"] = rng.random((N, K)).astype(np.float16)
        self.residuals = rng.normal(size=(N, 6)) + 2 * np.eye(6)[self.classes]

    def text_ids(self) -> np.ndarray:
        return np.arange(DOCS)

    def column(self, name: str) -> Any:
        return self.columns[name]

    def vector_parts(self, name: str, layer: int) -> Iterator[pa.Table]:
        order = np.random.default_rng(1).permutation(N)
        values = pa.FixedSizeListArray.from_arrays(pa.array(self.residuals[order].ravel()), 6)
        table = pa.table({"doc": self.columns["doc"][order], "pos": self.columns["pos"][order], "values": values})
        yield from (table[:100], table[100:])

    @property
    def labels(self) -> list[str | None]:
        return ["名詞動詞助詞"[2 * c : 2 * c + 2] for c in self.classes]


@pytest.fixture(scope="module")
def fake() -> Fake:
    return Fake()


def test_a_planted_signal_is_found_in_its_layer(fake: Fake) -> None:
    result = probe(fake, fake.labels, ["experts", "residuals"], progress=False)
    rows = {(r.feature, r.layer, r.probe): r for r in result.rows}
    there, nowhere = rows["experts", 3, "logistic"], rows["experts", 1, "logistic"]
    assert there.accuracy > 0.75 > 0.45 > nowhere.accuracy
    assert there.selectivity > 0.3 > 0.1 > abs(nowhere.selectivity)
    assert there.compression > 1.5 > 1.1 > nowhere.compression
    assert rows["experts", 3, "centroid"].accuracy > 0.7
    assert rows["residuals", 1, "logistic"].accuracy > 0.7, "rows of captured vectors belong to their tokens"
    assert there.low < there.accuracy < there.high
    assert result.best.layer == 3
    assert (result.tokens, result.documents, result.classes) == (N, DOCS, ("助詞", "動詞", "名詞"))
    assert 0.3 < result.majority < 0.4
    assert result.per_token < 0.45
    assert np.isnan(rows["experts", 3, "centroid"].bits)
    again = probe(fake, fake.labels, ["experts"], layers=[3], progress=False)
    assert repr(again.rows) == repr(tuple(r for r in result.rows if (r.feature, r.layer) == ("experts", 3)))
    assert "3 classes · 1,200 tokens of 40 documents · 5 folds of documents" in repr(result)


def test_control_tasks_are_drawn_several_times(fake: Fake) -> None:
    given = {"layers": [3], "probes": ["centroid"], "progress": False}
    one, many = (probe(fake, fake.labels, **given, control_draws=n) for n in (1, 4))
    row = many.rows[0]
    assert one.rows[0].control == one.rows[0].control_low == one.rows[0].control_high
    assert row.control_low < row.control < row.control_high
    assert row.control_low <= one.rows[0].control <= row.control_high, "the first draw is among the four"
    assert row.selectivity == pytest.approx(row.accuracy - row.control)
    assert "4 draws of the control task" in repr(many)
    assert f"{row.selectivity:+.3f} [{row.accuracy - row.control_high:+.3f}, " in repr(many)
    with pytest.raises(MoeLensError, match="expected 1 or more draws of the control task, got 0; give more"):
        probe(fake, fake.labels, control_draws=0)


def test_features(fake: Fake) -> None:
    rows = np.array([3, 700, 5])
    with FeatureStore(fake) as store:
        experts, weights, paths = (
            store.feature(name, 3).block(rows).toarray() for name in ("experts", "weights", "paths")
        )
        residuals = store.feature("residuals", 3).block(rows)
    for i, row in enumerate(rows):
        first, second = (fake.columns[f"experts_L0{layer}"][row] for layer in LAYERS)
        assert sorted(experts[i].nonzero()[0]) == sorted(second)
        assert sorted(paths[i].nonzero()[0]) == sorted([*first, *(second.astype(int) + E)])
        np.testing.assert_allclose(weights[i, second], fake.columns["weights_L03"][row])
    np.testing.assert_allclose(residuals, fake.residuals[rows], rtol=1e-6)


def test_numbers_that_were_not_recorded_are_zero(tmp_path: Path) -> None:
    model, texts = moelens.load("demo"), ["先生がいらっしゃいます。", "犬がいる。", "雨が降りました。"]
    options: dict[str, Any] = {"layers": [3], "progress": False}
    some = moelens.record(model, texts, tmp_path / "some", capture=["routes", "logits:5", "neurons:4"], **options)
    every = moelens.record(model, texts, tmp_path / "every", capture=["routes", "logits", "neurons"], **options)
    rows = np.arange(every.n_tokens)[::-1]
    with FeatureStore(some) as largest, FeatureStore(every) as whole:
        for name, n, slots in (("logits", 5, 1), ("neurons", 4, every.top_k)):
            feature = largest.feature(name, 3)
            found, full = feature.block(rows), whole.feature(name, 3).block(rows)
            assert (feature.width, feature.cells, found.nnz) == (full.shape[1], n * slots, n * slots * len(rows))
            for row, all_of_it in zip(found.toarray(), full, strict=True):
                for ours, theirs in zip(row.reshape(slots, -1), all_of_it.reshape(slots, -1), strict=True):
                    kept, size = ours != 0, theirs if name == "logits" else abs(theirs)
                    np.testing.assert_array_equal(ours[kept], theirs[kept])
                    np.testing.assert_array_equal(np.sort(size[kept]), np.sort(size)[-n:], "the largest, of ties any")
            spread = Scaler.fit(feature, rows)(found).toarray().std(0)
            np.testing.assert_allclose(spread[spread > 0], 1, rtol=1e-4, err_msg="scaled, and 0 is still 0")


@pytest.mark.parametrize("name", ["experts", "residuals"])
def test_probes_equal_plain_scikit_learn(fake: Fake, name: str) -> None:
    rows, held, y = np.arange(800), np.arange(800, N), fake.classes
    with FeatureStore(fake) as store:
        feature = store.feature(name, 3)
        x = np.asarray(feature.block(np.arange(N)).toarray() if name == "experts" else feature.block(np.arange(N)))
        if name == "residuals":
            x = (x - x[rows].mean(0)) / x[rows].std(0)
        for kind, plain in (("logistic", LogisticRegression(max_iter=200, tol=1e-3)), ("centroid", NearestCentroid())):
            ours = fit_probe(kind, feature, rows, y, 3)(held).argmax(1)  # type: ignore[arg-type]
            assert (ours == plain.fit(x[rows], y[rows]).predict(x[held])).mean() > 0.99, kind


@pytest.mark.parametrize("name", ["experts", "paths", "residuals"])
@pytest.mark.parametrize("classes", [2, 3])
def test_training_on_blocks_equals_scikit_learn(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, name: str, classes: int
) -> None:
    rows, held, y = np.arange(800), np.arange(800, N), fake.classes % classes
    monkeypatch.setattr(classifiers, "TOLERANCE", 1e-7)
    with FeatureStore(fake) as store:
        feature = store.feature(name, 3)
        whole = fit_probe("logistic", feature, rows, y, classes)(held)
        monkeypatch.setattr(classifiers, "CELLS", 700)  # some hundred rows a block
        monkeypatch.setattr(
            classifiers, "sklearn_module", {"scipy.optimize": optimize, "scipy.special": special}.__getitem__
        )
        by_blocks = fit_probe("logistic", feature, rows, y, classes)(held)
    np.testing.assert_allclose(np.exp(by_blocks), np.exp(whole), atol=1e-3)


@pytest.mark.parametrize("kind", ["logistic", "centroid"])
def test_memory_grows_neither_with_the_rows_nor_with_their_width(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """The table takes 10 MB in float32, the longer and the wider ones 40 MB, and blocks of it 0.3 MB."""
    monkeypatch.setattr(classifiers, "CELLS", 1 << 16)
    peaks = []
    for n, width in ((20_000, 128), (80_000, 128), (20_000, 512)):
        y = np.arange(n) % 3
        noise = np.random.default_rng(0).random((997, width), np.float32)

        def block(rows: Any, noise: Any = noise) -> Any:
            made = noise[rows % 997].copy()
            made[:, 0] += rows % 3
            return made

        feature = Feature(name="residuals", layer=0, width=width, cells=width, scaled=True, block=block)
        tracemalloc.start()
        predict = fit_probe(kind, feature, np.arange(n), y, 3)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
        assert (predict(np.arange(300)).argmax(1) == y[:300]).mean() > 0.9
    assert max(peaks) < 8, peaks


def test_a_class_without_training_rows_has_a_finite_code_length(fake: Fake) -> None:
    with FeatureStore(fake) as store:
        rows = np.flatnonzero(fake.classes == 0)[:50]
        log_p = fit_probe("logistic", store.feature("experts", 3), rows, fake.classes, 3)(np.arange(10))
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1)
    np.testing.assert_allclose(log_p[:, 1], np.log(1 / 53))


def test_baselines_by_hand() -> None:
    tokens, y = np.array([7, 7, 7, 8, 8, 9, 7, 8, 5]), np.array([0, 0, 1, 1, 1, 0, 0, 0, 1])
    fold, rows = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1]), np.arange(9)
    # fold 1: 7 -> 0 (right), 8 -> 1 (wrong), 5 unknown -> tie of 3 and 3, the first class (wrong)
    # fold 0: 7 -> 0, 0, 0; 8 -> 0, 0; 9 unknown -> 0: right for 0 0 and 9
    assert per_token_accuracy(tokens, y, rows, fold, 2) == pytest.approx(4 / 9)
    control = control_labels(tokens, y, rows, 0)
    assert all(len(set(control[tokens == t])) == 1 for t in set(tokens))
    many = control_labels(np.arange(20000), np.repeat([0, 1], [15000, 5000]), np.arange(20000), 0)
    assert (many == 1).mean() == pytest.approx(0.25, abs=0.02)


def test_folds_keep_documents_whole_and_balance_tokens() -> None:
    docs = np.repeat(np.arange(30), np.arange(1, 31))
    fold = fold_of(docs, np.arange(len(docs)), 5, 0)
    assert all(len(set(fold[docs == d])) == 1 for d in range(30))
    sizes = np.bincount(fold)
    assert len(sizes) == 5
    assert sizes.max() - sizes.min() <= 30
    low, high = document_interval(np.ones(len(docs)), docs, 0)
    assert (low, high) == (1, 1)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "feature": ({"features": ["expert"]}, "unknown feature 'expert'; did you mean 'experts'"),
    "layer": ({"layers": [2]}, "unknown layer '2'; allowed: 1, 3"),
    "probe": ({"probes": ["linear"]}, "unknown probe 'linear'; allowed: logistic, centroid"),
    "folds": (
        {"folds": 50},
        "expected at least as many documents of different texts as folds, got 40 for 50 folds; record more",
    ),
    "not recorded": (
        {"features": ["logits"]},
        r"expected a recording with logits, got one without; record again with capture=\['routes', 'logits'\]",
    ),
    "length": ({"family": ["a"]}, "expected a label for each of the 1200 tokens of the recording, got 1; give one"),
    "one class": (
        {"family": ["a"] * N},
        "expected two or more classes of the given labels in this recording, got 1; record",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(fake: Fake, case: str) -> None:
    options, message = ERRORS[case]
    with pytest.raises(MoeLensError, match=message):
        probe(fake, **({"family": fake.labels, "progress": False} | options))


def test_without_scikit_learn(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(
        MoeLensError, match=r"expected scikit-learn for probes, got none installed; run pip install 'moelens\[probes\]'"
    ):
        probe(fake, fake.labels)


SCRIPT = """
model = "demo"
corpus = "texts.txt"
out = "run"

[[probe]]
name = "politeness"
family = "丁寧語"
features = ["experts"]
layers = [3]
folds = 3
expect = ["accuracy > 0.5", "selectivity > 5"]

[[effect]]
name = "remove"
pairs = "pairs.jsonl"
operation = "remove"
layer = 3
experts = [5]
controls = "none"
expect = "items >= 2"
"""
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
PAIRS = [
    {"id": c, "kind": "style-agreement", "frame": c, "context": c, "good": "行きます。", "bad": "行く。"}
    for c in ("明日は学校へ", "母と町へ")
]


def write_script(folder: Path, text: str = SCRIPT) -> Path:
    texts = [
        "先生がいらっしゃいます。",
        "犬がいる。",
        "雨が降りました。",
        "本を読む。",
        "駅まで歩きます。",
        "空が青い。",
    ]
    (folder / "texts.txt").write_text("\n".join(texts * 2), encoding="utf-8")
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)), encoding="utf-8")
    (folder / "probes.toml").write_text(text, encoding="utf-8")
    return folder / "probes.toml"


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Glyph")
def test_a_script_runs_resumes_and_checks_expectations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = write_script(tmp_path)
    first = run_script(script, progress=False)
    assert [(o.name, o.resumed, bool(o.failed)) for o in first] == [
        ("politeness", False, True),
        ("remove", False, False),
    ]
    assert first[0].failed[0].startswith("expected selectivity > 5, got ")
    for name, ending in product(("politeness", "remove"), ("json", "parquet", "png")):
        assert (tmp_path / "run" / f"{name}.{ending}").exists()
    assert pq.read_table(tmp_path / "run" / "politeness.parquet").num_rows == 2

    with pytest.raises(SystemExit, match="1"):
        main(["probe", str(script)])
    out = capsys.readouterr().out
    assert "FAILED  politeness: expected selectivity > 5, got" in out
    assert "ok      remove: as expected, from an earlier run" in out
    write_script(
        tmp_path, SCRIPT.replace("selectivity > 5", "selectivity > -2").replace("experts = [5]", "experts = [6]")
    )
    again = run_script(script, progress=False)
    assert [(o.resumed, o.failed) for o in again] == [(True, ()), (False, ())]


MANY = list(range(24))
NOTHING = SCRIPT.replace('"accuracy > 0.5", "selectivity > 5"', "").replace("experts = [5]", f"experts = {MANY}")


@pytest.mark.slow
def test_another_recipe_or_file_runs_entries_again(tmp_path: Path) -> None:
    script, hooks = write_script(tmp_path, NOTHING), Path(__file__).parents[1] / "hooks" / "remove_experts.py"

    def resumed(**options: Any) -> list[bool]:
        return [o.resumed for o in run_script(script, progress=False, **options)]

    def change() -> float:
        return float(json.loads((tmp_path / "run" / "remove.json").read_text("utf-8"))["summary"]["change"])

    assert resumed() == [False, False]
    assert change() != 0
    recipe = {"hooks": hooks, "options": {"layer": 3, "experts": MANY}}
    assert resumed(**recipe) == [False, False]
    assert change() == 0, "the recipe has already removed the experts"
    assert resumed(**recipe) == [True, True]
    assert len([*(tmp_path / "run").glob("recording-*")]) == 2
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIRS[0]), encoding="utf-8")
    assert resumed(**recipe) == [True, False]
    assert main(["probe", str(script), "--set", "layer=3"]) == 2
    script.write_text(NOTHING.replace('corpus = "texts.txt"', 'recording = "run"'), encoding="utf-8")
    with pytest.raises(MoeLensError, match=r"has probes of a finished recording, which the recipe '.*py' cannot"):
        run_script(script, **recipe)


@pytest.mark.slow
def test_processes_of_accelerate_share_a_script(tmp_path: Path) -> None:
    """The first process runs the probe, which fails its expectation, and the second runs the effect."""
    script = write_script(tmp_path)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "-m", "moelens"]
    done = subprocess.run([*command, "probe", str(script)], capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("FAILED  politeness: expected selectivity > 5, got") == 1
    assert done.stdout.count("ok      remove: as expected (") == 1
    assert [(o.name, o.resumed) for o in run_script(script, progress=False)] == [("politeness", True), ("remove", True)]


BAD_SCRIPTS = {
    "[[probe]]\nname='a'": 'needs out = "FOLDER" and at least one',
    "out='x'": 'needs out = "FOLDER" and at least one',
    "out='x'\nmodle='demo'\n[[effect]]\nname='a'": "unknown setting 'modle'; did you mean 'model'",
    "out='x'\n[[effect]]\nname='a'\nlayers=[1]": "unknown setting 'layers'; did you mean 'layer'",
    "out='x'\n[[effect]]\nname='a/b'": r"every \[\[effect\]\] needs a unique name of letters, digits",
    "out='x'\n[[effect]]\nname='a'\n[[effect]]\nname='a'": r"every \[\[effect\]\] needs a unique name",
    "out='x'\n[[probe]]\nname='a'": 'need recording = "FOLDER", or model and corpus to make one',
    "out='x'\n[[effect]]\nname='a'\nexpect='p is small'": r"in expect, got 'p is small'; write for example selectivity",
    "out=": "' is not valid TOML: Invalid value",
}


@pytest.mark.parametrize("text", BAD_SCRIPTS)
def test_a_wrong_script_is_refused_before_anything_runs(tmp_path: Path, text: str) -> None:
    with pytest.raises(MoeLensError, match=BAD_SCRIPTS[text]):
        run_script(write_script(tmp_path, text))
    assert not (tmp_path / "x").exists()


def test_an_expectation_of_an_unknown_value_is_refused() -> None:
    with pytest.raises(MoeLensError, match="unknown expected value 'shfit'; did you mean 'shift'"):
        unmet_expectations(["shfit > 0"], {"shift": 1.0, "name": "a"})


def test_an_effect_needs_a_model(tmp_path: Path) -> None:
    script = "out='x'\n[[effect]]\nname='a'\npairs='pairs.jsonl'\noperation='remove'\nlayer=3\nexperts=[5]"
    with pytest.raises(MoeLensError, match='needs model = "NAME" to record or to intervene'):
        run_script(write_script(tmp_path, script), progress=False)


def test_no_script() -> None:
    with pytest.raises(MoeLensError, match=r"no script at 'none.toml'; give a TOML file with \[\[probe\]\]"):
        run_script("none.toml")
