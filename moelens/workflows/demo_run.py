"""`run_demo`: record, label and analyse the bundled corpus with the bundled model, and write a report."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from moelens.analysis import Specialization
from moelens.bars import progress_bar
from moelens.errors import RecordingError
from moelens.files import explain_write_errors
from moelens.japanese import CLASSES, Labels
from moelens.models.hooked import HookedMoE
from moelens.models.loading import load
from moelens.recording import Recording, label, record
from moelens.views import Report, expert_map, load_plot, report_html
from moelens.views.answers import answer
from moelens.workflows.reporting import (
    REPORT_FAMILIES,
    analyze_families,
    report_content,
    tokens_in_words,
    with_baseline,
)

_STEPS = ("loading", "recording", "labelling", "analysing", "baseline", "drawing", "report")
_LEGEND = """\
lift: share of the label's tokens that go to the expert, divided by the share of all tokens that do
lift given token: the same among tokens of one id; near 1, the token explains the preference
*: q or family-wise p of a test over documents is below .05, corrected for all layers, experts and labels"""


@dataclass(frozen=True)
class DemoRun:
    """The results of the demo.

    Attributes:
        path: the folder that it wrote.
        recording: the recording of the bundled corpus.
        results: results of `analyze`, by family of labels.
    """

    path: Path
    recording: Recording
    results: dict[str, Specialization]

    def __str__(self) -> str:
        tables = [result.table(2, each=True) for name, result in self.results.items() if name != "honorifics"]
        return "\n\n".join([*answer(self.results), *tables, _LEGEND, f"report: {self.path / 'report.html'}"])


def run_demo(out: str | Path = "moelens-demo", *, force: bool = False, progress: bool | None = None) -> DemoRun:
    """Record the bundled corpus with the bundled model, label it, find specialists, and write a report.

    Writes `recording/`, `figures/*.png`, one JSON file for each result, and `report.html`. The same texts run through a
    model of the same shape with random weights too, as a baseline for the number of specialists.

    Args:
        out: folder to write.
        force: whether to replace what an earlier run wrote there.
        progress: whether to show a progress bar; None shows it in terminals and notebooks.

    Returns:
        The recording and the results. Printed, they are tables of the strongest specialists.

    Raises:
        RecordingError: `out` exists and is not empty.

    Example:
        >>> print(moelens.run_demo("moelens-demo"))  # doctest: +SKIP
    """
    out = Path(out)
    _prepare_folder(out, force)
    try:
        with explain_write_errors(out), progress_bar(total=len(_STEPS), desc="demo", show=progress) as bar:
            return _run_steps(out, bar)
    except BaseException:
        _remove(_written_files(out))  # a later run begins anew
        raise


def _run_steps(out: Path, bar: Any) -> DemoRun:
    """Do the steps of the demo, with one update of the bar for each."""

    def step(name: str) -> None:
        bar.set_description(name)
        bar.update(0 if name == _STEPS[0] else 1)

    step("loading")
    model = load("demo")
    step("recording")
    recording = record(model, "demo", out / "recording", progress=False)
    step("labelling")
    labels = label(recording)
    step("analysing")
    results, _ = analyze_families(recording, labels)
    step("baseline")
    results = with_baseline(recording, results, model)
    for family, result in results.items():
        result.save(out / _file_name(family))
    step("drawing")
    _save_figures(results, out / "figures")
    step("report")
    page = report_html(_demo_report(model, recording, labels, results, out))
    (out / "report.html").write_text(page, encoding="utf-8")
    bar.update(1)
    return DemoRun(out, recording, results)


def _file_name(family: str) -> str:
    return f"{family.replace(' ', '-')}.json"


def _prepare_folder(out: Path, force: bool) -> None:
    """Make an empty folder; with `force`, delete the files that an earlier run wrote, and no others."""
    ours = _written_files(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not force or not out.is_dir():
            raise RecordingError(
                f"expected a new or empty folder, got '{out}', which exists; give another folder with --out, or "
                "--force to replace an earlier demo run"
            )
        if not any(path.exists() for path in ours):
            raise RecordingError(
                f"expected the folder of an earlier demo run, got '{out}', which has other files; "
                "give another folder with --out"
            )
        _remove(ours)
    with explain_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)


def _written_files(out: Path) -> list[Path]:
    """The files and folders that the demo writes."""
    return [out / name for name in ("recording", "figures", "report.html", *map(_file_name, REPORT_FAMILIES))]


def _remove(paths: list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _save_figures(results: dict[str, Specialization], folder: Path) -> None:
    """Save the maps of the honorific classes and the load as PNG."""
    folder.mkdir()
    result = results["honorifics"]
    plots = {f"map-{i + 1}": expert_map(result, name) for i, name in enumerate(CLASSES)}
    for name, axes in {**plots, "load": load_plot(result)}.items():
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        plt.close(figure)


def _demo_report(
    model: HookedMoE, recording: Recording, labels: Labels, results: dict[str, Specialization], out: Path
) -> Report:
    """The content of the report: that of any recording, with more facts about the bundled model."""
    shape, registers = model.shape, recording.documents()["register"].to_pylist()
    kinds = ", ".join(f"{name} {registers.count(name)}" for name in dict.fromkeys(registers))
    facts = [
        ("Model", f"moelens demo: {shape.model_type}, a small model that was trained to show the tool; see its card"),
        ("Layers", f"{shape.n_layers}, of which {len(shape.moe_layers)} have experts"),
        ("Experts", f"{shape.n_experts} per layer and {shape.n_shared} shared; {model.rule}"),
        ("Corpus", f"{recording.n_documents} texts written for moelens: {kinds}"),
        ("Tokens", tokens_in_words(recording.n_tokens, results)),
        ("Labels", ", ".join(f"{k} {v}" for k, v in labels.metadata.items())),
        ("Checks at load", "; ".join(f"{c.name}: {'ok' if c.passed else 'failed'}" for c in model.checks)),
    ]
    note = "The model is very small. These results show the method, not how a large model handles Japanese."
    content = report_content(recording, labels, results, notes=[note])
    return replace(content, model=facts, reproduce=f"pip install .\nmoelens demo --out {out}")
