"""Forward passes over a chunk of documents: reading the documents, and generating after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moelens.errors import MoeLensError
from moelens.models.points import has_hooks
from moelens.models.running import evaluating
from moelens.models.tokens import TokenSpans, decode_spans
from moelens.recording.collector import Collector, LayerCapture
from moelens.recording.generation import Greedy, RouteCheck, generate_greedily
from moelens.recording.pieces import Chunk, PassResult, Rows
from moelens.recording.windows import Window, batches, windows

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_Array = NDArray[Any]


@dataclass(frozen=True)
class RunSettings:
    """How documents are run.

    Attributes:
        batch_tokens: The largest number of tokens that run together, padding included.
        context: The largest number of tokens in a window; None for no limit.
        overlap: The number of tokens that a window repeats from the previous one.
        generate: The number of tokens to generate after each document.
    """

    batch_tokens: int
    context: int | None
    overlap: int
    generate: int

    def validate(self) -> None:
        """Raise `MoeLensError` if a number is out of its range."""
        if self.batch_tokens < 1:
            raise MoeLensError(
                f"expected batch_tokens to be at least 1, got {self.batch_tokens}; give a number such as 4096"
            )
        if self.context is not None and self.context < 1:
            raise MoeLensError(
                f"expected context to be None or at least 1, got {self.context}; give a number such as 2048"
            )
        if not isinstance(self.generate, int):
            raise MoeLensError(f"expected generate to be a whole number of tokens, got {self.generate!r}; give one")
        if self.generate < 0 or (self.context is not None and self.generate >= self.context):
            allowed = "at least 0"
            if self.context is not None:
                allowed = f"from 0 to {self.context - 1} in a context of {self.context} tokens"
            raise MoeLensError(f"expected generate to be {allowed}, got {self.generate}; give another number")
        windows([], self.context, self.overlap)


@torch.no_grad()
def run_chunk(
    model: HookedMoE,
    collector: Collector,
    chunk: Chunk,
    settings: RunSettings,
    advance: Callable[[int], object],
) -> tuple[Rows, list[PassResult], list[str] | None, RouteCheck]:
    """Run a model over a chunk of documents.

    Args:
        model: The model.
        collector: Collects the captures.
        chunk: The documents.
        settings: How they are run.
        advance: Called after each batch with the number of documents that it began.

    Returns:
        The tokens, the results of the forward passes, the generated texts (None without generation), and the check of
        their routes.
    """
    rows = Rows.of(chunk)
    lengths = [len(item.ids) for item in chunk.items]
    passes: list[PassResult] = []
    check = RouteCheck(collector.request.moe_layers)
    with evaluating(model), model.hooks(fwd_hooks=collector.hooks):
        for batch in batches(windows(lengths, settings.context, settings.overlap), settings.batch_tokens):
            passes.append(_run_batch(model, collector, rows, batch))
            advance(int((rows.pos[passes[-1][0]] == 0).sum()))
    if not settings.generate:
        return rows, passes, None, check
    return *_generate_after(model, collector, chunk, rows, passes, settings, check), check


def _run_batch(model: HookedMoE, collector: Collector, rows: Rows, batch: Sequence[Window]) -> PassResult:
    """Run windows together, padded on the right; neither padding nor rows of context are recorded."""
    ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
    mask, recorded = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
    for i, window in enumerate(batch):
        ids[i, : len(window)] = torch.from_numpy(rows.ids[window.start : window.stop])
        mask[i, : len(window)] = 1
        recorded[i, window.first - window.start : len(window)] = True
    row = np.concatenate([np.arange(window.first, window.stop) for window in batch])
    collector.begin(recorded.flatten().nonzero().squeeze(1))
    model(ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, return_type=None)
    return row, collector.take(lambda token: rows.doc[row[token]])


def _generate_after(
    model: HookedMoE,
    collector: Collector,
    chunk: Chunk,
    rows: Rows,
    passes: list[PassResult],
    settings: RunSettings,
    check: RouteCheck,
) -> tuple[Rows, list[PassResult], list[str]]:
    """Generate greedily after each document, and record the generated tokens that the model reads again.

    A token is recorded when the model runs over it, which is not the case for the end-of-text token. The routes of the
    first batch are compared with those of a forward pass. Where hooks edit the model, whose effect may depend on the
    phase, differences are not refused.

    Returns:
        All tokens, the results of all forward passes, and the generated text of each document.
    """
    edited = any(map(has_hooks, model.hook_dict.values()))
    greedy = Greedy.of(model)
    limit = None if settings.context is None else settings.context - settings.generate
    prompts, row = [], 0
    for item in chunk.items:
        prompts.append(Window(max(row, row + len(item.ids) - (limit or len(item.ids))), row, row + len(item.ids)))
        row += len(item.ids)
    item_of = {prompt: i for i, prompt in enumerate(prompts)}
    texts, generated = [""] * len(prompts), []
    for batch in batches([p for p in prompts if len(p)], settings.batch_tokens):
        documents = [chunk.first + item_of[p] for p in batch]
        prompt_ids = [rows.ids[p.start : p.stop] for p in batch]
        is_first = not check.choices
        with check.watching(model) if is_first else nullcontext():
            ids, steps = _generate_batch(model, collector, prompt_ids, settings.generate, documents.__getitem__, greedy)
        if is_first:
            check.compare(model, prompt_ids, ids)
            if not edited:
                check.require(model.name, model.dtype)
        first_row = row + np.concatenate([[0], np.cumsum([len(i) for i in ids])])
        for step, captures in enumerate(steps):
            unfinished = np.flatnonzero([step < len(i) for i in ids])
            if len(unfinished):
                passes.append((first_row[unfinished] + step, [_select_tokens(c, unfinished) for c in captures]))
        for prompt, new_ids in zip(batch, ids, strict=True):
            i = item_of[prompt]
            texts[i], spans = decode_spans(model.tokenizer, new_ids.tolist())
            generated.append(_generated_rows(chunk, i, new_ids, spans))
        row = int(first_row[-1])
    return rows.with_generated(generated), passes, texts


def _generate_batch(
    model: HookedMoE,
    collector: Collector,
    prompts: Sequence[_Array],
    n: int,
    document_of: Callable[[int], object],
    greedy: Greedy,
) -> tuple[list[_Array], list[list[LayerCapture]]]:
    """Generate up to `n` tokens after each prompt; prompts are padded on the left.

    Returns:
        The generated token ids of each prompt, and the captures of each step, with one token per prompt.
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), greedy.padding)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[i, width - len(prompt) :] = 1
    steps: list[list[LayerCapture]] = []

    def select_last(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        pos = kwargs["input_ids"].shape[1]
        collector.begin(torch.arange(len(prompts)) * pos + pos - 1)

    handles = [
        model.hf_model.register_forward_pre_hook(select_last, with_kwargs=True),
        model.hf_model.register_forward_hook(lambda *_: steps.append(collector.take(document_of))),
    ]
    try:
        with model.hooks(fwd_hooks=collector.hooks):
            new_ids = generate_greedily(model, ids, mask, n + 1, greedy)
    finally:
        for handle in handles:
            handle.remove()
    stops = [next((i for i, token in enumerate(row) if token in greedy.ends), n) for row in new_ids]
    return [row[: min(stop, n)].astype(np.int32) for row, stop in zip(new_ids, stops, strict=True)], steps[1:]


def _select_tokens(captured: LayerCapture, tokens: _Array) -> LayerCapture:
    """Return a capture with only some of its tokens, renumbered from 0."""
    if captured.token is None:
        return replace(captured, columns={n: v[tokens] for n, v in captured.columns.items()})
    selected = np.isin(captured.token, tokens)
    columns = {n: v[selected] for n, v in captured.columns.items()}
    return replace(captured, columns=columns, token=np.searchsorted(tokens, captured.token[selected]))


def _generated_rows(chunk: Chunk, i: int, ids: _Array, spans: TokenSpans) -> Rows:
    """Return the rows of the tokens generated after a document, whose characters follow those of its text."""
    item = chunk.items[i]
    offset = np.int32(len(item.document.text))
    turn = None if item.document.messages is None else np.full(len(ids), len(item.document.messages), np.int32)
    return Rows(
        doc=np.full(len(ids), chunk.first + i, np.int32),
        pos=np.arange(len(item.ids), len(item.ids) + len(ids), dtype=np.int32),
        ids=ids,
        start=spans.start + offset,
        end=spans.end + offset,
        partial=spans.partial,
        turn=turn,
        role=None if turn is None else np.full(len(ids), "assistant", object),
    )
