"""Every result shows itself: as axes, and as HTML that a notebook may keep."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import moelens
from moelens.analysis import Measure, layer_curve, measure
from moelens.errors import MoeLensError, UnknownNameError
from moelens.interventions import remove
from moelens.interventions.causal import causes
from moelens.views.measures import flow_plot


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = moelens.load("demo")
    recording = moelens.record(model, "demo", tmp_path_factory.mktemp("views") / "run", progress=False)
    labels = moelens.label(recording)
    pairs = [p for p in moelens.japanese.pairs() if p.kind in ("polite-ending", "control-tense")]
    return {
        "recording": recording,
        "labels": labels,
        "plan": moelens.plan("demo"),
        "info": moelens.info(model),
        "verification": moelens.verify(recording),
        "curve": layer_curve(recording, labels, draws=3),
        "flow": measure(recording, "route_shares"),
        **{name: measure(recording, name) for name in ("load", "coactivation_lift", "coactivation", "repetition")},
        "preferences": moelens.prefer(model, pairs),
        "effect": moelens.effect(model, pairs, remove(3, [5]), controls=None),
        "attribution": moelens.attribute(model, pairs, top=2),
        "causes": causes(model, [p for p in pairs if p.kind == "polite-ending"], top=1),
        "comparison": moelens.compare(recording, recording, labels, permutations=20),
        "probe": moelens.probe(recording, "honorifics", progress=False),
        "pair": pairs[0],
    }


NAMES = ("recording", "labels", "plan", "info", "verification", "curve", "flow", "load", "coactivation_lift",
         "coactivation", "repetition", "preferences", "effect", "attribution", "causes", "comparison", "probe",
         "pair")  # fmt: skip
DRAWN = {
    "curve": "demo · layer curve · 4 layers × 5 labels · bands",
    "flow": "demo · route shares · 3 layers × 32 experts",
    "load": "demo · load · 4 layers × 32 experts",
    "coactivation_lift": "demo · coactivation lift · 4 layers × 32 experts × 32 others · layer 1, experts clustered",
    "coactivation": "demo · coactivation · ",
    "repetition": "demo · repetition · 4 layers",
    "preferences": "demo · 120 pairs",
    "effect": "demo · remove E5 in layer 3",
    "attribution": "demo · contributions to polite-ending, control-tense",
    "causes": "demo · polite-ending",
    "comparison": "demo → demo · all tokens · ",
    "probe": "honorifics · ",
}


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_face_with_inline_styles_only(results: dict[str, Any], name: str) -> None:
    html = results[name]._repr_html_()
    assert html.startswith("<div")
    assert not re.search(r"<(script|style|link|iframe)\b|\bclass=|\bon\w+=|https?://", html)
    if name in DRAWN:
        assert html.count("data:image/png;base64,") == 2, "one for light pages, one for dark ones"


@pytest.mark.parametrize("name, title", DRAWN.items())
def test_each_draws_itself_and_says_what_it_is(results: dict[str, Any], name: str, title: str) -> None:
    ax = Figure().subplots()
    drawn = results[name].plot(ax=ax)
    assert isinstance(drawn, Axes)
    assert drawn is ax
    assert drawn.get_title(loc="left").startswith(title)
    assert drawn.has_data() or drawn.patches


def test_what_stands_in_a_curve(results: dict[str, Any]) -> None:
    ax = results["curve"].plot(ax=Figure().subplots())
    label = results["curve"].axes["label"].index("丁寧語")
    line = next(line for line in ax.lines if "丁寧語" in str(line.get_label()))
    np.testing.assert_allclose(line.get_ydata(), results["curve"].values[:, label, 0])
    assert (results["curve"].values[:, label, 2] < results["curve"].values[:, label, 0]).all(), "beyond the band"


def test_streams_are_shares_of_all_assignments(results: dict[str, Any]) -> None:
    flow = results["flow"]
    np.testing.assert_allclose(flow.values.sum((1, 2)), 1)
    load = results["load"].values[0] / 32
    np.testing.assert_allclose(flow.values[0].sum(1), load)
    ax = flow_plot(flow, [2], streams=3, ax=Figure().subplots())
    assert [t.get_text() for t in ax.get_xticklabels()] == ["L2", "L3"]


def test_an_effect_is_drawn_with_its_interval(results: dict[str, Any]) -> None:
    effect = results["effect"]
    ax = effect.plot(ax=Figure().subplots())
    np.testing.assert_allclose(ax.lines[-1].get_xdata(), [k.change for k in effect.kinds])
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{k.kind} ({k.pairs})" for k in effect.kinds]


MISTAKES = [
    ("coactivation", (9,), UnknownNameError, "unknown layer '9'; allowed: 1, 2, 3, 4"),
    ("comparison", ("敬語",), UnknownNameError, "unknown label '敬語'"),
]


@pytest.mark.parametrize("name, what, error, message", MISTAKES)
def test_mistakes(results: dict[str, Any], name: str, what: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        results[name].plot(*what)


def test_measures_that_are_not_drawn(results: dict[str, Any]) -> None:
    with pytest.raises(MoeLensError, match="npmi has layers, experts and labels; draw specialization"):
        measure(results["recording"], "npmi", results["labels"]).plot()
    with pytest.raises(MoeLensError, match="x has the axes token; only measures of layers are drawn"):
        Measure("x", np.zeros(2), {"token": (0, 1)}).plot()
    with pytest.raises(MoeLensError, match=r"layers \[1, 3\] are not 1 to 4 that follow each other"):
        flow_plot(results["flow"], [1, 3])
    with pytest.raises(UnknownNameError, match="unknown layer '4'"):
        flow_plot(results["flow"], [4])
    with pytest.raises(MoeLensError, match=r"1 shifts of \d+ tokens are no band; give 2 or more draws"):
        layer_curve(results["recording"], results["labels"], draws=1)


def test_text_of_a_model_is_escaped() -> None:
    axes, about = {"layer": (1,), "expert": (0, 1)}, {"model": "<script>alert(1)</script>"}
    html = Measure("load", np.ones((1, 2)), axes, about)._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script" not in html
