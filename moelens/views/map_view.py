"""The live map of layers × experts. Python keeps the data and sends the browser one label and metric at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from moelens.japanese.classes import label_text
from moelens.texts import Texts
from moelens.views.cards import card_html
from moelens.views.frontend import view_module
from moelens.views.live import LiveView
from moelens.views.maps import (
    DARK_COLOURS,
    LIGHT_COLOURS,
    METRICS,
    colour_limit,
    expert_map,
    map_size,
    map_title,
    ratios,
    tested_metric,
)
from moelens.views.pictures import image_html
from moelens.views.style import japanese_font

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.japanese import Labels
    from moelens.recording import Recording
    from moelens.tracing.passages import Excerpt

_MOST_CARDS = 128


class ExpertMap(LiveView):
    """The map of a result as a widget, in which the reader chooses a label, a metric and an expert.

    The reader can click, drag a rectangle, move with the arrow keys, search for an expert, and sort within layers.

    Args:
        result: a result of `analyze`.
        label: the label to show first; None for the first one that was tested.
        metric: the metric to show first: "lift", "share" or "lift_given_token"; None for the tested one.
        recording: the recording that was analysed, for the words and sentences on the cards of a file.
        token_labels: labels of the recording, by which the sentences are chosen.
        lang: language of the texts, "en" or "ja".

    Attributes:
        label: the label that is shown.
        metric: the metric that is shown.
        selected: the selected expert, `[position of the layer, expert]`.
        brushed: the rectangle, `[first layer, last layer, first expert, last expert]` by position; or empty.
        opened: how many times the Enter key was pressed on an expert.
        carded: in a file, the cells that have a card there; they bear a dot.

    Example:
        >>> view = ExpertMap(moelens.analyze(demo_recording, permutations=20, progress=False), "丁寧語")
        >>> view.label, view.metric
        ('丁寧語', 'lift_given_token')
        >>> view.observe(lambda change: print("selected", change["new"]), "selected")
        >>> view.selected = [2, 17]
        selected [2, 17]
    """

    SLICE_TRAITS = ("label", "metric")
    MODULE = "map"
    _esm = view_module("map.js")
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
    texts: Any = traitlets.Dict().tag(sync=True)
    sorted = traitlets.Bool(False).tag(sync=True)
    selected = traitlets.List(traitlets.Int(), [0, 0]).tag(sync=True)
    brushed = traitlets.List(traitlets.Int()).tag(sync=True)
    opened = traitlets.Int(0).tag(sync=True)
    carded = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(
        self,
        result: Specialization,
        label: str | None = None,
        metric: str | None = None,
        recording: Recording | Excerpt | None = None,
        lang: str | Texts = "en",
        *,
        token_labels: Labels | None = None,
    ) -> None:
        self.result, self.recording, self.say = result, recording, Texts(lang)
        self.token_labels = token_labels
        gloss = self.say.glossed
        shown = [name for name in result.names if name not in result.too_rare] or list(result.names)
        label = shown[0] if label is None else result.names[result.label_index(label)]
        best = result.top(1, label)
        super().__init__(
            shape=[len(result.layers), result.n_experts],
            layers=list(result.layers),
            groups=result.provenance.get("n_groups") or 1,
            labels=shown,
            label=label,
            metrics=[m for m in METRICS if m != "lift_given_token" or result.evidence == "test"],
            metric=metric or tested_metric(result),
            names={name: label_text(name, gloss=gloss) for name in shown} | self.say.part("metric"),
            texts=self.say.part("map") | self.say.part("live"),
            selected=[result.layers.index(best[0].layer), best[0].expert] if best else [0, 0],
            lut=_colour_table(LIGHT_COLOURS),
            lut_dark=_colour_table(DARK_COLOURS),
        )

    def slice(self, *chosen: Any) -> dict[str, Any]:
        """Return log2 ratios of one label and metric as float32, and which cells are significant as uint8."""
        label, metric = chosen
        with np.errstate(divide="ignore"):
            logs = np.log2(ratios(self.result, label, metric))
        significant = self.result.certain[:, :, self.result.label_index(label)]
        return {
            "values": logs.astype("<f4").tobytes(),
            "significant": significant.astype(np.uint8).tobytes(),
            "clip": colour_limit(logs),
            "heading": map_title(self.result, label, metric, self.say).replace("\n", " · "),
        }

    def all_choices(self) -> Iterator[tuple[Any, ...]]:
        return product(self.labels, self.metrics)

    def static_html(self) -> str:
        # One picture, for light pages only: the notebook waits for it at every display, and a <picture> would follow
        # the theme of the system, which may differ from that of the notebook.
        figure = Figure(figsize=map_size(self.result, self.label), layout="constrained")
        with japanese_font():
            expert_map(self.result, self.label, value=self.metric, ax=figure.subplots(), lang=self.say)
            return image_html(figure, self.heading)

    def cards(self) -> Iterator[tuple[str, str]]:
        """Return the cards of the experts with the strongest preferences; all cards would make a file too large."""
        yield "", self.say("card.in_file")
        for cell in self._cells_with_cards():
            at, expert = map(int, cell.split(","))
            layer, labels = self.result.layers[at], self.token_labels
            yield cell, card_html(self.result, layer, expert, self.recording, labels=labels, lang=self.say)

    def state_in_file(self) -> dict[str, Any]:
        cells = self._cells_with_cards()
        return {"carded": cells if len(cells) < np.prod(self.shape) else []}

    def _cells_with_cards(self) -> list[str]:
        result = self.result
        if result.load.size <= _MOST_CARDS:
            return [f"{at},{expert}" for at, expert in np.ndindex(result.load.shape)]
        findings = [*result.top(_MOST_CARDS), *(f for name in self.labels for f in result.top(3, name))]
        return list(dict.fromkeys(f"{result.layers.index(f.layer)},{f.expert}" for f in findings))


def _colour_table(colours: Colormap) -> bytes:
    """256 colours of three bytes each."""
    return bytes(np.round(255 * colours(np.arange(256) / 255)[:, :3]).astype(np.uint8))
