"""Simulate corpora without a specialist, and measure how often the test errs and the intervals hold the truth.

    python -m benchmarks.simulations [REGIME …] [--runs 300] [--json]

In every regime labels and routes of a token are drawn independently of each other, given what is controlled. Every
significant cell is therefore a false finding, and the true `lift_given` is 1. The regime "specialist" has one expert
that takes the first label twice as often; there, the true lift is known too. The last three regimes leave out the
control that they need: topics or types drive both labels and routes, which shows as findings.

    error       share of runs with a family-wise p below .05
    discovery   share of runs with a q below .05
    coverage    share of the printed 95 % intervals that hold the true value; "none" if no interval is printed
    documents   effective number of documents, mean over runs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from moelens.analysis import Specialization, specialization_from_arrays
from moelens.analysis.tables import plain_table

EXPERTS, TOP_K, LABELS = 16, 2, 3
HEADER = ("regime", "given", "documents", "runs", "error", "discovery", "coverage")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One simulated corpus.

    Attributes:
        docs: document of each token `[token]`.
        labels: bool `[token, label]`.
        scores: scores of the experts, of which the best are chosen `[token, expert]`.
        ids: token ids `[token]`.
        topics: topic of each token `[token]`, a column of the corpus.
        truth: true `lift_given` `[expert, label]`.
    """

    docs: NDArray[Any]
    labels: NDArray[Any]
    scores: NDArray[Any]
    ids: NDArray[Any]
    topics: NDArray[Any]
    truth: NDArray[Any]


def documents_of(rng: np.random.Generator, sizes: NDArray[Any], *, often: tuple[float, float] = (0.6, 1.4)) -> Corpus:
    """Make a corpus in which each document has its own labels and experts, independently of each other."""
    docs = np.repeat(np.arange(len(sizes)), sizes)
    rate = rng.beta(*often, (len(sizes), LABELS))[docs]
    taste = rng.normal(0, 1, (len(sizes), EXPERTS))[docs]
    return Corpus(
        docs=docs,
        labels=rng.random(rate.shape) < rate,
        scores=taste + rng.gumbel(size=taste.shape),
        ids=rng.integers(0, 30, len(docs)),
        topics=np.zeros(len(docs), int),
        truth=np.ones((EXPERTS, LABELS)),
    )


def independent(rng: np.random.Generator) -> Corpus:
    """Tokens do not depend on their document."""
    tokens = 1500
    return Corpus(
        docs=np.arange(tokens) // 25,
        labels=rng.random((tokens, LABELS)) < 0.2,
        scores=rng.gumbel(size=(tokens, EXPERTS)),
        ids=rng.integers(0, 30, tokens),
        topics=np.zeros(tokens, int),
        truth=np.ones((EXPERTS, LABELS)),
    )


def topics(rng: np.random.Generator) -> Corpus:
    """The topic of a document decides much of its labels and of its experts."""
    corpus = documents_of(rng, rng.integers(5, 40, 60))
    topic = rng.integers(0, 4, 60)[corpus.docs]
    rate = 0.6 * rng.random((4, LABELS))[topic] + 0.4 * rng.random((60, LABELS))[corpus.docs]
    scores = corpus.scores + rng.normal(0, 1, (4, EXPERTS))[topic]
    labels = rng.random(rate.shape) < rate
    return Corpus(**(vars(corpus) | {"labels": labels, "scores": scores, "topics": topic}))


def bursts(rng: np.random.Generator) -> Corpus:
    """Labels and experts come in runs of about 8 tokens, of independent lengths."""
    corpus = documents_of(rng, rng.integers(20, 80, 60), often=(0.3, 1.7))
    tokens = len(corpus.docs)
    run = np.cumsum(rng.random(tokens) < 1 / 8)
    other = np.cumsum(rng.random(tokens) < 1 / 8)
    labels = corpus.labels[np.searchsorted(run, run)]  # that of the first token of the run
    scores = corpus.scores + rng.normal(0, 2, (other[-1] + 1, EXPERTS))[other]
    return Corpus(**(vars(corpus) | {"labels": labels, "scores": scores}))


def heavy_tails(rng: np.random.Generator) -> Corpus:
    """The sizes of documents have a Pareto distribution with the exponent 1.1."""
    return documents_of(rng, np.minimum(5 + 10 * rng.pareto(1.1, 60), 5000).astype(int))


def one_giant(rng: np.random.Generator, share: float = 0.8) -> Corpus:
    """One of 60 documents has four fifths of all tokens."""
    sizes = rng.integers(5, 40, 60)
    sizes[30] = int(share / (1 - share) * np.delete(sizes, 30).sum())
    return documents_of(rng, sizes)


def types(
    rng: np.random.Generator, *, labels_too: bool = True, number: int = 200, evenness: float = 1.0, longest: int = 80
) -> Corpus:
    """Types of tokens decide much of labels and experts; few are frequent, and documents differ in their use.

    Args:
        rng: where the numbers are from.
        labels_too: whether the types decide the labels too, and not the experts alone.
        number: number of types.
        evenness: shape of the gamma distribution of the use of a type over documents; below 1, a type is in few.
        longest: number of tokens of the longest document; the shortest has a quarter of them.
    """
    corpus = documents_of(rng, rng.integers(longest // 4, longest, 50))
    used = rng.gamma(evenness, 1, (50, number)) / np.arange(1, number + 1)
    used /= used.sum(1, keepdims=True)
    ids = np.concatenate([rng.choice(number, n, p=p) for n, p in zip(np.bincount(corpus.docs), used, strict=True)])
    rate = rng.beta(0.6, 1.4, (50, LABELS))[corpus.docs]
    if labels_too:
        rate = rate * rng.random((number, LABELS))[ids]
    scores = corpus.scores + rng.normal(0, 1.5, (number, EXPERTS))[ids]
    return Corpus(**(vars(corpus) | {"labels": rng.random(rate.shape) < rate, "scores": scores, "ids": ids}))


def many_types(rng: np.random.Generator) -> Corpus:
    """Many types of tokens, spread unequally over 50 documents, decide much of labels and experts."""
    return types(rng, number=1000, evenness=0.1, longest=400)


def few(documents: int) -> Callable[[np.random.Generator], Corpus]:
    """Return the regime of so many documents of about one size."""

    def regime(rng: np.random.Generator) -> Corpus:
        return documents_of(rng, rng.integers(150, 250, documents))

    return regime


def specialist(rng: np.random.Generator) -> Corpus:
    """Expert 3 takes the first label twice as often; the share of the label differs between documents."""
    corpus = documents_of(rng, rng.integers(20, 80, 60))
    labels = rng.random(corpus.labels.shape) < rng.beta(1, 4, (60, LABELS))[corpus.docs]
    best = np.argpartition(-corpus.scores, TOP_K, axis=1)[:, :TOP_K]
    taken = (best == 3).any(1)
    base = 1 / 8  # k / E; the documents' tastes have one distribution for all experts
    drawn = labels[:, 0] & ~taken & (rng.random(len(labels)) < base / (1 - base))
    scores = corpus.scores.copy()
    scores[drawn, 3] = scores.max(1)[drawn] + 1
    truth = np.full((EXPERTS, LABELS), np.nan)
    truth[:, 1:] = 1
    truth[3, 0] = 2 / 1.2  # the label is on a fifth of the tokens: 2 r / (0.2 · 2 r + 0.8 r)
    return Corpus(**(vars(corpus) | {"labels": labels, "scores": scores, "truth": truth}))


REGIMES: Mapping[str, tuple[Callable[[np.random.Generator], Corpus], tuple[str, ...]]] = {
    "independent": (independent, ()),
    "documents differ": (lambda rng: documents_of(rng, rng.integers(5, 40, 60)), ()),
    "topics, given the topic": (topics, ("topic",)),
    "topics, given topic and token": (topics, ("topic", "token")),
    "bursts": (bursts, ()),
    "heavy tails": (heavy_tails, ()),
    "one giant, 80 %": (one_giant, ()),
    "one giant, 95 %": (lambda rng: one_giant(rng, 0.95), ()),
    "types of experts": (lambda rng: types(rng, labels_too=False), ()),
    "types, given the token": (types, ("token",)),
    "many types, given the token": (many_types, ("token",)),
    "20 documents": (few(20), ()),
    "10 documents": (few(10), ()),
    "6 documents": (few(6), ()),
    "5 documents": (few(5), ()),
    "3 documents": (few(3), ()),
    "2 documents": (few(2), ()),
    "specialist": (specialist, ()),
    "topics, not given": (topics, ()),
    "types, not given": (types, ()),
    "many types, not given": (many_types, ()),
}
"""How a corpus is made, and what is controlled, by the name of the regime."""


def analyse(corpus: Corpus, given: tuple[str, ...], seed: int) -> Specialization:
    """Test one corpus."""
    chosen = np.argpartition(-corpus.scores, TOP_K, axis=1)[:, None, :TOP_K].astype(np.uint8)
    return specialization_from_arrays(
        chosen,
        corpus.labels,
        [str(i) for i in range(LABELS)],
        corpus.docs,
        corpus.ids,
        EXPERTS,
        [0],
        given=given,
        strata={"topic": corpus.topics},
        permutations=199,
        seed=seed,
        progress=False,
    )


def simulate(regime: str, runs: int) -> dict[str, Any]:
    """Return the rates of a regime, by the names of `HEADER`."""
    make, given = REGIMES[regime]
    errors, discoveries, held, documents = 0, 0, [np.zeros(0, bool)], 0.0
    for seed in tqdm(range(runs), desc=regime, leave=False):
        corpus = make(np.random.default_rng(seed))
        found = analyse(corpus, given, seed)
        false = corpus.truth == 1
        errors += bool((found.p_family[0][false] < 0.05).any())
        discoveries += bool((found.q[0][false] < 0.05).any())
        low, high = found.low[0], found.high[0]
        printed = np.isfinite(low) & np.isfinite(corpus.truth)
        held.append(((low <= corpus.truth) & (corpus.truth <= high))[printed])
        documents += found.provenance["effective_documents"] / runs
    inside = np.concatenate(held)
    return {
        "regime": regime,
        "given": " × ".join(given) or "nothing",
        "documents": round(documents, 1),
        "runs": runs,
        "error": round(errors / runs, 3),
        "discovery": round(discoveries / runs, 3),
        "coverage": round(float(inside.mean()), 3) if len(inside) else "none",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("regimes", nargs="*", help="regimes to simulate (default: all)")
    parser.add_argument("--runs", type=int, default=300, help="runs of each regime (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    unknown = set(args.regimes) - set(REGIMES)
    if unknown:
        parser.error(f"unknown regime {', '.join(sorted(unknown))}; choose from {', '.join(REGIMES)}")
    rows = []
    for regime in args.regimes or REGIMES:
        rows.append(simulate(regime, args.runs))
        if args.json:  # one object on each line, as soon as it is known
            print(json.dumps(rows[-1]), flush=True)
    if not args.json:
        print(plain_table(HEADER, [tuple(map(str, row.values())) for row in rows]))


if __name__ == "__main__":
    main()
