"""`report`: write one HTML file about a recording, with its analyses."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moelens.analysis import Counts, CountTables, Specialization, analyze, wording
from moelens.analysis import compare as compare_recordings
from moelens.analysis.counts import COUNTS_ONLY
from moelens.analysis.specialize import require_permutations
from moelens.analysis.tables import percent
from moelens.bars import progress_bar
from moelens.errors import MoeLensError, RecordingError
from moelens.files import require_file, writing
from moelens.japanese import Labels
from moelens.japanese.crossed_contrasts import KIND_OF_LABEL
from moelens.recording import Recording
from moelens.recording.card import recording_facts
from moelens.texts import Texts
from moelens.tracing.passages import Excerpt, Passages
from moelens.views import Example, Report, report_html
from moelens.views.finding_tables import strongest
from moelens.views.report import family_title
from moelens.workflows.opening import open_saved
from moelens.workflows.recorded_models import recorded_model, with_baseline
from moelens.workflows.sampling import Documents, sampled

if TYPE_CHECKING:
    from moelens.interventions import Causes, Effect, Preferences
    from moelens.models.hooked import HookedMoE

REPORT_FAMILIES = ("honorifics within token", "honorifics", "reference within token", "pos within token")
"""Families that a report analyses when it is given no results; the name after "within" is the control."""
_FAMILIES_WITH_EXAMPLES = ("honorifics", "reference")
_EXAMPLES_PER_CLASS = 2
_CLASSES_WITH_EXAMPLES = 5
_DRAWS = 100
_JAPANESE_SCRIPTS = ("kanji", "hiragana", "katakana", "mixed")
_LEAST_JAPANESE = 0.2


def report(
    recording: Recording | Specialization | CountTables | str | Path,
    out: str | Path = "report.html",
    labels: Labels | None = None,
    *,
    results: Mapping[str, Specialization] | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    effects: Sequence[Effect | Causes | Preferences | str | Path] | Literal["remove"] = (),
    baseline: bool = False,
    compare: Recording | str | Path | None = None,
    model: HookedMoE | str | None = None,
    permutations: int = 1000,
    documents: Documents = None,
    lang: str = "en",
    progress: bool | None = None,
) -> Path:
    """Write a report on a recording: what was found and what was not, maps, example sentences, effects, and limits.

    The report is one HTML file that contains all it shows and makes no network request. A report on counts or on a
    result has no sentences.

    Args:
        recording: the recording, or its folder; or counts or a result, or the file in which it was saved.
        out: file to write; an existing file is replaced.
        labels: labels of the recording; None opens those in its folder, or labels it if there are none.
        results: results of `analyze` by name, of which the first leads; None analyses honorifics, references to persons
            and parts of speech given the token, and honorifics without this control.
        title: title of the report; "" for one that names the model and what was found in its text.
        notes: further limits to state, one sentence each.
        effects: results of `effect`, `causes` or `prefer` for the recorded model, or the files in which they were
            saved; or "remove", to remove the strongest expert of each honorific class with 100 matched controls.
        baseline: whether to record and analyse the same texts with a model of the same shape and random weights too,
            which says how many findings come from the text and the test alone.
        compare: a recording of another model on the same text, or of this model on another text, or its folder; the
            report then has a section on what differs from it.
        model: the recorded model, or its name, for `effects="remove"` and `baseline`; None for the bundled model if the
            recording is of it.
        permutations: number of permutations of the labels in each test.
        documents: number of documents to draw at random and to compute the report from, or "all". None draws 20,000,
            or as many as hold 2 million tokens, if there are more; see `Recording.sample`. The report says so. Of a
            sample, None takes all documents.
        lang: language of the report, "en" or "ja".
        progress: whether to show a progress bar; None shows it in terminals and notebooks.

    Returns:
        The path of the file.

    Raises:
        UnknownNameError: there is no such language.
        MoeLensError: `out` is a folder, `effects` has another result, `documents` is given for counts or results, or no
            label can be tested, for example because the recording has one document.
        RecordingError: the recording has no routes or no texts.
        CheckError: the model did not make the recording.

    Example:
        >>> moelens.report(demo_recording, "report.html")  # doctest: +SKIP
        PosixPath('report.html')
    """
    out, say = Path(out), Texts(lang)
    require_file(out, "report.html")
    shown = () if effects == "remove" else tuple(_opened(e) for e in effects)
    alone = _result_alone(recording)
    if alone is not None:
        if effects == "remove" or baseline or compare is not None or documents is not None:
            raise MoeLensError(
                "expected a recording with --effects, --baseline, --compare or --documents, got counts or a result; "
                "give the recording, or files of effects"
            )
        content = Report(
            title=title or say("report.title", model=alone.provenance.get("model") or say("report.the_model")),
            results={alone.family: alone},
            model=[
                (say("fact.Model"), str(alone.provenance.get("model") or "model")),
                (say("fact.Tokens"), f"{alone.n_tokens:,}"),
            ],
            notes=notes,
            effects=shown,
            lang=lang,
        )
        return _write_page(content, out)
    require_permutations(permutations)
    recording = Recording.open(recording)  # type: ignore[arg-type]
    runs = effects == "remove" or baseline
    loaded = recorded_model(recording, model) if runs else None  # refused before anything is computed
    other = None if compare is None else Recording.open(compare)
    own_sample = any(given is not None and given.drawn is not None for given in (recording, other))
    recording = sampled(recording, documents, results is None)
    if recording.drawn is not None:
        documents = recording.n_documents
        if other is not None and other.drawn is None:  # of as many documents the same ones are drawn
            alike = other.n_documents == recording.whole.n_documents
            other = other.sample(documents if alike else None, recording.drawn.seed)
    own_labels = labels is not None and type(labels) is not Labels  # others than those in the folder of the recording
    labels = Labels.open_or_create(recording) if labels is None else labels.of(recording)
    comparison = None if other is None else compare_recordings(other, recording, permutations=permutations)
    reproduce = ""  # no command makes a page again of a sample, or with a title, notes, labels or results, of one's own
    if results is None:
        if not (title or notes or own_labels or own_sample):
            reproduce = _command(recording, out, effects, baseline, other, model, permutations, documents, lang)
        results, left_out = analyze_families(recording, labels, permutations, progress, lang)
        notes = [*notes, *left_out]
    if baseline:
        results = with_leading_baseline(recording, results, loaded)
    if effects == "remove":
        shown = _class_effects(recording, results, loaded, progress=progress)
    content = report_content(recording, labels, results, title, notes, lang)
    return _write_page(replace(content, effects=shown, comparison=comparison, reproduce=reproduce), out)


def _command(
    recording: Recording,
    out: Path,
    effects: Sequence[object] | Literal["remove"],
    baseline: bool,
    other: Recording | None,
    model: HookedMoE | str | None,
    permutations: int,
    documents: Documents,
    lang: str,
) -> str:
    """The command that makes a page again; "" if effects or the model are objects that a command cannot name."""
    files = [] if effects == "remove" else list(effects)
    runs = effects == "remove" or baseline
    if not all(isinstance(e, (str, Path)) for e in files) or (runs and not isinstance(model, (str, type(None)))):
        return ""
    words = ["moelens", "report", str(recording.folder.location), "--out", str(out), "--permutations", permutations]
    words += ["--effects", *files] if effects else []
    words += ["--baseline"] if baseline else []
    words += ["--compare", other.folder.location] if other is not None else []
    words += ["--model", model] if runs and model is not None else []
    words += ["--documents", documents] if documents is not None else []
    words += ["--lang", lang] if lang != "en" else []
    return shlex.join(map(str, words))


def _opened(effect: Any) -> Effect | Causes | Preferences:
    """The result of an intervention, opened if it is a file.

    Raises:
        MoeLensError: it is another result, or a recording.
    """
    from moelens.interventions import Causes, Effect, Preferences  # imports torch, which recordings do not need

    opened = open_saved(effect) if isinstance(effect, (str, Path)) else effect
    if not isinstance(opened, (Effect, Causes, Preferences)):
        raise MoeLensError(
            f"expected a result of effect, causes or prefer in effects (--effects), got {type(opened).__name__}; "
            "give one, or a file of one"
        )
    return opened


def with_leading_baseline(
    recording: Recording, results: Mapping[str, Specialization], model: HookedMoE | str | None = None
) -> dict[str, Specialization]:
    """Return results of which the first says how many findings a random model of the same shape gives."""
    first = next(iter(results))
    return {**results, first: with_baseline(results[first], recording, model)}


def _class_effects(
    recording: Recording,
    results: Mapping[str, Specialization],
    model: HookedMoE | str | None = None,
    *,
    draws: int = _DRAWS,
    progress: bool | None = None,
) -> tuple[Effect, ...]:
    """Remove the strongest expert of each honorific class from the model that made a recording.

    Args:
        recording: the recording.
        results: results of `analyze`; the experts are those of the first one of honorifics.
        model: the recorded model, or its name; None for the bundled model if the recording is of it.
        draws: number of matched controls for each expert.
        progress: whether to show a progress bar; None shows it in terminals and notebooks.

    Returns:
        The effect of each removal on the contrasts that test its class, for classes with a certain expert.

    Raises:
        CheckError: the model did not make the recording.
    """
    from moelens.interventions import effect, remove

    result = next((r for r in results.values() if r.family == "honorifics"), None)
    found = [] if result is None else [strongest(result, name) for name in result.names if name in KIND_OF_LABEL]
    loaded = recorded_model(recording, model)
    return tuple(
        effect(
            loaded,
            KIND_OF_LABEL[f.label],
            remove(f.layer, [f.expert]),
            draws=draws,
            texts=(),
            off_target=False,
            progress=progress,
        )
        for f in found
        if f is not None
    )


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
    recording: Recording,
    labels: Labels,
    permutations: int = 1000,
    progress: bool | None = None,
    lang: str = "en",
) -> tuple[dict[str, Specialization], list[str]]:
    """Compute the results that a report shows when it is given none.

    Args:
        recording: the recording.
        labels: its labels.
        permutations: number of permutations of the labels in each test.
        progress: whether to show a progress bar; None shows it in terminals and notebooks.
        lang: language of the sentences.

    Returns:
        The results by name, and one sentence about each family that cannot be tested.

    Raises:
        MoeLensError: no family can be tested.
    """
    results, left_out, first = {}, [], ""
    for family in progress_bar(REPORT_FAMILIES, desc="analysing", show=progress):
        name, _, given = family.partition(" within ")
        try:
            results[family] = analyze(
                recording, name, labels=labels, given=given or None, permutations=permutations, progress=False
            )
        except RecordingError:
            raise
        except MoeLensError as error:  # no label of this family can be tested
            say = Texts(lang)
            named = family if say.glossed else family_title(family, say)
            left_out.append(say("report.left_out", family=named))
            first = first or f"{family}: {error}"
    if not results:
        raise MoeLensError(f"expected a recording in which some label can be tested, got none: {first}")
    return results, left_out


def report_content(
    recording: Recording,
    labels: Labels,
    results: Mapping[str, Specialization],
    title: str = "",
    notes: Sequence[str] = (),
    lang: str = "en",
) -> Report:
    """Gather the content of a report from a recording and its results."""
    shape, say = recording.manifest["shape"], Texts(lang)
    layers, n = say("about.layers_recorded", recorded=len(recording.layers)), shape.get("n_layers")
    corpus, documents = recording.manifest["corpus"], f"{recording.whole.n_documents:,}"
    facts = {
        **{name.capitalize(): value for name, value in recording_facts(recording.manifest).items()},
        "Layers": say("about.layers", layers=n, recorded=layers) if n else layers,
        "Experts": say("about.experts", experts=recording.n_experts, top_k=recording.top_k),
        "Corpus": say("about.corpus", corpus=corpus, documents=documents),
        "Tokens": tokens_in_words(recording, results, lang),
        "Labels": wording.labelling(", ".join(f"{k} {v}" for k, v in labels.metadata.items()), say),
    }
    about = [(say.name("fact", name), value) for name, value in facts.items()]
    honorifics = [r for r in results.values() if r.family == "honorifics"]
    excerpt = Excerpt(recording)
    japanese = any(r.label_tokens.any() for r in honorifics)
    name = recording.manifest["model"]["name"]
    return Report(
        title=title or say("report.title_honorifics" if japanese else "report.title", model=name),
        model=about,
        results=results,
        examples=tuple(
            example
            for family in _FAMILIES_WITH_EXAMPLES
            for example in _example_sentences(excerpt, labels, [r for r in results.values() if r.family == family])
        ),
        notes=[*notes, *_few_japanese(excerpt, labels, say)],
        recording=excerpt,
        labels=labels,
        lang=lang,
    )


def _few_japanese(excerpt: Excerpt, labels: Labels, say: Texts) -> list[str]:
    """A sentence on the share of Japanese among the first tokens with letters, if it is small."""
    names, has = labels.matrix("script", slice(excerpt.n_tokens))
    words = has[:, [name in (*_JAPANESE_SCRIPTS, "latin", "other") for name in names]].any(1).sum()
    share = has[:, [name in _JAPANESE_SCRIPTS for name in names]].any(1).sum() / max(words, 1)
    return [say("report.few_japanese", share=percent(share))] if words and share < _LEAST_JAPANESE else []


def tokens_in_words(recording: Recording, results: Mapping[str, Specialization], lang: str = "en") -> str:
    """Return the number of recorded tokens, and why fewer of them are counted in the results."""
    recorded = recording.whole.n_tokens
    counted = next(iter(results.values())).n_tokens if results else recorded
    about = next(iter(results.values())).provenance if results else {}
    special, cut = about.get("special_tokens_left_out", 0), about.get("tokens_cut", 0)
    say = Texts(lang)
    reasons = [say("about.special_tokens", n=f"{special:,}")] if special else []
    reasons += [say("about.cut_tokens", n=f"{cut:,}")] if cut else []
    reasons += [say("about.not_drawn", n=f"{recorded - recording.n_tokens:,}")] if recording.drawn else []
    why = say("about.without", reasons=say("table.and").join(reasons)) if reasons else ""
    if counted == recorded:
        return say("about.recorded", recorded=f"{recorded:,}")
    return say("about.counted", recorded=f"{recorded:,}", counted=f"{counted:,}", why=why)


def _example_sentences(excerpt: Excerpt, labels: Labels, results: Sequence[Specialization]) -> Iterator[Example]:
    """For the most frequent classes of a family, sentences in which the strongest expert is chosen for their tokens.

    The expert is that of the first result with a certain one for the class, else that of the last result.
    """
    if not results:
        return
    passages = Passages(excerpt, labels, results[0].family)
    frequent = sorted(np.argsort(-results[0].label_tokens, kind="stable")[:_CLASSES_WITH_EXAMPLES].tolist())
    for label in (results[0].names[i] for i in frequent):
        found = [best for result in results for best in result.top(1, label)]
        for best in ([f for f in found if f.certain] or found[-1:])[:1]:
            at = excerpt.recording.layers.index(best.layer)
            for trace in passages.find(best.layer, best.expert, label)[:_EXAMPLES_PER_CLASS]:
                yield Example(
                    label=label,
                    tokens=trace.tokens,
                    experts=trace.experts[:, at],
                    weights=None if np.isnan(trace.weights).any() else trace.weights[:, at],
                    spans=trace.spans,
                    layer=best.layer,
                    expert=best.expert,
                    trace=trace,
                )
