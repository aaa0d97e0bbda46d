"""`Labels`: the morphology, functions, honorifics, references and register of each token of a recording."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moelens.checksums import file_checksums, same_file
from moelens.display import Displayed
from moelens.errors import MoeLensError, RecordingError, unknown
from moelens.files import explain_write_errors, lock_folder, writing
from moelens.japanese.families import COLUMNS, FAMILIES, LABEL_FILES, Bools
from moelens.japanese.label_tables import (
    HONORIFIC_COLUMNS,
    WORD_COLUMNS,
    Labelled,
    TokensAndTexts,
    label_groups,
    label_jobs,
    label_schema,
    with_register,
)
from moelens.japanese.morphology import Analyser, provenance
from moelens.japanese.rules import rulebook
from moelens.japanese.token_labels import Policy, policy_in_words
from moelens.japanese.turn_labels import turn_families, turn_file, write_turn_labels
from moelens.parquet import read_rows

_METADATA = ("analyser", "dictionary", "rules", "policy", "alignment", "normalized")
_CHECKSUMS = "checksums.json"  # of the files
_DETAILS = {"morphology": WORD_COLUMNS, "honorifics": HONORIFIC_COLUMNS}


class _Recording(TokensAndTexts, Protocol):
    """The part of `moelens.Recording` that labelling uses."""

    @property
    def path(self) -> Path: ...
    @property
    def n_tokens(self) -> int: ...


class _Drawn(Protocol):
    """The part of `moelens.recording.sampling.DrawnDocuments` that labels use."""

    @property
    def rows(self) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True)
class Labels(Displayed):
    """The labels of a recording's tokens on disk.

    `moelens.label` creates them, and `Labels.open` opens them again.

    Attributes:
        path: The folder that holds them, `labels/` in the folder of the recording.
        drawn: The documents whose tokens they are, for a sample of a recording; None for all.

    Example:
        >>> labels = Labels.open(demo_recording)
        >>> names, has = labels.matrix("honorifics")
        >>> names, has.shape == (demo_recording.n_tokens, len(names))
        (('尊敬語', '謙譲語I', '謙譲語II', '丁寧語', '美化語'), True)
    """

    path: Path
    drawn: _Drawn | None = None

    def __repr__(self) -> str:
        metadata = self.metadata
        about = ", ".join(
            f"{name} {metadata[name]}" for name in ("analyser", "dictionary", "rules", "policy") if name in metadata
        )
        return f"Labels('{self.path}': {', '.join(self.families)}; {about})"

    @classmethod
    def open(cls, recording: _Recording) -> Labels:
        """Open the labels of a recording.

        Args:
            recording: A recording that was labelled.

        Raises:
            RecordingError: If the labels are missing or do not have one row per token.

        Example:
            >>> Labels.open(demo_recording).families[:3]
            ('pos', 'script', 'goshu')
        """
        labels = cls(Path(recording.path) / "labels")
        if problem := labels._unfit(_whole(recording)):
            raise RecordingError(f"{problem}; label the recording with moelens.label(recording) (moelens label)")
        return labels.of(recording)

    def of(self, recording: object) -> Labels:
        """Return those of the tokens of this recording, if it is a sample of the one that was labelled.

        Args:
            recording: The recording that was labelled, or a sample of it.

        Returns:
            The labels, with one row for each token of `recording`.

        Example:
            >>> sample = demo_recording.sample(2)
            >>> names, values = Labels.open_or_create(demo_recording).of(sample).matrix("honorifics")
            >>> len(values) == sample.n_tokens
            True
        """
        return replace(self, drawn=getattr(recording, "drawn", None))

    def _unfit(self, recording: _Recording) -> str:
        """Return why these are no labels of a recording; "" if they are."""
        conversation = [turn_file(self.path).stem] if getattr(recording, "manifest", {}).get("token_labels") else []
        files = [*LABEL_FILES, *conversation]
        missing = [name for name in files if not (self.path / f"{name}.parquet").exists()]
        if missing:
            return f"expected labels in '{self.path}', got no {missing[0]}.parquet"
        identity = _identity(recording)
        if self._metadata_of_file().get("recording", identity) != identity:
            return f"expected labels of this recording in '{self.path}', got those of another recording"
        n_tokens = recording.n_tokens
        rows = next((n for n in map(self._rows, files) if n != n_tokens), n_tokens)
        if rows != n_tokens:
            return f"expected one row of labels per token in '{self.path}', got {rows} rows and {n_tokens} tokens"
        return ""

    @classmethod
    def create(
        cls,
        recording: _Recording,
        policy: Policy = "ends",
        analyser: Analyser = "fugashi",
        processes: int | None = None,
    ) -> Labels:
        """Analyse the documents of a recording and label each of its tokens.

        A token may cover several morphemes or a part of one. White space between morphemes has no label, nor have
        special tokens, which cover no characters.

        The labels are written to `labels/`, one Parquet file for each of morphology, function, honorifics, reference
        and register, with one row per token and one column per label (`pos.名詞`, `honorifics.尊敬語`). Further columns
        describe the last character of the token: the levels of the part of speech, the conjugation, the lemma and its
        reading; and the honorific that ends in the token (for other policies: that its last character belongs to): the
        rule that found it, its plain equivalents and, if it is ambiguous, its possible readings (尊敬・可能・受身, the
        most likely first).

        Of a sample of a recording, the whole recording is labelled.

        Args:
            recording: The recording to label.
            policy: Which labels a token carries. "ends": those of every morpheme and span that ends in it, which a
                causal model knows when it has read the token. "last": those of its last character. "any": those of all
                of its characters. "majority": those of more than half of its characters. See `token_labels`.
            analyser: "fugashi" or "sudachi".
            processes: Number of processes. None uses one per core, or a single one in a script, because each process
                first imports the script; to use more there, call this under `if __name__ == "__main__":`.

        Raises:
            UnknownNameError: If there is no such policy or analyser.
            MoeLensError: If `processes` is less than 1.
            RecordingError: If the characters of the tokens are not known.

        Example:
            >>> len(Labels.create(demo_recording, processes=1).matrix("honorifics")[1]) == demo_recording.n_tokens
            True
        """
        sample, recording = recording, _whole(recording)
        require_alignment(recording)
        in_words = policy_in_words(policy)
        if analyser not in get_args(Analyser):
            raise unknown("analyser", analyser, get_args(Analyser))
        if processes is not None and processes < 1:
            raise MoeLensError(f"expected processes to be None or at least 1, got {processes}; give another number")
        tables = label_groups(label_jobs(recording, policy, analyser), processes or _default_processes())
        metadata = {
            **provenance(analyser),
            "rules": rulebook().version,
            "policy": in_words,
            "alignment": _alignment(recording),
            "recording": _identity(recording),
        }
        labels = _write(recording, tables, metadata)
        describe = getattr(recording, "describe_labels", None)  # the card of a recording names its labels
        if describe is not None:
            describe(labels.metadata)
        return labels.of(sample)

    @classmethod
    def open_or_create(cls, recording: _Recording) -> Labels:
        """Open the labels of a recording, after creating them if they are missing or those of another recording.

        Args:
            recording: The recording.

        Raises:
            RecordingError: If they are damaged, or they have to be created and the characters of the tokens are not
                known.
        """
        labels = cls(Path(recording.path) / "labels")
        return cls.create(recording) if labels._unfit(_whole(recording)) else labels.of(recording)

    @property
    def families(self) -> tuple[str, ...]:
        """The names of the label families; `role` and `turn` are those of conversations."""
        return (*FAMILIES, *self._turn_families())

    @property
    def metadata(self) -> dict[str, str]:
        """How the labels were made.

        The analyser, the dictionary, the version of the rules, the policy in words, the alignment of the tokens, and
        how many characters were normalised for the analyser, by kind (see `moelens.japanese.normalization`).
        """
        stored = self._metadata_of_file()
        return {name: stored[name] for name in _METADATA if name in stored}

    def _metadata_of_file(self) -> dict[str, str]:
        with self._reading("honorifics") as file:
            stored = file.metadata.metadata or {}
        return {k.decode().removeprefix("moelens."): v.decode() for k, v in stored.items() if k.startswith(b"moelens.")}

    def matrix(self, family: str, rows: slice | None = None) -> tuple[tuple[str, ...], Bools]:
        """Return which labels of a family the tokens have.

        A token may have several labels (お…いたす is both 謙譲語I and 謙譲語II) or none (special tokens).

        Args:
            family: One of `families`.
            rows: The tokens to read; None for all. Only the row groups that hold them are read.

        Returns:
            The names of the labels, and a bool array `[token, label]` in the order of the tokens.

        Raises:
            UnknownNameError: If there is no such family.
        """
        families = dict(FAMILIES) | self._turn_families()
        if family not in families:
            raise unknown("label family", family, families)
        names = families[family]
        table = self.table(family, [f"{family}.{name}" for name in names], rows)
        return names, np.stack([column.to_numpy() for column in table.columns]).T  # many times faster than axis=1

    def table(self, family: str, columns: list[str] | None = None, rows: slice | None = None) -> pa.Table:
        """Read the file that holds a family.

        Args:
            family: One of `families`.
            columns: The columns to read, such as `lemma`; None for all columns of the file.
            rows: The tokens to read; None for all.

        Returns:
            An Arrow table with one row per token.

        Example:
            >>> Labels.open(demo_recording).table("pos", ["lemma", "lemma_reading"]).num_rows == demo_recording.n_tokens
            True
        """
        name = next((file for file, families in LABEL_FILES.items() if family in families), turn_file(self.path).stem)
        with self._reading(name) as file:
            wanted = None if self.drawn is None else self.drawn.rows
            if rows is not None:
                start, stop, _ = rows.indices(file.metadata.num_rows if wanted is None else len(wanted))
                wanted = np.arange(start, stop) if wanted is None else wanted[start:stop]
            return read_rows(file, wanted, columns)

    def _turn_families(self) -> dict[str, tuple[str, ...]]:
        path = turn_file(self.path)
        if not path.exists():
            return {}
        with self._reading(path.stem) as file:
            return turn_families(file.schema_arrow.names)

    def verify(self) -> None:
        """Compare all files with their checksums, and read them.

        Raises:
            RecordingError: If one is missing or damaged.
        """
        for name, expected in self._checksums().items():
            path = self.path / name
            if not path.is_file() or file_checksums(path) != expected:
                raise self._damage_error(path, "it is missing or differs from its checksum")
            with self._reading(path.stem) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group)

    def _checksums(self) -> dict[str, dict[str, Any]]:
        """Return the checksums of the files by name.

        Raises:
            RecordingError: If there are none.
        """
        path = self.path / _CHECKSUMS
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._damage_error(path, " ".join(str(error).split())[:120]) from error
        named = {f"{name}.parquet" for name in LABEL_FILES}
        if not isinstance(found, dict) or not named <= found.keys() or not all(map(_is_checksums, found.values())):
            raise self._damage_error(path, "it lists no checksums")
        return found

    def _damage_error(self, path: Path, problem: str) -> RecordingError:
        return RecordingError(
            f"'{path}' is missing or damaged ({problem}); create it again with moelens.label(recording) (moelens label)"
        )

    def _rows(self, name: str) -> int:
        with self._reading(name) as file:
            return int(file.metadata.num_rows)

    @contextmanager
    def _reading(self, name: str) -> Iterator[pq.ParquetFile]:
        """Open one of the files, and replace pyarrow's errors by those of moelens."""
        path = self.path / f"{name}.parquet"
        try:
            expected = self._checksums().get(path.name)
            if expected is None or not same_file(path, expected):
                raise self._damage_error(path, "it differs from its checksum")
            with pq.ParquetFile(path) as file:
                if wrong := _wrong_columns(name, file.schema_arrow):
                    raise self._damage_error(path, f"it has no column {wrong} of labels")
                yield file
        except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow raises UnicodeDecodeError too
            raise self._damage_error(path, " ".join(str(error).split())[:120]) from error


def _whole(recording: _Recording) -> _Recording:
    """The recording from which a sample was drawn; any other recording itself. Labels are those of all its tokens."""
    whole: _Recording = getattr(recording, "whole", recording)
    return whole


def _is_checksums(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("sha256", "xxh3"))


def _wrong_columns(file: str, schema: pa.Schema) -> str:
    """Return the first column that a file of labels must have and has not; "" if it has all."""
    expected = dict.fromkeys((c for c in COLUMNS if c.partition(".")[0] in LABEL_FILES.get(file, ())), pa.bool_())
    expected |= dict.fromkeys(_DETAILS.get(file, ()), pa.string())
    for name, kind in expected.items():
        if schema.get_field_index(name) < 0 or schema.field(name).type != kind:
            return str(name)
    return ""


def _default_processes() -> int:
    """Return one process in a script, which each further process would run again, and otherwise one per core."""
    return 1 if hasattr(sys.modules["__main__"], "__file__") else os.cpu_count() or 1


def require_alignment(recording: object) -> None:
    """Check that it is known which characters the tokens of a recording stand for, as labels and sentences need.

    Raises:
        RecordingError: If it is not; the message says why.
    """
    manifest = getattr(recording, "manifest", {})
    alignment = manifest.get("alignment") or {}
    if alignment.get("unaligned_documents"):
        raise RecordingError(
            f"expected tokens that are aligned with their texts, got a recording of {manifest['corpus']} where those of"
            f" {alignment['unaligned_documents']} of {manifest['n_documents']} documents are not"
            f" ({alignment['reason']}); import the routes again with tokenizer= (--tokenizer) and, if the prompts are"
            " missing, texts= (--texts)"
        )


def _alignment(recording: _Recording) -> str:
    """Return the methods that located the tokens in their texts, with the number of documents for each."""
    manifest = getattr(recording, "manifest", {})
    methods = (manifest.get("tokenizer") or {}).get("documents_by_spans") or {}
    return ", ".join(f"{method}: {n}" for method, n in sorted(methods.items())) or "unknown"


def _identity(recording: _Recording) -> str:
    """Return what tells a recording from others: SHA-256 of the checksums of its tokens and documents."""
    manifest = getattr(recording, "manifest", {})
    entries = [*manifest.get("shards", []), manifest.get("documents") or {}]
    return hashlib.sha256("".join(entry.get("sha256", "") for entry in entries).encode()).hexdigest()


def _write(recording: _Recording, labelled: Iterator[Labelled], metadata: dict[str, str]) -> Labels:
    """Write the tables to the files of `labels/`, which get their names only when all of them are complete."""
    folder = Path(recording.path) / "labels"
    written = {f"moelens.{name}": value for name, value in metadata.items()}
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder) as locked:
            own = "" if locked else f".{os.getpid()}"  # so that two runs do not write to one file
            unfinished = {file: folder / f".{file}{own}.parquet" for file in (*LABEL_FILES, turn_file(folder).stem)}
            try:
                _write_files(unfinished, labelled, written)
                write_turn_labels(recording, unfinished[turn_file(folder).stem], written)
                sums = {f"{f}.parquet": file_checksums(path) for f, path in unfinished.items() if path.exists()}
                with writing(folder / _CHECKSUMS) as partial:
                    partial.write_text(json.dumps(sums, indent=1) + "\n", "utf-8")
                    for file, path in unfinished.items():
                        if path.exists():
                            os.replace(path, folder / f"{file}.parquet")
            except BaseException:
                for path in unfinished.values():
                    path.unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()
                raise
    return Labels(folder)


def _write_files(paths: dict[str, Path], labelled: Iterator[Labelled], metadata: dict[str, str]) -> None:
    """Write the columns of each file under its temporary name."""
    columns = {
        file: [c for c in COLUMNS if c.partition(".")[0] in families] + list(_DETAILS.get(file, ()))
        for file, families in LABEL_FILES.items()
    }
    schema, normalized = label_schema(), Counter[str]()
    waiting: list[pa.Table] = []  # labels of a document whose register is not known yet
    with ExitStack() as stack:
        writers = {
            file: stack.enter_context(
                pq.ParquetWriter(
                    paths[file],
                    pa.schema([schema.field(name) for name in names], metadata=metadata),
                    compression="zstd",
                    write_page_checksum=True,
                )
            )
            for file, names in columns.items()
        }
        for item in labelled:
            normalized.update(item.normalized)
            tables = {
                file: item.table.select(names).replace_schema_metadata(metadata) for file, names in columns.items()
            }
            waiting.append(tables.pop("register"))
            for file, table in tables.items():
                writers[file].write_table(table)
            if item.register is not None:
                for part in waiting:
                    writers["register"].write_table(with_register(part, item.register))
                waiting = []
        counted = ", ".join(f"{kind} {n:,}" for kind, n in sorted(normalized.items())) or "nothing"
        for writer in writers.values():
            writer.add_key_value_metadata({"moelens.normalized": counted})
