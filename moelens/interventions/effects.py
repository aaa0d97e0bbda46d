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
from moelens.interventions.controls import control_interventions, expert_usage
from moelens.interventions.intervention import Intervention
from moelens.interventions.scoring import bootstrap_interval, margins, pair_texts, text_divergence
from moelens.interventions.text_pairs import Half, MinimalPair, as_pairs, half_of
from moelens.saved import SavedRows

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

Controls = Literal["matched", "random"] | None


@dataclass(frozen=True, kw_only=True)
class KindEffect:
    """The effect on the pairs of one kind. Margins are log P(good) − log P(bad) in nats, as means over pairs.

    Attributes:
        kind: the kind of pair.
        pairs: number of pairs.
        frames: number of frames.
        before, after: margin without and with the intervention.
        change, low, high: `after` minus `before`, and its 95 % bootstrap interval over frames.
        flip, flip_low, flip_high: share of pairs whose preferred text changes, and its 95 % bootstrap interval.
        control, control_low, control_high: mean change under the controls, and the middle 95 % of the controls.
        p: (1 + controls whose absolute change is at least as large) / (1 + controls); NaN without controls.
    """

    kind: str
    pairs: int
    frames: int
    before: float
    after: float
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


@dataclass(frozen=True, kw_only=True)
class TextEffect:
    """The effect on text that is unrelated to the pairs.

    Attributes:
        texts: number of texts.
        tokens: number of tokens that are predicted.
        kl, kl_low, kl_high: KL(before ‖ after) in nats per token, and its 95 % bootstrap interval over texts.
        perplexity_before, perplexity_after: perplexity without and with the intervention.
    """

    texts: int
    tokens: int
    kl: float
    kl_low: float
    kl_high: float
    perplexity_before: float
    perplexity_after: float


@dataclass(frozen=True, repr=False, kw_only=True)
class Effect(Plotted, SavedRows):
    """What an intervention does to a model's preferences, and to the model elsewhere.

    Attributes:
        model: name of the model.
        interventions: the interventions in words, in the order in which they were applied.
        half: half of the frames: "discovery", "test", or "all".
        kinds: the effect on each kind of pair.
        text: the effect on unrelated text; None if it was not measured.
        control: how controls were drawn: "matched", "random", or "" for none.
        controls: the control interventions in words.
        seed: seed of the halves, the controls and the bootstrap.
    """

    FORMAT: ClassVar[str] = "moelens.effect/1"

    model: str
    interventions: tuple[str, ...]
    half: Half
    kinds: tuple[KindEffect, ...]
    text: TextEffect | None
    control: str
    controls: tuple[str, ...]
    seed: int

    @property
    def draws(self) -> int:
        """Number of controls."""
        return len(self.controls)

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each kind of pair."""
        return [asdict(k) for k in self.kinds]

    def table(self) -> str:
        """Return a plain table with a row for each kind of pair, and a line about unrelated text."""
        what = " + ".join(self.interventions) or "nothing"
        pairs = "all pairs"
        if self.half != "all":
            pairs = f"{sum(k.pairs for k in self.kinds)} pairs of the {self.half} half"
        against = f"{self.draws} {self.control} controls" if self.controls else "no controls"
        lines = [f"{self.model} · {what} · {pairs} · {against} · seed {self.seed}"]
        header = ("kind", "pairs", "margin", "change", "95 %", "flip", "95 %", "controls", "95 %", "p")
        shown = len(header) if self.controls else header.index("controls")
        lines.append(plain_table(header[:shown], [_row(k)[:shown] for k in self.kinds]))
        if self.text is not None:
            t = self.text
            lines.append(
                f"unrelated text ({t.texts} texts, {t.tokens:,} tokens): KL {number(t.kl)} "
                f"[{number(t.kl_low)}, {number(t.kl_high)}] nats a token, perplexity {number(t.perplexity_before)} to "
                f"{number(t.perplexity_after)}"
            )
        return "\n".join(lines)

    __repr__ = table


def _row(k: KindEffect) -> tuple[str, ...]:
    return (
        k.kind,
        str(k.pairs),
        number(k.before),
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
    draws: int = 20,
    half: Half = "all",
    texts: Sequence[str] | None = None,
    seed: int = 0,
    batch_tokens: int = 2048,
    progress: bool | None = None,
) -> Effect:
    """Measure how an intervention changes what a model prefers in minimal pairs, and its output elsewhere.

    Args:
        model: the hooked model.
        pairs: minimal pairs: objects such as `TextPair`, rows of a dataset, a `.jsonl` file, or a kind of the bundled
            pairs.
        intervention: one intervention, or several that are applied together in this order.
        controls: the same on other experts: "matched" on load, gate weight and output norm over the texts of the
            pairs, or "random". None measures only the change and its interval, in two passes over the pairs; the
            shared expert needs it, since there is no other expert like it.
        draws: number of controls, 20 or more; the smallest p is 1 / (draws + 1).
        half: "discovery" or "test" for one half of the frames of each kind, split with `seed`.
        texts: unrelated texts; None uses the bundled texts without honorifics, () measures none.
        seed: seed of the halves, the controls and the bootstrap.
        batch_tokens: number of tokens that run together.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        The effect on each kind of pair and on unrelated text.

    Raises:
        UnknownNameError: a layer, expert, label, half or kind of control does not exist.
        MoeLensError: there are no pairs, there are too few experts for so many controls, or the model cannot do the
            operation.

    Example:
        >>> pairs = moelens.japanese.pairs("respectful")[:4]
        >>> result = moelens.effect(demo_model, pairs, moelens.remove(3, [5]), controls=None, texts=())
        >>> result.interventions, [k.kind for k in result.kinds], result.kinds[0].pairs
        (('remove E5 in layer 3',), ['respectful'], 4)
    """
    if controls not in ("matched", "random", None):
        raise unknown("controls", controls, ("matched", "random", None))
    interventions = (intervention,) if isinstance(intervention, Intervention) else tuple(intervention)
    chosen = half_of(as_pairs(pairs), half, seed)
    with model.intervene(*interventions):
        pass  # raises an error for what the model cannot do, before anything is computed
    sets: list[tuple[Intervention, ...]] = []
    if controls is not None:
        usage = expert_usage(model, pair_texts(chosen), batch_tokens)
        sets = control_interventions(usage, interventions, draws, seed, controls == "matched")
    before = margins(model, chosen, batch_tokens)
    after = np.stack(list(_margins_under(model, chosen, [interventions, *sets], batch_tokens, progress)))
    unrelated = _plain_texts() if texts is None else texts
    divergence = text_divergence(model, unrelated, interventions, batch_tokens) if unrelated else None
    return Effect(
        model=model.name,
        interventions=tuple(map(str, interventions)),
        half=half,
        kinds=tuple(_kind_effects(chosen, before, after[0], after[1:], seed)),
        text=None if divergence is None else _text_effect(divergence, seed),
        control=controls or "",
        controls=tuple(" + ".join(map(str, i)) for i in sets),
        seed=seed,
    )


def _margins_under(
    model: HookedMoE,
    pairs: Sequence[MinimalPair],
    sets: Sequence[Sequence[Intervention]],
    batch_tokens: int,
    progress: bool | None,
) -> Iterator[Floats]:
    """Yield the margins `[pair]` under each set of interventions."""
    for interventions in progress_bar(sets, desc="interventions", show=progress):
        with model.intervene(*interventions):
            yield margins(model, pairs, batch_tokens)


def _kind_effects(
    pairs: Sequence[MinimalPair], before: Floats, after: Floats, controls: Floats, seed: int
) -> Iterator[KindEffect]:
    """Summarise margins `[pair]` (of `controls`: `[draw, pair]`) by kind."""
    for kind in dict.fromkeys(p.kind for p in pairs):
        of_kind = np.array([p.kind == kind for p in pairs])
        frames = [p.frame for p in pairs if p.kind == kind]
        change = after[of_kind] - before[of_kind]
        flipped = ((after > 0) != (before > 0))[of_kind].astype(float)
        drawn = (controls[:, of_kind] - before[of_kind]).mean(1)
        control_low, control_high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        reached = (np.abs(drawn) >= np.abs(change.mean()) - 1e-9).sum()
        low, high = bootstrap_interval(change, frames, seed)
        flip_low, flip_high = bootstrap_interval(flipped, frames, seed)
        yield KindEffect(
            kind=kind,
            pairs=int(of_kind.sum()),
            frames=len(set(frames)),
            before=float(before[of_kind].mean()),
            after=float(after[of_kind].mean()),
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


def _text_effect(sums: Floats, seed: int) -> TextEffect:
    """Turn the sums of `text_divergence` into means per token; the interval is over texts."""
    tokens, kl, before, after = sums.T
    drawn = np.random.default_rng(seed).integers(0, len(sums), (2000, len(sums)))
    low, high = np.percentile(kl[drawn].sum(1) / tokens[drawn].sum(1), [2.5, 97.5])
    n = tokens.sum()
    return TextEffect(
        texts=len(sums),
        tokens=int(n),
        kl=float(kl.sum() / n),
        kl_low=float(low),
        kl_high=float(high),
        perplexity_before=float(np.exp(-before.sum() / n)),
        perplexity_after=float(np.exp(-after.sum() / n)),
    )


def _plain_texts(limit: int = 64) -> list[str]:
    """Return the first `limit` texts of the bundled corpus without honorifics."""
    from moelens.recording.corpus import Corpus

    plain = (d.text for d in Corpus.of("demo") if not d.metadata.get("honorifics"))
    return [text for text, _ in zip(plain, range(limit), strict=False)]
