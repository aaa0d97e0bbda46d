"""Classifiers for probes: a logistic regression and nearest centroids, trained on blocks of any number of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from moelens.analysis.arrays import Floats, Ints
from moelens.probes.features import Feature, sklearn_module

ProbeKind = Literal["logistic", "centroid"]
TOLERANCE = 1e-3  # of the logistic probe's optimiser
CELLS = 1 << 22  # numbers of a table in memory at a time; with their copies, about 150 MB
_MAX_STEPS = 200  # of the logistic probe's optimiser


def row_blocks(rows: Ints, cells: int) -> Iterator[Ints]:
    """Yield as many rows at a time as fit in memory, if a row has `cells` numbers."""
    step = max(1, CELLS // cells)
    return (rows[i : i + step] for i in range(0, len(rows), step))


@dataclass(frozen=True)
class Scaler:
    """Standardises columns: subtracts their mean and divides by their standard deviation.

    Sparse columns are only divided, so that their zeros stay zeros. A feature that is not scaled has a mean of 0.0 and
    a spread of 1.0.

    Attributes:
        mean: means over the training rows `[column]`, or 0.0.
        spread: standard deviations over the training rows `[column]`, or 1.0.
    """

    mean: Any
    spread: Any

    @classmethod
    def fit(cls, feature: Feature, rows: Ints) -> Scaler:
        """Compute mean and spread over the training rows."""
        if not feature.scaled:
            return cls(0.0, 1.0)
        total, squares = np.zeros(feature.width), np.zeros(feature.width)
        for part in row_blocks(rows, feature.cells):
            values = feature.block(part).astype(np.float64)
            dense = isinstance(values, np.ndarray)
            total += np.asarray(values.sum(0)).ravel()
            squares += np.asarray((values**2 if dense else values.power(2)).sum(0)).ravel()
        mean = total / len(rows)
        spread = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
        return cls(mean if dense else 0.0, np.where(spread > 1e-9, spread, 1))

    def __call__(self, values: Any) -> Any:
        """Return the scaled values `[row, column]`."""
        if isinstance(self.spread, float):
            return values
        if isinstance(self.mean, float):
            return values.multiply(1 / self.spread).tocsr()
        return (values - self.mean) / self.spread


def fit_probe(kind: ProbeKind, feature: Feature, rows: Ints, y: Ints, n_classes: int) -> Callable[[Ints], Floats]:
    """Train a probe.

    Args:
        kind: "logistic" or "centroid".
        feature: what the probe reads.
        rows: the training rows.
        y: class of every row of the recording `[token]`.
        n_classes: number of classes. Classes that the training rows lack get a Laplace share of the probability, so
            that every code length is finite.

    Returns:
        A function from rows to log-probabilities (for centroids: scores) `[row, class]`.
    """
    scaler = Scaler.fit(feature, rows)
    present = np.unique(y[rows])
    score: Callable[[Any], Any]
    if kind == "centroid":
        score = _fit_centroids(feature, scaler, rows, y, present)
    elif len(present) == 1:
        score = _zeros
    elif len(rows) * feature.cells <= CELLS:
        whole = sklearn_module("sklearn.linear_model").LogisticRegression(max_iter=_MAX_STEPS, tol=TOLERANCE)
        score = whole.fit(scaler(feature.block(rows)), y[rows]).predict_log_proba
    else:
        score = _fit_logistic(feature, scaler, rows, y, present)
    share = n_classes / (len(rows) + n_classes)

    def predict(wanted: Ints) -> Floats:
        scores = np.full((len(wanted), n_classes), -np.inf)
        scores[:, present] = score(scaler(feature.block(wanted)))
        if kind == "centroid":
            return scores
        return np.asarray(np.log((1 - share) * np.exp(scores) + share / n_classes))

    return predict


def _zeros(x: Any) -> Floats:
    """Return the log-probability of the only class `[row, 1]`."""
    return np.zeros((x.shape[0], 1))


def _fit_logistic(feature: Feature, scaler: Scaler, rows: Ints, y: Ints, present: Ints) -> Callable[[Any], Any]:
    """Minimise the loss of scikit-learn's `LogisticRegression` by the same L-BFGS, with gradients summed over blocks.

    Stochastic gradient descent would need fewer passes, but its probabilities are not accurate enough for a code
    length.
    """
    log_softmax, n = sklearn_module("scipy.special").log_softmax, len(rows)
    shape = (feature.width + 1, len(present))  # the last row: intercepts
    # Two classes share one vector of weights in scikit-learn; two vectors that differ by it weigh half as much.
    penalty = 2 if len(present) == 2 else 1

    def log_p(w: Floats, x: Any) -> Any:
        return log_softmax(x @ w[:-1] + w[-1], axis=1)

    def loss(flat: Floats) -> tuple[float, Floats]:
        w, gradient = flat.reshape(shape), np.zeros(shape)
        gradient[:-1] = penalty * w[:-1]
        total = penalty * (w[:-1] ** 2).sum() / 2
        for part in row_blocks(rows, feature.cells + len(present)):
            x, own = scaler(feature.block(part)), (np.arange(len(part)), np.searchsorted(present, y[part]))
            log_probabilities = log_p(w, x)
            total -= log_probabilities[own].sum()
            excess = np.exp(log_probabilities)
            excess[own] -= 1
            gradient[:-1] += x.T @ excess
            gradient[-1] += excess.sum(0)
        return total / n, gradient.ravel() / n

    minimize = sklearn_module("scipy.optimize").minimize
    options = {"maxiter": _MAX_STEPS, "gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    best = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options).x
    return partial(log_p, best.reshape(shape))


def _fit_centroids(feature: Feature, scaler: Scaler, rows: Ints, y: Ints, present: Ints) -> Callable[[Any], Any]:
    """Return a function to the scores of the classes, the highest for the nearest centroid `[row, class]`."""
    sums = np.zeros((len(present), feature.width))
    for part in row_blocks(rows, feature.cells + len(present)):
        members = (y[part][None] == present[:, None]).astype(np.float64)  # [class, row]
        sums += np.asarray((scaler(feature.block(part)).T @ members.T).T)
    centroids = sums / np.bincount(np.searchsorted(present, y[rows]))[:, None]
    offset = (centroids**2).sum(1) / 2
    return lambda x: np.asarray(x @ centroids.T) - offset
