"""Which characters of a text each token stands for, to the byte."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import groupby
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from moelens.errors import CheckError

_Ints = NDArray[np.int32]
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # a byte in SentencePiece's byte fallback
_SPACE = "▁"  # SentencePiece's sign for a space
_CONTINUATION = "##"  # begins WordPiece's tokens that continue a word


@cache
def byte_alphabet() -> dict[str, int]:
    """Return the bytes by the 256 printable characters with which byte-level BPE writes them (GPT-2).

    Example:
        >>> byte_alphabet()["Ġ"]
        32
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


@dataclass(frozen=True)
class TokenSpans:
    """The characters of a text that its tokens stand for.

    Attributes:
        start: `[token]` int32, the first character of each token.
        end: `[token]` int32, the character after its last one, so that it stands for `text[start:end]`; equal to
            `start` for a token without text.
        partial: `[token]` bool, whether the token holds only a part of one of its characters.
        method: "bytes" (the bytes of the tokens are those of the text, so the spans are exact) or "offsets" (the
            spans come from the tokenizer's offsets, or from a search, and were completed).
    """

    start: _Ints
    end: _Ints
    partial: NDArray[np.bool_]
    method: Literal["bytes", "offsets"]


def token_spans(tokenizer: Any, text: str, ids: Sequence[int]) -> TokenSpans:
    """Find the characters of a text that each of its tokens stands for.

    The tokens are read as bytes, in byte-level BPE's alphabet and in SentencePiece's (`▁`, `<0x0A>`). If the bytes of
    one reading are those of the text, with or without a space that the tokenizer put before it, the spans follow from
    them. Otherwise the tokens are read as WordPiece's, which leave white space out.

    If none of these gives the text, because the tokenizer rewrites it, the spans come from the tokenizer's offsets.
    Tokens that overlap are then partial, and characters that belong to no token, other than white space, are added to
    the token before them. A slow tokenizer has no offsets. Its known tokens are searched in the text, without regard to
    case, marks and width, and unknown words in a row share what lies between known tokens.

    A character that several tokens share belongs whole to each of them. A special token stands for itself where the
    text spells it out, as chat templates do; otherwise it is empty, at the end of the token before it.

    Args:
        tokenizer: a transformers tokenizer, or an object with the same methods.
        text: the text.
        ids: the token ids of the text, `[token]`.

    Returns:
        The spans.

    Raises:
        CheckError: the tokenizer gives other ids for the text, or is slow and its tokens are not found in the text.

    Example:
        >>> text = "a様"
        >>> spans = token_spans(demo_model.tokenizer, text, demo_model.to_tokens(text)[0].tolist())
        >>> spans.method, int(spans.end[-1])
        ('bytes', 2)
    """
    ids = [int(i) for i in ids]
    tokens = _tokens(tokenizer, ids)
    for reading in (0, 1):
        pieces = [token.pieces[reading] for token in tokens]
        spans = _spans_by_bytes(text, pieces)
        if spans is None and any(token.special and token.text in text for token in tokens):
            spans = _spans_by_bytes(text, _spelt_out(text, tokens, pieces))
        if spans is not None:
            return spans
    spans = _spans_by_words(text, [None if token.special else token.text for token in tokens])
    if spans is None:
        offsets = _own_offsets(tokenizer, text, ids) if tokenizer.is_fast else _search(tokenizer, text, ids, tokens)
        spans = _spans_by_offsets(text, [token.text for token in tokens], offsets)
    return spans


def decode_spans(tokenizer: Any, ids: list[int]) -> tuple[str, TokenSpans]:
    """Decode token ids, and find the characters that each of them stands for.

    Args:
        tokenizer: a transformers tokenizer, or an object with the same methods.
        ids: the token ids, `[token]`.

    Returns:
        The text without special tokens, and the spans. If the tokens end within a character, the spans are empty.

    Example:
        >>> decode_spans(demo_model.tokenizer, demo_model.to_tokens("先生")[0].tolist())[0]
        '先生'
    """
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    try:
        return text, token_spans(tokenizer, text, ids)
    except CheckError:
        end = np.full(len(ids), len(text), np.int32)
        return text, TokenSpans(end, end, np.ones(len(ids), np.bool_), "offsets")


def describe_tokenizer(tokenizer: Any) -> dict[str, str]:
    """Return what a manifest states about a tokenizer: its class, and the SHA-256 of its vocabulary."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return {"class": type(tokenizer).__name__, "sha256": hashlib.sha256(vocabulary.encode()).hexdigest()}


class _Token(NamedTuple):
    """One token of a vocabulary.

    Attributes:
        text: how the tokenizer writes it.
        special: whether it is a special token.
        pieces: its bytes, read as byte-level BPE's and as SentencePiece's; None where it cannot be read so.
    """

    text: str
    special: bool
    pieces: tuple[bytes | None, bytes | None]


@dataclass(frozen=True)
class _Vocabulary:
    """What was read of a tokenizer's vocabulary.

    Attributes:
        size: number of its tokens.
        added: by id, whether a token is special, for the tokens that were added to the vocabulary.
        read: by id, the tokens that were read so far.
    """

    size: int
    added: dict[int, bool]
    read: dict[int, _Token] = field(default_factory=dict)


_vocabularies: WeakKeyDictionary[Any, _Vocabulary] = WeakKeyDictionary()


def _tokens(tokenizer: Any, ids: list[int]) -> list[_Token]:
    """The tokens of `ids`; each is read only once."""
    vocabulary = _vocabularies.get(tokenizer)
    if vocabulary is None or any(i not in vocabulary.read for i in ids):
        vocabulary = _read_vocabulary(tokenizer, ids)
    return [vocabulary.read[i] for i in ids]


def _read_vocabulary(tokenizer: Any, ids: list[int]) -> _Vocabulary:
    """Return a tokenizer's vocabulary with the tokens of `ids`; it is read anew if it has grown."""
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else -1
    vocabulary = _vocabularies.get(tokenizer)
    if vocabulary is None or vocabulary.size != size:
        added = {i: bool(token.special) for i, token in tokenizer.added_tokens_decoder.items()}
        added |= dict.fromkeys(tokenizer.all_special_ids, True)
        vocabulary = _vocabularies[tokenizer] = _Vocabulary(size, added)
    unread = [i for i in dict.fromkeys(ids) if i not in vocabulary.read]
    for i, token in zip(unread, tokenizer.convert_ids_to_tokens(unread), strict=True):
        vocabulary.read[i] = _read_token(token, vocabulary.added.get(i))
    return vocabulary


def _read_token(token: str | bytes, special: bool | None) -> _Token:
    """Read one token; `special` is None unless it was added to the vocabulary, and then written in plain text."""
    if special is None:
        pieces = _byte_level(token), _sentencepiece(token)
    elif special:
        pieces = b"", b""
    else:
        pieces = str(token).encode(), _sentencepiece(str(token))
    return _Token(str(token), bool(special), pieces)


def _byte_level(token: str | bytes) -> bytes | None:
    if isinstance(token, bytes):  # tiktoken's tokens are bytes
        return token
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in token) if alphabet.keys() >= set(token) else None


def _sentencepiece(token: str | bytes) -> bytes:
    if isinstance(token, bytes):
        return token
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace(_SPACE, " ").encode()


def _spelt_out(text: str, tokens: Sequence[_Token], pieces: Sequence[bytes | None]) -> list[bytes | None]:
    """The pieces, with the bytes of special tokens where the text spells these out, as chat templates do."""
    data, position = text.encode(), 0
    spelt: list[bytes | None] = []
    for token, piece in zip(tokens, pieces, strict=True):
        written = token.text.encode()
        if piece == b"" and data.startswith(written, position):
            piece = written
        if position == 0 and piece and not data.startswith(piece):
            position = -1  # the piece begins with a space that the tokenizer put before the text
        spelt.append(piece)
        position += len(piece or b"")
    return spelt


def _spans_by_words(text: str, tokens: Sequence[str | None]) -> TokenSpans | None:
    """Spans of WordPiece's tokens, which leave white space out; None if they are not those of the text.

    Args:
        text: the text.
        tokens: as the tokenizer writes them; None for special tokens.
    """
    start, end = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), np.int32)
    reached = 0  # the character after the last token
    for i, token in enumerate(tokens):
        start[i] = end[i] = reached
        if token is None:
            continue
        piece = token.removeprefix(_CONTINUATION)
        begin = reached
        while begin < len(text) and text[begin].isspace():
            begin += 1
        if not piece or not text.startswith(piece, begin):
            return None
        reached = begin + len(piece)
        start[i], end[i] = begin, reached
    if text[reached:].strip():
        return None
    return TokenSpans(start, end, np.zeros(len(tokens), np.bool_), "bytes")


def _spans_by_bytes(text: str, pieces: Sequence[bytes | None]) -> TokenSpans | None:
    """Spans of tokens with these bytes; None if they are not the bytes of the text."""
    if None in pieces:
        return None
    known = [piece for piece in pieces if piece is not None]
    data, joined = text.encode(), b"".join(known)
    if joined != data:
        if joined != b" " + data:
            return None
        first = next(i for i, piece in enumerate(known) if piece)
        known[first] = known[first][1:]  # the space that some tokenizers put before the text
    start, end = [], []
    partial = np.zeros(len(known), np.bool_)
    reached = last = 0  # number of characters begun so far, and the last token with text
    for i, (continues, begun) in enumerate(map(_characters, known)):
        if continues:
            partial[last] = partial[i] = True
        start.append(reached - continues)
        reached += begun
        end.append(reached)
        if known[i]:
            last = i
    return TokenSpans(np.array(start, np.int32), np.array(end, np.int32), partial, "bytes")


@lru_cache(maxsize=1 << 17)
def _characters(piece: bytes) -> tuple[bool, int]:
    """Whether a piece begins within a character (with a continuation byte), and how many characters begin in it."""
    begun = sum(byte >> 6 != 2 for byte in piece)
    return bool(piece) and piece[0] >> 6 == 2, begun


def _own_offsets(tokenizer: Any, text: str, ids: list[int]) -> _Ints:
    """A fast tokenizer's own spans `[token, 2]`, in characters; (0, 0) for tokens that it added."""
    for add_special_tokens in (True, False):
        encoding = tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, truncation=False, verbose=False
        )
        if encoding["input_ids"] == ids:
            return np.array(encoding["offset_mapping"], dtype=np.int32).reshape(-1, 2)
    raise CheckError(
        f"expected the ids that the tokenizer gives for {text[:20]!r}, got {len(ids)} other ids; "
        "pass tokenizer(text)['input_ids']"
    )


def _search(tokenizer: Any, text: str, ids: list[int], tokens: Sequence[_Token]) -> _Ints:
    """The spans `[token, 2]` of a slow tokenizer's tokens: the leftmost at which the text has all known tokens."""
    letters = [(position, letter) for position, c in enumerate(text) for letter in _folded(c)]
    folded = "".join(letter for _, letter in letters)
    unknown = tokenizer.unk_token_id
    with_text = [i for i, t in enumerate(tokens) if ids[i] == unknown or not t.special or t.text in text]
    runs = [(is_gap, list(run)) for is_gap, run in groupby(with_text, lambda i: ids[i] == unknown)]
    owners: list[list[int]] = []  # the tokens of each group of the pattern
    for is_gap, run in runs:
        owners += [run] if is_gap else [[i] for i in run]
    for gap in (".+?", ".*?"):  # folding may leave nothing of an unknown word
        if match := re.fullmatch(_search_pattern(runs, ids, tokens, gap), folded, re.DOTALL):
            spans = np.zeros((len(ids), 2), np.int32)
            for owner, (start, end) in zip(owners, match.regs[1:], strict=True):
                if end > start:
                    spans[owner] = letters[start][0], letters[end - 1][0] + 1
            return spans
    raise CheckError(
        f"expected the tokens of {text[:20]!r}, got tokens that are not found in it, and "
        f"{type(tokenizer).__name__} gives no offsets; use the fast tokenizer of this model"
    )


def _search_pattern(runs: list[tuple[bool, list[int]]], ids: list[int], tokens: Sequence[_Token], gap: str) -> str:
    """A regular expression with one group for each known token and for each run of unknown words.

    Args:
        runs: the tokens in runs, with whether a run is one of unknown words.
        ids: ids of all tokens.
        tokens: all tokens.
        gap: the expression for a run of unknown words.
    """
    # A special token at either end may have been added by the tokenizer; then the text does not spell it out.
    optional = {i for i in (0, len(ids) - 1) if ids and tokens[i].special}
    parts = []
    for is_gap, run in runs:
        if is_gap:
            parts.append(f"({gap})")
            continue
        words = []
        for i in run:
            word = f"({re.escape(_folded(tokens[i].text.removeprefix(_CONTINUATION)))})"
            words.append(f"{word}?" if i in optional else word)
        parts.append("".join(words))
    # An unknown run and the known run after it become an atomic group (?>…): the first match of the pair is final,
    # because if there is any match of the whole, the leftmost of each pair leads to one.
    first_gap = 0 if runs and runs[0][0] else 1
    for n in range(first_gap, len(parts) - 2, 2):
        parts[n] = "(?>" + parts[n]
        parts[n + 1] += ")"
    return "".join(parts)


def _folded(text: str) -> str:
    """A text in compatibility forms and lower case, without marks and white space: what rewriting tokenizers keep."""
    letters = unicodedata.normalize("NFKD", text).lower()
    return "".join(c for c in letters if not c.isspace() and unicodedata.category(c) not in ("Mn", "Cc", "Cf"))


def _spans_by_offsets(text: str, tokens: Sequence[str], offsets: _Ints) -> TokenSpans:
    """Spans from offsets `[token, 2]`, completed so that every character but white space belongs to a token."""
    start, end = offsets[:, 0].copy(), offsets[:, 1].copy()
    partial = np.zeros(len(offsets), dtype=np.bool_)
    reached, last = 0, -1  # the character after those that belong to a token so far, and the last such token
    for i, token in enumerate(tokens):
        added_space = token in (_SPACE, "Ġ") and not text[start[i] : end[i]].isspace()
        if added_space or end[i] <= start[i]:
            start[i] = end[i] = reached
            continue
        gap = text[reached : start[i]]
        if gap.strip() and last < 0:
            start[i] = len(gap) - len(gap.lstrip())
        elif gap.strip():
            end[last] = reached + len(gap.rstrip())
        if start[i] < reached:
            partial[i] = partial[last] = True
        reached, last = max(reached, int(end[i])), i
    if last >= 0 and text[reached:].strip():
        end[last] = len(text.rstrip())
    return TokenSpans(start, end, partial, "offsets")
