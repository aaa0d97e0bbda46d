"""`explore`: a recording in the explorer, with what is missing computed first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moelens.analysis import analyze
from moelens.errors import MoeLensError
from moelens.interventions import effect, remove
from moelens.japanese import Labels, pairs
from moelens.models.loading import load
from moelens.recording import Recording
from moelens.tracing.passages import Passages
from moelens.views.explorer import Explorer

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.analysis.samples import Given
    from moelens.interventions.effects import Controls, Effect
    from moelens.models.hooked import HookedMoE
    from moelens.views.explorer import Remove

_DEMO = "demo"
_DRAWS = 20


def explore(
    recording: Recording | str | Path,
    model: HookedMoE | str | None = None,
    label: str | None = None,
    *,
    family: str = "honorifics",
    given: Given = None,
    result: Specialization | None = None,
    labels: Labels | None = None,
    permutations: int = 1000,
) -> Explorer:
    """Look at a recording: choose a label, see its experts, read their sentences, remove one.

    Args:
        recording: or the folder of one.
        model: what experts are removed from, or its name; None loads the bundled model for its recordings.
        label: to begin with, such as "尊敬語"; None for the first that could be tested.
        family: of labels; `given`: what to control for, see `analyze`.
        result: a result of `analyze` on the recording; None computes it.
        labels: of the recording; None for those in its folder, written if there are none yet.
        permutations: of documents, in the test.

    Returns:
        A widget; `.save_html(path)` writes it to a file that is alive without a kernel.

    Raises:
        UnknownNameError: no such label, family or control.
        RecordingError: neither a recording nor the folder of one.
        MoeLensError: there is nothing to test.

    Example:
        >>> moelens.explore("runs/demo", label="尊敬語")  # doctest: +SKIP
    """
    recording = Recording.open(recording)
    labels = labels or Labels.open_or_create(recording)
    if result is None:
        result = analyze(recording, family, labels=labels, given=given, permutations=permutations)
    return Explorer(result, Passages(recording, labels, result.family), _remover(recording, model), label)


def _remover(recording: Recording, model: HookedMoE | str | None) -> Remove:
    """Measures what changes without an expert; the model is loaded when this is first asked for."""
    loaded: list[HookedMoE] = []

    def without(layer: int, expert: int, kind: str, controls: bool) -> Effect:
        if not loaded:
            loaded.append(_model_of(recording, model))
        against: Controls = "matched" if controls else None
        intervention = remove(layer, [expert])
        return effect(loaded[0], pairs(kind), intervention, controls=against, draws=_DRAWS, texts=())

    return without


def _model_of(recording: Recording, model: HookedMoE | str | None) -> HookedMoE:
    recorded = recording.manifest["model"]["name"]
    if model is None and recorded != _DEMO:
        raise MoeLensError(f"no model to remove an expert from; give the one recorded: explore(…, model={recorded!r})")
    return load(model or _DEMO) if model is None or isinstance(model, str) else model
