"""The crossed contrasts: what their table promises, item by item."""

from __future__ import annotations

from collections import Counter

import pytest

import moelens
from moelens.japanese.crossed_contrasts import (
    Contrast,
    as_contrast_dataset,
    classes_within,
    contrast_kinds,
    contrasts,
    expected_classes,
)

CONTROLS = ("control-tense", "control-polarity", "control-animacy", "control-noun")


@pytest.mark.parametrize("kind", contrast_kinds())
def test_a_kind_has_frames_and_items_enough(kind: str) -> None:
    found = contrasts(kind)
    assert len(found) >= 60
    for half in ("discovery", "test"):
        assert len({c.frame for c in found if c.split == half}) >= 6
    assert len({c.id for c in found}) == len(found)
    texts = Counter((c.context_a, c.context_b, c.x, c.y) for c in found)
    assert texts.most_common(1)[0][1] == 1
    assert {c.control for c in found} == {kind in CONTROLS}
    assert all(c.context_a != c.context_b and c.x != c.y for c in found)
    assert max(len(c.context_a) for c in found) <= 40


@pytest.mark.parametrize("kind", contrast_kinds())
def test_the_tagger_confirms_class_and_plainness(kind: str) -> None:
    x_class, y_class = expected_classes(kind)
    for c in contrasts(kind):
        of_x, of_y = classes_within(c.context_a, c.x), classes_within(c.context_b, c.y)
        if x_class:
            assert x_class in of_x, c.id
            assert x_class not in of_y, c.id
        if y_class:
            assert y_class in of_y, c.id
        if c.control:
            assert of_x == of_y, c.id


def test_halves_and_kinds() -> None:
    assert len(contrast_kinds()) >= 12
    halves = [contrasts("requests", half) for half in ("discovery", "test")]
    assert sum(map(len, halves)) == len(contrasts("requests"))
    assert not {c.frame for c in halves[0]} & {c.frame for c in halves[1]}
    assert as_contrast_dataset("requests").num_rows == len(contrasts("requests"))
    with pytest.raises(moelens.MoeLensError, match="unknown kind of contrasts 'request'; did you mean 'requests'"):
        contrasts("request")
    with pytest.raises(moelens.MoeLensError, match="unknown split 'dev'; allowed: discovery, test"):
        contrasts("requests", "dev")


def test_a_contrast_shows_its_four_texts() -> None:
    made = Contrast(
        id="a",
        kind="k",
        frame="f",
        context_a="客：<b>\n係：",
        context_b="友：",
        x="です。",
        y="だ。",
        control=False,
        split="test",
    )
    html = made._repr_html_()
    assert html.count("○") == html.count("×") == 2
    assert "<b>" not in html.replace("<br>", "")
