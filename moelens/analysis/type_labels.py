"""`TypeLabels`: how many tokens of each type have which label in a text, for counts that are known by type only."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Ints
from moelens.errors import CheckError, MoeLensError, unknown
from moelens.japanese import Labels
from moelens.models.tokens import token_spans
from moelens.recording import Recording


@dataclass(frozen=True, kw_only=True)
class LabelledTypes:
    """What of the tokens of each type has which label.

    Attributes:
        names: names of the labels.
        tokens: occurrences of each token id in the text `[token id]`.
        labelled: occurrences with the label `[token id, label]`.
    """

    names: tuple[str, ...]
    tokens: Ints
    labelled: Ints


@dataclass(frozen=True, eq=False)
class TypeLabels:
    """The tokens of a text and their labels in context.

    Attributes:
        token_ids: `[token]`.
        families: for each family of labels, the names of its labels and which tokens have them, bool `[token, label]`.
    """

    token_ids: Ints
    families: Mapping[str, tuple[tuple[str, ...], Bools]]

    @classmethod
    def of_text(
        cls, text: str | Path | Sequence[str], tokenizer: Any, n_tokens: int | None = None, processes: int | None = None
    ) -> TypeLabels:
        """Tokenize and label a text.

        Args:
            text: a text, the path of a `.txt` file, or several texts. A single text is given to the tokenizer whole,
                and each of its lines is labelled as a document.
            tokenizer: a transformers tokenizer, or the name or folder of one.
            n_tokens: number of tokens to keep; None for all.
            processes: number of processes that label, see `moelens.label`.

        Raises:
            MoeLensError: there is no such file or tokenizer, or the text is not UTF-8.
        """
        with tempfile.TemporaryDirectory() as folder:
            tokens = _TokenizedText(text, tokenizer, n_tokens, Path(folder))
            labels = Labels.create(tokens, processes=processes)
            return cls(tokens.arrays["token_id"], {family: labels.matrix(family) for family in labels.families})

    @classmethod
    def of_recording(cls, recording: Recording | str | Path) -> TypeLabels:
        """Take the tokens and labels of a recording, which is labelled first if it has no labels.

        Args:
            recording: the recording, or its folder.

        Raises:
            RecordingError: there is no recording.
            CheckError: the recording has no token ids.

        Example:
            >>> types = TypeLabels.of_recording(demo_recording)
            >>> types.count("honorifics", 100).names
            ('尊敬語', '謙譲語I', '謙譲語II', '丁寧語', '美化語')
        """
        recording = Recording.open(recording)
        labels = Labels.open_or_create(recording)
        ids = np.asarray(recording.column("token_id"), np.int64)
        if ids.min(initial=0) < 0:
            raise CheckError("expected a recording with token ids, got one without; import its routes again with them")
        return cls(ids, {family: labels.matrix(family) for family in labels.families})

    def count(self, family: str, n_tokens: int) -> LabelledTypes:
        """Count the labels of each token id among the first `n_tokens` tokens.

        Args:
            family: family of labels.
            n_tokens: number of tokens.

        Returns:
            Tokens of each id `[token id]`, and those with each label `[token id, label]`.

        Raises:
            UnknownNameError: there is no such family.
        """
        if family not in self.families:
            raise unknown("label family", family, self.families)
        names, has = self.families[family]
        ids, has = self.token_ids[:n_tokens], has[:n_tokens]
        size = int(ids.max(initial=-1)) + 1
        labelled = [np.bincount(ids[has[:, i]], minlength=size) for i in range(len(names))]
        counted = np.bincount(ids, minlength=size).astype(np.int64)
        return LabelledTypes(names=names, tokens=counted, labelled=np.stack(labelled, axis=1).astype(np.int64))


class _TokenizedText:
    """A text with its tokens, which `Labels.create` labels as it does a recording; see `TypeLabels.of_text`.

    Attributes:
        arrays: token_id, doc, char_start and char_end, each `[token]`.
        path: folder for the labels.
    """

    def __init__(self, text: str | Path | Sequence[str], tokenizer: Any, n_tokens: int | None, path: Path) -> None:
        self.path = path
        if isinstance(tokenizer, (str, Path)):
            tokenizer = _load_tokenizer(tokenizer)
        if isinstance(text, Path) or (isinstance(text, str) and text.endswith(".txt") and "\n" not in text):
            text = _read_text(Path(text))
        parts: dict[str, list[NDArray[Any]]] = {"token_id": [], "doc": [], "char_start": [], "char_end": []}
        self._texts: list[str] = []
        for whole in [text] if isinstance(text, str) else text:
            ids = tokenizer(whole, truncation=False, verbose=False)["input_ids"]
            spans = token_spans(tokenizer, whole, ids)
            lines = whole.splitlines(keepends=True) or [""]
            begins = np.cumsum([0, *map(len, lines)])
            line = np.clip(np.searchsorted(begins, spans.start, "right") - 1, 0, len(lines) - 1)
            parts["token_id"].append(np.array(ids, np.int64))
            parts["doc"].append(line + len(self._texts))
            parts["char_start"].append(spans.start - begins[line])
            parts["char_end"].append(np.minimum(spans.end, begins[line + 1]) - begins[line])
            self._texts += lines
        self.arrays = {
            name: np.concatenate(arrays)[:n_tokens].astype(np.int64 if name == "token_id" else np.int32)
            for name, arrays in parts.items()
        }

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.arrays["token_id"])

    def columns(self, names: Sequence[str]) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
        """Yield these arrays of all tokens at once."""
        yield slice(0, self.n_tokens), [self.arrays[name] for name in names]

    def texts(self) -> Iterator[str]:
        """Yield the texts of the documents."""
        return iter(self._texts)


def _load_tokenizer(name: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MoeLensError(
            f"expected the name or folder of a tokenizer, got '{name}', which cannot be loaded "
            f"({str(error).splitlines()[0][:80]}); give the tokenizer of the model"
        ) from error


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise MoeLensError(f"expected a text file, got '{path}', which is no file; give an existing one, or the text")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise MoeLensError(f"expected UTF-8 in '{path}', got other bytes at {error.start}; convert the file") from error
