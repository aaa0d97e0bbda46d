"""Parquet files of a recording, written beside the model, and how their columns are laid out."""

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

from moelens.recording.storage import Folder, Hashing

Array = NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One Parquet file; `path` is relative to the recording, and `layer` the one that all its rows are of."""

    path: str
    rows: int
    sha256: str
    layer: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def layer_label(layer: int) -> str:
    """`L03`, as columns call a layer."""
    return f"L{layer:02d}"


def as_column(values: Array) -> pa.Array:
    """`[row]` as it is, and `[row, slot]` as fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def encoding(schema: pa.Schema) -> dict[str, Any]:
    """How columns are packed for zstd.

    Parquet keeps a byte as four: a dictionary gives them back. float32 goes with its bytes apart, so that the lower
    half of a bfloat16, all zeros, costs nothing; float16 goes as it is, since DuckDB reads no other encoding of it.
    Least and largest values, by which readers skip row groups, are kept where a value stands alone.
    """
    split, plain, single = [], [], []
    for field in schema:
        nested = pa.types.is_fixed_size_list(field.type)
        path = f"{field.name}.list.element" if nested else field.name
        kind = field.type.value_type if nested else field.type
        if not nested:
            single.append(path)
        if pa.types.is_float32(kind):
            split.append(path)
        elif not pa.types.is_float16(kind):
            plain.append(path)
    return {
        "compression": "zstd",
        "use_dictionary": plain,
        "write_statistics": single,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
    }


class ShardWriter:
    """Writes one Parquet file, a row group a call; nothing stands under its name before `close`, or without rows."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.name, self.rows = name, 0
        self._folder, self._stack = folder, ExitStack()
        self._file: Hashing = self._stack.enter_context(folder.writing(name))
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        if not len(table):  # without tokens its columns are not known
            return
        with self._folder.explained():
            if self._writer is None:
                options = encoding(table.schema)
                self._writer = pq.ParquetWriter(pa.PythonFile(self._file, mode="w"), table.schema, **options)
            self._writer.write_table(table)
            self.rows += len(table)

    def close(self) -> Shard:
        with self._folder.explained():
            if self._writer is not None:
                self._writer.close()
        self._stack.close()
        if not self.rows:
            self._folder.remove(self.name)
        return Shard(self.name, self.rows, self._file.sha256)

    def abandon(self, error: BaseException) -> None:
        """Leave no file."""
        self._stack.__exit__(type(error), error, error.__traceback__)


class Beside:
    """Runs calls one after another on a thread of its own; `put` waits while `limit` of them are unfinished.

    An error of a call is raised by the next `put`, or by `drain`; the calls after it are not made.
    """

    def __init__(self, limit: int = 2) -> None:
        self._pool = ThreadPoolExecutor(1, "moelens-writer")
        self._pending: deque[Future[Any]] = deque()
        self._limit, self._failed = limit, False

    def put(self, call: Callable[..., Any], *args: Any) -> None:
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
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each computed on another thread while the one before it is used."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "moelens-reader") as pool:
        future: Future[Any] = pool.submit(next, iterator, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, iterator, end)
            yield item


def merge(folder: Folder, parts: Sequence[str], name: str) -> Shard:
    """One Parquet file with the rows of `parts`, a row group at a time."""
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
