"""The forward pass that is running: how its tokens are laid out and which experts their slots hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moelens.errors import MoeLensError


class _SlotsByLayer(dict[int, Tensor]):
    """The experts of the slots, by layer; only layers with hooks inside the experts have them."""

    def __missing__(self, layer: int) -> Tensor:
        raise MoeLensError(
            f"running.slots has no layer {layer}, because no hook is inside its experts; add a hook at "
            f"'blocks.{layer}.mlp.experts.hook_out', or read 'blocks.{layer}.mlp.hook_expert_indices'"
        )


@dataclass(kw_only=True)
class RunningPass:
    """How the tokens of the running forward pass are laid out, and where `generate` is if it runs.

    Attributes:
        batch: number of sequences.
        pos: number of tokens of each sequence in this pass.
        start: position of the first of them in its sequence; above 0 only while `generate` decodes with a cache.
        prompt: number of tokens in the prompt while `generate` runs; None outside it.
        ids: token ids of the sequences so far, `[batch, start + pos]`; None where embeddings were given.
        slots: by layer, the experts `[batch, pos, k]` that the slots of `experts.hook_out` hold, edits included.
    """

    batch: int = 1
    pos: int = 0
    start: int = 0
    prompt: int | None = None
    ids: Tensor | None = None
    slots: _SlotsByLayer = field(default_factory=_SlotsByLayer)

    @property
    def generating(self) -> bool:
        """Whether `generate` is running."""
        return self.prompt is not None

    def begin(self, batch: int, pos: int, ids: Tensor | None) -> None:
        """Note the tokens of a forward pass that begins; with a cache, `generate` passes the new tokens only."""
        seen = self.start + self.pos
        continues = self.prompt is not None and seen > 0 and pos != seen + 1
        self.start = seen if continues else 0
        earlier = self.ids if continues else None
        self.ids = ids if ids is None or earlier is None else torch.cat([earlier, ids], 1)
        self.batch, self.pos = batch, pos
        self.slots.clear()

    @contextmanager
    def generation(self, prompt: int) -> Iterator[None]:
        """Mark the passes in this context as those of `generate`, for a prompt of `prompt` tokens."""
        self.prompt, self.start, self.pos = prompt, 0, 0
        try:
            yield
        finally:
            self.prompt, self.start, self.ids = None, 0, None

    def shape(self, tokens: int) -> tuple[int, int]:
        """Return `(batch, pos)` for this many flat tokens; one sequence where the pass has another number of them."""
        return (self.batch, self.pos) if self.batch * self.pos == tokens else (1, tokens)
