"""Conversations: the chat template of a tokenizer makes a text of the messages, and each message is found in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.errors import MoeLensError
from moelens.recording.corpus import Corpus, Document, Turn

_PRIVATE_USE = range(0xE000, 0xF900)  # characters of which one that no message holds stands for a content


def with_chat_template(corpus: Corpus, tokenizer: Any, generate: bool) -> Corpus:
    """Return a corpus whose conversations are texts, written by the chat template of a tokenizer.

    Args:
        corpus: The corpus; its documents that are texts stay as they are.
        tokenizer: The tokenizer of the model.
        generate: Whether the model writes the next turn, so that its beginning ends the text.

    Raises:
        MoeLensError: On iteration, if there is no chat template, or it cannot be applied to a conversation.
    """

    def read() -> Iterator[Document]:
        for document in corpus:
            yield document if document.messages is None else _apply(document, tokenizer, generate)

    return replace(corpus, read=read)


def chat_template(tokenizer: Any) -> str | None:
    """Return the chat template of a tokenizer; None if it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    return str(tokenizer.get_chat_template())


def turn_of_tokens(turns: Sequence[Turn | None], start: NDArray[Any], end: NDArray[Any]) -> NDArray[np.int32]:
    """Return the number of the message that holds the last character of each token, `[token]`; −1 if none does.

    Args:
        turns: Where each message is in the text.
        start: Index of the first character of each token, `[token]`.
        end: Index after the last character, `[token]`; equal to `start` for a token without text.

    Example:
        >>> turn_of_tokens([Turn("user", 2, 4), None], np.array([0, 2, 4]), np.array([2, 4, 5])).tolist()
        [-1, 0, -1]
    """
    found = np.full(len(start), -1, np.int32)
    for number, turn in enumerate(turns):
        if turn is not None:
            found[(end > start) & (end > turn.start) & (end <= turn.end)] = number
    return found


def _apply(document: Document, tokenizer: Any, generate: bool) -> Document:
    """Return the document of a conversation with its text and the places of its messages."""
    messages = document.messages or ()
    if chat_template(tokenizer) is None:
        raise MoeLensError(
            f"{document.at}: expected a tokenizer with a chat template for a conversation, got"
            f" {type(tokenizer).__name__} without one; set tokenizer.chat_template, or record texts"
        )
    text = _rendered(messages, tokenizer, generate, document.at)
    contents = "".join(str(message.get("content") or "") for message in messages) + text
    mark = next(chr(code) for code in _PRIVATE_USE if chr(code) not in contents)
    turns: list[Turn | None] = []
    for i, message in enumerate(messages):
        span = None
        if message.get("content") is not None:
            marked = [*messages[:i], {**message, "content": mark}, *messages[i + 1 :]]
            span = _difference(text, _rendered(marked, tokenizer, generate, document.at), mark)
        turns.append(None if span is None else Turn(message["role"], *span))
    ends = [0, *(place for turn in turns if turn is not None for place in (turn.start, turn.end))]
    if ends != sorted(ends):
        raise MoeLensError(
            f"{document.at}: expected a chat template that writes each message once and in order, got another;"
            " apply it yourself and record texts"
        )
    return replace(document, text=text, turns=tuple(turns))


def _rendered(messages: Sequence[Mapping[str, Any]], tokenizer: Any, generate: bool, at: str) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate))
    except Exception as error:  # a template is a program, and may raise anything
        reason = " ".join(str(error).split())[:150]
        raise MoeLensError(
            f"{at}: expected messages that the chat template takes, got an error from it ({reason}); change the"
            " messages, or set another tokenizer.chat_template"
        ) from error


def _difference(text: str, marked: str, mark: str) -> tuple[int, int] | None:
    """Return where a text differs from the same with a mark in place of a content; None if the mark is not written."""
    if mark not in marked:
        return None
    before, _, after = marked.partition(mark)
    if not (text.startswith(before) and text.endswith(after) and len(before) + len(after) <= len(text)):
        # The template writes something else beside this content, as for the reasoning of an answer.
        before = text[: _common_length(text, marked)]
        after = text[len(text) - _common_length(text[len(before) :][::-1], marked[len(before) :][::-1]) :]
    return len(before), len(text) - len(after)


def _common_length(a: str, b: str) -> int:
    """Return how many characters two texts have in common at the beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
