"""`Specialization`: which experts prefer which labels, with effect sizes, intervals and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from moelens.analysis import wording
from moelens.analysis.arrays import Bools, Floats, divide
from moelens.analysis.count_tables import CountTables, Numbers
from moelens.analysis.randomize import ALPHA
from moelens.analysis.tables import interval, number, percent, plain_table
from moelens.display import Plotted, find_view
from moelens.japanese.families import require_name
from moelens.saved import SavedCells
from moelens.texts import Texts

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
        exact: see `Specialization`; None if the result has no bounds.
        certain: see `Specialization`.
    """

    layer: int
    expert: int
    label: str
    lift: float
    share: float
    count: float
    p: float
    p_family: float
    q: float
    lift_given_token: float
    lift_given: float
    low: float
    high: float
    excess_left: float
    exact: float | None
    certain: bool

    @property
    def significant(self) -> bool:
        """Whether the finding is significant after correction, see `Specialization.significant`."""
        return self.q < ALPHA or self.p_family < ALPHA


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Specialization(Plotted, SavedCells):
    """Which experts prefer which labels: effect sizes, and a randomisation test over documents.

    All arrays are `[layer, expert, label]` unless said otherwise; NaN means undefined or not tested. Labels and experts
    that are too rare to test keep their lift and share.

    A result of published counts has effect sizes only (`Counts.specialization`), or effect sizes with bounds
    (`Counts.from_types`): `evidence` says which. The tests need documents, which counts do not have.

    Attributes:
        counts: the counts, in one group.
        p: p of the cell alone.
        p_family: family-wise p of the cell among all tested cells (maximum statistic).
        q: false discovery rate over all tested cells (Benjamini–Hochberg).
        lift_given_token: tokens of the label at the expert over the number expected from the token ids alone; 1 means
            that token identity explains the lift.
        expected: mean under the null: tokens of the label at the expert if labels were permuted within `given`.
        null_sd: its standard deviation between documents, at least that under permutation.
        low, high: 95 % interval of `lift_given` over documents, NaN where there is none; or its sharp bounds.
        exact: share of `count` that is known exactly, where counts are known by token type only; None otherwise.
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

    counts: CountTables
    p: Floats
    p_family: Floats
    q: Floats
    lift_given_token: Floats
    expected: Floats
    null_sd: Floats
    low: Floats
    high: Floats
    exact: Floats | None = None
    family: str = "labels"
    given: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_counts(
        cls,
        counts: CountTables,
        family: str,
        reason: str,
        bounds: tuple[Floats, Floats] | None = None,
        exact: Floats | None = None,
    ) -> Specialization:
        """Make a result without tests.

        Args:
            counts: the counts.
            family: family of labels.
            reason: a sentence that says why nothing was tested.
            bounds: the lower and the upper bound of the lift, `[layer, expert, label]`.
            exact: see the attribute.
        """
        unknown = np.full(counts.count.shape, np.nan)
        low, high = bounds or (unknown, unknown)
        tests = dict.fromkeys(_TESTS, unknown) | {"low": low, "high": high}
        tests["expected"] = counts.expert_tokens[:, :, None] * counts.label_tokens / counts.tokens.sum()
        about = {**counts.provenance, "untested": reason}
        return cls(counts=counts.regrouped(1), exact=exact, family=family, provenance=about, **tests)

    @property
    def evidence(self) -> Literal["test", "bounds", "none"]:
        """What speaks for a finding besides its size: a test over documents, sharp bounds, or nothing."""
        if self.exact is not None:
            return "bounds"
        return "none" if self.provenance.get("untested") else "test"

    @cached_property
    def lift(self) -> Floats:
        """The lift without any control `[layer, expert, label]`, see `Counts.lift`."""
        return self.counts.lift()

    @cached_property
    def lift_given(self) -> Floats:
        """Tokens of the label at the expert over those `expected`, `[layer, expert, label]`.

        The same as `lift` if nothing is given.
        """
        return divide(self.count, np.where(self.expected > 1e-6, self.expected, 0))

    @cached_property
    def excess_left(self) -> Floats:
        """Share of the excess over chance that remains when token identity is controlled, `[layer, expert, label]`.

        (count − expected) / (count − count / lift), where `expected` is that given the token. The share is not bounded:
        below 0 the effect given the token has the opposite direction, above 1 it is larger than without the control.
        """
        controlled = self.lift_given if "token" in self.given else self.lift_given_token
        return divide(self.count - divide(self.count, controlled), self.count - divide(self.count, self.lift))

    @property
    def null_band(self) -> tuple[Floats, Floats]:
        """Lower and upper end of the middle 95 % of `lift_given` under the null, each `[layer, expert, label]`.

        They follow from `null_sd`.
        """
        half = 1.96 * divide(self.null_sd, self.expected)
        return np.maximum(1 - half, 0), 1 + half

    @cached_property
    def share(self) -> Floats:
        """Share of the label's tokens that the expert takes `[layer, expert, label]`, see `Counts.share`."""
        return self.counts.share()

    @cached_property
    def load(self) -> Floats:
        """Relative load `[layer, expert]`, see `Counts.load`."""
        return self.counts.load()

    @property
    def count(self) -> Numbers:
        """Tokens of the label at the expert `[layer, expert, label]`."""
        return self.counts.count

    @property
    def label_tokens(self) -> Numbers:
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
        """Cells with q or family-wise p below .05, bool `[layer, expert, label]`.

        Either correction is enough: q bounds the share of false findings among all findings, the family-wise p bounds
        the probability of any false finding.
        """
        return np.asarray((self.q < ALPHA) | (self.p_family < ALPHA))

    @property
    def certain(self) -> Bools:
        """Cells that views show in colour, bool `[layer, expert, label]`.

        Significant ones, or those whose bounds exclude 1; all cells without tests and bounds.
        """
        if self.evidence == "test":
            return self.significant
        return np.asarray((self.low > 1) | (self.high < 1)) if self.evidence == "bounds" else np.isfinite(self.lift)

    @property
    def too_rare(self) -> tuple[str, ...]:
        """Labels without a test because too few tokens or documents have them; without any test, those of no token."""
        rare = np.asarray(~np.isfinite(self.p).any((0, 1)) if self.evidence == "test" else self.label_tokens == 0)
        return tuple(name for name, is_rare in zip(self.names, rare, strict=True) if is_rare)

    def why_untested(self, label: str) -> str:
        """Return why a label of `too_rare` was not tested, in one phrase.

        Args:
            label: a label of `too_rare`.
        """
        return wording.why_untested(self, label, Texts())

    @property
    def headline(self) -> str:
        """Model, size and number of tokens; every view begins with it."""
        return wording.result_headline(self, Texts())

    @property
    def control(self) -> str:
        """The control of the test, in one phrase; or that there is none."""
        return wording.control(self, Texts())

    @property
    def token_control(self) -> str:
        """Whether token identity is controlled, in one phrase."""
        return wording.token_control(self, Texts())

    @property
    def limits(self) -> tuple[str, ...]:
        """What the test cannot show: for few documents, shortened ones, and labels that token identity explains."""
        return wording.limits(self, Texts())

    def label_index(self, label: str) -> int:
        """Return the position of `label`, or of the label with this romanised or English name, on the last axis.

        Args:
            label: a label, or its romanised or English name.

        Raises:
            UnknownNameError: there is no such label.
        """
        return self.names.index(require_name(label, self.names, f"family {self.family!r}"))

    def explore(self) -> Any:
        """Show the live map with a card for the selected expert; `moelens.explore` also shows sentences."""
        return find_view(type(self), "explore")(self)

    def save_html(self, path: str | Path) -> Path:
        """Write the live map with the cards of experts to one self-contained HTML file.

        Args:
            path: file to write.

        Returns:
            The path.

        Example:
            >>> result = moelens.analyze(demo_recording, permutations=20, progress=False)
            >>> result.save_html("map.html")  # doctest: +SKIP
            PosixPath('map.html')
        """
        written: Path = self.explore().save_html(path)
        return written

    def top(self, n: int = 10, label: str | None = None) -> tuple[Finding, ...]:
        """Return the strongest specialists: cells with `lift_given` above 1, significant (or `certain`) ones first.

        Within each, they are ordered by the share beyond chance, (count − expected) / tokens of the label. By lift
        alone, experts that are hardly used would come first.

        Args:
            n: number of findings.
            label: only findings of this label; None for all labels.

        Raises:
            UnknownNameError: there is no such label.

        Example:
            >>> result = moelens.analyze(demo_recording, given=None, permutations=20, progress=False)
            >>> strongest = result.top(1, "丁寧語")[0]
            >>> strongest.label, strongest.lift > 1
            ('丁寧語', True)
        """
        beyond = divide(self.count - self.expected, self.label_tokens)
        wanted = beyond > 1e-6
        if label is not None:
            wanted &= np.arange(len(self.names)) == self.label_index(label)
        cells = np.argwhere(wanted)
        order = np.lexsort((-beyond[wanted], np.isnan(self.p[wanted]), ~self.certain[wanted]))
        return tuple(self._finding(*map(int, cells[i])) for i in order[:n])

    def _finding(self, layer: int, expert: int, label: int) -> Finding:
        cell = layer, expert, label
        return Finding(
            layer=self.layers[layer],
            expert=expert,
            label=self.names[label],
            count=self.count[cell].item(),
            exact=None if self.exact is None else float(self.exact[cell]),
            certain=bool(self.certain[cell]),
            **{name: float(getattr(self, name)[cell]) for name in _EFFECTS},
        )

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """The axes in order, with the name of each place on them."""
        return {"layer": self.layers, "expert": tuple(range(self.n_experts)), "label": self.names}

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        """Counts and tests by name, each `[layer, expert, label]`."""
        exact = {} if self.exact is None else {"exact": self.exact}
        return {"count": self.count} | {name: getattr(self, name) for name in _TESTS} | exact

    @property
    def facts(self) -> Mapping[str, Any]:
        """Totals, family, control and provenance, as JSON values."""
        about = {"family": self.family, "given": list(self.given), "provenance": dict(self.provenance)}
        return about | {"counts": self.counts.totals()}

    @classmethod
    def build(
        cls, axes: Mapping[str, Any], cells: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]
    ) -> Specialization:
        """Make the result that has these axes, cells and facts.

        Args:
            axes, cells, facts: what the properties of these names return.
        """
        return cls(
            counts=CountTables.of_totals(cells["count"], axes["label"], axes["layer"], facts["counts"]),
            **{name: np.asarray(cells[name], float) for name in _TESTS},
            exact=np.asarray(cells["exact"], float) if "exact" in cells else None,
            family=facts["family"],
            given=tuple(facts["given"]),
            provenance=facts["provenance"],
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return counts, effects, tests and the `load` of the expert by name.

        Each is `[row]`, with a row for each layer, expert and label.
        """
        names = ("share", "lift", "lift_given", "excess_left", "significant", "certain")
        derived = {name: getattr(self, name).ravel() for name in names}
        return super().columns() | derived | {"load": np.repeat(self.load.ravel(), len(self.names))}

    def __repr__(self) -> str:
        return self.table()

    def table(self, n: int = 10, *, each: bool = False, label: str | None = None, lang: str | Texts = "en") -> str:
        """Return the strongest specialists as a plain table; a star marks significant ones.

        The rows are sorted as `top` sorts them. The column "lift given …" is the lift within the given controls; the
        interval is that of the lift to its left. In a result with bounds, a star marks findings whose bounds exclude 1.

        Args:
            n: number of findings.
            each: `n` findings of each label that was tested, instead of `n` findings of all labels.
            label: only findings of this label.
            lang: language of the texts, "en" or "ja".

        Raises:
            UnknownNameError: there is no such label.

        Example:
            >>> result = moelens.analyze(demo_recording, permutations=20, progress=False)
            >>> result.table(1, label="丁寧語").splitlines()[1].split()[:4]
            ['layer', 'expert', 'label', 'lift']
        """
        say = Texts(lang)
        tested = [name for name in self.names if name not in self.too_rare]
        findings = [f for name in tested for f in self.top(n, name)] if each else self.top(n, label)
        lines = [wording.about(self, say), self._findings_table(findings, say) if n > 0 else say("table.none_asked")]
        untested: dict[str, list[str]] = {}
        for name in self.too_rare:
            tokens = f"{self.label_tokens[self.label_index(name)]:,.0f}"
            listed = untested.setdefault(wording.why_untested(self, name, say), [])
            listed.append(say("table.untested_label", label=name, tokens=tokens))
        for reason, listed in untested.items():
            lines.append(say("table.untested", reason=reason, listed=say("answer.comma").join(listed)))
        return "\n".join([*lines, *wording.limits(self, say)])

    def _findings_table(self, findings: Sequence[Finding], say: Texts) -> str:
        within = say("table.lift_given", given=wording.given_names(self.given, say, say("table.and")))
        given = [within] if self.given else []
        intervals = {"test": ["interval_95"], "bounds": ["bounds"], "none": []}[self.evidence]
        intervals = [say(f"table.{name}") for name in intervals]
        tests = [say("table.q"), say("table.p_family")] if self.evidence == "test" else []
        token = [say("table.lift_given", given=say("given.token"))] if tests and self.given != ("token",) else []
        last = {"test": [""], "bounds": [say("table.exact"), ""], "none": []}[self.evidence]
        first = [say(f"table.{name}") for name in ("layer", "expert", "label", "lift")]
        header = (*first, *given, *intervals, say("table.part"), say("table.tokens"), *tests, *token, *last)
        rows = [
            (
                f"L{f.layer}",
                f"E{f.expert}",
                f.label,
                number(f.lift),
                *[number(f.lift_given) for _ in given],
                *[interval(f.low, f.high) for _ in intervals],
                number(f.share),
                f"{f.count:,.0f}",
                *[number(value) for _, value in zip(tests, (f.q, f.p_family), strict=False)],
                *[number(f.lift_given_token) for _ in token],
                *[percent(f.exact) for _ in last if f.exact is not None][:1],
                *["*" if f.certain else "" for _ in last[:1]],
            )
            for f in findings
        ]
        return plain_table(header, rows)
