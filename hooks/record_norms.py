"""Record the mean norm of each expert's output, before the gate weight, over all tokens that the model processes.

An expert with a much larger norm than the others changes the residual stream even if its weight is small. The recipe
edits nothing. It rewrites the table after every forward pass, so the table is complete even if a run is interrupted.
Padding tokens of a batch are counted too.

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
from transformer_lens.hook_points import HookPoint

import moelens


def hooks(model: moelens.HookedMoE, out: str = "norms.csv") -> list[tuple[str, Callable[..., None]]]:
    """Return hooks that sum the norms of each expert's outputs.

    Args:
        model: the hooked model.
        out: CSV file to write, with the columns `layer, expert, tokens, mean_norm`.
    """
    layers, n = model.shape.moe_layers, model.shape.n_experts
    tokens = {layer: torch.zeros(n, dtype=torch.long) for layer in layers}
    totals = {layer: torch.zeros(n, dtype=torch.float64) for layer in layers}

    def add(outputs: Tensor, hook: HookPoint) -> None:  # [batch, pos, slot, d_model]
        layer = int(str(hook.name).split(".")[1])  # blocks.LAYER.mlp.experts.hook_out
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
