"""Token spans of all kinds of tokenizers, which are trained here on a few sentences."""

from __future__ import annotations

import json
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertJapaneseTokenizer, PreTrainedTokenizerFast

from moelens.errors import CheckError
from moelens.models.tokens import TokenSpans, byte_alphabet, token_spans

TEXTS = (
    "先生は明日こちらにいらっしゃいます。",
    "お荷物をお預かりいたしましょうか。",
    "母が作った弁当を食べた。",
    "a cup of tea, please",
)
STRANGE = "𩸽と👨‍👩‍👧、\n か\u3099"  # four bytes a character, joiners, white space, a combining mark
BOS, UNK = "<s>", "<unk>"
FALLBACK = [f"<0x{b:02X}>" for b in range(256)]


def wrapped(tok: Tokenizer) -> PreTrainedTokenizerFast:
    """A transformers tokenizer that begins every text with a special token."""
    tok.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, tok.token_to_id(BOS))])
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=BOS, unk_token=UNK)


@cache
def byte_level(prefix: bool = False, normalizer: str | None = None) -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if normalizer:
        tok.normalizer = getattr(normalizers, normalizer)()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [BOS, UNK]
    tok.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    return wrapped(tok)


@cache
def sentencepiece(kind: str, marker: str) -> PreTrainedTokenizerFast:
    """With byte fallback; `marker` says how the leading ▁ gets there."""
    tok = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    if marker == "normalizer":
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=marker, split=False)
    options: dict[str, Any] = {"special_tokens": [UNK, BOS], "show_progress": False}
    if kind == "bpe":
        tok.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=120, **options))
        made = json.loads(tok.to_str())["model"]
        vocab = {piece: i for i, piece in enumerate([*made["vocab"], *FALLBACK])}
        merges = [tuple(pair) for pair in made["merges"]]
        tok.model = models.BPE(vocab, merges, byte_fallback=True, unk_token=UNK)
    else:
        tok.train_from_iterator(TEXTS * 3, trainers.UnigramTrainer(vocab_size=120, unk_token=UNK, **options))
        pieces = [(piece, score) for piece, score in json.loads(tok.to_str())["model"]["vocab"]]
        tok.model = models.Unigram([*pieces, *((byte, -30.0) for byte in FALLBACK)], 0, True)
    return wrapped(tok)


def words(splitter: Any, model: Any) -> PreTrainedTokenizerFast:
    tok = Tokenizer(model)
    tok.pre_tokenizer = splitter
    return wrapped(tok)


def spans_of(tokenizer: PreTrainedTokenizerFast, text: str) -> TokenSpans:
    return token_spans(tokenizer, text, tokenizer(text)["input_ids"])


def rows(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[str, bool]]:
    """The text of every token, and whether the token is partial."""
    spans = spans_of(tokenizer, text)
    return [(text[a:b], bool(p)) for a, b, p in zip(spans.start, spans.end, spans.partial, strict=True)]


def assert_covered(text: str, spans: TokenSpans) -> None:
    """Check that tokens follow each other without a gap, and share a character only where both are partial."""
    reach = 0
    for i in np.flatnonzero(spans.end > spans.start):
        assert spans.start[i] in ((reach - 1, reach) if spans.partial[i] and reach else (reach,))
        reach = spans.end[i]
    assert reach == len(text)


TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level, prefix space": lambda: byte_level(prefix=True),
    "bpe, metaspace": lambda: sentencepiece("bpe", "always"),
    "bpe, metaspace, no prefix": lambda: sentencepiece("bpe", "never"),
    "bpe, ▁ by normalizer": lambda: sentencepiece("bpe", "normalizer"),
    "unigram, metaspace": lambda: sentencepiece("unigram", "first"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", [*TEXTS, STRANGE, " 様", "様", "", " ", "  tea"])
def test_spans_by_bytes_cover_the_whole_text(name: str, text: str) -> None:
    spans = spans_of(TOKENIZERS[name](), text)
    assert spans.method == "bytes"
    assert spans.start[0] == spans.end[0] == 0
    assert (spans.start.dtype, spans.end.dtype, spans.partial.dtype) == (np.int32, np.int32, np.bool_)
    assert_covered(text, spans)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.booleans())
def test_spans_of_byte_level_tokens_are_the_bytes(text: str, prefix: bool) -> None:
    """The reference decodes the bytes before each token, and those before its end."""
    tokenizer = byte_level(prefix)
    ids = tokenizer(text)["input_ids"]
    spans = token_spans(tokenizer, text, ids)
    if spans.method == "offsets":  # the text spells out a special token
        assert BOS in text or UNK in text
        return
    assert_covered(text, spans)
    alphabet, at = byte_alphabet(), 0
    joined = b"".join(bytes(alphabet[c] for c in token) for token in tokenizer.convert_ids_to_tokens(ids[1:]))
    synthetic = len(joined) - len(text.encode())
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(ids[1:]), 1):
        before, through = joined[synthetic : max(at, synthetic)], joined[synthetic : at + len(token)]
        at += len(token)
        assert (
            text[: spans.end[i]] == text[: len(through.decode(errors="replace").rstrip("\ufffd"))] or spans.partial[i]
        )
        assert spans.start[i] == len(before.decode(errors="ignore"))


@pytest.mark.parametrize(
    "tokenizer, text, expected",
    [
        (byte_level(), "𩸽a", [("", False), *[("𩸽", True)] * 4, ("a", False)]),
        (sentencepiece("bpe", "always"), "鯛", [("", False), ("", False), *[("鯛", True)] * 3]),
        (sentencepiece("bpe", "never"), "鯛", [("", False), *[("鯛", True)] * 3]),
    ],
    ids=["byte-level", "byte fallback after a synthetic ▁", "byte fallback"],
)
def test_parts_of_a_character_carry_the_whole_character(
    tokenizer: PreTrainedTokenizerFast, text: str, expected: list[tuple[str, bool]]
) -> None:
    assert rows(tokenizer, text) == expected


VOCAB = {BOS: 0, UNK: 1, "tea": 2, "##s": 3, "お": 4, "##茶": 5}


@pytest.mark.parametrize(
    "tokenizer, text, expected",
    [
        (
            words(pre_tokenizers.WhitespaceSplit(), models.WordLevel(VOCAB, unk_token=UNK)),
            " tea  お酒 tea",
            [("", False), ("tea", False), ("お酒", False), ("tea", False)],
        ),
        (byte_level(normalizer="NFKC"), "a㌢", [("", False), ("a", False), ("㌢", True)]),
    ],
    ids=["words", "nfkc"],
)
def test_offsets_where_the_text_is_rewritten(
    tokenizer: PreTrainedTokenizerFast, text: str, expected: list[tuple[str, bool]]
) -> None:
    assert spans_of(tokenizer, text).method == "offsets"
    assert [row for row, _ in groupby(rows(tokenizer, text))] == expected


@pytest.mark.parametrize(
    "text, method, expected",
    [
        ("teas お茶", "bytes", [("", False), ("tea", False), ("s", False), ("お", False), ("茶", False)]),
        ("tea 酒", "offsets", [("", False), ("tea", False), ("酒", False)]),
    ],
)
def test_wordpiece_is_exact_but_for_unknown_words(text: str, method: str, expected: list[tuple[str, bool]]) -> None:
    tokenizer = words(pre_tokenizers.BertPreTokenizer(), models.WordPiece(VOCAB, unk_token=UNK))
    assert spans_of(tokenizer, text).method == method
    assert rows(tokenizer, text) == expected


@pytest.fixture(scope="module")
def slow_wordpiece(tmp_path_factory: pytest.TempPathFactory) -> BertJapaneseTokenizer:
    """A slow tokenizer with few tokens: NFKC, MeCab's words and WordPiece. It gives no offsets."""
    vocabulary = tmp_path_factory.mktemp("bert") / "vocab.txt"
    specials = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("\n".join([*specials, "先生", "が", "##い", "行", "##き", "ます", "。", "か"]), "utf-8")
    return BertJapaneseTokenizer(
        str(vocabulary), word_tokenizer_type="mecab", mecab_kwargs={"mecab_dic": "unidic_lite"}
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "先生が行きます。",
            [("先生", False), ("が", False), ("行", False), ("き", False), ("ます", False), ("。", False)],
        ),
        (
            "先生が鬱と行き",
            [("先生", False), ("が", False), ("鬱と", True), ("鬱と", True), ("行", False), ("き", False)],
        ),
        ("ﾊﾝｶﾞが", [("ﾊﾝｶﾞ", False), ("が", False)]),
        ("鬱\n先生 か", [("鬱", False), ("先生", False), ("か", False)]),
        ("か\u200dが", [("か", False), ("", False), ("が", False)]),
        ("鬱", [("鬱", False)]),
        ("鬱[SEP]鬱先生[SEP]", [("鬱", False), ("[SEP]", False), ("鬱", False), ("先生", False), ("[SEP]", False)]),
        ("[CLS]鬱", [("[CLS]", False), ("鬱", False)]),
    ],
)
def test_unknown_words_of_a_slow_tokenizer_lie_between_the_known(
    slow_wordpiece: BertJapaneseTokenizer, text: str, expected: list[tuple[str, bool]]
) -> None:
    got = rows(slow_wordpiece, text)[1:-1]
    assert [(piece.strip(" \u200d"), partial) for piece, partial in got] == expected


@given(st.text("先生がい行きます。か鬱とﾊﾞＡ", max_size=30).map(lambda text: f"{text}。"))
@settings(max_examples=60, deadline=None)
def test_a_slow_tokenizer_accounts_for_every_character(slow_wordpiece: BertJapaneseTokenizer, text: str) -> None:
    spans = spans_of(slow_wordpiece, text)
    covered = np.zeros(len(text), bool)
    for start, end in zip(spans.start, spans.end, strict=True):
        covered[start:end] = True
    assert covered.all()
    assert np.all(np.diff(spans.start) >= 0)


@pytest.mark.parametrize(
    "tokenizer", [byte_level(), sentencepiece("bpe", "never")], ids=["byte-level", "sentencepiece"]
)
def test_special_tokens_that_the_text_spells_out_stand_for_themselves(tokenizer: PreTrainedTokenizerFast) -> None:
    spans = spans_of(tokenizer, f"{BOS}様{BOS}a")
    assert spans.method == "bytes"
    assert spans.start[0] == spans.end[0] == 0 or spans.end[0] == len(BOS)
    assert_covered(f"{BOS}様{BOS}a", spans)


def test_a_mark_the_normalizer_composed_belongs_to_the_token_before() -> None:
    tokenizer = byte_level(normalizer="NFC")
    text = "か\u3099a"  # becomes が, and the tokenizer's offsets leave the mark out
    spans = spans_of(tokenizer, text)
    assert spans.method == "offsets"
    assert max(spans.end[:-1]) == 2
    assert text[spans.start[-1] : spans.end[-1]] == "a"


def test_offsets_and_bytes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(make(), text) for make in TOKENIZERS.values() for text in (*TEXTS, "𩸽を食べる")]
    exact = [spans_of(*case) for case in cases]
    for exactly in ("_spans_by_bytes", "_spans_by_words"):
        monkeypatch.setattr(f"moelens.models.tokens.{exactly}", lambda text, pieces: None)
    for (tokenizer, text), known in zip(cases, exact, strict=True):
        spans = spans_of(tokenizer, text)
        assert spans.method == "offsets"
        np.testing.assert_array_equal(
            np.c_[spans.start, spans.end, spans.partial], np.c_[known.start, known.end, known.partial]
        )


def test_ids_without_special_tokens_are_taken_too() -> None:
    tokenizer = byte_level(normalizer="NFKC")
    ids = tokenizer("㌢", add_special_tokens=False)["input_ids"]
    assert token_spans(tokenizer, "㌢", ids).end.tolist() == [1] * len(ids)


def test_foreign_ids_are_refused() -> None:
    with pytest.raises(CheckError) as error:
        token_spans(byte_level(), "お茶", [5, 6])
    assert str(error.value) == (
        "expected the ids that the tokenizer gives for 'お茶', got 2 other ids; pass tokenizer(text)['input_ids']"
    )


def test_tokens_that_are_not_in_the_text_of_a_slow_tokenizer_are_refused(
    slow_wordpiece: BertJapaneseTokenizer,
) -> None:
    missing = (
        "expected the tokens of 'お茶', got tokens that are not found in it, and BertJapaneseTokenizer gives no off"
    )
    with pytest.raises(CheckError, match=missing):
        token_spans(slow_wordpiece, "お茶", slow_wordpiece("か")["input_ids"])
