"""Tokens of documents, with the special tokens that the tokenizer adds and those that the text has already."""

from __future__ import annotations

from typing import Any

import numpy as np

from moelens.models.tokens import TokenSpans, token_spans
from moelens.recording.conversations import turn_of_tokens
from moelens.recording.corpus import Document
from moelens.recording.pieces import SpecialTokens, Tokenized


def tokenize(tokenizer: Any, document: Document, add_special_tokens: bool | None) -> Tokenized:
    """Tokenise a document.

    Args:
        tokenizer: The tokenizer of the model.
        document: A text, or a conversation after the chat template, which writes the special tokens itself.
        add_special_tokens: Whether the tokenizer adds its special tokens; None leaves out those with which the text
            already begins or ends.
    """
    text = document.text
    if add_special_tokens is None and document.turns:
        add_special_tokens = False
    ids = _ids(tokenizer, text, add_special_tokens is not False)
    special: SpecialTokens = "none" if add_special_tokens is False else "tokenizer"
    spans = None
    if add_special_tokens is None and _has_special_ends(tokenizer, text):
        plain, (before, after) = _ids(tokenizer, text, False), _added_tokens(tokenizer)
        first = 0 if plain[: len(before)] == before else len(before)
        last = 0 if plain[len(plain) - len(after) :] == after else len(after)
        if first + last < len(before) + len(after):
            ids, special = [*before[:first], *plain, *after[:last]], "text"
            spans = _padded(token_spans(tokenizer, text, plain), first, last, len(text))
    spans = token_spans(tokenizer, text, ids) if spans is None else spans
    turn = turn_of_tokens(document.turns, spans.start, spans.end) if document.messages is not None else None
    return Tokenized(document=document, ids=np.array(ids, np.int32), spans=spans, special_tokens=special, turn=turn)


def _ids(tokenizer: Any, text: str, add_special_tokens: bool) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, truncation=False, verbose=False)
    return list(encoded["input_ids"])


def _has_special_ends(tokenizer: Any, text: str) -> bool:
    special = tuple(tokenizer.all_special_tokens)
    return text.startswith(special) or text.endswith(special)


def _added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer adds before and after a text."""
    plain, ids = _ids(tokenizer, "a", False), _ids(tokenizer, "a", True)
    for first in range(len(ids) - len(plain) + 1):
        if ids[first : first + len(plain)] == plain:
            return ids[:first], ids[first + len(plain) :]
    return [], []


def _padded(spans: TokenSpans, first: int, last: int, length: int) -> TokenSpans:
    """Return spans with tokens without text before and after them."""

    def padded(values: Any, before: Any, after: Any) -> Any:
        return np.concatenate([np.full(first, before, values.dtype), values, np.full(last, after, values.dtype)])

    start, end = padded(spans.start, 0, length), padded(spans.end, 0, length)
    return TokenSpans(start, end, padded(spans.partial, False, False), spans.method)
