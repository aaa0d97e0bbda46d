"""What a recording holds, as the source of a patch: by hook name, in the shape of a batch of its documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moelens.errors import unknown


def recorded(recording: Any, docs: Sequence[int] = (0,), *, outputs: bool = False) -> dict[str, Tensor]:
    """Routes of documents, `[doc, pos, k]`, and, where they were captured, their experts' outputs.

    Documents of different lengths end in experts of -1, which no patch takes. Weights are rounded as recorded.

    Args:
        recording: with its routes and weights.
        docs: documents by number, in the order in which they will run.
        outputs: the outputs `[doc, pos, k, d_model]` too (capture "expert_outputs").

    Raises:
        UnknownNameError: a document that the recording does not have, or outputs that were not captured.

    Example:
        >>> with model.intervene(patch_outputs(recorded(recording, [3], outputs=True))):  # doctest: +SKIP
        ...     logits = model(text)
    """
    for doc in docs:
        if not 0 <= doc < recording.n_documents:
            raise unknown("document", doc, range(recording.n_documents))
    column, indices, weights = recording.column("doc"), recording.indices(), recording.weights()
    rows = [np.flatnonzero(column == doc) for doc in docs]
    chosen = padded([indices[r].astype(np.int64) for r in rows], -1)
    weight = padded([weights[r].astype(np.float32) for r in rows], 0)
    found: dict[str, Tensor] = {}
    for i, layer in enumerate(recording.layers):
        at = f"blocks.{layer}.mlp."
        found |= {f"{at}hook_expert_indices": chosen[:, :, i], f"{at}hook_topk_weights": weight[:, :, i]}
        if outputs:
            found[f"{at}experts.hook_out"] = slot_vectors(recording, layer, docs, chosen.shape)
    return found


def padded(parts: list[Any], fill: float) -> Tensor:
    tensors = [torch.from_numpy(part) for part in parts]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


def slot_vectors(recording: Any, layer: int, docs: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The captured outputs of one layer, `[doc, pos, k, d_model]`."""
    from moelens.recording.store import as_array

    table = recording.vectors("expert_outputs", layer)
    doc, pos, slot = (table[name].to_numpy().astype(np.int64) for name in ("doc", "pos", "slot"))
    values = as_array(table["values"])
    found = torch.zeros(shape[0], shape[1], shape[-1], values.shape[1])
    for i, wanted in enumerate(docs):
        at = doc == wanted
        found[i, pos[at], slot[at]] = torch.from_numpy(values[at].astype(np.float32))
    return found
