"""Measure the cost of recording routes on a GPU, for a model of 30 B parameters with random bfloat16 weights.

    python -m benchmarks.gpu --json

The model has the shape of Qwen3-30B-A3B. The result is the time relative to the bare forward pass, in prefill and in
decoding, as median and quartiles of interleaved runs. It also contains how often the host waits for the device within a
forward pass, with and without capture, as the profiler counts it, the tokens that `record` writes per second, the peak
of the memory, and how many choices of the bundled model differ from those on the CPU. Without a CUDA device the result
says that the benchmark did not run. `--tiny` runs the same code with a small model on any device, as a test of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

import moelens
from benchmarks.machine import interleaved, machine, spread
from moelens.models.loading import DEMO
from moelens.recording.captures import CaptureRequest
from moelens.recording.collector import Collector
from moelens.recording.writer import layer_label

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 8192,
}
TINY = SHAPE | {
    "vocab_size": 8192,
    "hidden_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 32,
    "num_experts": 16,
}
PREFILL, DECODE, STEPS, BATCHES = (4, 2048), 16, 32, 8
MARGIN = 1e-3  # below it, the order in which a device adds may decide which expert is chosen
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item")


def build(tiny: bool, device: str) -> moelens.HookedMoE:
    """Build the model with random weights directly on the device."""
    config = transformers.AutoConfig.for_model("qwen3_moe", **(TINY if tiny else SHAPE))
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO, trust_remote_code=False)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    return moelens.hook(model.eval(), tokenizer)


def synchronize() -> None:
    """Wait until the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], Any]) -> float | None:
    """Return the peak of the memory that a run takes on the GPU, in GB; None without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    return round(torch.cuda.max_memory_allocated() / 1e9, 3)


class ForwardPasses:
    """Forward passes of a model, without capture, or with routes captured and copied to the host as in recording."""

    def __init__(self, model: moelens.HookedMoE) -> None:
        self.model = model
        self.collector = Collector(model, CaptureRequest.of(model, "routes", None, None, "float16"))

    @torch.no_grad()
    def bare(self, ids: Tensor, **options: Any) -> Any:
        """Run the model without capture and wait for the device."""
        out = self.model.hf_model(ids, **options)
        synchronize()
        return out

    @torch.no_grad()
    def captured(self, ids: Tensor, **options: Any) -> Any:
        """Run the model and capture its routes."""
        self.collector.begin(torch.arange(ids.numel()))
        with self.model.hooks(fwd_hooks=self.collector.hooks):
            out = self.model.hf_model(ids, **options)
        self.collector.take(lambda token: token)
        return out

    def decode(self, forward: Callable[..., Any], ids: Tensor) -> None:
        """Decode `STEPS` tokens one by one after a prompt."""
        cache = self.bare(ids, use_cache=True).past_key_values
        for _ in range(STEPS):
            forward(ids[:, -1:], use_cache=True, past_key_values=cache)

    def count_waits(self, forward: Callable[..., Any], ids: Tensor) -> dict[str, int]:
        """Count how often the host waits for the device within one forward pass."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            forward(ids, use_cache=False)
        counted = {event.key: event.count for event in profile.key_averages()}
        return {name: counted.get(name, 0) for name in WAITS}

    @torch.no_grad()
    def hooks_only(self, ids: Tensor, **options: Any) -> None:
        """Run the model with the hooks of the capture, but do not copy the routes to the host."""
        self.collector.begin(torch.arange(ids.numel()))
        with self.model.hooks(fwd_hooks=self.collector.hooks):
            self.model.hf_model(ids, **options)

    @torch.no_grad()
    def model_only(self, ids: Tensor, **options: Any) -> None:
        """Run the model without capture, and do not wait for the device."""
        self.model.hf_model(ids, **options)


def measure_cost(tiny: bool, rounds: int) -> dict[str, Any]:
    """Return the relative times and the numbers of waits."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = ForwardPasses(build(tiny, device))
    vocabulary = (TINY if tiny else SHAPE)["vocab_size"]
    many = torch.randint(0, int(vocabulary), (2, 64) if tiny else PREFILL, device=device)
    prompt = torch.randint(0, int(vocabulary), (2, 16) if tiny else (DECODE, 256), device=device)
    runs = {
        "prefill, bare": lambda: run.bare(many, use_cache=False),
        "prefill, routes": lambda: run.captured(many, use_cache=False),
        "decode, bare": lambda: run.decode(run.bare, prompt),
        "decode, routes": lambda: run.decode(run.captured, prompt),
    }
    for warm in runs.values():
        warm()
    seconds = interleaved(runs, rounds)

    def ratio(phase: str) -> dict[str, float]:
        pairs = zip(seconds[f"{phase}, routes"], seconds[f"{phase}, bare"], strict=True)
        return spread([captured / bare for captured, bare in pairs])

    return {
        "parameters": sum(p.numel() for p in run.model.hf_model.parameters()),
        "time over bare": {phase: ratio(phase) for phase in ("prefill", "decode")},
        "waits inside a forward": {
            "bare": run.count_waits(run.model_only, many),
            "routes": run.count_waits(run.hooks_only, many),
        },
        "recording": measure_recording(run, rounds, *((2, 64) if tiny else PREFILL)),
        "peak of device memory, GB": {
            "bare": peak_memory(lambda: run.bare(many, use_cache=False)),
            "routes": peak_memory(lambda: run.captured(many, use_cache=False)),
        },
    }


def measure_recording(run: ForwardPasses, rounds: int, texts: int, tokens: int) -> dict[str, Any]:
    """Return the tokens that `record` writes per second, relative to the bare forward passes of the same batches.

    Args:
        run: The model.
        rounds: How often each is measured, at most 5 times.
        texts: Number of texts in a batch.
        tokens: Number of tokens in each text.
    """
    tokenizer = run.model.tokenizer
    whole = "".join(document.text for document in moelens.Corpus.of("demo"))
    ids = tokenizer(whole * (texts * tokens // len(whole) + 2), add_special_tokens=False)["input_ids"]
    count = BATCHES * texts
    batch = torch.tensor([ids[:tokens]] * texts, device=run.model.device)
    documents = [tokenizer.decode(ids[i : i + tokens]) for i in range(count)]

    def bare() -> None:
        for _ in range(BATCHES):
            run.bare(batch, use_cache=False, logits_to_keep=1)

    written = 0

    def record() -> None:
        nonlocal written
        with tempfile.TemporaryDirectory() as folder:
            options = {"batch_tokens": 2 * texts * tokens, "context": 2 * tokens, "progress": False}
            written = moelens.record(run.model, documents, f"{folder}/run", **options).n_tokens

    runs = {"bare": bare, "record": record}
    for warm in runs.values():
        warm()
    seconds = interleaved(runs, min(rounds, 5))
    rates = [
        (written / recorded) / (count * tokens / plain)
        for plain, recorded in zip(seconds["bare"], seconds["record"], strict=True)
    ]
    return {"tokens": written, "tokens per second over bare": spread(rates)}


def compare_routes(tiny: bool, device: str = "cuda") -> dict[str, Any]:
    """Return how many choices of the bundled model differ between the device and the CPU, by the margin on the CPU."""
    corpus = [document.text for document in moelens.Corpus.of("demo")][: 4 if tiny else None]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for place in ("cpu", device):
            out = f"{folder}/{len(found)}"
            model = moelens.load("demo", device_map=place)
            found.append(moelens.record(model, corpus, out, capture=["routes", "margin"], progress=False))
        return differing(*found)


def differing(a: moelens.Recording, b: moelens.Recording) -> dict[str, int]:
    """Return how many choices differ between two recordings of the same texts, by the margin in the first."""
    first, second = (np.sort(recording.indices(), axis=-1) for recording in (a, b))
    margin = np.stack([a.column(f"margin_{layer_label(layer)}") for layer in a.layers], 1)
    differ = (first != second).any(-1)
    clear = margin.astype(float) > MARGIN
    return {
        "choices": int(differ.size),
        "differ": int(differ.sum()),
        f"with a margin above {MARGIN:g}": int(clear.sum()),
        f"differ with a margin above {MARGIN:g}": int((differ & clear).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=15, help="how often each pass is measured (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="use a small model on any device, to test the code")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    result: dict[str, Any] = {"machine": machine()}
    if args.tiny or torch.cuda.is_available():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        result["routes of the bundled model, beside those of the CPU"] = compare_routes(args.tiny, device)
        result |= measure_cost(args.tiny, args.rounds)
    else:
        result["did not run"] = "no CUDA device"
    print(json.dumps(result, indent=1) if args.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
