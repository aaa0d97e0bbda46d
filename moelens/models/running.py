"""The forward pass that is running: how its tokens are laid out and which experts their slots hold."""

from __future__ import annotations

import copy
import functools
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

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
        start: position of the first of them in its sequence; above 0 only with a cache, as `generate` decodes.
        prompt: number of tokens in the prompt while `generate` runs; None outside it.
        ids: token ids of the sequences so far, `[batch, start + pos]`; None where they are not known, because
            embeddings were given or a cache whose tokens this model was not seen to read.
        mask: the attention mask `[batch, start + pos]` that the model was given, 0 for padding; None without one.
        slots: by layer, the experts `[batch, pos, k]` that the slots of `experts.hook_out` hold, edits included.
        times: by layer with hooks, how often its experts have run in this pass; looped layers run more than once.
        decisions: by layer, the routing decision that is running (a `moelens.models.decisions.Decision`).
    """

    batch: int = 1
    pos: int = 0
    start: int = 0
    prompt: int | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None
    slots: _SlotsByLayer = field(default_factory=_SlotsByLayer)
    times: Counter[int] = field(default_factory=Counter)
    decisions: dict[int, Any] = field(default_factory=dict)
    _generated: Tensor | None = None
    _outer: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, outer: int) -> None:
        """Note that a forward pass begins in `outer` others; one that a hook starts interrupts the pass of the hook."""
        del self._outer[max(outer - 1, 0) :]  # left by passes that KeyboardInterrupt ended
        if outer:
            self._outer.append({name: copy.copy(value) for name, value in vars(self).items() if name != "_outer"})

    def leave(self, outer: int) -> None:
        """Note that a forward pass has ended, and go back to the one that it interrupted, of `outer` that still run."""
        while len(self._outer) > max(outer - 1, 0):
            vars(self).update(self._outer.pop())

    @property
    def generating(self) -> bool:
        """Whether `generate` is running."""
        return self.prompt is not None

    def begin(self, batch: int, pos: int, ids: Tensor | None, *, mask: Tensor | None = None, start: int = 0) -> None:
        """Note the tokens of a forward pass that begins.

        Args:
            batch: number of sequences.
            pos: number of new tokens of each of them.
            ids: their ids `[batch, pos]`, or None.
            mask: the attention mask, if it is `[batch, start + pos]`.
            start: number of tokens that the cache holds.
        """
        whole, self._generated = self._generated, None
        if whole is not None and ids is not None and whole.shape[1] >= start + pos:
            start, ids = whole.shape[1] - pos, whole.to(ids.device)
        elif start and ids is not None:
            earlier = self.ids if self.generating and self.ids is not None else ids[:, :0]
            known = len(earlier) == batch and earlier.shape[1] == start
            ids = torch.cat([earlier.to(ids.device), ids], 1) if known else None
        self.batch, self.pos, self.start, self.ids = batch, pos, start, ids
        self.mask = mask if mask is not None and mask.ndim == 2 else None
        self.end()

    def end(self) -> None:
        """Forget what the last pass, or one that an error ended, has left of its running decisions."""
        self.slots.clear()
        self.times.clear()
        self.decisions.clear()

    @contextmanager
    def generation(self, hf_model: Any, prompt: int, *, outer: int) -> Iterator[None]:
        """Mark the passes in this context as those of `generate`, within `outer` others, for `prompt` prompt tokens.

        `generate` passes only the new tokens to the model, and moves sequences about (beams) or takes tokens back
        (candidates of an assistant). The whole sequences are seen where it prepares the inputs of a pass.
        """
        prepare = hf_model.prepare_inputs_for_generation

        @functools.wraps(prepare)
        def noting(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._generated = input_ids
            return prepare(input_ids, *args, **kwargs)

        before = (self.prompt, self.start, self.pos, self.ids) if outer else (None, 0, self.pos, None)
        replaced = vars(hf_model).get("prepare_inputs_for_generation")
        hf_model.prepare_inputs_for_generation = noting
        self.prompt, self.start, self.pos, self.ids = prompt, 0, 0, None
        try:
            yield
        finally:
            del hf_model.prepare_inputs_for_generation
            if replaced is not None:
                hf_model.prepare_inputs_for_generation = replaced
            (self.prompt, self.start, self.pos, self.ids), self._generated = before, None

    def whole_mask(self) -> Tensor:
        """Return which tokens of this pass are not padding, bool `[batch, pos]`."""
        if self.mask is None:
            return torch.ones(self.batch, self.pos, dtype=torch.bool)
        return self.mask[:, self.mask.shape[1] - self.pos :] != 0

    def shape(self, tokens: int) -> tuple[int, int]:
        """Return `(batch, pos)` for this many flat tokens; one sequence where the pass has another number of them."""
        return (self.batch, self.pos) if self.batch * self.pos == tokens else (1, tokens)


class Turns:
    """A lock that lets one thread at a time run a model; the thread that has it can take it again.

    Hooks belong to a model, not to a thread: without turns, one thread's hooks would run in another's pass. A forward
    pass of the transformers model itself takes a turn too; it does not wait for ever, as its thread may be one that the
    other thread waits for.
    """

    patience = 10.0
    """Seconds after which a thread that waits says so."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._held: list[FrameType | None] = []  # what the owner has taken: the call of a pass, None for a `with` block

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self.patience):
            warnings.warn(
                "another thread has run this model, or been inside `with model.hooks(...)`, for "
                f"{self.patience:g} s; this one waits",
                stacklevel=3,
            )
            self._lock.acquire()
        self._take(None)

    def __exit__(self, *error: object) -> None:
        while self._held[-1] is not None:  # passes that KeyboardInterrupt ended without a word
            self._release()
        self._release()

    @property
    def passes(self) -> int:
        """Number of forward passes that run, one within another."""
        return sum(call is not None for call in self._held)

    def begin_pass(self, call: FrameType) -> None:
        """Take a turn for a forward pass.

        Args:
            call: the frame that is on the stack as long as the pass runs.

        Raises:
            MoeLensError: another thread has its turn for longer than `patience`.
        """
        if not self._lock.acquire(timeout=self.patience):
            raise MoeLensError(
                f"expected one thread at a time to run this model, but for {self.patience:g} s another one has run it, "
                "or been inside `with model.hooks(…)`, whose hooks would run in this pass; run it after that"
            )
        self._take(call)

    def in_pass(self) -> bool:
        """Whether the last turn that this thread has taken is that of a forward pass."""
        return self._owner == threading.get_ident() and self._held[-1] is not None

    def end_pass(self) -> None:
        """End the turn of a forward pass."""
        self._release()

    def _take(self, call: FrameType | None) -> None:
        while self._held and (last := self._held[-1]) is not None and not _is_running(last):
            self._release()  # KeyboardInterrupt ended it, after which torch runs no hook
        self._owner = threading.get_ident()
        self._held.append(call)

    def _release(self) -> None:
        self._held.pop()
        if not self._held:
            self._owner = None
        self._lock.release()

    def __deepcopy__(self, memo: Any) -> Turns:
        return Turns()


def _is_running(call: FrameType) -> bool:
    """Whether a call of this thread has not ended."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is not None


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Run a model in evaluation mode, without dropout or jitter, and put each of its modules back into its own mode.

    Args:
        model: the module.

    Example:
        >>> demo_model.hf_model.training
        False
        >>> with evaluating(demo_model):
        ...     demo_model.training
        False
    """
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
