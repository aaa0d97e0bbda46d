"""Reading the files of a recording: each is compared with the manifest and held to its schema when it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.errors import RecordingError, unknown
from moelens.parquet import read_rows
from moelens.recording.captures import TABLES
from moelens.recording.progress import UNCAPTURED
from moelens.recording.storage import Folder
from moelens.recording.value_checks import column_types, text_lengths, wrong_columns, wrong_documents, wrong_values

_CHECKED: set[tuple[object, ...]] = set()  # columns of files whose values were found right
_BATCH = 1 << 16  # rows
_LENGTHS: dict[tuple[object, ...], NDArray[Any]] = {}


@dataclass(frozen=True)
class RecordingFiles:
    """The Parquet files of a recording.

    The checksum of a file and the values of the columns that are read are compared once in a session, and again if the
    file was modified.

    Attributes:
        folder: The folder of the recording.
        manifest: Its manifest.
    """

    folder: Folder
    manifest: Mapping[str, Any]

    @cached_property
    def entries(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The room of each file ("tokens", "documents", "uncaptured" or a table of vectors) and its entry, by name."""
        found = [("tokens", entry) for entry in self.manifest["shards"]]
        found += [(room, entry) for room, entries in self.manifest["tables"].items() for entry in entries]
        found += [(room, self.manifest[room]) for room in ("documents", UNCAPTURED) if self.manifest.get(room)]
        return {entry["path"]: (room, entry) for room, entry in found}

    @contextmanager
    def open(self, name: str) -> Iterator[pq.ParquetFile]:
        """Open a file after comparing its checksum, its rows and its columns with the manifest.

        Raises:
            RecordingError: If it is missing, differs, or cannot be read.
        """
        room, entry = self.entries[name]
        try:
            source = self.folder.source_if_same(name, entry)
            if source is None:
                raise self.error(name, "is damaged: its checksum differs from that in the manifest")
            with pq.ParquetFile(source) as file:
                rows = file.metadata.num_rows
                wrong = f"has {rows} rows instead of {entry['rows']}" if rows != entry["rows"] else ""
                if wrong := wrong or wrong_columns(file.schema_arrow, column_types(self.manifest, room)):
                    raise self.error(name, f"is damaged: it {wrong}")
                yield file
        except FileNotFoundError as error:
            raise self.error(name, "is missing") from error
        except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow raises UnicodeDecodeError too
            reason = " ".join(str(error).split())[:120]
            raise self.error(name, f"is damaged ({reason})") from error

    def read(
        self, name: str, columns: Sequence[str] | None = None, rows: NDArray[np.integer] | None = None
    ) -> pa.Table:
        """Read some or all columns of a file.

        Args:
            name: The file.
            columns: The columns; None for all.
            rows: The rows to read, ascending; None for all.

        Raises:
            UnknownNameError: If there is no such column.
            RecordingError: If the file is missing or damaged, or a value is not as it has to be.
        """
        with self.open(name) as file:
            for column in columns or ():
                if column not in file.schema_arrow.names:
                    raise unknown("column", column, file.schema_arrow.names)
            table = read_rows(file, rows, columns)
            self._check(name, table, -1 if rows is None else 0)
            return table

    def shards(
        self, columns: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield the shards that hold some of a range of tokens, each with the number of its first token.

        Raises:
            UnknownNameError: If there is no such column.
            RecordingError: If a shard is missing or damaged, or a value is not as it has to be.
        """
        row, last = 0, 0
        for entry in self.manifest["shards"]:
            if entry["rows"] and row + entry["rows"] > start and (stop is None or row < stop):
                table = self.read(entry["path"], columns)
                if "doc" in table.schema.names:
                    if (first := table["doc"][0].as_py()) < last:
                        problem = f"is damaged: it begins with document {first}, after document {last}"
                        raise self.error(entry["path"], problem)
                    last = table["doc"][-1].as_py()
                yield row, table
            row += entry["rows"]

    def batches(self, name: str, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield some or all columns of a file, `rows` rows at a time; columns that it does not have are left out.

        Raises:
            RecordingError: If the file is missing or damaged, or a value is not as it has to be.
        """
        with self.open(name) as file:
            first = 0
            for batch in file.iter_batches(rows, columns=columns):
                table = pa.Table.from_batches([batch])
                self._check(name, table, first)
                yield table
                first += len(table)

    def text_lengths(self) -> NDArray[Any] | None:
        """Return the number of characters of each document with what was generated after it; None without texts."""
        documents = self.manifest.get("documents")
        if not documents:
            return None
        key = (self.folder.location, documents["path"], documents["sha256"])
        if key not in _LENGTHS:
            parts = [np.zeros(0, np.int64)]
            for table in self.batches(documents["path"], 1 << 14, ["text", "generated"]):
                parts.append(sum(text_lengths(column.combine_chunks()) for column in table.columns))  # type: ignore[arg-type]
            _LENGTHS.clear()  # of the recording that was in use before
            _LENGTHS[key] = np.concatenate(parts)
        return _LENGTHS[key]

    def _check(self, name: str, table: pa.Table, first: int = -1) -> None:
        """Hold values to the schema; those of whole files once in a session.

        Args:
            name: The file.
            table: Some of its columns.
            first: The number of the first row if the table is a part of the file; −1 if it is the whole.
        """
        room, entry = self.entries[name]
        documents = self.manifest.get("documents") or {}
        state = (self.manifest["n_documents"], self.manifest["shape"]["n_experts"], documents.get("sha256"))
        key = (self.folder.location, name, entry["sha256"], *state, *table.schema.names)
        if room == "documents":
            numbered = "doc" in table.schema.names
            wrong = wrong_documents(table["doc"], max(first, 0)) if numbered else ""
        else:
            wrong = "" if key in _CHECKED else wrong_values(table, self.manifest, self.text_lengths)
        if wrong:
            raise self.error(name, f"is damaged: it {wrong}")
        if first < 0:
            _CHECKED.add(key)

    def require_sizes(self) -> None:
        """Compare the sizes of the local files that exist with the manifest.

        Raises:
            RecordingError: If one differs.
        """
        for name, (_, entry) in self.entries.items() if self.folder.is_local else ():
            try:
                found = os.stat(self.folder.full_path(name)).st_size
            except (OSError, ValueError):  # missing files are named when they are read
                continue
            if found != entry.get("bytes", found):
                raise self.error(name, f"is damaged: it has {found} bytes instead of {entry['bytes']}")

    def damage(self) -> Iterator[RecordingError]:
        """Yield an error for each file that is missing, damaged or not part of the recording."""
        whole = True
        for name, (_, entry) in self.entries.items():
            problem = ""
            if not self.folder.exists(name):
                problem = "is missing"
            elif not self.folder.fs.isfile(self.folder.full_path(name)):
                problem = "is not a file"
            elif self.folder.checksum(name) != entry["sha256"]:
                problem = "is damaged: its SHA-256 differs from that in the manifest"
            if problem:
                whole = False
                yield self.error(name, problem)
        if whole:
            yield from self._wrong_values()
        for name in self.folder.names(".parquet"):
            if name.split("/")[0] in ("tokens", UNCAPTURED, *TABLES) and name not in self.entries:
                yield RecordingError(f"'{name}' is not part of recording '{self.folder.location}'; remove it")

    def _wrong_values(self) -> Iterator[RecordingError]:
        """Yield an error for each file with columns or values that are not as they have to be."""
        reads = [partial(self.batches, name, _BATCH) for name in self.entries]
        found = []
        for read in (*reads, partial(self.shards, ["doc", "pos", "char_start", "char_end"])):
            try:
                for _ in read():
                    pass
            except RecordingError as error:
                found.append(error)
        yield from {str(error): error for error in found}.values()

    def error(self, name: str, problem: str) -> RecordingError:
        """Return the error for a file."""
        return RecordingError(
            f"'{name}' of recording '{self.folder.location}' {problem}; copy it again, or record "
            "again with force=True (--force)"
        )
