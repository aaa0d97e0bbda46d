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
