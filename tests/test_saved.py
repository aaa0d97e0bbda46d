"""Results of interventions and probes are opened as they were saved."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moelens
from moelens.interventions import Attribution, Causes, Effect, ExpertLens
from moelens.interventions.attribution import Contribution
from moelens.interventions.causal import Dose
from moelens.interventions.controls import Balance
from moelens.interventions.corpus_ranking import Agreement, CorpusRanking
from moelens.interventions.effects import KindEffect, WeightedEffect
from moelens.interventions.lens import OutputPart
from moelens.interventions.off_target import OffTarget, TextEffect
from moelens.probes.probing import ProbeResult, ProbeRow
from moelens.workflows.opening import _CLASSES

NAN = float("nan")
KIND = KindEffect(
    kind="敬語",
    items=8,
    frames=4,
    before=1.0,
    after=0.5,
    accuracy=0.75,
    accuracy_after=0.5,
    change=-0.5,
    low=-0.7,
    high=-0.2,
    flip=0.25,
    flip_low=0.0,
    flip_high=0.5,
    control=0.01,
    control_low=-0.1,
    control_high=0.1,
    p=1 / 21,
)
ALONE = replace(KIND, control=NAN, control_low=NAN, control_high=NAN, p=NAN)
TEXT = TextEffect(texts=2, tokens=8, kl=0.1, kl_low=0.05, kl_high=0.2, perplexity_before=10.0, perplexity_after=11.0)
WEIGHTED = WeightedEffect(kind="敬語", change=-1.5, control=0.1, control_low=-0.2, control_high=0.3, p=1 / 21)
EFFECT = Effect(
    model="tiny",
    interventions=("remove E5 in layer 3",),
    half="test",
    kinds=(KIND,),
    text=TEXT,
    off_target=OffTarget(kinds=("control-tense",), changes=(0.1,), ratio=0.2, text_ratio=0.1),
    control="matched",
    controls=("remove E1 in layer 3",),
    balance=(Balance(quantity="load", changed=0.2, control=0.2, control_low=0.1, control_high=0.3, difference=0.0),),
    per_weight=(WEIGHTED,),
    seed=7,
)
ATTRIBUTION = Attribution(
    model="tiny",
    kinds=("敬語",),
    layers=(1, 3),
    routed=np.arange(6.0).reshape(2, 3),
    shared=np.array([0.5, NAN]),
    top=(
        Contribution(layer=3, expert=1, attributed=4.0, repeated=3.0, change=-2.0, low=-3.0, high=-1.0),
        Contribution(layer=1, expert=None, attributed=0.5, repeated=0.4, change=0.1, low=-0.1, high=0.2),
    ),
    rank_correlation=NAN,
    rank_correlation_test=1.0,
    pairs=(4, 4),
    seed=7,
)
RANKING = CorpusRanking(
    corpus="texts", label="尊敬語", passages=2, tokens=5, excess=np.array([[0.1, -0.1, 0.0], [0.2, 0.0, -0.2]])
)
AGREEMENT = Agreement(first="attribution", second="texts", spearman=0.3, top=2, shared=1, chance=0.5)
DOSE = Dose(
    ranking="attribution",
    experts=2,
    names=("L3 E1", "L1 E0"),
    change=-0.5,
    low=NAN,
    high=NAN,
    random=0.0,
    random_low=-0.1,
    random_high=0.1,
    p=1 / 21,
)
WHOLE = OutputPart(name="all", weight=NAN, promoted=(("き", 1.5), ("く", 1.0)), agreement=1.0, contrast=NAN)
PROBED = ProbeRow(
    feature="experts",
    layer=1,
    probe="centroid",
    accuracy=0.5,
    low=0.5,
    high=0.5,
    control=0.5,
    control_low=0.4,
    control_high=0.6,
    selectivity=0.5,
    bits=NAN,
    compression=NAN,
)
RESULTS: dict[str, Any] = {
    "effect": EFFECT,
    "effect alone": replace(
        EFFECT, kinds=(ALONE, KIND), text=None, off_target=None, control="", controls=(), balance=(), per_weight=()
    ),
    "attribution": ATTRIBUTION,
    "causes": Causes(
        attribution=ATTRIBUTION,
        effects=(EFFECT, EFFECT),
        joint=EFFECT,
        rankings=(RANKING,),
        agreements=(AGREEMENT,),
        doses=(DOSE,),
    ),
    "one cause": Causes(
        attribution=ATTRIBUTION,
        effects=(EFFECT,),
        joint=None,
        rankings=(RANKING,),
        agreements=(AGREEMENT,),
        doses=(DOSE,),
    ),
    "lens": ExpertLens("行", 3, (WHOLE,)),
    "probe": ProbeResult(
        family="pos",
        classes=("名詞", "動詞"),
        tokens=90,
        documents=9,
        folds=5,
        seed=7,
        control_draws=3,
        majority=0.5,
        per_token=0.8,
        rows=(PROBED,),
    ),
}


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
@pytest.mark.parametrize("name", RESULTS)
def test_a_result_opens_as_it_was_saved(name: str, suffix: str, tmp_path: Path) -> None:
    result = RESULTS[name]
    path = result.save(tmp_path / f"result{suffix}")
    opened = type(result).open(path)
    assert type(opened) is type(result)
    assert repr(opened) == repr(result)
    np.testing.assert_equal(opened.to_dict(), result.to_dict())
    table = result.to_pandas()
    assert len(table) == len(result.records()) > 0
    if suffix == ".json":
        data = json.loads(path.read_text("utf-8"), parse_constant=lambda found: pytest.fail(f"{found} is not JSON"))
        assert data["moelens"] == moelens.__version__
    else:
        assert list(pd.read_parquet(path).columns) == list(table.columns), "another program reads the rows"


def test_open_knows_every_result_that_is_saved() -> None:
    source = "\n".join(path.read_text("utf-8") for path in Path(moelens.__file__).parent.rglob("*.py"))
    formats = re.findall(r'FORMAT: ClassVar\[str\] = "(moelens\.(\w+)/\d+)"', source)
    assert {kind for _, kind in formats} == set(_CLASSES)
    for name, kind in formats:
        room, _, cls = _CLASSES[kind].partition(":")
        assert name == getattr(import_module(f"moelens.{room}"), cls).FORMAT


def test_what_is_undefined_and_what_is_an_array_stay_so(tmp_path: Path) -> None:
    opened = Attribution.open(ATTRIBUTION.save(tmp_path / "a.json"))
    np.testing.assert_array_equal(opened.routed, ATTRIBUTION.routed)
    np.testing.assert_array_equal(opened.shared, ATTRIBUTION.shared)
    assert opened.top == ATTRIBUTION.top
    assert np.isnan(opened.rank_correlation)
    assert Effect.open(EFFECT.save(tmp_path / "e.json")) == EFFECT
    rows = RESULTS["causes"].to_pandas()
    assert list(rows["p_holm"][:2]) == pytest.approx([2 / 21, 2 / 21])
    assert np.isnan(rows["p_holm"][2])


def test_errors(tmp_path: Path) -> None:
    for act in (EFFECT.save, Effect.open):
        with pytest.raises(
            moelens.MoeLensError, match=r"expected a file name that ends in \.json or \.parquet, got 'e.c"
        ):
            act("e.csv")
    path = EFFECT.save(tmp_path / "effect.json")
    other = (
        "expected format 'moelens.attribution/1', which Attribution.save writes, got 'moelens.effect/3'; "
        "open it with the class that saved it"
    )
    with pytest.raises(moelens.MoeLensError, match=f"^{other}$"):
        Attribution.open(path)
    missing = r"expected a saved Effect, found no file 'none.json'; write one with Effect.save\(path\)"
    with pytest.raises(moelens.MoeLensError, match=f"^{missing}$"):
        Effect.open("none.json")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(moelens.MoeLensError, match=r"cannot be read \(Expecting .*\); write it again with Effect.save"):
        Effect.open(path)


def test_an_uncertain_effect_is_not_called_selective() -> None:
    assert "the effect is selective" in EFFECT.table()
    unsettled = replace(EFFECT, kinds=(replace(KIND, high=0.1),)).table()
    assert "whether the effect is selective is left open" in unsettled
    assert "the effect is selective: " not in unsettled


def test_the_verdict_says_which_way_only_where_the_interval_does() -> None:
    few = replace(EFFECT, controls=("a",))
    effects = (few, replace(few, kinds=(replace(KIND, p=0.9),)))
    assert Causes(
        attribution=ATTRIBUTION, effects=effects, joint=None, rankings=(), agreements=(), doses=()
    ).verdict() == [
        "0 of 2 experts alone change the margin more than similar experts do (p Holm < 0.05; the smallest that 1 "
        "controls allow is 1.00); none can: give draws=40 (--draws 40)"
    ]
    sure = replace(EFFECT, controls=("remove E1 in layer 3",) * 99, kinds=(replace(KIND, p=0.01),))
    unsettled = replace(sure, kinds=(replace(KIND, p=0.01, high=0.1),))
    assert Causes(
        attribution=ATTRIBUTION, effects=(sure,), joint=unsettled, rankings=(), agreements=(), doses=()
    ).verdict() == [
        "1 of 1 experts alone change the margin more than similar experts do (p Holm < 0.05; the smallest that 99 "
        "controls allow is 0.0100)",
        "remove E5 in layer 3: the model prefers what the context licenses less without it "
        "(-0.500 nats, 95 % [-0.700, -0.200])",
        "all of these together: p 0.0100 (the smallest possible is 0.0100): the change differs between sentences and "
        "its direction is uncertain (-0.500 nats, 95 % [-0.700, +0.100], includes 0)",
        "whether the effect is selective is left open: no interval of the change on target excludes 0",
    ]
    few_frames = replace(sure, kinds=(replace(KIND, p=0.01, low=np.nan, high=np.nan),))
    assert Causes(
        attribution=ATTRIBUTION, effects=(few_frames,), joint=None, rankings=(), agreements=(), doses=()
    ).verdict()[1:] == [
        "remove E5 in layer 3: the direction of the change is left open (-0.500 nats, no interval for so few frames)"
    ]
