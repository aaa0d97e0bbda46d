"""The tokens at which an intervention acts: all, or those of a mask, a label, the prompt or the generated text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from moelens.errors import CheckError, MoeLensError
from moelens.japanese.families import COLUMNS, character_labels, require_label, text_labels
from moelens.japanese.token_labels import token_labels
from moelens.models.tokens import token_spans

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

Phase = Literal["all", "prefill", "generation"]
TokenSelector = Tensor | str | Callable[["HookedMoE", Tensor], Tensor] | None
"""A bool mask `[pos]` or `[batch, pos]`; a label such as "尊敬語"; a function of the model and the token ids so far
`[batch, pos]` that returns such a mask; or None for all tokens."""


def token_mask(model: HookedMoE, at: TokenSelector, phase: Phase) -> Tensor | None:
    """Return the tokens of the running forward pass at which to act, bool `[batch, pos]`; None for all of them.

    Args:
        model: the hooked model.
        at: the tokens to select. Positions count from the start of the sequence, also during `generate`; positions
            after the end of a mask are not selected.
        phase: "prefill" for the prompt, "generation" for the tokens that `generate` adds to it, or "all".

    Raises:
        CheckError: the mask is not bool, or belongs to another number of sequences.
        MoeLensError: the model runs without token ids, and a label or a function needs them.
    """
    grid = model.running
    mask: Tensor | None = None
    if phase != "all":
        place = grid.start + torch.arange(grid.pos, device=model.device)
        generated = place >= grid.prompt if grid.prompt is not None else torch.zeros_like(place, dtype=torch.bool)
        mask = (generated if phase == "generation" else ~generated).expand(grid.batch, -1)
    if at is not None:
        selected = _running_part(model, _sequence_mask(model, at))
        mask = selected if mask is None else mask & selected
    return mask


def _sequence_mask(model: HookedMoE, at: Tensor | str | Callable[[HookedMoE, Tensor], Tensor]) -> Tensor:
    """Return the mask of the whole sequences so far, on the model's device."""
    if isinstance(at, Tensor):
        return at.to(model.device)
    if model.running.ids is None:
        raise MoeLensError(
            "expected a run on token ids or text, which a label or a function of the tokens needs, got embeddings; "
            "run the model on ids or text"
        )
    mask = label_mask(model, model.running.ids, at) if isinstance(at, str) else at(model, model.running.ids)
    return mask.to(model.device)


def _running_part(model: HookedMoE, mask: Tensor) -> Tensor:
    """Return the part of a mask of whole sequences that the running forward pass computes, `[batch, pos]`."""
    grid = model.running
    if mask.dtype != torch.bool or mask.ndim not in (1, 2) or (mask.ndim == 2 and len(mask) not in (1, grid.batch)):
        raise CheckError(
            f"expected a mask bool [pos] or [{grid.batch}, pos], got {str(mask.dtype).removeprefix('torch.')} "
            f"{list(mask.shape)}; give one row for each of the {grid.batch} sequences, or one for all"
        )
    part = mask.reshape(-1, mask.shape[-1])[:, grid.start : grid.start + grid.pos]
    return torch.nn.functional.pad(part, (0, grid.pos - part.shape[1])).expand(grid.batch, -1)


def label_mask(model: HookedMoE, ids: Tensor, name: str) -> Tensor:
    """Return the tokens that carry this label in the decoded text, bool `[batch, pos]`; see `token_labels`."""
    column, tokenizer, rows = COLUMNS.index(require_label(name, text_labels())), model.tokenizer, []
    for row in ids.tolist():
        text = tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        spans = token_spans(tokenizer, text, row)
        rows.append(token_labels(character_labels(text), spans.start, spans.end)[:, column])
    return torch.from_numpy(np.stack(rows))
