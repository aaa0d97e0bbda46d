"""`Recording`: what a model did, read from disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.errors import RecordingError, unknown
from moelens.recording.writer import FORMAT, MANIFEST, checksum, index_type, layer_label


@dataclass(frozen=True, repr=False)
class Recording:
    """The routes of a model over a corpus: a folder of Parquet files, a row a token, in the order of the documents.

    Attributes:
        path: the folder.
        manifest: how it was made: model, engine, shape, capture, tokenizer, libraries, shards.

    Example:
        >>> recording = Recording.open("runs/demo")  # doctest: +SKIP
        >>> recording.indices().shape                # doctest: +SKIP
        (1432, 4, 4)
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Recording:
        """Open a folder that `record` wrote.

        Raises:
            RecordingError: there is no recording, or one of a newer moelens.
        """
        path = Path(path)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            version = int(manifest["format"])
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RecordingError(
                f"'{path}' is not a recording: it has no {MANIFEST}; make one with moelens.record(model, corpus, out)"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise RecordingError(f"'{path / MANIFEST}' is damaged ({error!r}); record again with force=True") from error
        if version > FORMAT:
            raise RecordingError(
                f"'{path}' is in format {version}, of moelens {manifest.get('moelens')}, and this moelens reads up to"
                f" format {FORMAT}; upgrade with pip install -U moelens"
            )
        return cls(path, manifest)

    @property
    def n_tokens(self) -> int:
        return int(self.manifest["n_tokens"])

    @property
    def n_documents(self) -> int:
        return int(self.manifest["n_documents"])

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers with experts, in the order of `indices()` and `weights()`."""
        return tuple(self.manifest["shape"]["moe_layers"])

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
        """`doc`, `text` and the metadata, a row a document."""
        return self._read(self.manifest["documents"]["path"], None)

    def column(self, name: str) -> NDArray[Any]:
        """One column of the tokens, `[token]` or, of experts and weights, `[token, slot]`."""
        return np.concatenate([as_array(table[name]) for table in self._shards([name])])

    def indices(self) -> NDArray[np.unsignedinteger[Any]]:
        """The chosen experts, `[token, layer, slot]`, uint8 (uint16 for more than 256 experts)."""
        return self._routes("experts", np.dtype(index_type(self.n_experts)))

    def weights(self) -> NDArray[np.float32]:
        """Their routing weights, `[token, layer, slot]`, float32 (rounded to float16 on disk)."""
        return self._routes("weights", np.dtype(np.float32))

    def verify(self) -> None:
        """Compare every file with what the manifest says of it.

        Raises:
            RecordingError: the first file that is missing, or whose contents or rows are not the recorded ones.
        """
        for entry in (*self.manifest["shards"], self.manifest["documents"]):
            name, path = entry["path"], self.path / entry["path"]
            if not path.is_file():
                raise self._damaged(name, "is missing")
            if checksum(path) != entry["sha256"]:
                raise self._damaged(name, "is damaged: its sha256 is not the recorded one")
            rows = pq.read_metadata(path).num_rows
            if rows != entry["rows"]:
                raise self._damaged(name, f"has {rows} rows, not {entry['rows']}")

    def _routes(self, kind: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        names = [f"{kind}_{layer_label(layer)}" for layer in self.layers]
        routes = np.empty((self.n_tokens, len(names), self.top_k), dtype)
        row = 0
        for table in self._shards(names):
            for i, name in enumerate(names):
                routes[row : row + len(table), i] = as_array(table[name])
            row += len(table)
        return routes

    def _shards(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        return (self._read(entry["path"], columns) for entry in self.manifest["shards"])

    def _read(self, name: str, columns: Sequence[str] | None) -> pa.Table:
        try:
            file = pq.ParquetFile(self.path / name)
            for column in columns or ():
                if column not in file.schema_arrow.names:
                    raise unknown("column", column, file.schema_arrow.names)
            return file.read(None if columns is None else list(columns))
        except FileNotFoundError as error:
            raise self._damaged(name, "is missing") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise self._damaged(name, f"is damaged ({str(error).splitlines()[0]})") from error

    def _damaged(self, name: str, what: str) -> RecordingError:
        return RecordingError(
            f"'{name}' of recording '{self.path}' {what}; copy it again, or record again with force=True"
        )

    def __repr__(self) -> str:
        tokens, documents = counted(self.n_tokens, "token"), counted(self.n_documents, "document")
        return (
            f"Recording('{self.path}': {tokens} of {documents}, model {self.manifest['model']['name']!r},"
            f" {counted(len(self.layers), 'MoE layer')}, top {self.top_k} of {self.n_experts} experts)"
        )


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
