"""`prefer`: which text of each minimal pair a model finds more likely, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moelens.analysis.tables import number, plain_table
from moelens.display import Plotted
from moelens.errors import MoeLensError
from moelens.interventions.readout import FIELDS, Floats, Pair, as_pairs, margins
from moelens.saved import SavedCells
from moelens.text_files import split_lines

SHOWN = 20


@dataclass(frozen=True)
class KindPreference:
    """Pairs of one kind: the share in which the good text is preferred (a tie counts half), chance being .5.

    `low` and `high` are Wilson's 95 % interval of `preferred`; `margin` is the mean of log P(good) − log P(bad), nats.
    """

    kind: str
    pairs: int
    preferred: float
    low: float
    high: float
    margin: float


@dataclass(frozen=True, eq=False, repr=False)
class Preferences(Plotted, SavedCells):
    """By how many nats a model prefers the good text of each pair, `margins` `[pair]`."""

    FORMAT: ClassVar[str] = "moelens.preferences/1"

    model: str
    pairs: tuple[Pair, ...]
    margins: Floats

    @property
    def kinds(self) -> tuple[KindPreference, ...]:
        """A summary of each kind, in the order of the pairs."""
        found = []
        for kind in dict.fromkeys(p.kind for p in self.pairs):
            values = self.margins[[p.kind == kind for p in self.pairs]]
            share = float(((values > 0) + 0.5 * (values == 0)).mean())
            found.append(KindPreference(kind, len(values), share, *wilson(share, len(values)), float(values.mean())))
        return tuple(found)

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        return {"pair": tuple(p.id for p in self.pairs)}

    @property
    def cells(self) -> Mapping[str, Floats]:
        return {"margin": self.margins}

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"model": self.model, "pairs": [{name: getattr(p, name) for name in FIELDS} for p in self.pairs]}

    @classmethod
    def build(cls, axes: Mapping[str, Any], cells: Mapping[str, Any], facts: Mapping[str, Any]) -> Preferences:
        return cls(facts["model"], as_pairs(facts["pairs"]), np.asarray(cells["margin"]))

    def __repr__(self) -> str:
        header = ("kind", "pairs", "prefers the first", "95 %", "chance", "margin")
        rows = [
            (k.kind, str(k.pairs), number(k.preferred), f"[{number(k.low)}, {number(k.high)}]", ".500",
             f"{k.margin:+.3f}")
            for k in self.kinds
        ]  # fmt: skip
        lines = [f"{self.model}: margins in nats, log P(first) − log P(second)", plain_table(header, rows)]
        if len(self.pairs) <= SHOWN:
            shown = zip(self.margins, self.pairs, strict=True)
            lines += [f"{margin:+8.3f}  {p.context}[{p.good} / {p.bad}]" for margin, p in shown]
        return "\n".join(lines)


def prefer(model: Any, pairs: str | Iterable[Any], *, batch_tokens: int = 2048) -> Preferences:
    """Which text of each pair the model finds more likely.

    Args:
        model: a hooked model; inside `model.intervene(...)` or `model.hooks(...)` their effect counts.
        pairs: see `moelens.interventions.readout.Pair`; rows of a dataset will do.
        batch_tokens: tokens that run together.

    Raises:
        MoeLensError: no pairs, or one without a field or with twice the same text.

    Example:
        >>> moelens.prefer(model, moelens.japanese.pairs("polite-ending"))  # doctest: +SKIP
    """
    chosen = as_pairs(pairs)
    return Preferences(model.name, chosen, margins(model, chosen, batch_tokens))


def read_lines(text: str) -> list[dict[str, str]]:
    """Pairs as a person writes them: `context | better | worse`, one a line; the context may be empty.

    >>> read_lines("明日は学校へ | 行きます。 | 行く。")[0]["good"]
    '行きます。'

    Raises:
        MoeLensError: a line that is not of this form, by its number, or no line at all.
    """
    found = []
    for at, line in enumerate(split_lines(text), 1):
        parts = [part.strip(" \t\u3000") for part in line.replace("｜", "|").split("|")]
        if not line.strip():
            continue
        if len(parts) != 3 or not parts[1] or not parts[2]:
            raise MoeLensError(f"line {at} is {line.strip()!r}; write context | better | worse")
        name = f"line-{at}"
        found.append(dict(zip(FIELDS, (name, "given", name, *parts), strict=True)))
    if not found:
        raise MoeLensError("no pairs; write one a line as context | better | worse")
    return found


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927).

    >>> [round(x, 3) for x in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half
