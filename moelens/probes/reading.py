"""`probe`: how well a label can be read from what a model did, beside how well it can be guessed without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moelens.analysis.sources import opened
from moelens.analysis.tables import number, plain_table
from moelens.bars import progress_bar
from moelens.display import Plotted
from moelens.errors import MoeLensError, unknown
from moelens.probes.classifiers import Floats, Kind, blocks, fit
from moelens.probes.features import Feature, FeatureStore, Ints, need, targets
from moelens.recording import Recording
from moelens.saved import SavedRows

FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the blocks of the online code, Voita and Titov 2020 (arXiv 2003.12298)."""
PROBES: tuple[Kind, ...] = ("logistic", "centroid")


@dataclass(frozen=True)
class ProbeRow:
    """One probe on one feature of one layer; accuracies are out of fold, over tokens.

    Attributes:
        accuracy, low, high: and its 95 % bootstrap interval over documents.
        control: accuracy of the same probe on random labels, one for each token type (Hewitt and Liang 2019).
        selectivity: accuracy − control.
        bits, compression: online description length of the labels, and N log2 K over it; NaN for centroids.
    """

    feature: str
    layer: int
    probe: str
    accuracy: float
    low: float
    high: float
    control: float
    selectivity: float
    bits: float
    compression: float


@dataclass(frozen=True, repr=False)
class ProbeResult(Plotted, SavedRows):
    """How well a label can be read, feature by feature and layer by layer.

    Attributes:
        majority: share of the most frequent class.
        per_token: accuracy of guessing the most frequent class of the token's type in the training folds: what the
            token alone tells.
    """

    FORMAT: ClassVar[str] = "moelens.probe/1"

    family: str
    classes: tuple[str, ...]
    tokens: int
    documents: int
    folds: int
    seed: int
    majority: float
    per_token: float
    rows: tuple[ProbeRow, ...]

    @property
    def best(self) -> ProbeRow:
        """The row with the highest accuracy."""
        return max(self.rows, key=lambda row: row.accuracy)

    def records(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]

    def table(self) -> str:
        header = ("layer", "feature", "probe", "accuracy", "95 %", "control", "selectivity", "compression")
        rows = [
            (f"L{r.layer}", r.feature, r.probe, number(r.accuracy), f"[{number(r.low)}, {number(r.high)}]")
            + (number(r.control), f"{r.selectivity:+.3f}", number(r.compression))
            for r in self.rows
        ]
        return "\n".join(
            [
                f"{self.family} · {len(self.classes)} classes · {self.tokens:,} tokens of {self.documents:,} documents"
                f" · {self.folds} folds of documents · seed {self.seed}",
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
    probes: Sequence[Kind] = PROBES,
    folds: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> ProbeResult:
    """Train probes for a label, documents apart, with the baselines and the control task that they need beside them.

    Args:
        recording: or its folder, with labels (`moelens.label(recording)`) unless `family` holds them.
        family: of labels ("pos"), one label ("尊敬語"), or a value for each token;
            see `moelens.probes.features.targets`.
        features: of "experts", "weights", "paths", "logits", "residuals", "neurons"; the last three where recorded.
        layers: None for all recorded.
        probes: "logistic" and "centroid".
        folds: of documents; copies of a text are one document.
        seed: of folds, control labels, code blocks and intervals.

    Raises:
        MoeLensError: scikit-learn is missing, fewer documents than folds, or fewer than two classes.

    Example:
        >>> moelens.probe(recording, "pos", features=["experts", "paths"])  # doctest: +SKIP
    """
    need("sklearn.linear_model")
    recording = opened(recording)
    for name in probes:
        if name not in PROBES:
            raise unknown("probe", name, PROBES)
    names, y = targets(recording, family)
    rows = np.flatnonzero(y >= 0)
    used = np.unique(y[rows])
    docs = recording.text_ids()[recording.column("doc")]  # copies of a text are in one fold
    if len(used) < 2:
        raise MoeLensError(f"{family!r} has {len(used)} classes in this recording; a probe needs two")
    if len(np.unique(docs[rows])) < folds:
        raise MoeLensError(
            f"{len(np.unique(docs[rows]))} documents of different texts for {folds} folds; record more, or give fewer"
            " folds"
        )
    names = tuple(names[i] for i in used)
    y = np.searchsorted(used, y) * (y >= 0)
    tokens = recording.column("token_id").astype(np.int64)
    fold = fold_of(docs, rows, folds, seed)
    control = control_labels(tokens, y, rows, seed)
    wanted = [(name, layer) for name in features for layer in (layers or recording.layers)]
    with FeatureStore(recording) as store:
        task = Task(rows, docs, fold, folds, len(names), seed)
        found = tuple(
            row
            for name, layer in progress_bar(wanted, desc="probing", show=progress)
            for row in task.rows_of(store.feature(name, layer), y, control, probes)
        )
    return ProbeResult(
        family if isinstance(family, str) else "labels",
        names,
        len(rows),
        len(np.unique(docs[rows])),
        folds,
        seed,
        float(np.bincount(y[rows]).max() / len(rows)),
        per_token_accuracy(tokens, y, rows, fold, folds),
        found,
    )


@dataclass(frozen=True)
class Task:
    """What stays the same for every feature: the tokens `rows`, their documents and folds."""

    rows: Ints
    docs: Any
    fold: Ints
    folds: int
    n_classes: int
    seed: int

    def rows_of(self, feature: Feature, y: Ints, control: Ints, probes: Sequence[Kind]) -> Iterator[ProbeRow]:
        for kind in probes:
            right = self._out_of_fold(kind, feature, y)
            accuracy = float(right.mean())
            guessed = float(self._out_of_fold(kind, feature, control).mean())
            bits = self._online_bits(feature, y) if kind == "logistic" else float("nan")
            compression = len(self.rows) * np.log2(self.n_classes) / bits
            low, high = document_interval(right, self.docs[self.rows], self.seed)
            yield ProbeRow(
                feature.name,
                feature.layer,
                kind,
                accuracy,
                low,
                high,
                guessed,
                accuracy - guessed,
                bits,
                float(compression),
            )

    def _out_of_fold(self, kind: Kind, feature: Feature, y: Ints) -> Floats:
        """Whether each of `rows` is classified right by a probe that did not see its document."""
        right = np.zeros(len(self.rows))
        for k in range(self.folds):
            held = self.fold[self.rows] == k
            predict = fit(kind, feature, self.rows[~held], y, self.n_classes)
            for part in blocks(np.flatnonzero(held), feature.cells + self.n_classes):
                right[part] = predict(self.rows[part]).argmax(1) == y[self.rows[part]]
        return right

    def _online_bits(self, feature: Feature, y: Ints) -> float:
        """n1 log2 K + Σ −log2 p of each block under the probe trained on the blocks before it; documents stay whole."""
        order = np.random.default_rng(self.seed).permutation(np.unique(self.docs[self.rows]))
        place = {doc: i for i, doc in enumerate(order.tolist())}
        by_doc = np.array([place[d] for d in self.docs[self.rows].tolist()])
        rows = self.rows[np.argsort(by_doc, kind="stable")]
        ends = np.flatnonzero(np.diff(np.sort(by_doc), append=len(order))) + 1  # rows at which a document ends
        cuts = sorted({int(ends[np.searchsorted(ends, f * len(rows))]) for f in FRACTIONS})
        bits = cuts[0] * np.log2(self.n_classes)
        for start, stop in pairwise(cuts):
            predict = fit("logistic", feature, rows[:start], y, self.n_classes)
            for part in blocks(rows[start:stop], feature.cells + self.n_classes):
                bits -= predict(part)[np.arange(len(part)), y[part]].sum() / np.log(2)
        return float(bits)


def fold_of(docs: Any, rows: Ints, folds: int, seed: int) -> Ints:
    """The fold of each token `[token]`: documents at random, each to the fold with fewest tokens so far."""
    unique, sizes = np.unique(docs[rows], return_counts=True)
    filled, place = np.zeros(folds), {}
    for i in np.random.default_rng(seed).permutation(len(unique)):
        k = int(filled.argmin())
        place[int(unique[i])] = k
        filled[k] += sizes[i]
    return np.array([place.get(d, -1) for d in docs.tolist()])


def control_labels(tokens: Ints, y: Ints, rows: Ints, seed: int) -> Ints:
    """A random class for each token type, from the classes' own distribution, fixed for all its tokens `[token]`."""
    types, of = np.unique(tokens, return_inverse=True)
    share = np.bincount(y[rows]) / len(rows)
    return np.asarray(np.random.default_rng(seed).choice(len(share), len(types), p=share)[of])


def per_token_accuracy(tokens: Ints, y: Ints, rows: Ints, fold: Ints, folds: int) -> float:
    """Of guessing the most frequent class of the token's type in the other folds, or of all tokens for a new type."""
    right = 0
    for k in range(folds):
        train, held = rows[fold[rows] != k], rows[fold[rows] == k]
        types, of = np.unique(tokens[train], return_inverse=True)
        counts = np.zeros((len(types) + 1, int(y.max()) + 1))
        np.add.at(counts, (of, y[train]), 1)
        counts[-1] = np.bincount(y[train], minlength=counts.shape[1])
        at = np.searchsorted(types, tokens[held])
        known = (at < len(types)) & (types[np.minimum(at, len(types) - 1)] == tokens[held])
        right += int((counts.argmax(1)[np.where(known, at, len(types))] == y[held]).sum())
    return right / len(rows)


def document_interval(values: Floats, docs: Any, seed: int, draws: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over tokens, documents drawn with replacement."""
    _, at = np.unique(docs, return_inverse=True)
    sums, sizes = np.bincount(at, weights=values), np.bincount(at)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
