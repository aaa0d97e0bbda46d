"""Labels of experts from counts by token type: sharp bounds, exact shares, texts that do not reproduce the counts."""

from __future__ import annotations

import gzip
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moelens
from moelens.analysis import Counts, TypeLabels, bound_labels, family_information, read_type_rows
from moelens.analysis.token_types import difference_of_text
from moelens.analysis.type_labels import LabelledTypes
from moelens.errors import CheckError, MoeLensError, UnknownNameError

LLM_JP = Path(__file__).parents[2] / "shared" / "data" / "routing" / "llm-jp-8x1.5b"


def types_of(ids: Any, routes: np.ndarray, layers: tuple[int, ...] = (0,)) -> dict[str, np.ndarray]:
    """The published form of routes `[token, layer, slot]`: how often each token id went to each expert."""
    found: dict[tuple[int, int, int], int] = {}
    for token, by_layer in zip(ids, routes.tolist(), strict=True):
        for layer, chosen in zip(layers, by_layer, strict=True):
            for expert in chosen:
                found[layer, expert, token] = found.get((layer, expert, token), 0) + 1
    keys = np.array(list(found))
    return {"layer": keys[:, 0], "expert": keys[:, 1], "token_id": keys[:, 2], "count": np.array(list(found.values()))}


def labels_of(ids: Any, has: Any) -> TypeLabels:
    return TypeLabels(np.asarray(ids), {"f": (("L",), np.asarray(has, bool)[:, None])})


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 2)), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_the_bounds_are_sharp(tokens: list[tuple[int, bool, int]]) -> None:
    """Every way to give a type's occurrences to experts is tried: the bounds are the least and the most of all."""
    ids, has, routes = (np.array(column) for column in zip(*tokens, strict=True))
    rows = read_type_rows(types_of(ids, routes[:, None, None]), n_experts=3, top_k=1)
    bounds = bound_labels(rows, labels_of(ids, has).count("f", len(ids)))
    for expert in range(3):
        by_type = []
        for token in set(ids.tolist()):
            own = np.flatnonzero(ids == token)
            c = int((routes[own] == expert).sum())
            by_type.append([int(has[list(chosen)].sum()) for chosen in combinations(own.tolist(), c)])
        possible = [sum(choice) for choice in product(*by_type)]
        mean = sum(np.mean(one) for one in by_type)
        assert bounds.low[0, expert, 0] == min(possible)
        assert bounds.high[0, expert, 0] == max(possible)
        assert bounds.estimate[0, expert, 0] == pytest.approx(mean)
        assert min(possible) <= (has & (routes == expert)).sum() <= max(possible), "the truth is between them"


@given(st.integers(0, 2**32), st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_bounds_hold_whatever_the_text_lacks(seed: int, lost: int) -> None:
    rng = np.random.default_rng(seed)
    ids, has, routes = rng.integers(0, 4, 40), rng.random(40) < 0.4, rng.integers(0, 3, 40)
    rows = read_type_rows(types_of(ids, routes[:, None, None]), n_experts=3, top_k=1)
    text, kept = np.append(ids[lost:], rng.integers(0, 4, lost)), np.append(has[lost:], rng.random(lost) < 0.5)
    bounds = bound_labels(rows, labels_of(text, kept).count("f", 40))
    truth = np.array([(has & (routes == e)).sum() for e in range(3)])
    assert (bounds.low[0, :, 0] <= truth).all()
    assert (truth <= bounds.high[0, :, 0]).all()


def test_types_that_always_or_never_have_the_label_are_exact() -> None:
    ids, has = np.array([0, 0, 0, 1, 1]), np.array([1, 1, 1, 0, 0], bool)
    routes = np.array([0, 0, 1, 0, 1])
    result = Counts.from_types(types_of(ids, routes[:, None, None]), labels_of(ids, has), family="f", top_k=1)
    assert result.evidence == "bounds"
    assert result.counts.count[0, :, 0].tolist() == [2, 1]
    np.testing.assert_allclose(result.low[..., 0], result.lift[..., 0])
    np.testing.assert_allclose(result.high[..., 0], result.lift[..., 0])
    assert result.exact is not None
    np.testing.assert_array_equal(result.exact, 1)


def test_results_go_to_tables_map_card_report_and_files(tmp_path: Path) -> None:
    from moelens.views import expert_map
    from moelens.views.cards import card_html
    from moelens.views.finding_tables import findings_html

    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(6), 20)
    has = (ids == 0) | ((ids == 1) & (rng.random(120) < 0.5))
    routes = np.where(ids < 2, 0, 1 + ids % 3)
    result = Counts.from_types(
        types_of(ids, routes[:, None, None]), labels_of(ids, has), family="f", top_k=1, model="m"
    )
    (finding,) = result.top(1)
    assert (finding.expert, finding.label, finding.certain) == (0, "L", True)
    assert "bounds" in result.table()
    assert "sharp bounds" in result.table()
    assert "grey: the bounds include 1" in expert_map(result, "L").get_title("left")
    assert "bounds" in findings_html(result)
    assert "brackets: bounds of the lift" in card_html(result, finding.layer, finding.expert)
    page = moelens.report(result, tmp_path / "report.html").read_text("utf-8")
    assert "bounds" in page
    assert "exact" in page
    again = moelens.Specialization.open(result.save(tmp_path / "result.json"))
    np.testing.assert_array_equal(again.low, result.low)
    assert again.evidence == "bounds"


def test_a_recording_and_a_text_label_the_same_tokens(tmp_path: Path) -> None:
    """The bundled model's own routes by type: the truth, counted token by token, is between the bounds."""
    model = moelens.load("demo")
    text = "先生がお見えになりました。\n私が資料をお持ちします。よろしくお願いします。\n猫が好きだ。\n"
    recording = moelens.record(model, text.splitlines(), tmp_path / "run", progress=False)
    moelens.label(recording, processes=1)
    routes = np.concatenate([np.moveaxis(np.asarray(r), 0, 1) for _, r in recording.parts()])
    types = types_of(recording.column("token_id").tolist(), routes, recording.layers)
    result = Counts.from_types(types, recording=recording, n_experts=recording.n_experts)
    truth = moelens.analysis.counts_of(recording, "honorifics")
    expected = truth.expert_tokens[:, :, None] * truth.label_tokens / truth.n_tokens
    low, high = (np.nan_to_num(bound) * expected for bound in (result.low, result.high))
    assert result.names == truth.names
    np.testing.assert_array_equal(result.label_tokens, truth.label_tokens)
    assert (low <= truth.count + 1e-6).all()
    assert (truth.count <= high + 1e-6).all()
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    ids = np.array(model.tokenizer(text)["input_ids"])
    labels = TypeLabels.of_text(tmp_path / "text.txt", model.tokenizer, processes=1)
    np.testing.assert_array_equal(labels.token_ids, ids)
    assert labels.families["honorifics"][1].any(0).sum() >= 3
    with pytest.raises(UnknownNameError, match="unknown label family 'colour'"):
        labels.count("colour", 10)


def test_token_ids_as_labels() -> None:
    """Counted from the rows as from the routes; information of a family takes them, and estimates of labels too."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 6, 200) * 7
    routes = np.stack([rng.permutation(4)[:2] for _ in range(400)]).reshape(200, 2, 2)
    types = types_of(ids.tolist(), routes, (3, 7))
    counts = Counts.of_types(types, n_experts=4, top_k=2)
    each = ids[:, None] == np.unique(ids)
    own = Counts.from_arrays(routes, each, list(map(str, np.unique(ids))), 4, (3, 7))
    assert counts.names == own.names
    np.testing.assert_array_equal(counts.count, own.count)
    np.testing.assert_array_equal(counts.label_tokens, own.label_tokens)
    assert family_information(counts) == pytest.approx(family_information(own))
    thirds = rng.integers(0, 3, 200)[:, None] == np.arange(3)  # every token has one of three labels
    labels = TypeLabels(ids, {"f": (("a", "b", "c"), thirds)})
    estimates = Counts.from_types(types, labels, family="f", n_experts=4, top_k=2).counts
    assert estimates.count.dtype.kind == "f"
    assert (family_information(estimates) >= 0).all()
    assert (family_information(estimates) <= family_information(counts)).all(), "labels are estimated from the ids"


def test_token_ids_of_no_vocabulary() -> None:
    columns = {"layer": [0], "expert": [0], "token_id": [1 << 24], "count": [1]}
    with pytest.raises(CheckError, match="expected token ids below 16777216 in the columns, got 16777216; corr"):
        read_type_rows(columns)


def test_a_text_that_was_not_counted(tmp_path: Path) -> None:
    ids = np.arange(20)
    types = types_of(ids, (ids % 2)[:, None, None])
    has = np.zeros(20, bool)
    with pytest.warns(UserWarning, match="the text does not reproduce the counts: 1 of 20 counted tokens"):
        result = Counts.from_types(types, labels_of(np.append(ids[1:], 30), has), family="f", top_k=1)
    assert "does not reproduce" in result.counts.provenance["text"]
    with pytest.raises(CheckError, match="expected the text that was counted, got another, in which 20 of 20"):
        Counts.from_types(types, labels_of(ids + 40, has), family="f", top_k=1)
    rows = read_type_rows(types, top_k=1)
    assert not difference_of_text(
        rows, LabelledTypes(names=(), tokens=np.ones(20, int), labelled=np.ones((20, 0), int))
    )


def test_what_cannot_be_read(tmp_path: Path) -> None:
    one = {"layer": [0, 0], "expert": [0, 1], "token_id": [5, 5], "count": [1, 1]}
    labels = labels_of([5], [True])
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    cases: tuple[tuple[dict[str, Any], dict[str, Any], type[MoeLensError], str], ...] = (
        (
            {k: v for k, v in one.items() if k != "count"},
            {},
            CheckError,
            "expected columns layer, expert, token_id, cou",
        ),
        (one | {"count": [0.5, 1]}, {}, CheckError, "expected whole numbers of tokens by type in the columns, got oth"),
        (
            one | {"layer": [0, 1], "count": [1, 2]},
            {},
            CheckError,
            "expected the same number of each token id in every",
        ),
        (one, {"top_k": 3}, CheckError, "expected numbers of each token id that are multiples of top_k = 3"),
        (one, {"n_experts": 1}, CheckError, "expected experts from 0 to 0 in the columns, got 1"),
        (one, {"labels": None}, MoeLensError, "expected labels of the text that was counted, or text= with tokenizer="),
        (one, {"labels": None, "text": "a"}, MoeLensError, "expected labels of the text that was counted"),
        (one, {"labels": None, "text": "a.txt", "tokenizer": tmp_path}, MoeLensError, "expected the name or folder of"),
        (
            one,
            {"labels": None, "text": "a.txt", "tokenizer": 1},
            MoeLensError,
            "expected a text file, got 'a.txt', which",
        ),
        (one, {"labels": None, "text": tmp_path / "bytes.txt", "tokenizer": 1}, MoeLensError, "expected UTF-8 in '"),
    )
    for types, options, kind, error in cases:
        with pytest.raises(kind, match=error):
            Counts.from_types(types, **({"labels": labels, "family": "f"} | options))


@pytest.mark.slow
def test_llm_jp_experts_for_what_is_said_toward_the_listener(tmp_path: Path) -> None:
    """The published counts of a Japanese model: one expert for polite forms and sentence-final particles."""
    if not LLM_JP.exists():
        pytest.skip(f"the published routing is not at {LLM_JP}")
    text = gzip.decompress((LLM_JP / "ja_mc4_texts.txt.gz").read_bytes()).decode()
    rows = read_type_rows(LLM_JP / "FS_ja_mc4.npz")
    assert (rows.n_tokens, rows.top_k, rows.n_experts, len(rows.layers)) == (206_848, 2, 8, 24)
    labels = TypeLabels.of_text(text, LLM_JP, rows.n_tokens, processes=1)
    with pytest.warns(UserWarning, match="of 206,848 counted tokens"):
        result = Counts.from_types(LLM_JP / "FS_ja_mc4.npz", labels, family="honorifics")
    at = result.layers.index(5), 4, result.names.index("丁寧語")
    assert result.share[at] == pytest.approx(0.71, abs=0.01)
    assert result.low[at] < result.lift[at] < result.high[at]
    assert result.low[at] > 19


def test_a_table_of_token_types_that_cannot_be_held() -> None:
    many = np.arange(1100)
    types = {"layer": many * 0, "expert": many * 0, "token_id": many, "count": many * 0 + 1}
    with pytest.raises(
        CheckError, match=r"expected at most 67,108,864 cells in the counts of token types, got 1 layers"
    ):
        Counts.of_types(types, n_experts=65_535, top_k=1)
    rows = read_type_rows(types, n_experts=65_535, top_k=1)
    labels = LabelledTypes(names=tuple(map(str, many)), tokens=many * 0 + 1, labelled=np.eye(1100, dtype=int))
    with pytest.raises(CheckError, match="expected at most 67,108,864 cells"):
        bound_labels(rows, labels)
