"""`causes`: which experts cause a preference, by attribution, exact removal and matched controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from moelens.analysis.arrays import Floats
from moelens.analysis.randomize import ALPHA
from moelens.analysis.tables import number, plain_table, signed_interval, signed_number
from moelens.display import Plotted
from moelens.errors import MoeLensError
from moelens.interventions.attribution import Attribution, attribute
from moelens.interventions.controls import BALANCED, imbalance
from moelens.interventions.corpus_ranking import (
    Agreement,
    CorpusRanking,
    agreements,
    bundled_corpora,
    corpus_rankings,
    distinguishing_class,
)
from moelens.interventions.effects import Effect, KindEffect, effect
from moelens.interventions.intervention import Intervention, intervention_names
from moelens.interventions.items import Item, as_items
from moelens.interventions.operations import remove
from moelens.saved import SavedRows
from moelens.texts import Texts

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE
    from moelens.recording.corpus import CorpusSource

DOSES = (1, 2, 4, 8, 16)
"""Numbers of experts that are removed together for a dose–response curve."""

_ATTRIBUTION = "attribution"
"""The name of the ranking by attribution, beside those on corpora, which have the names of the corpora."""


@dataclass(frozen=True, kw_only=True)
class Dose:
    """What removing the first experts of the ranking together changes, beside random sets of as many experts.

    Attributes:
        ranking: "attribution", or the corpus on which the experts were ranked.
        experts: number of experts removed.
        names: their names, such as "L3 E17".
        change, low, high: mean change of the margin on the test half in nats, and its 95 % interval over frames.
        random, random_low, random_high: mean change for random sets, and the middle 95 % of them.
        p: (1 + random sets whose absolute change is at least as large) / (1 + random sets).
    """

    ranking: str
    experts: int
    names: tuple[str, ...]
    change: float
    low: float
    high: float
    random: float
    random_low: float
    random_high: float
    p: float


@dataclass(frozen=True, repr=False, kw_only=True)
class Causes(Plotted, SavedRows):
    """Which experts cause a preference: found by attribution, removed one by one, and compared with matched controls.

    Attributes:
        attribution: the attribution by which the experts were found.
        effects: the effect of removing each routed expert of `attribution.top` on the test half, in that order.
        joint: the effect of removing all of these together; None if there are fewer than two.
        rankings: the experts ranked on each corpus; empty if no honorific class sets the continuations apart.
        agreements: how far the rankings, by attribution and on each corpus, agree.
        doses: the effect of removing the first experts of each ranking together, by their number.
    """

    FORMAT: ClassVar[str] = "moelens.causes/3"

    attribution: Attribution
    effects: tuple[Effect, ...]
    joint: Effect | None
    rankings: tuple[CorpusRanking, ...]
    agreements: tuple[Agreement, ...]
    doses: tuple[Dose, ...]

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
        return self.table()

    def table(self, lang: str | Texts = "en") -> str:
        """Return the attribution, the removals and the verdict as plain tables, in English ("en") or "ja"."""
        say = Texts(lang)
        if not self.effects:
            return self.attribution.table(say)
        names = ("change", "interval", "flip", "control", "interval", "p", "p_holm", "imbalance", "kl")
        rows = [_effect_row(e, p, say) for e, p in zip(self.effects, self.p_holm, strict=True)]
        lines = [self.attribution.table(say), f"\n{say('effects.removed')}"]
        together = say("effects.all_of_these")
        if self.joint is not None:
            rows.append((together, *_effect_row(self.joint, float("nan"), say)[1:]))
        lines.append(plain_table(("", *(say(f"effects.{name}") for name in names)), rows))
        lines.append(say("effects.about_imbalance", limit=BALANCED))
        for e in self.effects:
            name = intervention_names(e.interventions, say)
            lines += [say("effects.alone", name=name, direction=line) for line in e.weighted_lines(say)]
        if self.joint is not None:
            lines += [f"{together}: {line}" for line in self.joint.remarks(say)]
        if self.rankings:
            lines += ["", *self._ranking_lines(say)]
        if self.doses:
            columns = ("ranking", "experts", "change", "interval", "random_sets", "interval", "p")
            table = plain_table([say(f"effects.{name}") for name in columns], [_dose_row(d, say) for d in self.doses])
            lines += [f"\n{say('effects.dose')}", table]
        return "\n".join([*lines, "", *self.verdict(say)])

    def _ranking_lines(self, say: Texts) -> list[str]:
        """Return what the corpora are, and how far the rankings agree."""
        about = [
            say("effects.corpus", corpus=_ranking_name(r.corpus, say), tokens=f"{r.tokens:,}", passages=r.passages)
            for r in self.rankings
        ]
        names = ("ranking", "other_ranking", "spearman", "shared", "by_chance")
        rows = [
            (
                _ranking_name(a.first, say),
                _ranking_name(a.second, say),
                signed_number(a.spearman),
                say("effects.of_top", n=a.shared, top=a.top),
                number(a.chance),
            )
            for a in self.agreements
        ]
        listed = say("answer.comma").join(about)
        return [
            say("effects.ranked", label=self.rankings[0].label, listed=listed),
            plain_table([say(f"effects.{name}") for name in names], rows),
        ]

    def verdict(self, lang: str | Texts = "en") -> list[str]:
        """Return the conclusions in sentences: which experts differ from similar ones, how, and what could not."""
        least, n, say = self.effects[0].smallest_p, len(self.effects), Texts(lang)
        significant = [e for e, p in zip(self.effects, self.p_holm, strict=True) if p < ALPHA]
        text = say(
            "effects.verdict",
            n=len(significant),
            tested=n,
            alpha=ALPHA,
            draws=self.effects[0].draws,
            least=number(min(1.0, n * least)),
        )
        lines = [say("effects.none_can", text=text, draws=int(np.ceil(n / ALPHA))) if n * least >= ALPHA else text]
        for e in significant:
            name, direction = intervention_names(e.interventions, say), _direction(e.kinds[0], say)
            lines.append(say("effects.alone", name=name, direction=direction))
        if self.joint is not None:
            k, least = self.joint.kinds[0], self.joint.smallest_p
            direction = _direction(k, say) if k.p < ALPHA else say("effects.joint_same")
            lines.append(say("effects.joint", p=number(k.p), least=number(least), direction=direction))
            if self.joint.off_target is not None and k.p < ALPHA:
                lines.append(self.joint.off_target.in_words(say, certain=k.certain))
        return lines


def _direction(k: KindEffect, say: Texts) -> str:
    """Return the direction of a change in words, if its interval excludes 0."""
    if np.isnan(k.low):
        return say("effects.left_open", change=signed_number(k.change))
    change = say("effects.nats", change=signed_number(k.change), interval=signed_interval(k.low, k.high))
    if not k.certain:
        return say("effects.uncertain", change=change)
    return say("effects.less" if k.change < 0 else "effects.more", change=change)


def _effect_row(e: Effect, corrected: float, say: Texts) -> tuple[str, ...]:
    k = e.kinds[0]
    return (
        intervention_names(e.interventions[:1], say),
        signed_number(k.change),
        signed_interval(k.low, k.high),
        number(k.flip),
        signed_number(k.control),
        signed_interval(k.control_low, k.control_high),
        number(k.p),
        number(corrected),
        number(imbalance(e.balance)),
        number(e.text.kl) if e.text else "–",
    )


def _ranking_name(name: str, say: Texts) -> str:
    return say("effects.attribution_ranking") if name == _ATTRIBUTION else say.name("corpus", name)


def _dose_row(d: Dose, say: Texts) -> tuple[str, ...]:
    return (
        _ranking_name(d.ranking, say),
        str(d.experts),
        signed_number(d.change),
        signed_interval(d.low, d.high),
        signed_number(d.random),
        signed_interval(d.random_low, d.random_high),
        number(d.p),
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
    draws: int = 100,
    joint_draws: int = 100,
    corpora: Mapping[str, CorpusSource] | None = None,
    doses: Sequence[int] = DOSES,
    dose_draws: int = 20,
    seed: int = 0,
    batch_tokens: int = 2048,
    progress: bool | None = None,
) -> Causes:
    """Find the experts that contribute most to a preference, remove them, and compare with removing similar experts.

    Args:
        model: the hooked model.
        pairs: crossed contrasts or minimal pairs of one kind, as `prefer` takes them. The experts are found on one half
            of the frames and tested on the other.
        top: number of routed and shared experts to find; the routed ones are removed.
        draws: number of matched controls for each routed expert, 20 or more.
        joint_draws: number of matched controls for all of them together, 20 or more.
        corpora: texts by name, anything that `Corpus.of` takes, on which the experts are ranked too, by how much more
            often the tokens of the honorific class that sets the continuations apart choose them; None uses the
            dialogues and the other texts of the bundled corpus, {} none.
        doses: numbers of experts that are removed together, the first of each ranking.
        dose_draws: number of random sets for each dose, 20 or more.
        seed: seed of the halves and the controls.
        batch_tokens: number of tokens that run together.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        The attribution, the effects of removing each expert and all of them together, the rankings on corpora, and the
        effects of removing growing numbers of experts of each ranking.

    Raises:
        UnknownNameError: there is no such file or kind.
        MoeLensError: there are items of several kinds or none, a kind has a single frame, there are too few experts
            for so many controls, a dose is below 1, or the experts cannot be ranked on the corpora.

    Example:
        >>> items = moelens.japanese.contrasts("kin-terms")[::5]
        >>> result = moelens.causes(demo_model, items, top=1, draws=20, corpora={}, doses=())
        >>> len(result.attribution.top), result.joint is None
        (1, True)
    """
    given = as_items(pairs)
    label = require_causes(given, corpora, doses)
    attribution = attribute(model, given, top=top, seed=seed, batch_tokens=batch_tokens, progress=progress)
    removals = [remove(c.layer, [c.expert]) for c in attribution.top if c.expert is not None]
    options: dict[str, Any] = {"half": "test", "seed": seed, "batch_tokens": batch_tokens, "progress": progress}
    effects = tuple(effect(model, given, removal, draws=draws, off_target=False, **options) for removal in removals)
    joint = effect(model, given, removals, draws=joint_draws, **options) if len(removals) > 1 else None
    rankings: tuple[CorpusRanking, ...] = ()
    if label:
        texts = bundled_corpora() if corpora is None else corpora
        rankings = corpus_rankings(model, texts, label, seed=seed, batch_tokens=batch_tokens, progress=progress)
    ranked = {_ATTRIBUTION: attribution.routed} | {r.corpus: r.excess for r in rankings}
    return Causes(
        attribution=attribution,
        effects=effects,
        joint=joint,
        rankings=rankings,
        agreements=agreements(ranked),
        doses=tuple(
            _dose(model, given, name, values, n, dose_draws, options) for name, values in ranked.items() for n in doses
        ),
    )


def require_causes(items: Sequence[Item], corpora: Mapping[str, object] | None, doses: Sequence[int]) -> str:
    """Return the honorific class that licensed texts differ in, if `causes` can take the arguments; "" for none.

    Raises:
        MoeLensError: it cannot.
    """
    kinds = list(dict.fromkeys(i.kind for i in items))
    if len(kinds) > 1:
        raise MoeLensError(f"expected items of one kind, got {len(kinds)}: {', '.join(kinds)}; give one kind at a time")
    if any(n < 1 for n in doses):
        raise MoeLensError(f"expected doses of 1 or more experts, got {min(doses)}; give numbers such as 1, 2 and 4")
    label = distinguishing_class(items)
    if corpora and not label:
        raise MoeLensError(
            "expected items whose licensed texts differ in an honorific class, to rank the experts on corpora, got "
            f"none in {kinds[0]!r}; give no corpora"
        )
    if corpora and _ATTRIBUTION in corpora:
        raise MoeLensError(
            f"expected names of corpora, got {_ATTRIBUTION!r}, which is the name of the ranking by attribution; give "
            "the corpus another name"
        )
    return label


def first_of(model: HookedMoE, values: Floats, n: int) -> list[Intervention]:
    """Return the removal of the `n` experts with the largest values `[layer, expert]`, layer by layer."""
    by_layer: dict[int, list[int]] = {}
    for i in np.argsort(-values, axis=None, kind="stable")[:n].tolist():
        by_layer.setdefault(model.shape.moe_layers[i // values.shape[1]], []).append(i % values.shape[1])
    return [remove(layer, experts) for layer, experts in sorted(by_layer.items())]


def _dose(
    model: HookedMoE,
    items: Sequence[Item],
    ranking: str,
    values: Floats,
    n: int,
    draws: int,
    options: Mapping[str, Any],
) -> Dose:
    """Remove the first experts of a ranking, and random sets of as many.

    Args:
        model: the hooked model.
        items: what the effect is measured on.
        ranking: name of the ranking.
        values: by what experts are ranked, the largest first, `[layer, expert]`.
        n: number of experts.
        draws: number of random sets.
        options: further arguments of `effect`.
    """
    removals = first_of(model, values, n)
    found = effect(model, items, removals, controls="random", draws=draws, texts=(), off_target=False, **options)
    k = found.kinds[0]
    return Dose(
        ranking=ranking,
        experts=n,
        names=tuple(f"L{r.layer} E{e}" for r in removals for e in r.experts),
        change=k.change,
        low=k.low,
        high=k.high,
        random=k.control,
        random_low=k.control_low,
        random_high=k.control_high,
        p=k.p,
    )
