"""Which experts of a model cause which contrast of Japanese: every kind of minimal pair, with all corrections.

For each kind, experts are found by attribution on one half of the frames; on the other half each of the first few is
removed, beside the removal of matched experts. p is corrected over all kinds and experts together (Holm).

    python benchmarks/causal.py demo --top 3 --draws 200 --out benchmarks/causal.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import moelens
from moelens.analysis.tables import number
from moelens.interventions import Causes, causes
from moelens.interventions.causal import holm
from moelens.interventions.effects import interval, signed
from moelens.japanese.pairs import kinds, pairs

HEADER = ("kind", "margin", "expert", "attributed", "removing it", "95 %", "flips", "controls", "95 %", "p", "p Holm")


def rows(found: dict[str, Causes]) -> list[tuple[str, ...]]:
    """A row for each removal, p corrected over all of them."""
    cells = [(kind, c, e) for kind, result in found.items() for c, e in matched(result)]
    corrected = holm([e.kinds[0].p for _, _, e in cells])
    return [
        (
            *(kind, signed(e.kinds[0].before), c.name, signed(c.attributed), signed(c.change)),
            *(interval(c.low, c.high), number(e.kinds[0].flip), signed(e.kinds[0].control)),
            *(interval(e.kinds[0].control_low, e.kinds[0].control_high), number(e.kinds[0].p), number(p)),
        )
        for (kind, c, e), p in zip(cells, corrected, strict=True)
    ]


def matched(result: Causes) -> list[tuple[Any, Any]]:
    """Each routed expert of the attribution with the effect of its removal."""
    return list(zip((c for c in result.attribution.top if c.expert is not None), result.effects, strict=True))


def markdown(found: dict[str, Causes], model: Any, draws: int, seed: int) -> str:
    table = rows(found)
    sure = sum(float(row[-1]) < 0.05 for row in table)
    head = (
        f"{model.name}: {len(found)} kinds of pair, {len(table)} experts removed, {draws} matched controls each, seed {seed}. "
        f"Margins and changes in nats on the test half. {sure} of {len(table)} removals survive Holm's correction at .05; "
        f"the smallest p that {draws} controls allow is {number(1 / (1 + draws))}, {number(len(table) / (1 + draws))} "
        "after correction."
    )
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *table)]
    ranks = ", ".join(f"{kind} {number(c.attribution.rank_correlation_test)}" for kind, c in found.items())
    return (
        f"{head}\n\n"
        + "\n".join(lines)
        + f"\n\nRank correlation of attribution with exact removal (test half): {ranks}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(kinds()))
    parser.add_argument("--out", type=Path, help="Markdown file; a JSON file with everything goes beside it")
    args = parser.parse_args()
    model = moelens.load(args.model)
    options = {"top": args.top, "draws": args.draws, "seed": args.seed}
    found = {kind: causes(model, pairs(kind), **options) for kind in tqdm(args.kinds, desc="kinds")}
    text = markdown(found, model, args.draws, args.seed)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
        data = {kind: result.to_dict() for kind, result in found.items()}
        args.out.with_suffix(".json").write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
