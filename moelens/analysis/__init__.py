"""Analyses of routes and labels: `analyze`, `compare`, `measure`, and the pure functions of arrays behind them."""

from __future__ import annotations

from moelens.analysis.comparison import Comparison, compare
from moelens.analysis.counts import Counts
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

__all__ = [
    "Comparison",
    "Counts",
    "Finding",
    "Measure",
    "Specialization",
    "analyze",
    "cluster_order",
    "coactivation",
    "coactivation_lift",
    "compare",
    "consecutive_overlap",
    "consecutive_repetition",
    "counts_of",
    "dead_experts",
    "expert_information",
    "family_information",
    "flow_shares",
    "gate_score",
    "label_combinations",
    "layer_curve",
    "layer_information",
    "log_odds",
    "max_violation",
    "measure",
    "next_tokens",
    "normalised_jsd",
    "npmi",
    "overlap",
    "pooled_gates",
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
    "vocabulary_specialization",
]
