"""The one place where results that were saved are opened again, or refused in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from moelens.errors import RecordingError


class Saved:
    """Gives a result `open` and `from_dict`. A subclass gives `FORMAT`, `save` and `restore`."""

    FORMAT: ClassVar[str]

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`, for a dict that is of this format."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path) -> Any:
        """The JSON values in a file. Raises `ValueError` where it holds something else."""
        return json.loads(path.read_text("utf-8"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises `RecordingError` for anything else."""
        if data.get("format") != cls.FORMAT:
            raise RecordingError(
                f"format {data.get('format')!r}; allowed: {cls.FORMAT!r}, as {cls.__name__}.save writes it"
            )
        return cls.restore(data)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises `RecordingError` when the file is missing or holds something else."""
        path, what = Path(path), cls.__name__
        if not path.is_file():
            raise RecordingError(f"no {what.lower()} at {str(path)!r}; write one with {what}.save(path)")
        try:
            data = cls.read(path)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise RecordingError(f"{str(path)!r} cannot be read ({reason}); write it again with {what}.save") from error
        return cls.from_dict(data if isinstance(data, dict) else {})
