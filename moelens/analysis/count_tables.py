"""`CountTables`: numbers of tokens, or sums of gate weights, by layer, expert and label, and their ratios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Floats, divide
from moelens.analysis.counting import MAX_GROUPS, balanced
from moelens.analysis.wording import headline
from moelens.display import Plotted
from moelens.errors import MoeLensError, unknown
from moelens.saved import Saved, number_array
from moelens.texts import Texts

Numbers = NDArray[Any]
"""Numbers of tokens, as integers; or sums of weights and estimates of numbers, as floats."""
_TABLES = ("cells", "experts", "labels", "tokens")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CountTables(Plotted, Saved):
    """Numbers of tokens by group of documents, layer, expert and label.

    The statistics resample the groups, whose number bounds memory. For totals, read `count`, `expert_tokens`,
    `label_tokens` and `n_tokens`; `save` writes these totals, without the groups.

    Attributes:
        cells: tokens of the label for which the expert was chosen `[group, layer, expert, label]`.
        experts: tokens for which the expert was chosen `[group, layer, expert]`.
        labels: tokens of the label `[group, label]`.
        tokens: tokens `[group]`.
        names: names of the labels.
        layers: numbers of the layers in the model.
        top_k: experts chosen for each token.
        gates: sums of the gate weights of the tokens in `cells`, of the same shape; None where they are not known.
        mass: whether the tables hold sums of gate weights instead of numbers of tokens. A token then adds its weights,
            which sum to 1, where it would otherwise add 1 for each of its `top_k` experts.
        provenance: where the counts are from, as JSON values.
    """

    FORMAT: ClassVar[str] = "moelens.counts/1"

    cells: Numbers
    experts: Numbers
    labels: Numbers
    tokens: Numbers
    names: tuple[str, ...]
    layers: tuple[int, ...]
    top_k: int
    gates: Floats | None = None
    mass: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def count(self) -> Numbers:
        """Tokens of the label for which the expert was chosen `[layer, expert, label]`."""
        return _total(self.cells)

    @cached_property
    def expert_tokens(self) -> Numbers:
        """Tokens for which the expert was chosen `[layer, expert]`; each layer sums to `per_token * n_tokens`."""
        return _total(self.experts)

    @cached_property
    def label_tokens(self) -> Numbers:
        """Tokens of the label `[label]`."""
        return _total(self.labels)

    @property
    def n_tokens(self) -> int:
        """Number of tokens, rounded where it is an estimate."""
        return round(float(self.tokens.sum()))

    @property
    def n_experts(self) -> int:
        """Number of experts in each layer."""
        return int(self.cells.shape[2])

    @property
    def per_token(self) -> int:
        """What a token adds to a layer: `top_k`, or 1 where the tables hold sums of gate weights."""
        return 1 if self.mass else self.top_k

    @property
    def chance(self) -> float:
        """The share of a label that an expert gets by chance, `per_token / n_experts`."""
        return self.per_token / self.n_experts

    def __add__(self, other: Self) -> Self:
        """Join the counts of two parts of a corpus.

        The groups of both are kept in order; where there are more than 200, neighbouring groups are joined.

        Raises:
            MoeLensError: the two differ in labels, layers, number of experts or top-k.
        """
        for what in ("names", "layers", "n_experts", "top_k", "mass"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise MoeLensError(
                    f"expected counts with the same {what}, got {mine} and {theirs}; count both parts in the same way"
                )
        joined: dict[str, Any] = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _TABLES}
        known = self.gates is not None and other.gates is not None
        both = replace(self, gates=np.concatenate([self.gates, other.gates]) if known else None, **joined)
        return both if len(both.tokens) <= MAX_GROUPS else both.regrouped(MAX_GROUPS)

    def regrouped(self, groups: int) -> Self:
        """Return the same totals in at most `groups` groups, made of neighbours and of similar size in tokens.

        Args:
            groups: number of groups, 1 or more.
        """
        first = np.unique(balanced(self.tokens, groups), return_index=True)[1]
        tables: dict[str, Any] = {name: np.add.reduceat(getattr(self, name), first) for name in _TABLES}
        return replace(self, gates=None if self.gates is None else np.add.reduceat(self.gates, first), **tables)

    def load(self) -> Floats:
        """Return the relative load `[layer, expert]`: N_i / (k N) · E (arXiv 2408.15664).

        It is 1 for every expert of an evenly loaded layer.
        """
        return divide(self.expert_tokens * self.n_experts, np.array(self.per_token * self.tokens.sum()))

    def share(self, of: Literal["tokens", "choices"] = "tokens") -> Floats:
        """Return the share of a label's tokens that the expert takes `[layer, expert, label]`: N_{i,D} / N_D.

        By chance it is k / E, and a layer's shares sum to k. This is the "domain specialization" of Muennighoff et al.
        2024, arXiv 2409.02060, eq. 7. The share of the label's choices is N_{i,D} / (k N_D): by chance 1 / E, and a
        layer's shares sum to 1. For sums of gate weights both are the mean weight, and by chance 1 / E. NaN for a
        label without tokens.

        Args:
            of: "tokens" or "choices".

        Raises:
            UnknownNameError: `of` is something else.
        """
        if of not in ("tokens", "choices"):
            raise unknown("share", of, ("tokens", "choices"), "of=")
        return divide(self.count, self.label_tokens * (self.per_token if of == "choices" else 1))

    def lift(self) -> Floats:
        """Return `share` over the expert's share of all tokens `[layer, expert, label]`.

        It is 1 where expert and label are independent; NaN for a label without tokens and for an expert that was never
        chosen.
        """
        return divide(self.share(), divide(self.expert_tokens, self.tokens.sum())[:, :, None])

    def totals(self) -> dict[str, Any]:
        """Return everything but `count`, the names and the layers, as JSON values."""
        gates = None if self.gates is None else self.gates.sum(0).tolist()
        return {
            "expert_tokens": self.expert_tokens.tolist(),
            "label_tokens": self.label_tokens.tolist(),
            "n_tokens": self.tokens.sum().item(),
            "top_k": self.top_k,
            "gates": gates,
            "mass": self.mass,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def of_totals(
        cls, count: Numbers, names: tuple[str, ...], layers: tuple[int, ...], totals: Mapping[str, Any]
    ) -> Self:
        """Make counts of one group.

        Args:
            count: tokens of the label for which the expert was chosen `[layer, expert, label]`.
            names: names of the labels.
            layers: numbers of the layers in the model.
            totals: what the method `totals` returned.
        """
        gates = totals.get("gates")
        return cls(
            cells=count[None],
            experts=number_array(totals["expert_tokens"])[None],
            labels=number_array(totals["label_tokens"])[None],
            tokens=np.array([totals["n_tokens"]]),
            names=names,
            layers=layers,
            top_k=totals["top_k"],
            gates=None if gates is None else np.array(gates, float).reshape(count.shape)[None],
            mass=totals.get("mass", False),
            provenance=totals.get("provenance", {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the totals, without the groups, as JSON values."""
        axes = {"layers": list(self.layers), "names": list(self.names)}
        return {"format": self.FORMAT, **axes, "count": self.count.tolist(), "totals": self.totals()}

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        """Make the counts that `to_dict` described, as one group.

        Args:
            data: what `to_dict` returned.
        """
        count = number_array(data["count"]).reshape(len(data["layers"]), -1, len(data["names"]))
        return cls.of_totals(count, tuple(data["names"]), tuple(data["layers"]), data["totals"])

    def columns(self) -> dict[str, Numbers]:
        """Return count, share, lift and the load of the expert by name.

        Each is `[row]`, with a row for each layer, expert and label.
        """
        shape = self.count.shape
        layer, expert, label = np.indices(shape).reshape(3, -1)
        gates = {} if self.gates is None else {"gates": self.gates.sum(0).ravel()}
        return {
            "layer": np.array(self.layers)[layer],
            "expert": expert,
            "label": np.array(self.names)[label],
            "count": self.count.ravel(),
            **gates,
            "share": self.share().ravel(),
            "lift": self.lift().ravel(),
            "load": np.repeat(self.load().ravel(), shape[2]),
        }

    @property
    def headline(self) -> str:
        """Model, size and number of tokens."""
        return headline(self, Texts())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.headline} · {len(self.names)} labels)"


def _total(by_group: Numbers) -> Numbers:
    """Sum over groups: integers as int64, floats as float64."""
    return np.asarray(by_group.sum(0, dtype=float if by_group.dtype.kind == "f" else np.int64))
