"""`attribute`: the contribution of every active expert to a preference, in one backward pass, verified by removal.

The contribution of expert e to a margin m is weight_e · ⟨∂m/∂y, output_e⟩ = ⟨∂m/∂output_e, output_e⟩, summed over
tokens, with the choice of experts fixed. It is the first-order estimate of how much the margin decreases when the
expert is removed. The contributions of a layer sum to the derivative of m along the layer's own output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from moelens.analysis.arrays import Floats
from moelens.analysis.tables import number, plain_table, signed_interval, signed_number
from moelens.bars import progress_bar
from moelens.display import Plotted
from moelens.interventions.items import Item, as_items, half_of
from moelens.interventions.operations import remove
from moelens.interventions.scoring import (
    batch_margins,
    margins,
    mean_interval,
    pair_texts,
    split_items,
    text_batches,
)
from moelens.models.hooked_check import require_hooked
from moelens.saved import SavedRows
from moelens.texts import Texts

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """The contribution of one expert, in nats, as means over pairs.

    Attributes:
        layer: number of the layer.
        expert: number of the expert; None for the layer's shared expert.
        attributed: its contribution on the discovery half, by which it was found.
        repeated: its contribution on the test half.
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
        """The expert as text, such as "L3 E5"."""
        return f"L{self.layer} " + ("shared" if self.expert is None else f"E{self.expert}")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Attribution(Plotted, SavedRows):
    """What experts contribute to a model's preference.

    Attributes:
        model: name of the model.
        kinds: the kinds of pairs.
        layers: numbers of the layers.
        routed: contributions of routed experts on the discovery half `[layer, expert]`.
        shared: contributions of shared experts on the discovery half `[layer]`; 0 without a shared expert.
        top: the experts with the largest contributions, each verified on the test half by its removal.
        rank_correlation: Spearman's correlation over `top` of `attributed` (discovery) with the decrease on removal
            (test).
        rank_correlation_test: the same with `repeated`, the attribution on the pairs of the removal.
        pairs: number of pairs in the discovery half and in the test half.
        seed: seed of the halves.
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
        """Return a row for each expert of `top`."""
        return [asdict(c) for c in self.top]

    def table(self, lang: str | Texts = "en") -> str:
        """Return a plain table with a row for each expert of `top`, in English ("en") or "ja"."""
        say, columns = Texts(lang), ("expert", "attributed", "repeated", "removing", "interval")
        rows = [
            (
                c.name,
                signed_number(c.attributed),
                signed_number(c.repeated),
                signed_number(c.change),
                signed_interval(c.low, c.high),
            )
            for c in self.top
        ]
        found, verified = self.pairs
        about = {"model": self.model, "kinds": ", ".join(self.kinds), "seed": self.seed}
        head = say("effects.attribution", **about, found=found, verified=verified)
        rank = number(self.rank_correlation), number(self.rank_correlation_test)
        last = say("effects.rank", discovery=rank[0], test=rank[1])
        return "\n".join([head, plain_table([say(f"effects.{name}") for name in columns], rows), last])

    def __repr__(self) -> str:
        return self.table()


def attribute(
    model: HookedMoE,
    pairs: str | Iterable[Any],
    *,
    top: int = 10,
    seed: int = 0,
    batch_tokens: int = 2048,
    progress: bool | None = None,
) -> Attribution:
    """Estimate the contribution of every active expert to a preference, and verify the largest by removal.

    Args:
        model: the hooked model.
        pairs: crossed contrasts or minimal pairs, as `prefer` takes them. The frames of each kind are split into two
            halves with `seed`.
        top: number of contributions to verify, the largest in either direction.
        seed: seed of the halves.
        batch_tokens: number of tokens that run together.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        Contributions `[layer, expert]` on one half, and those of `top` experts with their removal on the other.

    Raises:
        UnknownNameError: there is no such file or kind.
        MoeLensError: there are no pairs, or a kind has a single frame.

    Example:
        >>> result = moelens.attribute(demo_model, moelens.japanese.contrasts("kin-terms")[::6], top=1)
        >>> result.routed.shape, len(result.top)
        ((4, 32), 1)
    """
    require_hooked(model)
    given = as_items(pairs)
    discovery, test = half_of(given, "discovery", seed), half_of(given, "test", seed)
    layers, n_experts = model.shape.moe_layers, model.shape.n_experts
    discovered, repeated = (contributions(model, half, batch_tokens).mean(0) for half in (discovery, test))
    largest = np.argsort(-np.abs(discovered), axis=None)[:top]
    before = margins(model, test, batch_tokens)
    verified = []
    for index in progress_bar(largest, desc="removing", show=progress):
        layer, expert = divmod(int(index), n_experts + 1)
        shared = expert == n_experts
        with model.intervene(remove(layers[layer], "shared" if shared else [expert])):
            change = margins(model, test, batch_tokens) - before
        low, high = mean_interval(change, [p.frame for p in test])
        verified.append(
            Contribution(
                layer=layers[layer],
                expert=None if shared else expert,
                attributed=float(discovered[layer, expert]),
                repeated=float(repeated[layer, expert]),
                change=float(change.mean()),
                low=low,
                high=high,
            )
        )
    decreases = [-c.change for c in verified]
    return Attribution(
        model=model.name,
        kinds=tuple(dict.fromkeys(p.kind for p in given)),
        layers=tuple(layers),
        routed=discovered[:, :-1],
        shared=discovered[:, -1],
        top=tuple(verified),
        rank_correlation=spearman([c.attributed for c in verified], decreases),
        rank_correlation_test=spearman([c.repeated for c in verified], decreases),
        pairs=(len(discovery), len(test)),
        seed=seed,
    )


def contributions(model: HookedMoE, items: Sequence[Item], batch_tokens: int = 2048) -> Floats:
    """Return the contribution of each expert to the margin of each item, with one backward pass for each batch.

    Returns:
        Nats, `[item, layer, expert]`; the last expert is the shared one.

    Raises:
        MoeLensError: the outputs of a layer's experts cannot be read.
    """
    pairs, owner = split_items(items)
    layers, n = model.shape.moe_layers, model.shape.n_experts
    values = np.zeros((len(pairs), len(layers), n + 1))
    points = {f"blocks.{layer}.mlp.experts.hook_out": i for i, layer in enumerate(layers)}
    points |= {
        name: i for i, layer in enumerate(layers) if (name := f"blocks.{layer}.mlp.shared.hook_out") in model.hook_dict
    }
    outputs: dict[str, Tensor] = {}

    def save(output: Tensor, hook: Any) -> Tensor:
        outputs[hook.name] = output if output.requires_grad else output.detach().requires_grad_()
        return outputs[hook.name]

    for batch in text_batches(model, pair_texts(pairs), batch_tokens, group_size=2):
        with torch.enable_grad(), model.hooks([(name, save) for name in points]):
            total = batch_margins(batch.logits(model), batch).sum()
        gradients = torch.autograd.grad(total, [outputs[name] for name in points])
        rows = np.array(batch.rows)[::2] // 2
        for (name, i), gradient in zip(points.items(), gradients, strict=True):
            # [batch, pos], and for routed experts [batch, pos, slot]
            terms = (gradient.float() * outputs[name].detach().float()).sum(-1).double()
            if terms.ndim == 2:
                values[rows, i, n] += _pair_sums(terms.sum(1))
                continue
            chosen = model.running.slots[layers[i]].flatten(1).to(terms.device)
            by_expert = terms.new_zeros(len(terms), n).scatter_add(1, chosen, terms.flatten(1))
            values[rows, i, :n] += _pair_sums(by_expert)
        outputs.clear()
    summed = np.zeros((len(items), *values.shape[1:]))
    np.add.at(summed, owner, values)
    return summed


def _pair_sums(rows: Tensor) -> Floats:
    """Return the sums of the rows of the good and the bad text of each pair."""
    return np.asarray((rows[0::2] + rows[1::2]).cpu().numpy())


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation, with ties broken by order; NaN for fewer than two values.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    if len(a) < 2:
        return float("nan")
    ranks = np.stack([np.argsort(np.argsort(values)) for values in (a, b)]).astype(float)
    return float(np.corrcoef(ranks)[0, 1])
