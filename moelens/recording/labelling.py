"""`label`: the labels of a recording's tokens."""

from __future__ import annotations

from pathlib import Path

from moelens.japanese import Labels
from moelens.japanese.labels import Policy
from moelens.japanese.morphology import Analyser
from moelens.recording.store import Recording


def label(
    recording: Recording | str | Path,
    policy: Policy = "last",
    analyser: Analyser = "fugashi",
    processes: int | None = None,
) -> Labels:
    """Analyse the documents of a recording and label each of its tokens, from morphology to register.

    Args:
        recording: or its folder.
        policy: which characters of a token decide: "last", "any" or "majority"; see `Labels.create`.
        analyser: "fugashi" or "sudachi".
        processes: that share the work; None for as many as there are cores, but one in a script.

    Returns:
        The labels, written to `labels/` in the recording's folder.

    Raises:
        UnknownNameError: no such policy or analyser.
        MoeLensError: fewer than one process.
        RecordingError: there is no recording.

    Example:
        >>> labels = moelens.label("runs/demo")                    # doctest: +SKIP
        >>> names, has = labels.matrix("honorifics")               # doctest: +SKIP
        >>> dict(zip(names, has.mean(axis=0)))                     # doctest: +SKIP
    """
    return Labels.create(Recording.open(recording), policy, analyser, processes)
