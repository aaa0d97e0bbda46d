"""`probe`: how well a label can be read from what a model did, compared with baselines and a control task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moelens.analysis.arrays import Floats, Ints
from moelens.analysis.samples import open_recording
from moelens.analysis.tables import number, plain_table
from moelens.bars import progress_bar
from moelens.display import Plotted
from moelens.errors import MoeLensError, unknown
from moelens.probes.classifiers import ProbeKind, fit_probe, row_blocks
from moelens.probes.features import Feature, FeatureStore, sklearn_module, token_classes
from moelens.recording import Recording
from moelens.saved import SavedRows

_FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the blocks of the online code, as shares of the tokens: Voita and Titov 2020 (arXiv 2003.12298)."""
_PROBES: tuple[ProbeKind, ...] = ("logistic", "centroid")


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One probe on one feature of one layer. Accuracies are out of fold, over tokens.

    Attributes:
        feature: name of the feature.
        layer: number of the layer.
        probe: "logistic" or "centroid".
        accuracy, low, high: accuracy and its 95 % bootstrap interval over documents.
        control: accuracy of the same probe on random labels, one for each token type (Hewitt and Liang 2019), averaged
            over draws of the labels.
        control_low, control_high: the lowest and the highest accuracy of a draw.
        selectivity: `accuracy` minus `control`.
        bits: online description length of the labels; NaN for centroids.
        compression: N log2 K over `bits`; NaN for centroids.
    """

    feature: str
    layer: int
    probe: str
    accuracy: float
    low: float
    high: float
    control: float
    control_low: float
    control_high: float
    selectivity: float
    bits: float
    compression: float


@dataclass(frozen=True, repr=False, kw_only=True)
class ProbeResult(Plotted, SavedRows):
    """How well a label can be read, by feature and layer.

    Attributes:
        family: the family of labels or the label; "labels" for given values.
        classes: names of the classes.
        tokens: number of tokens.
        documents: number of documents.
        folds: number of folds of documents.
        seed: seed of folds, control labels, code blocks and intervals.
        control_draws: draws of the control labels.
        majority: share of the most frequent class.
        per_token: accuracy of predicting the most frequent class of the token's type in the training folds, that is
            from the token alone.
        rows: the probes.
    """

    FORMAT: ClassVar[str] = "moelens.probe/2"

    family: str
    classes: tuple[str, ...]
    tokens: int
    documents: int
    folds: int
    seed: int
    control_draws: int
    majority: float
    per_token: float
    rows: tuple[ProbeRow, ...]

    @property
    def best(self) -> ProbeRow:
        """The row with the highest accuracy."""
        return max(self.rows, key=lambda row: row.accuracy)

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each probe."""
        return [asdict(row) for row in self.rows]

    def table(self) -> str:
        """Return a plain table with a row for each probe, with the range of control and selectivity over the draws."""
        header = ("layer", "feature", "probe", "accuracy", "95 %", "control", "selectivity", "compression")
        rows = [
            (
                f"L{r.layer}",
                r.feature,
                r.probe,
                number(r.accuracy),
                f"[{number(r.low)}, {number(r.high)}]",
                f"{number(r.control)} [{number(r.control_low)}, {number(r.control_high)}]",
                f"{r.selectivity:+.3f} [{r.accuracy - r.control_high:+.3f}, {r.accuracy - r.control_low:+.3f}]",
                number(r.compression),
            )
            for r in self.rows
        ]
        return "\n".join(
            [
                f"{self.family} · {len(self.classes)} classes · {self.tokens:,} tokens of {self.documents:,} documents"
                f" · {self.folds} folds of documents · {self.control_draws} draws of the control task"
                f" · seed {self.seed}",
                f"without the model: majority {number(self.majority)}, most frequent label of the token "
                f"{number(self.per_token)}",
                plain_table(header, rows),
            ]
        )

    __repr__ = table


def probe(
    recording: Recording | str | Path,
    family: str | Sequence[str | None],
    features: Sequence[str] = ("experts",),
    *,
    layers: Sequence[int] | None = None,
    probes: Sequence[ProbeKind] = _PROBES,
    folds: int = 5,
    control_draws: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> ProbeResult:
    """Train probes for a label on separate documents, with the baselines and the control task they need.

    Args:
        recording: the recording, or its folder, with labels (`moelens.label(recording)`) unless `family` gives them.
        family: a family of labels ("pos"), one label ("尊敬語"), or a value for each token with None to leave it out.
        features: "experts", "weights", "paths", and, if they were captured, "logits", "residuals", "neurons"; see
            `moelens.probes.features.FEATURES`.
        layers: numbers of the layers; None for all recorded layers.
        probes: "logistic" and "centroid".
        folds: number of folds of documents; copies of a text are one document.
        control_draws: draws of the labels of the control task, 1 or more; a single one can be off by several percent.
        seed: seed of folds, control labels, code blocks and intervals.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        Accuracy, control accuracy and description length of each probe, and the baselines.

    Raises:
        UnknownNameError: there is no such family, label, feature, layer or probe.
        RecordingError: there is no recording, or it lacks a feature.
        MoeLensError: scikit-learn is missing, or there are fewer documents than folds or fewer than two classes.

    Example:
        >>> result = moelens.probe(demo_recording, "丁寧語", layers=[4], probes=["centroid"])
        >>> result.classes, [(row.feature, row.layer, row.probe) for row in result.rows]
        (('not 丁寧語', '丁寧語'), [('experts', 4, 'centroid')])
    """
    sklearn_module("sklearn.linear_model")
    recording = open_recording(recording)
    for name in probes:
        if name not in _PROBES:
            raise unknown("probe", name, _PROBES)
    names, y = token_classes(recording, family)
    rows = np.flatnonzero(y >= 0)
    used = np.unique(y[rows])
    docs = recording.text_ids()[recording.column("doc")]  # copies of a text are in one fold
    documents = len(np.unique(docs[rows]))
    if len(used) < 2:
        what = repr(family) if isinstance(family, str) else "the given labels"
        raise MoeLensError(
            f"expected two or more classes of {what} in this recording, got {len(used)}; record more text"
        )
    if documents < folds:
        raise MoeLensError(
            f"expected at least as many documents of different texts as folds, got {documents} for {folds} folds; "
            "record more, or give fewer folds"
        )
    names = tuple(names[i] for i in used)
    y = np.searchsorted(used, y) * (y >= 0)
    tokens = recording.column("token_id").astype(np.int64)
    fold = fold_of(docs, rows, folds, seed)
    if control_draws < 1:
        raise MoeLensError(f"expected 1 or more draws of the control task, got {control_draws}; give more")
    controls = [control_labels(tokens, y, rows, (seed, draw)) for draw in range(control_draws)]
    wanted = [(name, layer) for name in features for layer in (layers or recording.layers)]
    with FeatureStore(recording) as store:
        task = _ProbeTask(rows=rows, docs=docs, fold=fold, folds=folds, n_classes=len(names), seed=seed)
        probed = tuple(
            row
            for name, layer in progress_bar(wanted, desc="probing", show=progress)
            for row in task.probe_rows(store.feature(name, layer), y, controls, probes)
        )
    return ProbeResult(
        family=family if isinstance(family, str) else "labels",
        classes=names,
        tokens=len(rows),
        documents=documents,
        folds=folds,
        seed=seed,
        control_draws=control_draws,
        majority=float(np.bincount(y[rows]).max() / len(rows)),
        per_token=per_token_accuracy(tokens, y, rows, fold, folds),
        rows=probed,
    )


@dataclass(frozen=True, kw_only=True)
class _ProbeTask:
    """What is the same for every feature: the tokens `rows`, and the documents and folds of all tokens `[token]`."""

    rows: Ints
    docs: Any
    fold: Ints
    folds: int
    n_classes: int
    seed: int

    def probe_rows(
        self, feature: Feature, y: Ints, controls: Sequence[Ints], probes: Sequence[ProbeKind]
    ) -> Iterator[ProbeRow]:
        """Train each kind of probe on a feature, for the classes `y` and each draw of control labels, all `[token]`."""
        for kind in probes:
            correct = self._out_of_fold(kind, feature, y)
            accuracy = float(correct.mean())
            by_chance = [float(self._out_of_fold(kind, feature, control).mean()) for control in controls]
            bits = self._online_bits(feature, y) if kind == "logistic" else float("nan")
            low, high = document_interval(correct, self.docs[self.rows], self.seed)
            yield ProbeRow(
                feature=feature.name,
                layer=feature.layer,
                probe=kind,
                accuracy=accuracy,
                low=low,
                high=high,
                control=float(np.mean(by_chance)),
                control_low=min(by_chance),
                control_high=max(by_chance),
                selectivity=accuracy - float(np.mean(by_chance)),
                bits=bits,
                compression=float(len(self.rows) * np.log2(self.n_classes) / bits),
            )

    def _out_of_fold(self, kind: ProbeKind, feature: Feature, y: Ints) -> Floats:
        """Return whether each of `rows` is classified correctly by a probe trained on other documents."""
        correct = np.zeros(len(self.rows))
        for k in range(self.folds):
            held_out = self.fold[self.rows] == k
            predict = fit_probe(kind, feature, self.rows[~held_out], y, self.n_classes)
            for part in row_blocks(np.flatnonzero(held_out), feature.cells + self.n_classes):
                correct[part] = predict(self.rows[part]).argmax(1) == y[self.rows[part]]
        return correct

    def _online_bits(self, feature: Feature, y: Ints) -> float:
        """Return the length of the online code, in which documents stay whole.

        n1 log2 K + Σ −log2 p of each block, under the probe trained on the blocks before it.
        """
        order = np.random.default_rng(self.seed).permutation(np.unique(self.docs[self.rows]))
        place = {doc: i for i, doc in enumerate(order.tolist())}
        by_doc = np.array([place[d] for d in self.docs[self.rows].tolist()])
        rows = self.rows[np.argsort(by_doc, kind="stable")]
        ends = np.flatnonzero(np.diff(np.sort(by_doc), append=len(order))) + 1  # rows at which a document ends
        cuts = sorted({int(ends[np.searchsorted(ends, f * len(rows))]) for f in _FRACTIONS})
        bits = cuts[0] * np.log2(self.n_classes)
        for start, stop in pairwise(cuts):
            predict = fit_probe("logistic", feature, rows[:start], y, self.n_classes)
            for part in row_blocks(rows[start:stop], feature.cells + self.n_classes):
                bits -= predict(part)[np.arange(len(part)), y[part]].sum() / np.log(2)
        return float(bits)


def fold_of(docs: Any, rows: Ints, folds: int, seed: int) -> Ints:
    """Assign documents to folds in random order, each to the fold with the fewest tokens; return `[token]`."""
    unique, sizes = np.unique(docs[rows], return_counts=True)
    filled, place = np.zeros(folds), {}
    for i in np.random.default_rng(seed).permutation(len(unique)):
        k = int(filled.argmin())
        place[int(unique[i])] = k
        filled[k] += sizes[i]
    return np.array([place.get(d, -1) for d in docs.tolist()])


def control_labels(tokens: Ints, y: Ints, rows: Ints, seed: int | tuple[int, ...]) -> Ints:
    """Draw a random class for each token type from the distribution of the classes; return `[token]`."""
    types, index = np.unique(tokens, return_inverse=True)
    share = np.bincount(y[rows]) / len(rows)
    return np.asarray(np.random.default_rng(seed).choice(len(share), len(types), p=share)[index])


def per_token_accuracy(tokens: Ints, y: Ints, rows: Ints, fold: Ints, folds: int) -> float:
    """Return the accuracy of predicting the most frequent class of the token's type in the other folds.

    For a type that the other folds lack, the most frequent class of all their tokens is predicted.
    """
    correct = 0
    for k in range(folds):
        train, held_out = rows[fold[rows] != k], rows[fold[rows] == k]
        types, index = np.unique(tokens[train], return_inverse=True)
        counts = np.zeros((len(types) + 1, int(y.max()) + 1))
        np.add.at(counts, (index, y[train]), 1)
        counts[-1] = np.bincount(y[train], minlength=counts.shape[1])
        place = np.searchsorted(types, tokens[held_out])
        known = (place < len(types)) & (types[np.minimum(place, len(types) - 1)] == tokens[held_out])
        correct += int((counts.argmax(1)[np.where(known, place, len(types))] == y[held_out]).sum())
    return correct / len(rows)


def document_interval(values: Floats, docs: Any, seed: int, draws: int = 1000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over tokens; documents are drawn with replacement."""
    _, index = np.unique(docs, return_inverse=True)
    sums, sizes = np.bincount(index, weights=values), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
