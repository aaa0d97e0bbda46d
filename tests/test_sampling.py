"""Samples of a recording: which documents are drawn, that they read like a recording of them, and where it is said."""

from __future__ import annotations

import re
import shlex
import warnings
from html import unescape
from pathlib import Path

import numpy as np
import pytest

import moelens
from moelens.commands.command_line import main
from moelens.errors import MoeLensWarning
from moelens.recording import Recording, recorder, sampling
from moelens.recording.sampling import DrawnDocuments
from moelens.tracing.passages import Passages
from moelens.workflows.sampling import sampled

ENDINGS = ["社長がいらっしゃいました。", "資料をお送りいたします。", "雨が降っていた。"]
TEXTS = [{"text": f"第{i}回。{ENDINGS[i % 3]}", "number": i} for i in range(60)]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    out = tmp_path_factory.mktemp("sampling") / "run"
    capture = ["routes", "expert_outputs"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "SHARD_CHARACTERS", 300)
        return moelens.record(
            moelens.load("demo"), TEXTS, out, capture=capture, experts=[3, 5], batch_tokens=100, progress=False
        )


def test_a_sample_reads_like_a_recording_of_its_documents(recording: Recording) -> None:
    sample = recording.sample(7, seed=3)
    assert len(recording.manifest["shards"]) > 2
    numbers = sample.drawn.numbers  # type: ignore[union-attr]
    rows = np.flatnonzero(np.isin(recording.column("doc"), numbers))
    assert (sample.n_documents, sample.n_tokens) == (7, len(rows))
    assert np.array_equal(sample.indices(), recording.indices()[rows])
    assert np.array_equal(sample.weights(), recording.weights()[rows])
    assert np.array_equal(numbers[sample.column("doc")], recording.column("doc")[rows])
    assert sample.documents()["number"].to_pylist() == numbers.tolist()
    assert sample.documents(["text"]).column_names == ["text"]
    assert list(sample.texts()) == [text for i, text in enumerate(recording.texts()) if i in numbers]
    assert len(sample.text_ids()) == 7
    some = np.concatenate([np.stack(routes, 1) for _, routes in sample.parts(20, 70)])
    assert np.array_equal(some, sample.indices()[20:70])
    layer = recording.layers[1]
    all_vectors, vectors = recording.vectors("expert_outputs", layer), sample.vectors("expert_outputs", layer)
    of_sample = all_vectors.filter(np.isin(all_vectors["doc"].to_numpy(), numbers))
    assert vectors.drop(["doc"]).equals(of_sample.drop(["doc"]))
    assert vectors["doc"].to_numpy().max() < 7
    assert "7 of 60 documents, drawn at random" in repr(sample)
    assert moelens.verify(sample)


def test_labels_of_a_sample_are_those_of_its_tokens(recording: Recording) -> None:
    sample = recording.sample(9)
    made = moelens.label(sample)
    labels = moelens.label(recording)
    rows = sample.drawn.rows  # type: ignore[union-attr]
    for family in ("pos", "honorifics", "register"):
        names, has = labels.matrix(family)
        assert made.matrix(family)[0] == names
        assert np.array_equal(made.matrix(family)[1], has[rows])
        assert np.array_equal(made.matrix(family, slice(30, 60))[1], has[rows][30:60])
    result = moelens.analyze(sample, "pos", permutations=19)
    for given in (labels, labels.of(sample)):
        by_hand = moelens.analyze(sample, "pos", labels=given, permutations=19)
        assert np.array_equal(result.count, by_hand.count)
    passages = Passages(sample, labels, "pos")
    assert np.array_equal(passages.label_mask, labels.matrix("pos")[1][rows])
    assert np.array_equal(result.label_tokens, labels.matrix("pos")[1][rows].sum(0))
    assert result.provenance["sample"] == {"documents": 9, "of": 60, "seed": 0}
    assert "computed from 9 of 60 documents, drawn at random" in str(result)


def test_what_is_exported_of_a_sample(recording: Recording, tmp_path: Path) -> None:
    sample, labels = recording.sample(5), moelens.label(recording)
    own = labels.of(sample).matrix("pos")[1][:, 0]
    for i, given in enumerate((None, labels)):
        out = moelens.export(sample, "npz", tmp_path / f"npz{i}", family="pos", labels=given)
        with np.load(out / "tokens.npz") as arrays:
            assert len(arrays["doc"]) == sample.n_tokens
            assert np.array_equal(arrays[f"pos.{labels.matrix('pos')[0][0]}"], own)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "tokens of 5 documents of 60, drawn at random with seed 0 (corpus: " in card
    assert "number of the document in the sample" in card


def test_fewer_documents_are_a_part_of_more_and_the_seed_decides(recording: Recording) -> None:
    def numbers(*args: int) -> set[int]:
        drawn = recording.sample(*args).drawn
        assert drawn is not None
        return set(drawn.numbers.tolist())

    assert numbers(5) < numbers(20)
    assert numbers(20) != numbers(20, 1)
    assert recording.sample(60) is recording
    assert recording.sample() is recording
    assert recording.sample(5).sample(20).n_documents == 20, "drawn from all documents again"


def test_how_many_are_drawn_by_default() -> None:
    def drawn(sizes: list[int]) -> int:
        return len(DrawnDocuments.draw(np.array(sizes), None, 0, {}).numbers)

    assert drawn([10] * 50_000) == 20_000
    assert drawn([1_000] * 10_000) == 2_000, "2 million tokens"
    assert drawn([50_000] * 1_000) == 200
    assert drawn([1_000_000] * 100) == 100
    counts = np.zeros(30)
    for seed in range(300):
        counts[DrawnDocuments.draw(np.arange(30), 10, seed, {}).numbers] += 1
    assert abs(counts - 100).max() < 40, "every document is as likely, whatever its size"


def test_a_report_of_a_sample_says_so_and_is_reproduced(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "MOST_DOCUMENTS", 50)
    with pytest.warns(MoeLensWarning, match=r"computing from 50 of 60 documents.*--documents all") as caught:
        out = moelens.report(recording, tmp_path / "r.html", compare=recording, permutations=19)
    assert caught[0].filename == __file__
    page = out.read_text(encoding="utf-8")
    text = unescape(re.sub("<[^>]*>", " ", page))
    assert "computed from 50 of 60 documents, drawn at random; --documents all reads everything" in text
    assert "60 documents" in text
    assert "tokens of documents that were not drawn" in text
    (command,) = re.findall(r"<pre>(moelens report .*?)</pre>", page)
    assert "--documents 50" in command
    out.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error", MoeLensWarning)
        assert main(shlex.split(unescape(command))[1:]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text(encoding="utf-8") == page
    assert "<b>COMPARE</b>" in page, "with the same documents of the other recording"
    assert sampled(recording, "all") is recording


def test_the_explorer_is_of_a_sample(recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "explorer.html"
    words = ["explore", str(recording.path), "--out", str(out), "--documents", "40", "--permutations", "19"]
    assert main([*words, "--given", "none"]) == 0
    assert "computed from 40 of 60 documents" in out.read_text(encoding="utf-8")


def test_views_of_a_sample_are_of_that_sample(recording: Recording, tmp_path: Path) -> None:
    sample = recording.sample(45, seed=3)
    assert sampled(sample, None) is sample
    drawn = sampled(sample, 50)
    assert (drawn.n_documents, drawn.whole.n_documents) == (50, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MoeLensWarning)
        out = moelens.report(sample, tmp_path / "r.html", compare=recording, permutations=19)
    page = out.read_text(encoding="utf-8")
    assert "45 of 60 documents (seed 3)" in unescape(page)
    assert "<b>COMPARE</b>" in page, "with the same documents of the other recording"
    assert "<pre>moelens report" not in page, "no command draws with this seed"


def test_what_is_no_number_of_documents(recording: Recording, tmp_path: Path) -> None:
    for wrong in (0, 2.5, "5", True):
        with pytest.raises(moelens.MoeLensError, match=r"expected 1 or more documents to draw, got .*; give a whole"):
            recording.sample(wrong)  # type: ignore[arg-type]
    with pytest.raises(moelens.MoeLensError, match=r"expected a seed of 0 or more, got -1; give a whole number"):
        recording.sample(5, seed=-1)
    assert recording.sample(np.int64(5)).n_documents == 5  # type: ignore[arg-type]
    with pytest.raises(moelens.MoeLensError, match=r"expected documents to be a number or 'all', got 'some'"):
        moelens.report(recording, tmp_path / "r.html", documents="some")  # type: ignore[arg-type]
    result = moelens.analyze(recording, "pos", permutations=19)
    with pytest.raises(moelens.MoeLensError, match=r"expected documents=None with results, got 5; give results of"):
        moelens.explore(recording, result=result, documents=5)
