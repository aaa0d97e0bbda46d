"""The documents from which `report` and `explore` compute: all, or some that are drawn at random."""

from __future__ import annotations

import warnings
from typing import Literal

from moelens.errors import MoeLensError, MoeLensWarning
from moelens.recording import Recording

Documents = int | Literal["all"] | None
"""How many documents are drawn: a number, "all", or None for as many as `Recording.sample` draws."""


def sampled(recording: Recording, documents: Documents, computed: bool = True) -> Recording:
    """Return the recording, or the sample of it that a view is computed from; a sample is announced unless asked for.

    Args:
        recording: the recording, or a sample of it, from which no other is drawn unless a number is given.
        documents: how many documents to draw.
        computed: whether something is computed; results that are given are of the documents that they are of.

    Raises:
        MoeLensError: `documents` is no number of documents, or is given for results that are there already.
    """
    if not computed:
        if documents is not None:
            raise MoeLensError(
                f"expected documents=None with results, got {documents!r}; give results of recording.sample(documents)"
            )
        return recording
    if documents == "all":
        return recording
    if isinstance(documents, str):
        raise MoeLensError(f"expected documents to be a number or 'all', got {documents!r}; give one of them")
    if documents is None and recording.drawn is not None:
        return recording
    sample = recording.sample(documents)
    if sample is not recording and documents is None:
        text = (
            f"computing from {sample.n_documents:,} of {recording.n_documents:,} documents, drawn at random; "
            "documents='all' (--documents all) reads everything"
        )
        warnings.warn(text, MoeLensWarning, stacklevel=3)
    return sample
