"""Record how loud experts are: the mean norm of each expert's output, before the gate weight, over all tokens that run.

An expert with a far larger norm than its neighbours moves the residual stream however small its weight. Nothing is
edited. The table is written again after every forward pass, so it is there when a run is over or breaks off; padding
counts where a batch has any.

    recipe = moelens.load_hooks("hooks/record_norms.py", out="norms.csv")
    with model.hooks(fwd_hooks=recipe(model)):
        model("先生がいらっしゃいました。")
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import moelens


def hooks(model: moelens.HookedMoE, out: str = "norms.csv") -> list[tuple[str, Callable[..., None]]]:
    """Hooks that add up norms and write `layer, expert, tokens, mean_norm` to the file `out`."""
    layers, n = model.shape.moe_layers, model.shape.n_experts
    tokens = {layer: torch.zeros(n, dtype=torch.long) for layer in layers}
    totals = {layer: torch.zeros(n, dtype=torch.float64) for layer in layers}

    def add(outputs: Tensor, hook: object) -> None:  # [batch, pos, slot, d_model]
        layer = int(hook.name.split(".")[1])  # type: ignore[attr-defined]
        experts = model.running.slots[layer].flatten().cpu()
        norms = outputs.detach().float().norm(dim=-1).flatten().double().cpu()
        tokens[layer] += torch.bincount(experts, minlength=n)
        totals[layer] += torch.bincount(experts, weights=norms, minlength=n)
        if layer == layers[-1]:
            write()

    def write() -> None:
        with Path(out).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["layer", "expert", "tokens", "mean_norm"])
            for layer in layers:
                means = totals[layer] / tokens[layer].clamp(min=1)
                table.writerows([layer, e, int(tokens[layer][e]), f"{means[e]:.6g}"] for e in range(n))

    return [(f"blocks.{layer}.mlp.experts.hook_out", add) for layer in layers]
