"""Train the bundled demo model: `python -m moelens.demo.train --works FOLDER --dialogues FOLDER --out DIR`.

The model is a `DeepseekV3ForCausalLM` that is small enough for one CPU core. Its load is balanced without an auxiliary
loss: after each step the selection bias of every expert moves by a fixed amount towards the mean load (Wang et al.
2024, arXiv 2408.15664). The run is seeded, uses a CUDA device if there is one, and resumes from `DIR/checkpoint`. At
the end it writes the model, its tokenizer and its card. `--measure` prints the speed of each way to compute a step,
and stops.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moelens.demo.card import write_model_card
from moelens.demo.evaluate import evaluate_held_out
from moelens.demo.texts import Ints, TrainingRows, build_tokenizer, encode, read_documents, row_starts

_SOURCES = ("works", "dialogues")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the result, except the corpus.

    Attributes:
        steps: number of training steps.
        rows: rows of tokens in a step.
        context: tokens in a row, with the <s> before it.
        dialogue_share: share of dialogues among all rows.
        vocab_size: number of token types.
        muon_lr: learning rate of Muon.
        adam_lr: learning rate of AdamW.
        warmup: steps in which the learning rate rises linearly.
        decay: last share of the run, in which the learning rate falls linearly.
        bias_step: change of the selection biases in a step.
        capacity: number of tokens that an expert computes in a step, divided by the mean; further tokens skip it.
        seed: seed of the initial weights and of the order of the rows.
    """

    steps: int = 5600
    rows: int = 32
    context: int = 256
    dialogue_share: float = 0.36
    vocab_size: int = 6000
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    warmup: int = 100
    decay: float = 0.4
    bias_step: float = 0.002
    capacity: float = 1.5
    seed: int = 0

    @property
    def seen_tokens(self) -> int:
        """Number of tokens of the corpus in all batches, without the <s> of each row."""
        return self.steps * self.rows * (self.context - 1)


def build_model(recipe: Recipe) -> DeepseekV3ForCausalLM:
    """Make the model with random weights."""
    torch.manual_seed(recipe.seed)
    config = DeepseekV3Config(
        vocab_size=recipe.vocab_size,
        hidden_size=192,
        intermediate_size=512,
        moe_intermediate_size=96,
        num_hidden_layers=5,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_rope_head_dim=16,
        qk_nope_head_dim=32,
        v_head_dim=48,
        n_routed_experts=32,
        num_experts_per_tok=4,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        dtype="float32",
    )
    config._experts_implementation = "grouped_mm"
    model = DeepseekV3ForCausalLM(config)
    for gate in _routers(model):
        nn.init.normal_(gate.weight, std=0.02)
    return model


def _routers(model: DeepseekV3ForCausalLM) -> list[Any]:
    return [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]


def _padded_experts(capacity: float) -> Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]:
    """An experts implementation whose shapes do not depend on the routing, so that it compiles to one graph.

    Each expert computes at most `capacity` times the mean number of tokens, as in Switch (Fedus et al. 2022, arXiv
    2101.03961, section 2.2); for further tokens its output is 0. It computes in the dtype of autocast.
    """

    def forward(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        (tokens, k), number, width = ids.shape, experts.num_experts, hidden.shape[1]
        room = -(-int(capacity * tokens * k / number) // 16) * 16
        expert, order = ids.flatten().sort(stable=True)
        first = torch.searchsorted(expert, torch.arange(number, device=ids.device))
        place = torch.arange(tokens * k, device=ids.device) - first[expert]
        slot = torch.where(place < room, expert * room + place, number * room)  # the last row is discarded
        dtype = (
            torch.get_autocast_dtype(ids.device.type) if torch.is_autocast_enabled(ids.device.type) else hidden.dtype
        )
        rows = hidden.to(dtype).new_zeros(number * room + 1, width).index_put((slot,), hidden.to(dtype)[order // k])
        gate, up = torch.bmm(rows[:-1].view(number, room, width), experts.gate_up_proj.transpose(1, 2)).chunk(2, -1)
        out = torch.bmm(F.silu(gate) * up, experts.down_proj.transpose(1, 2)).view(number * room, width)
        out = torch.cat([out, out.new_zeros(1, width)])
        back = torch.empty_like(slot).index_put((order,), slot)
        return (out[back].view(tokens, k, width) * weights[..., None]).sum(1).to(hidden.dtype)

    return forward


class _Optimizers:
    """Muon for the matrices, including those of each expert; AdamW for embeddings, gates and norms."""

    def __init__(self, model: DeepseekV3ForCausalLM, recipe: Recipe) -> None:
        named = dict(model.named_parameters())
        matrices = [p for n, p in named.items() if p.ndim == 2 and "embed" not in n and "gate.weight" not in n]
        # Muon accepts matrices only. Those of an expert are views of the parameter that holds all experts of a layer.
        self._stacked = {n: p for n, p in named.items() if p.ndim == 3}
        self._views = {n: [nn.Parameter(m) for m in p.data.unbind()] for n, p in self._stacked.items()}
        matrices += [view for views in self._views.values() for view in views]
        rest = [p for n, p in named.items() if p.ndim == 1 or "embed" in n or "gate.weight" in n]
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.01),
        ]
        self._base = [[group["lr"] for group in o.param_groups] for o in self.all]
        self._parameters = list(named.values())

    def step(self, factor: float) -> None:
        """One step at `factor` times the learning rates, with the gradient's norm clipped at 1."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for name, views in self._views.items():
            grad = self._stacked[name].grad
            for view, own in zip(views, grad.unbind() if grad is not None else [None] * len(views), strict=True):
                view.grad = own
        for optimizer, rates in zip(self.all, self._base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None


def _schedule(step: int, recipe: Recipe) -> float:
    """The factor of the learning rates: it rises linearly, stays at 1, and falls linearly in the last part."""
    left = (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, max(0.02, left))


class _Balance:
    """Counts the tokens of each expert and moves the selection biases towards an even load."""

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        self.gates = _routers(model)
        self.load = torch.zeros(len(self.gates), self.gates[0].num_experts, device=model.device)
        self._handles = [gate.register_forward_hook(self._counter(row)) for row, gate in enumerate(self.gates)]

    def _counter(self, row: int) -> Callable[..., None]:
        def count(module: Any, args: Any, output: tuple[Tensor, ...]) -> None:
            ids = output[2].flatten()
            self.load[row].scatter_add_(0, ids, torch.ones_like(ids, dtype=torch.float32))

        return count

    @torch.no_grad()
    def move(self, amount: float) -> None:
        """Move the biases by `amount`, up where the load is below the mean, and start to count anew."""
        for gate, load in zip(self.gates, self.load, strict=True):
            gate.e_score_correction_bias += amount * torch.sign(load.mean() - load)
        self.load.zero_()


def _save_checkpoint(folder: Path, step: int, model: nn.Module, optimizers: _Optimizers) -> None:
    """Write the model and the optimizers, so that an interrupted write keeps the checkpoint before it."""
    tensors = {f"model.{k}": v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, optimizer in enumerate(optimizers.all):
        for key, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}.{n}": v.clone() for n, v in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "next.safetensors", metadata={"step": str(step)})
    (folder / "next.safetensors").replace(folder / "checkpoint.safetensors")


def _load_checkpoint(folder: Path, model: nn.Module, optimizers: _Optimizers) -> int:
    """Load the checkpoint in `folder`, if there is one. Returns the number of steps done."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    for i, optimizer in enumerate(optimizers.all):
        whole = optimizer.state_dict()
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, key, field = name.split(".")
                whole["state"].setdefault(int(key), {})[field] = value
        optimizer.load_state_dict(whole)
    with safe_open(path, "pt") as f:
        return int(f.metadata()["step"])


class TrainingStep:
    """A training step: forward and backward pass, optimizers, balance. Calling it runs one step and returns the loss.

    Args:
        model: the model.
        recipe: the recipe.
        bf16: whether to compute in bfloat16 by autocast.
        compiled: whether to compile the forward pass.
    """

    def __init__(self, model: DeepseekV3ForCausalLM, recipe: Recipe, *, bf16: bool, compiled: bool) -> None:
        ALL_EXPERTS_FUNCTIONS.register("padded", _padded_experts(recipe.capacity))
        model.set_experts_implementation("padded")
        model.set_attn_implementation("eager")  # the fused kernel is slower in bfloat16 on a CPU
        self.model, self.recipe, self.bf16 = model.train(), recipe, bf16
        self.optimizers, self.balance = _Optimizers(model, recipe), _Balance(model)
        self._forward = torch.compile(model) if compiled else model

    def __call__(self, ids: Ints, step: int) -> float:
        batch = torch.from_numpy(ids).to(self.model.device)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self._forward(input_ids=batch, labels=batch).loss
        loss.backward()
        factor = _schedule(step, self.recipe)
        self.optimizers.step(factor)
        self.balance.move(self.recipe.bias_step * factor)
        return float(loss.detach())


def run_training(step: TrainingStep, rows: TrainingRows, checkpoint: Path, save_every: int = 100) -> None:
    """Run the steps that are not in the checkpoint yet.

    Args:
        step: the training step.
        rows: the rows to read.
        checkpoint: folder of the checkpoint.
        save_every: number of steps after which the checkpoint is written.
    """
    recipe = step.recipe
    first = _load_checkpoint(checkpoint, step.model, step.optimizers)
    mean = 0.0
    with tqdm(total=recipe.steps, initial=first, desc="training", unit="step", mininterval=5) as bar:
        for number in range(first, recipe.steps):
            loss = step(rows.batch(number, recipe.rows), number)
            mean = loss if number == first else 0.98 * mean + 0.02 * loss
            bar.set_postfix(nats=f"{mean:.3f}", refresh=False)
            bar.update()
            if (number + 1) % save_every == 0:
                _save_checkpoint(checkpoint, number + 1, step.model, step.optimizers)


def _print_speeds(rows: TrainingRows, recipe: Recipe, device: str) -> None:
    """Print tokens per second for each way to compute a step of 8,192 tokens: the median of five steps."""
    for (shape, context), bf16, compiled in product([(64, 128), (32, 256)], [False, True], [False, True]):
        tried = replace(recipe, rows=shape, context=context)
        step = TrainingStep(build_model(tried).to(device), tried, bf16=bf16, compiled=compiled)
        seconds = []
        for number in range(8):  # the first three compile and warm up
            started = time.perf_counter()
            step(rows.batch(number, shape)[:, :context], number)
            seconds.append(time.perf_counter() - started)
        speed = shape * context / sorted(seconds[3:])[2]
        kind = ("bfloat16" if bf16 else "float32") + (", compiled" if compiled else "")
        print(f"{device}, {torch.get_num_threads()} threads, {shape} x {context}, {kind}: {speed:,.0f} tokens/s")


def _save_model(model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the weights in bfloat16 to halve the file, but the selection biases in float32, as transformers does."""
    state = {
        k: v if "e_score_correction_bias" in k else v.to(torch.bfloat16)
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"
    }
    model.config.architectures = ["DeepseekV3ForCausalLM"]
    model.config.save_pretrained(out)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(out)


def main(argv: list[str] | None = None) -> None:
    """Train the model, evaluate it, and write it with its card."""
    parser = argparse.ArgumentParser(prog="python -m moelens.demo.train", description=__doc__.splitlines()[0])
    for name in _SOURCES:
        parser.add_argument(
            f"--{name}", type=Path, required=True, help="folder of train*.jsonl[.gz] and valid*.jsonl[.gz]"
        )
    parser.add_argument("--out", type=Path, default=Path("demo-model"), help="folder to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="number of training steps (%(default)s)")
    parser.add_argument("--rows", type=int, default=Recipe.rows, help="number of rows in a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of the run (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads (%(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast to bfloat16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile")
    parser.add_argument("--measure", action="store_true", help="speed of each way to compute a step, then stop")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Recipe(steps=args.steps, rows=args.rows, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    texts = {name: read_documents(getattr(args, name), "train") for name in _SOURCES}
    held_out = {name: read_documents(getattr(args, name), "valid") for name in _SOURCES}
    samples = [t[:4000] for t in texts["works"][::2]] + texts["dialogues"][::3]
    tokenizer = build_tokenizer(samples, recipe.vocab_size)
    streams = {name: encode(tokenizer, own) for name, own in texts.items()}
    width = recipe.context - 1
    starts = [row_starts(stream, tokenizer, width) for stream in streams.values()]
    shares = (1 - recipe.dialogue_share, recipe.dialogue_share)
    rows = TrainingRows(list(streams.values()), starts, shares, recipe.steps * recipe.rows, width, recipe.seed)
    if args.measure:
        _print_speeds(rows, recipe, device)
        return
    if not (args.out / "model.safetensors").exists():  # an existing model is evaluated again
        model = build_model(recipe).to(device)
        step = TrainingStep(model, recipe, bf16=args.bf16, compiled=args.compile)
        run_training(step, rows, args.out / "checkpoint")
        _save_model(model, tokenizer, args.out)

    # The rounded weights are read back, so that the evaluation is of the model that is shipped.
    shipped = DeepseekV3ForCausalLM.from_pretrained(
        args.out, dtype=torch.float32, experts_implementation="grouped_mm", trust_remote_code=False
    )
    held_out_streams = {name: encode(tokenizer, own) for name, own in held_out.items()}
    report = {
        "documents": {name: [len(texts[name]), len(held_out[name])] for name in _SOURCES},
        "train_tokens": {name: len(stream) for name, stream in streams.items()},
        "seen_tokens": recipe.seen_tokens,
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "recipe": asdict(recipe),
        "held_out": evaluate_held_out(shipped, tokenizer, streams, held_out_streams, recipe.context),
    }
    write_model_card(report, args.out)
    shutil.rmtree(args.out / "checkpoint", ignore_errors=True)


if __name__ == "__main__":
    main()
