"""Test for every kind of crossed contrast whether the experts found by attribution cause the model's preference.

    python -m benchmarks.causal demo --out benchmarks/results/causal-demo

For each kind, attribution on one half of the frames finds the experts with the largest contributions. On the other half
they are removed together, beside sets of as many matched experts. p is corrected over the honorific kinds (Holm), and
apart from them over the kinds that are controls (tense, polarity, animacy, noun), in which no honorific expert should
matter. Off target is the mean absolute change of the controls over the change of the kind itself.

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
from moelens.japanese import Contrast, contrast_kinds, contrasts

KINDS = list(contrast_kinds())
CONTROLS = {c.kind for c in contrasts() if c.control}
HEADER = (
    "kind",
    "items (frames)",
    "accuracy",
    "interaction",
    "experts",
    "removing them",
    "95 %",
    "accuracy then",
    "controls",
    "95 %",
    "p",
    "p Holm",
    "off target",
    "imbalance",
)


def chosen_items(kind: str, per_frame: int) -> list[Contrast]:
    """Return at most `per_frame` contrasts of each frame of a kind, evenly spread over its words; 0 for all."""
    frames: dict[str, list[Contrast]] = {}
    for contrast in contrasts(kind):
        frames.setdefault(contrast.frame, []).append(contrast)
    steps = {frame: max(1, len(found) // per_frame) if per_frame else 1 for frame, found in frames.items()}
    return [c for frame, found in frames.items() for c in found[:: steps[frame]][: per_frame or None]]


def attribute_and_remove(
    model: moelens.HookedMoE, kind: str, settings: argparse.Namespace
) -> tuple[Attribution, Effect]:
    """Return the attribution for a kind of pair, and the effect of removing its top routed experts together."""
    options = {"seed": settings.seed, "batch_tokens": settings.batch_tokens}
    items = chosen_items(kind, settings.per_frame)
    attribution = moelens.attribute(model, items, top=settings.top, **options)
    removals = [moelens.remove(c.layer, [c.expert]) for c in attribution.top if c.expert is not None]
    return attribution, moelens.effect(model, items, removals, draws=settings.draws, half="test", **options)


def table(found: dict[str, tuple[Attribution, Effect]]) -> list[tuple[str, ...]]:
    """Return a row for each kind of pair, in the columns of `HEADER`."""
    corrected: dict[str, float] = {}
    for family in ([k for k in found if k not in CONTROLS], [k for k in found if k in CONTROLS]):
        corrected |= zip(family, holm_correction([found[k][1].kinds[0].p for k in family]), strict=True)
    rows: list[tuple[str, ...]] = []
    for kind, (attribution, e) in found.items():
        k, top = e.kinds[0], [c.name for c in attribution.top if c.expert is not None]
        rows.append(
            (
                kind,
                f"{k.items} ({k.frames})",
                number(k.accuracy),
                signed_number(k.before),
                ", ".join(top),
                signed_number(k.change),
                signed_interval(k.low, k.high),
                number(k.accuracy_after),
                signed_number(k.control),
                signed_interval(k.control_low, k.control_high),
                number(k.p),
                number(corrected[kind]),
                number(e.off_target.ratio) if e.off_target else "–",
                number(max(abs(b.difference) for b in e.balance)),
            )
        )
    return rows


def markdown(found: dict[str, tuple[Attribution, Effect]], result: dict[str, Any]) -> str:
    """Format the results as a Markdown page."""
    rows, settings = table(found), result["settings"]
    honorific = [row for row in rows if row[0] not in CONTROLS]
    significant = sum(float(row[11]) < 0.05 for row in honorific)
    draws = settings["draws"]
    least = number(min(1.0, len(honorific) / (draws + 1)))
    of_frame = f"at most {settings['per_frame']} items of each frame" if settings["per_frame"] else "all items"
    head = (
        f"{settings['model']}, seed {settings['seed']}, {of_frame}. For each kind of contrast, the routed experts "
        f"among the {settings['top']} largest contributions are removed together, beside {draws} matched sets. "
        f"Interactions and changes are in nats, means over the test half; intervals are over frames. With {draws} "
        f"sets, p cannot be smaller than 1/{draws + 1}, or {least} after Holm's correction over {len(honorific)} "
        "honorific kinds; the controls are corrected among themselves. "
        f"{significant} of {len(honorific)} corrected "
        "p values of honorific kinds are below .05. Off target: mean absolute change of the control kinds over the "
        "change of the kind (selective at a third or less). Imbalance: the largest standardised difference "
        "between the removed set and the matched sets, in routed weight, output norm and load.\n\n"
        f"Measured on {result['machine']}."
    )
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *rows)]
    return head + "\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo", help="demo, a folder or a hub name (%(default)s)")
    parser.add_argument("--top", type=int, default=5, help="largest contributions to consider (%(default)s)")
    parser.add_argument("--draws", type=int, default=300, help="sets of matched experts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=512, help="tokens that run together (%(default)s)")
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="kinds of contrasts (all)")
    parser.add_argument("--per-frame", type=int, default=0, help="items of each frame, 0 for all (%(default)s)")
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
