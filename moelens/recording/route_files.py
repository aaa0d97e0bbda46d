"""Routes in the files of other programs: arrays, and responses of serving engines."""

from __future__ import annotations

import base64
import binascii
import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.errors import MoeLensError
from moelens.recording.rows import read_rows

_Array = NDArray[Any]
_INDICES_NAMES = ("expert_ids", "indices", "experts", "routed_experts")
_WEIGHTS_NAMES = ("gate_weights", "weights", "expert_weights", "routing_weights")


@dataclass(frozen=True, kw_only=True)
class Routes:
    """The routes of one document; what is not known is None.

    Attributes:
        indices: Chosen experts, `[token, layer, slot]`.
        weights: Routing weights, `[token, layer, slot]`.
        ids: Token ids, `[token]`.
        text: The text.
        decode: Whether the model generated the token, bool `[token]`.
    """

    indices: _Array
    weights: _Array | None = None
    ids: _Array | None = None
    text: str | None = None
    decode: _Array | None = None

    def of_layers(self, layers: list[int]) -> Routes:
        """Return the routes of some layers, given by their index on the second axis."""
        weights = None if self.weights is None else self.weights[:, layers]
        return replace(self, indices=self.indices[:, layers], weights=weights)


def read_npz(path: Path) -> Iterator[Routes]:
    """Yield the documents of an `.npz`, which is read without unpickling.

    Raises:
        MoeLensError: If the file is not an `.npz`, or its arrays do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise MoeLensError(
            f"expected an .npz of plain arrays, got {path.name} ({error}); save it with numpy.savez"
        ) from error
    indices = _first_array(arrays, _INDICES_NAMES)
    if indices is None or indices.ndim != 3 or indices.dtype.kind not in "iu":
        raise MoeLensError(
            f"expected integers 'expert_ids' [token, layer, slot] in {path.name}, got {', '.join(arrays)};"
            " save them under this name"
        )
    weights, ids = _first_array(arrays, _WEIGHTS_NAMES), arrays.get("token_ids")
    if weights is not None and weights.shape != indices.shape:
        raise MoeLensError(
            f"expected weights of shape {list(indices.shape)} in {path.name}, as the experts, got"
            f" {list(weights.shape)}; save one weight per expert"
        )
    lengths = arrays.get("sequence_lengths", np.array([len(indices)]))
    if lengths.sum() != len(indices):
        raise MoeLensError(
            f"expected sequence_lengths that sum to the {len(indices)} tokens in {path.name}, got a sum of"
            f" {lengths.sum()}; correct them"
        )
    stops = np.cumsum(lengths)
    for start, stop in zip(stops - lengths, stops, strict=True):
        rows = slice(int(start), int(stop))
        yield Routes(
            indices=indices[rows],
            weights=None if weights is None else weights[rows],
            ids=None if ids is None else ids[rows],
        )


def _first_array(arrays: Mapping[str, _Array], names: tuple[str, ...]) -> _Array | None:
    return next((arrays[n] for n in names if n in arrays), None)


def read_responses(path: Path, kind: str, shape: tuple[int, int] | None) -> Iterator[Routes]:
    """Yield the documents of responses, which are JSON objects, one per line.

    Args:
        path: The file.
        kind: "sglang" or "vllm".
        shape: Number of layers and of experts per token in responses of SGLang.

    Raises:
        MoeLensError: If a response has no routes, or not in the expected form.
    """
    for row, at in read_rows(path):
        if not isinstance(row, Mapping):
            raise MoeLensError(
                f"expected a response, which is a JSON object, in {at}, got {type(row).__name__};"
                " write one response per line"
            )
        yield from _read_sglang(row, shape, at) if kind == "sglang" else _read_vllm(row, at)


def _read_sglang(response: Mapping[str, Any], shape: tuple[int, int] | None, at: str) -> Iterator[Routes]:
    """Yield the documents of a response of SGLang.

    `routed_experts` is base64 of int32 `[tokens - 1, layer, slot]`, since the last token is not run. It is in
    `meta_info` in responses of `/generate`, and in `sgl_ext` of each choice in responses in the form of OpenAI.
    """
    for choice in response.get("choices") or ():
        yield from _read_sglang({"meta_info": choice.get("sgl_ext") or {}, "text": choice.get("text")}, shape, at)
    if response.get("choices"):
        return
    meta = response.get("meta_info", response)
    data = meta.get("routed_experts")
    if not isinstance(data, str):
        raise MoeLensError(
            f"expected meta_info.routed_experts in {at}, got none; start SGLang with --enable-return-routed-experts"
        )
    if shape is None:
        raise MoeLensError(
            f"expected the shape of SGLang's bytes in {at}, got none; give it with shape= (--shape LAYERS K)"
        )
    try:
        indices = np.frombuffer(base64.b64decode(data, validate=True), np.int32).reshape(-1, *shape)
    except (binascii.Error, ValueError) as error:
        raise MoeLensError(
            f"expected base64 of int32 [token, {shape[0]}, {shape[1]}] in routed_experts of {at}, got other data;"
            " correct the shape"
        ) from error
    ids = [*response.get("input_ids", []), *response.get("output_ids", [])]
    prompt = meta.get("prompt_tokens", len(response.get("input_ids", [])) or None)
    yield _response_routes(indices, ids, prompt, response.get("text"), at)


def _read_vllm(response: Mapping[str, Any], at: str) -> Iterator[Routes]:
    """Yield the documents of a response of vLLM, one for each of its `outputs` or `choices`.

    `routed_experts` of an output are nested lists, or base64 of an `.npy`. If the response has
    `prompt_routed_experts`, those of an output are only of its generated tokens.
    """
    outputs = response.get("outputs") or response.get("choices") or [response]
    prompt_ids = response.get("prompt_token_ids") or []
    prompt_experts = response.get("prompt_routed_experts")
    before = None if prompt_experts is None else _vllm_indices(prompt_experts, at)
    for output in outputs:
        given = output.get("routed_experts")
        if given is None:
            raise MoeLensError(
                f"expected routed_experts in {at}, got none; start vLLM with enable_return_routed_experts=True"
            )
        prompt = len(prompt_ids) or None
        if before is None:
            indices = _vllm_indices(given, at)
        else:
            prompt = len(before)
            after = [_vllm_indices(given, at)] if given else []  # an empty list if no generated token was run
            indices = np.concatenate([before, *after])
        ids = [*prompt_ids, *(output.get("token_ids") or [])]
        yield _response_routes(indices, ids, prompt, response.get("prompt"), at)


def _vllm_indices(given: Any, at: str) -> _Array:
    indices = np.asarray(_decode_npy(given, at) if isinstance(given, str) else given)
    if indices.ndim != 3 or indices.dtype.kind not in "iu":
        raise MoeLensError(
            f"expected integers [token, layer, slot] as routed_experts in {at}, got {list(indices.shape)} of"
            f" {indices.dtype}; save the responses as vLLM returns them"
        )
    return indices


def _decode_npy(text: str, at: str) -> _Array:
    """Return an array from base64 of the `.npy` format, which is read without unpickling."""
    try:
        array: _Array = np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)
    except (binascii.Error, ValueError, EOFError) as error:
        raise MoeLensError(
            f"expected base64 of an .npy array as routed_experts in {at}, got other data ({error});"
            " save the response unchanged"
        ) from error
    return array


def _response_routes(indices: _Array, ids: list[int], prompt: int | None, text: Any, at: str) -> Routes:
    """Return the routes of a response.

    Args:
        indices: Chosen experts, `[token, layer, slot]`.
        ids: Token ids of the prompt and the generated text; empty if they are not known.
        prompt: Number of tokens of the prompt; None if it is not known.
        text: The text of the response.
        at: The place of the response, for error messages.
    """
    n = len(indices)
    if ids and len(ids) not in (n, n + 1):
        raise MoeLensError(
            f"expected as many rows of experts as tokens, or one fewer, in {at}, got {n} for {len(ids)} tokens;"
            " save responses with all their tokens"
        )
    return Routes(
        indices=indices,
        ids=np.array(ids[:n], np.int32) if ids else None,
        text=text if isinstance(text, str) else None,
        decode=None if prompt is None else np.arange(n) >= prompt,
    )
