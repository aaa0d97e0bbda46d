"""Reading routes that another program computed: arrays in an `.npz`, or the responses of a serving engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moelens.errors import MoeLensError, UnknownNameError
from moelens.recording.array_files import read_npz_arrays
from moelens.recording.responses import read_answers
from moelens.recording.route_inputs import Answer, Part, is_text, read_array
from moelens.recording.rows import read_rows

_Array = NDArray[Any]
Texts: TypeAlias = "str | Path | Iterable[str | Mapping[str, Any]]"
"""A corpus file, or texts or requests."""

_END = object()


def read_npz(path: Path, texts: Texts | None) -> Iterator[Answer]:
    """Yield the documents of an `.npz`, which is read without unpickling.

    Args:
        path: The file.
        texts: The texts of the documents.

    Raises:
        MoeLensError: If the file is not an `.npz`, its arrays do not fit together, or there is not one text a document.
    """
    try:
        arrays = read_npz_arrays(path)
    except (ValueError, OSError) as error:
        raise MoeLensError(
            f"expected an .npz of plain arrays, got {path.name} ({error}); save it with numpy.savez"
        ) from error
    sizes: dict[str, int] = {}
    indices, weights, ids, lengths = (
        read_array(arrays, which, sizes, path.name) for which in ("indices", "weights", "ids", "lengths")
    )
    assert indices is not None
    counts = [len(indices)] if lengths is None else lengths.tolist()
    if sum(counts) != len(indices):
        raise MoeLensError(
            f"expected sequence_lengths that sum to the {len(indices)} tokens in {path.name}, got a sum of"
            f" {sum(counts)}; correct them"
        )
    ends = np.cumsum(counts, dtype=np.int64)
    bounds = list(zip(np.concatenate([[0], ends[:-1]]).tolist(), ends.tolist(), strict=True))
    for (start, stop), (text, at) in _paired(bounds, texts, path.name):
        text = text.get("text") if isinstance(text, Mapping) else text
        if text is not None and not is_text(text):
            raise MoeLensError(f"expected the text of a document in {at}, got {repr(text)[:60]}; give it as a string")
        yield Answer(
            at=path.name,
            routes=indices[start:stop],
            weights=None if weights is None else weights[start:stop],
            prompt=Part(ids=None if ids is None else ids[start:stop].tolist(), text=text, tokens=stop - start),
        )


def read_responses(path: Path, kind: str, shape: tuple[int, int] | None, texts: Texts | None) -> Iterator[Answer]:
    """Yield the prompts and completions of responses, which are JSON, one response or batch of them per line.

    Args:
        path: The file.
        kind: "sglang" or "vllm".
        shape: Number of layers and of experts per token in responses of SGLang.
        texts: The prompts or the requests, one for each line.

    Raises:
        MoeLensError: If a response has no routes, or not in the expected form, or there is not one prompt a line.
    """
    for (row, at), (asked, _) in _paired(read_rows(path), texts, path.name):
        yield from read_answers(row, asked, kind, shape, at)


def _paired(items: Iterable[Any], texts: Texts | None, name: str) -> Iterator[tuple[Any, tuple[Any, str]]]:
    """Yield each item with its text and the place of the text, which are None and "" without texts.

    Raises:
        UnknownNameError: If there is no such file of texts.
        MoeLensError: If there are not as many texts as items.
    """
    if texts is None:
        yield from ((item, (None, "")) for item in items)
        return
    rows: Iterable[tuple[Any, str]]
    if isinstance(texts, (str, Path)):
        if not Path(texts).is_file():
            raise UnknownNameError(f"no such file of texts: {str(texts)[:60]!r}; give a .txt, .jsonl or .parquet file")
        rows = read_rows(Path(texts))
    else:
        rows = ((text, f"text {i}") for i, text in enumerate(texts))
    pairs: Iterable[tuple[Any, Any]] = zip_longest(items, rows, fillvalue=_END)
    for number, (item, row) in enumerate(pairs):
        if item is _END or row is _END:
            how_many = f"only {number}" if row is _END else f"more than {number}"
            raise MoeLensError(
                f"expected a text for each line or document of {name}, got {how_many}; give them in the same order"
            )
        yield item, row
