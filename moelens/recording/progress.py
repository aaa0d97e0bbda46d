"""Unfinished recordings: a recording is made in pieces that are committed as it goes, so that little work is lost.

During a run, the folder of the recording holds `progress/`, with `settings.json` (the settings of the run) and, for
each group of successive pieces that is complete, its part of the documents and `NNNNN.json`, which lists its shards;
NNNNN is the number of its first piece. That file commits the pieces, as `manifest.json` commits the whole recording.
Files that neither of them lists are ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moelens.errors import RecordingError
from moelens.recording.captures import TABLES
from moelens.recording.storage import Folder
from moelens.recording.writer import Shard, merge_files

MANIFEST = "manifest.json"
PROGRESS = "progress"
SETTINGS = f"{PROGRESS}/settings.json"
UNCAPTURED = "uncaptured"
_MAY_DIFFER = ("libraries", "moelens", "license")  # of the settings of a run that finds its recording finished

_RECORDING_FILES = (
    "tokens/",
    "documents.parquet",
    "README.md",
    "labels/",
    f"{UNCAPTURED}/",
    f"{PROGRESS}/",
    *(f"{table}/" for table in TABLES),
    MANIFEST,
)


def begin_recording(folder: Folder, settings: dict[str, Any], force: bool) -> dict[str, Any]:
    """Begin a recording in a folder, or continue the unfinished one that it holds.

    Args:
        folder: The folder.
        settings: The settings of the run; those under "same" have to equal those of an unfinished recording.
        force: Replace a recording that is in the folder.

    Returns:
        The settings with which the recording was begun.

    Raises:
        RecordingError: If the folder holds a recording, one that was begun with other settings, or something else.
    """
    require_place(folder, force)
    with folder.explain_errors():
        begun: dict[str, Any] | None = None
        if folder.exists(SETTINGS):
            with suppress(RecordingError) if force else nullcontext():
                begun = _read_progress(folder, SETTINGS)
        finished = folder.exists(MANIFEST)
        if finished and begun is None and not force:
            raise finished_error(folder)
        differences = _describe_differences(begun["same"], settings["same"]) if begun else ""
        if force and (finished or differences or begun is None):
            clear_recording(folder, remove_folder=False)
            begun, differences = None, ""
        if begun is None:
            begun = settings
            folder.write_json(SETTINGS, settings)
    if differences:
        raise RecordingError(
            f"'{folder.location}' holds an unfinished recording with other settings ({differences}); repeat its command"
            " to finish it, choose another folder, or start again with force=True (--force)"
        )
    folder.claim()
    return begun


def finished_error(folder: Folder, why: str = "") -> RecordingError:
    """Make the error for a folder that holds a finished recording; `why` says why it is not the one of this run."""
    return RecordingError(
        f"'{folder.location}' already holds a recording{why}; open it with moelens.open('{folder.location}'), choose"
        " another folder, or replace it with force=True (--force)"
    )


def differences_from_manifest(manifest: dict[str, Any], same: dict[str, Any]) -> str:
    """Return in what the settings of a run differ from those of a finished recording; "" if in nothing.

    Versions of libraries and the licence may differ. What the manifest says beyond the settings is left out.
    """

    def part(of: Any, like: Any) -> Any:
        return {key: part(of.get(key), like[key]) for key in like} if isinstance(like, dict) and of else of

    wanted = {key: value for key, value in same.items() if key not in _MAY_DIFFER}
    return _describe_differences(part(manifest, wanted), wanted)


def require_place(folder: Folder, force: bool) -> None:
    """Check, before a model is loaded, that a recording can be begun or continued in a folder.

    Args:
        folder: The folder.
        force: Whether a recording in it may be replaced.

    Raises:
        RecordingError: If it holds something else than a recording.
    """
    with folder.explain_errors():
        if folder.exists(SETTINGS) or folder.exists(MANIFEST):
            return
        if folder.is_local and folder.exists() and not folder.fs.isdir(folder.root):
            raise folder.occupied_error()
        for name in folder.names():
            if not (name.startswith(_RECORDING_FILES) and (force or name.startswith(PROGRESS))):
                raise folder.occupied_error()


def clear_recording(folder: Folder, remove_folder: bool = True) -> None:
    """Remove the files of a recording, the manifest first.

    Args:
        folder: The folder of the recording.
        remove_folder: Remove the folder as well if nothing else is in it.
    """
    names = {name.split("/")[0] for name in folder.names() if name.startswith(_RECORDING_FILES)}
    for name in [*sorted(names & {MANIFEST}), *sorted(names - {MANIFEST})]:
        folder.remove(name)
    if remove_folder and folder.exists() and folder.is_empty():
        folder.remove()


def _describe_differences(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Return the keys in which two settings differ, with their values if these are short."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            values = f"{a.get(key)} and {b.get(key)}"
            found.append(f"{key}: {values}" if len(values) < 80 else key)
    return ", ".join(found)


def commit_name(piece: int) -> str:
    """Return the name of the file that commits a piece and perhaps those that follow it."""
    return f"{PROGRESS}/{piece:05d}.json"


def documents_part_name(piece: int) -> str:
    """Return the name of the file with the documents of a piece."""
    return f"{PROGRESS}/documents-{piece:05d}.parquet"


def commit_piece(
    folder: Folder,
    piece: int,
    shards: Sequence[Shard],
    documents: Shard,
    methods: Counter[str],
    routes: Counter[str],
    special_tokens: Counter[str] | None = None,
    *,
    last: int | None = None,
) -> None:
    """Commit a piece, or several that follow each other, which will not be recorded again.

    Args:
        folder: The folder of the recording.
        piece: Number of the piece, or of the first of several.
        shards: Its files of tokens and vectors.
        documents: Its file of documents.
        methods: The number of its documents by the method that located their tokens.
        routes: Of generated tokens, the number of choices of an expert that were compared with a forward pass, and of
            those that agreed.
        special_tokens: The number of its documents by where their special tokens are from; None if that is not known.
        last: Number of the last piece, if there are several.
    """
    folder.require_ours()
    entry: dict[str, Any] = {"last": piece if last is None else last}
    entry |= {"shards": [s.to_dict() for s in shards], "documents": documents.to_dict(), "methods": dict(methods)}
    entry |= {"decode_routes": dict(routes), "special_tokens": dict(special_tokens or {})}
    folder.write_json(commit_name(piece), entry)


def _read_progress(folder: Folder, name: str) -> Any:
    """Return the contents of a JSON file of `progress/`.

    Raises:
        RecordingError: If it is not valid JSON, for example after a power failure.
    """
    try:
        return folder.read_json(name)
    except ValueError as error:
        raise _damage_error(folder, name, "is damaged", name) from error


def _damage_error(folder: Folder, name: str, problem: str, commit: str) -> RecordingError:
    """Return the error for a damaged file of an unfinished recording, which `commit` lists."""
    remedy = "the whole folder" if commit == SETTINGS else f"'{commit}' there to record it again, or the whole folder"
    return RecordingError(f"'{name}' of the unfinished recording '{folder.location}' {problem}; delete {remedy}")


def uncommitted_pieces(folder: Folder, pieces: int) -> list[int]:
    """Return the numbers of the pieces that are not committed, and remove the shards that no commit lists.

    Such a shard is of a piece that will be recorded again, perhaps together with those before it under another name.

    Raises:
        RecordingError: If a file of a committed piece is missing, damaged, or has another number of rows.
    """
    names = set(folder.names())
    missing = []
    listed: set[str] = set()
    covered = -1
    for piece in range(pieces):
        commit = commit_name(piece)
        if commit not in names:
            missing += [piece] if piece > covered else []
            continue
        entry = _read_progress(folder, commit)
        covered = max(covered, entry.get("last", piece))
        for shard in (*entry["shards"], entry["documents"]):
            if shard["path"] not in names:
                raise _damage_error(folder, shard["path"], "is missing", commit)
            try:
                rows = pq.read_metadata(folder.source(shard["path"])).num_rows
            except (pa.ArrowInvalid, OSError) as error:
                raise _damage_error(folder, shard["path"], "is damaged", commit) from error
            if rows != shard["rows"]:
                raise _damage_error(folder, shard["path"], f"has {rows} rows instead of {shard['rows']}", commit)
            listed.add(shard["path"])
    for name in names - listed:
        if name.endswith(".parquet") and name.split("/")[0] in ("tokens", *TABLES):
            folder.remove(name)
    return missing


def merge_pieces(folder: Folder, pieces: int, same: dict[str, Any]) -> dict[str, Any]:
    """Merge the documents of all pieces, and return the manifest. After an interruption, this can be repeated.

    Args:
        folder: The folder of the recording.
        pieces: The number of pieces, all of which are committed.
        same: The settings of the recording, which become part of the manifest.

    Raises:
        RecordingError: If a file of `progress/` is damaged, or another run claimed the folder.
    """
    folder.require_ours()
    committed = [piece for piece in range(pieces) if folder.exists(commit_name(piece))]
    entries = [_read_progress(folder, commit_name(piece)) for piece in committed]
    for piece, entry in zip(committed, entries, strict=True):
        if folder.checksum(documents_part_name(piece)) != entry["documents"]["sha256"]:
            raise _damage_error(folder, documents_part_name(piece), "is damaged", commit_name(piece))
    documents = merge_files(folder, [documents_part_name(piece) for piece in committed], "documents.parquet")
    tokens: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    methods: Counter[str] = Counter()
    routes: Counter[str] = Counter()
    special_tokens: Counter[str] = Counter()
    for entry in entries:
        methods.update(entry["methods"])
        routes.update(entry["decode_routes"])
        special_tokens.update(entry["special_tokens"])
        for shard in entry["shards"]:
            name = shard["path"].split("/")[0]
            (tokens if name == "tokens" else tables.setdefault(name, [])).append(shard)
    generation = {"generation": same["generation"] | {"decode_routes": dict(routes)}} if "generation" in same else {}
    counted = {
        "n_documents": documents.rows,
        "n_tokens": sum(s["rows"] for s in tokens),
        "shards": tokens,
        "tables": tables,
        "documents": documents.to_dict(),
        "tokenizer": same.get("tokenizer", {})
        | {"documents_by_spans": dict(methods), "documents_by_special_tokens": dict(special_tokens)},
    }
    return same | counted | generation
