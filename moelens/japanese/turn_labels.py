"""Labels of the tokens of conversations: who speaks, and in which turn. They come from the recording, not the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

TURN_FAMILIES = ("role", "turn")
"""The families of labels that recordings of conversations have besides."""
_FILE = "conversation.parquet"
_MOST_TURNS = 10  # turns with a label of their own; later ones share "10+"


class _Recording(Protocol):
    def columns(self, names: Sequence[str]) -> Iterator[tuple[slice, list[npt.NDArray[Any]]]]: ...


def write_turn_labels(recording: _Recording, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the labels of a recording's tokens to a file, if it is of conversations.

    Args:
        recording: The recording, with the columns `role` and `turn` if its manifest lists them.
        path: The file.
        metadata: Kept in the file.
    """
    if not getattr(recording, "manifest", {}).get("token_labels"):
        return
    names: dict[str, None] = {}
    for _, (role, turn) in recording.columns(["role", "turn"]):
        names |= dict.fromkeys(f"role.{name}" for name in dict.fromkeys(role.tolist()) if name)
        names |= dict.fromkeys(f"turn.{_turn_name(n)}" for n in np.unique(turn).tolist() if n >= 0)
    columns = sorted(names, key=lambda name: (name.startswith("turn."), len(name) if name.startswith("turn.") else 0))
    schema = pa.schema([(name, pa.bool_()) for name in columns], metadata=dict(metadata))
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for _, (role, turn) in recording.columns(["role", "turn"]):
            values = {"role": role, "turn": np.array([_turn_name(n) for n in turn.tolist()], object)}
            has = [values[family] == label for family, _, label in (name.partition(".") for name in columns)]
            writer.write_table(pa.table([pa.array(column.astype(bool)) for column in has], schema=schema))


def turn_families(columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the labels of the families `role` and `turn`, from the columns of their file.

    Example:
        >>> turn_families(["role.user", "turn.0", "turn.1"])
        {'role': ('user',), 'turn': ('0', '1')}
    """
    families: dict[str, tuple[str, ...]] = {}
    for family, _, label in (name.partition(".") for name in columns):
        families[family] = (*families.get(family, ()), label)
    return families


def turn_file(folder: Path) -> Path:
    """Return the file with the families `role` and `turn`, which only labels of conversations have."""
    return folder / _FILE


def _turn_name(turn: int) -> str:
    return str(turn) if turn < _MOST_TURNS else f"{_MOST_TURNS}+"
