"""Running a model over a corpus, and keeping on disk what it did."""

from moelens.recording.corpus import Corpus, Document
from moelens.recording.recorder import record
from moelens.recording.store import Recording, as_array

__all__ = ["Corpus", "Document", "Recording", "as_array", "record"]
