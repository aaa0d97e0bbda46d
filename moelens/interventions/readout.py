"""What is measured: how much a model prefers one text of a minimal pair, and how unlike itself it becomes elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moelens.errors import MoeLensError, UnknownNameError, unknown
from moelens.japanese.minimal_pairs import pairs as bundled_pairs
from moelens.text_files import read_json_lines

Floats = NDArray[np.float64]
Half = Literal["all", "discovery", "test"]
TEXTS = ("context", "good", "bad")
FIELDS = ("id", "kind", "frame", *TEXTS)


class Pair(Protocol):
    """A minimal pair: `context + good` and `context + bad` differ in one thing, and the context licenses the good one.

    `kind` is what they differ in; pairs with the same `frame` are one sentence with other words.
    """

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def frame(self) -> str: ...
    @property
    def context(self) -> str: ...
    @property
    def good(self) -> str: ...
    @property
    def bad(self) -> str: ...


@dataclass(frozen=True)
class TextPair:
    """A `Pair` of plain texts.

    >>> TextPair("1", "plain-polite", "行く", "明日は学校へ", "行きます。", "行く。").good
    '行きます。'
    """

    id: str
    kind: str
    frame: str
    context: str
    good: str
    bad: str
    split: str = ""


def as_pairs(source: str | Iterable[Any]) -> tuple[Pair, ...]:
    """Pairs from objects with their attributes, or from mappings (rows of a `datasets` Dataset or of JSON lines).

    Args:
        source: the pairs, or what `read_pairs` takes: a kind of the bundled ones or a `.jsonl` file.

    Raises:
        UnknownNameError: neither a file nor a kind.
        MoeLensError: none at all, one without a field, or one whose two texts are the same.
    """
    if isinstance(source, str):
        return read_pairs(source)
    return _pairs_of((row, f"pair {i}") for i, row in enumerate(source))


def _pairs_of(rows: Iterable[tuple[Any, str]]) -> tuple[Pair, ...]:
    """Pairs from rows and their places, such as "pairs.jsonl line 3"."""
    pairs: list[Pair] = []
    for row, at in rows:
        plain = isinstance(row, Mapping)
        missing = [name for name in FIELDS if not (name in row if plain else hasattr(row, name))]
        if missing:
            raise MoeLensError(f"{at} has no {missing[0]!r}; a pair has {', '.join(FIELDS)}")
        for name in TEXTS:
            text = row[name] if plain else getattr(row, name)
            if not isinstance(text, str) or not _is_unicode(text):
                raise MoeLensError(f"{at}: expected {name!r} to be a string of valid Unicode, got {text!r}; correct it")
        if plain:
            row = TextPair(**{name: str(row[name]) for name in FIELDS}, split=str(row.get("split") or ""))
        pairs.append(cast(Pair, row))
    if not pairs:
        raise MoeLensError("no pairs; give at least one with " + ", ".join(FIELDS))
    for pair in pairs:
        if pair.good == pair.bad:
            raise MoeLensError(f"pair {pair.id!r} has the same text twice, {pair.good!r}; give two that differ")
    return tuple(pairs)


def _is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_pairs(source: str) -> tuple[Pair, ...]:
    """Pairs from a `.jsonl` or `.jsonl.gz` file, a pair a line, or the bundled ones of a kind.

    Raises:
        UnknownNameError: neither a file nor a kind.
        MoeLensError: a line of the file is not a pair, or not UTF-8.
    """
    path = Path(source)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        if not path.is_file():
            raise UnknownNameError(f"no pairs at '{source}'; give a .jsonl file with a pair a line, or a kind of pair")
        return _pairs_of(read_json_lines(path))
    return as_pairs(bundled_pairs(kind=source))


def half_of(pairs: Sequence[Pair], half: Half, seed: int = 0) -> tuple[Pair, ...]:
    """The pairs of one half of the frames, so that what is discovered in one is tested in sentences it never saw.

    Pairs that say which half they belong to (`split`, as the bundled ones do) keep to it; else frames are dealt out at
    random within each kind, the larger part to "discovery".

    Raises:
        MoeLensError: a kind with one frame only.
    """
    if half not in ("all", "discovery", "test"):
        raise unknown("half", half, ("all", "discovery", "test"))
    if half == "all":
        return tuple(pairs)
    if all(getattr(p, "split", "") in ("discovery", "test") for p in pairs):
        return tuple(p for p in pairs if getattr(p, "split", "") == half)
    rng = np.random.default_rng(seed)
    discovery: set[tuple[str, str]] = set()
    for kind in dict.fromkeys(p.kind for p in pairs):
        frames = list(dict.fromkeys(p.frame for p in pairs if p.kind == kind))
        if len(frames) < 2:
            raise MoeLensError(f"kind {kind!r} has one frame, {frames[0]!r}, and cannot be halved; give two or more")
        order = rng.permutation(len(frames))
        discovery |= {(kind, frames[i]) for i in order[: (len(frames) + 1) // 2]}
    return tuple(p for p in pairs if ((p.kind, p.frame) in discovery) == (half == "discovery"))


@dataclass(frozen=True)
class Batch:
    """Texts that run together: `rows` are their places in the list, `ids` and bool `mask` are `[batch, pos]`.

    Before position `start` the texts that belong together have the same tokens, and what is said there cancels.
    """

    rows: list[int]
    ids: Tensor
    mask: Tensor
    start: int

    def logits(self, model: Any) -> Tensor:
        """`[batch, pos, vocab]`, from `start` on where the model can leave the others out: they cost most of a pass."""
        fewer = self.start and "logits_to_keep" in inspect.signature(model.hf_model.forward).parameters
        options = {"logits_to_keep": self.ids.shape[1] - self.start} if fewer else {}
        logits: Tensor = model(self.ids, attention_mask=self.mask.long(), **options)
        return logits


def batches(model: Any, texts: Sequence[str], batch_tokens: int, together: int = 1) -> Iterator[Batch]:
    """Texts of like length, padded on the right; `together` successive texts are never parted."""
    ids = [model.to_tokens(text)[0] for text in texts]
    groups = [range(i, i + together) for i in range(0, len(ids), together)]
    starts = [max(alike([ids[i].tolist() for i in g]) - 1, 0) if together > 1 else 0 for g in groups]
    groups.sort(key=lambda group: max(len(ids[i]) for i in group))
    rows: list[int] = []
    for at, group in enumerate(groups):
        rows += group
        longest = max(len(ids[i]) for i in groups[min(at + 1, len(groups) - 1)])
        if at == len(groups) - 1 or longest * (len(rows) + together) > batch_tokens:
            padded = torch.nn.utils.rnn.pad_sequence([ids[i] for i in rows], batch_first=True)
            lengths = torch.tensor([[len(ids[i])] for i in rows], device=padded.device)
            mask = torch.arange(padded.shape[1], device=padded.device) < lengths
            yield Batch(rows, padded, mask, min(starts[i // together] for i in rows))
            rows = []


def alike(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with.

    >>> alike([[5, 6, 7], [5, 6, 8, 9]])
    2
    """
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """Of each token after the first of `logits`, given those before it, `[batch, pos - 1]`; 0 for padding."""
    said, mask = (t[:, 1 - logits.shape[1] + t.shape[1] :].to(logits.device) for t in (batch.ids, batch.mask))
    return logits[:, :-1].float().log_softmax(-1).gather(-1, said.unsqueeze(-1)).squeeze(-1) * mask


def margins_of(logits: Tensor, batch: Batch) -> Tensor:
    """log P(context + good) − log P(context + bad) `[pair]`, of a batch of good and bad in turn.

    The tokens both texts begin with cancel, so it does not matter where the context ends within a token.
    """
    scores = log_probabilities(logits, batch).sum(-1)
    return scores[0::2] - scores[1::2]


def texts_of(pairs: Sequence[Pair]) -> list[str]:
    return [p.context + text for p in pairs for text in (p.good, p.bad)]


@torch.no_grad()
def margins(model: Any, pairs: Sequence[Pair], batch_tokens: int = 2048) -> Floats:
    """By how many nats the model prefers the good text of each pair, `[pair]`."""
    found = np.empty(len(pairs))
    for batch in batches(model, texts_of(pairs), batch_tokens, together=2):
        found[np.array(batch.rows[::2]) // 2] = margins_of(batch.logits(model), batch).double().cpu().numpy()
    return found


@torch.no_grad()
def text_divergence(model: Any, texts: Sequence[str], interventions: Sequence[Any], batch_tokens: int = 2048) -> Floats:
    """Of each text `[text, (tokens, KL, log-probability before, after)]`, sums over its tokens but the first.

    KL(before ‖ after) of the next token, in nats.
    """
    found = np.zeros((len(texts), 4))
    for batch in batches(model, texts, batch_tokens):
        before = batch.logits(model)
        with model.intervene(*interventions):
            after = batch.logits(model)
        p, q = before[:, :-1].float().log_softmax(-1), after[:, :-1].float().log_softmax(-1)
        mask = batch.mask[:, 1:].to(p.device)
        kl = (p.exp() * (p - q)).sum(-1) * mask
        sums = (mask.float(), kl, log_probabilities(before, batch), log_probabilities(after, batch))
        found[batch.rows] = torch.stack([t.double().sum(-1) for t in sums], -1).cpu().numpy()
    return found


def bootstrap(values: Floats, groups: Sequence[object], seed: int, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of `values` `[pair]`, drawing whole groups (pairs of one frame) with replacement."""
    _, group = np.unique([str(g) for g in groups], return_inverse=True)
    sums, sizes = np.bincount(group, weights=values), np.bincount(group)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
