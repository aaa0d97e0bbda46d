"""`prefer`: whether a model prefers what the context licenses, in contrasts and pairs, and by how much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from moelens.analysis.arrays import Floats
from moelens.analysis.tables import number, plain_table, signed_interval, signed_number
from moelens.display import Plotted
from moelens.interventions.items import CONTRAST_FIELDS, PAIR_FIELDS, Item, as_items, is_contrast, pairs_within
from moelens.interventions.scoring import margins, mean_interval, share_interval
from moelens.models.hooked_check import require_hooked
from moelens.saved import SavedCells
from moelens.texts import Texts

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_SHOWN = 20  # pairs that a printed result lists


@dataclass(frozen=True, kw_only=True)
class KindPreference:
    """Preference in the items of one kind. Intervals are 95 % intervals over frames, NaN for fewer than four frames.

    Attributes:
        kind: the kind of contrast or pair.
        items: number of contrasts or pairs.
        frames: number of frames.
        accuracy: share of items with a margin above 0; a tie counts half, and chance is .5.
        accuracy_low, accuracy_high: the interval of `accuracy`.
        margin: mean margin in nats: the interaction of a contrast, log P(good) − log P(bad) of a pair.
        margin_low, margin_high: the interval of `margin`.
    """

    kind: str
    items: int
    frames: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    margin: float
    margin_low: float
    margin_high: float


@dataclass(frozen=True, eq=False, repr=False)
class Preferences(Plotted, SavedCells):
    """By how much a model prefers what the context licenses, in each contrast or pair.

    Attributes:
        model: name of the model.
        items: the contrasts or pairs.
        margins: the interaction of each contrast, or log P(good) − log P(bad) of each pair, in nats, `[item]`.
    """

    FORMAT: ClassVar[str] = "moelens.preferences/2"

    model: str
    items: tuple[Item, ...]
    margins: Floats

    @property
    def kinds(self) -> tuple[KindPreference, ...]:
        """A summary of each kind, in the order of the items."""
        return tuple(self._kind(kind) for kind in dict.fromkeys(i.kind for i in self.items))

    def _kind(self, kind: str) -> KindPreference:
        values = self.margins[[i.kind == kind for i in self.items]]
        frames = [i.frame for i in self.items if i.kind == kind]
        hits = (values > 0) + 0.5 * (values == 0)
        accuracy_low, accuracy_high = share_interval(hits, frames)
        margin_low, margin_high = mean_interval(values, frames)
        return KindPreference(
            kind=kind,
            items=len(values),
            frames=len(set(frames)),
            accuracy=float(hits.mean()),
            accuracy_low=accuracy_low,
            accuracy_high=accuracy_high,
            margin=float(values.mean()),
            margin_low=margin_low,
            margin_high=margin_high,
        )

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """The axis of items, with their ids."""
        return {"item": tuple(i.id for i in self.items)}

    @property
    def cells(self) -> Mapping[str, Floats]:
        """The margins by name, `[item]`, in nats."""
        return {"margin": self.margins}

    @property
    def facts(self) -> Mapping[str, Any]:
        """Model and items, as JSON values."""
        rows = [
            {name: getattr(i, name) for name in (CONTRAST_FIELDS if is_contrast(i) else PAIR_FIELDS)}
            for i in self.items
        ]
        return {"model": self.model, "items": rows}

    @classmethod
    def build(cls, axes: Mapping[str, Any], cells: Mapping[str, Any], facts: Mapping[str, Any]) -> Preferences:
        """Make the result that has these axes, cells and facts.

        Args:
            axes, cells, facts: what the properties of these names return.
        """
        return cls(facts["model"], as_items(facts["items"]), np.asarray(cells["margin"]))

    def __repr__(self) -> str:
        return self.table()

    def table(self, lang: str | Texts = "en") -> str:
        """Return a plain table with a row for each kind, in English ("en") or "ja", and the items if they are few."""
        say = Texts(lang)
        columns = ("kind", "items", "frames", "accuracy", "interval", "chance", "margin", "interval")
        rows = [
            (
                say.name("kind", k.kind),
                str(k.items),
                str(k.frames),
                number(k.accuracy),
                f"[{number(k.accuracy_low)}, {number(k.accuracy_high)}]",
                ".500",
                signed_number(k.margin),
                signed_interval(k.margin_low, k.margin_high),
            )
            for k in self.kinds
        ]
        lines = [say("effects.prefer", model=self.model)]
        lines.append(plain_table([say(f"effects.{name}") for name in columns], rows))
        if len(self.items) <= _SHOWN:
            lines += [f"{margin:+8.3f}  {_shown(item)}" for margin, item in zip(self.margins, self.items, strict=True)]
        return "\n".join(lines)


def _shown(item: Any) -> str:
    """Return an item in one line."""
    parts = (f"{p.context}[{p.good} / {p.bad}]" for p in pairs_within(item))
    return " | ".join(parts).replace("\n", "↵")


def prefer(model: HookedMoE, pairs: str | Iterable[Any], *, batch_tokens: int = 2048) -> Preferences:
    """Measure whether the model prefers what the context licenses.

    Args:
        model: the hooked model. Within `model.intervene(...)` or `model.hooks(...)`, the interventions take effect.
        pairs: crossed contrasts or minimal pairs: objects such as `TextContrast` and `TextPair`, rows of a dataset, a
            `.jsonl` file, or a kind of the bundled ones.
        batch_tokens: number of tokens that run together.

    Returns:
        The margin of each item, with a summary of each kind: accuracy and mean margin, with intervals over frames.

    Raises:
        UnknownNameError: there is no such file or kind.
        MoeLensError: there are no items, or an item lacks a field or has the same text twice.

    Example:
        >>> result = moelens.prefer(demo_model, moelens.japanese.contrasts("style-agreement")[:5])
        >>> result.margins.shape, [k.kind for k in result.kinds]
        ((5,), ['style-agreement'])
    """
    require_hooked(model)
    chosen = as_items(pairs)
    return Preferences(model.name, chosen, margins(model, chosen, batch_tokens))
