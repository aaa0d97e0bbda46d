"""Long texts as several documents: their paragraphs, or parts of about as many tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from moelens.errors import MoeLensError
from moelens.japanese.normalization import SENTENCE_STOP
from moelens.recording.corpus import PARAGRAPH, Corpus, Document

_EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_SENTENCE = re.compile(rf".+?(?:{SENTENCE_STOP}\n*|\n+|$)", re.DOTALL)
SOURCE, PART = "source_document", "part"
"""Columns of the documents: the number of the text that a document is from, and that of the part."""


def split_corpus(corpus: Corpus, tokenizer: Any) -> Corpus:
    r"""Return a corpus whose texts are divided as its `split` says; a corpus without is returned unchanged.

    The text of a part begins and ends without line ends; parts of white space alone are left out. Each part has the
    metadata of its text, and the columns `source_document` and `part`.

    Args:
        corpus: The corpus.
        tokenizer: The tokenizer of the model, which counts tokens.

    Raises:
        MoeLensError: On iteration, if a document is a conversation.

    Example:
        >>> corpus = Corpus.of(["雨です。\n\n晴れです。"], split_documents="paragraph")
        >>> [document.text for document in split_corpus(corpus, None)]
        ['雨です。', '晴れです。']
    """
    if corpus.split is None:
        return corpus
    tokens, parts = corpus.split, _paragraphs
    divide: Callable[[str], Iterable[str]] = (
        parts if tokens == PARAGRAPH else lambda text: _parts_of_tokens(text, tokenizer, int(tokens))
    )

    def read() -> Iterator[Document]:
        for number, document in enumerate(corpus):
            if document.messages is not None:
                raise MoeLensError(
                    f"{document.at}: expected texts to split, got a conversation; leave split_documents "
                    "(--split-documents) out"
                )
            kept = (text.strip("\n") for text in divide(document.text))
            for part, text in enumerate(text for text in kept if text.strip()):
                metadata = {**document.metadata, SOURCE: number, PART: part}
                yield replace(document, text=text, metadata=metadata, at=f"{document.at} part {part}")

    return replace(corpus, read=read, split=None)


def _paragraphs(text: str) -> list[str]:
    return _EMPTY_LINES.split(text)


def _parts_of_tokens(text: str, tokenizer: Any, tokens: int) -> Iterator[str]:
    """Yield parts of whole sentences with at most so many tokens; a longer sentence is a part alone.

    Tokens are counted sentence by sentence, so that a part may have one or two more or fewer.
    """
    sentences = _SENTENCE.findall(text)
    if not sentences:
        return
    encoded = tokenizer(sentences, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    part, size = "", 0
    for sentence, ids in zip(sentences, encoded, strict=True):
        if part and size + len(ids) > tokens:
            yield part
            part, size = "", 0
        part, size = part + sentence, size + len(ids)
    yield part
