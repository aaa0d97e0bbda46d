"""A live view of texts and the experts of their tokens, one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets
from numpy.typing import NDArray

from moelens.errors import MoeLensError, unknown
from moelens.japanese.classes import CLASS_STYLE
from moelens.texts import Texts
from moelens.views.frontend import view_module
from moelens.views.live import LiveView
from moelens.views.token_html import pair_trace_html, shared_layers, trace_html

if TYPE_CHECKING:
    from moelens.tracing import Trace

_MEASURES = ("margin", "entropy")
_UNALIGNED = 65535


class TraceView(LiveView):
    """Traces of one model as tokens, with a layer slider and colours by expert, weight, margin, entropy, load or class.

    Pointing at a token, or moving to it with the arrow keys, shows its experts and their weights. Honorifics are
    underlined in the colour of their class and bear its mark. A pair of traces is aligned: tokens that correspond stand
    in one column, which shows by how many experts their routes differ.

    Args:
        traces: traces of the same layers.
        pair: whether to align the two traces.
        load: relative load of the experts `[layer, expert]`, such as `result.load`; adds the colour "load".
        layer: number of the layer to show first; None for the middle one.
        marked: layer and expert whose tokens are underlined with dots, and counted above each trace.
        lang: language of the texts, "en" or "ja".

    Attributes:
        layer: number of the layer that is shown.
        colour: what the colours show, one of `colours`.
        selected: position of the selected token, counted through all traces.
        highlight: the expert whose tokens are underlined with dots, or -1.

    Raises:
        MoeLensError: there are no traces, they have different layers, or a pair does not have two of them.
        UnknownNameError: the traces do not have the layer.

    Example:
        >>> view = TraceView([moelens.trace(demo_model, "先生がいらっしゃいました。")])
        >>> view.colours
        ['expert', 'weight', 'margin', 'entropy', 'label']
    """

    SLICE_TRAITS = ("layer",)
    MODULE = "trace"
    _esm = view_module("trace.js")
    lines: Any = traitlets.List().tag(sync=True)
    titles: Any = traitlets.List().tag(sync=True)
    spans: Any = traitlets.List().tag(sync=True)
    columns: Any = traitlets.List().tag(sync=True)
    styles: Any = traitlets.Dict().tag(sync=True)
    texts: Any = traitlets.Dict().tag(sync=True)
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
        marked: tuple[int, int] | None = None,
        lang: str | Texts = "en",
    ) -> None:
        layers, self.say = _common_layers(traces, pair, layer), Texts(lang)
        self.load, self.marked = load, marked or (-1, -1)
        super().__init__(
            **self._set_traces(traces, pair),
            layers=list(layers),
            layer=layers[len(layers) // 2] if layer is None else layer,
            styles={n: [s.color, s.mark, s.gloss if self.say.glossed else ""] for n, s in CLASS_STYLE.items()},
            texts=self.say.part("trace") | self.say.part("live"),
        )

    def _set_traces(self, traces: Sequence[Trace], pair: bool = False) -> dict[str, Any]:
        """Keep the traces; returns the traits that do not depend on the layer."""
        from moelens.tracing import align_tokens  # imports torch

        self.traces = tuple(traces)
        self.columns_of_pair = align_tokens(*(t.tokens for t in traces)) if pair else ()
        measures = [name for name in _MEASURES if all(getattr(t, name) is not None for t in traces)]
        self.measure_names = measures if self.load is None else [*measures, "load"]
        starts = np.cumsum([0, *(len(t.tokens) for t in traces)]).tolist()
        return {
            "lines": [list(t.tokens) for t in traces],
            "spans": [[at + a, at + b, name] for at, t in zip(starts, traces, strict=False) for a, b, name in t.spans],
            "columns": [list(column) for column in self.columns_of_pair],
            "measures": self.measure_names,
            "colours": ["expert", "weight", *self.measure_names, "label"],
            "slots": traces[0].experts.shape[-1] if traces else 0,
        }

    def show(self, traces: Sequence[Trace], layer: int, expert: int) -> None:
        """Show other traces of the same layers, and highlight the tokens for which an expert of a layer is chosen."""
        self.marked = layer, expert
        state = {**self._set_traces(traces), **self.slice(layer), "layer": layer, "selected": 0}
        with self.hold_sync():
            for name, value in state.items():
                setattr(self, name, value)

    def slice(self, *chosen: Any) -> dict[str, Any]:
        """Return the traits of one layer.

        Experts are sent as uint16 and weights as float32, `[token, slot]` each, measures as float32
        `[measure, token]`.
        """
        from moelens.tracing import route_differences  # imports torch

        (layer,) = chosen
        positions = [(trace, trace.layers.index(layer)) for trace in self.traces]
        experts, weights = [t.experts[:, at] for t, at in positions], [t.weights[:, at] for t, at in positions]
        values = [
            self.load[at][t.best()[:, at]] if name == "load" and self.load is not None else getattr(t, name)[:, at]
            for name in self.measure_names
            for t, at in positions
        ]
        differs = route_differences(self.columns_of_pair, *experts) if self.columns_of_pair else []
        return {
            "experts": _joined(experts, "<u2"),
            "weights": _joined(weights, "<f4"),
            "values": _joined(values, "<f4"),
            "highlight": self.marked[1] if self.marked[0] == layer else -1,
            "differs": np.array([_UNALIGNED if n is None else n for n in differs], "<u2").tobytes(),
            "heading": self._heading(layer, differs),
            "titles": self._titles(layer),
        }

    def _titles(self, layer: int) -> list[str]:
        """A line above each trace about the marked expert, which is in one layer; no lines without one."""
        at, expert = self.marked
        if at not in self.layers_of_traces():
            return []
        if layer != at:
            return [self.say("trace.elsewhere", layer=at, expert=expert, shown=layer) for _ in self.traces]
        taken = [(t.experts[:, t.layers.index(at)] == expert).any(-1) for t in self.traces]
        return [self.say("trace.chosen", layer=at, expert=expert, n=t.sum(), tokens=len(t)) for t in taken]

    def layers_of_traces(self) -> tuple[int, ...]:
        """Return the layers of the traces."""
        return self.traces[0].layers if self.traces else ()

    def _heading(self, layer: int, differs: Sequence[int | None]) -> str:
        tokens = sum(len(t.tokens) for t in self.traces)
        name = self.traces[0].model if self.traces else self.say("trace.none")
        heading = [name, self.say("trace.tokens", n=f"{tokens:,}"), self.say("trace.shown_layer", layer=layer)]
        if differs:
            aligned = [n for n in differs if n is not None]
            heading.append(self.say("trace.differ", n=sum(n > 0 for n in aligned), tokens=len(aligned)))
        if self.marked[0] == layer:
            heading.append(self.say("trace.marked", layer=layer, expert=self.marked[1]))
        return " · ".join(heading)

    def all_choices(self) -> Iterator[tuple[Any, ...]]:
        return ((layer,) for layer in self.layers)

    def static_html(self) -> str:
        if self.columns_of_pair:
            return pair_trace_html(*self.traces, lang=self.say)
        return "".join(trace_html(trace, lang=self.say) for trace in self.traces)


def _common_layers(traces: Sequence[Trace], pair: bool, layer: int | None) -> tuple[int, ...]:
    """The layers of the traces, after a check that they can be shown together."""
    if not traces or (pair and len(traces) != 2):
        wanted = "2 traces for a pair" if pair else "1 or more traces"
        raise MoeLensError(f"expected {wanted}, got {len(traces)}; make them with moelens.trace")
    layers = shared_layers(traces)
    if layer is not None and layer not in layers:
        raise unknown("layer", layer, layers)
    return layers


def _joined(arrays: Sequence[NDArray[Any]], kind: str) -> bytes:
    return np.concatenate([a.ravel() for a in arrays]).astype(kind).tobytes() if arrays else b""
