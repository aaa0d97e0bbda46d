"""`attribute`: what every active expert contributes to a preference, in one backward pass, and whether removal agrees.

Contribution of expert e to a margin m: weight_e · ⟨∂m/∂y, output_e⟩ = ⟨∂m/∂output_e, output_e⟩, summed over tokens,
the choice of experts fixed. It is the first-order estimate of what the margin loses when the expert is removed; the
contributions of a layer sum to the derivative of m along the layer's own output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from moelens.analysis.tables import number, plain_table
from moelens.bars import progress_bar
from moelens.display import Plotted
from moelens.interventions.effects import interval, signed
from moelens.interventions.operations import remove
from moelens.interventions.readout import (
    Floats,
    Pair,
    as_pairs,
    batches,
    bootstrap,
    half_of,
    margins,
    margins_of,
    texts_of,
)
from moelens.saved import SavedRows


@dataclass(frozen=True)
class Contribution:
    """One expert, or a layer's shared expert (`expert` is None); everything in nats, means over pairs.

    Attributes:
        attributed: its contribution on the discovery half, by which it was found.
        repeated: the same on the test half.
        change, low, high: change of the margin on the test half when it is removed, and the 95 % bootstrap interval.
    """

    layer: int
    expert: int | None
    attributed: float
    repeated: float
    change: float
    low: float
    high: float

    @property
    def name(self) -> str:
        return f"L{self.layer} " + ("shared" if self.expert is None else f"E{self.expert}")


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Plotted, SavedRows):
    """What experts contribute to a model's preference.

    Attributes:
        routed, shared: contributions on the discovery half, `[layer, expert]` and `[layer]` (0 without shared experts).
        layers: the layers' numbers.
        top: the experts with the largest contributions, verified on the test half by removing them one by one.
        rank_correlation: Spearman's, of `attributed` (discovery) with what removal costs (test), over `top`.
        rank_correlation_test: the same of `repeated`, attribution on the very pairs of the removal.
        pairs: how many pairs each half has.
    """

    FORMAT: ClassVar[str] = "moelens.attribution/1"

    model: str
    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    routed: Floats
    shared: Floats
    top: tuple[Contribution, ...]
    rank_correlation: float
    rank_correlation_test: float
    pairs: tuple[int, int]
    seed: int

    def records(self) -> list[dict[str, Any]]:
        return [asdict(c) for c in self.top]

    def table(self) -> str:
        header = ("expert", "attributed (discovery)", "attributed (test)", "removing it (test)", "95 %")
        rows = [
            (c.name, signed(c.attributed), signed(c.repeated), signed(c.change), interval(c.low, c.high))
            for c in self.top
        ]
        return "\n".join(
            [
                f"{self.model} · contributions to {', '.join(self.kinds)}, nats · found on {self.pairs[0]} pairs, "
                f"verified on {self.pairs[1]} of other frames · seed {self.seed}",
                plain_table(header, rows),
                f"rank correlation with removal (test): of attribution (discovery) {number(self.rank_correlation)}, "
                f"of attribution (test) {number(self.rank_correlation_test)}",
            ]
        )

    __repr__ = table


def attribute(
    model: Any,
    pairs: str | Iterable[Any],
    *,
    top: int = 10,
    seed: int = 0,
    batch_tokens: int = 2048,
    progress: bool | None = None,
) -> Attribution:
    """Every active expert's contribution to the model's preference in minimal pairs; the largest verified by removal.

    Args:
        pairs: see `moelens.interventions.readout.Pair`. The frames of each kind are split in two with `seed`.
        top: how many of the largest contributions, either way, are verified by removal.

    Raises:
        MoeLensError: no pairs, or a kind with one frame only.

    Example:
        >>> moelens.attribute(model, moelens.japanese.pairs(kind="polite-ending"), top=5)  # doctest: +SKIP
    """
    given = as_pairs(pairs)
    discovery, test = half_of(given, "discovery", seed), half_of(given, "test", seed)
    layers = model.shape.moe_layers
    both = [contributions(model, half, batch_tokens).mean(0) for half in (discovery, test)]
    order = np.argsort(-np.abs(both[0]), axis=None)[:top]
    before = margins(model, test, batch_tokens)
    found = []
    for place in progress_bar(order, desc="removing", show=progress):
        at, expert = divmod(int(place), both[0].shape[1])
        name: int | None = expert if expert < model.shape.n_experts else None
        with model.intervene(remove(layers[at], "shared" if name is None else [name])):
            change = margins(model, test, batch_tokens) - before
        spread = bootstrap(change, [p.frame for p in test], seed)
        values = (float(both[0][at, expert]), float(both[1][at, expert]), float(change.mean()))
        found.append(Contribution(layers[at], name, *values, *spread))
    return Attribution(
        model.name,
        tuple(dict.fromkeys(p.kind for p in given)),
        tuple(layers),
        both[0][:, :-1],
        both[0][:, -1],
        tuple(found),
        rank_correlation([c.attributed for c in found], [-c.change for c in found]),
        rank_correlation([c.repeated for c in found], [-c.change for c in found]),
        (len(discovery), len(test)),
        seed,
    )


def contributions(model: Any, pairs: Sequence[Pair], batch_tokens: int = 2048) -> Floats:
    """`[pair, layer, expert]`, the last expert being the shared one; one backward pass a batch.

    Raises:
        MoeLensError: a layer whose experts' outputs cannot be read.
    """
    layers, n = model.shape.moe_layers, model.shape.n_experts
    found = np.zeros((len(pairs), len(layers), n + 1))
    points = {f"blocks.{layer}.mlp.experts.hook_out": i for i, layer in enumerate(layers)}
    points |= {
        name: i for i, layer in enumerate(layers) if (name := f"blocks.{layer}.mlp.shared.hook_out") in model.hook_dict
    }
    kept: dict[str, Tensor] = {}

    def keep(output: Tensor, hook: Any) -> Tensor:
        kept[hook.name] = output if output.requires_grad else output.detach().requires_grad_()
        return kept[hook.name]

    for batch in batches(model, texts_of(pairs), batch_tokens, together=2):
        with torch.enable_grad(), model.hooks([(name, keep) for name in points]):
            total = margins_of(batch.logits(model), batch).sum()
        gradients = torch.autograd.grad(total, [kept[name] for name in points])
        rows = np.array(batch.rows)[::2] // 2
        for (name, at), gradient in zip(points.items(), gradients, strict=True):
            slots = (
                (gradient.float() * kept[name].detach().float()).sum(-1).double()
            )  # [batch, pos] and, routed, [slot]
            if slots.ndim == 2:
                found[rows, at, n] += two_by_two(slots.sum(1))
                continue
            chosen = model.running.slots[layers[at]].flatten(1).to(slots.device)
            by_expert = slots.new_zeros(len(slots), n).scatter_add(1, chosen, slots.flatten(1))
            found[rows, at, :n] += two_by_two(by_expert)
        kept.clear()
    return found


def two_by_two(rows: Tensor) -> Floats:
    """Sums of successive rows: of the good and the bad text of a pair."""
    return np.asarray((rows[0::2] + rows[1::2]).cpu().numpy())


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation, ties broken by order; NaN for fewer than two values.

    >>> rank_correlation([1, 2, 3], [10, 30, 20])
    0.5
    """
    if len(a) < 2:
        return float("nan")
    ranks = np.stack([np.argsort(np.argsort(values)) for values in (a, b)]).astype(float)
    return float(np.corrcoef(ranks)[0, 1])
