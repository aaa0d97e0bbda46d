"""Base classes of results that can be saved as JSON or Parquet and opened again. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.errors import RecordingError
from moelens.files import require_suffix, writing
from moelens.version import __version__

if TYPE_CHECKING:
    import pandas as pd

_METADATA_KEY = b"moelens"
"""The key, in the metadata of a Parquet file's schema, of what the columns do not hold."""


class Saved:
    """A result with `save`, `open`, `to_dict`, `from_dict` and `to_pandas`.

    A subclass defines `FORMAT`, `to_dict`, `restore` and `columns`.

    Attributes:
        FORMAT: name and version of what is saved, such as "moelens.effect/1".
    """

    FORMAT: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole result as JSON values, with None in place of numbers that are not finite."""
        raise NotImplementedError

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        """Make the result from what `to_dict` returned; the format has been checked."""
        raise NotImplementedError

    def columns(self) -> dict[str, Any]:
        """Return the columns of the result's table, by name."""
        raise NotImplementedError

    def to_pandas(self) -> pd.DataFrame:
        """Return the result's table as a pandas data frame."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a result from what `to_dict` returned.

        Args:
            data: JSON values by name.

        Raises:
            RecordingError: `data` has another format than results of this class.
        """
        if data.get("format") != cls.FORMAT:
            raise RecordingError(
                f"expected format {cls.FORMAT!r}, which {cls.__name__}.save writes, got {data.get('format')!r}; "
                "open it with the class that saved it"
            )
        return cls.restore(data)

    def save(self, path: str | Path) -> Path:
        """Write the result to a file.

        Args:
            path: a name that ends in `.json`, or in `.parquet` for a file with the rows of `to_pandas`.

        Returns:
            The path.

        Raises:
            UnknownNameError: the name ends in neither.
            RecordingError: the disk is full, or the file cannot be written.
        """
        path = require_suffix(Path(path))
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(), ensure_ascii=False, indent=self._INDENT, allow_nan=False)
            with writing(path) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
        else:
            head = json.dumps(self._parquet_head(), ensure_ascii=False, allow_nan=False)
            table = pa.table(self.columns()).replace_schema_metadata({_METADATA_KEY: head})
            with writing(path) as partial:
                pq.write_table(table, partial, compression="zstd")
        return path

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read a result that `save` wrote.

        Args:
            path: the file.

        Raises:
            UnknownNameError: the name ends in neither `.json` nor `.parquet`.
            RecordingError: the file is missing, cannot be read or holds another kind of result.
        """
        path, what = require_suffix(Path(path)), cls.__name__
        if not path.is_file():
            raise RecordingError(
                f"expected a saved {what}, found no file {str(path)!r}; write one with {what}.save(path)"
            )
        try:
            data = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else cls._read_parquet(path)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise RecordingError(f"{str(path)!r} cannot be read ({reason}); write it again with {what}.save") from error
        return cls.from_dict(data if isinstance(data, dict) else {})

    _INDENT: ClassVar[int | None] = None

    def _parquet_head(self) -> dict[str, Any]:
        """Return what a Parquet file keeps in its metadata: here everything that `to_dict` returns."""
        return self.to_dict()

    @classmethod
    def _read_parquet(cls, path: Path) -> Any:
        return read_head(pq.read_schema(path))


class SavedRows(Saved):
    """A saved result that is a dataclass of plain values, arrays and other such dataclasses.

    A subclass defines `FORMAT` and `records`.
    """

    _INDENT: ClassVar[int | None] = 1

    def records(self) -> list[dict[str, Any]]:
        """Return the rows of the result's table, each as values by column."""
        raise NotImplementedError

    def columns(self) -> dict[str, Any]:
        rows = self.records()
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = json_values(asdict(self))  # type: ignore[call-overload]
        return {"format": self.FORMAT, "moelens": __version__} | values

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        result: Self = _from_json_values(cls, data)
        return result


class SavedCells(Saved):
    """A saved result of arrays with common named axes; its table has one row for each cell of them.

    A subclass defines `FORMAT`, `axes`, `cells`, `facts` and `build`.
    """

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """The axes in the order of the arrays' dimensions, each with the names of its positions."""
        raise NotImplementedError

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        """Arrays by name; each has all the axes."""
        raise NotImplementedError

    @property
    def facts(self) -> Mapping[str, Any]:
        """Everything else that is saved, as JSON values by name."""
        raise NotImplementedError

    @classmethod
    def build(cls, axes: Mapping[str, Any], cells: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Make the result from its axes, cells and facts."""
        raise NotImplementedError

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the table's columns, the axes first; each holds one value for every cell."""
        positions = np.indices([len(names) for names in self.axes.values()]).reshape(len(self.axes), -1)
        named = zip(self.axes.items(), positions, strict=True)
        columns = {axis: np.array(names)[position] for (axis, names), position in named}
        return columns | {name: values.ravel() for name, values in self.cells.items()}

    def to_dict(self) -> dict[str, Any]:
        return self._head() | {"cells": {name: json_values(values) for name, values in self.cells.items()}}

    def _head(self) -> dict[str, Any]:
        axes = {axis: list(names) for axis, names in self.axes.items()}
        return {"format": self.FORMAT, "axes": axes, "facts": dict(self.facts)}

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        axes = {axis: tuple(names) for axis, names in data["axes"].items()}
        shape = [len(names) for names in axes.values()]
        cells = {name: number_array(values).reshape(shape) for name, values in data["cells"].items()}
        return cls.build(axes, cells, data["facts"])

    def _parquet_head(self) -> dict[str, Any]:
        return self._head() | {"kept": list(self.cells)}

    @classmethod
    def _read_parquet(cls, path: Path) -> Any:
        table = pq.read_table(path)
        head = read_head(table.schema)
        return head | {"cells": {name: table[name].to_numpy() for name in head.pop("kept", ())}}


def read_head(schema: pa.Schema) -> dict[str, Any]:
    """Return what `save` put into the metadata of a Parquet file; an empty dict for any other file."""
    head: dict[str, Any] = json.loads((schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    return head


def json_values(value: Any) -> Any:
    """Convert nested values to JSON values.

    Args:
        value: plain values, arrays, and lists, tuples and dicts of them.

    Returns:
        The same with lists in place of arrays and tuples, and None in place of numbers that are not finite.

    Example:
        >>> json_values({"p": (1, float("nan")), "counts": np.arange(2)})
        {'p': [1, None], 'counts': [0, 1]}
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return value.tolist()
        objects = value.astype(object)
        objects[~np.isfinite(value)] = None
        return objects.tolist()
    if isinstance(value, dict):
        return {k: json_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _from_json_values(kind: Any, value: Any) -> Any:
    """Convert JSON values back to a value of type `kind`.

    >>> _from_json_values(tuple[float, ...], [1.0, None])
    (1.0, nan)
    """
    if value is None:
        return float("nan") if kind is float else None
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        values = {f.name: _from_json_values(hints[f.name], value[f.name]) for f in fields(kind)}
        return kind(**values)  # type: ignore[operator]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is np.ndarray:
        return np.array(value, float)  # None becomes NaN
    if origin is tuple:
        kinds = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        return tuple(map(_from_json_values, kinds, value))
    if NoneType in inner:
        return _from_json_values(next(k for k in inner if k is not NoneType), value)
    return value


def number_array(values: Any) -> NDArray[Any]:
    """Convert a list of numbers to an array: int64 if all are integers, else float64 with NaN in place of None.

    >>> number_array([1, 2]).dtype, number_array([1.0, None]).tolist()
    (dtype('int64'), [1.0, nan])
    """
    array = np.asarray(values)
    return np.asarray(array, float) if array.dtype == object else array
