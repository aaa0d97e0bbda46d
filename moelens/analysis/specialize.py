"""Which experts prefer which labels: counts, a permutation test over documents, and what token identity explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.counts import Bools, Counts, Floats, Ints, check_arrays, divide, label_patterns
from moelens.analysis.permutation import Routes, benjamini_hochberg, document_shuffles, permutation_p
from moelens.analysis.result import Specialization
from moelens.errors import MoeLensError, RecordingError, unknown

if TYPE_CHECKING:
    from moelens.recording import Recording

LEAST_PERMUTATIONS = 19


class LabelFamilies(Protocol):
    """What is asked of `moelens.japanese.Labels`."""

    @property
    def families(self) -> tuple[str, ...]: ...

    def matrix(self, family: str) -> tuple[tuple[str, ...], Bools]: ...


def specialization(
    recording: Recording,
    labels: LabelFamilies,
    family: str = "honorifics",
    *,
    permutations: int = 500,
    seed: int = 0,
    min_tokens: int = 20,
    progress: bool = False,
) -> Specialization:
    """Test every layer, expert and label of one `family` of `labels` over the tokens of `recording`.

    Tokens without text (the tokenizer's special tokens) are left out. See `specialization_from_arrays` for the test
    and what it does not rule out. Raises `UnknownNameError` for an unknown family, `RecordingError` for labels of
    another recording, and `MoeLensError` where there is nothing to test.

        result = specialization(recording, label(recording), "honorifics")
        result.top(5, "尊敬語")
        result.plot("尊敬語")
    """
    if family not in labels.families:
        raise unknown("label family", family, labels.families)
    names, matrix = labels.matrix(family)
    if len(matrix) != recording.n_tokens:
        raise RecordingError(
            f"labels of {len(matrix)} tokens for a recording of {recording.n_tokens}; "
            "label this recording again with moelens.label(recording)"
        )
    text = recording.column("char_end") > recording.column("char_start")
    return specialization_from_arrays(
        recording.indices()[text],
        np.asarray(matrix, bool)[text],
        names,
        recording.column("doc")[text],
        recording.column("token_id")[text],
        recording.n_experts,
        recording.layers,
        family=family,
        permutations=permutations,
        seed=seed,
        min_tokens=min_tokens,
        progress=progress,
        provenance=_provenance(recording.manifest) | {"special_tokens_left_out": int((~text).sum())},
    )


def specialization_from_arrays(
    indices: NDArray[np.integer],
    label_matrix: Bools,
    names: Sequence[str],
    docs: NDArray[np.integer],
    token_ids: NDArray[np.integer],
    n_experts: int,
    layers: Sequence[int],
    *,
    family: str = "labels",
    permutations: int = 500,
    seed: int = 0,
    min_tokens: int = 20,
    progress: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Specialization:
    """The same from arrays: `indices` `[token, layer, slot]`, `label_matrix` `[token, label]`, the rest `[token]`.

    Null hypothesis: the labels of a document tell nothing about its routes. Label sequences are exchanged between
    documents of like length (`document_shuffles`), which keeps the dependence between the tokens of a document on
    both sides. The statistic is the share difference over its binomial standard error (`standardised`), two-sided,
    so experts that avoid a label are found too. Labels in fewer than `min_tokens` tokens or 2 documents, and experts
    with fewer than `min_tokens` tokens, are counted but not tested. The test does not rule out that an expert
    responds to something that goes with the label: a token (see `lift_given_token`), a script, a place in the
    sentence. Memory grows with tokens × slots of one layer; layers are taken one by one.

    Raises `MoeLensError` for a single document, no label frequent enough or fewer than 19 permutations, and
    `CheckError` for arrays that do not fit together.
    """
    labels = np.asarray(label_matrix, bool)
    check_arrays(indices, labels, names, n_experts, layers)
    order = np.argsort(docs, kind="stable")
    docs, labels, token_ids = docs[order], labels[order], token_ids[order]
    routes = np.ascontiguousarray(np.moveaxis(indices, 1, 0)[:, order])
    counts = Counts.from_arrays(np.moveaxis(routes, 0, 1), labels, names, n_experts, layers)
    frequent = _frequent(counts, labels, docs, min_tokens, family)
    if permutations < LEAST_PERMUTATIONS:
        raise MoeLensError(f"{permutations} permutations cannot reach p = .05; allowed: {LEAST_PERMUTATIONS} or more")

    used = (counts.expert_tokens >= min_tokens) & (counts.expert_tokens < counts.n_tokens)
    tested = used[:, :, None] & frequent
    patterns, pattern = label_patterns(labels)
    shuffles = _watched(document_shuffles(docs, permutations, seed), permutations, progress)
    p, p_family = permutation_p(Routes(routes, counts.expert_tokens), pattern, patterns, tested, shuffles)
    return Specialization(
        counts,
        p,
        p_family,
        benjamini_hochberg(p),
        lift_given_token(counts.count, routes, labels, token_ids),
        family,
        {
            **(provenance or {}),
            "documents": len(np.unique(docs)),
            "permutations": permutations,
            "seed": seed,
            "min_tokens": min_tokens,
            "tested_cells": int(tested.sum()),
            "statistic": "share difference / binomial standard error, two-sided",
        },
    )


def lift_given_token(count: Ints, routes: NDArray[np.integer], labels: Bools, token_ids: NDArray[np.integer]) -> Floats:
    """Observed over expected `count` `[layer, expert, label]` when a token keeps only what its id tells.

    Expected = Σ over tokens t routed to the expert of P(label | id of t), with P from the same tokens. An id seen once
    predicts its own label, so rare tokens draw the ratio towards 1: it understates what is left, never the reverse.
    NaN where nothing is expected. `routes` is `[layer, token, slot]`.
    """
    _, token, size = np.unique(token_ids, return_inverse=True, return_counts=True)
    expected = np.zeros(count.shape)
    for y in range(count.shape[2]):
        probability = (np.bincount(token, weights=labels[:, y], minlength=len(size)) / size)[token]
        weights = np.repeat(probability, routes.shape[2])
        for layer, chosen in enumerate(routes):
            expected[layer, :, y] = np.bincount(chosen.ravel(), weights=weights, minlength=count.shape[1])
    return divide(count, np.where(expected > 1e-9, expected, 0))


def _frequent(counts: Counts, labels: Bools, docs: NDArray[np.integer], min_tokens: int, family: str) -> Bools:
    """Labels `[label]` that can be tested. Raises `MoeLensError` where there is none, or one document only."""
    if len(np.unique(docs)) < 2:
        raise MoeLensError(
            f"{len(np.unique(docs))} document: labels cannot be exchanged between documents; allowed: 2 or more, "
            "record the text as several documents"
        )
    in_documents = np.array([len(np.unique(docs[column])) for column in labels.T])
    frequent = (counts.label_tokens >= min_tokens) & (in_documents >= 2) & (counts.label_tokens < counts.n_tokens)
    if not frequent.any():
        seen = ", ".join(f"{name} {n}" for name, n in zip(counts.names, counts.label_tokens, strict=True)) or "none"
        raise MoeLensError(
            f"no label of family {family!r} is in {min_tokens} tokens and 2 documents (tokens: {seen}); "
            "record more text or lower min_tokens"
        )
    return np.asarray(frequent)


def _watched(shuffles: Iterator[Ints], total: int, progress: bool) -> Iterator[Ints]:
    if not progress:
        return shuffles
    from tqdm.auto import tqdm

    return iter(tqdm(shuffles, total=total, desc="permutations", leave=False))


def _provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Model name and number of expert groups, which the views print."""
    model, shape = manifest.get("model", ""), manifest.get("shape", {})
    name = model.get("name", "") if isinstance(model, Mapping) else model
    return {"model": str(name), "n_groups": shape.get("n_groups") if isinstance(shape, Mapping) else None}
