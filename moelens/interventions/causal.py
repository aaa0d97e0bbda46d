"""`causes`: which experts cause a preference, by attribution, exact removal and matched controls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from moelens.analysis.randomize import ALPHA
from moelens.analysis.tables import number, plain_table, signed_interval, signed_number
from moelens.display import Plotted
from moelens.errors import MoeLensError
from moelens.interventions.attribution import Attribution, attribute
from moelens.interventions.effects import Effect, KindEffect, effect
from moelens.interventions.operations import remove
from moelens.interventions.text_pairs import as_pairs
from moelens.saved import SavedRows

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE


@dataclass(frozen=True, repr=False)
class Causes(Plotted, SavedRows):
    """Which experts cause a preference: found by attribution, removed one by one, and compared with matched controls.

    Attributes:
        attribution: the attribution by which the experts were found.
        effects: the effect of removing each routed expert of `attribution.top` on the test half, in that order.
        joint: the effect of removing all of these together; None if there are fewer than two.
    """

    FORMAT: ClassVar[str] = "moelens.causes/1"

    attribution: Attribution
    effects: tuple[Effect, ...]
    joint: Effect | None

    @property
    def p_holm(self) -> tuple[float, ...]:
        """p of each effect, corrected for their number (Holm 1979)."""
        return tuple(holm_correction([e.kinds[0].p for e in self.effects]))

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each expert removed, and one for all of them together, whose p is not corrected."""
        effects = [*zip(self.effects, self.p_holm, strict=True), *([(self.joint, None)] if self.joint else [])]
        return [{"intervention": " + ".join(e.interventions), **asdict(e.kinds[0]), "p_holm": p} for e, p in effects]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, `p_holm` included."""
        return super().to_dict() | {"p_holm": list(self.p_holm)}

    def __repr__(self) -> str:
        if not self.effects:
            return repr(self.attribution)
        first = self.effects[0]
        header = ("", "change", "95 %", "flip", "controls", "95 %", "p", "p Holm", "KL elsewhere")
        rows = [_row(e, p) for e, p in zip(self.effects, self.p_holm, strict=True)]
        lines = [
            repr(self.attribution),
            f"\non the test half, compared with the removal of {first.draws} similar experts for each; the smallest p "
            f"is {number(1 / (1 + first.draws))}",
        ]
        if self.joint is not None:
            rows.append(("all of these", *_row(self.joint, float("nan"))[1:]))
            lines[-1] += f" ({self.joint.draws} sets of experts for all of these, {number(1 / (1 + self.joint.draws))})"
        return "\n".join([*lines, plain_table(header, rows), *self.verdict()])

    def verdict(self) -> list[str]:
        """Return the conclusions of the table in sentences: which experts differ from similar ones, and how."""
        least, n = 1 / (1 + self.effects[0].draws), len(self.effects)
        significant = [e for e, p in zip(self.effects, self.p_holm, strict=True) if p < ALPHA]
        lines = [f"{len(significant)} of {n} change the margin more than similar experts do (p Holm < {ALPHA})"]
        if n * least >= ALPHA:
            draws = int(np.ceil(n / ALPHA))
            lines[0] += (
                f"; with {n} tests and a smallest p of {number(least)} none can: give draws={draws} (--draws {draws})"
            )
        lines += [f"{e.interventions[0]}: {_direction(e.kinds[0])}" for e in significant]
        if self.joint is not None and self.joint.kinds[0].p < ALPHA:
            lines.append(f"all of these, p {number(self.joint.kinds[0].p)}: {_direction(self.joint.kinds[0])}")
        return lines


def _direction(k: KindEffect) -> str:
    """Return the direction of a change in words, if its interval excludes 0."""
    change = f"{signed_number(k.change)} nats, 95 % {signed_interval(k.low, k.high)}"
    if k.low <= 0 <= k.high:
        return f"the change differs between sentences and its direction is uncertain ({change}, includes 0)"
    return f"the model prefers the good text {'less' if k.change < 0 else 'more'} without it ({change})"


def _row(e: Effect, corrected: float) -> tuple[str, ...]:
    k = e.kinds[0]
    return (
        e.interventions[0],
        signed_number(k.change),
        signed_interval(k.low, k.high),
        number(k.flip),
        signed_number(k.control),
        signed_interval(k.control_low, k.control_high),
        number(k.p),
        number(corrected),
        number(e.text.kl) if e.text else "–",
    )


def holm_correction(p: Sequence[float]) -> list[float]:
    """Return family-wise p values (Holm 1979).

    >>> holm_correction([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.array(p)
    order = np.argsort(values)
    scaled = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(scaled, 1)
    return [float(v) for v in corrected]


def causes(
    model: HookedMoE,
    pairs: str | Iterable[Any],
    *,
    top: int = 5,
    draws: int = 20,
    joint_draws: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> Causes:
    """Find the experts that contribute most to a preference, remove them, and compare with removing similar experts.

    Args:
        model: the hooked model.
        pairs: minimal pairs of one kind, as `effect` takes them. The experts are found on one half of the frames and
            tested on the other.
        top: number of routed and shared experts to find; the routed ones are removed.
        draws: number of matched controls for each routed expert, 20 or more.
        joint_draws: number of matched controls for all of them together, 20 or more.
        seed: seed of the halves, the controls and the bootstrap.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        The attribution, and the effects of removing each expert and all of them together.

    Raises:
        UnknownNameError: there is no such file or kind.
        MoeLensError: there are pairs of several kinds or none, a kind has a single frame, or there are too few experts
            for so many controls.

    Example:
        >>> result = moelens.causes(demo_model, moelens.japanese.pairs("respectful")[::10], top=1)
        >>> len(result.attribution.top), result.joint is None
        (1, True)
    """
    given = as_pairs(pairs)
    kinds = list(dict.fromkeys(p.kind for p in given))
    if len(kinds) > 1:
        raise MoeLensError(f"expected pairs of one kind, got {len(kinds)}: {', '.join(kinds)}; give one kind at a time")
    attribution = attribute(model, given, top=top, seed=seed, progress=progress)
    removals = [remove(c.layer, [c.expert]) for c in attribution.top if c.expert is not None]
    options: dict[str, Any] = {"half": "test", "seed": seed, "progress": progress}
    effects = tuple(effect(model, given, removal, draws=draws, **options) for removal in removals)
    joint = effect(model, given, removals, draws=joint_draws, **options) if len(removals) > 1 else None
    return Causes(attribution, effects, joint)
