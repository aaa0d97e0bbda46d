"""Which experts of a model cause which contrast of Japanese: every kind of minimal pair, corrected for their number.

For each kind the experts that contribute most are found by attribution on one half of the frames. On the other they
are removed together, beside as many sets of matched experts; p is corrected over the kinds (Holm). The controls among
the kinds (tense, polarity, noun) say what an effect looks like that has nothing to do with honorifics.

    python -m benchmarks.causal demo --out benchmarks/results/causal-demo

Small passes in one thread are what a small model runs fastest with: OMP_NUM_THREADS=1.
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
from moelens.interventions import Attribution, Effect, attribute, effect, remove
from moelens.interventions.causal import holm_correction
from moelens.japanese.minimal_pairs import kinds, pairs

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


def measure(model: Any, kind: str, settings: argparse.Namespace) -> tuple[Attribution, Effect]:
    """The attribution of a kind of pair, and what removing its first routed experts together does."""
    options = {"seed": settings.seed, "batch_tokens": settings.batch_tokens}
    found = attribute(model, pairs(kind), top=settings.top, **options)
    removals = [remove(c.layer, [c.expert]) for c in found.top if c.expert is not None]
    return found, effect(model, pairs(kind), removals, draws=settings.draws, half="test", **options)


def table(found: dict[str, tuple[Attribution, Effect]]) -> list[tuple[str, ...]]:
    """A row for each kind of pair."""
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
    rows, settings = table(found), result["settings"]
    sure = sum(float(row[-2]) < 0.05 for row in rows)
    draws = settings["draws"]
    head = (
        f"{settings['model']}, seed {settings['seed']}: the routed experts among the {settings['top']} largest "
        f"contributions to each kind of pair, removed together, beside {draws} sets of matched experts. Margins and "
        f"changes in nats, means over the test half. The smallest p that {draws} sets allow is 1/{draws + 1}, "
        f"{number(min(1.0, len(rows) / (draws + 1)))} after Holm's correction over {len(rows)} kinds. {sure} of "
        f"{len(rows)} are below .05. rank: correlation of attribution with the exact removal of single experts, on the "
        f"test half.\n\nMeasured on {result['machine']}."
    )
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *rows)]
    return head + "\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--top", type=int, default=5, help="contributions to remove (%(default)s)")
    parser.add_argument("--draws", type=int, default=250, help="matched sets (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=512, help="tokens that run together (%(default)s)")
    parser.add_argument("--kinds", nargs="+", default=list(kinds()))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    args = parser.parse_args()
    model = moelens.load(args.model)
    found = {kind: measure(model, kind, args) for kind in tqdm(args.kinds, desc="kinds")}
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
