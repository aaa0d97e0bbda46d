"""`import_routes`: make a recording of routes from arrays, or from the responses of a serving engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moelens.errors import MoeLensError, unknown
from moelens.recording.captures import index_type
from moelens.recording.card import write_card
from moelens.recording.pieces import phase_column
from moelens.recording.progress import (
    MANIFEST,
    PROGRESS,
    begin_recording,
    clear_recording,
    commit_piece,
    documents_part_name,
    merge_pieces,
)
from moelens.recording.route_files import Routes, read_npz, read_responses
from moelens.recording.storage import Folder
from moelens.recording.store import FORMAT, Recording
from moelens.recording.writer import ShardWriter, as_column, layer_label
from moelens.version import __version__

_Array = NDArray[Any]
_GROUP_ROWS = 1 << 16  # tokens in a row group, at least
_KINDS = ("npz", "sglang", "vllm")
_MAX_EXPERTS = 1 << 16  # ids are stored in 16 bits


def import_routes(
    source: str | Path,
    out: str | Path,
    *,
    kind: str = "",
    model: str = "unknown",
    layers: list[int] | None = None,
    n_experts: int | None = None,
    shape: tuple[int, int] | None = None,
    force: bool = False,
) -> Recording:
    """Make a recording of routes that another program computed.

    Args:
        source: A file of one of these kinds:

            - an `.npz` with `expert_ids` `[token, layer, slot]` and, if known, `gate_weights` of the same shape,
              `sequence_lengths` `[document]` and `token_ids` `[token]`;
            - a `.jsonl` or `.jsonl.gz` file with one response per line of SGLang (`--enable-return-routed-experts`) or
              vLLM (`enable_return_routed_experts`).
        out: The folder or fsspec URL to write.
        kind: "npz", "sglang" or "vllm"; it may be left out for an `.npz`.
        model: Name of the model, for the manifest.
        layers: The layers on the second axis; 0, 1, … by default. If that axis has more layers (SGLang includes dense
            ones), those to keep.
        n_experts: Number of experts in a layer; by default the largest id plus one.
        shape: Number of layers and of experts per token in responses of SGLang, which do not contain them.
        force: Replace a recording that is in `out`.

    Returns:
        The recording.

    Raises:
        UnknownNameError: If there is no such kind.
        MoeLensError: If the file does not hold the expected arrays or responses.
        RecordingError: If `out` holds other files.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/routes.npz", expert_ids=np.array([[[0, 3]], [[2, 1]]]))
        ...     import_routes(f"{folder}/routes.npz", f"{folder}/run", n_experts=4).indices().tolist()
        [[[0, 3]], [[2, 1]]]
    """
    path = Path(source)
    kind = kind or ("npz" if path.suffix == ".npz" else "")
    if kind not in _KINDS:
        raise unknown("kind of routes", kind, _KINDS, "choose with kind= (--from)")
    if not path.is_file():
        raise MoeLensError(f"no such file: {str(path)[:80]!r}; give an .npz, or a .jsonl of responses")
    documents = list(read_npz(path) if kind == "npz" else read_responses(path, kind, shape))
    shapes = sorted({d.indices.shape[1:] for d in documents})
    if len(shapes) != 1:
        raise MoeLensError(
            f"expected routes of one shape [layer, slot] in {path.name}, got {shapes}; import them separately"
        )
    n_layers, top_k = shapes[0]
    chosen = list(range(n_layers)) if layers is None else list(layers)
    if len(chosen) < n_layers and max(chosen) < n_layers:
        documents, n_layers = [d.of_layers(chosen) for d in documents], len(chosen)
    if len(chosen) != n_layers:
        raise MoeLensError(
            f"expected {len(chosen)} layers in {path.name}, got {n_layers}; give the layers of the model"
        )
    for number, document in enumerate(documents):
        _check_ids(document.indices, n_experts or _MAX_EXPERTS, chosen, f"document {number} ({path.name})")
    n_experts = n_experts or 1 + max(int(d.indices.max(initial=0)) for d in documents)
    folder = Folder.at(out)
    settings = _describe_import(path.name, kind, model, chosen, n_experts, top_k, documents)
    with folder.locked():
        _write(folder, documents, chosen, n_experts, settings, force)
    return Recording.open(out)


def _check_ids(indices: _Array, n_experts: int, layers: list[int], place: str) -> None:
    """Raise `MoeLensError` unless all ids of `indices` `[token, layer, slot]` are those of experts."""
    wrong = np.argwhere((indices < 0) | (indices >= n_experts))
    if len(wrong):
        row, layer, slot = wrong[0]
        raise MoeLensError(
            f"{place}, row {row}, layer {layers[layer]}: expected experts from 0 to {n_experts - 1}, got"
            f" {indices[row, layer, slot]}; give the number of experts of the model (--experts), or correct the shape"
            " or the integer width of the buffer"
        )


def _describe_import(
    name: str, kind: str, model: str, layers: list[int], n_experts: int, top_k: int, documents: list[Routes]
) -> dict[str, Any]:
    """Return what the manifest states about an import."""
    weighted = all(d.weights is not None for d in documents)
    shape = {"moe_layers": layers, "n_experts": n_experts, "top_k": top_k, "n_layers": layers[-1] + 1}
    capture = {
        "captures": ["routes"],
        "layers": layers,
        "experts": None,
        "dtype": "float16",
        "stored_as": "float16",
        "weights": weighted,
        "generate": 0,
        "index_dtype": np.dtype(index_type(n_experts)).name,
    }
    return {
        "format": FORMAT,
        "moelens": __version__,
        "corpus": name,
        "license": "",
        "model": {"name": model, "revision": None, "dtype": None},
        "engine": {"name": kind},
        "shape": shape,
        "capture": capture,
    }


def _write(
    folder: Folder, documents: list[Routes], layers: list[int], n_experts: int, same: dict[str, Any], force: bool
) -> None:
    """Write a recording with a single shard. An import takes little time; if interrupted, it is done again."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    begin_recording(folder, {"same": same, "created": created, "pieces": [[0, len(documents)]]}, force)
    weighted = same["capture"]["weights"]
    with_phase = any(d.decode is not None for d in documents)
    writer = ShardWriter(folder, "tokens/tokens-00000.parquet")
    try:
        for first, group in _group_documents(documents):
            writer.write(_token_table(first, group, layers, n_experts, weighted=weighted, with_phase=with_phase))
        shard = writer.close()
        texts = ShardWriter(folder, documents_part_name(0))
        columns = {
            "doc": pa.array(range(len(documents)), pa.int32()),
            "text": pa.array([d.text for d in documents], pa.string()),
        }
        texts.write(pa.table(columns))
        commit_piece(folder, 0, [shard], texts.close(), Counter())
    except BaseException as error:
        writer.abandon(error)
        clear_recording(folder)
        raise
    manifest = merge_pieces(folder, 1, same) | {"created": created}
    write_card(folder, manifest)
    folder.write_json(MANIFEST, manifest)
    folder.remove(PROGRESS)


def _group_documents(documents: list[Routes]) -> Iterator[tuple[int, list[Routes]]]:
    """Yield the number of the first and the documents of each row group."""
    group: list[Routes] = []
    size = 0
    for i, document in enumerate(documents, 1):
        group.append(document)
        size += len(document.indices)
        if size >= _GROUP_ROWS or i == len(documents):
            yield i - len(group), group
            group, size = [], 0


def _token_table(
    first: int, documents: list[Routes], layers: list[int], n_experts: int, *, weighted: bool, with_phase: bool
) -> pa.Table:
    """Return the table of tokens of some documents.

    The places of the tokens in their texts, which other programs do not return, are empty.

    Args:
        first: Number of the first document.
        documents: The documents.
        layers: The layers of the routes.
        n_experts: Number of experts in a layer.
        weighted: Whether the routes have weights.
        with_phase: Whether to add the column `phase`.
    """
    lengths = [len(d.indices) for d in documents]
    n = sum(lengths)
    columns: dict[str, _Array] = {
        "doc": np.repeat(np.arange(first, first + len(lengths), dtype=np.int32), lengths),
        "pos": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        "token_id": np.concatenate([np.full(len(d.indices), -1) if d.ids is None else d.ids for d in documents]),
        "char_start": np.zeros(n, np.int32),
        "char_end": np.zeros(n, np.int32),
        "partial": np.zeros(n, np.bool_),
    }
    columns["token_id"] = columns["token_id"].astype(np.int32)
    indices = np.concatenate([d.indices for d in documents]).astype(index_type(n_experts))
    weights = np.concatenate([d.weights for d in documents if d.weights is not None]) if weighted else None
    for i, layer in enumerate(layers):
        columns[f"experts_{layer_label(layer)}"] = indices[:, i]
        if weights is not None:
            columns[f"weights_{layer_label(layer)}"] = weights[:, i].astype(np.float16)
    table = pa.table({name: as_column(values) for name, values in columns.items()})
    if not with_phase:
        return table
    decode = [np.zeros(len(d.indices), np.bool_) if d.decode is None else d.decode for d in documents]
    return table.add_column(6, "phase", phase_column(np.concatenate(decode)))
