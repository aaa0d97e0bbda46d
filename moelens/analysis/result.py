"""`Specialization`: which experts prefer which labels, with effect sizes, intervals and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, Ints, divide
from moelens.analysis.counts import Counts
from moelens.analysis.randomize import ALPHA, limits_of_test
from moelens.analysis.tables import interval, number, plain_table
from moelens.display import Plotted, find_view
from moelens.errors import unknown
from moelens.saved import SavedCells

_TESTS = ("p", "p_family", "q", "lift_given_token", "expected", "null_sd", "low", "high")
_EFFECTS = ("lift", "share", "p", "p_family", "q", "lift_given_token", "lift_given", "low", "high", "excess_left")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One expert and one label; the values are those of `Specialization`, which documents them.

    Attributes:
        layer: number of the layer in the model.
        expert: number of the expert.
        label: name of the label.
        lift, share, count: see `Specialization`.
        p, p_family, q: see `Specialization`.
        lift_given_token, lift_given, low, high, excess_left: see `Specialization`.
    """

    layer: int
    expert: int
    label: str
    lift: float
    share: float
    count: int
    p: float
    p_family: float
    q: float
    lift_given_token: float
    lift_given: float
    low: float
    high: float
    excess_left: float

    @property
    def significant(self) -> bool:
        """Whether the finding is significant after correction, see `Specialization.significant`."""
        return self.q < ALPHA or self.p_family < ALPHA


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Specialization(Plotted, SavedCells):
    """Which experts prefer which labels: effect sizes, and a randomisation test over documents.

    All arrays are `[layer, expert, label]` unless said otherwise; NaN means undefined or not tested. Labels and experts
    that are too rare to test keep their lift and share.

    Attributes:
        counts: the counts, in one group.
        p: p of the cell alone.
        p_family: family-wise p of the cell among all tested cells (maximum statistic).
        q: false discovery rate over all tested cells (Benjamini–Hochberg).
        lift_given_token: tokens of the label at the expert over the number expected from the token ids alone; 1 means
            that token identity explains the lift.
        expected: mean under the null: tokens of the label at the expert if labels were permuted within `given`.
        null_sd: its standard deviation between documents, at least that under permutation.
        low, high: 95 % interval of `lift_given` over documents; NaN where there is none.
        family: family of labels.
        given: what labels were compared within: "token", "position", families of labels, columns of the corpus, or
            nothing.
        provenance: model, recording, labels and settings.

    Example:
        >>> from moelens.analysis import specialization_from_arrays
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.random((600, 1)) < 0.2
        >>> indices = np.where(labels[:, :, None], 3, rng.integers(0, 8, (600, 1, 1)))  # expert 3 takes the label
        >>> result = specialization_from_arrays(
        ...     indices, labels, ["尊敬語"], docs=np.arange(600) // 20, token_ids=np.zeros(600, int),
        ...     n_experts=8, layers=[2], permutations=99,
        ... )
        >>> [(f.layer, f.expert, f.label, f.p_family) for f in result.top(1)]
        [(2, 3, '尊敬語', 0.01)]
    """

    FORMAT: ClassVar[str] = "moelens.specialization/2"

    counts: Counts
    p: Floats
    p_family: Floats
    q: Floats
    lift_given_token: Floats
    expected: Floats
    null_sd: Floats
    low: Floats
    high: Floats
    family: str = "labels"
    given: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def lift(self) -> Floats:
        """The lift without any control, see `Counts.lift`."""
        return self.counts.lift()

    @cached_property
    def lift_given(self) -> Floats:
        """Tokens of the label at the expert over those `expected`; the same as `lift` if nothing is given."""
        return divide(self.count, np.where(self.expected > 1e-6, self.expected, 0))

    @cached_property
    def excess_left(self) -> Floats:
        """Share of the excess over chance that remains when token identity is controlled.

        (count − expected) / (count − count / lift), where `expected` is that given the token. The share is not bounded:
        below 0 the effect given the token has the opposite direction, above 1 it is larger than without the control.
        """
        controlled = self.lift_given if "token" in self.given else self.lift_given_token
        return divide(self.count - divide(self.count, controlled), self.count - divide(self.count, self.lift))

    @property
    def null_band(self) -> tuple[Floats, Floats]:
        """Lower and upper end of the middle 95 % of `lift_given` under the null, from `null_sd`."""
        half = 1.96 * divide(self.null_sd, self.expected)
        return np.maximum(1 - half, 0), 1 + half

    @cached_property
    def share(self) -> Floats:
        """Share of the label's tokens that the expert takes, see `Counts.share`."""
        return self.counts.share()

    @cached_property
    def load(self) -> Floats:
        """Relative load `[layer, expert]`, see `Counts.load`."""
        return self.counts.load()

    @property
    def count(self) -> Ints:
        """Tokens of the label at the expert."""
        return self.counts.count

    @property
    def label_tokens(self) -> Ints:
        """Tokens of each label `[label]`."""
        return self.counts.label_tokens

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.counts.names

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers in the model."""
        return self.counts.layers

    @property
    def n_experts(self) -> int:
        """Number of experts in each layer."""
        return self.counts.n_experts

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return self.counts.n_tokens

    @property
    def top_k(self) -> int:
        """Number of experts chosen for each token."""
        return self.counts.top_k

    @property
    def significant(self) -> Bools:
        """Cells with q or family-wise p below .05.

        Either correction is enough: q bounds the share of false findings among all findings, the family-wise p bounds
        the probability of any false finding.
        """
        return np.asarray((self.q < ALPHA) | (self.p_family < ALPHA))

    @property
    def too_rare(self) -> tuple[str, ...]:
        """Labels that were not tested because too few tokens or documents have them."""
        return tuple(name for i, name in enumerate(self.names) if not np.isfinite(self.p[:, :, i]).any())

    @property
    def headline(self) -> str:
        """Model, size and number of tokens; every view begins with it."""
        model = self.provenance.get("model") or "model"
        layers = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}"
        return f"{model} · {layers} × {self.n_experts} experts, top-{self.top_k} · {self.n_tokens:,} tokens"

    @property
    def control(self) -> str:
        """The control of the test, in one phrase."""
        within = "within " + " × ".join(self.given) + ", " if self.given else ""
        return f"control: {within}{self.provenance.get('permutations', 'no')} permutations over documents"

    @property
    def token_control(self) -> str:
        """Whether token identity is controlled, in one phrase."""
        return "token identity " + ("controlled" if "token" in self.given else "not controlled")

    @property
    def limits(self) -> tuple[str, ...]:
        """What the test cannot show: for few documents, shortened ones, and labels that token identity explains."""
        about, lines = self.provenance, []
        above = self.significant & (self.lift > 1)
        if "effective_documents" in about:
            lines.append(limits_of_test(about["effective_documents"], about["permutations"]))
        if about.get("shortened_documents"):
            lines.append(
                f"{about['tokens_cut']:,} tokens of {about['shortened_documents']:,} long documents are not counted, "
                f"since a document may have {about['max_share']:.0%} of the tokens, see max_share"
            )
        explained = int((above & (self.excess_left < 0.5)).sum())
        if explained and "token" not in self.given:
            lines.append(
                f"{explained:,} of {int(above.sum()):,} significant experts above chance have less than half of their "
                'excess within tokens: test them with given="token"'
            )
        return tuple(lines)

    def label_index(self, label: str) -> int:
        """Return the position of `label` on the last axis.

        Raises:
            UnknownNameError: there is no such label.
        """
        if label not in self.names:
            raise unknown("label", label, self.names, f"family {self.family!r}")
        return self.names.index(label)

    def explore(self) -> Any:
        """Show the live map with a card for the selected expert; `moelens.explore` also shows sentences."""
        return find_view(type(self), "explore")(self)

    def top(self, n: int = 10, label: str | None = None) -> tuple[Finding, ...]:
        """Return the strongest specialists: cells with `lift_given` above 1, significant ones first.

        Within each, they are ordered by the share beyond chance, (count − expected) / tokens of the label. By lift
        alone, experts that are hardly used would come first.

        Args:
            n: number of findings.
            label: only findings of this label; None for all labels.

        Raises:
            UnknownNameError: there is no such label.
        """
        beyond = divide(self.count - self.expected, self.label_tokens)
        wanted = beyond > 1e-6
        if label is not None:
            wanted &= np.arange(len(self.names)) == self.label_index(label)
        cells = np.argwhere(wanted)
        order = np.lexsort((-beyond[wanted], np.isnan(self.p[wanted]), ~self.significant[wanted]))
        return tuple(self._finding(*map(int, cells[i])) for i in order[:n])

    def _finding(self, layer: int, expert: int, label: int) -> Finding:
        cell = layer, expert, label
        return Finding(
            layer=self.layers[layer],
            expert=expert,
            label=self.names[label],
            count=int(self.count[cell]),
            **{name: float(getattr(self, name)[cell]) for name in _EFFECTS},
        )

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """The axes in order, with the name of each place on them."""
        return {"layer": self.layers, "expert": tuple(range(self.n_experts)), "label": self.names}

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        """Counts and tests, by name."""
        return {"count": self.count} | {name: getattr(self, name) for name in _TESTS}

    @property
    def facts(self) -> Mapping[str, Any]:
        """Totals, family, control and provenance, as JSON values."""
        counts = {
            "expert_tokens": self.counts.expert_tokens.tolist(),
            "label_tokens": self.label_tokens.tolist(),
            "n_tokens": self.n_tokens,
            "top_k": self.top_k,
        }
        about = {"family": self.family, "given": list(self.given), "provenance": dict(self.provenance)}
        return about | {"counts": counts}

    @classmethod
    def build(
        cls, axes: Mapping[str, Any], cells: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]
    ) -> Specialization:
        """Make the result that has these axes, cells and facts."""
        totals = facts["counts"]
        counts = Counts(
            cells=np.asarray(cells["count"], np.int64)[None],
            experts=np.array(totals["expert_tokens"], np.int64)[None],
            labels=np.array(totals["label_tokens"], np.int64)[None],
            tokens=np.array([totals["n_tokens"]]),
            names=axes["label"],
            layers=axes["layer"],
            top_k=totals["top_k"],
        )
        return cls(
            counts=counts,
            **{name: np.asarray(cells[name], float) for name in _TESTS},
            family=facts["family"],
            given=tuple(facts["given"]),
            provenance=facts["provenance"],
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return one value for each layer, expert and label: counts, effects, tests, and the `load` of the expert."""
        names = ("share", "lift", "lift_given", "excess_left", "significant")
        derived = {name: getattr(self, name).ravel() for name in names}
        return super().columns() | derived | {"load": np.repeat(self.load.ravel(), len(self.names))}

    def __repr__(self) -> str:
        return self.table()

    def table(self, n: int = 10, *, each: bool = False) -> str:
        """Return the strongest specialists as a plain table; a star marks significant ones.

        The column "lift | …" is the lift within the given controls; the interval is that of the lift to its left.
        "left" is `excess_left`.

        Args:
            n: number of findings.
            each: `n` findings of each label that was tested, instead of `n` findings of all labels.
        """
        tested = [name for name in self.names if name not in self.too_rare]
        findings = [f for name in tested for f in self.top(n, name)] if each else self.top(n)
        head = f"{self.headline} · specialists of {self.family} · {self.control} · {self.token_control}"
        lines = [head, self._findings_table(findings)]
        if self.too_rare:
            rare = (f"{name} ({self.label_tokens[self.label_index(name)]:,} tokens)" for name in self.too_rare)
            lines.append("too rare to test: " + ", ".join(rare))
        lines.extend(self.limits)
        return "\n".join(lines)

    def _findings_table(self, findings: tuple[Finding, ...] | list[Finding]) -> str:
        given = [f"lift | {' + '.join(self.given)}"] if self.given else []
        token = ["lift | token"] if self.given != ("token",) else []
        header = ("layer", "expert", "label", "lift", *given, "95 % interval", "share", "tokens", "q", "p family")
        rows = [
            (
                f"L{f.layer}",
                f"E{f.expert}",
                f.label,
                number(f.lift),
                *[number(f.lift_given) for _ in given],
                interval(f.low, f.high),
                number(f.share),
                f"{f.count:,}",
                *map(number, (f.q, f.p_family)),
                *[number(f.lift_given_token) for _ in token],
                f"{100 * f.excess_left:.0f} %" if np.isfinite(f.excess_left) else number(f.excess_left),
                "*" if f.significant else "",
            )
            for f in findings
        ]
        return plain_table((*header, *token, "left", ""), rows)
