"""What a model is made of, in words: `moelens info`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moelens.display import Displayed
from moelens.models.formats import FORMATS, Format
from moelens.models.hooked import HookedMoE
from moelens.models.load_checks import Check
from moelens.models.loading import WITHOUT_DEFAULT, architectures, inspect_architecture, load
from moelens.models.structure import MoEShape

_CAPTURED = {
    "experts interface": "the stages of the router's decision, the chosen experts and their weights, the inside of the "
    "experts, shared experts, the residual stream; `moelens info NAME` lists the hook points",
    "adapter": "the same, through code of moelens for these experts",
    "text model: NAME": "the same as of NAME; not the parts that read images or sound",
    "no: REASON": "nothing",
    "not captured": "scores of routers that follow no known rule (inkling, hash-routed layers of deepseek_v4), though "
    "their logits, experts and weights are; the decoder of diffusion_gemma",
}
"""What is captured of an architecture, by what `architectures` says of it."""


@dataclass(frozen=True, repr=False, kw_only=True)
class ModelInfo(Displayed):
    """A description of a model.

    Attributes:
        name: the model's name.
        shape: its sizes.
        router: the rule of the first router that follows a known one, in words; "" where none does.
        hook_names: every hook point.
        checks: the results of the checks at load; empty for an architecture without weights.
        refused: the hook points that are not offered, by name, with the reason.
        format: the format of its weights in memory, what is captured in it and what is not; None for an architecture.
    """

    name: str
    shape: MoEShape
    router: str
    hook_names: tuple[str, ...]
    checks: tuple[Check, ...]
    refused: dict[str, str]
    format: Format | None = None

    def __repr__(self) -> str:
        s = self.shape
        grouped = f", from {s.topk_groups} of {s.n_groups} groups" if s.n_groups else ""
        shared = f", and {s.n_shared} shared" if s.n_shared else ""
        lines = [
            self.name if self.checks else f"{self.name}: the architecture as transformers configures it by default",
            f"  architecture  {s.model_type}",
            f"  layers        {s.n_layers}, of which {len(s.moe_layers)} have experts ({ranges(s.moe_layers)})",
            f"  experts       {s.n_experts} in each of them, top-{s.top_k}{grouped}{shared}",
            f"  score         {s.score}",
            f"  router        {self.router or 'follows no rule that moelens knows'}",
            f"  widths        d_model {s.d_model:,}, expert {s.d_expert:,}, vocabulary {s.vocab_size:,}",
            *(_format_lines(self.format) if self.format else []),
            f"hook points ({len(self.hook_names)})",
            *(f"  {line}" for line in _names_by_layer(self.hook_names)),
        ]
        if self.refused:
            lines += ["not offered", *(f"  {line}" for line in sorted(_reasons_by_layer(self.refused)))]
        checks = [f"  {check}" for check in self.checks] or ["  not run: they need the weights; give a folder"]
        return "\n".join([*lines, "checks at load", *checks])


def _format_lines(format: Format) -> list[str]:
    lines = [f"  format        {format.title}", f"  captured      {format.captured}"]
    return [*lines, f"  not captured  {format.missing}"] if format.missing else lines


def list_supported() -> str:
    """List the architectures of the installed transformers that have experts, and the formats of models, in words.

    Example:
        >>> lines = list_supported().splitlines()
        >>> [line.split() for line in lines if line.startswith("dbrx")]
        [['dbrx', 'adapter', '(no', 'whole', 'default', 'configuration:', 'give', 'a', 'folder)']]
    """
    note = " (no whole default configuration: give a folder)"
    lines = [f"{name:<24} {how}{note if name in WITHOUT_DEFAULT else ''}" for name, how in architectures().items()]
    lines += ["", "captured of an architecture", *(f"  {how:<18} {what}" for how, what in _CAPTURED.items())]
    for format in FORMATS.values():
        needs = f"; needs {' and '.join(format.packages)}" if format.packages else ""
        lines += ["", f"format {format.title}{needs}", f"  captured      {format.captured}"]
        lines += [f"  not captured  {format.missing}"] if format.missing else []
    return "\n".join(lines)


def ranges(numbers: Sequence[int]) -> str:
    """Write numbers in ascending order, runs of consecutive ones as ranges.

    >>> ranges((1, 2, 3, 7))
    '1-3, 7'
    """
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _names_by_layer(names: tuple[str, ...]) -> list[str]:
    """One line for each hook point, with the layers that have it, in order of appearance."""
    layers: dict[str, list[int]] = {}
    for name in names:
        _, layer, point = name.split(".", 2)
        layers.setdefault(point, []).append(int(layer))
    return [f"blocks.{{l}}.{point:<34} l = {ranges(tuple(sorted(having)))}" for point, having in layers.items()]


def _reasons_by_layer(refused: dict[str, str]) -> list[str]:
    """One line for each hook point and reason, with the layers that do not offer it."""
    layers: dict[tuple[str, str], list[int]] = {}
    for name, reason in refused.items():
        _, layer, point = name.split(".", 2)
        layers.setdefault((point, reason), []).append(int(layer))
    return [
        f"{point} in layers {ranges(tuple(sorted(lacking)))}: {reason}" for (point, reason), lacking in layers.items()
    ]


def info(model: str | HookedMoE) -> ModelInfo:
    """Describe a model: its sizes, its routers' rule, its hook points and the results of the checks at load.

    Args:
        model: a loaded model, "demo", a folder, a GGUF file, the name of an architecture such as "deepseek_v3"
            (described in seconds as transformers configures it by default, without weights), or a name on the hub.

    Returns:
        The description; print it, or read its attributes.

    Raises:
        UnknownNameError: there is no such model.

    Example:
        >>> description = info(demo_model)
        >>> description.shape.moe_layers == demo_model.shape.moe_layers
        True
        >>> all(check.passed for check in description.checks)
        True
    """
    if isinstance(model, str) and model in architectures() and not Path(model).is_dir():
        shape, rule, names = inspect_architecture(model)
        return ModelInfo(
            name=model, shape=shape, router=str(rule) if rule else "", hook_names=tuple(names), checks=(), refused={}
        )
    hooked = load(model) if isinstance(model, str) else model
    return ModelInfo(
        name=hooked.name,
        shape=hooked.shape,
        router=hooked.rule,
        hook_names=tuple(hooked.hook_dict),
        checks=hooked.checks,
        refused=hooked.refused,
        format=hooked.format,
    )
