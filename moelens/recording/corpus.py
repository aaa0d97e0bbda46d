"""What a model reads: documents, from lists or files, one after another."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from moelens.errors import MoeLensError, UnknownNameError, unknown

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
HUB = re.compile(r"(hf://datasets/)?[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")
BOM = b"\xef\xbb\xbf"
RESERVED = ("doc", "text")  # columns of the documents' own


@dataclass(frozen=True)
class Document:
    """One text, and what is known about it."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, from a file a line at a time.

    Example:
        >>> corpus = Corpus.of([{"text": "すぐに参ります。", "to": "客"}, {"text": "すぐ行く。", "to": "友人"}])
        >>> [document.metadata["to"] for document in corpus]
        ['客', '友人']
    """

    name: str
    read: Callable[[], Iterator[Document]] = field(repr=False)
    license: str = ""

    def __iter__(self) -> Iterator[Document]:
        """The documents in their order.

        Raises:
            MoeLensError: there are none, or one cannot be read; the message names its line.
        """
        empty = True
        for document in self.read():
            empty = False
            yield document
        if empty:
            raise MoeLensError(f"corpus '{self.name}' is empty; give at least one document with text")

    @classmethod
    def of(cls, source: Source, text_column: str = "text", license: str = "") -> Corpus:
        """A corpus from whatever holds texts.

        Args:
            source: texts, or dicts with a text and metadata (a list, a `datasets.Dataset` or `IterableDataset`); the
                path of a `.txt` file (a document a line), of a `.jsonl` or `.jsonl.gz` file (a dict a line) or of a
                `.parquet` file; the name of a data set on the hub, as `owner/name`, `owner/name:configuration` or
                `owner/name:configuration:split` (the split is "train" by default), which is streamed; "demo", the
                bundled corpus; or a corpus, which is returned as it is.
            text_column: which key of the dicts holds the text; the others are metadata.
            license: of the texts, for the dataset card; a data set brings its own.

        Raises:
            UnknownNameError: there is no such file or data set.
            MoeLensError: a file in another format. What is wrong inside is said when it is read.
        """
        if isinstance(source, Corpus):
            return source
        rows: Callable[[], Iterator[tuple[object, str]]]
        if isinstance(source, (str, Path)) and not is_hub_name(str(source)):
            path = Path(str(files("moelens.demo") / "corpus.jsonl")) if source == "demo" else Path(source)
            require_file(path, str(source))
            name, rows = str(source), lambda: rows_of(path)
        else:
            kept: Any = source
            name = "texts"
            if isinstance(source, (str, Path)):
                name, kept = str(source), from_hub(str(source))
            elif isinstance(source, Iterator):
                kept = list(source)
            license = license or str(getattr(getattr(kept, "info", None), "license", None) or "")
            rows = lambda: ((row, f"document {i}") for i, row in enumerate(kept))  # noqa: E731
        return cls(name, lambda: (as_document(row, text_column, at) for row, at in rows()), license)


Source: TypeAlias = "str | Path | Iterable[str] | Iterable[Mapping[str, Any]] | Corpus"


def require_file(path: Path, source: str) -> None:
    if not path.is_file():
        raise UnknownNameError(
            f"no such file: {source[:60]!r}; a corpus is 'demo', a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file,"
            " a data set's owner/name on the hub, or a list of texts"
        )
    if not path.name.endswith(SUFFIXES):
        raise MoeLensError(
            f"cannot read {path.name!r} as a corpus; allowed: {', '.join(SUFFIXES)}, or a list of dicts with a text"
        )


def is_hub_name(source: str) -> bool:
    """Whether a string that is no file looks like the name of a data set: one slash, and no suffix of a file."""
    name = source.removeprefix("hf://datasets/")
    written = name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).suffix
    return written and bool(HUB.fullmatch(source)) and not Path(source).exists()


def from_hub(source: str) -> Any:
    """A data set of the hub, streamed.

    Raises:
        UnknownNameError: the hub has none of this name, or cannot be reached.
    """
    datasets = importlib.import_module("datasets")
    name, *rest = source.removeprefix("hf://datasets/").split(":")
    configuration, split = (*rest, None, None)[:2]
    try:
        return datasets.load_dataset(name, configuration, split=split or "train", streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()[:150]
        raise UnknownNameError(
            f"no such data set: {source[:60]!r} ({reason}); give owner/name, owner/name:configuration or"
            " owner/name:configuration:split, or a file"
        ) from error


def parquet_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each row of a Parquet file, a batch of them in memory."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    yield row, f"{path.name} row {number}"
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MoeLensError(f"{path.name} breaks off after row {number} ({reason}); fetch it again") from error


def rows_of(path: Path) -> Iterator[tuple[str | Mapping[str, Any], str]]:
    """Each line's text or dict, with where it stands; empty lines are passed over."""
    if path.suffix == ".parquet":
        yield from parquet_rows(path)
        return
    for number, line in lines_of(path):
        at = f"{path.name} line {number}"
        try:
            text = line.decode("utf-8").rstrip("\r\n")
            if text.strip():
                yield text if path.suffix == ".txt" else json.loads(text), at
        except UnicodeDecodeError as error:
            raise MoeLensError(f"{at} is not UTF-8; convert it, as with iconv -f CP932 -t UTF-8") from error
        except RecursionError as error:
            raise MoeLensError(f"{at} is nested too deeply; write one JSON object a line") from error
        except json.JSONDecodeError as error:
            raise MoeLensError(
                f"{at} is not JSON ({error.msg}, column {error.colno}); write one JSON object a line"
            ) from error


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line.removeprefix(BOM) if number == 1 else line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise MoeLensError(f"{path.name} breaks off after line {number} ({error}); fetch it again") from error


def as_document(row: object, text_column: str, at: str) -> Document:
    """The document a row holds; `at` says where it is from."""
    if isinstance(row, str):
        row = {text_column: row}
    if not isinstance(row, Mapping):
        raise MoeLensError(f"{at} is of type {type(row).__name__}; a document is a text, or a dict with a text")
    if text_column not in row:
        raise unknown("text column", text_column, row, f"{at}; choose with text_column=")
    text = row[text_column]
    metadata = {str(key): value for key, value in row.items() if key != text_column}
    if not isinstance(text, str):
        raise MoeLensError(f"{at}: {text_column!r} is of type {type(text).__name__}; a document's text is a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MoeLensError(
            f"{at} holds half a surrogate pair at character {error.start}; write the whole one"
        ) from error
    for name in RESERVED:
        if name in metadata:
            raise MoeLensError(f"{at}: metadata {name!r} would hide a recording's own column; rename it")
    return Document(text, metadata)
