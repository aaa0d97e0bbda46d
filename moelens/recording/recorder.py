"""`record`: run a model over a corpus, and write what it did."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moelens.bars import progress_bar
from moelens.errors import MoeLensError
from moelens.models.tokens import token_spans
from moelens.recording.captures import Wanted, bytes_per_token, index_type
from moelens.recording.card import write_card
from moelens.recording.collector import Collector
from moelens.recording.corpus import Corpus, Source
from moelens.recording.generation import Greedy
from moelens.recording.parallel import Ranks
from moelens.recording.passes import Reading, run
from moelens.recording.pieces import Chunk, PieceWriter, Tokenized
from moelens.recording.progress import (
    MANIFEST,
    PROGRESS,
    SETTINGS,
    Types,
    begin,
    clear,
    commit_name,
    finish,
    survey,
    to_do,
)
from moelens.recording.storage import Folder
from moelens.recording.store import FORMAT, Recording
from moelens.recording.writer import Beside, ahead
from moelens.version import __version__

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

CHUNK_BATCHES = 16  # batches that are sorted by length together, and written together
CHUNK_BYTES = 64 << 20  # of captures that wait in memory to be written, unless a single batch is more
SHARD_BYTES = 256 << 20  # of captures in one piece, before compression
SHARD_CHARACTERS = 1 << 20  # of text in one piece, at most
LIBRARIES = ("torch", "transformers", "transformer-lens", "tokenizers", "numpy", "pyarrow")


def record(
    model: HookedMoE,
    corpus: Source,
    out: str | Path,
    *,
    capture: str | Sequence[str] = "routes",
    layers: Sequence[int] | None = None,
    experts: Sequence[int] | None = None,
    store_dtype: str = "float16",
    generate: int = 0,
    context: int | None = None,
    overlap: int = 0,
    batch_tokens: int = 4096,
    force: bool = False,
    progress: bool | None = None,
) -> Recording:
    """Run `model` over `corpus` and keep in the folder `out` what it did with every token.

    Documents of like length run together, padded on the right; padding is not recorded, and rows are in the order of
    the documents whatever `batch_tokens` is. A run that was interrupted, by whatever, goes on when the same call is
    made again. Under `accelerate launch` or `torchrun` the processes share the work, and all return the recording.

    Args:
        model: a hooked model with a tokenizer, which adds its special tokens.
        corpus: a `Corpus`, or what `Corpus.of` takes: texts, dicts with a text, a file, a data set, or "demo".
        out: a folder, or an fsspec URL such as `s3://bucket/run`.
        capture: one or several of `routes` (experts and weights), `margin` (how far the last expert chosen was ahead
            of the next), `logits` or `logits:N` (the N largest), `expert_norms`, `neurons` or `neurons:N` (the N
            largest by magnitude), `expert_outputs` (before weighting), `shared`, `residuals` (or `residuals:pre`,
            `residuals:mid`).
        layers: of all captures; all that have experts, by default.
        experts: of `neurons` and `expert_outputs`; all that were chosen, by default.
        store_dtype: how numbers are kept: "float16", "bfloat16" or "float32"; one that does not fit is an error.
        generate: tokens that the model is to write after each document, greedily, whatever its own generation
            configuration says; they are recorded too, and a column `phase` tells "prefill" from "decode".
        context: longest window in tokens; the model's own by default. A longer document is read in windows.
        overlap: tokens that a window repeats from the one before it; each token is recorded once.
        batch_tokens: most tokens that run together, padding included (a longer document runs alone).
        force: replace a recording that is in `out`.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Raises:
        RecordingError: `out` is taken, full or cannot be written, or another run is writing there.
        UnknownNameError, MoeLensError: the corpus cannot be read; all of it is looked at before the model runs.
        CheckError: the model reports an expert that does not exist, or a number that cannot be kept.

    Example:
        >>> model = moelens.load("demo")                                   # doctest: +SKIP
        >>> moelens.record(model, ["先生がお見えになりました。"], "runs/one")   # doctest: +SKIP
        Recording('runs/one': 9 tokens of 1 document, model 'demo', 4 MoE layers, top 4 of 32 experts)
    """
    reading = Reading(batch_tokens, min(context or 1 << 62, model.context_length or 1 << 62) if context or
                      model.context_length else None, overlap, generate)  # fmt: skip
    reading.require()
    if model.tokenizer is None:
        raise MoeLensError(f"model {model.name!r} has no tokenizer; give one to moelens.hook(model, tokenizer)")
    source, folder = Corpus.of(corpus), Folder.at(out)
    wanted = Wanted.of(model, capture, layers, experts, store_dtype)
    ranks = Ranks.of(model)
    with ExitStack() as lock:
        job = ranks.first_makes(lambda: prepare(model, source, folder, wanted, reading, ranks, force, lock))
        mine = job.todo[ranks.team :: ranks.teams]
        bar = progress if ranks.first else False
        try:
            work(
                model,
                source,
                folder,
                wanted,
                reading,
                job,
                mine,
                write=ranks.writes,
                bar=bar,
            )
        except BaseException:
            if ranks.size == 1 and not any(folder.exists(commit_name(piece)) for piece in range(len(job.pieces))):
                clear(folder)  # there is nothing to go on with
            raise
        ranks.wait()
        ranks.first_makes(lambda: conclude(folder, job))
    return Recording.open(out)


@dataclass(frozen=True)
class Job:
    """What there is to do: the pieces, as first document and the one after the last, and those not done yet."""

    pieces: list[tuple[int, int]]
    todo: list[int]
    types: Types
    settings: dict[str, Any]


def prepare(
    model: HookedMoE,
    corpus: Corpus,
    folder: Folder,
    wanted: Wanted,
    reading: Reading,
    ranks: Ranks,
    force: bool,
    lock: ExitStack,
) -> Job:
    """Read the corpus, cut it into pieces, and take the folder, or find what is left to do there."""
    found = survey(corpus)
    total = sum(found.lengths)
    size = max(1, sum(bytes_per_token(wanted, model.shape).values()))
    characters = min(SHARD_CHARACTERS, max(SHARD_BYTES // size, 1))
    if ranks.teams > 1:
        characters = min(characters, max(total // (4 * ranks.teams), 1))
    same = describe(model, corpus, wanted, reading)
    same["corpus_sha256"] = found.sha256
    settings = {
        "same": same,
        "checks": [asdict(check) for check in getattr(model, "checks", ())],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "pieces": [[p.start, p.stop] for p in found.pieces(characters)],
    }
    lock.enter_context(folder.alone())
    begun = begin(folder, settings, force)
    for name in folder.names(".partial"):
        folder.remove(name)
    pieces = [(start, stop) for start, stop in begun["pieces"]]
    todo = [] if folder.exists(MANIFEST) else to_do(folder, len(pieces))
    return Job(pieces, todo, found.types, begun)


def work(
    model: HookedMoE,
    corpus: Corpus,
    folder: Folder,
    wanted: Wanted,
    reading: Reading,
    job: Job,
    mine: Sequence[int],
    *,
    write: bool,
    bar: bool | None,
) -> None:
    """Run the documents of some pieces; reading goes ahead of the model, and writing behind it."""
    size = max(1, sum(bytes_per_token(wanted, model.shape).values()))
    tokens = max(reading.batch_tokens, min(CHUNK_BATCHES * reading.batch_tokens, CHUNK_BYTES // size))
    writer = PieceWriter(folder, job.types)
    collector = Collector(model, wanted)
    total = sum(stop - start for start, stop in (job.pieces[piece] for piece in mine))
    try:
        shown = progress_bar(total=total, desc="recording", unit="doc", show=bar)
        with Beside(waiting(model)) as beside, shown:
            for chunk in ahead(chunks(model.tokenizer, corpus, job.pieces, mine, tokens)):
                results = run(model, collector, chunk, reading, shown.update)
                if write:
                    beside.put(writer.write, chunk, *results)
            beside.drain()
    except BaseException as error:
        writer.abandon(error)
        raise


def waiting(model: HookedMoE) -> int:
    """How many chunks may wait to be written while the model goes on.

    None where its threads take every core: they wait for each other, so one that shares its core holds up all.
    """
    return 0 if model.device.type == "cpu" and torch.get_num_threads() >= (os.cpu_count() or 1) else 2


def chunks(
    tokenizer: Any, corpus: Corpus, pieces: Sequence[tuple[int, int]], mine: Sequence[int], tokens: int
) -> Iterator[Chunk]:
    """The documents of some pieces, tokenised, in runs of just over so many tokens."""
    documents, at = iter(corpus), 0
    for piece in mine:
        start, stop = pieces[piece]
        for _ in islice(documents, start - at):
            pass
        items: list[Tokenized] = []
        size, first = 0, start
        for at, document in enumerate(islice(documents, stop - start), start + 1):
            ids = tokenizer(document.text, truncation=False, verbose=False)["input_ids"]
            items.append(Tokenized(document, np.array(ids, np.int32), token_spans(tokenizer, document.text, ids)))
            size += len(ids)
            if size >= tokens or at == stop:
                yield Chunk(piece, first, items, at == stop)
                items, size, first = [], 0, at


def conclude(folder: Folder, job: Job) -> None:
    """The documents in one file, the dataset card and, last of all, the manifest: without one it is no recording."""
    if not folder.exists(MANIFEST):
        manifest = finish(folder, len(job.pieces), job.settings["same"])
        if not manifest["n_tokens"]:
            clear(folder)
            raise MoeLensError(f"corpus '{manifest['corpus']}' gives no tokens; give at least one document with text")
        manifest["created"] = job.settings["created"]
        manifest["model"]["checks"] = job.settings.get("checks", [])
        write_card(folder, manifest)
        folder.write_json(MANIFEST, manifest)
    for name in sorted(folder.names(), key=SETTINGS.__eq__):
        if name.startswith(f"{PROGRESS}/"):
            folder.remove(name)
    folder.remove(PROGRESS)


def describe(model: HookedMoE, corpus: Corpus, wanted: Wanted, reading: Reading) -> dict[str, Any]:
    """What the manifest says of how a recording was made; what a run must share with one that it goes on with."""
    shape = asdict(model.shape)
    vocabulary = json.dumps(sorted(model.tokenizer.get_vocab().items()), ensure_ascii=False)
    return {
        "format": FORMAT,
        "moelens": __version__,
        "corpus": corpus.name,
        "license": corpus.license,
        "model": {
            "name": model.name,
            "revision": getattr(model, "revision", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "format": getattr(getattr(model, "format", None), "title", None),
        },
        "engine": {
            "name": "transformers",
            "version": importlib.metadata.version("transformers"),
            "experts": model.experts_implementation,
            "device": str(model.device.type),
        },
        "shape": shape | {"moe_layers": list(model.shape.moe_layers)},
        **({"generation": Greedy.of(model).to_dict()} if reading.generate else {}),
        "capture": wanted.to_dict()
        | {
            "batch_tokens": reading.batch_tokens,
            "context_length": reading.context,
            "overlap": reading.overlap,
            "generate": reading.generate,
            "index_dtype": np.dtype(index_type(model.shape.n_experts)).name,
        },
        "tokenizer": {
            "class": type(model.tokenizer).__name__,
            "sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
        },
        "libraries": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
