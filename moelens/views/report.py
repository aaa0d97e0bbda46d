"""The report: one HTML file that contains everything it shows and makes no network request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from moelens.analysis import wording
from moelens.display import find_view
from moelens.errors import MoeLensError
from moelens.japanese.classes import CLASS_STYLE, GLOSS
from moelens.texts import Texts
from moelens.tracing.passages import Excerpt
from moelens.views.answers import answer, compared
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
    from moelens.analysis import Comparison
    from moelens.analysis.result import Specialization
    from moelens.interventions import Causes, Effect
    from moelens.interventions.preference import Preferences
    from moelens.japanese import Labels
    from moelens.recording import Recording
    from moelens.tracing import Span, Trace

_MAPS_PER_FAMILY = 4
_FINDINGS_PER_LABEL = 3
_CANDIDATES = 50


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
        recording: the recording that was analysed, or an excerpt of it, for the words and sentences on the cards of
            experts.
        labels: its labels, by which these sentences are chosen.
        effects: results of `effect`, `causes` and `prefer` for the model.
        comparison: a result of `compare`, of another recording with this one.
        lang: language of the report, "en" or "ja"; title, facts, captions and notes are shown as they are given.
    """

    title: str
    results: Mapping[str, Specialization]
    model: Sequence[tuple[str, str]] = ()
    examples: Sequence[Example] = ()
    maps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    figures: Sequence[tuple[str, Figure]] = ()
    reproduce: str = ""
    notes: Sequence[str] = ()
    recording: Recording | Excerpt | None = None
    labels: Labels | None = None
    effects: Sequence[Effect | Causes | Preferences] = ()
    comparison: Comparison | None = None
    lang: str = "en"


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
    first, say = next(iter(report.results.values())), Texts(report.lang)
    page = Page(say.lang)
    limits = wording.limits(first, say)[: 2 if wording.drawn_documents(first.provenance, say) else 1]
    facts = (wording.result_headline(first, say), wording.control(first, say), *limits)
    found = [*answer(report.results, report.effects, lang=say), *compared(report.comparison, say)]
    body = [
        f"<h1>{text_html(report.title)}</h1>",
        '<div class="answer">' + "".join(f"<p>{text_html(part)}</p>" for part in found) + "</div>",
        f'<p class="lead">{escape(" · ".join(facts))}</p>',
        _overview_section(report, say),
        *(_family_section(page, family, result, report, say) for family, result in report.results.items()),
        _examples_section(page, report, say),
        _effects_section(report.effects, say),
        _comparison_section(report.comparison, say),
        _load_section(first, report.figures, say),
        _limits_section(first, report, say),
        _reproduce_section(report.reproduce, first, say),
        f"<footer>{say('report.footer')}</footer>",
    ]
    return page.html(report.title, "\n".join(body))


def _section(say: Texts, name: str, title: str, *parts: str) -> str:
    return f"<section><h2><b>{say(f'section.{name}')}</b>{title}</h2>\n" + "\n".join(parts) + "</section>"


def _facts_html(facts: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{text_html(name)}</dt><dd>{text_html(value)}</dd>" for name, value in facts) + "</dl>"


def _overview_section(report: Report, say: Texts) -> str:
    facts = _facts_html(report.model) if report.model else ""
    return _section(say, "overview", say("report.overview"), f"<p>{say('report.about')}</p>", facts)


def _family_section(page: Page, family: str, result: Specialization, report: Report, say: Texts) -> str:
    """The maps and the strongest experts of one family of labels."""
    labels = report.maps.get(family)
    labels = _labels_to_draw(family, result) if labels is None else labels
    maps = "".join(f"<figure>{_map_html(result, label, say)}</figure>" for label in labels)
    live = _live_html(page, ExpertMap(result, recording=report.recording, lang=say, token_labels=report.labels), maps)
    findings = [
        f
        for label in result.names
        if label not in result.too_rare
        for f in [f for f in result.top(_CANDIDATES, label) if f.count >= LEAST_TOKENS][:_FINDINGS_PER_LABEL]
    ]
    legend = say("report.map_legend", grey=say(f"report.grey_{result.evidence}"))
    return _section(
        say,
        "where",
        text_html(say("report.where", family=_family_title(family, result, say))),
        f"<p>{_family_legend(result, say)}</p>",
        _scrolling(summary_html(result, lang=say), say),
        live,
        f'<p class="legend">{legend}</p>',
        f"<h3>{say('report.strongest', n=_FINDINGS_PER_LABEL)}</h3>",
        _scrolling(findings_html(result, findings, lang=say), say),
    )


def _scrolling(table: str, say: Texts) -> str:
    """A table in a box that scrolls sideways, with a hint where the page is narrow."""
    return f'<div class="scroll" data-hint="{escape(say("report.scroll"))}">{table}</div>'


def family_title(family: str, say: Texts) -> str:
    """Return the heading of a family of labels; "FAMILY within CONTROL" stands for a result within a control."""
    name, _, given = family.partition(" within ")
    title = say.name("family", family)
    if title != family or not given:
        return title
    return say("report.within", family=say.name("family", name), given=say.name("given", given))


def _family_title(family: str, result: Specialization, say: Texts) -> str:
    """The heading of a family; results without control say so where others have one."""
    title = family_title(family, say)
    without = " within " not in family and not result.given and result.evidence == "test"
    return say("report.without", family=title) if without else title


def _family_legend(result: Specialization, say: Texts) -> str:
    """What a lift is, and for what it was controlled."""
    text = say("report.lift")
    if result.evidence == "test":
        text += say("report.lift_token")
        given = wording.given_names(result.given, say, say("table.and"))
        text += say("report.test_given", given=given) if given else say("report.test_free")
    return escape(text, quote=False)


def _map_html(result: Specialization, label: str, say: Texts) -> str:
    name = GLOSS.get(label, label) if say.glossed else label
    return picture_html(
        lambda ax: expert_map(result, label, ax=ax, lang=say),
        map_size(result, label),
        say("report.map_alt", label=name),
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


def _examples_section(page: Page, report: Report, say: Texts) -> str:
    by_label: dict[str, list[Example]] = {}
    for example in report.examples:
        by_label.setdefault(example.label, []).append(example)
    parts = [f"<p>{say('report.no_sentences')}</p>"] if not report.examples else []
    for label, group in by_label.items():
        parts.append(f"<h3>{label_html(label, gloss=say.glossed)}</h3>")
        html = "".join(_example_html(example, say) for example in group)
        traces = [example.trace for example in group if example.trace is not None]
        if traces:
            first = group[0]
            marked = None if first.expert is None or first.layer is None else (first.layer, first.expert)
            html = _live_html(page, TraceView(traces, layer=first.layer, marked=marked, lang=say), html)
        parts.append(html)
    if by_label:
        marks = say("answer.comma").join(label_html(name, gloss=say.glossed) for name in CLASS_STYLE)
        extent = report.recording.extent(say) if isinstance(report.recording, Excerpt) else ""
        within = f" {say('report.sentences_from', extent=extent)}" if extent else ""
        parts.insert(0, f'<p class="legend">{say("report.sentence_legend", marks=marks)}{within}</p>')
    return _section(say, "what", say("report.sentences"), *parts)


def _example_html(example: Example, say: Texts) -> str:
    shown = tokens_html(
        example.tokens,
        example.experts,
        example.weights,
        spans=example.spans,
        layer=example.layer,
        marked=example.expert,
        lang=say,
    )
    note = f"<p>{text_html(example.note)}</p>" if example.note else ""
    return f'<div class="example">{shown}{note}</div>'


def _effects_section(effects: Sequence[Effect | Causes | Preferences], say: Texts) -> str:
    if not effects:
        return ""
    figures = (f'<figure class="effect">{find_view(type(e), "html")(e, lang=say)}</figure>' for e in effects)
    return _section(say, "effect", say("report.effect"), f"<p>{say('report.effect_about')}</p>", *figures)


def _comparison_section(comparison: Comparison | None, say: Texts) -> str:
    if comparison is None:
        return ""
    a, b = (text_html(str(comparison.provenance.get(name) or name)) for name in ("a", "b"))
    key = "report.compare_about" if comparison.label_tokens_b is None else "report.compare_corpora"
    about = f"<p>{say(key, a=a, b=b)}</p>"
    figure = f'<figure class="effect">{find_view(type(comparison), "html")(comparison, lang=say)}</figure>'
    return _section(say, "compare", say("report.compare", model=a), about, figure)


def _load_section(result: Specialization, figures: Sequence[tuple[str, Figure]], say: Texts) -> str:
    further = (
        f"<figure>{image_html(figure, caption)}<figcaption>{text_html(caption)}</figcaption></figure>"
        for caption, figure in figures
    )
    load = picture_html(lambda ax: load_plot(result, ax=ax, lang=say), (9.6, 3.0), say("report.load_alt"))
    caption = f"<figcaption>{say('report.load_caption')}</figcaption>"
    return _section(say, "load", say("report.load"), f"<figure>{load}{caption}</figure>", *further)


def _limits_section(result: Specialization, report: Report, say: Texts) -> str:
    points = _test_limits(result, say) if result.evidence == "test" else _count_limits(result, say)
    effects = say("report.limit_effects" if report.effects else "report.limit_no_effects")
    points += [say("report.limit_router"), say("report.limit_causal", effects=effects), *report.notes]
    items = "".join(f"<li>{text_html(point)}</li>" for point in points)
    return _section(say, "limits", say("report.limits"), f"<ul>{items}</ul>")


def _count_limits(result: Specialization, say: Texts) -> list[str]:
    """What limits a result of counts."""
    if result.evidence == "bounds":
        return [say("report.limit_bounds"), say("report.limit_types")]
    return [say("report.limit_counts")]


def _test_limits(result: Specialization, say: Texts) -> list[str]:
    """What limits a test over documents."""
    about = result.provenance
    test = {name: f"{about.get(name, 0):,}" for name in ("documents", "permutations")} | {"seed": about.get("seed", 0)}
    cells = say("report.limit_cells", cells=f"{about.get('tested_cells', 0):,}")
    return [say("report.limit_test", **test), cells, say("report.limit_token")]


def _reproduce_section(commands: str, result: Specialization, say: Texts) -> str:
    code = f"<pre>{text_html(commands)}</pre>" if commands else ""
    facts = _facts_html(wording.settings(result.provenance, say))
    return _section(say, "reproduce", say("report.reproduce"), code, facts)
