"""A model whose routes are computed from layer, token id and position, so that every row of a recording is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from moelens.models.formats import FORMATS, Format
from moelens.models.load_checks import Check
from moelens.models.tokens import byte_alphabet
from moelens.recording import Recording

BOS = "<s>"
TEXTS = ["先生がいらっしゃる。", "はい", "", "お荷物をお持ちいたします。", "a b"]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, after a special token."""
    tok = Tokenizer(models.BPE({BOS: 0} | {c: i for i, c in enumerate(byte_alphabet(), 1)}, []))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=BOS)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The part of `MoEShape` that recording uses."""

    moe_layers: tuple[int, ...] = (1, 2, 12)
    n_experts: int = 32
    top_k: int = 2
    n_layers: int = 13
    d_model: int = 8
    d_expert: int = 4


@dataclass(kw_only=True)
class Model:
    """Has the interface of `HookedMoE`; layer, token id, position and slot decide the expert and its weight."""

    shape: Shape = field(default_factory=Shape)
    context_length: int | None = None
    name: str = "known"
    revision: str | None = None
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    experts_implementation: str = "grouped_mm"
    tokenizer: Any = field(default_factory=tokenizer)
    edit: Any = lambda name, tensor: tensor
    runs: list[tuple[int, int]] = field(default_factory=list)
    listeners: list[Any] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    format: Format = FORMATS[""]
    checks: tuple[Check, ...] = ()

    @property
    def hook_dict(self) -> dict[str, None]:
        points = ("hook_expert_indices", "hook_topk_weights")
        return {f"blocks.{layer}.mlp.{point}": None for layer in self.shape.moe_layers for point in points}

    @contextmanager
    def hooks(self, fwd_hooks: list[Any]) -> Iterator[Model]:
        self.listeners = fwd_hooks
        yield self
        self.listeners = []

    def __call__(self, ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool, return_type: None) -> None:
        assert not use_cache
        assert not torch.is_grad_enabled()
        assert (attention_mask.diff(dim=1) <= 0).all()  # padded on the right
        self.runs.append(tuple(ids.shape))
        for name, hook in self.listeners:
            layer = int(name.split(".")[1])
            indices, weights = self.routes(layer, ids.numpy(), np.arange(ids.shape[1]))
            tensor = torch.from_numpy(indices if name.endswith("hook_expert_indices") else weights)
            tensor[attention_mask == 0] = -1  # not a valid value, as for padding
            if (tensor := self.edit(name, tensor)) is not None:
                assert hook(tensor, SimpleNamespace(name=name)) is None

    def routes(self, layer: int, ids: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slots = np.arange(self.shape.top_k)
        expert = (ids[..., None] * 7 + positions[:, None] * 3 + layer + slots) % self.shape.n_experts
        return expert.astype(np.int64), ((expert + 1) / (64 * (layer + 1))).astype(np.float32)


def expected(model: Model, texts: list[str]) -> dict[str, np.ndarray]:
    """Return the rows of a recording, computed document by document, without batches."""
    parts: dict[str, list[Any]] = {"doc": [], "pos": [], "token_id": [], "indices": [], "weights": []}
    for doc, text in enumerate(texts):
        ids = np.array(tokenizer()(text)["input_ids"])
        positions = np.arange(len(ids))
        routes = [
            model.routes(layer, ids, positions % (model.context_length or 10**6)) for layer in model.shape.moe_layers
        ]
        parts["doc"] += [doc] * len(ids)
        parts["pos"] += positions.tolist()
        parts["token_id"] += ids.tolist()
        parts["indices"].append(np.stack([r[0] for r in routes], 1))
        parts["weights"].append(np.stack([r[1] for r in routes], 1).astype(np.float16))
    return {k: np.concatenate(v) if k in ("indices", "weights") else np.array(v) for k, v in parts.items()}


def assert_recorded(recording: Recording, model: Model, texts: list[str]) -> None:
    want = expected(model, texts)
    for name in ("doc", "pos", "token_id"):
        np.testing.assert_array_equal(recording.column(name), want[name])
    np.testing.assert_array_equal(recording.indices(), want["indices"])
    np.testing.assert_array_equal(recording.weights(), want["weights"])
