"""`record`: run a model over a corpus, and write its routing and activations to a folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch

from moelens.bars import progress_bar
from moelens.errors import MoeLensError
from moelens.models.hooked_check import require_hooked
from moelens.models.tokens import describe_tokenizer
from moelens.recording.captures import CaptureRequest, bytes_per_token, index_type
from moelens.recording.card import write_card
from moelens.recording.collector import Collector
from moelens.recording.conversations import chat_template, with_chat_template
from moelens.recording.corpus import Corpus, CorpusSource
from moelens.recording.generation import Greedy
from moelens.recording.manifest import FORMAT, seal
from moelens.recording.parallel import Ranks
from moelens.recording.passes import RunSettings, run_chunk
from moelens.recording.pieces import Chunk, PieceWriter, Tokenized, token_table
from moelens.recording.progress import (
    MANIFEST,
    PROGRESS,
    SETTINGS,
    begin_recording,
    clear_recording,
    commit_name,
    differences_from_manifest,
    finished_error,
    merge_pieces,
    uncommitted_pieces,
)
from moelens.recording.splitting import split_corpus
from moelens.recording.storage import Folder
from moelens.recording.store import Recording, as_array
from moelens.recording.survey import ColumnTypes, survey_corpus
from moelens.recording.tokenizing import tokenize
from moelens.recording.writer import BackgroundCalls, read_ahead
from moelens.version import __version__

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

CHUNK_BATCHES = 16  # batches of documents that are sorted by length and written together
PIECE_BATCHES = 8  # batches in a piece, about, which is the least that is committed
CHUNK_BYTES = 64 << 20  # of captures that wait in memory to be written, unless a single batch has more
SHARD_BYTES = 256 << 20  # of captures in a shard, before compression
SHARD_CHARACTERS = 1 << 20  # of text in a shard, about
COMPARED_TOKENS = 128  # at the beginning, by which a model is told from others of its name
LEAST_AGREEMENT = 0.95
_LIBRARIES = ("torch", "transformers", "transformer-lens", "tokenizers", "numpy", "pyarrow")


def record(
    model: HookedMoE,
    corpus: CorpusSource,
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
    text_column: str = "text",
    encoding: str = "utf-8",
    split_documents: str | int | None = None,
    add_special_tokens: bool | None = None,
    force: bool = False,
    progress: bool | None = None,
) -> Recording:
    """Run a model over a corpus, and write what it captures for each token to a folder.

    Documents of similar length run together, padded on the right. Padding is not recorded, and the rows are in the
    order of the documents for any `batch_tokens`. To continue a run that was interrupted, make the same call again. If
    the recording of the same run is complete, it is opened and returned; for that, model, text and settings have to be
    the same, and the model has to choose the recorded experts for the first tokens.
    Under `accelerate launch` or `torchrun`, the processes share the work, and all of them return the recording.

    Args:
        model: A hooked model with a tokenizer.
        corpus: A `Corpus`, or any source that `Corpus.of` takes: texts, dicts with a text, a file, a data set, "demo".
            Conversations go through the chat template of the tokenizer, and the columns `role` and `turn` say whose
            message each token is of.
        out: A folder, or an fsspec URL such as `s3://bucket/run`.
        capture: One or more of these:

            - "routes": the chosen experts and their weights;
            - "margin": the selection score of the last chosen expert minus that of the next one;
            - "logits", or "logits:N" for the N largest logits of the router;
            - "expert_norms": the length of each chosen expert's output, before weighting;
            - "neurons", or "neurons:N" for the N activations of each chosen expert that are largest by magnitude;
            - "expert_outputs": the output of each chosen expert, before weighting;
            - "shared": the output of the shared expert;
            - "residuals", "residuals:pre" or "residuals:mid": the residual stream after, before or within the layer.
        layers: The layers to capture; by default all with experts (for residuals alone, all).
        experts: The experts of "neurons" and "expert_outputs"; by default all that were chosen.
        store_dtype: Element type of the captured numbers: "float16", "bfloat16" or "float32". A number that does not
            fit is an error.
        generate: Number of tokens to generate greedily after each document, whatever the model's own generation
            configuration says. They are recorded too, and a column `phase` distinguishes "prefill" and "decode".
        context: The longest window in tokens; by default that of the model. Longer documents are read in windows.
        overlap: Number of tokens that a window repeats from the previous one; each token is recorded once.
        batch_tokens: The largest number of tokens that run together, padding included; a longer document runs alone.
        text_column: The key or column of the text or messages, as for `Corpus.of`.
        encoding: The encoding of a text file, such as "shift-jis" or "euc-jp".
        split_documents: Divides long texts into documents: "paragraph" at empty lines, a number at ends of sentences
            into parts of at most so many tokens. A `.txt` file is then one text instead of one document per line.
        add_special_tokens: Whether the tokenizer adds its special tokens, such as BOS, to each text. None adds those
            that a text does not begin or end with already, and none to a conversation, whose template writes them.
        force: Replace a recording that is in `out`.
        progress: Whether to show a progress bar; None shows it in a terminal or notebook.

    Returns:
        The recording.

    Raises:
        RecordingError: If `out` holds other files or another recording, is full or cannot be written, or another run
            is writing to it.
        UnknownNameError: If there is no such corpus, capture, layer, expert or element type.
        MoeLensError: If a document cannot be read (all are read before the model runs), or an argument is out of range.
        CheckError: If the model reports an expert that does not exist, or a number that cannot be stored.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     recording = moelens.record(demo_model, ["先生がお見えになりました。"], f"{folder}/run")
        >>> recording.n_documents, recording.captures
        (1, ('routes',))
    """
    require_hooked(model)
    RunSettings(batch_tokens, context, overlap, generate).validate()
    context = min((n for n in (context, model.context_length) if n), default=None)
    settings = RunSettings(batch_tokens, context, overlap, generate)
    settings.validate()
    if model.tokenizer is None:
        raise MoeLensError(
            f"expected a model with a tokenizer, got {model.name!r} without one;"
            " put its files into the folder of the model, or give one to moelens.hook(model, tokenizer)"
        )
    read = Corpus.of(corpus, text_column, encoding=encoding, split_documents=split_documents)
    run = _Run(
        model=model,
        corpus=with_chat_template(split_corpus(read, model.tokenizer), model.tokenizer, generate > 0),
        folder=Folder.at(out),
        request=CaptureRequest.of(model, capture, layers, experts, store_dtype),
        settings=settings,
        add_special_tokens=add_special_tokens,
        ranks=Ranks.of(model),
    )
    ranks, folder = run.ranks, run.folder
    with ExitStack() as lock:
        job = ranks.run_on_first(lambda: _prepare(run, force, lock))
        if job is None:
            return Recording.open(out)
        try:
            _record_pieces(run, job, progress if ranks.first else False)
        except BaseException as error:
            if isinstance(error, Exception) and not folder.is_ours:
                raise folder.taken_error() from error
            committed = any(folder.exists(commit_name(piece)) for piece in range(len(job.pieces)))
            if ranks.size == 1 and folder.is_ours and not committed:
                clear_recording(folder)  # no piece is complete, so that nothing could be continued
            raise
        ranks.wait()
        ranks.run_on_first(lambda: _conclude(folder, job))
    return Recording.open(out)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a call of `record` runs, where to and how."""

    model: HookedMoE
    corpus: Corpus
    folder: Folder
    request: CaptureRequest
    settings: RunSettings
    add_special_tokens: bool | None
    ranks: Ranks

    @property
    def bytes_per_token(self) -> int:
        """The size of all captures of a token, at least 1."""
        return max(1, sum(bytes_per_token(self.request, self.model.shape).values()))

    @property
    def shard_characters(self) -> int:
        """The number of characters after which a shard is complete."""
        return min(SHARD_CHARACTERS, max(SHARD_BYTES // self.bytes_per_token, 1))


@dataclass(frozen=True)
class _Job:
    """The pieces of a recording.

    Attributes:
        pieces: For each piece, the number of its first document and the number after its last.
        todo: The pieces that are not committed yet.
        types: The types of the metadata columns.
        settings: The settings with which the recording was begun.
    """

    pieces: list[tuple[int, int]]
    todo: list[int]
    types: ColumnTypes
    settings: dict[str, Any]


def _prepare(run: _Run, force: bool, lock: ExitStack) -> _Job | None:
    """Read the corpus, divide it into pieces, and begin the recording or find what is left of it.

    None is returned if the recording is complete.

    Args:
        run: The run.
        force: Replace a recording that is in the folder.
        lock: Keeps the lock of the folder.
    """
    survey = survey_corpus(run.corpus)
    characters = min(run.shard_characters, PIECE_BATCHES * run.settings.batch_tokens)
    if run.ranks.teams > 1:
        characters = min(characters, max(sum(survey.lengths) // (4 * run.ranks.teams), 1))
    same = _describe_run(run, survey.conversations) | {"corpus_sha256": survey.sha256}
    settings = {
        "same": same,
        "checks": [asdict(check) for check in run.model.checks],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "pieces": [[p.start, p.stop] for p in survey.pieces(characters, run.settings.generate)],
    }
    lock.enter_context(run.folder.locked())
    if not force and run.folder.exists(MANIFEST) and not run.folder.exists(SETTINGS):
        _require_same_run(run, same)
        return None
    begun = begin_recording(run.folder, settings, force)
    for name in run.folder.names(".partial"):
        run.folder.remove(name)
    pieces = [(start, stop) for start, stop in begun["pieces"]]
    todo = [] if run.folder.exists(MANIFEST) else uncommitted_pieces(run.folder, len(pieces))
    return _Job(pieces, todo, survey.types, begun)


def _require_same_run(run: _Run, same: dict[str, Any]) -> None:
    """Raise `RecordingError` unless the complete recording in the folder is that of this run.

    Beside the settings, the routes of the first tokens are compared, which tell models of one name apart.
    """
    recording = Recording.open(run.folder.location)
    if differences := differences_from_manifest(recording.manifest, {"hooks": None} | json.loads(json.dumps(same))):
        raise finished_error(run.folder, f" of another run ({differences})")
    # Several processes, hooks, and what has no routes cannot be compared by the routes of a few tokens.
    if run.ranks.size > 1 or "hooks" in same or "routes" not in run.request:
        raise finished_error(run.folder)
    if (agreement := _agreement(run, recording)) < LEAST_AGREEMENT:
        raise finished_error(run.folder, f", of whose first tokens this model chooses {agreement:.0%} of the experts")


def _agreement(run: _Run, recording: Recording) -> float:
    """Return the share of the recorded choices in the first document with text that the model makes now."""
    tokenizer = run.model.tokenizer
    documents = ((i, tokenize(tokenizer, d, run.add_special_tokens)) for i, d in enumerate(run.corpus) if d.text)
    number, item = next(documents, (0, None))
    if item is None or not len(item.ids):
        return 1.0
    n = min(len(item.ids), COMPARED_TOKENS)
    spans = replace(item.spans, **{name: getattr(item.spans, name)[:n] for name in ("start", "end", "partial")})
    item = replace(item, ids=item.ids[:n], spans=spans, turn=None if item.turn is None else item.turn[:n])
    settings = replace(run.settings, generate=0)
    chunk = Chunk(0, number, [item], True)
    rows, passes, *_ = run_chunk(run.model, Collector(run.model, run.request), chunk, settings, lambda _: None)
    made = token_table(rows, passes)
    names = [name for name in made.schema.names if name.startswith("experts_L")]
    shards = (table for _, table in recording.files.shards(["doc", *names]))
    shard = next(table for table in shards if table["doc"][-1].as_py() >= number)  # it holds the whole document
    found = shard.filter(pc.equal(shard["doc"], number))[:n]
    same = [(as_array(found[name])[..., :, None] == as_array(made[name])[..., None, :]).any(-1) for name in names]
    return float(np.mean(same))


def _record_pieces(run: _Run, job: _Job, progress: bool | None) -> None:
    """Record this team's share of the pieces; documents are tokenised and chunks written on other threads."""
    model, batch_tokens = run.model, run.settings.batch_tokens
    team, teams = run.ranks.team, run.ranks.teams
    todo = job.todo[len(job.todo) * team // teams : len(job.todo) * (team + 1) // teams]
    tokens = max(batch_tokens, min(CHUNK_BATCHES * batch_tokens, CHUNK_BYTES // run.bytes_per_token))
    total = sum(stop - start for start, stop in (job.pieces[piece] for piece in todo))
    writer = PieceWriter(folder=run.folder, types=job.types, characters=run.shard_characters, began=time.monotonic())
    collector = Collector(model, run.request)
    try:
        bar = progress_bar(total=total, desc="recording", unit="doc", show=progress)
        with BackgroundCalls(_waiting_chunks(model)) as background, bar:
            read = chunks(model.tokenizer, run.corpus, job.pieces, todo, tokens, run.add_special_tokens)
            for chunk in read_ahead(read):
                results = run_chunk(model, collector, chunk, run.settings, bar.update)
                if run.ranks.writes:
                    background.submit(writer.write, chunk, *results)
            background.drain()
    except BaseException as error:
        writer.abandon(error)
        raise


def _waiting_chunks(model: HookedMoE) -> int:
    """Return how many chunks may wait to be written while the model runs.

    The number is 0 if the threads of the model occupy all cores: these threads wait for each other, so that a writer
    on one of their cores would delay them all.
    """
    return 0 if model.device.type == "cpu" and torch.get_num_threads() >= (os.cpu_count() or 1) else 2


def chunks(
    tokenizer: Any,
    corpus: Corpus,
    pieces: Sequence[tuple[int, int]],
    todo: Sequence[int],
    tokens: int,
    add_special_tokens: bool | None = None,
) -> Iterator[Chunk]:
    """Tokenise the documents of some pieces, and yield them in chunks.

    Args:
        tokenizer: The tokenizer of the model.
        corpus: The corpus.
        pieces: For each piece, the number of its first document and the number after its last.
        todo: The numbers of the pieces to yield, in order.
        tokens: The number of tokens after which a chunk ends.
        add_special_tokens: See `record`.
    """
    documents, at = iter(corpus), 0
    for piece, following in zip(todo, [*todo[1:], -1], strict=False):
        start, stop = pieces[piece]
        for _ in islice(documents, start - at):
            pass
        items: list[Tokenized] = []
        size, first = 0, start
        for at, document in enumerate(islice(documents, stop - start), start + 1):
            items.append(tokenize(tokenizer, document, add_special_tokens))
            size += len(items[-1].ids)
            if size >= tokens or at == stop:
                yield Chunk(piece, first, items, at == stop, following != piece + 1)
                items, size, first = [], 0, at


def _conclude(folder: Folder, job: _Job) -> None:
    """Merge the documents, and write the dataset card and then the manifest, which makes the recording complete."""
    if not folder.exists(MANIFEST):
        manifest = merge_pieces(folder, len(job.pieces), job.settings["same"])
        if not manifest["n_tokens"]:
            clear_recording(folder)
            raise MoeLensError(
                f"expected tokens from corpus '{manifest['corpus']}', got none; give at least one document with text"
            )
        manifest["created"] = job.settings["created"]
        manifest["model"]["checks"] = job.settings["checks"]
        write_card(folder, manifest)
        folder.write_json(MANIFEST, seal(manifest))
    for name in folder.names():
        if name.startswith(f"{PROGRESS}/") and name != SETTINGS:
            folder.remove(name)
    folder.remove(SETTINGS)  # last, because it marks the folder as that of an unfinished recording
    folder.remove(PROGRESS)


def _hooked_points(model: HookedMoE) -> list[str]:
    """Return the points of the model that have hooks, which may change what is recorded."""
    return sorted(name for name, point in model.hook_dict.items() if getattr(point, "fwd_hooks", ()))


def _describe_run(run: _Run, conversations: bool) -> dict[str, Any]:
    """Return what the manifest states about a run; to continue a run, all of it has to be the same."""
    template = chat_template(run.model.tokenizer) if conversations else None
    model, settings = run.model, run.settings
    return {
        "format": FORMAT,
        "moelens": __version__,
        "corpus": run.corpus.name,
        "license": run.corpus.license,
        "model": {
            "name": model.name,
            "revision": model.revision,
            "dtype": str(model.dtype).removeprefix("torch."),
            "format": model.format.title,
        },
        "engine": {
            "name": "transformers",
            "version": importlib.metadata.version("transformers"),
            "experts": model.experts_implementation,
            "device": str(model.device.type),
        },
        "shape": asdict(model.shape) | {"moe_layers": list(model.shape.moe_layers)},
        **({"generation": Greedy.of(model).to_dict()} if settings.generate else {}),
        "capture": run.request.to_dict()
        | {
            "batch_tokens": settings.batch_tokens,
            "context_length": settings.context,
            "overlap": settings.overlap,
            "generate": settings.generate,
            "index_dtype": np.dtype(index_type(model.shape.n_experts)).name,
        },
        "tokenizer": describe_tokenizer(model.tokenizer)
        | {
            "add_special_tokens": run.add_special_tokens,
            "chat_template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        },
        "token_labels": ["role", "turn"] if conversations else [],
        **({"hooks": hooked} if (hooked := _hooked_points(model)) else {}),
        "libraries": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
