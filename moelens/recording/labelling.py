"""`label`: label the tokens of a recording."""

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
    """Analyse the documents of a recording, and label each of its tokens with families from morphology to register.

    Args:
        recording: The recording, or the path of one.
        policy: Which characters of a token decide its labels: "last", "any" or "majority"; see `Labels.create`.
        analyser: "fugashi" or "sudachi".
        processes: Number of processes; None uses one per core, or a single one in a script.

    Returns:
        The labels, which are written to `labels/` in the folder of the recording.

    Raises:
        UnknownNameError: If there is no such policy or analyser.
        MoeLensError: If `processes` is less than 1.
        RecordingError: If there is no recording, or the characters of its tokens are not known.

    Example:
        >>> labels = moelens.label(demo_recording)
        >>> names, has = labels.matrix("honorifics")
        >>> names, has.shape == (demo_recording.n_tokens, 5)
        (('尊敬語', '謙譲語I', '謙譲語II', '丁寧語', '美化語'), True)
    """
    return Labels.create(Recording.open(recording), policy, analyser, processes)
