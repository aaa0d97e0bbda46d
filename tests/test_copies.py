"""Copies of a text are one document: in tests over documents, in intervals, and in the folds of probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.known_model import Model
from hypothesis import given, settings
from hypothesis import strategies as st

import moelens
from moelens import MoeLensError
from moelens.analysis import compare
from moelens.analysis.counting import TokenKinds, balanced, document_groups, in_parts, tabulate
from moelens.analysis.samples import Sample, TokenBlock
from moelens.probes import probe
from moelens.recording import Recording, import_routes, record
from moelens.recording.repeated_texts import text_groups

E, K, LENGTH = 8, 2, 12


@dataclass
class Fake:
    """A recording of `texts` `[document]`, each a number; copies have the same tokens, routes and labels."""

    texts: Sequence[int]
    shift: int = 0
    n_experts: int = E
    layers: tuple[int, ...] = (0,)
    top_k: int = K
    captures: tuple[str, ...] = ("routes", "residuals")
    families: tuple[str, ...] = ("honorifics",)

    def __post_init__(self) -> None:
        self.n_tokens = len(self.texts) * LENGTH
        self.manifest: dict[str, Any] = {"model": {"name": "fake"}}
        self.folder = SimpleNamespace(location="/runs/fake")
        drawn = [np.random.default_rng(text) for text in self.texts]
        has = [rng.random((LENGTH, 1)) < 0.3 for rng in drawn]
        scores = [rng.gumbel(size=(LENGTH, E)) + 2 * h * np.eye(E)[5] for rng, h in zip(drawn, has, strict=True)]
        self.has = np.concatenate(has)
        self.routes = (np.argsort(-np.concatenate(scores), 1)[:, :K] + self.shift * self.has) % E

    def text_ids(self) -> np.ndarray:
        return np.array([list(self.texts).index(text) for text in self.texts])

    def column(self, name: str) -> np.ndarray:
        row = np.arange(self.n_tokens)
        constant = {"char_start": 0 * row, "char_end": 0 * row + 1, "experts_L00": self.routes}
        return {"doc": row // LENGTH, "pos": row % LENGTH, "token_id": row % LENGTH, **constant}[name]

    def columns(self, names: list[str], start: int = 0, stop: int | None = None) -> Iterator[Any]:
        yield slice(0, self.n_tokens), [self.column(name) for name in names]

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        yield slice(0, self.n_tokens), self.routes[None]

    def matrix(self, family: str, rows: slice | None = None) -> Any:
        return ("尊敬語",), self.has[slice(None) if rows is None else rows]

    def vector_parts(self, name: str, layer: int) -> Iterator[Any]:
        import pyarrow as pa

        document = np.eye(max(self.texts) + 1)[np.repeat(self.texts, LENGTH)].astype(np.float32)
        values = pa.FixedSizeListArray.from_arrays(pa.array(document.ravel()), document.shape[1])
        yield pa.table({"doc": self.column("doc"), "pos": self.column("pos"), "values": values})


ONCE = Fake(range(24))
COPIES = Fake([*range(24), *range(24), *range(24)])


@pytest.mark.tried(
    "Inputs", "a corpus that holds texts several times", "tests and intervals count copies as one document"
)
def test_copies_make_no_test_surer() -> None:
    options: dict[str, Any] = {"given": None, "permutations": 199, "min_tokens": 2, "progress": False}
    once, copies = (moelens.analyze(r, labels=r, **options) for r in (ONCE, COPIES))
    assert copies.provenance["documents"] == once.provenance["documents"] == 24
    assert copies.n_tokens == 3 * once.n_tokens
    np.testing.assert_allclose(copies.lift, once.lift)
    tested = np.isfinite(once.p)
    assert tested.sum() > 3
    np.testing.assert_allclose(copies.p[tested], once.p[tested], rtol=0.05, atol=0.006)
    # The variance of permuted labels has N − 1 for N tokens, and thrice as many tokens here.
    np.testing.assert_allclose(copies.low[tested], once.low[tested], rtol=1e-3)
    np.testing.assert_allclose(copies.high[tested], once.high[tested], rtol=1e-3)
    assert copies.provenance["effective_documents"] == once.provenance["effective_documents"]


def test_copies_of_a_long_text_are_shortened_together() -> None:
    sizes, texts = np.array([50, 5, 5, 50, 5, 5]), np.array([0, 1, 2, 0, 4, 5])
    docs = np.repeat(np.arange(6), sizes)
    place = np.arange(120) - (np.cumsum(sizes) - sizes)[docs]
    block = TokenBlock(docs, place != 1, np.zeros((120, 0), bool), {})
    sample = Sample.of([block], (), texts=texts, max_share=0.1)  # raised to 2 / 5, for five texts
    assert sample.sizes.tolist() == [10, 4, 4, 4, 4]
    assert (sample.documents, sample.shortened, sample.cut) == (5, 1, 88)
    assert np.flatnonzero((docs == 3) & (sample.kind >= 0)).tolist() == [60, 62, 63, 64, 65]
    assert sample.copies == pytest.approx((2 * 10 + 16) / 26)
    own = [[*range(a, b)] for a, b in pairwise(sample.bounds.tolist())]
    assert sample.group.tolist() == [0, 1, 2, 0, 3, 4]
    assert [len(tokens) for tokens in own] == sizes.tolist()


def test_copies_make_no_comparison_surer() -> None:
    results = []
    for texts in (ONCE.texts, COPIES.texts):
        a, b = Fake(texts), Fake(texts, shift=1)
        results.append(compare(a, b, labels=b, permutations=199, min_tokens=2))
    once, copies = results
    assert (np.isfinite(once.p) == np.isfinite(copies.p)).all()
    tested = np.isfinite(once.p)
    np.testing.assert_allclose(copies.p[tested], once.p[tested], rtol=0.05, atol=0.006)


def test_a_single_text_is_not_a_sample() -> None:
    for texts in ([3], [3] * 40):
        fake = Fake(texts)
        with pytest.raises(MoeLensError, match=r"expected 2 or more documents of different texts, .*, got 1; record"):
            moelens.analyze(fake, labels=fake, permutations=19, progress=False)


@pytest.mark.tried("Inputs", "such a corpus, for probes", "copies are in one fold, so that none is learned by heart")
def test_copies_are_in_one_fold() -> None:
    """The features tell the text, and the classes are drawn by text: what can be known is learned by heart."""
    texts = [*range(30), *range(30)]
    drawn = np.random.default_rng(0).integers(0, 2, 30)
    classes = [f"class {drawn[text]}" for text in texts for _ in range(LENGTH)]
    result = probe(Fake(texts), classes, ["residuals"], probes=["centroid"], progress=False)
    assert result.documents == 30
    assert result.best.accuracy < 0.7
    leaking = Fake(texts)
    leaking.text_ids = lambda: np.arange(60)  # type: ignore[method-assign]
    assert probe(leaking, classes, ["residuals"], probes=["centroid"], progress=False).best.accuracy == 1
    with pytest.raises(MoeLensError, match="as many documents of different texts as folds, got 4 for 5 folds; record"):
        probe(Fake([0, 1, 2, 3] * 5), ["a", "b"] * (20 * LENGTH // 2), progress=False)


sizes_and_texts = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 6), min_size=n, max_size=n),
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
        st.integers(1, 10),
    )
)


@given(sizes_and_texts)
def test_groups_hold_whole_texts(drawn: tuple[list[int], list[int], int]) -> None:
    sizes, texts, groups = np.array(drawn[0]), np.array([drawn[1].index(t) for t in drawn[1]]), drawn[2]
    counted = np.where(np.arange(len(sizes)) % 7 == 3, 0, sizes)
    bounds, group = document_groups(sizes, counted, groups, texts)
    assert (bounds[0], bounds[-1]) == (0, sizes.sum())
    assert (np.diff(bounds) >= 0).all()
    assert len(bounds) == len(group) + 1
    of_token = np.repeat(group, np.diff(bounds))
    text, document = np.repeat(texts, sizes), np.repeat(np.arange(len(sizes)), sizes)
    used = counted[document] > 0
    for number in np.unique(text[used]):
        assert len(np.unique(of_token[used & (text == number)])) == 1
    assert len(np.unique(of_token)) <= max(groups, 1)
    if len(set(drawn[1])) == len(sizes) and used.all():
        np.testing.assert_array_equal(group[np.searchsorted(bounds, np.cumsum(sizes)) - 1], balanced(sizes, groups))


@settings(max_examples=25, deadline=None)
@given(sizes_and_texts, st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_tables_of_groups_are_sums_over_their_tokens(drawn: Any, step: int, seed: int) -> None:
    sizes, texts, groups = np.array(drawn[0]), np.array([drawn[1].index(t) for t in drawn[1]]), drawn[2]
    rng, n = np.random.default_rng(seed), int(sizes.sum())
    labels, strata = rng.random((n, 2)) < 0.4, rng.integers(0, 3, n)
    indices = np.argsort(rng.random((n, 2, E)), 2)[:, :, :K]
    kinds, kind = TokenKinds.of(labels, [strata])
    kind = np.where(rng.random(n) < 0.2, -1, kind)
    bounds, group = document_groups(sizes, sizes, groups, texts)
    routes = np.moveaxis(indices, 1, 0)
    parts = [(slice(i, min(i + step, n)), routes[:, i : i + step]) for i in range(0, n, step)]
    tables = tabulate(iter(parts), kind, bounds, kinds, E, 2, group)
    of_token = np.repeat(group, np.diff(bounds))
    for g in range(group.max() + 1):
        own = (of_token == g) & (kind >= 0)
        chosen = np.eye(E, dtype=int)[indices[own]].sum(2)  # [token, layer, expert]
        np.testing.assert_array_equal(tables.experts[g], chosen.sum(0))
        np.testing.assert_array_equal(tables.cells[g], np.einsum("tle,tn->len", chosen, labels[own]))
        np.testing.assert_array_equal(tables.kind_tokens[g], np.bincount(kind[own], minlength=len(kinds.labels)))
    whole = tabulate(in_parts(indices, np.arange(n)), kind, bounds, kinds, E, 2, group)
    np.testing.assert_allclose(tables.excess, whole.excess, atol=1e-4)


LINES = [
    "社長は来週の水曜日に大阪の工場をご覧になる予定です。",
    "お客様から届いた手紙を読んで、担当者が返事を書いた。",
    "駅前の古い喫茶店では今でも焼きたてのパンを出している。",
    "山の上の小屋まで歩くと、雲の切れ間に海が光って見えた。",
    "図書館の閉館時間が早くなり、帰りに寄れなくなってしまった。",
    "新しい橋ができてから、島の人は船を待たずに町へ出られる。",
]


@pytest.mark.tried("Inputs", "texts that differ in a date or a few words", "they count as one document, and it is said")
def test_near_copies_are_grouped_and_counted() -> None:
    long = "".join(LINES)
    near = [long, long.replace("水曜日", "木曜日"), long.replace("。", "。\n") + "3月12日", long + "以上です。"]
    groups = text_groups([*near, *LINES, LINES[0].replace("です。", "でございます!"), None])
    assert groups.ids.tolist() == [0, 0, 0, 0, 4, 5, 6, 7, 8, 9, 4, 11]
    assert (groups.copies, groups.near) == (0, 4)
    assert groups.repeated == 12 / 14, "two variants are in one group only"


def test_texts_that_share_a_third_are_apart_but_their_sentences_are_counted() -> None:
    texts = ["".join(LINES[(i + j) % 6] for j in (0, k, 5)) for i in range(6) for k in (1, 2)]
    groups = text_groups(texts)
    assert groups.ids.tolist() == list(range(12))
    assert groups.repeated == 1.0
    assert text_groups(LINES).repeated == 0


def test_a_result_says_what_is_repeated() -> None:
    result = moelens.analyze(COPIES, labels=COPIES, given=None, permutations=19, min_tokens=2, progress=False)
    about = result.provenance | {"copied_documents": 48, "nearly_copied_documents": 2, "repeated_sentences": 0.25}
    lines = "\n".join(replace(result, provenance=about).limits)
    assert "48 documents are copies of others and 2 near copies; each counts with them as one document" in lines
    assert "25% of the sentences occur in several documents" in lines
    assert "repeated text" not in "\n".join(result.limits)


def test_text_ids_of_recordings(tmp_path: Path) -> None:
    texts = ["はい", "", "いいえ", "はい", "", "はい\u3000"]
    groups = record(Model(), texts, tmp_path / "run", progress=False).text_groups
    assert (groups.ids.tolist(), groups.copies, groups.near) == ([0, 1, 2, 0, 1, 0], 2, 1)
    np.savez(tmp_path / "r.npz", expert_ids=np.zeros((4, 1, 1), int), sequence_lengths=np.array([2, 2]))
    unknown: Recording = import_routes(tmp_path / "r.npz", tmp_path / "imported")
    assert unknown.text_ids().tolist() == [0, 1], "texts that are not known are not the same text"
