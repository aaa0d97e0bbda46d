"""What a result says about itself in words: model and size, control, and what the test cannot show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from moelens.analysis.arrays import Bools, Floats
from moelens.analysis.randomize import limits_of_test
from moelens.texts import Texts

MOST_REPEATED = 0.1
"""Share of sentences in several documents beyond which a result says so."""


_LABELLING = re.compile(r"(?:^|, )(analyser|dictionary|rules|policy|alignment|normalized) ")


class _Counts(Protocol):
    """The part of `CountTables` that is put into words."""

    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def n_experts(self) -> int: ...
    @property
    def n_tokens(self) -> Any: ...
    @property
    def top_k(self) -> int: ...
    @property
    def mass(self) -> bool: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...


class _Result(Protocol):
    """The part of `Specialization` that is put into words."""

    @property
    def counts(self) -> Any: ...
    @property
    def evidence(self) -> str: ...
    @property
    def given(self) -> tuple[str, ...]: ...
    @property
    def family(self) -> str: ...
    @property
    def label_tokens(self) -> Any: ...
    @property
    def p(self) -> Floats: ...
    @property
    def lift(self) -> Floats: ...
    @property
    def lift_given(self) -> Floats: ...
    @property
    def excess_left(self) -> Floats: ...
    @property
    def significant(self) -> Bools: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    def label_index(self, label: str) -> int: ...


def headline(counts: _Counts, say: Texts, model: str = "") -> str:
    """Return model, size and number of tokens in one line.

    Args:
        counts: the counts.
        say: the language.
        model: name of the model; "" for that in the counts.
    """
    n = len(counts.layers)
    return say(
        "result.headline",
        model=model or counts.provenance.get("model") or "model",
        layers=say("result.one_layer") if n == 1 else say("result.layers", layers=n),
        experts=counts.n_experts,
        top_k=counts.top_k,
        tokens=say("result.tokens_by_weight" if counts.mass else "result.tokens", tokens=f"{counts.n_tokens:,}"),
    )


def result_headline(result: _Result, say: Texts) -> str:
    """Return model, size and number of tokens of a result in one line; every view begins with it."""
    return headline(result.counts, say, result.provenance.get("model") or "model")


def given_names(given: Iterable[str], say: Texts, between: str = " × ") -> str:
    """Return the names of controls in one phrase."""
    return between.join(say.name("given", name) for name in given)


def labelling(about: str, say: Texts) -> str:
    """Return how labels were made, from the text of it in `provenance_of`: "analyser fugashi, rules 6, …"."""
    _, *parts = _LABELLING.split(about)
    names, values = parts[::2], parts[1::2]
    items = (
        say("labelling.item", name=say(f"labelling.{name}"), value=_amount(say.value(value), say))
        for name, value in zip(names, values, strict=True)
    )
    return say("answer.comma").join(items) if names else about


def settings(about: Mapping[str, Any], say: Texts) -> list[tuple[str, str]]:
    """Return the settings of an analysis, and where its numbers are from, as pairs of a name and a value in words."""
    named = {name: value for name, value in about.items() if value not in (None, "", [], ())}
    return [(say.name("setting", name).replace("_", " "), _setting(name, value, say)) for name, value in named.items()]


def _setting(name: str, value: Any, say: Texts) -> str:
    if name == "labels":
        return labelling(str(value), say)
    if name == "given":
        return " × ".join(_amount(say.name("given", part), say) for part in str(value).split(" × "))
    if name == "random_model":
        size = {part: f"{value[part]:,}" for part in ("above", "tested")}
        return say("report.random_model", **size, seed=value["seed"])
    if name == "sample":
        size = {part: f"{value[part]:,}" for part in ("documents", "of")}
        return say("report.sample", **size, seed=value["seed"])
    if isinstance(value, (list, tuple)):
        return say("answer.separator").join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and name != "seed" else say.value(value)


def _amount(value: str, say: Texts) -> str:
    return say("setting.nothing") if value == "nothing" else value


def control(result: _Result, say: Texts) -> str:
    """Return the control of the test in one phrase; or that there is none."""
    if result.evidence != "test":
        return say("result.control_bounds" if result.evidence == "bounds" else "result.control_none")
    permutations = result.provenance.get("permutations", "no")
    if not result.given:
        return say("result.control_free", permutations=permutations)
    return say("result.control_given", given=given_names(result.given, say), permutations=permutations)


def token_control(result: _Result, say: Texts) -> str:
    """Return whether token identity is controlled, in one phrase."""
    return say("result.token_controlled" if "token" in result.given else "result.token_not_controlled")


def about(result: _Result, say: Texts) -> str:
    """Return what a result is of and what was controlled, in one line."""
    family = result.family if say.glossed else say.name("family", result.family)
    what = say("table.family", family=family)
    return " · ".join((result_headline(result, say), what, control(result, say), token_control(result, say)))


def why_untested(result: _Result, label: str, say: Texts) -> str:
    """Return why a label was not tested, in one phrase."""
    tokens = result.label_tokens[result.label_index(label)]
    if not tokens:
        return say("result.untested_absent")
    if result.given and tokens >= result.provenance.get("min_tokens", 0):
        return say("result.untested_given", given=given_names(result.given, say))
    return say("result.untested_rare")


def drawn_documents(about: Mapping[str, Any], say: Texts) -> str:
    """Return from how many documents, drawn at random, something was computed; "" if none were drawn."""
    drawn = about.get("sample")
    return say("result.sample", n=f"{drawn['documents']:,}", all=f"{drawn['of']:,}") if drawn else ""


def sample_limits(about: Mapping[str, Any], say: Texts) -> list[str]:
    """Return what a test over documents cannot show for lack of them, and which documents are copies or shortened.

    Args:
        about: the provenance of the result.
        say: the language.
    """
    lines = [text] if (text := drawn_documents(about, say)) else []
    if about.get("effective_documents") and about.get("permutations"):
        lines.append(limits_of_test(about["effective_documents"], about["permutations"], say))
    copies, near = (about.get(name) or 0 for name in ("copied_documents", "nearly_copied_documents"))
    if copies + near:
        lines.append(say("result.copies", copies=f"{copies:,}", near=f"{near:,}"))
    if (about.get("repeated_sentences") or 0) > MOST_REPEATED:
        lines.append(say("result.repeated", share=f"{about['repeated_sentences']:.0%}"))
    if about.get("shortened_documents"):
        tokens, documents = f"{about['tokens_cut']:,}", f"{about['shortened_documents']:,}"
        lines.append(say("result.cut", tokens=tokens, documents=documents, share=f"{about['max_share']:.0%}"))
    return lines


def limits(result: _Result, say: Texts) -> tuple[str, ...]:
    """Return what the test cannot show: for few documents, shortened ones, and labels that token identity explains."""
    about = result.provenance
    lines = sample_limits(about, say)
    above = int((result.significant & (result.lift > 1)).sum())
    if "random_model" in about:
        lines.append(random_model(result, say))
    explained = int((result.significant & (result.lift > 1) & (result.excess_left < 0.5)).sum())
    if explained and "token" not in result.given:
        lines.append(say("result.explained", explained=f"{explained:,}", above=f"{above:,}"))
    return tuple(lines)


def random_model(result: _Result, say: Texts) -> str:
    """Return how many findings a model of the same shape with random weights gives; "" if that was not measured."""
    random = result.provenance.get("random_model")
    if random is None:
        return ""
    above, tested = int((result.significant & (result.lift_given > 1)).sum()), int(np.isfinite(result.p).sum())
    figures = {"random": random["above"], "of": random["tested"], "above": above, "tested": tested}
    return say("result.random_model", **{name: f"{n:,}" for name, n in figures.items()})
