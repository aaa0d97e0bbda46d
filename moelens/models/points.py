"""Hook points: their names, the tree that holds them, and running the hooks of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

ROUTER_STAGES = ("hook_router_logits", "hook_router_scores", "hook_router_biased", "hook_router_selection")
"""The stages of a routing decision, in the order of the computation."""
CHOICE = ("hook_expert_indices", "hook_topk_weights", "hook_expert_weights")
"""Its result: the chosen experts and their weights."""
EXPERT_STAGES = ("hook_pre", "hook_post", "hook_out")
"""The points inside the experts."""
RESIDUAL_POINTS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
"""The points of the residual stream."""


class HookBranch(nn.Module):
    """A branch of the tree of hook points; the names of its attributes are the last parts of the points' names.

    Args:
        names: the points at this branch.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, HookPoint())

    def remove_point(self, path: str) -> bool:
        """Remove the point at an attribute path below this branch; return whether there was one."""
        holder, _, name = path.rpartition(".")
        branch = self.get_submodule(holder)
        if not hasattr(branch, name):
            return False
        delattr(branch, name)
        return True


def layer_branch(*, routed: bool, shared: bool = False) -> HookBranch:
    """Make the hook points of one decoder layer.

    Args:
        routed: whether the layer has routed experts.
        shared: whether it has shared experts too.
    """
    layer = HookBranch(*RESIDUAL_POINTS)
    layer.mlp = HookBranch(*(*ROUTER_STAGES, *CHOICE, "hook_out") if routed else ("hook_out",))
    if routed:
        layer.mlp.experts = HookBranch(*EXPERT_STAGES)
    if shared:
        layer.mlp.shared = HookBranch("hook_out")
    return layer


def has_hooks(point: nn.Module | None) -> bool:
    """Whether a point has hooks; `point` is None where the layer does not have it."""
    return isinstance(point, HookPoint) and bool(point.fwd_hooks or point.bwd_hooks)


def run_hooks(point: Any, tensor: Tensor) -> tuple[Tensor, bool]:
    """Run the hooks of a point.

    Edits in place are found by the tensor's version or, under `inference_mode`, where tensors have none, by comparison
    with a copy.

    Args:
        point: the point, or None where the layer does not have it.
        tensor: what the hooks are given.

    Returns:
        The tensor that they leave, and whether it may differ from the one they were given.
    """
    if not has_hooks(point):
        return tensor, False
    inference = tensor.is_inference()
    before: Any = tensor.clone() if inference else tensor._version
    result: Tensor = point(tensor)
    if result is not tensor:
        return result, True
    return tensor, not torch.equal(before, tensor) if inference else before != tensor._version


def first_tensor(output: Any) -> Tensor:
    """Return the hidden states of a module's output, which is a tensor or a tuple that begins with it."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def replace_first_tensor(output: Any, tensor: Tensor) -> Any:
    """Return a module's output with other hidden states."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
