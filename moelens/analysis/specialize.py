"""`analyze`: which experts prefer which labels, counted once and tested over documents, with or without controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.arrays import Bools, Ints, Routes, check_routes, divide
from moelens.analysis.counting import RouteTables, in_parts
from moelens.analysis.counts import Counts
from moelens.analysis.randomize import Excess, benjamini_hochberg, document_test, effective_number
from moelens.analysis.result import Specialization
from moelens.analysis.samples import (
    Given,
    LabelFamilies,
    Sample,
    TokenBlock,
    control_names,
    controls_of,
    label_names,
    labels_for,
    open_recording,
    provenance_of,
    token_blocks,
)
from moelens.errors import MoeLensError
from moelens.recording import Recording

_LEAST_PERMUTATIONS = 19
_LEAST_EFFECTIVE = 1.5  # two documents of which the larger one has four fifths of the tokens have 1.47
_TOKEN = ("token",)


def analyze(
    recording: Recording | str | Path,
    family: str = "honorifics",
    *,
    labels: LabelFamilies | None = None,
    given: Given = "token",
    permutations: int = 1000,
    seed: int = 0,
    min_tokens: int = 20,
    max_share: float = 0.1,
    progress: bool | None = None,
) -> Specialization:
    """Test which experts of each layer specialise in which labels of a family.

    Tokens without text (the tokenizer's special tokens) are left out. Copies of a text count as one document. If
    torch.distributed is initialised, the processes share the counting and all of them get the result. For the test and
    its limits, see `specialization_from_arrays`.

    Args:
        recording: the recording, or its folder.
        family: family of labels, such as "honorifics" or "pos"; `Labels.families` lists them.
        labels: labels of the recording; None uses those in its folder, which are created if there are none.
        given: what to compare labels within: "token" (the same token id; without it, an expert that is chosen for one
            frequent word seems to prefer every label of the word), "position" (position in the document, in
            bins that double in size), any other family of labels such as "script", a column of the corpus such as
            "speaker" ("corpus.NAME" if a family has the same name), several of them, or None for no control.
        permutations: number of permutations of documents in the test, 19 or more.
        seed: seed of the permutations.
        min_tokens: labels and experts with fewer tokens are counted but not tested.
        max_share: the largest share of the counted tokens that a document may have. Of a longer document, only the
            first tokens are counted, since a document that outweighs the others leaves nothing to compare it with.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        Effect sizes, tests and counts, `[layer, expert, label]`.

    Raises:
        UnknownNameError: there is no such family or control.
        RecordingError: there is no recording, or the labels belong to another one.
        MoeLensError: no label can be tested.

    Example:
        >>> result = moelens.analyze(demo_recording, "pos", given="position", permutations=99)
        >>> result.layers, result.p.shape == (4, 32, len(result.names))
        ((1, 2, 3, 4), True)
        >>> {finding.label for finding in result.top(5, "名詞")}
        {'名詞'}
    """
    require_settings(permutations, min_tokens, max_share)
    recording = open_recording(recording)
    known, names, given = find_names(recording, family, labels, given)
    controls = tuple({**dict.fromkeys(_TOKEN), **dict.fromkeys(given)})
    blocks, texts = token_blocks(recording, known, family, controls), recording.text_ids()
    sample = Sample.of(blocks, names, _stratifications(given), texts=texts, max_share=max_share)
    check_testable(sample.sizes)
    rows = sample.own_rows()
    tables = sample.count(recording.parts(rows.start, rows.stop), recording.n_experts, recording.layers)
    special = int((sample.kind < 0).sum()) - sample.cut
    about = provenance_of(recording, known) | {"special_tokens_left_out": special}
    settings = _TestSettings(
        family=family, given=given, permutations=permutations, seed=seed, min_tokens=min_tokens, progress=progress
    )
    return _specialization(sample.counts(tables, recording.layers, recording.top_k), sample, tables, about, settings)


def specialization_from_arrays(
    indices: Routes,
    label_matrix: Bools,
    names: Sequence[str],
    docs: NDArray[np.integer],
    token_ids: NDArray[np.integer],
    n_experts: int,
    layers: Sequence[int],
    *,
    given: Given = None,
    strata: Mapping[str, ArrayLike] | None = None,
    family: str = "labels",
    permutations: int = 1000,
    seed: int = 0,
    min_tokens: int = 20,
    max_share: float = 0.1,
    progress: bool | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Specialization:
    """Test which experts specialise in which labels, from arrays.

    Null hypothesis: within what is given, the labels of a document are unrelated to its routes. The expected count is
    the mean over all permutations of labels within strata. Its variation is estimated over documents, which keep all
    their tokens (see `document_test`), so tokens of a document may depend on each other. More than 200 documents are
    joined into 200 groups of neighbours. The test is two-sided, so it also finds experts that avoid a label. Labels in
    fewer than `min_tokens` tokens or 2 documents, and experts with fewer than `min_tokens` tokens, are counted but not
    tested. The test does not rule out that an expert responds to something else that occurs with the label.

    Args:
        indices: expert ids `[token, layer, slot]`.
        label_matrix: bool `[token, label]`.
        names: names of the labels.
        docs: document of each token `[token]`.
        token_ids: token ids `[token]`.
        n_experts: number of experts in each layer.
        layers: numbers of the layers in the model.
        given: what to compare labels within: None, "token", or names of `strata`.
        strata: further controls by name, integer codes `[token]`, such as {"script": …}.
        family: name of the family of labels, for tables and plots.
        permutations: number of permutations of documents in the test, 19 or more.
        seed: seed of the permutations.
        min_tokens: labels and experts with fewer tokens are counted but not tested.
        max_share: the largest share of the counted tokens that a document may have. Of a longer document, only the
            first tokens are counted, since a document that outweighs the others leaves nothing to compare it with.
        progress: show a progress bar; None shows it in a terminal or notebook.
        provenance: where the arrays are from, as JSON values.

    Returns:
        Effect sizes, tests and counts, `[layer, expert, label]`.

    Raises:
        MoeLensError: there is a single document, no label that can be tested, or fewer than 19 permutations.
        UnknownNameError: a control does not exist.
        CheckError: the arrays do not agree with each other.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> docs = np.repeat(np.arange(30), 100)
        >>> polite = rng.random(3000) < 0.2
        >>> experts = np.where(polite & (rng.random(3000) < 0.5), 0, rng.integers(0, 8, 3000))[:, None, None]
        >>> ids = rng.integers(0, 50, 3000)
        >>> about = {"n_experts": 8, "layers": [1], "permutations": 99, "progress": False}
        >>> result = specialization_from_arrays(experts, polite[:, None], ["polite"], docs, ids, **about)
        >>> [(f.layer, f.expert, round(f.lift, 1)) for f in result.top(1)]
        [(1, 0, 2.6)]
    """
    require_settings(permutations, min_tokens, max_share)
    labels = np.asarray(label_matrix, bool)
    check_routes(indices, n_experts, layers, labels, names)
    codes = dict(strata or {}) | {"token": token_ids}
    given = control_names(given, tuple(codes))
    order = np.argsort(docs, kind="stable")
    controls = {name: np.asarray(code)[order][:, None] for name, code in codes.items()}
    block = TokenBlock(np.asarray(docs)[order], np.ones(len(labels), bool), labels[order], controls)
    sample = Sample.of([block], names, _stratifications(given), max_share=max_share)
    check_testable(sample.sizes)
    tables = sample.count(in_parts(indices, order), n_experts, layers)
    settings = _TestSettings(
        family=family, given=given, permutations=permutations, seed=seed, min_tokens=min_tokens, progress=progress
    )
    return _specialization(sample.counts(tables, layers, indices.shape[2]), sample, tables, provenance or {}, settings)


def _stratifications(given: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the stratification by what is given, and that by token if it differs, for `lift_given_token`."""
    return [given] if given == _TOKEN else [given, _TOKEN]


@dataclass(frozen=True, kw_only=True)
class _TestSettings:
    """How to test, see `specialization_from_arrays`."""

    family: str
    given: tuple[str, ...]
    permutations: int
    seed: int
    min_tokens: int
    progress: bool | None


def _specialization(
    counts: Counts, sample: Sample, tables: RouteTables, provenance: Mapping[str, Any], settings: _TestSettings
) -> Specialization:
    """Test the counted tables; the tokens are not needed any more."""
    given = settings.given
    excess = Excess.of(tables, sample.kinds, sample.copies)
    testable = _testable_labels(counts, excess, settings)
    used = (counts.expert_tokens >= settings.min_tokens) & (counts.expert_tokens < counts.n_tokens)
    tested = used[:, :, None] & testable & (excess.variance > 0)
    effective = effective_number(sample.sizes)
    tests = document_test(
        counts.cells,
        excess,
        tested,
        settings.permutations,
        settings.seed,
        documents=effective,
        progress=settings.progress,
    )
    beyond, beyond_token = tables.total_excess[0], tables.total_excess[-1]
    expected_given_token = counts.count - beyond_token
    return Specialization(
        counts=counts.regrouped(1),
        p=tests.p,
        p_family=tests.p_family,
        q=benjamini_hochberg(tests.p),
        lift_given_token=divide(counts.count, np.where(expected_given_token > 1e-6, expected_given_token, 0)),
        expected=counts.count - beyond,
        null_sd=tests.null_sd,
        low=tests.low,
        high=tests.high,
        family=settings.family,
        given=given,
        provenance={
            **provenance,
            "documents": sample.documents,
            "effective_documents": effective,
            "document_groups": len(counts.tokens),
            "max_share": sample.max_share,
            "shortened_documents": sample.shortened,
            "tokens_cut": sample.cut,
            "given": " × ".join(given) or "nothing",
            "permutations": settings.permutations,
            "seed": settings.seed,
            "min_tokens": settings.min_tokens,
            "tested_cells": int(tested.sum()),
            "statistic": "excess over its mean within strata / its spread over documents, two-sided",
        },
    )


def find_names(
    recording: Recording, family: str, labels: LabelFamilies | None, given: Given
) -> tuple[LabelFamilies, tuple[str, ...], tuple[str, ...]]:
    """Return the labels of a recording, the names of those of a family, and the names of the controls.

    Raises:
        UnknownNameError: there is no such family or control.
        RecordingError: the labels belong to another recording.
    """
    known = labels_for(recording, labels, family)
    assert known is not None
    names = label_names(recording, known, family)
    return known, names, control_names(given, controls_of(recording, known, family))


def check_testable(sizes: Ints) -> None:
    """Check that a test over documents with so many tokens is possible, `[document]`.

    Raises:
        MoeLensError: there are fewer than 2 documents, or one document outweighs all others.
    """
    if len(sizes) < 2:
        raise MoeLensError(
            "expected 2 or more documents of different texts, since labels are compared between documents, got "
            f"{len(sizes)}; record the text as several documents"
        )
    if (effective := effective_number(sizes)) < _LEAST_EFFECTIVE:
        raise MoeLensError(
            f"expected 2 or more documents of similar size, got {len(sizes)}, of which one has "
            f"{sizes.max() / sizes.sum():.0%} of the tokens (effective number {effective:.2f}); "
            "record more documents, or shorten this one"
        )


def require_settings(permutations: int, min_tokens: int = 1, max_share: float = 1.0) -> None:
    """Raise `MoeLensError` unless these settings of a test have a meaning."""
    require_permutations(permutations)
    if min_tokens < 1:
        raise MoeLensError(f"expected min_tokens (--min-tokens) to be at least 1, got {min_tokens}; give such a number")
    if not 0 < max_share <= 1:
        raise MoeLensError(
            f"expected max_share (--max-share) above 0 and at most 1, got {max_share}; give such a share"
        )


def require_permutations(permutations: int) -> None:
    """Raise `MoeLensError` unless as many permutations can be significant."""
    if permutations < _LEAST_PERMUTATIONS:
        raise MoeLensError(
            f"expected {_LEAST_PERMUTATIONS} or more permutations, since fewer cannot reach p = .05, "
            f"got {permutations}; give more"
        )


def _testable_labels(counts: Counts, excess: Excess, settings: _TestSettings) -> Bools:
    """Return which labels can be tested `[label]`.

    Raises:
        MoeLensError: there is none; the message gives the reason for each label.
    """
    min_tokens = settings.min_tokens
    spread = (counts.labels > 0).sum(0)
    varied: Bools = np.any(excess.variance > 0, axis=(0, 1))
    testable = (counts.label_tokens >= min_tokens) & (spread >= 2) & (counts.label_tokens < counts.n_tokens) & varied
    if testable.any():
        return np.asarray(testable)
    if counts.names and not counts.label_tokens.any():
        raise MoeLensError(
            f"expected a text with labels of family {settings.family!r}, got one in which no token has any "
            f"({', '.join(counts.names)}); record text that has them, or choose "
            "another family"
        )
    reasons, advice = [], "record more text, or lower min_tokens (--min-tokens)"
    for name, tokens, documents, varies in zip(
        counts.names, counts.label_tokens, spread.tolist(), varied.tolist(), strict=True
    ):
        if tokens in (0, counts.n_tokens):
            reasons.append(f"{name} is on {'all' if tokens else 'no'} tokens")
        elif tokens >= min_tokens and documents > 1 and not varies:
            reasons.append(f"{name} is the same within each {' × '.join(settings.given)}")
            advice = "record more text, or test without control (given=None, --given none)"
        else:
            reasons.append(f"{name} is on {tokens} tokens of {documents} document" + "s" * (documents != 1))
    raise MoeLensError(
        f"expected a label of family {settings.family!r} on {min_tokens} or more tokens of 2 or more documents and not "
        f"on all tokens, got none: {', '.join(reasons) or 'the family has no labels'}; {advice}"
    )
