"""What a model prefers on the minimal pairs: `python -m benchmarks.pairs [MODEL] [--train FILE] [--json]`.

For each kind: of how many pairs the good continuation is likelier than the bad one after the same context (summed
log-probability of the continuation's tokens), with Wilson's 95 % confidence interval (Wilson 1927); chance is 0.5. A
sum falls with length: where the good form is the longer one (お帰りになる beside 帰る), a weak model is below chance.
With --train, a .jsonl[.gz] file of texts, an interpolated Kneser-Ney trigram of its first tokens is scored beside it.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moelens.interventions.preference import wilson_interval
from moelens.japanese.minimal_pairs import Pair, kinds, pairs

TRIGRAM_TOKENS = 1_000_000
Score = Callable[[Sequence[tuple[str, str]]], list[float]]


def preferred(chosen: Sequence[Pair], score: Score) -> dict[str, Any]:
    """How often `score` prefers the good continuation; a tie counts half."""
    good = score([(p.context, p.good) for p in chosen])
    bad = score([(p.context, p.bad) for p in chosen])
    hits = sum((g > b) + 0.5 * (g == b) for g, b in zip(good, bad, strict=True))
    share, n = hits / len(chosen), len(chosen)
    return {"preferred": round(share, 3), "interval": [round(x, 3) for x in wilson_interval(share, n)], "n": n}


def continuation(tokenizer: Any, context: str, text: str) -> tuple[list[int], int]:
    """Token ids of the whole, and from which one on they are the continuation's (the first that differs)."""
    alone, whole = (tokenizer(t)["input_ids"] for t in (context, context + text))
    return whole, next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))


def by_model(model: Any) -> Score:
    """Summed log-probabilities under a model."""
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
    """Summed log-probabilities under a trigram of the first `TRIGRAM_TOKENS` tokens of a file of texts."""
    from moelens.demo.trigram import trigram_nats

    stream: list[int] = []
    with gzip.open(train, "rt", encoding="utf-8") if train.suffix == ".gz" else train.open(encoding="utf-8") as file:
        for line in file:
            stream += tokenizer(json.loads(line)["text"])["input_ids"]
            if len(stream) >= TRIGRAM_TOKENS:
                break
    counted = np.array(stream[:TRIGRAM_TOKENS], dtype=np.int64)

    def score(items: Sequence[tuple[str, str]]) -> list[float]:
        laid = [continuation(tokenizer, *item) for item in items]
        nats = trigram_nats(counted, np.concatenate([ids for ids, _ in laid]).astype(np.int64), len(tokenizer))
        ends = np.cumsum([len(ids) for ids, _ in laid])
        return [
            -float(nats[end - len(ids) + first - 2 : end - 2].sum())
            for (ids, first), end in zip(laid, ends, strict=True)
        ]

    return score


def main() -> None:
    import moelens

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--train", type=Path, help="texts for the trigram, a JSON object with a `text` a line")
    parser.add_argument("--split", choices=("discovery", "test"), help="only this half of the frames")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = moelens.load(args.model)
    scorers = {"model": by_model(model)}
    if args.train:
        scorers["trigram"] = by_trigram(model.tokenizer, args.train)
    table = {
        kind: {name: preferred(pairs(kind, args.split), score) for name, score in scorers.items()} for kind in kinds()
    }
    if args.json:
        counted = TRIGRAM_TOKENS * bool(args.train)
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
