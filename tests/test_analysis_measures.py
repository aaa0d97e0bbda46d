"""Tests of each measure against a plain loop in float64, and on routing that was published with its scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.analysis import (
    Counts,
    Measure,
    cluster_order,
    coactivation,
    coactivation_lift,
    consecutive_overlap,
    consecutive_repetition,
    dead_experts,
    expert_information,
    family_information,
    flow_shares,
    gate_score,
    label_combinations,
    layer_information,
    log_odds,
    max_violation,
    measure,
    next_tokens,
    normalised_jsd,
    npmi,
    overlap,
    pooled_gates,
    risk_difference,
    route_flow,
    router_entropy,
    saliency,
    saturation,
    selected_experts,
    selection_margin,
    standing_committee,
    super_experts,
    token_score,
    vocabulary_specialization,
)
from moelens.analysis.measures import ROUTE_MEASURES
from moelens.errors import CheckError, MoeLensError, RecordingError, UnknownNameError
from moelens.japanese import Labels

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "routing"
T, L, E, K = 80, 3, 6, 3


def sample(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return routes `[token, layer, slot]` and weights of the same shape."""
    rng = np.random.default_rng(seed)
    indices = np.argsort(rng.random((T, L, E)), axis=2)[:, :, :K].astype(np.uint8)
    return indices, -np.sort(-rng.random((T, L, K)), axis=2)


def shuffled(indices: np.ndarray, weights: np.ndarray, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The same routes with the slots of each token and layer in another order."""
    order = np.argsort(np.random.default_rng(seed).random(indices.shape), axis=2)
    return np.take_along_axis(indices, order, 2), np.take_along_axis(weights, order, 2)


def by_cell(value: Callable[[int, int, int, int], float], seed: int = 1) -> tuple[Counts, np.ndarray]:
    """Return counts of random routes and labels, and `value(both, expert, label, all)` of each cell, by loops."""
    indices, _ = sample(seed)
    labels = np.random.default_rng(seed).random((T, 2)) < 0.3
    expected = np.zeros((L, E, 2))
    for layer in range(L):
        for expert in range(E):
            chosen = np.array([expert in token[layer] for token in indices])
            for label in range(2):
                has = labels[:, label]
                expected[layer, expert, label] = value(int((chosen & has).sum()), int(chosen.sum()), int(has.sum()), T)
    return Counts.from_arrays(indices, labels, ("a", "b"), E, range(L)), expected


def plain_information(table: np.ndarray) -> float:
    """Return the mutual information of a table of counts in bits, by its definition."""
    p = table / table.sum()
    rows, columns = p.sum(1), p.sum(0)
    return sum(p[i, j] * math.log2(p[i, j] / rows[i] / columns[j]) for i, j in np.ndindex(p.shape) if p[i, j])


OF_CELLS = {
    "risk_difference": (risk_difference, lambda c, n, m, N: c / m - (n - c) / (N - m)),
    "log_odds": (
        log_odds,
        lambda c, n, m, N: math.log((c + 0.5) * (N - n - m + c + 0.5) / ((n - c + 0.5) * (m - c + 0.5))),
    ),
    "npmi": (npmi, lambda c, n, m, N: math.log(c / N / (n / N * m / N)) / -math.log(c / N) if c else -1.0),
    "expert_information": (
        expert_information,
        lambda c, n, m, N: plain_information(np.array([[c, n - c], [m - c, N - n - m + c]])),
    ),
}


@pytest.mark.parametrize("name", OF_CELLS)
def test_measures_of_labels_equal_their_formulas(name: str) -> None:
    function, formula = OF_CELLS[name]
    counts, expected = by_cell(formula)
    assert function(counts) == pytest.approx(expected)


def test_information_of_a_layer_equals_that_of_the_table_of_choices() -> None:
    counts, _ = by_cell(lambda *_: 0)
    for layer, label in np.ndindex(L, 2):
        chosen = counts.count[layer, :, label]
        table = np.stack([chosen, counts.expert_tokens[layer] - chosen], axis=1)
        assert layer_information(counts)[layer, label] == pytest.approx(plain_information(table))


def test_information_of_a_family_equals_a_plain_loop() -> None:
    (indices, _), rng = sample(), np.random.default_rng(1)
    labels = rng.random((T, 2)) < 0.4
    names, each = label_combinations(labels, ("a", "b"))
    assert set(names) == {"none", "a", "b", "a + b"}
    assert (each.sum(1) == 1).all()
    found = family_information(Counts.from_arrays(indices, each, names, E, range(L)))
    kind = labels @ [1, 2]
    for layer in range(L):
        table = np.zeros((E, 4))
        for token, slot in np.ndindex(T, K):
            table[indices[token, layer, slot], kind[token]] += 1
        assert found[layer] == pytest.approx(plain_information(table))
    alone = Counts.from_arrays(indices, labels[:, :1], ("a",), E, range(L))  # tokens without the label are a class
    assert family_information(alone) == pytest.approx(layer_information(alone)[:, 0])
    with pytest.raises(CheckError, match="expected counts of labels of which each token has one or none, got tokens"):
        family_information(Counts.from_arrays(indices, np.ones((T, 2), bool), ("a", "b"), E, range(L)))


@pytest.mark.parametrize("name", ["family_information", "choice_share"])
def test_measures_of_a_family_of_a_recording(name: str, demo_recording: Any) -> None:
    found = measure(demo_recording, name, "honorifics")
    labels = Labels.open_or_create(demo_recording).matrix("honorifics")
    if name == "choice_share":
        assert found.values.sum(1)[:, found.values[0].any(0)] == pytest.approx(1)
        return
    names, each = label_combinations(labels[1], labels[0])
    shape = demo_recording.n_experts, demo_recording.layers
    counts = Counts.from_arrays(demo_recording.indices(), each, names, *shape)
    assert tuple(found.axes) == ("layer",)
    assert found.values == pytest.approx(family_information(counts))


def test_shares_of_tokens_choices_and_pairs() -> None:
    indices, _ = sample()
    counts = Counts.from_arrays(indices, np.ones((T, 1), bool), ("a",), E, range(L))
    assert counts.share().sum(1) == pytest.approx(K)
    assert counts.share("choices").sum(1) == pytest.approx(1)
    with pytest.raises(UnknownNameError, match="unknown share 'words'; allowed: tokens, choices"):
        counts.share("words")  # type: ignore[arg-type]
    pairs = np.zeros((L - 1, E, E), int)
    for token, layer, i, j in np.ndindex(T, L - 1, K, K):
        pairs[layer, indices[token, layer, i], indices[token, layer + 1, j]] += 1
    assert flow_shares(pairs, counts.expert_tokens[:-1]) == pytest.approx(route_flow(indices, E), nan_ok=True)
    with pytest.raises(CheckError, match=r"expected pairs \[layer, expert, next expert\] and expert_tokens"):
        flow_shares(pairs, counts.expert_tokens)
    with pytest.raises(CheckError, match="expected no pair with more tokens than its first expert, got some"):
        flow_shares(pairs, counts.expert_tokens[:-1] // 4)


def test_counts_by_token_type_give_vocabulary_specialization() -> None:
    indices, ids = sample()[0], np.arange(T) % 4
    of_type = ids[:, None] == np.arange(4)
    table = [
        [[(of_type[:, t] & (indices[:, layer] == e).any(1)).sum() for t in range(4)] for e in range(E)]
        for layer in range(L)
    ]
    tokens = [[(indices[:, layer] == e).sum() for e in range(E)] for layer in range(L)]
    counts = Counts.from_table(table, tokens, of_type.sum(0), list("wxyz"), range(L), K)
    _, shares = vocabulary_specialization(indices, ids, E)
    assert np.moveaxis(counts.share(), 2, 0) == pytest.approx(shares)


def test_information_equals_the_entropy_of_a_label_that_decides_the_expert() -> None:
    labels = np.tile([True, False], 20)[:, None]
    counts = Counts.from_arrays(np.where(labels, 0, 1)[:, None], labels, ("a",), 3, [0])
    assert layer_information(counts).item() == pytest.approx(1)
    assert expert_information(counts)[0, :, 0] == pytest.approx([1, 1, 0])
    assert npmi(counts)[0, :2, 0] == pytest.approx([1, -1])
    assert math.isnan(npmi(counts)[0, 2, 0])
    assert dead_experts(counts).tolist() == [[False, False, True]]
    assert max_violation(counts).tolist() == [0.5]


def test_entropy_margin_and_divergence() -> None:
    scores = np.random.default_rng(0).random((5, 7))
    p = scores / scores.sum(1, keepdims=True)
    assert router_entropy(scores) == pytest.approx([-sum(x * math.log(x) for x in row) for row in p])
    assert selection_margin(scores, 2) == pytest.approx([sorted(row)[-2] - sorted(row)[-3] for row in scores])
    assert np.isinf(selection_margin(np.array([0.3, 0.2, -np.inf]), 2))
    a, b = p[0], p[1]
    middle = (a + b) / 2
    jsd = sum(x * math.log(x / m) / 2 for y in (a, b) for x, m in zip(y, middle, strict=True))
    assert normalised_jsd(a, b) == pytest.approx(jsd / (math.log(7) - (router_entropy(a) + router_entropy(b)) / 2))
    assert normalised_jsd(a, a) == pytest.approx(0, abs=1e-12)
    assert np.isnan(normalised_jsd(np.ones(4), np.ones(4)))


@pytest.mark.parametrize("pairs", ["all", "adjacent"])
def test_coactivation_counts_pairs(pairs: Any) -> None:
    indices, weights = shuffled(*sample())
    both, alone = np.zeros((L, E, E)), np.zeros((L, E))
    for token, layer in np.ndindex(T, L):
        chosen = [i for _, i in sorted(zip(-weights[token, layer], indices[token, layer], strict=True))]
        for expert in chosen:
            alone[layer, expert] += 1
        for i, j in combinations(chosen, 2) if pairs == "all" else pairwise(chosen):
            both[layer, i, j] += 1
            both[layer, j, i] += 1
    assert coactivation(indices, E, pairs, weights) == pytest.approx(both / alone[:, :, None])
    if pairs == "all":
        assert coactivation_lift(indices, E) == pytest.approx(both * T / (alone[:, :, None] * alone[:, None, :]))
        assert coactivation(indices, E).sum(2) == pytest.approx(K - 1)


def test_similar_experts_are_next_to_each_other() -> None:
    group = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 4))
    similarity = np.where(group[:, None] == group, 1.0, 0.1) + np.random.default_rng(1).random((12, 12)) / 100
    order = group[cluster_order(similarity)]
    assert sorted(cluster_order(similarity)) == list(range(12))
    assert (np.diff(order) != 0).sum() == 2


def test_repetition_is_counted_within_documents() -> None:
    indices, weights = shuffled(*sample())
    best, docs = np.take_along_axis(indices, weights.argmax(2)[:, :, None], 2)[:, :, 0], np.arange(T) // 9
    first, common = np.zeros(L), np.zeros(L)
    pairs = [(t, t + 1) for t in range(T - 1) if docs[t] == docs[t + 1]]
    for t, u in pairs:
        for layer in range(L):
            first[layer] += best[t, layer] == best[u, layer]
            common[layer] += bool(set(indices[t, layer]) & set(indices[u, layer]))
    assert consecutive_repetition(indices, docs, weights) == pytest.approx(first / len(pairs))
    assert consecutive_overlap(indices, docs) == pytest.approx(common / len(pairs))
    for nothing in (
        consecutive_repetition(indices[:1], docs[:1], weights[:1]),
        consecutive_overlap(indices[:1], docs[:1]),
    ):
        assert np.isnan(nothing).all()


class Weighted:
    """A recording with these routes and weights."""

    n_experts, layers, top_k, n_tokens, manifest = E, tuple(range(L)), K, T, {"model": {"name": "weighted"}}

    def __init__(self, indices: np.ndarray, weights: np.ndarray) -> None:
        self.indices, self.weights = lambda: indices, lambda: weights

    def text_ids(self) -> np.ndarray:
        return np.arange(T)

    def column(self, name: str) -> np.ndarray:
        row = np.arange(T)
        phase = np.where(row % 9 < 5, "prefill", "decode")
        return {"doc": row // 9, "phase": phase, "char_start": row, "char_end": row + 1}[name]

    def columns(self, names: list[str]) -> Iterator[Any]:
        yield slice(0, T), [self.column(name) for name in names]

    def parts(self) -> Iterator[Any]:
        yield slice(0, T), np.moveaxis(self.indices(), 1, 0)


@pytest.mark.tried(
    "Measures",
    "routes whose slots are in any order, as those of DeepSeek-V3",
    "no measure changes; ranks are by weight",
)
@pytest.mark.parametrize("name", ROUTE_MEASURES)
def test_the_order_of_slots_means_nothing(name: str) -> None:
    indices, weights = sample()
    found = measure(Weighted(indices, weights), name).values
    for seed in range(3):
        again = measure(Weighted(*shuffled(indices, weights, seed)), name).values
        np.testing.assert_allclose(again, found, err_msg=name)


@pytest.mark.tried("Measures", "a measure of ranks of routes without weights", "refused; slots are no ranks")
@pytest.mark.parametrize("name", ["repetition", "coactivation_adjacent"])
def test_ranks_need_weights(name: str) -> None:
    with pytest.raises(RecordingError, match="'silent' holds experts without weights"):
        measure(Silent(), name)
    assert measure(Silent(), "overlap_with_next").values.shape == (L,)


def test_published_routing_is_not_in_the_order_of_weights() -> None:
    """Of ESFT's routes, .8 % of tokens have their slots in order: by slot, repetition was off by .15."""
    path = PUBLISHED / "esft_intent.npz"
    if not path.exists():
        pytest.skip(f"no {path.name} beside the project")
    data = np.load(path)
    indices, weights = data["expert_ids"], data["gate_weights"]
    docs = np.repeat(np.arange(len(data["sequence_lengths"])), data["sequence_lengths"])
    assert ((np.diff(weights, axis=-1) <= 0).all(-1)).mean() == pytest.approx(0.0082, abs=1e-4)
    best = np.take_along_axis(indices, weights.argmax(-1)[..., None], -1)[..., 0]
    follows = docs[1:] == docs[:-1]
    expected = (best[1:] == best[:-1])[follows].mean(0)
    assert consecutive_repetition(indices, docs, weights) == pytest.approx(expected)
    by_slot = (indices[1:, :, 0] == indices[:-1, :, 0])[follows].mean(0)
    assert np.abs(by_slot - expected).max() == pytest.approx(0.147, abs=1e-3)


def test_flow_overlap_and_vocabulary() -> None:
    indices, _ = sample()
    other, _ = sample(5)
    flow = np.zeros((L - 1, E, E))
    alone = np.zeros((L, E))
    for token, layer in np.ndindex(T, L):
        for i in indices[token, layer]:
            alone[layer, i] += 1
            if layer + 1 < L:
                for j in indices[token, layer + 1]:
                    flow[layer, i, j] += 1
    assert route_flow(indices, E) == pytest.approx(flow / alone[:-1, :, None])
    shared = [
        [len(set(a) & set(b)) / K for a, b in zip(x, y, strict=True)] for x, y in zip(indices, other, strict=True)
    ]
    assert overlap(indices, other) == pytest.approx(np.array(shared))
    assert saturation(indices, other) == pytest.approx(np.mean(shared, 0))
    assert saturation(indices, indices[:, :, ::-1]).tolist() == [1, 1, 1]
    ids = np.random.default_rng(2).integers(0, 5, T)
    ids[ids == 4] = np.where(np.arange((ids == 4).sum()) < 3, 4, 0)
    types, shares = vocabulary_specialization(indices, ids, E)
    assert types.tolist() == [0, 1, 2, 3], "a type seen three times is left out"
    for row, (x, layer, expert) in enumerate(np.ndindex(4, L, E)):
        takes = [expert in indices[t, layer] for t in range(T) if ids[t] == types[x]]
        assert shares.reshape(-1)[row] == pytest.approx(np.mean(takes))
    following = next_tokens(ids, np.arange(T) // 9)
    assert all(following[t] == (ids[t + 1] if (t + 1) % 9 and t + 1 < T else -1) for t in range(T))
    assert -1 not in vocabulary_specialization(indices, following, E, 1)[0]


def test_scores_of_experts() -> None:
    indices, weights = sample()
    norms = np.random.default_rng(3).random(indices.shape) * 5
    n, g, s = np.zeros((L, E)), np.zeros((L, E)), np.zeros((L, E))
    for t, layer, slot in np.ndindex(T, L, K):
        cell = layer, indices[t, layer, slot]
        n[cell] += 1
        g[cell] += weights[t, layer, slot]
        s[cell] += weights[t, layer, slot] * norms[t, layer, slot]
    assert token_score(indices, E) == pytest.approx(n / (K * T))
    assert gate_score(indices, weights, E) == pytest.approx(g / T)
    assert pooled_gates(indices, weights, E) == pytest.approx(g / g.sum(1, keepdims=True))
    assert saliency(indices, weights, norms, E) == pytest.approx(s / n)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_the_fewest_experts_that_reach_p(seed: int, p: float) -> None:
    scores = np.random.default_rng(seed).random((2, 8))
    chosen = selected_experts(scores, p)
    for row, kept in zip(scores, chosen, strict=True):
        best = np.sort(row)[::-1] / row.sum()
        fewest = next(i for i in range(1, 9) if best[:i].sum() >= p - 1e-9)
        assert kept.sum() == fewest
        assert row[kept].min() >= row[~kept].max(initial=0)


def test_super_experts_and_committee() -> None:
    largest = np.random.default_rng(0).random((4, 100))
    largest[2, 7] = 80
    assert np.argwhere(super_experts(largest)).tolist() == [[2, 7]]
    assert not super_experts(largest, [True, True, False, True]).any()
    # Ranks by domain: expert 0 always first; expert 1 always second; expert 2 third or (in one domain of five) sixth.
    load = np.tile([9.0, 8, 7, 1, 2, 3], (5, 1, 1))
    load[4, 0] = [9, 8, 0, 1, 2, 3]
    assert np.flatnonzero(standing_committee(load, 3)[0]).tolist() == [0]
    load[0, 0, :2] = load[1, 0, :2] = 8, 9  # now expert 1 ranks better on average than neither, and varies alike
    assert np.flatnonzero(standing_committee(load, 3)[0]).tolist() == [0]
    assert standing_committee(load, 2, 0.9)[0, :2].any()


def esft() -> Any:
    if not (PUBLISHED / "esft_intent.npz").exists():
        pytest.skip("routing published with ESFT is not at hand")
    return np.load(PUBLISHED / "esft_intent.npz"), json.loads(
        (PUBLISHED / "esft_intent_published_scores.json").read_text()
    )


@pytest.mark.parametrize("kind", ["token_scores", "gate_scores"])
def test_published_scores_are_reproduced_to_the_digits_printed(kind: str) -> None:
    routing, published = esft()
    indices, weights = routing["expert_ids"], routing["gate_weights"]
    scores = token_score(indices, 64) if kind == "token_scores" else gate_score(indices, weights, 64)
    expected = np.array([[published[kind][str(layer)][str(e)] for e in range(64)] for layer in range(1, 27)])
    assert scores.round(4) == pytest.approx(expected, abs=1e-9)


def test_published_routing_as_counts() -> None:
    routing, _ = esft()
    lengths = routing["sequence_lengths"]
    docs = np.repeat(np.arange(len(lengths)), lengths)
    labels = np.stack([docs % 2 == 0, docs % 3 == 0], axis=1)
    counts = Counts.from_arrays(routing["expert_ids"], labels, ("even", "third"), 64, range(1, 27), docs)
    assert counts.cells.shape == (127, 26, 64, 2)
    assert counts.expert_tokens / (6 * 8222) == pytest.approx(token_score(routing["expert_ids"], 64))
    table = Counts.from_table(
        counts.count, counts.expert_tokens, counts.label_tokens, counts.names, counts.layers, counts.top_k
    )
    assert np.array_equal(table.lift(), counts.lift())
    assert table.n_tokens == 8222


def test_a_measure_is_saved_and_opened(tmp_path: Path) -> None:
    values = np.array([[0.5, np.nan, 2.0], [1.0, 3.0, 0.1]])
    found = Measure("load", values, {"layer": (3, 4), "expert": (0, 1, 2)}, {"model": "demo"})
    assert found.top(2) == ((4, 1, 3.0), (3, 2, 2.0))
    assert len(found.top(10)) == 5
    assert repr(found).splitlines()[:2] == ["demo · load · 2 layers × 3 experts", "layer  expert   load"]
    for name in ("m.json", "m.parquet"):
        again = Measure.open(found.save(tmp_path / name))
        assert again.to_dict() == found.to_dict()
    assert found.to_pandas().iloc[4].to_dict() == {"layer": 4, "expert": 1, "load": 3.0}


class Silent:
    """A recording whose engine gave no weights."""

    n_experts, layers, top_k, n_tokens, manifest = E, tuple(range(L)), K, T, {"model": {"name": "silent"}}

    def indices(self) -> np.ndarray:
        return sample()[0]

    def weights(self) -> np.ndarray:
        raise RecordingError("'silent' holds experts without weights; its engine returned none")

    def text_ids(self) -> np.ndarray:
        return np.arange(T)

    def column(self, name: str) -> np.ndarray:
        return np.arange(T) // 9

    def columns(self, names: list[str], start: int = 0, stop: int | None = None) -> Any:
        yield slice(0, T), [self.column(name) for name in names]

    def parts(self, start: int = 0, stop: int | None = None) -> Any:
        yield slice(start, stop), np.moveaxis(sample()[0], 1, 0)[:, start:stop]


@pytest.mark.parametrize(
    "name", ["load", "max_violation", "dead_experts", "token_score", "coactivation_lift", "route_flow"]
)
def test_measures_of_a_recording_have_named_axes(name: str) -> None:
    found = measure(Silent(), name)
    assert next(iter(found.axes)) == "layer"
    assert found.values.shape == tuple(len(places) for places in found.axes.values())
    assert found.provenance["model"] == "silent"


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: measure(Silent(), "gate_score"), RecordingError, "'silent' holds experts without weights"),
        (lambda: measure(Silent(), "lod"), UnknownNameError, "unknown measure 'lod'; did you mean 'load'"),
        (
            lambda: gate_score(sample()[0], None, E),
            MoeLensError,
            "expected routes with weights, got none; use token_score",
        ),
        (
            lambda: gate_score(sample()[0], np.ones((2, 2)), E),
            CheckError,
            "expected weights of the shape of indices, [80, 3, 3], got [2, 2]; give both",
        ),
        (
            lambda: overlap(sample()[0], sample()[0][1:]),
            CheckError,
            "expected two routes of one shape [token, layer, slot], got [80, 3, 3] and [79,",
        ),
        (lambda: selected_experts(np.ones((1, 2)), 0), CheckError, "expected p above 0 and up to 1, got 0; give"),
        (
            lambda: router_entropy(np.array([-1.0, 2])),
            CheckError,
            "expected scores of 0 or more, got -1; give scores instead of logits",
        ),
        (
            lambda: selection_margin(np.ones(3), 3),
            CheckError,
            "expected k from 1 to 2, got 3 of 3 experts; give the number of experts",
        ),
        (lambda: coactivation(sample()[0], E, "near"), UnknownNameError, "unknown pairs 'near'; allowed: all,"),
        (
            lambda: coactivation(sample()[0], E, "adjacent"),
            MoeLensError,
            "expected weights, by which the experts of a token are ranked, got none; give those of the routes, or use",
        ),
        (
            lambda: consecutive_repetition(sample()[0], np.arange(T), sample()[1][:, :, :2]),
            CheckError,
            "expected weights of shape [80, 3, 3], as the routes, got [80, 3, 2]; give one weight for each expert",
        ),
        (
            lambda: Counts.from_arrays(np.array([[[0], [-1]]]), np.ones((1, 1)), ("a",), 2, (4, 7)),
            CheckError,
            "expected routes in every layer, got none in layer 7; leave this layer out of indices and layers",
        ),
        (
            lambda: Counts.from_table([[[1]], [[0]]], [[4], [0]], [1], ("a",), (2, 3), 1),
            CheckError,
            "expected expert_tokens in every layer, got none in layer 3; leave this layer out of the tables",
        ),
        (
            lambda: Counts.from_table([[[5]]], [[4]], [5], ("a",), (2,), 1),
            CheckError,
            "expected expert_tokens that sum to 1 times the tokens in every layer, and no count above its "
            "expert_tokens, got sums of 4; pass tables of the same text",
        ),
        (
            lambda: Counts.from_table([[5]], [[4]], [5], ("a",), (2,), 1),
            CheckError,
            "expected count [layer, expert, label], expert_tokens [layer, expert] and label_tokens [label] with "
            "1 layers and 1 labels, got shapes [1, 1], [1, 1] and [1]; give tables of the same layers and labels",
        ),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
