"""Copies of hooked models: what a copy must not inherit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class TorchHook:
    """A torch hook of moelens, which copies and pickles of its module have no more.

    A copy of a hooked transformers model is a plain model, which runs its own code and can be hooked anew.

    Args:
        function: the hook.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> Any:
        return TorchHook, (_do_nothing,)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """What is left of a hook in a copy."""
