"""What functions say that are given something else than a hooked model or a recording."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import moelens
from moelens.errors import MoeLensError
from moelens.interventions import expert_lens

REMOVED = moelens.remove(layer=3, experts=[1])
OF_MODELS: dict[str, Callable[[Any], Any]] = {
    "record": lambda model: moelens.record(model, ["先生"], "not-written"),
    "prefer": lambda model: moelens.prefer(model, "requests"),
    "effect": lambda model: moelens.effect(model, "requests", REMOVED),
    "attribute": lambda model: moelens.attribute(model, "requests"),
    "causes": lambda model: moelens.causes(model, "requests"),
    "steer": lambda model: moelens.steer(model, ["先生"], [(3, 1)], [0.1]),
    "trace": lambda model: moelens.trace(model, "先生"),
    "expert_lens": lambda model: expert_lens(model, "先生", layer=3),
}
OF_RECORDINGS: dict[str, Callable[[Any], Any]] = {
    "analyze": lambda source: moelens.analyze(source, "honorifics"),
    "measure": lambda source: moelens.measure(source, "load"),
    "compare": lambda source: moelens.compare(source, source),
    "probe": lambda source: moelens.probe(source, "honorifics"),
    "label": moelens.label,
    "report": moelens.report,
    "explore": moelens.explore,
    "export": lambda source: moelens.export(source, "csv", "not-written"),
    "verify": moelens.verify,
    "open": moelens.open,
}


@pytest.mark.parametrize("name", OF_MODELS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("demo", "expected a hooked model, got 'demo'; load it with moelens.load('demo')"),
        (Path("a folder"), "expected a hooked model, got 'a folder'; load it with moelens.load('a folder')"),
        (nn.Linear(1, 1), "expected a hooked model, got Linear; give what moelens.load or moelens.hook returns"),
        (None, "expected a hooked model, got NoneType; give what moelens.load or moelens.hook returns"),
    ],
    ids=["name", "path", "torch", "none"],
)
def test_a_function_of_a_model_says_what_it_was_given(name: str, given: Any, said: str) -> None:
    with pytest.raises(MoeLensError, match=f"^{re.escape(said)}$"):
        OF_MODELS[name](given)
    assert not Path("not-written").exists()


@pytest.mark.parametrize("name", OF_RECORDINGS)
@pytest.mark.parametrize("given", [42, ["a"], object()], ids=lambda given: type(given).__name__)
def test_a_function_of_a_recording_says_what_it_was_given(name: str, given: Any) -> None:
    said = (
        rf"expected a Recording or the path of one, got {type(given).__name__}; make one with|expected two recordings"
    )
    with pytest.raises(MoeLensError, match=said):
        OF_RECORDINGS[name](given)


def test_names_that_a_function_does_not_use_are_checked(demo_recording: moelens.Recording) -> None:
    with pytest.raises(MoeLensError, match="unknown label family 'nonsense'"):
        moelens.measure(demo_recording, "load", "nonsense")
    with pytest.raises(MoeLensError, match="unknown control 'nonsense'"):
        moelens.compare(demo_recording, demo_recording, None, given="nonsense", permutations=19)
