"""What a model is made of, in words: `moelens info`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moelens.display import Displayed
from moelens.models.checks import Check
from moelens.models.hooked import HookedMoE
from moelens.models.loading import architectures, load, without_weights
from moelens.models.structure import MoEShape


@dataclass(frozen=True, repr=False)
class Info(Displayed):
    """A model's shape, its routers' rule, its hook points and what the checks at load found.

    Attributes:
        router: the rule of the first router that has one, in words; "" where none was found.
        hook_names: every hook point.
        checks: empty for an architecture without weights.
        refused: hook names that are not offered, with the reason.
    """

    name: str
    shape: MoEShape
    router: str
    hook_names: tuple[str, ...]
    checks: tuple[Check, ...]
    refused: dict[str, str]

    def __repr__(self) -> str:
        s = self.shape
        grouped = f", from {s.topk_groups} of {s.n_groups} groups" if s.n_groups else ""
        shared = f", and {s.n_shared} shared" if s.n_shared else ""
        lines = [
            self.name if self.checks else f"{self.name}: the architecture at its published size, without weights",
            f"  architecture  {s.model_type}",
            f"  layers        {s.n_layers}, of which {len(s.moe_layers)} have experts ({ranges(s.moe_layers)})",
            f"  experts       {s.n_experts} in each of them, top-{s.top_k}{grouped}{shared}",
            f"  score         {s.score}",
            f"  router        {self.router or 'follows no rule moelens knows'}",
            f"  widths        d_model {s.d_model:,}, expert {s.d_expert:,}, vocabulary {s.vocab_size:,}",
            f"hook points ({len(self.hook_names)})",
            *(f"  {line}" for line in by_layer(self.hook_names)),
        ]
        if self.refused:
            lines += ["not offered", *(f"  {line}" for line in sorted(reasons(self.refused)))]
        checks = [f"  {check}" for check in self.checks] or ["  not run: they need the weights; give a folder"]
        return "\n".join([*lines, "checks at load", *checks])


def ranges(numbers: tuple[int, ...]) -> str:
    """Numbers in words, runs joined.

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


def by_layer(names: tuple[str, ...]) -> list[str]:
    """Hook names with their layers gathered, in order of appearance."""
    layers: dict[str, list[int]] = {}
    for name in names:
        _, layer, rest = name.split(".", 2)
        layers.setdefault(rest, []).append(int(layer))
    return [f"blocks.{{l}}.{rest:<34} l = {ranges(tuple(sorted(found)))}" for rest, found in layers.items()]


def reasons(refused: dict[str, str]) -> list[str]:
    rows: dict[tuple[str, str], list[int]] = {}
    for name, reason in refused.items():
        _, layer, rest = name.split(".", 2)
        rows.setdefault((rest, reason), []).append(int(layer))
    return [f"{rest} in layers {ranges(tuple(sorted(at)))}: {reason}" for (rest, reason), at in rows.items()]


def info(model: str | HookedMoE) -> Info:
    """Describe a model.

    Args:
        model: one that is loaded, "demo", a folder, an architecture's name such as "deepseek_v3" (full size, no
            weights, in seconds), or a name on the hub.

    Raises:
        UnknownNameError: none of these.

    Example:
        >>> print(moelens.info("deepseek_v3"))  # doctest: +SKIP
    """
    if not isinstance(model, str):
        return describe(model)
    if model in architectures() and not Path(model).is_dir():
        shape, rule, names = without_weights(model)
        return Info(model, shape, rule.describe() if rule else "", tuple(names), (), {})
    return describe(load(model))


def describe(model: HookedMoE) -> Info:
    """The same of a model that is loaded."""
    return Info(model.name, model.shape, model.rule, tuple(model.hook_dict), model.checks, model.refused)
