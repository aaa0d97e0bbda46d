"""What all results can do: say what they hold, cell by cell; be saved and opened again, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

KEY = b"moelens"


class Result(Saved):
    """Arrays that share named axes, and facts about them. A subclass gives `axes`, `cells`, `facts` and `build`."""

    @property
    def axes(self) -> Mapping[str, tuple[Any, ...]]:
        """The axes in order, with the name of each place on them."""
        raise NotImplementedError

    @property
    def cells(self) -> Mapping[str, NDArray[Any]]:
        """Arrays over all axes: what has to be kept."""
        raise NotImplementedError

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON values: everything else that has to be kept."""
        raise NotImplementedError

    @classmethod
    def build(cls, axes: Mapping[str, Any], cells: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """The result that has these."""
        raise NotImplementedError

    def columns(self) -> dict[str, NDArray[Any]]:
        """One value for each cell, by name: the axes, then the arrays."""
        places = np.indices([len(names) for names in self.axes.values()]).reshape(len(self.axes), -1)
        names = {axis: np.array(values)[place] for (axis, values), place in zip(self.axes.items(), places, strict=True)}
        return names | {name: values.ravel() for name, values in self.cells.items()}

    def to_pandas(self) -> pd.DataFrame:
        """One row for each cell, with the columns of `columns`."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; None where a number is not finite."""
        cells = {name: plain(values) for name, values in self.cells.items()}
        return {
            "format": self.FORMAT,
            "axes": {name: list(places) for name, places in self.axes.items()},
            "facts": dict(self.facts),
            "cells": cells,
        }

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        axes = {name: tuple(places) for name, places in data["axes"].items()}
        shape = [len(places) for places in axes.values()]
        cells = {name: number_array(values).reshape(shape) for name, values in data["cells"].items()}
        return cls.build(axes, cells, data["facts"])

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, or as Parquet (a row a cell) if the name ends in .parquet, and return where."""
        path = Path(path)
        if path.suffix == ".parquet":
            head = {k: v for k, v in self.to_dict().items() if k != "cells"} | {"kept": list(self.cells)}
            table = pa.table(self.columns()).replace_schema_metadata({KEY: json.dumps(head, allow_nan=False)})
            pq.write_table(table, path, compression="zstd")
        else:
            path.write_text(json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Any:
        return read_parquet(path) if path.suffix == ".parquet" else super().read(path)


def read_parquet(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    head: dict[str, Any] = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
    return head | {"cells": {name: table[name].to_numpy() for name in head.pop("kept", ())}}


def number_array(values: Any) -> NDArray[Any]:
    """Numbers as they were: whole ones as int64, others as float64 with NaN for None."""
    array = np.asarray(values)
    return np.asarray(array, float) if array.dtype == object else array


def plain(values: NDArray[Any]) -> Any:
    """Nested lists with None for what is not finite, which JSON does not have."""
    if values.dtype.kind != "f":
        return values.tolist()
    held = values.astype(object)
    held[~np.isfinite(values)] = None
    return held.tolist()
