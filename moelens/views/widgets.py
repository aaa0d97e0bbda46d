"""Live views: the browser draws and sends what was chosen, Python holds the data and sends one slice at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from moelens.japanese.classes import label_text
from moelens.views.cards import card_html
from moelens.views.frontend import module
from moelens.views.live import Live
from moelens.views.maps import DARK, LIGHT, VALUES, clip_of, expert_map, map_size, map_title, ratios
from moelens.views.pictures import image
from moelens.views.style import japanese_font

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.recording import Recording
    from moelens.tracing.passages import Excerpt

MOST_CARDS = 120


class ExpertMap(Live):
    """The map of a result, live: choose label and metric, click, brush, move by keys, search, sort within layers.

    Attributes:
        label, metric: what is shown.
        selected: `[position of the layer, expert]`.
        brushed: `[first layer, last layer, first expert, last expert]` by position, or empty.
        opened: counts how often Enter asked for the selected expert.

    Example:
        >>> widget = ExpertMap(result)                                         # doctest: +SKIP
        >>> widget.observe(lambda change: print(change["new"]), "selected")    # doctest: +SKIP
    """

    ASKS = ("label", "metric")
    MODULE = "map"
    _esm = module("map.js")
    values = traitlets.Bytes().tag(sync=True)
    significant = traitlets.Bytes().tag(sync=True)
    lut = traitlets.Bytes().tag(sync=True)
    lut_dark = traitlets.Bytes().tag(sync=True)
    clip = traitlets.Float(1.0).tag(sync=True)
    shape = traitlets.List(traitlets.Int()).tag(sync=True)
    layers = traitlets.List(traitlets.Int()).tag(sync=True)
    groups = traitlets.Int(1).tag(sync=True)
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    metrics = traitlets.List(traitlets.Unicode()).tag(sync=True)
    metric = traitlets.Unicode("lift").tag(sync=True)
    names: Any = traitlets.Dict().tag(sync=True)
    sorted = traitlets.Bool(False).tag(sync=True)
    selected = traitlets.List(traitlets.Int(), [0, 0]).tag(sync=True)
    brushed = traitlets.List(traitlets.Int()).tag(sync=True)
    opened = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        result: Specialization,
        label: str | None = None,
        metric: str = "lift",
        recording: Recording | Excerpt | None = None,
    ) -> None:
        self.result, self.recording = result, recording
        shown = [name for name in result.names if name not in result.too_rare] or list(result.names)
        label = shown[0] if label is None else label
        best = result.top(1, label)
        super().__init__(
            shape=[len(result.layers), result.n_experts],
            layers=list(result.layers),
            groups=result.provenance.get("n_groups") or 1,
            labels=shown,
            label=label,
            metrics=list(VALUES),
            metric=metric,
            names={name: label_text(name) for name in shown} | VALUES,
            selected=[result.layers.index(best[0].layer), best[0].expert] if best else [0, 0],
            lut=_colours(LIGHT),
            lut_dark=_colours(DARK),
        )

    def slice(self, *asked: Any) -> dict[str, Any]:
        """One label and one metric: log2 ratios as float32, and which of them survive."""
        label, metric = asked
        with np.errstate(divide="ignore"):
            logs = np.log2(ratios(self.result, label, metric))
        significant = self.result.significant[:, :, self.result.label_index(label)]
        return {
            "values": logs.astype("<f4").tobytes(),
            "significant": significant.astype(np.uint8).tobytes(),
            "clip": clip_of(logs),
            "heading": map_title(self.result, label, VALUES[metric]).replace("\n", " · "),
        }

    def every(self) -> Iterator[tuple[Any, ...]]:
        return product(self.labels, self.metrics)

    def static_html(self) -> str:
        # One picture, for light pages: a notebook waits for it at every display, and its theme is not the system's.
        figure = Figure(figsize=map_size(self.result, self.label), layout="constrained")
        with japanese_font():
            expert_map(self.result, self.label, value=self.metric, ax=figure.subplots())
            return image(figure, self.heading)

    def cards(self) -> Iterator[tuple[str, str]]:
        """The experts that prefer some label most, as many as a file should carry."""
        result, found = self.result, dict[tuple[int, int], None]()
        for finding in result.top(MOST_CARDS):
            found.setdefault((result.layers.index(finding.layer), finding.expert))
        for name in self.labels:
            found.update(dict.fromkeys((result.layers.index(f.layer), f.expert) for f in result.top(3, name)))
        yield "", "Cards are kept for the experts that prefer some label most; open the others in a notebook."
        for layer, expert in found:
            yield f"{layer},{expert}", card_html(result, result.layers[layer], expert, self.recording)


def _colours(colours: Colormap) -> bytes:
    """256 colours, three bytes each."""
    return bytes(np.round(255 * colours(np.arange(256) / 255)[:, :3]).astype(np.uint8))
