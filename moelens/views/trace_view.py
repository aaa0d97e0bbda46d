"""Texts and the experts their tokens take, live: layer by layer, coloured by what is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets
from numpy.typing import NDArray

from moelens.errors import MoeLensError, unknown
from moelens.japanese.classes import CLASS_STYLE
from moelens.views.frontend import module
from moelens.views.live import Live
from moelens.views.text import pair_trace_html, shared_layers

if TYPE_CHECKING:
    from moelens.tracing import Trace

MEASURES = ("margin", "entropy")
UNALIGNED = 65535


class TraceView(Live):
    """Traces of one model as tokens: a layer slider, colours by expert, weight, margin, entropy, load or class.

    Hovering or the keys show the chosen experts and their weights. Honorifics are underlined in the colour of their
    class and bear its mark. With `pair`, tokens of two traces that belong together stand above one another, and where
    their routes differ it says by how many experts.

    Attributes:
        layer: number of the layer that is shown.
        colour: what the colours mean, one of `colours`.
        selected: the token the keys are at, counted through all traces.
        highlight: expert whose tokens are underlined with dots, or -1.

    Example:
        >>> TraceView([moelens.trace(model, "先生がいらっしゃいました。")])  # doctest: +SKIP
    """

    ASKS = ("layer",)
    MODULE = "trace"
    _esm = module("trace.js")
    lines: Any = traitlets.List().tag(sync=True)
    titles: Any = traitlets.List().tag(sync=True)
    spans: Any = traitlets.List().tag(sync=True)
    columns: Any = traitlets.List().tag(sync=True)
    styles: Any = traitlets.Dict().tag(sync=True)
    layers = traitlets.List(traitlets.Int()).tag(sync=True)
    layer = traitlets.Int().tag(sync=True)
    colours = traitlets.List(traitlets.Unicode()).tag(sync=True)
    colour = traitlets.Unicode("expert").tag(sync=True)
    measures = traitlets.List(traitlets.Unicode()).tag(sync=True)
    slots = traitlets.Int().tag(sync=True)
    experts = traitlets.Bytes().tag(sync=True)
    weights = traitlets.Bytes().tag(sync=True)
    values = traitlets.Bytes().tag(sync=True)
    differs = traitlets.Bytes().tag(sync=True)
    selected = traitlets.Int(0).tag(sync=True)
    highlight = traitlets.Int(-1).tag(sync=True)

    def __init__(
        self,
        traces: Sequence[Trace],
        *,
        pair: bool = False,
        load: NDArray[np.float64] | None = None,
        layer: int | None = None,
        titles: Sequence[str] = (),
    ) -> None:
        """`load` is the relative load `[layer, expert]` of the traces' layers, as of a `Specialization`.

        Raises `MoeLensError` for no traces, traces of different layers, or a pair that is not two; `UnknownNameError`
        for a layer that the traces do not have.
        """
        layers = check(traces, pair, layer)
        self.load, self.marked = load, (-1, -1)
        super().__init__(
            **self.hold(traces, pair, titles),
            layers=list(layers),
            layer=layers[len(layers) // 2] if layer is None else layer,
            styles={name: [s.color, s.mark, s.gloss] for name, s in CLASS_STYLE.items()},
        )

    def hold(self, traces: Sequence[Trace], pair: bool = False, titles: Sequence[str] = ()) -> dict[str, Any]:
        """Keep the traces; returns the traits that do not depend on the layer."""
        from moelens.tracing import aligned

        self.traces = tuple(traces)
        self.pairs = aligned(*(t.tokens for t in traces)) if pair else ()
        self.names = [name for name in MEASURES if all(getattr(t, name) is not None for t in traces)]
        self.names += ["load"] * (self.load is not None)
        starts = np.cumsum([0, *(len(t.tokens) for t in traces)]).tolist()
        return {
            "lines": [list(t.tokens) for t in traces],
            "titles": list(titles),
            "spans": [[at + a, at + b, name] for at, t in zip(starts, traces, strict=False) for a, b, name in t.spans],
            "columns": [list(column) for column in self.pairs],
            "measures": self.names,
            "colours": ["expert", "weight", *self.names, "label"],
            "slots": traces[0].experts.shape[-1] if traces else 0,
        }

    def show(self, traces: Sequence[Trace], layer: int, expert: int) -> None:
        """Show other traces, of the same layers, and mark the tokens that an expert of this layer takes."""
        self.marked = layer, expert
        held = {**self.hold(traces), **self.slice(layer), "layer": layer, "selected": 0}
        with self.hold_sync():
            for name, value in held.items():
                setattr(self, name, value)

    def slice(self, *asked: Any) -> dict[str, Any]:
        """Of one layer: experts as uint16 and weights as float32 `[token, slot]`, measures `[measure, token]`."""
        from moelens.tracing import routes_that_differ

        (layer,) = asked
        held = [(trace, trace.layers.index(layer)) for trace in self.traces]
        experts, weights = [t.experts[:, at] for t, at in held], [t.weights[:, at] for t, at in held]
        values = [
            self.load[at][t.best()[:, at]] if name == "load" and self.load is not None else getattr(t, name)[:, at]
            for name in self.names
            for t, at in held
        ]
        differs = routes_that_differ(self.pairs, *experts) if self.pairs else []
        together = [n for n in differs if n is not None]
        told = (
            f" · routes differ at {sum(n > 0 for n in together)} of {len(together)} aligned tokens" if differs else ""
        )
        if self.marked[0] == layer:
            told += f" · underlined with dots: tokens that L{layer} · E{self.marked[1]} takes"
        tokens = sum(len(t.tokens) for t in self.traces)
        name = self.traces[0].model if self.traces else "no such sentence"
        return {
            "experts": _joined(experts, "<u2"),
            "weights": _joined(weights, "<f4"),
            "values": _joined(values, "<f4"),
            "highlight": self.marked[1] if self.marked[0] == layer else -1,
            "differs": np.array([UNALIGNED if n is None else n for n in differs], "<u2").tobytes(),
            "heading": f"{name} · {tokens:,} tokens · layer {layer}{told}",
        }

    def every(self) -> Iterator[tuple[Any, ...]]:
        return ((layer,) for layer in self.layers)

    def static_html(self) -> str:
        if self.pairs:
            return pair_trace_html(*self.traces)
        return "".join(trace._repr_html_() for trace in self.traces)


def check(traces: Sequence[Trace], pair: bool, layer: int | None) -> tuple[int, ...]:
    """The layers of the traces, if these can be shown together."""
    if not traces or (pair and len(traces) != 2):
        raise MoeLensError(f"{len(traces)} traces to show; allowed: {'2, as a pair' if pair else '1 or more'}")
    layers = shared_layers(traces)
    if layer is not None and layer not in layers:
        raise unknown("layer", layer, layers)
    return layers


def _joined(arrays: Sequence[NDArray[Any]], kind: str) -> bytes:
    return np.concatenate([a.ravel() for a in arrays]).astype(kind).tobytes() if arrays else b""
