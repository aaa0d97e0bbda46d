"""The keyword arguments that a model's forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from moelens.errors import MoeLensError, unknown

TRANSFORMER_LENS: dict[str, str] = {
    "prepend_bos": "the tokenizer adds its special tokens to a text; give token ids to choose them yourself",
    "padding_side": "texts are padded on the right; give token ids with attention_mask to pad them yourself",
    "start_at_layer": "the transformers model runs as a whole; edit hook_resid_pre of the layer",
    "stop_at_layer": "the transformers model runs as a whole; read hook_resid_post of the layer",
    "tokens": "give text or token ids as the first argument",
    "shortformer_pos_embed": "the transformers model computes its own positions",
    "past_kv_cache": "give the transformers cache, as past_key_values",
    "past_left_attention_mask": "give attention_mask over the cached tokens too",
    "loss_per_token": "compute it from the logits",
    "prepend_space_to_answer": "write the space into the text",
}
"""Arguments of TransformerLens's models that are not offered, and what to do instead."""


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """Return the names of the keyword arguments that a model's forward takes.

    They are those that its forward and those of the models inside it name, and the keys of the typed dictionaries that
    stand for further ones (`**kwargs: Unpack[TransformersKwargs]`).

    Args:
        model: the transformers model.
    """
    names = set(TransformersKwargs.__annotations__)
    for part in {type(m) for m in model.modules() if isinstance(m, PreTrainedModel)} | {type(model)}:
        for name, parameter in inspect.signature(part.forward).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                names |= _unpacked_keys(part.forward, name)
            elif name != "self":
                names.add(name)
    if "cache" in names:
        names.add("past_key_values")  # its former name, which transformers still takes
    return frozenset(names)


def _unpacked_keys(function: Any, name: str) -> set[str]:
    """The keys of the typed dictionary with which a `**kwargs` is annotated."""
    try:
        hint = get_type_hints(inspect.unwrap(function)).get(name)
    except NameError:  # a type that is imported for checkers only
        return set()
    return {key for kind in get_args(hint) for key in getattr(kind, "__annotations__", {})}


def require_arguments(given: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Raise an error for a keyword argument that a model would swallow without a word.

    Args:
        given: the arguments.
        allowed: the names of those that the model's forward takes.

    Raises:
        MoeLensError: an argument of TransformerLens that is not offered; the message says what to do instead.
        UnknownNameError: any other.
    """
    for name in given:
        if name in allowed:
            continue
        if name in TRANSFORMER_LENS:
            raise MoeLensError(f"the argument {name!r} of TransformerLens is not offered: {TRANSFORMER_LENS[name]}")
        raise unknown("argument", name, sorted(allowed), "neither moelens nor the model's forward has it")
