"""The words of a magic's line."""

from __future__ import annotations

import shlex

from moelens.errors import MoeLensError


def split_words(line: str) -> tuple[list[str], str]:
    """The words of a line as a shell would see them, and the name after `-o` at its end, if there is one.

    >>> split_words('analyze runs/demo --given "token" -o result')
    (['analyze', 'runs/demo', '--given', 'token'], 'result')

    Raises:
        MoeLensError: a quotation mark is not closed, or what follows `-o` is not a variable's name.
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
