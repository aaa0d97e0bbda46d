"""Shared helpers of the benchmarks: a description of the machine, interleaved timing, and summaries."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("moelens", "torch", "transformers", "transformer-lens", "datasets", "pyarrow")


def machine(*further: str) -> str:
    """Return one line with the processor, cores, GPU, Python, and the versions of `PACKAGES` and `further` packages."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in (*PACKAGES, *further))
    return f"{processor()}, {os.cpu_count()} cores, {gpu}, Python {platform.python_version()}, {versions}"


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Time several functions in interleaved rounds, so that other load on the machine affects all of them.

    Args:
        runs: the functions by name.
        rounds: how often each function is called.
        seed: of the order, which is drawn anew for each round.

    Returns:
        The seconds of each call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order, draw = list(runs), random.Random(seed)
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            began = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles of `values`."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": round(median, 3), "low": round(low, 3), "high": round(high, 3)}
