"""Tests of `moelens causes` and `moelens effect`, on the bundled model and on pairs from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moelens
from moelens.commands.command_line import main
from moelens.interventions import TextPair, causes
from moelens.interventions.causal import holm_correction
from moelens.interventions.items import read_items
from moelens.interventions.operations import operation_by_name

CONTEXTS = ["明日は学校へ", "母と町へ", "夏には海へ", "兄は大阪へ"]
ROWS = [
    {"id": c, "kind": "style-agreement", "frame": c, "context": c, "good": "行きます。", "bad": "行く。"}
    for c in CONTEXTS
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_causes_finds_removes_and_controls(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "effect.json"
    assert main(["causes", "demo", "--pairs", str(pairs), "--top", "4", "--draws", "20", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "contributions to style-agreement, nats · found on 2 pairs, verified on 2 of other frames" in shown
    assert "rank correlation with removal (test): of attribution (discovery)" in shown
    data = json.loads(out.read_text("utf-8"))
    assert len(data["attribution"]["top"]) == 4
    assert all(len(e["controls"]) == 20 and e["half"] == "test" for e in data["effects"])
    assert "remove E" in shown


def test_effect_of_one_intervention(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["effect", "demo", "--pairs", str(pairs), "--operation"]
    assert main([*base, "remove", "--layer", "3", "--experts", "shared"]) == 0
    assert "remove shared expert in layer 3 · all items · no controls" in capsys.readouterr().out
    for arguments, message in (
        (
            ["remove", "--layer", "3", "--experts", "a"],
            "expected --experts with ids such as 5,9, the word shared or a file of experts, got 'a'",
        ),
        (
            ["remove", "--experts", "1"],
            "expected --layer with ids of experts, got none; give the number of their layer",
        ),
        (["delete", "--layer", "3", "--experts", "1"], "unknown operation 'delete'"),
        (["scale", "--layer", "3", "--experts", "1"], "expected a value for scale, got none; give a number"),
        (
            ["remove", "--layer", "3", "--experts", "1", "--value", "2"],
            "expected no value for remove, got 2.0; leave it out",
        ),
    ):
        assert main([*base, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_pairs_by_kind_or_file(pairs: Path) -> None:
    assert [p.id for p in read_items(str(pairs))] == CONTEXTS
    assert {p.kind for p in read_items("respectful-humble")} == {"respectful-humble"}
    with pytest.raises(
        moelens.MoeLensError, match=r"expected a \.jsonl file with one pair or contrast a line, got 'none\.jsonl'"
    ):
        read_items("none.jsonl")
    with pytest.raises(
        moelens.MoeLensError, match="unknown kind of contrasts or pairs 'requst'; did you mean 'requests'"
    ):
        read_items("requst")
    two = [TextPair(id=k, kind=k, frame="f", context="c", good="x", bad="y") for k in ("k1", "k2")]
    with pytest.raises(
        moelens.MoeLensError, match="expected items of one kind, got 2: k1, k2; give one kind at a time"
    ):
        causes(None, two)


def test_named_operations_and_holm() -> None:
    assert str(operation_by_name("swap", 3, [1, 2])) == "swap E1, E2 in layer 3"
    assert str(operation_by_name("shift", 3, [1], 0.5, at="尊敬語")) == "shift by 0.5 E1 in layer 3 at 尊敬語"
    with pytest.raises(moelens.MoeLensError, match=r"expected two experts for swap, got \[1\]; give ids such as"):
        operation_by_name("swap", 3, [1])
    assert holm_correction([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
