"""The main job on the bundled model and corpus: record, label, find, report."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt

from moelens.analysis import Specialization
from moelens.bars import progress_bar
from moelens.errors import RecordingError
from moelens.japanese import CLASSES, Labels
from moelens.models.hooked import HookedMoE
from moelens.models.loading import load
from moelens.recording import Recording, label, record
from moelens.views import Report, expert_map, load_plot, report_html
from moelens.workflows import reporting

STEPS = ("loading", "recording", "labelling", "analysing", "drawing", "report")


@dataclass(frozen=True)
class DemoRun:
    """What the demo found and where it wrote it."""

    path: Path
    recording: Recording
    results: dict[str, Specialization]

    def __str__(self) -> str:
        found = self.results
        tables = [
            found["honorifics"].table(2, each=True),
            found["honorifics within token"].table(5),
            found["pos"].table(1, each=True),
        ]
        how = (
            "lift: how much more often tokens of the label go to the expert than tokens do on the whole.\n"
            "lift | token: the same among tokens that are the same; near 1, the word explains it. left: what remains.\n"
            "*: q or family-wise p of a test over documents, over all layers, experts and labels, is below .05."
        )
        return "\n\n".join([*tables, how, f"report: {self.path / 'report.html'}"])


def run_demo(out: str | Path = "moelens-demo", *, force: bool = False, progress: bool | None = None) -> DemoRun:
    """Record the bundled corpus with the bundled model, label it, find specialists, and write a report.

    Writes `recording/`, `figures/*.png`, one JSON file a result and `report.html` into `out`.

    Args:
        out: folder to write.
        force: replace what an earlier run left there.

    Raises:
        RecordingError: `out` is taken.

    Example:
        >>> print(moelens.run_demo("moelens-demo"))  # doctest: +SKIP
    """
    out = Path(out)
    claim(out, force)
    with progress_bar(total=len(STEPS), desc="demo", show=progress) as bar:

        def step(name: str) -> None:
            bar.set_description(name)
            bar.update(0 if name == STEPS[0] else 1)

        step("loading")
        model = load("demo")
        step("recording")
        recording = record(model, "demo", out / "recording", progress=False)
        step("labelling")
        labels = label(recording)
        step("analysing")
        results, _ = reporting.analyses(recording, labels)
        for family, result in results.items():
            result.save(out / filename(family))
        step("drawing")
        draw(results, out / "figures")
        step("report")
        page = report_html(describe(model, recording, labels, results, out))
        (out / "report.html").write_text(page, encoding="utf-8")
        bar.update(1)
    return DemoRun(out, recording, results)


def filename(family: str) -> str:
    return f"{family.replace(' ', '-')}.json"


def claim(out: Path, force: bool) -> None:
    """Make sure that `out` is free; with `force`, clear away what an earlier run wrote, and only that."""
    ours = [out / name for name in ("recording", "figures", "report.html", *map(filename, reporting.FAMILIES))]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not force or not out.is_dir():
            raise RecordingError(f"'{out}' is already there; give another folder with --out, or --force to replace it")
        if not any(path.exists() for path in ours):
            raise RecordingError(f"'{out}' holds something else than a demo run; give another folder with --out")
        for path in ours:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def draw(results: dict[str, Specialization], folder: Path) -> None:
    """The maps of the honorific classes and the load, as pictures."""
    folder.mkdir()
    result = results["honorifics"]
    plots = {f"map-{i + 1}": expert_map(result, name) for i, name in enumerate(CLASSES)}
    for name, axes in {**plots, "load": load_plot(result)}.items():
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        plt.close(figure)


def describe(
    model: HookedMoE, recording: Recording, labels: Labels, results: dict[str, Specialization], out: Path
) -> Report:
    """What the report says of the bundled model, beside what is said of any recording."""
    shape, registers = model.shape, recording.documents()["register"].to_pylist()
    kinds = ", ".join(f"{name} {registers.count(name)}" for name in dict.fromkeys(registers))
    facts = [
        (
            "Model",
            f"moelens demo: {shape.model_type}, trained on works from Aozora Bunko to show the tool; see its card",
        ),
        ("Layers", f"{shape.n_layers}, of which {len(shape.moe_layers)} have experts"),
        ("Experts", f"{shape.n_experts} a layer and {shape.n_shared} shared; {model.rule}"),
        ("Corpus", f"{recording.n_documents} texts written for moelens: {kinds}"),
        ("Tokens", f"{recording.n_tokens:,}"),
        ("Labels", ", ".join(f"{k} {v}" for k, v in labels.metadata.items())),
        ("Checks at load", "; ".join(f"{c.name}: {'ok' if c.passed else 'failed'}" for c in model.checks)),
    ]
    tiny = "The model is tiny. What is found here shows the method, not how a large model treats Japanese."
    found = reporting.describe(recording, labels, results, notes=[tiny])
    return replace(found, model=facts, reproduce=f"pip install .\nmoelens demo --out {out}")
