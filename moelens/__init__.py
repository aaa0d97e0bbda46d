"""moelens: find the experts of Mixture-of-Experts language models that handle Japanese morphology and honorifics."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from moelens import display
from moelens.version import __version__ as __version__

display.set_loader(lambda: import_module("moelens.views.registry"))
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the libraries that download models would send usage data

_PUBLIC = {
    "Corpus": "recording",
    "Counts": "analysis",
    "HookedMoE": "models.hooked",
    "Intervention": "interventions",
    "Labels": "japanese",
    "MoEShape": "models.structure",
    "MoeLensError": "errors",
    "Recording": "recording",
    "Specialization": "analysis",
    "analyze": "analysis",
    "attribute": "interventions",
    "causes": "interventions",
    "compare": "analysis",
    "effect": "interventions",
    "explore": "workflows.exploration",
    "export": "recording",
    "force": "interventions",
    "hook": "models.hooked",
    "import_counts": "analysis",
    "import_routes": "recording",
    "info": "models.summary",
    "label": "recording",
    "load": "models.loading",
    "load_hooks": "recipes",
    "measure": "analysis",
    "patch_outputs": "interventions",
    "patch_routes": "interventions",
    "open": "workflows.opening",
    "plan": "recording",
    "prefer": "interventions",
    "probe": "probes",
    "record": "recording",
    "remove": "interventions",
    "remove_renorm": "interventions",
    "replay": "interventions",
    "report": "workflows.reporting",
    "reroute": "interventions",
    "run_demo": "workflows.demo_run",
    "run_script": "commands.script",
    "scale": "interventions",
    "shift": "interventions",
    "steer": "interventions",
    "swap": "interventions",
    "trace": "tracing",
    "verify": "recording",
    "with_baseline": "workflows.recorded_models",
}

__all__ = [
    "Corpus",
    "Counts",
    "HookedMoE",
    "Intervention",
    "Labels",
    "MoEShape",
    "MoeLensError",
    "Recording",
    "Specialization",
    "__version__",
    "analyze",
    "attribute",
    "causes",
    "compare",
    "effect",
    "explore",
    "export",
    "force",
    "hook",
    "import_counts",
    "import_routes",
    "info",
    "label",
    "load",
    "load_hooks",
    "measure",
    "open",
    "patch_outputs",
    "patch_routes",
    "plan",
    "prefer",
    "probe",
    "record",
    "remove",
    "remove_renorm",
    "replay",
    "report",
    "reroute",
    "run_demo",
    "run_script",
    "scale",
    "shift",
    "steer",
    "swap",
    "trace",
    "verify",
    "with_baseline",
]

if TYPE_CHECKING:
    from moelens.analysis import Counts, Specialization, analyze, compare, import_counts, measure
    from moelens.commands.script import run_script
    from moelens.errors import MoeLensError
    from moelens.interventions import (
        Intervention,
        attribute,
        causes,
        effect,
        force,
        patch_outputs,
        patch_routes,
        prefer,
        remove,
        remove_renorm,
        replay,
        reroute,
        scale,
        shift,
        steer,
        swap,
    )
    from moelens.japanese import Labels
    from moelens.models.hooked import HookedMoE, hook
    from moelens.models.loading import load
    from moelens.models.structure import MoEShape
    from moelens.models.summary import info
    from moelens.probes import probe
    from moelens.recipes import load_hooks
    from moelens.recording import Corpus, Recording, export, import_routes, label, plan, record, verify
    from moelens.tracing import trace
    from moelens.workflows.demo_run import run_demo
    from moelens.workflows.exploration import explore
    from moelens.workflows.opening import open_saved as open
    from moelens.workflows.recorded_models import with_baseline
    from moelens.workflows.reporting import report

_OTHER_NAMES = {"open": "open_saved"}  # `open` would hide the builtin in its module
_SUBPACKAGES = ("analysis", "interventions", "japanese", "models", "probes", "recording", "views")


def __getattr__(name: str) -> Any:
    """Import a public name or a subpackage when it is first used; `import moelens` alone does not load torch."""
    if name in _SUBPACKAGES:
        return import_module(f"moelens.{name}")
    if name in _PUBLIC:
        return getattr(import_module(f"moelens.{_PUBLIC[name]}"), _OTHER_NAMES.get(name, name))
    raise AttributeError(f"module 'moelens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def load_ipython_extension(ipython: Any) -> None:
    """Register the magics `%moe` and `%%moe`. IPython calls this for `%load_ext moelens`."""
    from moelens.commands.magics import MoeMagics

    magics = MoeMagics(ipython)
    ipython.register_magics(magics)
    for name in ("%moe", "%%moe"):
        ipython.set_hook("complete_command", magics.complete, str_key=name)
