"""Rankings of experts on texts: how much more often tokens of an honorific class choose them than other tokens do."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moelens.analysis.arrays import Floats
from moelens.bars import progress_bar
from moelens.errors import MoeLensError
from moelens.interventions.attribution import spearman
from moelens.interventions.items import Item, pairs_within
from moelens.interventions.scoring import text_batches
from moelens.interventions.token_masks import label_mask
from moelens.japanese.crossed_contrasts import classes_within
from moelens.japanese.honorific_spans import honorifics
from moelens.japanese.normalization import SENTENCE_STOP
from moelens.recording.corpus import Corpus, CorpusSource

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_PASSAGES = 200
_TRIED = 20
"""Passages that are looked at for each one that is wanted."""
_LONGEST = 300
"""Characters of a document that is one passage; a longer one is cut into sentences."""
_SENTENCE = re.compile(rf"[^\n]+?(?:{SENTENCE_STOP}|$)", re.MULTILINE)


@dataclass(frozen=True, eq=False, kw_only=True)
class CorpusRanking:
    """Experts ranked by the texts of a corpus.

    Attributes:
        corpus: name of the corpus.
        label: the honorific class, such as "尊敬語".
        passages: number of passages that have the class.
        tokens: number of their tokens that carry it.
        excess: share of the tokens with the class that choose an expert, minus the share of the other tokens of these
            passages, `[layer, expert]`.
    """

    corpus: str
    label: str
    passages: int
    tokens: int
    excess: Floats


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two rankings of all experts agree.

    Attributes:
        first, second: their names: "attribution" or that of a corpus.
        spearman: rank correlation over all experts.
        top: number of experts at the head of each ranking that are compared.
        shared: number of experts that both have there.
        chance: number expected if the rankings had nothing in common.
    """

    first: str
    second: str
    spearman: float
    top: int
    shared: int
    chance: float


def distinguishing_class(items: Sequence[Item]) -> str:
    """Return the honorific class that the tagger finds in the first licensed text of most items and not in the other.

    Returns:
        A class such as "尊敬語"; "" if none is in half of the items.
    """
    found: Counter[str] = Counter()
    for item in items:
        first, second = pairs_within(item)[0], pairs_within(item)[-1]
        other = second.good if second is not first else first.bad
        found.update(set(classes_within(first.context, first.good)) - set(classes_within(second.context, other)))
    best = found.most_common(1)
    return best[0][0] if best and 2 * best[0][1] >= len(items) else ""


def bundled_corpora() -> dict[str, Corpus]:
    """Return the dialogues and the other texts of the bundled corpus."""
    documents = list(Corpus.of("demo"))
    parts: dict[str, list[str]] = {"bundled dialogues": [], "bundled sentences": []}
    for document in documents:
        dialogue = document.metadata["register"] == "dialogue"
        parts["bundled dialogues" if dialogue else "bundled sentences"].append(document.text)
    return {name: Corpus.of(texts) for name, texts in parts.items()}


def corpus_rankings(
    model: HookedMoE,
    corpora: Mapping[str, CorpusSource],
    label: str,
    *,
    seed: int = 0,
    batch_tokens: int = 2048,
    progress: bool | None = None,
) -> tuple[CorpusRanking, ...]:
    """Rank the experts on each corpus by how much more often the tokens of a class choose them.

    Args:
        model: the hooked model.
        corpora: what `Corpus.of` takes, by name.
        label: an honorific class.
        seed: seed of the choice of passages: up to 200 that have the class, of the documents in random order.
        batch_tokens: number of tokens that run together.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        A ranking for each corpus.

    Raises:
        MoeLensError: the class does not occur in a corpus.
    """
    found = []
    for name, source in progress_bar(list(corpora.items()), desc="corpora", show=progress):
        passages = list(itertools.islice(passages_with(Corpus.of(source), label, seed), _PASSAGES))
        if not passages:
            raise MoeLensError(
                f"expected texts with {label} to rank the experts on, got none in {name!r}; give other texts, or no "
                "corpora"
            )
        found.append(_ranking(model, name, passages, label, batch_tokens))
    return tuple(found)


def passages_with(corpus: Corpus, label: str, seed: int = 0) -> Iterator[str]:
    """Yield passages that have an honorific class: short documents whole, and sentences of long ones."""
    passages = [p for document in corpus for p in _passages(document.text)]
    order = np.random.default_rng(seed).permutation(len(passages))[: _TRIED * _PASSAGES]
    for i in order:
        if any(label in span.classes for span in honorifics(passages[i])):
            yield passages[i]


def _passages(text: str) -> list[str]:
    if len(text) <= _LONGEST:
        return [text]
    return [s.strip() for s in _SENTENCE.findall(text) if 1 < len(s.strip()) <= _LONGEST]


def _ranking(model: HookedMoE, name: str, passages: Sequence[str], label: str, batch_tokens: int) -> CorpusRanking:
    """Count the choices of the tokens with and without the label."""
    layers, n = model.shape.moe_layers, model.shape.n_experts
    chosen, tokens = np.zeros((2, len(layers), n)), np.zeros(2)
    slots: dict[int, Any] = {}
    points = [(f"blocks.{layer}.mlp.hook_expert_indices", _keep(slots, i)) for i, layer in enumerate(layers)]
    for batch in text_batches(model, passages, batch_tokens):
        labelled = torch.zeros_like(batch.mask, device="cpu")
        for row, length in enumerate(batch.mask.sum(1).tolist()):
            labelled[row, :length] = label_mask(model, batch.ids[row : row + 1, :length], label)[0]
        with model.hooks(points):
            batch.logits(model)
        for kind, mask in enumerate((labelled, batch.mask.cpu() & ~labelled)):
            tokens[kind] += int(mask.sum())
            for i, ids in slots.items():
                chosen[kind, i] += np.bincount(ids[mask].flatten().numpy(), minlength=n)
    shares = chosen / np.maximum(tokens, 1)[:, None, None]
    return CorpusRanking(
        corpus=name, label=label, passages=len(passages), tokens=int(tokens[0]), excess=shares[0] - shares[1]
    )


def _keep(slots: dict[int, Any], place: int) -> Any:
    def keep(ids: Any, hook: Any) -> None:
        slots[place] = ids.long().cpu()

    return keep


def agreements(rankings: Mapping[str, Floats], top: int = 16) -> tuple[Agreement, ...]:
    """Compare rankings `[layer, expert]`, the largest value first, two by two."""
    found = []
    for first, second in itertools.combinations(rankings, 2):
        a, b = rankings[first].ravel(), rankings[second].ravel()
        n = min(top, len(a) // 4)
        heads = [set(np.argsort(-values, kind="stable")[:n].tolist()) for values in (a, b)]
        found.append(
            Agreement(
                first=first,
                second=second,
                spearman=spearman(a.tolist(), b.tolist()),
                top=n,
                shared=len(heads[0] & heads[1]),
                chance=n * n / len(a),
            )
        )
    return tuple(found)
