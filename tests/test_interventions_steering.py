"""Steering: continuations under a range of strengths, their style and fluency, and matched sets beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import moelens
from moelens.analysis import ExpertList
from moelens.commands.command_line import main
from moelens.display import find_view
from moelens.errors import UnknownNameError
from moelens.interventions.steering import Share, Steering, _styles, _summarise, _Written
from moelens.japanese import prompts, register

PROMPTS = ["今日は朝から雨が", "先生は", "私はその本を"]


@pytest.fixture(scope="module")
def model() -> moelens.HookedMoE:
    return moelens.load("demo")


@pytest.fixture(scope="module")
def result(model: moelens.HookedMoE) -> Steering:
    return moelens.steer(model, PROMPTS, [(3, 5), (4, 9)], [-0.3, 0.0, 0.3], controls=2, new_tokens=24, progress=False)


def test_bundled_prompts_leave_the_style_open() -> None:
    found = prompts()
    assert len(found) == len(set(found)) >= 20
    assert not [p for p in found for s in register(p) if s.ending == "敬体" or s.register != "plain"]


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("今日は", "雨です。", (1, 0, 1)),
        ("今日は", "雨だ。先生がいらっしゃいました。途中で", (1, 1, 2)),
        ("雨です。私は", "学生だ。", (0, 0, 1)),
        ("先生は", "いらっしゃると", (0, 0, 0)),
        ("先生は", "", (0, 0, 0)),
    ],
)
def test_complete_sentences_are_counted(prompt: str, text: str, expected: tuple[int, int, int]) -> None:
    assert _styles(prompt, text) == expected


def test_without_strength_nothing_differs_from_the_control_sets(result: Steering) -> None:
    step = result.steps[1]
    assert step.strength == 0
    for share in (step.polite, step.honorific):
        assert share.control_low == share.control_high
        np.testing.assert_equal(share.control, share.share)
    assert step.perplexity == step.control_perplexity


def test_the_same_seed_writes_the_same(model: moelens.HookedMoE, result: Steering) -> None:
    state = torch.random.get_rng_state()
    again = moelens.steer(model, PROMPTS, [(3, 5), (4, 9)], [0.3], controls=0, new_tokens=24, progress=False)
    assert again.steps[0].example == result.steps[2].example
    assert np.isnan(again.steps[0].polite.control)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_large_strength_changes_what_is_written_and_how_fluent_it_is(model: moelens.HookedMoE) -> None:
    experts = [(layer, expert) for layer in model.shape.moe_layers for expert in (0, 1, 2, 3)]
    none, much = moelens.steer(model, PROMPTS, experts, [0.0, 9.0], controls=0, new_tokens=24, progress=False).steps
    assert none.example != much.example
    assert much.perplexity > none.perplexity


def test_biases_multiply_the_strength(model: moelens.HookedMoE) -> None:
    halves = moelens.steer(model, PROMPTS, [(3, 5, 0.5)], [0.6], controls=0, new_tokens=16, progress=False)
    whole = moelens.steer(model, PROMPTS, [(3, 5)], [0.3], controls=0, new_tokens=16, progress=False)
    assert halves.steps[0].example == whole.steps[0].example
    assert halves.experts == ((3, 5, 0.5),)


def test_table_picture_and_file(result: Steering, tmp_path: Path) -> None:
    text = repr(result)
    assert "steered by L3 E5, L4 E9 · 3 prompts, 24 tokens after each" in text
    assert "2 matched sets of other experts" in text
    assert len(result.plot(ax=Figure().subplots()).get_xticks()) == 3
    again = Steering.open(result.save(tmp_path / "steering.json"))
    assert again.experts == result.experts
    np.testing.assert_equal(again.records(), result.records())
    rows = result.to_pandas()
    assert {"strength", "polite", "polite_low", "honorific_control_high", "perplexity"} <= set(rows.columns)
    assert isinstance(result.steps[0].polite, Share)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "steering.json"
    options = ["--strengths", "-0.2", "0", "--new-tokens", "8", "--controls", "0", "--out", str(out)]
    assert main(["steer", "demo", "--experts", "3:5,4:9", *options]) == 0
    assert "steered by L3 E5, L4 E9 · 24 prompts" in capsys.readouterr().out
    assert [s.strength for s in Steering.open(out).steps] == [-0.2, 0.0]
    assert main(["steer", "demo", "--experts", "3:5", *options[:-2], "--lang", "ja"]) == 0
    assert "L3 E5を操作 · プロンプト24件" in capsys.readouterr().out
    assert main(["steer", "demo", "--experts", "5,9"]) == 2
    assert "expected --experts with LAYER:EXPERT such as 3:5,4:21" in capsys.readouterr().err


def test_what_can_be_refused_is_refused_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moelens.models.loading.load", lambda *_, **__: pytest.fail("the model was loaded"))
    keep = ExpertList(form="keep", biases=((3, 1, 1.0),), layers=(3,), n_experts=32).save(tmp_path / "keep.json")
    far = ExpertList(form="bias", biases=((3, 99, 1.0),), layers=(3,), n_experts=100).save(tmp_path / "far.json")
    for experts, told in ((keep, "got a list of experts to keep"), (far, "99")):
        assert main(["steer", "demo", "--experts", str(experts)]) == 2
        assert told in capsys.readouterr().err


def test_intervals_of_shares_stay_between_0_and_1() -> None:
    shares = np.array([0.0, 0.0, 0.0, 0.0, 1.0])
    written = _Written(polite=shares, honorific=np.ones(5), sentences=5, perplexity=2.0, example="")
    step = _summarise(0.1, [written])
    assert 0 <= step.polite.low < 0.2 < step.polite.high <= 1
    assert 0 < step.honorific.low < step.honorific.high == 1


def test_the_plot_in_japanese(result: Steering) -> None:
    axes = result.plot(ax=Figure().subplots(), lang="ja")
    assert axes.get_ylabel() == "文の割合"
    assert "対照群" in find_view(Steering, "html")(result, lang="ja")


def test_what_cannot_be_steered(model: moelens.HookedMoE) -> None:
    with pytest.raises(moelens.MoeLensError, match="expected one or more prompts, experts and strengths, got none"):
        moelens.steer(model, [], [(3, 5)])
    with pytest.raises(UnknownNameError, match="unknown layer '9'; allowed: 1, 2, 3, 4"):
        moelens.steer(model, PROMPTS, [(9, 1)])
    with pytest.raises(moelens.MoeLensError, match="expected experts from 0 to 31, got 99; give an expert of 'demo'"):
        moelens.steer(model, PROMPTS, [(3, 99)])
    with pytest.raises(moelens.MoeLensError, match="expected 0 to 20 control sets, got 30; give another number"):
        moelens.steer(model, PROMPTS, [(3, 5)], controls=30)
    keep = ExpertList(form="keep", biases=((3, 1, 1.0),), layers=(3,), n_experts=32)
    with pytest.raises(moelens.MoeLensError, match="expected a list of biases to steer by, got a list of experts to"):
        moelens.steer(model, PROMPTS, keep)
