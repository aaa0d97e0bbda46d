"""Greedy generation while recording: settings of its own, and a check that the routes belong to what was written.

A checkpoint's own generation configuration may search with beams, sample, or look tokens up in the prompt. Tokens that
are recorded in such a run belong to other sequences than those that are written, so nothing of it is used but its ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig

from moelens.errors import CheckError, MoeLensError
from moelens.recording.captures import INDICES_POINT

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

SAMPLE = 4
"""The number of sequences of a chunk whose routes are compared with those of a forward pass."""
_KEPT = ("eos_token_id", "pad_token_id", "bos_token_id", "transformers_version", "_from_model_config")


@dataclass(frozen=True)
class Greedy:
    """Settings of greedy generation.

    Attributes:
        ends: ids of the tokens that end a text.
        padding: id of the token before shorter prompts.
        unused: settings of the model's own generation configuration that are not used.
    """

    ends: tuple[int, ...]
    padding: int
    unused: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: HookedMoE) -> Greedy:
        """Read the ends and the padding of a model.

        Raises:
            MoeLensError: it cannot generate.
        """
        own = getattr(model.hf_model, "generation_config", None)
        if own is None or not model.hf_model.can_generate():
            raise MoeLensError(f"{type(model.hf_model).__name__} cannot generate; record without generate (--generate)")
        config = model.hf_model.config.get_text_config(decoder=True)
        tokenizer = model.tokenizer
        ends = next(
            (found for holder in (own, config, tokenizer) if (found := _ids(getattr(holder, "eos_token_id", None)))), ()
        )
        padding = next((p for h in (own, config, tokenizer) if (p := _ids(getattr(h, "pad_token_id", None)))), ends)
        unused = {name: _in_json(value) for name, value in own.to_diff_dict().items() if name not in _KEPT}
        return cls(ends, (padding or (0,))[0], unused)

    def configuration(self, n: int | None = None) -> GenerationConfig:
        """Return transformers' configuration for at most `n` new tokens."""
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=n,
            eos_token_id=list(self.ends) or None,
            pad_token_id=self.padding,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest says of the settings."""
        return {
            "strategy": "greedy",
            "eos_token_id": list(self.ends),
            "pad_token_id": self.padding,
            "unused_settings_of_the_model": self.unused,
        }


def _in_json(value: Any) -> Any:
    """A setting as JSON holds it; as Python writes it where JSON cannot hold it, such as a dict with tuples as keys."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return json.loads(text)


def _ids(value: Any) -> tuple[int, ...]:
    """Token ids that a configuration gives as one, as several, or not at all."""
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)


def generate_greedily(model: HookedMoE, ids: Tensor, mask: Tensor, n: int, greedy: Greedy) -> NDArray[Any]:
    """Generate at most `n` tokens greedily; see `generate_tokens`."""
    return generate_tokens(model, ids, mask, greedy.configuration(n))


def generate_tokens(model: HookedMoE, ids: Tensor, mask: Tensor, settings: GenerationConfig) -> NDArray[Any]:
    """Generate after prompts that are padded on the left, with these settings alone.

    Args:
        model: the model.
        ids: `[sequence, pos]`.
        mask: `[sequence, pos]`, 0 for padding.
        settings: transformers' settings; nothing is filled in from the model's own.

    Returns:
        The new tokens, `[sequence, new]`, with anything after an end.

    Raises:
        CheckError: the model's `generate` returns something else than the prompts with tokens after them.
    """
    hf_model = model.hf_model
    own = hf_model.generation_config
    hf_model.generation_config = settings  # transformers fills what is not set from it
    try:
        output = model.generate(ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings)
    finally:
        hf_model.generation_config = own
    width = ids.shape[1]
    if not isinstance(output, Tensor) or len(output) != len(ids) or not torch.equal(output[:, :width].cpu(), ids):
        raise CheckError(
            f"expected {type(hf_model).__name__}.generate to write after the prompts token by token, got another "
            "output; record without generate (--generate)"
        )
    new: NDArray[Any] = output[:, width:].cpu().numpy()
    return new


@dataclass
class RouteCheck:
    """Compares the experts chosen while decoding with those of a forward pass over what was written.

    Attributes:
        layers: the layers whose experts are compared.
        choices: number of choices of an expert that were compared.
        agreeing: number of them that the forward pass made too.
    """

    layers: Sequence[int]
    choices: int = 0
    agreeing: int = 0
    _steps: dict[int, list[Tensor]] = field(default_factory=dict, init=False)

    @contextmanager
    def watching(self, model: HookedMoE) -> Iterator[None]:
        """Note the experts of the last token of the first sequences, in each forward pass in this context."""
        self._steps = {layer: [] for layer in self.layers}

        def note(layer: int) -> Callable[..., None]:
            return lambda indices, hook: self._steps[layer].append(indices[:SAMPLE, -1].cpu())

        with model.hooks(fwd_hooks=[(f"blocks.{layer}.{INDICES_POINT}", note(layer)) for layer in self.layers]):
            yield

    def compare(self, model: HookedMoE, prompts: Sequence[NDArray[Any]], new: Sequence[NDArray[Any]]) -> None:
        """Run the model over prompts with what was written after them, and count the choices that agree.

        Args:
            model: the model.
            prompts: token ids of each prompt.
            new: token ids that were written after it.
        """
        texts = [np.concatenate(pair) for pair in zip(prompts[:SAMPLE], new, strict=False)]
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.from_numpy(text)
            mask[i, : len(text)] = 1
        names = {layer: f"blocks.{layer}.{INDICES_POINT}" for layer in self.layers}
        _, whole = model.run_with_cache(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            use_cache=False,
            return_type=None,
            names_filter=list(names.values()),
        )
        for layer, name in names.items():
            for i, (prompt, written) in enumerate(zip(prompts, new, strict=True)):
                if i < len(texts) and len(written):
                    decoded = torch.stack([step[i] for step in self._steps[layer][1 : len(written) + 1]])
                    read = whole[name][i, len(prompt) : len(prompt) + len(written)].cpu()
                    self.choices += decoded.numel()
                    self.agreeing += int((decoded.unsqueeze(-1) == read.unsqueeze(-2)).any(-1).sum())

    def require(self, name: str, dtype: torch.dtype) -> None:
        """Refuse routes that do not belong to what was written.

        In float32 nearly all choices agree; in narrower types experts with nearly equal scores change places.

        Raises:
            CheckError: too few choices agree.
        """
        least = 0.9 if dtype == torch.float32 else 0.75
        if self.choices and self.agreeing < least * self.choices:
            raise CheckError(
                f"expected {name!r} to choose the same experts while it generates as when it reads what it wrote, but "
                f"{self.agreeing:,} of {self.choices:,} choices agree; record without generate (--generate), and the "
                "written texts afterwards"
            )
