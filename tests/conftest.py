"""What every test shares: quiet libraries, no network, one thread, and a small hooked model."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.browser import CHROMIUM, FLAGS
from helpers.jupyter_server import Lab, serving
from helpers.tiny import tiny_model

from moelens import Corpus, HookedMoE, Recording, hook, label, load, record


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def deepseek() -> Iterator[HookedMoE]:
    """DeepSeek-V3 with a selection bias and groups, random weights."""
    model = hook(tiny_model("deepseek_v3"), name="tiny")
    yield model
    model.unhook()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(5, 150, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def demo_recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Every seventh text of the demo's corpus with its columns, recorded with the demo's model and labelled."""
    rows = [{"text": document.text, **document.metadata} for document in list(Corpus.of("demo"))[::7]]
    recording = record(load("demo"), rows, tmp_path_factory.mktemp("demo") / "run", progress=False)
    label(recording, processes=1)
    return recording


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


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Lab]:
    with serving(tmp_path_factory.mktemp("lab"), browser, "jupyterlab", "LabApp", "lab/tree") as lab:
        yield lab
