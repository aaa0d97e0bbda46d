"""NumPy's files from elsewhere: nothing is unpickled, and sizes are checked before memory is taken."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_MOST_BYTES = 1 << 30  # of the arrays of a file, or else
_MOST_TIMES = 64  # as many times the size of the file; routes are seldom compressed to less than a twentieth
_HEADERS: Any = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz`.

    Args:
        path: The file.

    Raises:
        ValueError: If the file cannot be read, or holds objects, or its arrays are not of the stated sizes or would
            take more than 1 GiB and 64 times the size of the file. The message is one line.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", x=np.arange(3))
        ...     read_npz_arrays(Path(folder) / "a.npz")
        {'x': array([0, 1, 2])}
    """
    limit = max(_MOST_BYTES, _MOST_TIMES * path.stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            size = sum(info.file_size for info in members.values())
            if size > limit:
                raise ValueError(f"its arrays take {size:,} bytes, more than 1 GiB and 64 times the size of the file")
            arrays = {}
            for name, info in members.items():
                with archive.open(info) as file:
                    arrays[name] = parse_npy(file.read(info.file_size))
            return arrays
    except Exception as error:  # zipfile raises what it meets: BadZipFile, zlib.error, NotImplementedError, …
        raise _one_line(error) from error


def parse_npy(data: bytes) -> NDArray[Any]:
    """Return the array in the bytes of an `.npy`.

    Raises:
        ValueError: If they are not of that format, or hold objects, or not as many values as they state.
    """
    try:
        file = io.BytesIO(data)
        version: tuple[int, int] = npy.read_magic(file)  # type: ignore[no-untyped-call]
        if version not in _HEADERS:
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        shape, by_column, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError("it holds objects")
        stated, start = math.prod(shape) * dtype.itemsize, file.tell()
        if min(shape, default=0) < 0 or stated != len(data) - start:
            raise ValueError(f"its header states {stated:,} bytes, and {len(data) - start:,} follow")
        values = np.frombuffer(data, dtype, math.prod(shape), start)
        return values.reshape(shape, order="F" if by_column else "C")
    except Exception as error:  # numpy reads the header as Python source
        raise _one_line(error) from error


def _one_line(error: Exception) -> ValueError:
    return ValueError(" ".join(str(error).split())[:200] or type(error).__name__)
