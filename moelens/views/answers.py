"""What was found and what was not, in sentences written from the numbers; a report and the demo begin with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moelens.analysis import wording
from moelens.analysis.randomize import ALPHA
from moelens.analysis.tables import number, signed_interval, signed_number
from moelens.japanese.classes import label_words
from moelens.texts import Texts
from moelens.views.finding_tables import family_name, lift_name, strongest

if TYPE_CHECKING:
    from moelens.analysis import Comparison
    from moelens.analysis.result import Finding, Specialization
    from moelens.interventions import Causes, Effect
    from moelens.interventions.effects import KindEffect
    from moelens.interventions.preference import Preferences


def answer(
    results: Mapping[str, Specialization],
    effects: Sequence[Effect | Causes | Preferences] = (),
    *,
    lang: str | Texts = "en",
) -> tuple[str, str, str]:
    """Return three sentences or short paragraphs: the specialists, what the control for tokens leaves, and the effects.

    Args:
        results: results of `analyze`. The first one decides what was found; if it was controlled for token identity,
            it is compared with the uncontrolled one of the same family.
        effects: results of `effect`, `causes` and `prefer`.
        lang: language of the sentences, "en" or "ja".

    Example:
        >>> result = moelens.analyze(demo_recording, permutations=20, progress=False)
        >>> found, left, removed = answer({"honorifics": result})
        >>> removed.startswith("Nothing was removed from the model")
        True
    """
    first, say = next(iter(results.values())), Texts(lang)
    return _specialists(first, say), _what_is_left(first, results.values(), say), _what_removal_did(effects, say)


def _specialists(result: Specialization, say: Texts) -> str:
    """The strongest specialist of each label, and the labels that have none."""
    tested = [name for name in result.names if name not in result.too_rare]
    found = {name: strongest(result, name) for name in tested}
    lift, family = lift_name(result, say), family_name(result.family, say)
    listed = [
        say(
            "answer.specialist",
            label=_glossed(name, say),
            layer=f.layer,
            expert=f.expert,
            lift=lift,
            value=number(f.lift_given),
            interval=_interval(result, f, say),
        )
        for name, f in found.items()
        if f is not None
    ]
    if listed:
        what = say("answer.preferred" if result.evidence == "none" else "answer.taken")
        text = say("answer.found", family=family, listed=say("answer.separator").join(listed), what=what)
    else:
        text = say("answer.not_found", family=family)
    none = [name for name, f in found.items() if f is None]
    if listed and none:
        text += say("answer.no_expert", names=say("answer.comma").join(_glossed(name, say) for name in none))
    untested: dict[str, list[str]] = {}
    for name in result.too_rare:
        untested.setdefault(wording.why_untested(result, name, say), []).append(name)
    return text + "".join(
        say(
            "answer.untested",
            reason=f"{reason[0].upper()}{reason[1:]}",
            names=say("answer.comma").join(_glossed(name, say) for name in names),
        )
        for reason, names in untested.items()
    )


def _glossed(name: str, say: Texts) -> str:
    text, other = label_words(name, gloss=say.glossed)
    return f"{text} ({other})" if other else text


def _interval(result: Specialization, f: Finding, say: Texts) -> str:
    if result.evidence == "none" or not np.isfinite(f.low):
        return ""
    return say(f"answer.interval_{result.evidence}", low=number(f.low), high=number(f.high))


def _size(result: Specialization) -> tuple[int, int]:
    """The number of cells (an expert and a label) above chance, and of all that were compared."""
    above = result.certain & (result.lift_given > 1)
    compared = np.isfinite(result.p if result.evidence == "test" else result.lift)
    return int(above.sum()), int(compared.sum())


def _what_is_left(first: Specialization, results: Iterable[Specialization], say: Texts) -> str:
    """How many findings there are with and without the control for tokens, and in a random model."""
    above, tested = (f"{n:,}" for n in _size(first))
    if first.evidence != "test":
        return say("answer.above_untested", above=above, tested=tested)
    if not first.given:
        return say("answer.above_uncontrolled", above=above, tested=tested) + _random_model(first, say)
    given = wording.given_names(first.given, say, say("table.and"))
    other = next((r for r in results if r.family == first.family and bool(r.given) != bool(first.given)), None)
    if other is None:
        text = say("answer.above_controlled", given=given, above=above, tested=tested)
    else:
        more, all_of = (f"{n:,}" for n in _size(other))
        text = say("answer.above_both", given=given, above=above, tested=tested, more=more, all=all_of)
    return text + _random_model(first, say)


def _random_model(result: Specialization, say: Texts) -> str:
    """How much a model of the same shape with random weights gives, if that was measured."""
    random = result.provenance.get("random_model")
    if random is None:
        return ""
    return say("answer.random_model", above=f"{random['above']:,}", tested=f"{random['tested']:,}")


def _what_removal_did(effects: Sequence[Effect | Causes | Preferences], say: Texts) -> str:
    """What removing experts changed, or that nothing was removed."""
    if not effects:
        return say("answer.nothing_removed")
    from moelens.interventions import Causes, Effect  # imports torch

    removals = [e for e in effects if isinstance(e, Effect)]
    said = [say("answer.sentence", text=line) for e in effects if isinstance(e, Causes) for line in e.verdict(say)]
    if not removals and not said:
        return say("answer.nothing_removed")
    n = sum(len(e.kinds) for e in removals)
    said += [_effect_sentence(e, k, say, n) for e in removals for k in e.kinds]
    return ("" if say.lang == "ja" else " ").join(f"{line[0].upper()}{line[1:]}" for line in said)


def compared(comparison: Comparison | None, say: Texts) -> list[str]:
    """Return how far two models or corpora differ, in a sentence; nothing without a comparison."""
    if comparison is None:
        return []
    a, b = (comparison.provenance.get(name) or name for name in ("a", "b"))
    n, tested = int(comparison.significant.sum()), int(np.isfinite(comparison.p).sum())
    about = {"a": a, "b": b, "n": f"{n:,}", "tested": f"{tested:,}"}
    if comparison.label_tokens_b is not None:
        return [say("answer.compared_corpora", **about)]
    return [say("answer.compared", **about, changed=number(100 * (1 - float(np.nanmean(comparison.overlap[:, 0])))))]


def _effect_sentence(effect: Effect, k: KindEffect, say: Texts, tests: int = 1) -> str:
    """Return the effect on one kind of contrast or pair in a sentence or two.

    Args:
        effect: the effect.
        k: the part of it on this kind.
        say: the language.
        tests: the number of effects that are looked at together; p is multiplied by it (Bonferroni).
    """
    from moelens.interventions.intervention import intervention_names  # imports torch, which counts do not need

    interval = signed_interval(k.low, k.high) or "–"
    change = say("answer.effect_interval", change=signed_number(k.change), interval=interval)
    if not np.isfinite(k.low):
        change = say("answer.no_interval", text=change)
    elif not k.certain:
        change = say("answer.includes_0", text=change)
    direction = say("answer.less" if k.change < 0 else "answer.more")
    what = intervention_names(effect.interventions, say)
    text = say("answer.effect", what=what, direction=direction, kind=say.name("kind", k.kind), change=change)
    if np.isfinite(k.p):
        p = min(1.0, tests * k.p)
        told = say("answer.p_times", p=number(p), tests=tests) if tests > 1 else say("answer.p", p=number(p))
        least = number(min(1.0, tests * effect.smallest_p))
        told = say("answer.smallest_p", p=told, draws=effect.draws, least=least)
        text = say("answer.differs" if p < ALPHA else "answer.not_differs", text=text, p=told)
    if k.before < 0:
        text = say("answer.starts_wrong", text=text)
    return say("answer.sentence", text=text)
