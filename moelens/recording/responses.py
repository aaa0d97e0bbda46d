"""The responses of serving engines, and the requests that they answer.

Both engines return the experts of all tokens that were run, which are all but the last one. What they send was read in
the sources of their versions of September 2026.

SGLang (`--enable-return-routed-experts`, and `return_routed_experts` in a request) sends base64 of int32
`[row, layer, slot]` without the shape or, in its first versions, nested lists. They are in `meta_info` of each response
of `/generate`; a batch is answered with a list. `/v1/completions` and `/v1/chat/completions` send them as `sglext` of
the whole response, for the first choice alone, or in `meta_info` of each choice (`return_meta_info`); other versions in
`sgl_ext` of each choice. If a request has `routed_experts_start_len`, the rows begin at that token.

vLLM (`--enable-return-routed-experts`) sends `routed_experts` with each choice: base64 of an `.npy` or, in earlier
versions, nested lists. These versions send the rows of the prompt once, as `prompt_routed_experts`, and those of the
generated tokens with each choice. If a request has `routed_experts_prompt_start`, the rows begin at that token.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.errors import MoeLensError, unknown
from moelens.recording.array_files import parse_npy
from moelens.recording.route_inputs import Answer, Part, is_ids, is_text, read_field

_Array = NDArray[Any]
_Object = Mapping[str, Any]
_PROMPTS_IN_REQUESTS = ("input_ids", "token_ids", "prompt_token_ids", "prompt", "text")
_PROMPTS_IN_RESPONSES = ("prompt_text", "prompt")
_TEMPLATE_OPTIONS = ("add_generation_prompt", "continue_final_message")
_DTYPES = {"int32": np.int32, "uint16": np.uint16, "uint8": np.uint8}


def read_answers(line: Any, asked: Any, kind: str, shape: tuple[int, int] | None, at: str) -> Iterator[Answer]:
    """Yield an answer for each prompt and completion in a line of a file.

    Args:
        line: A response, a list of them (the answer to a batch), or an object with the `request` and the `response`.
        asked: The request, or the text of the prompt; None if it is not known apart from the line.
        kind: "sglang" or "vllm".
        shape: Number of layers and of experts per token of SGLang's bytes; None if it is not known.
        at: The place of the line, for messages.

    Raises:
        MoeLensError: If the line is no response, or does not have what a response should have.
    """
    response, request = _unwrap(line, at)
    request = _body(asked) if asked is not None else request
    items = response if isinstance(response, list) else [response]
    for item in items:
        _require_response(item, at)
    whole: _Object = {} if isinstance(response, list) else response
    choices = read_field("responses", at, whole) or items
    prompts = _prompts(request, _PROMPTS_IN_REQUESTS, at) or _prompts(whole, _PROMPTS_IN_RESPONSES, at) or [Part()]
    if len(choices) % len(prompts):
        raise MoeLensError(
            f"expected as many responses to each of {len(prompts)} prompts in {at}, got {len(choices)} in all;"
            " give the request that was answered"
        )
    for i, choice in enumerate(choices):
        prompt = prompts[i * len(prompts) // len(choices)]
        yield _Choice(
            number=i,
            choice=choice,
            whole=whole,
            request=request if isinstance(request, Mapping) else {},
            alone=len(choices) == 1,
            one_prompt=len(prompts) == 1 and not isinstance(response, list),
            at=at if len(choices) == 1 else f"{at} choice {i}",
        ).answer(prompt, kind, shape)


def _unwrap(line: Any, at: str) -> tuple[Any, Any]:
    """Return the response and the request in a line; None for a request that it does not hold."""
    if isinstance(line, Mapping) and "response" in line:
        return _body(line["response"]), _body(read_field("request", at, line))
    return line, None


def _body(message: Any) -> Any:
    """Return the body of a request or response in a batch file in the form of OpenAI, or the message itself."""
    return message["body"] if isinstance(message, Mapping) and "body" in message else message


def _require_response(item: Any, at: str) -> None:
    if not isinstance(item, Mapping):
        raise MoeLensError(
            f"expected a response, which is a JSON object, in {at}, got {type(item).__name__};"
            " write one response per line"
        )
    pieces = [item, read_field("meta", at, item) or {}, *(read_field("responses", at, item) or ())]
    # Those that a stream sends before its end state that there is no reason yet why it ended.
    unfinished = item.get("finished") is False or any(piece.get("finish_reason", "") is None for piece in pieces)
    if item.get("error") or unfinished or str(item.get("object", "")).endswith(("error", ".chunk")):
        raise MoeLensError(
            f"expected a whole response in {at}, got {repr(dict(item))[:80]}; request it again without stream, or"
            " leave it out"
        )


def _prompts(source: Any, names: tuple[str, ...], at: str) -> list[Part]:
    """Return the prompts of a request; an empty list if it has none.

    Args:
        source: A request or a response, or a text.
        names: The fields that may hold prompts: texts or token ids, one or a list of them.
        at: The place, for messages.
    """
    if source is None:
        return []
    if not isinstance(source, Mapping):
        found = source
    elif messages := read_field("messages", at, source):
        options = {name: source[name] for name in _TEMPLATE_OPTIONS if name in source}
        options |= {"tools": read_field("tools", at, source)} | dict(read_field("template", at, source) or {})
        return [Part(messages=messages, template=options)]
    else:
        found = next((source[name] for name in names if source.get(name) is not None), None)
        if found is None:
            return []
    several = isinstance(found, list) and bool(found) and not is_ids(found)
    for prompt in found if several else [found]:
        if not is_text(prompt) and not is_ids(prompt):
            raise MoeLensError(
                f"expected a prompt in {at}, which is a text or a list of token ids, got {repr(prompt)[:60]};"
                " give the request as it was sent"
            )
    return [Part(text=p) if is_text(p) else Part(ids=p) for p in (found if several else [found])]


class _Choice:
    """One completion in a response, with the objects around it.

    Args:
        number: Its number in the response.
        choice: The completion.
        whole: The response.
        request: The request.
        alone: Whether the response has no other completion.
        one_prompt: Whether the response is to a single prompt.
        at: The place, for messages.
    """

    def __init__(
        self, *, number: int, choice: _Object, whole: _Object, request: _Object, alone: bool, one_prompt: bool, at: str
    ) -> None:
        self.number, self.choice, self.whole, self.request, self.at = number, choice, whole, request, at
        self.meta = read_field("meta", at, choice)
        self.extension = read_field("extension", at, choice)
        self.shared = read_field("extension", at, whole)
        usage = read_field("usage", at, whole)
        self.usage = usage if alone else None
        self.prompt_usage = usage if one_prompt else None

    def answer(self, prompt: Part, kind: str, shape: tuple[int, int] | None) -> Answer:
        """Read the completion as an answer to a prompt."""
        at, choice, meta = self.at, self.choice, self.meta
        n_prompt = read_field("prompt_tokens", at, choice, meta, self.prompt_usage)
        prompt_ids = read_field("prompt_ids", at, choice, meta, self.whole, self.shared)
        if prompt_ids is None and (scored := _scored_ids(meta, "input_token_logprobs")) and len(scored) == n_prompt:
            prompt_ids = scored
        prompt_text = read_field("prompt_text", at, choice, self.whole) if not isinstance(prompt.text, str) else None
        sampling = read_field("sampling", at, self.request)
        return Answer(
            at=at,
            routes=self._sglang(shape) if kind == "sglang" else self._vllm(),
            start=read_field("start", at, choice, meta, self.request, sampling),
            prompt=Part(
                ids=prompt.ids if prompt_ids is None else prompt_ids,
                text=prompt.text if prompt_text is None else prompt_text,
                tokens=n_prompt,
                messages=prompt.messages,
                template=prompt.template,
            ),
            completion=self._completion(prompt.text),
        )

    def _completion(self, prompt_text: str | None) -> Part:
        at, choice, meta = self.at, self.choice, self.meta
        message = read_field("message", at, choice)
        ids = read_field("ids", at, choice, meta)
        if ids is None and self.shared and isinstance(listed := self.shared.get("output_ids"), list):
            ids = read_field("ids", at, {"output_ids": listed[self.number] if self.number < len(listed) else None})
        ids = _scored_ids(meta, "output_token_logprobs") if ids is None else ids
        text = read_field("text", at, choice, message)
        if self.request.get("echo") and text is not None and prompt_text is not None:
            text = text.removeprefix(prompt_text)
        if ids is None and any((message or {}).get(name) for name in ("reasoning_content", "reasoning", "tool_calls")):
            text = None  # a part of what was generated is elsewhere
        return Part(ids=ids, text=text, tokens=read_field("tokens", at, choice, meta, self.usage))

    def _sglang(self, shape: tuple[int, int] | None) -> _Array | None:
        scopes = [s for s in (self.choice, self.meta, self.extension) if s is not None]
        if self.number == 0 and self.shared is not None:
            scopes.append(self.shared)
        data, scope = next(((s["routed_experts"], s) for s in scopes if s.get("routed_experts")), (None, {}))
        if data is None:
            return None
        if isinstance(data, list):
            return _rows_of(data, self.at)
        if shape is None:
            raise MoeLensError(
                f"expected the shape of SGLang's bytes in {self.at}, got none; give it with shape= (--shape LAYERS K),"
                " or name a model whose configuration can be read with model= (--model)"
            )
        dtype = read_field("dtype", self.at, scope) or "int32"
        if dtype not in _DTYPES:
            raise unknown("routed_experts_dtype", dtype, _DTYPES)
        try:
            return np.frombuffer(base64.b64decode(data, validate=True), _DTYPES[dtype]).reshape(-1, *shape)
        except (binascii.Error, ValueError, TypeError) as error:
            raise MoeLensError(
                f"expected base64 of {dtype} [token, {shape[0]}, {shape[1]}] in routed_experts of {self.at}, got other"
                " data; correct the shape, or the engine with kind= (--from)"
            ) from error

    def _vllm(self) -> _Array | None:
        parts = [s.get("prompt_routed_experts") for s in (self.choice, self.whole)]
        before = next((part for part in parts if part is not None), None)
        given = self.choice.get("routed_experts")
        if before is None and given is None:
            return None
        # The rows of generated tokens are none or empty if no generated token was run.
        given_parts = (part for part in (before, given) if part is not None and part != [])
        rows: list[_Array] = [_rows_of(part, self.at) for part in given_parts]
        if len({part.shape[1:] for part in rows}) > 1:
            raise MoeLensError(
                f"expected routed_experts of one shape [layer, slot] in {self.at}, got"
                f" {' and '.join(str(list(part.shape[1:])) for part in rows)}; save the response unchanged"
            )
        if len({part.dtype for part in rows}) > 1:  # numpy would make floats of int64 and uint64
            rows = [part.astype(np.int64) for part in rows]  # 2**64 - 1 is a mark as −1 is
        return np.concatenate(rows) if rows else None


def _scored_ids(meta: _Object | None, name: str) -> list[int] | None:
    """Return the token ids in SGLang's list of `[log probability, token id, text]`; None if there is no such list."""
    scored = (meta or {}).get(name)
    if not isinstance(scored, list) or not all(isinstance(entry, list) and len(entry) > 1 for entry in scored):
        return None
    ids = [entry[1] for entry in scored]
    return ids if is_ids(ids) else None


def _rows_of(given: Any, at: str) -> _Array:
    try:
        rows = np.asarray(_decode_npy(given, at) if isinstance(given, str) else given)
    except ValueError:  # lists of different lengths
        rows = np.zeros(0)
    if isinstance(given, list) and rows.ndim == 3 and bool in {type(i) for row in given for x in row for i in x}:
        rows = rows.astype(np.bool_)  # numpy takes true for 1
    if rows.ndim != 3 or rows.dtype.kind not in "iu":
        raise MoeLensError(
            f"expected integers [token, layer, slot] as routed_experts in {at}, got {list(rows.shape)} of"
            f" {rows.dtype}; save the responses as the engine returns them"
        )
    return rows


def _decode_npy(text: str, at: str) -> _Array:
    """Return an array from base64 of the `.npy` format, which is read without unpickling."""
    try:
        return parse_npy(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise MoeLensError(
            f"expected base64 of an .npy array as routed_experts in {at}, got other data ({error});"
            " save the response unchanged, or correct the engine with kind= (--from)"
        ) from error
