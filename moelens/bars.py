"""Progress bars: shown where somebody watches, in a terminal or a notebook, and silent otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def is_watched() -> bool:
    """Whether the process writes to a terminal or runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel") or bool(getattr(sys.stderr, "isatty", bool)())


def progress_bar(items: Iterable[Any] | None = None, *, show: bool | None = None, **options: Any) -> Any:
    """A tqdm bar over `items`, or one that is moved by hand, which leaves nothing behind.

    Args:
        items: what to iterate over.
        show: True or False; None shows it where somebody watches.
        options: of tqdm.
    """
    from tqdm.auto import tqdm

    shown = is_watched() if show is None else show
    return tqdm(items, leave=False, disable=not shown, **options)
