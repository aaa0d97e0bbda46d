"""Copies of hooked models: what a copy must not inherit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class TorchHook:
    """A torch hook of moelens, which does nothing in copies and pickles of its module.

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


def drop_copied_hooks(model: nn.Module) -> None:
    """Remove from a copy of a hooked model what is left of its hooks."""
    for module in model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            hooks = getattr(module, kind)
            copied = [i for i, h in hooks.items() if isinstance(h, TorchHook) and h.function is _do_nothing]
            for table in (
                hooks,
                *(getattr(module, kind + suffix, {}) for suffix in ("_with_kwargs", "_always_called")),
            ):
                for i in copied:
                    table.pop(i, None)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """What is left of a hook in a copy."""
