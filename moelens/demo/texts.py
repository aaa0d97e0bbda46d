"""The texts that the bundled model is trained on, their tokenizer, and the rows of tokens of each training step."""

from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

Ints = NDArray[np.int64]
BOS, EOS = "<s>", "</s>"
_SCRIPT_RUNS = "[一-龥々]+|[ぁ-ゖ]+|[ァ-ヶー]+|[a-zA-Z]+|[0-9０-９]+|[^一-龥々ぁ-ゖァ-ヶーa-zA-Z0-9０-９]"
_ROLES = {"customer": "客", "operator": "係"}  # written before each turn
_FULL_WIDTH = str.maketrans({"?": "？", "!": "！"})  # the dialogues have both widths


def read_documents(folder: Path, split: str) -> list[str]:
    """Read the texts of JSON Lines files.

    Each line has a `text`, or the `turns` of a dialogue, each with `role` and `text`. A turn becomes a line of text
    that begins with the speaker, such as `客：…`.

    Args:
        folder: the folder of the files.
        split: the beginning of their names, such as "train"; they end in `.jsonl` or `.jsonl.gz`.

    Raises:
        SystemExit: the folder has no such file.
    """
    paths = sorted(p for p in folder.iterdir() if p.name.startswith(split)) if folder.is_dir() else []
    if not paths:
        raise SystemExit(f"expected {split}*.jsonl or {split}*.jsonl.gz in '{folder}', found none; give another folder")
    return [text for path in paths for text in _texts_of(path)]


def _texts_of(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            text = _dialogue(row["turns"]) if "turns" in row else row["text"].replace("\r\n", "\n")
            yield unicodedata.normalize("NFC", text)


def _dialogue(turns: Sequence[Mapping[str, str]]) -> str:
    texts = (" ".join(turn["text"].translate(_FULL_WIDTH).split()) for turn in turns)
    return "\n".join(f"{_ROLES[turn['role']]}：{text}" for turn, text in zip(turns, texts, strict=True))


def build_tokenizer(samples: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer within runs of one script, so that no token mixes kanji, kana and punctuation.

    Args:
        samples: texts to train on.
        vocab_size: number of token types.
    """
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SCRIPT_RUNS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(samples, trainer)
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=512
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Ints:
    """Tokenize texts into one stream of ids `[token]`, each text between <s> and </s>."""
    parts: list[list[int]] = []
    for start in tqdm(range(0, len(texts), 256), desc="tokenizing", leave=False):
        batch = tokenizer.backend_tokenizer.encode_batch(texts[start : start + 256])
        parts.extend([*e.ids, 1] for e in batch)
    return np.concatenate([np.array(p, dtype=np.int64) for p in parts])


def row_starts(stream: Ints, tokenizer: PreTrainedTokenizerFast, width: int) -> Ints:
    """Find positions at which rows can begin, so that the rows cover a stream.

    A row begins after <s>, a full stop, a closing bracket or a line end, namely at the last such position that leaves
    no gap after the previous row. If the previous row contains no such position, the row begins where that one ends.

    Args:
        stream: token ids `[token]`.
        tokenizer: the tokenizer of the stream.
        width: number of tokens of a row.

    Returns:
        The positions, `[row]`.
    """
    ends = np.zeros(len(tokenizer), dtype=bool)
    for token, i in tokenizer.get_vocab().items():
        text = tokenizer.backend_tokenizer.decoder.decode([token])
        ends[i] = token == BOS or text.endswith(("。", "」", "！", "？", "\n"))
    places = np.flatnonzero(ends[stream[:-1]]) + 1
    starts = [int(places[0])]
    while starts[-1] + 2 * width <= len(stream):
        last = int(places[np.searchsorted(places, starts[-1] + width, side="right") - 1])
        starts.append(last if last > starts[-1] else starts[-1] + width)
    return np.array(starts)


class TrainingRows:
    """The rows that each training step reads, a fixed share of them from each source.

    No row of a source is read a second time before all its other rows have been read. The rows of a step depend on the
    seed and its number only, so that a resumed run reads the same rows.

    Args:
        streams: token ids `[token]` of each source.
        starts: positions at which the rows of each source begin, `[row]`.
        shares: the share of each source among all rows; they sum to 1.
        total: number of rows in the whole run.
        width: number of tokens of a row, without the <s> before it.
        seed: seed of the order.
    """

    def __init__(
        self,
        streams: Sequence[Ints],
        starts: Sequence[Ints],
        shares: Sequence[float],
        total: int,
        width: int,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        numbers = [round(total * share) for share in shares[:-1]]
        numbers.append(total - sum(numbers))
        places = []
        for source, (number, own) in enumerate(zip(numbers, starts, strict=True)):
            rounds = [rng.permutation(len(own)) for _ in range(-(-number // len(own)))]
            at = own[np.concatenate(rounds)[:number]] if rounds else own[:0]
            places.append(np.stack([np.full(number, source), at], axis=1))
        self._places = rng.permutation(np.concatenate(places))
        self._streams, self._width = streams, width

    def batch(self, step: int, rows: int) -> Ints:
        """Return the token ids of a step, `[rows, 1 + width]`, each row with <s> first."""
        chosen = self._places[step * rows : (step + 1) * rows]
        return np.stack(
            [np.pad(self._streams[s][at : at + self._width], (1, 0)) for s, at in chosen]
        )  # the id of <s> is 0
