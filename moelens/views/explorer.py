"""The explorer: a map, the card of an expert, its sentences, and the effect of removing it, linked with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
import traitlets

from moelens.analysis.randomize import ALPHA
from moelens.analysis.tables import number
from moelens.analysis.wording import drawn_documents, random_model
from moelens.errors import MoeLensError
from moelens.files import writing
from moelens.interventions.items import item_kinds
from moelens.japanese.crossed_contrasts import KIND_OF_LABEL
from moelens.texts import Texts
from moelens.views.cards import card_html
from moelens.views.frontend import view_module
from moelens.views.kept import show_with_picture
from moelens.views.live import LiveView
from moelens.views.map_view import ExpertMap
from moelens.views.page import Page
from moelens.views.trace_view import TraceView

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.interventions.effects import Effect
    from moelens.tracing.passages import Passages

RemoveExpert = Callable[[int, int, str, bool], "Effect"]
"""Removes an expert and measures the effect: layer, expert, kind of sentences, whether to run matched controls."""

_DEFAULT_KIND = "subject-honorification"
_MOST_ROWS = 8
_HEADING_STYLE = "letter-spacing: .08em; font-size: 80%; opacity: .7"


class EffectView(LiveView):
    """A button that removes the selected expert, and a table of the effects, the last removal first.

    Attributes:
        target: the expert in words.
        kind: the kind of contrasts or pairs.
        controls: whether to run matched controls too.
        clicks: the number of clicks on the button.
        status: "idle", "running" or "failed".
        message: the last effect in a sentence, or what is running, or why it failed.
        rows: the effects, with the fields of `KindEffect` and the target.
    """

    MODULE = "effect"
    _esm = view_module("effect.js")
    texts: Any = traitlets.Dict(Texts().part("effect")).tag(sync=True)
    target = traitlets.Unicode().tag(sync=True)
    kinds = traitlets.List(traitlets.Unicode(), list(item_kinds())).tag(sync=True)
    kind = traitlets.Unicode().tag(sync=True)
    controls = traitlets.Bool(True).tag(sync=True)
    clicks = traitlets.Int(0).tag(sync=True)
    available = traitlets.Bool(True).tag(sync=True)
    status = traitlets.Unicode("idle").tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    rows: Any = traitlets.List().tag(sync=True)

    def slice(self, *chosen: Any) -> dict[str, Any]:
        return {}

    def all_choices(self) -> Iterator[tuple[Any, ...]]:
        return iter(())

    def state_in_file(self) -> dict[str, Any]:
        return {"available": False}

    def static_html(self) -> str:
        return ""


class Explorer(ipywidgets.VBox):  # type: ignore[misc]
    """The map, the card of the selected expert, sentences in which it is chosen, and the effect of its removal.

    Args:
        result: a result of `analyze`.
        passages: sentences of the recording that the result is of; None shows the map and the card only.
        remove: removes an expert and measures the effect; None makes the button answer with an error.
        label: the label to show first; None for the first one that was tested.
        lang: language of the headings and sentences, "en" or "ja".

    Attributes:
        map: the `ExpertMap`.
        card: the card, an `ipywidgets.HTML`.
        trace: the `TraceView` of the sentences.
        effect: the `EffectView`.

    Raises:
        MoeLensError: the passages are of a recording with other layers.

    Example:
        >>> explorer = moelens.explore(demo_recording, label="丁寧語", permutations=20)
        >>> explorer.map.selected = [2, 17]
        >>> explorer.effect.target
        'L3 · E17'
    """

    def __init__(
        self,
        result: Specialization,
        passages: Passages | None = None,
        remove: RemoveExpert | None = None,
        label: str | None = None,
        lang: str | Texts = "en",
    ) -> None:
        self.result, self.passages, self.remove, self.say = result, passages, remove, Texts(lang)
        excerpt = None if passages is None else passages.excerpt
        token_labels = None if passages is None else passages.labels
        self.map = ExpertMap(result, label, recording=excerpt, lang=self.say, token_labels=token_labels)
        self.card = ipywidgets.HTML()
        self.map.layout.flex, self.card.layout.flex = "1 1 500px", "1 1 460px"
        self.effects: dict[tuple[int, int], Effect] = {}
        self.tests: set[tuple[int, int, str]] = set()  # p is corrected for what was clicked
        facts = (drawn_documents(result.provenance, self.say), random_model(result, self.say))
        where = " · ".join(filter(None, (self.say("explorer.where"), *facts)))
        self.sections: list[tuple[str, str, LiveView]] = [("where", where, self.map)]
        if passages is not None:
            self._add_passages(passages)
        row = ipywidgets.HBox([self.map, self.card], layout={"flex_flow": "row wrap", "grid_gap": "0 20px"})
        widgets: list[Any] = []
        for name, text, view in self.sections:
            heading = ipywidgets.HTML(f'<b style="{_HEADING_STYLE}">{self.say(f"section.{name}")}</b> {text}')
            widgets += [heading, row if view is self.map else view]
        super().__init__(widgets)
        self.map.observe(self._show, ["selected", "label"])
        self._show()

    def _add_passages(self, passages: Passages) -> None:
        """Add the sentences and the effects."""
        if passages.recording.layers != self.result.layers:
            raise MoeLensError(
                f"expected a recording with the layers of the result, {self.result.layers}, got one with "
                f"{passages.recording.layers}; give the recording that was analysed"
            )
        self.trace = TraceView([passages.passage(0)], load=self.result.load, lang=self.say)
        kind = KIND_OF_LABEL.get(self.map.label, _DEFAULT_KIND)
        kinds = {f"kind_{name}": text for name, text in self.say.part("kind").items()}
        self.effect = EffectView(kind=kind, texts=self.say.part("effect") | self.say.part("live") | kinds)
        self.effect.observe(self._remove, "clicks")
        extent = passages.excerpt.extent(self.say)
        sentences = self.say("explorer.what_from", extent=extent) if extent else self.say("explorer.what")
        self.sections.append(("what", sentences, self.trace))
        self.sections.append(("effect", self.say("explorer.effect"), self.effect))

    def save_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML file: the map with its cards, the sentences of the expert that is selected now,
        and the effects that were measured. Without a kernel, sentences and effects do not follow the map.

        Args:
            path: file to write.

        Returns:
            The path.
        """
        path, page = Path(path), Page(self.say.lang)
        place = "L{} · E{}".format(*self._selected())
        kept = [
            (name, self.say("explorer.in_file", text=text, place=place) if name == "what" else text, view)
            for name, text, view in self.sections
            if name != "effect" or self.effects
        ]
        titles = ((f"<b>{self.say(f'section.{name}')}</b>{text}", view) for name, text, view in kept)
        body = "".join(f"<h2>{title}</h2>{page.add(view)}" for title, view in titles)
        with writing(path) as partial:
            partial.write_text(page.html(self.map.heading, body), encoding="utf-8")
        return path

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live views, and for a notebook without a kernel a picture of the map with the card."""
        data = super()._repr_mimebundle_(**kwargs)
        return {**data, "text/html": f"{self.map.static_html()}{self.card.value}"}

    def _ipython_display_(self, **kwargs: Any) -> None:
        """Show the explorer, and a picture of its last state for a notebook that is opened without a kernel."""
        self.map.kept = f"moelens-kept-{self.model_id}"
        watched = [self.map, self.card, *([] if self.passages is None else [self.trace])]
        show_with_picture(self._repr_mimebundle_(), self.map.kept, self._static_html, watched, repr(self), self.say)

    def _static_html(self) -> str:
        """The map, the card with the measured effect, and the sentences, without JavaScript."""
        sentences = "" if self.passages is None else self.trace.static_html()
        return f"{self.map.static_html()}{self.card.value}{sentences}"

    def __repr__(self) -> str:
        layer, expert = self._selected()
        return f"{self.result.headline} · explorer of {self.result.family}, at L{layer} · E{expert}"

    __str__ = __repr__

    def _selected(self) -> tuple[int, int]:
        """Number of the layer, and the expert."""
        at, expert = self.map.selected
        return self.result.layers[at], expert

    def _show(self, change: Any = None) -> None:
        layer, expert = self._selected()
        self.card.value = card_html(
            self.result,
            layer,
            expert,
            self.map.recording,
            labels=None if self.passages is None else self.passages.labels,
            effect=self.effects.get((layer, expert)),
            lang=self.say,
        )
        if self.passages is not None:
            self.trace.show(self.passages.find(layer, expert, self.map.label), layer, expert)
            self.effect.target = f"L{layer} · E{expert}"
            if change is not None and change["name"] == "label" and self.map.label in KIND_OF_LABEL:
                self.effect.kind = KIND_OF_LABEL[self.map.label]

    def _remove(self, change: Any) -> None:
        view, (layer, expert) = self.effect, self._selected()
        view.status, view.message = "running", self.say("explorer.running", target=view.target)
        try:
            if self.remove is None:
                raise MoeLensError(
                    "expected a model to remove an expert from, got none; "
                    "open the explorer with moelens.explore(recording, model)"
                )
            effect = self.remove(layer, expert, view.kind, view.controls)
        except MoeLensError as error:
            view.status, view.message = "failed", str(error)
            return
        except BaseException:  # also an interrupt: the button must not stay in the state "running"
            view.status, view.message = "failed", self.say("explorer.failed")
            raise
        row = {name: value if value == value else None for name, value in asdict(effect.kinds[0]).items()}  # NaN: None
        row |= {"target": view.target, "draws": effect.draws}
        view.rows = [row, *view.rows][:_MOST_ROWS]
        self.tests.add((layer, expert, view.kind))
        view.status, view.message = "idle", verdict(row, len(self.tests), self.say)
        self.effects[layer, expert] = effect
        self._show()


def verdict(row: Mapping[str, Any], tests: int = 1, lang: str | Texts = "en") -> str:
    """Return an effect in a few sentences.

    Args:
        row: a row of `EffectView.rows`.
        tests: number of removals that were tried; p is multiplied by it (Bonferroni).
        lang: language of the sentences, "en" or "ja".

    Example:
        >>> verdict({"target": "L4 · E21", "change": -0.31, "low": -0.44, "high": -0.18, "p": None})
        'Without L4 · E21, the preference falls by 0.310 nats; the 95 % interval excludes 0.'
    """
    say = Texts(lang)
    interval = say("verdict.excludes" if row["low"] > 0 or row["high"] < 0 else "verdict.includes")
    key = "verdict.falls" if row["change"] < 0 else "verdict.rises"
    text = say(key, target=row["target"], change=f"{abs(row['change']):.3f}", interval=interval)
    start = say("verdict.starts_wrong") if row.get("before", 0) < 0 else ""
    if row["p"] is None:
        return say("verdict.sentence", text=text) + start
    p = min(1.0, tests * row["p"])
    told = say("verdict.p_corrected", p=number(p), tests=tests) if tests > 1 else say("verdict.p", p=number(p))
    if draws := row.get("draws"):
        told = say("answer.smallest_p", p=told, draws=draws, least=number(min(1.0, tests / (1 + draws))))
    return say("verdict.larger" if p < ALPHA else "verdict.same", text=text, p=told) + start
