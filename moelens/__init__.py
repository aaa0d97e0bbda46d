"""moelens: which experts of a Mixture-of-Experts language model handle which Japanese, and whether they cause it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Counts": "analysis",
    "HookedMoE": "models.hooked",
    "Labels": "japanese",
    "MoEShape": "models.structure",
    "MoeLensError": "errors",
    "Recording": "recording",
    "Specialization": "analysis",
    "demo": "main_job",
    "hook": "models.hooked",
    "label": "japanese",
    "load": "models.loading",
    "load_hooks": "recipes",
    "record": "recording",
    "specialization": "analysis",
    "trace": "main_job",
}

__all__ = [
    "Counts",
    "HookedMoE",
    "Labels",
    "MoEShape",
    "MoeLensError",
    "Recording",
    "Specialization",
    "__version__",
    "demo",
    "hook",
    "label",
    "load",
    "load_hooks",
    "record",
    "specialization",
    "trace",
]

if TYPE_CHECKING:
    from moelens.analysis import Counts, Specialization, specialization
    from moelens.errors import MoeLensError
    from moelens.japanese import Labels, label
    from moelens.models.hooked import HookedMoE, hook
    from moelens.models.loading import load
    from moelens.models.structure import MoEShape
    from moelens.recording import Recording, record


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: `import moelens` alone loads no torch."""
    if name in _PUBLIC:
        return getattr(import_module(f"moelens.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'moelens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext moelens`."""
    from moelens.magics import MoeMagics

    ipython.register_magics(MoeMagics)
