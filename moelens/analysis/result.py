"""The result of a specialization analysis: which experts prefer which labels, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moelens.analysis.counts import Bools, Counts, Floats, Ints
from moelens.analysis.tables import number, plain_table
from moelens.errors import RecordingError, unknown
from moelens.shows import Shows

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "moelens.specialization/1"
ALPHA = 0.05
TESTS = ("p", "p_family", "q", "lift_given_token")


@dataclass(frozen=True)
class Finding:
    """One expert and one label. `layer` is the layer's number in the model."""

    layer: int
    expert: int
    label: str
    lift: float
    share: float
    count: int
    p: float
    p_family: float
    q: float
    lift_given_token: float

    @property
    def significant(self) -> bool:
        """Whether the finding survives a correction for the number of cells, see `Specialization.significant`."""
        return self.q < ALPHA or self.p_family < ALPHA


@dataclass(frozen=True, eq=False, repr=False)
class Specialization(Shows):
    """Experts and labels: effect sizes, a permutation test over documents, and what token identity leaves.

    All arrays are `[layer, expert, label]` unless said otherwise; NaN means undefined or not tested.
    Labels and experts too rare to test keep their lift and share.

    >>> from moelens.analysis import specialization_from_arrays
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.random((600, 1)) < 0.2
    >>> indices = np.where(labels[:, :, None], 3, rng.integers(0, 8, (600, 1, 1)))  # expert 3 takes the label
    >>> result = specialization_from_arrays(indices, labels, ["尊敬語"], docs=np.arange(600) // 20,
    ...                                     token_ids=np.zeros(600, int), n_experts=8, layers=[2], permutations=99)
    >>> [(f.layer, f.expert, f.label, f.p_family) for f in result.top(1)]
    [(2, 3, '尊敬語', 0.01)]
    """

    counts: Counts
    p: Floats
    """Permutation p of the cell alone."""
    p_family: Floats
    """Permutation p of the cell among all tested cells (maximum statistic)."""
    q: Floats
    """False discovery rate (Benjamini–Hochberg)."""
    lift_given_token: Floats
    """Tokens of the label at the expert over the number expected from token ids alone; 1 = nothing left."""
    family: str = "labels"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def lift(self) -> Floats:
        """See `Counts.lift`."""
        return self.counts.lift()

    @cached_property
    def share(self) -> Floats:
        """See `Counts.share`."""
        return self.counts.share()

    @cached_property
    def load(self) -> Floats:
        """Relative load `[layer, expert]`, see `Counts.load`."""
        return self.counts.load()

    @property
    def count(self) -> Ints:
        return self.counts.count

    @property
    def label_tokens(self) -> Ints:
        """Tokens of each label `[label]`."""
        return self.counts.label_tokens

    @property
    def names(self) -> tuple[str, ...]:
        return self.counts.names

    @property
    def layers(self) -> tuple[int, ...]:
        return self.counts.layers

    @property
    def n_experts(self) -> int:
        return self.counts.n_experts

    @property
    def n_tokens(self) -> int:
        return self.counts.n_tokens

    @property
    def top_k(self) -> int:
        return self.counts.top_k

    @property
    def significant(self) -> Bools:
        """Cells with q or family-wise p below .05.

        Either correction will do: Benjamini–Hochberg's q cannot fall below tested cells / (permutations + 1) for a
        cell that stands alone, the maximum statistic can.
        """
        return np.asarray((self.q < ALPHA) | (self.p_family < ALPHA))

    @property
    def too_rare(self) -> tuple[str, ...]:
        """Labels that were not tested, because too few tokens or documents have them."""
        return tuple(name for i, name in enumerate(self.names) if not np.isfinite(self.p[:, :, i]).any())

    @property
    def headline(self) -> str:
        """Model, size and tokens: the first words of every view."""
        model = self.provenance.get("model") or "model"
        layers = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}"
        return f"{model} · {layers} × {self.n_experts} experts, top-{self.top_k} · {self.n_tokens:,} tokens"

    @property
    def control(self) -> str:
        """The control that significance was judged by, in one phrase."""
        return f"control: {self.provenance.get('permutations', 'no')} permutations over documents"

    def label_index(self, label: str) -> int:
        """Position of `label` on the last axis. Raises `UnknownNameError`."""
        if label not in self.names:
            raise unknown("label", label, self.names, f"family {self.family!r}")
        return self.names.index(label)

    def top(self, n: int = 10, label: str | None = None) -> tuple[Finding, ...]:
        """The `n` strongest specialists (lift above 1): significant ones first, then by share beyond chance.

        Share beyond chance is `share` less the expert's share of all tokens. By lift alone the first would be experts
        that are hardly used. Raises `UnknownNameError` for a label that the analysis does not have.
        """
        beyond = self.share - (self.counts.expert_tokens / self.n_tokens)[:, :, None]
        wanted = beyond > 0
        if label is not None:
            wanted &= np.arange(len(self.names)) == self.label_index(label)
        cells = np.argwhere(wanted)
        order = np.lexsort((-beyond[wanted], np.isnan(self.p[wanted]), ~self.significant[wanted]))
        return tuple(self._finding(*map(int, cells[i])) for i in order[:n])

    def _finding(self, layer: int, expert: int, label: int) -> Finding:
        cell = layer, expert, label
        return Finding(
            layer=self.layers[layer],
            expert=expert,
            label=self.names[label],
            lift=float(self.lift[cell]),
            share=float(self.share[cell]),
            count=int(self.count[cell]),
            **{name: float(getattr(self, name)[cell]) for name in TESTS},
        )

    def to_pandas(self) -> pd.DataFrame:
        """One row for each layer, expert and label, with the columns of `Finding` and `load`, `significant`."""
        import pandas as pd

        shape = self.count.shape
        layer, expert, label = np.indices(shape).reshape(3, -1)
        columns = {
            "layer": np.array(self.layers)[layer],
            "expert": expert,
            "label": np.array(self.names)[label],
            "load": self.load[layer, expert],
        }
        values = ("lift", "share", "count", *TESTS, "significant")
        return pd.DataFrame(columns | {name: getattr(self, name).ravel() for name in values})

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values: counts, tests (None where not tested) and provenance."""
        counts = {f.name: getattr(self.counts, f.name) for f in fields(Counts)}
        tests = {name: getattr(self, name) for name in TESTS}
        return {
            "format": FORMAT,
            "family": self.family,
            "provenance": dict(self.provenance),
            "counts": {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in counts.items()},
            **{name: _nulls(v) for name, v in tests.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Specialization:
        """The inverse of `to_dict`. Raises `RecordingError` for anything else."""
        if data.get("format") != FORMAT:
            raise RecordingError(
                f"format {data.get('format')!r}; allowed: {FORMAT!r}, as Specialization.save writes it"
            )
        counts = dict(data["counts"])
        shape = len(counts["layers"]), -1, len(counts["names"])
        for name in ("count", "expert_tokens", "label_tokens"):
            counts[name] = np.array(counts[name], np.int64)
        counts["count"] = counts["count"].reshape(shape)
        counts |= {name: tuple(counts[name]) for name in ("names", "layers")}
        tests = {name: np.array(data[name], float).reshape(shape) for name in TESTS}
        return cls(Counts(**counts), **tests, family=data["family"], provenance=dict(data["provenance"]))

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON and return where."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        return path

    @classmethod
    def open(cls, path: str | Path) -> Specialization:
        """Read what `save` wrote. Raises `RecordingError` when the file is missing or holds something else."""
        path = Path(path)
        if not path.is_file():
            raise RecordingError(f"no specialization at {str(path)!r}; write one with Specialization.save(path)")
        try:
            data = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise RecordingError(
                f"{str(path)!r} is not JSON ({error}); write it again with Specialization.save"
            ) from error
        return cls.from_dict(data if isinstance(data, dict) else {})

    def __repr__(self) -> str:
        return self.table()

    def table(self, n: int = 10, *, each: bool = False) -> str:
        """The `n` strongest specialists, of all labels or of each, as a plain table; a star marks what survives."""
        tested = [name for name in self.names if name not in self.too_rare]
        findings = [f for name in tested for f in self.top(n, name)] if each else self.top(n)
        header = ("layer", "expert", "label", "lift", "share", "tokens", "q", "p family", "lift | token", "")
        rows = [
            (
                f"L{f.layer}",
                f"E{f.expert}",
                f.label,
                *map(number, (f.lift, f.share)),
                f"{f.count:,}",
                *map(number, (f.q, f.p_family, f.lift_given_token)),
                "*" if f.significant else "",
            )
            for f in findings
        ]
        lines = [f"{self.headline} · specialists of {self.family} · {self.control}", plain_table(header, rows)]
        if self.too_rare:
            rare = (f"{name} ({self.label_tokens[self.label_index(name)]:,} tokens)" for name in self.too_rare)
            lines.append("too rare to test: " + ", ".join(rare))
        return "\n".join(lines)


def _nulls(values: Floats) -> Any:
    """Nested lists with None for NaN, which JSON does not have."""
    plain = values.astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()
