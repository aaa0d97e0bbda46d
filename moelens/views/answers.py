"""What was found and what was not, in sentences written from the numbers; a report and the demo begin with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moelens.analysis.randomize import ALPHA
from moelens.analysis.tables import number, signed_interval, signed_number
from moelens.japanese.classes import GLOSS
from moelens.views.finding_tables import lift_name, strongest

if TYPE_CHECKING:
    from moelens.analysis.result import Finding, Specialization
    from moelens.interventions import Causes, Effect
    from moelens.interventions.effects import KindEffect
    from moelens.interventions.preference import Preferences


def answer(
    results: Mapping[str, Specialization], effects: Sequence[Effect | Causes | Preferences] = ()
) -> tuple[str, str, str]:
    """Return three sentences or short paragraphs: the specialists, what the control for tokens leaves, and the effects.

    Args:
        results: results of `analyze`. The first one decides what was found; if it was controlled for token identity,
            it is compared with the uncontrolled one of the same family.
        effects: results of `effect`, `causes` and `prefer`.

    Example:
        >>> result = moelens.analyze(demo_recording, permutations=20, progress=False)
        >>> found, left, removed = answer({"honorifics": result})
        >>> removed.startswith("Nothing was removed from the model")
        True
    """
    first = next(iter(results.values()))
    return _specialists(first), _what_is_left(first, results.values()), _what_removal_did(effects)


def _specialists(result: Specialization) -> str:
    """The strongest specialist of each label, and the labels that have none."""
    tested = [name for name in result.names if name not in result.too_rare]
    found = {name: strongest(result, name) for name in tested}
    lift = lift_name(result)
    listed = [
        f"{_glossed(name)} by L{f.layer} · E{f.expert} ({lift} {number(f.lift_given)}{_interval(result, f)})"
        for name, f in found.items()
        if f is not None
    ]
    family = result.family
    what = "preferred by experts" if result.evidence == "none" else "taken by experts more often than chance explains"
    text = (
        f"Found ({family}): {'; '.join(listed)} are {what}."
        if len(listed) > 1
        else f"Found ({family}): {listed[0]} is {what}."
        if listed
        else f"Not found ({family}): no expert takes any of these labels more often than chance explains."
    )
    none = [name for name, f in found.items() if f is None]
    if listed and none:
        text += f" Not found: an expert for {', '.join(map(_glossed, none))}."
    untested: dict[str, list[str]] = {}
    for name in result.too_rare:
        untested.setdefault(result.why_untested(name), []).append(name)
    return text + "".join(
        f" {reason[0].upper()}{reason[1:]}: {', '.join(names)}." for reason, names in untested.items()
    )


def _glossed(name: str) -> str:
    return f"{name} ({GLOSS[name]})" if name in GLOSS else name


def _interval(result: Specialization, f: Finding) -> str:
    if result.evidence == "none" or not np.isfinite(f.low):
        return ""
    name = "95 %" if result.evidence == "test" else "bounds"
    return f", {name} {number(f.low)} to {number(f.high)}"


def _size(result: Specialization) -> tuple[int, int]:
    """The number of cells (an expert and a label) above chance, and of all that were compared."""
    above = result.certain & (result.lift_given > 1)
    compared = np.isfinite(result.p if result.evidence == "test" else result.lift)
    return int(above.sum()), int(compared.sum())


def _what_is_left(first: Specialization, results: Iterable[Specialization]) -> str:
    """How many findings there are with and without the control for tokens, and in a random model."""
    above, compared = _size(first)
    unit = "pairs of an expert and a label"
    if first.evidence != "test":
        return f"{above:,} of {compared:,} {unit} are above chance. Nothing was tested over documents."
    other = next((r for r in results if r.family == first.family and bool(r.given) != bool(first.given)), None)
    if not first.given:
        text = (
            f"{above:,} of {compared:,} tested {unit} are significantly above chance. Nothing was controlled, so the "
            "words themselves may explain them."
        )
    else:
        text = f"Given {' and '.join(first.given)}, {above:,} of {compared:,} tested {unit} are above chance"
        if other is not None:
            more, all_of = _size(other)
            text += f"; without this control {more:,} of {all_of:,} are, most of which the words themselves may explain"
        text += "."
    return text + _random_model(first)


def _random_model(result: Specialization) -> str:
    """How much a model of the same shape with random weights gives, if that was measured."""
    random = result.provenance.get("random_model")
    if random is None:
        return ""
    return f" A random model of this shape gives {random['above']:,} of {random['tested']:,}."


def _what_removal_did(effects: Sequence[Effect | Causes | Preferences]) -> str:
    """What removing experts changed, or that nothing was removed."""
    from moelens.interventions import Causes, Effect  # imports torch, which counts do not need

    removals = [e for e in effects if isinstance(e, Effect)]
    said = [line for e in effects if isinstance(e, Causes) for line in e.verdict()]
    if not removals and not said:
        return (
            "Nothing was removed from the model, so this does not show that the model needs these experts; "
            "moelens report --effects removes them."
        )
    n = sum(len(e.kinds) for e in removals)
    said += [_effect_sentence(" + ".join(e.interventions), k, n) for e in removals for k in e.kinds]
    return " ".join(f"{line[0].upper()}{line[1:].removesuffix('.')}." for line in said)


def _effect_sentence(what: str, k: KindEffect, tests: int = 1) -> str:
    """Return the effect on one kind of contrast or pair in a sentence or two.

    Args:
        what: what was done, such as "remove E5 in layer 3".
        k: the effect.
        tests: the number of effects that are looked at together; p is multiplied by it (Bonferroni).
    """
    direction = "less" if k.change < 0 else "more"
    interval = f"{signed_number(k.change)} nats, 95 % {signed_interval(k.low, k.high) or '–'}"
    certain = k.low > 0 or k.high < 0
    text = f"{what}: the model prefers what the context licenses {direction} ({k.kind}; {interval}"
    text += ")" if certain else "; the interval includes 0)" if np.isfinite(k.low) else "; no interval)"
    if np.isfinite(k.p):
        p = min(1.0, tests * k.p)
        many = f", times {tests}" if tests > 1 else ""
        text += (
            f", and more than similar experts do (p {number(p)}{many})"
            if p < ALPHA
            else f", but this cannot be told from the removal of similar experts (p {number(p)}{many})"
        )
    if k.before < 0:
        text += ". To begin with, the model prefers the wrong form here"
    return f"{text}."
