"""A first reading of a corpus, before the model runs: what cannot be recorded is an error that names its document."""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moelens.errors import MoeLensError
from moelens.recording.corpus import Corpus, Document
from moelens.recording.rows import VALUE_ERRORS, first_failure

ColumnTypes = dict[str, pa.DataType]
"""The Arrow types of the metadata columns, by name."""

_CHUNK_DOCUMENTS = 1024  # read together from the corpus


@dataclass(frozen=True, kw_only=True)
class CorpusSurvey:
    """What a first reading of a corpus finds.

    Attributes:
        types: The types of the metadata columns.
        lengths: The number of characters of each document.
        conversations: Whether the documents are conversations.
        sha256: SHA-256 of all texts, in hexadecimal.
    """

    types: ColumnTypes
    lengths: Sequence[int]
    conversations: bool
    sha256: str

    def pieces(self, characters: int, added: int = 0) -> list[range]:
        """Divide the documents into pieces, each of at least this number of characters except the last.

        Args:
            characters: The number of characters.
            added: How many characters each document counts beyond its own, for what is generated after it.
        """
        pieces, start, size = [], 0, 0
        for i, length in enumerate(self.lengths):
            size += length + added
            if size >= characters:
                pieces.append(range(start, i + 1))
                start, size = i + 1, 0
        if start < len(self.lengths):
            pieces.append(range(start, len(self.lengths)))
        return pieces


def survey_corpus(corpus: Corpus) -> CorpusSurvey:
    """Read a corpus once, or a second time if a metadata column holds values of several types.

    Raises:
        MoeLensError: If a document cannot be read, a metadata value cannot be stored, or texts and conversations mix.
    """
    types: ColumnTypes = {}
    widened: set[str] = set()  # columns whose first values were of another type than all of them together
    lengths, digest = array("I"), hashlib.sha256()
    conversations: bool | None = None
    for documents in _chunks(corpus):
        lengths.extend(len(document.text) for document in documents)
        for document in documents:
            digest.update(document.text.encode() + b"\0")
            if conversations not in (None, document.messages is not None):
                raise MoeLensError(f"{document.at}: expected only texts or only conversations, got both; divide them")
            conversations = document.messages is not None
        for name, holders in _by_column(documents):
            known = types.get(name, pa.null())
            types[name] = _attempt(name, holders, partial(_common_type, name, known))
            if types[name] != known and not pa.types.is_null(known):
                widened.add(name)
    stored = {name: _storable_type(kind) for name, kind in types.items()}
    unsure = widened | {name for name, kind in stored.items() if not _is_storable(kind)}
    for documents in _chunks(corpus) if unsure else ():
        for name, holders in _by_column(documents):
            if name in unsure:
                _attempt(name, holders, partial(_convertible, stored[name]))
    return CorpusSurvey(types=stored, lengths=lengths, conversations=bool(conversations), sha256=digest.hexdigest())


def documents_table(
    first: int, documents: Sequence[Document], types: ColumnTypes, generated: Sequence[str] | None
) -> pa.Table:
    """Return the table of documents: `doc`, `text`, `generated` (if there is generated text) and the metadata."""
    columns: dict[str, list[Any]] = {
        "doc": list(range(first, first + len(documents))),
        "text": [document.text for document in documents],
    }
    schema = [("doc", pa.int32()), ("text", pa.string())]
    if generated is not None:
        columns["generated"] = list(generated)
        schema.append(("generated", pa.string()))
    columns |= {name: [_metadata_value(document, name) for document in documents] for name in types}
    return pa.table(columns, schema=pa.schema([*schema, *types.items()]))


def _chunks(corpus: Corpus) -> Iterator[list[Document]]:
    documents = iter(corpus)
    while chunk := list(islice(documents, _CHUNK_DOCUMENTS)):
        yield chunk


def _by_column(documents: Sequence[Document]) -> Iterator[tuple[str, list[Document]]]:
    """Yield each metadata column, and the documents that have a value in it."""
    for name in dict.fromkeys(key for document in documents for key in document.metadata):
        yield name, [document for document in documents if name in document.metadata]


def _metadata_value(document: Document, name: str) -> Any:
    """Return a metadata value; None for an empty dict, because Parquet has no structures without fields."""
    value = document.metadata.get(name)
    return None if isinstance(value, dict) and not value else value


def _attempt(name: str, documents: Sequence[Document], convert: Callable[[list[Any]], pa.DataType]) -> pa.DataType:
    """Return what `convert` returns for the values of a metadata column.

    Raises:
        MoeLensError: If it raises; the message names the first document whose value is the reason.
    """
    values = [_metadata_value(document, name) for document in documents]
    try:
        return convert(values)
    except VALUE_ERRORS as error:
        i = first_failure(len(values), lambda n: convert(values[:n]))
        raise MoeLensError(
            f"{documents[i].at}: expected values of one type that Parquet holds in metadata column {name!r}, got"
            f" {_describe(values[i])} ({' '.join(str(error).split())[:200]}); convert it, or leave the column out"
        ) from error


def _describe(value: Any) -> str:
    try:
        return f"{type(value).__name__} {value!r}"[:80]
    except ValueError:  # an integer of thousands of digits
        return type(value).__name__


def _common_type(name: str, known: pa.DataType, values: list[Any]) -> pa.DataType:
    """Return the type of a column that holds these values beside values of a known type."""
    schemas = [pa.schema([(name, kind)]) for kind in (known, _stored(values).type)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _convertible(kind: pa.DataType, values: list[Any]) -> pa.DataType:
    """Return the type of a column, unless it is the values at hand that make it impossible to store."""
    if not _is_storable(_stored(values, kind).type):
        _require_storable(_storable_type(pa.array(values).type))
    return kind


def _stored(values: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    """Return values as they are stored, of a given type or of the one that Arrow finds.

    Raises:
        ValueError: If another value would be stored in place of one, such as a time without its nanoseconds.
    """
    column = pa.array(values, kind)
    if pa.types.is_temporal(column.type) or pa.types.is_binary(column.type):
        for value, stored in zip(values, column.to_pylist(), strict=True):
            if stored is not None and stored != value:
                raise ValueError(f"it would be stored as {stored!r}")
    return column


def _storable_type(kind: pa.DataType) -> pa.DataType:
    """Return a type with strings in place of nulls, because some readers do not support the null type."""
    if pa.types.is_list(kind):
        return pa.list_(_storable_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(i).name, _storable_type(kind.field(i).type)) for i in range(kind.num_fields)])
    return pa.string() if pa.types.is_null(kind) else kind


def _is_storable(kind: pa.DataType) -> bool:
    try:
        _require_storable(kind)
    except VALUE_ERRORS:
        return False
    return True


def _require_storable(kind: pa.DataType) -> None:
    """Raise an error of Arrow or `ValueError` unless Parquet can hold a type and read it again."""
    file = io.BytesIO()
    pq.write_table(pa.table([pa.array([], kind)], names=["column"]), file)
    try:
        pq.read_schema(io.BytesIO(file.getvalue()))
    except OSError as error:
        raise ValueError("Parquet cannot read values that are nested as deeply") from error
