"""Probes: a logistic regression and the nearest centroid, trained on blocks of rows of any number and width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moelens.probes.features import Feature, Ints, need

Floats = NDArray[np.float64]
Kind = Literal["logistic", "centroid"]
STEPS, TOLERANCE = 200, 1e-3  # of the logistic probe's optimiser
CELLS = 1 << 22  # numbers of a table in memory at a time; with their copies, some 150 MB


def blocks(rows: Ints, cells: int) -> Iterator[Ints]:
    """As many rows at a time as memory is meant for, where a row has so many numbers."""
    step = max(1, CELLS // cells)
    return (rows[i : i + step] for i in range(0, len(rows), step))


@dataclass(frozen=True)
class Scaler:
    """Columns less their mean, over their standard deviation, both of the training rows; sparse ones keep their 0."""

    mean: Any
    spread: Any

    @classmethod
    def fit(cls, feature: Feature, rows: Ints) -> Scaler:
        if not feature.scaled:
            return cls(0.0, 1.0)
        total, squares = np.zeros(feature.width), np.zeros(feature.width)
        for part in blocks(rows, feature.cells):
            values = feature.block(part).astype(np.float64)
            dense = isinstance(values, np.ndarray)
            total += np.asarray(values.sum(0)).ravel()
            squares += np.asarray((values**2 if dense else values.power(2)).sum(0)).ravel()
        mean = total / len(rows)
        spread = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
        return cls(mean if dense else 0.0, np.where(spread > 1e-9, spread, 1))

    def __call__(self, values: Any) -> Any:
        if isinstance(self.spread, float):
            return values
        if isinstance(self.mean, float):
            return values.multiply(1 / self.spread).tocsr()
        return (values - self.mean) / self.spread


def fit(kind: Kind, feature: Feature, rows: Ints, y: Ints, n_classes: int) -> Callable[[Ints], Floats]:
    """A function from a block of rows to log-probabilities (of centroids: scores) `[row, class]`, trained on `rows`.

    Classes that the training rows lack get a Laplace share, so that every code length is finite.
    """
    scaler = Scaler.fit(feature, rows)
    present = np.unique(y[rows])
    score: Callable[[Any], Any]
    if kind == "centroid":
        score = _centroids(feature, scaler, rows, y, present)
    elif len(present) == 1:
        score = lambda x: np.zeros((x.shape[0], 1))  # noqa: E731
    elif len(rows) * feature.cells <= CELLS:
        whole = need("sklearn.linear_model").LogisticRegression(max_iter=STEPS, tol=TOLERANCE)
        score = whole.fit(scaler(feature.block(rows)), y[rows]).predict_log_proba
    else:
        score = _logistic(feature, scaler, rows, y, present)
    share = n_classes / (len(rows) + n_classes)

    def predict(wanted: Ints) -> Floats:
        found = np.full((len(wanted), n_classes), -np.inf)
        found[:, present] = score(scaler(feature.block(wanted)))
        if kind == "centroid":
            return found
        return np.asarray(np.log((1 - share) * np.exp(found) + share / n_classes))

    return predict


def _logistic(feature: Feature, scaler: Scaler, rows: Ints, y: Ints, present: Ints) -> Callable[[Any], Any]:
    """What scikit-learn's `LogisticRegression` minimises, by the same L-BFGS, but its gradient summed over blocks.

    Stochastic gradient descent would need fewer passes, and its probabilities are not ones to take a code length of.
    """
    log_softmax, n = need("scipy.special").log_softmax, len(rows)
    shape = (feature.width + 1, len(present))  # the last row: intercepts
    # Two classes share one vector of weights in scikit-learn; as two that differ by it, they weigh half as much.
    penalty = 2 if len(present) == 2 else 1

    def log_p(w: Floats, x: Any) -> Any:
        return log_softmax(x @ w[:-1] + w[-1], axis=1)

    def loss(flat: Floats) -> tuple[float, Floats]:
        w, gradient = flat.reshape(shape), np.zeros(shape)
        gradient[:-1] = penalty * w[:-1]
        total = penalty * (w[:-1] ** 2).sum() / 2
        for part in blocks(rows, feature.cells + len(present)):
            x, own = scaler(feature.block(part)), (np.arange(len(part)), np.searchsorted(present, y[part]))
            found = log_p(w, x)
            total -= found[own].sum()
            excess = np.exp(found)
            excess[own] -= 1
            gradient[:-1] += x.T @ excess
            gradient[-1] += excess.sum(0)
        return total / n, gradient.ravel() / n

    options = {"maxiter": STEPS, "gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros(shape).ravel()
    best = need("scipy.optimize").minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(shape)
    return partial(log_p, best)


def _centroids(feature: Feature, scaler: Scaler, rows: Ints, y: Ints, present: Ints) -> Callable[[Any], Any]:
    sums = np.zeros((len(present), feature.width))
    for part in blocks(rows, feature.cells + len(present)):
        of = (y[part][None] == present[:, None]).astype(np.float64)  # [class, row]
        sums += np.asarray((scaler(feature.block(part)).T @ of.T).T)
    centroids = sums / np.bincount(np.searchsorted(present, y[rows]))[:, None]
    offset = (centroids**2).sum(1) / 2
    return lambda x: np.asarray(x @ centroids.T) - offset
