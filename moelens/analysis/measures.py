"""`measure`: a measure of a recording by its name, with named axes, from the pure functions of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from moelens.analysis import count_measures, experts, label_measures, phases, routing
from moelens.analysis.count_tables import CountTables
from moelens.analysis.counts import Counts
from moelens.analysis.samples import (
    LabelFamilies,
    Sample,
    counts_in,
    label_names,
    labels_for,
    open_recording,
    provenance_of,
    token_blocks,
)
from moelens.analysis.tables import number, plain_table
from moelens.display import Plotted
from moelens.errors import MoeLensError, unknown
from moelens.japanese.families import FAMILIES
from moelens.japanese.turn_labels import TURN_FAMILIES
from moelens.recording import Recording
from moelens.saved import SavedCells

_Axes = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, eq=False, repr=False)
class Measure(Plotted, SavedCells):
    """An array of numbers with named axes.

    Attributes:
        name: name of the measure.
        values: the numbers, with one axis for each entry of `places`.
        places: the axes in order; for each, the name of every place on it, such as layer numbers or label names.
        provenance: where the numbers are from.

    Example:
        >>> Measure("load", np.array([[1.5, 0.5]]), {"layer": (3,), "expert": (0, 1)}).top(1)
        ((3, 0, 1.5),)
    """

    FORMAT: ClassVar[str] = "moelens.measure/1"

    name: str
    values: NDArray[Any]
    places: _Axes
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> _Axes:
        """The axes in order, with the name of each place on them."""
        return self.places

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        """The values by the name of the measure, with the `axes`, such as `[layer, expert]`."""
        return {self.name: self.values}

    @property
    def facts(self) -> Mapping[str, Any]:
        """Name and provenance, as JSON values."""
        return {"name": self.name, "provenance": dict(self.provenance)}

    @classmethod
    def build(cls, axes: _Axes, cells: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Measure:
        """Make the measure that has these axes, cells and facts.

        Args:
            axes, cells, facts: what the properties of these names return.
        """
        return cls(facts["name"], cells[facts["name"]], axes, facts["provenance"])

    def top(self, n: int = 10) -> tuple[tuple[Any, ...], ...]:
        """Return the `n` largest values, each as the names of its places followed by the value; NaN is left out.

        Of two labels, each pair is named once, and no label with itself.

        Args:
            n: number of values.
        """
        values = self.values.astype(float)
        if "label" in self.axes and "other" in self.axes:
            values = np.where(np.tri(*values.shape[-2:]) > 0, np.nan, values)
        flat = values.ravel()
        order = np.argsort(-np.where(np.isnan(flat), -np.inf, flat), kind="stable")[: min(n, (~np.isnan(flat)).sum())]
        places = zip(*np.unravel_index(order, self.values.shape), strict=True)
        named = (tuple(names[i] for names, i in zip(self.axes.values(), place, strict=True)) for place in places)
        return tuple((*place, float(flat[i])) for place, i in zip(named, order, strict=True))

    def table(self, n: int = 10) -> str:
        """Return the `n` largest values as a plain table; of values with a band, those of every layer.

        Args:
            n: number of values.
        """
        size = " × ".join(f"{len(names):,} {axis}s" for axis, names in self.axes.items())
        header, rows = [*self.axes, self.name], [[*map(str, place), number(value)] for *place, value in self.top(n)]
        if self.name == "phases":
            header = ["layer", *(cell for name in self.axes["label"] for cell in (name, "by chance"))]
            rows = [
                [f"L{x}", *_with_bands(by_label)] for x, by_label in zip(self.axes["layer"], self.values, strict=True)
            ]
        model = self.provenance.get("model") or "model"
        return f"{model} · {self.name} · {size}\n" + plain_table(header, rows)

    def __repr__(self) -> str:
        return self.table()


def _with_bands(by_label: NDArray[Any]) -> list[str]:
    """Format values `[label, value]`, each followed by its band."""
    return [text for v, low, high in by_label for text in (number(v), f"{number(low)}–{number(high)}")]


def _by_layer(values: Any, recording: Recording) -> Any:
    return values, {"layer": recording.layers}


def _by_expert(values: Any, recording: Recording) -> Any:
    return values, {"layer": recording.layers, "expert": tuple(range(recording.n_experts))}


def _by_pair(values: Any, recording: Recording) -> Any:
    each = tuple(range(recording.n_experts))
    return values, {"layer": recording.layers[: len(values)], "expert": each, "other": each}


def _route_shares(indices: NDArray[Any], n_experts: int) -> NDArray[Any]:
    """Return `route_flow` as shares of all pairs of an expert and one of the next layer; a layer sums to 1."""
    counts = routing.expert_counts(indices, n_experts)[:-1, :, None]
    pairs = np.nan_to_num(routing.route_flow(indices, n_experts)) * counts
    return np.asarray(pairs / np.maximum(pairs.sum((1, 2), keepdims=True), 1))


def phase_axes(recording: Recording) -> _Axes:
    """Return the axes of the comparison of prefill with decoding."""
    return {"layer": recording.layers, "label": phases.QUANTITIES, "value": phases.VALUES}


ROUTE_MEASURES: Mapping[str, Callable[[Recording], Any]] = {
    "token_score": lambda r: _by_expert(experts.token_score(r.indices(), r.n_experts), r),
    "gate_score": lambda r: _by_expert(experts.gate_score(r.indices(), r.weights(), r.n_experts), r),
    "pooled_gates": lambda r: _by_expert(routing.pooled_gates(r.indices(), r.weights(), r.n_experts), r),
    "coactivation": lambda r: _by_pair(routing.coactivation(r.indices(), r.n_experts), r),
    "coactivation_adjacent": lambda r: _by_pair(
        routing.coactivation(r.indices(), r.n_experts, "adjacent", r.weights()), r
    ),
    "coactivation_lift": lambda r: _by_pair(routing.coactivation_lift(r.indices(), r.n_experts), r),
    "route_shares": lambda r: _by_pair(_route_shares(r.indices(), r.n_experts), r),
    "route_flow": lambda r: _by_pair(routing.route_flow(r.indices(), r.n_experts), r),
    "repetition": lambda r: _by_layer(routing.consecutive_repetition(r.indices(), r.column("doc"), r.weights()), r),
    "phases": lambda r: (phases.phase_values(r), phase_axes(r)),
    "overlap_with_next": lambda r: _by_layer(routing.consecutive_overlap(r.indices(), r.column("doc")), r),
}
"""The measures of single routes, by name."""
_BY_EXPERT, _BY_LABEL = ("layer", "expert"), ("layer", "label")
_BY_CELL, _BY_PAIR_OF_LABELS = ("layer", "expert", "label"), ("layer", "label", "other")
COUNT_MEASURES: Mapping[str, tuple[Callable[[CountTables, int], NDArray[Any]], tuple[str, ...]]] = {
    "load": (lambda c, n: c.load(), _BY_EXPERT),
    "max_violation": (lambda c, n: label_measures.max_violation(c), ("layer",)),
    "dead_experts": (lambda c, n: label_measures.dead_experts(c), _BY_EXPERT),
    "share": (lambda c, n: c.share(), _BY_CELL),
    "choice_share": (lambda c, n: c.share("choices"), _BY_CELL),
    "lift": (lambda c, n: c.lift(), _BY_CELL),
    "log_odds": (lambda c, n: label_measures.log_odds(c), _BY_CELL),
    "npmi": (lambda c, n: label_measures.npmi(c), _BY_CELL),
    "risk_difference": (lambda c, n: label_measures.risk_difference(c), _BY_CELL),
    "expert_information": (lambda c, n: label_measures.expert_information(c), _BY_CELL),
    "layer_information": (lambda c, n: label_measures.layer_information(c), _BY_LABEL),
    "family_information": (lambda c, n: label_measures.family_information(c), ("layer",)),
    "usage_entropy": (lambda c, n: count_measures.usage_entropy(c), _BY_LABEL),
    "coverage": (lambda c, n: count_measures.coverage(count_measures.usage(c), n), _BY_LABEL),
    "jaccard": (lambda c, n: count_measures.jaccard(count_measures.usage(c), n), _BY_PAIR_OF_LABELS),
    "jensen_shannon": (lambda c, n: count_measures.jensen_shannon(count_measures.usage(c)), _BY_PAIR_OF_LABELS),
    "exclusivity": (lambda c, n: count_measures.exclusivity(c), _BY_CELL),
    "standing_committee": (lambda c, n: count_measures.label_committee(c), _BY_EXPERT),
    "mean_gate": (lambda c, n: count_measures.mean_gate(c), _BY_CELL),
}
"""The measures of counts by name, each with its axes; they take the counts and the number of most used experts."""
_WITHOUT_LABELS = ("load", "max_violation", "dead_experts")


def measure(
    recording: Recording | CountTables | str | Path,
    name: str,
    family: str = "honorifics",
    *,
    labels: LabelFamilies | None = None,
    top_n: int | None = None,
) -> Measure:
    """Compute a measure of routing by its name: load, co-activation, lift, nPMI, information and others.

    All tokens count, special tokens included.

    Args:
        recording: the recording, or its folder; or counts, or the file in which they were saved.
        name: name of the measure, one of `ROUTE_MEASURES` or `COUNT_MEASURES`.
        family: family of labels of a recording, for the measures of labels.
        labels: labels of the recording; None uses those in its folder, which are created if there are none.
        top_n: number of most used experts that `coverage` and `jaccard` consider; None for half of the experts.

    Returns:
        The values with their axes, such as `[layer, expert]` or `[layer, expert, label]`.

    Raises:
        UnknownNameError: there is no such measure or family.
        RecordingError: there is no recording, or it has no weights and the measure needs them.
        MoeLensError: the measure needs the routes of single tokens, which counts do not have.

    Example:
        >>> result = moelens.measure(demo_recording, "layer_information", "pos")
        >>> result.axes["layer"], result.values.shape == (4, len(result.axes["label"]))
        ((1, 2, 3, 4), True)
    """
    if name not in COUNT_MEASURES and name not in ROUTE_MEASURES:
        raise unknown("measure", name, (*COUNT_MEASURES, *ROUTE_MEASURES))
    counts: CountTables | None = counts_in(recording)
    if counts is not None:
        if name in ROUTE_MEASURES:
            raise MoeLensError(
                f"expected a recording for {name}, which needs the routes of single tokens, got counts; "
                f"choose a measure of counts: {', '.join(COUNT_MEASURES)}"
            )
        return _count_measure(name, counts, dict(counts.provenance), top_n)
    recording = open_recording(recording)  # type: ignore[arg-type]
    if labels is None and family not in (allowed := (*FAMILIES, *TURN_FAMILIES)):  # also where it is not used
        raise unknown("label family", family, allowed)
    if name in ROUTE_MEASURES:
        values, axes = ROUTE_MEASURES[name](recording)
        return Measure(name, values, axes, provenance_of(recording, labels) | {"layers": list(recording.layers)})
    known = labels_for(recording, labels, None if name in _WITHOUT_LABELS else family)
    by: Literal["label", "combination"] = "combination" if name == "family_information" else "label"
    counts = counts_of(recording, family if known is not None else None, labels=known, by=by)
    return _count_measure(name, counts, provenance_of(recording, known), top_n)


def _count_measure(name: str, counts: CountTables, about: Mapping[str, Any], top_n: int | None) -> Measure:
    compute, axes = COUNT_MEASURES[name]
    n = max(counts.n_experts // 2, 1) if top_n is None else top_n
    places = {"layer": counts.layers, "expert": tuple(range(counts.n_experts)), "label": counts.names}
    about = {**about, "top_n": n} if name in ("coverage", "jaccard") else about
    axis_places = {axis: places["label" if axis == "other" else axis] for axis in axes}
    return Measure(name, compute(counts, n), axis_places, about)


def counts_of(
    recording: Recording | str | Path,
    family: str | None = None,
    *,
    labels: LabelFamilies | None = None,
    by: Literal["label", "combination"] = "label",
) -> Counts:
    """Count a recording in groups of documents. All tokens count; the processes of torch.distributed share the work.

    Args:
        recording: the recording, or its folder.
        family: family of labels to count by; None counts without labels.
        labels: labels of the recording; None uses those in its folder, which are created if there are none.
        by: "label", or "combination" to count the combinations of labels that tokens have; each token has exactly one.

    Returns:
        The counts; those of several recordings can be added.

    Raises:
        UnknownNameError: there is no such family.
        RecordingError: there is no recording, or the labels belong to another one.

    Example:
        >>> from moelens.analysis import counts_of
        >>> counts_of(demo_recording, "honorifics").n_tokens == demo_recording.n_tokens
        True
    """
    recording = open_recording(recording)
    known = labels_for(recording, labels, family)
    if family is None or known is None:
        blocks = token_blocks(recording, None, "", text=False)
        return _count(recording, Sample.of(blocks, (), texts=recording.text_ids()))
    names = label_names(recording, known, family)
    blocks = token_blocks(recording, known, family, text=False)
    sample = Sample.of(blocks, names, texts=recording.text_ids())
    return _count(recording, sample.by_combination() if by == "combination" else sample)


def _count(recording: Recording, sample: Sample) -> Counts:
    rows = sample.own_rows()
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
    """Compute the information that each layer's routing has about each label, beside that expected by chance.

    For chance, all labels are shifted along the corpus by a random number of tokens. A shift keeps the runs of labels
    and the order of the tokens, and separates the two; it does not control token identity.

    Args:
        recording: the recording, or its folder.
        family: family of labels.
        labels: labels of the recording; None uses those in its folder, which are created if there are none.
        draws: number of random shifts, 2 or more.
        seed: seed of the shifts.

    Returns:
        `[layer, label, value]`, in bits. The values are the mutual information ("information", see
        `layer_information`) and the 2.5th and 97.5th percentile of that of the shifted labels ("chance low" and
        "chance high").

    Raises:
        UnknownNameError: there is no such family.
        RecordingError: there is no recording, or the labels belong to another one.
        MoeLensError: there are fewer than two draws or tokens.

    Example:
        >>> from moelens.analysis import layer_curve
        >>> curve = layer_curve(demo_recording, "pos", draws=5)
        >>> tuple(curve.axes), curve.axes["value"]
        (('layer', 'label', 'value'), ('information', 'chance low', 'chance high'))
    """
    recording = open_recording(recording)
    known = labels_for(recording, labels, family)
    assert known is not None
    names = label_names(recording, known, family)
    if recording.n_tokens < 2 or draws < 2:
        raise MoeLensError(
            f"expected 2 or more draws and tokens, got {draws} draws of {recording.n_tokens} tokens; "
            "give more draws, or record more text"
        )
    sample = Sample.of(token_blocks(recording, known, family, text=False), names, texts=recording.text_ids())
    information = label_measures.layer_information(_count(recording, sample))
    shifts = np.random.default_rng(seed).integers(1, recording.n_tokens, draws)
    shifted = (replace(sample, kind=np.roll(sample.kind, n)) for n in shifts)
    by_chance = [label_measures.layer_information(_count(recording, each)) for each in shifted]
    values = np.stack([information, *np.percentile(by_chance, [2.5, 97.5], 0)], -1)
    axes = {"layer": recording.layers, "label": names, "value": ("information", "chance low", "chance high")}
    return Measure("layer_curve", values, axes, provenance_of(recording, known) | {"draws": draws, "seed": seed})
