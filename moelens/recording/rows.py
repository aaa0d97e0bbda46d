"""The rows of a corpus, each with its place for error messages: of files, lists, data sets and tables in memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, Sized
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from moelens.errors import MoeLensError
from moelens.text_files import read_json_lines, read_lines

PlacedRows: TypeAlias = Iterator[tuple[Any, str]]
"""Rows, each with its place, such as "corpus.jsonl line 3"."""

VALUE_ERRORS = (pa.ArrowException, ValueError, TypeError, OverflowError)
"""What Arrow raises for a value that it cannot convert."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BATCH = 1024  # rows that are converted together
_UNNAMED_INDEX = "__index_level_"  # begins the column that pandas makes of an index without a name


def read_rows(path: Path, encoding: str = "utf-8", *, whole: bool = False) -> PlacedRows:
    """Yield the text or dict of each line or row of a file; skip empty lines.

    Args:
        path: The file.
        encoding: Its encoding, unless it is Parquet.
        whole: Yield all lines of a `.txt` file as one text.

    Raises:
        MoeLensError: If a line or a value cannot be read.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        yield from _parquet_rows(path)
    elif kind in _DELIMITERS:
        yield from _delimited_rows(path, encoding, _DELIMITERS[kind])
    elif kind == ".txt" and whole:
        text = "\n".join(line for line, _ in read_lines(path, encoding))
        yield from [(text, path.name)] if text.strip() else []
    elif kind == ".txt":
        yield from ((line, at) for line, at in read_lines(path, encoding) if line.strip())
    else:
        yield from read_json_lines(path, encoding)


def _delimited_rows(path: Path, encoding: str, delimiter: str) -> PlacedRows:
    """Yield the rows of a CSV or TSV file, whose first row names the columns; all values are strings."""
    csv.field_size_limit(2**31 - 1)  # a field may be a whole book; Windows allows no larger limit
    lines = (f"{line}\n" for line, _ in read_lines(path, encoding))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    at = f"{path.name} line 1"
    try:
        for values in reader:
            if names is None and any(values):
                names = _column_names(values, at)
            elif names is not None and values:
                if len(values) != len(names):
                    raise MoeLensError(
                        f"expected {len(names)} fields in {at}, as in the first row of the file, got {len(values)}; "
                        'put fields that hold the separator or line ends between quotation marks (")'
                    )
                yield dict(zip(names, values, strict=True)), at
            at = f"{path.name} line {reader.line_num + 1}"
    except csv.Error as error:
        raise MoeLensError(
            f"expected rows with complete quotation marks in {at}, got another ({error}); correct the row, and write a "
            'quotation mark inside a field twice ("")'
        ) from error


def _column_names(values: list[str], at: str) -> list[str]:
    """The names of the columns in the first row of a table."""
    for i, name in enumerate(values):
        if name in values[:i]:
            raise MoeLensError(f"{at}: two columns have the name {name!r}; rename one of them")
    return values


def rows_reader(source: Any, text_columns: tuple[str, ...]) -> Callable[[], PlacedRows]:
    """Return a function that yields the rows of a source from the beginning, as often as it is called.

    Args:
        source: A list or data set; an iterator, which is read once; a data frame or Arrow table; or a dict of columns.
        text_columns: The names that the column of the texts may have.

    Raises:
        MoeLensError: If the source is a dict of something else than columns, or has no rows at all.
    """
    if isinstance(source, Mapping):
        _check_columns(source, text_columns)
        return partial(_rows_of_columns, source)
    if hasattr(source, "columns") and (hasattr(source, "__arrow_c_stream__") or hasattr(source, "__dataframe__")):
        return partial(_table_rows, _as_table(source))
    if isinstance(source, Iterator) and not isinstance(source, io.IOBase):
        source = list(source)
    if isinstance(source, Set):
        raise MoeLensError(
            f"expected documents in an order, got a {type(source).__name__}, whose order differs from run to run; give "
            "a list, as with sorted(corpus)"
        )
    if isinstance(source, io.IOBase) or not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        raise MoeLensError(
            f"expected texts, or dicts with a text, got {type(source).__name__}; give a list, or the path of a file"
        )
    return partial(_rows_of_items, source)


def _rows_of_items(items: Iterable[object]) -> PlacedRows:
    for i, item in enumerate(items):
        yield item, f"document {i}"


def _check_columns(columns: Mapping[Any, Any], text_columns: tuple[str, ...]) -> None:
    """Raise `MoeLensError` unless a dict is a table: one list for each column, all of the same length."""
    name, found = type(columns).__name__, ", ".join(map(str, columns)) or "nothing"
    if not any(column in columns for column in text_columns):
        raise MoeLensError(
            f"expected documents, or a table with a column {' or '.join(map(repr, text_columns))}, got"
            f" {'an' if name[0] in 'AEIOU' else 'a'} {name} of {found}; give one of these, as in corpus[NAME]"
        )
    sizes: dict[Any, object] = {
        key: len(values) if isinstance(values, Sized) and not isinstance(values, (str, Mapping)) else "no list"
        for key, values in columns.items()
    }
    if len(set(sizes.values())) > 1 or "no list" in sizes.values():
        described = ", ".join(f"{key}: {size}" for key, size in sizes.items())
        raise MoeLensError(
            f"expected a table with one list for each column, all of the same length, got {described};"
            " correct them, or put a single document into a list"
        )


def _rows_of_columns(columns: Mapping[Any, Iterable[Any]]) -> PlacedRows:
    """Yield the rows of a dict of columns."""
    yield from _rows_of_items(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _as_table(frame: Any) -> pa.Table:
    """Return a data frame of pandas, polars or another library as an Arrow table."""
    if any(name is not None for name in getattr(getattr(frame, "index", None), "names", ())):
        frame = frame.reset_index()  # pandas: the index is a column too
    try:
        table = pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise MoeLensError(
            f"expected a table whose columns each hold values of one type, got {type(frame).__name__} that Arrow cannot"
            f" read ({reason}); convert it to a list of dicts"
        ) from error
    return table.select([i for i, name in enumerate(table.schema.names) if not name.startswith(_UNNAMED_INDEX)])


def _table_rows(table: pa.Table) -> PlacedRows:
    return _batch_rows(table.to_batches(_BATCH), "row")


def _parquet_rows(path: Path) -> PlacedRows:
    """Yield the rows of a Parquet file, with one batch of them in memory."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for row, at in _batch_rows(file.iter_batches(_BATCH), f"{path.name} row"):
                yield row, at
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MoeLensError(f"{path.name} cannot be read after row {number} ({reason}); download it again") from error


def _batch_rows(batches: Iterable[pa.RecordBatch], where: str) -> PlacedRows:
    """Yield the rows of batches.

    Raises:
        MoeLensError: If two columns have the same name, or Python has no value for one in the table.
    """
    number = 0
    for batch in batches:
        names = batch.schema.names
        for i, name in enumerate(names):
            if name in names[:i]:
                raise MoeLensError(f"{where} {number}: two columns have the name {name!r}; rename one of them")
        columns = [_python_values(batch.column(i), name, where, number) for i, name in enumerate(names)]
        for row in zip(*columns, strict=True):
            yield dict(zip(names, row, strict=True)), f"{where} {number}"
            number += 1


def _python_values(column: pa.Array, name: str, where: str, number: int) -> list[Any]:
    """Return the values of a column, whose first row is `number`."""
    try:
        values: list[Any] = column.to_pylist()
    except VALUE_ERRORS as error:  # invalid UTF-8, and dates that Python does not have
        number += first_failure(len(column), lambda n: column[:n].to_pylist())
        raise MoeLensError(
            f"{where} {number}: column {name!r} has a value that cannot be read ({error});"
            " correct it, or leave the column out"
        ) from error
    return values


def first_failure(length: int, attempt: Callable[[int], object]) -> int:
    """Return the index of the first item with which `attempt(n)`, which takes the first n items, raises.

    >>> first_failure(6, lambda n: [int(digit) for digit in "0123x5"[:n]])
    4
    """
    good, bad = 0, length  # attempt(good) succeeds, attempt(bad) raises
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            attempt(middle)
            good = middle
        except VALUE_ERRORS:
            bad = middle
    return bad - 1
