"""Labels: which morphology, functions, honorifics, references and register each token of a recording belongs to."""

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
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moelens.display import Displayed
from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.japanese.families import COLUMNS, FAMILIES, FILES, Bools, character_labels
from moelens.japanese.morphology import Analyser, provenance
from moelens.japanese.rules import rulebook

Policy = Literal["last", "any", "majority"]
Ints = npt.NDArray[np.int32]

_WORDS = ("pos1", "pos2", "pos3", "pos4", "ctype", "cform", "lemma", "lemma_reading")
_HONORIFIC = ("rule", "plain", "readings")
_CHUNK = 100_000  # characters that are labelled together
_POSITION = COLUMNS.index("position.begin")


class _Recording(Protocol):
    """What labelling needs of a recording."""

    @property
    def path(self) -> Path: ...
    @property
    def n_tokens(self) -> int: ...
    def columns(self, names: Sequence[str]) -> Iterator[tuple[slice, list[Ints]]]: ...
    def texts(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class Labels(Displayed):
    """The labels of a recording on disk; `create` writes them, `open` finds them again."""

    path: Path

    def __repr__(self) -> str:
        made = self.metadata
        about = ", ".join(
            f"{name} {made[name]}" for name in ("analyser", "dictionary", "rules", "policy") if name in made
        )
        return f"Labels('{self.path}': {', '.join(self.families)}; {about})"

    @classmethod
    def open(cls, recording: _Recording) -> Labels:
        """The labels written for `recording`; raises `RecordingError` if there are none, or not one row a token."""
        path = Path(recording.path) / "labels"
        missing = [name for name in FILES if not (path / f"{name}.parquet").exists()]
        if missing:
            raise RecordingError(f"no {missing[0]}.parquet in {path}; write it with moelens.label(recording)")
        rows, tokens = pq.read_metadata(path / "honorifics.parquet").num_rows, recording.n_tokens
        if rows != tokens:
            raise RecordingError(
                f"{path} has {rows} rows for {tokens} tokens; write it again with moelens.label(recording)"
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

        A token may cover several morphemes, or a part of one. White space between morphemes does not count, and
        special tokens, which cover no characters, have no label.

        Writes one Parquet file for each of morphology, function, honorifics, reference and register to `labels/`: a
        row for each token, a column for each label (`pos.名詞`, `honorifics.尊敬語`). Beside them are, for the last
        character of the token, the levels of the part of speech, conjugation, lemma and its reading, the rule that
        found the honorific, what would be said without it and, where that is not certain, its possible readings
        (尊敬・可能・受身, the likeliest first).

        Args:
            recording: whose tokens are labelled.
            policy: when a token has a label. "last": its last character has it (for a causal model, the label is
                known once the morpheme is complete); "any": one of its characters has it; "majority": more than half
                of them have it.
            analyser: "fugashi" or "sudachi".
            processes: that share the work. None for as many as there are cores, but one in a script: a process begins
                by importing the script, so ask for several from under `if __name__ == "__main__":`.

        Raises:
            UnknownNameError: no such policy or analyser.
            MoeLensError: fewer than one process.
        """
        for kind, value, allowed in (("label policy", policy, Policy), ("analyser", analyser, Analyser)):
            if value not in get_args(allowed):
                raise unknown(kind, value, get_args(allowed))
        if processes is not None and processes < 1:
            raise MoeLensError(f"processes={processes}; allowed: 1 or more, or None")
        jobs = ((group, policy, analyser) for group in _groups(_documents(recording)))
        tables = _labelled(jobs, processes or _cores())
        facts = {
            **provenance(analyser),
            "rules": rulebook().version,
            "policy": policy,
            "alignment": _alignment(recording),
        }
        return _write(Path(recording.path) / "labels", tables, facts)

    @classmethod
    def open_or_create(cls, recording: _Recording) -> Labels:
        """The labels in the recording's folder; created first where there are none that fit."""
        try:
            return cls.open(recording)
        except RecordingError:
            return cls.create(recording)

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(FAMILIES)

    @property
    def metadata(self) -> dict[str, str]:
        """Analyser, dictionary, version of the rules, policy, and how the tokens were aligned."""
        stored = pq.read_schema(self.path / "honorifics.parquet").metadata
        return {k.decode().removeprefix("moelens."): v.decode() for k, v in stored.items() if k.startswith(b"moelens.")}

    def matrix(self, family: str, rows: slice | None = None) -> tuple[tuple[str, ...], Bools]:
        """The names of a family and, for each token in row order, which of them it has: bool `[token, label]`.

        With `rows` only these tokens, and no more is read than the row groups that hold them.

        A token may have several labels (お…いたす is 謙譲語I and 謙譲語II at once) or none (special tokens).
        Raises `UnknownNameError` for a family that is not one of `families`.
        """
        if family not in FAMILIES:
            raise unknown("label family", family, FAMILIES)
        names = FAMILIES[family]
        table = self.table(family, [f"{family}.{name}" for name in names], rows)
        return names, np.stack([column.to_numpy() for column in table.columns]).T  # many times faster than axis=1

    def table(self, family: str, columns: list[str] | None = None, rows: slice | None = None) -> Any:
        """The columns of the file that holds a family, or these of them, of all tokens or these, as an Arrow table."""
        path = self.path / f"{next(file for file, held in FILES.items() if family in held)}.parquet"
        if rows is None:
            return pq.read_table(path, columns=columns)
        with pq.ParquetFile(path) as file:
            start, stop, _ = rows.indices(file.metadata.num_rows)
            ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
            first, last = np.searchsorted(ends, [start, stop], side="right")
            groups = range(first, min(last + 1, file.num_row_groups))
            before = int(ends[first - 1]) if first else 0
            return file.read_row_groups(list(groups), columns).slice(start - before, max(stop - start, 0))


def _cores() -> int:
    """Processes to use unasked: in a script one, since starting more would run it again."""
    return 1 if hasattr(sys.modules["__main__"], "__file__") else os.cpu_count() or 1


Tokens = tuple[str, Ints, Ints]
"""A document's text, and where its tokens begin and end."""
Job = tuple[list[Tokens], Policy, Analyser]


def _documents(recording: _Recording) -> Iterator[Tokens]:
    """The documents that have tokens, one after another."""

    def runs() -> Iterator[tuple[int, Ints, Ints]]:
        for _, (doc, start, end) in recording.columns(["doc", "char_start", "char_end"]):
            edges = np.flatnonzero(np.diff(doc)) + 1
            yield from zip(doc[np.append(0, edges)].tolist(), np.split(start, edges), np.split(end, edges), strict=True)

    texts = enumerate(recording.texts())
    for doc, parts in groupby(runs(), key=itemgetter(0)):  # a document may go on in the next shard
        _, starts, ends = zip(*parts, strict=True)
        yield next(text for number, text in texts if number == doc), np.concatenate(starts), np.concatenate(ends)


def _groups(documents: Iterator[Tokens]) -> Iterator[list[Tokens]]:
    """Documents that are labelled together."""
    group: list[Tokens] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document[0])
        if size >= _CHUNK:
            yield group
            group, size = [], 0
    if group:
        yield group


def _labelled(jobs: Iterator[Job], processes: int) -> Iterator[Any]:
    """A table for each job, in their order; a few jobs are under way at once."""
    first = list(islice(jobs, processes))
    jobs, processes = chain(first, jobs), min(processes, len(first))
    if processes < 2:
        yield from map(_label_documents, jobs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while some := list(islice(jobs, 4 * processes)):
            yield from pool.map(_label_documents, some)


def _label_documents(job: Job) -> Any:
    documents, policy, analyser = job
    return pa.concat_tables([_label_text(*document, policy, analyser) for document in documents])


def _label_text(text: str, start: Ints, end: Ints, policy: Policy, analyser: Analyser) -> Any:
    labels = character_labels(text, analyser)
    has = on_tokens(labels.has, start, end, policy, labels.morpheme >= 0)
    last = last_characters(labels.morpheme >= 0, start, end)
    words = [labels.morphemes[labels.morpheme[i]] if i >= 0 else None for i in last]
    spans = [labels.honorific[i] if i >= 0 else None for i in last]
    for row, m in enumerate(words):
        if m is not None:
            begins, ends = start[row] <= m.start, end[row] >= m.end
            has[row, _POSITION + (3 if begins and ends else 0 if begins else 2 if ends else 1)] = True
    told = {
        **{f"pos{i + 1}": [m.pos[i] if m else "" for m in words] for i in range(4)},
        **{name: [getattr(m, name) if m else "" for m in words] for name in _WORDS[4:]},
        "rule": [span.rule if span else "" for span in spans],
        "plain": ["・".join(span.plain) if span else "" for span in spans],
        "readings": ["・".join(span.readings) if span else "" for span in spans],
    }
    return pa.table(
        {column: has[:, i] for i, column in enumerate(COLUMNS)} | {k: pa.array(v, pa.string()) for k, v in told.items()}
    )


def _empty() -> Any:
    nothing = np.zeros(0, np.int32)
    return _label_text("", nothing, nothing, "last", "fugashi")


def last_characters(inside: Bools, start: Ints, end: Ints) -> npt.NDArray[np.int64]:
    """For each token `[token]` the place of its last character that a morpheme holds, or -1."""
    if not len(inside):
        return np.full(len(start), -1, dtype=np.int64)
    place = np.maximum.accumulate(np.where(inside, np.arange(len(inside)), -1))[np.maximum(end - 1, 0)]
    return np.where((place >= start) & (end > start), place, -1)


def on_tokens(characters: Bools, start: Ints, end: Ints, policy: Policy = "last", inside: Bools | None = None) -> Bools:
    """From bool `[character, label]` to bool `[token, label]`, by the policies of `label`.

    `inside` `[character]` says which characters a morpheme holds (by default those with a label).
    """
    if not len(characters):
        return np.zeros((len(start), characters.shape[1]), dtype=np.bool_)
    inside = np.asarray(characters.any(axis=1)) if inside is None else inside
    if policy == "last":
        place = last_characters(inside, start, end)
        return np.asarray(characters[place] & (place >= 0)[:, None])
    summed = np.concatenate(
        [np.zeros((1, characters.shape[1]), np.int64), np.cumsum(characters & inside[:, None], axis=0)]
    )
    counts = summed[end] - summed[start]
    if policy == "any":
        return np.asarray(counts > 0)
    lengths = np.concatenate([[0], np.cumsum(inside)])
    return np.asarray(2 * counts > (lengths[end] - lengths[start])[:, None])


def _alignment(recording: _Recording) -> str:
    """How the tokens' characters were found, of how many documents, as the recording says."""
    manifest = getattr(recording, "manifest", {})
    methods = manifest.get("tokenizer", {}).get("documents_by_spans", {})
    return ", ".join(f"{method}: {n}" for method, n in sorted(methods.items())) or "unknown"


def _write(folder: Path, tables: Iterator[Any], facts: dict[str, str]) -> Labels:
    """Write the tables one after another, each file under another name until all are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {f"moelens.{name}": value for name, value in facts.items()}
    words = {"morphology": _WORDS, "honorifics": _HONORIFIC}
    columns = {
        file: [c for c in COLUMNS if c.partition(".")[0] in held] + list(words.get(file, ()))
        for file, held in FILES.items()
    }
    with ExitStack() as stack:
        schema = _empty().schema.with_metadata(metadata)
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
    for file in FILES:
        os.replace(folder / f".{file}.parquet", folder / f"{file}.parquet")
    return Labels(folder)
