"""Recordings that are changed on disk: by damage, and on purpose with the right checksums."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moelens import Recording
from moelens.checksums import file_checksums
from moelens.recording.manifest import seal


def copied(recording: Recording, folder: Path) -> Recording:
    """Return a copy of a recording with its labels."""
    shutil.copytree(recording.path, folder)
    return Recording.open(folder)


def flip(path: Path, share: float) -> None:
    """Flip a bit of the byte at a share of the size of a file."""
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 16
    path.write_bytes(data)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with its checksum."""
    (folder / "manifest.json").write_text(json.dumps(seal(manifest)), "utf-8")


def rewrite(recording: Recording, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the table in a file of a recording, and the entry of the file in the manifest with it."""
    path = recording.path / name
    table = change(pq.read_table(path, partitioning=None))
    pq.write_table(table, path)
    manifest = copy.deepcopy(recording.manifest)
    tables = [entry for entries in manifest["tables"].values() for entry in entries]
    for entry in (*manifest["shards"], *tables, manifest["documents"]):
        if entry["path"] == name:
            entry |= {"rows": len(table), **file_checksums(path)}
    write_manifest(recording.path, manifest)


def paths_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every field in JSON values; of a list, those in its first item."""
    if at:
        yield at
    for key in value if isinstance(value, dict) else range(min(len(value), 1)) if isinstance(value, list) else ():
        yield from paths_in(value[key], (*at, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return JSON values in which the field at a path is replaced, or removed if `new` is `...`."""
    value = copy.deepcopy(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return value
