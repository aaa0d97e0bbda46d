"""The one family of errors. Every message is one line: the value, what is allowed, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoeLensError(Exception):
    """Something moelens was asked for cannot be done; the message says what to do instead."""


class UnknownNameError(MoeLensError):
    """A hook, layer, expert, label or file that does not exist was named."""


class UnsupportedModelError(MoeLensError):
    """The model has no experts, or keeps them where moelens cannot reach them."""


class CheckError(MoeLensError):
    """A model's own numbers contradict each other: recording them would be wrong."""


class RecordingError(MoeLensError):
    """A recording is missing, damaged, in the way, or not what was asked for."""


def unknown(kind: str, name: object, allowed: Iterable[object], hint: str = "") -> UnknownNameError:
    """The error for a name that is not among `allowed`, with the nearest ones.

    >>> str(unknown("label", "sonkei", ["sonkeigo", "teineigo"]))
    "unknown label 'sonkei'; did you mean 'sonkeigo'?"
    """
    names = [str(a) for a in allowed]
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if near:
        advice = "did you mean " + " or ".join(repr(n) for n in near) + "?"
    elif len(names) > 16:
        advice = f"there are {len(names)}, from {names[0]!r} to {names[-1]!r}"
    else:
        advice = "allowed: " + (", ".join(names) or "none")
    return UnknownNameError(f"unknown {kind} {str(name)!r}; {advice}" + (f" ({hint})" if hint else ""))
