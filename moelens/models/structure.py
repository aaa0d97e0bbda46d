"""Where a model keeps its experts: found by what modules are, not by the model's name."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.integrations.finegrained_fp8 import FP8Experts

from moelens.errors import UnsupportedModelError
from moelens.models.adapters import ADAPTED, REFUSED, Row

ROUTER = re.compile(r"(Router|Gate|Gating|TopK)\w*$", re.IGNORECASE)
TOP_K = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts", "num_experts_per_token", "top_k")
GROUPS = (("n_group", "topk_group"), ("num_expert_group", "topk_group"), ("num_expert_groups", "num_limited_groups"))


@dataclass
class Site:
    """One MoE layer's modules. `block` computes the layer's MoE output; it is the layer itself where none does.

    `refusals` says, by the name of a hook point (or "replay"), why this layer cannot offer it.
    """

    index: int
    layer: nn.Module
    block: nn.Module
    experts: Any
    router: nn.Module | None
    shared: nn.Module | None
    n_experts: int
    top_k: int
    groups: tuple[int, int] | None
    row: Row
    block_name: str
    refusals: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MoEShape:
    """What a Mixture-of-Experts model is made of.

    Attributes:
        moe_layers: indices of the layers with routed experts.
        n_experts: experts a router chooses among; top_k: chosen for a token.
        n_groups, topk_groups: groups of experts, and how many of them are kept for a token; None without groups.
        n_shared: layers' experts that every token passes, as the configuration counts them.
        score: score function of the routers ("softmax", "sigmoid", …), or "unknown".
        d_model, d_expert: widths of the residual stream and of one expert.
    """

    model_type: str
    n_layers: int
    moe_layers: tuple[int, ...]
    n_experts: int
    top_k: int
    n_groups: int | None
    topk_groups: int | None
    n_shared: int
    score: str
    d_model: int
    d_expert: int
    vocab_size: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_experts(module: nn.Module) -> bool:
    on_interface = all(hasattr(module, a) for a in ("has_gate", "is_transposed"))
    return on_interface or isinstance(module, FP8Experts) or type(module).__name__ in ADAPTED


def text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def input_device(model: Any) -> torch.device:
    """Where token ids go: the first weight's device, or, if accelerate has offloaded it, the one it computes on."""
    device = torch.device(model.device)
    if device.type != "meta":
        return device
    hooks = (getattr(m, "_hf_hook", None) for m in model.modules())
    found = (d for h in hooks if (d := getattr(h, "execution_device", None)) is not None)
    return torch.device(next(found, "meta"))


def first_attribute(source: Any, names: tuple[str, ...]) -> int | None:
    return next((v for n in names if isinstance(v := getattr(source, n, None), int) and not isinstance(v, bool)), None)


def find_sites(model: Any) -> tuple[nn.ModuleList, list[Site]]:
    """The stack of decoder layers that holds most experts, and its MoE layers in order.

    Raises:
        UnsupportedModelError: no experts, or experts that moelens cannot reach.
    """
    modules = dict(model.named_modules())
    stacks: dict[str, dict[int, str]] = {}
    for name, module in modules.items():
        where = re.match(r"(.*?layers|.*?blocks|.*?h)\.(\d+)\.", name + ".")
        if where and is_experts(module) and "vision" not in name:
            stacks.setdefault(where[1], {}).setdefault(int(where[2]), name)
    config = text_config(model)
    if not stacks:
        raise no_experts(model, config.model_type)
    prefix = max(stacks, key=lambda p: len(stacks[p]))
    layers = modules[prefix]
    assert isinstance(layers, nn.ModuleList)
    return layers, [make_site(modules, config, f"{prefix}.{i}", name, i) for i, name in sorted(stacks[prefix].items())]


def no_experts(model: Any, model_type: str) -> UnsupportedModelError:
    name = type(model).__name__
    if model_type in REFUSED:
        return refused(name, model_type)
    if any("expert" in n.lower() for n, _ in model.named_modules()):
        return UnsupportedModelError(
            f"{name} keeps its experts outside transformers' experts interface, where moelens cannot listen; "
            "see `moelens info --architectures` (quantised GPT-OSS: load with Mxfp4Config(dequantize=True))"
        )
    return UnsupportedModelError(
        f"{name} has no experts; moelens reads Mixture-of-Experts models, see `moelens info --architectures`"
    )


def refused(name: str, model_type: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{name} cannot be hooked: {REFUSED[model_type]}; see `moelens info --architectures`")


def make_site(modules: dict[str, Any], config: Any, layer_name: str, name: str, index: int) -> Site:
    row = ADAPTED.get(type(modules[name]).__name__, Row())
    block_name = name if row.block_is_experts else name.rsplit(".", 1)[0]
    layer, block, experts = modules[layer_name], modules[block_name], None if row.block_is_experts else modules[name]
    router = find_router(block)
    n_experts = count_experts(experts, router, config)
    top_k = first_attribute(router, TOP_K) or first_attribute(block, TOP_K) or first_attribute(config, TOP_K) or 1
    shared = next((m for n, m in block.named_children() if "shared" in n and "gate" not in n), None)
    groups = next(
        ((n, k) for a, b in GROUPS if (n := getattr(config, a, None)) and (k := getattr(config, b, None))), None
    )
    short = block_name[len(layer_name) + 1 :]
    return Site(index, layer, block, experts, router, shared, n_experts, top_k, groups, row, short)


def find_router(block: nn.Module) -> nn.Module | None:
    children = [(n, m) for n, m in block.named_children() if "shared" not in n and not is_experts(m)]
    named = [m for n, m in children if n in ("router", "gate")]
    typed = [m for n, m in children if ROUTER.search(type(m).__name__)]
    return next(iter([*typed, *named]), None)


def count_experts(experts: Any, router: Any, config: Any) -> int:
    """Experts the router chooses among, identity experts included."""
    for source, names in (
        (router, ("n_routed_experts", "num_experts")),
        (experts, ("num_experts",)),
        (config, ("num_local_experts", "num_experts", "n_routed_experts")),
    ):
        found = first_attribute(source, names)
        if found:
            return found
    raise UnsupportedModelError(f"{type(experts).__name__} does not say how many experts it holds")


def describe(model: Any, layers: nn.ModuleList, sites: list[Site], score: str) -> MoEShape:
    """The shape, read off the modules where they say it and off the configuration otherwise."""
    config, site = text_config(model), sites[0]
    shared_names = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
    n_shared = first_attribute(config, shared_names) or 0
    width = first_attribute(site.experts, ("intermediate_dim", "intermediate_size", "ffn_hidden_size"))
    groups = site.groups if site.groups and site.groups[0] > 1 else (None, None)
    return MoEShape(
        model_type=config.model_type,
        n_layers=len(layers),
        moe_layers=tuple(s.index for s in sites),
        n_experts=site.n_experts,
        top_k=site.top_k,
        n_groups=groups[0],
        topk_groups=groups[1],
        n_shared=0 if site.shared is None else max(1, n_shared),
        score=score,
        d_model=config.hidden_size,
        d_expert=width or first_attribute(config, ("moe_intermediate_size", "intermediate_size")) or 0,
        vocab_size=config.vocab_size,
    )
