"""Split the line of a magic into words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from moelens.errors import MoeLensError, unknown

_OUTPUT = ("-o", "--output")


def split_words(line: str, text_options: Mapping[str, Sequence[str]] | None = None) -> tuple[list[str], str]:
    """Split a line as a shell does, and take off `-o NAME` at its end.

    After a command that takes a text, the rest of the line is the text, as typed.

    Args:
        line: the line after `%moe`.
        text_options: the options of each command that takes a text. They may stand before and after the text; `--`
            ends them.

    Returns:
        The words without `-o NAME`, and the name, or "" if there is none.

    Raises:
        UnknownNameError: an option before the text does not exist.
        MoeLensError: a quotation mark is not closed, or the word after `-o` is not a variable name.

    Example:
        >>> split_words('analyze runs/demo --given "token" -o result')
        (['analyze', 'runs/demo', '--given', 'token'], 'result')
        >>> split_words('trace --model demo 先生は"敬語"を -o found', {"trace": ["--model"]})
        (['trace', '--model', 'demo', '--', '先生は"敬語"を'], 'found')
    """
    command, *rest = re.split(r"[ \t]+", line.strip(" \t\r\n"), maxsplit=1)
    if text_options and command in text_options:
        return _split_text(command, "".join(rest), text_options[command])
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise MoeLensError(f"%moe: {error} in {line!r}; close the quotation mark") from error
    if len(words) < 2 or words[-2] not in _OUTPUT:
        return words, ""
    return words[:-2], _variable_name(words[-1])


def _split_text(command: str, rest: str, options: Sequence[str]) -> tuple[list[str], str]:
    """Split what follows a command that takes a text."""
    if rest in ("-h", "--help"):
        return [command, rest], ""
    words, output = [command], ""
    option = rf"({'|'.join(map(re.escape, (*options, *_OUTPUT)))})(?:[ \t]+|=)(\"[^\"]*\"|'[^']*'|\S+)"
    before, after = re.compile(rf"{option}(?:[ \t]+|$)"), re.compile(rf"(?:^|[ \t]+){option}$")
    end = re.compile(r"--(?:[ \t]+|$)")
    while not end.match(rest) and (found := before.match(rest) or after.search(rest)):
        name, value = found[1], found[2].strip("\"'")
        if name in _OUTPUT:
            output = _variable_name(value)
        else:
            words += [name, value]
        rest = rest[: found.start()] + rest[found.end() :]
    if wrong := re.match(r"--[A-Za-z][\w-]*", rest):
        raise unknown("option", wrong[0], options, "write -- before a text that begins so")
    text = rest[found.end() :] if (found := end.match(rest)) else rest
    return ([*words, "--", text] if text else words), output


def _variable_name(word: str) -> str:
    if not word.isidentifier():
        raise MoeLensError(f"-o {word!r} is not a valid variable name; give one such as -o result")
    return word
