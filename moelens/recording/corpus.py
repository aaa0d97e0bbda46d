"""`Corpus`: the documents that a model reads, from lists, files or data sets."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from moelens.errors import MoeLensError, UnknownNameError, unknown

_SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
_HUB_NAME = re.compile(r"(hf://datasets/)?[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_RESERVED = ("doc", "text")  # columns of the documents of a recording


@dataclass(frozen=True)
class Document:
    """A text to record.

    Attributes:
        text: The text.
        metadata: Values by name, which become columns of the documents of the recording.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Documents that can be iterated over repeatedly; files are read line by line.

    Use `Corpus.of` to create one.

    Attributes:
        name: The name in the manifest of recordings.
        read: Returns a new iterator over the documents.
        license: The licence of the texts; "" if it is not known.

    Example:
        >>> corpus = Corpus.of([{"text": "すぐに参ります。", "to": "客"}, {"text": "すぐ行く。", "to": "友人"}])
        >>> [document.metadata["to"] for document in corpus]
        ['客', '友人']
    """

    name: str
    read: Callable[[], Iterator[Document]] = field(repr=False)
    license: str = ""

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents in order.

        Raises:
            MoeLensError: If there are none, or if one cannot be read; the message names its line.
        """
        empty = True
        for document in self.read():
            empty = False
            yield document
        if empty:
            raise MoeLensError(
                f"expected documents in corpus '{self.name}', got none; give at least one document with text"
            )

    @classmethod
    def of(cls, source: CorpusSource, text_column: str = "text", license: str = "") -> Corpus:
        """Create a corpus from any source of texts.

        Args:
            source: One of these:

                - texts, or dicts with a text and metadata: a list, a `datasets.Dataset` or an `IterableDataset`;
                - the path of a `.txt` file (one document per line), of a `.jsonl` or `.jsonl.gz` file (one dict per
                  line) or of a `.parquet` file (one dict per row);
                - the name of a data set on the Hugging Face hub, which is streamed: `owner/name`,
                  `owner/name:configuration` or `owner/name:configuration:split` ("train" by default);
                - "demo", the bundled corpus;
                - a corpus, which is returned unchanged.
            text_column: The key of the text in dicts; the other keys are metadata.
            license: The licence of the texts, for the dataset card; by default that of the data set.

        Raises:
            UnknownNameError: If there is no such file or data set.
            MoeLensError: If a file has another format. Errors in the contents are raised on iteration.

        Example:
            >>> [document.text for document in Corpus.of(["先生がいらっしゃる。", "雨が降る。"])]
            ['先生がいらっしゃる。', '雨が降る。']
        """
        if isinstance(source, Corpus):
            return source
        name = str(source) if isinstance(source, (str, Path)) else "texts"
        iter_rows: Callable[[], Iterator[tuple[object, str]]]
        if isinstance(source, (str, Path)) and not _is_hub_name(name):
            path = Path(str(files("moelens.demo") / "corpus.jsonl")) if source == "demo" else Path(source)
            _require_file(path, name)
            iter_rows = partial(read_rows, path)
        else:
            items: Any = source
            if isinstance(source, (str, Path)):
                items = _load_from_hub(name)
            elif isinstance(source, Iterator):
                items = list(source)
            license = license or str(getattr(getattr(items, "info", None), "license", None) or "")
            iter_rows = partial(_numbered_items, items)
        return cls(name, lambda: (_as_document(row, text_column, at) for row, at in iter_rows()), license)


CorpusSource: TypeAlias = "str | Path | Iterable[str] | Iterable[Mapping[str, Any]] | Corpus"


def _numbered_items(items: Iterable[object]) -> Iterator[tuple[object, str]]:
    """Yield each item with its description for error messages."""
    for i, item in enumerate(items):
        yield item, f"document {i}"


def _require_file(path: Path, source: str) -> None:
    if not path.is_file():
        raise UnknownNameError(
            f"no such file: {source[:60]!r}; give 'demo', a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file,"
            " the owner/name of a data set on the hub, or a list of texts"
        )
    if not path.name.endswith(_SUFFIXES):
        raise MoeLensError(
            f"expected a file of type {', '.join(_SUFFIXES)}, got {path.name!r};"
            " convert it, or give a list of dicts with a text"
        )


def _is_hub_name(source: str) -> bool:
    """Return whether a string looks like the name of a data set: no existing file, one slash, and no file suffix."""
    name = source.removeprefix("hf://datasets/")
    possible = name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).suffix
    return possible and bool(_HUB_NAME.fullmatch(source)) and not Path(source).exists()


def _load_from_hub(source: str) -> Any:
    """Stream a data set of the hub.

    Raises:
        UnknownNameError: If the hub has no such data set, or cannot be reached.
    """
    datasets = importlib.import_module("datasets")
    name, *rest = source.removeprefix("hf://datasets/").split(":")
    configuration, split = (*rest, None, None)[:2]
    try:
        return datasets.load_dataset(name, configuration, split=split or "train", streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()[:150]
        raise UnknownNameError(
            f"no such data set: {source[:60]!r} ({reason}); give owner/name, owner/name:configuration,"
            " owner/name:configuration:split, or a file"
        ) from error


def read_rows(path: Path) -> Iterator[tuple[str | Mapping[str, Any], str]]:
    """Yield the text or dict of each line or row of a file, with its place for error messages; skip empty lines."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    for number, line in _lines(path):
        at = f"{path.name} line {number}"
        try:
            text = line.decode("utf-8").rstrip("\r\n")
            if text.strip():
                yield text if path.suffix == ".txt" else json.loads(text), at
        except UnicodeDecodeError as error:
            raise MoeLensError(f"{at} is not UTF-8; convert the file, as with iconv -f CP932 -t UTF-8") from error
        except RecursionError as error:
            raise MoeLensError(f"{at} is nested too deeply; write one flat JSON object per line") from error
        except json.JSONDecodeError as error:
            raise MoeLensError(
                f"{at} is not JSON ({error.msg}, column {error.colno}); write one JSON object per line"
            ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the rows of a Parquet file, with one batch of them in memory."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    yield row, f"{path.name} row {number}"
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MoeLensError(f"{path.name} cannot be read after row {number} ({reason}); download it again") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, which may be compressed, with their numbers from 1 on."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise MoeLensError(
                f"{path.name} cannot be read after line {number} ({error}); download it again"
            ) from error


def _as_document(row: object, text_column: str, at: str) -> Document:
    """Return the document in a row; `at` is its place for error messages."""
    if isinstance(row, str):
        row = {text_column: row}
    if not isinstance(row, Mapping):
        raise MoeLensError(f"{at}: expected a string or a dict with a text, got {type(row).__name__}; convert it")
    if text_column not in row:
        raise unknown("text column", text_column, row, f"{at}; choose with text_column=")
    text = row[text_column]
    metadata = {str(key): value for key, value in row.items() if key != text_column}
    if not isinstance(text, str):
        raise MoeLensError(f"{at}: expected {text_column!r} to be a string, got {type(text).__name__}; convert it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MoeLensError(
            f"{at}: expected valid Unicode, got half a surrogate pair at character {error.start}; write the whole pair"
        ) from error
    for name in _RESERVED:
        if name in metadata:
            raise MoeLensError(f"{at}: metadata {name!r} has the name of a column of recordings; rename it")
    return Document(text, metadata)
