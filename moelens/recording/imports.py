"""`import_routes`: make a recording of routes from arrays, or from the responses of a serving engine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moelens.errors import MoeLensError, UnknownNameError, unknown
from moelens.models.loading import architectures, describe_configuration, load_tokenizer
from moelens.models.routers import RouterRule
from moelens.models.structure import MoEShape
from moelens.models.tokens import describe_tokenizer
from moelens.recording.captures import index_type
from moelens.recording.card import write_card
from moelens.recording.manifest import FORMAT, seal
from moelens.recording.pieces import phase_column
from moelens.recording.progress import (
    MANIFEST,
    PROGRESS,
    UNCAPTURED,
    begin_recording,
    clear_recording,
    commit_piece,
    documents_part_name,
    merge_pieces,
)
from moelens.recording.route_checks import RouteChecks
from moelens.recording.route_files import Texts, read_npz, read_responses
from moelens.recording.route_inputs import MAX_LAYERS, Answer, read_option
from moelens.recording.route_texts import Aligner, RoutedDocument, join_conversations, place_rows
from moelens.recording.storage import Folder
from moelens.recording.store import Recording
from moelens.recording.writer import Shard, ShardWriter, as_column, layer_label
from moelens.version import __version__

_Array = NDArray[Any]
_MOST_UNSEEN = 1 << 28
_GROUP_ROWS = 1 << 16  # tokens in a row group, at least
_KINDS = ("npz", "sglang", "vllm")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def import_routes(
    source: str | Path,
    out: str | Path,
    *,
    kind: str = "",
    model: str = "unknown",
    tokenizer: Any = None,
    texts: Texts | None = None,
    layers: list[int] | None = None,
    n_experts: int | None = None,
    shape: tuple[int, int] | None = None,
    skip_uncaptured: bool = False,
    force: bool = False,
) -> Recording:
    """Make a recording of routes that another program computed.

    Routes that cannot be true are refused, with the document, the row and the layer of the first fault.

    Args:
        source: A file of one of these kinds:

            - an `.npz` with `expert_ids` `[token, layer, slot]` and, if known, `gate_weights` of the same shape,
              `sequence_lengths` `[document]` and `token_ids` `[token]`;
            - a `.jsonl` or `.jsonl.gz` file with one response per line, of any endpoint of SGLang
              (`--enable-return-routed-experts`) or vLLM (`--enable-return-routed-experts`). A line may also hold
              an object with the `request` and the `response`.
        out: The folder or fsspec URL to write.
        kind: "npz", "sglang" or "vllm"; it may be left out for an `.npz`.
        model: Name of the model, for the manifest. If it is "demo", a folder or a name on the hub, its configuration
            and its tokenizer are used for what is not given.
        tokenizer: "demo", a folder, a name on the hub or a tokenizer; None for that of `model`. Without one, the tokens
            are not aligned with texts, and cannot be labelled.
        texts: What the responses do not hold, in their order: the prompts or the requests (objects with `messages`,
            `prompt`, `text` or `input_ids`), or the texts of an `.npz`. They are a list, or a `.txt`, `.jsonl` or
            `.parquet` file.
        layers: The layers on the second axis. If that axis has more layers (engines include dense ones), those to
            keep. By default those of `model` with experts, or else 0, 1, …
        n_experts: Number of experts in a layer; by default that of `model`, or else the largest id plus one.
        shape: Number of layers and of experts per token in responses of SGLang, which do not contain them; by default
            those of `model`.
        skip_uncaptured: Leave out the routes of tokens that the engine marks as not captured. These tokens are kept in
            a table of their own; see `Recording.uncaptured`.
        force: Replace a recording that is in `out`.

    Returns:
        The recording.

    Raises:
        UnknownNameError: If there is no such kind, tokenizer or file of texts.
        MoeLensError: If the file does not hold the expected arrays or responses, or routes that cannot be true.
        RecordingError: If `out` holds other files.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/routes.npz", expert_ids=np.array([[[0, 3]], [[2, 1]]]))
        ...     import_routes(f"{folder}/routes.npz", f"{folder}/run", n_experts=4).indices().tolist()
        [[[0, 3]], [[2, 1]]]
    """
    given = {"source": source, "out": out, "model": model, "tokenizer": tokenizer, "texts": texts}
    given |= {"n_experts": n_experts, "layers": layers, "shape": shape}
    checked = {name: read_option(name, value) for name, value in given.items()}
    layers, n_experts, shape = checked["layers"], checked["n_experts"], checked["shape"]
    path, model = Path(source), str(model)
    kind = kind or ("npz" if path.suffix == ".npz" else "")
    if kind not in _KINDS:
        raise unknown("kind of routes", kind, _KINDS, "choose with kind= (--from)")
    if not path.is_file():
        raise MoeLensError(f"no such file: {str(path)[:80]!r}; give an .npz, or a .jsonl of responses")
    known = _Model.of(model, tokenizer)
    shape = shape or (None if known.shape is None else (known.shape.n_layers, known.shape.top_k))
    answers = read_npz(path, texts) if kind == "npz" else read_responses(path, kind, shape, texts)
    documents, checks = _read_documents(answers, known, layers, n_experts, skip_uncaptured, path.name)
    settings = _describe_import(path.name, kind, known, checks, documents)
    folder = Folder.at(out)
    with folder.locked():
        _write(folder, documents, settings, force)
    return Recording.open(out)


@dataclass(frozen=True)
class _Model:
    """What is known of the model that computed the routes.

    Attributes:
        name: Its name.
        shape: Its sizes; None if its configuration cannot be had.
        rule: The rule of its routers; None if it is not known.
        aligner: Finds the characters of tokens with its tokenizer.
    """

    name: str
    shape: MoEShape | None
    rule: RouterRule | None
    aligner: Aligner

    @classmethod
    def of(cls, name: str, tokenizer: Any) -> _Model:
        """Read the configuration and the tokenizer of a model, where they can be had.

        Raises:
            UnknownNameError: If a tokenizer is named that does not exist.
        """
        loadable = name == "demo" or Path(name).is_dir() or bool(_HUB_NAME.fullmatch(name))
        shape, rule = _configuration(name) if loadable or name in architectures() else (None, None)
        missing = "no tokenizer was given"
        if isinstance(tokenizer, (str, Path)):
            tokenizer = load_tokenizer(str(tokenizer))
        elif tokenizer is None and loadable:
            try:
                tokenizer = load_tokenizer(name)
            except UnknownNameError:
                missing = f"no tokenizer was given, and that of {name!r} cannot be loaded"
        return cls(name, shape, rule, Aligner(tokenizer, missing))


def _configuration(name: str) -> tuple[MoEShape | None, RouterRule | None]:
    """Return the sizes and the router's rule of a model; None for both if transformers cannot build it."""
    try:
        return describe_configuration(name)
    except (MoeLensError, AttributeError, KeyError, TypeError, ValueError):
        return None, None


def _read_documents(
    answers: Iterable[Answer],
    model: _Model,
    layers: Sequence[int] | None,
    n_experts: int | None,
    skip_uncaptured: bool,
    name: str,
) -> tuple[list[RoutedDocument], RouteChecks]:
    """Check, align and join what was read.

    Returns:
        The documents, and the checks with the layers and the number of experts of their routes.

    Raises:
        MoeLensError: If there are no routes, or routes that cannot be true.
    """
    documents: list[RoutedDocument] = []
    size: tuple[int, ...] = ()
    unseen = 0  # tokens of which the file has the number only
    for number, answer in enumerate(answers):
        place = f"document {number} ({answer.at})"
        answer = model.aligner.tokenise_prompt(answer)
        places = place_rows(answer, None if answer.routes is None else len(answer.routes))
        rows = 0 if answer.routes is None else len(answer.routes)
        unseen += max(places.tokens - len(answer.prompt.ids or ()) - rows, 0)
        if unseen > _MOST_UNSEEN:
            raise MoeLensError(
                f"expected at most {_MOST_UNSEEN} tokens without routes and token ids in {name}, got more up to"
                f" {place}; save the token ids, or import the file in parts"
            )
        if answer.routes is None:
            if not skip_uncaptured:
                raise MoeLensError(
                    f"expected routed_experts in {place}, got none; name the engine with kind= (--from), start it with"
                    " --enable-return-routed-experts, request them with return_routed_experts (for several choices in"
                    " SGLang's form of OpenAI, also return_meta_info), or keep the tokens with skip_uncaptured=True"
                    " (--skip-uncaptured)"
                )
            n = max(places.tokens - 1, 0)
            documents.append(model.aligner.align(answer, places, np.zeros((n, 0, 0)), None, np.zeros(n, np.bool_)))
            continue
        if not size:
            size = answer.routes.shape[1:]
            kept, chosen = _choose_layers(size, layers, model.shape, name)
            checks = RouteChecks(
                layers=chosen,
                n_experts=n_experts or (None if model.shape is None else model.shape.n_experts),
                rule=model.rule,
                skip_uncaptured=skip_uncaptured,
            )
        if answer.routes.shape[1:] != size:
            raise MoeLensError(
                f"expected routes of one shape [layer, slot] in {name}, got {list(size)} and"
                f" {list(answer.routes.shape[1:])} in {place}; import them separately"
            )
        indices, weights = answer.routes[:, kept], answer.weights
        captured = checks.captured(indices, place)
        if weights is not None:
            weights = weights[:, kept]
            checks.check_weights(weights, captured, place)
        narrow = np.where(captured[:, None, None], indices, 0).astype(np.uint16)
        documents.append(model.aligner.align(answer, places, narrow, weights, captured))
    if not any(d.captured.any() for d in documents):
        raise MoeLensError(f"expected responses or documents with routes in {name}, got none; leave empty files out")
    nothing = np.zeros((1, *narrow.shape[1:]), np.uint16)
    documents = [d if d.indices.size else replace(d, indices=np.repeat(nothing, len(d.indices), 0)) for d in documents]
    known = [d for d in documents if d.decode is not None]
    if known and len(known) < len(documents):
        other = next(d for d in documents if d.decode is None)
        raise MoeLensError(
            f"expected the number of prompt tokens in all responses of {name} or in none, got none in {other.at}; save"
            " responses with prompt_tokens, usage or prompt_token_ids"
        )
    checks.check_sums(
        [
            np.where(d.captured[:, None], d.weights.sum(axis=2, dtype=float), np.nan)
            for d in documents
            if d.weights is not None
        ],
        [f"document {i} ({d.at})" for i, d in enumerate(documents) if d.weights is not None],
    )
    largest = max(int(d.indices.max(initial=0)) for d in documents)
    return join_conversations(documents), replace(checks, n_experts=checks.n_experts or largest + 1)


def _choose_layers(
    size: tuple[int, ...], layers: Sequence[int] | None, shape: MoEShape | None, name: str
) -> tuple[list[int], list[int]]:
    """Return the layers to keep, by their index on the second axis, and their numbers in the model.

    Args:
        size: Number of layers and of slots of the routes.
        layers: The layers on the second axis, or those of it to keep.
        shape: Sizes of the model.
        name: Name of the file, for messages.

    Raises:
        MoeLensError: If the routes do not have these layers.
    """
    if max(size) > MAX_LAYERS:
        raise MoeLensError(
            f"expected at most {MAX_LAYERS} layers and slots in {name}, got {size[0]} layers and {size[1]} slots; order"
            " the axes as [token, layer, slot]"
        )
    every = list(range(size[0]))
    numbers = every if layers is None else list(layers)
    if layers is None and shape is not None:
        numbers = list(shape.moe_layers)
    ascending = all(a < b for a, b in zip([-1, *numbers], numbers, strict=False))
    within = bool(numbers) and numbers[-1] < size[0]
    wrong_size = 0 in size or (shape is not None and size[1] != shape.top_k)
    if wrong_size or not ascending or not (len(numbers) == size[0] or (within and len(numbers) < size[0])):
        slots = "" if shape is None else f" and {shape.top_k} slots"
        raise MoeLensError(
            f"expected {len(numbers)} layers in ascending order{slots} in {name}, got {size[0]} layers and"
            f" {size[1]} slots; give the layers of the second axis (--layers)"
        )
    return (every if len(numbers) == size[0] else numbers), numbers


def _describe_import(
    name: str, kind: str, model: _Model, checks: RouteChecks, documents: Sequence[RoutedDocument]
) -> dict[str, Any]:
    """Return what the manifest states about an import."""
    layers, n_experts = [*checks.layers], checks.n_experts or 0
    shape: dict[str, Any] = {"moe_layers": layers, "n_layers": layers[-1] + 1}
    if model.shape is not None:
        shape = asdict(model.shape) | {"moe_layers": sorted({*model.shape.moe_layers, *layers})}
    unaligned = [d.unaligned for d in documents if d.unaligned]
    tokenizer = {} if model.aligner.tokenizer is None else describe_tokenizer(model.aligner.tokenizer)
    return {
        "format": FORMAT,
        "moelens": __version__,
        "corpus": name,
        "license": "",
        "model": {"name": model.name, "revision": None, "dtype": None},
        "engine": {"name": kind},
        "shape": shape | {"n_experts": n_experts, "top_k": documents[0].indices.shape[2]},
        "capture": {
            "captures": ["routes"],
            "layers": layers,
            "experts": None,
            "dtype": "float16",
            "stored_as": "float16",
            "weights": all(d.weights is not None for d in documents),
            "generate": max(0 if d.decode is None else int(d.decode.sum()) for d in documents),
            "index_dtype": np.dtype(index_type(n_experts)).name,
        },
        "tokenizer": tokenizer | {"documents_by_ids": dict(Counter(d.ids_from for d in documents))},
        "alignment": {"unaligned_documents": len(unaligned), "reason": unaligned[0] if unaligned else ""},
    }


def _write(folder: Folder, documents: Sequence[RoutedDocument], same: dict[str, Any], force: bool) -> None:
    """Write a recording with a single shard. An import takes little time; if interrupted, it is done again."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    begin_recording(folder, {"same": same, "created": created, "pieces": [[0, len(documents)]]}, force)
    try:
        folder.remove(UNCAPTURED)  # of an import that was interrupted
        shards = [_write_tokens(folder, documents, same, uncaptured=False)]
        if not all(d.captured.all() for d in documents):
            shards.append(_write_tokens(folder, documents, same, uncaptured=True))
        texts = ShardWriter(folder, documents_part_name(0))
        texts.write(_documents_table(documents))
        methods = Counter(d.spans.method if d.spans is not None else "none" for d in documents)
        commit_piece(folder, 0, shards[:1], texts.close(), methods, Counter())
        manifest = merge_pieces(folder, 1, same) | {"created": created}
        if shards[1:]:
            manifest["uncaptured"] = shards[1].to_dict()
        write_card(folder, manifest)
        folder.write_json(MANIFEST, seal(manifest))
    except BaseException:
        if folder.is_ours:
            clear_recording(folder)
        raise
    folder.remove(PROGRESS)


def _documents_table(documents: Sequence[RoutedDocument]) -> pa.Table:
    columns = {
        "doc": pa.array(range(len(documents)), pa.int32()),
        "text": pa.array([d.text for d in documents], pa.string()),
    }
    if any(d.decode is not None or d.generated is not None for d in documents):
        columns["generated"] = pa.array([d.generated for d in documents], pa.string())
    return pa.table(columns)


def _write_tokens(
    folder: Folder, documents: Sequence[RoutedDocument], same: dict[str, Any], *, uncaptured: bool
) -> Shard:
    """Write the tokens of all documents that have routes, or those that do not."""
    writer = ShardWriter(folder, f"{UNCAPTURED if uncaptured else 'tokens'}/tokens-00000.parquet")
    try:
        for first, group in _group_documents(documents):
            writer.write(_token_table(first, group, same, uncaptured))
        return writer.close()
    except BaseException as error:
        writer.abandon(error)
        raise


def _group_documents(documents: Sequence[RoutedDocument]) -> Iterator[tuple[int, list[RoutedDocument]]]:
    """Yield the number of the first and the documents of each row group."""
    group: list[RoutedDocument] = []
    size = 0
    for i, document in enumerate(documents, 1):
        group.append(document)
        size += len(document.indices)
        if size >= _GROUP_ROWS or i == len(documents):
            yield i - len(group), group
            group, size = [], 0


def _token_table(first: int, documents: list[RoutedDocument], same: dict[str, Any], uncaptured: bool) -> pa.Table:
    """Return the table of tokens of some documents.

    Args:
        first: Number of the first document.
        documents: The documents.
        same: What the manifest states.
        uncaptured: Whether to return the tokens without routes, and not those with routes.
    """
    selected = [d.captured ^ uncaptured for d in documents]
    parts = [d.rows(rows) for d, rows in zip(documents, selected, strict=True)]
    doc = np.repeat(np.arange(first, first + len(documents), dtype=np.int32), [int(rows.sum()) for rows in selected])
    columns: dict[str, _Array] = {"doc": doc}
    columns |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    table = pa.table({name: as_column(values) for name, values in columns.items()})
    if all(d.decode is not None for d in documents):
        decode = [d.decode[rows] for d, rows in zip(documents, selected, strict=True) if d.decode is not None]
        table = table.add_column(table.num_columns, "phase", phase_column(np.concatenate(decode)))
    if uncaptured:
        return table
    for name, kind in (("indices", "experts"), ("weights", "weights")):
        arrays = [getattr(d, name) for d in documents]
        if any(array is None for array in arrays):
            continue
        dtype = same["capture"]["index_dtype" if kind == "experts" else "stored_as"]
        values = np.concatenate([a[rows] for a, rows in zip(arrays, selected, strict=True)]).astype(dtype)
        for i, layer in enumerate(same["capture"]["layers"]):
            table = table.append_column(f"{kind}_{layer_label(layer)}", as_column(values[:, i]))
    return table
