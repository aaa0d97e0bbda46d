"""What recording routes costs on a GPU: a model of 30 B parameters (Qwen3-30B-A3B's shape) in random bfloat16 weights.

    python -m benchmarks.gpu --json

Time over the bare forward's in prefill and in decoding, interleaved, as median and quartiles, and how often the host
waits for the device inside a forward pass, with and without capture, as the profiler counts it. Without a CUDA device
it says that it did not run; `--tiny` runs the same code on whatever there is with a small model, to see that it works.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

import moelens
from benchmarks.machine import interleaved, machine, spread
from moelens.recording.captures import CaptureRequest
from moelens.recording.collector import Collector

SHAPE = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "max_position_embeddings": 8192,
}  # fmt: skip
TINY = SHAPE | {"vocab_size": 1000, "hidden_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "head_dim": 32, "num_experts": 16}  # fmt: skip
PREFILL, DECODE, STEPS = (4, 2048), 16, 32
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item")


def build(tiny: bool, device: str) -> moelens.HookedMoE:
    """Random weights, made where they are used: they never pass through the host."""
    config = transformers.AutoConfig.for_model("qwen3_moe", **(TINY if tiny else SHAPE))
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return moelens.hook(model.eval())


def ready() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Capture:
    """Forward passes, bare or with routes captured and brought to the host as `moelens record` does."""

    def __init__(self, model: moelens.HookedMoE) -> None:
        self.model = model
        self.collector = Collector(model, CaptureRequest.of(model, "routes", None, None, "float16"))

    @torch.no_grad()
    def bare(self, ids: Tensor, **options: Any) -> Any:
        out = self.model.hf_model(ids, **options)
        ready()
        return out

    @torch.no_grad()
    def captured(self, ids: Tensor, **options: Any) -> Any:
        self.collector.begin(torch.arange(ids.numel()))
        with self.model.hooks(fwd_hooks=self.collector.hooks):
            out = self.model.hf_model(ids, **options)
        self.collector.take(lambda token: token)
        return out

    def decode(self, forward: Callable[..., Any], ids: Tensor) -> None:
        """`STEPS` tokens, one by one, after a prompt."""
        cache = self.bare(ids, use_cache=True).past_key_values
        for _ in range(STEPS):
            forward(ids[:, -1:], use_cache=True, past_key_values=cache)

    def waits(self, forward: Callable[..., Any], ids: Tensor) -> dict[str, int]:
        """How often the host waited for the device inside one forward pass."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            forward(ids, use_cache=False)
        counted = {event.key: event.count for event in profile.key_averages()}
        return {name: counted.get(name, 0) for name in WAITS}

    @torch.no_grad()
    def inside(self, ids: Tensor, **options: Any) -> None:
        """The forward pass with hooks alone, without what follows it."""
        self.collector.begin(torch.arange(ids.numel()))
        with self.model.hooks(fwd_hooks=self.collector.hooks):
            self.model.hf_model(ids, **options)

    @torch.no_grad()
    def alone(self, ids: Tensor, **options: Any) -> None:
        self.model.hf_model(ids, **options)


def measure(tiny: bool, rounds: int) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = Capture(build(tiny, device))
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
        "waits inside a forward": {"bare": run.waits(run.alone, many), "routes": run.waits(run.inside, many)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=15, help="times each is measured (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a small model, on whatever there is: no figure to quote")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    result: dict[str, Any] = {"machine": machine()}
    if args.tiny or torch.cuda.is_available():
        result |= measure(args.tiny, args.rounds)
    else:
        result["did not run"] = "no CUDA device"
    print(json.dumps(result, indent=1) if args.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
