"""The project as a whole: everything imports, files agree with each other, and some things are nowhere in the tree."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import moelens
from benchmarks.__main__ import INPUTS, PARTS, data_arguments
from moelens.analysis.tables import number

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize(
    "name", sorted(m.name for m in pkgutil.walk_packages(moelens.__path__, "moelens.") if "__main__" not in m.name)
)
def test_everything_imports(name: str) -> None:
    importlib.import_module(name)


@pytest.mark.parametrize("name", moelens.__all__)
def test_public_names_exist_and_are_documented(name: str) -> None:
    value = getattr(moelens, name)
    assert name == "__version__" or value.__doc__


def test_import_is_lazy() -> None:
    code = "import sys, moelens; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_environment_installs_the_project_with_pip() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    packages = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert environment["name"] == PROJECT["name"]
    assert f"python{PROJECT['requires-python']}" in packages
    assert pip == ["-e .[test]"]
    assert set(packages) == {f"python{PROJECT['requires-python']}", "pip"}, "dependencies are stated in pyproject.toml"


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["dynamic"] == ["version"], "moelens/version.py is the one place"
    assert moelens.__version__ == citation["version"]
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_torch_range_admits_the_version_developed_on() -> None:
    from packaging.requirements import Requirement

    torch = next(r for d in PROJECT["dependencies"] if (r := Requirement(d)).name == "torch")
    assert torch.specifier.contains("2.13.0")


INSIDE, WITH = "neurons and expert_outputs of two layers", ", with neurons and expert outputs of two layers "


def table_rows(text: str, column: str) -> list[dict[str, str]]:
    """Return the rows of the table with this column; a name that comes again is preceded by that of its neighbour."""
    header: list[str] = []
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            names = [f"{cells[at - 1]} {c}" if c in cells[:at] else c for at, c in enumerate(cells)]
            header = names if column in cells else ["", *names]
        elif header[0] and set(cells[0]) != {"-"}:
            found.append(dict(zip(header, cells, strict=True)))
    return found


def quoted() -> dict[str, str]:
    """What docs/benchmarks.md says of costs and causes, as the benchmarks printed it."""
    results = ROOT / "benchmarks" / "results"
    run = json.loads((results / "all.json").read_text("utf-8"))
    shapes = run["capture"]["models"].values()
    said = {}
    for way in next(iter(shapes)):
        medians = [shape[way]["time over bare"]["median"] for shape in shapes]
        held = [shape[way]["MB held"] for shape in shapes]
        said[way] = f"| {way} | {min(medians):.2f}–{max(medians):.2f} | {min(held)}–{max(held)} |"
    for model, found in run["recording"]["throughput"].items():
        routes, inside = (found[f"{what} / bare, in seconds"]["median"] for what in ("routes", INSIDE))
        said[model] = f"{routes:.2f}{' and ' if model == 'bundled model' else WITH}{inside:.2f}"
    counting = run["analysis"]
    said["analysis"] = f"{counting['one label']['times duckdb']} times DuckDB's speed for one label,"
    said["60 labels"] = f"{counting['60 labels']['times duckdb']} times for 60"
    for name, scores in run["honorifics"].items():
        if score := scores.get("f1", scores.get("accuracy")):
            said[name] = f"{score:.3f}".lstrip("0")
    ratio = run["honorifics"]["Speed: analysis, honorifics and alignment"]["ratio"]
    said["speed"] = f"Analysis, honorifics and alignment together run at {ratio} of the speed of the analyser alone"
    for row in table_rows((results / "causal-demo.md").read_text("utf-8"), "removing them"):
        cells = (row[c] for c in ("kind", "items (frames)", "accuracy", "interaction"))
        change, controls = f"{row['removing them']} {row['95 %']}", row["controls 95 %"]
        last = (row[c] for c in ("p Holm", "off target", "KL", "imbalance"))
        said[row["kind"]] = f"| {' | '.join(cells)} | {change} | {controls} | {' | '.join(last)} |"
    for row in table_rows((results / "frame-intervals.md").read_text("utf-8"), "regime"):
        said[f"{row['regime']} {row['frames']}"] = f"| {' | '.join(row.values())} |"
    preferred = json.loads((results / "contrasts-demo.json").read_text("utf-8"))
    trigram = {k["kind"]: k["accuracy"] for k in preferred["trigram"]["kinds"]}
    for k in preferred["model"]["kinds"]:
        shares = number(k["accuracy"]), number(k["accuracy_low"]), number(k["accuracy_high"])
        accuracy = "{} [{}, {}]".format(*shares)
        size, by_trigram = f"{k['items']} ({k['frames']})", number(trigram[k["kind"]])
        said[f"prefer {k['kind']}"] = f"| {k['kind']} | {size} | {accuracy} | {by_trigram} |"
    return said


QUOTED = quoted()


@pytest.mark.parametrize("name", QUOTED)
def test_the_page_says_what_the_benchmarks_printed(name: str) -> None:
    assert QUOTED[name] in (ROOT / "docs" / "benchmarks.md").read_text("utf-8")


def test_the_page_of_reliability_says_what_checks_cost() -> None:
    run = json.loads((ROOT / "benchmarks" / "results" / "all.json").read_text("utf-8"))
    page = " ".join((ROOT / "docs" / "reliability.md").read_text("utf-8").split())
    shares = {name.removesuffix(" / reading it"): f["median"] for name, f in run["recording"]["checks"].items()}
    assert f"takes {shares['checksum of a file of routes']:.1%} of the processor time".replace("%", " %") in page
    assert f"{shares['checksum of a file of vectors']:.1%} of reading one of vectors".replace("%", " %") in page
    assert f"the check of the values takes {shares['values of a file of routes']:.1%},".replace("%", " %") in page
    assert shares["values of a file of vectors"] < 0.001
    assert "less than 0.1 % for vectors" in page


@pytest.mark.parametrize("part", PARTS[1:])
def test_each_part_of_the_benchmarks_exists_and_takes_its_data(part: str, tmp_path: Path) -> None:
    source = (ROOT / "benchmarks" / f"{part}.py").read_text("utf-8")
    assert 'add_argument("--json"' in source
    assert not data_arguments(part, None)
    assert not data_arguments(part, tmp_path)
    expected = []
    for option, place in INPUTS.get(part, {}).items():
        assert f'add_argument("{option or "folder"}"' in source
        (tmp_path / place).mkdir(parents=True)
        expected += [option, str(tmp_path / place)]
    assert data_arguments(part, tmp_path) == [word for word in expected if word]
