"""Reading some rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def read_rows(
    file: pq.ParquetFile, rows: NDArray[np.integer[Any]] | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read some rows of a file; row groups that hold none of them are not read.

    Args:
        file: The file.
        rows: The rows, ascending; None for all.
        columns: The columns; None for all.

    Example:
        >>> import io
        >>> written = io.BytesIO()
        >>> pq.write_table(pa.table({"n": range(9)}), written, row_group_size=2)
        >>> read_rows(pq.ParquetFile(written), np.array([2, 3, 8]))["n"].to_pylist()
        [2, 3, 8]
    """
    names = None if columns is None else list(columns)
    if rows is None:
        return file.read(names)
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], dtype=np.int64)
    group_of = np.searchsorted(ends, rows, "right")
    groups = np.unique(group_of)
    table = file.read_row_groups(groups.tolist(), names)
    read = np.diff(ends, prepend=0)[groups]
    left_out = (ends[groups] - np.cumsum(read))[np.searchsorted(groups, group_of)]  # rows before that were not read
    places = rows - left_out
    if len(places) and places[-1] - places[0] + 1 == len(places):
        return table.slice(int(places[0]), len(places))
    wanted = np.zeros(len(table), bool)
    wanted[places] = True
    return table.filter(pa.array(wanted))
