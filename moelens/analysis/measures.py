"""A measure of a recording with its axes named: one door to the pure functions of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moelens.analysis import experts, label_measures, routing
from moelens.analysis.counts import Counts
from moelens.analysis.sources import LabelFamilies, Sample, described, labels_for, names_of, opened, provenance
from moelens.analysis.tables import number, plain_table
from moelens.display import Plotted
from moelens.errors import MoeLensError, unknown
from moelens.recording import Recording
from moelens.saved import SavedCells

Axes = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, eq=False, repr=False)
class Measure(Plotted, SavedCells):
    """One number for each place on named axes.

    >>> Measure("load", np.array([[1.5, 0.5]]), {"layer": (3,), "expert": (0, 1)}).top(1)
    ((3, 0, 1.5),)
    """

    FORMAT: ClassVar[str] = "moelens.measure/1"

    name: str
    values: NDArray[Any]
    places: Axes
    """The axes in order, with the name of each place on them."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> Axes:
        return self.places

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        return {self.name: self.values}

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"name": self.name, "provenance": dict(self.provenance)}

    @classmethod
    def build(cls, axes: Axes, cells: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Measure:
        return cls(facts["name"], cells[facts["name"]], axes, facts["provenance"])

    def top(self, n: int = 10) -> tuple[tuple[Any, ...], ...]:
        """The `n` places of largest value: the name of each axis's place, then the value. NaN is left out."""
        flat = self.values.ravel().astype(float)
        order = np.argsort(-np.where(np.isnan(flat), -np.inf, flat), kind="stable")[: min(n, (~np.isnan(flat)).sum())]
        places = zip(*np.unravel_index(order, self.values.shape), strict=True)
        named = (tuple(names[i] for names, i in zip(self.axes.values(), place, strict=True)) for place in places)
        return tuple((*place, float(flat[i])) for place, i in zip(named, order, strict=True))

    def table(self, n: int = 10) -> str:
        """The `n` largest values as a plain table."""
        size = " × ".join(f"{len(names):,} {axis}s" for axis, names in self.axes.items())
        rows = [(*map(str, place), number(value)) for *place, value in self.top(n)]
        model = self.provenance.get("model") or "model"
        return f"{model} · {self.name} · {size}\n" + plain_table((*self.axes, self.name), rows)

    def __repr__(self) -> str:
        return self.table()


def _layer(values: Any, recording: Recording) -> Any:
    return values, {"layer": recording.layers}


def _expert(values: Any, recording: Recording) -> Any:
    return values, {"layer": recording.layers, "expert": tuple(range(recording.n_experts))}


def _pair(values: Any, recording: Recording) -> Any:
    each = tuple(range(recording.n_experts))
    return values, {"layer": recording.layers[: len(values)], "expert": each, "other": each}


def _shares(indices: NDArray[Any], n_experts: int) -> NDArray[Any]:
    """Of all pairs of an expert and one of the next layer, the share of each: what `route_flow` weighs up to."""
    counts = routing.expert_counts(indices, n_experts)[:-1, :, None]
    pairs = np.nan_to_num(routing.route_flow(indices, n_experts)) * counts
    return np.asarray(pairs / np.maximum(pairs.sum((1, 2), keepdims=True), 1))


OF_ROUTES: Mapping[str, Callable[[Recording], Any]] = {
    "token_score": lambda r: _expert(experts.token_score(r.indices(), r.n_experts), r),
    "gate_score": lambda r: _expert(experts.gate_score(r.indices(), r.weights(), r.n_experts), r),
    "pooled_gates": lambda r: _expert(routing.pooled_gates(r.indices(), r.weights(), r.n_experts), r),
    "coactivation": lambda r: _pair(routing.coactivation(r.indices(), r.n_experts), r),
    "coactivation_adjacent": lambda r: _pair(
        routing.coactivation(r.indices(), r.n_experts, "adjacent", r.weights()), r
    ),
    "coactivation_lift": lambda r: _pair(routing.coactivation_lift(r.indices(), r.n_experts), r),
    "route_shares": lambda r: _pair(_shares(r.indices(), r.n_experts), r),
    "route_flow": lambda r: _pair(routing.route_flow(r.indices(), r.n_experts), r),
    "repetition": lambda r: _layer(routing.consecutive_repetition(r.indices(), r.column("doc"), r.weights()), r),
    "overlap_with_next": lambda r: _layer(routing.consecutive_overlap(r.indices(), r.column("doc")), r),
}
OF_COUNTS: Mapping[str, Callable[[Counts], NDArray[Any]]] = {
    "load": Counts.load,
    "max_violation": label_measures.max_violation,
    "dead_experts": label_measures.dead_experts,
    "share": Counts.share,
    "lift": Counts.lift,
    "log_odds": label_measures.log_odds,
    "npmi": label_measures.npmi,
    "risk_difference": label_measures.risk_difference,
    "expert_information": label_measures.expert_information,
    "layer_information": label_measures.layer_information,
}
OF_LABELS = ("share", "lift", "log_odds", "npmi", "risk_difference", "expert_information", "layer_information")


def measure(
    recording: Recording | str | Path,
    name: str,
    family: str = "honorifics",
    *,
    labels: LabelFamilies | None = None,
) -> Measure:
    """A measure of routing by its name: load, co-activation, lift, nPMI, information and others.

    All tokens count, special ones too.

    Args:
        recording: or its folder.
        name: of the measure, one of `OF_ROUTES` or `OF_COUNTS`.
        family: of labels, for the measures of labels.
        labels: of the recording; None for those in its folder, created first where there are none.

    Raises:
        UnknownNameError: no such measure or family.
        RecordingError: there is no recording, or one without the weights that the measure takes.

    Example:
        >>> found = moelens.measure(demo_recording, "layer_information", "pos")
        >>> found.axes["layer"], found.values.shape == (4, len(found.axes["label"]))
        ((1, 2, 3, 4), True)
    """
    recording = opened(recording)
    if name in OF_ROUTES:
        values, axes = OF_ROUTES[name](recording)
        return Measure(name, values, axes, provenance(recording, labels) | {"layers": list(recording.layers)})
    if name not in OF_COUNTS:
        raise unknown("measure", name, (*OF_COUNTS, *OF_ROUTES))
    known = labels_for(recording, labels, family if name in OF_LABELS else None)
    counts = counts_of(recording, family if known is not None else None, labels=known)
    values = OF_COUNTS[name](counts)
    every = {"layer": counts.layers, "expert": tuple(range(counts.n_experts)), "label": counts.names}
    kept = {1: ("layer",), 2: ("layer", "label" if name == "layer_information" else "expert"), 3: tuple(every)}
    about = provenance(recording, known)
    return Measure(name, values, {axis: every[axis] for axis in kept[values.ndim]}, about)


def counts_of(
    recording: Recording | str | Path, family: str | None = None, *, labels: LabelFamilies | None = None
) -> Counts:
    """The counts of a recording in groups of documents, by the labels of a family or without; processes share the work.

    `labels` None takes those in the recording's folder, created first where there are none.
    """
    recording = opened(recording)
    known = labels_for(recording, labels, family)
    if family is None or known is None:
        parts = described(recording, None, "", text=False)
        return _counts(recording, Sample.of(parts, (), texts=recording.text_ids()))
    names = names_of(recording, known, family)
    parts = described(recording, known, family, text=False)
    return _counts(recording, Sample.of(parts, names, texts=recording.text_ids()))


def _counts(recording: Recording, sample: Sample) -> Counts:
    rows = sample.mine()
    tables = sample.count(recording.parts(rows.start, rows.stop), recording.n_experts, recording.layers)
    return sample.counts(tables, recording.layers, recording.top_k)


def layer_curve(
    recording: Recording | str | Path,
    family: str = "honorifics",
    *,
    labels: LabelFamilies | None = None,
    draws: int = 40,
    seed: int = 0,
) -> Measure:
    """How much a layer's routing tells of each label, and how much it would by chance: `[layer, label, value]`.

    Values: the mutual information in bits ("information", see `layer_information`), and the 2.5th and 97.5th percentile
    of the same after all labels were shifted along the corpus by a random number of tokens ("chance low", "chance
    high"). A shift keeps runs of labels and the order of tokens, and parts the two; token identity is not controlled.

    `labels` None takes those in the recording's folder, created first where there are none.

        layer_curve(recording, "pos").plot()
    """
    recording = opened(recording)
    known = labels_for(recording, labels, family)
    assert known is not None
    names = names_of(recording, known, family)
    if recording.n_tokens < 2 or draws < 2:
        raise MoeLensError(
            f"{draws} shifts of {recording.n_tokens} tokens are no band; give 2 or more draws, and record more text"
        )
    sample = Sample.of(described(recording, known, family, text=False), names, texts=recording.text_ids())
    found = label_measures.layer_information(_counts(recording, sample))
    shifts = np.random.default_rng(seed).integers(1, recording.n_tokens, draws)
    shifted = (replace(sample, kind=np.roll(sample.kind, n)) for n in shifts)
    moved = [label_measures.layer_information(_counts(recording, each)) for each in shifted]
    values = np.stack([found, *np.percentile(moved, [2.5, 97.5], 0)], -1)
    axes = {"layer": recording.layers, "label": names, "value": ("information", "chance low", "chance high")}
    return Measure("layer_curve", values, axes, provenance(recording, known) | {"draws": draws, "seed": seed})
