"""What recording costs: tokens a second beside the bare forward pass, and bytes on disk beside raw bytes.

    python -m benchmarks.recording --json

Both forward passes run over the same batches of the bundled model, in turn, several times; the median ratio counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

import moelens
from moelens.recording.pieces import Chunk, Rows
from moelens.recording.recorder import CHUNK_BATCHES, chunks
from moelens.recording.storage import Folder
from moelens.recording.windows import batches, windows
from moelens.recording.writer import ShardWriter, as_column, layer_label

BATCH_TOKENS = 4096
INSIDE = ["routes", "neurons", "expert_outputs"]
GEOMETRIES = {"DeepSeek-V3": (58, 8, 256), "Qwen3-30B-A3B": (48, 8, 128), "Mixtral-8x7B": (32, 2, 8),
              "top-1 of 16": (24, 1, 16), "top-8 of 512": (48, 8, 512)}  # fmt: skip
REAL = Path(__file__).parents[2] / "shared" / "data" / "routing" / "esft_intent.npz"


def texts(repeat: int) -> list[str]:
    return [document.text for document in moelens.recording.Corpus.of("demo")] * repeat


def bare(model: moelens.HookedMoE, corpus: list[str]) -> int:
    """The forward passes alone, over the batches that `record` makes. Returns the number of tokens."""
    pieces = [(0, len(corpus))]
    source = moelens.recording.Corpus.of(corpus)
    tokens = 0
    for chunk in chunks(model.tokenizer, source, pieces, [0], CHUNK_BATCHES * BATCH_TOKENS):
        tokens += forward(model, chunk)
    return tokens


@torch.no_grad()
def forward(model: moelens.HookedMoE, chunk: Chunk) -> int:
    rows = Rows.of(chunk)
    for batch in batches(windows([len(i.ids) for i in chunk.items], model.context_length), BATCH_TOKENS):
        ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, window in enumerate(batch):
            ids[i, : len(window)] = torch.from_numpy(rows.ids[window.start : window.stop])
            mask[i, : len(window)] = 1
        model(ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
    return len(rows.doc)


def throughput(repeat: int, rounds: int) -> dict[str, float]:
    """Tokens a second while recording over those of the bare forward, by what is captured."""
    model, corpus = moelens.load("demo"), texts(repeat)
    layers = [model.shape.moe_layers[0], model.shape.moe_layers[-1]]

    def record(**options: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            moelens.record(model, corpus, f"{folder}/run", batch_tokens=BATCH_TOKENS, progress=False, **options)

    runs: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(model, corpus),
        "routes": record,
        "neurons and expert_outputs of two layers": lambda: record(capture=INSIDE, layers=layers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    pairs = {name: zip(seconds["bare"], seconds[name], strict=True) for name in runs if name != "bare"}
    found = {name: statistics.median(b / s for b, s in pair) for name, pair in pairs.items()}
    return found | {"bare, tokens/s": bare(model, corpus) / statistics.median(seconds["bare"])}


def size(indices: NDArray[Any], weights: NDArray[Any]) -> dict[str, float]:
    """Bytes on disk over raw bytes, and tokens a second written, of routes `[token, layer, slot]`."""
    columns = {}
    for layer in range(indices.shape[1]):
        columns[f"experts_{layer_label(layer)}"] = as_column(np.ascontiguousarray(indices[:, layer]))
        columns[f"weights_{layer_label(layer)}"] = as_column(np.ascontiguousarray(weights[:, layer]))
    table, raw = pa.table(columns), indices.nbytes + weights.nbytes
    with tempfile.TemporaryDirectory() as where:
        folder = Folder.at(where)
        writer = ShardWriter(folder, "routes.parquet")
        began = time.perf_counter()
        writer.write(table)
        writer.close()
        took = time.perf_counter() - began
        return {"disk / raw": folder.size("routes.parquet") / raw, "tokens/s": len(indices) / took}


def sizes() -> dict[str, dict[str, float]]:
    generator = np.random.default_rng(0)
    found = {}
    if REAL.exists():
        real = np.load(REAL)
        found["real routing (26 layers, top-6 of 64)"] = size(real["expert_ids"], real["gate_weights"].astype("f2"))
    for name, (layers, k, experts) in GEOMETRIES.items():
        shape = (1 << 16, layers, k)  # as many as a chunk of a recording
        indices = generator.integers(0, experts, shape).astype(np.uint8 if experts <= 256 else np.uint16)
        scores = generator.random(shape)
        weights = (scores / scores.sum(-1, keepdims=True)).astype(np.float16)  # nothing but normalised: the worst case
        found[f"{name}, random"] = size(indices, weights)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Costs of recording, as ratios.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--repeat", type=int, default=2, help="times the bundled corpus is run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured (%(default)s)")
    args = parser.parse_args()
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}",
        "throughput": throughput(args.repeat, args.rounds),
        "size": sizes(),
    }
    print(json.dumps(result, indent=1, ensure_ascii=False) if args.json else table(result))


def table(result: dict[str, Any]) -> str:
    lines = [result["machine"], *(f"{v:10.3g}  {k}" for k, v in result["throughput"].items())]
    lines += [f"{v['disk / raw']:10.3f}  {v['tokens/s']:12,.0f} tokens/s  {k}" for k, v in result["size"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
