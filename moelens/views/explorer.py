"""The explorer: the map, the card of an expert, its sentences and what its removal changes, linked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
import traitlets

from moelens.analysis.result import ALPHA
from moelens.analysis.tables import number
from moelens.errors import MoeLensError
from moelens.japanese.families import FAMILIES
from moelens.japanese.minimal_pairs import kinds
from moelens.views.cards import card_html
from moelens.views.frontend import module
from moelens.views.live import Live
from moelens.views.page import Page
from moelens.views.trace_view import TraceView
from moelens.views.widgets import ExpertMap

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.interventions.effects import Effect
    from moelens.tracing.passages import Passages

Remove = Callable[[int, int, str, bool], "Effect"]
"""Removes an expert: layer, expert, kind of minimal pairs, whether matched controls are run too."""

# The contrast that a label is about.
KIND = {
    "尊敬語": "respectful",
    "謙譲語I": "humble",
    "謙譲語II": "humble",
    "丁寧語": "polite-ending",
    "美化語": "beautifying",
    **{name: "pronoun" for name in FAMILIES["reference"] if name.startswith(("一人称", "二人称"))},
}
HISTORY = 8
HEAD = "letter-spacing: .08em; font-size: 80%; opacity: .7"


class EffectView(Live):
    """A button that removes the chosen expert, and what that changed, the last removal first.

    Attributes:
        target: the expert in words; kind: of pairs; controls: whether matched controls are run too.
        asked: counts the clicks.
        status: "idle", "running" or "failed"; message says more.
        rows: the effects, as `moelens.effect` gives them for one kind of pairs.
    """

    MODULE = "effect"
    _esm = module("effect.js")
    target = traitlets.Unicode().tag(sync=True)
    kinds = traitlets.List(traitlets.Unicode(), list(kinds())).tag(sync=True)
    kind = traitlets.Unicode().tag(sync=True)
    controls = traitlets.Bool(False).tag(sync=True)
    asked = traitlets.Int(0).tag(sync=True)
    available = traitlets.Bool(True).tag(sync=True)
    status = traitlets.Unicode("idle").tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    rows: Any = traitlets.List().tag(sync=True)

    def slice(self, *asked: Any) -> dict[str, Any]:
        return {}

    def every(self) -> Iterator[tuple[Any, ...]]:
        return iter(())

    def in_file(self) -> dict[str, Any]:
        return {"available": False, "message": "removing an expert takes a notebook and the model"}

    def static_html(self) -> str:
        return ""


class Explorer(ipywidgets.VBox):  # type: ignore[misc]
    """Where, what and so what: the live map, the card of the chosen expert, its sentences, its removal.

    Attributes:
        map, card, trace, effect: the views. Without a recording there are the map and the card alone.

    Example:
        >>> explorer = moelens.explore("runs/demo", label="尊敬語")  # doctest: +SKIP
        >>> explorer.map.selected = [3, 21]                        # doctest: +SKIP
    """

    def __init__(
        self,
        result: Specialization,
        passages: Passages | None = None,
        remove: Remove | None = None,
        label: str | None = None,
    ) -> None:
        """`passages` of the recording that the result is of; `remove` runs the model without an expert.

        Raises `MoeLensError` for passages of a recording with other layers.
        """
        self.result, self.passages, self.remove = result, passages, remove
        excerpt = None if passages is None else passages.excerpt
        self.map, self.card = ExpertMap(result, label, recording=excerpt), ipywidgets.HTML()
        self.map.layout.flex, self.card.layout.flex = "1 1 500px", "1 1 460px"
        row = ipywidgets.HBox([self.map, self.card], layout={"flex_flow": "row wrap", "grid_gap": "0 20px"})
        self.effects: dict[tuple[int, int], Effect] = {}
        self.parts: list[tuple[str, str, Live]] = [("WHERE", "layers and experts", self.map)]
        if passages is not None:
            if passages.recording.layers != result.layers:
                raise MoeLensError(
                    f"a result of layers {result.layers}, a recording of {passages.recording.layers}; give its own"
                )
            self.trace = TraceView([passages.passage(0)], load=result.load)
            self.effect = EffectView(kind=KIND.get(self.map.label, "respectful"))
            self.effect.observe(self._remove, "asked")
            part = passages.excerpt.part
            of = f", of {part}" if part else ""
            self.parts.append(("WHAT", f"sentences in which it takes this label{of}", self.trace))
            self.parts.append(("SO WHAT", "what the model prefers without it", self.effect))
        shown = [row, *(view for _, _, view in self.parts[1:])]
        heads = [ipywidgets.HTML(f'<b style="{HEAD}">{question}</b> {text}') for question, text, _ in self.parts]
        super().__init__([widget for both in zip(heads, shown, strict=True) for widget in both])
        self.map.observe(self._show, ["selected", "label"])
        self._show()

    def save_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML file: the map and its cards alive, the sentences and effects shown now."""
        path, page = Path(path), Page()
        body = "".join(f"<h2><b>{question}</b>{text}</h2>{page.live(view)}" for question, text, view in self.parts)
        path.write_text(page.html(self.map.heading, body), encoding="utf-8")
        return path

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live views, and for where no kernel answers the map as a picture with the card."""
        data = super()._repr_mimebundle_(**kwargs)
        return {**data, "text/html": f"{self.map.static_html()}{self.card.value}"}

    def _chosen(self) -> tuple[int, int]:
        """Number of the layer, and the expert."""
        at, expert = self.map.selected
        return self.result.layers[at], expert

    def _show(self, change: Any = None) -> None:
        layer, expert = self._chosen()
        self.card.value = card_html(
            self.result,
            layer,
            expert,
            self.map.recording,
            labels=None if self.passages is None else self.passages.labels,
            effect=self.effects.get((layer, expert)),
        )
        if self.passages is not None:
            self.trace.show(self.passages.find(layer, expert, self.map.label), layer, expert)
            self.effect.target = f"L{layer} · E{expert}"
            if change is not None and change["name"] == "label" and self.map.label in KIND:
                self.effect.kind = KIND[self.map.label]

    def _remove(self, change: Any) -> None:
        view, (layer, expert) = self.effect, self._chosen()
        view.status, view.message = "running", f"the model reads the pairs without {view.target} …"
        try:
            if self.remove is None:
                raise MoeLensError(
                    "no model to remove an expert from; open this with moelens.explore(recording, model)"
                )
            found = self.remove(layer, expert, view.kind, view.controls)
        except MoeLensError as error:
            view.status, view.message = "failed", str(error)
            return
        except BaseException:  # an interrupt too: the button must not stay as if it were running
            view.status, view.message = "failed", "something else went wrong; the log of the notebook says what"
            raise
        row = {name: value if value == value else None for name, value in asdict(found.kinds[0]).items()}  # NaN: None
        row["target"] = view.target
        view.rows = [row, *view.rows][:HISTORY]
        view.status, view.message = "idle", verdict(row)
        self.effects[layer, expert] = found
        self._show()


def verdict(row: Mapping[str, Any]) -> str:
    """An effect in one sentence.

    >>> verdict({"target": "L4 · E21", "change": -0.31, "low": -0.44, "high": -0.18, "p": None})
    'without L4 · E21 the preference falls by 0.310 nats, an interval without 0'
    """
    fits = "an interval without 0" if row["low"] > 0 or row["high"] < 0 else "but the interval holds 0"
    moved = "falls" if row["change"] < 0 else "rises"
    beside = ""
    if row["p"] is not None:
        more = "more" if row["p"] < ALPHA else "no more"
        beside = f"; {more} than matched controls change it (p {number(row['p'])})"
    return f"without {row['target']} the preference {moved} by {abs(row['change']):.3f} nats, {fits}{beside}"
