"""`documents.parquet`: the texts, and what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moelens.errors import MoeLensError
from moelens.recording.corpus import Corpus, Document
from moelens.recording.writer import Shard, shard

CHUNK = 1024
Types = dict[str, pa.DataType]


def survey(corpus: Corpus) -> tuple[Types, int]:
    """Read the corpus once, before the model is run: the type of each metadata column, and the number of documents.

    Raises:
        MoeLensError: a document cannot be read, or a metadata column holds values of different types.
    """
    types: Types = {}
    count, documents = 0, iter(corpus)
    while chunk := list(islice(documents, CHUNK)):
        count += len(chunk)
        for name in dict.fromkeys(key for document in chunk for key in document.metadata):
            try:
                found = pa.array([known(document, name) for document in chunk]).type
                both = [pa.schema([(name, t)]) for t in (types.get(name, pa.null()), found)]
                types[name] = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise MoeLensError(
                    f"metadata column {name!r} of corpus '{corpus.name}' cannot be kept ({error}); give it one type"
                ) from error
    return {name: storable(kind) for name, kind in types.items()}, count


def known(document: Document, name: str) -> Any:
    """A value of the metadata; an empty dict is none, as Parquet has no records without fields."""
    value = document.metadata.get(name)
    return None if isinstance(value, dict) and not value else value


def storable(kind: pa.DataType) -> pa.DataType:
    """A column, or a list, of nothing but nulls is one of strings: not every reader knows the null type."""
    if pa.types.is_list(kind):
        return pa.list_(storable(kind.value_type))
    return pa.string() if pa.types.is_null(kind) else kind


class DocumentWriter:
    """Writes documents in their order, numbered from 0."""

    def __init__(self, folder: Path, types: Types) -> None:
        self._folder, self._path = folder, folder / "documents.parquet"
        self._schema = pa.schema([("doc", pa.int32()), ("text", pa.string()), *types.items()])
        self._file = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        self.rows = 0

    def write(self, documents: Sequence[Document]) -> None:
        columns: dict[str, list[Any]] = {
            name: [known(document, name) for document in documents] for name in self._schema.names
        }
        columns["doc"] = list(range(self.rows, self.rows + len(documents)))
        columns["text"] = [document.text for document in documents]
        self._file.write_table(pa.table(columns, schema=self._schema))
        self.rows += len(documents)

    def close(self) -> Shard:
        self._file.close()
        return shard(self._folder, self._path, self.rows)
