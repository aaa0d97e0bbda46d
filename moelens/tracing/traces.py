"""Run one text through a model and keep, for each token, its experts, their weights and the honorifics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moelens.analysis import router_entropy, selection_margin
from moelens.display import Plotted, find_view
from moelens.errors import MoeLensError, unknown
from moelens.japanese.families import FAMILIES, character_labels, family_columns
from moelens.japanese.token_labels import token_labels
from moelens.models.hooked_check import require_hooked
from moelens.models.tokens import TokenSpans, token_spans

if TYPE_CHECKING:
    import pandas as pd

    from moelens.models.hooked import HookedMoE

Span = tuple[int, int, str]
"""First token, token after the last, label."""

_SHOWN_LAYERS = 4
_MOST_TOKENS = 512
_STAGES = ("hook_expert_indices", "hook_topk_weights", "hook_router_scores", "hook_router_selection")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Trace(Plotted):
    """The experts chosen for each token of a text.

    Attributes:
        model: name of the model.
        text: the text.
        tokens: the piece of the text that each token stands for; "▫" for a further token of the same character.
        layers: layer numbers, in the order of the axis `layer`.
        experts: ids of the chosen experts, `[token, layer, slot]`.
        weights: their routing weights, `[token, layer, slot]`.
        spans: the tokens that carry the label of an honorific, each as first token, token after the last, and class;
            see `moelens.japanese.token_labels`.
        entropy: entropy of the router's scores in nats, `[token, layer]`; None where the scores are not known.
        margin: selection score of the last expert chosen minus that of the next, `[token, layer]`; None where the
            selection scores are not known.

    Example:
        >>> found = moelens.trace(demo_model, "先生がいらっしゃいました。")
        >>> found.experts.shape == (len(found.tokens), len(found.layers), demo_model.shape.top_k)
        True
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
        """Return the expert with the largest weight, `[token, layer]`."""
        return np.take_along_axis(self.experts, self.weights.argmax(-1)[..., None], -1)[..., 0]

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas data frame of pos, token, layer, slot, expert, weight, with a row for each layer and slot."""
        import pandas as pd

        token, layer, slot = np.indices(self.experts.shape).reshape(3, -1)
        return pd.DataFrame(
            {
                "pos": token,
                "token": [self.tokens[i] for i in token.tolist()],
                "layer": np.array(self.layers)[layer],
                "slot": slot,
                "expert": self.experts.ravel(),
                "weight": self.weights.ravel(),
            }
        )

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
        """Return the tokens layer by layer as HTML with inline styles; honorifics are underlined in their colour.

        Args:
            colour: what the colours show: the "expert" with the largest weight, the router's "margin" or "entropy",
                or the "load" of that expert.
            load: relative load `[layer, expert]`, such as `result.load`; needed for "load".

        Raises:
            UnknownNameError: `colour` is none of these, or its values are not known.
        """
        return str(find_view(type(self), "html")(self, colour, load=load))

    def explore(self, other: Trace | None = None, *, load: NDArray[np.float64] | None = None) -> Any:
        """Return the live view.

        Args:
            other: a second trace. The view then aligns the tokens of the two and marks where their routes differ.
            load: relative load `[layer, expert]`, such as `result.load`; the view then offers the load of the chosen
                expert as a colour.
        """
        return find_view(type(self), "explore")(self, other, load=load)

    def shown_layers(self) -> tuple[int, ...]:
        """Return the layers that the printed and HTML forms show: four of them, spread evenly, or all if fewer."""
        n = len(self.layers)
        places = sorted({round(i) for i in np.linspace(0, n - 1, min(n, _SHOWN_LAYERS))})
        return tuple(self.layers[i] for i in places)

    def select(self, layers: Sequence[int]) -> Trace:
        """Return the same trace with these layers only.

        Args:
            layers: layer numbers.

        Raises:
            UnknownNameError: the trace does not have one of the layers.
        """
        for layer in layers:
            if layer not in self.layers:
                raise unknown("layer", layer, self.layers)
        at = [self.layers.index(layer) for layer in layers]
        arrays = ("experts", "weights", "entropy", "margin")
        chosen = {n: getattr(self, n)[:, at] for n in arrays if getattr(self, n) is not None}
        return replace(self, layers=tuple(layers), **chosen)


def token_texts(text: str, spans: TokenSpans) -> tuple[str, ...]:
    """Return what each token shows of the text; tokens that share a character show it once.

    Example:
        >>> start, end = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 2])
        >>> spans = TokenSpans(start, end, np.array([False, True, True, False]), "bytes")
        >>> token_texts("敬語", spans)
        ('', '敬', '▫', '語')
    """
    shown, last = [], 0
    for start, end in zip(spans.start.tolist(), spans.end.tolist(), strict=True):
        shown.append(text[max(start, last) : end] or ("▫" if end > start else ""))
        last = max(last, end)
    return tuple(shown)


def spans_from_labels(labels: NDArray[np.bool_], names: Sequence[str]) -> tuple[Span, ...]:
    """Return the runs of tokens that have a label, in reading order.

    Args:
        labels: whether a token has a label, `[token, label]`.
        names: names of the labels.

    Example:
        >>> spans_from_labels(np.array([[1, 0], [1, 0], [0, 1]], bool), ["尊敬語", "丁寧語"])
        ((0, 2, '尊敬語'), (2, 3, '丁寧語'))
    """
    spans = []
    for name, column in zip(names, np.asarray(labels, bool).T, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], column.astype(int), [0]])))
        spans += [(int(start), int(end), name) for start, end in edges.reshape(-1, 2)]
    return tuple(sorted(spans))


def align_tokens(first: Sequence[str], second: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Align the tokens of two texts in columns; stretches that differ are aligned at their ends.

    Returns:
        For each column the position of a token in `first` and in `second`, -1 where one text has no token.

    Example:
        >>> align_tokens(["先生", "は", "来", "ます"], ["先生", "は", "いらっしゃい", "ます"])
        ((0, 0), (1, 1), (2, 2), (3, 3))
    """
    columns: list[tuple[int, int]] = []
    for _, a, a_end, b, b_end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        for back in range(max(a_end - a, b_end - b), 0, -1):
            columns.append((a_end - back if a_end - back >= a else -1, b_end - back if b_end - back >= b else -1))
    return tuple(columns)


def route_differences(
    columns: Sequence[tuple[int, int]], first: NDArray[np.int64], second: NDArray[np.int64]
) -> list[int | None]:
    """Count the experts by which the routes of two texts differ in each column.

    Args:
        columns: positions of aligned tokens, from `align_tokens`.
        first: experts of the first text in one layer, `[token, slot]`.
        second: experts of the second text in the same layer, `[token, slot]`.

    Returns:
        One number for each column; None where one of the texts has no token.

    Example:
        >>> route_differences([(0, 0), (1, -1)], np.array([[4, 7], [1, 2]]), np.array([[7, 5]]))
        [1, None]
    """
    return [None if min(a, b) < 0 else len(set(first[a].tolist()) - set(second[b].tolist())) for a, b in columns]


def trace(model: HookedMoE, text: str) -> Trace:
    """Run a model on a short text and keep its routes.

    Args:
        model: the model, with its tokenizer.
        text: a text of at most 512 tokens; record longer ones.

    Returns:
        The experts and weights of every token in every layer with experts.

    Raises:
        MoeLensError: the text has more than 512 tokens, or the model has no tokenizer.

    Example:
        >>> found = moelens.trace(demo_model, "先生がいらっしゃいました。")
        >>> "".join(found.tokens)
        '先生がいらっしゃいました。'
        >>> sorted({name for _, _, name in found.spans})
        ['丁寧語', '尊敬語']
    """
    require_hooked(model)
    ids = model.to_tokens(text)
    if ids.shape[1] > _MOST_TOKENS:
        raise MoeLensError(
            f"expected a text of at most {_MOST_TOKENS} tokens, got {ids.shape[1]}; use moelens.record for long texts"
        )
    names = {stage: [f"blocks.{layer}.mlp.{stage}" for layer in model.shape.moe_layers] for stage in _STAGES}
    names = {stage: group for stage, group in names.items() if model.hook_dict.keys() >= set(group)}
    _, cache = model.run_with_cache(ids, names_filter=[n for group in names.values() for n in group])
    seen = {stage: np.stack([cache[n][0].float().cpu() for n in group], 1) for stage, group in names.items()}
    scores, selection = seen.get("hook_router_scores"), seen.get("hook_router_selection")
    top_k = model.shape.top_k
    spans = token_spans(model.tokenizer, text, ids[0].tolist())
    carried = token_labels(character_labels(text), spans.start, spans.end)[:, family_columns("honorifics")]
    return Trace(
        model=model.name,
        text=text,
        tokens=token_texts(text, spans),
        layers=model.shape.moe_layers,
        experts=seen["hook_expert_indices"].astype(np.int64),
        weights=seen["hook_topk_weights"].astype(np.float32),
        spans=spans_from_labels(carried, FAMILIES["honorifics"]),
        entropy=None if scores is None else router_entropy(scores),
        margin=selection_margin(selection, top_k) if selection is not None and top_k < selection.shape[-1] else None,
    )
