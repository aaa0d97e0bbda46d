"""The exceptions that moelens raises.

Every message is one line. It names what was expected, what was given and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoeLensError(Exception):
    """The base class of all exceptions that moelens raises."""


class UnknownNameError(MoeLensError):
    """A hook, layer, expert, label or file of this name does not exist."""


class UnsupportedModelError(MoeLensError):
    """The model has no experts, or keeps them where moelens cannot reach them."""


class CheckError(MoeLensError):
    """The numbers of a model or a recording contradict each other, so a result computed from them would be wrong."""


class MoeLensWarning(UserWarning):
    """Something that moelens goes on with is not as it should be, such as a model without a tokenizer."""


class RecordingError(MoeLensError):
    """A recording or a saved result is missing, is damaged, or does not hold what was asked for."""


def unknown(kind: str, name: object, allowed: Iterable[object], hint: str = "") -> UnknownNameError:
    """Make the error for a name that is not among the allowed ones.

    Args:
        kind: what the name should be the name of, such as "label".
        name: the name that was given.
        allowed: the names that exist. The message suggests those most like `name`, or else lists them.
        hint: further advice, put in parentheses at the end of the message.

    Returns:
        The error, for the caller to raise.

    Example:
        >>> str(unknown("label", "sonkei", ["sonkeigo", "teineigo"]))
        "unknown label 'sonkei'; did you mean 'sonkeigo'?"
        >>> str(unknown("layer", 9, [1, 2, 3]))
        "unknown layer '9'; allowed: 1, 2, 3"
    """
    names = list(dict.fromkeys(str(a) for a in allowed))
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.6)
    if near:
        advice = "did you mean " + " or ".join(repr(n) for n in near) + "?"
    elif len(names) > 16:
        advice = f"there are {len(names)}, from {names[0]!r} to {names[-1]!r}"
    else:
        advice = "allowed: " + (", ".join(names) or "none")
    return UnknownNameError(f"unknown {kind} {str(name)!r}; {advice}" + (f" ({hint})" if hint else ""))
