"""Measure what a model prefers on the minimal pairs.

    python -m benchmarks.pairs [MODEL] [--train FILE] [--json]

For each kind, the result is the share of pairs in which the good continuation is more likely than the bad one after the
same context, with Wilson's 95 % confidence interval (Wilson 1927); chance is 0.5. The score of a continuation is the
summed log-probability of its tokens. A sum decreases with length: if the good form is the longer one (お帰りになる and
帰る), a weak model is below chance. With `--train FILE`, a .jsonl[.gz] file of texts, an interpolated Kneser-Ney
trigram of the first tokens of the file is scored as well.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import moelens
from moelens.interventions import Preferences
from moelens.japanese import Pair, pairs

TRIGRAM_TOKENS = 1_000_000
Score = Callable[[Sequence[tuple[str, str]]], list[float]]


def share_preferred(chosen: Sequence[Pair], score: Score) -> dict[str, Any]:
    """Return how often `score` prefers the good continuation of pairs of one kind; a tie counts half."""
    good = np.array(score([(p.context, p.good) for p in chosen]))
    bad = np.array(score([(p.context, p.bad) for p in chosen]))
    (kind,) = Preferences("", tuple(chosen), good - bad).kinds
    return {
        "preferred": round(kind.preferred, 3),
        "interval": [round(kind.low, 3), round(kind.high, 3)],
        "n": kind.pairs,
    }


def continuation(tokenizer: Any, context: str, text: str) -> tuple[list[int], int]:
    """Return the token ids of context and continuation, and the index of the continuation's first token.

    That is the first token that differs from the tokens of the context alone.
    """
    alone, whole = (tokenizer(t)["input_ids"] for t in (context, context + text))
    return whole, next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))


def by_model(model: Any) -> Score:
    """Return a function that sums the log-probabilities under a model."""
    import torch

    @torch.no_grad()
    def score(items: Sequence[tuple[str, str]]) -> list[float]:
        sums = []
        for context, text in items:
            ids, first = continuation(model.tokenizer, context, text)
            logits = model(torch.tensor([ids]), return_type="logits")[0].float()
            logs = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            sums.append(float(logs[max(first - 1, 0) :].sum()))
        return sums

    return score


def by_trigram(tokenizer: Any, train: Path) -> Score:
    """Return a function that sums the log-probabilities under a trigram.

    The trigram is counted on the first `TRIGRAM_TOKENS` tokens of the file `train`.
    """
    from moelens.demo.trigram import trigram_nats

    stream: list[int] = []
    with gzip.open(train, "rt", encoding="utf-8") if train.suffix == ".gz" else train.open(encoding="utf-8") as file:
        for line in file:
            stream += tokenizer(json.loads(line)["text"])["input_ids"]
            if len(stream) >= TRIGRAM_TOKENS:
                break
    counted = np.array(stream[:TRIGRAM_TOKENS], dtype=np.int64)

    def score(items: Sequence[tuple[str, str]]) -> list[float]:
        tokenized = [continuation(tokenizer, *item) for item in items]
        joined = np.concatenate([ids for ids, _ in tokenized]).astype(np.int64)
        nats = trigram_nats(counted, joined, len(tokenizer))
        ends = np.cumsum([len(ids) for ids, _ in tokenized])
        return [
            -float(nats[end - len(ids) + first - 2 : end - 2].sum())
            for (ids, first), end in zip(tokenized, ends, strict=True)
        ]

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo", help="demo, a folder or a hub name (%(default)s)")
    parser.add_argument("--train", type=Path, help="texts for the trigram, one JSON object with a `text` per line")
    parser.add_argument("--split", choices=("discovery", "test"), help="use only this half of the frames")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    model = moelens.load(args.model)
    scorers = {"model": by_model(model)}
    if args.train:
        scorers["trigram"] = by_trigram(model.tokenizer, args.train)
    table = {
        kind: {name: share_preferred(pairs(kind, args.split), score) for name, score in scorers.items()}
        for kind in dict.fromkeys(pair.kind for pair in pairs())
    }
    if args.json:
        counted = TRIGRAM_TOKENS if args.train else 0
        result = {"model": args.model, "chance": 0.5, "trigram tokens": counted, "kinds": table}
        print(json.dumps(result, ensure_ascii=False, indent=1))
        return
    print(f"{'kind':<20}{'n':>4}" + "".join(f"{name:>9} [95 %]       " for name in scorers) + "  chance")
    for kind, row in table.items():
        cells = "".join(
            f"{r['preferred']:>9.3f} [{r['interval'][0]:.3f}, {r['interval'][1]:.3f}]" for r in row.values()
        )
        print(f"{kind:<20}{row['model']['n']:>4}{cells}   0.500")


if __name__ == "__main__":
    main()
