"""`Corpus`: the documents that a model reads, from lists, files or data sets."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from moelens.errors import MoeLensError, UnknownNameError, unknown
from moelens.recording.rows import PlacedRows, read_rows, rows_reader
from moelens.text_files import require_encoding

PARAGRAPH = "paragraph"
_TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
_SUFFIXES = (*_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES), ".parquet")
_SUFFIXES_IN_WORDS = ".txt, .csv, .tsv, .jsonl (or with .gz), .parquet"
_HUB_NAME = re.compile(r"(hf://datasets/)?[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")
_MESSAGES = "messages"  # the column of a conversation
_RESERVED = ("doc", "text", "generated")  # columns of the documents of a recording


@dataclass(frozen=True)
class Turn:
    """The characters of a message in the text that a chat template makes of a conversation.

    Attributes:
        role: Who speaks, such as "user".
        start: Index of the first character.
        end: Index after the last character.
    """

    role: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text to record, or a conversation, of which the chat template of the model makes a text.

    Attributes:
        text: The text; "" for a conversation until `record` applies the chat template.
        metadata: Values by name, which become columns of the documents of the recording.
        messages: The messages of a conversation, with `role` and `content`; None for a text.
        turns: Where each message is in the text of a conversation; None if it is nowhere.
        at: The place of the document, for error messages.
    """

    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] | None = None
    turns: Sequence[Turn | None] = ()
    at: str = ""


@dataclass(frozen=True)
class Corpus:
    """Documents that can be iterated over repeatedly; files are read line by line.

    Use `Corpus.of` to create one.

    Attributes:
        name: The name in the manifest of recordings.
        read: Returns a new iterator over the documents.
        license: The licence of the texts; "" if it is not known.
        split: How `record` divides the texts into documents: "paragraph", or the number of tokens of each; None if each
            text is a document.

    Example:
        >>> corpus = Corpus.of([{"text": "すぐに参ります。", "to": "客"}, {"text": "すぐ行く。", "to": "友人"}])
        >>> [document.metadata["to"] for document in corpus]
        ['客', '友人']
    """

    name: str
    read: Callable[[], Iterator[Document]] = field(repr=False)
    license: str = ""
    split: str | int | None = None

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
    def of(
        cls,
        source: CorpusSource,
        text_column: str = "text",
        license: str = "",
        *,
        encoding: str = "utf-8",
        split_documents: str | int | None = None,
    ) -> Corpus:
        """Create a corpus from any source of texts.

        Args:
            source: One of these:

                - texts, or dicts with a text and metadata: a list, a `datasets.Dataset` or an `IterableDataset`;
                - a table with one row per document: a data frame of pandas or polars, an Arrow table, or a dict with
                  one list for each column;
                - the path of a `.txt` file (one document per line), of a `.csv` or `.tsv` file (one document per row;
                  the first row names the columns), of a `.jsonl` file (one dict per line), each possibly compressed
                  (`.gz`), or of a `.parquet` file (one dict per row);
                - the name of a data set on the Hugging Face hub, which is streamed: `owner/name`,
                  `owner/name:configuration` or `owner/name:configuration:split` ("train" by default);
                - "demo", the bundled corpus;
                - a corpus, which is returned unchanged.

                In place of a text there may be a conversation: a list of messages, which are dicts with `role` and
                `content`. Its key may also be "messages".
            text_column: The key of the text in dicts; the other keys are metadata.
            license: The licence of the texts, for the dataset card; by default that of the data set.
            encoding: The encoding of a text file, such as "shift-jis" or "euc-jp".
            split_documents: Divides long texts into documents when they are recorded: "paragraph" at empty lines, a
                number at ends of sentences, into parts of at most so many tokens. A `.txt` file is then one text
                instead of one document per line. Documents of one text are not independent; the column
                `source_document` tells which text each is from.

        Raises:
            UnknownNameError: If there is no such file, data set or encoding.
            MoeLensError: If a file has another format, or the source is several data sets, as a `DatasetDict` is, or
                nothing with documents. Errors in the contents are raised on iteration.

        Example:
            >>> [document.text for document in Corpus.of(["先生がいらっしゃる。", "雨が降る。"])]
            ['先生がいらっしゃる。', '雨が降る。']
        """
        split = _parse_split(split_documents)
        if isinstance(source, Corpus):
            if (text_column, encoding, split) != ("text", "utf-8", None):
                raise MoeLensError(
                    "expected a file, a table or texts with text_column, encoding or split_documents, got a Corpus; "
                    "give them to Corpus.of"
                )
            return source
        name = str(source) if isinstance(source, (str, Path)) else "texts"
        iter_rows: Callable[[], PlacedRows]
        if isinstance(source, (str, Path)) and not _is_hub_name(name):
            path = Path(str(files("moelens.demo") / "corpus.jsonl")) if source == "demo" else Path(source)
            _require_file(path, name)
            _require_encoding(path, encoding)
            iter_rows = partial(read_rows, path, encoding, whole=split is not None)
        else:
            items: Any = _load_from_hub(name) if isinstance(source, (str, Path)) else source
            license = license or str(getattr(getattr(items, "info", None), "license", None) or "")
            iter_rows = rows_reader(items, (text_column, _MESSAGES))
        return cls(name, lambda: (_as_document(row, text_column, at) for row, at in iter_rows()), license, split)


CorpusSource: TypeAlias = (
    "str | Path | Iterable[str] | Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | Corpus"
)


def _require_file(path: Path, source: str) -> None:
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long, such as a text
        raise UnknownNameError(
            f"no such file: {source[:60]!r}; give 'demo', a {_SUFFIXES_IN_WORDS} file,"
            " the owner/name of a data set on the hub, or a list of texts"
        )
    if not path.name.endswith(_SUFFIXES):
        raise MoeLensError(
            f"expected a file of type {_SUFFIXES_IN_WORDS}, got {path.name!r};"
            " convert it, or give a list of dicts with a text"
        )


def _require_encoding(path: Path, encoding: str) -> None:
    """Check an encoding before the file is read."""
    if require_encoding(encoding) != "utf-8" and path.suffix == ".parquet":
        raise MoeLensError(
            f"expected a text file with encoding (--encoding), got {path.name!r}, which has UTF-8; leave it out"
        )


def _parse_split(split: str | int | None) -> str | int | None:
    """Read "paragraph" or a number of tokens.

    >>> _parse_split("200"), _parse_split("paragraph"), _parse_split(None)
    (200, 'paragraph', None)
    """
    if split in (None, PARAGRAPH):
        return split
    if not str(split).isdecimal() or not int(split or 0):
        raise MoeLensError(
            f"expected split_documents (--split-documents) to be 'paragraph' or a number of tokens, got {split!r}; "
            "give one of them, such as 200"
        )
    return int(split or 0)


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


def _as_document(row: object, text_column: str, at: str) -> Document:
    """Return the document in a row; `at` is its place for error messages."""
    if isinstance(row, str):
        row = {text_column: row}
    if not isinstance(row, Mapping):
        raise MoeLensError(f"{at}: expected a string or a dict with a text, got {type(row).__name__}; convert it")
    column = _MESSAGES if text_column not in row and _MESSAGES in row else text_column
    if column not in row:
        raise unknown("text column", text_column, row, f"{at}; choose with text_column or --text-column")
    text = row[column]
    metadata = {str(key): value for key, value in row.items() if key != column}
    for name in _RESERVED:
        if name in metadata:
            raise MoeLensError(f"{at}: metadata {name!r} has the name of a column of recordings; rename it")
    if isinstance(text, (list, tuple)):
        for i, message in enumerate(text):
            _check_message(message, f"{at}, message {i}")
        if text:
            return Document(metadata=metadata, messages=text, at=at)
    if not isinstance(text, str):
        given = "an empty list" if isinstance(text, (list, tuple)) else type(text).__name__
        raise MoeLensError(f"{at}: expected {column!r} to be a string or a list of messages, got {given}; convert it")
    _check_unicode(text, at)
    return Document(text=text, metadata=metadata, at=at)


def _check_message(message: object, at: str) -> None:
    """Raise `MoeLensError` unless a message has a role, and a text or no content."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
        raise MoeLensError(f"{at}: expected a dict with 'role' and 'content', got {str(message)[:60]!r}; convert it")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise MoeLensError(
            f"{at}: expected 'content' to be a string, got {type(content).__name__}; join the text of its parts"
        )
    _check_unicode(content or "", at)


def _check_unicode(text: str, at: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MoeLensError(
            f"{at}: expected valid Unicode, got half a surrogate pair at character {error.start}; write the whole pair"
        ) from error
