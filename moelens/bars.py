"""Progress bars, which are shown in terminals and notebooks and hidden elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def _is_interactive() -> bool:
    """Whether the process writes to a terminal or runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel") or bool(getattr(sys.stderr, "isatty", bool)())


def progress_bar(items: Iterable[Any] | None = None, *, show: bool | None = None, **options: Any) -> Any:
    """Make a tqdm progress bar that disappears when it is closed.

    Args:
        items: what to iterate over; None for a bar that the caller advances with `update`.
        show: whether to show the bar; None shows it in a terminal or a notebook.
        options: further arguments of `tqdm`.

    Returns:
        The `tqdm` object.

    Example:
        >>> sum(progress_bar([1, 2, 3], show=False))
        6
    """
    from tqdm.auto import tqdm

    shown = _is_interactive() if show is None else show
    return tqdm(items, leave=False, disable=not shown, **options)
