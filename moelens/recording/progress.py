"""A recording being made: cut into pieces that are committed one by one, so that nothing done is lost.

While it is made, `out` holds `progress/`: `settings.json`, what was asked for; and for each piece that is complete its
part of the documents and `NNNNN.json`, which names its shards. That file is the commit of a piece, as `manifest.json`
is that of the whole; what neither names does not count.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moelens.errors import MoeLensError, RecordingError
from moelens.recording.corpus import Corpus, Document
from moelens.recording.storage import Folder
from moelens.recording.writer import Shard, merge

MANIFEST = "manifest.json"
PROGRESS = "progress"
SETTINGS = f"{PROGRESS}/settings.json"
CHUNK = 1024
OURS = ("tokens/", "documents.parquet", "README.md", "labels/", f"{PROGRESS}/", "neurons/", "expert_outputs/",
        "logits/", "shared/", "residuals/", MANIFEST)  # fmt: skip

Types = dict[str, pa.DataType]


@dataclass(frozen=True)
class Survey:
    """What one reading of a corpus, before the model is run, finds.

    Attributes:
        types: of the metadata columns.
        lengths: characters of each document.
        sha256: of all the texts.
    """

    types: Types
    lengths: Sequence[int]
    sha256: str

    def pieces(self, characters: int) -> list[range]:
        """Documents cut into runs of just over so many characters."""
        found, start, size = [], 0, 0
        for i, length in enumerate(self.lengths):
            size += length
            if size >= characters:
                found.append(range(start, i + 1))
                start, size = i + 1, 0
        return [*found, range(start, len(self.lengths))] if start < len(self.lengths) else found


def survey(corpus: Corpus) -> Survey:
    """Read the corpus once: nothing that is wrong with a document may surface when the model has run for a day.

    Raises:
        MoeLensError: a document cannot be read, or a metadata column holds values of different types.
    """
    types: Types = {}
    lengths = array("I")
    digest, documents = hashlib.sha256(), iter(corpus)
    while chunk := list(islice(documents, CHUNK)):
        lengths.extend(len(document.text) for document in chunk)
        for document in chunk:
            digest.update(document.text.encode() + b"\0")
        for name in dict.fromkeys(key for document in chunk for key in document.metadata):
            try:
                found = pa.array([known(document, name) for document in chunk]).type
                both = [pa.schema([(name, t)]) for t in (types.get(name, pa.null()), found)]
                types[name] = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise MoeLensError(
                    f"metadata column {name!r} of corpus '{corpus.name}' cannot be kept ({error}); give it one type"
                ) from error
    return Survey({name: storable(kind) for name, kind in types.items()}, lengths, digest.hexdigest())


def known(document: Document, name: str) -> Any:
    """A value of the metadata; an empty dict is none, as Parquet has no records without fields."""
    value = document.metadata.get(name)
    return None if isinstance(value, dict) and not value else value


def storable(kind: pa.DataType) -> pa.DataType:
    """A column, or a list, of nothing but nulls is one of strings: not every reader knows the null type."""
    if pa.types.is_list(kind):
        return pa.list_(storable(kind.value_type))
    return pa.string() if pa.types.is_null(kind) else kind


def documents_table(
    first: int, documents: Sequence[Document], types: Types, generated: Sequence[str] | None
) -> pa.Table:
    """`doc`, `text`, where the model went on `generated`, and the metadata."""
    columns: dict[str, list[Any]] = {
        "doc": list(range(first, first + len(documents))),
        "text": [document.text for document in documents],
    }
    schema = [("doc", pa.int32()), ("text", pa.string())]
    if generated is not None:
        columns["generated"] = list(generated)
        schema.append(("generated", pa.string()))
    columns |= {name: [known(document, name) for document in documents] for name in types}
    return pa.table(columns, schema=pa.schema([*schema, *types.items()]))


# Pieces


def begin(folder: Folder, settings: dict[str, Any], force: bool) -> dict[str, Any]:
    """Take the folder for a recording with these settings, or go on with the one that was begun there.

    Returns:
        The settings as they were when it was begun.

    Raises:
        RecordingError: the folder holds a recording, one begun with other settings, or something else.
    """
    with folder.explained():
        begun: dict[str, Any] | None = None
        if folder.exists(SETTINGS):
            with suppress(RecordingError) if force else nullcontext():
                begun = state(folder, SETTINGS)
        whole = folder.exists(MANIFEST)
        in_the_way = [n for n in folder.names() if not (n.startswith(OURS) and (force or n.startswith(PROGRESS)))]
        if in_the_way and not whole and begun is None:
            raise folder.in_the_way()
        if whole and begun is None and not force:
            raise RecordingError(
                f"'{folder.where}' holds a recording already; choose another folder, or replace it with force=True"
                " (--force)"
            )
        other = differing(begun["same"], settings["same"]) if begun else ""
        if force and (whole or other or begun is None):
            clear(folder, whole=False)
            begun, other = None, ""
        if begun is None:
            begun = settings
            folder.write_json(SETTINGS, settings)
    if other:
        raise RecordingError(
            f"'{folder.where}' holds a recording begun with other settings ({other}); repeat the first command to"
            " finish it, choose another folder, or start anew with force=True (--force)"
        )
    return begun


def clear(folder: Folder, whole: bool = True) -> None:
    """Remove a recording, the manifest first, and, if `whole`, the folder where nothing else is in it."""
    for name in sorted({n.split("/")[0] for n in folder.names() if n.startswith(OURS)}, key=MANIFEST.__ne__):
        folder.remove(name)
    if whole and folder.exists() and folder.is_empty():
        folder.remove()


def differing(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The keys in which two settings differ, with their values where they are short."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            values = f"{a.get(key)} and {b.get(key)}"
            found.append(f"{key}: {values}" if len(values) < 80 else key)
    return ", ".join(found)


def commit_name(piece: int) -> str:
    return f"{PROGRESS}/{piece:05d}.json"


def part_name(piece: int) -> str:
    return f"{PROGRESS}/documents-{piece:05d}.parquet"


def commit(
    folder: Folder,
    piece: int,
    shards: Sequence[Shard],
    documents: Shard,
    methods: Counter[str],
    routes: Counter[str] | None = None,
) -> None:
    """Make a piece count."""
    entry = {"shards": [s.to_dict() for s in shards], "documents": documents.to_dict(), "methods": dict(methods)}
    entry["decode_routes"] = dict(routes or {})
    folder.write_json(commit_name(piece), entry)


def state(folder: Folder, name: str) -> Any:
    """What a file of `progress/` says.

    Raises:
        RecordingError: it is no JSON, as after a power cut.
    """
    try:
        return folder.read_json(name)
    except ValueError as error:
        raise torn(folder, name, "is damaged", name) from error


def torn(folder: Folder, name: str, what: str, commit: str) -> RecordingError:
    again = "the whole folder" if commit == SETTINGS else f"'{commit}' there to record it again, or the whole folder"
    return RecordingError(f"'{name}' of the unfinished recording '{folder.where}' {what}; delete {again}")


def to_do(folder: Folder, pieces: int) -> list[int]:
    """Pieces that are not committed.

    Raises:
        RecordingError: a committed piece's file is gone, or has not the rows that it had.
    """
    names = set(folder.names())
    missing = []
    for piece in range(pieces):
        commit = commit_name(piece)
        if commit not in names:
            missing.append(piece)
            continue
        entry = state(folder, commit)
        for shard in (*entry["shards"], entry["documents"]):
            if shard["path"] not in names:
                raise torn(folder, shard["path"], "is missing", commit)
            try:
                rows = pq.read_metadata(folder.source(shard["path"])).num_rows
            except (pa.ArrowInvalid, OSError) as error:
                raise torn(folder, shard["path"], "is damaged", commit) from error
            if rows != shard["rows"]:
                raise torn(folder, shard["path"], f"has {rows} rows, not {shard['rows']}", commit)
    return missing


def finish(folder: Folder, pieces: int, same: dict[str, Any]) -> dict[str, Any]:
    """Merge the documents' parts, and gather the manifest's list of shards; both can be done again after a kill."""
    entries = [state(folder, commit_name(piece)) for piece in range(pieces)]
    for piece, entry in enumerate(entries):
        if folder.checksum(part_name(piece)) != entry["documents"]["sha256"]:
            raise torn(folder, part_name(piece), "is damaged", commit_name(piece))
    documents = merge(folder, [part_name(piece) for piece in range(pieces)], "documents.parquet")
    tokens: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    methods: Counter[str] = Counter()
    routes: Counter[str] = Counter()
    for entry in entries:
        methods.update(entry["methods"])
        routes.update(entry.get("decode_routes", {}))
        for shard in entry["shards"]:
            name = shard["path"].split("/")[0]
            (tokens if name == "tokens" else tables.setdefault(name, [])).append(shard)
    return (
        same
        | {
            "n_documents": documents.rows,
            "n_tokens": sum(s["rows"] for s in tokens),
            "shards": tokens,
            "tables": tables,
            "documents": documents.to_dict(),
            "tokenizer": same.get("tokenizer", {}) | {"documents_by_spans": dict(methods)},
        }
        | ({"generation": same["generation"] | {"decode_routes": dict(routes)}} if "generation" in same else {})
    )
