"""Writing the Parquet files of a recording, on a thread beside the model, and the layout of their columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.recording.storage import Folder, HashingFile

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A Parquet file of a recording.

    Attributes:
        path: Path relative to the folder of the recording.
        rows: Number of rows.
        sha256: SHA-256 in hexadecimal.
        layer: The layer of all rows; None for a file that is not of a single layer.
        bytes: Its size.
        xxh3: XXH3 in hexadecimal, which is compared whenever the file is read; None if that is not known.
    """

    path: str
    rows: int
    sha256: str
    layer: int | None = None
    bytes: int | None = None
    xxh3: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the file in the manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def layer_label(layer: int) -> str:
    """Return the name of a layer in the names of columns and files.

    Example:
        >>> layer_label(3)
        'L03'
    """
    return f"L{layer:02d}"


def as_column(values: NDArray[Any]) -> pa.Array:
    """Convert an array to an Arrow column: `[row]` to numbers, and `[row, slot]` to fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _write_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of a Parquet writer that compress the columns of a recording well.

    Parquet stores an 8-bit integer in 32 bits, which dictionary encoding undoes. For float32, the bytes are split into
    separate streams, so that the lower half of a bfloat16, which is zero, takes no space. float16 is written plainly,
    because DuckDB reads no other encoding of it. The minima and maxima by which readers skip row groups are written
    for columns of single values.
    """
    split, dictionary, single = [], [], []
    for field in schema:
        nested = pa.types.is_fixed_size_list(field.type)
        path = f"{field.name}.list.element" if nested else field.name
        kind = field.type.value_type if nested else field.type
        if not nested:
            single.append(path)
        if pa.types.is_float32(kind):
            split.append(path)
        elif not pa.types.is_float16(kind):
            dictionary.append(path)
    return {
        "compression": "zstd",
        "write_page_checksum": True,
        "use_dictionary": dictionary,
        "write_statistics": single,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
    }


class ShardWriter:
    """Writes one Parquet file, with a row group for each call of `write`.

    The file gets its name in `close`. Without rows, no file is left.

    Args:
        folder: The folder of the recording.
        name: The name of the file.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.name, self.rows = name, 0
        self._folder, self._stack = folder, ExitStack()
        self._file: HashingFile = self._stack.enter_context(folder.writing(name))
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append a table."""
        if not len(table):  # a table without tokens does not have all columns
            return
        with self._folder.explain_errors():
            if self._writer is None:
                options = _write_options(table.schema)
                self._writer = pq.ParquetWriter(pa.PythonFile(self._file, mode="w"), table.schema, **options)
            self._writer.write_table(table)
            self.rows += len(table)

    def close(self) -> Shard:
        """Complete the file, and return its description."""
        with self._folder.explain_errors():
            if self._writer is not None:
                self._writer.close()
        self._stack.close()
        if not self.rows:
            self._folder.remove(self.name)
        return Shard(path=self.name, rows=self.rows, **self._file.checksums)

    def abandon(self, error: BaseException) -> None:
        """Remove the unfinished file after an error."""
        self._stack.__exit__(type(error), error, error.__traceback__)


class BackgroundCalls:
    """Makes calls one after another on a thread of its own.

    If a call raises, the calls after it are not made, and the next `submit` or `drain` raises the error.

    Args:
        limit: How many calls may be unfinished before `submit` waits.
    """

    def __init__(self, limit: int = 2) -> None:
        self._pool = ThreadPoolExecutor(1, "moelens-writer")
        self._pending: deque[Future[Any]] = deque()
        self._limit, self._failed = limit, False

    def submit(self, call: Callable[..., Any], *args: Any) -> None:
        """Make a call after those submitted before; wait while too many calls are unfinished."""
        self._pending.append(self._pool.submit(self._run, call, args))
        while len(self._pending) > self._limit:
            self._pending.popleft().result()

    def _run(self, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self._failed:
            return
        self._failed = True  # until the call returns
        call(*args)
        self._failed = False

    def drain(self) -> None:
        """Wait until all calls have been made."""
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> BackgroundCalls:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def read_ahead(items: Iterable[_T]) -> Iterator[_T]:
    """Yield items, computing each on another thread while the previous one is in use."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "moelens-reader") as pool:
        future: Future[Any] = pool.submit(next, iterator, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, iterator, end)
            yield item


def merge_files(folder: Folder, parts: Sequence[str], name: str) -> Shard:
    """Write one Parquet file with the rows of several, one row group at a time."""
    writer = ShardWriter(folder, name)
    try:
        for part in parts:
            with pq.ParquetFile(folder.source(part)) as file:
                for group in range(file.num_row_groups):
                    writer.write(file.read_row_group(group))
    except BaseException as error:
        writer.abandon(error)
        raise
    return writer.close()
