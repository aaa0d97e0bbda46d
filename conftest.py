"""What the examples in docstrings may use: the bundled model, hooked, and a small labelled recording made with it."""

from __future__ import annotations

from typing import Any

import pytest

import moelens


@pytest.fixture(scope="session")
def _doctest_recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    model = moelens.load("demo")
    texts = [document.text for document in moelens.Corpus.of("demo")][:40]
    recording = moelens.record(model, texts, tmp_path_factory.mktemp("doctest") / "run", progress=False)
    moelens.label(recording, processes=1)
    return model, recording


@pytest.fixture(autouse=True)
def _examples(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem) and "demo_" in request.node.dtest.docstring:
        names = request.getfixturevalue("doctest_namespace")
        names["demo_model"], names["demo_recording"] = request.getfixturevalue("_doctest_recording")
        names["moelens"] = moelens
