"""One expert: how much it is used, what it prefers, which words and sentences it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.tables import number
from moelens.errors import UnknownNameError, unknown
from moelens.japanese.labels import require_alignment
from moelens.views.style import label_html

Ints = NDArray[Any]

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.interventions import Effect
    from moelens.japanese import Labels
    from moelens.recording import Recording
    from moelens.tracing.passages import Excerpt

WORDS, CONTEXTS, COMPANIONS, AROUND = 12, 5, 4, 14
ROW = "padding: 1px 10px 1px 0; text-align: left"


def card_html(
    result: Specialization,
    layer: int,
    expert: int,
    recording: Recording | Excerpt | None = None,
    *,
    labels: Labels | None = None,
    effect: Effect | None = None,
) -> str:
    """A card for `expert` of `layer` (the layer's number in the model), as inline-styled HTML.

    With a `recording`, the words it takes most, sentences in which it takes them, and the experts it goes with; with
    its `labels`, the morphemes too, by lemma. With an `effect`, as of removing the expert, what changed by kind of
    pair, and what controls change. Raises `UnknownNameError` for an expert or layer that does not exist.

        card_html(result, 3, 17, recording, effect=moelens.effect(model, pairs, remove(3, [17])))
    """
    if layer not in result.layers:
        raise unknown("layer", layer, result.layers)
    if not 0 <= expert < result.n_experts:
        raise UnknownNameError(f"no expert {expert} in layer {layer}; allowed: 0 to {result.n_experts - 1}")
    at = result.layers.index(layer)
    load = result.load[at, expert]
    parts = [f"<b>L{layer} · E{expert}</b> &nbsp; load {number(load)}× the mean", _labels(result, at, expert)]
    if recording is not None:
        parts.append(_words(recording, at, expert, None if labels is None else _lemmas(labels)))
    if effect is not None:
        parts.append(_effect(effect))
    return f'<div style="line-height: 1.5">{"".join(f"<div>{p}</div>" for p in parts)}</div>'


def _labels(result: Specialization, at: int, expert: int) -> str:
    """The labels it takes more often than chance, the strongest first; what does not survive is greyed."""
    lift = result.lift_given[at, expert]
    within = f"within {' and '.join(result.given)} " if result.given else ""
    order = [int(i) for i in np.argsort(-np.nan_to_num(lift)) if lift[i] > 1]
    if not order:
        return "takes no label of this family more often than chance"
    rows = "".join(
        f'<tr style="opacity: {1 if result.significant[at, expert, i] else 0.45}"><td style="{ROW}">'
        f'{label_html(result.names[i])}</td><td style="{ROW}">lift {within}{number(float(lift[i]))} '
        f"[{number(float(result.low[at, expert, i]))}, {number(float(result.high[at, expert, i]))}]</td>"
        f'<td style="{ROW}">given token {number(float(result.lift_given_token[at, expert, i]))}</td>'
        f'<td style="{ROW}">q {number(float(result.q[at, expert, i]))}</td></tr>'
        for i in order
    )
    return f'<table style="border-collapse: collapse">{rows}</table>'


def _effect(effect: Effect) -> str:
    from moelens.interventions.effects import interval, signed  # imports torch

    rows = ""
    for k in effect.kinds:
        control = f"{effect.control} controls {signed(k.control)} {interval(k.control_low, k.control_high)}"
        cells = (f"{escape(k.kind)} ({k.pairs})", f"{signed(k.change)} {interval(k.low, k.high)}",
                 control if effect.controls else "without controls")  # fmt: skip
        rows += "<tr>" + "".join(f'<td style="{ROW}">{cell}</td>' for cell in cells) + "</tr>"
    head = f"{escape(' + '.join(effect.interventions))}: change of the margin in nats, 95 % interval"
    return f'{head}<table style="border-collapse: collapse">{rows}</table>'


def _lemmas(labels: Labels) -> tuple[list[str], Ints]:
    """The lemmas there are, and which of them the last character of each token has; kept for the next card."""
    return _read_lemmas(labels, (labels.path / "morphology.parquet").stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_lemmas(labels: Labels, written: int) -> tuple[list[str], Ints]:
    column = labels.table("pos", ["lemma"])["lemma"].fill_null("").combine_chunks().dictionary_encode()
    return column.dictionary.to_pylist(), column.indices.to_numpy()


def _words(recording: Recording | Excerpt, at: int, expert: int, lemmas: tuple[list[str], Ints] | None = None) -> str:
    require_alignment(recording)
    experts = recording.indices()[:, at]
    taken = (experts == expert).any(-1)
    doc, start, end, ids = (recording.column(c) for c in ("doc", "char_start", "char_end", "token_id"))
    texts = list(recording.texts())
    taken &= end > start
    part = getattr(recording, "part", "")  # an explorer holds the beginning of a large recording
    if not taken.any():
        return f"no token in {part or 'this recording'}"
    rows = np.flatnonzero(taken)
    words = _most("tokens", ids, rows, lambda row: texts[doc[row]][start[row] : end[row]])
    if lemmas is not None:
        names, of = lemmas
        words += _most("morphemes", of, rows[[names[i] != "" for i in of[rows]]], lambda row: names[of[row]])
    return (
        f"{f'of {part}<br>' * bool(part)}{words}{_companions(experts, taken, expert)}"
        f'<div lang="ja" style="margin-top: 3px">{_contexts(texts, rows, doc, start, end)}</div>'
    )


def _most(what: str, of: NDArray[Any], rows: Ints, shown: Callable[[int], str]) -> str:
    """What stands most often at `rows`; hovering tells which share of all its places they are."""
    kinds, first, counts = np.unique(of[rows], return_index=True, return_counts=True)
    words = []
    for i in np.argsort(-counts, kind="stable")[:WORDS]:
        share = counts[i] / (of == kinds[i]).sum()
        word = escape(shown(rows[first[i]]).replace("\n", "↵"))
        words.append(f'<span title="{counts[i]} times, {share:.0%} of all its places">{word}</span>')
    return f'{what}: <span lang="ja">{" &nbsp;".join(words)}</span><br>'


def _companions(experts: NDArray[Any], taken: NDArray[np.bool_], expert: int) -> str:
    """Experts chosen together with it, by how much more often than by their load."""
    n = int(max(experts.max(), expert)) + 1
    together = np.bincount(experts[taken].ravel(), minlength=n) / taken.sum()
    lift = together / np.maximum(np.bincount(experts.ravel(), minlength=n) / len(experts), 1e-12)
    lift[expert] = 0
    best = [int(i) for i in np.argsort(-lift)[:COMPANIONS] if lift[i] > 1]
    return "together with " + ", ".join(f"E{i} (lift {number(float(lift[i]))})" for i in best) if best else ""


def _contexts(texts: list[str], rows: Ints, doc: Ints, start: Ints, end: Ints) -> str:
    """Passages from different documents, the token marked."""
    shown: list[str] = []
    seen: set[int] = set()
    for row in rows:
        if doc[row] not in seen and len(shown) < CONTEXTS:
            seen.add(doc[row])
            text, a, b = texts[doc[row]], int(start[row]), int(end[row])
            left, right = text[max(0, a - AROUND) : a], text[b : b + AROUND]
            shown.append(f"…{escape(left)}<mark>{escape(text[a:b])}</mark>{escape(right)}…")
    return "<br>".join(shown)
