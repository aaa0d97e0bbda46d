"""What: text as tokens, coloured by expert, honorifics underlined."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.tables import number
from moelens.errors import CheckError
from moelens.views.style import CLASS_STYLE, label_html, label_text

Span = tuple[int, int, str]
"""First token, token after the last, label."""

GOLDEN = 0.618034


def tokens_html(
    tokens: Sequence[str],
    experts: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    spans: Sequence[Span] = (),
    layer: int | None = None,
) -> str:
    """A text as tokens, each on the colour of the expert with the largest weight, whose id stands below it.

    `experts` `[token, slot]`, `weights` `[token, slot]`; without weights the first slot counts as the largest.
    Hovering lists all ids and weights. `spans` underlines tokens in the colour of their honorific class, with its
    mark. Only inline styles, so that notebooks keep it as it is. Raises `CheckError` where lengths differ.

    >>> experts, weights = [[3, 1], [0, 2]], [[0.7, 0.3], [0.6, 0.4]]
    >>> html = tokens_html(["いらっしゃい", "ます"], experts, weights, spans=[(0, 1, "尊敬語")])
    >>> "E3 0.700" in html and "▲" in html
    True
    """
    ids = np.asarray(experts)
    gates = None if weights is None else np.asarray(weights, float)
    if ids.ndim != 2 or len(ids) != len(tokens) or (gates is not None and gates.shape != ids.shape):
        shapes = (
            f"{len(tokens)} tokens, experts {list(ids.shape)}, weights {None if gates is None else list(gates.shape)}"
        )
        raise CheckError(f"{shapes} do not fit; allowed: experts and weights both [token, slot]")
    if not len(tokens):
        return "<div>no tokens to show</div>"
    cells = [_token(token, ids[i], None if gates is None else gates[i]) for i, token in enumerate(tokens)]
    for start, end, label in spans:
        for i in range(max(start, 0), min(end, len(tokens))):
            cells[i] = _underlined(cells[i], label, marked=i == start)
    where = "" if layer is None else f"layer {layer} · "
    present = dict.fromkeys(label for _, _, label in spans)
    legend = "".join(f" · {label_html(label)}" for label in present)
    return (
        f'<div><div style="font-size: 85%; opacity: 0.75">{where}colour and number: expert with the largest weight'
        f'{legend}</div><div lang="ja" style="line-height: 1.3; margin-top: 4px">{"".join(cells)}</div></div>'
    )


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


def expert_colour(expert: int, alpha: float = 0.3) -> str:
    """A colour for an expert id; neighbours differ. It is translucent, to suit light and dark pages."""
    red, green, blue = (round(255 * c) for c in colorsys.hls_to_rgb(expert * GOLDEN % 1, 0.5, 0.75))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def _token(token: str, ids: NDArray[np.integer], gates: NDArray[np.float64] | None) -> str:
    order = range(len(ids)) if gates is None else np.argsort(-gates, kind="stable")
    listed = [f"E{ids[i]}" + ("" if gates is None else f" {number(gates[i])}") for i in order]
    best = int(ids[order[0]])
    shown = escape(token.replace("\n", "↵")).replace(" ", "&nbsp;") or "&nbsp;"
    return (
        f'<span title="{escape(token + ": " + ", ".join(listed))}" style="display: inline-block; text-align: center; '
        f'margin-right: 1px; padding: 1px 2px; border-radius: 3px; background-color: {expert_colour(best)}">'
        f'{shown}<br><span style="font-size: 60%; opacity: 0.7">{best}</span></span>'
    )


def _underlined(cell: str, label: str, *, marked: bool) -> str:
    # Token by token, so that spans may overlap and lines may break inside them.
    style = CLASS_STYLE.get(label)
    colour, sign = (style.color, style.mark) if style else ("#888888", "")
    mark = f'<span style="color: {colour}; font-size: 70%; vertical-align: top">{sign}</span>' if marked else ""
    return (
        f'<span title="{escape(label_text(label))}" style="display: inline-block; border-bottom: 3px solid {colour}; '
        f'padding-bottom: 1px">{mark}{cell}</span>'
    )
