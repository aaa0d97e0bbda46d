"""How often each expert is chosen for the tokens of each label. Counts add up, so a corpus can be counted in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.arrays import Bools, Floats, Ints, Routes, check_routes, divide
from moelens.analysis.counting import GROUPS, Kinds, balanced, distinct, document_bounds, in_parts, tabulate
from moelens.errors import CheckError, MoeLensError


@dataclass(frozen=True, eq=False)
class Counts:
    """Tokens by group of documents, layer, expert and label.

    Groups are what statistics resample; their number bounds memory, and whoever wants totals reads `count`,
    `expert_tokens`, `label_tokens` and `n_tokens`.

    >>> indices = np.array([[[0, 1]], [[0, 2]], [[0, 1]]])  # [token, layer, slot]
    >>> labels = np.array([[True], [False], [True]])  # [token, label]
    >>> counts = Counts.from_arrays(indices, labels, ["丁寧語"], n_experts=3, layers=[4])
    >>> counts.count[0, :, 0].tolist(), counts.share()[0, :, 0].tolist(), counts.lift()[0, :, 0].tolist()
    ([2, 2, 0], [1.0, 1.0, 0.0], [1.0, 1.5, 0.0])
    """

    cells: NDArray[np.integer]
    """Tokens of the label that the expert was chosen for, `[group, layer, expert, label]`."""
    experts: Ints
    """Tokens that the expert was chosen for, `[group, layer, expert]`."""
    labels: Ints
    """Tokens of the label, `[group, label]`."""
    tokens: Ints
    """Tokens, `[group]`."""
    names: tuple[str, ...]
    layers: tuple[int, ...]
    top_k: int

    @classmethod
    def from_arrays(
        cls,
        indices: Routes,
        labels: Bools,
        names: Sequence[str],
        n_experts: int,
        layers: Sequence[int],
        docs: ArrayLike | None = None,
        groups: int = GROUPS,
    ) -> Counts:
        """Count expert ids `indices` `[token, layer, slot]` by `labels` `[token, label]`.

        With `docs` `[token]` the counts are kept apart for at most `groups` groups of documents, which `+` keeps.
        Raises `CheckError` where the shapes do not agree or an expert id is out of range.

            data = np.load("esft_intent.npz")  # routing that somebody published
            Counts.from_arrays(data["expert_ids"], labels, names, 64, range(1, 27))
        """
        labels = np.asarray(labels, bool)
        check_routes(indices, n_experts, layers, labels, names)
        document = np.zeros(len(labels), np.int64) if docs is None else distinct(np.asarray(docs))[1]
        order, sizes = np.argsort(document, kind="stable"), np.bincount(document)
        kinds, kind = Kinds.of(labels[order])
        bounds = document_bounds(sizes, sizes, groups)
        tables = tabulate(in_parts(indices, order), kind, bounds, kinds, n_experts, len(layers))
        return cls(
            tables.cells,
            tables.experts,
            tables.kind_tokens @ kinds.labels,
            tables.kind_tokens.sum(1),
            tuple(names),
            tuple(map(int, layers)),
            indices.shape[2],
        )

    @classmethod
    def from_table(
        cls,
        count: ArrayLike,
        expert_tokens: ArrayLike,
        label_tokens: ArrayLike,
        names: Sequence[str],
        layers: Sequence[int],
        top_k: int,
    ) -> Counts:
        """Counts that someone else made: `count` `[layer, expert, label]`, `expert_tokens` `[layer, expert]`, of which
        each layer sums to `top_k` times the tokens, and `label_tokens` `[label]`.

        Raises `CheckError` for tables that contradict each other, or a layer without routes.

        >>> Counts.from_table([[[3], [1]]], [[6, 4]], [4], ["丁寧語"], layers=[0], top_k=1).lift().ravel().round(2)
        array([1.25, 0.62])
        """
        cells, experts, labels = (np.asarray(a, np.int64)[None] for a in (count, expert_tokens, label_tokens))
        wanted = (1, len(layers), experts.shape[-1], len(names))
        if cells.shape != wanted or experts.shape != wanted[:3] or labels.shape != (1, len(names)):
            raise CheckError(
                f"count, expert_tokens and label_tokens have shapes {list(cells.shape[1:])}, {list(experts.shape[1:])} "
                f"and {list(labels.shape[1:])}; allowed: [layer, expert, label], [layer, expert] and [label], with "
                f"{len(layers)} layers and {len(names)} labels"
            )
        sums = experts.sum(2)[0]
        if not sums.all():
            raise CheckError(f"layer {layers[int(np.argmin(sums))]} has no routes; leave it out of the counts")
        if (sums != sums[0]).any() or sums[0] % top_k or (cells > experts[..., None]).any():
            raise CheckError(
                f"expert_tokens sum to {', '.join(map(str, np.unique(sums)))} a layer; allowed: {top_k} times the "
                "tokens in every layer, and no count above its expert_tokens; pass the tables of one text"
            )
        return cls(cells, experts, labels, sums[:1] // top_k, tuple(names), tuple(map(int, layers)), top_k)

    @cached_property
    def count(self) -> Ints:
        """Tokens of the label that the expert was chosen for, `[layer, expert, label]`."""
        return np.asarray(self.cells.sum(0, dtype=np.int64))

    @cached_property
    def expert_tokens(self) -> Ints:
        """Tokens that the expert was chosen for, `[layer, expert]`; a layer sums to `top_k * n_tokens`."""
        return np.asarray(self.experts.sum(0, dtype=np.int64))

    @cached_property
    def label_tokens(self) -> Ints:
        """Tokens of the label, `[label]`."""
        return np.asarray(self.labels.sum(0, dtype=np.int64))

    @property
    def n_tokens(self) -> int:
        return int(self.tokens.sum())

    @property
    def n_experts(self) -> int:
        return int(self.cells.shape[2])

    def __add__(self, other: Counts) -> Counts:
        """The counts of both parts of a corpus, group after group; beyond 200, neighbours are put together.

        Raises `MoeLensError` unless both count the same things.
        """
        for what in ("names", "layers", "n_experts", "top_k"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise MoeLensError(f"counts with {what} {mine} and {theirs} do not add up; count both parts alike")
        both = replace(
            self,
            cells=np.concatenate([self.cells, other.cells]),
            experts=np.concatenate([self.experts, other.experts]),
            labels=np.concatenate([self.labels, other.labels]),
            tokens=np.concatenate([self.tokens, other.tokens]),
        )
        return both if len(both.tokens) <= GROUPS else both.regrouped(GROUPS)

    def regrouped(self, groups: int) -> Counts:
        """The same totals in at most `groups` groups of neighbours, of like size in tokens."""
        first = np.unique(balanced(self.tokens, groups), return_index=True)[1]
        return replace(
            self,
            cells=np.add.reduceat(self.cells, first),
            experts=np.add.reduceat(self.experts, first),
            labels=np.add.reduceat(self.labels, first),
            tokens=np.add.reduceat(self.tokens, first),
        )

    def load(self) -> Floats:
        """Relative load `[layer, expert]`: N_i / (k N) · E, 1 where the layer is evenly loaded (arXiv 2408.15664)."""
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
