"""Train the bundled demo model from scratch: `python -m moelens.demo.train --corpus FOLDER --out DIR`.

A `DeepseekV3ForCausalLM` small enough for two CPU cores, balanced without an auxiliary loss: after each step every
expert's selection bias moves by a fixed amount towards the mean load (Wang et al. 2024, arXiv 2408.15664). The run
is seeded and resumes from `DIR/checkpoint`; it ends by writing the model, its tokenizer and its card.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedTokenizerFast

from moelens.demo.card import Report, write_card
from moelens.demo.trigram import trigram_nats
from moelens.models.tokens import byte_alphabet

Ints = NDArray[np.int64]
BOS, EOS = "<s>", "</s>"
SCRIPT_RUNS = "[一-龥々]+|[ぁ-ゖ]+|[ァ-ヶー]+|[a-zA-Z]+|[0-9０-９]+|[^一-龥々ぁ-ゖァ-ヶーa-zA-Z0-9０-９]"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, besides the corpus."""

    steps: int = 6000
    rows: int = 16
    context: int = 128
    vocab_size: int = 6000
    max_chars: int = 12_000  # per document, so that long novels do not crowd out the rest
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    warmup: int = 100
    decay: float = 0.3  # the last part of the run, in which the learning rate falls linearly
    bias_step: float = 0.002
    seed: int = 0

    @property
    def seen_tokens(self) -> int:
        """Tokens of the corpus in all batches; each row begins with <s>."""
        return self.steps * self.rows * (self.context - 1)


def read_documents(corpus: str, pattern: str = "") -> Iterator[str]:
    """Texts of a folder's `.txt`, `.jsonl` and `.jsonl.gz` files whose names contain `pattern`, or of a hub dataset."""
    folder = Path(corpus)
    if not folder.is_dir():
        from datasets import load_dataset

        yield from (row["text"] for row in load_dataset(corpus, split="train", streaming=True))
        return
    for path in sorted(p for p in folder.iterdir() if pattern in p.name):
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as f:
                yield from (json.loads(line)["text"] for line in f if line.strip())
        elif path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")


def split_documents(corpus: str, recipe: Recipe) -> tuple[list[str], list[str]]:
    """Training and held-out texts: files named train* and valid* where a folder has them, else every 50th document."""
    train = list(read_documents(corpus, "train")) if Path(corpus).is_dir() else []
    held_out = list(read_documents(corpus, "valid")) if train else []
    if not held_out:
        texts = train or list(read_documents(corpus))
        held_out, train = texts[::50], [t for i, t in enumerate(texts) if i % 50]
    if not train:
        raise SystemExit(f"no text found in {corpus!r}: give a folder of .txt or .jsonl[.gz] files, or a hub dataset")
    order = np.random.default_rng(recipe.seed).permutation(len(train))
    return [train[i][: recipe.max_chars] for i in order], [t[: recipe.max_chars // 2] for t in held_out]


def build_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE within runs of one script, so that no token mixes kanji, kana and punctuation."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SCRIPT_RUNS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        (t[:4000] for t in texts[:1500]),
        trainers.BpeTrainer(
            vocab_size=recipe.vocab_size,
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=512
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Ints:
    """All texts as one stream of ids, each between <s> and </s>."""
    parts: list[list[int]] = []
    for start in tqdm(range(0, len(texts), 64), desc="tokenizing", leave=False):
        batch = tokenizer.backend_tokenizer.encode_batch(texts[start : start + 64])
        parts.extend([*e.ids, 1] for e in batch)
    return np.concatenate([np.array(p, dtype=np.int64) for p in parts])


def build_model(recipe: Recipe) -> DeepseekV3ForCausalLM:
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
    for gate in routers(model):
        torch.nn.init.normal_(gate.weight, std=0.02)
    return model


def routers(model: DeepseekV3ForCausalLM) -> list[Any]:
    return [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]


def build_optimizers(model: DeepseekV3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the rest (embeddings, gates, norms and the three-dimensional experts)."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "gate.weight" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def schedule(step: int, recipe: Recipe) -> float:
    """Warm up, stay, and fall linearly over the last part."""
    left = (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, max(0.02, left))


class Balance:
    """Counts the tokens each expert receives and moves the selection biases against the imbalance."""

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        self.gates = routers(model)
        self.load = torch.zeros(len(self.gates), self.gates[0].num_experts)
        for row, gate in enumerate(self.gates):
            gate.register_forward_hook(self._counter(row))

    def _counter(self, row: int) -> Any:
        def count(module: Any, args: Any, output: tuple[torch.Tensor, ...]) -> None:
            self.load[row] += torch.bincount(output[2].flatten(), minlength=module.num_experts)

        return count

    @torch.no_grad()
    def move(self, amount: float) -> None:
        for gate, load in zip(self.gates, self.load, strict=True):
            gate.e_score_correction_bias += amount * torch.sign(load.mean() - load)
        self.load.zero_()


def sentence_starts(stream: Ints, tokenizer: PreTrainedTokenizerFast) -> Ints:
    """Positions `[start]` right after <s>, a full stop, a closing bracket or a line end: rows begin there."""
    ends = np.zeros(len(tokenizer), dtype=bool)
    for token, i in tokenizer.get_vocab().items():
        text = tokenizer.backend_tokenizer.decoder.decode([token])
        ends[i] = token == BOS or text.endswith(("。", "」", "！", "？", "\n"))
    return np.flatnonzero(ends[stream[:-1]]) + 1


def batch(stream: Ints, starts: Ints, step: int, recipe: Recipe) -> torch.Tensor:
    """`[rows, context]` ids: <s>, then text from the beginning of a sentence. Decided by seed and step alone."""
    usable = starts[: np.searchsorted(starts, len(stream) - recipe.context)]
    at = np.random.default_rng([recipe.seed, step]).choice(usable, recipe.rows)
    rows = stream[at[:, None] + np.arange(recipe.context - 1)]
    return torch.from_numpy(np.pad(rows, ((0, 0), (1, 0))))  # <s> is id 0


def save_checkpoint(folder: Path, step: int, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    tensors = {f"model.{k}": v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, optimizer in enumerate(optimizers):
        for key, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}.{n}": v.clone() for n, v in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "next.safetensors", metadata={"step": str(step)})
    (folder / "next.safetensors").replace(folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    from safetensors import safe_open

    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    for i, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, key, field = name.split(".")
                whole["state"].setdefault(int(key), {})[field] = value
        optimizer.load_state_dict(whole)
    with safe_open(path, "pt") as f:
        return int(f.metadata()["step"])


def train(model: DeepseekV3ForCausalLM, stream: Ints, starts: Ints, recipe: Recipe, checkpoint: Path) -> None:
    optimizers, balance = build_optimizers(model, recipe), Balance(model)
    base = [[group["lr"] for group in o.param_groups] for o in optimizers]
    first = load_checkpoint(checkpoint, model, optimizers)
    recent: list[float] = []
    model.train()
    with tqdm(total=recipe.steps, initial=first, desc="training", unit="step", mininterval=5) as bar:
        for step in range(first, recipe.steps):
            factor = schedule(step, recipe)
            for optimizer, rates in zip(optimizers, base, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            ids = batch(stream, starts, step, recipe)
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            balance.move(recipe.bias_step * factor)
            recent = [*recent[-99:], loss.item()]
            bar.set_postfix(nats=f"{np.mean(recent):.3f}", refresh=False)
            bar.update()
            if (step + 1) % 250 == 0:
                save_checkpoint(checkpoint, step + 1, model, optimizers)


@torch.no_grad()
def evaluate(
    model: DeepseekV3ForCausalLM, stream: Ints, held_out: Ints, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> dict[str, Any]:
    """Held-out bits per character of model and trigram on the same tokens, and the load of every expert.

    The model reads windows of `context` tokens, <s> first, that overlap by half, and each token counts once, in the
    window where at least half of the context precedes it. The trigram always has its two predecessors.
    """
    model.eval()
    balance, width = Balance(model), recipe.context - 1
    stride = width // 2 + 1
    windows = np.lib.stride_tricks.sliding_window_view(held_out, width)[::stride]
    nats = []
    for start in tqdm(range(0, len(windows), 32), desc="held-out text", leave=False):
        ids = torch.from_numpy(np.pad(windows[start : start + 32], ((0, 0), (1, 0))))
        logp = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        nats.append(-logp[:, -stride:].flatten().numpy())
    scored = windows[:, -stride:].reshape(-1)
    at = width - stride
    context = held_out[at - 2 : at + scored.size]
    trigrams = {"": stream, "_same_number": stream[: recipe.seen_tokens]}
    counted = {name: trigram_nats(tokens, context, recipe.vocab_size) for name, tokens in trigrams.items()}
    vocab = {i: t for t, i in tokenizer.get_vocab().items()}
    # A byte-level token's characters are single bytes; a character of the text starts at each byte not 10xxxxxx.
    alphabet = byte_alphabet()
    starts = np.array(
        [0 if vocab[i] in (BOS, EOS) else sum(alphabet[c] >> 6 != 2 for c in vocab[i]) for i in range(len(vocab))]
    )
    characters = float(starts[scored].sum())
    load = balance.load.numpy() / balance.load.numpy().mean(axis=1, keepdims=True)
    model_nats = np.concatenate(nats)
    return {
        "held_out_tokens": int(scored.size),
        "characters_per_token": characters / scored.size,
        "nats_per_token": float(model_nats.mean()),
        "bits_per_character": float(model_nats.sum()) / math.log(2) / characters,
        **{f"trigram_nats_per_token{n}": float(t.mean()) for n, t in counted.items()},
        **{f"trigram_bits_per_character{n}": float(t.sum()) / math.log(2) / characters for n, t in counted.items()},
        "load_max": load.max(axis=1).round(3).tolist(),
        "load_min": load.min(axis=1).round(3).tolist(),
    }


def save_model(model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Weights in bfloat16 to halve the file, the selection biases in float32 as the architecture keeps them."""
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
    parser = argparse.ArgumentParser(prog="python -m moelens.demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, help="folder of .txt or .jsonl[.gz] files, or a hub dataset's name")
    parser.add_argument("--source", default="", help="what the corpus is and its licence: a sentence for the card")
    parser.add_argument("--out", type=Path, default=Path("demo-model"))
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    args = parser.parse_args(argv)
    recipe = Recipe(steps=args.steps, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    texts, held_out_texts = split_documents(args.corpus, recipe)
    tokenizer = build_tokenizer(texts, recipe)
    stream, held_out = encode(tokenizer, texts), encode(tokenizer, held_out_texts)
    if not (args.out / "model.safetensors").exists():  # else it was trained before, and is measured again
        model = build_model(recipe)
        train(model, stream, sentence_starts(stream, tokenizer), recipe, args.out / "checkpoint")
        save_model(model, tokenizer, args.out)

    # What is shipped is what is measured: the rounded weights, read back.
    shipped = DeepseekV3ForCausalLM.from_pretrained(args.out, dtype=torch.float32, experts_implementation="grouped_mm")
    measured = evaluate(shipped, stream, held_out, tokenizer, recipe)
    report = Report(
        corpus=args.source or args.corpus,
        documents=(len(texts), len(held_out_texts)),
        train_tokens=len(stream),
        seen_tokens=recipe.seen_tokens,
        parameters=sum(p.numel() for p in shipped.parameters()),
        recipe=asdict(recipe),
        **measured,
    )
    write_card(report, args.out)
    shutil.rmtree(args.out / "checkpoint", ignore_errors=True)
    tqdm.write(f"wrote {args.out}: {report.bits_per_character:.3f} bits a character")


if __name__ == "__main__":
    main()
