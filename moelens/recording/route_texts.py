"""From the answers of an engine to documents: positions, token ids, texts and the characters of each token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.errors import CheckError, MoeLensError
from moelens.models.tokens import TokenSpans, decode_spans, token_spans
from moelens.recording.route_inputs import Answer, Part

_Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class RoutedDocument:
    """A document with the routes of some of its tokens.

    Attributes:
        at: Where it was read.
        indices: Chosen experts, `[row, layer, slot]`.
        weights: Routing weights, `[row, layer, slot]`; None if they are not known.
        captured: Whether the engine captured the routes of a row, `[row]`.
        start: Position of the token of the first row. The rows belong to successive tokens.
        decode: Whether the token of a row was generated, `[row]`; None if it is not known.
        ids: Token ids from position 0 on, also of tokens without a row, `[position]`; −1 where they are not known.
        text: The text of the prompt, or the whole text.
        generated: The text of the generated tokens that have a row.
        spans: The characters in `text` and `generated` of the tokens from position 0 to the last row; None if they are
            not known.
        unaligned: The reason why they are not known.
        ids_from: "response", "tokenizer" (the text was tokenised) or "nowhere".
    """

    at: str
    indices: _Array
    weights: _Array | None
    captured: NDArray[np.bool_]
    start: int
    decode: NDArray[np.bool_] | None
    ids: NDArray[np.int64]
    text: str | None
    generated: str | None
    spans: TokenSpans | None
    unaligned: str
    ids_from: str

    @property
    def stop(self) -> int:
        """The position after the last row."""
        return self.start + len(self.indices)

    def rows(self, selected: NDArray[np.bool_]) -> dict[str, _Array]:
        """Return the columns of the table of tokens that do not depend on the routes, for some of the rows."""
        pos = np.arange(self.start, self.stop, dtype=np.int32)[selected]
        nothing = np.zeros(len(pos), np.int32)
        spans = self.spans
        return {
            "pos": pos,
            "token_id": self.ids[pos].astype(np.int32),
            "char_start": nothing if spans is None else spans.start[pos],
            "char_end": nothing if spans is None else spans.end[pos],
            "partial": nothing.astype(np.bool_) if spans is None else spans.partial[pos],
        }


@dataclass(frozen=True)
class Places:
    """Which tokens the rows of an answer belong to.

    Attributes:
        start: Position of the token of the first row.
        prompt: Number of tokens of the prompt; None if it is not known.
        tokens: Number of tokens of the prompt and the completion.
    """

    start: int
    prompt: int | None
    tokens: int


def place_rows(answer: Answer, n_rows: int | None) -> Places:
    """Find the tokens of the rows from the numbers of tokens. The last token was not run, and has no row.

    Args:
        answer: The answer.
        n_rows: Number of rows; None if the engine returned none.

    Raises:
        MoeLensError: If there are more rows than tokens, or too few.

    Example:
        >>> place_rows(Answer(at="", routes=None, prompt=Part(tokens=5), completion=Part(tokens=4)), 3)
        Places(start=5, prompt=5, tokens=9)
    """
    prompt = _count(answer.prompt, answer.at)
    if answer.completion is None:
        return Places(0, None, n_rows or 0)
    completion = _count(answer.completion, answer.at)
    start = answer.start
    if n_rows is None:
        n_rows = max((prompt or 0) + (completion or 0) - 1, 0)
        start = 0
    if prompt is None or completion is None:
        end = n_rows + 1 + (start or 0)
        if prompt is None and completion is None:
            return Places(start or 0, None, end)
        prompt = end - (completion or 0) if prompt is None else prompt
        completion = end - prompt
    tokens = prompt + completion
    missing = tokens - 1 - n_rows
    if start is None:
        start = max(missing, 0)
    # Rows of all tokens, the last included, are possible too.
    if min(prompt, completion) < 0 or start > prompt or missing not in (start, start - 1):
        raise MoeLensError(
            f"expected rows of experts for the {prompt} prompt and {completion} generated tokens in {answer.at}, less"
            f" the last and from token {answer.start or 0} on, got {n_rows}; save responses with all their tokens,"
            " and correct the shape"
        )
    return Places(start, prompt, tokens)


def _count(part: Part, at: str) -> int | None:
    """Return the number of tokens of a part.

    Raises:
        MoeLensError: If it is not that of the token ids.
    """
    if part.ids is None:
        return part.tokens
    if part.tokens is not None and part.tokens != len(part.ids):
        raise MoeLensError(
            f"expected {part.tokens} token ids in {at}, as the response counts, got {len(part.ids)}; save responses"
            " unchanged"
        )
    return len(part.ids)


@dataclass(frozen=True)
class Aligner:
    """Finds the characters of tokens.

    Attributes:
        tokenizer: The tokenizer of the model; None if there is none.
        missing: The reason why there is none.
    """

    tokenizer: Any
    missing: str = ""

    def tokenise_prompt(self, answer: Answer) -> Answer:
        """Return an answer with the text of its prompt and, if the response does not have them, its token ids.

        Raises:
            MoeLensError: If the tokenizer gives another number of tokens than the engine counted.
        """
        prompt = answer.prompt
        text = prompt.text
        if text is None and prompt.ids is None and prompt.messages is not None:
            text = self._apply_template(prompt, answer.at)
        if self.tokenizer is None or text is None or prompt.ids is not None:
            return replace(answer, prompt=replace(prompt, text=text))
        # A chat template writes the special tokens itself.
        for special in (False,) if prompt.messages is not None else (True, False):
            ids = self._tokenise(text, special)
            if prompt.tokens in (None, len(ids)):
                return replace(answer, prompt=replace(prompt, text=text, ids=ids))
        raise MoeLensError(
            f"expected {prompt.tokens} tokens of the prompt {text[:20]!r} in {answer.at}, got {len(ids)} from the"
            " tokenizer; give the tokenizer of the model (--tokenizer), and prompts in the order of the responses"
        )

    def align(
        self, answer: Answer, places: Places, indices: _Array, weights: _Array | None, captured: NDArray[np.bool_]
    ) -> RoutedDocument:
        """Return the document of an answer whose prompt was tokenised.

        Args:
            answer: The answer.
            places: Which tokens its rows belong to.
            indices: Chosen experts, `[row, layer, slot]`.
            weights: Routing weights, `[row, layer, slot]`.
            captured: Whether the engine captured the routes of a row, `[row]`.

        Raises:
            MoeLensError: If the token ids are not those of the texts.
        """
        prompt, completion = answer.prompt, answer.completion
        stop = places.start + len(indices)
        n_prompt = places.tokens if completion is None else places.prompt
        ids = np.full(max(places.tokens, stop), -1, np.int64)
        retokenised = False
        if prompt.ids is not None:
            ids[: len(prompt.ids)] = prompt.ids
        if completion is not None and n_prompt is not None:
            known = completion.ids
            if known is None and self.tokenizer is not None and completion.text is not None:
                known = self._tokenise(completion.text, False)
                retokenised = len(known) in (places.tokens - n_prompt, places.tokens - n_prompt - 1)
                known = known if retokenised else None
            if known is not None:
                ids[n_prompt : n_prompt + len(known)] = known
        document = RoutedDocument(
            at=answer.at,
            indices=indices,
            weights=weights,
            captured=captured,
            start=places.start,
            decode=None if completion is None or n_prompt is None else np.arange(places.start, stop) >= n_prompt,
            ids=ids,
            text=prompt.text,
            generated=None if completion is None else completion.text,
            spans=None,
            unaligned=self._obstacle(answer, ids[:stop], n_prompt),
            ids_from="tokenizer" if retokenised else "response",
        )
        return document if document.unaligned else self._with_spans(document, answer, n_prompt or 0)

    def _obstacle(self, answer: Answer, ids: _Array, n_prompt: int | None) -> str:
        """Return the reason why tokens cannot be aligned; "" if they can."""
        if self.tokenizer is None:
            return self.missing
        if n_prompt is None or (ids[:n_prompt] < 0).any():
            return f"{answer.at} has neither the token ids nor the text of the prompt"
        if (ids < 0).any():
            return f"{answer.at} has no token ids of the completion, and its text has another number of tokens"
        return ""

    def _with_spans(self, document: RoutedDocument, answer: Answer, n_prompt: int) -> RoutedDocument:
        ids = document.ids[: max(document.stop, n_prompt)]
        if ids.max(initial=-1) >= len(self.tokenizer):
            raise MoeLensError(
                f"expected token ids below {len(self.tokenizer)}, the size of the tokenizer's vocabulary, in"
                f" {document.at}, got {ids.max()}; give the tokenizer of the model (--tokenizer)"
            )
        prompt_ids = ids[:n_prompt].tolist()
        text = self._prompt_text(prompt_ids, document.text)
        try:
            spans = token_spans(self.tokenizer, text, prompt_ids)
        except CheckError as error:
            raise MoeLensError(
                f"expected the token ids in {document.at} to be those of the text {text[:20]!r}, got others; give the"
                " tokenizer of the model (--tokenizer), and texts in the order of the responses"
            ) from error
        if answer.completion is None:
            return replace(document, text=text, spans=spans)
        self._require_same_text(answer, document.ids[n_prompt:])
        generated, more = decode_spans(self.tokenizer, ids[n_prompt : document.stop].tolist())
        joined = TokenSpans(
            np.concatenate([spans.start, more.start + np.int32(len(text))]),
            np.concatenate([spans.end, more.end + np.int32(len(text))]),
            np.concatenate([spans.partial, more.partial]),
            "bytes" if spans.method == more.method == "bytes" else "offsets",
        )
        return replace(document, text=text, generated=generated, spans=joined)

    def _require_same_text(self, answer: Answer, ids: _Array) -> None:
        """Raise `MoeLensError` if the text of a completion is not that of its ids, apart from what engines cut off."""
        if answer.completion is None or answer.completion.ids is None or answer.completion.text is None:
            return
        texts = [self.tokenizer.decode(ids.tolist(), skip_special_tokens=skip) for skip in (True, False)]
        given = _without_spaces(answer.completion.text)
        if not any(given in _without_spaces(text) for text in texts):
            raise MoeLensError(
                f"expected the completion {answer.completion.text[:20]!r} from its token ids in {answer.at}, got"
                f" {texts[0][:20]!r}; give the tokenizer of the model (--tokenizer)"
            )

    def _tokenise(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"]
        return ids

    def _prompt_text(self, ids: list[int], text: str | None) -> str:
        """Return the text of a prompt without the special tokens that the tokenizer adds to any text.

        Args:
            ids: Its token ids.
            text: Its text, in which chat templates write these tokens too; None if it is not known.
        """
        added = self._tokenise("", True)
        first = 1 if added and ids[:1] == added[:1] else 0
        last = len(ids) - 1 if len(added) > 1 and ids[-1:] == added[-1:] else len(ids)
        if text is not None:
            return text.removeprefix(self.tokenizer.convert_ids_to_tokens(ids[0])) if first else text
        decoded: str = self.tokenizer.decode(
            ids[first:last], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return decoded

    def _apply_template(self, prompt: Part, at: str) -> str | None:
        """Return the text of a chat; None if there is no chat template."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            return None
        options = {"add_generation_prompt": True} | dict(prompt.template)
        try:
            text: str = self.tokenizer.apply_chat_template(prompt.messages, **(options | {"tokenize": False}))
            text.encode()
        except Exception as error:  # the template is a program, and the options are those of a file
            raise MoeLensError(
                f"expected messages and options of the tokenizer's chat template in {at}, got others"
                f" ({' '.join(str(error).split())[:100]}); give the request as it was sent"
            ) from error
        return text


def _without_spaces(text: str) -> str:
    """Return a text without white space and replacement characters, which engines and tokenizers treat differently."""
    return "".join(text.replace("\ufffd", "").split())


def join_conversations(documents: Iterable[RoutedDocument]) -> list[RoutedDocument]:
    """Join rows that begin within a conversation to the rows of its earlier turns, where these are known.

    A document whose rows do not begin at its first token continues the last one before it whose tokens with rows are
    the first of its own tokens. Where there is none, it stays as it is, and its rows keep their positions.
    """
    found: list[RoutedDocument] = []
    numbers: dict[bytes, int] = {}  # by the ids of all tokens up to the last row
    for document in documents:
        ends = range(max(document.start, 1), document.stop + 1) if document.start else ()
        keys = (document.ids[:end].tobytes() for end in ends)
        number = next((numbers.pop(key) for key in keys if key in numbers), None)
        if number is None:
            number = len(found)
            found.append(document)
        else:
            found[number] = _join(found[number], document)
        if (document.ids[: document.stop] >= 0).all():
            numbers[document.ids[: document.stop].tobytes()] = number
    return found


def _join(earlier: RoutedDocument, document: RoutedDocument) -> RoutedDocument:
    """Return the document of a conversation: the rows of the earlier turns, and after them those of a later turn."""
    more = slice(earlier.stop - document.start, None)

    def joined(name: str) -> Any:
        a, b = getattr(earlier, name), getattr(document, name)
        return None if a is None or b is None else np.concatenate([a, b[more]])

    return replace(
        document,
        start=earlier.start,
        **{name: joined(name) for name in ("indices", "weights", "captured", "decode")},
    )
