"""Test for every kind of minimal pair whether the experts found by attribution cause the model's preference.

    python -m benchmarks.causal demo --out benchmarks/results/causal-demo

For each kind, attribution on one half of the frames finds the experts with the largest contributions. On the other half
they are removed together, beside sets of as many matched experts. p is corrected over the kinds (Holm). Some kinds are
controls (tense, polarity, noun): they show the size of effects that have nothing to do with honorifics.

A small model runs fastest with small batches in one thread: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import moelens
from benchmarks.machine import machine
from moelens.analysis.tables import number, signed_interval, signed_number
from moelens.interventions import Attribution, Effect
from moelens.interventions.causal import holm_correction
from moelens.japanese import pairs

KINDS = list(dict.fromkeys(pair.kind for pair in pairs()))
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


def attribute_and_remove(
    model: moelens.HookedMoE, kind: str, settings: argparse.Namespace
) -> tuple[Attribution, Effect]:
    """Return the attribution for a kind of pair, and the effect of removing its top routed experts together."""
    options = {"seed": settings.seed, "batch_tokens": settings.batch_tokens}
    attribution = moelens.attribute(model, kind, top=settings.top, **options)
    removals = [moelens.remove(c.layer, [c.expert]) for c in attribution.top if c.expert is not None]
    return attribution, moelens.effect(model, kind, removals, draws=settings.draws, half="test", **options)


def table(found: dict[str, tuple[Attribution, Effect]]) -> list[tuple[str, ...]]:
    """Return a row for each kind of pair, in the columns of `HEADER`."""
    corrected = holm_correction([e.kinds[0].p for _, e in found.values()])
    rows = []
    for (kind, (attribution, e)), p in zip(found.items(), corrected, strict=True):
        k, top = e.kinds[0], [c.name for c in attribution.top if c.expert is not None]
        numbers = (signed_number(k.change), signed_interval(k.low, k.high), number(k.flip), signed_number(k.control))
        tests = (signed_interval(k.control_low, k.control_high), number(k.p), number(p))
        rank = number(attribution.rank_correlation_test)
        rows.append((kind, str(k.pairs), signed_number(k.before), ", ".join(top), *numbers, *tests, rank))
    return rows


def markdown(found: dict[str, tuple[Attribution, Effect]], result: dict[str, Any]) -> str:
    """Format the results as a Markdown page."""
    rows, settings = table(found), result["settings"]
    significant = sum(float(row[-2]) < 0.05 for row in rows)
    draws = settings["draws"]
    least = number(min(1.0, len(rows) / (draws + 1)))
    head = (
        f"{settings['model']}, seed {settings['seed']}. For each kind of pair, the routed experts among the "
        f"{settings['top']} largest contributions are removed together, beside {draws} sets of matched experts. "
        f"Margins and changes are in nats, means over the test half. With {draws} sets, p cannot be smaller than "
        f"1/{draws + 1}, or {least} after Holm's correction over {len(rows)} kinds. {significant} of {len(rows)} "
        f"corrected p values are below .05. rank: the rank correlation of attribution with the removal of single "
        f"experts, on the test half.\n\nMeasured on {result['machine']}."
    )
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *rows)]
    return head + "\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo", help="demo, a folder or a hub name (%(default)s)")
    parser.add_argument("--top", type=int, default=5, help="largest contributions to consider (%(default)s)")
    parser.add_argument("--draws", type=int, default=250, help="sets of matched experts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=512, help="tokens that run together (%(default)s)")
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="kinds of pairs (all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    args = parser.parse_args()
    model = moelens.load(args.model)
    found = {kind: attribute_and_remove(model, kind, args) for kind in tqdm(args.kinds, desc="kinds")}
    result = {
        "machine": machine(),
        "settings": {name: value for name, value in vars(args).items() if name not in ("json", "out")},
        "kinds": {kind: [a.to_dict(), e.to_dict()] for kind, (a, e) in found.items()},
    }
    data, text = json.dumps(result, ensure_ascii=False), markdown(found, result)
    print(data if args.json else text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")
        args.out.with_suffix(".json").write_text(data + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
