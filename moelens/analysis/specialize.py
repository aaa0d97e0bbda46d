"""Which experts prefer which labels: counted once, tested over documents, within token identity or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelens.analysis.arrays import Bools, Routes, check_routes, divide
from moelens.analysis.counting import Tables, in_parts
from moelens.analysis.counts import Counts
from moelens.analysis.randomize import Excess, benjamini_hochberg, document_test
from moelens.analysis.result import Specialization
from moelens.analysis.sources import (
    Described,
    Given,
    LabelFamilies,
    Sample,
    described,
    given_names,
    labels_for,
    names_of,
    opened,
    provenance,
)
from moelens.errors import MoeLensError
from moelens.recording import Recording

LEAST_PERMUTATIONS = 19
TOKEN = ("token",)


def analyze(
    recording: Recording | str | Path,
    family: str = "honorifics",
    *,
    labels: LabelFamilies | None = None,
    given: Given = None,
    permutations: int = 1000,
    seed: int = 0,
    min_tokens: int = 20,
    progress: bool | None = None,
) -> Specialization:
    """Test which experts of each layer specialise in which labels of a family.

    Tokens without text (the tokenizer's special tokens) are left out. Copies of a text count as one document. Where
    torch.distributed is initialised the processes share the counting, and all of them get the result. See
    `specialization_from_arrays` for the test and what it does not rule out.

    Args:
        recording: or its folder.
        family: of labels, such as "honorifics" or "pos"; `Labels.families` lists them.
        labels: of the recording; None for those in its folder, created first where there are none.
        given: what labels are compared within: "token" (the same token id), "position" (places in the document, in
            doubling bins), any other family of labels such as "script", or several of them.
        permutations: of documents, in the test; 19 or more.
        seed: of the permutations.
        min_tokens: labels and experts with fewer tokens are counted but not tested.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        Effect sizes, tests and counts, `[layer, expert, label]`.

    Raises:
        UnknownNameError: no such family or control.
        RecordingError: there is no recording, or the labels are of another one.
        MoeLensError: there is nothing to test.

    Example:
        >>> result = moelens.analyze("runs/demo", "honorifics", given="token")  # doctest: +SKIP
        >>> result.top(5, "尊敬語")                                              # doctest: +SKIP
        >>> result.plot("尊敬語")                                                # doctest: +SKIP
    """
    recording = opened(recording)
    known = labels_for(recording, labels, family)
    assert known is not None
    names = names_of(recording, known, family)
    others = [name for name in known.families if name != family]
    given = given_names(given, ("token", "position", *others))
    controls = tuple({**dict.fromkeys(TOKEN), **dict.fromkeys(given)})
    parts, texts = described(recording, known, family, controls), recording.text_ids()
    sample = Sample.of(parts, names, stratifications(given), texts=texts)
    check_test(sample.documents, permutations)
    rows = sample.mine()
    tables = sample.count(recording.parts(rows.start, rows.stop), recording.n_experts, recording.layers)
    about = provenance(recording, known) | {"special_tokens_left_out": int((sample.kind < 0).sum())}
    test = Test(family, permutations, seed, min_tokens, progress)
    return conclude(sample.counts(tables, recording.layers, recording.top_k), sample, tables, given, about, test)


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
    progress: bool | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Specialization:
    """The same from arrays: `indices` `[token, layer, slot]`, `label_matrix` `[token, label]`, the rest `[token]`.

    `given` is None, "token", or names of `strata`, integer codes `[token]` such as {"script": …}.

    Null hypothesis: within what is given, the labels of a document tell nothing about its routes. What is expected is
    the mean over all permutations of labels within strata; how far chance strays from it is judged by documents, which
    keep all their tokens (`document_test`), so tokens of a document may depend on each other. More than 200 documents
    are put together to 200 groups of neighbours. Two-sided, so experts that avoid a label are found too. Labels in
    fewer than `min_tokens` tokens or 2 documents, and experts with fewer than `min_tokens` tokens, are counted but not
    tested. The test does not rule out that an expert responds to something else that goes with the label.

    Raises `MoeLensError` for a single document, no label to test or fewer than 19 permutations, `UnknownNameError`
    for an unknown control, and `CheckError` for arrays that do not fit together.
    """
    labels = np.asarray(label_matrix, bool)
    check_routes(indices, n_experts, layers, labels, names)
    codes = dict(strata or {}) | {"token": token_ids}
    given = given_names(given, tuple(codes))
    order = np.argsort(docs, kind="stable")
    controls = {name: np.asarray(code)[order][:, None] for name, code in codes.items()}
    part = Described(np.asarray(docs)[order], np.ones(len(labels), bool), labels[order], controls)
    sample = Sample.of([part], names, stratifications(given))
    check_test(sample.documents, permutations)
    tables = sample.count(in_parts(indices, order), n_experts, layers)
    test = Test(family, permutations, seed, min_tokens, progress)
    return conclude(sample.counts(tables, layers, indices.shape[2]), sample, tables, given, provenance or {}, test)


def stratifications(given: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What is given; token identity as well where it is not the same, for `lift_given_token`."""
    return [given] if given == TOKEN else [given, TOKEN]


@dataclass(frozen=True)
class Test:
    """How to test, see `specialization_from_arrays`."""

    family: str
    permutations: int
    seed: int
    min_tokens: int
    progress: bool | None


def conclude(
    counts: Counts, sample: Sample, tables: Tables, given: tuple[str, ...], provenance: Mapping[str, Any], test: Test
) -> Specialization:
    """From counted tables to the result; the tokens are not needed any more."""
    excess = Excess.of(tables, sample.kinds, sample.copies)
    frequent = frequent_labels(counts, excess, test.min_tokens, test.family, given)
    used = (counts.expert_tokens >= test.min_tokens) & (counts.expert_tokens < counts.n_tokens)
    tested = used[:, :, None] & frequent & (excess.variance > 0)
    verdict = document_test(counts.cells, excess, tested, test.permutations, test.seed, test.progress)
    beyond = excess.by_group.sum(0, dtype=float)
    beyond_token = beyond if given == TOKEN else tables.beyond[0]
    return Specialization(
        counts.regrouped(1),
        verdict.p,
        verdict.p_family,
        benjamini_hochberg(verdict.p),
        ratio(counts.count, counts.count - beyond_token),
        counts.count - beyond,
        verdict.null_sd,
        verdict.low,
        verdict.high,
        test.family,
        given,
        {
            **provenance,
            "documents": sample.documents,
            "document_groups": len(counts.tokens),
            "given": " × ".join(given) or "nothing",
            "permutations": test.permutations,
            "seed": test.seed,
            "min_tokens": test.min_tokens,
            "tested_cells": int(tested.sum()),
            "statistic": "excess over its mean within strata / its spread over documents, two-sided",
        },
    )


def ratio(count: NDArray[np.integer], expected: NDArray[np.floating]) -> NDArray[np.float64]:
    """Observed over expected, NaN where nothing is expected (but for rounding)."""
    return divide(count, np.where(expected > 1e-6, expected, 0))


def check_test(documents: int, permutations: int) -> None:
    """Raise `MoeLensError` where no test is possible."""
    if documents < 2:
        raise MoeLensError(
            f"{documents} document: labels cannot be compared between documents; allowed: 2 or more of different "
            "texts, record the text as several documents"
        )
    if permutations < LEAST_PERMUTATIONS:
        raise MoeLensError(f"{permutations} permutations cannot reach p = .05; allowed: {LEAST_PERMUTATIONS} or more")


def frequent_labels(counts: Counts, excess: Excess, min_tokens: int, family: str, given: tuple[str, ...]) -> Bools:
    """Labels `[label]` that can be tested. Raises `MoeLensError` where there is none, and says why."""
    spread = (counts.labels > 0).sum(0)
    varied: Bools = np.any(excess.variance > 0, axis=(0, 1))
    frequent = (counts.label_tokens >= min_tokens) & (spread >= 2) & (counts.label_tokens < counts.n_tokens) & varied
    if frequent.any():
        return np.asarray(frequent)
    why = []
    for name, tokens, documents, varies in zip(
        counts.names, counts.label_tokens, spread.tolist(), varied.tolist(), strict=True
    ):
        if tokens in (0, counts.n_tokens):
            why.append(f"{name} is {'everywhere' if tokens else 'nowhere'}")
        elif tokens >= min_tokens and documents > 1 and not varies:
            why.append(f"{name} is decided by {' × '.join(given)}")
        else:
            why.append(f"{name} is on {tokens} tokens of {documents} document" + "s" * (documents != 1))
    raise MoeLensError(
        f"no label of family {family!r} can be tested ({', '.join(why) or 'it has none'}); allowed: labels of "
        f"{min_tokens} tokens and 2 documents that other tokens lack, record more text or lower min_tokens"
    )
