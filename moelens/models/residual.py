"""Hooks at the residual stream of a decoder layer, and at the block of a layer without experts."""

from __future__ import annotations

from typing import Any

from torch import nn

from moelens.models.copies import TorchHook
from moelens.models.points import RESIDUAL_POINTS, first_tensor, has_hooks, replace_first_tensor, run_hooks
from moelens.models.structure import MoELayer


class ResidualTap:
    """Connects one decoder layer with `hook_resid_pre`, `hook_resid_mid`, `hook_resid_post` and a dense `mlp.hook_out`.

    Layers keep a second reference to the stream between attention and block, so an edit at `hook_resid_mid` is written
    into the stream's own memory, before the norm that reads it.

    Args:
        points: the layer's hook points.
        layer: the decoder layer.
        norm: the norm before the layer's block, or None where none was found.
        dense: the block of a layer without experts, or None.
    """

    def __init__(self, points: Any, layer: nn.Module, norm: nn.Module | None, dense: nn.Module | None) -> None:
        self.points = points
        self._handles: list[Any] = [
            layer.register_forward_pre_hook(TorchHook(self._before_layer), with_kwargs=True),
            layer.register_forward_hook(TorchHook(self._after_layer)),
        ]
        if norm is not None:
            self._handles.append(norm.register_forward_pre_hook(TorchHook(self._before_norm)))
        if dense is not None:
            self._handles.append(dense.register_forward_hook(TorchHook(self._after_dense)))

    def detach(self) -> None:
        """Remove all torch hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _before_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        point = getattr(self.points, "hook_resid_pre", None)
        if not has_hooks(point):
            return None
        if args:
            return (run_hooks(point, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": run_hooks(point, kwargs["hidden_states"])}

    def _before_norm(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        point = getattr(self.points, "hook_resid_mid", None)
        if has_hooks(point):
            args[0].copy_(run_hooks(point, args[0]))

    def _after_layer(self, module: nn.Module, args: Any, output: Any) -> Any:
        return _hooked_output(getattr(self.points, "hook_resid_post", None), output)

    def _after_dense(self, module: nn.Module, args: Any, output: Any) -> Any:
        return _hooked_output(self.points.mlp.hook_out, output)


def _hooked_output(point: nn.Module | None, output: Any) -> Any:
    """A module's output with the hooks of a point run on its hidden states; None leaves it as it is."""
    if not has_hooks(point):
        return None
    return replace_first_tensor(output, run_hooks(point, first_tensor(output)))


def missing_points(
    moe_layer: MoELayer | None, *, irregular: bool, norm: nn.Module | None, dense: nn.Module | None
) -> dict[str, str]:
    """Say which hook points a layer does not offer.

    Args:
        moe_layer: the layer's modules if it has experts, else None.
        irregular: whether its residual stream is not `[batch, pos, d_model]`.
        norm: the norm before its block, or None where none was found.
        dense: the block of a layer without experts, or None.

    Returns:
        The reason by the point's name relative to the layer.
    """
    missing = {f"mlp.{name}": reason for name, reason in moe_layer.refusals.items()} if moe_layer else {}
    if irregular:
        missing |= dict.fromkeys(RESIDUAL_POINTS, "this layer's residual stream is not [batch, pos, d_model]")
    elif norm is None:
        missing["hook_resid_mid"] = "no norm was found whose input plus the block's output is the layer's output"
    if moe_layer is None and dense is None:
        missing["mlp.hook_out"] = "this layer has no module where the MoE layers have their block"
    if moe_layer is not None and moe_layer.block is moe_layer.decoder_layer:
        missing["mlp.hook_out"] = "the experts are part of the layer itself; read hook_resid_post"
    return missing
