"""`Counts`: how often each expert is chosen for the tokens of each label. Counts of parts of a corpus add up."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moelens.analysis.arrays import Bools, Routes, check_routes, divide
from moelens.analysis.count_measures import coverage, exclusive_experts, usage, usage_entropy
from moelens.analysis.count_rows import check_size
from moelens.analysis.count_tables import CountTables
from moelens.analysis.counting import MAX_GROUPS, TokenKinds, distinct, document_bounds, in_parts, tabulate
from moelens.analysis.result import Specialization
from moelens.analysis.tables import number, percent, plain_table
from moelens.analysis.token_types import bound_labels, difference_of_text, read_type_rows
from moelens.analysis.type_labels import TypeLabels
from moelens.errors import CheckError, MoeLensError
from moelens.recording import Recording

COUNTS_ONLY = "not tested: counts have no documents, which tests and intervals over documents need"
_EXCLUSIVE = "exclusive: the label gives the expert 90 % or more of what all labels give it, each weighing the same"
_TYPES_ONLY = (
    "not tested: the counts are of token types and not of documents; what they leave open lies between the bounds, and "
    "token identity cannot be controlled"
)


class Counts(CountTables):
    """Numbers of tokens by group of documents, layer, expert and label.

    Counts of parts of a corpus add up. `moelens.import_counts` makes them of tables that others published. See
    `CountTables` for the attributes.

    Example:
        >>> indices = np.array([[[0, 1]], [[0, 2]], [[0, 1]]])  # [token, layer, slot]
        >>> labels = np.array([[True], [False], [True]])  # [token, label]
        >>> counts = Counts.from_arrays(indices, labels, ["丁寧語"], n_experts=3, layers=[4])
        >>> counts.count[0, :, 0].tolist(), counts.share()[0, :, 0].tolist(), counts.lift()[0, :, 0].tolist()
        ([2, 2, 0], [1.0, 1.0, 0.0], [1.0, 1.5, 0.0])
    """

    @classmethod
    def from_arrays(
        cls,
        indices: Routes,
        labels: Bools,
        names: Sequence[str],
        n_experts: int,
        layers: Sequence[int],
        docs: ArrayLike | None = None,
        groups: int = MAX_GROUPS,
    ) -> Counts:
        """Count expert ids by label.

        Args:
            indices: expert ids `[token, layer, slot]`.
            labels: bool `[token, label]`.
            names: names of the labels.
            n_experts: number of experts in each layer.
            layers: numbers of the layers in the model.
            docs: document of each token `[token]`; None counts all tokens as one document.
            groups: the largest number of groups of documents that are counted separately; `+` keeps the groups.

        Returns:
            The counts.

        Raises:
            CheckError: the shapes do not agree, or an expert id is out of range.

        Example:
            >>> data = np.load("esft_intent.npz")  # published routing  # doctest: +SKIP
            >>> Counts.from_arrays(data["expert_ids"], labels, names, 64, range(1, 27))  # doctest: +SKIP
        """
        labels = np.asarray(labels, bool)
        check_routes(indices, n_experts, layers, labels, names)
        document = np.zeros(len(labels), np.int64) if docs is None else distinct(np.asarray(docs))[1]
        order, sizes = np.argsort(document, kind="stable"), np.bincount(document)
        kinds, kind = TokenKinds.of(labels[order])
        bounds = document_bounds(sizes, sizes, groups)
        tables = tabulate(in_parts(indices, order), kind, bounds, kinds, n_experts, len(layers))
        return cls(
            cells=tables.cells,
            experts=tables.experts,
            labels=tables.kind_tokens @ kinds.labels,
            tokens=tables.kind_tokens.sum(1),
            names=tuple(names),
            layers=tuple(map(int, layers)),
            top_k=indices.shape[2],
        )

    @classmethod
    def from_table(
        cls,
        count: ArrayLike,
        expert_tokens: ArrayLike,
        label_tokens: ArrayLike,
        names: Sequence[str],
        layers: Sequence[int],
        top_k: int,
    ) -> Counts:
        """Make `Counts` from tables that were counted elsewhere, as a single group.

        For counts by token type, see `of_types`; for counts between layers, `flow_shares`.

        Args:
            count: tokens of the label for which the expert was chosen `[layer, expert, label]`.
            expert_tokens: tokens for which the expert was chosen `[layer, expert]`; each layer sums to `top_k` times
                the number of tokens.
            label_tokens: tokens of the label `[label]`.
            names: names of the labels.
            layers: numbers of the layers in the model.
            top_k: experts chosen for each token.

        Raises:
            CheckError: the tables contradict each other, or a layer has no routes.

        Example:
            >>> counts = Counts.from_table([[[3], [1]]], [[6, 4]], [4], ["丁寧語"], layers=[0], top_k=1)
            >>> counts.lift().ravel().round(2)
            array([1.25, 0.62])
        """
        cells, experts, labels = (np.asarray(a, np.int64)[None] for a in (count, expert_tokens, label_tokens))
        wanted = (1, len(layers), experts.shape[-1], len(names))
        if cells.shape != wanted or experts.shape != wanted[:3] or labels.shape != (1, len(names)):
            raise CheckError(
                f"expected count [layer, expert, label], expert_tokens [layer, expert] and label_tokens [label] with "
                f"{len(layers)} layers and {len(names)} labels, got shapes {list(cells.shape[1:])}, "
                f"{list(experts.shape[1:])} and {list(labels.shape[1:])}; give tables of the same layers and labels"
            )
        sums = experts.sum(2)[0]
        if not sums.all():
            raise CheckError(
                f"expected expert_tokens in every layer, got none in layer {layers[int(np.argmin(sums))]}; "
                "leave this layer out of the tables"
            )
        if (sums != sums[0]).any() or sums[0] % top_k or (cells > experts[..., None]).any():
            raise CheckError(
                f"expected expert_tokens that sum to {top_k} times the tokens in every layer, and no count above its "
                f"expert_tokens, got sums of {', '.join(map(str, np.unique(sums)))}; pass tables of the same text"
            )
        return cls(
            cells=cells,
            experts=experts,
            labels=labels,
            tokens=sums[:1] // top_k,
            names=tuple(names),
            layers=tuple(map(int, layers)),
            top_k=top_k,
        )

    @classmethod
    def of_types(
        cls, types: str | Path | Mapping[str, Any], *, n_experts: int | None = None, top_k: int | None = None
    ) -> Counts:
        """Make `Counts` of token types: each token id that occurs is a label.

        `share` is then the vocabulary specialization of Muennighoff et al. 2024, arXiv 2409.02060, eq. 8, and
        `family_information` is what the identity of a token tells of a layer's choice. For labels of the tokens, see
        `from_types`.

        Args:
            types: a `.npz`, `.parquet` or `.csv` file with the columns `layer`, `expert`, `token_id` and `count`, or
                such columns by name.
            n_experts: number of experts in each layer; by default the largest number plus one.
            top_k: experts chosen for each token; by default found from the counts.

        Raises:
            CheckError: columns are missing, numbers contradict each other, or the table of all token ids has more cells
                than can be held.

        Example:
            >>> types = {"layer": [0] * 3, "expert": [0, 1, 1], "token_id": [7, 7, 9], "count": [1, 1, 2]}
            >>> counts = Counts.of_types(types, top_k=1)
            >>> counts.names, counts.share()[0].tolist()
            (('7', '9'), [[0.5, 0.0], [0.5, 1.0]])
        """
        rows = read_type_rows(types, n_experts, top_k)
        ids, label = np.unique(rows.token_id, return_inverse=True)
        check_size((len(rows.layers), rows.n_experts, len(ids)), "the counts of token types")
        count = np.zeros((len(rows.layers), rows.n_experts, len(ids)), np.int64)
        count[rows.layer, rows.expert, label.reshape(-1)] = rows.count
        occurrences = rows.occurrences[ids]
        return cls.from_table(count, count.sum(2), occurrences, list(map(str, ids)), rows.layers, rows.top_k)

    @classmethod
    def from_types(
        cls,
        types: str | Path | Mapping[str, Any],
        labels: TypeLabels | None = None,
        *,
        text: str | Path | Sequence[str] | None = None,
        tokenizer: Any = None,
        recording: Recording | str | Path | None = None,
        family: str = "honorifics",
        n_experts: int | None = None,
        top_k: int | None = None,
        model: str = "",
    ) -> Specialization:
        """Estimate which experts prefer which labels from counts of token types, with sharp bounds.

        The counts say how often each token id went to each expert, and the text says which of its occurrences have a
        label. What the two leave open lies between the bounds; see `moelens.analysis.token_types`. Nothing can be
        tested, and token identity cannot be controlled.

        Args:
            types: a `.npz`, `.parquet` or `.csv` file with the columns `layer`, `expert`, `token_id` and `count`, or
                such columns by name.
            labels: the labels of the text that was counted; None makes them of the following.
            text: the text that was counted, the path of a `.txt` file, or several texts. It may go on beyond the
                counted tokens.
            tokenizer: the tokenizer of the model, or its name or folder.
            recording: a recording of the same text, instead of the text.
            family: family of labels.
            n_experts: number of experts in each layer; by default the largest number plus one.
            top_k: experts chosen for each token; by default found from the counts.
            model: name of the model.

        Returns:
            Effect sizes with `low` and `high` as bounds of the lift, and `exact`.

        Raises:
            CheckError: the counts contradict each other, or the text is another.
            UnknownNameError: there is no such family.
            MoeLensError: neither labels, nor a text with its tokenizer, nor a recording are given.

        Warns:
            UserWarning: the tokens of the text differ from those counted.

        Example:
            >>> text, tokenizer = "先生が来ます。", demo_model.tokenizer
            >>> ids = tokenizer(text)["input_ids"]
            >>> layer, expert, count = [0] * len(ids), [i % 2 for i in ids], [1] * len(ids)
            >>> types = {"layer": layer, "expert": expert, "token_id": ids, "count": count}
            >>> result = Counts.from_types(types, text=text, tokenizer=tokenizer, top_k=1)
            >>> result.evidence, result.names[3], result.label_tokens.tolist()[3]
            ('bounds', '丁寧語', 1)
        """
        rows = read_type_rows(types, n_experts, top_k)
        if labels is None:
            if (recording is None) == (text is None) or (text is None) != (tokenizer is None):
                raise MoeLensError(
                    "expected labels of the text that was counted, or text= with tokenizer=, or recording=, got "
                    f"{'both' if recording is not None else 'less'}; give one of the three"
                )
            if recording is None:
                assert text is not None
                labels = TypeLabels.of_text(text, tokenizer, rows.n_tokens)
            else:
                labels = TypeLabels.of_recording(recording)
        of_family = labels.count(family, rows.n_tokens)
        difference, bounds = difference_of_text(rows, of_family), bound_labels(rows, of_family)
        if difference:
            warnings.warn(difference, stacklevel=2)
        counts = cls(
            cells=bounds.estimate[None],
            experts=bounds.expert_tokens[None],
            labels=bounds.label_tokens[None],
            tokens=np.array([rows.n_tokens]),
            names=of_family.names,
            layers=rows.layers,
            top_k=rows.top_k,
            provenance={"model": model, "counted by": "token type", "text": difference or "reproduces the counts"},
        )
        expected = counts.expert_tokens[:, :, None] * counts.label_tokens / rows.n_tokens
        limits = divide(bounds.low, expected), divide(bounds.high, expected)
        return Specialization.of_counts(counts, family, _TYPES_ONLY, limits, bounds.exact)

    def specialization(self, family: str = "groups") -> Specialization:
        """Return effect sizes for the maps, cards, tables and reports that show a `Specialization`.

        Tests and intervals are absent: they need documents, which counts do not have.

        Args:
            family: a word for the labels, such as "language".

        Example:
            >>> names = ["ja", "en"]
            >>> counts = Counts.from_table([[[30, 10], [0, 30]]], [[40, 30]], [30, 40], names, layers=[0], top_k=1)
            >>> finding = counts.specialization("language").top(1)[0]
            >>> finding.expert, finding.label, finding.lift
            (0, 'ja', 1.75)
        """
        return Specialization.of_counts(self, family, COUNTS_ONLY)

    def table(self, n: int = 10) -> str:
        """Return a plain table with a row for each label, and the `n` exclusive experts with most tokens.

        Args:
            n: number of exclusive experts.
        """
        unit = "mass" if self.mass else "tokens"
        half = max(self.n_experts // 2, 1)
        entropy, shares = usage_entropy(self), usage(self)
        covered = coverage(shares, half)
        exclusive = exclusive_experts(self)
        rows = []
        for i, name in enumerate(self.names):
            mine = [e for e in exclusive if e.label == name]
            ends = f"{number(float(entropy[0, i]))} → {number(float(entropy[-1, i]))}"
            behind = f"{sum(e.tokens for e in mine):,.0f}"
            covers = percent(float(np.nanmean(covered[:, i])))
            rows.append((name, f"{self.label_tokens[i]:,.0f}", ends, covers, f"{len(mine):,}", behind))
        entropies = f"usage entropy in bits, L{self.layers[0]} → L{self.layers[-1]}"
        header = ("label", unit, entropies, f"top {half} take", "exclusive", "behind them")
        lines = [self.headline, plain_table(header, rows), _EXCLUSIVE]
        if exclusive and n:
            found = [
                (f"L{e.layer}", f"E{e.expert}", e.label, number(e.share), number(e.other_share), f"{e.tokens:,.0f}")
                for e in exclusive[:n]
            ]
            lines += ["", plain_table(("layer", "expert", "exclusive to", "share", "largest other", unit), found), ""]
        facts = self.provenance
        if "layer_sums_off_by" in facts:
            off, tolerance = (f"{100 * facts[name]:.2g} %" for name in ("layer_sums_off_by", "tolerance"))
            lines.append(f"sums of layers differ from those of the tokens by at most {off} (tolerance {tolerance})")
        return "\n".join([*lines, *facts.get("notes", ()), *([COUNTS_ONLY] if len(self.tokens) == 1 else [])])

    def __repr__(self) -> str:
        return self.table()
