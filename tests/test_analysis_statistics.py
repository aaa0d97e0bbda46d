"""Tests of the statistics by simulation: error rates, power, and coverage of intervals."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import simulations
from moelens.analysis import Counts, Specialization, analyze, specialization_from_arrays
from moelens.analysis.counting import TokenKinds, balanced, document_bounds, in_parts, tabulate
from moelens.analysis.randomize import Excess
from moelens.analysis.samples import Sample, TokenBlock
from moelens.errors import MoeLensError, UnknownNameError
from moelens.japanese import Labels


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the k best experts `[token, layer = 1, slot]` of `scores` `[token, expert]`."""
    return np.argpartition(-scores, k, axis=1)[:, None, :k].astype(np.uint8)


def null(
    seed: int,
    given: str | None = None,
    documents: int = 60,
    experts: int = 16,
    labels: int = 3,
    skew: tuple[float, float] = (0.6, 1.4),
) -> Specialization:
    """Analyse documents and token types that differ in labels and in experts, independently of each other."""
    rng = np.random.default_rng(seed)
    docs = np.repeat(np.arange(documents), rng.integers(5, 40, documents))
    ids = rng.integers(0, 30, len(docs))
    often = rng.beta(*skew, (documents, labels))[docs]
    if given:  # within a type labels and routes are unrelated; the type itself decides much of both
        often = often * rng.random((30, labels))[ids]
    has = rng.random(often.shape) < often
    taste = rng.normal(0, 1, (documents, experts))[docs] + rng.gumbel(size=(len(docs), experts))
    if given:
        taste += rng.normal(0, 1.5, (30, experts))[ids]
    names = [str(i) for i in range(labels)]
    return specialization_from_arrays(
        top_k(taste, 2), has, names, docs, ids, experts, [0], given=given, permutations=199, seed=seed
    )


NULLS = [
    {},
    {"given": "token"},
    {"documents": 120, "experts": 64, "labels": 5, "skew": (0.2, 4)},
    {"documents": 120, "experts": 64, "labels": 5, "skew": (0.2, 4), "given": "token"},
]


@pytest.mark.slow
@pytest.mark.parametrize("case", NULLS, ids=str)
def test_error_rates_in_300_runs_without_a_specialist(case: dict[str, Any]) -> None:
    runs = [null(seed, **case) for seed in range(300)]
    assert np.mean([(run.p_family < 0.05).any() for run in runs]) <= 0.07
    # Nothing is to be found, so every discovery is false: the false discovery rate is the share of runs with one.
    assert np.mean([(run.q < 0.05).any() for run in runs]) <= 0.05


def with_specialist(seed: int, tokens: int = 50_000, experts: int = 256, k: int = 8) -> Specialization:
    """Analyse routes in which expert 3 of 256 takes tokens of the first label twice as often as other tokens."""
    rng = np.random.default_rng(seed)
    docs = np.sort(rng.integers(0, 250, tokens))
    has = rng.random((tokens, 2)) < rng.beta(1, 19, (250, 2))[docs]
    indices = (rng.integers(0, experts, (tokens, 1)) + np.arange(k) * (experts // k)) % experts
    taken = (indices == 3).any(1)
    base = taken.mean()
    drawn = has[:, 0] & ~taken & (rng.random(tokens) < base / (1 - base))
    indices[drawn, 0] = 3
    return specialization_from_arrays(
        indices[:, None].astype(np.uint8), has, ("a", "b"), docs, docs, experts, [0], permutations=199, seed=seed
    )


@pytest.mark.slow
def test_a_specialist_of_twice_the_base_rate_is_found() -> None:
    runs = [with_specialist(seed) for seed in range(100)]
    assert np.median([run.lift[0, 3, 0] for run in runs]) == pytest.approx(2 / 1.05, abs=0.1)
    assert np.mean([run.p_family[0, 3, 0] < 0.05 for run in runs]) >= 0.95
    found = [run.q < 0.05 for run in runs]
    assert np.mean([f[0, 3, 0] for f in found]) >= 0.95
    false = [(f.sum() - f[0, 3, 0]) / max(f.sum(), 1) for f in found]
    assert np.mean(false) <= 0.05
    inside = [run.low[0, 3, 0] <= 2 / 1.05 <= run.high[0, 3, 0] for run in runs]
    assert np.mean(inside) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("regime", simulations.REGIMES)
def test_error_and_coverage_in_simulated_corpora(regime: str) -> None:
    found = simulations.simulate(regime, 60)
    if regime.endswith("not given"):
        return  # the control that the regime needs is left out
    assert found["error"] <= 0.07 + 2 * np.sqrt(0.07 * 0.93 / 60)
    if regime in ("5 documents", "3 documents", "2 documents"):
        assert (found["error"], found["coverage"]) == (0, "none")
    else:
        assert found["coverage"] >= 0.92


def test_the_page_of_simulations_shows_the_runs_that_were_made() -> None:
    """300 of every regime; where what drives labels and routes is controlled, the level and the intervals hold."""
    root = Path(__file__).parents[1]
    found = json.loads((root / "benchmarks/results/simulations.json").read_text("utf-8"))
    assert [row["regime"] for row in found] == list(simulations.REGIMES)
    page = (root / "docs/simulations.md").read_text("utf-8")
    for row in found:
        shown = [f"{value:.3f}" if isinstance(value, float) else value for value in list(row.values())[4:]]
        numbers = " | ".join(map(str, [row["given"], row["documents"], row["runs"], *shown]))
        assert any(line.startswith(f"| {row['regime']} |") and f"| {numbers} |" in line for line in page.splitlines())
        assert row["runs"] == 300
        if not row["regime"].endswith("not given"):
            assert row["error"] <= 0.07
            assert row["coverage"] == "none" or row["coverage"] >= 0.92


def sized(*sizes: int, **settings: Any) -> Specialization:
    """Analyse documents of these sizes; expert 0 takes every token of the label."""
    docs = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.arange(len(docs)) % 4 == 0
    indices = np.where(labels, 0, 1 + np.arange(len(docs)) % 3)[:, None, None]
    return specialization_from_arrays(
        indices, labels[:, None], ["丁寧語"], docs, docs * 0, 4, [0], permutations=199, progress=False, **settings
    )


def test_a_long_document_is_shortened_and_this_is_said() -> None:
    found = sized(*[50] * 19, 20_000)
    about = found.provenance
    assert (about["documents"], about["shortened_documents"]) == (20, 1)
    assert about["tokens_cut"] == 20_000 - 105  # of 950 + 105 tokens it has a tenth
    assert found.n_tokens == 950 + 105
    assert about["effective_documents"] == pytest.approx(1055**2 / (19 * 50**2 + 105**2))
    assert found.significant[0, 0, 0]
    said = "not counted: 19,895 tokens beyond the 10% of all that a document, with its copies, may have (1 short"
    assert said in repr(found)
    assert "effective number of documents 19.0: p is at least 0.00500" in repr(sized(*[50] * 19))
    whole = sized(*[50] * 19, 2000, max_share=1)
    assert whole.n_tokens == 2950
    assert not whole.significant.any(), "one document has two thirds of the tokens"


@pytest.mark.parametrize("documents", [2, 3, 5])
def test_few_documents_have_no_significance_and_no_interval(documents: int) -> None:
    found = sized(*[200] * documents)
    assert np.nanmin(found.p) >= 2.0 ** (1 - documents)
    assert np.nanmin(found.p_family) >= 2.0 ** (1 - documents)
    assert np.isnan(found.low).all()
    assert not found.significant.any()
    assert f"p is at least {2.0 ** (1 - documents):#.3g}, so nothing can be significant" in repr(found)
    more = sized(*[200] * 8)
    assert more.significant[0, 0, 0]
    assert np.isfinite(more.low[0, 0, 0])


def test_lifts_that_token_identity_explains_are_counted() -> None:
    free = specialization_from_arrays(**corpus())
    explained = int((free.significant & (free.lift > 1) & (free.excess_left < 0.5)).sum())
    assert explained
    assert f"{explained} of " in repr(free)
    assert 'test them within tokens (given="token", --given token)' in repr(free)


def test_columns_of_the_corpus_are_controls(demo_recording: Any) -> None:
    assert demo_recording.metadata == ("id", "register", "honorifics", "situation", "setting", "roles")
    given = ("corpus.register", "token")
    found = analyze(demo_recording, "pos", given=given, permutations=99)
    assert found.given == given
    doc, text = demo_recording.column("doc"), demo_recording.column("char_end") > demo_recording.column("char_start")
    values = np.array(demo_recording.documents(["register"])["register"].to_pylist())[doc]
    names, labels = Labels.open_or_create(demo_recording).matrix("pos")
    again = specialization_from_arrays(
        demo_recording.indices()[text],
        labels[text],
        names,
        doc[text],
        demo_recording.column("token_id")[text],
        demo_recording.n_experts,
        demo_recording.layers,
        given=("register", "token"),
        strata={"register": np.unique(values, return_inverse=True)[1][text]},
        permutations=99,
    )
    assert found.expected == pytest.approx(again.expected)
    assert found.p == pytest.approx(again.p, nan_ok=True, abs=0.02)
    assert not np.allclose(found.expected, analyze(demo_recording, "pos", given="token", permutations=19).expected)
    with pytest.raises(UnknownNameError, match=r"'corpus\.honorific'; did you mean 'corpus\.honorifics'.*\(given=\)"):
        analyze(demo_recording, "pos", given="corpus.honorific")


def corpus(seed: int = 0, tokens: int = 3000) -> dict[str, Any]:
    """Make tokens of 12 types, which largely decide label and route; types 10 and 11 decide the label fully."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 12, tokens)
    rate = np.concatenate([rng.random(10), [0, 1]])[ids]
    taste = rng.normal(0, 2, (12, 8))[ids] + rng.gumbel(size=(tokens, 8))
    return {
        "indices": top_k(taste, 2),
        "label_matrix": (rng.random(tokens) < rate)[:, None],
        "names": ["丁寧語"],
        "docs": np.arange(tokens) // 30,
        "token_ids": ids,
        "n_experts": 8,
        "layers": [0],
        "permutations": 199,
    }


@pytest.mark.parametrize("given", ["token", ("token", "script")])
def test_expected_is_the_mean_over_labels_permuted_within_strata(given: Any) -> None:
    data = corpus()
    ids, script = data["token_ids"], np.arange(3000) % 2
    stratum = ids if given == "token" else ids * 2 + script
    found = specialization_from_arrays(**data, given=given, strata={"script": script})
    rng, labels, counts = np.random.default_rng(1), data["label_matrix"][:, 0], []
    place = np.argsort(stratum, kind="stable")
    for _ in range(400):
        moved = np.empty_like(labels)
        moved[place] = labels[np.lexsort((rng.random(3000), stratum))]
        counts.append(np.bincount(data["indices"][moved].ravel(), minlength=8))
    error = np.std(counts, axis=0) / 20
    assert np.abs(found.expected[0, :, 0] - np.mean(counts, 0)).max() < 4 * error.max()
    # Tokens are independent here, so the spread over documents is that of permutations.
    assert found.null_sd[0, :, 0] == pytest.approx(np.std(counts, axis=0), rel=0.3)


def test_a_lift_explained_by_token_identity_is_not_significant_within_tokens() -> None:
    free, held = (specialization_from_arrays(**corpus(), given=given) for given in (None, "token"))
    assert free.significant.any()
    assert not held.significant.any()
    assert np.array_equal(free.lift, held.lift)
    assert free.lift_given == pytest.approx(free.lift)
    assert held.lift_given == pytest.approx(held.lift_given_token)
    assert free.lift_given_token == pytest.approx(held.lift_given_token)
    strong = np.abs(free.lift - 1) > 0.3
    assert np.abs(held.excess_left[strong]).max() < 0.3
    assert "control: 199 permutations over documents · token identity not controlled" in repr(free)
    assert "control: within token, 199 permutations over documents · token identity controlled" in repr(held)
    low, high = held.null_band
    assert ((low < held.lift_given) & (held.lift_given < high)).mean() > 0.8


def test_an_effect_that_the_token_does_not_explain_is_found_within_tokens() -> None:
    data = corpus(3)
    taken = data["label_matrix"][:, 0] & (np.random.default_rng(0).random(3000) < 0.3)
    data["indices"][taken, 0, 0] = 5
    data["indices"][taken & (data["indices"][:, 0, 1] == 5), 0, 1] = 4
    first = specialization_from_arrays(**data, given="token").top(1)[0]
    assert (first.expert, first.significant) == (5, True)
    assert first.low > 1
    assert first.low < first.lift_given < first.high


def test_counts_do_not_depend_on_the_parts() -> None:
    data = corpus()
    indices, labels, docs, ids = (data[k] for k in ("indices", "label_matrix", "docs", "token_ids"))
    kinds, kind = TokenKinds.of(labels, [ids])
    sizes = np.bincount(docs)
    bounds = document_bounds(sizes, sizes, 7)
    whole = tabulate(in_parts(indices, np.arange(3000)), kind, bounds, kinds, 8, 1)
    routes = np.moveaxis(indices, 1, 0)
    parts = [(slice(i, min(i + 700, 3000)), routes[:, i : i + 700]) for i in range(0, 3000, 700)]
    again = tabulate(iter(parts), kind, bounds, kinds, 8, 1)
    for name in ("cells", "experts", "informative", "by_stratum"):
        assert np.array_equal(getattr(whole, name), getattr(again, name))
    assert whole.excess == pytest.approx(again.excess, abs=1e-3)
    assert whole.experts.sum() == 2 * 3000


@pytest.mark.parametrize("step", [1, 7, 450, 5000])
def test_samples_do_not_depend_on_the_blocks(step: int) -> None:
    data = corpus(tokens=1000)
    docs, ids = data["docs"] * 3, data["token_ids"][:, None]  # numbers of documents may have gaps
    labels = np.hstack([data["label_matrix"], (np.arange(1000) % 40 == 0)[:, None]])
    keep = (np.arange(1000) % 5 > 0) & (docs != 6)
    parts = [slice(i, i + step) for i in range(0, 1000, step)]
    blocks = (
        TokenBlock(docs[p], keep[p], labels[p], {"token": ids[p], "two": np.hstack([ids, ids])[p]}) for p in parts
    )
    sample = Sample.of(blocks, ["丁寧語", "尊敬語"], [("token",), ("two", "token")], groups=10)
    assert np.array_equal(sample.label_matrix(slice(0, 1000)), labels & keep[:, None])
    assert np.array_equal(sample.kind >= 0, keep)
    assert (sample.documents, len(sample.bounds)) == (33, 11)
    assert not np.isin(sample.bounds[1:-1], np.flatnonzero(docs[1:] == docs[:-1]) + 1).any()
    assert (np.abs(np.diff(np.cumsum(np.append(0, keep))[sample.bounds]) - keep.sum() / 10) < 30).all()
    assert np.array_equal(sample.kinds.strata[0], sample.kinds.strata[1])
    settled = np.isin(ids[:, 0], [i for i in range(12) if len(np.unique(labels[keep & (ids[:, 0] == i)], axis=0)) < 2])
    assert np.array_equal(sample.kinds.strata[0][sample.kind[keep]] < 0, settled[keep])


def test_a_documents_excess_is_its_doubly_centred_sum_corrected_for_its_share_of_the_stratum() -> None:
    data = corpus(tokens=600)
    indices, labels, docs, ids = (data[k] for k in ("indices", "label_matrix", "docs", "token_ids"))
    kinds, kind = TokenKinds.of(labels, [ids])
    excess = Excess.of(tabulate(in_parts(indices, np.arange(600)), kind, np.arange(0, 601, 30), kinds, 8, 1), kinds)
    chosen = (indices[:, 0, :, None] == np.arange(8)).any(1).astype(float)
    for s in range(12):
        chosen[ids == s] -= chosen[ids == s].mean(0)
    off = labels[:, 0] - np.array([labels[ids == s, 0].mean() for s in range(12)])[ids]
    uncorrected = np.array([(chosen * off[:, None])[docs == g].sum(0) for g in range(20)])
    assert excess.total[0, :, 0] == pytest.approx(uncorrected.sum(0), abs=1e-4)
    score = off.copy()
    for s in range(12):
        share = np.bincount(docs[ids == s], minlength=20) / (ids == s).sum()
        for g in range(20):
            here = (ids == s) & (docs == g)
            if here.any():
                score[here] += off[here].mean() * (1 / np.sqrt(1 - 2 * share[g] + (share**2).sum()) - 1)
    expected = np.array([(chosen * score[:, None])[docs == g].sum(0) for g in range(20)])
    assert excess.by_group[:, 0, :, 0] == pytest.approx(expected, abs=1e-4)


def test_counts_of_several_recordings_add_up_exactly() -> None:
    data = corpus()
    indices, labels, docs = data["indices"], data["label_matrix"], data["docs"]
    whole = Counts.from_arrays(indices, labels, ["丁寧語"], 8, [0], docs)
    edges = [0, 450, 1500, 1530, 3000]
    parts = [Counts.from_arrays(indices[a:b], labels[a:b], ["丁寧語"], 8, [0], docs[a:b]) for a, b in pairwise(edges)]
    total = parts[0] + parts[1] + parts[2] + parts[3]
    for name in ("cells", "experts", "labels", "tokens"):
        assert np.array_equal(getattr(total, name), getattr(whole, name))
    many = total + total + total
    assert len(many.tokens) == 200
    assert np.array_equal(many.count, 3 * whole.count)
    assert many.n_tokens == 9000


def test_groups_of_documents_have_similar_sizes() -> None:
    sizes = np.random.default_rng(0).integers(1, 60, 5000)
    filled = np.bincount(balanced(sizes, 200), sizes)
    assert len(filled) == 200
    assert filled.max() < 1.5 * filled.mean()
    assert (np.diff(balanced(sizes, 200)) >= 0).all()


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"given": "word"}, UnknownNameError, "unknown control 'word'; allowed: token (given=)"),
        (
            {"label_matrix": np.ones((3000, 1), bool)},
            MoeLensError,
            "expected a label of family 'labels' on 20 or more tokens of 2 or more documents and not on all tokens, "
            "got none: 丁寧語 is on all tokens; record more text, or lower min_tokens (--min-tokens)",
        ),
        (
            {"docs": np.arange(3000) // 2800, "max_share": 1},
            MoeLensError,
            "expected 2 or more documents of similar size, got 2, of which one has 93% of the tokens (effective number "
            "1.14); record more documents, or shorten this one",
        ),
        (
            {"label_matrix": np.zeros((3000, 1), bool)},
            MoeLensError,
            "no token has any (丁寧語); record text that has",
        ),
        (
            {"label_matrix": np.arange(3000)[:, None] < 30},
            MoeLensError,
            "got none: 丁寧語 is on 30 tokens of 1 document; record",
        ),
        (
            {"token_ids": np.arange(3000), "given": "token"},
            MoeLensError,
            "got none: 丁寧語 is the same within each token; record",
        ),
    ],
)
def test_labels_that_cannot_be_tested_are_refused(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        specialization_from_arrays(**(corpus() | change))
    assert text in str(caught.value)
