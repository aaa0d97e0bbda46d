"""Probes: a logistic regression and the nearest centroid, trained on blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moelens.probes.features import Feature, Ints, need

Floats = NDArray[np.float64]
Kind = Literal["logistic", "centroid"]
BLOCK = 8192  # rows in memory at a time
WHOLE = 50_000  # rows up to which the logistic probe is fitted at once, beyond that by passes of gradient descent
PASSES = 5


def blocks(rows: Ints) -> Iterator[Ints]:
    return (rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK))


@dataclass(frozen=True)
class Scaler:
    """Columns less their mean, over their standard deviation, both of the training rows."""

    mean: Any
    spread: Any

    @classmethod
    def fit(cls, feature: Feature, rows: Ints) -> Scaler:
        if not feature.scaled:
            return cls(0.0, 1.0)
        total, squares = np.zeros(feature.width), np.zeros(feature.width)
        for part in blocks(rows):
            values = np.asarray(feature.block(part), np.float64)
            total += values.sum(0)
            squares += (values**2).sum(0)
        mean = total / len(rows)
        spread = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
        return cls(mean, np.where(spread > 1e-9, spread, 1))

    def __call__(self, values: Any) -> Any:
        return values if isinstance(self.mean, float) else (values - self.mean) / self.spread


def fit(kind: Kind, feature: Feature, rows: Ints, y: Ints, n_classes: int, seed: int) -> Any:
    """A function from rows to log-probabilities (for centroids: scores) `[row, class]`, trained on `rows`.

    Classes that the training rows lack get a Laplace share, so that every code length is finite.
    """
    scaler = Scaler.fit(feature, rows)
    present = np.unique(y[rows])
    if kind == "centroid":
        score = _centroids(feature, scaler, rows, y, present)
    elif len(present) == 1:
        score = lambda x: np.zeros((x.shape[0], 1))  # noqa: E731
    else:
        score = _logistic(feature, scaler, rows, y, present, seed)
    share = n_classes / (len(rows) + n_classes)

    def predict(wanted: Ints) -> Floats:
        found = np.full((len(wanted), n_classes), -np.inf)
        for start, part in zip(range(0, len(wanted), BLOCK), blocks(wanted), strict=False):
            found[start : start + len(part), present] = score(scaler(feature.block(part)))
        if kind == "centroid":
            return found
        return np.asarray(np.log((1 - share) * np.exp(found) + share / n_classes))

    return predict


def _logistic(feature: Feature, scaler: Scaler, rows: Ints, y: Ints, present: Ints, seed: int) -> Any:
    models = need("sklearn.linear_model")
    if len(rows) <= WHOLE:
        model = models.LogisticRegression(max_iter=200, tol=1e-3).fit(scaler(feature.block(rows)), y[rows])
    else:
        model = models.SGDClassifier(loss="log_loss", alpha=1e-5, average=True, random_state=seed)
        rng = np.random.default_rng(seed)
        for _ in range(PASSES):
            for part in blocks(rng.permutation(rows)):
                model.partial_fit(scaler(feature.block(np.sort(part))), y[np.sort(part)], classes=present)
    return model.predict_log_proba


def _centroids(feature: Feature, scaler: Scaler, rows: Ints, y: Ints, present: Ints) -> Any:
    sums = np.zeros((len(present), feature.width))
    for part in blocks(rows):
        of = (y[part][None] == present[:, None]).astype(np.float64)  # [class, row]
        sums += np.asarray((scaler(feature.block(part)).T @ of.T).T)
    centroids = sums / np.bincount(np.searchsorted(present, y[rows]))[:, None]
    offset = (centroids**2).sum(1) / 2
    return lambda x: np.asarray(x @ centroids.T) - offset
