"""Measure the cost of recording: tokens per second relative to the bare forward pass, and bytes on disk.

    python -m benchmarks.recording [--routing FILE] [--json]

All passes run over the same documents, in an order drawn anew for each round. The result is the median of the ratios of
the rounds, in seconds and in processor time of all threads; use the latter if other work shares the cores. The bundled
model is the hardest case, because it computes least for each byte that is recorded. A random model with the proportions
of OLMoE represents models of realistic size. Recording computes no logits over the vocabulary, so the result contains
both bare passes, with logits and without. `--routing FILE.npz` gives real routes, whose size on disk is measured too:
`expert_ids` and `gate_weights`, `[token, layer, slot]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from numpy.typing import NDArray

import moelens
from benchmarks.machine import interleaved, machine, spread
from moelens.checksums import same_file
from moelens.recording.captures import CaptureRequest, bytes_per_token
from moelens.recording.pieces import Chunk, Rows
from moelens.recording.recorder import CHUNK_BATCHES, chunks
from moelens.recording.storage import Folder
from moelens.recording.value_checks import wrong_values
from moelens.recording.windows import batches, windows
from moelens.recording.writer import ShardWriter, as_column, layer_label

BATCH_TOKENS = 4096
INSIDE = ["routes", "neurons", "expert_outputs"]
OLMOE = {
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 32,
    "num_experts_per_tok": 8,
}
GEOMETRIES = {
    "DeepSeek-V3": (58, 8, 256),
    "Qwen3-30B-A3B": (48, 8, 128),
    "Mixtral-8x7B": (32, 2, 8),
    "top-1 of 16": (24, 1, 16),
    "top-8 of 512": (48, 8, 512),
}


def random_olmoe() -> moelens.HookedMoE:
    """Build a random model with half of OLMoE's widths and layers and the vocabulary of the bundled tokenizer."""
    tokenizer = moelens.load("demo").tokenizer
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(**OLMOE, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    return moelens.hook(transformers.OlmoeForCausalLM(config).eval(), tokenizer)


def bare_passes(model: moelens.HookedMoE, corpus: list[str], return_type: Any = "logits") -> int:
    """Run only the forward passes, over the same batches as `moelens.record`, and return the number of tokens."""
    source, pieces, tokens = moelens.Corpus.of(corpus), [(0, len(corpus))], 0
    for chunk in chunks(model.tokenizer, source, pieces, [0], CHUNK_BATCHES * BATCH_TOKENS):
        tokens += forward_chunk(model, chunk, return_type)
    return tokens


@torch.no_grad()
def forward_chunk(model: moelens.HookedMoE, chunk: Chunk, return_type: Any) -> int:
    """Run the forward passes of one chunk of documents and return its number of tokens."""
    rows = Rows.of(chunk)
    for batch in batches(windows([len(i.ids) for i in chunk.items], model.context_length), BATCH_TOKENS):
        ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, window in enumerate(batch):
            ids[i, : len(window)] = torch.from_numpy(rows.ids[window.start : window.stop])
            mask[i, : len(window)] = 1
        model(ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, return_type=return_type)
    return len(rows.doc)


def throughput(model: moelens.HookedMoE, corpus: list[str], rounds: int) -> dict[str, Any]:
    """Return the tokens per second of recording relative to the bare forward pass, for each choice of captures."""
    layers = [model.shape.moe_layers[0], model.shape.moe_layers[-1]]
    cpu: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            began = time.process_time()
            run()
            cpu.setdefault(name, []).append(time.process_time() - began)

        return call

    def record(**options: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            moelens.record(model, corpus, f"{folder}/run", batch_tokens=BATCH_TOKENS, progress=False, **options)

    runs: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare_passes(model, corpus),
        "bare without logits": lambda: bare_passes(model, corpus, None),
        "routes": record,
        "neurons and expert_outputs of two layers": lambda: record(capture=INSIDE, layers=layers),
    }
    tokens = bare_passes(model, corpus)
    seconds = interleaved({name: timed(name, run) for name, run in runs.items()}, rounds)
    wanted = CaptureRequest.of(model, INSIDE, layers, None, "float16")
    found: dict[str, Any] = {
        "tokens": tokens,
        "bytes captured a token, inside": sum(bytes_per_token(wanted, model.shape).values()),
        "bare, tokens/s": spread([tokens / s for s in seconds["bare"]]),
    }
    for base in ("bare", "bare without logits"):
        for name in [n for n in runs if not n.startswith("bare")]:
            for unit, taken in (("seconds", seconds), ("processor time", cpu)):
                ratios = [b / s for b, s in zip(taken[base], taken[name], strict=True)]
                found[f"{name} / {base}, in {unit}"] = spread(ratios)
    return found


def size_on_disk(indices: NDArray[Any], weights: NDArray[Any]) -> dict[str, float]:
    """Return bytes on disk over raw bytes, and tokens written per second, of routes `[token, layer, slot]`."""
    columns = {}
    for layer in range(indices.shape[1]):
        columns[f"experts_{layer_label(layer)}"] = as_column(np.ascontiguousarray(indices[:, layer]))
        columns[f"weights_{layer_label(layer)}"] = as_column(np.ascontiguousarray(weights[:, layer]))
    table, raw = pa.table(columns), indices.nbytes + weights.nbytes
    with tempfile.TemporaryDirectory() as name:
        folder = Folder.at(name)
        writer = ShardWriter(folder, "routes.parquet")
        began, cpu = time.perf_counter(), time.process_time()
        writer.write(table)
        writer.close()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        return {
            "disk / raw": folder.size("routes.parquet") / raw,
            "tokens/s": len(indices) / took,
            "tokens a second of processor time": len(indices) / cpu,
        }


def sizes(routing: Path | None) -> dict[str, dict[str, float]]:
    """Return the size on disk of real routes, if given, and of random routes in several shapes."""
    generator = np.random.default_rng(0)
    found = {}
    if routing:
        real = np.load(routing)
        _, layers, k = real["expert_ids"].shape
        size = size_on_disk(real["expert_ids"], real["gate_weights"].astype("f2"))
        found[f"real routing ({layers} layers, top-{k})"] = size
    for name, (layers, k, experts) in GEOMETRIES.items():
        shape = (1 << 16, layers, k)  # as many tokens as in a chunk of a recording
        indices = generator.integers(0, experts, shape).astype(np.uint8 if experts <= 256 else np.uint16)
        scores = generator.random(shape)
        weights = (scores / scores.sum(-1, keepdims=True)).astype(np.float16)  # the worst case
        found[f"{name}, random"] = size_on_disk(indices, weights)
    return found


def checks(rounds: int, tokens: int = 1 << 18) -> dict[str, dict[str, float]]:
    """Return what the checks of a file cost once in a session, over the processor time of reading the whole file."""
    found = {}
    generator = np.random.default_rng(0)
    scores = generator.random((tokens, 4, 8))
    routes = {"doc": np.repeat(np.arange(tokens // 16, dtype=np.int32), 16)}
    routes |= {name: np.tile(np.arange(16, dtype=np.int32), tokens // 16) for name in ("pos", "char_start")}
    routes["char_end"] = routes["char_start"] + 1
    for layer in range(4):
        routes[f"experts_{layer_label(layer)}"] = generator.integers(0, 64, (tokens, 8)).astype(np.uint8)
        routes[f"weights_{layer_label(layer)}"] = (scores / scores.sum(-1, keepdims=True))[:, layer].astype(np.float16)
    few = {name: values[: tokens // 4] for name, values in routes.items() if name in ("doc", "pos")}
    vectors = few | {"values": generator.standard_normal((tokens // 4, 256)).astype(np.float16)}
    about = {"shape": {"n_experts": 64, "top_k": 8}, "n_documents": tokens // 16}
    lengths = np.full(tokens // 16, 16)
    for name, columns in {"routes": routes, "vectors": vectors}.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file.parquet"
            writer = ShardWriter(Folder.at(folder), path.name)
            writer.write(pa.table({column: as_column(values) for column, values in columns.items()}))
            expected = {"xxh3": writer.close().xxh3}
            ratios: dict[str, list[float]] = {"checksum": [], "values": []}
            for _ in range(rounds):
                began = time.process_time()
                table = pq.read_table(path, use_threads=False)
                read = time.process_time()
                same_file(path, {"xxh3": f"{expected['xxh3']} "})  # not remembered
                compared = time.process_time()
                assert not wrong_values(table, about, lambda: lengths)
                ratios["checksum"].append((compared - read) / (read - began))
                ratios["values"].append((time.process_time() - compared) / (read - began))
            found |= {f"{check} of a file of {name} / reading it": spread(r) for check, r in ratios.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of recording, as ratios.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=3, help="how often each pass is measured (%(default)s)")
    parser.add_argument("--routing", type=Path, help=".npz with real routes")
    args = parser.parse_args()
    demo = [document.text for document in moelens.Corpus.of("demo")]
    result = {
        "machine": machine(),
        "throughput": {
            "bundled model": throughput(moelens.load("demo"), demo * 6, args.rounds),
            "random OLMoE, half as wide": throughput(random_olmoe(), demo[::2], args.rounds),
        },
        "size": sizes(args.routing),
        "checks": checks(9 * args.rounds),
    }
    print(json.dumps(result, indent=1, ensure_ascii=False) if args.json else table(result))


def table(result: dict[str, Any]) -> str:
    """Format the result as text."""
    lines = [result["machine"]]
    for model, found in result["throughput"].items():
        shown = {k: v["median"] if isinstance(v, dict) else v for k, v in found.items()}
        lines += [model, *(f"{v:12,.2f}  {k}" for k, v in shown.items())]
    lines += [f"{v['disk / raw']:12.3f}  {v['tokens/s']:12,.0f} tokens/s  {k}" for k, v in result["size"].items()]
    lines += [f"{v['median']:12.3f}  {k}" for k, v in result["checks"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
