"""Analyses of routes and labels: `analyze`, `compare`, `measure`, and the pure functions of arrays behind them."""

from __future__ import annotations

from moelens.analysis.comparison import Comparison, compare
from moelens.analysis.count_imports import import_counts
from moelens.analysis.count_measures import (
    ExclusiveExpert,
    coverage,
    exclusive_experts,
    exclusivity,
    jaccard,
    jensen_shannon,
    label_committee,
    mean_gate,
    most_used,
    usage,
    usage_entropy,
)
from moelens.analysis.count_tables import CountTables
from moelens.analysis.counts import Counts
from moelens.analysis.expert_lists import ExpertList, found_experts, read_experts
from moelens.analysis.experts import (
    gate_score,
    saliency,
    selected_experts,
    standing_committee,
    super_experts,
    token_score,
)
from moelens.analysis.label_measures import (
    dead_experts,
    expert_information,
    family_information,
    label_combinations,
    layer_information,
    log_odds,
    max_violation,
    npmi,
    risk_difference,
)
from moelens.analysis.measures import Measure, counts_of, layer_curve, measure
from moelens.analysis.phases import phase_values
from moelens.analysis.result import Finding, Specialization
from moelens.analysis.routing import (
    cluster_order,
    coactivation,
    coactivation_lift,
    consecutive_overlap,
    consecutive_repetition,
    flow_shares,
    next_tokens,
    normalised_jsd,
    overlap,
    pooled_gates,
    route_flow,
    router_entropy,
    saturation,
    selection_margin,
    vocabulary_specialization,
)
from moelens.analysis.specialize import analyze, specialization_from_arrays
from moelens.analysis.token_types import TypeBounds, TypeRows, bound_labels, read_type_rows
from moelens.analysis.type_labels import TypeLabels

__all__ = [
    "Comparison",
    "CountTables",
    "Counts",
    "ExclusiveExpert",
    "ExpertList",
    "Finding",
    "Measure",
    "Specialization",
    "TypeBounds",
    "TypeLabels",
    "TypeRows",
    "analyze",
    "bound_labels",
    "cluster_order",
    "coactivation",
    "coactivation_lift",
    "compare",
    "consecutive_overlap",
    "consecutive_repetition",
    "counts_of",
    "coverage",
    "dead_experts",
    "exclusive_experts",
    "exclusivity",
    "expert_information",
    "family_information",
    "flow_shares",
    "found_experts",
    "gate_score",
    "import_counts",
    "jaccard",
    "jensen_shannon",
    "label_combinations",
    "label_committee",
    "layer_curve",
    "layer_information",
    "log_odds",
    "max_violation",
    "mean_gate",
    "measure",
    "most_used",
    "next_tokens",
    "normalised_jsd",
    "npmi",
    "overlap",
    "phase_values",
    "pooled_gates",
    "read_experts",
    "read_type_rows",
    "risk_difference",
    "route_flow",
    "router_entropy",
    "saliency",
    "saturation",
    "selected_experts",
    "selection_margin",
    "specialization_from_arrays",
    "standing_committee",
    "super_experts",
    "token_score",
    "usage",
    "usage_entropy",
    "vocabulary_specialization",
]
