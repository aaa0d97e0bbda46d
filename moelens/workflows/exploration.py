"""`explore`: open the explorer on a recording, and compute what is missing first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moelens.analysis import analyze
from moelens.analysis.specialize import find_names, require_permutations
from moelens.japanese import Labels
from moelens.japanese.families import require_name
from moelens.recording import Recording
from moelens.texts import Texts
from moelens.tracing.passages import Passages
from moelens.views.explorer import Explorer
from moelens.workflows.recorded_models import recorded_model, with_baseline
from moelens.workflows.sampling import Documents, sampled

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.analysis.samples import Given
    from moelens.interventions.effects import Controls, Effect
    from moelens.models.hooked import HookedMoE
    from moelens.views.explorer import RemoveExpert

_DRAWS = 40


def explore(
    recording: Recording | str | Path,
    model: HookedMoE | str | None = None,
    label: str | None = None,
    *,
    family: str = "honorifics",
    given: Given = "token",
    result: Specialization | None = None,
    labels: Labels | None = None,
    baseline: bool = False,
    permutations: int = 1000,
    documents: Documents = None,
    lang: str = "en",
) -> Explorer:
    """Open a widget to choose a label, see its experts, read their sentences, and remove an expert.

    Args:
        recording: the recording, or its folder.
        model: the recorded model, or its name, for removing experts. None loads the bundled model if the recording is
            of it. A model of another name is loaded and compared with the recording at once, others before the first
            removal.
        label: the label to show first, such as "尊敬語"; None for the first one that was tested.
        family: the family of labels.
        given: what to control for, see `analyze`.
        result: a result of `analyze` on the recording; None computes it.
        labels: labels of the recording; None opens those in its folder, or labels it if there are none.
        baseline: whether to record and analyse the same texts with a model of the same shape and random weights too,
            see `with_baseline`; the explorer then says how many specialists that gives.
        permutations: number of permutations of the labels in the test.
        documents: number of documents to draw at random and to compute the explorer from, or "all". None draws 20,000,
            or as many as hold 2 million tokens, if there are more; see `Recording.sample`. The explorer says so. Of a
            sample, None takes all documents.
        lang: language of the headings and sentences, "en" or "ja".

    Returns:
        A widget. Its method `save_html(path)` writes it to a file that works without a kernel.

    Raises:
        UnknownNameError: the label, family, control or language does not exist.
        RecordingError: `recording` is neither a recording nor the folder of one.
        MoeLensError: no label can be tested, or `documents` is given with a result.
        CheckError: the model did not make the recording.

    Example:
        >>> explorer = moelens.explore(demo_recording, label="丁寧語", permutations=20)
        >>> explorer.map.label
        '丁寧語'
    """
    recording, say = Recording.open(recording), Texts(lang)
    if result is None:
        require_permutations(permutations)
        names = find_names(recording, family, labels, given)[1]
        if label is not None:
            require_name(label, names, f"family {family!r}")
    loaded: list[HookedMoE] = []
    if baseline or (model is not None and model != recording.manifest["model"]["name"]):
        loaded.append(recorded_model(recording, model))  # refused before anything is computed
    recording = sampled(recording, documents, result is None)
    labels = Labels.open_or_create(recording) if labels is None else labels.of(recording)
    if result is None:
        result = analyze(recording, family, labels=labels, given=given, permutations=permutations)
    if baseline:
        result = with_baseline(result, recording, loaded[0])
    passages, remover = Passages(recording, labels, result.family), _expert_remover(recording, model, loaded)
    return Explorer(result, passages, remover, label, say)


def _expert_remover(recording: Recording, model: HookedMoE | str | None, loaded: list[HookedMoE]) -> RemoveExpert:
    """A function that measures the effect of removing an expert; it loads the model when it is first called."""

    def remove_expert(layer: int, expert: int, kind: str, controls: bool) -> Effect:
        from moelens.interventions import effect, remove  # imports torch, which the views do not need

        if not loaded:
            loaded.append(recorded_model(recording, model))
        control: Controls = "matched" if controls else None
        intervention = remove(layer, [expert])
        return effect(loaded[0], kind, intervention, controls=control, draws=_DRAWS, texts=(), off_target=False)

    return remove_expert
