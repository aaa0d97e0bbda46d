"""A small result of an analysis, and the size of what a view sends to the browser."""

from __future__ import annotations

import numpy as np

from moelens.analysis import Specialization, specialization_from_arrays
from moelens.views.live import LiveView


def result_of(layers: int, experts: int, tokens: int = 600, k: int = 2) -> Specialization:
    rng = np.random.default_rng(0)
    labels = rng.random((tokens, 3)) < [0.3, 0.2, 0.0]
    indices = np.argsort(rng.random((tokens, layers, experts)) - np.eye(experts)[3] * labels[:, :1, None], -1)[..., :k]
    return specialization_from_arrays(
        indices,
        labels,
        ["尊敬語", "丁寧語", "美化語"],
        docs=np.arange(tokens) // 20,
        token_ids=rng.integers(0, 50, tokens),
        n_experts=experts,
        layers=range(3, 3 + layers),
        permutations=49,
    )


def payload(widget: LiveView) -> int:
    """Bytes of the whole state that a view sends to the browser."""
    return sum(len(v) if isinstance(v, bytes | memoryview) else len(str(v)) for v in widget.get_state().values())
