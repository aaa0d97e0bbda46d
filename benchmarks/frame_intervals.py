"""Simulate how often the intervals over frames hold the truth, at the numbers of frames that the contrasts have.

    python -m benchmarks.frame_intervals --out benchmarks/results/frame-intervals

Items of a frame vary together: a value is the frame's part plus the item's own. The truth is the mean over all frames
there could be: 0, and for shares the probability of a value above the threshold. A frame has 5 to 8 items, as in the
contrasts, unless the regime says otherwise; skewed frames follow a gamma distribution of shape 2. Beside the intervals
of `moelens.prefer` and `moelens.effect` stands the percentile bootstrap over frames (400 draws), which they do not use.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import machine
from moelens.analysis.arrays import Floats
from moelens.analysis.tables import plain_table
from moelens.interventions.scoring import mean_interval, share_interval

FRAMES = (3, 4, 5, 6, 7, 10, 14)
Draw = Callable[[np.random.Generator, int], Floats]
Sizes = tuple[int, int]
REGIMES: dict[str, tuple[Draw, float, Sizes]] = {
    # name: what a frame adds `[frame]`; how many times as far as frames the items of one frame vary; items of a frame
    "frames and items vary alike": (lambda rng, n: rng.normal(0, 1, n), 1.0, (5, 8)),
    "frames vary most": (lambda rng, n: rng.normal(0, 1, n), 0.3, (5, 8)),
    "items vary most": (lambda rng, n: rng.normal(0, 1, n), 3.0, (5, 8)),
    "2 items of each frame": (lambda rng, n: rng.normal(0, 1, n), 1.0, (2, 2)),
    "1 to 20 items of a frame": (lambda rng, n: rng.normal(0, 1, n), 1.0, (1, 20)),
    "frames are skewed": (lambda rng, n: rng.gamma(2.0, 1.0, n) / np.sqrt(2) - np.sqrt(2), 1.0, (5, 8)),
}
HEADER = ("regime", "frames", "mean", "share of about .76", "bootstrap of the mean")
_THRESHOLD = -1.0


def simulate(regime: str, frames: int, runs: int, seed: int = 0) -> tuple[float, float, float]:
    """Return the shares of runs in which each interval holds the truth, NaN where none is given."""
    draw, spread, (fewest, most) = REGIMES[regime]
    rng = np.random.default_rng([seed, frames, list(REGIMES).index(regime)])
    many = draw(rng, 300_000) + spread * rng.normal(0, 1, 300_000)
    truth = float((many > _THRESHOLD).mean())
    held = np.zeros(3)
    for _ in range(runs):
        frame = np.repeat(np.arange(frames), rng.integers(fewest, most + 1, frames))
        values = draw(rng, frames)[frame] + spread * rng.normal(0, 1, len(frame))
        low, high = mean_interval(values, frame)
        held[0] += low <= 0 <= high
        low, high = share_interval((values > _THRESHOLD).astype(float), frame)
        held[1] += low <= truth <= high
        low, high = _percentile_interval(values, frame, rng)
        held[2] += low <= 0 <= high
    if np.isnan(mean_interval(values, frame)).any():
        held[:2] = np.nan
    mean, share, bootstrap = (held / runs).tolist()
    return mean, share, bootstrap


def _percentile_interval(values: Floats, frame: Floats, rng: np.random.Generator) -> tuple[float, float]:
    n = int(frame.max()) + 1
    sums, sizes = np.bincount(frame, weights=values, minlength=n), np.bincount(frame, minlength=n)
    drawn = rng.integers(0, n, (400, n))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def _cell(value: float) -> str:
    return "none" if np.isnan(value) else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="runs of each cell (%(default)s)")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    args = parser.parse_args()
    found = {(r, n): simulate(r, n, args.runs) for r in REGIMES for n in FRAMES}
    rows = [(regime, str(n), *map(_cell, shares)) for (regime, n), shares in found.items()]
    print(plain_table(HEADER, rows))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *rows)]
        args.out.with_suffix(".md").write_text(f"{args.runs} runs a row.\n\n" + "\n".join(lines) + "\n", "utf-8")
        cells = [{"regime": r, "frames": n, "held": [_cell(v) for v in v3]} for (r, n), v3 in found.items()]
        text = json.dumps({"machine": machine(), "runs": args.runs, "cells": cells}, ensure_ascii=False)
        args.out.with_suffix(".json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
