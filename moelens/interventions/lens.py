"""`expert_lens`: what the output of a single expert, by itself, makes the model predict next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from moelens.analysis.tables import number, plain_table, signed_number
from moelens.display import Displayed
from moelens.errors import CheckError, MoeLensError, unknown
from moelens.models.hooked_check import require_hooked
from moelens.saved import SavedRows

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE


@dataclass(frozen=True, kw_only=True)
class OutputPart:
    """What one part of a layer's output, by itself, does to the logits of the next token.

    Attributes:
        name: "E5", "shared", or "all" for the whole output of the layer.
        weight: gate weight; NaN for a part without one.
        promoted: the tokens whose logits it raises most, each with the change.
        agreement: correlation, over the vocabulary, of its logit changes with those of the whole output.
        contrast: change of logit(first) − logit(second) if two tokens were given, else NaN.
    """

    name: str
    weight: float
    promoted: tuple[tuple[str, float], ...]
    agreement: float
    contrast: float


@dataclass(frozen=True, repr=False)
class ExpertLens(Displayed, SavedRows):
    """The parts of one layer's output at one token.

    Attributes:
        token: the token after which the output is read.
        layer: number of the layer.
        parts: the whole output, then the experts by weight, then the shared expert.
    """

    FORMAT: ClassVar[str] = "moelens.lens/2"

    token: str
    layer: int
    parts: tuple[OutputPart, ...]

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each part."""
        return [asdict(p) | {"promoted": ", ".join(f"{t} {d:+.3f}" for t, d in p.promoted)} for p in self.parts]

    def table(self) -> str:
        """Return a plain table with a row for each part."""
        header = ("", "weight", "agrees", "contrast", "raises")
        rows = [
            (
                p.name,
                number(p.weight),
                signed_number(p.agreement),
                signed_number(p.contrast),
                " ".join(f"{t}{d:+.2f}" for t, d in p.promoted),
            )
            for p in self.parts
        ]
        return f"after {self.token!r}, layer {self.layer}\n" + plain_table(header, rows)

    __repr__ = table


@torch.no_grad()
def expert_lens(
    model: HookedMoE,
    text: str,
    layer: int,
    *,
    position: int = -1,
    contrast: tuple[str, str] | None = None,
    top: int = 5,
) -> ExpertLens:
    """Read the output of each chosen expert through the model's final norm and unembedding.

    The reading of a part is unembed(norm(x + weight · output)) − unembed(norm(x)), with x the residual stream before
    the block. It covers only the direct path, not what later layers do with the output (arXiv 2603.05806).

    Args:
        model: the hooked model.
        text: the text.
        layer: number of a layer with experts.
        position: the token after which to read; −1 for the last.
        contrast: two single tokens to compare, such as ("ます", "る").
        top: number of promoted tokens to list.

    Returns:
        The parts of the layer's output, the shared expert included.

    Raises:
        UnknownNameError: the layer does not exist or has no experts.
        MoeLensError: a text of `contrast` is not a single token.
        CheckError: the block's output is not the sum of its experts', or the final norm is not found.

    Example:
        >>> from moelens.interventions import expert_lens
        >>> lens = expert_lens(demo_model, "明日は学校へ行き", layer=4)
        >>> lens.parts[0].name, len(lens.parts[0].promoted)
        ('all', 5)
    """
    require_hooked(model)
    if layer not in model.shape.moe_layers:
        raise unknown("layer", layer, model.shape.moe_layers)
    block, last = f"blocks.{layer}.", f"blocks.{model.shape.n_layers - 1}.hook_resid_post"
    names = [
        f"{block}hook_resid_mid",
        *(f"{block}mlp.{n}" for n in ("hook_topk_weights", "experts.hook_out", "hook_out")),
    ]
    shared = f"{block}mlp.shared.hook_out"
    names += [shared] if shared in model.hook_dict else []
    unembed, cache = _unembedding(model, text, [*names, last], last)
    values = {name: cache[name][0, position].float() for name in names}
    weights, outputs = values[f"{block}mlp.hook_topk_weights"], values[f"{block}mlp.experts.hook_out"]
    parts = {"all": values[f"{block}mlp.hook_out"]}
    slots = model.running.slots[layer][0, position].tolist()
    for slot in weights.argsort(descending=True).tolist():
        parts[f"E{slots[slot]}"] = outputs[slot] * weights[slot]
    if shared in values:
        parts["shared"] = values[shared]
    difference = sum(p for name, p in parts.items() if name != "all") - parts["all"]
    if difference.norm() > 0.02 * parts["all"].norm():
        raise CheckError(
            f"expected the output of the block in layer {layer} to be the sum of its experts' outputs, got "
            "something else (the block scales or normalises them afterwards); use attribute instead of a lens"
        )
    stream = values[f"{block}hook_resid_mid"]
    changes = {name: unembed(stream + part) - unembed(stream) for name, part in parts.items()}
    gate = dict(zip((f"E{e}" for e in slots), weights.tolist(), strict=True))
    pair = [_single_token(model, token) for token in contrast or ()]
    token = model.tokenizer.decode(model.to_tokens(text)[0, position])
    whole = changes["all"]
    return ExpertLens(
        token, layer, tuple(_part(model, n, gate.get(n), c, whole, pair, top) for n, c in changes.items())
    )


def _part(
    model: HookedMoE, name: str, weight: float | None, change: Tensor, whole: Tensor, pair: list[int], top: int
) -> OutputPart:
    """Summarise the logit changes `[vocab]` of one part."""
    best = change.topk(top)
    promoted = zip((model.tokenizer.decode([i]) for i in best.indices.tolist()), best.values.tolist(), strict=True)
    nan = float("nan")
    return OutputPart(
        name=name,
        weight=nan if weight is None else weight,
        promoted=tuple(promoted),
        agreement=torch.corrcoef(torch.stack([change, whole]))[0, 1].item(),
        contrast=(change[pair[0]] - change[pair[1]]).item() if pair else nan,
    )


def _single_token(model: HookedMoE, text: str) -> int:
    """Return the id of a text that is one token."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise MoeLensError(
            f"expected two single tokens as contrast, got {text!r}, which is {len(ids)} tokens of this model; "
            "give shorter texts"
        )
    return int(ids[0])


def _unembedding(model: HookedMoE, text: str, names: list[str], last: str) -> tuple[Callable[[Tensor], Tensor], Any]:
    """Return final norm and output embedding as a function of the residual stream, and the cache of a run.

    The last norm that runs is taken as the final one; the function is checked on the logits of the run.
    """
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
            f"expected the logits of {model.name!r} to be its last norm and output embedding of the residual stream, "
            "got others; use attribute instead of a lens"
        )
    return unembed, cache
