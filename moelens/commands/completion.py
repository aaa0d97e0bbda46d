"""How the Tab key completes the words after `%moe`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from moelens.commands.table import COMMANDS, Argument, Command

_MANIFEST = "manifest.json"


def completions(line: str, commands: Iterable[str], known: Mapping[str, Sequence[str]]) -> list[str]:
    """What the last word of a line that begins with `%moe` may become.

    Args:
        line: up to the cursor.
        commands: names of the commands that may stand there.
        known: variables of the notebook that stand for a "model" or a "recording".
    """
    words = line.split()[1:] + ([""] if line[-1:].isspace() else [])
    if len(words) <= 1:
        found = commands
    elif words[0] not in commands:
        return []
    else:
        found = _candidates(COMMANDS[words[0]], words[1:], known)
    return sorted(name for name in dict.fromkeys(found) if name.startswith(words[-1] if words else ""))


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


def recording_folders() -> list[str]:
    """Folders with a recording in them, here and one below."""
    return sorted(str(path.parent) for pattern in ("*", "*/*") for path in Path().glob(f"{pattern}/{_MANIFEST}"))


def _pairs() -> Iterable[str]:
    from moelens.japanese.minimal_pairs import kinds

    return kinds()


def _families() -> Iterable[str]:
    from moelens.japanese.families import FAMILIES

    return FAMILIES


def _captures() -> Iterable[str]:
    from moelens.recording.captures import CAPTURE_POINTS

    return CAPTURE_POINTS


def _measures() -> Iterable[str]:
    from moelens.analysis.measures import COUNT_MEASURES, ROUTE_MEASURES

    return [*COUNT_MEASURES, *ROUTE_MEASURES]


def _operations() -> Iterable[str]:
    from moelens.interventions.operations import OPERATIONS

    return OPERATIONS


_NAMES: Mapping[str, Callable[[], Iterable[str]]] = {
    "model": lambda: ["demo"],
    "corpus": lambda: ["demo"],
    "recording": recording_folders,
    "pairs": _pairs,
    "family": _families,
    "given": lambda: ["token", "position", *_families()],
    "format": lambda: ["datasets", "safetensors", "npz", "csv"],
    "capture": _captures,
    "measure": _measures,
    "operation": _operations,
}
