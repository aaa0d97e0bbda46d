"""Results of interventions and probes are opened as they were saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moelens
from moelens.interventions import Attribution, Causes, Effect, ExpertLens
from moelens.interventions.attribution import Contribution
from moelens.interventions.effects import KindEffect, TextEffect
from moelens.interventions.lens import Voice
from moelens.probes.reading import ProbeResult, ProbeRow

NAN = float("nan")
KIND = KindEffect("敬語", 8, 4, 1.0, 0.5, -0.5, -0.7, -0.2, 0.25, 0.0, 0.5, 0.01, -0.1, 0.1, 1 / 21)
ALONE = replace(KIND, control=NAN, control_low=NAN, control_high=NAN, p=NAN)
TEXT = TextEffect(2, 8, 0.1, 0.05, 0.2, 10.0, 11.0)
EFFECT = Effect("tiny", ("remove E5 in layer 3",), "test", (KIND,), TEXT, "matched", ("remove E1 in layer 3",), 7)
ATTRIBUTION = Attribution(
    "tiny",
    ("敬語",),
    (1, 3),
    np.arange(6.0).reshape(2, 3),
    np.array([0.5, NAN]),
    (Contribution(3, 1, 4.0, 3.0, -2.0, -3.0, -1.0), Contribution(1, None, 0.5, 0.4, 0.1, -0.1, 0.2)),
    NAN,
    1.0,
    (4, 4),
    7,
)
RESULTS: dict[str, Any] = {
    "effect": EFFECT,
    "effect alone": replace(EFFECT, kinds=(ALONE, KIND), text=None, control="", controls=()),
    "attribution": ATTRIBUTION,
    "causes": Causes(ATTRIBUTION, (EFFECT, EFFECT), EFFECT),
    "one cause": Causes(ATTRIBUTION, (EFFECT,), None),
    "lens": ExpertLens("行", 3, (Voice("all", NAN, (("き", 1.5), ("く", 1.0)), 1.0, NAN),)),
    "probe": ProbeResult(
        "pos", ("名詞", "動詞"), 90, 9, 5, 7, 0.5, 0.8, (ProbeRow("experts", 1, "centroid", *[0.5] * 5, NAN, NAN),)
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


def test_what_is_undefined_and_what_is_an_array_stay_so(tmp_path: Path) -> None:
    opened = Attribution.open(ATTRIBUTION.save(tmp_path / "a.json"))
    np.testing.assert_array_equal(opened.routed, ATTRIBUTION.routed)
    np.testing.assert_array_equal(opened.shared, ATTRIBUTION.shared)
    assert opened.top == ATTRIBUTION.top
    assert np.isnan(opened.rank_correlation)
    assert Effect.open(EFFECT.save(tmp_path / "e.json")) == EFFECT
    rows = RESULTS["causes"].to_pandas()
    assert list(rows["holm"][:2]) == pytest.approx([2 / 21, 2 / 21])
    assert np.isnan(rows["holm"][2])


def test_errors(tmp_path: Path) -> None:
    for act in (EFFECT.save, Effect.open):
        with pytest.raises(
            moelens.MoeLensError, match=r"expected a file name that ends in \.json or \.parquet, got 'e.c"
        ):
            act("e.csv")
    path = EFFECT.save(tmp_path / "effect.json")
    other = (
        "expected format 'moelens.attribution/1', which Attribution.save writes, got 'moelens.effect/1'; "
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


def test_the_verdict_says_which_way_only_where_the_interval_does() -> None:
    effects = (EFFECT, replace(EFFECT, kinds=(replace(KIND, p=0.9),)))
    assert Causes(ATTRIBUTION, effects, None).verdict() == [
        "0 of 2 change the margin more than others like them do (p Holm < 0.05); "
        "none could, at 2 times 0.500: give draws=40 (--draws 40)"
    ]
    sure = replace(EFFECT, controls=("remove E1 in layer 3",) * 99, kinds=(replace(KIND, p=0.01),))
    unsettled = replace(sure, kinds=(replace(KIND, p=0.01, high=0.1),))
    assert Causes(ATTRIBUTION, (sure,), unsettled).verdict() == [
        "1 of 1 change the margin more than others like them do (p Holm < 0.05)",
        "remove E5 in layer 3: the good text is less preferred without it (-0.500 nats, 95 % [-0.700, -0.200])",
        "all of these, p 0.0100: it differs between sentences and the direction is not settled "
        "(-0.500 nats, 95 % [-0.700, +0.100], includes 0)",
    ]
