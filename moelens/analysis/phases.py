"""Prefill beside decoding: how far the experts of a prompt are those of the text that the model then generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.arrays import Bools, Floats, Ints
from moelens.analysis.count_measures import jensen_shannon
from moelens.bars import progress_bar
from moelens.errors import MoeLensError, RecordingError, UnknownNameError, unknown
from moelens.recording import Recording

PHASES = ("prefill", "decode")
QUANTITIES = ("overlap", "divergence")
VALUES = ("observed", "chance low", "chance high")


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The tokens with text, in order.

    Attributes:
        rows: their rows in the recording `[token]`.
        decode: whether the model generated them `[token]`.
        begins: the first token of each document, and the end of the last `[document + 1]`.
    """

    rows: Ints
    decode: Bools
    begins: Ints

    @classmethod
    def of(cls, recording: Recording) -> _Tokens:
        """Read documents and phases.

        Raises:
            RecordingError: the recording has one phase only.
        """
        columns: list[list[NDArray[Any]]] = [[], [], []]
        try:
            for _, (docs, phase, start, end) in recording.columns(["doc", "phase", "char_start", "char_end"]):
                for column, values in zip(columns, (docs, phase == PHASES[1], end > start), strict=True):
                    column.append(np.asarray(values))
        except UnknownNameError:  # a recording without generated text has no column of phases
            columns = [[], [], []]
        docs, decode, text = (np.concatenate(c) if c else np.zeros(0, bool) for c in columns)
        kept = text if text.any() else np.ones(len(text), bool)  # imported routes may have no places in the text
        decode = decode[kept].astype(bool)
        if not decode.any() or decode.all():
            raise RecordingError(
                f"expected a recording with prefill and decoding, got '{recording.folder.location}' without "
                f"{'prefill' if decode.any() else 'decoding'}; record with generate= (--generate N)"
            )
        begins = np.flatnonzero(np.diff(docs[kept], prepend=-1))
        return cls(np.flatnonzero(kept), decode, np.append(begins, len(decode)))


def check_phases(phase: Any) -> None:
    """Check that two different phases are named.

    Raises:
        UnknownNameError: a name is not that of a phase.
        MoeLensError: there are not two different ones.
    """
    names = phase.split(",") if isinstance(phase, str) else list(phase)
    for name in names:
        if name not in PHASES:
            raise unknown("phase", name, PHASES)
    if sorted(names) != sorted(PHASES):
        raise MoeLensError(f"expected two phases to compare, got {', '.join(names)}; give prefill,decode")


def phase_values(recording: Recording, draws: int = 99, seed: int = 0, progress: bool | None = None) -> Floats:
    """Compare the distribution over experts in prefill with that in decoding, layer by layer.

    The overlap is Σ min(p, q), the share of choices that the two have in common; the divergence is that of Jensen and
    Shannon, in bits. Both depend on the number of tokens, so the result has their values by chance too: in each draw,
    the phases of every document are shifted along it by a random number of tokens, from its end to its beginning. A
    shift keeps how many tokens are in each phase and that they follow each other, and separates phase and routes.
    Tokens without text, the tokenizer's special tokens, are left out.

    What differs from chance may be due to the place in the document or to what is written there.

    Args:
        recording: a recording with generated text.
        draws: number of shifts, 2 or more.
        seed: seed of the shifts.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        `[layer, quantity, value]` with the quantities "overlap" and "divergence", and the values "observed",
        "chance low" and "chance high": the 2.5th and 97.5th percentile of the draws.

    Raises:
        RecordingError: the recording has one phase only, or no routes.
        MoeLensError: there are fewer than two draws.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> texts = ["先生がいらっしゃいました。", "雨が降ったので、"]
        >>> with TemporaryDirectory() as folder:
        ...     recording = moelens.record(demo_model, texts, f"{folder}/run", generate=8, progress=False)
        ...     phase_values(recording, draws=9, progress=False).shape
        (4, 2, 3)
    """
    if draws < 2:
        raise MoeLensError(f"expected 2 or more shifts of the phases, got {draws}; give more permutations")
    tokens = _Tokens.of(recording)
    length = np.diff(tokens.begins)
    shifts = np.random.default_rng(seed).integers(0, length[:, None], (len(length), draws))
    shifts = np.hstack([np.zeros((len(length), 1), np.int64), shifts])  # the first is the observed one
    document = np.repeat(np.arange(len(length)), length)
    shape = len(recording.layers), recording.n_experts
    decoded, everything = np.zeros((draws + 1, *shape), np.int64), np.zeros(shape, np.int64)
    for rows, routes in recording.parts():
        first, last = np.searchsorted(tokens.rows, [rows.start, rows.stop])
        here, at = tokens.rows[first:last] - rows.start, np.arange(first, last)
        of, begin = document[first:last], tokens.begins[document[first:last]]
        layers = [np.asarray(chosen)[here] for chosen in routes]
        for layer, chosen in enumerate(layers):
            everything[layer] += np.bincount(chosen.ravel(), minlength=shape[1])
        for draw in progress_bar(range(draws + 1), show=progress, desc="shifts"):
            is_decode = tokens.decode[begin + (at - begin + shifts[of, draw]) % length[of]]
            for layer, chosen in enumerate(layers):
                decoded[draw, layer] += np.bincount(chosen[is_decode].ravel(), minlength=shape[1])
    both = np.stack([everything - decoded, decoded], axis=-1)  # [draw, layer, expert, phase]
    shares = both / np.maximum(both.sum(2, keepdims=True), 1)
    quantities = np.stack([shares.min(-1).sum(-1), jensen_shannon(shares)[..., 0, 1]], axis=-1)
    band = np.percentile(quantities[1:], [2.5, 97.5], axis=0)
    return np.stack([quantities[0], *band], axis=-1)
