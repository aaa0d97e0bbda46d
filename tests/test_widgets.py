"""Live views: what Python sends, and, in a real browser, what is drawn and sent back."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.results import payload, result_of

import moelens
from moelens.analysis import Specialization
from moelens.tracing import Trace
from moelens.views.cards import card_html
from moelens.views.explorer import EffectView
from moelens.views.frontend import STATIC
from moelens.views.live import LiveView
from moelens.views.map_view import ExpertMap
from moelens.views.trace_view import TraceView

# The interface of an anywidget model, without a kernel.
FAKE = """async ([esm, state, buffers]) => {
  const listeners = {}, values = {...state};
  for (const [name, data] of Object.entries(buffers))
    values[name] = new DataView(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer);
  const model = {
    get: (name) => values[name],
    set: (name, value) => { values[name] = value; (listeners["change:" + name] || []).forEach((f) => f()); },
    save_changes: () => { window.saves = (window.saves || 0) + 1; },
    on: (event, f) => { (listeners[event] ||= []).push(f); },
    off: () => {},
  };
  const module = await import(URL.createObjectURL(new Blob([esm], {type: "text/javascript"})));
  const began = performance.now();
  await module.default.render({model, el: document.body.appendChild(document.createElement("div"))});
  window.model = model;
  window.painted = performance.now() - began;
}"""

# From an action to the end of the drawing it causes, in ms.
SPENT = """(act) => new Promise((done) => {
  const began = performance.now();
  eval(act);
  document.body.getBoundingClientRect();
  done(performance.now() - began);
})"""


@pytest.fixture(scope="module")
def small() -> Specialization:
    return result_of(4, 32)


def test_one_slice_is_sent_at_a_time(small: Specialization) -> None:
    widget = ExpertMap(small)
    sent = np.frombuffer(widget.values, "<f4").reshape(4, 32)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(sent, np.log2(small.lift[:, :, 0]), rtol=1e-6)
    widget.label, widget.metric = "丁寧語", "share"
    sent = np.frombuffer(widget.values, "<f4").reshape(4, 32)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(sent, np.log2(small.share[:, :, 1] * 32 / 2), rtol=1e-6)
    assert "丁寧語" in widget.heading
    assert "美化語" not in widget.labels, "a label that nothing was tested for is no choice"


def test_the_payload_at_full_size_is_small() -> None:
    assert payload(ExpertMap(result_of(58, 256, tokens=200, k=8))) < 500_000


def test_without_a_kernel_there_is_a_picture(small: Specialization) -> None:
    data, _ = ExpertMap(small)._repr_mimebundle_()
    assert data["text/html"].startswith('<img src="data:image/png;base64,')
    assert "application/vnd.jupyter.widget-view+json" in data


def test_explore_is_reached_from_the_result(small: Specialization) -> None:
    box = small.explore()
    box.map.selected = [1, 3]
    assert "L4 · E3" in box.card.value


@pytest.mark.parametrize("file", sorted(STATIC.glob("*.js")), ids=lambda file: file.name)
def test_the_front_end_writes_text_alone_and_asks_nobody(file: Path) -> None:
    code = file.read_text(encoding="utf-8")
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|https?:|\bimport\s", code) == []
    )


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_card_says_what_an_expert_takes(tmp_path: Any) -> None:
    texts = ["社長がいらっしゃいました。", "<script>alert(1)</script>と書いてあります。", "雨が降っていた。"] * 8
    model = moelens.load("demo")
    recording = moelens.record(model, texts, tmp_path / "run", progress=False)
    labels = moelens.label(recording)
    result = moelens.analyze(recording, "pos", labels=labels, given=None, permutations=50)
    best = result.top(1, "補助記号")[0]
    html = card_html(result, best.layer, best.expert, recording)
    parser = Balanced()
    parser.feed(html)
    assert not parser.open
    assert "補助記号" in html
    assert "chosen together with E" in html
    assert "<mark>" in html
    assert "<script>" not in html
    box = moelens.explore(recording, result=result)
    box.map.selected = [result.layers.index(best.layer), best.expert]
    assert box.card.value == card_html(result, best.layer, best.expert, recording, labels=labels)


def test_sentences_on_a_card_have_the_label_that_the_expert_prefers(demo_recording: moelens.Recording) -> None:
    labels = moelens.Labels.open_or_create(demo_recording)
    result = moelens.analyze(demo_recording, "honorifics", labels=labels, permutations=50, progress=False)
    names, has = labels.matrix("honorifics")
    texts, doc = list(demo_recording.texts()), demo_recording.column("doc")
    differ = 0
    for finding in result.top(12):
        html = card_html(result, finding.layer, finding.expert, demo_recording, labels=labels)
        at = result.layers.index(finding.layer)
        first = html.partition("<tr")[2].partition("</tr>")[0]  # the label that is preferred most, as the card says
        taken = (demo_recording.indices()[:, at] == finding.expert).any(-1)
        label = next(i for i, name in enumerate(names) if name in first)
        typical = {texts[d] for d in doc[taken & has[:, label]]}
        shown = re.sub("<[^>]*>", "", html.partition('margin-top: 3px">')[2].partition("</div>")[0]).split("…")
        if typical and not result.certain[at, finding.expert].any():
            assert all(any(part in text for text in typical) for part in shown if part)
            differ += html != card_html(result, finding.layer, finding.expert, demo_recording)
    assert differ


def test_cards_of_nobody(small: Specialization) -> None:
    with pytest.raises(moelens.MoeLensError, match="unknown layer '99'; allowed: 3, 4, 5, 6"):
        card_html(small, 99, 0)
    with pytest.raises(moelens.MoeLensError, match="unknown expert 32 in layer 3; allowed: 0 to 31"):
        card_html(small, 3, 32)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1100, "height": 700})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def mount(page: Any, widget: LiveView, focus: str = "application") -> Any:
    state = widget.state()
    buffers = {k: base64.b64encode(v).decode() for k, v in state.items() if isinstance(v, bytes | memoryview)}
    plain = {k: v for k, v in state.items() if k not in buffers}
    page.goto("about:blank")
    page.evaluate(FAKE, [widget._esm, plain, buffers])
    page.add_style_tag(content=widget._css)
    return page.get_by_role(focus)


def value(page: Any, name: str) -> Any:
    return page.evaluate("(name) => window.model.get(name)", name)


@pytest.mark.e2e
def test_keys_move_and_open(page: Any, small: Specialization) -> None:
    canvas = mount(page, ExpertMap(small, "尊敬語"))
    layer, expert = value(page, "selected")
    assert expert == 3
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        canvas.press(key)
    assert value(page, "selected") == [layer, 4]
    assert "E4" in page.locator("output").inner_text()
    canvas.press("Home")
    canvas.press("Enter")
    assert value(page, "selected") == [layer, 0]
    assert value(page, "opened") == 1
    assert page.evaluate("document.activeElement.dataset.lmSuppressShortcuts") == "true"


@pytest.mark.e2e
def test_the_entries_of_menus_are_marked_as_the_language_that_they_are_in(page: Any, small: Specialization) -> None:
    mount(page, ExpertMap(small, lang="ja"))
    assert set(page.locator("option").evaluate_all("all => all.map((option) => option.lang)")) == {"ja"}


@pytest.mark.e2e
def test_click_brush_and_escape(page: Any, small: Specialization) -> None:
    canvas = mount(page, ExpertMap(small))
    box = canvas.bounding_box()
    width, height = page.evaluate(
        "(() => { const c = document.querySelector('canvas'); return [c.width, c.height]; })()"
    )
    cell, row = (width - 34) / 32, (height - 20) / 4

    def at(layer: int, expert: int) -> tuple[float, float]:
        x, y = 34 + (expert + 0.5) * cell, 4 + (layer + 0.5) * row
        return box["x"] + x * box["width"] / width, box["y"] + y * box["height"] / height

    page.mouse.click(*at(2, 17))
    assert value(page, "selected") == [2, 17]
    page.mouse.move(*at(1, 5))
    page.mouse.down()
    page.mouse.move(*at(3, 9))
    page.mouse.up()
    assert value(page, "brushed") == [1, 3, 5, 9]
    canvas.press("Escape")
    assert value(page, "brushed") == []


@pytest.mark.e2e
def test_search_sort_and_choice(page: Any, small: Specialization) -> None:
    canvas = mount(page, ExpertMap(small, "尊敬語"))
    search = page.get_by_title("go to an expert")
    search.fill("L5 E17")
    search.press("Enter")
    assert value(page, "selected") == [2, 17]
    search.fill("L99 E1")
    search.press("Enter")
    assert value(page, "selected") == [2, 17]
    assert not search.evaluate("(node) => node.validity.valid")
    canvas.press("s")
    assert value(page, "sorted") is True
    canvas.press("Home")
    assert value(page, "selected") == [2, int(np.nanargmax(small.lift[2, :, 0]))]
    page.get_by_title("label").select_option("丁寧語")
    assert value(page, "label") == "丁寧語"


@pytest.mark.e2e
def test_full_size_paints_at_once(page: Any) -> None:
    canvas = mount(page, ExpertMap(result_of(58, 256, tokens=200, k=8)))
    assert canvas.bounding_box()["width"] <= 1100
    drawn = page.evaluate(
        """() => { const c = document.querySelector("canvas");
        const d = c.getContext("2d").getImageData(40, 10, 600, 200).data;
        return new Set(Array.from({length: d.length / 4}, (_, i) => d.slice(4 * i, 4 * i + 3).join())).size; }"""
    )
    assert drawn > 20
    print(f"\n58 x 256: first paint {page.evaluate('window.painted'):.0f} ms")
    for what, act in {
        "a key": "window.model.set('selected', [7, 9])",
        "a new slice": "window.model.set('values', window.model.get('values'))",
    }.items():
        print(f"{what}: {page.evaluate(SPENT, act):.0f} ms")


@pytest.mark.e2e
def test_the_map_follows_the_width_of_the_notebook(page: Any, small: Specialization) -> None:
    canvas = mount(page, ExpertMap(small))
    wide = canvas.bounding_box()["width"]
    page.set_viewport_size({"width": 600, "height": 700})
    page.wait_for_function("(w) => document.querySelector('canvas').getBoundingClientRect().width < w", arg=wide)
    assert canvas.bounding_box()["width"] <= 600


TOKENS = ("先生", "は", "<img src=x onerror=alert(1)>", "いらっしゃい", "ます", "。")


def trace_of(tokens: tuple[str, ...], seed: int, layers: int = 3, experts: int = 16, k: int = 2) -> Trace:
    rng = np.random.default_rng(seed)
    routes = np.argsort(rng.random((len(tokens), layers, experts)), -1)[..., :k]
    weights = rng.dirichlet([1] * k, (len(tokens), layers)).astype(np.float32)
    at = tokens.index("いらっしゃい") if "いらっしゃい" in tokens else 0
    return Trace(
        model="tiny",
        text="".join(tokens),
        tokens=tokens,
        layers=tuple(range(2, 2 + layers)),
        experts=routes,
        weights=weights,
        spans=((at, at + 1, "尊敬語"),),
    )


@pytest.mark.e2e
def test_a_trace_is_walked_by_keys(page: Any) -> None:
    trace = trace_of(TOKENS, 0)
    board = mount(page, TraceView([trace], layer=3))
    assert page.locator(".moelens-token").count() == len(TOKENS)
    assert page.locator("img").count() == 0, "text is text"
    assert "<img src=x" in page.locator(".moelens-token").nth(2).inner_text()
    assert "▲" in page.locator(".moelens-token").nth(3).inner_text()
    assert page.locator(".moelens-token").nth(3).get_attribute("title") == "尊敬語 (respectful)"
    for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
        board.press(key)
    assert value(page, "selected") == 3
    told = page.locator("output").inner_text()
    for expert, weight in zip(trace.experts[3, 1], trace.weights[3, 1], strict=True):
        assert f"E{expert}" in told
        assert f"{float(f'{weight:.3g}'):g}" in told
    assert page.locator(".moelens-chosen").inner_text() == page.locator(".moelens-token").nth(3).inner_text()
    board.press("ArrowDown")
    assert value(page, "layer") == 4
    board.press("c")
    assert value(page, "colour") == "weight"
    board.press("End")
    assert value(page, "selected") == len(TOKENS) - 1
    assert page.evaluate("document.activeElement.dataset.lmSuppressShortcuts") == "true"


@pytest.mark.e2e
def test_the_slider_and_the_colours(page: Any) -> None:
    trace = trace_of(TOKENS, 0)
    mount(page, TraceView([trace], load=np.arange(48).reshape(3, 16), layer=2))
    page.get_by_title("layer").press("ArrowRight")
    assert value(page, "layer") == 3
    assert page.locator(".moelens-controls b").inner_text() == "L3"
    below = page.locator(".moelens-token small")
    page.get_by_title("colour").select_option("label")
    assert below.nth(3).inner_text() == "▲"
    page.get_by_title("colour").select_option("load")
    best = trace.experts[0, 0][trace.weights[0, 0].argmax()]
    assert float(below.nth(0).inner_text()) == best, "no kernel answered: still the load in the first layer"
    page.locator(".moelens-token").nth(4).hover()
    assert page.locator("output b").inner_text() == "ます"
    page.locator(".moelens-token").nth(4).click()
    assert value(page, "selected") == 4


@pytest.mark.e2e
def test_a_pair_shows_where_routes_differ(page: Any) -> None:
    first, second = trace_of(TOKENS, 0), trace_of(("先生", "は", "来", "ます", "。"), 1)
    mount(page, TraceView([first, second], pair=True, layer=2))
    assert page.locator(".moelens-column").count() == 6
    assert page.locator(".moelens-none").count() == 1
    column = page.locator(".moelens-column").first
    n = len({*first.experts[0, 0].tolist()} - {*second.experts[0, 0].tolist()})
    assert column.locator(".moelens-differs").inner_text() == (f"≠{n}" if n else "=")
    assert ("moelens-apart" in column.get_attribute("class")) == (n > 0)


@pytest.mark.e2e
def test_512_tokens_of_58_layers_are_fast(page: Any) -> None:
    words = tuple("敬語" for _ in range(512))
    widget = TraceView([trace_of(words, 0, layers=58, experts=256, k=8)])
    assert payload(widget) < 500_000
    mount(page, widget)
    print(f"\n512 tokens, 58 layers: first paint {page.evaluate('window.painted'):.0f} ms")
    for what, act in {
        "a key": "window.model.set('selected', 99)",
        "a layer": "window.model.set('experts', window.model.get('experts'))",
        "a colour": "window.model.set('colour', 'weight')",
    }.items():
        print(f"{what}: {page.evaluate(SPENT, act):.0f} ms")


@pytest.mark.e2e
def test_a_removal_is_asked_for_and_shown(page: Any) -> None:
    mount(page, EffectView(kind="subject-honorification", target="L3 · E9"), focus="button")
    button = page.get_by_role("button")
    assert button.inner_text() == "Remove L3 · E9"
    button.press("Enter")
    assert value(page, "clicks") == 1
    page.evaluate("window.model.set('status', 'running')")
    assert button.is_disabled()
    assert button.inner_text() == "Running…"
    effect = {
        "kind": "subject-honorification",
        "items": 80,
        "frames": 8,
        "before": 1.5,
        "after": 1.25,
        "change": -0.25,
        "low": -0.4,
    }
    effect |= {"high": -0.1, "flip": 0.125, "control": None, "control_low": None, "control_high": None, "p": None}
    page.evaluate("(row) => window.model.set('rows', [row])", {"target": "<b>L3</b> · E9", **effect})
    page.evaluate("window.model.set('status', 'idle')")
    cells = page.locator("td").all_inner_texts()
    assert cells[0] == "<b>L3</b> · E9"
    assert cells[1:4] == ["80 subject-honorification", "+1.500 → +1.250", "−0.250 [−0.400, −0.100]"]
    assert cells[5:] == ["13 %", "–", "–"]
    page.evaluate("window.model.set('message', 'no model')")
    page.evaluate("window.model.set('status', 'failed')")
    assert "moelens-failed" in page.locator("output").get_attribute("class")
    page.get_by_title("kind of sentences").select_option("humble-object")
    assert value(page, "kind") == "humble-object"
