"""How results are saved and opened again, as JSON or Parquet, without pickle: one base class for all of them."""

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

from moelens.errors import RecordingError, UnknownNameError
from moelens.version import __version__

if TYPE_CHECKING:
    import pandas as pd

METADATA_KEY = b"moelens"
"""Where a Parquet file keeps what its columns do not hold."""
SUFFIXES = (".json", ".parquet")


class Saved:
    """Gives a result `save`, `open`, `to_dict`, `from_dict` and `to_pandas`.

    A subclass gives `FORMAT`, `to_dict`, `restore` and `columns`.
    """

    FORMAT: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; None where a number is not finite."""
        raise NotImplementedError

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`, for a dict that is of this format."""
        raise NotImplementedError

    def columns(self) -> dict[str, Any]:
        """The columns of the result's table, by name."""
        raise NotImplementedError

    def to_pandas(self) -> pd.DataFrame:
        """The result's table, with the columns of `columns`."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            RecordingError: `data` is of another format.
        """
        if data.get("format") != cls.FORMAT:
            raise RecordingError(
                f"format {data.get('format')!r}; allowed: {cls.FORMAT!r}, as {cls.__name__}.save writes it"
            )
        return cls.restore(data)

    def save(self, path: str | Path) -> Path:
        """Write the result and return the path: JSON (`.json`), or Parquet (`.parquet`) with the rows of `to_pandas`.

        Raises:
            UnknownNameError: the name ends in neither.
        """
        path = _checked(Path(path))
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(), ensure_ascii=False, indent=self._INDENT, allow_nan=False)
            path.write_text(text + "\n", encoding="utf-8")
        else:
            head = json.dumps(self._parquet_head(), ensure_ascii=False, allow_nan=False)
            table = pa.table(self.columns()).replace_schema_metadata({METADATA_KEY: head})
            pq.write_table(table, path, compression="zstd")
        return path

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UnknownNameError: the name ends in neither `.json` nor `.parquet`.
            RecordingError: the file is missing or holds something else.
        """
        path, what = _checked(Path(path)), cls.__name__
        if not path.is_file():
            raise RecordingError(f"no {what.lower()} at {str(path)!r}; write one with {what}.save(path)")
        try:
            data = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else cls._read_parquet(path)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise RecordingError(f"{str(path)!r} cannot be read ({reason}); write it again with {what}.save") from error
        return cls.from_dict(data if isinstance(data, dict) else {})

    _INDENT: ClassVar[int | None] = None

    def _parquet_head(self) -> dict[str, Any]:
        """What a Parquet file keeps beside its columns: everything, unless the columns are enough for a part of it."""
        return self.to_dict()

    @classmethod
    def _read_parquet(cls, path: Path) -> Any:
        return read_head(pq.read_table(path))


class SavedRows(Saved):
    """A result that is a dataclass of plain values, arrays and other such dataclasses.

    A subclass gives `FORMAT` and `records`.
    """

    _INDENT: ClassVar[int | None] = 1

    def records(self) -> list[dict[str, Any]]:
        """The rows of the result's table."""
        raise NotImplementedError

    def columns(self) -> dict[str, Any]:
        rows = self.records()
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = json_values(asdict(self))  # type: ignore[call-overload]
        return {"format": self.FORMAT, "moelens": __version__} | values

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        found: Self = from_json_values(cls, data)
        return found


class SavedCells(Saved):
    """A result of arrays that share named axes, and facts about them: a row of its table is a cell.

    A subclass gives `FORMAT`, `axes`, `cells`, `facts` and `build`.
    """

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """The axes in order, with the name of each place on them."""
        raise NotImplementedError

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        """Arrays over all axes."""
        raise NotImplementedError

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON values: everything else that is saved."""
        raise NotImplementedError

    @classmethod
    def build(cls, axes: Mapping[str, Any], cells: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """The result that has these axes, cells and facts."""
        raise NotImplementedError

    def columns(self) -> dict[str, NDArray[Any]]:
        """One value for each cell, by name: the axes, then the arrays."""
        places = np.indices([len(names) for names in self.axes.values()]).reshape(len(self.axes), -1)
        names = {axis: np.array(values)[place] for (axis, values), place in zip(self.axes.items(), places, strict=True)}
        return names | {name: values.ravel() for name, values in self.cells.items()}

    def to_dict(self) -> dict[str, Any]:
        return self._head() | {"cells": {name: json_values(values) for name, values in self.cells.items()}}

    def _head(self) -> dict[str, Any]:
        axes = {name: list(places) for name, places in self.axes.items()}
        return {"format": self.FORMAT, "axes": axes, "facts": dict(self.facts)}

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        axes = {name: tuple(places) for name, places in data["axes"].items()}
        shape = [len(places) for places in axes.values()]
        cells = {name: number_array(values).reshape(shape) for name, values in data["cells"].items()}
        return cls.build(axes, cells, data["facts"])

    def _parquet_head(self) -> dict[str, Any]:
        return self._head() | {"kept": list(self.cells)}

    @classmethod
    def _read_parquet(cls, path: Path) -> Any:
        table = pq.read_table(path)
        head = read_head(table)
        return head | {"cells": {name: table[name].to_numpy() for name in head.pop("kept", ())}}


def _checked(path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        raise UnknownNameError(f"expected a file name that ends in .json or .parquet, got '{path}'; rename it")
    return path


def read_head(table: pa.Table) -> dict[str, Any]:
    """What a result's Parquet file keeps beside its columns; nothing for another file."""
    found: dict[str, Any] = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    return found


def json_values(value: Any) -> Any:
    """The same as JSON values: lists for arrays and tuples, None for numbers that are not finite.

    >>> json_values({"p": (1, float("nan")), "counts": np.arange(2)})
    {'p': [1, None], 'counts': [0, 1]}
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return value.tolist()
        held = value.astype(object)
        held[~np.isfinite(value)] = None
        return held.tolist()
    if isinstance(value, dict):
        return {k: json_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def from_json_values(kind: Any, value: Any) -> Any:
    """The inverse of `json_values` for a value of type `kind`.

    >>> from_json_values(tuple[float, ...], [1.0, None])
    (1.0, nan)
    """
    if value is None:
        return float("nan") if kind is float else None
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        values = {f.name: from_json_values(hints[f.name], value[f.name]) for f in fields(kind)}
        return kind(**values)  # type: ignore[operator]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is np.ndarray:
        return np.array(value, float)  # None becomes NaN
    if origin is tuple:
        kinds = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        return tuple(map(from_json_values, kinds, value))
    if NoneType in inner:
        return from_json_values(next(k for k in inner if k is not NoneType), value)
    return value


def number_array(values: Any) -> NDArray[Any]:
    """Numbers as they were: whole ones as int64, others as float64 with NaN for None."""
    array = np.asarray(values)
    return np.asarray(array, float) if array.dtype == object else array
