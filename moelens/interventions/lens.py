"""The lens of a single expert: what its output alone would have the model say next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from moelens.analysis.tables import number, plain_table
from moelens.display import Displayed
from moelens.errors import CheckError, MoeLensError, unknown
from moelens.interventions.effects import signed
from moelens.saved import SavedRows


@dataclass(frozen=True)
class Voice:
    """What one part of a layer's output does to the next token's logits, by itself.

    Attributes:
        name: "E5", "shared", or "all" for the layer's whole output.
        weight: gate weight; NaN for what has none.
        promoted: the tokens whose logits it raises most, with by how much.
        agreement: correlation over the vocabulary of its logit changes with those of the whole output.
        contrast: change of logit(first) − logit(second) where two tokens were given, else NaN.
    """

    name: str
    weight: float
    promoted: tuple[tuple[str, float], ...]
    agreement: float
    contrast: float


@dataclass(frozen=True, repr=False)
class ExpertLens(Displayed, SavedRows):
    """The voices of one layer at one token: the whole output first, then the experts by weight, then the shared one."""

    FORMAT: ClassVar[str] = "moelens.lens/1"

    token: str
    layer: int
    voices: tuple[Voice, ...]

    def records(self) -> list[dict[str, Any]]:
        return [asdict(v) | {"promoted": ", ".join(f"{t} {d:+.3f}" for t, d in v.promoted)} for v in self.voices]

    def table(self) -> str:
        header = ("", "weight", "agrees", "contrast", "raises")
        rows = [
            (v.name, number(v.weight), signed(v.agreement), signed(v.contrast))
            + (" ".join(f"{t}{d:+.2f}" for t, d in v.promoted),)
            for v in self.voices
        ]
        return f"after {self.token!r}, layer {self.layer}\n" + plain_table(header, rows)

    __repr__ = table


@torch.no_grad()
def expert_lens(
    model: Any, text: str, layer: int, *, position: int = -1, contrast: tuple[str, str] | None = None, top: int = 5
) -> ExpertLens:
    """Read each chosen expert's output, and the shared expert's, through the model's final norm and unembedding.

    A voice is unembed(norm(x + weight · output)) − unembed(norm(x)), with x the residual stream before the block: the
    direct path alone, without what later layers make of it (arXiv 2603.05806).

    Args:
        position: the token after which is read; -1 for the last.
        contrast: two single tokens, such as ("ます", "る").

    Raises:
        CheckError: the block's output is not the sum of its experts', or the final norm is not found.

    Example:
        >>> expert_lens(model, "明日は学校へ行き", layer=4, contrast=("ます", "たい"))  # doctest: +SKIP
    """
    if layer not in model.shape.moe_layers:
        raise unknown("layer", layer, model.shape.moe_layers)
    at, last = f"blocks.{layer}.", f"blocks.{model.shape.n_layers - 1}.hook_resid_post"
    names = [f"{at}hook_resid_mid", *(f"{at}mlp.{n}" for n in ("hook_topk_weights", "experts.hook_out", "hook_out"))]
    shared = f"{at}mlp.shared.hook_out"
    names += [shared] if shared in model.hook_dict else []
    unembed, cache = _unembedding(model, text, [*names, last], last)
    here = {name: cache[name][0, position].float() for name in names}
    weights, outputs = here[f"{at}mlp.hook_topk_weights"], here[f"{at}mlp.experts.hook_out"]
    parts = {"all": here[f"{at}mlp.hook_out"]}
    slots = model.running.slots[layer][0, position].tolist()
    for slot in weights.argsort(descending=True).tolist():
        parts[f"E{slots[slot]}"] = outputs[slot] * weights[slot]
    if shared in here:
        parts["shared"] = here[shared]
    difference = sum(p for name, p in parts.items() if name != "all") - parts["all"]
    if difference.norm() > 0.02 * parts["all"].norm():
        raise CheckError(
            f"layer {layer}: the block's output is not the sum of its experts' (it scales or norms them afterwards), "
            "so no expert has a lens of its own"
        )
    stream = here[f"{at}hook_resid_mid"]
    changes = {name: unembed(stream + part) - unembed(stream) for name, part in parts.items()}
    of = dict(zip((f"E{e}" for e in slots), weights.tolist(), strict=True))
    pair = [_single_token(model, token) for token in contrast or ()]
    token = model.tokenizer.decode(model.to_tokens(text)[0, position])
    return ExpertLens(
        token, layer, tuple(_voice(model, n, of.get(n), c, changes["all"], pair, top) for n, c in changes.items())
    )


def _voice(
    model: Any, name: str, weight: float | None, change: Tensor, whole: Tensor, pair: list[int], top: int
) -> Voice:
    best = change.topk(top)
    promoted = zip((model.tokenizer.decode([i]) for i in best.indices.tolist()), best.values.tolist(), strict=True)
    agreement = torch.corrcoef(torch.stack([change, whole]))[0, 1].item()
    nan = float("nan")
    contrast = (change[pair[0]] - change[pair[1]]).item() if pair else nan
    return Voice(name, nan if weight is None else weight, tuple(promoted), agreement, contrast)


def _single_token(model: Any, text: str) -> int:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise MoeLensError(f"{text!r} is {len(ids)} tokens of this model; a contrast needs single tokens")
    return int(ids[0])


def _unembedding(model: Any, text: str, names: list[str], last: str) -> tuple[Callable[[Tensor], Tensor], Any]:
    """Final norm and output embedding as a function of the residual stream, found in a run, checked on its logits."""
    head = model.hf_model.get_output_embeddings()
    norms: list[nn.Module] = []
    handles = [
        m.register_forward_hook(lambda m, a, o: norms.append(m))
        for m in model.hf_model.modules()
        if "norm" in type(m).__name__.lower()
    ]
    try:
        logits, cache = model.run_with_cache(text, names_filter=names)
    finally:
        for handle in handles:
            handle.remove()

    def unembed(stream: Tensor) -> Tensor:
        result: Tensor = head(norms[-1](stream.to(model.dtype))).float()
        return result

    if head is None or not norms or not torch.allclose(unembed(cache[last]), logits.float(), atol=1e-3, rtol=1e-2):
        raise CheckError(
            f"the logits of {model.name!r} are not its last norm and output embedding of the residual stream, so "
            "there is no lens; use attribute, which needs neither"
        )
    return unembed, cache
