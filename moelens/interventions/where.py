"""At which tokens an intervention acts: everywhere, by a mask, by a label, in the prompt or in what is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from moelens.errors import CheckError, MoeLensError
from moelens.japanese.families import COLUMNS, character_labels, require_label, text_labels
from moelens.japanese.token_labels import token_labels
from moelens.models.tokens import token_spans

Phase = Literal["all", "prefill", "generation"]
At = Tensor | str | Callable[[Any, Tensor], Tensor] | None
"""A bool mask `[pos]` or `[batch, pos]`; a label such as "尊敬語"; or a function of the model and the token ids so far,
`[batch, pos]`, that returns such a mask."""


def token_mask(model: Any, at: At, phase: Phase) -> Tensor | None:
    """Bool `[batch, pos]`: at which tokens of the running forward pass to act; None for all of them.

    Positions count from the start of the sequence, through `generate` too; a mask that ends earlier is False beyond.
    "generation" means the tokens that `generate` has added to the prompt.

    Raises:
        CheckError: a mask for another number of sequences.
    """
    grid = model.running
    mask: Tensor | None = None
    if phase != "all":
        place = grid.start + torch.arange(grid.pos, device=model.device)
        generated = place >= grid.prompt if grid.generating else torch.zeros_like(place, dtype=torch.bool)
        mask = (generated if phase == "generation" else ~generated).expand(grid.batch, -1)
    if at is not None:
        mask = here(grid, whole_mask(model, at)) if mask is None else mask & here(grid, whole_mask(model, at))
    return mask


def whole_mask(model: Any, at: Tensor | str | Callable[[Any, Tensor], Tensor]) -> Tensor:
    """The mask of the sequences so far, on the model's device."""
    if isinstance(at, Tensor):
        return at.to(model.device)
    if model.running.ids is None:
        raise MoeLensError("a label or function of the tokens needs token ids; run the model on ids or text")
    found = label_mask(model, model.running.ids, at) if isinstance(at, str) else at(model, model.running.ids)
    return found.to(model.device)


def here(grid: Any, whole: Tensor) -> Tensor:
    """The part of a mask `[batch, pos]` or `[pos]` of whole sequences that the running forward pass computes."""
    if whole.dtype != torch.bool or whole.ndim not in (1, 2) or (whole.ndim == 2 and len(whole) not in (1, grid.batch)):
        raise CheckError(
            f"a mask of {list(whole.shape)} {str(whole.dtype).removeprefix('torch.')} for {grid.batch} sequences; "
            f"allowed: bool [pos] or [{grid.batch}, pos]"
        )
    part = whole.reshape(-1, whole.shape[-1])[:, grid.start : grid.start + grid.pos]
    return torch.nn.functional.pad(part, (0, grid.pos - part.shape[1])).expand(grid.batch, -1)


def label_mask(model: Any, ids: Tensor, name: str) -> Tensor:
    """Bool `[batch, pos]`: the tokens that carry this label in the text that the ids stand for; see `token_labels`."""
    column, tokenizer, rows = COLUMNS.index(require_label(name, text_labels())), model.tokenizer, []
    for row in ids.tolist():
        text = tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        spans = token_spans(tokenizer, text, row)
        rows.append(token_labels(character_labels(text), spans.start, spans.end)[:, column])
    return torch.from_numpy(np.stack(rows))
