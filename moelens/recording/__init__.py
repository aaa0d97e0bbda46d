"""Recordings: run a model over a corpus, and keep on disk which experts it chose and what they computed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Corpus": "corpus",
    "Document": "corpus",
    "Plan": "planning",
    "Recording": "store",
    "Verification": "verification",
    "as_array": "store",
    "export": "exports",
    "import_routes": "imports",
    "label": "labelling",
    "plan": "planning",
    "record": "recorder",
    "verify": "verification",
}

__all__ = [
    "Corpus",
    "Document",
    "Plan",
    "Recording",
    "Verification",
    "as_array",
    "export",
    "import_routes",
    "label",
    "plan",
    "record",
    "verify",
]

if TYPE_CHECKING:
    from moelens.recording.corpus import Corpus, Document
    from moelens.recording.exports import export
    from moelens.recording.imports import import_routes
    from moelens.recording.labelling import label
    from moelens.recording.planning import Plan, plan
    from moelens.recording.recorder import record
    from moelens.recording.store import Recording, as_array
    from moelens.recording.verification import Verification, verify


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that the help of the command line does not import torch."""
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
