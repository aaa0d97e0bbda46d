"""Tests of the comparison of two models over the same text, and of two corpora under one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import moelens
from moelens.analysis import Comparison, compare, overlap
from moelens.commands.command_line import main
from moelens.errors import MoeLensError, RecordingError, UnknownNameError

T, L, E, K = 2000, 2, 8, 2


@dataclass
class Run:
    """A recording of routes `[token, layer, slot]` in shards of `step` tokens."""

    routes: np.ndarray
    name: str = "model"
    step: int = 700
    docs: int = 40
    n_experts: int = E
    top_k: int = K
    layers: tuple[int, ...] = (1, 2)
    manifest: dict[str, Any] = field(default_factory=dict)
    token_shift: int = 0
    tokens: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.manifest = {"model": {"name": self.name}}
        self.folder = SimpleNamespace(location=f"/runs/{self.name}")

    @property
    def n_tokens(self) -> int:
        return len(self.routes)

    @property
    def n_documents(self) -> int:
        return self.docs

    def text_ids(self) -> np.ndarray:
        return np.arange(self.docs)

    def column(self, name: str) -> np.ndarray:
        row = np.arange(self.n_tokens)
        tokens = (row + self.token_shift) % 97 if self.tokens is None else self.tokens
        values = {"doc": row * self.docs // self.n_tokens, "char_start": row, "token_id": tokens}
        return values.get(name, row + 1)

    def columns(self, names: list[str], start: int = 0, stop: int | None = None) -> Any:
        for rows, _ in self.parts(start, stop):
            yield rows, [self.column(name)[rows] for name in names]

    def parts(self, start: int = 0, stop: int | None = None) -> Any:
        stop = self.n_tokens if stop is None else stop
        for i in range(0, self.n_tokens, self.step):
            a, b = max(i, start), min(i + self.step, stop)
            if a < b:
                yield slice(a, b), np.moveaxis(self.routes[a:b], 1, 0)


@dataclass
class Labels:
    has: np.ndarray
    path: Path = Path("/runs/tuned/labels")
    families: tuple[str, ...] = ("honorifics",)

    def matrix(self, family: str, rows: slice = slice(None)) -> tuple[tuple[str, ...], np.ndarray]:
        return ("尊敬語", "丁寧語"), self.has[rows]


def models(seed: int = 0) -> tuple[Run, Run, Labels]:
    """Make two models: tuning changes a tenth of all routes at random, and routes 尊敬語 in layer 2 to expert 5."""
    rng = np.random.default_rng(seed)
    before = np.argsort(rng.random((T, L, E)), axis=2)[:, :, :K].astype(np.uint8)
    after = before.copy()
    moved = rng.random((T, L)) < 0.1
    after[moved] = np.argsort(rng.random((moved.sum(), E)), axis=1)[:, :K]
    labels = Labels(rng.random((T, 2)) < (0.1, 0.3))
    polite = labels.has[:, 0] & (after[:, 1] != 5).all(1) & (rng.random(T) < 0.5)
    after[polite, 1, 0] = 5
    return Run(before, "base"), Run(after, "tuned", step=450), labels


def test_counts_shares_and_overlap_equal_those_of_loops() -> None:
    a, b, labels = models()
    found = compare(a, b, labels=labels, permutations=19)
    assert found.names == ("all tokens", "尊敬語", "丁寧語")
    every = np.hstack([np.ones((T, 1), bool), labels.has])
    for layer, expert, label in np.ndindex(L, E, 3):
        for run, count in ((a, found.count_a), (b, found.count_b)):
            assert count[layer, expert, label] == ((run.routes[:, layer] == expert).any(1) & every[:, label]).sum()
    shared = overlap(a.routes, b.routes)
    assert found.overlap == pytest.approx(np.stack([shared[has].mean(0) for has in every.T], axis=1))
    assert found.change == pytest.approx((found.count_b - found.count_a) / every.sum(0))


def test_only_the_change_made_by_tuning_is_found() -> None:
    a, b, labels = models()
    found = compare(a, b, labels=labels)
    layer, expert, label, change = found.top(1, "尊敬語")[0]
    assert (layer, expert, label) == (2, 5, "尊敬語")
    assert change > 0.2
    at = 1, 5, 1
    assert found.significant[at]
    assert found.low[at] < found.ratio[at] < found.high[at]
    assert not found.significant[0].any()
    assert not found.significant[:, :, 2].any()
    assert found.overlap[1, 1] < found.overlap[1, 2]
    assert repr(found).startswith(
        "base → tuned · 2,000 tokens · control: 1000 exchanges over documents, token identity"
    )


def test_the_same_model_twice_shows_no_change() -> None:
    a, _, labels = models()
    found = compare(a, a, labels=Labels(labels.has, Path("/runs/base/labels")), permutations=99)
    assert not found.significant.any()
    assert (found.overlap == 1).all()
    assert found.top(5) == ()
    assert "\nno expert gained or lost a token of any label\n" in found.table()
    assert found.table().endswith("\neffective number of documents 40.0: p is at least 0.0100")


@pytest.mark.parametrize("name", ["c.json", "c.parquet"])
def test_a_comparison_is_saved_and_opened(tmp_path: Path, name: str) -> None:
    a, b, labels = models()
    found = compare(a, b, labels=labels, permutations=19)
    again = Comparison.open(found.save(tmp_path / name))
    assert again.to_dict() == found.to_dict()
    assert again.top(3) == found.top(3)
    assert len(found.to_pandas()) == L * E * 3


@pytest.mark.parametrize(
    "change, error, text",
    [
        (
            {"n_experts": 16},
            RecordingError,
            "expected two recordings with the same n_experts, got 8 and 16; compare a model with one that was tuned",
        ),
        (
            {"layers": (3, 4)},
            RecordingError,
            "expected two recordings with the same layers, got (1, 2) and (3, 4); compare a model with one",
        ),
        (
            {"token_shift": 1},
            RecordingError,
            "expected two models on the same tokens, or one model on two corpora, got two models and 2,000 and 2,000 "
            "tokens that differ; record both",
        ),
        (
            {"routes": np.zeros((9, L, K), np.uint8)},
            RecordingError,
            "got two models and 2,000 and 9 tokens that differ; record both over one corpus with one tokenizer",
        ),
    ],
)
def test_recordings_that_cannot_be_compared_are_refused(
    change: dict[str, Any], error: type[Exception], text: str
) -> None:
    a, b, labels = models()
    with pytest.raises(error) as caught:
        compare(a, Run(**({"routes": b.routes, "name": "tuned"} | change)), labels=labels)
    assert text in str(caught.value)


def test_other_errors() -> None:
    a, b, labels = models()
    with pytest.raises(
        RecordingError,
        match="expected labels of recording '/runs/tuned', got labels of '/runs/else'; label this recording with",
    ):
        compare(a, b, labels=Labels(labels.has, Path("/runs/else/labels")))
    with pytest.raises(UnknownNameError, match="unknown label '敬語'"):
        compare(a, b, labels=labels, permutations=19).top(1, "敬語")
    with pytest.raises(
        MoeLensError, match="expected 2 or more documents of different texts, since labels are compared"
    ):
        compare(*(Run(r.routes, r.name, docs=1) for r in (a, b)), None)
    shifted = Run(a.routes, "base", token_shift=1)
    with pytest.raises(MoeLensError, match="expected two corpora with their own labels, got labels=; leave it out"):
        compare(a, shifted, labels=labels)
    with pytest.raises(
        MoeLensError, match=r"expected two corpora of 2 or more documents each.* got one of 1 in '/runs"
    ):
        compare(a, Run(a.routes, "base", token_shift=1, docs=1), None)
    with pytest.raises(UnknownNameError, match="unknown control 'speaker'; allowed: token, position"):
        compare(a, shifted, None, given="speaker")


def corpora(seed: int = 0, moved: float = 0.0) -> tuple[Run, Run]:
    """Make two corpora: the token decides the routes, up to noise; b has other tokens more often.

    A share `moved` of the tokens of b goes to expert 5 in layer 2.
    """
    rng = np.random.default_rng(seed)
    typical = np.argsort(rng.random((40, L, E)), axis=2)[:, :, :K].astype(np.uint8)
    runs = []
    for first in (0, 15):
        tokens = rng.integers(first, first + 25, T)
        routes = typical[tokens]
        noisy = rng.random((T, L)) < 0.3
        routes[noisy] = np.argsort(rng.random((noisy.sum(), E)), axis=1)[:, :K]
        runs.append(Run(routes, "model", tokens=tokens))
    extra = (rng.random(T) < moved) & (runs[1].routes[:, 1] != 5).all(1)
    runs[1].routes[extra, 1, 0] = 5
    return runs[0], runs[1]


def test_corpora_differ_in_their_tokens_and_within_tokens_only_where_routes_do() -> None:
    a, b = corpora()
    free, within = compare(a, b, None, given=None), compare(a, b, None)
    for layer, expert in np.ndindex(L, E):
        for run, count in ((a, free.count_a), (b, free.count_b)):
            assert count[layer, expert, 0] == (run.routes[:, layer] == expert).any(1).sum()
    assert free.significant.sum() > 2
    assert not within.significant.any()
    both = (free.count_a + free.count_b)[..., 0]
    assert free.expected[..., 0] == pytest.approx(both / 2)  # of two corpora of one size
    moved = compare(*corpora(moved=0.2), None)
    assert moved.significant[1, 5, 0]
    assert moved.low[1, 5, 0] < moved.ratio[1, 5, 0] < moved.high[1, 5, 0]
    assert moved.ratio[1, 5, 0] > 1
    assert not moved.significant[0].any()


def test_the_test_of_corpora_keeps_its_level() -> None:
    found = [compare(*corpora(seed), None, permutations=199, seed=seed) for seed in range(25)]
    p = np.concatenate([c.p[np.isfinite(c.p)] for c in found])
    assert len(p) == 25 * L * E
    assert 0.02 < (p < 0.05).mean() < 0.09
    assert np.mean([(c.p_family < 0.05).any() for c in found]) < 0.2


def test_a_comparison_of_corpora_says_what_it_leaves_out_of_copies() -> None:
    a, b = corpora()
    whole = compare(a, b, None, permutations=19)
    assert (whole.label_tokens.tolist(), whole.label_tokens_b.tolist()) == ([T], [T])
    assert "not counted" not in whole.table()
    b.text_ids = lambda: np.minimum(np.arange(40), 20)  # type: ignore[method-assign]  # half of b is one text
    b.text_groups = SimpleNamespace(copies=4, near=15, repeated=0.0)  # type: ignore[attr-defined]
    found = compare(a, b, None, permutations=19)
    left = 3000 // 9  # a tenth of what is counted, beside 3,000 tokens of other texts
    assert (found.label_tokens.tolist(), found.label_tokens_b.tolist()) == ([T], [1000 + left])
    assert found.table().splitlines()[-2:] == [
        "repeated text: 4 documents are copies of others and 15 near copies; each counts with them as one document",
        f"not counted: {1000 - left} tokens beyond the 10% of all that a document, with its copies, may have "
        "(1 shortened, see max_share)",
    ]


@pytest.mark.parametrize("name", ["c.json", "c.parquet"])
def test_a_comparison_of_corpora_is_saved_and_opened(tmp_path: Path, name: str) -> None:
    found = compare(*corpora(moved=0.2), None, permutations=99)
    again = Comparison.open(found.save(tmp_path / name))
    assert again.to_dict() == found.to_dict()
    assert (again.ratio == found.ratio).all()
    head, legend, *_ = repr(again).splitlines()
    assert head.startswith("model: /runs/model → /runs/model · 2,000 and 2,000 tokens · control: within token × labels")
    assert legend.startswith("expected: tokens of b at the expert, if only token × labels decided")


def test_corpora_by_label_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = moelens.load("demo")
    bundled = [document.text for document in moelens.Corpus.of("demo")]  # no text is nearly a copy of another
    polite, plain = bundled[:24], bundled[200:224]
    for name, texts in (("polite", polite), ("plain", plain)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts), "utf-8")
        moelens.record(model, tmp_path / f"{name}.txt", tmp_path / name, progress=False)
    words = ["compare", str(tmp_path / "plain"), str(tmp_path / "polite"), "--permutations", "99"]
    assert main([*words, "--given", "none", "--out", str(tmp_path / "c.json")]) == 0
    printed = capsys.readouterr().out
    assert f"demo: {tmp_path}/plain.txt → {tmp_path}/polite.txt · " in printed
    assert " control: within labels, 99 permutations over documents\n" in printed
    found = moelens.open(tmp_path / "c.json")
    at = found.names.index("尊敬語")
    of_label = [
        int(moelens.Labels.open(moelens.Recording.open(tmp_path / name)).matrix("honorifics")[1][:, at - 1].sum())
        for name in ("plain", "polite")
    ]
    assert [found.label_tokens[at], found.label_tokens_b[at]] == of_label
    assert "% points" in [axes.get_title() for axes in found.plot("尊敬語").figure.axes]
    moelens.label(tmp_path / "plain", "any")
    with pytest.raises(MoeLensError, match=r"expected two corpora labelled alike, got labels by policy 'any .* 'ends "):
        compare(tmp_path / "plain", tmp_path / "polite", permutations=19)
