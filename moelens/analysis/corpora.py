"""Two corpora under one model: which experts take more of the tokens of one than of the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moelens.analysis.arrays import Bools
from moelens.analysis.counting import RoutePart
from moelens.analysis.randomize import Excess, benjamini_hochberg, document_test, effective_number
from moelens.analysis.samples import (
    REPEATS,
    Given,
    LabelFamilies,
    Sample,
    TokenBlock,
    control_names,
    label_names,
    labels_for,
    provenance_of,
    sample_of,
    token_blocks,
)
from moelens.analysis.specialize import check_testable
from moelens.errors import MoeLensError
from moelens.recording import Recording

ALL_TOKENS = "all tokens"
_PATTERN = "labels of the family"  # the control by which tokens are compared with those of the same labels
_MAX_SHARE = 0.1  # of the tokens that a document may have, as in `analyze`


def is_one_model(a: Recording, b: Recording) -> bool:
    """Return whether two recordings are of one model with one tokenizer, as far as their manifests tell."""

    def about(recording: Recording) -> tuple[Any, ...]:
        model, tokenizer = recording.manifest["model"], recording.manifest.get("tokenizer") or {}
        return model["name"], model.get("revision"), tokenizer.get("sha256")

    return about(a) == about(b)


def corpus_comparison(
    a: Recording,
    b: Recording,
    family: str | None,
    *,
    given: Given = "token",
    permutations: int = 1000,
    seed: int = 0,
    min_tokens: int = 20,
) -> dict[str, Any]:
    """Test which experts take more or fewer tokens of corpus `b` than of corpus `a`, by label.

    The null hypothesis is that a document could be of either corpus: within what is given and within the labels of the
    family, whether a token is of `a` or `b` is unrelated to its routes. The test is that of `analyze` over the
    documents of both, with "is of b" as the label, so that the tokens of a document may depend on each other. As there,
    copies and near copies of a text in a corpus are one document, and of a document with more than a tenth of the
    tokens only the first ones are counted (`max_share`).

    Args:
        a, b: recordings of one model over two corpora.
        family: the family of labels, by which the tokens are divided; None compares all tokens together.
        given: what to compare within: "token", "position", families of labels, several of them, or None.
        permutations: number of permutations of documents.
        seed: seed of the permutations.
        min_tokens: labels with fewer tokens in either corpus, and cells with fewer tokens in both together, are not
            tested.

    Returns:
        The fields of a `Comparison`.

    Raises:
        UnknownNameError: there is no such family or control.
        RecordingError: the tokens of a recording are not aligned with its text.
        MoeLensError: there are too few documents or permutations, or the corpora were labelled in different ways.
    """
    both = (a, b)
    _check_documents(both)
    known = [labels_for(recording, None, family) for recording in both]
    _check_labels(known)
    families = set[str]() if known[0] is None or known[1] is None else {*known[0].families} & {*known[1].families}
    given = control_names(given, ("token", "position", *sorted(families - {family})))
    own = [() if known[i] is None else label_names(both[i], known[i], family) for i in (0, 1)]  # type: ignore[arg-type]
    labels = tuple(dict.fromkeys([*own[0], *own[1]]))
    names = (ALL_TOKENS, *labels)
    blocks = _pooled_blocks(both, known, family or "", given, [[labels.index(n) for n in names_] for names_ in own])
    texts = np.concatenate([a.text_ids(), a.n_documents + b.text_ids()])
    pair_names = [*(f"{name} in b" for name in names), *names]
    sample = Sample.of(blocks, pair_names, [(*given, _PATTERN)], texts=texts, max_share=_MAX_SHARE)
    check_testable(sample.sizes)
    tables = sample.count(_pooled_parts(both, sample.own_rows()), a.n_experts, a.layers)
    excess = Excess.of(tables, sample.kinds, sample.copies)
    n = len(names)
    cells, totals = tables.cells.sum(0, dtype=np.int64), (tables.kind_tokens @ sample.kinds.labels).sum(0)
    count_b, count = cells[..., :n], cells[..., n:]
    tokens_b, tokens = totals[:n], totals[n:]
    excess = replace(
        excess,
        by_group=excess.by_group[..., :n],
        total=excess.total[..., :n],
        within=excess.within[..., :n],
        variance=(excess.variance - excess.within)[..., :n],  # all tokens of a document are of one corpus
    )
    enough = np.minimum(tokens_b, tokens - tokens_b) >= min_tokens
    tested = (count >= min_tokens) & (count < tokens) & enough & (excess.variance > 0)
    effective = effective_number(sample.sizes)
    tests = document_test(tables.cells[..., :n], excess, tested, permutations, seed, documents=effective)
    abouts = [provenance_of(recording, labels_) for recording, labels_ in zip(both, known, strict=True)]
    corpora = [str(recording.manifest.get("corpus", "")) for recording in both]
    return {
        "count_a": count - count_b,
        "count_b": count_b,
        "label_tokens": tokens - tokens_b,
        "label_tokens_b": tokens_b,
        "expected": count_b - excess.total,
        "overlap": np.full((len(a.layers), n), np.nan),
        "p": tests.p,
        "p_family": tests.p_family,
        "q": benjamini_hochberg(tests.p),
        "low": tests.low,
        "high": tests.high,
        "names": names,
        "layers": a.layers,
        "top_k": a.top_k,
        "provenance": {
            "a": corpora[0] if corpora[0] != corpora[1] else abouts[0]["recording"],
            "b": corpora[1] if corpora[0] != corpora[1] else abouts[1]["recording"],
            "model": abouts[0]["model"],
            "recordings": [about["recording"] for about in abouts],
            **{key: abouts[0][key] for key in ("labels", "moelens")},
            **sample_of(*both),
            **{key: sum(about[key] or 0 for about in abouts) for key in REPEATS[:2]},
            REPEATS[2]: max(about[REPEATS[2]] or 0.0 for about in abouts),  # that of the corpus with more of them
            "given": list(given),
            "documents": [recording.n_documents for recording in both],
            "effective_documents": effective,
            "max_share": sample.max_share,
            "shortened_documents": sample.shortened,
            "tokens_cut": sample.cut,
            "permutations": permutations,
            "seed": seed,
            "min_tokens": min_tokens,
        },
    }


def _check_documents(recordings: Sequence[Recording]) -> None:
    for recording in recordings:
        if recording.n_documents < 2:
            raise MoeLensError(
                "expected two corpora of 2 or more documents each, since documents are compared, got one of "
                f"{recording.n_documents} in '{recording.folder.location}'; record it as several documents "
                "(split_documents, --split-documents)"
            )


def _check_labels(labels: Sequence[LabelFamilies | None]) -> None:
    a, b = (getattr(of_corpus, "metadata", {}) for of_corpus in labels)
    for what in ("analyser", "dictionary", "rules", "policy"):
        if a.get(what) != b.get(what):
            raise MoeLensError(
                f"expected two corpora labelled alike, got labels by {what} {a.get(what)!r} and {b.get(what)!r}; "
                "label one of them again with moelens.label(recording) (moelens label)"
            )


def _pooled_blocks(
    recordings: Sequence[Recording],
    labels: Sequence[LabelFamilies | None],
    family: str,
    given: Sequence[str],
    columns: Sequence[Sequence[int]],
) -> Iterator[TokenBlock]:
    """Yield the tokens of two recordings; `columns` are the places of the labels of each among those of both."""
    width, first = 1 + max((at + 1 for places in columns for at in places), default=0), 0
    for in_b, (recording, known, places) in enumerate(zip(recordings, labels, columns, strict=True)):
        for block in token_blocks(recording, known, family, given):
            matrix: Bools = np.zeros((len(block.docs), width), bool)
            matrix[:, 0] = True
            matrix[:, [1 + at for at in places]] = block.labels
            pooled = np.hstack([matrix & bool(in_b), matrix])
            controls = {**block.controls, _PATTERN: np.packbits(matrix, axis=1)}
            yield TokenBlock(block.docs.astype(np.int64) + first, block.keep, pooled, controls)
        first += recording.n_documents


def _pooled_parts(recordings: Sequence[Recording], rows: slice) -> Iterator[RoutePart]:
    """Yield the routes of these rows of two recordings, of which the second follows the first."""
    first = 0
    for recording in recordings:
        start, stop = max(rows.start - first, 0), min(rows.stop - first, recording.n_tokens)
        if start < stop:
            for part, routes in recording.parts(start, stop):
                yield slice(part.start + first, part.stop + first), routes
        first += recording.n_tokens
