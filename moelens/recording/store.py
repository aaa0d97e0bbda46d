"""`Recording`: a recording on disk, opened for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moelens.display import Displayed
from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.recording.captures import SLOT_TABLES, index_type
from moelens.recording.card import write_card
from moelens.recording.manifest import FORMAT, is_unchanged, wrong_field
from moelens.recording.progress import MANIFEST, SETTINGS
from moelens.recording.reading import RecordingFiles
from moelens.recording.repeated_texts import TextGroups, text_groups
from moelens.recording.sampling import DrawnDocuments, SampledFiles, document_sizes, draws_all, sample_manifest
from moelens.recording.storage import Folder
from moelens.recording.writer import layer_label, read_ahead


@dataclass(frozen=True, repr=False)
class Recording(Displayed):
    """The routing and activations of a model over a corpus.

    A recording is a folder of Parquet files with one row per token, in the order of the documents. `moelens.record`
    creates it, and `Recording.open` opens it.

    Attributes:
        folder: The folder.
        manifest: The settings of the recording (model, engine, shape, capture, tokenizer, libraries) and its files.
        drawn: The documents that were drawn, if this is a sample of the recording in the folder, see `sample`.

    Example:
        >>> recording = Recording.open(demo_recording.path)
        >>> recording.n_documents, recording.captures
        (40, ('routes',))
        >>> recording.indices().shape == (recording.n_tokens, len(recording.layers), recording.top_k)
        True
    """

    folder: Folder
    manifest: dict[str, Any]
    drawn: DrawnDocuments | None = None

    @classmethod
    def open(cls, source: Recording | str | Path) -> Recording:
        """Open a recording.

        Args:
            source: The path or fsspec URL of a recording; or a recording, which is returned unchanged.

        Raises:
            RecordingError: If there is no recording, or it is unfinished, damaged, or of a newer version of moelens.
        """
        recording = cls.open_unchecked(source)
        recording.files.require_sizes()
        return recording

    @classmethod
    def open_unchecked(cls, source: Recording | str | Path) -> Recording:
        """Open a recording without a look at its files, as `verify` does.

        Args:
            source: The path or fsspec URL of a recording; or a recording, which is returned unchanged.

        Raises:
            RecordingError: If there is no recording, or its manifest is damaged or of a newer version of moelens.
        """
        if isinstance(source, Recording):
            return source
        if not isinstance(source, (str, Path)):
            own = [f".{name}()" for name in ("explore", "plot") if hasattr(source, name)]
            advice = f"use its own {' and '.join(own)}" if own else "make one with moelens.record(model, corpus, out)"
            raise RecordingError(f"expected a Recording or the path of one, got {type(source).__name__}; {advice}")
        folder = Folder.at(source)
        try:
            manifest = folder.read_json(MANIFEST)
            version = manifest["format"]
        except (FileNotFoundError, NotADirectoryError) as error:
            if folder.exists(SETTINGS):
                raise RecordingError(
                    f"'{source}' is an unfinished recording; repeat the command that began it to continue"
                ) from error
            why = f"it has no {MANIFEST}" if folder.exists() else "there is no such folder"
            raise RecordingError(
                f"'{source}' is not a recording: {why}; make one with moelens.record(model, corpus, out)"
                " (moelens record)"
            ) from error
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise RecordingError(
                f"'{Path(source) / MANIFEST}' is damaged ({error!r}); record again with force=True (--force)"
            ) from error
        if type(version) is int and version > FORMAT:
            raise RecordingError(
                f"expected a recording of format {FORMAT} or older, got '{source}' of format {version},"
                f" made with moelens {manifest.get('moelens')}; upgrade with pip install -U moelens"
            )
        wrong = wrong_field(manifest)
        if wrong or not is_unchanged(manifest):
            problem = f"its {wrong} is missing or not as it should be" if wrong else "it differs from its checksum"
            raise RecordingError(
                f"'{Path(source) / MANIFEST}' is damaged: {problem}; copy it again, or record again with force=True"
                " (--force)"
            )
        return cls(folder, manifest)

    def sample(self, documents: int | None = None, seed: int = 0) -> Recording:
        """Draw documents at random, and return a recording that holds these only.

        The documents keep their order and are numbered anew. All analyses and views take the sample; nothing is
        written. To find the documents, one column of all shards is read; after that, only what belongs to them.

        Args:
            documents: How many to draw. None draws 20,000; or as many as hold 2 million tokens together if these are
                fewer, but at least 200.
            seed: Seed of the draw. With the same seed, fewer documents are a part of more.

        Returns:
            The sample; this recording if it has no more documents.

        Raises:
            MoeLensError: If `documents` or `seed` is no such number, or the documents that are drawn have no tokens.
            RecordingError: If a shard is missing or damaged.

        Example:
            >>> sample = demo_recording.sample(10)
            >>> sample.n_documents, sample.whole.n_documents, len(sample.column("doc")) == sample.n_tokens
            (10, 40, True)
        """
        if documents is not None and not (_is_integer(documents) and documents >= 1):
            raise MoeLensError(f"expected 1 or more documents to draw, got {documents!r}; give a whole number")
        if not (_is_integer(seed) and seed >= 0):
            raise MoeLensError(f"expected a seed of 0 or more, got {seed!r}; give a whole number")
        if self.drawn is not None:
            return self.whole.sample(documents, seed)
        if draws_all(self.n_documents, self.n_tokens, documents):
            return self
        drawn = DrawnDocuments.draw(document_sizes(self.files), documents, seed, self.manifest)
        if not drawn.n_tokens:
            n = count_noun(len(drawn.numbers), "document")
            raise MoeLensError(f"expected documents with tokens, got {n} without any; draw more")
        return Recording(self.folder, sample_manifest(self.files, drawn), drawn)

    @property
    def whole(self) -> Recording:
        """The recording from which a sample was drawn; any other recording itself."""
        return self if self.drawn is None else Recording(self.folder, self.drawn.manifest)

    @property
    def path(self) -> Path:
        """The folder of a local recording.

        Raises:
            RecordingError: If the recording is not local.
        """
        if not self.folder.is_local:
            raise RecordingError(f"expected a local recording, got '{self.folder.location}'; copy it to a local folder")
        return Path(self.folder.location)

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return int(self.manifest["n_tokens"])

    @property
    def n_uncaptured(self) -> int:
        """Number of further tokens, of which a serving engine captured no routes; see `uncaptured`."""
        return int((self.manifest.get("uncaptured") or {}).get("rows", 0))

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return int(self.manifest["n_documents"])

    @property
    def layers(self) -> tuple[int, ...]:
        """The recorded layers with experts, in the order of `indices()` and `weights()`."""
        recorded = self.manifest["capture"]["layers"]
        return tuple(layer for layer in self.manifest["shape"]["moe_layers"] if layer in recorded)

    @property
    def captures(self) -> tuple[str, ...]:
        """The captures with their parameters, as given to `moelens.record`."""
        return tuple(self.manifest["capture"]["captures"])

    @property
    def n_experts(self) -> int:
        """Number of experts in a layer."""
        return int(self.manifest["shape"]["n_experts"])

    @property
    def top_k(self) -> int:
        """Number of experts chosen for a token."""
        return int(self.manifest["shape"]["top_k"])

    def tokens(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the table of tokens.

        Args:
            columns: The columns to read; None for all.

        Raises:
            UnknownNameError: If there is no such column.
            RecordingError: If a shard is missing or damaged.

        Example:
            >>> demo_recording.tokens(["doc", "pos", "token_id"]).column_names
            ['doc', 'pos', 'token_id']
        """
        return pa.concat_tables(table for _, table in self.files.shards(columns))

    def uncaptured(self) -> pa.Table:
        """Read the table of tokens without routes, which `import_routes` keeps apart with `skip_uncaptured`.

        Its columns are those of `tokens` that do not depend on the layer. All other methods leave these tokens out.

        Raises:
            RecordingError: If there are no such tokens, or their file is missing or damaged.
        """
        if not self.n_uncaptured:
            raise RecordingError(
                f"expected a recording with tokens without routes, got '{self.folder.location}' with the routes of all"
                " tokens; read them with tokens()"
            )
        return self.files.read(self.manifest["uncaptured"]["path"])

    def documents(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the table of documents: `doc`, `text` and the metadata, with one row per document.

        Args:
            columns: The columns to read; None for all.

        Raises:
            UnknownNameError: If there is no such column.
            RecordingError: If the recording has no documents.

        Example:
            >>> demo_recording.documents(["text"]).num_rows
            40
        """
        return self.files.read(self._documents_path(), columns)

    @property
    def metadata(self) -> tuple[str, ...]:
        """Names of the corpus's own columns, such as `register` or `speaker`; none without documents."""
        if not self.manifest.get("documents"):
            return ()
        with self.files.open(self._documents_path()) as file:
            return tuple(name for name in file.schema_arrow.names if name not in ("doc", "text", "generated"))

    def texts(self) -> Iterator[str]:
        """Yield the text of each document and what the model generated after it, with few documents in memory.

        Raises:
            RecordingError: If the recording has no documents, or their file is missing or damaged.
        """
        for table in self.files.batches(self._documents_path(), 256, ["text", "generated"]):
            for parts in zip(*(column.to_pylist() for column in table.columns), strict=True):
                yield "".join(part or "" for part in parts)

    @cached_property
    def text_groups(self) -> TextGroups:
        """Which documents have the same text, or nearly so; read once.

        Raises:
            RecordingError: If the file of the documents is missing or damaged.
        """
        if not self.manifest.get("documents"):
            return TextGroups(ids=np.arange(self.n_documents), copies=0, near=0, repeated=0.0)
        tables = self.files.batches(self._documents_path(), 256, ["text"])
        return text_groups(text for table in tables for text in table["text"].to_pylist())

    def text_ids(self) -> NDArray[np.int64]:
        """Return for each document the number of the first one with the same text, or nearly so, `[document]`.

        Folds and tests over documents count copies and near copies of a text as one. A document whose text is not
        known has its own number.

        Raises:
            RecordingError: If the file of the documents is missing or damaged.
        """
        return self.text_groups.ids

    def _documents_path(self) -> str:
        if not self.manifest.get("documents"):
            raise RecordingError(
                f"expected a recording with documents, got '{self.folder.location}' without them;"
                " import its routes again with the texts"
            )
        return str(self.manifest["documents"]["path"])

    def column(self, name: str) -> NDArray[Any]:
        """Read one column of the tokens.

        Args:
            name: The column, such as "token_id" or "experts_L03".

        Returns:
            An array `[token]` or, for columns with a value per slot, `[token, slot]`.

        Raises:
            UnknownNameError: If there is no such column.

        Example:
            >>> demo_recording.column("experts_L01").shape == (demo_recording.n_tokens, demo_recording.top_k)
            True
        """
        return np.concatenate([values for _, (values,) in self.columns([name])])

    def indices(self) -> NDArray[np.unsignedinteger[Any]]:
        """Read the chosen experts, `[token, layer, slot]` uint8 (uint16 for more than 256 experts).

        Raises:
            RecordingError: If the routes were not captured.
        """
        return self._routes("experts", np.dtype(index_type(self.n_experts)))

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
        """Yield the chosen experts of a range of tokens, one shard at a time.

        Args:
            start: The first token.
            stop: The token after the last; None for all from `start` on.

        Returns:
            An iterator over the rows of a shard and its experts, one array `[token, slot]` per layer.

        Raises:
            RecordingError: If the routes were not captured.

        Example:
            >>> [(rows.stop, len(experts)) for rows, experts in demo_recording.parts(0, 100)]
            [(100, 4)]
        """
        return self.columns(self._route_columns("experts"), start, stop)

    def columns(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
        """Yield columns of a range of tokens, one shard at a time.

        Only shards with such tokens are read, each while the previous one is in use.

        Args:
            names: The columns.
            start: The first token.
            stop: The token after the last; None for all from `start` on.

        Returns:
            An iterator over the rows of a shard and its columns, each `[token]` or `[token, slot]`.

        Raises:
            UnknownNameError: If there is no such column.
            RecordingError: If a shard is missing or damaged.

        Example:
            >>> [(rows.stop, ids.shape) for rows, (ids,) in demo_recording.columns(["token_id"], 0, 100)]
            [(100, (100,))]
        """
        return read_ahead(self._columns(names, start, self.n_tokens if stop is None else stop))

    def _columns(self, names: Sequence[str], start: int, stop: int) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
        for row, table in self.files.shards(names, start, stop):
            first, last = max(start - row, 0), min(len(table), stop - row)
            yield slice(row + first, row + last), [as_array(table[name][first:last]) for name in names]

    def weights(self) -> NDArray[np.float32]:
        """Read the routing weights of the chosen experts, `[token, layer, slot]` float32 (by default float16 on disk).

        Raises:
            RecordingError: If the routes were not captured, or have no weights.
        """
        if not self.manifest["capture"].get("weights", True):
            raise RecordingError(
                f"expected routes with weights, got '{self.folder.location}' without them, because its engine returned"
                " none; record with moelens.record(model, corpus, out) (moelens record)"
            )
        return self._routes("weights", np.dtype(np.float32))

    def vectors(self, capture: str, layer: int, experts: Sequence[int] | None = None) -> pa.Table:
        """Read the vectors of one layer, in the order of the documents.

        Args:
            capture: "logits", "neurons", "expert_outputs", "shared" or "residuals".
            layer: The layer.
            experts: Read only rows of these experts, from "neurons" or "expert_outputs".

        Returns:
            A table with `doc`, `pos`, `layer`, `slot` and `expert` (for vectors of experts), and `values`. `as_array`
            converts its columns to arrays.

        Raises:
            UnknownNameError: If the capture or the layer was not recorded, or there is no such expert.
            MoeLensError: If experts are given, and the vectors are not of experts.
            RecordingError: If a shard is missing or damaged.
        """
        tables = self.manifest["tables"]
        if capture not in tables:
            raise unknown("vectors", capture, tables, f"'{self.folder.location}' holds {', '.join(self.captures)}")
        if layer not in self.manifest["capture"]["layers"]:
            raise unknown("layer", layer, self.manifest["capture"]["layers"])
        for expert in experts or ():
            if expert not in range(self.n_experts):
                raise unknown("expert", expert, range(self.n_experts))
        if experts is not None and capture not in SLOT_TABLES:
            raise MoeLensError(
                f"expected vectors of experts ({' or '.join(SLOT_TABLES)}) with experts={[*experts]}, got {capture};"
                " leave experts out"
            )
        entries = self.vector_entries(capture, [layer])
        found = []
        for part in self.vector_parts(capture, layer, 1 << 16):
            if experts is not None:
                part = part.filter(pc.is_in(part["expert"], pa.array(list(experts), part["expert"].type)))
            found.append(part)
        return pa.concat_tables(found) if found else self.files.read(entries[0]["path"])[:0]

    def vector_parts(self, capture: str, layer: int, rows: int = 8192) -> Iterator[pa.Table]:
        """Yield the vectors of one layer, in order, in tables of at most `rows` rows.

        The columns are those of `vectors`; the recording has to hold the capture.

        Args:
            capture: "logits", "neurons", "expert_outputs", "shared" or "residuals".
            layer: The layer.
            rows: The largest number of rows of a table.
        """
        for entry in self.vector_entries(capture, [layer]):
            for table in self.files.batches(entry["path"], rows):
                if (part := table.filter(pc.equal(table["layer"], layer))).num_rows:
                    yield part

    def vector_entries(self, capture: str, layers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the manifest's entries of the files of vectors that may hold rows of some layers.

        Args:
            capture: "logits", "neurons", "expert_outputs", "shared" or "residuals".
            layers: The layers.

        Raises:
            RecordingError: If there are none.
        """
        tables: list[dict[str, Any]] = self.manifest["tables"][capture]
        found = [entry for entry in tables if entry.get("layer") in (None, *layers)]
        if not found:
            raise RecordingError(f"expected rows of {capture} in layers {[*layers]}, got none; choose other layers")
        return found

    def damage(self) -> list[str]:
        """Return a sentence for each file that is missing, damaged or not part of the recording."""
        return [str(error) for error in self.files.damage()]

    def describe_labels(self, labels: Mapping[str, str]) -> None:
        """Write the card again, with how the labels of the tokens were made.

        Args:
            labels: What `Labels.metadata` returned.
        """
        write_card(self.folder, self.whole.manifest, labels)

    def verify(self) -> None:
        """Compare all files with the manifest.

        Raises:
            RecordingError: If a file is missing, damaged or not part of the recording; the first one is named.
        """
        for error in self.files.damage():
            raise error

    def entries(self) -> list[dict[str, Any]]:
        """Return the manifest's entry of each file, with its `path`, `rows` and `sha256`."""
        return [entry for _, entry in self.files.entries.values()]

    @cached_property
    def files(self) -> RecordingFiles:
        """The files, which are compared with the manifest when they are read."""
        if self.drawn is None:
            return RecordingFiles(self.folder, self.manifest)
        return SampledFiles(self.folder, self.manifest, self.whole.files, self.drawn)

    def _route_columns(self, kind: str) -> list[str]:
        if "routes" not in self.captures:
            raise RecordingError(
                f"expected a recording with routes, got '{self.folder.location}' with {', '.join(self.captures)};"
                " record with capture='routes' (--capture routes)"
            )
        return [f"{kind}_{layer_label(layer)}" for layer in self.layers]

    def _routes(self, kind: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        names = self._route_columns(kind)
        for entry in self.manifest["shards"]:  # before memory is taken for the rows that they state
            with self.files.open(entry["path"]):
                pass
        routes = np.empty((self.n_tokens, len(names), self.top_k), dtype)
        for row, table in self.files.shards(names):
            for i, name in enumerate(names):
                routes[row : row + len(table), i] = as_array(table[name])
        return routes

    def shard(self, name: str) -> pa.Table:
        """Read all columns of a shard.

        Args:
            name: Its path in the manifest.
        """
        return self.files.read(name)

    def __repr__(self) -> str:
        tokens, documents = count_noun(self.n_tokens, "token"), count_noun(self.n_documents, "document")
        if self.drawn is not None:
            documents = f"{self.n_documents:,} of {count_noun(self.whole.n_documents, 'document')}, drawn at random"
        without = f" and {count_noun(self.n_uncaptured, 'token')} without routes" if self.n_uncaptured else ""
        reason = (self.manifest.get("alignment") or {}).get("reason")
        return (
            f"Recording('{self.folder.location}': {tokens}{without} of {documents}, model"
            f" {self.manifest['model']['name']!r}, {count_noun(len(self.layers), 'MoE layer')}, top {self.top_k} of"
            f" {self.n_experts} experts{f'; not aligned with texts: {reason}' if reason else ''})"
        )


def count_noun(n: int, noun: str) -> str:
    """Return a number with a noun in the singular or plural.

    Example:
        >>> count_noun(1, "token"), count_noun(1432, "token")
        ('1 token', '1,432 tokens')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def as_array(column: pa.ChunkedArray) -> NDArray[Any]:
    """Convert an Arrow column to an array: numbers to `[row]`, and fixed-size lists to `[row, slot]`.

    Args:
        column: A column of numbers, or of lists of one length.

    Example:
        >>> as_array(pa.table({"pos": [0, 1, 2]})["pos"]).tolist()
        [0, 1, 2]
    """
    if not pa.types.is_fixed_size_list(column.type):
        values: NDArray[Any] = column.to_numpy()
        return values
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    slots: NDArray[Any] = flat.to_numpy().reshape(-1, column.type.list_size)
    return slots


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
