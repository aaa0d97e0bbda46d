"""`effect`: what an intervention does to a model's preferences, compared with the same on other experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from moelens.analysis.arrays import Floats
from moelens.analysis.tables import number, plain_table, signed_interval, signed_number
from moelens.bars import progress_bar
from moelens.display import Plotted
from moelens.errors import unknown
from moelens.interventions.controls import Balance, balance_lines, control_interventions, expert_usage, is_balanced
from moelens.interventions.intervention import Intervention, intervention_names
from moelens.interventions.items import Half, Item, as_items, half_of
from moelens.interventions.off_target import OffTarget, TextEffect, measure_off_target, plain_texts, text_effect
from moelens.interventions.scoring import (
    LEAST_FRAMES,
    margins,
    mean_interval,
    pair_texts,
    share_interval,
    split_items,
    text_divergence,
)
from moelens.models.hooked_check import require_hooked
from moelens.saved import SavedRows
from moelens.texts import Texts

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

Controls = Literal["matched", "random"] | None
_WEIGHTED = ("change", "control", "control_low", "control_high", "p")
_COLUMNS = ("kind", "items", "margin", "accuracy", "change", "interval", "flip", "interval", "control", "interval", "p")


@dataclass(frozen=True, kw_only=True)
class KindEffect:
    """The effect on the items of one kind, in nats, as means over items.

    The margin of a pair is log P(good) − log P(bad), that of a contrast the interaction. Intervals are 95 % intervals
    over frames, and NaN for fewer than four frames.

    Attributes:
        kind: the kind of pair or contrast.
        items: number of pairs or contrasts.
        frames: number of frames.
        before, after: margin without and with the intervention.
        accuracy, accuracy_after: share of items with a margin above 0 without and with the intervention.
        change, low, high: `after` minus `before`, and its interval.
        flip, flip_low, flip_high: share of items whose margin changes its sign, and its interval.
        control, control_low, control_high: mean change under the controls, and the middle 95 % of the controls.
        p: (1 + controls whose absolute change is at least as large) / (1 + controls); NaN without controls.
    """

    kind: str
    items: int
    frames: int
    before: float
    after: float
    accuracy: float
    accuracy_after: float
    change: float
    low: float
    high: float
    flip: float
    flip_low: float
    flip_high: float
    control: float
    control_low: float
    control_high: float
    p: float

    @property
    def certain(self) -> bool:
        """Whether the interval of the change excludes 0, so that the change has a direction; False if it is NaN."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class WeightedEffect:
    """The effect on one kind per unit of the routed weight of what is changed, for controls that are not balanced.

    Attributes:
        kind: the kind of pair or contrast.
        change: change of the margin in nats over routed weight; NaN if the experts are never chosen.
        control, control_low, control_high: the same for the controls that are ever chosen, each over its own weight:
            mean and middle 95 %.
        p: (1 + controls whose absolute value is at least as large) / (1 + controls).
    """

    kind: str
    change: float
    control: float
    control_low: float
    control_high: float
    p: float


@dataclass(frozen=True, repr=False, kw_only=True)
class Effect(Plotted, SavedRows):
    """What an intervention does to a model's preferences, and to the model elsewhere.

    Attributes:
        model: name of the model.
        interventions: the interventions in words, in the order in which they were applied.
        half: half of the frames: "discovery", "test", or "all".
        kinds: the effect on each kind of pair or contrast.
        text: the effect on unrelated text; None if it was not measured.
        off_target: the effect on the control contrasts; None if it was not measured.
        control: how controls were drawn: "matched", "random", or "" for none.
        controls: the control interventions in words.
        balance: how the controls compare with what is changed; empty without controls.
        per_weight: the effect per unit of routed weight on each kind, where matched controls are not balanced.
        seed: seed of the halves and the controls.
    """

    FORMAT: ClassVar[str] = "moelens.effect/3"

    model: str
    interventions: tuple[str, ...]
    half: Half
    kinds: tuple[KindEffect, ...]
    text: TextEffect | None
    off_target: OffTarget | None
    control: str
    controls: tuple[str, ...]
    balance: tuple[Balance, ...]
    per_weight: tuple[WeightedEffect, ...]
    seed: int

    @property
    def draws(self) -> int:
        """Number of controls."""
        return len(self.controls)

    @property
    def smallest_p(self) -> float:
        """The smallest p that this number of controls allows; NaN without controls."""
        return 1 / (1 + self.draws) if self.draws else float("nan")

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each kind."""
        return [asdict(k) for k in self.kinds]

    def table(self, lang: str | Texts = "en") -> str:
        """Return a plain table with a row for each kind, and a line for each comparison, in English ("en") or "ja"."""
        say = Texts(lang)
        items = say("effects.all_items")
        if self.half != "all":
            n = sum(k.items for k in self.kinds)
            items = say("effects.half_items", n=n, half=say.name("effects", self.half))
        against = say("effects.no_controls")
        if self.controls:
            against = say("effects.controls", draws=self.draws, control=say.name("effects", self.control))
        what = intervention_names(self.interventions, say) or say("effects.nothing")
        head = say("effects.table", model=self.model, what=what, items=items, against=against, seed=self.seed)
        shown = _COLUMNS if self.controls else _COLUMNS[: _COLUMNS.index("control")]
        rows = [_row(k, say)[: len(shown)] for k in self.kinds]
        table = plain_table([say(f"effects.{name}") for name in shown], rows)
        return "\n".join([head, table, *self.remarks(say)])

    def remarks(self, lang: str | Texts = "en") -> list[str]:
        """Return what else was measured, and what the numbers cannot show, a sentence each."""
        lines, say = [], Texts(lang)
        if any(k.frames < LEAST_FRAMES for k in self.kinds):
            lines.append(say("effects.few_frames", n=LEAST_FRAMES))
        if self.controls:
            lines.append(say("effects.smallest_p", draws=self.draws, p=number(self.smallest_p)))
            lines += balance_lines(self.balance, say)
            lines += self.weighted_lines(say)
        if self.off_target is not None:
            o, certain = self.off_target, any(k.certain for k in self.kinds)
            listed = ", ".join(
                f"{say.name('kind', k)} {signed_number(c)}" for k, c in zip(o.kinds, o.changes, strict=True)
            )
            lines.append(say("effects.off_target", listed=listed, said=o.in_words(say, certain=certain)))
        if self.text is not None:
            t = self.text
            figures = {"kl": t.kl, "low": t.kl_low, "high": t.kl_high}
            figures |= {"before": t.perplexity_before, "after": t.perplexity_after}
            shown = {name: number(value) for name, value in figures.items()}
            lines.append(say("effects.text", texts=t.texts, tokens=f"{t.tokens:,}", **shown))
        return lines

    def weighted_lines(self, lang: str | Texts = "en") -> list[str]:
        """Return the change per unit of routed weight, beside that of the controls, a line for each kind."""
        say = Texts(lang)
        return [
            say(
                "effects.per_weight",
                kind=say.name("kind", w.kind),
                change=signed_number(w.change),
                control=signed_number(w.control),
                interval=signed_interval(w.control_low, w.control_high),
                p=number(w.p),
            )
            for w in self.per_weight
        ]

    def __repr__(self) -> str:
        return self.table()


def _row(k: KindEffect, say: Texts) -> tuple[str, ...]:
    return (
        say.name("kind", k.kind),
        str(k.items),
        number(k.before),
        say("effects.to", before=number(k.accuracy), after=number(k.accuracy_after)),
        signed_number(k.change),
        signed_interval(k.low, k.high),
        number(k.flip),
        f"[{number(k.flip_low)}, {number(k.flip_high)}]",
        signed_number(k.control),
        signed_interval(k.control_low, k.control_high),
        number(k.p),
    )


def effect(
    model: HookedMoE,
    pairs: str | Iterable[Any],
    intervention: Intervention | Sequence[Intervention],
    *,
    controls: Controls = "matched",
    draws: int = 100,
    half: Half = "all",
    texts: Sequence[str] | None = None,
    off_target: bool = True,
    seed: int = 0,
    batch_tokens: int = 2048,
    progress: bool | None = None,
) -> Effect:
    """Measure how an intervention changes what a model prefers in contrasts or pairs, and its output elsewhere.

    Args:
        model: the hooked model.
        pairs: crossed contrasts or minimal pairs: objects such as `TextContrast` and `TextPair`, rows of a dataset, a
            `.jsonl` file, or a kind of the bundled ones.
        intervention: one intervention, or several that are applied together in this order.
        controls: the same on other experts: "matched" on what is changed (routed weight, output norm and load on the
            texts of the pairs; see `control_sets`), or "random". None measures only the change and its interval; the
            shared expert needs it, since there is no other expert like it.
        draws: number of controls, 20 or more; the smallest p is 1 / (draws + 1).
        half: "discovery" or "test" for one half of the frames of each kind, split with `seed`.
        texts: unrelated texts; None uses the bundled texts without honorifics, () measures none.
        off_target: measure the change on the bundled control contrasts of the same half too.
        seed: seed of the halves and the controls.
        batch_tokens: number of tokens that run together.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        The effect on each kind of pair and on unrelated text.

    Raises:
        UnknownNameError: a layer, expert, label, half or kind of control does not exist.
        MoeLensError: there are no pairs, there are too few experts for so many controls, or the model cannot do the
            operation.

    Example:
        >>> pairs = moelens.japanese.pairs("title")[:4]
        >>> result = moelens.effect(
        ...     demo_model, pairs, moelens.remove(3, [5]), controls=None, texts=(), off_target=False
        ... )
        >>> result.interventions, [k.kind for k in result.kinds], result.kinds[0].items
        (('remove E5 in layer 3',), ['title'], 4)
    """
    require_hooked(model)
    if controls not in ("matched", "random", None):
        raise unknown("controls", controls, ("matched", "random", None))
    interventions = (intervention,) if isinstance(intervention, Intervention) else tuple(intervention)
    chosen = half_of(as_items(pairs), half, seed)
    with model.intervene(*interventions):
        pass  # raises an error for what the model cannot do, before anything is computed
    sets: list[tuple[Intervention, ...]] = []
    balance: tuple[Balance, ...] = ()
    weights = np.zeros(0)
    if controls is not None:
        usage = expert_usage(model, pair_texts(split_items(chosen)[0]), batch_tokens)
        sets, balance, weights = control_interventions(usage, interventions, draws, seed, controls == "matched")
    before = margins(model, chosen, batch_tokens)
    after = np.stack(list(_margins_under(model, chosen, [interventions, *sets], batch_tokens, progress)))
    unrelated = plain_texts() if texts is None else texts
    text = text_effect(text_divergence(model, unrelated, interventions, batch_tokens), seed) if unrelated else None
    effects = tuple(_kind_effects(chosen, before, after[0], after[1:]))
    on_target = {k.kind: k.change for k in effects}
    return Effect(
        model=model.name,
        interventions=tuple(map(str, interventions)),
        half=half,
        kinds=effects,
        text=text,
        off_target=(
            measure_off_target(model, on_target, interventions, half, text, batch_tokens) if off_target else None
        ),
        control=controls or "",
        controls=tuple(" + ".join(map(str, i)) for i in sets),
        balance=balance,
        per_weight=(
            tuple(_weighted_effects(chosen, after - before, weights))
            if controls == "matched" and not is_balanced(balance)
            else ()
        ),
        seed=seed,
    )


def _margins_under(
    model: HookedMoE,
    items: Sequence[Item],
    sets: Sequence[Sequence[Intervention]],
    batch_tokens: int,
    progress: bool | None,
) -> Iterator[Floats]:
    """Yield the margins `[item]` under each set of interventions."""
    for interventions in progress_bar(sets, desc="interventions", show=progress):
        with model.intervene(*interventions):
            yield margins(model, items, batch_tokens)


def _kind_effects(items: Sequence[Item], before: Floats, after: Floats, controls: Floats) -> Iterator[KindEffect]:
    """Summarise margins `[item]` (of `controls`: `[draw, item]`) by kind."""
    for kind in dict.fromkeys(i.kind for i in items):
        of_kind = np.array([i.kind == kind for i in items])
        frames = [i.frame for i in items if i.kind == kind]
        change = after[of_kind] - before[of_kind]
        flipped = ((after > 0) != (before > 0))[of_kind].astype(float)
        drawn = (controls[:, of_kind] - before[of_kind]).mean(1)
        control_low, control_high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        reached = (np.abs(drawn) >= np.abs(change.mean()) - 1e-9).sum()
        low, high = mean_interval(change, frames)
        flip_low, flip_high = share_interval(flipped, frames)
        yield KindEffect(
            kind=kind,
            items=int(of_kind.sum()),
            frames=len(set(frames)),
            before=float(before[of_kind].mean()),
            after=float(after[of_kind].mean()),
            accuracy=float((before[of_kind] > 0).mean()),
            accuracy_after=float((after[of_kind] > 0).mean()),
            change=float(change.mean()),
            low=low,
            high=high,
            flip=float(flipped.mean()),
            flip_low=flip_low,
            flip_high=flip_high,
            control=float(drawn.mean()) if len(drawn) else np.nan,
            control_low=float(control_low),
            control_high=float(control_high),
            p=float((1 + reached) / (1 + len(drawn))) if len(drawn) else np.nan,
        )


def _weighted_effects(items: Sequence[Item], changes: Floats, weights: Floats) -> Iterator[WeightedEffect]:
    """Yield for each kind the change per routed weight; both arrays `[1 + draw, …]` begin with the intervention.

    Controls that are never chosen have no such change and are left out. NaN if nothing is left.
    """
    used = weights > 0
    for kind in dict.fromkeys(i.kind for i in items):
        of_kind = changes[:, [i.kind == kind for i in items]].mean(1)
        if not used[0] or not used[1:].any():
            yield WeightedEffect(kind=kind, **dict.fromkeys(_WEIGHTED, float("nan")))
            continue
        change, *drawn = of_kind[used] / weights[used]
        low, high = np.percentile(drawn, [2.5, 97.5])
        reached = int((np.abs(drawn) >= abs(change) - 1e-9).sum())
        yield WeightedEffect(
            kind=kind,
            change=float(change),
            control=float(np.mean(drawn)),
            control_low=float(low),
            control_high=float(high),
            p=(1 + reached) / (1 + len(drawn)),
        )
