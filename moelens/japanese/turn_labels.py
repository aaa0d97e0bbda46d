"""Labels of the tokens of conversations: who speaks, and in which turn. They come from the recording, not the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

_FILE = "conversation.parquet"
_MOST_TURNS = 10  # turns with a label of their own; later ones share "10+"


class _Recording(Protocol):
    def columns(self, names: Sequence[str]) -> Iterator[tuple[slice, list[npt.NDArray[Any]]]]: ...


def write_turn_labels(recording: _Recording, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write the labels of a recording's tokens, if it is of conversations.

    Args:
        recording: The recording, with the columns `role` and `turn` if its manifest lists them.
        folder: The folder of the labels.
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
    partial = folder / f".{_FILE}"
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for _, (role, turn) in recording.columns(["role", "turn"]):
            values = {"role": role, "turn": np.array([_turn_name(n) for n in turn.tolist()], object)}
            has = [values[family] == label for family, _, label in (name.partition(".") for name in columns)]
            writer.write_table(pa.table([pa.array(column.astype(bool)) for column in has], schema=schema))
    partial.replace(folder / _FILE)


def turn_families(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the labels of the families `role` and `turn`; none if the recording is not of conversations."""
    if not (folder / _FILE).exists():
        return {}
    families: dict[str, tuple[str, ...]] = {}
    for family, _, label in (name.partition(".") for name in pq.read_schema(folder / _FILE).names):
        families[family] = (*families.get(family, ()), label)
    return families


def turn_file(folder: Path) -> Path:
    """Return the file with the families of `turn_families`."""
    return folder / _FILE


def _turn_name(turn: int) -> str:
    return str(turn) if turn < _MOST_TURNS else f"{_MOST_TURNS}+"
