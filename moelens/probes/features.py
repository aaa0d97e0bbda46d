"""What a probe reads of each token, in blocks of tokens from files, so that memory does not grow with the corpus."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moelens.analysis.arrays import Ints
from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.japanese.families import require_label
from moelens.japanese.labels import require_alignment

if TYPE_CHECKING:
    from moelens.recording import Recording

_ROUTES = ("experts", "weights", "paths")
_VECTORS = ("logits", "residuals", "neurons")
FEATURES = (*_ROUTES, *_VECTORS)
"""The features. `experts`: which experts were chosen. `weights`: with which gate weights. `paths`: the experts chosen
in this layer and every one before it. `logits`, `residuals`, `neurons`: as the recording captured them, neurons expert
by expert in the order of the weights. If it has only the largest (`logits:8`), the others count as 0."""


def sklearn_module(name: str) -> Any:
    """Import a module of scikit-learn or of its dependencies.

    Raises:
        MoeLensError: scikit-learn is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MoeLensError(
            "expected scikit-learn for probes, got none installed; run pip install 'moelens[probes]'"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A feature of one layer.

    Attributes:
        name: one of `FEATURES`.
        layer: number of the layer.
        width: number of columns.
        cells: how many of them are stored for each row.
        scaled: whether columns are standardised.
        block: a function from rows to values `[row, width]`, dense or sparse.
    """

    name: str
    layer: int
    width: int
    cells: int
    scaled: bool
    block: Callable[[Ints], Any]


class FeatureStore:
    """The features of a recording, in files of a temporary folder that `close` removes.

    Args:
        recording: the recording.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._folder = tempfile.TemporaryDirectory(prefix="moelens-probe-")
        self._files: dict[str, Any] = {}

    def close(self) -> None:
        """Remove the files."""
        self._files.clear()
        self._folder.cleanup()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def feature(self, name: str, layer: int) -> Feature:
        """Return a feature of a layer.

        Raises:
            UnknownNameError: there is no such feature or layer.
            RecordingError: the recording does not have the feature.
        """
        if name not in FEATURES:
            raise unknown("feature", name, FEATURES)
        if layer not in self.recording.layers:
            raise unknown("layer", layer, self.recording.layers)
        if name in _ROUTES:
            return self._routes(name, layer)
        if self._has_only_largest(name):
            return self._largest(name, layer)
        values = self._vectors(name, layer)
        width = values.shape[1]

        def block(rows: Ints) -> Any:
            return np.asarray(values[rows], np.float32)

        return Feature(name=name, layer=layer, width=width, cells=width, scaled=True, block=block)

    def _file(self, key: str, shape: tuple[int, ...], dtype: Any) -> Any:
        self._files[key] = np.memmap(Path(self._folder.name) / key, dtype, "w+", shape=shape)
        return self._files[key]

    def _routes(self, name: str, layer: int) -> Feature:
        recording, n = self.recording, self.recording.n_experts
        place = recording.layers.index(layer)
        used = slice(0, place + 1) if name == "paths" else slice(place, place + 1)
        n_layers = used.stop - used.start
        indices, width = self._columns("experts"), n * n_layers
        weights = self._columns("weights") if name == "weights" else None

        def block(rows: Ints) -> Any:
            chosen = indices[rows][:, used].astype(np.int64)  # [row, layer, slot]
            columns = (chosen + n * np.arange(chosen.shape[1])[:, None]).reshape(len(rows), -1)
            values = np.ones(columns.shape) if weights is None else weights[rows][:, used].reshape(columns.shape)
            return _sparse_matrix(columns, values, width)

        cells = indices.shape[2] * n_layers
        return Feature(name=name, layer=layer, width=width, cells=cells, scaled=False, block=block)

    def _largest(self, name: str, layer: int) -> Feature:
        """Return a capture of the largest numbers of each row; the others are 0."""
        which = "experts" if name == "logits" else "neurons"
        values, columns = self._vectors(name, layer), self._vectors(name, layer, which)
        shape = self.recording.manifest["shape"]
        n, slots = (shape["n_experts"], 1) if name == "logits" else (shape["d_expert"], shape["top_k"])
        cells = values.shape[1]
        offset = n * (np.arange(cells) // (cells // slots))

        def block(rows: Ints) -> Any:
            return _sparse_matrix(columns[rows].astype(np.int64) + offset, values[rows], n * slots)

        return Feature(name=name, layer=layer, width=n * slots, cells=cells, scaled=True, block=block)

    def _has_only_largest(self, name: str) -> bool:
        """Return whether only the largest numbers of this capture were recorded."""
        captures = [c.partition(":") for c in getattr(self.recording, "captures", ())]
        return any(c == name and parameter.isdigit() for c, _, parameter in captures)

    def _columns(self, kind: str) -> Any:
        """Return `experts_*` or `weights_*` of all layers `[token, layer, slot]`, copied to a file layer by layer."""
        if kind not in self._files:
            recording = self.recording
            names = [f"{kind}_L{layer:02d}" for layer in recording.layers]
            for i, name in enumerate(names):
                column = recording.column(name)
                if i == 0:
                    self._file(kind, (len(column), len(names), column.shape[1]), column.dtype)
                self._files[kind][:, i] = column
        return self._files[kind]

    def _vectors(self, name: str, layer: int, column: str = "values") -> Any:
        """Return a captured table `[token, width]`, for neurons `[token, rank * d_expert]`; 0 for tokens without a row.

        Raises:
            RecordingError: it was not captured, or the neurons were captured without routes.
        """
        key = f"{name}-{layer}-{column}"
        if key in self._files:
            return self._files[key]
        if name not in [c.partition(":")[0] for c in getattr(self.recording, "captures", ())]:
            raise RecordingError(
                f"expected a recording with {name}, got one without; record again with "
                f"capture=['routes', '{name}'] (--capture routes {name})"
            )
        from moelens.recording.store import as_array

        doc, pos = (self.recording.column(name).astype(np.int64) for name in ("doc", "pos"))
        span = int(pos.max(initial=0)) + 1
        place = doc * span + pos
        order = np.argsort(place)
        slots = self.recording.top_k if name == "neurons" else 1
        rank = self._ranks(layer) if name == "neurons" else np.zeros((len(doc), 1), np.int64)
        file = None
        for part in self.recording.vector_parts(name, layer):
            values = as_array(part[column])
            if file is None:
                file = self._file(key, (len(doc), slots * values.shape[1]), np.float32)
            token = part["doc"].to_numpy().astype(np.int64) * span + part["pos"].to_numpy()
            slot = part["slot"].to_numpy() if name == "neurons" else 0
            row = order[np.searchsorted(place, token, sorter=order)]
            file.reshape(len(doc), slots, -1)[row, rank[row, slot]] = values
        return file

    def _ranks(self, layer: int) -> Ints:
        """Return the rank of each slot by weight, 0 for the largest, `[token, slot]`; not all routers sort their slots.

        Raises:
            RecordingError: the recording has no routes.
        """
        if "routes" not in self.recording.captures:
            raise RecordingError(
                "expected routes beside neurons, whose weights rank the experts of a token, got a recording without;"
                " record again with capture=['routes', 'neurons'] (--capture routes neurons)"
            )
        weights = self._columns("weights")[:, self.recording.layers.index(layer)].astype(np.float32)
        return np.argsort(np.argsort(-weights, axis=1, kind="stable"), axis=1, kind="stable")


def _sparse_matrix(columns: Ints, values: Any, width: int) -> Any:
    """Return the matrix `[row, width]` with `values` `[row, n]` in `columns` `[row, n]` and 0 elsewhere."""
    starts = np.arange(len(columns) + 1) * columns.shape[1]
    data = np.asarray(values, np.float32).ravel()
    return sklearn_module("scipy.sparse").csr_matrix((data, columns.ravel(), starts), (len(columns), width))


def token_classes(recording: Recording, label: str | Sequence[str | None]) -> tuple[tuple[str, ...], Ints]:
    """Return the names of the classes, and the class of each token `[token]`; −1 for tokens that are left out.

    Args:
        recording: the recording, with labels unless `label` gives a value for each token.
        label: a family such as "pos", of which the tokens with exactly one label count; a label such as "尊敬語" or
            "honorifics.尊敬語", for two classes; or a value for each token, None to leave it out.

    Raises:
        UnknownNameError: there is no such family or label.
        MoeLensError: the values are not as many as the tokens.
    """
    require_alignment(recording)
    text = recording.column("char_end") > recording.column("char_start")
    if not isinstance(label, str):
        if len(label) != len(text):
            raise MoeLensError(
                f"expected a label for each of the {len(text)} tokens of the recording, got {len(label)}; "
                "give one for each, None to leave a token out"
            )
        names = tuple(sorted({str(value) for value in label if value is not None}))
        return names, np.array([-1 if v is None else names.index(str(v)) for v in label])
    from moelens.japanese import Labels
    from moelens.japanese.families import COLUMNS

    labels = Labels.open(recording)
    if label in labels.families:
        names, has = labels.matrix(label)
        return names, np.where(text & (has.sum(1) == 1), has.argmax(1), -1)
    column = require_label(label, COLUMNS)
    family, _, name = column.partition(".")
    names, has = labels.matrix(family)
    label = label if label == column else name
    return (f"not {label}", label), np.where(text, has[:, names.index(name)].astype(np.int64), -1)
