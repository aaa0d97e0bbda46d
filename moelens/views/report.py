"""The report: one HTML file that contains everything it shows and makes no network request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from moelens.errors import MoeLensError
from moelens.japanese.classes import CLASS_STYLE, FAMILY_TITLE, GLOSS
from moelens.views.answers import answer
from moelens.views.finding_tables import LEAST_TOKENS, findings_html, summary_html
from moelens.views.live import LiveView
from moelens.views.map_view import ExpertMap
from moelens.views.maps import expert_map, load_plot, map_size
from moelens.views.page import Page
from moelens.views.pictures import image_html, picture_html
from moelens.views.style import label_html, text_html
from moelens.views.token_html import tokens_html
from moelens.views.trace_view import TraceView

if TYPE_CHECKING:
    from moelens.analysis.result import Specialization
    from moelens.interventions import Causes, Effect
    from moelens.interventions.preference import Preferences
    from moelens.recording import Recording
    from moelens.tracing import Span, Trace

_MAPS_PER_FAMILY = 4
_FINDINGS_PER_LABEL = 3
_CANDIDATES = 50
_MAP_LEGEND = (
    "A row is a layer, a cell an expert. Orange: the expert takes more of the label's tokens than chance (1×), purple: "
    "fewer; the bar beside the map gives the ratio. {grey} Empty cells were never chosen. Click on a cell for the card "
    "of its expert."
)
_GREY = {
    "test": "Grey: not significant after correction.",
    "bounds": "Grey: the bounds include 1.",
    "none": "Nothing was tested, so no cell is grey.",
}
_SENTENCE_LEGEND = (
    "Below each token stands the expert with the largest weight in the layer that is shown, and the background has a "
    "colour for each expert. A dotted line under bold letters marks the tokens that the expert of the heading takes. A "
    "solid line under a word and a mark before it stand for its honorific class: {marks}. ▫ stands for a further token "
    "of the same character."
)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A sentence that shows a label.

    Attributes:
        label: the label.
        tokens: texts of the tokens.
        experts: ids of their experts in one layer, `[token, slot]`.
        weights: routing weights, `[token, slot]`; None where they are not known.
        spans: honorifics, each as first token, token after the last, and class.
        layer: number of the layer.
        expert: id of the expert whose tokens are marked.
        note: a line of text below the sentence.
        trace: the sentence in all layers; the report can then show the others too.
    """

    label: str
    tokens: Sequence[str]
    experts: ArrayLike
    weights: ArrayLike | None = None
    spans: Sequence[Span] = ()
    layer: int | None = None
    expert: int | None = None
    note: str = ""
    trace: Trace | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a report.

    Attributes:
        title: plain text.
        results: results of `analyze`, by family of labels.
        model: facts about the model and the corpus, as pairs of plain text.
        examples: sentences to show.
        maps: for a family, the labels whose maps are drawn. For other families these are all honorific classes, or
            the four tested labels with most tokens.
        figures: further figures, each with its caption.
        reproduce: commands that make the report again.
        notes: further limits, one sentence each.
        recording: the recording that was analysed, for the words and sentences on the cards of experts.
        effects: results of `effect`, `causes` and `prefer` for the model.
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
    """Return a report as one HTML page, which can be read in light and dark, in print and without a network.

    Args:
        report: the content, with at least one result.

    Raises:
        MoeLensError: the report has no results.

    Example:
        >>> result = moelens.analyze(demo_recording, permutations=20, progress=False)
        >>> content = Report(title="Honorifics", results={"honorifics": result}, maps={"honorifics": []})
        >>> page = report_html(content)
        >>> page.startswith("<!doctype html>")
        True
    """
    if not report.results:
        raise MoeLensError(
            "expected a report with 1 or more results, got 0; "
            "give some such as results={'honorifics': moelens.analyze(recording)}"
        )
    first, page = next(iter(report.results.values())), Page()
    body = [
        f"<h1>{text_html(report.title)}</h1>",
        '<div class="answer">'
        + "".join(f"<p>{text_html(part)}</p>" for part in answer(report.results, report.effects))
        + "</div>",
        f'<p class="lead">{escape(" · ".join((first.headline, first.control, *first.limits[:1])))}</p>',
        _overview_section(report),
        *(_family_section(page, family, result, report) for family, result in report.results.items()),
        _examples_section(page, report.examples),
        _effects_section(report.effects),
        _load_section(first, report.figures),
        _limits_section(first, report),
        _reproduce_section(report.reproduce, first),
        "<footer>Made with moelens. This file makes no network requests.</footer>",
    ]
    return page.html(report.title, "\n".join(body))


def _section(name: str, title: str, *parts: str) -> str:
    return f"<section><h2><b>{name}</b>{title}</h2>\n" + "\n".join(parts) + "</section>"


def _facts_html(facts: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{text_html(name)}</dt><dd>{text_html(value)}</dd>" for name, value in facts) + "</dl>"


def _overview_section(report: Report) -> str:
    return _section(
        "OVERVIEW",
        "Model and text",
        "<p>A Mixture-of-Experts model sends every token to a few of its experts. This page shows which experts the "
        "router chooses more often for some kinds of Japanese words and forms than for the rest of the same text.</p>",
        _facts_html(report.model) if report.model else "",
    )


def _family_section(page: Page, family: str, result: Specialization, report: Report) -> str:
    """The maps and the strongest experts of one family of labels."""
    labels = report.maps.get(family)
    labels = _labels_to_draw(family, result) if labels is None else labels
    maps = "".join(f"<figure>{_map_html(result, label)}</figure>" for label in labels)
    live = _live_html(page, ExpertMap(result, recording=report.recording), maps)
    findings = [
        f
        for label in result.names
        if label not in result.too_rare
        for f in [f for f in result.top(_CANDIDATES, label) if f.count >= LEAST_TOKENS][:_FINDINGS_PER_LABEL]
    ]
    return _section(
        "WHERE",
        f"{text_html(_family_title(family, result))}: layers and experts",
        f"<p>{_family_legend(result)}</p>",
        f'<div class="scroll">{summary_html(result)}</div>',
        live,
        f'<p class="legend">{_MAP_LEGEND.format(grey=_GREY[result.evidence])}</p>',
        f"<h3>The {_FINDINGS_PER_LABEL} strongest experts of each label</h3>",
        f'<div class="scroll">{findings_html(result, findings)}</div>',
    )


def _family_title(family: str, result: Specialization) -> str:
    """The heading of a family; results without control say so where others have one."""
    name, _, given = family.partition(" within ")
    title = FAMILY_TITLE.get(family) or FAMILY_TITLE.get(name, name) + (f", within {given}" if given else "")
    return title if given or result.given or result.evidence != "test" else f"{title}, without control"


def _family_legend(result: Specialization) -> str:
    """What a lift is, and for what it was controlled."""
    lift = (
        "<em>Lift</em> is the share of a label's tokens that go to an expert, divided by the share of all tokens that "
        "do; 1 is chance."
    )
    if result.evidence != "test":
        return lift
    token = (
        " <em>Lift given token</em> is the tokens of the label at the expert, divided by the number expected if only "
        "the token ids mattered: near 1, the words explain the lift."
    )
    if result.given:
        return f"{lift}{token} The test compares within {escape(' and '.join(result.given))}."
    return f"{lift}{token} The test of this section has no control: read it after the controlled one."


def _map_html(result: Specialization, label: str) -> str:
    return picture_html(
        lambda ax: expert_map(result, label, ax=ax),
        map_size(result, label),
        f"map of layers and experts for the label {GLOSS.get(label, label)}",
    )


def _live_html(page: Page, view: LiveView, static: str) -> str:
    """Add a live view to the page and close it, so that a notebook that writes a report does not keep the widget."""
    html = page.add(view, static)
    view.close()
    return html


def _labels_to_draw(family: str, result: Specialization) -> Sequence[str]:
    if family.startswith("honorifics"):
        return [name for name in result.names if not result.given or name not in result.too_rare]
    tested = [i for i in np.argsort(-result.label_tokens, kind="stable") if result.names[i] not in result.too_rare]
    return [result.names[i] for i in tested[:_MAPS_PER_FAMILY]]


def _examples_section(page: Page, examples: Sequence[Example]) -> str:
    by_label: dict[str, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    parts = ["<p>This report has no example sentences.</p>"] if not examples else []
    for label, group in by_label.items():
        parts.append(f"<h3>{label_html(label)}</h3>")
        html = "".join(map(_example_html, group))
        traces = [example.trace for example in group if example.trace is not None]
        if traces:
            first = group[0]
            marked = None if first.expert is None or first.layer is None else (first.layer, first.expert)
            html = _live_html(page, TraceView(traces, layer=first.layer, marked=marked), html)
        parts.append(html)
    if by_label:
        marks = ", ".join(label_html(name) for name in CLASS_STYLE)
        parts.insert(0, f'<p class="legend">{_SENTENCE_LEGEND.format(marks=marks)}</p>')
    return _section("WHAT", "Sentences, token by token", *parts)


def _example_html(example: Example) -> str:
    shown = tokens_html(
        example.tokens,
        example.experts,
        example.weights,
        spans=example.spans,
        layer=example.layer,
        marked=example.expert,
    )
    note = f"<p>{text_html(example.note)}</p>" if example.note else ""
    return f'<div class="example">{shown}{note}</div>'


def _effects_section(effects: Sequence[Effect | Causes | Preferences]) -> str:
    if not effects:
        return ""
    return _section(
        "EFFECT",
        "What changes when experts are removed",
        "<p>A minimal pair is a context with two continuations, of which one suits the context better. The margin is "
        "log P(better) − log P(worse) in nats. The figures show how an intervention changes the margin, and how the "
        "same intervention on comparable experts (the controls) changes it.</p>",
        *(f'<figure class="effect">{effect._repr_html_()}</figure>' for effect in effects),
    )


def _load_section(result: Specialization, figures: Sequence[tuple[str, Figure]]) -> str:
    further = (
        f"<figure>{image_html(figure, caption)}<figcaption>{text_html(caption)}</figcaption></figure>"
        for caption, figure in figures
    )
    load = picture_html(lambda ax: load_plot(result, ax=ax), (9.6, 3.0), "relative load of the experts of each layer")
    return _section(
        "LOAD",
        "How evenly the experts are used",
        f"<figure>{load}<figcaption>Each dot is one expert. There are few tokens to judge an expert by that is rarely "
        "chosen.</figcaption></figure>",
        *further,
    )


def _limits_section(result: Specialization, report: Report) -> str:
    points = _test_limits(result) if result.evidence == "test" else _count_limits(result)
    effects = "The section EFFECT shows such results, for the pairs named there."
    points += [
        "The router may follow script, position in the sentence or topic, where they correlate with the label.",
        "A preference of the router does not show that the model needs the expert. To test that, remove the expert and "
        f"compare with matched controls. {effects if report.effects else 'Nothing in this report is causal.'}",
        *report.notes,
    ]
    items = "".join(f"<li>{text_html(point)}</li>" for point in points)
    return _section("LIMITS", "What these numbers can and cannot show", f"<ul>{items}</ul>")


def _count_limits(result: Specialization) -> list[str]:
    """What limits a result of counts."""
    reason = str(result.provenance["untested"])
    points = [f"{reason[0].upper()}{reason[1:]}."]
    if result.evidence == "bounds":
        points.append(
            "The counts are of token types. Where a type has a label only in some contexts, its occurrences with the "
            "label may have gone to other experts than the rest. The estimate takes them to be alike; the bounds hold "
            "however they differ."
        )
    return points


def _test_limits(result: Specialization) -> list[str]:
    """What limits a test over documents."""
    about = result.provenance
    cells, permutations = about.get("tested_cells", 0), about.get("permutations", 0)
    return [
        f"Significance comes from a randomisation test over {about.get('documents', 0):,} documents, with "
        f"{permutations:,} draws and seed {about.get('seed', 0)}. The expected count is the mean over all permutations "
        "of the labels. Its variance is estimated from whole documents, so tokens of one document never count as "
        "independent.",
        f"{cells:,} cells were tested. A finding is significant if its q (Benjamini–Hochberg) or its family-wise p "
        "(maximum statistic) is below .05.",
        "Without a control, the test does not rule out token identity: an expert that is chosen for one frequent word "
        "has a high lift for every label of that word. Lift given token shows what remains when token identity is "
        "controlled, and the sections within token identity test it.",
    ]


def _reproduce_section(commands: str, result: Specialization) -> str:
    code = f"<pre>{text_html(commands)}</pre>" if commands else ""
    facts = [
        (str(key).replace("_", " "), str(value)) for key, value in result.provenance.items() if value not in (None, "")
    ]
    return _section("REPRODUCE", "How to make this page again", code, _facts_html(facts))
