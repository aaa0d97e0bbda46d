"""Dividing documents into sequences that run together: windows of documents, and batches of windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moelens.errors import MoeLensError


@dataclass(frozen=True)
class Window:
    """Successive rows that run as one sequence.

    Attributes:
        start: The first row.
        first: The first row that is recorded; those before it only give context.
        stop: The row after the last.
    """

    start: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def windows(lengths: Iterable[int], context: int | None, overlap: int = 0) -> list[Window]:
    """Divide documents into windows that fit the context. Every row is recorded once.

    Args:
        lengths: The number of rows of each document; the rows of all documents are numbered consecutively.
        context: The largest number of rows in a window; None for no limit.
        overlap: How many rows a window repeats from the previous window of its document, as context.

    Raises:
        MoeLensError: If the overlap leaves no rows to record.

    Example:
        >>> windows([2, 5], 3, overlap=1)
        [Window(start=0, first=0, stop=2), Window(start=2, first=2, stop=5), Window(start=4, first=5, stop=7)]
    """
    if overlap < 0 or (context is not None and overlap >= context):
        allowed = "at least 0" if context is None else f"from 0 to {context - 1} in windows of {context} tokens"
        raise MoeLensError(f"expected overlap to be {allowed}, got {overlap}; give another number")
    found, row = [], 0
    for length in lengths:
        done = 0
        while done < length:
            back = overlap if done else 0
            stop = length if context is None else min(done - back + context, length)
            found.append(Window(row + done - back, row + done, row + stop))
            done = stop
        row += length
    return found


def batches(sequences: Iterable[Window], tokens: int) -> Iterator[list[Window]]:
    """Group windows of similar length into batches, the longest first.

    Args:
        sequences: The windows.
        tokens: The largest number of tokens in a batch, padding included; a longer window runs alone.

    Example:
        >>> list(batches(windows([2, 3, 2], None), 4))[0]
        [Window(start=2, first=2, stop=5)]
    """
    batch: list[Window] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        if batch and len(batch[0]) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch
