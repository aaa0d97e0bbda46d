"""`effect`: what an intervention does to a model's preferences, beside what the same does to other experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from moelens.analysis.tables import number, plain_table
from moelens.bars import progress_bar
from moelens.display import Plotted
from moelens.errors import unknown
from moelens.interventions.controls import control_interventions, usage
from moelens.interventions.operations import Intervention
from moelens.interventions.readout import (
    Floats,
    Half,
    Pair,
    as_pairs,
    bootstrap,
    half_of,
    margins,
    text_divergence,
    texts_of,
)
from moelens.saved import SavedRows

Controls = Literal["matched", "random"] | None


@dataclass(frozen=True)
class KindEffect:
    """Of the pairs of one kind; margins are log P(good) − log P(bad) in nats, means over pairs.

    Attributes:
        change, low, high: after less before, and its 95 % bootstrap interval over frames.
        flip, flip_low, flip_high: share of pairs in which the other text is preferred now.
        control, control_low, control_high: mean change under the controls, and what 95 % of them lie within.
        p: (1 + controls that change the margin at least as much, either way) / (1 + controls). NaN without controls.
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


@dataclass(frozen=True)
class TextEffect:
    """On text that has nothing to do with the pairs: KL(before ‖ after) in nats a token, with its 95 % interval."""

    texts: int
    tokens: int
    kl: float
    kl_low: float
    kl_high: float
    perplexity_before: float
    perplexity_after: float


@dataclass(frozen=True, repr=False)
class Effect(Plotted, SavedRows):
    """What an intervention does.

    Attributes:
        interventions: in words, in the order they were applied.
        half: on which half of the frames: "discovery", "test", or "all".
        controls: the control interventions, in words.
        control: how controls were drawn ("matched", "random", or "" for none); draws: how many; seed: of everything.
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
        return len(self.controls)

    def records(self) -> list[dict[str, Any]]:
        return [asdict(k) for k in self.kinds]

    def table(self) -> str:
        """A row a kind of pair, and a line for unrelated text."""
        what = " + ".join(self.interventions) or "nothing"
        pairs = (
            f"{sum(k.pairs for k in self.kinds)} pairs of the {self.half} half" if self.half != "all" else "all pairs"
        )
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
        signed(k.change),
        interval(k.low, k.high),
        number(k.flip),
        f"[{number(k.flip_low)}, {number(k.flip_high)}]",
        signed(k.control),
        interval(k.control_low, k.control_high),
        number(k.p),
    )


def signed(value: float) -> str:
    """Three decimals and the sign; a dash where it is undefined.

    >>> signed(-0.31234), signed(0.0001), signed(float("nan"))
    ('-0.312', '+0.000', '–')
    """
    return f"{value:+.3f}" if np.isfinite(value) else "–"


def interval(low: float, high: float) -> str:
    return f"[{signed(low)}, {signed(high)}]" if np.isfinite(low) else ""


def effect(
    model: Any,
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
    """How an intervention changes what a model prefers in minimal pairs, and how it changes the model elsewhere.

    Args:
        pairs: see `moelens.interventions.readout.Pair`; rows of a dataset will do.
        intervention: one, or several that are applied together in this order.
        controls: the same on other experts, "matched" on load, gate weight and output norm over the pairs' texts, or
            "random"; None for none, as for the shared expert, which has no like: the change and its interval alone,
            in two passes over the pairs.
        draws: controls, 20 or more; the smallest p is 1 / (draws + 1).
        half: "discovery" or "test" for one half of the frames of each kind, split with `seed`.
        texts: unrelated text; None for the bundled texts without honorifics, () for none.
        seed: of the halves, the controls and the bootstrap.

    Raises:
        MoeLensError: no pairs, too few experts for so many controls, or an operation the model cannot do.

    Example:
        >>> pairs = moelens.japanese.pairs(kind="respectful-humble")     # doctest: +SKIP
        >>> moelens.effect(model, pairs, remove(layer=3, experts=[5]))   # doctest: +SKIP
    """
    if controls not in ("matched", "random", None):
        raise unknown("controls", controls, ("matched", "random", None))
    interventions = (intervention,) if isinstance(intervention, Intervention) else tuple(intervention)
    chosen = half_of(as_pairs(pairs), half, seed)
    with model.intervene(*interventions):
        pass  # what the model cannot do is refused before anything is computed
    sets: list[tuple[Intervention, ...]] = []
    if controls is not None:
        found = usage(model, texts_of(chosen), batch_tokens)
        sets = control_interventions(found, interventions, draws, seed, controls == "matched")
    before = margins(model, chosen, batch_tokens)
    after = np.stack(list(_under(model, chosen, [interventions, *sets], batch_tokens, progress)))
    unrelated = plain_texts() if texts is None else texts
    return Effect(
        model.name,
        tuple(map(str, interventions)),
        half,
        tuple(kind_effects(chosen, before, after[0], after[1:], seed)),
        text_effect(text_divergence(model, unrelated, interventions, batch_tokens), seed) if unrelated else None,
        controls or "",
        tuple(" + ".join(map(str, i)) for i in sets),
        seed,
    )


def _under(
    model: Any, pairs: Sequence[Pair], sets: Sequence[Sequence[Intervention]], batch_tokens: int, progress: bool | None
) -> Iterator[Floats]:
    for interventions in progress_bar(sets, desc="interventions", show=progress):
        with model.intervene(*interventions):
            yield margins(model, pairs, batch_tokens)


def kind_effects(
    pairs: Sequence[Pair], before: Floats, after: Floats, controls: Floats, seed: int
) -> Iterator[KindEffect]:
    """From margins `[pair]` (of `controls`: `[draw, pair]`) to a summary of each kind."""
    for kind in dict.fromkeys(p.kind for p in pairs):
        at = np.array([p.kind == kind for p in pairs])
        frames = [p.frame for p in pairs if p.kind == kind]
        change, flipped = after[at] - before[at], ((after > 0) != (before > 0))[at].astype(float)
        drawn = (controls[:, at] - before[at]).mean(1)
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        reached = (np.abs(drawn) >= np.abs(change.mean()) - 1e-9).sum()
        yield KindEffect(
            kind,
            int(at.sum()),
            len(set(frames)),
            float(before[at].mean()),
            float(after[at].mean()),
            float(change.mean()),
            *bootstrap(change, frames, seed),
            float(flipped.mean()),
            *bootstrap(flipped, frames, seed),
            float(drawn.mean()) if len(drawn) else np.nan,
            float(low),
            float(high),
            float((1 + reached) / (1 + len(drawn))) if len(drawn) else np.nan,
        )


def text_effect(sums: Floats, seed: int) -> TextEffect:
    """From the sums of `text_divergence` to means a token; the interval is over texts."""
    tokens, kl, before, after = sums.T
    drawn = np.random.default_rng(seed).integers(0, len(sums), (2000, len(sums)))
    low, high = np.percentile(kl[drawn].sum(1) / tokens[drawn].sum(1), [2.5, 97.5])
    n = tokens.sum()
    perplexities = (float(np.exp(-total.sum() / n)) for total in (before, after))
    return TextEffect(len(sums), int(n), float(kl.sum() / n), float(low), float(high), *perplexities)


def plain_texts(limit: int = 64) -> list[str]:
    """Texts of the bundled corpus without honorifics, the first `limit`."""
    from moelens.recording.corpus import Corpus

    plain = (d.text for d in Corpus.of("demo") if not d.metadata.get("honorifics"))
    return [text for text, _ in zip(plain, range(limit), strict=False)]
