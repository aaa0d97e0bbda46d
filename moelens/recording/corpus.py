"""What a model reads: documents, from lists or files, one after another."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from moelens.errors import MoeLensError, UnknownNameError, unknown

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")
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
    def of(cls, source: Source, text_column: str = "text") -> Corpus:
        """A corpus from whatever holds texts.

        Args:
            source: texts, or dicts with a text and metadata (a list, a `datasets.Dataset`); the path of a `.txt` file
                (a document a line), or of a `.jsonl` or `.jsonl.gz` file (a dict a line); "demo", the bundled corpus;
                or a corpus, which is returned as it is.
            text_column: which key of the dicts holds the text; the others are metadata.

        Raises:
            UnknownNameError: there is no such file.
            MoeLensError: a file in another format. What is wrong inside is said when it is read.
        """
        if isinstance(source, Corpus):
            return source
        if isinstance(source, (str, Path)):
            path = Path(str(files("moelens.demo") / "corpus.jsonl")) if source == "demo" else Path(source)
            require_file(path, str(source))
            return cls(str(source), lambda: (as_document(row, text_column, at) for row, at in rows_of(path)))
        kept = list(source) if isinstance(source, Iterator) else source

        def read() -> Iterator[Document]:
            return (as_document(row, text_column, f"document {i}") for i, row in enumerate(kept))

        return cls("texts", read)


Source: TypeAlias = "str | Path | Iterable[str] | Iterable[Mapping[str, Any]] | Corpus"


def require_file(path: Path, source: str) -> None:
    if not path.is_file():
        raise UnknownNameError(
            f"no such file: {source[:60]!r}; a corpus is 'demo', a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file,"
            " or a list of texts"
        )
    if not path.name.endswith(SUFFIXES):
        raise MoeLensError(
            f"cannot read {path.name!r} as a corpus; allowed: {', '.join(SUFFIXES)}, or a list of dicts with a text"
        )


def rows_of(path: Path) -> Iterator[tuple[str | Mapping[str, Any], str]]:
    """Each line's text or dict, with where it stands; empty lines are passed over."""
    for number, line in lines_of(path):
        at = f"{path.name} line {number}"
        try:
            text = line.decode("utf-8").rstrip("\r\n")
            if text.strip():
                yield text if path.suffix == ".txt" else json.loads(text), at
        except UnicodeDecodeError as error:
            raise MoeLensError(f"{at} is not UTF-8; convert it, as with iconv -f CP932 -t UTF-8") from error
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
