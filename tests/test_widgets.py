"""Live views: what Python sends, and, in a real browser, what is drawn and sent back."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import moelens
from moelens.analysis import Specialization, specialization_from_arrays
from moelens.views.cards import card_html
from moelens.views.widgets import ExpertMap

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The face of an anywidget model, and nothing behind it.
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


def result_of(layers: int, experts: int, tokens: int = 600, k: int = 2) -> Specialization:
    rng = np.random.default_rng(0)
    labels = rng.random((tokens, 3)) < [0.3, 0.2, 0.0]
    indices = np.argsort(rng.random((tokens, layers, experts)) - np.eye(experts)[3] * labels[:, :1, None], -1)[..., :k]
    return specialization_from_arrays(
        indices,
        labels,
        ["尊敬語", "丁寧語", "美化語"],
        docs=np.arange(tokens) // 20,
        token_ids=rng.integers(0, 50, tokens),
        n_experts=experts,
        layers=range(3, 3 + layers),
        permutations=49,
    )


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
    state = ExpertMap(result_of(58, 256, tokens=200, k=8)).get_state()
    size = sum(len(v) if isinstance(v, bytes | memoryview) else len(str(v)) for v in state.values())
    assert size < 500_000


def test_without_a_kernel_there_is_a_picture(small: Specialization) -> None:
    data, _ = ExpertMap(small)._repr_mimebundle_()
    assert data["text/html"].startswith("<picture>")
    assert "application/vnd.jupyter.widget-view+json" in data


def test_explore_is_reached_from_the_result(small: Specialization) -> None:
    box = small.explore()
    box.map.selected = [1, 3]
    assert "L4 · E3" in box.card.value


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
    result = moelens.specialization(recording, labels, "pos", permutations=50)
    best = result.top(1, "補助記号")[0]
    html = card_html(result, best.layer, best.expert, recording)
    parser = Balanced()
    parser.feed(html)
    assert not parser.open
    assert "補助記号" in html
    assert "together with E" in html
    assert "<mark>" in html
    assert "<script>" not in html
    box = result.explore(recording)
    box.map.selected = [result.layers.index(best.layer), best.expert]
    assert box.card.value == html


def test_cards_of_nobody(small: Specialization) -> None:
    with pytest.raises(moelens.MoeLensError, match="unknown layer '99'; allowed: 3, 4, 5, 6"):
        card_html(small, 99, 0)
    with pytest.raises(moelens.MoeLensError, match="unknown expert '32'"):
        card_html(small, 3, 32)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "chromium is missing: .ci/run installs it"
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1100, "height": 700})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def mount(page: Any, widget: ExpertMap) -> Any:
    state = widget.state()
    buffers = {k: base64.b64encode(v).decode() for k, v in state.items() if isinstance(v, bytes | memoryview)}
    plain = {k: v for k, v in state.items() if k not in buffers}
    page.goto("about:blank")
    page.evaluate(FAKE, [widget._esm, plain, buffers])
    return page.get_by_role("application")


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
