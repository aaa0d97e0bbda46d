"""Forward passes over a chunk of documents: what is read, and what the model writes after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moelens.errors import CheckError, MoeLensError
from moelens.models.points import has_hooks
from moelens.models.running import evaluating
from moelens.models.tokens import TokenSpans, token_spans
from moelens.recording.collector import Collector, Taken
from moelens.recording.generation import Greedy, RouteCheck, generate_greedily
from moelens.recording.pieces import Chunk, Pass, Rows
from moelens.recording.windows import Window, batches, windows

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

Array = NDArray[Any]


@dataclass(frozen=True)
class Reading:
    """How documents are run: tokens that run together, the longest window, its overlap, tokens to generate."""

    batch_tokens: int
    context: int | None
    overlap: int
    generate: int

    def require(self) -> None:
        """Raise `MoeLensError` for numbers that make no sense."""
        if self.batch_tokens < 1:
            raise MoeLensError(f"batch_tokens is {self.batch_tokens}; give 1 or more, such as 4096")
        if self.generate < 0 or (self.context is not None and self.generate >= self.context):
            raise MoeLensError(
                f"generate is {self.generate}, in a context of {self.context} tokens; give 0 to"
                f" {(self.context or 1) - 1}"
            )
        windows([], self.context, self.overlap)


@torch.no_grad()
def run(
    model: HookedMoE, collector: Collector, chunk: Chunk, reading: Reading, advance: Callable[[int], object]
) -> tuple[Rows, list[Pass], list[str] | None, RouteCheck]:
    """The rows of a chunk's tokens, what was captured, the generated texts and the check of their routes.

    `advance` hears of documents begun.
    """
    rows = Rows.of(chunk)
    lengths = [len(item.ids) for item in chunk.items]
    passes: list[Pass] = []
    check = RouteCheck(collector.wanted.moe_layers)
    with evaluating(model), model.hooks(fwd_hooks=collector.hooks):
        for batch in batches(windows(lengths, reading.context, reading.overlap), reading.batch_tokens):
            passes.append(prefill(model, collector, rows, batch))
            advance(int((rows.pos[passes[-1][0]] == 0).sum()))
    if not reading.generate:
        return rows, passes, None, check
    return *generate(model, collector, chunk, rows, passes, reading, check), check


def prefill(model: HookedMoE, collector: Collector, rows: Rows, batch: Sequence[Window]) -> Pass:
    """Run windows together, padded on the right; padding, and what only gives context, is not recorded."""
    ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
    mask, kept = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
    for i, window in enumerate(batch):
        ids[i, : len(window)] = torch.from_numpy(rows.ids[window.start : window.stop])
        mask[i, : len(window)] = 1
        kept[i, window.first - window.start : len(window)] = True
    at = np.concatenate([np.arange(window.first, window.stop) for window in batch])
    collector.begin(kept.flatten().nonzero().squeeze(1))
    model(ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, return_type=None)
    return at, collector.take(lambda token: rows.doc[at[token]])


def generate(
    model: HookedMoE,
    collector: Collector,
    chunk: Chunk,
    rows: Rows,
    passes: list[Pass],
    reading: Reading,
    check: RouteCheck,
) -> tuple[Rows, list[Pass], list[str]]:
    """Let the model go on greedily after each document, and record the tokens that it wrote and read again.

    A token is recorded when the model has run over it: the end-of-text token is not. The routes of the first batch
    are compared with those of a forward pass. Where hooks edit the model, which may depend on the phase, nothing is
    refused.
    """
    edited = any(map(has_hooks, model.hook_dict.values()))
    greedy = Greedy.of(model)
    most = None if reading.context is None else reading.context - reading.generate
    prompts, row = [], 0
    for item in chunk.items:
        prompts.append(Window(max(row, row + len(item.ids) - (most or len(item.ids))), row, row + len(item.ids)))
        row += len(item.ids)
    document = {p: i for i, p in enumerate(prompts)}
    texts, new = [""] * len(prompts), []
    for batch in batches([p for p in prompts if len(p)], reading.batch_tokens):
        whose = [chunk.first + document[p] for p in batch]
        given = [rows.ids[p.start : p.stop] for p in batch]
        first = not check.choices
        with check.watching(model) if first else nullcontext():
            ids, steps = decode(model, collector, given, reading.generate, whose.__getitem__, greedy)
        if first:
            check.compare(model, given, ids)
            if not edited:
                check.require(model.name, model.dtype)
        base = row + np.concatenate([[0], np.cumsum([len(i) for i in ids])])
        for step, taken in enumerate(steps):
            alive = np.flatnonzero([step < len(i) for i in ids])
            if len(alive):
                passes.append((base[alive] + step, [only(t, alive) for t in taken]))
        for prompt, written in zip(batch, ids, strict=True):
            at = document[prompt]
            texts[at], spans = spans_of(model.tokenizer, written)
            new.append(written_rows(chunk, at, written, spans))
        row = int(base[-1])
    return join(rows, new), passes, texts


def decode(
    model: HookedMoE,
    collector: Collector,
    prompts: Sequence[Array],
    n: int,
    whose: Callable[[int], object],
    greedy: Greedy,
) -> tuple[list[Array], list[list[Taken]]]:
    """Up to `n` tokens after each prompt (prompts padded on the left), and the captures of each step, `[sequence]`."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), greedy.padding)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[i, width - len(prompt) :] = 1
    steps: list[list[Taken]] = []

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        pos = kwargs["input_ids"].shape[1]
        collector.begin(torch.arange(len(prompts)) * pos + pos - 1)

    handles = [
        model.hf_model.register_forward_pre_hook(before, with_kwargs=True),
        model.hf_model.register_forward_hook(lambda *_: steps.append(collector.take(whose))),
    ]
    try:
        with model.hooks(fwd_hooks=collector.hooks):
            out = generate_greedily(model, ids, mask, n + 1, greedy)
    finally:
        for handle in handles:
            handle.remove()
    stops = [next((i for i, token in enumerate(row) if token in greedy.ends), n) for row in out]
    return [row[: min(stop, n)].astype(np.int32) for row, stop in zip(out, stops, strict=True)], steps[1:]


def only(taken: Taken, tokens: Array) -> Taken:
    """Of some tokens, numbered anew."""
    if taken.token is None:
        return replace(taken, columns={n: v[tokens] for n, v in taken.columns.items()})
    kept = np.isin(taken.token, tokens)
    columns = {n: v[kept] for n, v in taken.columns.items()}
    return replace(taken, columns=columns, token=np.searchsorted(tokens, taken.token[kept]))


def spans_of(tokenizer: Any, ids: Array) -> tuple[str, TokenSpans]:
    """The text of generated tokens, and where they stand in it; nowhere, if they stop within a character."""
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    try:
        return text, token_spans(tokenizer, text, ids.tolist())
    except CheckError:
        nowhere = np.full(len(ids), len(text), np.int32)
        return text, TokenSpans(nowhere, nowhere, np.ones(len(ids), np.bool_), "offsets")


def written_rows(chunk: Chunk, at: int, ids: Array, spans: TokenSpans) -> Rows:
    """Rows of what was generated after a document; characters count on from the end of its text."""
    item = chunk.items[at]
    pos = np.arange(len(item.ids), len(item.ids) + len(ids), dtype=np.int32)
    offset = np.int32(len(item.document.text))
    doc = np.full(len(ids), chunk.first + at, np.int32)
    return Rows(doc, pos, ids, spans.start + offset, spans.end + offset, spans.partial)


def join(rows: Rows, new: Sequence[Rows]) -> Rows:
    """All rows, those that were read before those that were written."""
    parts = [rows, *new]
    names = ("doc", "pos", "ids", "start", "end", "partial")
    doc, pos, ids, start, end, partial = (np.concatenate([getattr(p, n) for p in parts]) for n in names)
    return Rows(doc, pos, ids, start, end, partial, decode=np.arange(len(doc)) >= len(rows.doc))
