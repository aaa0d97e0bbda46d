"""Experts whose weights stay packed: their own kernels compute them from token states, expert ids and weights.

The routing decision passes through the router and the arguments of the experts module, so it can be read and edited.
What is inside the experts exists only in the kernels, so the hook points there are not offered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from moelens.models.copies import TorchHook

PACKED: dict[str, tuple[str, str]] = {
    "Mxfp4GptOssExperts": ("MXFP4", "quantization_config=Mxfp4Config(dequantize=True)"),
    "GgufExperts": ("GGUF", "quantization_config=GgufConfig(dequantize=True)"),
}
"""By class of the experts module, the format of its weights and the argument of `load` that unpacks them."""


def why_not_inside(experts: Any) -> str:
    """Say why the hook points inside packed experts are not offered; "" for other experts."""
    if (found := PACKED.get(type(experts).__name__)) is None:
        return ""
    return f"the experts stay packed in {found[0]}, and their kernel shows no inside; load the model with {found[1]}"


def attach(block: nn.Module, experts: Any, is_active: Callable[[], bool]) -> list[Any]:
    """Let a packed block call its router and experts as modules while there are hooks.

    GPT-OSS's block in MXFP4 computes the routing itself, unless its experts say that someone listens to them.

    Args:
        block: the block.
        experts: its experts module.
        is_active: whether there are hooks.

    Returns:
        The handles of the torch hooks that do it; none for other blocks.
    """
    if type(experts).__name__ != "Mxfp4GptOssExperts":
        return []
    before = getattr(experts, "_is_hooked", False)

    def listen(*args: Any) -> None:
        experts._is_hooked = before or is_active()

    def stop(*args: Any) -> None:
        experts._is_hooked = before

    return [
        block.register_forward_pre_hook(TorchHook(listen)),
        block.register_forward_hook(TorchHook(stop), always_call=True),
    ]
