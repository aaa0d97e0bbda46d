"""How often each expert is chosen for the tokens of each label. Counts add up, so a corpus can be counted in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moelens.errors import CheckError, MoeLensError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Counts:
    """Tokens by layer, expert and label.

    >>> indices = np.array([[[0, 1]], [[0, 2]], [[0, 1]]])  # [token, layer, slot]
    >>> labels = np.array([[True], [False], [True]])  # [token, label]
    >>> counts = Counts.from_arrays(indices, labels, ["丁寧語"], n_experts=3, layers=[4])
    >>> counts.count[0, :, 0].tolist(), counts.share()[0, :, 0].tolist(), counts.lift()[0, :, 0].tolist()
    ([2, 2, 0], [1.0, 1.0, 0.0], [1.0, 1.5, 0.0])
    """

    count: Ints
    """Tokens of the label that the expert was chosen for, `[layer, expert, label]`."""
    expert_tokens: Ints
    """Tokens that the expert was chosen for, `[layer, expert]`; a layer sums to `top_k * n_tokens`."""
    label_tokens: Ints
    """Tokens of the label, `[label]`."""
    n_tokens: int
    names: tuple[str, ...]
    layers: tuple[int, ...]
    top_k: int

    @classmethod
    def from_arrays(
        cls, indices: NDArray[np.integer], labels: Bools, names: Sequence[str], n_experts: int, layers: Sequence[int]
    ) -> Counts:
        """Count expert ids `indices` `[token, layer, slot]` by `labels` `[token, label]`, layer by layer.

        Raises `CheckError` where the shapes do not agree or an expert id is out of range.
        """
        labels = np.asarray(labels, bool)
        check_arrays(indices, labels, names, n_experts, layers)
        everything = np.ones((len(labels), 1), bool)
        patterns, pattern = label_patterns(np.hstack([everything, labels]))
        table = np.stack(
            [count_layer(indices[:, i], pattern, patterns, n_experts) for i in range(len(layers))]
            or [np.zeros((n_experts, len(names) + 1))]
        ).astype(np.int64)
        return cls(
            count=table[:, :, 1:],
            expert_tokens=table[:, :, 0],
            label_tokens=labels.sum(0, dtype=np.int64),
            n_tokens=len(labels),
            names=tuple(names),
            layers=tuple(int(layer) for layer in layers),
            top_k=indices.shape[2],
        )

    @property
    def n_experts(self) -> int:
        return int(self.count.shape[1])

    def __add__(self, other: Counts) -> Counts:
        """The counts of both parts of a corpus. Raises `MoeLensError` unless both count the same things."""
        for what in ("names", "layers", "n_experts", "top_k"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise MoeLensError(f"counts with {what} {mine} and {theirs} do not add up; count both parts alike")
        return Counts(
            self.count + other.count,
            self.expert_tokens + other.expert_tokens,
            self.label_tokens + other.label_tokens,
            self.n_tokens + other.n_tokens,
            self.names,
            self.layers,
            self.top_k,
        )

    def load(self) -> Floats:
        """Relative load `[layer, expert]`: N_i / (k N) · E, 1 where the layer is evenly loaded.

        Its maximum less 1 is MaxVio of Wang et al. 2024, arXiv 2408.15664.
        """
        return divide(self.expert_tokens * self.n_experts, np.array(self.top_k * self.n_tokens))

    def share(self) -> Floats:
        """Share of a label's tokens that the expert takes `[layer, expert, label]`: N_{i,D} / N_D; chance is k / E.

        "Domain specialization", Muennighoff et al. 2024, arXiv 2409.02060, eq. 7. NaN for a label without tokens.
        """
        return divide(self.count, self.label_tokens)

    def lift(self) -> Floats:
        """`share` over the expert's share of all tokens `[layer, expert, label]`; 1 where the label changes nothing.

        NaN for a label without tokens and for an expert that was never chosen.
        """
        return divide(self.share(), divide(self.expert_tokens, np.array(self.n_tokens))[:, :, None])


def divide(a: NDArray[np.generic], b: NDArray[np.generic]) -> Floats:
    """a / b in float64, NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return np.asarray(np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0))


def check_arrays(
    indices: NDArray[np.integer], labels: Bools, names: Sequence[str], n_experts: int, layers: Sequence[int]
) -> None:
    """Raise `CheckError` unless routes, labels and names agree with each other and with the model's size."""
    if indices.ndim != 3 or indices.shape[1] != len(layers):
        raise CheckError(
            f"indices have shape {list(indices.shape)}; allowed: [token, layer, slot], {len(layers)} layers"
        )
    if labels.ndim != 2 or labels.shape != (len(indices), len(names)):
        raise CheckError(
            f"labels have shape {list(labels.shape)}; allowed: [{len(indices)} tokens, {len(names)} labels], "
            "label the recording again"
        )
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < n_experts:
        raise CheckError(
            f"expert ids run from {indices.min()} to {indices.max()}; allowed: 0 to {n_experts - 1}, "
            "pass the recording's own n_experts"
        )


def label_patterns(labels: Bools) -> tuple[Bools, Ints]:
    """The distinct rows of `labels` `[pattern, label]`, and which of them each token has `[token]`.

    Tokens share few combinations of labels, so counting combinations costs the same for one label and for twenty.
    """
    _, first, pattern = np.unique(np.packbits(labels, axis=1), axis=0, return_index=True, return_inverse=True)
    return labels[first], pattern.reshape(-1).astype(np.int64)


def count_layer(routes: NDArray[np.integer], pattern: Ints, patterns: Bools, n_experts: int) -> Floats:
    """Tokens by expert and label `[expert, label]` of one layer's `routes` `[token, slot]`."""
    cells = routes.astype(np.int64) * len(patterns) + pattern[:, None]
    by_pattern = np.bincount(cells.ravel(), minlength=n_experts * len(patterns)).reshape(n_experts, -1)
    return np.asarray(by_pattern.astype(float) @ patterns.astype(float))
