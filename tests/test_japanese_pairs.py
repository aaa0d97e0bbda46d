"""Minimal pairs: those made from the table, checked with the honorific rules."""

from __future__ import annotations

import tomllib
from collections import Counter
from importlib.resources import files

import pytest

from moelens.errors import UnknownNameError
from moelens.japanese.crossed_contrasts import contrast_kinds
from moelens.japanese.minimal_pairs import Pair, as_dataset, kinds, pairs

TABLE = tomllib.loads(files("moelens.japanese").joinpath("pairs.toml").read_text("utf-8"))
CONTRAST = {kind["name"]: kind["classes"] for kind in TABLE["kind"]}


def test_there_are_enough_pairs_and_each_is_unique():
    every = pairs()
    assert len(every) >= 90
    assert len({p.id for p in every}) == len({(p.context, p.good, p.bad) for p in every}) == len(every)
    assert Counter(p.kind for p in every).keys() == set(kinds())
    assert min(Counter(p.kind for p in every).values()) >= 24
    assert not set(kinds()) & set(contrast_kinds()), "what can be crossed is a contrast"


@pytest.mark.parametrize("kind", kinds())
def test_good_and_bad_differ_by_the_class_of_their_kind(kind: str):
    """The classes do not differ in a kind without a class and in the controls."""
    contrast = CONTRAST[kind]
    for pair in pairs(kind):
        assert pair.good != pair.bad
        if contrast:
            assert (contrast in pair.good_classes) != (contrast in pair.bad_classes), pair
        else:
            assert pair.good_classes == pair.bad_classes, pair


@pytest.mark.parametrize("kind", kinds())
def test_the_halves_share_no_frame(kind: str):
    frames = [{p.frame for p in pairs(kind, split)} for split in ("discovery", "test")]
    assert min(map(len, frames)) >= 1
    assert frames[0].isdisjoint(frames[1])
    assert len(pairs(kind, "discovery")) + len(pairs(kind, "test")) == len(pairs(kind))


@pytest.mark.parametrize(
    "id, context, good, bad, classes",
    [
        ("humble-direction/to-place/海", "部長、私は明日、海へ", "参ります。", "伺います。", ("謙譲語II", "丁寧語")),
        (
            "title/reservation/佐藤",
            "いらっしゃいませ。三名でご予約の佐藤",
            "様ですね。",
            "ですね。",
            ("尊敬語", "丁寧語"),
        ),
    ],
)
def test_pairs_by_id(id, context, good, bad, classes):
    (pair,) = (p for p in pairs() if p.id == id)
    assert (pair.context, pair.good, pair.bad, pair.good_classes) == (context, good, bad, classes)


def test_no_placeholders_remain():
    assert not [p.id for p in pairs() if set("{}") & set(p.context + p.good + p.bad)]


def test_as_dataset():
    dataset = as_dataset("title")
    assert dataset.column_names == list(Pair.__dataclass_fields__)
    assert dataset["id"][:] == [p.id for p in pairs("title")]
    assert dataset[0]["good_classes"] == list(pairs("title")[0].good_classes)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("titles",), "unknown kind of pairs 'titles'; did you mean 'title'?"),
        (("title", "dev"), "unknown split 'dev'; allowed: discovery, test"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(UnknownNameError) as error:
        pairs(*arguments)
    assert str(error.value) == message
