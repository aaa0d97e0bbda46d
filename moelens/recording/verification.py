"""`verify`: compare the files of a recording with its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moelens.display import Displayed
from moelens.errors import RecordingError
from moelens.japanese import Labels
from moelens.recording.store import Recording, count_noun


@dataclass(frozen=True, repr=False)
class Verification(Displayed):
    """The result of `verify`; true if no file is damaged.

    Attributes:
        recording: The recording.
        damage: A sentence for each file that is missing, damaged or not part of the recording, and one for its labels.
    """

    recording: Recording
    damage: tuple[str, ...]

    def __bool__(self) -> bool:
        """Return whether all files are as they were written."""
        return not self.damage

    def __repr__(self) -> str:
        if self.damage:
            return "\n".join(self.damage)
        return f"{self.recording}: {count_noun(len(self.recording.entries()), 'file')} verified"


def verify(recording: Recording | str | Path) -> Verification:
    """Check that each file of a recording exists, has the SHA-256 and the rows of the manifest, and that no other does.

    The values of all files are held to their schema. Labels are checked as well: their files have checksums, and say
    which recording they are of.

    Args:
        recording: The recording, or the path or fsspec URL of one.

    Returns:
        The damaged files.

    Raises:
        RecordingError: If there is no recording, or it is not finished.

    Example:
        >>> verification = moelens.verify(demo_recording)
        >>> bool(verification), verification.damage
        (True, ())
    """
    opened = Recording.open_unchecked(recording)
    return Verification(opened, (*opened.damage(), *_damage_of_labels(opened)))


def _damage_of_labels(recording: Recording) -> list[str]:
    """Return a sentence if a recording has labels that are damaged or those of another recording."""
    if not recording.folder.is_local or not recording.folder.exists("labels"):
        return []
    try:
        Labels.open(recording).verify()
    except RecordingError as error:
        return [str(error)]
    return []
