"""`compare`: how routing differs between two models on one text, or two texts under one model, label by label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, Ints, divide
from moelens.analysis.corpora import ALL_TOKENS, corpus_comparison, is_one_model
from moelens.analysis.counting import RoutePart, RouteTables
from moelens.analysis.measures import Measure, phase_axes
from moelens.analysis.phases import check_phases, phase_values
from moelens.analysis.processes import sum_over_processes
from moelens.analysis.randomize import (
    ALPHA,
    Excess,
    benjamini_hochberg,
    document_test,
    effective_number,
)
from moelens.analysis.routing import overlap
from moelens.analysis.samples import (
    REPEATS,
    Given,
    LabelFamilies,
    Sample,
    control_names,
    label_names,
    labels_for,
    open_recording,
    provenance_of,
    sample_of,
    token_blocks,
)
from moelens.analysis.specialize import check_testable, require_settings
from moelens.analysis.tables import interval, number, plain_table
from moelens.analysis.wording import sample_limits
from moelens.display import Plotted
from moelens.errors import MoeLensError, RecordingError
from moelens.japanese.families import require_name
from moelens.recording import Recording
from moelens.saved import SavedCells, json_values, number_array
from moelens.texts import Texts

_TESTS = ("p", "p_family", "q", "low", "high")


def label_in(name: str, say: Texts) -> str:
    """Return the name of a label of a comparison; that of all tokens is translated."""
    return say("comparison.all_tokens") if name == ALL_TOKENS else name


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Comparison(Plotted, SavedCells):
    """Models a and b over the same tokens, or corpora a and b under one model.

    All arrays are `[layer, expert, label]` unless said otherwise; NaN means not tested. The first label, "all tokens",
    shows how the load of the experts changed. Of two corpora, the tokens that exceed the share of a document are not
    counted, see `compare`; `provenance["tokens_cut"]` is their number.

    Attributes:
        count_a, count_b: tokens of the label that the model routes to the expert.
        label_tokens: tokens of the label `[label]`; those of a, if b is another corpus.
        label_tokens_b: tokens of the label in corpus b `[label]`; None for two models.
        expected: `count_b`, if only what is given and the labels decided the routes; None for two models.
        overlap: share of a token's experts that are the same in both models, averaged over the tokens of the label
            `[layer, label]`; NaN for two corpora.
        p: p of the cell alone.
        p_family: family-wise p of the cell among all tested cells.
        q: false discovery rate over all tested cells.
        low, high: 95 % interval of `ratio` over documents; NaN where there is none.
        names: names of the labels.
        layers: numbers of the layers in the model.
        top_k: experts chosen for each token.
        provenance: models or corpora, recordings, labels and settings.
    """

    FORMAT: ClassVar[str] = "moelens.comparison/2"

    count_a: Ints
    count_b: Ints
    label_tokens: Ints
    overlap: Floats
    p: Floats
    p_family: Floats
    q: Floats
    low: Floats
    high: Floats
    names: tuple[str, ...]
    layers: tuple[int, ...]
    top_k: int
    provenance: Mapping[str, Any] = field(default_factory=dict)
    label_tokens_b: Ints | None = None
    expected: Floats | None = None

    @property
    def share_a(self) -> Floats:
        """Share of the label's tokens that the expert takes in a `[layer, expert, label]`."""
        return divide(self.count_a, self.label_tokens)

    @property
    def share_b(self) -> Floats:
        """Share of the label's tokens that the expert takes in b `[layer, expert, label]`."""
        return divide(self.count_b, self.label_tokens if self.label_tokens_b is None else self.label_tokens_b)

    @property
    def change(self) -> Floats:
        """Share of the label's tokens that the expert takes in b minus that in a `[layer, expert, label]`."""
        return self.share_b - self.share_a

    @property
    def ratio(self) -> Floats:
        """Tokens of the label at the expert in b over those in a `[layer, expert, label]`.

        For two corpora it is over those `expected`.
        """
        return divide(self.count_b, self.count_a if self.expected is None else self.expected)

    @property
    def significant(self) -> Bools:
        """Cells with q or family-wise p below .05, bool `[layer, expert, label]`."""
        return np.asarray((self.q < ALPHA) | (self.p_family < ALPHA))

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """The axes in order, with the name of each place on them."""
        return {"layer": self.layers, "expert": tuple(range(self.count_a.shape[1])), "label": self.names}

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        """Counts and tests by name, each `[layer, expert, label]`."""
        expected = {} if self.expected is None else {"expected": self.expected}
        return {name: getattr(self, name) for name in ("count_a", "count_b", *_TESTS)} | expected

    @property
    def facts(self) -> Mapping[str, Any]:
        """Totals, overlap and provenance, as JSON values."""
        tokens_b = {} if self.label_tokens_b is None else {"label_tokens_b": self.label_tokens_b.tolist()}
        return tokens_b | {
            "label_tokens": self.label_tokens.tolist(),
            "overlap": json_values(self.overlap),
            "top_k": self.top_k,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def build(cls, axes: Mapping[str, Any], cells: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Comparison:
        """Make the comparison that has these axes, cells and facts.

        Args:
            axes, cells, facts: what the properties of these names return.
        """
        return cls(
            count_a=np.asarray(cells["count_a"], np.int64),
            count_b=np.asarray(cells["count_b"], np.int64),
            **{name: np.asarray(cells[name], float) for name in _TESTS},
            label_tokens=np.array(facts["label_tokens"], np.int64),
            label_tokens_b=np.array(facts["label_tokens_b"], np.int64) if "label_tokens_b" in facts else None,
            expected=np.asarray(cells["expected"], float) if "expected" in cells else None,
            overlap=number_array(facts["overlap"]),
            names=axes["label"],
            layers=axes["layer"],
            top_k=facts["top_k"],
            provenance=facts["provenance"],
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return counts, changes and tests by name, each `[row]`: a row is a layer, an expert and a label."""
        derived = {name: getattr(self, name).ravel() for name in ("change", "ratio", "significant")}
        return super().columns() | derived

    def top(self, n: int = 10, label: str | None = None) -> tuple[tuple[int, int, str, float], ...]:
        """Return layer, expert, label and change of the largest changes in either direction, significant ones first.

        Args:
            n: number of changes.
            label: only changes of this label; None for all labels.

        Raises:
            UnknownNameError: there is no such label.

        Example:
            >>> moelens.compare(demo_recording, demo_recording, permutations=19).top(3)
            ()
        """
        if label is not None:
            label = require_name(label, self.names)
        wanted = np.isfinite(self.change) & (self.change != 0)
        if label is not None:
            wanted &= np.arange(len(self.names)) == self.names.index(label)
        cells = np.argwhere(wanted)
        order = np.lexsort((-np.abs(self.change[wanted]), ~self.significant[wanted]))
        first = (tuple(cells[i].tolist()) for i in order[:n])
        return tuple((self.layers[x], y, self.names[z], float(self.change[x, y, z])) for x, y, z in first)

    def table(self, n: int = 10, lang: str | Texts = "en") -> str:
        """Return the largest changes as a plain table; a star marks significant ones.

        Args:
            n: number of changes.
            lang: language of the texts, "en" or "ja".
        """
        rows, say = [], Texts(lang)
        for layer, expert, name, change in self.top(n):
            at = self.layers.index(layer), expert, self.names.index(name)
            shares = (number(float(share[at])) for share in (self.share_a, self.share_b))
            band = interval(float(self.low[at]), float(self.high[at]))
            sure = (number(float(self.q[at])), number(float(self.p_family[at])), "*" if self.significant[at] else "")
            rows.append((f"L{layer}", f"E{expert}", label_in(name, say), f"{change:+.4f}", *shares, band, *sure))
        ratio = "ratio" if self.expected is None else "ratio_expected"
        first = [say(f"table.{name}") for name in ("layer", "expert", "label")]
        middle = [say(f"comparison.{name}") for name in ("change", "share_a", "share_b", ratio)]
        header = (*first, *middle, say("table.q"), say("table.p_family"), "")
        table = plain_table(header, rows) if rows else say("comparison.no_change")
        return "\n".join([*self._opening(say), table, *sample_limits(self.provenance, say)])

    def _opening(self, say: Texts) -> list[str]:
        """The lines above the table: what is compared, within what, and how."""
        about: dict[str, Any] = {name: self.provenance.get(name) or name for name in ("a", "b", "model")}
        permutations = self.provenance.get("permutations") or say("comparison.none")
        about |= {"tokens": f"{int(self.label_tokens[0]):,}", "permutations": permutations}
        if self.label_tokens_b is None:
            shares = zip(self.names, self.overlap.mean(0), strict=True)
            kept = say("answer.comma").join(f"{label_in(name, say)} {number(100 * share)} %" for name, share in shares)
            return [say("comparison.head", **about), say("comparison.kept", kept=kept)]
        given = [say.name("given", name) for name in self.provenance.get("given", ())]
        within = " × ".join([*given, say("comparison.labels")])
        about |= {"tokens_b": f"{int(self.label_tokens_b[0]):,}", "within": within}
        return [say("comparison.head_corpora", **about), say("comparison.expected", within=within)]

    def __repr__(self) -> str:
        return self.table()


@overload
def compare(
    a: Recording | str | Path,
    b: Recording | str | Path,
    family: str | None = "honorifics",
    *,
    labels: LabelFamilies | None = None,
    given: Given = "token",
    permutations: int | None = None,
    seed: int = 0,
    min_tokens: int = 20,
) -> Comparison: ...


@overload
def compare(
    a: Recording | str | Path,
    b: Recording | str | Path | None = None,
    *,
    phase: str | Sequence[str],
    permutations: int | None = None,
    seed: int = 0,
) -> Measure: ...


def compare(
    a: Recording | str | Path,
    b: Recording | str | Path | None = None,
    family: str | None = "honorifics",
    *,
    phase: str | Sequence[str] | None = None,
    labels: LabelFamilies | None = None,
    given: Given = "token",
    permutations: int | None = None,
    seed: int = 0,
    min_tokens: int = 20,
) -> Comparison | Measure:
    """Test how routing differs: between two models on one text, two texts under one model, or two phases.

    Two models, both recorded over the same text, are compared token by token.
    An example is a model before and after Japanese tuning: the comparison shows how many of a token's experts stay the
    same (saturation, arXiv 2409.02060, eq. 5), and which experts gain or lose tokens of which label. Under the null,
    the two models can be exchanged document by document, so the permutation test is exact. Token identity is the same
    in both models and explains no difference.

    Two recordings of one model over different texts are compared as corpora: which experts take more tokens of a label
    in `b` than expected if the token and its labels alone decided, see `moelens.analysis.corpora.corpus_comparison`.
    As in `analyze` (`max_share`), at most a tenth of the counted tokens are those of one document, or of its copies and
    near copies together; the result says how many tokens were left out. A text that is in both corpora counts in each
    as a document of its own. It adds as much to both, so that the test is more careful than it need be.

    With `phase`, the experts of the prompts of one recording are compared with those of the text that the model
    generated: overlap and divergence in each layer, beside their values by chance. See
    `moelens.analysis.phases.phase_values`.

    Args:
        a: the recording of one model or corpus, or its folder.
        b: the recording of the other model or corpus, or its folder; None with `phase`.
        family: family of labels; None compares all tokens together.
        phase: "prefill,decode", to compare these phases of `a`.
        labels: labels of `a` or `b`; None uses those in the folder of `b`, which are created if there are none. Two
            corpora have each their own, in their folders.
        given: what to compare two corpora within: "token", "position", families of labels, several of them, or None.
        permutations: number of permutations over documents, 19 or more and by default 1000; with `phase`, number of
            shifts of the phases along the documents, by default 99.
        seed: seed of the exchanges or shifts.
        min_tokens: cells with fewer tokens in both models together are not tested.

    Returns:
        Counts, changes and tests, `[layer, expert, label]`; with `phase`, `[layer, quantity, value]`.

    Raises:
        RecordingError: the recordings have different tokens, layers or numbers of experts, or `a` has one phase only.
        UnknownNameError: there is no such phase.
        MoeLensError: the recordings have a single document; or `b` is missing, or is another recording with `phase`.

    Example:
        >>> comparison = moelens.compare(demo_recording, demo_recording, permutations=19)
        >>> comparison.names[0], comparison.top(5)
        ('all tokens', ())
    """
    a = open_recording(a)
    b = None if b is None else open_recording(b)
    if phase is not None:
        return _compare_phases(a, b, phase, 99 if permutations is None else permutations, seed)
    if b is None:
        raise MoeLensError(
            "expected two recordings, got one; give another, or phase='prefill,decode' (--phase) to compare within it"
        )
    permutations = 1000 if permutations is None else permutations
    require_settings(permutations, min_tokens)
    if _are_corpora(a, b):
        if labels is not None:
            raise MoeLensError(
                "expected two corpora with their own labels, got labels=; leave it out, and label each with "
                "moelens.label(recording) (moelens label)"
            )
        options: dict[str, Any] = {"permutations": permutations, "seed": seed, "min_tokens": min_tokens}
        return Comparison(**corpus_comparison(a, b, family, given=given, **options))
    known = labels_for(b, labels, family)
    control_names(given, ("token", "position", *(() if known is None else known.families)))  # one text needs none
    owner = a if known is not None and _labels_belong_to(known, a) else b
    names = (ALL_TOKENS,) if known is None or family is None else (ALL_TOKENS, *label_names(owner, known, family))
    blocks = (
        block._replace(labels=np.hstack([np.ones((len(block.docs), 1), bool), block.labels]))
        for block in token_blocks(owner, known, family or "")
    )
    sample = Sample.of(blocks, names, texts=owner.text_ids())
    check_testable(sample.sizes)
    in_a, in_b, shared = _tabulate_both(a, b, sample)
    label_tokens = (in_a.kind_tokens @ sample.kinds.labels).sum(0)
    parts, none = (in_b.cells - in_a.cells).astype(np.float32), np.zeros(in_a.cells.shape[1:])
    difference = Excess(by_group=parts, total=parts.sum(0, dtype=float), within=none, variance=none)
    count_a, count_b = in_a.cells.sum(0, dtype=np.int64), in_b.cells.sum(0, dtype=np.int64)
    effective = effective_number(sample.sizes)
    tests = document_test(
        in_b.cells, difference, count_a + count_b >= min_tokens, permutations, seed, documents=effective
    )
    about_a, about_b = provenance_of(a, known), provenance_of(b)
    return Comparison(
        count_a=count_a,
        count_b=count_b,
        label_tokens=label_tokens,
        overlap=divide(shared, label_tokens),
        p=tests.p,
        p_family=tests.p_family,
        q=benjamini_hochberg(tests.p),
        low=tests.low,
        high=tests.high,
        names=names,
        layers=a.layers,
        top_k=a.top_k,
        provenance={
            "a": about_a["model"],
            "b": about_b["model"],
            "recordings": [about_a["recording"], about_b["recording"]],
            **{key: about_a[key] for key in ("labels", "moelens", *REPEATS)},
            **sample_of(a),
            "effective_documents": effective,
            "permutations": permutations,
            "seed": seed,
            "min_tokens": min_tokens,
        },
    )


def _compare_phases(a: Recording, b: Recording | None, phase: str | Sequence[str], draws: int, seed: int) -> Measure:
    """Compare prefill with decoding of one recording."""
    check_phases(phase)
    if b is not None and b.folder.location != a.folder.location:
        raise MoeLensError(
            f"expected one recording with phase, got '{a.folder.location}' and '{b.folder.location}'; compare the "
            "phases of each alone"
        )
    about = provenance_of(a) | {"shifts": draws, "seed": seed}
    return Measure("phases", phase_values(a, draws, seed), phase_axes(a), about)


def _tabulate_both(a: Recording, b: Recording, sample: Sample) -> tuple[RouteTables, RouteTables, Floats]:
    """Count both recordings in one pass; return their tables and the summed overlap of routes `[layer, label]`."""
    shared = np.zeros((len(a.layers), len(sample.names)))
    rows = sample.own_rows()
    tables: list[RouteTables] = []

    def parts(first: Recording, second: Recording | None) -> Iterator[RoutePart]:
        for part_rows, routes in first.parts(rows.start, rows.stop):
            if second is not None:
                parts_of_second = second.parts(part_rows.start, part_rows.stop)
                other = np.concatenate([np.stack(list(r), axis=1) for _, r in parts_of_second])
                same = overlap(np.stack(list(routes), axis=1), other)
                shared[:] += same.T @ sample.label_matrix(part_rows)
            yield part_rows, routes

    for first, second in ((a, b), (b, None)):
        tables.append(sample.count(parts(first, second), a.n_experts, a.layers))
    (shared,) = sum_over_processes([shared])
    return tables[0], tables[1], shared


def _are_corpora(a: Recording, b: Recording) -> bool:
    """Return whether two recordings are of one model over different texts, and not of two models over one text.

    Raises:
        RecordingError: they are neither, or differ in layers or numbers of experts.
    """
    for what in ("n_experts", "top_k", "layers"):
        mine, theirs = getattr(a, what), getattr(b, what)
        if mine != theirs:
            raise RecordingError(
                f"expected two recordings with the same {what}, got {mine} and {theirs}; "
                "compare a model with one that was tuned from it"
            )
    if a.n_tokens == b.n_tokens and _same_tokens(a, b):
        return False
    if not is_one_model(a, b):
        raise RecordingError(
            f"expected two models on the same tokens, or one model on two corpora, got two models and {a.n_tokens:,} "
            f"and {b.n_tokens:,} tokens that differ; record both over one corpus with one tokenizer"
        )
    return True


def _same_tokens(a: Recording, b: Recording) -> bool:
    """Return whether two recordings with the same number of tokens have the same tokens."""
    names = ("doc", "token_id")
    for rows, mine in a.columns(names):
        theirs = [np.concatenate(c) for c in zip(*(c for _, c in b.columns(names, rows.start, rows.stop)), strict=True)]
        if any((m != t).any() for m, t in zip(mine, theirs, strict=True)):
            return False
    return True


def _labels_belong_to(labels: LabelFamilies, recording: Recording) -> bool:
    """Return whether the labels were written for this recording."""
    return Path(str(getattr(labels, "path", ""))).parent.resolve() == Path(str(recording.folder.location)).resolve()
