"""`report`: one HTML file about a recording, with its analyses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moelens.analysis import analyze
from moelens.bars import progress_bar
from moelens.errors import MoeLensError, RecordingError
from moelens.japanese import Labels
from moelens.recording import Recording
from moelens.recording.card import recording_facts
from moelens.tracing.passages import Passages
from moelens.views import Example, Report, report_html

if TYPE_CHECKING:
    from moelens.analysis import Specialization
    from moelens.interventions import Causes, Effect
    from moelens.interventions.preference import Preferences

TITLE = "Which experts handle Japanese honorifics and morphology?"
FAMILIES = ("honorifics", "honorifics within token", "reference", "pos")
SHOWN = ("honorifics", "reference")  # in example sentences
EXAMPLES = 2  # sentences a class
LABELS = 5  # of a family with example sentences, the most frequent


def report(
    recording: Recording | str | Path,
    out: str | Path = "report.html",
    labels: Labels | None = None,
    *,
    results: Mapping[str, Specialization] | None = None,
    title: str = TITLE,
    notes: Sequence[str] = (),
    effects: Sequence[Effect | Causes | Preferences] = (),
    permutations: int = 1000,
    progress: bool | None = None,
) -> Path:
    """Write one self-contained HTML file that says where, what and how sure; it asks the network for nothing.

    Args:
        recording: or the folder of one.
        out: file to write, replaced if it is there.
        labels: of the recording; None for those in its folder, written if there are none yet.
        results: results of `analyze` by their names; None for honorifics, honorifics within token identity,
            references to persons and parts of speech, computed here.
        notes: further limits of what is shown, a sentence each.
        effects: what `effect`, `causes` or `prefer` found of the recorded model: so what?
        permutations: of documents, in each test.

    Returns:
        The file.

    Raises:
        MoeLensError: `out` is a folder, or there is nothing to test, as in a recording of one document.
        RecordingError: the recording has no routes or no texts.

    Example:
        >>> moelens.report("runs/demo", "report.html")  # doctest: +SKIP
        PosixPath('report.html')
    """
    out = Path(out)
    if out.is_dir():
        raise MoeLensError(f"out='{out}' is a folder; give a file such as '{out / 'report.html'}'")
    recording = Recording.open(recording)
    labels = labels or Labels.open_or_create(recording)
    if results is None:
        results, left_out = analyses(recording, labels, permutations, progress)
        notes = [*notes, *left_out]
    told = replace(describe(recording, labels, results, title, notes), effects=effects)
    page = report_html(told)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def analyses(
    recording: Recording, labels: Labels, permutations: int = 1000, progress: bool | None = None
) -> tuple[dict[str, Specialization], list[str]]:
    """The results a report shows when it is given none, and a sentence about each that cannot be had.

    Raises `MoeLensError` when there is none at all.
    """
    found, left_out = {}, []
    for family in progress_bar(FAMILIES, desc="analysing", show=progress):
        name, _, given = family.partition(" within ")
        try:
            found[family] = analyze(
                recording, name, labels=labels, given=given or None, permutations=permutations, progress=False
            )
        except RecordingError:
            raise
        except MoeLensError as error:  # nothing of this family to test
            left_out.append(f"Left out, {family}: {error}.")
    if not found:
        raise MoeLensError(f"nothing to report: {left_out[0].removesuffix('.')}")
    return found, left_out


def describe(
    recording: Recording,
    labels: Labels,
    results: Mapping[str, Specialization],
    title: str = TITLE,
    notes: Sequence[str] = (),
) -> Report:
    """What a report says, gathered from a recording and the results on it."""
    shape = recording.manifest["shape"]
    layers = f"{len(recording.layers)} with experts recorded"
    about = [
        *((name.capitalize(), value) for name, value in recording_facts(recording.manifest).items()),
        ("Layers", f"{shape['n_layers']}, {layers}" if shape.get("n_layers") else layers),
        ("Experts", f"{recording.n_experts} a layer, {recording.top_k} chosen for each token"),
        ("Corpus", f"{recording.manifest['corpus']}: {recording.n_documents:,} documents"),
        ("Tokens", f"{recording.n_tokens:,}"),
        ("Labels", ", ".join(f"{k} {v}" for k, v in labels.metadata.items())),
    ]
    return Report(
        title=title,
        model=about,
        results=results,
        examples=tuple(e for name in SHOWN if name in results for e in examples(recording, labels, results[name])),
        reproduce=f"moelens report {recording.folder.location}",
        notes=notes,
        recording=recording,
    )


def examples(recording: Recording, labels: Labels, result: Specialization) -> Iterator[Example]:
    """For each class, sentences in which its strongest expert takes many of its tokens."""
    found = Passages(recording, labels, result.family)
    frequent = sorted(np.argsort(-result.label_tokens, kind="stable")[:LABELS].tolist())
    for label in (result.names[i] for i in frequent):
        for best in result.top(1, label):
            at = recording.layers.index(best.layer)
            for trace in found.find(best.layer, best.expert, label)[:EXAMPLES]:
                yield Example(
                    label=label,
                    tokens=trace.tokens,
                    experts=trace.experts[:, at],
                    weights=None if np.isnan(trace.weights).any() else trace.weights[:, at],
                    spans=trace.spans,
                    layer=best.layer,
                    note=f"E{best.expert} takes {(trace.experts[:, at] == best.expert).any(-1).sum()} of these tokens",
                    trace=trace,
                )
