"""What analyses count: the tokens of a recording, their labels, and the strata within which labels are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.arrays import Bools, Ints
from moelens.analysis.count_tables import CountTables
from moelens.analysis.counting import (
    MAX_GROUPS,
    RoutePart,
    RouteTables,
    TokenKinds,
    distinct,
    document_groups,
    tabulate,
)
from moelens.analysis.counts import Counts
from moelens.analysis.label_measures import label_combinations
from moelens.analysis.processes import rank_and_size
from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.japanese import Labels
from moelens.japanese.labels import require_alignment
from moelens.recording import Recording
from moelens.version import __version__

Given = str | Sequence[str] | None
"""One control, several, or None: "token", "position", a family of labels, or a column of the corpus."""

REPEATS = ("copied_documents", "nearly_copied_documents", "repeated_sentences")
"""What `provenance_of` says about repeated texts."""


class LabelFamilies(Protocol):
    """The part of `moelens.japanese.Labels` that analyses use."""

    @property
    def families(self) -> tuple[str, ...]: ...

    def matrix(self, family: str, rows: slice | None = None) -> tuple[tuple[str, ...], Bools]: ...


def counts_in(source: Any) -> CountTables | None:
    """Return the counts, or open those that were saved in this file; None for anything else."""
    if isinstance(source, CountTables):
        return source
    if isinstance(source, (str, Path)) and Path(source).suffix in (".json", ".parquet") and Path(source).is_file():
        return Counts.open(source)
    return None


def open_recording(recording: Recording | str | Path) -> Recording:
    """Return the recording, or open the one in this folder.

    Raises:
        MoeLensError: counts were given, which have no documents.
        RecordingError: this is no recording.
    """
    if counts_in(recording) is not None:
        raise MoeLensError(
            "expected a recording, got counts, which have no documents to test or compare; use "
            "counts.specialization() for effect sizes, and moelens measure for measures"
        )
    if isinstance(recording, (str, Path)) or not hasattr(recording, "text_ids"):
        return Recording.open(recording)
    return recording


def labels_for(recording: Recording, labels: LabelFamilies | None, family: str | None) -> LabelFamilies | None:
    """Return the given labels, or those of the recording, created if there are none; None without a family.

    Of labels on disk, those of its tokens are returned if the recording is a sample of the one that was labelled.
    """
    if isinstance(labels, Labels):
        return labels.of(recording)
    return labels if labels is not None or family is None else Labels.open_or_create(recording)


class TokenBlock(NamedTuple):
    """Successive tokens with everything but their routes.

    Attributes:
        docs: document of each token `[token]`, ascending.
        keep: bool `[token]`; tokens with False are left out.
        labels: bool `[token, label]`.
        controls: codes of each control, `[token, column]`; two tokens are alike in a control if they agree in all of
            its columns.
    """

    docs: NDArray[np.integer]
    keep: Bools
    labels: Bools
    controls: Mapping[str, NDArray[np.integer]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """Tokens in the order of their documents, ready to be counted; four bytes are kept for each.

    Attributes:
        names: names of the labels.
        kind: kind of each token `[token]`, −1 where it is left out.
        kinds: the kinds: combinations of labels and strata.
        bounds: where each stretch of documents begins, and where the last one ends `[stretch + 1]`.
        group: the group of documents to which each stretch belongs `[stretch]`; copies of a text are in one group.
        sizes: tokens that are counted of each document that has any `[document]`; copies of a text are one document.
        copies: how many copies the text of a token has, on average over tokens; 1 if all texts are different.
        shortened: number of documents of which only the first tokens are counted, see `Sample.of`.
        cut: number of their tokens that are not counted.
        max_share: the largest share of the counted tokens that a document may have.
    """

    names: tuple[str, ...]
    kind: NDArray[np.int32]
    kinds: TokenKinds
    bounds: Ints
    group: Ints
    sizes: Ints
    copies: float
    shortened: int
    cut: int
    max_share: float

    @property
    def documents(self) -> int:
        """Number of documents with a token that is counted; copies of a text are one document."""
        return len(self.sizes)

    @classmethod
    def of(
        cls,
        blocks: Iterable[TokenBlock],
        names: Sequence[str],
        given: Sequence[Sequence[str]] = (),
        groups: int = MAX_GROUPS,
        texts: Ints | None = None,
        max_share: float = 1.0,
    ) -> Sample:
        """Read all blocks.

        Args:
            blocks: the tokens, block by block.
            names: names of the labels.
            given: stratifications, each by some of the controls.
            groups: the largest number of groups of documents.
            texts: number of the text of each document, by the number of the document `[document]`. Documents of one
                text are copies and count as one document. None if all texts are different.
            max_share: the largest share of the counted tokens that a document may have, or that two documents of
                average length have, whichever is larger. Of a longer document, only the first tokens are counted, and
                of copies the first tokens of each.
        """
        controls = {name: _Numbering() for by in given for name in by}
        patterns, combinations = _Numbering(), _Numbering()
        kind, documents = [np.zeros(0, np.int32)], [np.zeros((3, 0), np.int64)]
        for block in blocks:
            keep = slice(None) if block.keep.all() else block.keep
            columns = [patterns(np.packbits(block.labels[keep], axis=1))]
            columns += [numbering(block.controls[name][keep]) for name, numbering in controls.items()]
            kind.append(np.full(len(block.docs), -1, np.int32))
            kind[-1][keep] = combinations(np.stack(columns, axis=1))
            docs, index = distinct(block.docs)
            counted = np.bincount(index, block.keep).astype(np.int64)
            documents.append(np.stack([docs, np.bincount(index), counted]))
        pattern, *codes = combinations.rows(1 + len(controls), np.int64).T
        labels = patterns.rows(-(-len(names) // 8), np.uint8)
        labels = np.unpackbits(labels, axis=1, count=len(names)).astype(bool)[pattern]
        strata = [_strata(by, dict(zip(controls, codes, strict=True)), len(pattern)) for by in given]
        kinds, of_combination = TokenKinds.of(labels, strata)
        docs, *sizes = np.concatenate(documents, axis=1)
        docs, document = distinct(docs)
        size, counted = (np.bincount(document, n).astype(np.int64) for n in sizes)
        text = distinct(docs if texts is None else texts[docs])[1]
        of_token = np.append(of_combination, -1).astype(np.int32)[np.concatenate(kind)]
        of_text = np.bincount(text, counted).astype(np.int64)
        max_share = max(max_share, 2 / max((of_text > 0).sum(), 1))
        most = _largest_size(of_text[of_text > 0], max_share)
        long = np.flatnonzero(of_text > most)
        cut = _tokens_beyond(of_token, size, [np.flatnonzero(text == number) for number in long], most)
        of_token[cut] = -1
        counted -= np.bincount(np.searchsorted(np.cumsum(size), cut, "right"), minlength=len(size))
        of_text = np.bincount(text, counted).astype(np.int64)
        copies = np.bincount(text[counted > 0], minlength=len(of_text))
        bounds, group = document_groups(size, counted, groups, text)
        return cls(
            names=tuple(names),
            kind=of_token,
            kinds=kinds,
            bounds=bounds,
            group=group,
            sizes=of_text[of_text > 0],
            copies=float((of_text * copies).sum() / of_text.sum()) if of_text.any() else 1.0,
            shortened=len(long),
            cut=len(cut),
            max_share=float(min(max_share, 1)),
        )

    def count(self, parts: Iterable[RoutePart], n_experts: int, layers: Sequence[int]) -> RouteTables:
        """Count routes in one pass over `parts`, summed over processes."""
        tables = tabulate(parts, self.kind, self.bounds, self.kinds, n_experts, len(layers), self.group)
        return tables.over_processes()

    def counts(self, tables: RouteTables, layers: Sequence[int], top_k: int) -> Counts:
        """Return the part of `tables` that adds up from one corpus to another."""
        return Counts(
            cells=tables.cells,
            experts=tables.experts,
            labels=tables.kind_tokens @ self.kinds.labels,
            tokens=tables.kind_tokens.sum(1),
            names=self.names,
            layers=tuple(map(int, layers)),
            top_k=top_k,
        )

    def by_combination(self) -> Sample:
        """Return the sample with the combinations of labels as labels, of which each token has exactly one."""
        names, labels = label_combinations(self.kinds.labels, self.names)
        return replace(self, names=names, kinds=TokenKinds(labels, self.kinds.strata))

    def own_rows(self) -> slice:
        """Return the tokens that this process counts: whole stretches, with about as many tokens in each process."""
        rank, size = rank_and_size()
        stretches = len(self.group)
        return slice(int(self.bounds[stretches * rank // size]), int(self.bounds[stretches * (rank + 1) // size]))

    def label_matrix(self, rows: slice) -> Bools:
        """Return the labels of these tokens `[token, label]`; tokens that are left out have none."""
        return np.asarray(self.kinds.labels[self.kind[rows]] & (self.kind[rows] >= 0)[:, None])


def _largest_size(sizes: Ints, max_share: float) -> int:
    """Return the number of tokens to which documents are shortened so that none has more than `max_share`.

    >>> _largest_size(np.array([900, 50, 50, 50, 50]), 0.5)
    200
    """
    rest = int(sizes.sum())
    for shortened, size in enumerate(np.sort(sizes)[::-1].tolist()):
        if shortened * max_share < 1 and size <= (most := max_share * rest / (1 - shortened * max_share) + 1e-9):
            return int(most)
        rest -= size
    return int(sizes.max(initial=0))


def _tokens_beyond(kind: NDArray[np.integer], sizes: Ints, copies: Sequence[Ints], most: int) -> Ints:
    """Return the tokens that shorten each text to its first `most` tokens, taken alike from all its copies.

    Args:
        kind: kind of each token, −1 where it is not counted `[token]`.
        sizes: tokens of each document `[document]`.
        copies: the documents of each text that is too long.
        most: the number of tokens that are left of each.

    >>> _tokens_beyond(np.array([0, 0, 0, 5, 0, -1, 0]), np.array([3, 1, 3]), [np.array([0, 2])], 3).tolist()
    [6, 2]
    """
    ends, cut = np.cumsum(sizes), [np.zeros(0, np.int64)]
    for documents in copies:
        starts = ends[documents] - sizes[documents]
        counted = [at + np.flatnonzero(kind[at : at + n] >= 0) for at, n in zip(starts, sizes[documents], strict=True)]
        place = np.concatenate([np.arange(len(tokens)) for tokens in counted])
        cut.append(np.concatenate(counted)[np.argsort(place, kind="stable")[most:]])
    return np.concatenate(cut)


class _Numbering:
    """Numbers distinct rows from 0; equal rows get the same number in every call.

    >>> numbering = _Numbering()
    >>> numbering(np.array([[7, 1], [7, 0], [7, 1]])).tolist(), numbering(np.array([[5, 5], [7, 0]])).tolist()
    ([1, 0, 1], [2, 0])
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def __call__(self, rows: NDArray[np.integer]) -> Ints:
        """Return the number of each of `rows` `[row, column]`, as `[row]`."""
        place = np.zeros(len(rows), np.int64)
        for column in rows.T:
            values, code = distinct(column)
            place = distinct(place * max(len(values), 1) + code)[1]
        first = np.zeros(int(place.max(initial=-1)) + 1, np.int64)
        first[place] = np.arange(len(rows))  # any of the equal rows will do
        keys = (row.tobytes() for row in rows[first])
        return np.array([self._numbers.setdefault(key, len(self._numbers)) for key in keys], np.int64)[place]

    def rows(self, columns: int, dtype: Any) -> NDArray[Any]:
        """Return the distinct rows `[number, column]`."""
        return np.frombuffer(b"".join(self._numbers), dtype).reshape(len(self._numbers), columns)


def token_blocks(
    recording: Recording, labels: LabelFamilies | None, family: str, given: Sequence[str] = (), text: bool = True
) -> Iterator[TokenBlock]:
    """Yield the tokens of a recording, one shard at a time.

    Args:
        recording: the recording.
        labels: its labels; None for tokens without labels and controls.
        family: the family of labels.
        given: the controls: "token", "position", families of `labels` and columns of the corpus, see `controls_of`.
        text: leave out tokens without text, which are the tokenizer's special tokens.

    Raises:
        RecordingError: the characters of the tokens, which tell those without text, are not known.
    """
    if text:
        require_alignment(recording)
    columns = {"token": "token_id", "position": "pos"}
    names = ["doc", "char_start", "char_end", *(columns[name] for name in given if name in columns)]
    known = () if labels is None else labels.families
    of_corpus = {name: _document_codes(recording, name) for name in given if name not in (*columns, *known)}
    for rows, arrays in recording.columns(names):
        values = dict(zip(names, arrays, strict=True))
        controls = {}
        for name in given:
            if name == "token":
                controls[name] = values["token_id"][:, None]
            elif name == "position":
                controls[name] = _position_bins(values["pos"])[:, None]
            elif name in of_corpus:
                docs, codes = of_corpus[name]
                controls[name] = codes[np.searchsorted(docs, values["doc"])][:, None]
            elif labels is not None:
                controls[name] = np.packbits(labels.matrix(name, rows)[1], axis=1)
        matrix = np.zeros((len(values["doc"]), 0), bool) if labels is None else labels.matrix(family, rows)[1]
        keep = values["char_end"] > values["char_start"] if text else np.ones(len(values["doc"]), bool)
        yield TokenBlock(values["doc"], keep, np.asarray(matrix, bool), controls)


def label_names(recording: Recording, labels: LabelFamilies, family: str) -> tuple[str, ...]:
    """Return the names of a family of labels.

    Raises:
        UnknownNameError: there is no such family.
        RecordingError: the labels belong to another recording.
    """
    if family not in labels.families:
        raise unknown("label family", family, labels.families)
    labelled, own = getattr(labels, "path", None), getattr(recording, "folder", None)
    if labelled is not None and own is not None and labelled.parent.resolve() != Path(own.location).resolve():
        raise RecordingError(
            f"expected labels of recording '{own.location}', got labels of '{labelled.parent}'; "
            "label this recording with moelens.label(recording) (moelens label)"
        )
    names, last = labels.matrix(family, slice(recording.n_tokens - 1, None))
    if len(last) != 1:
        raise RecordingError(
            f"expected labels of {recording.n_tokens} tokens, as in the recording, got labels of "
            f"{len(labels.matrix(family)[1])}; label the recording again with moelens.label(recording) (moelens label)"
        )
    return tuple(names)


def controls_of(recording: Recording, labels: LabelFamilies, family: str) -> tuple[str, ...]:
    """Return the controls of a recording: "token", "position", families of labels, and columns of its corpus.

    A column with the name of a family is called "corpus.NAME".
    """
    families = ("token", "position", *labels.families)
    columns = (f"corpus.{name}" if name in families else name for name in getattr(recording, "metadata", ()))
    return (*(name for name in families if name != family), *columns)


def _document_codes(recording: Recording, control: str) -> tuple[Ints, Ints]:
    """Return the documents of a recording in ascending order, and the code of each in a column of the corpus."""
    name = control if control in recording.metadata else control.removeprefix("corpus.")
    table = recording.documents(["doc", name])
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(repr(value), len(numbers)) for value in table[name].to_pylist()], np.int64)
    docs = table["doc"].to_numpy()
    order = np.argsort(docs, kind="stable")
    return docs[order], codes[order]


def control_names(given: Given, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return what to compare within as a tuple of names.

    Raises:
        UnknownNameError: a name is not among `allowed`.
    """
    names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if name not in allowed:
            raise unknown("control", name, allowed, "given=")
    return names


def _strata(given: Sequence[str], codes: Mapping[str, ArrayLike], n_tokens: int) -> Ints:
    """Number each combination of the given controls, whose `codes` are each `[token]`; return `[token]`."""
    stratum = np.zeros(n_tokens, np.int64)
    for name in given:
        values = distinct(np.asarray(codes[name]))[1]
        stratum = distinct(stratum * (int(values.max(initial=0)) + 1) + values)[1]
    return stratum


def _position_bins(position: NDArray[np.integer]) -> Ints:
    """Return positions in a document in bins that double in size: 0, 1, 2–3, 4–7, …

    >>> _position_bins(np.array([0, 1, 2, 3, 4, 7, 8])).tolist()
    [0, 1, 2, 2, 3, 3, 4]
    """
    return np.asarray(np.frexp(position)[1], np.int64)


def sample_of(*recordings: Recording) -> dict[str, Any]:
    """Return how many documents of how many were drawn, under "sample", if some recording is a sample."""
    drawn = [about for about in (recording.manifest.get("sample") for recording in recordings) if about]
    if not drawn:
        return {}
    documents, of = sum(r.n_documents for r in recordings), sum(r.whole.n_documents for r in recordings)
    return {"sample": {"documents": documents, "of": of, "seed": drawn[0]["seed"]}}


def provenance_of(recording: Recording, labels: LabelFamilies | None = None) -> dict[str, Any]:
    """Return where a result is from: model, recording, labels and version, as JSON values."""
    manifest = recording.manifest
    model, shape = manifest.get("model", ""), manifest.get("shape", {})
    about = getattr(labels, "metadata", {})
    repeats = recording.text_groups if hasattr(recording, "text_groups") else None
    repeated = (repeats.copies, repeats.near, repeats.repeated) if repeats else (None, None, None)
    return {
        "model": str(model.get("name", "") if isinstance(model, Mapping) else model),
        "recording": str(recording.folder.location) if hasattr(recording, "folder") else "",
        "labels": ", ".join(f"{key} {value}" for key, value in about.items()),
        "moelens": __version__,
        "n_tokens": manifest.get("n_tokens"),
        **sample_of(recording),
        "n_groups": shape.get("n_groups") if isinstance(shape, Mapping) else None,
        **dict(zip(REPEATS, repeated, strict=True)),
    }
