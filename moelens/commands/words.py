"""Split the line of a magic into words."""

from __future__ import annotations

import shlex

from moelens.errors import MoeLensError


def split_words(line: str) -> tuple[list[str], str]:
    """Split a line as a shell does, and take off `-o NAME` at its end.

    Args:
        line: the line after `%moe`.

    Returns:
        The words without `-o NAME`, and the name, or "" if there is none.

    Raises:
        MoeLensError: a quotation mark is not closed, or the word after `-o` is not a variable name.

    Example:
        >>> split_words('analyze runs/demo --given "token" -o result')
        (['analyze', 'runs/demo', '--given', 'token'], 'result')
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise MoeLensError(f"%moe: {error} in {line!r}; close the quotation mark") from error
    if len(words) < 2 or words[-2] not in ("-o", "--output"):
        return words, ""
    if not words[-1].isidentifier():
        raise MoeLensError(f"-o {words[-1]!r} is not a valid variable name; give one such as -o result")
    return words[:-2], words[-1]
