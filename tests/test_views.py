"""Views: what they draw, what they escape, and what they leave alone."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from moelens.analysis import Specialization, specialization_from_arrays
from moelens.errors import CheckError, MoeLensError, UnknownNameError
from moelens.tracing.passages import spans_from_labels
from moelens.views import CLASS_STYLE, Example, Report, expert_map, load_plot, report_html, style, tokens_html
from moelens.views.finding_tables import findings_html
from moelens.views.maps import new_axes
from moelens.views.style import japanese_font, label_html, text_html

mpl.use("agg")

HONORIFICS = tuple(CLASS_STYLE)
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'
VOID = {"img", "br", "meta", "source", "link", "hr"}
SENTENCE = ("社長", "は", "まもなく", "お", "戻り", "に", "なり", "ます", "。")
SPANS = ((3, 7, "尊敬語"), (7, 8, "丁寧語"))


def result(
    layers: int = 4,
    experts: int = 32,
    k: int = 4,
    names: tuple[str, ...] = HONORIFICS,
    tokens: int = 2000,
    permutations: int = 39,
    **provenance: Any,
) -> Specialization:
    """Random routes, one specialist for the first label, no 謙譲語II."""
    rng = np.random.default_rng(0)
    labels = rng.random((tokens, len(names))) < 0.05
    labels[:, 2] = False
    indices = (rng.integers(0, experts, (tokens, layers, 1)) + np.arange(k) * (experts // k)) % experts
    indices[labels[:, 0], -1, 0] = 3
    indices[labels[:, 0], -1, 1:] = np.arange(4, 3 + k)
    docs, ids = np.arange(tokens) // 25, rng.integers(0, 40, tokens)
    facts = {"model": "demo"} | provenance
    return specialization_from_arrays(
        indices,
        labels,
        names,
        docs,
        ids,
        experts,
        range(layers),
        family="honorifics",
        permutations=permutations,
        provenance=facts,
    )


class Checker(HTMLParser):
    """Follows open tags; collects scripts, handlers and Japanese outside of lang="ja"."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, bool]] = []
        self.faults: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.faults += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            inherited = self.open[-1][1] if self.open else False
            self.open.append((tag, dict(attrs).get("lang", "ja" if inherited else "") == "ja"))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop()[0] != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if re.search("[\u3041-\u30ff\u4e00-\u9fff]", data) and not (self.open and self.open[-1][1]):
            self.faults.append(f"not marked as Japanese: {data!r}")


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.faults == []
    assert checker.open == []
    return checker


def example(**change: Any) -> Example:
    rng = np.random.default_rng(0)
    plain = Example(
        label="尊敬語",
        tokens=SENTENCE,
        experts=rng.integers(0, 32, (9, 4)),
        weights=rng.random((9, 4)),
        spans=SPANS,
        layer=2,
    )
    return replace(plain, **change)


@pytest.mark.parametrize("value", ["lift", "share", "lift_given_token"])
def test_map_says_what_it_shows(value: str) -> None:
    figure = Figure()
    axes = expert_map(result(), "尊敬語", value=value, ax=figure.subplots())
    first, second = axes.get_title(loc="left").splitlines()
    assert first.startswith("demo · 4 layers × 32 experts, top-4 · 2,000 tokens · ")
    assert first.endswith("control: 39 permutations over documents")
    assert second.startswith("▲ 尊敬語 (respectful) · ")


def test_cells_that_fail_their_control_are_grey() -> None:
    found = result()
    rgb = expert_map(found, "尊敬語", ax=Figure().subplots()).images[0].get_array()
    grey = np.ptp(rgb, axis=2) < 1e-9
    significant = found.significant[:, :, 0]
    assert significant[3, 3]
    assert not grey[3, 3]
    assert grey[~significant].all()


def test_map_of_58_layers_and_256_experts_with_groups() -> None:
    figure = Figure(figsize=(9.6, 7))
    large = result(58, 256, 8, tokens=1500, permutations=19, n_groups=8)
    axes = expert_map(large, "尊敬語", ax=figure.subplots())
    figure.canvas.draw()
    assert axes.images[0].get_array().shape == (58, 256, 3)
    assert [len(lines.get_segments()) for lines in axes.collections] == [7], "seven lines part eight groups"


def test_a_label_without_tokens_is_said_in_words() -> None:
    axes = expert_map(result(), "謙譲語II", ax=Figure().subplots())
    assert [t.get_text() for t in axes.texts] == ["no label 謙譲語II in this text (0 tokens)"]
    assert not axes.images


def test_plot_comes_from_the_result_and_leaves_settings_alone() -> None:
    before, figures = mpl.rcParams.copy(), pyplot.get_fignums()
    found = result()
    axes = found.plot("丁寧語")
    load_plot(found, ax=Figure().subplots())
    report_html(Report(title="t", results={"honorifics": found}, examples=[example()]))
    assert mpl.rcParams == before
    assert axes.get_title(loc="left").splitlines()[1].startswith("● 丁寧語 (polite)")
    assert len(pyplot.get_fignums()) == len(figures) + 1, "a report makes no pyplot figures"
    pyplot.close("all")


@pytest.mark.filterwarnings("error:Glyph")
def test_the_font_has_every_label_and_mark() -> None:
    figure = Figure()
    with japanese_font():
        figure.text(0, 0, "".join(name + style.mark for name, style in CLASS_STYLE.items()))
    figure.canvas.draw()


def test_small_kanji_are_drawn_without_hints_also_after_the_plot_was_made() -> None:
    def pixels(axes: Any) -> Any:
        axes.set_axis_off()
        axes.text(0.1, 0.1, "層", fontsize=8, family=style.FONTS)
        axes.figure.canvas.draw()
        return np.asarray(axes.figure.canvas.buffer_rgba())[..., 0].copy()

    with japanese_font():
        wanted = pixels(pyplot.subplots(figsize=(1, 1), layout="constrained")[1])
    with mpl.rc_context({"text.hinting": "default"}):
        hinted, ours = pixels(pyplot.subplots(figsize=(1, 1), layout="constrained")[1]), pixels(new_axes((1, 1)))
    assert (ours == wanted).all()
    assert (hinted != wanted).any()


def test_tokens_are_escaped_and_sanitizer_proof() -> None:
    html = tokens_html([HOSTILE, "ます"], [[1, 0], [2, 3]], [[0.4, 0.6], [0.9, 0.1]], spans=[(0, 2, HOSTILE)], layer=1)
    tags = set(checked(html).tags)
    assert tags <= {"div", "span", "br"}
    assert "<script" not in html
    assert "<img" not in html
    assert not re.search(r"\s(aria-|data-|class)", html)


def test_tokens_show_the_expert_of_largest_weight_and_list_all() -> None:
    html = tokens_html(["戻り"], [[7, 30]], [[0.25, 0.75]], spans=[(0, 1, "尊敬語")])
    assert 'title="戻り: E30 0.750, E7 0.250"' in html
    assert ">30</span>" in html
    assert "border-bottom: 3px solid #D55E00" in html
    assert "E7 · " not in tokens_html(["戻り"], [[7, 30]])
    assert 'title="戻り: E7, E30"' in tokens_html(["戻り"], [[7, 30]])
    assert 'title="no text: E7, E30"' in (special := tokens_html([""], [[7, 30]]))
    assert ">∅<br>" in special


def test_overlapping_spans_stay_balanced() -> None:
    experts = np.zeros((9, 1), int)
    checked(tokens_html(SENTENCE, experts, spans=[(0, 4, "尊敬語"), (2, 9, "丁寧語"), (8, 20, "美化語")]))
    assert "no tokens to show" in tokens_html([], np.zeros((0, 2), int))


def test_spans_from_labels() -> None:
    labels = np.zeros((9, 2), bool)
    labels[3:7, 0] = labels[7, 1] = labels[0, 1] = True
    assert spans_from_labels(labels, ("尊敬語", "丁寧語")) == ((0, 1, "丁寧語"), *SPANS)


def test_report_is_whole_in_itself() -> None:
    found = result()
    hostile = Figure()
    hostile.subplots().plot([1, 2])
    page = report_html(
        Report(
            title=HOSTILE,
            results={"honorifics": found, "pos": result(names=("名詞", "助詞", "動詞", HOSTILE))},
            model=[("model", HOSTILE), ("text", "敬語 and plain style")],
            examples=[example(), example(tokens=(HOSTILE, *SENTENCE[1:]), note=HOSTILE), example(label="美化語")],
            figures=[("something else", hostile)],
            reproduce="moelens demo --report <out>",
            notes=("One note & another.",),
        )
    )
    tags = checked(page.split("<body>")[1].split("</body>")[0]).tags
    assert "script" not in tags
    assert not re.findall(r"""(?:https?:)?//[a-z]|@import|url\((?!data:)""", re.sub(r'"data:[^"]*"', "", page))
    assert all(src.startswith("data:image/png;base64,") for src in re.findall(r'(?:src|srcset)="([^"]*)"', page))
    assert len(page) < 3_000_000
    nothing_causal = "Nothing in this report is causal"
    for text in ("prefers-color-scheme: dark", found.headline, nothing_causal, "lift given token", "seed 0"):
        assert text in page


def test_findings_table_in_a_notebook() -> None:
    found = result()
    html = found._repr_html_()
    assert html == findings_html(found)
    assert set(checked(html).tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert "L3 · E3" in html
    assert "opacity: 0.45" in html
    assert "no expert is chosen for any of these labels" in findings_html(found, [])
    assert ">lift</th>" in html
    assert "grey: neither is below .05" in html
    assert "-0 %" not in findings_html(found, [replace(found.top(1)[0], excess_left=-0.001)])


def test_japanese_is_marked() -> None:
    assert '<span lang="ja">謙譲語I</span>' in label_html("謙譲語I")
    assert (
        text_html("what 謙譲語II is, いつ？")
        == 'what <span lang="ja">謙譲語II</span> is, <span lang="ja">いつ？</span>'
    )


def test_errors() -> None:
    with pytest.raises(UnknownNameError, match="unknown label '尊敬'; did you mean '尊敬語'"):
        expert_map(result(), "尊敬")
    with pytest.raises(UnknownNameError, match="unknown value 'lifts'; did you mean 'lift'"):
        expert_map(result(), "尊敬語", value="lifts")
    with pytest.raises(CheckError, match=r"expected experts and weights of shape \[2 tokens, slots\], got .*\[3, 1\]"):
        tokens_html(["は", "が"], np.zeros((3, 1), int))
    with pytest.raises(MoeLensError, match="expected a report with 1 or more results, got 0"):
        report_html(Report(title="t", results={}))


def test_without_the_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "find_spec", lambda name: None)
    style._register_font.cache_clear()
    message = r"expected the package 'matplotlib-fontja' \(font IPAexGothic\), .* run pip install matplotlib-fontja"
    with pytest.raises(MoeLensError, match=message), japanese_font():
        pass


def test_analysis_imports_no_plotting() -> None:
    code = "import sys, moelens.analysis; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
