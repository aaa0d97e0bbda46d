"""Labels under their Japanese, romanised and English names, wherever a label is typed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import moelens
from moelens.commands.completion import completions
from moelens.commands.table import COMMANDS
from moelens.errors import MoeLensError, UnknownNameError
from moelens.japanese.families import COLUMNS, FAMILIES, require_label, require_name
from moelens.japanese.label_names import LABEL_NAMES, typed_names


def test_every_japanese_label_has_names_that_no_other_label_of_its_family_has() -> None:
    for labels in FAMILIES.values():
        japanese = [label for label in labels if not label.isascii()]
        assert not set(japanese) - set(LABEL_NAMES)
        names = [name for label in labels for name in (label, *typed_names(label))]
        assert len(names) == len(set(names))
        assert all(name.isascii() and " " not in name for label in labels for name in typed_names(label))


@pytest.mark.parametrize("column", COLUMNS)
def test_a_label_is_found_by_each_of_its_names(column: str) -> None:
    family, _, label = column.partition(".")
    for name in typed_names(label):
        assert require_label(f"{family}.{name}", COLUMNS) == column
        assert require_name(name, FAMILIES[family]) == label


@pytest.mark.parametrize(
    ("typed", "column"),
    [
        ("sonkeigo", "honorifics.尊敬語"),
        ("kenjogo-1", "honorifics.謙譲語I"),
        ("Humble I", "honorifics.謙譲語I"),
        ("humble_II", "honorifics.謙譲語II"),
        ("respectful", "honorifics.尊敬語"),
        ("prefix", "honorific_form.prefix"),  # the label's own name goes first
        ("polite-style", "ending.敬体"),
    ],
)
def test_typed_names_without_their_family(typed: str, column: str) -> None:
    assert require_label(typed, COLUMNS) == column


def test_unknown_and_ambiguous_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown label 'sonkego'; did you mean 'sonkeigo'"):
        require_label("sonkego", COLUMNS)
    with pytest.raises(MoeLensError, match=r"write pos\.記号 or goshu\.記号"):
        require_label("symbol", COLUMNS)
    with pytest.raises(UnknownNameError, match="unknown label 'sonkego'"):
        require_name("sonkego", FAMILIES["honorifics"])


def test_results_and_interventions_take_them(demo_recording: moelens.Recording) -> None:
    result = moelens.analyze(demo_recording, permutations=20, progress=False)
    assert result.label_index("teineigo") == result.label_index("丁寧語")
    assert result.top(3, "polite") == result.top(3, "丁寧語")
    assert result.table(3, label="teineigo") == result.table(3, label="丁寧語")
    assert moelens.explore(demo_recording, label="teineigo", result=result).map.label == "丁寧語"


def test_completion_offers_all_names() -> None:
    found = completions("%moe analyze runs --label ", COMMANDS, {})
    assert {"尊敬語", "sonkeigo", "respectful"} <= set(found)
    assert completions("%moe probe runs kenj", COMMANDS, {}) == ["kenjogo-1", "kenjogo-2"]


def test_label_names_without_a_locale(demo_recording: moelens.Recording) -> None:
    command = [sys.executable, "-m", "moelens", "analyze", str(demo_recording.path), "--permutations", "20", "--label"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([*command, "丁寧語"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
