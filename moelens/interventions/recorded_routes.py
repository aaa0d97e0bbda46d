"""Routes and experts' outputs of a recording as the source of a patch: by hook name, in the shape of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moelens.errors import unknown

if TYPE_CHECKING:
    from moelens.recording import Recording


def recorded_tensors(recording: Recording, docs: Sequence[int] = (0,), *, outputs: bool = False) -> dict[str, Tensor]:
    """Return what a recording holds of some documents, by hook name.

    Documents are padded to the longest with the expert id −1, which no patch uses. Weights have the precision of the
    recording.

    Args:
        recording: a recording with routes and weights.
        docs: numbers of the documents, in the order in which they will run.
        outputs: return the outputs of the experts as well, which were recorded with the capture "expert_outputs".

    Returns:
        For each layer, `hook_expert_indices` and `hook_topk_weights` `[doc, pos, k]` and, with `outputs`,
        `experts.hook_out` `[doc, pos, k, d_model]`.

    Raises:
        UnknownNameError: the recording does not have a document, or the outputs.

    Example:
        >>> from moelens.interventions import patch_routes, recorded_tensors
        >>> source = recorded_tensors(demo_recording, [3])
        >>> source["blocks.1.mlp.hook_expert_indices"].ndim
        3
        >>> with demo_model.intervene(patch_routes(source)):
        ...     logits = demo_model("雨が降っています。")
    """
    for doc in docs:
        if not 0 <= doc < recording.n_documents:
            raise unknown("document", doc, range(recording.n_documents))
    column, indices, weights = recording.column("doc"), recording.indices(), recording.weights()
    rows = [np.flatnonzero(column == doc) for doc in docs]
    chosen = _padded([indices[r].astype(np.int64) for r in rows], -1)
    weight = _padded([weights[r].astype(np.float32) for r in rows], 0)
    tensors: dict[str, Tensor] = {}
    for i, layer in enumerate(recording.layers):
        block = f"blocks.{layer}.mlp."
        tensors |= {f"{block}hook_expert_indices": chosen[:, :, i], f"{block}hook_topk_weights": weight[:, :, i]}
        if outputs:
            tensors[f"{block}experts.hook_out"] = _recorded_outputs(recording, layer, docs, chosen.shape)
    return tensors


def _padded(parts: list[Any], fill: float) -> Tensor:
    """Stack arrays of different lengths `[pos, …]` into one tensor `[doc, pos, …]`."""
    tensors = [torch.from_numpy(part) for part in parts]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


def _recorded_outputs(recording: Recording, layer: int, docs: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the recorded outputs of one layer `[doc, pos, k, d_model]`."""
    from moelens.recording.store import as_array

    table = recording.vectors("expert_outputs", layer)
    doc, pos, slot = (table[name].to_numpy().astype(np.int64) for name in ("doc", "pos", "slot"))
    values = as_array(table["values"])
    outputs = torch.zeros(shape[0], shape[1], shape[-1], values.shape[1])
    for i, wanted in enumerate(docs):
        rows = doc == wanted
        outputs[i, pos[rows], slot[rows]] = torch.from_numpy(values[rows].astype(np.float32))
    return outputs
