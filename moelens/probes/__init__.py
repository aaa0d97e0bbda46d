"""What can be read from routes and activations, and how much of it the token alone tells."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moelens.probes.reading import ProbeResult, ProbeRow, probe
    from moelens.probes.script import run_script

__all__ = ["ProbeResult", "ProbeRow", "probe", "run_script"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: the command line adds its commands without them."""
    if name in __all__:
        module = import_module(f"moelens.probes.{'script' if name == 'run_script' else 'reading'}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
