"""Recordings from routing that others produced: arrays, and what serving engines return beside their text."""

from __future__ import annotations

import base64
import binascii
import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moelens.errors import MoeLensError, unknown
from moelens.recording.captures import index_type
from moelens.recording.card import write_card
from moelens.recording.corpus import rows_of
from moelens.recording.pieces import phase_column
from moelens.recording.progress import MANIFEST, begin, clear, commit, commit_name, finish, part_name
from moelens.recording.storage import Folder
from moelens.recording.store import FORMAT, Recording
from moelens.recording.writer import ShardWriter, as_column, layer_label
from moelens.version import __version__

Array = NDArray[Any]
INDICES = ("expert_ids", "indices", "experts", "routed_experts")
WEIGHTS = ("gate_weights", "weights", "expert_weights", "routing_weights")
GROUP_ROWS = 1 << 16
KINDS = ("npz", "sglang", "vllm")


@dataclass(frozen=True)
class Routes:
    """The routing of one document.

    Attributes:
        indices: `[token, layer, slot]`.
        weights: the same shape, or None where only experts are known.
        ids: `[token]` token ids, or None.
        text: the document, or None.
        decode: `[token]` bool, the token was written by the model; None where that is not known.
    """

    indices: Array
    weights: Array | None = None
    ids: Array | None = None
    text: str | None = None
    decode: Array | None = None


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
    """A recording of routes that something else computed.

    Args:
        source: an `.npz` with `expert_ids` `[token, layer, slot]` and, if known, `gate_weights` of the same shape,
            `sequence_lengths` `[document]` and `token_ids` `[token]`; or a `.jsonl[.gz]` with a response of SGLang
            (`--enable-return-routed-experts`) or vLLM (`enable_return_routed_experts`) a line.
        out: the folder, or fsspec URL, to write.
        kind: "npz", "sglang" or "vllm"; told by the file where it is not given.
        model: its name, for the manifest.
        layers: which layers the second axis is; 0, 1, … by default. Where it holds all layers of the model, dense ones
            too, as SGLang's does: which of them to keep.
        n_experts: how many experts a layer has; one more than the largest id by default.
        shape: layers and experts a token of SGLang's responses, whose bytes do not say.
        force: replace a recording that is in `out`.

    Raises:
        UnknownNameError: no such kind.
        MoeLensError: the file does not hold what it should.
        RecordingError: `out` is taken.
    """
    path = Path(source)
    kind = kind or ("npz" if path.suffix == ".npz" else "")
    if kind not in KINDS:
        raise unknown("kind of routes", kind, KINDS, "choose with kind= (--from)")
    if not path.is_file():
        raise MoeLensError(f"no such file: {str(path)[:80]!r}; give an .npz or a .jsonl of responses")
    documents = list(from_npz(path) if kind == "npz" else from_responses(path, kind, shape))
    found = sorted({d.indices.shape[1:] for d in documents})
    if len(found) != 1:
        raise MoeLensError(f"{path.name} holds routes of several shapes [layer, slot]: {found}; import them apart")
    n_layers, top_k = found[0]
    chosen = list(range(n_layers)) if layers is None else list(layers)
    if len(chosen) < n_layers and max(chosen) < n_layers:
        documents, n_layers = [only(d, chosen) for d in documents], len(chosen)
    largest = max(int(d.indices.max(initial=0)) for d in documents)
    n_experts = n_experts or largest + 1
    if len(chosen) != n_layers or largest >= n_experts:
        raise MoeLensError(
            f"{path.name} has {n_layers} layers and ids up to {largest}; {len(chosen)} layers and {n_experts} experts"
            " were stated; state those of the model"
        )
    folder = Folder.at(out)
    settings = manifest_of(path.name, kind, model, chosen, n_experts, top_k, documents)
    write(folder, documents, chosen, n_experts, settings, force)
    return Recording.open(out)


def manifest_of(
    name: str, kind: str, model: str, layers: list[int], n_experts: int, top_k: int, documents: list[Routes]
) -> dict[str, Any]:
    weighted = all(d.weights is not None for d in documents)
    shape = {"moe_layers": layers, "n_experts": n_experts, "top_k": top_k, "n_layers": layers[-1] + 1}
    capture = {"captures": ["routes"], "layers": layers, "experts": None, "dtype": "float16", "stored_as": "float16",
               "weights": weighted, "generate": 0, "index_dtype": np.dtype(index_type(n_experts)).name}  # fmt: skip
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


def write(
    folder: Folder, documents: list[Routes], layers: list[int], n_experts: int, same: dict[str, Any], force: bool
) -> None:
    """One shard; an import is short, and done again when it breaks off."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    if folder.exists(commit_name(0)) and not folder.exists(MANIFEST):
        clear(folder)
    begin(folder, {"same": same, "created": created, "pieces": [[0, len(documents)]]}, force)
    weighted, phased = same["capture"]["weights"], any(d.decode is not None for d in documents)
    writer = ShardWriter(folder, "tokens/tokens-00000.parquet")
    try:
        for first, group in grouped(documents):
            writer.write(token_table(first, group, layers, n_experts, weighted, phased))
        shard = writer.close()
        texts = ShardWriter(folder, part_name(0))
        texts.write(pa.table({"doc": pa.array(range(len(documents)), pa.int32()),
                              "text": pa.array([d.text for d in documents], pa.string())}))  # fmt: skip
        commit(folder, 0, [shard], texts.close(), Counter())
    except BaseException as error:
        writer.abandon(error)
        raise
    manifest = finish(folder, 1, same) | {"created": created}
    write_card(folder, manifest)
    folder.write_json(MANIFEST, manifest)
    folder.remove("progress")


def grouped(documents: list[Routes]) -> Iterator[tuple[int, list[Routes]]]:
    """Successive documents of just over `GROUP_ROWS` tokens, with the number of the first."""
    group: list[Routes] = []
    size = 0
    for i, document in enumerate(documents, 1):
        group.append(document)
        size += len(document.indices)
        if size >= GROUP_ROWS or i == len(documents):
            yield i - len(group), group
            group, size = [], 0


def token_table(
    first: int, documents: list[Routes], layers: list[int], n_experts: int, weighted: bool, phased: bool
) -> pa.Table:
    """The rows of some documents; they stand nowhere in their texts, as engines do not say where."""
    lengths = [len(d.indices) for d in documents]
    n = sum(lengths)
    columns: dict[str, Array] = {
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
    if not phased:
        return table
    decode = [np.zeros(len(d.indices), np.bool_) if d.decode is None else d.decode for d in documents]
    return table.add_column(6, "phase", phase_column(np.concatenate(decode)))


# Sources


def from_npz(path: Path) -> Iterator[Routes]:
    """Documents of an `.npz`, read without unpickling."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise MoeLensError(f"{path.name} is not an .npz of plain arrays ({error}); save it with numpy.savez") from error
    indices = pick(arrays, INDICES)
    if indices is None or indices.ndim != 3 or indices.dtype.kind not in "iu":
        raise MoeLensError(
            f"{path.name} holds {', '.join(arrays)}; it needs integers 'expert_ids' [token, layer, slot]"
        )
    weights, ids = pick(arrays, WEIGHTS), arrays.get("token_ids")
    if weights is not None and weights.shape != indices.shape:
        raise MoeLensError(f"{path.name}: weights are {list(weights.shape)} for experts {list(indices.shape)}")
    lengths = arrays.get("sequence_lengths", np.array([len(indices)]))
    if lengths.sum() != len(indices):
        raise MoeLensError(f"{path.name}: sequence_lengths sum to {lengths.sum()}, and there are {len(indices)} tokens")
    stops = np.cumsum(lengths)
    for start, stop in zip(stops - lengths, stops, strict=True):
        rows = slice(int(start), int(stop))
        yield Routes(indices[rows], None if weights is None else weights[rows], None if ids is None else ids[rows])


def pick(arrays: Mapping[str, Array], names: tuple[str, ...]) -> Array | None:
    return next((arrays[n] for n in names if n in arrays), None)


def only(routes: Routes, layers: list[int]) -> Routes:
    """Of some layers."""
    weights = None if routes.weights is None else routes.weights[:, layers]
    return replace(routes, indices=routes.indices[:, layers], weights=weights)


def from_responses(path: Path, kind: str, shape: tuple[int, int] | None) -> Iterator[Routes]:
    """A document for each response, one JSON object a line."""
    for row, at in rows_of(path):
        if not isinstance(row, Mapping):
            raise MoeLensError(f"{at} is of type {type(row).__name__}; a response is a JSON object")
        yield from from_sglang(row, shape, at) if kind == "sglang" else from_vllm(row, at)


def from_sglang(response: Mapping[str, Any], shape: tuple[int, int] | None, at: str) -> Iterator[Routes]:
    """SGLang's: `routed_experts`, base64 of int32 `[tokens - 1, layer, slot]`: the last token is not run.

    It is in `meta_info` of `/generate`, and in `sgl_ext` of each choice of the endpoints in OpenAI's form.
    """
    for choice in response.get("choices") or ():
        yield from from_sglang({"meta_info": choice.get("sgl_ext") or {}, "text": choice.get("text")}, shape, at)
    if response.get("choices"):
        return
    meta = response.get("meta_info", response)
    data = meta.get("routed_experts")
    if not isinstance(data, str):
        raise MoeLensError(f"{at} lacks meta_info.routed_experts; start SGLang with --enable-return-routed-experts")
    if shape is None:
        raise MoeLensError(f"{at}: SGLang's bytes do not say their shape; state it with shape= (--shape LAYERS K)")
    try:
        indices = np.frombuffer(base64.b64decode(data, validate=True), np.int32).reshape(-1, *shape)
    except (binascii.Error, ValueError) as error:
        raise MoeLensError(f"{at}: routed_experts is not base64 of int32 [token, {shape[0]}, {shape[1]}]") from error
    ids = [*response.get("input_ids", []), *response.get("output_ids", [])]
    prompt = meta.get("prompt_tokens", len(response.get("input_ids", [])) or None)
    yield response_routes(indices, ids, prompt, response.get("text"), at)


def from_vllm(response: Mapping[str, Any], at: str) -> Iterator[Routes]:
    """vLLM's: each of `outputs` (or `choices`) has `routed_experts`, nested lists or base64 of an `.npy`.

    Where the response has `prompt_routed_experts`, those of an output are of the tokens that it wrote only.
    """
    outputs = response.get("outputs") or response.get("choices") or [response]
    prompt_ids = response.get("prompt_token_ids") or []
    prompt = response.get("prompt_routed_experts")
    before = None if prompt is None else vllm_indices(prompt, at)
    for output in outputs:
        given = output.get("routed_experts")
        if given is None:
            raise MoeLensError(f"{at} lacks routed_experts; start vLLM with enable_return_routed_experts=True")
        read = len(prompt_ids) or None
        if before is None:
            indices = vllm_indices(given, at)
        else:  # an empty list, where nothing of what was written has been run
            indices, read = np.concatenate([before, *([vllm_indices(given, at)] if given else [])]), len(before)
        ids = [*prompt_ids, *(output.get("token_ids") or [])]
        yield response_routes(indices, ids, read, response.get("prompt"), at)


def vllm_indices(given: Any, at: str) -> Array:
    indices = np.asarray(decode_npy(given, at) if isinstance(given, str) else given)
    if indices.ndim != 3 or indices.dtype.kind not in "iu":
        raise MoeLensError(
            f"{at}: routed_experts is {list(indices.shape)} of {indices.dtype}, not [token, layer, slot]"
        )
    return indices


def decode_npy(text: str, at: str) -> Array:
    """An array in base64 of the `.npy` format, without unpickling."""
    try:
        array: Array = np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)
    except (binascii.Error, ValueError, EOFError) as error:
        raise MoeLensError(f"{at}: routed_experts is not base64 of an .npy array ({error})") from error
    return array


def response_routes(indices: Array, ids: list[int], prompt: int | None, text: Any, at: str) -> Routes:
    n = len(indices)
    if ids and len(ids) not in (n, n + 1):
        raise MoeLensError(f"{at}: {n} rows of experts for {len(ids)} tokens; there should be as many, or one fewer")
    return Routes(
        indices,
        None,
        np.array(ids[:n], np.int32) if ids else None,
        text if isinstance(text, str) else None,
        None if prompt is None else np.arange(n) >= prompt,
    )
