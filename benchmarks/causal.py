"""Which experts of a model cause which contrast of Japanese: every kind of minimal pair, corrected for their number.

For each kind the experts that contribute most are found by attribution on one half of the frames. On the other they
are removed together, beside as many sets of matched experts; p is corrected over the kinds (Holm). The controls among
the kinds (tense, polarity, noun) say what an effect looks like that has nothing to do with honorifics.

    python benchmarks/causal.py demo --top 5 --draws 250 --out benchmarks/causal.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import moelens
from moelens.analysis.tables import number
from moelens.interventions import Attribution, Effect, attribute, effect, remove
from moelens.interventions.causal import holm
from moelens.interventions.effects import interval, signed
from moelens.japanese.pairs import kinds, pairs

HEADER = (
    "kind",
    "pairs",
    "margin",
    "experts",
    "removing them",
    "95 %",
    "flips",
    "controls",
    "95 %",
    "p",
    "p Holm",
    "rank",
)


def measure(model: Any, kind: str, top: int, draws: int, seed: int) -> tuple[Attribution, Effect]:
    """The attribution of a kind of pair, and what removing its first routed experts together does."""
    found = attribute(model, pairs(kind), top=top, seed=seed)
    removals = [remove(c.layer, [c.expert]) for c in found.top if c.expert is not None]
    return found, effect(model, pairs(kind), removals, draws=draws, half="test", seed=seed)


def table(found: dict[str, tuple[Attribution, Effect]]) -> list[tuple[str, ...]]:
    """A row for each kind of pair."""
    corrected = holm([e.kinds[0].p for _, e in found.values()])
    rows = []
    for (kind, (attribution, e)), p in zip(found.items(), corrected, strict=True):
        k, top = e.kinds[0], [c.name for c in attribution.top if c.expert is not None]
        numbers = (signed(k.change), interval(k.low, k.high), number(k.flip), signed(k.control))
        tests = (interval(k.control_low, k.control_high), number(k.p), number(p))
        rank = number(attribution.rank_correlation_test)
        rows.append((kind, str(k.pairs), signed(k.before), ", ".join(top), *numbers, *tests, rank))
    return rows


def markdown(found: dict[str, tuple[Attribution, Effect]], args: argparse.Namespace) -> str:
    rows = table(found)
    sure = sum(float(row[-2]) < 0.05 for row in rows)
    head = (
        f"{args.model}, seed {args.seed}: the routed experts among the {args.top} largest contributions to each kind "
        f"of pair, removed together, beside {args.draws} sets of matched experts. Margins and changes in nats, means "
        f"over the test half. {sure} of {len(rows)} survive Holm's correction at .05. rank: correlation of attribution "
        "with the exact removal of single experts, on the test half."
    )
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *rows)]
    return head + "\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--draws", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(kinds()))
    parser.add_argument("--out", type=Path, help="Markdown file; a JSON file with everything goes beside it")
    args = parser.parse_args()
    model = moelens.load(args.model)
    found = {k: measure(model, k, args.top, args.draws, args.seed) for k in tqdm(args.kinds, desc="kinds")}
    text = markdown(found, args)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
        data = {kind: [a.to_dict(), e.to_dict()] for kind, (a, e) in found.items()}
        args.out.with_suffix(".json").write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
