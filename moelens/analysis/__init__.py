"""From routes and labels to findings: pure functions on arrays."""

from __future__ import annotations

from moelens.analysis.counts import Counts
from moelens.analysis.result import Finding, Specialization
from moelens.analysis.specialize import specialization, specialization_from_arrays

__all__ = ["Counts", "Finding", "Specialization", "specialization", "specialization_from_arrays"]
