"""Hook points: their names, the tree that holds them, and running the hooks of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint, LensHandle

from moelens.errors import MoeLensError

ROUTER_STAGES = ("hook_router_logits", "hook_router_scores", "hook_router_biased", "hook_router_selection")
"""The stages of a routing decision, in the order of the computation."""
CHOICE = ("hook_expert_indices", "hook_topk_weights", "hook_expert_weights")
"""Its result: the chosen experts and their weights."""
EXPERT_STAGES = ("hook_pre", "hook_post", "hook_out")
"""The points inside the experts."""
RESIDUAL_POINTS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
"""The points of the residual stream."""


class CheckedHookPoint(HookPoint):  # type: ignore[misc]
    """A hook point that takes from its hooks only tensors of the shape and type that they were given.

    Attributes:
        no_gradient: why the point has no gradient, so that backward hooks are refused; "" where it has one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.no_gradient = ""

    def add_hook(
        self, hook: Callable[..., Any], dir: Literal["fwd", "bwd"] = "fwd", *args: Any, **kwargs: Any
    ) -> LensHandle:
        """Add a hook, as TransformerLens's method of this name does.

        Raises:
            MoeLensError: it is a backward hook, and the point has no gradient.
        """
        if dir == "bwd" and self.no_gradient:
            raise MoeLensError(f"'{self.name}' has no gradient: {self.no_gradient}; use a forward hook")
        function = hook

        def checked(tensor: Tensor, hook: Any) -> Any:
            given = _kind(tensor)
            result = function(tensor, hook=hook)
            if dir == "bwd" and isinstance(result, tuple) and len(result) == 1:
                (result,) = result
            if result is not None and not (isinstance(result, Tensor) and _kind(result) == given):
                got = _describe(_kind(result), given) if isinstance(result, Tensor) else type(result).__name__
                raise MoeLensError(
                    f"expected a hook at '{hook.name}' to return None or a tensor {_describe(given)}, got {got}; "
                    "return one of the same shape and dtype"
                )
            return result

        handle = super().add_hook(checked, dir, *args, **kwargs)
        handle.user_hook = function
        return handle


_Kind = tuple[torch.Size, torch.dtype, torch.device, torch.layout]


def _kind(tensor: Tensor) -> _Kind:
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _describe(kind: _Kind, other: _Kind | None = None) -> str:
    """Write a tensor's shape and dtype, and its device and layout where those differ from another tensor's."""
    shape, dtype, *rest = kind
    differing = [str(a).removeprefix("torch.") for a, b in zip(rest, (other or kind)[2:], strict=True) if a != b]
    return " ".join([f"{list(shape)} of {str(dtype).removeprefix('torch.')}", *(f"({d})" for d in differing)])


class HookBranch(nn.Module):
    """A branch of the tree of hook points; the names of its attributes are the last parts of the points' names.

    Args:
        names: the points at this branch.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, CheckedHookPoint())

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


def only_reading(hook: Callable[..., None]) -> Callable[..., None]:
    """Mark a hook that changes nothing, so that the host does not wait for a GPU to compare what the hook leaves."""
    hook.only_reads = True  # type: ignore[attr-defined]
    return hook


def is_only_read(point: Any) -> bool:
    """Whether all hooks of a point are marked by `only_reading`."""
    return not point.bwd_hooks and all(
        getattr(getattr(h, "user_hook", None), "only_reads", False) for h in point.fwd_hooks
    )


def run_hooks(point: Any, tensor: Tensor, *, owned: bool = False) -> Tensor:
    """Run the hooks of a point on a copy of a tensor, so that an edit in place changes nothing else.

    Args:
        point: the point, or None where the layer does not have it.
        tensor: what the hooks are given.
        owned: whether nothing else uses the tensor's memory, so that no copy is needed.

    Returns:
        The tensor that they leave; with it the computation has to continue, and gradients flow through it.
    """
    if not has_hooks(point):
        return tensor
    left: Tensor = point(tensor if owned else tensor.clone())
    # A backward hook makes its tensor a view that must not be changed in place, which some layers do.
    return left.clone() if point.bwd_hooks else left


def first_tensor(output: Any) -> Tensor:
    """Return the hidden states of a module's output, which is a tensor or a tuple that begins with it."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def replace_first_tensor(output: Any, tensor: Tensor) -> Any:
    """Return a module's output with other hidden states."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
