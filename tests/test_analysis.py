"""Tests of counts against plain loops, of the permutation test under its null, and of the result object."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.analysis import Counts, Specialization, analyze, specialization_from_arrays
from moelens.analysis.randomize import benjamini_hochberg
from moelens.errors import CheckError, MoeLensError, RecordingError, UnknownNameError

NAMES = ("尊敬語", "丁寧語")


def random_routes(rng: np.random.Generator, tokens: int, layers: int, experts: int, k: int) -> np.ndarray:
    return np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :k].astype(np.uint8)


def random_corpus(seed: int, tokens: int = 60, layers: int = 2, experts: int = 6, k: int = 2) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return random_routes(rng, tokens, layers, experts, k), rng.random((tokens, len(NAMES))) < 0.3


def count(indices: np.ndarray, labels: np.ndarray, names: tuple[str, ...] = NAMES, experts: int = 6) -> Counts:
    return Counts.from_arrays(indices, labels, names, experts, range(indices.shape[1]))


def test_counts_are_what_a_loop_counts() -> None:
    indices, labels = random_corpus(0)
    expected = np.zeros((2, 6, 2), int)
    for token in range(len(indices)):
        for layer in range(2):
            for expert in indices[token, layer]:
                for label in np.flatnonzero(labels[token]):
                    expected[layer, expert, label] += 1
    counts = count(indices, labels)
    assert (counts.count == expected).all()
    assert (counts.label_tokens == labels.sum(0)).all()
    assert (counts.n_tokens, counts.n_experts, counts.top_k, counts.layers) == (60, 6, 2, (0, 1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_invariants_of_counts(seed: int, tokens: int, k: int) -> None:
    indices, labels = random_corpus(seed, tokens, k=k)
    counts, complement = count(indices, labels), count(indices, ~labels)
    assert (counts.expert_tokens.sum(1) == k * tokens).all()
    assert (counts.count.sum(1) == k * counts.label_tokens).all()
    assert (counts.count + complement.count == counts.expert_tokens[:, :, None]).all()
    cut = tokens // 2
    both = count(indices[:cut], labels[:cut]) + count(indices[cut:], labels[cut:])
    for name in ("count", "expert_tokens", "label_tokens", "n_tokens"):
        assert np.array_equal(getattr(both, name), getattr(counts, name))
    assert counts.load().mean(1) == pytest.approx(1)


def test_lift_share_and_load_in_closed_form() -> None:
    # Four tokens, top-1 of three experts: expert 0 takes both tokens of the label and one other; expert 2 none.
    indices = np.array([0, 0, 0, 1]).reshape(4, 1, 1)
    counts = count(indices, np.array([[1, 0], [1, 0], [0, 0], [0, 0]], bool), experts=3)
    assert counts.share()[0, :, 0].tolist() == [1, 0, 0]
    assert counts.lift()[0, :2, 0] == pytest.approx([4 / 3, 0])
    assert math.isnan(counts.lift()[0, 2, 0]), "an expert that was never chosen has no lift"
    assert np.isnan(counts.share()[:, :, 1]).all(), "a label without tokens has no share"
    assert counts.load()[0] == pytest.approx([9 / 4, 3 / 4, 0])


def test_benjamini_hochberg_against_its_definition() -> None:
    p = np.random.default_rng(0).random(50) ** 2
    expected = [min(min(1, p[p <= t].max() * 50 / (p <= t).sum()) for t in p if t >= value) for value in p]
    assert benjamini_hochberg(p) == pytest.approx(expected)


def dependent_documents(seed: int) -> Specialization:
    """Analyse documents that differ in politeness and in the experts they use, independently of each other."""
    rng = np.random.default_rng(seed)
    docs = np.repeat(np.arange(40), rng.integers(15, 30, 40))
    labels = rng.random((len(docs), 2)) < rng.beta(0.6, 1.4, (40, 2))[docs]
    taste = rng.normal(0, 1.5, (40, 8))[docs] + rng.gumbel(size=(len(docs), 8))
    indices = np.argsort(-taste, 1)[:, None, :2]
    ids = np.zeros(len(docs), int)
    return specialization_from_arrays(indices, labels, NAMES, docs, ids, 8, [0], permutations=99, seed=seed)


def test_family_wise_error_holds_when_documents_differ() -> None:
    found = [bool((dependent_documents(seed).p_family < 0.05).any()) for seed in range(60)]
    assert sum(found) <= 6


def planted(permutations: int = 99, **options: Any) -> Specialization:
    """Analyse routes in which expert 5 of layer 7 takes most of 尊敬語, and 丁寧語 is independent of the routes."""
    rng = np.random.default_rng(4)
    docs = np.repeat(np.arange(50), 24)
    labels = rng.random((1200, 2)) < (0.1, 0.2)
    scores = rng.gumbel(size=(1200, 2, 8))
    scores[:, 1, 5] += 3 * labels[:, 0]
    indices = np.argsort(-scores, 2)[:, :, :2]
    ids = rng.integers(0, 30, 1200)
    return specialization_from_arrays(
        indices, labels, NAMES, docs, ids, 8, (3, 7), permutations=permutations, **options
    )


def test_a_planted_specialist_is_found_first() -> None:
    first, *rest = planted().top(5)
    assert (first.layer, first.expert, first.label, first.p_family, first.significant) == (7, 5, "尊敬語", 0.01, True)
    assert not any(f.significant for f in rest if f.label == "丁寧語")
    assert {f.label for f in planted().top(9, "丁寧語")} == {"丁寧語"}


def test_the_same_seed_gives_the_same_result() -> None:
    assert planted(seed=3).to_dict() == planted(seed=3).to_dict()


def test_rows_may_come_in_any_order() -> None:
    indices, labels = random_corpus(5, 400)
    docs, ids = np.arange(400) // 20, np.arange(400) % 7
    shuffled = np.argsort(np.arange(400) % 20, kind="stable")  # documents interleaved, each in its own order
    a = specialization_from_arrays(indices, labels, NAMES, docs, ids, 6, range(2), permutations=19)
    b = specialization_from_arrays(
        indices[shuffled], labels[shuffled], NAMES, docs[shuffled], ids[shuffled], 6, range(2), permutations=19
    )
    assert np.array_equal(a.p, b.p)
    assert a.lift_given_token == pytest.approx(b.lift_given_token)


def test_token_identity_explains_a_lift() -> None:
    # Token 1 always carries the label and always goes to expert 0: a high lift, and nothing left given the token.
    rng = np.random.default_rng(0)
    ids = (rng.random(800) < 0.1).astype(int)
    indices = np.where(ids == 1, 0, rng.integers(1, 8, 800)).reshape(-1, 1, 1)
    result = specialization_from_arrays(
        indices, ids[:, None] == 1, ["尊敬語"], np.arange(800) // 20, ids, 8, [0], permutations=19
    )
    assert result.lift[0, 0, 0] > 8
    assert result.lift_given_token[0, 0, 0] == pytest.approx(1)


def test_lift_given_token_finds_an_effect_that_the_token_does_not_explain() -> None:
    # The same token, half of the time with the label; expert 0 takes exactly those: observed / expected = 2.
    labels = np.tile([True, False], 200)[:, None]
    indices = np.where(labels[:, :, None], 0, 1)
    ids = np.zeros(400, int)
    result = specialization_from_arrays(indices, labels, ["丁寧語"], np.arange(400) // 20, ids, 2, [0], permutations=19)
    assert result.lift_given_token[0, :, 0].tolist() == [2, 0]


def test_rare_labels_and_experts_are_counted_but_not_tested() -> None:
    indices, labels = random_corpus(1, 200, experts=4)
    indices[0, 0] = (5, 4)
    labels = np.hstack([labels, np.zeros((200, 2), bool)])
    labels[:5, 2] = labels[:30, 3] = True
    names = (*NAMES, "謙譲語I", "謙譲語II")  # too few tokens; one document only
    result = specialization_from_arrays(
        indices, labels, names, np.arange(200) // 40, np.zeros(200, int), 6, range(2), permutations=19
    )
    assert result.too_rare == ("謙譲語I", "謙譲語II")
    assert np.isnan(result.q[:, :, 2:]).all()
    assert np.isnan(result.p[0, 5]).all()
    assert result.count[:, :, 2].sum() == 2 * 2 * 5
    assert not result.significant[:, :, 2:].any()
    assert "too rare to test: 謙譲語I (5 tokens), 謙譲語II (30 tokens)" in repr(result)


def test_save_and_open(tmp_path: Path) -> None:
    result = planted(provenance={"model": "demo"})
    again = Specialization.open(result.save(tmp_path / "found.json"))
    assert again.to_dict() == result.to_dict()
    assert again.top(3)[0] == result.top(3)[0]
    assert json.loads((tmp_path / "found.json").read_text("utf-8"))["format"] == "moelens.specialization/2"


def test_repr_is_a_table() -> None:
    head, columns, first, *_ = repr(planted(provenance={"model": "demo"})).splitlines()
    assert head.startswith("demo · 2 layers × 8 experts, top-2 · 1,200 tokens · specialists of labels · control: 99")
    assert columns.split()[:4] == ["layer", "expert", "label", "lift"]
    assert first.split()[:3] == ["L7", "E5", "尊敬語"]


def test_to_pandas_has_a_row_for_each_cell() -> None:
    result = planted()
    frame = result.to_pandas()
    assert len(frame) == result.count.size
    row = frame[(frame.layer == 7) & (frame.expert == 5) & (frame.label == "尊敬語")].iloc[0]
    assert row.lift == result.lift[1, 5, 0]
    assert bool(row.significant)


@dataclass
class FakeRecording:
    """A recording with 4 documents whose first token is special, without text."""

    n_experts: int = 6
    layers: tuple[int, ...] = (0, 1)
    n_tokens: int = 80
    manifest: dict[str, Any] = field(
        default_factory=lambda: {"model": {"name": "demo"}, "shape": {"n_groups": 2, "n_layers": 2}}
    )

    top_k: int = 2

    def parts(self, start: int = 0, stop: int | None = None) -> Any:
        yield slice(start, stop), np.moveaxis(random_corpus(0, self.n_tokens)[0][start:stop], 1, 0)

    def columns(self, names: list[str], start: int = 0, stop: int | None = None) -> Any:
        for rows in (slice(0, 30), slice(30, self.n_tokens)):
            yield rows, [self.column(name)[rows] for name in names]

    def text_ids(self) -> np.ndarray:
        return np.arange(4)

    def column(self, name: str) -> np.ndarray:
        row = np.arange(self.n_tokens)
        columns = {
            "doc": row // 20,
            "token_id": row % 20,
            "char_start": row % 20,
            "char_end": row % 20 + (row % 20 > 0),
        }
        return columns[name]


@dataclass
class FakeLabels:
    rows: int = 80
    families: tuple[str, ...] = ("pos", "honorifics")

    def matrix(self, family: str, rows: slice = slice(None)) -> tuple[tuple[str, ...], np.ndarray]:
        return NAMES, random_corpus(0, self.rows)[1][rows]


def test_specialization_of_a_recording_leaves_special_tokens_out() -> None:
    result = analyze(FakeRecording(), labels=FakeLabels(), given=None, permutations=19, min_tokens=5)
    assert result.n_tokens == 76
    assert result.family == "honorifics"
    assert result.provenance["model"] == "demo"
    assert result.provenance["n_groups"] == 2
    assert result.provenance["special_tokens_left_out"] == 4


def arrays(**change: Any) -> dict[str, Any]:
    indices, labels = random_corpus(2, 100)
    plain = {
        "indices": indices,
        "label_matrix": labels,
        "names": NAMES,
        "docs": np.arange(100) // 10,
        "token_ids": np.zeros(100, int),
        "n_experts": 6,
        "layers": (0, 1),
        "permutations": 19,
    }
    return plain | change


@pytest.mark.parametrize(
    "change, error, text",
    [
        (
            {"docs": np.zeros(100)},
            MoeLensError,
            "expected 2 or more documents of different texts, since labels are compared between documents, got 1",
        ),
        (
            {"min_tokens": 90},
            MoeLensError,
            "expected a label of family 'labels' on 90 or more tokens of 2 or more documents and not on all tokens, "
            "got none: 尊敬語 is on 35 tokens of 10 documents, 丁寧語 is on ",
        ),
        (
            {"permutations": 10},
            MoeLensError,
            "expected 19 or more permutations, since fewer cannot reach p = .05, got 10; give more",
        ),
        (
            {"n_experts": 4},
            CheckError,
            "expected expert ids from 0 to 3, got 0 to 5; pass the n_experts of the recording",
        ),
        (
            {"names": ("尊敬語",)},
            CheckError,
            "expected labels of shape [100 tokens, 1 labels], got shape [100, 2]; label the recording again",
        ),
        (
            {"layers": (0,)},
            CheckError,
            "expected indices of shape [token, layer, slot] with 1 layers, got shape [100, 2, 2]; give one layer",
        ),
    ],
)
def test_errors_of_arrays(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        specialization_from_arrays(**arrays(**change))
    assert text in str(caught.value)


def test_errors_of_a_recording_and_of_a_result(tmp_path: Path) -> None:
    cases = [
        (UnknownNameError, "unknown label family 'honorific'; did you mean 'honorifics'?", "honorific", FakeLabels()),
        (
            RecordingError,
            "expected labels of 80 tokens, as in the recording, got labels of 70; label the recording again",
            "pos",
            FakeLabels(70),
        ),
    ]
    for error, text, family, labels in cases:
        with pytest.raises(error) as caught:
            analyze(FakeRecording(), family, labels=labels)
        assert text in str(caught.value)
    with pytest.raises(UnknownNameError, match="unknown label '尊敬'; did you mean '尊敬語'"):
        planted().top(1, "尊敬")
    with pytest.raises(
        MoeLensError, match=r"expected counts with the same names, got .*; count both parts in the same way"
    ):
        count(*random_corpus(0)) + count(*random_corpus(0), names=("a", "b"))
    with pytest.raises(RecordingError, match=r"expected a saved Specialization, .* write one with Specialization.save"):
        Specialization.open(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(RecordingError, match=r"expected format 'moelens.specialization/2', .* got None"):
        Specialization.open(tmp_path / "list.json")
