"""`report`: write one HTML file about a recording, with its analyses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moelens.analysis import Counts, CountTables, Specialization, analyze
from moelens.analysis.counts import COUNTS_ONLY
from moelens.bars import progress_bar
from moelens.errors import MoeLensError, RecordingError
from moelens.files import require_writable, writing
from moelens.japanese import Labels
from moelens.recording import Recording
from moelens.recording.card import recording_facts
from moelens.tracing.passages import Passages
from moelens.views import Example, Report, report_html

if TYPE_CHECKING:
    from moelens.interventions import Causes, Effect
    from moelens.interventions.preference import Preferences

REPORT_FAMILIES = ("honorifics", "honorifics within token", "pos")
"""Families that a report analyses when it is given no results; the name after "within" is the control."""
_TITLE = "Which experts handle Japanese honorifics and morphology?"
_EXAMPLES_PER_CLASS = 2


def report(
    recording: Recording | Specialization | CountTables | str | Path,
    out: str | Path = "report.html",
    labels: Labels | None = None,
    *,
    results: Mapping[str, Specialization] | None = None,
    title: str = _TITLE,
    notes: Sequence[str] = (),
    effects: Sequence[Effect | Causes | Preferences] = (),
    permutations: int = 1000,
    progress: bool | None = None,
) -> Path:
    """Write a report on a recording: maps and strongest experts, example sentences, effects, and limits.

    The report is one HTML file that contains all it shows and makes no network request. A report on counts or on a
    result has no sentences.

    Args:
        recording: the recording, or its folder; or counts or a result, or the file in which it was saved.
        out: file to write; an existing file is replaced.
        labels: labels of the recording; None opens those in its folder, or labels it if there are none.
        results: results of `analyze` by name; None analyses honorifics, honorifics within token identity, and parts of
            speech.
        title: title of the report.
        notes: further limits to state, one sentence each.
        effects: results of `effect`, `causes` or `prefer` for the recorded model.
        permutations: number of permutations of the labels in each test.
        progress: whether to show a progress bar; None shows it in terminals and notebooks.

    Returns:
        The path of the file.

    Raises:
        MoeLensError: `out` is a folder, or no label can be tested, for example because the recording has one document.
        RecordingError: the recording has no routes or no texts.

    Example:
        >>> moelens.report(demo_recording, "report.html")  # doctest: +SKIP
        PosixPath('report.html')
    """
    out = Path(out)
    if out.is_dir():
        raise MoeLensError(
            f"expected a file to write, got the folder '{out}'; give one such as '{out / 'report.html'}'"
        )
    require_writable(out)
    alone = _result_alone(recording)
    if alone is not None:
        content = Report(
            title=title,
            results={alone.family: alone},
            model=[("Model", str(alone.provenance.get("model") or "model")), ("Tokens", f"{alone.n_tokens:,}")],
            notes=notes,
            effects=effects,
        )
        return _write_page(content, out)
    recording = Recording.open(recording)  # type: ignore[arg-type]
    labels = labels or Labels.open_or_create(recording)
    if results is None:
        results, left_out = analyze_families(recording, labels, permutations, progress)
        notes = [*notes, *left_out]
    content = replace(report_content(recording, labels, results, title, notes), effects=effects)
    return _write_page(content, out)


def _result_alone(source: Any) -> Specialization | None:
    """Return the result in counts, a result or a file of either; None for a recording."""
    if isinstance(source, (str, Path)) and Path(source).suffix in (".json", ".parquet") and Path(source).is_file():
        try:
            return Specialization.open(source)
        except RecordingError:
            source = Counts.open(source)
    if isinstance(source, CountTables):
        return Specialization.of_counts(source, "groups", COUNTS_ONLY)
    return source if isinstance(source, Specialization) else None


def _write_page(content: Report, out: Path) -> Path:
    page = report_html(content)
    with writing(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


def analyze_families(
    recording: Recording, labels: Labels, permutations: int = 1000, progress: bool | None = None
) -> tuple[dict[str, Specialization], list[str]]:
    """Compute the results that a report shows when it is given none.

    Args:
        recording: the recording.
        labels: its labels.
        permutations: number of permutations of the labels in each test.
        progress: whether to show a progress bar; None shows it in terminals and notebooks.

    Returns:
        The results by name, and one sentence about each family that cannot be tested.

    Raises:
        MoeLensError: no family can be tested.
    """
    results, left_out = {}, []
    for family in progress_bar(REPORT_FAMILIES, desc="analysing", show=progress):
        name, _, given = family.partition(" within ")
        try:
            results[family] = analyze(
                recording, name, labels=labels, given=given or None, permutations=permutations, progress=False
            )
        except RecordingError:
            raise
        except MoeLensError as error:  # no label of this family can be tested
            left_out.append(f"Left out, {family}: {error}.")
    if not results:
        raise MoeLensError(
            f"expected a recording in which some label can be tested, got none: {left_out[0].removesuffix('.')}"
        )
    return results, left_out


def report_content(
    recording: Recording,
    labels: Labels,
    results: Mapping[str, Specialization],
    title: str = _TITLE,
    notes: Sequence[str] = (),
) -> Report:
    """Gather the content of a report from a recording and its results."""
    shape = recording.manifest["shape"]
    layers = f"{len(recording.layers)} with experts recorded"
    about = [
        *((name.capitalize(), value) for name, value in recording_facts(recording.manifest).items()),
        ("Layers", f"{shape['n_layers']}, {layers}" if shape.get("n_layers") else layers),
        ("Experts", f"{recording.n_experts} per layer, {recording.top_k} chosen for each token"),
        ("Corpus", f"{recording.manifest['corpus']}: {recording.n_documents:,} documents"),
        ("Tokens", f"{recording.n_tokens:,}"),
        ("Labels", ", ".join(f"{k} {v}" for k, v in labels.metadata.items())),
    ]
    honorifics = results.get("honorifics")
    return Report(
        title=title,
        model=about,
        results=results,
        examples=() if honorifics is None else tuple(_example_sentences(recording, labels, honorifics)),
        reproduce=f"moelens report {recording.folder.location}",
        notes=notes,
        recording=recording,
    )


def _example_sentences(recording: Recording, labels: Labels, result: Specialization) -> Iterator[Example]:
    """For each class, sentences in which its strongest expert is chosen for many of its tokens."""
    passages = Passages(recording, labels, result.family)
    for label in result.names:
        for best in result.top(1, label):
            at = recording.layers.index(best.layer)
            for trace in passages.find(best.layer, best.expert, label)[:_EXAMPLES_PER_CLASS]:
                chosen = (trace.experts[:, at] == best.expert).any(-1).sum()
                yield Example(
                    label=label,
                    tokens=trace.tokens,
                    experts=trace.experts[:, at],
                    weights=None if np.isnan(trace.weights).any() else trace.weights[:, at],
                    spans=trace.spans,
                    layer=best.layer,
                    note=f"E{best.expert} is chosen for {chosen} of these tokens",
                    trace=trace,
                )
