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
from moelens.texts import Texts
from moelens.views import Report, expert_map, load_plot, report_html
from moelens.views.answers import answer
from moelens.workflows.reporting import (
    REPORT_FAMILIES,
    analyze_families,
    report_content,
    with_leading_baseline,
)

_STEPS = ("loading", "recording", "labelling", "analysing", "baseline", "drawing", "report")


@dataclass(frozen=True)
class DemoRun:
    """The results of the demo.

    Attributes:
        path: the folder that it wrote.
        recording: the recording of the bundled corpus.
        results: results of `analyze`, by family of labels.
        lang: language of the report.
    """

    path: Path
    recording: Recording
    results: dict[str, Specialization]
    lang: str = "en"

    def __str__(self) -> str:
        say = Texts(self.lang)
        tables = [result.table(2, each=True, lang=say) for name, result in self.results.items() if name != "honorifics"]
        report = say("demo.report", path=self.path / "report.html")
        return "\n\n".join([*answer(self.results, lang=say), *tables, say("demo.legend"), report])


def run_demo(
    out: str | Path = "moelens-demo", *, force: bool = False, lang: str = "en", progress: bool | None = None
) -> DemoRun:
    """Record the bundled corpus with the bundled model, label it, find specialists, and write a report.

    Writes `recording/`, `figures/*.png`, one JSON file for each result, and `report.html`. The same texts run through a
    model of the same shape with random weights too, as a baseline for the number of specialists.

    Args:
        out: folder to write.
        force: whether to replace what an earlier run wrote there.
        lang: language of the report and of the sentences that are printed, "en" or "ja".
        progress: whether to show a progress bar; None shows it in terminals and notebooks.

    Returns:
        The recording and the results. Printed, they are tables of the strongest specialists.

    Raises:
        RecordingError: `out` exists and is not empty.
        UnknownNameError: there is no such language.

    Example:
        >>> print(moelens.run_demo("moelens-demo"))  # doctest: +SKIP
    """
    out, lang = Path(out), Texts(lang).lang
    _prepare_folder(out, force)
    try:
        with explain_write_errors(out), progress_bar(total=len(_STEPS), desc="demo", show=progress) as bar:
            return _run_steps(out, bar, lang)
    except BaseException:
        _remove(_written_files(out))  # a later run begins anew
        raise


def _run_steps(out: Path, bar: Any, lang: str) -> DemoRun:
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
    results, _ = analyze_families(recording, labels, lang=lang)
    step("baseline")
    results = with_leading_baseline(recording, results, model)
    for family, result in results.items():
        result.save(out / _file_name(family))
    step("drawing")
    _save_figures(results, out / "figures", lang)
    step("report")
    page = report_html(_demo_report(model, recording, labels, results, out, lang))
    (out / "report.html").write_text(page, encoding="utf-8")
    bar.update(1)
    return DemoRun(out, recording, results, lang)


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


def _save_figures(results: dict[str, Specialization], folder: Path, lang: str) -> None:
    """Save the maps of the honorific classes and the load as PNG."""
    folder.mkdir()
    result = results["honorifics"]
    plots = {f"map-{i + 1}": expert_map(result, name, lang=lang) for i, name in enumerate(CLASSES)}
    for name, axes in {**plots, "load": load_plot(result, lang=lang)}.items():
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        plt.close(figure)


def _demo_report(
    model: HookedMoE, recording: Recording, labels: Labels, results: dict[str, Specialization], out: Path, lang: str
) -> Report:
    """The content of the report: that of any recording, with more facts about the bundled model."""
    shape, registers, say = model.shape, recording.documents()["register"].to_pylist(), Texts(lang)
    kinds = say("answer.comma").join(
        f"{say(f'register.{name}')} {registers.count(name)}" for name in dict.fromkeys(registers)
    )
    checks = ((say.name("check", c.name), say("about.passed" if c.passed else "about.failed")) for c in model.checks)
    rule = next(iter(model.rules.values())).in_words(say)
    content = report_content(recording, labels, results, notes=[say("report.small_model")], lang=lang)
    told = dict(content.model)
    facts = {
        "Model": say("about.model_demo", type=shape.model_type),
        "Layers": say("about.layers_demo", layers=shape.n_layers, moe=len(shape.moe_layers)),
        "Experts": say("about.experts_demo", experts=shape.n_experts, shared=shape.n_shared, rule=rule),
        "Corpus": say("about.corpus_demo", documents=recording.n_documents, kinds=kinds),
        **{name: told[say(f"fact.{name}")] for name in ("Tokens", "Labels")},
        "Checks at load": say("answer.separator").join(f"{name}: {outcome}" for name, outcome in checks),
    }
    about = [(say(f"fact.{name}"), value) for name, value in facts.items()]
    command = f"pip install .\nmoelens demo --out {out}" + (f" --lang {lang}" if lang != "en" else "")
    return replace(content, model=about, reproduce=command)
