"""What `import_routes` accepts: each array of an `.npz` and each field of a response, described once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.errors import MoeLensError

_Array = NDArray[Any]
_MAX_TOKEN_ID = 2**31 - 1  # token ids are stored as int32
_MAX_TOKENS = 2**24  # of a response; more than any context
MAX_EXPERTS = 2**16  # ids are stored in 16 bits
MAX_LAYERS = 4096


@dataclass(frozen=True, kw_only=True)
class ArrayInput:
    """An array of an `.npz`.

    Attributes:
        names: Its names; the first is preferred.
        what: What it holds, for messages.
        kinds: The kinds of its element type, as in `numpy.dtype.kind`.
        axes: Its axes; axes of one name have one length in all arrays.
        low: Its smallest value.
        high: Its largest value.
    """

    names: tuple[str, ...]
    what: str
    kinds: str
    axes: tuple[str, ...]
    low: int | None = None
    high: int | None = None


ROUTE_AXES = ("token", "layer", "slot")
ARRAYS = {
    "indices": ArrayInput(
        names=("expert_ids", "indices", "experts", "routed_experts"), what="integers", kinds="iu", axes=ROUTE_AXES
    ),
    "weights": ArrayInput(
        names=("gate_weights", "weights", "expert_weights", "routing_weights"),
        what="numbers",
        kinds="fiu",
        axes=ROUTE_AXES,
    ),
    "lengths": ArrayInput(names=("sequence_lengths",), what="integers", kinds="iu", axes=("document",), low=0),
    "ids": ArrayInput(names=("token_ids",), what="integers", kinds="iu", axes=("token",), low=0, high=_MAX_TOKEN_ID),
}
"""The arrays of an `.npz`; all but "indices" may be missing."""


def read_array(arrays: Mapping[str, _Array], which: str, sizes: dict[str, int], at: str) -> _Array | None:
    """Return an array of an `.npz` after checking it; None if the file does not have it.

    Args:
        arrays: All arrays of the file.
        which: A key of `ARRAYS`.
        sizes: The lengths of the axes that are known; those of this array are added.
        at: The name of the file.

    Raises:
        MoeLensError: If the array is not as described, or the file lacks "indices".
    """
    expected = ARRAYS[which]
    name = next((n for n in expected.names if n in arrays), None)
    if name is None and which != "indices":
        return None
    array = None if name is None else arrays[name]
    lengths = [str(sizes.get(axis, axis)) for axis in expected.axes]
    if (
        array is None
        or array.dtype.kind not in expected.kinds
        or array.ndim != len(lengths)
        or any(sizes.setdefault(axis, n) != n for axis, n in zip(expected.axes, array.shape, strict=True))
    ):
        got = ", ".join(arrays) if array is None else f"{list(array.shape)} of {array.dtype}"
        raise MoeLensError(
            f"expected {expected.what} {name or expected.names[0]!r} [{', '.join(lengths)}] in {at}, got"
            f" {got or 'no arrays'}; save them under this name"
        )
    low, high = (int(array.min()), int(array.max())) if array.size and array.dtype.kind in "iu" else (0, 0)
    if (expected.low is not None and low < expected.low) or (expected.high is not None and high > expected.high):
        allowed = f"{expected.low} or more" if expected.high is None else f"from {expected.low} to {expected.high}"
        wrong = low if expected.low is not None and low < expected.low else high
        raise MoeLensError(f"expected {name!r} {allowed} in {at}, got {wrong}; correct them")
    return array


@dataclass(frozen=True, kw_only=True)
class FieldInput:
    """A field of a response or a request, which may be missing.

    Attributes:
        names: Its names, in the order in which they are looked up.
        kind: What it holds: "ids", "count", "text", "object" or "objects".
    """

    names: tuple[str, ...]
    kind: str


FIELDS = {
    "responses": FieldInput(names=("choices", "outputs"), kind="objects"),
    "meta": FieldInput(names=("meta_info",), kind="object"),
    "extension": FieldInput(names=("sglext", "sgl_ext"), kind="object"),
    "usage": FieldInput(names=("usage",), kind="object"),
    "message": FieldInput(names=("message",), kind="object"),
    "messages": FieldInput(names=("messages",), kind="objects"),
    "tools": FieldInput(names=("tools",), kind="objects"),
    "template": FieldInput(names=("chat_template_kwargs",), kind="object"),
    "sampling": FieldInput(names=("sampling_params", "extra_body"), kind="object"),
    "request": FieldInput(names=("request",), kind="object"),
    "prompt_ids": FieldInput(names=("prompt_token_ids", "input_ids"), kind="ids"),
    "prompt_text": FieldInput(names=("prompt_text", "prompt"), kind="text"),
    "prompt_tokens": FieldInput(names=("prompt_tokens",), kind="count"),
    "ids": FieldInput(names=("token_ids", "output_ids", "response_token_ids"), kind="ids"),
    "text": FieldInput(names=("text", "content"), kind="text"),
    "tokens": FieldInput(names=("completion_tokens",), kind="count"),
    "start": FieldInput(names=("routed_experts_start_len", "routed_experts_prompt_start"), kind="count"),
    "dtype": FieldInput(names=("routed_experts_dtype",), kind="text"),
}
"""The fields of responses and requests besides the experts themselves."""

_KINDS = {
    "ids": "a list of token ids",
    "count": f"a number of tokens, at most {_MAX_TOKENS},",
    "text": "a text",
    "object": "an object",
    "objects": "a list of objects",
}


def read_field(which: str, at: str, *scopes: Mapping[str, Any] | None) -> Any:
    """Return a field of a response after checking it: the first that is not null, or None.

    Args:
        which: A key of `FIELDS`.
        at: The place of the response, for messages.
        scopes: The objects in which it may be, in order.

    Raises:
        MoeLensError: If the field does not hold what is described.

    Example:
        >>> read_field("ids", "a.jsonl line 1", None, {"output_ids": [5, 7]})
        [5, 7]
    """
    expected = FIELDS[which]
    for scope in scopes:
        for name in expected.names:
            value = None if scope is None else scope.get(name)
            if value is None:
                continue
            if not _is_of_kind(value, expected.kind):
                raise MoeLensError(
                    f"expected {_KINDS[expected.kind]} as {name} in {at}, got {_short(value)}; save responses unchanged"
                )
            return value
    return None


def is_ids(value: Any) -> bool:
    """Return whether a value is a list of token ids."""
    return isinstance(value, list) and all(type(i) is int and 0 <= i <= _MAX_TOKEN_ID for i in value)


def is_text(value: Any) -> bool:
    """Return whether a value is a string of valid Unicode."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_of_kind(value: Any, kind: str) -> bool:
    if kind == "ids":
        return is_ids(value)
    if kind == "text":
        return is_text(value)
    if kind == "count":
        return type(value) is int and 0 <= value <= _MAX_TOKENS
    if kind == "object":
        return isinstance(value, Mapping)
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


@dataclass(frozen=True, kw_only=True)
class OptionInput:
    """An argument of an import.

    Attributes:
        what: What it is, for messages.
        types: Its types.
        low: The smallest of its integers.
        high: The largest of its integers; None if it does not hold integers.
        length: The number of its integers; None for any.
        optional: Whether it may be None.
        empty: Whether it may be an empty text.
        check: Further condition on its value.
    """

    what: str
    types: tuple[type, ...]
    low: int = 0
    high: int | None = None
    length: int | None = None
    optional: bool = True
    empty: bool = False
    check: Callable[[Any], bool] | None = None


_PATH, _LISTS, _INTEGERS = (str, PurePath), (list, tuple, range, np.ndarray), (int, np.integer)
NUMBER_OF_EXPERTS = OptionInput(what=f"an integer from 1 to {MAX_EXPERTS}", types=_INTEGERS, low=1, high=MAX_EXPERTS)
LAYER_NUMBERS = OptionInput(what=f"a list of integers from 0 to {MAX_LAYERS - 1}", types=_LISTS, high=MAX_LAYERS - 1)
OPTIONS = {
    "source": OptionInput(what="the path of a file", types=_PATH, optional=False),
    "out": OptionInput(what="the path or URL of a folder", types=_PATH, optional=False),
    "model": OptionInput(what="the name of a model", types=_PATH, optional=False),
    "tokenizer": OptionInput(what="a tokenizer or the name of one", types=(*_PATH, Callable)),  # type: ignore[arg-type]
    "texts": OptionInput(what="a file of texts or a list of them", types=(*_PATH, Iterable)),
    "n_experts": NUMBER_OF_EXPERTS,
    "layers": LAYER_NUMBERS,
    "shape": OptionInput(what=f"two integers from 1 to {MAX_LAYERS}", types=_LISTS, low=1, high=MAX_LAYERS, length=2),
}
"""The arguments of `import_routes` that have to be of some type or within some range."""


def read_option(name: str, value: Any, options: Mapping[str, OptionInput] = OPTIONS) -> Any:
    """Return an argument of an import after checking it; integers of NumPy become Python's.

    Args:
        name: A key of `options`.
        value: What was given.
        options: The arguments of the import.

    Raises:
        MoeLensError: If it is not what is described.

    Example:
        >>> read_option("layers", range(2, 4))
        [2, 3]
    """
    expected = options[name]
    if value is None and expected.optional:
        return None
    right = isinstance(value, expected.types) and not isinstance(value, (bool, bytes, Mapping))
    right = right and (expected.empty or str(value) != "") and (expected.check is None or expected.check(value))
    if right and expected.high is not None:
        several = isinstance(value, _LISTS)
        flat = several and not (isinstance(value, np.ndarray) and value.ndim != 1)
        items = list(value[: expected.high + 2]) if flat else [value]
        right = len(items) == (expected.length or len(items)) and all(
            isinstance(i, _INTEGERS) and not isinstance(i, bool) and expected.low <= i <= expected.high for i in items
        )
        value = [int(i) for i in items] if right and several else int(value) if right else value
    if not right:
        raise MoeLensError(f"expected {expected.what} as {name}, got {_short(value)}; correct it")
    return value


def _short(value: Any) -> str:
    """Return a value in a few characters of valid Unicode."""
    return " ".join(repr(value).split())[:60].encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, kw_only=True)
class Part:
    """The prompt or the completion of a response; what is not known is None.

    Attributes:
        ids: Token ids.
        text: The text.
        tokens: Number of tokens.
        messages: The messages of a chat, which a chat template turns into the text of the prompt.
        template: Further arguments of the chat template.
    """

    ids: Sequence[int] | None = None
    text: str | None = None
    tokens: int | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    template: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The routes of a prompt and one completion, as they were read.

    Attributes:
        at: The place, for messages.
        routes: Chosen experts, `[row, layer, slot]`; None if the engine returned none.
        weights: Routing weights, `[row, layer, slot]`.
        start: Position of the token of the first row; None if it is not stated.
        prompt: The prompt, or a whole text that was only read.
        completion: The completion; None if there is none.
    """

    at: str
    routes: _Array | None
    weights: _Array | None = None
    start: int | None = None
    prompt: Part = field(default_factory=Part)
    completion: Part | None = None
