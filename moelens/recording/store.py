"""`Recording`: what a model did, read from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.display import Displayed
from moelens.errors import RecordingError, unknown
from moelens.recording.captures import TABLES, index_type
from moelens.recording.progress import MANIFEST, SETTINGS
from moelens.recording.storage import Folder
from moelens.recording.writer import ahead, layer_label

FORMAT = 1


@dataclass(frozen=True, repr=False)
class Recording(Displayed):
    """What a model did over a corpus: a folder of Parquet files, a row a token, in the order of the documents.

    Attributes:
        folder: where it is.
        manifest: how it was made: model, engine, shape, capture, tokenizer, libraries, shards.

    Example:
        >>> recording = Recording.open("runs/demo")  # doctest: +SKIP
        >>> recording.indices().shape                # doctest: +SKIP
        (1432, 4, 4)
    """

    folder: Folder
    manifest: dict[str, Any]

    @classmethod
    def open(cls, where: Recording | str | Path) -> Recording:
        """Open a folder, or an fsspec URL, that `record` wrote; a recording is returned as it is.

        Raises:
            RecordingError: it is something else, there is no recording, one that is not finished, or one of a newer
                moelens.
        """
        if isinstance(where, Recording):
            return where
        if not isinstance(where, (str, Path)):
            what, own = type(where).__name__, [f".{n}()" for n in ("explore", "plot") if hasattr(where, n)]
            hint = f"; a {what} has its own {' and '.join(own)}" if own else ""
            raise RecordingError(f"a {what} is no recording; allowed: a recording or the folder of one{hint}")
        folder = Folder.at(where)
        try:
            manifest = folder.read_json(MANIFEST)
            version = int(manifest["format"])
        except (FileNotFoundError, NotADirectoryError) as error:
            if folder.exists(SETTINGS):
                what = "is a recording that is not finished: repeat the command that began it, and it goes on"
                raise RecordingError(f"'{where}' {what}") from error
            raise RecordingError(
                f"'{where}' is not a recording: it has no {MANIFEST}; make one with moelens.record(model, corpus, out)"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise RecordingError(
                f"'{Path(where) / MANIFEST}' is damaged ({error!r}); record again with force=True"
            ) from error
        if version > FORMAT:
            raise RecordingError(
                f"'{where}' is in format {version}, of moelens {manifest.get('moelens')}, and this moelens reads up to"
                f" format {FORMAT}; upgrade with pip install -U moelens"
            )
        return cls(folder, manifest)

    @property
    def path(self) -> Path:
        """The folder, of a recording on this machine.

        Raises:
            RecordingError: it is behind a URL.
        """
        if not self.folder.local:
            raise RecordingError(f"'{self.folder.where}' is not a local folder; copy it to one for this")
        return Path(self.folder.where)

    @property
    def n_tokens(self) -> int:
        return int(self.manifest["n_tokens"])

    @property
    def n_documents(self) -> int:
        return int(self.manifest["n_documents"])

    @property
    def layers(self) -> tuple[int, ...]:
        """The recorded layers with experts, in the order of `indices()` and `weights()`."""
        recorded = self.manifest["capture"]["layers"]
        return tuple(layer for layer in self.manifest["shape"]["moe_layers"] if layer in recorded)

    @property
    def captures(self) -> tuple[str, ...]:
        """The captures as they were asked for, each with its parameter."""
        return tuple(self.manifest["capture"]["captures"])

    @property
    def n_experts(self) -> int:
        return int(self.manifest["shape"]["n_experts"])

    @property
    def top_k(self) -> int:
        return int(self.manifest["shape"]["top_k"])

    def tokens(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of the tokens, or these columns of them.

        Raises:
            UnknownNameError: no such column.
            RecordingError: a shard is missing or damaged.
        """
        return pa.concat_tables(self._shards(columns))

    def documents(self) -> pa.Table:
        """`doc`, `text` and the metadata, a row a document.

        Raises:
            RecordingError: the texts are not known, as of routes that another engine returned.
        """
        return self._read(self._documents_path(), None)

    def texts(self) -> Iterator[str]:
        """The text of each document with what the model wrote after it, a few documents in memory at a time.

        Raises:
            RecordingError: the texts are not known, or their file is missing or damaged.
        """
        with self._reading(self._documents_path()) as source, pq.ParquetFile(source) as file:
            names = [name for name in ("text", "generated") if name in file.schema_arrow.names]
            for batch in file.iter_batches(256, columns=names):
                for parts in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield "".join(part or "" for part in parts)

    def _documents_path(self) -> str:
        if not self.manifest["documents"]:
            raise RecordingError(f"'{self.folder.where}' has no documents; import its routes again with the texts")
        return str(self.manifest["documents"]["path"])

    def column(self, name: str) -> NDArray[Any]:
        """One column of the tokens, `[token]` or, of experts and weights, `[token, slot]`."""
        return np.concatenate([values for _, (values,) in self.columns([name])])

    def indices(self) -> NDArray[np.unsignedinteger[Any]]:
        """The chosen experts, `[token, layer, slot]`, uint8 (uint16 for more than 256 experts).

        Raises:
            RecordingError: the routes were not recorded.
        """
        return self._routes("experts", np.dtype(index_type(self.n_experts)))

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
        """The chosen experts of these tokens, a shard at a time: which tokens, and `[token, slot]` for each layer.

        Raises:
            RecordingError: the routes were not recorded.
        """
        return self.columns(self._route_columns("experts"), start, stop)

    def columns(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
        """These columns of these tokens, a shard at a time, as `column` gives them; first which tokens they are of.

        Shards that hold none of them are not read; the next one is read while the one before it is used.

        Raises:
            UnknownNameError: no such column.
            RecordingError: a shard is missing or damaged.
        """
        return ahead(self._columns(names, start, self.n_tokens if stop is None else stop))

    def _columns(self, names: Sequence[str], start: int, stop: int) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
        row = 0
        for entry in self.manifest["shards"]:
            first, last = max(start - row, 0), min(entry["rows"], stop - row)
            if first < last:
                table = self._read(entry["path"], names).slice(first, last - first)
                yield slice(row + first, row + last), [as_array(table[name]) for name in names]
            row += entry["rows"]

    def weights(self) -> NDArray[np.float32]:
        """Their routing weights, `[token, layer, slot]`, float32 (rounded to float16 on disk).

        Raises:
            RecordingError: the routes were not recorded, or without weights.
        """
        if not self.manifest["capture"].get("weights", True):
            raise RecordingError(f"'{self.folder.where}' holds experts without weights; its engine returned none")
        return self._routes("weights", np.dtype(np.float32))

    def vectors(self, capture: str, layer: int, experts: Sequence[int] | None = None) -> pa.Table:
        """Rows of `logits`, `neurons`, `expert_outputs`, `shared` or `residuals` in one layer, in document order.

        Args:
            capture: the name, without parameters.
            layer: the layer.
            experts: of `neurons` and `expert_outputs`, only rows of these.

        Returns:
            `doc`, `pos`, `layer`, for experts `slot` and `expert`, and `values`; `as_array` makes arrays of columns.

        Raises:
            UnknownNameError: it was not recorded, or not of this layer.
            RecordingError: a shard is missing or damaged.
        """
        tables = self.manifest["tables"]
        if capture not in tables:
            raise unknown("vectors", capture, tables, f"'{self.folder.where}' holds {', '.join(self.captures)}")
        if layer not in self.manifest["capture"]["layers"]:
            raise unknown("layer", layer, self.manifest["capture"]["layers"])
        wanted = [("layer", "==", layer)]
        if experts is not None:
            wanted.append(("expert", "in", list(experts)))  # type: ignore[arg-type]
        found = []
        for entry in self.vector_entries(capture, [layer]):
            with self._reading(entry["path"]) as source:
                found.append(pq.read_table(source, filters=wanted, partitioning=None))
        return pa.concat_tables(found)

    def vector_parts(self, capture: str, layer: int, rows: int = 8192) -> Iterator[pa.Table]:
        """What `vectors` gives of a capture that the recording holds, in order, from at most `rows` rows at a time."""
        for entry in self.vector_entries(capture, [layer]):
            with self._reading(entry["path"]) as source, pq.ParquetFile(source) as file:
                for batch in file.iter_batches(rows):
                    table = pa.Table.from_batches([batch])
                    if (part := table.filter(pc.equal(table["layer"], layer))).num_rows:
                        yield part

    def vector_entries(self, capture: str, layers: Sequence[int]) -> list[dict[str, Any]]:
        """What the manifest says of each file of vectors that may hold rows of these layers."""
        tables: list[dict[str, Any]] = self.manifest["tables"][capture]
        return [entry for entry in tables if entry.get("layer") in (None, *layers)]

    def damage(self) -> list[str]:
        """Every file that is missing, is not of the recording, or whose contents or rows are not the recorded ones."""
        return [str(error) for error in self._damages()]

    def verify(self) -> None:
        """Compare every file with what the manifest says of it.

        Raises:
            RecordingError: the first file that is missing, or whose contents or rows are not the recorded ones.
        """
        for error in self._damages():
            raise error

    def entries(self) -> list[dict[str, Any]]:
        """What the manifest says of each file: `path`, `rows`, `sha256`."""
        tables = [entry for shards in self.manifest["tables"].values() for entry in shards]
        documents = [self.manifest["documents"]] if self.manifest["documents"] else []
        return [*self.manifest["shards"], *tables, *documents]

    def _damages(self) -> Iterator[RecordingError]:
        for entry in self.entries():
            name = entry["path"]
            if not self.folder.exists(name):
                yield self._damaged(name, "is missing")
            elif self.folder.checksum(name) != entry["sha256"]:
                yield self._damaged(name, "is damaged: its sha256 is not the recorded one")
            elif (rows := pq.read_metadata(self.folder.source(name)).num_rows) != entry["rows"]:
                yield self._damaged(name, f"has {rows} rows, not {entry['rows']}")
        ours = {entry["path"] for entry in self.entries()}
        for name in self.folder.names(".parquet"):
            if name.split("/")[0] in ("tokens", *TABLES) and name not in ours:
                yield RecordingError(f"'{name}' is not of recording '{self.folder.where}'; remove it")

    def _route_columns(self, kind: str) -> list[str]:
        if "routes" not in self.captures:
            raise RecordingError(
                f"'{self.folder.where}' holds {', '.join(self.captures)} and no routes; record with capture='routes'"
            )
        return [f"{kind}_{layer_label(layer)}" for layer in self.layers]

    def _routes(self, kind: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        names = self._route_columns(kind)
        routes = np.empty((self.n_tokens, len(names), self.top_k), dtype)
        row = 0
        for table in self._shards(names):
            for i, name in enumerate(names):
                routes[row : row + len(table), i] = as_array(table[name])
            row += len(table)
        return routes

    def shard(self, name: str) -> pa.Table:
        """All columns of one of the manifest's shards."""
        return self._read(name, None)

    def _shards(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        return (self._read(entry["path"], columns) for entry in self.manifest["shards"])

    def _read(self, name: str, columns: Sequence[str] | None) -> pa.Table:
        with self._reading(name) as source:
            file = pq.ParquetFile(source)
            for column in columns or ():
                if column not in file.schema_arrow.names:
                    raise unknown("column", column, file.schema_arrow.names)
            return file.read(None if columns is None else list(columns))

    @contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        """A file for pyarrow, and what goes wrong with it said in our words."""
        try:
            yield self.folder.source(name)
        except FileNotFoundError as error:
            raise self._damaged(name, "is missing") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise self._damaged(name, f"is damaged ({str(error).splitlines()[0]})") from error

    def _damaged(self, name: str, what: str) -> RecordingError:
        return RecordingError(
            f"'{name}' of recording '{self.folder.where}' {what}; copy it again, or record again with force=True"
        )

    def __repr__(self) -> str:
        tokens, documents = counted(self.n_tokens, "token"), counted(self.n_documents, "document")
        return (
            f"Recording('{self.folder.where}': {tokens} of {documents}, model {self.manifest['model']['name']!r},"
            f" {counted(len(self.layers), 'MoE layer')}, top {self.top_k} of {self.n_experts} experts)"
        )


@dataclass(frozen=True, repr=False)
class Verification(Displayed):
    """What `verify` found: `damage`, a sentence for each file that is not as it was written."""

    recording: Recording
    damage: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether every file is as it was written."""
        return not self.damage

    def __repr__(self) -> str:
        return "\n".join(self.damage) or (
            f"{self.recording}: {counted(len(self.recording.entries()), 'file')} as they were written"
        )


def verify(recording: Recording | str | Path) -> Verification:
    """Compare every file of a recording with its manifest: that it is there, its SHA-256, its rows, and no other is.

    Args:
        recording: or its folder, or fsspec URL.

    Raises:
        RecordingError: there is no recording, or one that is not finished.

    Example:
        >>> moelens.verify("runs/demo")  # doctest: +SKIP
        Recording('runs/demo': 1,432 tokens of …): 2 files as they were written
    """
    opened = Recording.open(recording)
    return Verification(opened, tuple(opened.damage()))


def counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + "s" * (n != 1)


def as_array(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column's values `[row]`, or `[row, slot]` where they are fixed-size lists."""
    if not pa.types.is_fixed_size_list(column.type):
        values: NDArray[Any] = column.to_numpy()
        return values
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    slots: NDArray[Any] = flat.to_numpy().reshape(-1, column.type.list_size)
    return slots
