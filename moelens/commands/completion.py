"""Completions of the words after `%moe`, for the Tab key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from moelens.commands.definitions import Argument, Command
from moelens.commands.table import COMMANDS
from moelens.texts import LANGUAGES

_MANIFEST = "manifest.json"


def completions(line: str, commands: Iterable[str], known: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the completions of the last word of a line that begins with `%moe`, in alphabetical order.

    Args:
        line: the line up to the cursor.
        commands: names of the commands that the line can have.
        known: names of variables of the notebook, by what they stand for: "model" or "recording".
    """
    words = line.split()[1:] + ([""] if line[-1:].isspace() else [])
    if len(words) <= 1:
        candidates = commands
    elif words[0] not in commands:
        return []
    else:
        candidates = _candidates(COMMANDS[words[0]], words[1:], known)
    return sorted(name for name in dict.fromkeys(candidates) if name.startswith(words[-1] if words else ""))


def _candidates(command: Command, words: list[str], known: Mapping[str, Sequence[str]]) -> Iterable[str]:
    options = {flag: a for a in command.arguments for flag in a.names if flag.startswith("-")}
    if words[-1].startswith("-"):
        return [*options, "--help", "-o"]
    before = words[-2] if len(words) > 1 else ""
    argument: Argument | None = options.get(before)
    if argument is None or argument.options.get("action") == "store_true":
        places = [a for a in command.arguments if not a.names[0].startswith("-")]
        at = sum(not w.startswith("-") and (i == 0 or words[i - 1] not in options) for i, w in enumerate(words[:-1]))
        argument = places[min(at, len(places) - 1)] if places else None
    if argument is None:
        return []
    return [*known.get(argument.completes, ()), *_NAMES.get(argument.completes, list)()]


def _recording_folders() -> list[str]:
    """Recordings in the current folder and its subfolders."""
    return sorted(str(path.parent) for pattern in ("*", "*/*") for path in Path().glob(f"{pattern}/{_MANIFEST}"))


def _pairs() -> Iterable[str]:
    from moelens.japanese.crossed_contrasts import contrast_kinds
    from moelens.japanese.minimal_pairs import kinds

    return (*contrast_kinds(), *kinds())


def _families() -> Iterable[str]:
    from moelens.japanese.families import FAMILIES

    return FAMILIES


def _labels() -> Iterable[str]:
    from moelens.japanese.families import FAMILIES
    from moelens.japanese.label_names import typed_names

    return [name for labels in FAMILIES.values() for label in labels for name in (label, *typed_names(label))]


def _captures() -> Iterable[str]:
    from moelens.recording.captures import CAPTURE_POINTS

    return CAPTURE_POINTS


def _measures() -> Iterable[str]:
    from moelens.analysis.measures import COUNT_MEASURES, ROUTE_MEASURES

    return [*COUNT_MEASURES, *ROUTE_MEASURES]


def _operations() -> Iterable[str]:
    from moelens.interventions.operations import OPERATIONS

    return OPERATIONS


LISTED = {
    "family": "families of labels",
    "pairs": "kinds of contrasts and pairs",
    "operation": "operations",
    "measure": "measures",
    "format": "formats",
}
"""What the help of a command lists, by `Argument.completes`."""


def listed_names(command: Command) -> dict[str, tuple[str, ...]]:
    """Return the names that arguments of a command can have, by a heading for each kind of them.

    Example:
        >>> from moelens.commands.table import COMMANDS
        >>> listed_names(COMMANDS["export"])["formats"]
        ('datasets', 'safetensors', 'npz', 'csv')
    """
    kinds = dict.fromkeys(name for a in command.arguments for name in LISTED if name in a.completes.split(" or "))
    return {LISTED[name]: tuple(_NAMES[name]()) for name in kinds}


# Returns the names that can stand for a value, by `Argument.completes`.
_NAMES: Mapping[str, Callable[[], Iterable[str]]] = {
    "model": lambda: ["demo"],
    "corpus": lambda: ["demo"],
    "recording": _recording_folders,
    "source": _recording_folders,
    "phase": lambda: ["prefill,decode"],
    "pairs": _pairs,
    "family": _families,
    "label": _labels,
    "family or label": lambda: [*_families(), *_labels()],
    "lang": lambda: LANGUAGES,
    "given": lambda: ["token", "none", "position", *_families()],
    "format": lambda: ["datasets", "safetensors", "npz", "csv"],
    "capture": _captures,
    "measure": _measures,
    "operation": _operations,
}
