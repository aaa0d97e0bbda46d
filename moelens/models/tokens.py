"""Which characters a token stands for, exactly, by bytes."""

from __future__ import annotations

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

Ints = NDArray[np.int32]
BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
MARKER = "▁"
WORDPIECE = "##"


@cache
def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters by which byte-level BPE writes bytes (GPT-2, Radford et al. 2019).

    >>> byte_alphabet()["Ġ"]
    32
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


@dataclass(frozen=True)
class TokenSpans:
    """Where each token stands in its text.

    Attributes:
        start, end: `[token]` int32, the characters `text[start:end]`; equal for a token that holds no text.
        partial: `[token]` bool, the token holds only a part of one of its characters.
        method: "bytes" (exact: the tokens' bytes are the text's) or "offsets" (as the tokenizer says, repaired).
    """

    start: Ints
    end: Ints
    partial: NDArray[np.bool_]
    method: Literal["bytes", "offsets"]


def token_spans(tokenizer: Any, text: str, ids: Sequence[int]) -> TokenSpans:
    """The characters of `text` that each of its tokens `ids` `[token]` stands for.

    Every token is read as bytes, in byte-level BPE's alphabet and in SentencePiece's (`▁`, `<0x0A>`), and the reading
    is taken whose bytes are the text's; a space that the tokenizer put before the text is left out. WordPiece's tokens
    are found in the text, white space aside. Where none of these is the text, because the tokenizer rewrites it, the
    tokenizer's own offsets are taken: overlapping tokens are partial, and characters that no token claims, other than
    white space, go to the token before them. For a slow tokenizer, which gives none, the known tokens are looked up in
    the text without case, marks and width, and unknown words that follow one another share what lies between. A
    character shared by several tokens belongs whole to each of them. Special tokens that the text spells out, as chat
    templates do, stand for themselves; others are empty and stand where the token before them ended.

    Raises:
        CheckError: `ids` are not what the tokenizer makes of `text`, or those of a slow one are not found in it.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> tok = Tokenizer(models.BPE({c: i for i, c in enumerate(byte_alphabet())}, []))
    >>> tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=tok)
    >>> token_spans(tokenizer, "a様", tokenizer("a様")["input_ids"]).end
    array([1, 2, 2, 2], dtype=int32)
    """
    ids = [int(i) for i in ids]
    tokens = _tokens(tokenizer, ids)
    for way in (0, 1):
        pieces = [token.pieces[way] for token in tokens]
        spans = _spans_by_bytes(text, pieces)
        if spans is None and any(token.special and token.text in text for token in tokens):
            spans = _spans_by_bytes(text, _spelt_out(text, tokens, pieces))
        if spans is not None:
            return spans
    spans = _spans_by_words(text, [None if token.special else token.text for token in tokens])
    if spans is None:
        offsets = _offsets(tokenizer, text, ids) if tokenizer.is_fast else _looked_up(tokenizer, text, ids, tokens)
        spans = _spans_by_offsets(text, [token.text for token in tokens], offsets)
    return spans


class _Token(NamedTuple):
    """A token as it is written, whether it is special, and its bytes read as byte-level BPE and as SentencePiece."""

    text: str
    special: bool
    pieces: tuple[bytes | None, bytes | None]


@dataclass(frozen=True)
class _Vocabulary:
    """Tokens met so far, and those beside the vocabulary proper: whether each is special."""

    size: int
    added: dict[int, bool]
    met: dict[int, _Token] = field(default_factory=dict)


_vocabularies: WeakKeyDictionary[Any, _Vocabulary] = WeakKeyDictionary()


def _tokens(tokenizer: Any, ids: list[int]) -> list[_Token]:
    """The tokens of `ids`; each is read once, as long as the vocabulary does not grow."""
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else -1
    known = _vocabularies.get(tokenizer)
    if known is None or known.size != size:
        added = {i: bool(token.special) for i, token in tokenizer.added_tokens_decoder.items()}
        added |= dict.fromkeys(tokenizer.all_special_ids, True)
        known = _vocabularies[tokenizer] = _Vocabulary(size, added)
    met = known.met
    if unmet := [i for i in dict.fromkeys(ids) if i not in met]:
        for i, token in zip(unmet, tokenizer.convert_ids_to_tokens(unmet), strict=True):
            met[i] = _token(token, known.added.get(i))
    return [met[i] for i in ids]


def _token(token: str | bytes, special: bool | None) -> _Token:
    """`special` is None for a token of the vocabulary proper; one added to it is written as it is."""
    if special is None:
        pieces = _byte_level(token), _sentencepiece(token)
    elif special:
        pieces = b"", b""
    else:
        pieces = str(token).encode(), _sentencepiece(str(token))
    return _Token(str(token), bool(special), pieces)


def _byte_level(token: str | bytes) -> bytes | None:
    if isinstance(token, bytes):  # as tiktoken's
        return token
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in token) if alphabet.keys() >= set(token) else None


def _sentencepiece(token: str | bytes) -> bytes:
    if isinstance(token, bytes):
        return token
    byte = BYTE_FALLBACK.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace(MARKER, " ").encode()


def _spelt_out(text: str, tokens: Sequence[_Token], pieces: Sequence[bytes | None]) -> list[bytes | None]:
    """The pieces, with the special tokens that stand in the text (chat templates write them there) as they are."""
    data, at = text.encode(), 0
    found: list[bytes | None] = []
    for token, piece in zip(tokens, pieces, strict=True):
        written = token.text.encode()
        if piece == b"" and data.startswith(written, at):
            piece = written
        if at == 0 and piece and not data.startswith(piece):
            at = -1  # the space put before the text
        found.append(piece)
        at += len(piece or b"")
    return found


def _spans_by_words(text: str, tokens: Sequence[str | None]) -> TokenSpans | None:
    """Spans of WordPiece's tokens (`##` goes on with a word), which leave white space out; None where they differ."""
    start, end = np.zeros(len(tokens), np.int32), np.zeros(len(tokens), np.int32)
    reach = 0
    for i, token in enumerate(tokens):
        start[i] = end[i] = reach
        if token is None:
            continue
        piece = token.removeprefix(WORDPIECE)
        at = reach
        while at < len(text) and text[at].isspace():
            at += 1
        if not piece or not text.startswith(piece, at):
            return None
        start[i], end[i] = at, at + len(piece)
        reach = at + len(piece)
    if text[reach:].strip():
        return None
    return TokenSpans(start, end, np.zeros(len(tokens), np.bool_), "bytes")


def _spans_by_bytes(text: str, pieces: Sequence[bytes | None]) -> TokenSpans | None:
    """Spans of tokens with these bytes, or None where they are not the bytes of `text`."""
    if None in pieces:
        return None
    known = [piece for piece in pieces if piece is not None]
    data, joined = text.encode(), b"".join(known)
    if joined != data:
        if joined != b" " + data:
            return None
        first = next(i for i, piece in enumerate(known) if piece)
        known[first] = known[first][1:]  # the space some tokenizers put before the text
    start, end, partial = [], [], []
    reach = last = 0  # characters begun so far, the last token that holds text
    for i, piece in enumerate(known):
        inside, begun = _characters(piece)
        start.append(reach - inside)
        reach += begun
        end.append(reach)
        partial.append(inside)
        partial[last] |= inside
        if piece:
            last = i
    return TokenSpans(np.array(start, np.int32), np.array(end, np.int32), np.array(partial, np.bool_), "bytes")


@lru_cache(maxsize=1 << 17)
def _characters(piece: bytes) -> tuple[bool, int]:
    """Whether a piece goes on with a character begun before it, and how many characters begin in it."""
    begun = sum(byte >> 6 != 2 for byte in piece)
    return bool(piece) and piece[0] >> 6 == 2, begun


def _offsets(tokenizer: Any, text: str, ids: list[int]) -> Ints:
    """A fast tokenizer's own spans `[token, 2]`, in characters; (0, 0) for what it added."""
    for add_special_tokens in (True, False):
        encoding = tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, truncation=False, verbose=False
        )
        if encoding["input_ids"] == ids:
            return np.array(encoding["offset_mapping"], dtype=np.int32).reshape(-1, 2)
    raise CheckError(
        f"{len(ids)} token ids are not what the tokenizer makes of {text[:20]!r}; pass tokenizer(text)['input_ids']"
    )


def _looked_up(tokenizer: Any, text: str, ids: list[int], tokens: Sequence[_Token]) -> Ints:
    """The spans `[token, 2]` of a slow tokenizer's tokens: the leftmost at which the text holds all that are known."""
    letters = [(at, letter) for at, c in enumerate(text) for letter in _folded(c)]
    folded = "".join(letter for _, letter in letters)
    unknown = tokenizer.unk_token_id
    held = [i for i, t in enumerate(tokens) if ids[i] == unknown or not t.special or t.text in text]
    runs = [(gap, list(run)) for gap, run in groupby(held, lambda i: ids[i] == unknown)]
    owners = [owner for gap, run in runs for owner in ([run] if gap else [[i] for i in run])]
    added = {i for i in (0, len(ids) - 1) if ids and tokens[i].special}  # perhaps not by the text
    spans = np.zeros((len(ids), 2), np.int32)
    for some in (".+?", ".*?"):  # folding may leave nothing of an unknown word
        parts = []
        for gap, run in runs:
            words = (re.escape(_folded(tokens[i].text.removeprefix(WORDPIECE))) for i in run)
            known = (f"({word})" + "?" * (i in added) for i, word in zip(run, words, strict=True))
            parts.append(f"({some})" if gap else "".join(known))
        # (?>) does not come back to a run: where there is any match, the leftmost of each run leads to one
        for n in range(1 - runs[0][0], len(parts) - 2, 2) if runs else ():
            parts[n] = "(?>" + parts[n]
            parts[n + 1] += ")"
        if match := re.fullmatch("".join(parts), folded, re.DOTALL):
            for owner, (start, end) in zip(owners, match.regs[1:], strict=True):
                if end > start:
                    spans[owner] = letters[start][0], letters[end - 1][0] + 1
            return spans
    raise CheckError(
        f"the tokens are not those of {text[:20]!r}, and {type(tokenizer).__name__} gives no offsets;"
        " use the fast tokenizer of this model"
    )


def _folded(text: str) -> str:
    """A text as a tokenizer that rewrites may leave it: compatibility forms, case, marks and white space aside."""
    letters = unicodedata.normalize("NFKD", text).lower()
    return "".join(c for c in letters if not c.isspace() and unicodedata.category(c) not in ("Mn", "Cc", "Cf"))


def _spans_by_offsets(text: str, tokens: Sequence[str], offsets: Ints) -> TokenSpans:
    start, end = offsets[:, 0].copy(), offsets[:, 1].copy()
    partial = np.zeros(len(offsets), dtype=np.bool_)
    reach, last = 0, -1  # the text is told up to here, by this token
    for i, token in enumerate(tokens):
        synthetic = token in (MARKER, "Ġ") and not text[start[i] : end[i]].isspace()
        if synthetic or end[i] <= start[i]:
            start[i] = end[i] = reach
            continue
        gap = text[reach : start[i]]
        if gap.strip() and last < 0:
            start[i] = len(gap) - len(gap.lstrip())
        elif gap.strip():
            end[last] = reach + len(gap.rstrip())
        if start[i] < reach:
            partial[i] = partial[last] = True
        reach, last = max(reach, int(end[i])), i
    if last >= 0 and text[reach:].strip():
        end[last] = len(text.rstrip())
    return TokenSpans(start, end, partial, "offsets")
