"""`Labels`: the morphology, functions, honorifics, references and register of each token of a recording."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moelens.display import Displayed
from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.files import explain_write_errors, lock_folder
from moelens.japanese.families import (
    COLUMNS,
    FAMILIES,
    LABEL_FILES,
    Bools,
    CharacterLabels,
    character_labels,
    family_columns,
)
from moelens.japanese.honorific_spans import HonorificSpan
from moelens.japanese.morphology import Analyser, Morpheme, provenance
from moelens.japanese.rules import rulebook
from moelens.japanese.token_labels import Policy, completed, last_of, policy_in_words, token_labels
from moelens.japanese.turn_labels import turn_families, turn_file, write_turn_labels

_Ints = npt.NDArray[np.int32]

_METADATA = ("analyser", "dictionary", "rules", "policy", "alignment", "normalized")
_CHECKSUMS = "checksums.json"  # SHA-256 of the files, which `verify` compares
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
_HONORIFICS = [*family_columns("honorifics"), COLUMNS.index("honorific_form.ambiguous")]
_TOKENS_OF_CHARACTER = 4  # a character has up to four bytes, and a token one or more
_Document = tuple[str, _Ints, _Ints]  # its text, and the starts and the ends of its tokens, [token]
_Job = tuple[list[_Document], Policy, Analyser]
# Labels of some tokens, bool `[token, column]`, and the last morpheme and honorific of each token.
_TokenLabels = tuple[Bools, list[Morpheme | None], list[HonorificSpan | None]]
_Labelled = tuple[pa.Table, Counter[str]]  # and how many characters were normalised, by kind


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
        labels = cls(path)
        rows = next((n for n in map(labels._rows, LABEL_FILES) if n != recording.n_tokens), recording.n_tokens)
        if rows != recording.n_tokens:
            raise RecordingError(
                f"expected one row of labels per token in '{path}', got {rows} rows and {recording.n_tokens} tokens;"
                " create them again with moelens.label(recording)"
            )
        if labels._metadata_of_file().get("recording", identity := _identity(recording)) != identity:
            raise RecordingError(
                f"expected labels of this recording in '{path}', got those of another recording; create them again with"
                " moelens.label(recording)"
            )
        return labels

    @classmethod
    def create(
        cls,
        recording: _Recording,
        policy: Policy = "ends",
        analyser: Analyser = "fugashi",
        processes: int | None = None,
    ) -> Labels:
        """Analyse the documents of a recording and label each of its tokens.

        A token may cover several morphemes or a part of one. White space between morphemes has no label, nor have
        special tokens, which cover no characters.

        The labels are written to `labels/`, one Parquet file for each of morphology, function, honorifics, reference
        and register, with one row per token and one column per label (`pos.名詞`, `honorifics.尊敬語`). Further columns
        describe the last character of the token: the levels of the part of speech, the conjugation, the lemma and its
        reading; and the honorific that ends in the token (for other policies: that its last character belongs to): the
        rule that found it, its plain equivalents and, if it is ambiguous, its possible readings (尊敬・可能・受身, the
        most likely first).

        Args:
            recording: The recording to label.
            policy: Which labels a token carries. "ends": those of every morpheme and span that ends in it, which a
                causal model knows when it has read the token. "last": those of its last character. "any": those of all
                of its characters. "majority": those of more than half of its characters. See `token_labels`.
            analyser: "fugashi" or "sudachi".
            processes: Number of processes. None uses one per core, or a single one in a script, because each process
                first imports the script; to use more there, call this under `if __name__ == "__main__":`.

        Raises:
            UnknownNameError: If there is no such policy or analyser.
            MoeLensError: If `processes` is less than 1.
            RecordingError: If the characters of the tokens are not known.
        """
        require_alignment(recording)
        in_words = policy_in_words(policy)
        if analyser not in get_args(Analyser):
            raise unknown("analyser", analyser, get_args(Analyser))
        if processes is not None and processes < 1:
            raise MoeLensError(f"expected processes to be None or at least 1, got {processes}; give another number")
        jobs = ((group, policy, analyser) for group in _groups(_documents(recording)))
        tables = _label_groups(jobs, processes or _default_processes())
        metadata = {
            **provenance(analyser),
            "rules": rulebook().version,
            "policy": in_words,
            "alignment": _alignment(recording),
            "recording": _identity(recording),
        }
        labels = _write(Path(recording.path) / "labels", tables, metadata)
        describe = getattr(recording, "describe_labels", None)  # the card of a recording names its labels
        if describe is not None:
            describe(labels.metadata)
        write_turn_labels(recording, labels.path, {f"moelens.{name}": value for name, value in metadata.items()})
        return labels

    @classmethod
    def open_or_create(cls, recording: _Recording) -> Labels:
        """Open the labels of a recording, after creating them if they are missing or do not fit."""
        try:
            return cls.open(recording)
        except RecordingError:
            return cls.create(recording)

    @property
    def families(self) -> tuple[str, ...]:
        """The names of the label families; `role` and `turn` are those of conversations."""
        return (*FAMILIES, *turn_families(self.path))

    @property
    def metadata(self) -> dict[str, str]:
        """How the labels were made.

        The analyser, the dictionary, the version of the rules, the policy in words, the alignment of the tokens, and
        how many characters were normalised for the analyser, by kind (see `moelens.japanese.normalization`).
        """
        stored = self._metadata_of_file()
        return {name: stored[name] for name in _METADATA if name in stored}

    def _metadata_of_file(self) -> dict[str, str]:
        with self._reading("honorifics") as file:
            stored = file.metadata.metadata or {}
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
        families = dict(FAMILIES) | turn_families(self.path)
        if family not in families:
            raise unknown("label family", family, families)
        names = families[family]
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
        name = next((file for file, families in LABEL_FILES.items() if family in families), turn_file(self.path).stem)
        with self._reading(name) as file:
            if rows is None:
                return file.read(columns)
            start, stop, _ = rows.indices(file.metadata.num_rows)
            ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
            first, last = np.searchsorted(ends, [start, stop], side="right")
            groups = range(first, min(last + 1, file.num_row_groups))
            before = int(ends[first - 1]) if first else 0
            return file.read_row_groups(list(groups), columns).slice(start - before, max(stop - start, 0))

    def verify(self) -> None:
        """Read all files, whose pages have checksums, and compare the checksums of whole files.

        Raises:
            RecordingError: If one is missing or damaged.
        """
        for name in LABEL_FILES:
            with self._reading(name) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group)
        if (self.path / _CHECKSUMS).exists():
            for name, checksum in json.loads((self.path / _CHECKSUMS).read_text("utf-8")).items():
                if _sha256(self.path / name) != checksum:
                    raise RecordingError(
                        f"'{self.path / name}' differs from its checksum; create it again with moelens.label(recording)"
                    )

    def _rows(self, name: str) -> int:
        with self._reading(name) as file:
            return int(file.metadata.num_rows)

    @contextmanager
    def _reading(self, name: str) -> Iterator[pq.ParquetFile]:
        """Open one of the files, and replace pyarrow's errors by those of moelens."""
        path = self.path / f"{name}.parquet"
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                yield file
        except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow raises UnicodeDecodeError too
            raise RecordingError(
                f"'{path}' is missing or damaged ({' '.join(str(error).split())[:120]}); create it again with"
                " moelens.label(recording)"
            ) from error


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


def _label_groups(jobs: Iterator[_Job], processes: int) -> Iterator[_Labelled]:
    """Yield the tables of all jobs with the counts of what was normalised, in order.

    A few jobs per process are in memory at a time.
    """
    first = list(islice(jobs, processes))
    jobs, processes = chain(first, jobs), min(processes, len(first))
    if processes < 2:
        yield from chain.from_iterable(map(_label_documents, jobs))
        return
    try:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            while batch := list(islice(jobs, 2 * processes)):
                yield from chain.from_iterable(pool.map(_label_job, batch))
    except BrokenProcessPool as error:
        raise MoeLensError(
            f"expected {processes} processes to label the documents, but one ended early (often for lack of memory);"
            " use processes=1, or divide the longest documents"
        ) from error


def _label_job(job: _Job) -> list[_Labelled]:
    return list(_label_documents(job))


def _label_documents(job: _Job) -> Iterator[_Labelled]:
    """Yield tables with the labels of successive tokens, of about `_TABLE_TOKENS` rows each."""
    documents, policy, analyser = job
    waiting: list[_TokenLabels] = []
    rows = 0
    normalized: Counter[str] = Counter()
    for text, start, end in documents:
        labels = character_labels(text, analyser)
        normalized.update(labels.normalized)
        for first in range(0, len(start), _TABLE_TOKENS):
            tokens = slice(first, first + _TABLE_TOKENS + _TOKENS_OF_CHARACTER)
            part = _label_tokens(labels, start[tokens], end[tokens], policy)
            waiting.append(tuple(values[:_TABLE_TOKENS] for values in part))  # type: ignore[arg-type]
            rows += len(waiting[-1][0])
            if rows >= _TABLE_TOKENS:
                yield _as_table(waiting), normalized
                waiting, rows, normalized = [], 0, Counter()
    if waiting:
        yield _as_table(waiting), normalized


def _label_tokens(labels: CharacterLabels, start: _Ints, end: _Ints, policy: Policy) -> _TokenLabels:
    covering = end > start
    low, high = (int(start[covering].min()), int(end[covering].max())) if covering.any() else (0, 0)
    starts, ends = np.clip(start, low, high) - low, np.clip(end, low, high) - low
    covered = replace(
        labels, **{name: getattr(labels, name)[low:high] for name in ("has", "ends", "morpheme", "honorific")}
    )
    has = token_labels(covered, starts, ends, policy)
    last = last_of(covered.morpheme >= 0, starts, ends)
    words = [labels.morphemes[covered.morpheme[i]] if i >= 0 else None for i in last.tolist()]
    if policy == "ends":
        last = last_of(np.asarray(covered.ends[:, _HONORIFICS].any(axis=1)), starts, completed(starts, ends))
    spans = [covered.honorific[i] if i >= 0 else None for i in last.tolist()]
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


def _identity(recording: _Recording) -> str:
    """Return what tells a recording from others: SHA-256 of the checksums of its tokens and documents."""
    manifest = getattr(recording, "manifest", {})
    entries = [*manifest.get("shards", []), manifest.get("documents") or {}]
    return hashlib.sha256("".join(entry.get("sha256", "") for entry in entries).encode()).hexdigest()


def _write(folder: Path, labelled: Iterator[_Labelled], metadata: dict[str, str]) -> Labels:
    """Write the tables to the files of `labels/`, which get their names only when all of them are complete."""
    unfinished = {file: folder / f".{file}.parquet" for file in LABEL_FILES}
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder):
            try:
                _write_files(unfinished, labelled, {f"moelens.{name}": value for name, value in metadata.items()})
                sums = {f"{file}.parquet": _sha256(path) for file, path in unfinished.items()}
                for file, path in unfinished.items():
                    os.replace(path, folder / f"{file}.parquet")
                (folder / _CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", "utf-8")
            except BaseException:
                for path in unfinished.values():
                    path.unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()
                raise
    return Labels(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_files(paths: dict[str, Path], labelled: Iterator[_Labelled], metadata: dict[str, str]) -> None:
    """Write the columns of each file under its temporary name."""
    details = {"morphology": _WORD_COLUMNS, "honorifics": _HONORIFIC_COLUMNS}
    columns = {
        file: [c for c in COLUMNS if c.partition(".")[0] in families] + list(details.get(file, ()))
        for file, families in LABEL_FILES.items()
    }
    schema, normalized = _schema(), Counter[str]()
    with ExitStack() as stack:
        writers = {
            file: stack.enter_context(
                pq.ParquetWriter(
                    paths[file],
                    pa.schema([schema.field(name) for name in names], metadata=metadata),
                    compression="zstd",
                    write_page_checksum=True,
                )
            )
            for file, names in columns.items()
        }
        for table, counts in labelled:
            normalized.update(counts)
            for file, names in columns.items():
                writers[file].write_table(table.select(names).replace_schema_metadata(metadata))
        counted = ", ".join(f"{kind} {n:,}" for kind, n in sorted(normalized.items())) or "nothing"
        for writer in writers.values():
            writer.add_key_value_metadata({"moelens.normalized": counted})
