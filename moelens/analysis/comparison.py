"""What changed between two models that read the same text, expert by expert and label by label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, Ints, divide
from moelens.analysis.counting import Part, Tables
from moelens.analysis.processes import add_up
from moelens.analysis.randomize import Excess, benjamini_hochberg, document_test
from moelens.analysis.result import ALPHA
from moelens.analysis.routing import overlap
from moelens.analysis.sources import LabelFamilies, Sample, described, labels_for, names_of, opened, provenance
from moelens.analysis.specialize import check_test
from moelens.analysis.tables import number, plain_table
from moelens.display import Plotted
from moelens.errors import RecordingError, unknown
from moelens.recording import Recording
from moelens.saved import SavedCells, json_values, number_array

ALL = "all tokens"
TESTS = ("p", "p_family", "q", "low", "high")


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Plotted, SavedCells):
    """Models a and b over the same tokens. All arrays are `[layer, expert, label]` unless said otherwise.

    The first label, "all tokens", shows how the load of experts moved; NaN where not tested.
    """

    FORMAT: ClassVar[str] = "moelens.comparison/1"

    count_a: Ints
    """Tokens of the label that a sends to the expert."""
    count_b: Ints
    label_tokens: Ints
    """`[label]`."""
    kept: Floats
    """Share of a token's experts that are the same in both, averaged over the label's tokens `[layer, label]`."""
    p: Floats
    p_family: Floats
    q: Floats
    low: Floats
    high: Floats
    """95 % bootstrap interval of `ratio`, over documents."""
    names: tuple[str, ...]
    layers: tuple[int, ...]
    top_k: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def change(self) -> Floats:
        """Share of the label's tokens that the expert takes in b, less that in a."""
        return divide(self.count_b - self.count_a, self.label_tokens)

    @property
    def ratio(self) -> Floats:
        """Tokens of the label at the expert in b over those in a."""
        return divide(self.count_b, self.count_a)

    @property
    def significant(self) -> Bools:
        """Cells with q or family-wise p below .05."""
        return np.asarray((self.q < ALPHA) | (self.p_family < ALPHA))

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        return {"layer": self.layers, "expert": tuple(range(self.count_a.shape[1])), "label": self.names}

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in ("count_a", "count_b", *TESTS)}

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "label_tokens": self.label_tokens.tolist(),
            "kept": json_values(self.kept),
            "top_k": self.top_k,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def build(cls, axes: Mapping[str, Any], cells: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Comparison:
        return cls(
            count_a=np.asarray(cells["count_a"], np.int64),
            count_b=np.asarray(cells["count_b"], np.int64),
            **{name: np.asarray(cells[name], float) for name in TESTS},
            label_tokens=np.array(facts["label_tokens"], np.int64),
            kept=number_array(facts["kept"]),
            names=axes["label"],
            layers=axes["layer"],
            top_k=facts["top_k"],
            provenance=facts["provenance"],
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        derived = {name: getattr(self, name).ravel() for name in ("change", "ratio", "significant")}
        return super().columns() | derived

    def top(self, n: int = 10, label: str | None = None) -> tuple[tuple[int, int, str, float], ...]:
        """Layer, expert, label and change of the `n` greatest changes either way: significant ones first.

        Raises `UnknownNameError` for a label that the comparison does not have.
        """
        if label is not None and label not in self.names:
            raise unknown("label", label, self.names)
        wanted = np.isfinite(self.change) & (self.change != 0)
        if label is not None:
            wanted &= np.arange(len(self.names)) == self.names.index(label)
        cells = np.argwhere(wanted)
        order = np.lexsort((-np.abs(self.change[wanted]), ~self.significant[wanted]))
        found = (tuple(cells[i].tolist()) for i in order[:n])
        return tuple((self.layers[x], y, self.names[z], float(self.change[x, y, z])) for x, y, z in found)

    def table(self, n: int = 10) -> str:
        """The `n` greatest changes as a plain table; a star marks what survives."""
        a, b = self.provenance.get("a") or "a", self.provenance.get("b") or "b"
        kept = ", ".join(f"{name} {number(100 * k)} %" for name, k in zip(self.names, self.kept.mean(0), strict=True))
        rows = []
        for layer, expert, name, change in self.top(n):
            at = self.layers.index(layer), expert, self.names.index(name)
            shares = (number(float(c[at] / self.label_tokens[at[2]])) for c in (self.count_a, self.count_b))
            band = f"{number(float(self.low[at]))}–{number(float(self.high[at]))}"
            sure = (number(float(self.q[at])), number(float(self.p_family[at])), "*" if self.significant[at] else "")
            rows.append((f"L{layer}", f"E{expert}", name, f"{change:+.4f}", *shares, band, *sure))
        header = ("layer", "expert", "label", "change", "share in a", "in b", "b / a, 95 %", "q", "p family", "")
        permutations = self.provenance.get("permutations", "no")
        return (
            f"{a} → {b} · {int(self.label_tokens[0]):,} tokens · control: {permutations} exchanges over documents, "
            f"token identity the same in both\nexperts kept: {kept}\n"
            + (plain_table(header, rows) if rows else "no expert won or lost a token of any label")
        )

    def __repr__(self) -> str:
        return self.table()


def compare(
    a: Recording | str | Path,
    b: Recording | str | Path,
    family: str | None = "honorifics",
    *,
    labels: LabelFamilies | None = None,
    permutations: int = 1000,
    seed: int = 0,
    min_tokens: int = 20,
) -> Comparison:
    """Test what changed in routing from model `a` to model `b`, both recorded over the same text.

    Such as a model before and after Japanese tuning: how many of a token's experts stay (saturation, arXiv 2409.02060,
    eq. 5), and which experts gain or lose tokens of which label. If nothing changed, the two models can be exchanged
    document by document: that is the permutation test, and it is exact. Token identity is the same in both models and
    explains no difference.

    Args:
        a: the recording of one model, or its folder.
        b: the recording of the other.
        family: of labels; None for all tokens together.
        labels: of `a` or `b`; None for those in the folder of `b`, created first where there are none.
        permutations: exchanges over documents, 19 or more.
        seed: of the exchanges.
        min_tokens: cells with fewer tokens in both models together are not tested.

    Raises:
        RecordingError: the recordings are of different tokens, layers or experts.
        MoeLensError: they have a single document.

    Example:
        >>> moelens.compare("runs/deepseek", "runs/rakuten").top(10, "尊敬語")  # doctest: +SKIP
    """
    a, b = opened(a), opened(b)
    check_alike(a, b)
    known = labels_for(b, labels, family)
    owner = a if known is not None and labels_belong_to(known, a) else b
    names = (ALL,) if known is None or family is None else (ALL, *names_of(owner, known, family))
    every = (
        part._replace(labels=np.hstack([np.ones((len(part.docs), 1), bool), part.labels]))
        for part in described(owner, known, family or "")
    )
    sample = Sample.of(every, names, texts=owner.text_ids())
    check_test(sample.documents, permutations)
    in_a, in_b, shared = tabulate_both(a, b, sample)
    label_tokens = (in_a.kind_tokens @ sample.kinds.labels).sum(0)
    difference = Excess((in_b.cells - in_a.cells).astype(np.float32), np.zeros(in_a.cells.shape[1:]))
    count_a, count_b = in_a.cells.sum(0, dtype=np.int64), in_b.cells.sum(0, dtype=np.int64)
    verdict = document_test(in_b.cells, difference, count_a + count_b >= min_tokens, permutations, seed)
    about = provenance(a, known)
    return Comparison(
        count_a,
        count_b,
        label_tokens,
        divide(shared, label_tokens),
        verdict.p,
        verdict.p_family,
        benjamini_hochberg(verdict.p),
        verdict.low,
        verdict.high,
        names,
        a.layers,
        a.top_k,
        {
            "a": about["model"],
            "b": provenance(b)["model"],
            "recordings": [about["recording"], provenance(b)["recording"]],
            **{key: about[key] for key in ("labels", "moelens")},
            "permutations": permutations,
            "seed": seed,
            "min_tokens": min_tokens,
        },
    )


def tabulate_both(a: Recording, b: Recording, sample: Sample) -> tuple[Tables, Tables, Floats]:
    """One pass over both: their tables, and the summed overlap of the tokens of each label `[layer, label]`."""
    shared = np.zeros((len(a.layers), len(sample.names)))
    rows = sample.mine()
    tables: list[Tables] = []

    def both(first: Recording, second: Recording | None) -> Iterator[Part]:
        for here, routes in first.parts(rows.start, rows.stop):
            if second is not None:
                other = np.concatenate([np.stack(list(r), axis=1) for _, r in second.parts(here.start, here.stop)])
                kept = overlap(np.stack(list(routes), axis=1), other)
                shared[:] += kept.T @ sample.has(here)
            yield here, routes

    for first, second in ((a, b), (b, None)):
        tables.append(sample.count(both(first, second), a.n_experts, a.layers))
    (shared,) = add_up([shared])
    return tables[0], tables[1], shared


def check_alike(a: Recording, b: Recording) -> None:
    """Raise `RecordingError` unless both recordings hold the same tokens, layers and numbers of experts."""
    for what in ("n_experts", "top_k", "layers"):
        mine, theirs = getattr(a, what), getattr(b, what)
        if mine != theirs:
            raise RecordingError(
                f"recordings with {what} {mine} and {theirs}; allowed: the same in both, compare a model with one "
                "that was tuned from it"
            )
    if a.n_tokens != b.n_tokens or not same_tokens(a, b):
        raise RecordingError(
            f"recordings of different tokens ({a.n_tokens:,} and {b.n_tokens:,}); allowed: the same text and "
            "tokenizer, record both models over one corpus"
        )


def same_tokens(a: Recording, b: Recording) -> bool:
    """Whether two recordings of as many tokens hold the same."""
    names = ("doc", "token_id")
    for rows, mine in a.columns(names):
        theirs = [np.concatenate(c) for c in zip(*(c for _, c in b.columns(names, rows.start, rows.stop)), strict=True)]
        if any((m != t).any() for m, t in zip(mine, theirs, strict=True)):
            return False
    return True


def labels_belong_to(labels: LabelFamilies, recording: Recording) -> bool:
    """Whether these labels were written for this recording."""
    return Path(str(getattr(labels, "path", ""))).parent.resolve() == Path(str(recording.folder.location)).resolve()
