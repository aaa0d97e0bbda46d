"""Evaluate the bundled model: bits per character on held-out text, compared with a trigram, and load of the experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import DeepseekV3ForCausalLM, PreTrainedTokenizerFast

from moelens.demo.texts import BOS, EOS, Ints
from moelens.demo.trigram import trigram_nats
from moelens.models.tokens import byte_alphabet


def evaluate_held_out(
    model: DeepseekV3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    streams: Mapping[str, Ints],
    held_out: Mapping[str, Ints],
    context: int,
) -> dict[str, dict[str, Any]]:
    """Evaluate a trained model on the held-out text of each source.

    The trigram model is counted on the training tokens of all sources. Loads are relative to the mean of their layer.

    Args:
        model: the model, in float32.
        tokenizer: the tokenizer of the model.
        streams: training tokens `[token]` of each source.
        held_out: held-out tokens `[token]` of each source.
        context: number of tokens that the model reads at once.

    Returns:
        For each source a dict of `tokens`, `characters_per_token`, `nats_per_token` and `bits_per_character`, the last
        two also for the trigram model (`trigram_…`), and `load`, `[moe layer, expert]`.
    """
    training = np.concatenate(list(streams.values()))
    return {name: _evaluate_source(model.eval(), tokenizer, training, own, context) for name, own in held_out.items()}


def _evaluate_source(
    model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast, training: Ints, held_out: Ints, context: int
) -> dict[str, Any]:
    nats, scored, trigrams, load = _score(model, held_out, context)
    trigram = trigram_nats(training, trigrams, model.config.vocab_size)
    characters = float(_characters(tokenizer)[scored].sum())
    return {
        "tokens": int(scored.size),
        "characters_per_token": characters / scored.size,
        "nats_per_token": float(nats.mean()),
        "bits_per_character": float(nats.sum()) / math.log(2) / characters,
        "trigram_nats_per_token": float(trigram.mean()),
        "trigram_bits_per_character": float(trigram.sum()) / math.log(2) / characters,
        "load": load.round(3).tolist(),
    }


@torch.no_grad()
def _score(model: DeepseekV3ForCausalLM, held_out: Ints, context: int) -> tuple[Any, Ints, Ints, Any]:
    """Score held-out tokens with the model.

    The model reads windows of `context` tokens that begin with <s> and overlap by half. Each token counts once, in the
    window in which at least half of the context precedes it.

    Returns:
        Negative log-probabilities of the scored tokens in nats, the scored tokens, the same with the two tokens before
        them, and relative loads `[moe layer, expert]`.
    """
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    load = np.zeros((len(gates), gates[0].num_experts))

    def count(row: int, ids: torch.Tensor) -> None:
        load[row] += np.bincount(ids.flatten().numpy(), minlength=load.shape[1])

    hooks = [g.register_forward_hook(lambda m, a, out, row=row: count(row, out[2])) for row, g in enumerate(gates)]
    width = context - 1
    stride = width // 2 + 1
    windows = np.lib.stride_tricks.sliding_window_view(held_out, width)[::stride]
    nats = []
    for start in tqdm(range(0, len(windows), 32), desc="held-out text", leave=False):
        ids = torch.from_numpy(np.pad(windows[start : start + 32], ((0, 0), (1, 0))))
        logp = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        nats.append(-logp[:, -stride:].flatten().numpy())
    for hook in hooks:
        hook.remove()
    scored = windows[:, -stride:].reshape(-1)
    at = width - stride
    return np.concatenate(nats), scored, held_out[at - 2 : at + scored.size], load / load.mean(axis=1, keepdims=True)


def _characters(tokenizer: PreTrainedTokenizerFast) -> Ints:
    """The number of characters of the text that begin in each token, `[vocabulary]`."""
    vocab = {i: t for t, i in tokenizer.get_vocab().items()}
    alphabet = (
        byte_alphabet()
    )  # from characters of byte-level tokens to bytes; a character begins at each byte that is not 10xxxxxx
    return np.array(
        [0 if vocab[i] in (BOS, EOS) else sum(alphabet[c] >> 6 != 2 for c in vocab[i]) for i in range(len(vocab))]
    )
