"""moelens: which experts of a Mixture-of-Experts language model handle which Japanese, and whether they cause it."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # of the libraries that would look names up

_PUBLIC = {
    "Corpus": "recording",
    "Counts": "analysis",
    "HookedMoE": "models.hooked",
    "Labels": "japanese",
    "MoEShape": "models.structure",
    "MoeLensError": "errors",
    "Recording": "recording",
    "Specialization": "analysis",
    "attribute": "interventions",
    "compare": "analysis",
    "effect": "interventions",
    "explore": "views.explore",
    "export": "recording",
    "hook": "models.hooked",
    "import_routes": "recording",
    "info": "models.info",
    "label": "japanese",
    "load": "models.loading",
    "load_hooks": "recipes",
    "plan": "recording",
    "prefer": "interventions",
    "probe": "probes",
    "record": "recording",
    "report": "reporting",
    "run_demo": "demo.run",
    "specialization": "analysis",
    "trace": "tracing",
    "verify": "recording",
}

__all__ = [
    "Corpus",
    "Counts",
    "HookedMoE",
    "Labels",
    "MoEShape",
    "MoeLensError",
    "Recording",
    "Specialization",
    "__version__",
    "attribute",
    "compare",
    "effect",
    "explore",
    "export",
    "hook",
    "import_routes",
    "info",
    "label",
    "load",
    "load_hooks",
    "plan",
    "prefer",
    "probe",
    "record",
    "report",
    "run_demo",
    "specialization",
    "trace",
    "verify",
]

if TYPE_CHECKING:
    from moelens.analysis import Counts, Specialization, specialization
    from moelens.analysis.compare import compare
    from moelens.demo.run import run_demo
    from moelens.errors import MoeLensError
    from moelens.interventions import attribute, effect, prefer
    from moelens.japanese import Labels, label
    from moelens.models.hooked import HookedMoE, hook
    from moelens.models.info import info
    from moelens.models.loading import load
    from moelens.models.structure import MoEShape
    from moelens.probes import probe
    from moelens.recipes import load_hooks
    from moelens.recording import Corpus, Recording, export, import_routes, plan, record, verify
    from moelens.reporting import report
    from moelens.tracing import trace
    from moelens.views.explore import explore


_ROOMS = ("analysis", "interventions", "japanese", "models", "probes", "recording", "views")


def __getattr__(name: str) -> Any:
    """Import the public names, and the rooms, when they are first used: `import moelens` alone loads no torch."""
    if name in _ROOMS:
        return import_module(f"moelens.{name}")
    if name in _PUBLIC:
        return getattr(import_module(f"moelens.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'moelens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext moelens`."""
    from moelens.magics import MoeMagics

    magics = MoeMagics(ipython)
    ipython.register_magics(magics)
    for name in ("%moe", "%%moe"):
        ipython.set_hook("complete_command", magics.complete, str_key=name)
