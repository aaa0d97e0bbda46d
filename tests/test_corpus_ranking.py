"""Tests of rankings of experts on corpora, against a plain count, and of what sets the texts of contrasts apart."""

from __future__ import annotations

import numpy as np
import pytest

import moelens
from moelens import HookedMoE, MoeLensError
from moelens.interventions import TextContrast, TextPair
from moelens.interventions.corpus_ranking import (
    agreements,
    bundled_corpora,
    corpus_rankings,
    distinguishing_class,
    passages_with,
)
from moelens.japanese import contrasts, honorifics
from moelens.models.tokens import token_spans

TEXTS = ["先生がいらっしゃいました。", "弟が来た。", "お客様は新聞をお読みになります。私は手紙を書きます。"]


@pytest.fixture(scope="module")
def demo() -> HookedMoE:
    return moelens.load("demo")


def test_a_ranking_equals_a_plain_count(demo: HookedMoE) -> None:
    (found,) = corpus_rankings(demo, {"texts": TEXTS}, "尊敬語")
    assert (found.corpus, found.label, found.passages) == ("texts", "尊敬語", 2)
    layers, n = demo.shape.moe_layers, demo.shape.n_experts
    counts, tokens = np.zeros((2, len(layers), n)), np.zeros(2)
    points = [f"blocks.{layer}.mlp.hook_expert_indices" for layer in layers]
    for text in (TEXTS[0], TEXTS[2]):
        ids = demo.to_tokens(text)
        places = token_spans(demo.tokenizer, text, ids[0].tolist())
        spans = [s for s in honorifics(text) if "尊敬語" in s.classes]
        _, cache = demo.run_with_cache(ids, names_filter=points)
        for at in range(ids.shape[1]):
            carries = any(places.start[at] < s.end <= places.end[at] for s in spans)
            tokens[int(carries)] += 1
            for place, point in enumerate(points):
                counts[int(carries), place, cache[point][0, at].long().numpy()] += 1
    assert found.tokens == tokens[1] > 0
    shares = counts / tokens[:, None, None]
    np.testing.assert_allclose(found.excess, shares[1] - shares[0])
    in_batches = corpus_rankings(demo, {"texts": TEXTS}, "尊敬語", batch_tokens=1)
    np.testing.assert_allclose(in_batches[0].excess, found.excess)


def test_passages_are_short_documents_and_sentences_of_long_ones() -> None:
    long = "私は学生だ。" * 60 + "先生がいらっしゃった。" + "雨が降る。" * 10
    found = list(passages_with(moelens.Corpus.of([*TEXTS, long]), "尊敬語"))
    assert sorted(found) == sorted([TEXTS[0], TEXTS[2], "先生がいらっしゃった。"])
    parts = bundled_corpora()
    assert {name: len(list(corpus)) for name, corpus in parts.items()} == {
        "bundled dialogues": 144,
        "bundled sentences": 283,
    }


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("subject-honorification", "尊敬語"),
        ("humble-object", "謙譲語I"),
        ("style-agreement", "丁寧語"),
        ("control-tense", ""),
    ],
)
def test_the_class_that_sets_the_texts_of_a_kind_apart(kind: str, label: str) -> None:
    assert distinguishing_class(contrasts(kind)[::6]) == label


def test_the_class_of_a_pair_is_that_of_the_good_text() -> None:
    pair = {"id": "1", "kind": "k", "frame": "f", "context": "先生が京都へ"}
    assert distinguishing_class([TextPair(**pair, good="いらっしゃいます。", bad="行きます。")]) == "尊敬語"
    assert distinguishing_class([TextPair(**pair, good="行く。", bad="来る。")]) == ""


def test_agreement_of_rankings() -> None:
    first = np.arange(40.0).reshape(2, 20)
    same, reverse = agreements({"a": first, "b": first * 2}), agreements({"a": first, "b": -first})
    assert (same[0].spearman, same[0].top, same[0].shared) == (pytest.approx(1), 10, 10)
    assert (reverse[0].spearman, reverse[0].shared, reverse[0].chance) == (pytest.approx(-1), 0, 2.5)
    assert [(a.first, a.second) for a in agreements(dict.fromkeys("abc", first))] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]


def test_causes_ranks_on_the_given_corpora_only(demo: HookedMoE) -> None:
    items = [c for c in contrasts("subject-honorification") if c.id.endswith("行く")]
    options = {"top": 1, "draws": 20, "dose_draws": 20, "doses": (2,), "progress": False}
    found = moelens.causes(demo, items, corpora={"mine": TEXTS}, **options)
    assert [r.corpus for r in found.rankings] == ["mine"]
    assert [d.ranking for d in found.doses] == ["attribution", "mine"]
    best = np.argsort(-found.rankings[0].excess, axis=None, kind="stable")[:2]
    names = {f"L{demo.shape.moe_layers[i // 32]} E{i % 32}" for i in best.tolist()}
    assert set(found.doses[1].names) == names
    assert type(found).from_dict(found.to_dict()).to_dict() == found.to_dict()
    none = moelens.causes(demo, items, corpora={}, **options)
    assert (none.rankings, none.agreements, len(none.doses)) == ((), (), 1)
    with pytest.raises(
        MoeLensError, match="expected texts with 尊敬語 to rank the experts on, got none in 'plain'; give"
    ):
        moelens.causes(demo, items, corpora={"plain": ["雨が降る。"]}, **options)
    plain = TextContrast(id="1", kind="k", frame="f", context_a="猫が", context_b="木が", x="いる。", y="ある。")
    with pytest.raises(MoeLensError, match="expected items whose licensed texts differ in an honorific class, to rank"):
        moelens.causes(demo, [plain], corpora={"mine": TEXTS})
    with pytest.raises(MoeLensError, match="expected names of corpora, got 'attribution', which is the name of the"):
        moelens.causes(demo, items, corpora={"attribution": TEXTS})
