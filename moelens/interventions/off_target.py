"""What an intervention changes besides its target: control contrasts, and text that is unrelated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moelens.analysis.arrays import Floats
from moelens.analysis.tables import number
from moelens.interventions.intervention import Intervention
from moelens.interventions.items import Half, half_of
from moelens.interventions.scoring import margins
from moelens.japanese.crossed_contrasts import contrasts
from moelens.texts import Texts

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

SELECTIVE = 1 / 3
"""Largest change off target, over that on target, of an intervention that is called selective."""


@dataclass(frozen=True, kw_only=True)
class OffTarget:
    """What an intervention changes besides its target: contrasts in which no honorific expert should matter.

    Attributes:
        kinds: the kinds of control contrasts.
        changes: mean change of the interaction in each of them, in nats.
        ratio: mean absolute change over the kinds, over the absolute change on target; infinite if that is 0.
        text_ratio: KL on unrelated text in nats a token, over the absolute change on target; infinite if that is 0, NaN
            if KL was not measured.
    """

    kinds: tuple[str, ...]
    changes: tuple[float, ...]
    ratio: float
    text_ratio: float

    @property
    def selective(self) -> bool:
        """Whether neither ratio is above a third."""
        return self.ratio <= SELECTIVE and not self.text_ratio > SELECTIVE

    def in_words(self, lang: str | Texts = "en", *, certain: bool = True) -> str:
        """Return whether the effect is selective, with both ratios.

        Args:
            lang: "en" or "ja".
            certain: whether the interval of the change on target excludes 0; otherwise it is left open.
        """
        say = Texts(lang)
        if not certain:
            return say("effects.off_open")
        said = say("effects.selective" if self.selective else "effects.not_selective")
        if np.isnan(self.text_ratio):
            return say("effects.off_ratio", said=said, ratio=number(self.ratio))
        return say("effects.off_ratios", said=said, ratio=number(self.ratio), text=number(self.text_ratio))


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


def measure_off_target(
    model: HookedMoE,
    changes_on_target: Mapping[str, float],
    interventions: Sequence[Intervention],
    half: Half,
    text: TextEffect | None,
    batch_tokens: int,
) -> OffTarget | None:
    """Measure the change on the kinds of control contrasts that are not on target; None if all are.

    Args:
        model: the hooked model.
        changes_on_target: the mean change of each kind that is measured.
        interventions: what is done.
        half: half of the frames.
        text: the effect on unrelated text.
        batch_tokens: number of tokens that run together.
    """
    controls = half_of([c for c in contrasts() if c.control and c.kind not in changes_on_target], half)
    if not controls:
        return None
    before = margins(model, controls, batch_tokens)
    with model.intervene(*interventions):
        change = margins(model, controls, batch_tokens) - before
    kinds = tuple(dict.fromkeys(c.kind for c in controls))
    changes = tuple(float(change[[c.kind == kind for c in controls]].mean()) for kind in kinds)
    target = abs(float(np.mean(list(changes_on_target.values()))))
    ratio = _over(float(np.mean(np.abs(changes))), target)
    text_ratio = float("nan") if text is None else _over(text.kl, target)
    return OffTarget(kinds=kinds, changes=changes, ratio=ratio, text_ratio=text_ratio)


def _over(change: float, target: float) -> float:
    """A change off target over that on target; infinite if there is none on target."""
    return change / target if target else float("inf")


def text_effect(sums: Floats, seed: int) -> TextEffect:
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


def plain_texts(limit: int = 64) -> list[str]:
    """Return the first `limit` texts of the bundled corpus without honorifics."""
    from moelens.recording.corpus import Corpus

    plain = (d.text for d in Corpus.of("demo") if not d.metadata.get("honorifics"))
    return [text for text, _ in zip(plain, range(limit), strict=False)]
