"""`Counts`: how often each expert is chosen for the tokens of each label. Counts of parts of a corpus add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.arrays import Bools, Floats, Ints, Routes, check_routes, divide
from moelens.analysis.counting import MAX_GROUPS, TokenKinds, balanced, distinct, document_bounds, in_parts, tabulate
from moelens.errors import CheckError, MoeLensError, unknown


@dataclass(frozen=True, eq=False, kw_only=True)
class Counts:
    """Numbers of tokens by group of documents, layer, expert and label.

    The statistics resample the groups, whose number bounds memory. For totals, read `count`, `expert_tokens`,
    `label_tokens` and `n_tokens`.

    Attributes:
        cells: tokens of the label for which the expert was chosen `[group, layer, expert, label]`.
        experts: tokens for which the expert was chosen `[group, layer, expert]`.
        labels: tokens of the label `[group, label]`.
        tokens: tokens `[group]`.
        names: names of the labels.
        layers: numbers of the layers in the model.
        top_k: experts chosen for each token.

    Example:
        >>> indices = np.array([[[0, 1]], [[0, 2]], [[0, 1]]])  # [token, layer, slot]
        >>> labels = np.array([[True], [False], [True]])  # [token, label]
        >>> counts = Counts.from_arrays(indices, labels, ["丁寧語"], n_experts=3, layers=[4])
        >>> counts.count[0, :, 0].tolist(), counts.share()[0, :, 0].tolist(), counts.lift()[0, :, 0].tolist()
        ([2, 2, 0], [1.0, 1.0, 0.0], [1.0, 1.5, 0.0])
    """

    cells: NDArray[np.integer]
    experts: Ints
    labels: Ints
    tokens: Ints
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
        groups: int = MAX_GROUPS,
    ) -> Counts:
        """Count expert ids by label.

        Args:
            indices: expert ids `[token, layer, slot]`.
            labels: bool `[token, label]`.
            names: names of the labels.
            n_experts: number of experts in each layer.
            layers: numbers of the layers in the model.
            docs: document of each token `[token]`; None counts all tokens as one document.
            groups: the largest number of groups of documents that are counted separately; `+` keeps the groups.

        Returns:
            The counts.

        Raises:
            CheckError: the shapes do not agree, or an expert id is out of range.

        Example:
            >>> data = np.load("esft_intent.npz")  # published routing  # doctest: +SKIP
            >>> Counts.from_arrays(data["expert_ids"], labels, names, 64, range(1, 27))  # doctest: +SKIP
        """
        labels = np.asarray(labels, bool)
        check_routes(indices, n_experts, layers, labels, names)
        document = np.zeros(len(labels), np.int64) if docs is None else distinct(np.asarray(docs))[1]
        order, sizes = np.argsort(document, kind="stable"), np.bincount(document)
        kinds, kind = TokenKinds.of(labels[order])
        bounds = document_bounds(sizes, sizes, groups)
        tables = tabulate(in_parts(indices, order), kind, bounds, kinds, n_experts, len(layers))
        return cls(
            cells=tables.cells,
            experts=tables.experts,
            labels=tables.kind_tokens @ kinds.labels,
            tokens=tables.kind_tokens.sum(1),
            names=tuple(names),
            layers=tuple(map(int, layers)),
            top_k=indices.shape[2],
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
        """Make `Counts` from tables that were counted elsewhere, as a single group.

        For counts by token type, the token types are the labels: `share` is then the vocabulary specialization of
        Muennighoff et al. 2024, arXiv 2409.02060, eq. 8. For counts between layers, see `flow_shares`.

        Args:
            count: tokens of the label for which the expert was chosen `[layer, expert, label]`.
            expert_tokens: tokens for which the expert was chosen `[layer, expert]`; each layer sums to `top_k` times
                the number of tokens.
            label_tokens: tokens of the label `[label]`.
            names: names of the labels.
            layers: numbers of the layers in the model.
            top_k: experts chosen for each token.

        Raises:
            CheckError: the tables contradict each other, or a layer has no routes.

        Example:
            >>> counts = Counts.from_table([[[3], [1]]], [[6, 4]], [4], ["丁寧語"], layers=[0], top_k=1)
            >>> counts.lift().ravel().round(2)
            array([1.25, 0.62])
        """
        cells, experts, labels = (np.asarray(a, np.int64)[None] for a in (count, expert_tokens, label_tokens))
        wanted = (1, len(layers), experts.shape[-1], len(names))
        if cells.shape != wanted or experts.shape != wanted[:3] or labels.shape != (1, len(names)):
            raise CheckError(
                f"expected count [layer, expert, label], expert_tokens [layer, expert] and label_tokens [label] with "
                f"{len(layers)} layers and {len(names)} labels, got shapes {list(cells.shape[1:])}, "
                f"{list(experts.shape[1:])} and {list(labels.shape[1:])}; give tables of the same layers and labels"
            )
        sums = experts.sum(2)[0]
        if not sums.all():
            raise CheckError(
                f"expected expert_tokens in every layer, got none in layer {layers[int(np.argmin(sums))]}; "
                "leave this layer out of the tables"
            )
        if (sums != sums[0]).any() or sums[0] % top_k or (cells > experts[..., None]).any():
            raise CheckError(
                f"expected expert_tokens that sum to {top_k} times the tokens in every layer, and no count above its "
                f"expert_tokens, got sums of {', '.join(map(str, np.unique(sums)))}; pass tables of the same text"
            )
        return cls(
            cells=cells,
            experts=experts,
            labels=labels,
            tokens=sums[:1] // top_k,
            names=tuple(names),
            layers=tuple(map(int, layers)),
            top_k=top_k,
        )

    @cached_property
    def count(self) -> Ints:
        """Tokens of the label for which the expert was chosen `[layer, expert, label]`."""
        return np.asarray(self.cells.sum(0, dtype=np.int64))

    @cached_property
    def expert_tokens(self) -> Ints:
        """Tokens for which the expert was chosen `[layer, expert]`; each layer sums to `top_k * n_tokens`."""
        return np.asarray(self.experts.sum(0, dtype=np.int64))

    @cached_property
    def label_tokens(self) -> Ints:
        """Tokens of the label `[label]`."""
        return np.asarray(self.labels.sum(0, dtype=np.int64))

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return int(self.tokens.sum())

    @property
    def n_experts(self) -> int:
        """Number of experts in each layer."""
        return int(self.cells.shape[2])

    def __add__(self, other: Counts) -> Counts:
        """Join the counts of two parts of a corpus.

        The groups of both are kept in order; where there are more than 200, neighbouring groups are joined.

        Raises:
            MoeLensError: the two differ in labels, layers, number of experts or top-k.
        """
        for what in ("names", "layers", "n_experts", "top_k"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise MoeLensError(
                    f"expected counts with the same {what}, got {mine} and {theirs}; count both parts in the same way"
                )
        both = replace(
            self,
            cells=np.concatenate([self.cells, other.cells]),
            experts=np.concatenate([self.experts, other.experts]),
            labels=np.concatenate([self.labels, other.labels]),
            tokens=np.concatenate([self.tokens, other.tokens]),
        )
        return both if len(both.tokens) <= MAX_GROUPS else both.regrouped(MAX_GROUPS)

    def regrouped(self, groups: int) -> Counts:
        """Return the same totals in at most `groups` groups, made of neighbours and of similar size in tokens."""
        first = np.unique(balanced(self.tokens, groups), return_index=True)[1]
        return replace(
            self,
            cells=np.add.reduceat(self.cells, first),
            experts=np.add.reduceat(self.experts, first),
            labels=np.add.reduceat(self.labels, first),
            tokens=np.add.reduceat(self.tokens, first),
        )

    def load(self) -> Floats:
        """Return the relative load `[layer, expert]`: N_i / (k N) · E (arXiv 2408.15664).

        It is 1 for every expert of an evenly loaded layer.
        """
        return divide(self.expert_tokens * self.n_experts, np.array(self.top_k * self.n_tokens))

    def share(self, of: Literal["tokens", "choices"] = "tokens") -> Floats:
        """Return the share of a label's tokens that the expert takes `[layer, expert, label]`: N_{i,D} / N_D.

        By chance it is k / E, and a layer's shares sum to k. The share of the label's choices is N_{i,D} / (k N_D): by
        chance 1 / E, and a layer's shares sum to 1. The first is the "domain specialization" of Muennighoff et al.
        2024, arXiv 2409.02060, eq. 7.
        NaN for a label without tokens.
        """
        if of not in ("tokens", "choices"):
            raise unknown("share", of, ("tokens", "choices"), "of=")
        return divide(self.count, self.label_tokens * (self.top_k if of == "choices" else 1))

    def lift(self) -> Floats:
        """Return `share` over the expert's share of all tokens `[layer, expert, label]`.

        It is 1 where expert and label are independent; NaN for a label without tokens and for an expert that was never
        chosen.
        """
        return divide(self.share(), divide(self.expert_tokens, np.array(self.n_tokens))[:, :, None])
