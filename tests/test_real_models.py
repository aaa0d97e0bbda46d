"""The gallery of real models: its files are checked, and its page says what was measured."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import real_models
from moelens.errors import MoeLensError

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT.parent / "shared" / "data" / "routing"


def test_the_page_has_the_tables_that_were_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "real_models.json").read_text("utf-8"))
    page = real_models.PAGE.read_text("utf-8")
    assert real_models.put_into_page(found, page) == page
    assert found["command_a_plus"]["indices reproduced"] == 55
    assert found["command_a_plus"]["Japanese and"]["zh"] == 0.542


def test_the_prose_says_what_was_measured() -> None:
    trainings = json.loads((ROOT / "benchmarks" / "results" / "real_models.json").read_text("utf-8"))["llm_jp"][
        "trainings"
    ]
    strongest = {(t, s["label"]): s for t, found in trainings.items() for s in found["specialists"]}
    page = " ".join(real_models.PAGE.read_text("utf-8").split())
    for training, label, words in (
        ("FS", "丁寧語", "takes {share:.0%} of 丁寧語 (です, ます, でしょう) and {load:.1%} of all tokens"),
        ("FS", "丁寧語", "its lift is between {low:.1f} and {high:.1f}"),
        ("FS", "一人称・普通", "expert {expert} of layer {layer} takes {share:.0%} of ordinary first-person pronouns"),
        ("FS", "謙譲語II", "expert {expert} of layer {layer} takes {share:.0%} of 謙譲語II"),
        ("DU-0.5", "丁寧語", "Expert {expert} of layer {layer} takes {share:.0%} of 丁寧語 with a load of {load:.1%}"),
        ("NU", "丁寧語", "The best expert for 丁寧語 takes {share:.0%}, with a lift of {lift:.1f}"),
    ):
        found = strongest[training, label]
        assert words.format(low=found["bounds"][0], high=found["bounds"][1], **found).replace("%", " %") in page
    told = {t: found[real_models.TOLD] for t, found in trainings.items()}
    first, last = ([f"{told[t][layer]:.1f}" for t in ("FS", "DU-0.5")] for layer in (0, -1))
    assert f"tells {first[0]} bits in the first layer and {last[0]} in the last from scratch, {first[1]} and" in page
    assert f"{first[1]} and {last[1]} after drop-upcycling, and {max(told['NU']):.1f} or less" in page
    polite = strongest["FS", "丁寧語"]
    for name in ("README.md", "README.ja.md"):
        readme = (ROOT / name).read_text("utf-8")
        assert f"{polite['share']:.0%}".replace("%", " %") in readme
        assert f"{polite['load']:.1%}".replace("%", " %") in readme


def test_content_counts_and_not_how_it_is_packed(tmp_path: Path) -> None:
    rows = {"layer": [0, 1, 0], "expert": [1, 0, 0], "token_id": [5, 5, 6], "count": [1, 2, 3]}
    np.savez(tmp_path / "a.npz", **rows)
    np.savez_compressed(tmp_path / "b.npz", **{n: np.array(v[::-1], np.uint16) for n, v in rows.items()})
    assert real_models.content_hash(tmp_path / "a.npz") == real_models.content_hash(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", **(rows | {"count": [1, 2, 4]}))
    assert real_models.content_hash(tmp_path / "a.npz") != real_models.content_hash(tmp_path / "b.npz")
    for level in (1, 9):
        (tmp_path / f"{level}.gz").write_bytes(gzip.compress(b"text" * 99, level))
    assert real_models.content_hash(tmp_path / "1.gz") == real_models.content_hash(tmp_path / "9.gz")


def test_files_that_are_absent_or_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real_models.main([str(tmp_path), "--part", "esft"])
    assert json.loads(capsys.readouterr().out)["esft"]["absent"] == [
        "esft_intent.npz",
        "esft_intent_published_scores.json",
    ]
    for name in ("atlas_mass", "atlas_summary"):
        (tmp_path / "command-a-plus").mkdir(exist_ok=True)
        (tmp_path / "command-a-plus" / f"{name}.json").write_text("{}")
    with pytest.raises(MoeLensError, match="expected the published content in '"):
        real_models.measure_all(tmp_path, ["command_a_plus"])
    real_models.main(["--list"])
    assert "routing/mgsm_result/mgsm_ja.json" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["qwen3", "command_a_plus", "esft"])
def test_what_was_measured_is_measured_again(part: str) -> None:
    if real_models.missing_files(PUBLISHED, part):
        pytest.skip(f"the published routing is not at {PUBLISHED}")
    stated = json.loads((ROOT / "benchmarks" / "results" / "real_models.json").read_text("utf-8"))
    assert json.loads(json.dumps(real_models.measure_all(PUBLISHED, [part])[part])) == stated[part]
