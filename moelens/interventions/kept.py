"""What results of interventions and probes can do: be tables, be saved and opened again, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Self, get_args, get_origin, get_type_hints

import numpy as np

from moelens.saved import Saved

if TYPE_CHECKING:
    import pandas as pd


class Kept(Saved):
    """A dataclass of plain values, arrays and other such dataclasses. A subclass gives `FORMAT` and `records`."""

    def records(self) -> list[dict[str, Any]]:
        """What `to_pandas` has rows of."""
        raise NotImplementedError

    def to_pandas(self) -> pd.DataFrame:
        """One row for each of the table's."""
        import pandas as pd

        return pd.DataFrame(self.records())

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, with the version that says so; None where a number is not finite."""
        from moelens import __version__

        found: dict[str, Any] = {"format": self.FORMAT, "moelens": __version__} | nulls(asdict(self))  # type: ignore[call-overload]
        return found

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        found: Self = rebuilt(cls, data)
        return found

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON and return where."""
        path = Path(path)
        data = json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)
        path.write_text(data + "\n", encoding="utf-8")
        return path


def nulls(value: Any) -> Any:
    """The same as JSON values: lists for arrays and tuples, None for what is not finite, which JSON does not have."""
    if isinstance(value, np.ndarray):
        return nulls(value.tolist())
    if isinstance(value, dict):
        return {k: nulls(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [nulls(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def rebuilt(kind: Any, value: Any) -> Any:
    """What `nulls` was given, of the type `kind`.

    >>> rebuilt(tuple[float, ...], [1.0, None])
    (1.0, nan)
    """
    if value is None:
        return float("nan") if kind is float else None
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: rebuilt(hints[f.name], value[f.name]) for f in fields(kind)})  # type: ignore[operator]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is np.ndarray:
        return np.array(value, float)  # None becomes NaN
    if origin is tuple:
        kinds = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        return tuple(map(rebuilt, kinds, value))
    if NoneType in inner:
        return rebuilt(next(k for k in inner if k is not NoneType), value)
    return value
