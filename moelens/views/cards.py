"""The card of one expert: its load, the labels it prefers, and the words and sentences it is chosen for."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.tables import bracketed, number, percent, signed_interval, signed_number
from moelens.errors import UnknownNameError, unknown
from moelens.japanese.labels import require_alignment
from moelens.texts import Texts
from moelens.tracing.passages import Excerpt
from moelens.views.finding_tables import lift_name
from moelens.views.style import label_html

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.interventions import Effect
    from moelens.japanese import Labels
    from moelens.recording import Recording

_MOST_WORDS, _MOST_CONTEXTS, _MOST_COMPANIONS = 12, 5, 4
_CHARACTERS_AROUND = 14
_CELL_STYLE = "padding: 1px 10px 1px 0; text-align: left"
_GREYED = 0.45


def card_html(
    result: Specialization,
    layer: int,
    expert: int,
    recording: Recording | Excerpt | None = None,
    *,
    labels: Labels | None = None,
    effect: Effect | None = None,
    lang: str | Texts = "en",
) -> str:
    """Return the card of an expert as HTML with inline styles.

    Args:
        result: a result of `analyze`.
        layer: number of the layer in the model.
        expert: id of the expert.
        recording: the recording that was analysed. The card then shows the words for which the expert is chosen most
            often, sentences around some of them, and the experts that are chosen together with it.
        labels: labels of the recording. The card then shows lemmas too, and sentences around tokens of the label that
            the expert prefers most.
        effect: the effect of removing the expert. The card then shows the change for each kind of pair, with controls.
        lang: language of the texts, "en" or "ja".

    Raises:
        UnknownNameError: the result does not have this layer or expert.

    Example:
        >>> result = moelens.analyze(demo_recording, permutations=20, progress=False)
        >>> html = card_html(result, 3, 17, demo_recording)
        >>> "L3 · E17" in html
        True
    """
    if layer not in result.layers:
        raise unknown("layer", layer, result.layers)
    if not 0 <= expert < result.n_experts:
        raise UnknownNameError(f"unknown expert {expert} in layer {layer}; allowed: 0 to {result.n_experts - 1}")
    at, say = result.layers.index(layer), Texts(lang)
    load = say("card.load", load=number(result.load[at, expert]))
    parts = [f"<b>L{layer} · E{expert}</b> &nbsp; {load}", _labels_html(result, at, expert, say)]
    if recording is not None:
        parts.append(_words_html(recording, at, expert, say, labels, _preferred(result, at, expert)))
    if effect is not None:
        parts.append(_effect_html(effect, say))
    legend = [say(f"card.legend_{result.evidence}"), *([] if recording is None else [say("card.marked")])]
    parts.append(f'<span style="font-size: 85%; opacity: 0.75">{" · ".join(legend)}</span>')
    return f'<div style="line-height: 1.5">{"".join(f"<div>{p}</div>" for p in parts)}</div>'


def _labels_html(result: Specialization, at: int, expert: int, say: Texts) -> str:
    """The labels that the expert prefers, the strongest first; grey where not significant after correction, or not
    above chance by their bounds."""
    lift = result.lift_given[at, expert]
    name = lift_name(result, say)
    order = [int(i) for i in np.argsort(-np.nan_to_num(lift)) if lift[i] > 1]
    if not order:
        return say("card.none")
    rows = ""
    for i in order:
        interval, *evidence = _evidence(result, at, expert, i, say)
        label = label_html(result.names[i], gloss=say.glossed)
        cells = [label, f"{name} {number(float(lift[i]))}{interval}", *evidence]
        style = f"opacity: {1 if result.certain[at, expert, i] else _GREYED}"
        inner = "".join(f'<td style="{_CELL_STYLE}">{cell}</td>' for cell in cells)
        rows += f'<tr style="{style}">{inner}</tr>'
    return f'<table style="border-collapse: collapse">{rows}</table>'


def _preferred(result: Specialization, at: int, expert: int) -> tuple[str, str] | None:
    """The family and the label that the expert prefers most, a certain one if there is any; None if it prefers none."""
    lift = np.nan_to_num(result.lift_given[at, expert])
    best = int(np.lexsort((lift, result.certain[at, expert] & (lift > 1)))[-1])
    return (result.family, result.names[best]) if lift[best] > 1 else None


def _evidence(result: Specialization, at: int, expert: int, label: int, say: Texts) -> list[str]:
    """The interval or bounds of a lift, and what else speaks for it."""
    cell = at, expert, label
    tokens = say("card.tokens", n=f"{result.count[cell]:,.0f}")
    if result.evidence == "none":
        return ["", tokens]
    interval = f" {bracketed(float(result.low[cell]), float(result.high[cell]))}".rstrip()
    if result.exact is not None:
        return [interval, say("card.bounds"), tokens, say("card.exact", share=percent(float(result.exact[cell])))]
    within = say("card.lift_given_token", value=number(float(result.lift_given_token[cell])))
    token = [within] if "token" not in result.given else []
    return [interval, *token, tokens, f"q {number(float(result.q[cell]))}"]


def _effect_html(effect: Effect, say: Texts) -> str:
    from moelens.interventions.intervention import intervention_names  # imports torch, which most cards do not need

    rows = ""
    for k in effect.kinds:
        control = say("card.no_controls")
        if effect.controls:
            control = say(
                "card.controls",
                control=say.name("effects", effect.control),
                change=signed_number(k.control),
                interval=signed_interval(k.control_low, k.control_high),
            )
        cells = (
            f"{escape(say.name('kind', k.kind))} ({k.items})",
            f"{signed_number(k.change)} {signed_interval(k.low, k.high)}",
            control,
        )
        rows += "<tr>" + "".join(f'<td style="{_CELL_STYLE}">{cell}</td>' for cell in cells) + "</tr>"
    head = say("card.effect", what=escape(intervention_names(effect.interventions, say)))
    return f'{head}<table style="border-collapse: collapse">{rows}</table>'


def _lemmas(labels: Labels, n_tokens: int) -> tuple[list[str], NDArray[Any]]:
    """The lemmas, and for each of the first tokens the index of its own; cached for the next card."""
    return _read_lemmas(labels, n_tokens, _modified(labels))


def _modified(labels: Labels) -> int:
    """When the labels were written; all their files are written together."""
    return (labels.path / "morphology.parquet").stat().st_mtime_ns


@lru_cache(maxsize=2)
def _label_matrix(
    labels: Labels, family: str, n_tokens: int, modified: int
) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    return labels.matrix(family, slice(n_tokens))


def _has_label(labels: Labels | None, wanted: tuple[str, str] | None, n_tokens: int) -> NDArray[np.bool_] | None:
    """Whether each of the first tokens has the label, `[token]`; None if the labels do not tell."""
    if labels is None or wanted is None or wanted[0] not in labels.families:
        return None
    names, matrix = _label_matrix(labels, wanted[0], n_tokens, _modified(labels))
    return matrix[:, names.index(wanted[1])] if wanted[1] in names else None


@lru_cache(maxsize=1)
def _read_lemmas(labels: Labels, n_tokens: int, modified: int) -> tuple[list[str], NDArray[Any]]:
    column = labels.table("pos", ["lemma"], slice(n_tokens))["lemma"].fill_null("").combine_chunks().dictionary_encode()
    return column.dictionary.to_pylist(), column.indices.to_numpy()


def _words_html(
    recording: Recording | Excerpt,
    at: int,
    expert: int,
    say: Texts,
    labels: Labels | None = None,
    wanted: tuple[str, str] | None = None,
) -> str:
    """The words, lemmas, companions and sentences of an expert; `at` is the position of its layer.

    The sentences are around tokens of the `wanted` label, as family and name, where the labels are known and the expert
    takes such tokens.
    """
    require_alignment(recording.recording if isinstance(recording, Excerpt) else recording)
    experts = recording.indices()[:, at]
    taken = (experts == expert).any(-1)
    doc, start, end, ids = (recording.column(c) for c in ("doc", "char_start", "char_end", "token_id"))
    texts = list(recording.texts())
    taken &= end > start
    extent = recording.extent(say) if isinstance(recording, Excerpt) else ""
    if not taken.any():
        return say("card.no_token", extent=extent or say("card.this_recording"))
    rows = np.flatnonzero(taken)
    words = _most_frequent_html("words", say, ids, rows, lambda row: texts[doc[row]][start[row] : end[row]])
    if labels is not None:
        names, lemma_ids = _lemmas(labels, len(doc))
        named = rows[[names[i] != "" for i in lemma_ids[rows]]]
        words += _most_frequent_html("lemmas", say, lemma_ids, named, lambda row: names[lemma_ids[row]])
    has = _has_label(labels, wanted, len(doc))
    typical = rows if has is None or not has[rows].any() else rows[has[rows]]
    return (
        f"{say('card.within', extent=extent) + '<br>' if extent else ''}{words}"
        f"{_companions_html(experts, taken, expert, say)}"
        f'<div lang="ja" style="margin-top: 3px">{_contexts_html(texts, rows, typical, doc, start, end)}</div>'
    )


def _most_frequent_html(
    heading: str, say: Texts, ids: NDArray[Any], rows: NDArray[Any], text_of: Callable[[int], str]
) -> str:
    """The most frequent ids at `rows`; hovering shows their share of all occurrences of the id.

    Args:
        heading: what the ids stand for, "words" or "lemmas".
        say: the language.
        ids: an id for each row of the recording.
        rows: the rows at which the expert is chosen.
        text_of: returns the text to show for a row.
    """
    found, first, counts = np.unique(ids[rows], return_index=True, return_counts=True)
    words = []
    for i in np.argsort(-counts, kind="stable")[:_MOST_WORDS]:
        times = say("card.times", n=counts[i], share=f"{counts[i] / (ids == found[i]).sum():.0%}")
        word = escape(text_of(rows[first[i]]).replace("\n", "↵"))
        words.append(f'<span title="{times}">{word}</span>')
    return f'{say(f"card.{heading}")}: <span lang="ja">{" &nbsp;".join(words)}</span><br>'


def _companions_html(experts: NDArray[Any], taken: NDArray[np.bool_], expert: int, say: Texts) -> str:
    """The experts that are chosen together with this one more often than their load implies, by lift."""
    n = int(max(experts.max(), expert)) + 1
    together = np.bincount(experts[taken].ravel(), minlength=n) / taken.sum()
    lift = together / np.maximum(np.bincount(experts.ravel(), minlength=n) / len(experts), 1e-12)
    lift[expert] = 0
    best = [int(i) for i in np.argsort(-lift)[:_MOST_COMPANIONS] if lift[i] > 1]
    named = (say("card.companion", expert=i, lift=number(float(lift[i]))) for i in best)
    return say("card.companions", listed=say("answer.comma").join(named)) if best else ""


def _contexts_html(
    texts: list[str],
    rows: NDArray[Any],
    typical: NDArray[Any],
    doc: NDArray[Any],
    start: NDArray[Any],
    end: NDArray[Any],
) -> str:
    """Passages from different texts, those with the largest density of `typical` rows first; all `rows` are marked."""
    docs, first, counts = np.unique(doc[typical], return_index=True, return_counts=True)
    density = counts / np.sqrt([max(1, len(texts[d])) for d in docs])
    found: dict[str, str] = {}
    for i in np.argsort(-density, kind="stable").tolist():
        row = typical[first[i]]
        text, a, b = texts[docs[i]], int(start[row]), int(end[row])
        near = [r for r in rows[doc[rows] == docs[i]] if a <= start[r] and end[r] <= b + _CHARACTERS_AROUND]
        shown, at = f"…{escape(text[max(0, a - _CHARACTERS_AROUND) : a])}", a
        for r in near:
            if start[r] >= at:  # not a further token of the same character
                shown += f"{escape(text[at : start[r]])}<mark>{escape(text[start[r] : end[r]])}</mark>"
                at = int(end[r])
        found.setdefault(text, f"{shown}{escape(text[at : b + _CHARACTERS_AROUND])}…")
        if len(found) == _MOST_CONTEXTS:
            break
    return "<br>".join(found.values())
