"""`causes`: which experts cause a preference, by attribution, exact removal and matched controls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from moelens.analysis.tables import number, plain_table
from moelens.display import Plotted
from moelens.errors import MoeLensError
from moelens.interventions.attribution import Attribution, attribute
from moelens.interventions.effects import Effect, KindEffect, effect, interval, signed
from moelens.interventions.operations import remove
from moelens.interventions.readout import as_pairs
from moelens.saved import SavedRows

ALPHA = 0.05


@dataclass(frozen=True, repr=False)
class Causes(Plotted, SavedRows):
    """Which experts cause a preference: found by attribution, removed one by one, held against matched controls.

    Attributes:
        effects: of removing each routed expert of `attribution.top`, on the test half, in that order.
        holm: p of each effect corrected for their number (Holm 1979).
        joint: of removing all of these at once; None where there are fewer than two.
    """

    FORMAT: ClassVar[str] = "moelens.causes/1"

    attribution: Attribution
    effects: tuple[Effect, ...]
    joint: Effect | None

    @property
    def holm(self) -> tuple[float, ...]:
        return tuple(holm([e.kinds[0].p for e in self.effects]))

    def records(self) -> list[dict[str, Any]]:
        """A row for each expert removed, and one for all of them at once, whose p is not one of those corrected."""
        effects = [*zip(self.effects, self.holm, strict=True), *([(self.joint, None)] if self.joint else [])]
        return [{"intervention": " + ".join(e.interventions), **asdict(e.kinds[0]), "holm": p} for e, p in effects]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"holm": list(self.holm)}

    def __repr__(self) -> str:
        if not self.effects:
            return repr(self.attribution)
        first = self.effects[0]
        header = ("", "change", "95 %", "flip", "controls", "95 %", "p", "p Holm", "KL elsewhere")
        rows = [_row(e, p) for e, p in zip(self.effects, self.holm, strict=True)]
        lines = [
            repr(self.attribution),
            f"\non the test half, beside the removal of {first.draws} others like each; the smallest p is "
            f"{number(1 / (1 + first.draws))}",
        ]
        if self.joint is not None:
            rows.append(("all of these", *_row(self.joint, float("nan"))[1:]))
            lines[-1] += f" ({self.joint.draws} sets of them for all, {number(1 / (1 + self.joint.draws))})"
        return "\n".join([*lines, plain_table(header, rows), *self.verdict()])

    def verdict(self) -> list[str]:
        """What the table says, in sentences: which experts stand out from others like them, and which way."""
        least, n = 1 / (1 + self.effects[0].draws), len(self.effects)
        sure = [e for e, p in zip(self.effects, self.holm, strict=True) if p < ALPHA]
        lines = [f"{len(sure)} of {n} change the margin more than others like them do (p Holm < {ALPHA})"]
        if n * least >= ALPHA:
            draws = int(np.ceil(n / ALPHA))
            lines[0] += f"; none could, at {n} times {number(least)}: give draws={draws} (--draws {draws})"
        lines += [f"{e.interventions[0]}: {direction(e.kinds[0])}" for e in sure]
        if self.joint is not None and self.joint.kinds[0].p < ALPHA:
            lines.append(f"all of these, p {number(self.joint.kinds[0].p)}: {direction(self.joint.kinds[0])}")
        return lines


def direction(k: KindEffect) -> str:
    """Which way a change goes, as far as its interval tells."""
    where = f"{signed(k.change)} nats, 95 % {interval(k.low, k.high)}"
    if k.low <= 0 <= k.high:
        return f"it differs between sentences and the direction is not settled ({where}, includes 0)"
    return f"the good text is {'less' if k.change < 0 else 'more'} preferred without it ({where})"


def _row(e: Effect, corrected: float) -> tuple[str, ...]:
    k = e.kinds[0]
    spread = (interval(k.low, k.high), number(k.flip), signed(k.control), interval(k.control_low, k.control_high))
    tests = (number(k.p), number(corrected), number(e.text.kl) if e.text else "–")
    return (e.interventions[0], signed(k.change), *spread, *tests)


def holm(p: Sequence[float]) -> list[float]:
    """Family-wise p (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.array(p)
    order = np.argsort(values)
    scaled = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(scaled, 1)
    return [float(v) for v in corrected]


def causes(
    model: Any,
    pairs: str | Iterable[Any],
    *,
    top: int = 5,
    draws: int = 20,
    joint_draws: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> Causes:
    """Find the experts that contribute most to a preference, remove them, and remove others like them.

    Args:
        pairs: of one kind; found on one half of its frames, tested on the other.
        top: routed and shared experts that are removed.
        draws: matched controls for each routed expert alone.
        joint_draws: matched controls for all of them together, of which there are many more.

    Raises:
        MoeLensError: pairs of several kinds, and as `attribute` and `effect` do.
    """
    given = as_pairs(pairs)
    kinds = list(dict.fromkeys(p.kind for p in given))
    if len(kinds) > 1:
        raise MoeLensError(f"pairs of {len(kinds)} kinds, {', '.join(kinds)}; give one kind at a time")
    found = attribute(model, given, top=top, seed=seed, progress=progress)
    removals = [remove(c.layer, [c.expert]) for c in found.top if c.expert is not None]
    options: dict[str, Any] = {"half": "test", "seed": seed, "progress": progress}
    effects = tuple(effect(model, given, removal, draws=draws, **options) for removal in removals)
    joint = effect(model, given, removals, draws=joint_draws, **options) if len(removals) > 1 else None
    return Causes(found, effects, joint)
