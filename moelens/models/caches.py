"""What `run_with_cache` returns: TransformerLens's `ActivationCache`, with the points that moelens offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.slice import Slice

from moelens.errors import MoeLensError

_ATTENTION = "it needs the outputs of the attention heads, which moelens does not hook"
_WEIGHTS = "it needs TransformerLens's form of the weights; moelens leaves those of transformers as they are"
REFUSED: dict[str, str] = {
    "decompose_resid": "it needs the outputs of the attention, which moelens does not hook; "
    "take differences of hook_resid_pre, hook_resid_mid and hook_resid_post",
    "get_full_resid_decomposition": _ATTENTION,
    "compute_head_results": _ATTENTION,
    "stack_head_results": _ATTENTION,
    "get_neuron_results": _WEIGHTS,
    "stack_neuron_results": _WEIGHTS,
    "apply_ln_to_stack": _WEIGHTS,
    "logit_attrs": _WEIGHTS,
    "logit_lens": f"{_WEIGHTS}; see moelens.interventions.expert_lens",
    "ssm_layers": _WEIGHTS,
    "compute_ssm_effective_attention": _WEIGHTS,
    "compute_ssm_state": _WEIGHTS,
}
"""Methods of TransformerLens's cache that are not offered, and the reason."""


def _refusing(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise MoeLensError(f"ActivationCache.{name} is not offered: {REFUSED[name]}")

    method.__name__ = name
    return method


class MoECache(ActivationCache):  # type: ignore[misc]
    """The tensors of a run, by hook name.

    Besides full names it takes TransformerLens's short ones, such as `cache["resid_post", -1]` and
    `cache["expert_indices", 3, "mlp"]`.

    Args:
        cache_dict: the tensors, by name.
        model: the `HookedMoE`.
        mask: which tokens are not padding, bool, with the batch and positions of the tensors.
        has_batch_dim: whether the tensors have a batch dimension.

    Attributes:
        mask: which tokens are not padding, bool, with the batch and positions of the tensors.
    """

    def __init__(self, cache_dict: dict[str, Tensor], model: Any, mask: Tensor, has_batch_dim: bool = True) -> None:
        super().__init__(cache_dict, model, has_batch_dim)
        self.mask = mask

    def remove_batch_dim(self, batch_size: int | None = None) -> MoECache:
        """Remove the batch dimension of a single sequence, as TransformerLens's method of this name does."""
        had_batch_dim = self.has_batch_dim
        super().remove_batch_dim(batch_size)
        self.mask = self.mask[0] if had_batch_dim else self.mask
        return self

    def to(self, device: torch.device | str) -> MoECache:
        """Move the tensors to a device."""
        super().to(device)
        self.mask = self.mask.to(device)
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> MoECache:
        """Return a cache of some of the sequences, as TransformerLens's method of this name does."""
        part = super().apply_slice_to_batch_dim(batch_slice)
        cut = batch_slice if isinstance(batch_slice, Slice) else Slice(batch_slice)
        mask = cut.apply(self.mask, dim=0)
        return MoECache(part.cache_dict, self.model, mask, part.has_batch_dim)


for _name in REFUSED:
    setattr(MoECache, _name, _refusing(_name))
