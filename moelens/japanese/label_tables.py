"""The tables of labels: from the texts of documents and the places of their tokens to Arrow tables, piece by piece."""

from __future__ import annotations

import multiprocessing
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moelens.errors import MoeLensError
from moelens.japanese.families import COLUMNS, Bools, CharacterLabels, character_labels, family_columns
from moelens.japanese.honorific_spans import HonorificSpan
from moelens.japanese.morphology import Analyser, Morpheme
from moelens.japanese.sentence_register import heaviest_register
from moelens.japanese.token_labels import Policy, completed, last_of, token_labels

_Ints = npt.NDArray[np.int32]
WORD_COLUMNS = ("pos1", "pos2", "pos3", "pos4", "ctype", "cform", "lemma", "lemma_reading")
HONORIFIC_COLUMNS = ("rule", "plain", "readings")
_GROUP_CHARACTERS = 100_000  # of the documents that are labelled together
_PIECE_CHARACTERS = 50_000  # of a longer document that are labelled together, if sentences end between them
_TABLE_TOKENS = 1 << 15  # a table of Arrow costs time for each of its columns, so it has the tokens of many documents
_POSITION_COLUMN = {  # by whether the token begins its morpheme, and whether it ends it
    (True, False): COLUMNS.index("position.begin"),
    (False, False): COLUMNS.index("position.inside"),
    (False, True): COLUMNS.index("position.end"),
    (True, True): COLUMNS.index("position.whole"),
}
_HONORIFICS = [*family_columns("honorifics"), COLUMNS.index("honorific_form.ambiguous")]
_TOKENS_OF_CHARACTER = 4  # a character has up to four bytes, and a token one or more
# Where a text can be divided: what follows begins a new sentence for the analysers, the rules and `normalize` alike.
_LETTER = "[ぁ-ゖァ-ヺ一-鿿]"
_CUT = re.compile(rf"[。！？]\n*(?={_LETTER})|(?<=[A-Za-z0-9.,!?;:)）」』、])\n+(?={_LETTER}|[A-Za-z0-9])")
_Document = tuple[str, _Ints, _Ints]  # its text, and the starts and the ends of its tokens, [token]
Job = tuple[list[_Document], Policy, Analyser]
"""Documents to be labelled together, and how."""
# Labels of some tokens, bool `[token, column]`, and the last morpheme and honorific of each token.
_TokenLabels = tuple[Bools, list[Morpheme | None], list[HonorificSpan | None]]


@dataclass(frozen=True)
class Labelled:
    """The labels of successive tokens.

    Attributes:
        table: The labels, with the columns of all files.
        normalized: How many characters were normalised, by kind, since the table before.
        register: The register of the document of these tokens and of all tables before it for which it was not known
            yet; None if it is not known yet; "" if the table holds it.
    """

    table: pa.Table
    normalized: Counter[str]
    register: str | None = ""


class TokensAndTexts(Protocol):
    """The part of `moelens.Recording` that is labelled."""

    def columns(self, names: Sequence[str]) -> Iterator[tuple[slice, list[_Ints]]]: ...
    def texts(self) -> Iterator[str]: ...


def label_jobs(recording: TokensAndTexts, policy: Policy, analyser: Analyser) -> Iterator[Job]:
    """Yield the documents of a recording in groups to be labelled together."""
    return ((group, policy, analyser) for group in _groups(_documents(recording)))


def _documents(recording: TokensAndTexts) -> Iterator[_Document]:
    """Yield the documents that have tokens."""

    def stretches() -> Iterator[tuple[int, _Ints, _Ints]]:
        """Yield successive tokens of one document: its number, their starts and their ends."""
        for _, (doc, start, end) in recording.columns(["doc", "char_start", "char_end"]):
            edges = np.flatnonzero(np.diff(doc)) + 1
            yield from zip(doc[np.append(0, edges)].tolist(), np.split(start, edges), np.split(end, edges), strict=True)

    texts = enumerate(recording.texts())
    for doc, parts in groupby(stretches(), key=itemgetter(0)):  # shards may divide a document
        _, starts, ends = zip(*parts, strict=True)
        yield next(text for number, text in texts if number == doc), np.concatenate(starts), np.concatenate(ends)


def _groups(documents: Iterator[_Document]) -> Iterator[list[_Document]]:
    """Yield documents to be labelled together."""
    group: list[_Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document[0])
        if size >= _GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def label_groups(jobs: Iterator[Job], processes: int) -> Iterator[Labelled]:
    """Yield the tables of all jobs, in order. A few jobs per process are in memory at a time.

    A long document is labelled in this process, one piece after the other.
    """
    first = list(islice(jobs, processes))
    jobs, processes = chain(first, jobs), min(processes, len(first))
    if processes < 2:
        yield from chain.from_iterable(map(_label_documents, jobs))
        return
    try:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            for long, some in groupby(jobs, _has_long_document):
                if long:
                    yield from chain.from_iterable(map(_label_documents, some))
                while batch := list(islice(some, 2 * processes)):
                    yield from chain.from_iterable(pool.map(_label_job, batch))
    except BrokenProcessPool as error:
        raise MoeLensError(
            f"expected {processes} processes to label the documents, but one ended early (often for lack of memory);"
            " use processes=1 (--processes 1), or divide the longest documents"
        ) from error


def _has_long_document(job: Job) -> bool:
    return any(map(_is_long, job[0]))


def _is_long(document: _Document) -> bool:
    return len(document[0]) > 2 * _PIECE_CHARACTERS


def _label_job(job: Job) -> list[Labelled]:
    return list(_label_documents(job))


def _label_documents(job: Job) -> Iterator[Labelled]:
    """Yield tables with the labels of successive tokens, of about `_TABLE_TOKENS` rows each."""
    documents, policy, analyser = job
    waiting: list[_TokenLabels] = []
    rows = 0
    normalized: Counter[str] = Counter()
    for document in documents:
        long = _is_long(document)
        if waiting and (long or rows >= _TABLE_TOKENS):
            yield Labelled(_as_table(waiting), normalized)
            waiting, rows, normalized = [], 0, Counter()
        if long:
            yield from _label_long_document(document, policy, analyser)
            continue
        text, start, end = document
        labels = character_labels(text, analyser)
        normalized.update(labels.normalized)
        for part in _label_parts(labels, start, end, policy):
            waiting.append(part)
            rows += len(part[0])
    if waiting:
        yield Labelled(_as_table(waiting), normalized)


def _label_long_document(document: _Document, policy: Policy, analyser: Analyser) -> Iterator[Labelled]:
    """Yield tables with the labels of a document that is analysed in pieces."""
    last: pa.Table | None = None
    weights, normalized = Counter[tuple[bool, str]](), Counter[str]()
    for labels, start, end in _pieces(document, analyser):
        weights.update(labels.registers)
        for part in _label_parts(labels, start, end, policy):
            if last is not None:
                yield Labelled(last, normalized, None)
                normalized = Counter()
            last = _as_table([part])
        normalized.update(labels.normalized)
    if last is not None:
        yield Labelled(last, normalized, heaviest_register(weights) if weights else "")


def _pieces(document: _Document, analyser: Analyser) -> Iterator[tuple[CharacterLabels, _Ints, _Ints]]:
    """Yield the labels of the characters of each piece of a document, and the places of its tokens in it."""
    text, start, end = document
    covering = np.flatnonzero(end > start)
    begin = token = 0
    for cut in _cuts(text, start[covering], end[covering]):
        labels = character_labels(text[begin:cut], analyser)
        if cut < len(text) and not _ends_a_sentence(labels, text[cut - 1]):
            continue  # モーニング娘。: the piece goes on to the next cut
        stop = len(start)
        if cut < len(text):
            following = covering[np.searchsorted(start[covering], cut) :]
            stop = int(following[0]) if len(following) else len(start)
        starts, ends = (np.clip(at[token:stop] - begin, 0, cut - begin) for at in (start, end))
        yield labels, starts, ends
        begin, token = cut, stop


def _cuts(text: str, start: _Ints, end: _Ints) -> Iterator[int]:
    """Yield where a text is divided, and its length; no token is divided.

    Args:
        text: The text.
        start: The starts of the tokens with characters, `[token]`.
        end: Their ends.
    """
    furthest = np.maximum.accumulate(end)
    at = _PIECE_CHARACTERS
    while found := _CUT.search(text, at):
        at = found.end()
        before = int(np.searchsorted(start, at))
        if not before or furthest[before - 1] <= at:
            yield at
            at += _PIECE_CHARACTERS
    yield len(text)


def _ends_a_sentence(labels: CharacterLabels, last: str) -> bool:
    return last == "\n" or (bool(labels.morphemes) and labels.morphemes[-1].pos[1] == "句点")


def _label_parts(labels: CharacterLabels, start: _Ints, end: _Ints, policy: Policy) -> Iterator[_TokenLabels]:
    """Yield the labels of `_TABLE_TOKENS` tokens at a time."""
    for first in range(0, len(start), _TABLE_TOKENS):
        tokens = slice(first, first + _TABLE_TOKENS + _TOKENS_OF_CHARACTER)
        has, words, spans = _label_tokens(labels, start[tokens], end[tokens], policy)
        yield has[:_TABLE_TOKENS], words[:_TABLE_TOKENS], spans[:_TABLE_TOKENS]


def _label_tokens(labels: CharacterLabels, start: _Ints, end: _Ints, policy: Policy) -> _TokenLabels:
    covering = end > start
    low, high = (int(start[covering].min()), int(end[covering].max())) if covering.any() else (0, 0)
    starts, ends = np.clip(start, low, high) - low, np.clip(end, low, high) - low
    covered = replace(
        labels, **{name: getattr(labels, name)[low:high] for name in ("has", "ends", "morpheme", "honorific")}
    )
    has = token_labels(covered, starts, ends, policy)
    last = last_of(covered.morpheme >= 0, starts, ends)
    words = [labels.morphemes[covered.morpheme[i]] if i >= 0 else None for i in last.tolist()]
    if policy == "ends":
        last = last_of(np.asarray(covered.ends[:, _HONORIFICS].any(axis=1)), starts, completed(starts, ends))
    spans = [covered.honorific[i] if i >= 0 else None for i in last.tolist()]
    for row, m in enumerate(words):
        if m is not None:
            has[row, _POSITION_COLUMN[bool(start[row] <= m.start), bool(end[row] >= m.end)]] = True
    return has, words, spans


def _as_table(parts: Sequence[_TokenLabels]) -> pa.Table:
    """Make one table of the labels of successive tokens."""
    has = np.asfortranarray(np.concatenate([part for part, _, _ in parts]))
    words = [m for _, part, _ in parts for m in part]
    spans = [span for _, _, part in parts for span in part]
    details = {
        **{f"pos{i + 1}": [m.pos[i] if m else "" for m in words] for i in range(4)},
        **{name: [getattr(m, name) if m else "" for m in words] for name in WORD_COLUMNS[4:]},
        "rule": [span.rule if span else "" for span in spans],
        "plain": ["・".join(span.plain) if span else "" for span in spans],
        "readings": ["・".join(span.readings) if span else "" for span in spans],
    }
    return pa.table(
        {column: has[:, i] for i, column in enumerate(COLUMNS)}
        | {name: pa.array(values, pa.string()) for name, values in details.items()}
    )


def label_schema() -> pa.Schema:
    """Return the columns of all files of labels."""
    return _as_table([(np.zeros((0, len(COLUMNS)), np.bool_), [], [])]).schema


def with_register(table: pa.Table, register: str) -> pa.Table:
    """Return labels of tokens of a document with its register; "" for those that have it.

    Args:
        table: The labels, among them `document_register` of the piece of the document that the tokens are in.
        register: The register of the whole document.
    """
    if not register:
        return table
    columns = [COLUMNS[i] for i in family_columns("document_register")]
    carried = np.any([table[name].to_numpy() for name in columns], axis=0)
    for name in columns:
        values = carried if name == f"document_register.{register}" else np.zeros(len(table), np.bool_)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(values))
    return table
