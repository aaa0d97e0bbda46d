"""Cutting documents into what runs together: chunks of documents, windows of a document, batches of windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moelens.errors import MoeLensError


@dataclass(frozen=True)
class Window:
    """Rows `start` to `stop` that run as one sequence, of which those from `first` on are recorded."""

    start: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def windows(lengths: Iterable[int], context: int | None, overlap: int = 0) -> list[Window]:
    """Documents of these lengths, in windows that fit the context.

    Every row is recorded once. A later window begins `overlap` rows before the first that it records, which gives that
    row so much to look back upon.

    Raises:
        MoeLensError: the overlap leaves nothing to record.

    >>> windows([2, 5], 3, overlap=1)
    [Window(start=0, first=0, stop=2), Window(start=2, first=2, stop=5), Window(start=4, first=5, stop=7)]
    """
    if overlap < 0 or (context is not None and overlap >= context):
        raise MoeLensError(f"overlap is {overlap}, in windows of {context} tokens; give 0 to {(context or 1) - 1}")
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
    """Windows of like length, the longest first, each batch within this number of tokens when padded.

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
