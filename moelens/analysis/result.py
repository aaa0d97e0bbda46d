"""The result of a specialization analysis: which experts prefer which labels, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, Ints, divide
from moelens.analysis.counts import Counts
from moelens.analysis.tables import number, plain_table
from moelens.display import Plotted, find_view
from moelens.errors import unknown
from moelens.saved import SavedCells

ALPHA = 0.05
TESTS = ("p", "p_family", "q", "lift_given_token", "expected", "null_sd", "low", "high")

EFFECTS = ("lift", "share", "p", "p_family", "q", "lift_given_token", "lift_given", "low", "high", "left")


@dataclass(frozen=True)
class Finding:
    """One expert and one label. `layer` is the layer's number in the model."""

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
    left: float

    @property
    def significant(self) -> bool:
        """Whether the finding survives a correction for the number of cells, see `Specialization.significant`."""
        return self.q < ALPHA or self.p_family < ALPHA


@dataclass(frozen=True, eq=False, repr=False)
class Specialization(Plotted, SavedCells):
    """Experts and labels: effect sizes, a randomisation test over documents, and what token identity leaves.

    All arrays are `[layer, expert, label]` unless said otherwise; NaN means undefined or not tested.
    Labels and experts too rare to test keep their lift and share.

    >>> from moelens.analysis import specialization_from_arrays
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.random((600, 1)) < 0.2
    >>> indices = np.where(labels[:, :, None], 3, rng.integers(0, 8, (600, 1, 1)))  # expert 3 takes the label
    >>> result = specialization_from_arrays(indices, labels, ["尊敬語"], docs=np.arange(600) // 20,
    ...                                     token_ids=np.zeros(600, int), n_experts=8, layers=[2], permutations=99)
    >>> [(f.layer, f.expert, f.label, f.p_family) for f in result.top(1)]
    [(2, 3, '尊敬語', 0.01)]
    """

    FORMAT: ClassVar[str] = "moelens.specialization/2"

    counts: Counts
    p: Floats
    """Of the cell alone."""
    p_family: Floats
    """Of the cell among all tested cells (maximum statistic)."""
    q: Floats
    """False discovery rate over all tested cells (Benjamini–Hochberg)."""
    lift_given_token: Floats
    """Tokens of the label at the expert over the number expected from token ids alone; 1 = nothing left."""
    expected: Floats
    """The null mean: tokens of the label at the expert if labels were permuted within what is `given`."""
    null_sd: Floats
    """How much that varies between documents, at least as much as under permutation."""
    low: Floats
    high: Floats
    """95 % bootstrap interval of `lift_given`, over documents."""
    family: str = "labels"
    given: tuple[str, ...] = ()
    """What labels were compared within: nothing, "token", "position" or a family of labels."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def lift(self) -> Floats:
        """See `Counts.lift`: nothing controlled."""
        return self.counts.lift()

    @cached_property
    def lift_given(self) -> Floats:
        """Tokens of the label at the expert over those `expected`; `lift` where nothing is given."""
        return divide(self.count, np.where(self.expected > 1e-6, self.expected, 0))

    @cached_property
    def left(self) -> Floats:
        """Share of the excess over chance that is left when token identity is controlled.

        (count − expected) / (count − count / lift), where expected is given the token. Not bounded: below 0 the
        control turns the effect round, above 1 it uncovers it.
        """
        controlled = self.lift_given if "token" in self.given else self.lift_given_token
        return divide(self.count - divide(self.count, controlled), self.count - divide(self.count, self.lift))

    @property
    def null_band(self) -> tuple[Floats, Floats]:
        """Lower and upper end of the middle 95 % of `lift_given` under the null, by `null_sd`."""
        half = 1.96 * divide(self.null_sd, self.expected)
        return np.maximum(1 - half, 0), 1 + half

    @cached_property
    def share(self) -> Floats:
        """See `Counts.share`."""
        return self.counts.share()

    @cached_property
    def load(self) -> Floats:
        """Relative load `[layer, expert]`, see `Counts.load`."""
        return self.counts.load()

    @property
    def count(self) -> Ints:
        return self.counts.count

    @property
    def label_tokens(self) -> Ints:
        """Tokens of each label `[label]`."""
        return self.counts.label_tokens

    @property
    def names(self) -> tuple[str, ...]:
        return self.counts.names

    @property
    def layers(self) -> tuple[int, ...]:
        return self.counts.layers

    @property
    def n_experts(self) -> int:
        return self.counts.n_experts

    @property
    def n_tokens(self) -> int:
        return self.counts.n_tokens

    @property
    def top_k(self) -> int:
        return self.counts.top_k

    @property
    def significant(self) -> Bools:
        """Cells with q or family-wise p below .05.

        Either correction will do: q bounds the share of false ones among all findings, the family-wise p the chance of
        any false one.
        """
        return np.asarray((self.q < ALPHA) | (self.p_family < ALPHA))

    @property
    def too_rare(self) -> tuple[str, ...]:
        """Labels that were not tested, because too few tokens or documents have them."""
        return tuple(name for i, name in enumerate(self.names) if not np.isfinite(self.p[:, :, i]).any())

    @property
    def headline(self) -> str:
        """Model, size and tokens: the first words of every view."""
        model = self.provenance.get("model") or "model"
        layers = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}"
        return f"{model} · {layers} × {self.n_experts} experts, top-{self.top_k} · {self.n_tokens:,} tokens"

    @property
    def control(self) -> str:
        """The control that significance was judged by, in one phrase."""
        within = "within " + " × ".join(self.given) + ", " if self.given else ""
        return f"control: {within}{self.provenance.get('permutations', 'no')} permutations over documents"

    @property
    def token_control(self) -> str:
        """Whether labels were compared within token identity, in one phrase."""
        return "token identity " + ("controlled" if "token" in self.given else "not controlled")

    def label_index(self, label: str) -> int:
        """Position of `label` on the last axis. Raises `UnknownNameError`."""
        if label not in self.names:
            raise unknown("label", label, self.names, f"family {self.family!r}")
        return self.names.index(label)

    def explore(self) -> Any:
        """The live map with the card of the chosen expert; `moelens.explore` shows the recording's sentences too."""
        return find_view(type(self), "explore")(self)

    def top(self, n: int = 10, label: str | None = None) -> tuple[Finding, ...]:
        """The `n` strongest specialists (`lift_given` above 1): significant ones first, then by share beyond chance.

        Share beyond chance is (count − expected) / tokens of the label. By lift alone the first would be experts that
        are hardly used. Raises `UnknownNameError` for a label that the analysis does not have.
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
            **{name: float(getattr(self, name)[cell]) for name in EFFECTS},
        )

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        return {"layer": self.layers, "expert": tuple(range(self.n_experts)), "label": self.names}

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        return {"count": self.count} | {name: getattr(self, name) for name in TESTS}

    @property
    def facts(self) -> Mapping[str, Any]:
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
        kept = facts["counts"]
        counts = Counts(
            np.asarray(cells["count"], np.int64)[None],
            np.array(kept["expert_tokens"], np.int64)[None],
            np.array(kept["label_tokens"], np.int64)[None],
            np.array([kept["n_tokens"]]),
            axes["label"],
            axes["layer"],
            kept["top_k"],
        )
        return cls(
            counts,
            **{name: np.asarray(cells[name], float) for name in TESTS},
            family=facts["family"],
            given=tuple(facts["given"]),
            provenance=facts["provenance"],
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """One value for each layer, expert and label: counts, effects, tests, and `load` of the expert."""
        derived = {name: getattr(self, name).ravel() for name in ("share", "lift", "lift_given", "left", "significant")}
        return super().columns() | derived | {"load": np.repeat(self.load.ravel(), len(self.names))}

    def __repr__(self) -> str:
        return self.table()

    def table(self, n: int = 10, *, each: bool = False) -> str:
        """The `n` strongest specialists, of all labels or of each, as a plain table; a star marks what survives.

        "lift | …" is the lift within that; the interval is that of the lift before it; "left" is how much of the
        excess over chance remains within token identity.
        """
        tested = [name for name in self.names if name not in self.too_rare]
        findings = [f for name in tested for f in self.top(n, name)] if each else self.top(n)
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
                f"{number(f.low)}–{number(f.high)}",
                number(f.share),
                f"{f.count:,}",
                *map(number, (f.q, f.p_family)),
                *[number(f.lift_given_token) for _ in token],
                f"{100 * f.left:.0f} %" if np.isfinite(f.left) else number(f.left),
                "*" if f.significant else "",
            )
            for f in findings
        ]
        head = f"{self.headline} · specialists of {self.family} · {self.control} · {self.token_control}"
        lines = [head, plain_table((*header, *token, "left", ""), rows)]
        if self.too_rare:
            rare = (f"{name} ({self.label_tokens[self.label_index(name)]:,} tokens)" for name in self.too_rare)
            lines.append("too rare to test: " + ", ".join(rare))
        return "\n".join(lines)
