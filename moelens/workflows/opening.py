"""`moelens.open`: open whatever moelens wrote, a recording or the file of a result."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from moelens.errors import RecordingError
from moelens.recording import Recording
from moelens.saved import Saved, read_head

_CLASSES = {
    "attribution": "interventions:Attribution",
    "causes": "interventions:Causes",
    "comparison": "analysis:Comparison",
    "counts": "analysis:Counts",
    "effect": "interventions:Effect",
    "lens": "interventions.lens:ExpertLens",
    "measure": "analysis:Measure",
    "preferences": "interventions.preference:Preferences",
    "probe": "probes:ProbeResult",
    "specialization": "analysis:Specialization",
    "steering": "interventions:Steering",
}
"""The class of each format of results, as room:class."""


def open_saved(path: str | Path) -> Any:
    """Open a recording, or a result that `save` wrote.

    Args:
        path: the folder of a recording, or a `.json` or `.parquet` file of a result.

    Returns:
        The `Recording`, or the result.

    Raises:
        RecordingError: there is neither.

    Example:
        >>> moelens.open(demo_recording.path).n_documents
        40
    """
    if not isinstance(path, (str, Path)) or Path(path).suffix not in (".json", ".parquet") or Path(path).is_dir():
        return Recording.open(path)
    kind = _format(Path(path)).removeprefix("moelens.").partition("/")[0]
    if kind not in _CLASSES:
        raise RecordingError(
            f"expected a result that moelens saved, got '{path}', which is none; give the folder of a recording or a "
            "file that save or --out wrote"
        )
    room, _, name = _CLASSES[kind].partition(":")
    result: type[Saved] = getattr(import_module(f"moelens.{room}"), name)
    return result.open(path)


def _format(path: Path) -> str:
    """The format that a file states; "" for any other file."""
    try:
        head = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else read_head(pq.read_schema(path))
    except (OSError, ValueError):
        return ""
    return str(head.get("format", "")) if isinstance(head, dict) else ""
