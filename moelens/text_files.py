"""Text that people write: UTF-8 in lines that end with `\\n`, read with errors that name the file and the line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moelens.errors import MoeLensError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF_16_LINE_ENDS = (b"\n\0", b"\0\n")
_HEAD = 4096  # bytes at the beginning of a file, by which UTF-16 is known
_ISO_2022_JP = (b"\x1b$@", b"\x1b$B")  # switches to kanji; the bytes after it are ASCII, and so valid UTF-8
_OTHER_ENCODINGS = {"EUC-JP": "euc_jp", "CP932": "cp932"}  # few texts in CP932 are valid EUC-JP


def split_lines(text: str) -> list[str]:
    r"""Split a text at `\n` and `\r\n` only; other characters that Python takes for line ends are part of the text.

    Example:
        >>> split_lines("a\u2028b\r\nc")
        ['a\u2028b', 'c']
    """
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a file, which may be compressed (`.gz`), and the place of each for error messages.

    A byte order mark at the beginning and the ends of the lines are left out.

    Raises:
        MoeLensError: If a line is not UTF-8, or a compressed file is damaged.
    """
    for number, data in _raw_lines(path):
        at = f"{path.name} line {number}"
        yield _decode(data.removeprefix(_BYTE_ORDER_MARK) if number == 1 else data, at), at


def read_text(path: Path) -> str:
    """Return the text of a file with `\\n` between its lines.

    Raises:
        MoeLensError: If a line is not UTF-8.
    """
    return "\n".join(line for line, _ in read_lines(path))


def read_json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the JSON value in each line that is not empty, and its place for error messages.

    Raises:
        MoeLensError: If a line is not UTF-8 or not JSON, or an object in it has a key twice.
    """
    for line, at in read_lines(path):
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


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file as bytes, with their numbers from 1 on."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            if any(mark in file.peek(_HEAD)[:_HEAD] for mark in _UTF_16_LINE_ENDS):
                raise _encoding_error("UTF-16", f"{path.name} line 1")
            for number, line in enumerate(file, 1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise MoeLensError(
                f"{path.name} cannot be read after line {number} ({error}); download it again"
            ) from error


def _decode(line: bytes, at: str) -> str:
    """Return a line as text, without its end."""
    reason = ""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        text, reason = line.decode("utf-8", "replace"), f"the byte 0x{line[error.start]:02x} at byte {error.start + 1}"
    encoding = _other_encoding(line, text)
    if encoding:
        raise _encoding_error(encoding, at)
    if reason:
        raise MoeLensError(f"expected UTF-8 in {at}, got {reason} of the line; correct or remove it")
    return text.removesuffix("\n").removesuffix("\r")


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
    return next((name for name, codec in _OTHER_ENCODINGS.items() if _decodes(line, codec)), "")


def _encoding_error(encoding: str, at: str) -> MoeLensError:
    return MoeLensError(
        f"expected UTF-8 in {at}, got what looks like {encoding};"
        f" convert the file, as with iconv -f {encoding} -t UTF-8"
    )


def _decodes(line: bytes, codec: str) -> bool:
    try:
        line.decode(codec)
    except UnicodeDecodeError:
        return False
    return True
