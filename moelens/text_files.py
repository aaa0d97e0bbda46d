"""Text that people write: UTF-8 or a named encoding, in lines that end with `\\n`; errors name the file and line."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moelens.errors import MoeLensError, unknown

_GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF_16_LINE_ENDS = (b"\n\0", b"\0\n")
_HEAD = 4096  # bytes at the beginning of a file, by which UTF-16 is known
_ISO_2022_JP = (b"\x1b$@", b"\x1b$B")  # switches to kanji; the bytes after it are ASCII, and so valid UTF-8
# What Windows and the web write under these names has characters, such as ① and 髙, that the standards do not have.
_VARIANTS = {"shift_jis": ("cp932", "shift_jis_2004"), "euc_jp": ("euc_jp", "euc_jis_2004")}
_OTHER_ENCODINGS = {"EUC-JP": _VARIANTS["euc_jp"], "CP932": ("cp932",)}  # few texts in CP932 are valid EUC-JP
_NAMED = ("utf-8", "shift-jis", "cp932", "euc-jp", "iso-2022-jp", "utf-16")  # that an error suggests


def split_lines(text: str) -> list[str]:
    r"""Split a text at `\n` and `\r\n` only; other characters that Python takes for line ends are part of the text.

    Example:
        >>> split_lines("a\u2028b\r\nc")
        ['a\u2028b', 'c']
    """
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield the lines of a file, which may be compressed (`.gz`), and the place of each for error messages.

    A byte order mark at the beginning and the ends of the lines are left out.

    Args:
        path: The file.
        encoding: The encoding that the reader of the file chose, as for `require_encoding`; None where there is no
            choice, and the file has to be UTF-8.

    Raises:
        MoeLensError: If a line is not in the encoding, or a compressed file is damaged.
    """
    name = require_encoding(encoding or "utf-8")
    if name.startswith(("utf-16", "utf-32")):
        yield from _wide_lines(path, name)
        return
    for number, data in _raw_lines(path, encoding if name == "utf-8" else name):
        at = f"{path.name} line {number}"
        line = data.removeprefix(_BYTE_ORDER_MARK) if number == 1 else data
        text = _decode_utf8(line, at, encoding is not None) if name == "utf-8" else _decode(line, at, name)
        yield text.removesuffix("\n").removesuffix("\r"), at


def require_encoding(name: str) -> str:
    """Return the name that Python gives an encoding.

    Raises:
        UnknownNameError: If there is no such encoding of texts.

    Example:
        >>> require_encoding("SJIS"), require_encoding("EUC-JP")
        ('shift_jis', 'euc_jp')
    """
    try:
        "".encode(name)  # refuses codecs such as base64, which are of bytes
        return codecs.lookup(name).name.replace("_sig", "").replace("-sig", "")
    except (LookupError, TypeError, ValueError) as error:
        raise unknown("encoding", name, _NAMED, "allowed are the encodings of Python") from error


def read_text(path: Path) -> str:
    """Return the text of a file with `\\n` between its lines.

    Raises:
        MoeLensError: If a line is not UTF-8.
    """
    return "\n".join(line for line, _ in read_lines(path))


def read_json_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[Any, str]]:
    """Yield the JSON value in each line that is not empty, and its place for error messages.

    Args:
        path: The file.
        encoding: As for `read_lines`.

    Raises:
        MoeLensError: If a line is not in the encoding or not JSON, or an object in it has a key twice.
    """
    for line, at in read_lines(path, encoding):
        if line.strip():
            yield _parse_json(line, at), at


def _parse_json(line: str, at: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise MoeLensError(f"{at} has the key {twice!r} twice in one object; keep one of the two")
        return found

    try:
        return json.loads(line, object_pairs_hook=unique)
    except RecursionError as error:
        raise MoeLensError(f"{at} is nested too deeply; write one flat JSON object per line") from error
    except json.JSONDecodeError as error:
        raise MoeLensError(
            f"{at} is not JSON ({error.msg}, column {error.colno}); write one JSON object per line"
        ) from error
    except ValueError as error:  # an integer of thousands of digits
        raise MoeLensError(f"{at} has a number that is too long to be read; write it as a string") from error


def _raw_lines(path: Path, encoding: str | None) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file as bytes, with their numbers from 1 on."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            if any(mark in file.peek(_HEAD)[:_HEAD] for mark in _UTF_16_LINE_ENDS):
                raise _encoding_error("UTF-16", f"{path.name} line 1", encoding)
            for number, line in enumerate(file, 1):
                yield number, line
        except _GZIP_ERRORS as error:
            raise _gzip_error(path, number, error) from error


def _gzip_error(path: Path, number: int, error: Exception) -> MoeLensError:
    return MoeLensError(f"{path.name} cannot be read after line {number} ({error}); download it again")


def _wide_lines(path: Path, encoding: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a file whose characters have two or four bytes, as `read_lines` does."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(io.TextIOWrapper(file, encoding, newline="\n"), 1):
                yield line.removesuffix("\n").removesuffix("\r").removeprefix("\ufeff"), f"{path.name} line {number}"
        except UnicodeError as error:
            raise MoeLensError(
                f"expected {encoding} in {path.name} after line {number}, got other bytes ({error}); give the encoding "
                "that the file has"
            ) from error
        except _GZIP_ERRORS as error:
            raise _gzip_error(path, number, error) from error


def _decode(line: bytes, at: str, encoding: str) -> str:
    """Return a line in another encoding than UTF-8 as text."""
    variants = _VARIANTS.get(encoding, (encoding,))
    for codec in variants:
        if _decodes(line, codec):
            return line.decode(codec)
    fitting = "UTF-8" if _decodes(line, "utf-8") else _other_encoding(line, line.decode("utf-8", "replace"))
    advice = f"give encoding='{fitting.lower()}' (--encoding {fitting.lower()})" if fitting else "correct or remove it"
    got = f"what looks like {fitting}" if fitting else "bytes that it does not have"
    raise MoeLensError(f"expected {encoding} in {at}, got {got}; {advice}")


def _decode_utf8(line: bytes, at: str, selectable: bool) -> str:
    """Return a line as text; `selectable` says whether the reader can choose another encoding."""
    reason = ""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        text, reason = line.decode("utf-8", "replace"), f"the byte 0x{line[error.start]:02x} at byte {error.start + 1}"
    encoding = _other_encoding(line, text)
    if encoding:
        raise _encoding_error(encoding, at, "utf-8" if selectable else None)
    if reason:
        raise MoeLensError(f"expected UTF-8 in {at}, got {reason} of the line; correct or remove it")
    return text


def _other_encoding(line: bytes, text: str) -> str:
    """Return the name of the encoding that a line seems to have; "" if it is UTF-8, even with damage.

    Args:
        line: The line.
        text: The line, decoded as UTF-8 with U+FFFD in place of other bytes.
    """
    if b"\0" in line or line.startswith(_UTF_16_MARKS):
        return "UTF-16"
    if any(mark in line for mark in _ISO_2022_JP):
        return "ISO-2022-JP"
    wrong = text.count("\ufffd")
    if not wrong or sum(not c.isascii() for c in text) > 2 * wrong:
        return ""
    fitting = (name for name, known in _OTHER_ENCODINGS.items() if any(_decodes(line, codec) for codec in known))
    return next(fitting, "")


def _encoding_error(encoding: str, at: str, chosen: str | None) -> MoeLensError:
    """The error for a line in another encoding than the one that was chosen, or than UTF-8 without a choice."""
    convert = f"convert the file, as with iconv -f {encoding} -t UTF-8"
    if chosen is None:
        return MoeLensError(f"expected UTF-8 in {at}, got what looks like {encoding}; {convert}")
    name = encoding.lower()
    return MoeLensError(
        f"expected {'UTF-8' if chosen == 'utf-8' else chosen} in {at}, got what looks like {encoding}; "
        f"give encoding='{name}' (--encoding {name}), or {convert}"
    )


def _decodes(line: bytes, codec: str) -> bool:
    try:
        line.decode(codec)
    except UnicodeDecodeError:
        return False
    return True
