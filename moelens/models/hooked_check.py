"""What functions say that are given something else than a hooked model."""

from __future__ import annotations

from pathlib import Path

from moelens.errors import MoeLensError


def require_hooked(model: object) -> None:
    """Raise `MoeLensError` if this is no hooked model, such as the name of one or a model of transformers.

    Example:
        >>> require_hooked("demo")
        Traceback (most recent call last):
        moelens.errors.MoeLensError: expected a hooked model, got 'demo'; load it with moelens.load('demo')
    """
    if hasattr(model, "shape") and hasattr(model, "hook_dict"):
        return
    if isinstance(model, (str, Path)):
        got, advice = repr(str(model)), f"load it with moelens.load({str(model)!r})"
    else:
        got, advice = type(model).__name__, "give what moelens.load or moelens.hook returns"
    raise MoeLensError(f"expected a hooked model, got {got}; {advice}")
