"""`prefer`: which text of each minimal pair a model finds more likely, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from moelens.analysis.arrays import Floats
from moelens.analysis.tables import number, plain_table
from moelens.display import Plotted
from moelens.interventions.scoring import margins
from moelens.interventions.text_pairs import PAIR_FIELDS, MinimalPair, as_pairs
from moelens.saved import SavedCells

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_SHOWN = 20  # pairs that a printed result lists


@dataclass(frozen=True, kw_only=True)
class KindPreference:
    """Preference in the pairs of one kind.

    Attributes:
        kind: the kind of pair.
        pairs: number of pairs.
        preferred: share of pairs whose good text is more likely; a tie counts half, and chance is .5.
        low, high: Wilson's 95 % interval of `preferred`.
        margin: mean of log P(good) − log P(bad), in nats.
    """

    kind: str
    pairs: int
    preferred: float
    low: float
    high: float
    margin: float


@dataclass(frozen=True, eq=False, repr=False)
class Preferences(Plotted, SavedCells):
    """By how much a model prefers the good text of each pair.

    Attributes:
        model: name of the model.
        pairs: the pairs.
        margins: log P(good) − log P(bad) in nats, `[pair]`.
    """

    FORMAT: ClassVar[str] = "moelens.preferences/1"

    model: str
    pairs: tuple[MinimalPair, ...]
    margins: Floats

    @property
    def kinds(self) -> tuple[KindPreference, ...]:
        """A summary of each kind, in the order of the pairs."""
        return tuple(self._kind(kind) for kind in dict.fromkeys(p.kind for p in self.pairs))

    def _kind(self, kind: str) -> KindPreference:
        values = self.margins[[p.kind == kind for p in self.pairs]]
        share = float(((values > 0) + 0.5 * (values == 0)).mean())
        low, high = wilson_interval(share, len(values))
        margin = float(values.mean())
        return KindPreference(kind=kind, pairs=len(values), preferred=share, low=low, high=high, margin=margin)

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """The axis of pairs, with their ids."""
        return {"pair": tuple(p.id for p in self.pairs)}

    @property
    def cells(self) -> Mapping[str, Floats]:
        """The margins."""
        return {"margin": self.margins}

    @property
    def facts(self) -> Mapping[str, Any]:
        """Model and pairs, as JSON values."""
        return {"model": self.model, "pairs": [{name: getattr(p, name) for name in PAIR_FIELDS} for p in self.pairs]}

    @classmethod
    def build(cls, axes: Mapping[str, Any], cells: Mapping[str, Any], facts: Mapping[str, Any]) -> Preferences:
        """Make the result that has these cells and facts."""
        return cls(facts["model"], as_pairs(facts["pairs"]), np.asarray(cells["margin"]))

    def __repr__(self) -> str:
        header = ("kind", "pairs", "prefers the first", "95 %", "chance", "margin")
        rows = [
            (
                k.kind,
                str(k.pairs),
                number(k.preferred),
                f"[{number(k.low)}, {number(k.high)}]",
                ".500",
                f"{k.margin:+.3f}",
            )
            for k in self.kinds
        ]
        lines = [f"{self.model}: margins in nats, log P(first) − log P(second)", plain_table(header, rows)]
        if len(self.pairs) <= _SHOWN:
            shown = zip(self.margins, self.pairs, strict=True)
            lines += [f"{margin:+8.3f}  {p.context}[{p.good} / {p.bad}]" for margin, p in shown]
        return "\n".join(lines)


def prefer(model: HookedMoE, pairs: str | Iterable[Any], *, batch_tokens: int = 2048) -> Preferences:
    """Measure which text of each minimal pair the model finds more likely.

    Args:
        model: the hooked model. Within `model.intervene(...)` or `model.hooks(...)`, the interventions take effect.
        pairs: minimal pairs: objects such as `TextPair`, rows of a dataset, a `.jsonl` file, or a kind of the bundled
            pairs.
        batch_tokens: number of tokens that run together.

    Returns:
        The margin of each pair, with a summary of each kind.

    Raises:
        UnknownNameError: there is no such file or kind.
        MoeLensError: there are no pairs, or a pair lacks a field or has the same text twice.

    Example:
        >>> result = moelens.prefer(demo_model, moelens.japanese.pairs("polite-ending")[:5])
        >>> result.margins.shape, [k.kind for k in result.kinds]
        ((5,), ['polite-ending'])
    """
    chosen = as_pairs(pairs)
    return Preferences(model.name, chosen, margins(model, chosen, batch_tokens))


def wilson_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a proportion of `n` (Wilson 1927).

    >>> [round(x, 3) for x in wilson_interval(0.5, 100)]
    [0.404, 0.596]
    """
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half
