"""Every result shows itself: as axes, and as HTML that a notebook may keep."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers.results import result_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

import moelens
from moelens.analysis import Measure, layer_curve, measure
from moelens.analysis.tables import number
from moelens.display import Plotted
from moelens.errors import MoeLensError, UnknownNameError
from moelens.interventions import remove
from moelens.interventions.causal import causes
from moelens.tracing import Trace
from moelens.views import card_html, flow_plot, pair_trace_html
from moelens.views.experiment_plots import dose_plot
from moelens.views.registry import _pre_html


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = moelens.load("demo")
    recording = moelens.record(model, "demo", tmp_path_factory.mktemp("views") / "run", progress=False)
    labels = moelens.label(recording)
    found = moelens.japanese.honorifics("<b>先生</b>がいらっしゃいました。")
    kinds = [moelens.japanese.contrasts(kind) for kind in ("style-agreement", "control-tense")]
    items = [item for kind in kinds for item in {item.frame: item for item in kind}.values()]  # one of each frame
    return {
        "recording": recording,
        "labels": labels,
        "plan": moelens.plan("demo"),
        "info": moelens.info(model),
        "verification": moelens.verify(recording),
        "curve": layer_curve(recording, labels=labels, draws=3),
        "flow": measure(recording, "route_shares"),
        **{name: measure(recording, name) for name in ("load", "coactivation_lift", "coactivation", "repetition")},
        "preferences": moelens.prefer(model, items),
        "effect": moelens.effect(model, items, remove(3, [5]), controls=None),
        "attribution": moelens.attribute(model, items, top=2),
        "causes": causes(model, [i for i in items if i.kind == "style-agreement"], top=1, draws=20, doses=(1, 4)),
        "comparison": moelens.compare(recording, recording, labels=labels, permutations=20),
        "probe": moelens.probe(recording, "honorifics", progress=False),
        "pair": moelens.japanese.pairs("title")[0],
        "contrast": items[0],
        "honorifics": found,
        "span": found[0],
        "trace": moelens.trace(model, "先生がいらっしゃいました。"),
    }


NAMES = (
    "recording",
    "labels",
    "plan",
    "info",
    "verification",
    "curve",
    "flow",
    "load",
    "coactivation_lift",
    "coactivation",
    "repetition",
    "preferences",
    "effect",
    "attribution",
    "causes",
    "comparison",
    "probe",
    "pair",
    "contrast",
    "honorifics",
    "span",
    "trace",
)
DRAWN = {
    "curve": "demo · 4 layers × 5 labels · {n} tokens · layer curve\nbands: middle 95 %",
    "flow": "demo · 3 layers × 32 experts · {n} tokens · route shares",
    "load": "demo · 4 layers × 32 experts · {n} tokens · load",
    "coactivation_lift": "demo · 4 layers × 32 experts · {n} tokens · coactivation lift\nlayer 1, experts clustered",
    "coactivation": "demo · 4 layers × 32 experts · {n} tokens · coactivation\n",
    "repetition": "demo · 4 layers · {n} tokens · repetition",
    "preferences": "demo · 28 items",
    "effect": "demo · remove E5 in layer 3",
    "attribution": "demo · contributions to style-agreement, control-tense",
    "causes": "demo · style-agreement",
    "comparison": "demo → demo · all tokens · ",
    "probe": "honorifics · ",
}


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_face_with_inline_styles_only(results: dict[str, Any], name: str) -> None:
    shown = results[name]._repr_mimebundle_()
    html = shown["text/html"]
    assert shown["text/plain"] == repr(results[name])
    assert html.startswith("<div")
    assert not re.search(r"<(script|style|link|iframe)\b|\bclass=|\bon\w+=|https?://", html)
    if name in DRAWN:
        assert html.count("data:image/png;base64,") == 2 * html.count("<picture>"), "for light and dark pages"


@pytest.mark.parametrize("name, title", DRAWN.items())
def test_each_draws_itself_and_says_what_it_is(results: dict[str, Any], name: str, title: str) -> None:
    ax = Figure().subplots()
    drawn = results[name].plot(ax=ax)
    assert isinstance(drawn, Axes)
    assert drawn is ax
    tokens = f"{results['recording'].n_tokens:,}"
    assert drawn.get_title(loc="left").startswith(title.format(n=tokens))
    assert drawn.has_data() or drawn.patches or drawn.texts


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
    assert [t.get_text() for t in flow.plot(ax=Figure().subplots()).get_xticklabels()][-1] == "L4"


def test_flow_is_drawn_from_a_layer_to_another_and_not_as_pairs_of_one(results: dict[str, Any]) -> None:
    flow = measure(results["recording"], "route_flow")
    ax = flow.plot(2, ax=Figure().subplots())
    assert ax.get_title(loc="left").endswith("rows: L2, columns: L3")
    np.testing.assert_allclose(ax.images[0].get_array(), flow.values[1])


def test_an_effect_is_drawn_with_its_interval(results: dict[str, Any]) -> None:
    effect = results["effect"]
    ax = effect.plot(ax=Figure().subplots())
    np.testing.assert_allclose(ax.lines[-1].get_xdata(), [k.change for k in effect.kinds])
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{k.kind} ({k.items})" for k in effect.kinds]


def test_a_curve_of_doses_is_drawn_with_its_band(results: dict[str, Any]) -> None:
    doses = results["causes"].doses
    assert [d.ranking for d in doses] == [
        name for name in ("attribution", "bundled dialogues", "bundled sentences") for _ in range(2)
    ]
    ax = dose_plot(results["causes"], ax=Figure().subplots())
    random, *changes = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"][:4]
    np.testing.assert_array_equal(random.get_xdata(), [1, 4])
    np.testing.assert_allclose(random.get_ydata(), [d.random for d in doses[:2]])
    for at, line in enumerate(changes):
        np.testing.assert_allclose(line.get_ydata(), [d.change for d in doses[2 * at : 2 * at + 2]])
    assert results["causes"]._repr_html_().count("<picture>") == 2
    many = replace(results["causes"], doses=tuple(replace(doses[0], ranking=f"corpus {n}") for n in range(9)))
    assert len([c for c in dose_plot(many, ax=Figure().subplots()).containers if c.has_yerr]) == 9
    assert "ranked by how much more often 丁寧語 chooses them: bundled dialogues (" in repr(results["causes"])


MISTAKES = [
    ("coactivation", (9,), UnknownNameError, "unknown layer '9'; allowed: 1, 2, 3, 4"),
    ("comparison", ("敬語",), UnknownNameError, "unknown label '敬語'"),
]


@pytest.mark.parametrize("name, what, error, message", MISTAKES)
def test_mistakes(results: dict[str, Any], name: str, what: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        results[name].plot(*what)


def test_measures_that_are_not_drawn(results: dict[str, Any]) -> None:
    with pytest.raises(
        MoeLensError, match="expected a measure of layers and experts, got 'npmi', which is by label too"
    ):
        measure(results["recording"], "npmi", labels=results["labels"]).plot()
    face = measure(results["recording"], "npmi", labels=results["labels"])._repr_html_()
    assert "<img" not in face
    assert "npmi" in face
    with pytest.raises(MoeLensError, match="first axis, got 'x' with the axes token; print it"):
        Measure("x", np.zeros(2), {"token": (0, 1)}).plot()
    with pytest.raises(
        MoeLensError, match=r"expected 1 to 4 successive layers, got \[1, 3\]; the measure has \[1, 2, 3\]"
    ):
        flow_plot(results["flow"], [1, 3])
    with pytest.raises(UnknownNameError, match="unknown layer '4'"):
        flow_plot(results["flow"], [4])
    with pytest.raises(MoeLensError, match=r"expected 2 or more draws and tokens, got 1 draws of \d+ tokens; give"):
        layer_curve(results["recording"], labels=results["labels"], draws=1)


def test_a_pair_stands_column_by_column() -> None:
    experts = np.array([[[0, 1]], [[2, 3]]])
    first = Trace(
        model="demo",
        text="a<b>",
        tokens=("a", "<b>"),
        layers=(4,),
        experts=experts,
        weights=np.full((2, 1, 2), 0.5, np.float32),
        spans=((1, 2, "尊敬語"),),
    )
    second = replace(
        first,
        tokens=("a", "c", "<b>"),
        experts=np.array([[[0, 1]], [[5, 6]], [[2, 7]]]),
        weights=np.full((3, 1, 2), 0.5, np.float32),
        spans=(),
    )
    html = pair_trace_html(first, second)
    assert "layer 4 · routes differ at 1 of 2 aligned tokens" in html
    assert re.findall(r"bold\">(.*?)</div>", html) == ["&nbsp;", "·", "≠ 1"]
    assert "<b>" not in html
    with pytest.raises(MoeLensError, match=r"expected traces of the same layers, got \(4,\) and \(5,\); choose"):
        pair_trace_html(first, replace(second, layers=(5,)))


def test_a_trace_is_coloured_by_what_is_asked(results: dict[str, Any]) -> None:
    trace = results["trace"]
    load = np.ones((len(trace.layers), 32))
    load[0, trace.best()[0, 0]] = 4
    assert trace.html() == trace._repr_html_()
    shown = {name: trace.html(name, load=load) for name in ("margin", "entropy", "load")}
    for name, html in shown.items():
        assert f"layer {trace.layers[0]} · colour and number: {name}" in html
    assert f"{number(float(trace.margin[0, 0]))}</span>" in shown["margin"]
    assert re.findall(r"rgba\(0, 114, 178, ([0-9.]+)\)", shown["load"])[0] == "0.60"
    with pytest.raises(UnknownNameError, match="unknown colour 'load'; allowed: expert, margin, entropy"):
        trace.html("load")


def test_a_card_with_morphemes_and_what_removal_changes(results: dict[str, Any]) -> None:
    recording, labels, effect = results["recording"], results["labels"], results["effect"]
    found = moelens.analyze(recording, labels=labels, given=None, permutations=39)
    best = found.top(1, "丁寧語")[0]
    html = card_html(found, best.layer, best.expert, recording, labels=labels, effect=effect)
    assert f"lift {number(best.lift_given)} [{number(best.low)}, {number(best.high)}]" in html
    lemmas = labels.table("pos", ["lemma"])["lemma"].to_numpy()
    taken = (recording.indices()[:, found.layers.index(best.layer)] == best.expert).any(-1)
    held = [lemma for lemma in lemmas[taken] if lemma]
    assert f'lemmas: <span lang="ja"><span title="{max(map(held.count, set(held)))} times' in html
    kind = effect.kinds[0]
    assert f"{kind.kind} ({kind.items})</td>" in html
    assert f"{kind.change:+.3f} [" in html
    assert "without controls" in html


def test_the_map_of_no_label_in_particular(results: dict[str, Any]) -> None:
    found = moelens.analyze(results["recording"], labels=results["labels"], given=None, permutations=39)
    label = next(name for name in found.names if name not in found.too_rare)
    assert label in found.plot(ax=Figure().subplots()).get_title(loc="left")


def test_text_of_a_model_is_escaped() -> None:
    axes, about = {"layer": (1,), "expert": (0, 1)}, {"model": "<script>alert(1)</script>"}
    html = Measure("load", np.ones((1, 2)), axes, about)._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script" not in html


def test_a_subclass_is_shown_as_its_base_is(results: dict[str, Any]) -> None:
    class Mine(type(results["load"])):
        pass

    mine = Mine(*(getattr(results["load"], field.name) for field in dataclasses.fields(results["load"])))
    assert "<img" in mine._repr_html_()
    assert mine.plot().get_figure() is not None


def test_a_class_without_a_view_is_refused() -> None:
    class Bare(Plotted):
        def __repr__(self) -> str:
            return "bare <b>"

    assert "bare &lt;b&gt;" in Bare()._repr_html_()
    with pytest.raises(
        moelens.MoeLensError, match=r"expected a class with a view for plot, got Bare; register one with moelens\.displ"
    ):
        Bare().plot()


def test_a_trace_as_figure_and_table() -> None:
    trace = moelens.trace(moelens.load("demo"), "先生がいらっしゃいました。")
    left = plt.figure().subplots(1, 2)[0]
    left.set_title("自分の題")
    assert trace.plot(ax=left, title="尊敬語の文") is left
    titles = [left.get_title(loc) for loc in ("left", "center", "right")]
    assert titles == ["尊敬語の文", "", ""]
    japanese = [text for text in left.findobj(Text) if not text.get_text().isascii()]
    assert "先生" in [text.get_text() for text in japanese]
    assert all(text.get_fontfamily()[0] == "IPAexGothic" for text in japanese)
    assert left.texts[0].get_text() == str(trace.best()[0, 0])
    assert trace.plot().get_title("left").startswith("demo · expert with the largest weight")
    rows = trace.to_pandas()
    assert len(rows) == trace.experts.size
    last = rows[(rows.pos == len(trace.tokens) - 1) & (rows.layer == trace.layers[-1])]
    assert last.expert.tolist() == trace.experts[-1, -1].tolist()
    plt.close("all")


def test_a_result_is_written_as_a_page(tmp_path: Path) -> None:
    result = result_of(4, 32)
    page = result.save_html(tmp_path / "map.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "https://" not in page
    figure, axes = plt.subplots()
    assert result.plot(result.names[0], ax=axes, title="地図").get_title("left") == "地図"
    plt.close(figure)


def test_lines_around_a_table_wrap_and_the_table_does_not() -> None:
    html = _pre_html("a long line\n x  y\n10  2\nanother line")
    assert re.findall(r"white-space: ([a-z-]+)\">([^<]*)", html) == [
        ("pre-wrap", "a long line"),
        ("pre", " x  y\n10  2"),
        ("pre-wrap", "another line"),
    ]
