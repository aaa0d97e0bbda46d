"""Compare the cost of capturing routes and activations with other tools, on the same small models.

    python -m benchmarks.capture --json

Every tool runs the same batch, in an order drawn anew for each round. The result is the time of a tool divided by the
time of the bare forward pass in the same round, as median and quartiles. To determine what a tool captures, the
benchmark searches the tensors that it returned for the quantities of a reference run. `benchmarks.gpu` measures a large
model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor

import moelens
from benchmarks.machine import interleaved, machine, spread

VOCABULARY, BATCH, POS = 4000, 8, 128
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            "intermediate_size": 768,
            "moe_intermediate_size": 192,
            "n_routed_experts": 32,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 64,
            "q_lora_rank": 128,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "num_key_value_heads": 8,
        },
    ),
    "Qwen3-MoE": (
        "qwen3_moe",
        {
            "intermediate_size": 768,
            "moe_intermediate_size": 192,
            "num_experts": 32,
            "num_key_value_heads": 4,
            "head_dim": 48,
            "norm_topk_prob": True,
        },
    ),
    "Mixtral": (
        "mixtral",
        {"intermediate_size": 384, "num_local_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    ),
    "OLMoE": ("olmoe", {"intermediate_size": 192, "num_experts": 32, "num_key_value_heads": 8}),
}
ROUTES = ("hook_expert_indices", "hook_topk_weights")
INSIDE = ("experts.hook_post", "experts.hook_out")
QUANTITIES = {
    "logits": ("hook_router_logits",),
    "ids": ("hook_expert_indices",),
    "weights": ("hook_topk_weights", "hook_expert_weights"),  # per slot, or per expert with zeros
    "neurons": ("experts.hook_post",),
    "outputs": ("experts.hook_out",),
}


def build(kind: str, settings: dict[str, Any], folder: str) -> None:
    """Save a random model whose weights are large enough that tokens get different routes."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(COMMON | settings))
    model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.04)
    model.save_pretrained(folder)


def load_model(folder: str) -> Any:
    """Load the model without hooks."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    return model.eval()


def moelens_cache(folder: str, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the ways to capture with moelens."""
    model = moelens.hook(load_model(folder))

    def cache(*stages: str) -> Any:
        with torch.no_grad():
            return model.run_with_cache(ids, names_filter=lambda name: name.endswith(stages))[1]

    return {
        "moelens: routes": lambda: cache(*ROUTES),
        "moelens: routes, logits": lambda: cache(*ROUTES, "hook_router_logits"),
        "moelens: routes, logits, neurons, outputs": lambda: cache(*ROUTES, "hook_router_logits", *INSIDE),
    }


def transformer_bridge(folder: str, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the ways to capture with TransformerLens's bridge."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = load_model(folder)
    lens = build_bridge_from_module(model, type(model).__name__, hf_config=model.config, tokenizer=None)

    def cache(**options: Any) -> Any:
        with torch.no_grad():
            return lens.run_with_cache(ids, **options)[1]

    def router(name: str) -> bool:
        return ".mlp.gate.hook_out" in name or "hook_expert" in name or "hook_router" in name

    return {
        "TransformerBridge: router hooks": lambda: cache(names_filter=router),
        "TransformerBridge: all": cache,
    }


def nnsight_trace(folder: str, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the way to capture with nnsight."""
    from nnsight import NNsight

    model = load_model(folder)
    traced = NNsight(model)
    layers = [i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")]

    def routers() -> Any:
        with torch.no_grad(), traced.trace(ids, use_cache=False):
            outputs = list().save()  # noqa: C408 (nnsight traces a call, but not a literal)
            for i in layers:
                outputs.append(traced.model.layers[i].mlp.gate.output)
        return outputs

    return {"nnsight: router outputs": routers}


def nnsight_source(folder: str, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the way to capture with nnsight inside the experts too, by lines of transformers' `grouped_mm`."""
    from nnsight import NNsight

    model = load_model(folder)
    traced = NNsight(model)
    layers = [i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")]

    def inside() -> Any:
        with torch.no_grad(), traced.trace(ids, use_cache=False):
            outputs = list().save()  # noqa: C408
            for i in layers:
                outputs.append(traced.model.layers[i].mlp.gate.output)
                experts = traced.model.layers[i].mlp.experts.source.experts_forward_1.source
                outputs.append(experts.self__apply_gate_0.output)
                outputs.append(experts._grouped_linear_1.output)
        return outputs

    return {"nnsight: routers, source of the experts": inside}


def output_router_logits(folder: str, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the way to capture with transformers alone."""
    model = load_model(folder)

    @torch.no_grad()
    def run() -> Any:
        return getattr(model(ids, use_cache=False, output_router_logits=True), "router_logits", None)

    return {"transformers: output_router_logits": run}


def bare(folder: str, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the forward pass without any capture."""
    model = load_model(folder)

    @torch.no_grad()
    def run() -> None:
        model(ids, use_cache=False)

    return {"bare": run}


TOOLS = (bare, moelens_cache, transformer_bridge, nnsight_trace, nnsight_source, output_router_logits)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in the value that a tool returned."""
    if isinstance(value, Tensor):
        yield value
    elif hasattr(value, "values") and callable(value.values):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def bytes_held(value: Any) -> int:
    """Return the bytes of the storages behind the tensors that a tool returned; a shared storage counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(value)}.values())


def captured_quantities(value: Any, reference: dict[str, list[Tensor]]) -> list[str]:
    """Return which quantities of the last layer are among the tensors, in any order of tokens and slots."""

    def numbers(tensor: Tensor) -> Tensor:
        return tensor.detach().float().flatten().sort().values

    def same(a: Tensor, b: Tensor) -> bool:
        return len(a) == len(b) and torch.allclose(a, b, atol=1e-4, rtol=1e-3)

    given = [numbers(tensor) for tensor in tensors(value)]
    return [n for n, wanted in reference.items() if any(same(g, numbers(w)) for w in wanted for g in given)]


def compare_tools(kind: str, settings: dict[str, Any], rounds: int) -> dict[str, dict[str, Any]]:
    """Return for each way to capture its relative time, the memory it holds, and the quantities it captures."""
    ids = torch.randint(3, VOCABULARY, (BATCH, POS), generator=torch.Generator().manual_seed(1))
    runs: dict[str, Callable[[], Any]] = {}
    failed: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        build(kind, settings, folder)
        for tool in TOOLS:
            try:
                ways = tool(folder, ids)
                for way in ways.values():
                    way()
                runs |= ways
            except Exception as error:  # a tool that does not support the architecture is a result too
                failed[tool.__name__] = {"did not run": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
        model = moelens.hook(load_model(folder))
        last = f"blocks.{model.shape.moe_layers[-1]}.mlp."
        with torch.no_grad():
            cache = model.run_with_cache(ids, names_filter=lambda name: name.startswith(last))[1]
    reference = {name: [cache[last + point] for point in points] for name, points in QUANTITIES.items()}
    seconds = interleaved(runs, rounds)
    return {
        name: {
            "time over bare": spread([s / b for s, b in zip(seconds[name], seconds["bare"], strict=True)]),
            "MB held": round(bytes_held(value := run()) / 1e6, 1),
            "captured": captured_quantities(value, reference),
        }
        for name, run in runs.items()
        if name != "bare"
    } | failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=15, help="how often each way is measured (%(default)s)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="shapes to measure (all)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    result: dict[str, Any] = {
        "machine": machine("nnsight"),
        "batch": [BATCH, POS],
        "models": {name: compare_tools(*SHAPES[name], args.rounds) for name in args.shapes},
    }
    print(json.dumps(result, indent=1) if args.json else table(result))


def table(result: dict[str, Any]) -> str:
    """Format the result as text."""
    lines = [
        result["machine"],
        f"batch of {BATCH} x {POS} tokens; time relative to the bare forward pass: median [quartiles]",
    ]
    for model, ways in result["models"].items():
        lines.append(f"\n{model}")
        for name, row in ways.items():
            if "did not run" in row:
                lines.append(f"  {name:<44} did not run: {row['did not run']}")
                continue
            time = row["time over bare"]
            took = f"{time['median']:5.2f} [{time['low']:.2f}, {time['high']:.2f}]"
            captured = ", ".join(row["captured"]) or "none of them"
            lines.append(f"  {name:<44} {took} {row['MB held']:8.1f} MB  {captured}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
