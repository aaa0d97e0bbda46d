"""One text through a model, token by token: which experts, with which weights, where the honorifics are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.display import Displayed, find_view
from moelens.errors import MoeLensError, unknown
from moelens.models.hooked import HookedMoE
from moelens.models.tokens import TokenSpans, token_spans

Span = tuple[int, int, str]
"""First token, token after the last, label."""

SHOWN_LAYERS = 4
MOST_TOKENS = 512
STAGES = ("hook_expert_indices", "hook_topk_weights", "hook_router_scores", "hook_router_selection")


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Displayed):
    """The routes of a text.

    Attributes:
        tokens: the piece of the text each token stands for; "·" for a further token of the same character.
        layers: layer numbers, the order of axis `layer`.
        experts, weights: `[token, layer, slot]`.
        spans: tokens that carry the label of an honorific, those in which it ends, as first token, token after the
            last, class; see `moelens.japanese.token_labels`.
        entropy, margin: `[token, layer]`, how undecided the router was: the entropy of its scores in nats, and by how
            much the last expert chosen was ahead of the next. None where that is not known.

    Example:
        >>> moelens.trace(model, "先生がいらっしゃいました。").experts.shape  # doctest: +SKIP
        (6, 4, 4)
    """

    model: str
    text: str
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    experts: NDArray[np.int64]
    weights: NDArray[np.float32]
    spans: tuple[Span, ...]
    entropy: NDArray[np.float64] | None = None
    margin: NDArray[np.float64] | None = None

    def best(self) -> NDArray[np.int64]:
        """The expert with the largest weight, `[token, layer]`."""
        return np.take_along_axis(self.experts, self.weights.argmax(-1)[..., None], -1)[..., 0]

    def __repr__(self) -> str:
        best = self.best()
        classes: dict[int, list[str]] = {}
        for start, end, label in self.spans:
            for i in range(start, end):
                classes.setdefault(i, []).append(label)
        shown = self.shown_layers()
        lines = [f"{self.model} · expert with the largest weight", "\t".join([*(f"L{n}" for n in shown), "token"])]
        for i, token in enumerate(self.tokens):
            experts = [f"E{best[i, self.layers.index(n)]}" for n in shown]
            lines.append("\t".join([*experts, token.replace("\n", "↵") or "∅", " ".join(classes.get(i, []))]).rstrip())
        return "\n".join(lines)

    def html(self, colour: str = "expert", *, load: NDArray[np.float64] | None = None) -> str:
        """The tokens layer by layer, inline-styled, honorifics underlined in the colour of their class.

        Colours mean the "expert" with the largest weight, the router's "margin" or "entropy", or the "load" of that
        expert, given a `load` `[layer, expert]` such as `result.load`. Raises `UnknownNameError` for any other.
        """
        return str(find_view(type(self), "html")(self, colour, load=load))

    def explore(self, other: Trace | None = None, *, load: NDArray[np.float64] | None = None) -> Any:
        """The live view; with an `other` trace, the two aligned and the routes that differ marked.

        `load` `[layer, expert]`, such as `result.load`, is a further colour: how much used the chosen expert is.
        """
        return find_view(type(self), "explore")(self, other, load=load)

    def shown_layers(self) -> tuple[int, ...]:
        """The layers its faces show: all, or as many spread over the model."""
        n = len(self.layers)
        return tuple(self.layers[i] for i in sorted({round(i) for i in np.linspace(0, n - 1, min(n, SHOWN_LAYERS))}))

    def select(self, layers: Sequence[int]) -> Trace:
        """The same trace with these layers only."""
        for layer in layers:
            if layer not in self.layers:
                raise unknown("layer", layer, self.layers)
        at = [self.layers.index(layer) for layer in layers]
        arrays = ("experts", "weights", "entropy", "margin")
        chosen = {n: getattr(self, n)[:, at] for n in arrays if getattr(self, n) is not None}
        return replace(self, layers=tuple(layers), **chosen)


def pieces(text: str, spans: TokenSpans) -> tuple[str, ...]:
    """What each token shows of the text; tokens that share a character show it once.

    >>> start, end = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 2])
    >>> spans = TokenSpans(start, end, np.array([False, True, True, False]), "bytes")
    >>> pieces("敬語", spans)
    ('', '敬', '·', '語')
    """
    shown, last = [], 0
    for start, end in zip(spans.start.tolist(), spans.end.tolist(), strict=True):
        shown.append(text[max(start, last) : end] or ("·" if end > start else ""))
        last = max(last, end)
    return tuple(shown)


def spans_from_labels(labels: NDArray[np.bool_], names: Sequence[str]) -> tuple[Span, ...]:
    """Runs of tokens that have a label, from `labels` `[token, label]`, in reading order.

    >>> spans_from_labels(np.array([[1, 0], [1, 0], [0, 1]], bool), ["尊敬語", "丁寧語"])
    ((0, 2, '尊敬語'), (2, 3, '丁寧語'))
    """
    spans = []
    for name, column in zip(names, np.asarray(labels, bool).T, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], column.astype(int), [0]])))
        spans += [(int(start), int(end), name) for start, end in edges.reshape(-1, 2)]
    return tuple(sorted(spans))


def aligned(first: Sequence[str], second: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Columns of tokens that belong together, -1 where one text has none; what differs is aligned at its end.

    >>> aligned(["先生", "は", "来", "ます"], ["先生", "は", "いらっしゃい", "ます"])
    ((0, 0), (1, 1), (2, 2), (3, 3))
    """
    columns: list[tuple[int, int]] = []
    for _, a, a_end, b, b_end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        for back in range(max(a_end - a, b_end - b), 0, -1):
            columns.append((a_end - back if a_end - back >= a else -1, b_end - back if b_end - back >= b else -1))
    return tuple(columns)


def routes_that_differ(
    columns: Sequence[tuple[int, int]], first: NDArray[np.int64], second: NDArray[np.int64]
) -> list[int | None]:
    """By how many experts the routes of two texts `[token, slot]` differ in each column; None where one has no token.

    >>> routes_that_differ([(0, 0), (1, -1)], np.array([[4, 7], [1, 2]]), np.array([[7, 5]]))
    [1, None]
    """
    return [None if min(a, b) < 0 else len(set(first[a].tolist()) - set(second[b].tolist())) for a, b in columns]


def trace(model: HookedMoE, text: str) -> Trace:
    """Run `model` on a short text and keep its routes.

    Raises:
        MoeLensError: a text of more than 512 tokens (record it instead), or a model without a tokenizer.
    """
    from moelens.analysis import router_entropy, selection_margin
    from moelens.japanese.families import FAMILIES, character_labels, family_columns
    from moelens.japanese.token_labels import token_labels

    ids = model.to_tokens(text)
    if ids.shape[1] > MOST_TOKENS:
        raise MoeLensError(f"{ids.shape[1]} tokens to trace; at most {MOST_TOKENS}: use moelens.record for long texts")
    names = {stage: [f"blocks.{layer}.mlp.{stage}" for layer in model.shape.moe_layers] for stage in STAGES}
    names = {stage: group for stage, group in names.items() if model.hook_dict.keys() >= set(group)}
    _, cache = model.run_with_cache(ids, names_filter=[n for group in names.values() for n in group])
    seen = {stage: np.stack([cache[n][0].float().cpu() for n in group], 1) for stage, group in names.items()}
    scores, selection = (seen.get(stage) for stage in STAGES[2:])
    top_k = model.shape.top_k
    spans = token_spans(model.tokenizer, text, ids[0].tolist())
    has = token_labels(character_labels(text), spans.start, spans.end)[:, family_columns("honorifics")]
    return Trace(
        model.name,
        text,
        pieces(text, spans),
        model.shape.moe_layers,
        seen["hook_expert_indices"].astype(np.int64),
        seen["hook_topk_weights"].astype(np.float32),
        spans_from_labels(has, FAMILIES["honorifics"]),
        entropy=None if scores is None else router_entropy(scores),
        margin=selection_margin(selection, top_k) if selection is not None and top_k < selection.shape[-1] else None,
    )
