"""`record`: run a model over a corpus, and write which experts it chose."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from moelens import __version__
from moelens.errors import CheckError, MoeLensError
from moelens.models.tokens import TokenSpans, token_spans
from moelens.recording.corpus import Corpus, Document, Source
from moelens.recording.documents import DocumentWriter, survey
from moelens.recording.store import Recording
from moelens.recording.writer import (
    FORMAT,
    TokenWriter,
    index_type,
    replacing,
    token_columns,
    write_manifest,
)

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

Array = NDArray[Any]
CHUNK_BATCHES = 16  # batches that are sorted by length together, and written together
LIBRARIES = ("torch", "transformers", "transformer-lens", "tokenizers", "numpy", "pyarrow")


@dataclass(frozen=True)
class Tokenized:
    """A document and its tokens: `ids` `[token]` int32, and where they stand in its text."""

    document: Document
    ids: NDArray[np.int32]
    spans: TokenSpans


def record(
    model: HookedMoE,
    corpus: Source,
    out: str | Path,
    *,
    batch_tokens: int = 4096,
    force: bool = False,
    progress: bool = True,
) -> Recording:
    """Run `model` over `corpus` and keep in the folder `out` which experts it chose for every token.

    Documents of like length run together, padded on the right; padding is not recorded, and rows are in the order of
    the documents whatever `batch_tokens` is. A document longer than the model's context is read in windows one after
    another, and a token sees only what precedes it in its window. `out` appears complete or not at all.

    Args:
        model: a hooked model with a tokenizer, which adds its special tokens.
        corpus: a `Corpus`, or what `Corpus.of` takes: texts, dicts with a text, a file, or "demo".
        batch_tokens: most tokens that run together, padding included (a longer document runs alone).
        force: replace a recording that is in `out`.
        progress: show a progress bar.

    Raises:
        RecordingError: `out` is taken.
        UnknownNameError, MoeLensError: the corpus cannot be read; all of it is looked at before the model runs.
        CheckError: the model reports an expert that does not exist, or a weight that cannot be recorded.

    Example:
        >>> model = moelens.load("demo")                                   # doctest: +SKIP
        >>> moelens.record(model, ["先生がお見えになりました。"], "runs/one")   # doctest: +SKIP
        Recording('runs/one': 9 tokens of 1 document, model 'demo', 4 MoE layers, top 4 of 32 experts)
    """
    if batch_tokens < 1:
        raise MoeLensError(f"batch_tokens is {batch_tokens}; give 1 or more, such as 4096")
    if model.tokenizer is None:
        raise MoeLensError(f"model {model.name!r} has no tokenizer; give one to moelens.hook(model, tokenizer)")
    source, out = Corpus.of(corpus), Path(out)
    with replacing(out, force) as folder:
        types, total = survey(source)
        documents, tokens, methods = DocumentWriter(folder, types), TokenWriter(folder), Counter[str]()
        with tqdm(total=total, desc="recording", unit="doc", leave=False, disable=not progress) as bar:
            for chunk in chunks(tokenize(model.tokenizer, source), CHUNK_BATCHES * batch_tokens):
                tokens.write(run(model, chunk, documents.rows, batch_tokens, bar.update))
                documents.write([item.document for item in chunk])
                methods.update(item.spans.method for item in chunk)
        shards = tokens.close()
        if not shards:
            raise MoeLensError(f"corpus '{source.name}' gives no tokens; give at least one document with text")
        write_manifest(folder, describe(model, source, batch_tokens, methods), shards, documents.close())
    return Recording.open(out)


def tokenize(tokenizer: Any, corpus: Corpus) -> Iterator[Tokenized]:
    for document in corpus:
        ids = tokenizer(document.text, truncation=False, verbose=False)["input_ids"]
        yield Tokenized(document, np.array(ids, dtype=np.int32), token_spans(tokenizer, document.text, ids))


def chunks(items: Iterable[Tokenized], tokens: int) -> Iterator[list[Tokenized]]:
    """Successive documents, of just over this number of tokens together."""
    chunk: list[Tokenized] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.ids)
        if size >= tokens:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def windows(lengths: Iterable[int], context: int | None) -> list[range]:
    """Rows that run as one sequence: a document, or as much of it as fits the model's context, one after another.

    >>> windows([2, 5], 3)
    [range(0, 2), range(2, 5), range(5, 7)]
    """
    found, row = [], 0
    for length in lengths:
        step = context or max(length, 1)
        found += [range(row + i, row + min(i + step, length)) for i in range(0, length, step)]
        row += length
    return found


def batches(sequences: Iterable[range], tokens: int) -> Iterator[list[range]]:
    """Sequences of like length, the longest first, each batch within this number of tokens when padded.

    >>> list(batches([range(0, 2), range(2, 5), range(5, 7)], 4))
    [[range(2, 5)], [range(0, 2), range(5, 7)]]
    """
    batch: list[range] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def run(
    model: HookedMoE, chunk: Sequence[Tokenized], first: int, batch_tokens: int, advance: Callable[[int], object]
) -> dict[str, Array]:
    """The columns of a chunk's tokens; `first` is its first document, `advance` hears of documents begun."""
    lengths, layers = [len(item.ids) for item in chunk], model.shape.moe_layers
    doc = np.repeat(np.arange(first, first + len(chunk), dtype=np.int32), lengths)
    pos = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    ids = np.concatenate([item.ids for item in chunk])
    shape = (len(layers), len(ids), model.shape.top_k)
    indices, weights = np.empty(shape, index_type(model.shape.n_experts)), np.empty(shape, np.float16)
    for batch in batches(windows(lengths, model.context_length), batch_tokens):
        rows = np.concatenate([np.array(sequence) for sequence in batch])
        routes = capture(model, [ids[sequence.start : sequence.stop] for sequence in batch])
        indices[:, rows], weights[:, rows] = checked(*routes, layers, model.shape.n_experts, doc[rows])
        advance(int((pos[rows] == 0).sum()))
    return token_columns(doc, pos, ids, [item.spans for item in chunk], layers, indices, weights)


@torch.no_grad()
def capture(model: HookedMoE, sequences: Sequence[Array]) -> tuple[Array, Array]:
    """Experts and weights `[layer, token, slot]` of the sequences' tokens, one sequence after another."""
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence)
        mask[row, : len(sequence)] = 1
    seen: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> None:
        seen[hook.name] = tensor[mask.to(tensor.device).bool()]

    points = [
        [f"blocks.{layer}.mlp.{name}" for layer in model.shape.moe_layers]
        for name in ("hook_expert_indices", "hook_topk_weights")
    ]
    with model.hooks(fwd_hooks=[(name, keep) for names in points for name in names]):
        model(ids.to(model.device), attention_mask=mask.to(model.device))
    for name in (name for names in points for name in names):
        if name not in seen:
            raise CheckError(f"model {model.name!r} ran without reporting {name!r}; its routes cannot be recorded")
    indices, weights = (torch.stack([seen[name].cpu() for name in names]) for names in points)
    return indices.numpy(), weights.float().numpy()


def checked(indices: Array, weights: Array, layers: Sequence[int], n_experts: int, docs: Array) -> tuple[Array, Array]:
    """The routes `[layer, token, slot]` in the types they are kept in; `docs` `[token]` says whose they are.

    Raises:
        CheckError: an expert out of range; a weight that is not finite, or not in float16.
    """
    with np.errstate(over="ignore"):
        half = weights.astype(np.float16)
    absent = (indices < 0) | (indices >= n_experts)
    for wrong, values, what in (
        (absent, indices, f"expert {{}} is not one of 0 to {n_experts - 1}; load the model again"),
        (~np.isfinite(weights), weights, "routing weight {}; load the model with dtype=torch.float32"),
        (~np.isfinite(half), weights, "routing weight {} is beyond float16 (65504); leave this document out"),
    ):
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            raise CheckError(f"layer {layers[at[0]]}, document {docs[at[1]]}: " + what.format(values[at]))
    return indices.astype(index_type(n_experts)), half


def describe(model: HookedMoE, corpus: Corpus, batch_tokens: int, methods: Counter[str]) -> dict[str, Any]:
    """What the manifest says of how a recording was made."""
    shape = asdict(model.shape)
    vocabulary = json.dumps(sorted(model.tokenizer.get_vocab().items()), ensure_ascii=False)
    return {
        "format": FORMAT,
        "moelens": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": corpus.name,
        "model": {
            "name": model.name,
            "revision": getattr(model, "revision", None),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "engine": {
            "name": "transformers",
            "version": importlib.metadata.version("transformers"),
            "experts": model.experts_implementation,
            "device": str(model.device),
        },
        "shape": shape | {"moe_layers": list(model.shape.moe_layers)},
        "capture": {
            "what": "routes",
            "batch_tokens": batch_tokens,
            "context_length": model.context_length,
            "index_dtype": np.dtype(index_type(model.shape.n_experts)).name,
            "weight_dtype": "float16",
        },
        "tokenizer": {
            "class": type(model.tokenizer).__name__,
            "sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "documents_by_spans": dict(methods),
        },
        "libraries": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
