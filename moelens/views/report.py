"""A report: one HTML file that holds everything it shows and asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from moelens.errors import MoeLensError
from moelens.japanese.classes import FAMILY_TITLE, GLOSS
from moelens.views.live import Live
from moelens.views.maps import expert_map, load_plot, map_size
from moelens.views.page import Page
from moelens.views.pictures import image, picture
from moelens.views.style import label_html, text_html
from moelens.views.tables import findings_html, summary_html
from moelens.views.text import tokens_html
from moelens.views.trace_view import TraceView
from moelens.views.widgets import ExpertMap

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.interventions import Causes, Effect
    from moelens.interventions.preference import Preferences
    from moelens.recording import Recording
    from moelens.tracing import Span, Trace

MAPS_PER_FAMILY = 4
FINDINGS_PER_LABEL = 3


@dataclass(frozen=True)
class Example:
    """A sentence that shows `label`: `experts` and `weights` `[token, slot]` of one `layer`, `spans` over tokens.

    With the whole `trace` of the sentence its other layers can be looked at too.
    """

    label: str
    tokens: Sequence[str]
    experts: ArrayLike
    weights: ArrayLike | None = None
    spans: Sequence[Span] = ()
    layer: int | None = None
    note: str = ""
    trace: Trace | None = None


@dataclass(frozen=True)
class Report:
    """All that a report says. `results` maps a label family to its result; `model` holds facts as pairs of plain text.

    `maps` names the labels to draw for a family; without it all honorific classes and the four most frequent tested
    labels of any other family are drawn. `figures` are further figures with their captions. With a `recording` the live
    map shows words and sentences of the chosen expert. `effects` are what was measured of causes.
    """

    title: str
    results: Mapping[str, Specialization]
    model: Sequence[tuple[str, str]] = ()
    examples: Sequence[Example] = ()
    maps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    figures: Sequence[tuple[str, Figure]] = ()
    reproduce: str = ""
    notes: Sequence[str] = ()
    recording: Recording | None = None
    effects: Sequence[Effect | Causes | Preferences] = ()


def report_html(report: Report) -> str:
    """The report as one HTML page, readable in light and dark, on paper and without a network.

    Raises `MoeLensError` for a report without results.

        Path("report.html").write_text(report_html(Report("Who handles keigo?", {"honorifics": result})), "utf-8")
    """
    if not report.results:
        raise MoeLensError(
            "a report of 0 results; allowed: 1 or more, pass results={'honorifics': specialization(...)}"
        )
    first, page = next(iter(report.results.values())), Page()
    body = [
        f"<h1>{text_html(report.title)}</h1>",
        f'<p class="lead">{escape(first.headline)} · {escape(first.control)}</p>',
        _what_this_is(report),
        *(_where(page, family, result, report) for family, result in report.results.items()),
        _what(page, report.examples),
        _so_what(report.effects),
        _load(first, report.figures),
        _honesty(first, report),
        _reproduce(report.reproduce, first),
        "<footer>Made with moelens. This file is self-contained.</footer>",
    ]
    return page.html(report.title, "\n".join(body))


def _section(question: str, title: str, *parts: str) -> str:
    return f"<section><h2><b>{question}</b>{title}</h2>\n" + "\n".join(parts) + "</section>"


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{text_html(name)}</dt><dd>{text_html(value)}</dd>" for name, value in pairs) + "</dl>"


def _what_this_is(report: Report) -> str:
    return _section(
        "WHAT THIS IS",
        "The model and the text",
        "<p>A Mixture-of-Experts model sends every token to a few of its experts. This page shows which experts the "
        "router chooses more often for some kinds of Japanese words and forms than for the rest of the same text.</p>",
        _pairs(report.model) if report.model else "",
    )


def _where(page: Page, family: str, result: Specialization, report: Report) -> str:
    labels = report.maps.get(family)
    labels = _labels_to_draw(family, result) if labels is None else labels
    maps = [
        "<figure>"
        + picture(
            lambda ax, label=label: expert_map(result, label, ax=ax),  # type: ignore[misc]
            map_size(result, label),
            f"map of layers and experts for the label {GLOSS.get(label, label)}",
        )
        + "</figure>"
        for label in labels
    ]
    live = _live(page, ExpertMap(result, recording=report.recording), "".join(maps))
    findings = [
        f for label in result.names for f in result.top(FINDINGS_PER_LABEL, label) if label not in result.too_rare
    ]
    return _section(
        "WHERE",
        f"{text_html(FAMILY_TITLE.get(family, family))}: layers and experts",
        "<p>Lift is the share of a label's tokens that an expert takes over its share of all tokens: 1 is chance. "
        "<em>Lift given token</em> is what is left of it when the identity of the token is accounted for.</p>",
        f'<div class="scroll">{summary_html(result)}</div>',
        live,
        f"<h3>The {FINDINGS_PER_LABEL} strongest experts of each label</h3>",
        f'<div class="scroll">{findings_html(result, findings)}</div>',
    )


def _live(page: Page, view: Live, static: str) -> str:
    """A live view that is for the page alone: a notebook that writes a report need not keep it."""
    html = page.live(view, static)
    view.close()
    return html


def _labels_to_draw(family: str, result: Specialization) -> Sequence[str]:
    if family.startswith("honorifics"):
        return [name for name in result.names if not result.given or name not in result.too_rare]
    tested = [i for i in np.argsort(-result.label_tokens, kind="stable") if result.names[i] not in result.too_rare]
    return [result.names[i] for i in tested[:MAPS_PER_FAMILY]]


def _what(page: Page, examples: Sequence[Example]) -> str:
    by_label: dict[str, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    parts = ["<p>No example sentences were given to this report.</p>"] if not examples else []
    for label, group in by_label.items():
        parts.append(f"<h3>{label_html(label)}</h3>")
        static = "".join(map(_example, group))
        told = [(example.trace, example.note) for example in group if example.trace is not None]
        if told:
            traces, notes = zip(*told, strict=True)
            static = _live(page, TraceView(traces, layer=group[0].layer, titles=notes), static)
        parts.append(static)
    return _section("WHAT", "Sentences, token by token", *parts)


def _example(example: Example) -> str:
    shown = tokens_html(example.tokens, example.experts, example.weights, spans=example.spans, layer=example.layer)
    note = f"<p>{text_html(example.note)}</p>" if example.note else ""
    return f'<div class="example">{shown}{note}</div>'


def _so_what(effects: Sequence[Effect | Causes | Preferences]) -> str:
    if not effects:
        return ""
    return _section(
        "SO WHAT",
        "What changes when experts are removed",
        "<p>A minimal pair is a context with a continuation that suits it and one that does not. Shown is by how much "
        "the model prefers the first, in nats, how much an intervention changes that, and what the same "
        "intervention does to other experts that are used alike.</p>",
        *(f'<figure class="effect">{effect._repr_html_()}</figure>' for effect in effects),
    )


def _load(result: Specialization, figures: Sequence[tuple[str, Figure]]) -> str:
    further = (
        f"<figure>{image(figure, caption)}<figcaption>{text_html(caption)}</figcaption></figure>"
        for caption, figure in figures
    )
    drawn = picture(lambda ax: load_plot(result, ax=ax), (9.6, 3.0), "relative load of the experts of each layer")
    return _section(
        "LOAD",
        "How evenly the experts are used",
        f"<figure>{drawn}<figcaption>One dot an expert. An expert that is rarely chosen has few tokens to judge it by."
        "</figcaption></figure>",
        *further,
    )


def _honesty(result: Specialization, report: Report) -> str:
    about = result.provenance
    cells, permutations = about.get("tested_cells", 0), about.get("permutations", 0)
    points = [
        f"Significance is a randomisation test over {about.get('documents', 0):,} documents: what is expected is the "
        "mean over all permutations of the labels, and how far chance strays from it is judged by whole documents, so "
        f"tokens of one document never count as independent. {permutations:,} draws, seed {about.get('seed', 0)}.",
        f"{cells:,} cells were tested. A finding counts when its q (Benjamini–Hochberg) or its family-wise p (maximum "
        "statistic) is below .05.",
        "Without a control the test does not rule out token identity: an expert that takes one frequent word has a "
        "high lift for every label of that word. Lift given token and left show what remains; the section within token "
        "identity tests it.",
        "It does not rule out script, place in the sentence or subject matter either, where they go with the label.",
        "A router that prefers an expert does not show that the model needs it; for that, remove the expert and "
        "compare with matched controls. "
        + ("So what does, on the pairs named there." if report.effects else "Nothing here is causal."),
        *report.notes,
    ]
    items = "".join(f"<li>{text_html(point)}</li>" for point in points)
    return _section("HOW SURE", "What these numbers can and cannot say", f"<ul>{items}</ul>")


def _reproduce(commands: str, result: Specialization) -> str:
    code = f"<pre>{text_html(commands)}</pre>" if commands else ""
    facts = [
        (str(key).replace("_", " "), str(value)) for key, value in result.provenance.items() if value not in (None, "")
    ]
    return _section("AGAIN", "How to reproduce this page", code, _pairs(facts))
