"""`Labels`: the morphology, functions, honorifics, references and register of each token of a recording."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moelens.display import Displayed
from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.files import explain_write_errors, lock_folder
from moelens.japanese.families import COLUMNS, FAMILIES, LABEL_FILES, Bools, CharacterLabels, character_labels
from moelens.japanese.honorific_spans import HonorificSpan
from moelens.japanese.morphology import Analyser, Morpheme, provenance
from moelens.japanese.rules import rulebook

Policy = Literal["last", "any", "majority"]
_Ints = npt.NDArray[np.int32]

_WORD_COLUMNS = ("pos1", "pos2", "pos3", "pos4", "ctype", "cform", "lemma", "lemma_reading")
_HONORIFIC_COLUMNS = ("rule", "plain", "readings")
_GROUP_CHARACTERS = 100_000  # of the documents that are labelled together
_TABLE_TOKENS = 1 << 15  # a table of Arrow costs time for each of its columns, so it has the tokens of many documents
_POSITION_COLUMN = {  # by whether the token begins its morpheme, and whether it ends it
    (True, False): COLUMNS.index("position.begin"),
    (False, False): COLUMNS.index("position.inside"),
    (False, True): COLUMNS.index("position.end"),
    (True, True): COLUMNS.index("position.whole"),
}
_Document = tuple[str, _Ints, _Ints]  # its text, and the starts and the ends of its tokens, [token]
_Job = tuple[list[_Document], Policy, Analyser]
# Labels of some tokens, bool `[token, column]`, and the morpheme and the honorific of each token's last character.
_TokenLabels = tuple[Bools, list[Morpheme | None], list[HonorificSpan | None]]


class _Recording(Protocol):
    """The part of `moelens.Recording` that labelling uses."""

    @property
    def path(self) -> Path: ...
    @property
    def n_tokens(self) -> int: ...
    def columns(self, names: Sequence[str]) -> Iterator[tuple[slice, list[_Ints]]]: ...
    def texts(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class Labels(Displayed):
    """The labels of a recording's tokens on disk.

    `moelens.label` creates them, and `Labels.open` opens them again.

    Attributes:
        path: The folder that holds them, `labels/` in the folder of the recording.

    Example:
        >>> labels = Labels.open(demo_recording)
        >>> names, has = labels.matrix("honorifics")
        >>> names, has.shape == (demo_recording.n_tokens, len(names))
        (('尊敬語', '謙譲語I', '謙譲語II', '丁寧語', '美化語'), True)
    """

    path: Path

    def __repr__(self) -> str:
        metadata = self.metadata
        about = ", ".join(
            f"{name} {metadata[name]}" for name in ("analyser", "dictionary", "rules", "policy") if name in metadata
        )
        return f"Labels('{self.path}': {', '.join(self.families)}; {about})"

    @classmethod
    def open(cls, recording: _Recording) -> Labels:
        """Open the labels of a recording.

        Args:
            recording: A recording that was labelled.

        Raises:
            RecordingError: If the labels are missing or do not have one row per token.
        """
        path = Path(recording.path) / "labels"
        missing = [name for name in LABEL_FILES if not (path / f"{name}.parquet").exists()]
        if missing:
            raise RecordingError(
                f"expected labels in '{path}', got no {missing[0]}.parquet; create it with moelens.label(recording)"
            )
        rows = pq.read_metadata(path / "honorifics.parquet").num_rows
        if rows != recording.n_tokens:
            raise RecordingError(
                f"expected one row of labels per token in '{path}', got {rows} rows and {recording.n_tokens} tokens;"
                " create them again with moelens.label(recording)"
            )
        return cls(path)

    @classmethod
    def create(
        cls,
        recording: _Recording,
        policy: Policy = "last",
        analyser: Analyser = "fugashi",
        processes: int | None = None,
    ) -> Labels:
        """Analyse the documents of a recording and label each of its tokens.

        A token may cover several morphemes or a part of one. White space between morphemes has no label, nor have
        special tokens, which cover no characters.

        The labels are written to `labels/`, one Parquet file for each of morphology, function, honorifics, reference
        and register, with one row per token and one column per label (`pos.名詞`, `honorifics.尊敬語`). Further columns
        describe the last character of the token: the levels of the part of speech, the conjugation, the lemma and its
        reading, the rule that found the honorific, its plain equivalents and, if it is ambiguous, its possible
        readings (尊敬・可能・受身, the most likely first).

        Args:
            recording: The recording to label.
            policy: When a token has a label. "last": its last character has it (a causal model knows the label only
                when the morpheme is complete). "any": at least one of its characters has it. "majority": more than
                half of its characters have it.
            analyser: "fugashi" or "sudachi".
            processes: Number of processes. None uses one per core, or a single one in a script, because each process
                first imports the script; to use more there, call this under `if __name__ == "__main__":`.

        Raises:
            UnknownNameError: If there is no such policy or analyser.
            MoeLensError: If `processes` is less than 1.
            RecordingError: If the characters of the tokens are not known.
        """
        require_alignment(recording)
        if policy not in get_args(Policy):
            raise unknown("label policy", policy, get_args(Policy))
        if analyser not in get_args(Analyser):
            raise unknown("analyser", analyser, get_args(Analyser))
        if processes is not None and processes < 1:
            raise MoeLensError(f"expected processes to be None or at least 1, got {processes}; give another number")
        jobs = ((group, policy, analyser) for group in _groups(_documents(recording)))
        tables = _label_groups(jobs, processes or _default_processes())
        metadata = {
            **provenance(analyser),
            "rules": rulebook().version,
            "policy": policy,
            "alignment": _alignment(recording),
        }
        return _write(Path(recording.path) / "labels", tables, metadata)

    @classmethod
    def open_or_create(cls, recording: _Recording) -> Labels:
        """Open the labels of a recording, after creating them if they are missing or do not fit."""
        try:
            return cls.open(recording)
        except RecordingError:
            return cls.create(recording)

    @property
    def families(self) -> tuple[str, ...]:
        """The names of the label families."""
        return tuple(FAMILIES)

    @property
    def metadata(self) -> dict[str, str]:
        """The analyser, the dictionary, the version of the rules, the policy, and the alignment of the tokens."""
        stored = pq.read_schema(self.path / "honorifics.parquet").metadata
        return {k.decode().removeprefix("moelens."): v.decode() for k, v in stored.items() if k.startswith(b"moelens.")}

    def matrix(self, family: str, rows: slice | None = None) -> tuple[tuple[str, ...], Bools]:
        """Return which labels of a family the tokens have.

        A token may have several labels (お…いたす is both 謙譲語I and 謙譲語II) or none (special tokens).

        Args:
            family: One of `families`.
            rows: The tokens to read; None for all. Only the row groups that hold them are read.

        Returns:
            The names of the labels, and a bool array `[token, label]` in the order of the tokens.

        Raises:
            UnknownNameError: If there is no such family.
        """
        if family not in FAMILIES:
            raise unknown("label family", family, FAMILIES)
        names = FAMILIES[family]
        table = self.table(family, [f"{family}.{name}" for name in names], rows)
        return names, np.stack([column.to_numpy() for column in table.columns]).T  # many times faster than axis=1

    def table(self, family: str, columns: list[str] | None = None, rows: slice | None = None) -> pa.Table:
        """Read the file that holds a family.

        Args:
            family: One of `families`.
            columns: The columns to read, such as `lemma`; None for all columns of the file.
            rows: The tokens to read; None for all.

        Returns:
            An Arrow table with one row per token.
        """
        name = next(file for file, families in LABEL_FILES.items() if family in families)
        path = self.path / f"{name}.parquet"
        if rows is None:
            return pq.read_table(path, columns=columns)
        with pq.ParquetFile(path) as file:
            start, stop, _ = rows.indices(file.metadata.num_rows)
            ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
            first, last = np.searchsorted(ends, [start, stop], side="right")
            groups = range(first, min(last + 1, file.num_row_groups))
            before = int(ends[first - 1]) if first else 0
            return file.read_row_groups(list(groups), columns).slice(start - before, max(stop - start, 0))


def _default_processes() -> int:
    """Return one process in a script, which each further process would run again, and otherwise one per core."""
    return 1 if hasattr(sys.modules["__main__"], "__file__") else os.cpu_count() or 1


def _documents(recording: _Recording) -> Iterator[_Document]:
    """Yield the documents that have tokens."""

    def stretches() -> Iterator[tuple[int, _Ints, _Ints]]:
        """Yield successive tokens of one document: its number, their starts and their ends."""
        for _, (doc, start, end) in recording.columns(["doc", "char_start", "char_end"]):
            edges = np.flatnonzero(np.diff(doc)) + 1
            yield from zip(doc[np.append(0, edges)].tolist(), np.split(start, edges), np.split(end, edges), strict=True)

    texts = enumerate(recording.texts())
    for doc, parts in groupby(stretches(), key=itemgetter(0)):  # shards may divide a document
        _, starts, ends = zip(*parts, strict=True)
        yield next(text for number, text in texts if number == doc), np.concatenate(starts), np.concatenate(ends)


def _groups(documents: Iterator[_Document]) -> Iterator[list[_Document]]:
    """Yield documents to be labelled together."""
    group: list[_Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document[0])
        if size >= _GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _label_groups(jobs: Iterator[_Job], processes: int) -> Iterator[pa.Table]:
    """Yield the tables of all jobs, in order; a few jobs per process are in memory at a time."""
    first = list(islice(jobs, processes))
    jobs, processes = chain(first, jobs), min(processes, len(first))
    if processes < 2:
        yield from chain.from_iterable(map(_label_documents, jobs))
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while batch := list(islice(jobs, 2 * processes)):
            yield from chain.from_iterable(pool.map(_label_job, batch))


def _label_job(job: _Job) -> list[pa.Table]:
    return list(_label_documents(job))


def _label_documents(job: _Job) -> Iterator[pa.Table]:
    """Yield tables with the labels of successive tokens, of about `_TABLE_TOKENS` rows each."""
    documents, policy, analyser = job
    waiting: list[_TokenLabels] = []
    rows = 0
    for document in documents:
        for part in _label_document(*document, policy, analyser):
            waiting.append(part)
            rows += len(part[0])
            if rows >= _TABLE_TOKENS:
                yield _as_table(waiting)
                waiting, rows = [], 0
    if waiting:
        yield _as_table(waiting)


def _label_document(text: str, start: _Ints, end: _Ints, policy: Policy, analyser: Analyser) -> Iterator[_TokenLabels]:
    """Yield the labels of at most `_TABLE_TOKENS` tokens of a document at a time."""
    labels = character_labels(text, analyser)
    for first in range(0, len(start), _TABLE_TOKENS):
        part = slice(first, first + _TABLE_TOKENS)
        yield _label_tokens(labels, start[part], end[part], policy)


def _label_tokens(labels: CharacterLabels, start: _Ints, end: _Ints, policy: Policy) -> _TokenLabels:
    covering = end > start
    low, high = (int(start[covering].min()), int(end[covering].max())) if covering.any() else (0, 0)
    starts, ends = np.clip(start, low, high) - low, np.clip(end, low, high) - low
    inside = labels.morpheme[low:high] >= 0
    has = token_labels(labels.has[low:high], starts, ends, policy, inside)
    last = _last_characters(inside, starts, ends)
    words = [labels.morphemes[labels.morpheme[low + i]] if i >= 0 else None for i in last.tolist()]
    spans = [labels.honorific[low + i] if i >= 0 else None for i in last.tolist()]
    for row, m in enumerate(words):
        if m is not None:
            has[row, _POSITION_COLUMN[bool(start[row] <= m.start), bool(end[row] >= m.end)]] = True
    return has, words, spans


def _as_table(parts: Sequence[_TokenLabels]) -> pa.Table:
    """Make one table of the labels of successive tokens."""
    has = np.asfortranarray(np.concatenate([part for part, _, _ in parts]))
    words = [m for _, part, _ in parts for m in part]
    spans = [span for _, _, part in parts for span in part]
    details = {
        **{f"pos{i + 1}": [m.pos[i] if m else "" for m in words] for i in range(4)},
        **{name: [getattr(m, name) if m else "" for m in words] for name in _WORD_COLUMNS[4:]},
        "rule": [span.rule if span else "" for span in spans],
        "plain": ["・".join(span.plain) if span else "" for span in spans],
        "readings": ["・".join(span.readings) if span else "" for span in spans],
    }
    return pa.table(
        {column: has[:, i] for i, column in enumerate(COLUMNS)}
        | {name: pa.array(values, pa.string()) for name, values in details.items()}
    )


def _schema() -> pa.Schema:
    return _as_table([(np.zeros((0, len(COLUMNS)), np.bool_), [], [])]).schema


def _last_characters(inside: Bools, start: _Ints, end: _Ints) -> npt.NDArray[np.int64]:
    """Return for each token the index of its last character in a morpheme, `[token]`, or -1."""
    if not len(inside):
        return np.full(len(start), -1, dtype=np.int64)
    last = np.maximum.accumulate(np.where(inside, np.arange(len(inside)), -1))[np.maximum(end - 1, 0)]
    return np.where((last >= start) & (end > start), last, -1)


def token_labels(
    characters: Bools, start: _Ints, end: _Ints, policy: Policy = "last", inside: Bools | None = None
) -> Bools:
    """Derive the labels of tokens from those of characters.

    Args:
        characters: Labels of the characters of a text, bool `[character, label]`.
        start: Index of the first character of each token, `[token]`.
        end: Index after the last character of each token, `[token]`.
        policy: When a token has a label; see `Labels.create`.
        inside: Which characters belong to a morpheme, bool `[character]`; by default those with a label.

    Returns:
        The labels of the tokens, bool `[token, label]`.

    Example:
        >>> characters = np.array([[True], [False], [False]])
        >>> token_labels(characters, np.array([0, 1]), np.array([1, 3]), "any").tolist()
        [[True], [False]]
    """
    if not len(characters):
        return np.zeros((len(start), characters.shape[1]), dtype=np.bool_)
    inside = np.asarray(characters.any(axis=1)) if inside is None else inside
    if policy == "last":
        last = _last_characters(inside, start, end)
        return np.asarray(characters[last] & (last >= 0)[:, None])
    summed = np.concatenate(
        [np.zeros((1, characters.shape[1]), np.int64), np.cumsum(characters & inside[:, None], axis=0)]
    )
    counts = summed[end] - summed[start]
    if policy == "any":
        return np.asarray(counts > 0)
    lengths = np.concatenate([[0], np.cumsum(inside)])
    return np.asarray(2 * counts > (lengths[end] - lengths[start])[:, None])


def require_alignment(recording: object) -> None:
    """Check that it is known which characters the tokens of a recording stand for, as labels and sentences need.

    Raises:
        RecordingError: If it is not; the message says why.
    """
    manifest = getattr(recording, "manifest", {})
    alignment = manifest.get("alignment", {})
    if alignment.get("unaligned_documents"):
        raise RecordingError(
            f"expected tokens that are aligned with their texts, got a recording of {manifest['corpus']} where those of"
            f" {alignment['unaligned_documents']} of {manifest['n_documents']} documents are not"
            f" ({alignment['reason']}); import the routes again with tokenizer= (--tokenizer) and, if the prompts are"
            " missing, texts= (--texts)"
        )


def _alignment(recording: _Recording) -> str:
    """Return the methods that located the tokens in their texts, with the number of documents for each."""
    manifest = getattr(recording, "manifest", {})
    methods = manifest.get("tokenizer", {}).get("documents_by_spans", {})
    return ", ".join(f"{method}: {n}" for method, n in sorted(methods.items())) or "unknown"


def _write(folder: Path, tables: Iterator[pa.Table], metadata: dict[str, str]) -> Labels:
    """Write the tables to the files of `labels/`, which get their names only when all of them are complete."""
    metadata = {f"moelens.{name}": value for name, value in metadata.items()}
    details = {"morphology": _WORD_COLUMNS, "honorifics": _HONORIFIC_COLUMNS}
    columns = {
        file: [c for c in COLUMNS if c.partition(".")[0] in families] + list(details.get(file, ()))
        for file, families in LABEL_FILES.items()
    }
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder):
            try:
                _write_files(folder, columns, tables, metadata)
                for file in LABEL_FILES:
                    os.replace(folder / f".{file}.parquet", folder / f"{file}.parquet")
            except BaseException:
                for file in LABEL_FILES:
                    (folder / f".{file}.parquet").unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()
                raise
    return Labels(folder)


def _write_files(
    folder: Path, columns: dict[str, list[str]], tables: Iterator[pa.Table], metadata: dict[str, str]
) -> None:
    """Write the columns of each file under a name that begins with a dot."""
    with ExitStack() as stack:
        schema = _schema().with_metadata(metadata)
        writers = {
            file: stack.enter_context(
                pq.ParquetWriter(
                    folder / f".{file}.parquet",
                    pa.schema([schema.field(name) for name in names], metadata=metadata),
                    compression="zstd",
                )
            )
            for file, names in columns.items()
        }
        for table in tables:
            for file, names in columns.items():
                writers[file].write_table(table.select(names).replace_schema_metadata(metadata))
