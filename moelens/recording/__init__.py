"""Running a model over a corpus, and keeping on disk which experts it used."""

from moelens.recording.corpus import Corpus, Document
from moelens.recording.recorder import record
from moelens.recording.store import Recording

__all__ = ["Corpus", "Document", "Recording", "record"]
