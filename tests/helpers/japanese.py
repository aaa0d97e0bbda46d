"""The bundled corpus, and a recording without a model whose tokens are marked in its texts."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np

CORPUS = [json.loads(line) for line in files("moelens.demo").joinpath("corpus.jsonl").read_text("utf-8").splitlines()]


class FakeRecording:
    """A recording whose texts are divided into tokens at "|"; a special token begins each document."""

    def __init__(self, path: Path, *marked: str):
        self.path = path
        self.texts_read = [text.replace("|", "") for text in marked]
        self.rows = []
        for doc, text in enumerate(marked):
            self.rows.append((doc, 0, 0))
            ends = np.cumsum([0, *map(len, text.split("|"))]).tolist()
            self.rows += [(doc, a, b) for a, b in pairwise(ends)]

    @property
    def n_tokens(self):
        return len(self.rows)

    def columns(self, names):
        """Yield two shards, which may divide a document."""
        for rows in (slice(0, 4), slice(4, self.n_tokens)):
            values = dict(zip(("doc", "char_start", "char_end"), np.array(self.rows, np.int32)[rows].T, strict=True))
            if self.rows[rows]:
                yield rows, [values[name] for name in names]

    def texts(self):
        return iter(self.texts_read)
