"""Where a model has its experts: found by what its modules are, not by the model's name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.integrations.finegrained_fp8 import FP8Experts

from moelens.errors import UnsupportedModelError
from moelens.models.adapters import ADAPTERS, UNSUPPORTED, Adapter
from moelens.models.packed import PACKED, why_not_inside
from moelens.models.points import EXPERT_STAGES
from moelens.models.wrappers import original_of_bridge, unwrap, unwrapped_name

_ROUTER_CLASS = re.compile(r"(Router|Gate|Gating|TopK)\w*$", re.IGNORECASE)
_STACK = re.compile(r"(.*?layers|.*?blocks|.*?h)\.(\d+)\.")
# Names that configurations and modules use for the same number.
_TOP_K = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts", "num_experts_per_token", "top_k")
_N_SHARED = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
_SETTING = re.compile(r"top_?k|experts_per_tok|group|scor|norm_?prob|scaling_factor|moe_k$|^k$", re.IGNORECASE)
_GROUPS = (("n_group", "topk_group"), ("num_expert_group", "topk_group"), ("num_expert_groups", "num_limited_groups"))


@dataclass(kw_only=True)
class MoELayer:
    """The modules of one layer with routed experts.

    Attributes:
        index: the layer's number in the model.
        decoder_layer: the whole layer.
        block: the module that computes the layer's Mixture-of-Experts output, or the decoder layer itself if there is
            no separate module.
        block_name: the block's attribute path below the decoder layer.
        experts: the experts module, without adapters around it; None where the block holds the weights.
        router: the router, adapters around it included; None where none was found.
        shared: the shared experts, or None.
        n_experts: number of experts the router chooses among.
        top_k: number of experts chosen for a token.
        groups: number of groups of experts and of groups from which experts are chosen; None without groups.
        adapter: what the architecture does differently.
        refusals: by the name of a hook point relative to the layer's `mlp` (or "replay"), why the layer does not offer
            it.
    """

    index: int
    decoder_layer: nn.Module
    block: nn.Module
    block_name: str
    experts: Any
    router: nn.Module | None
    shared: nn.Module | None
    n_experts: int
    top_k: int
    groups: tuple[int, int] | None
    adapter: Adapter
    refusals: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MoEShape:
    """The sizes of a Mixture-of-Experts model.

    Attributes:
        model_type: the architecture, by the name that transformers uses.
        n_layers: number of decoder layers.
        moe_layers: numbers of the layers with routed experts.
        n_experts: number of experts that a router chooses among.
        top_k: number of experts chosen for a token.
        n_groups: number of groups of experts; None without groups.
        topk_groups: number of groups from which the experts of a token are chosen; None without groups.
        n_shared: number of shared experts in a layer, which process every token, as the configuration counts them.
        score: score function of the routers ("softmax", "sigmoid", …), or "unknown".
        d_model: width of the residual stream.
        d_expert: number of neurons of one expert.
        vocab_size: number of tokens in the vocabulary.

    Example:
        >>> demo_model.shape.model_type
        'deepseek_v3'
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
        """Return the sizes by name."""
        return asdict(self)


def text_config(model: Any) -> Any:
    """Return the configuration of a transformers model, or of its text part."""
    config = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def input_device(model: Any) -> torch.device:
    """Return the device that token ids have to be on.

    It is the device of the first weight or, if accelerate has offloaded that weight, the device it computes on.
    """
    device = torch.device(model.device)
    if device.type != "meta":
        return device
    hooks = (getattr(m, "_hf_hook", None) for m in model.modules())
    devices = (d for h in hooks if (d := getattr(h, "execution_device", None)) is not None)
    return torch.device(next(devices, "meta"))


def find_moe_layers(model: Any) -> tuple[nn.ModuleList, list[MoELayer]]:
    """Find the layers of a transformers model that have routed experts.

    Args:
        model: the transformers model.

    Returns:
        All decoder layers of the stack that holds most of the experts, and its layers with experts, in order.

    Raises:
        UnsupportedModelError: the model has no experts, or moelens cannot reach them.
    """
    modules = dict(model.named_modules())
    outermost: dict[str, Any] = {}
    stacks: dict[str, dict[int, str]] = {}
    for name, module in modules.items():
        outermost.setdefault(unwrapped_name(name), module)
        match = _STACK.match(name + ".")
        if match and _is_experts(module) and "vision" not in name:
            if ".modules_to_save." in name:
                raise UnsupportedModelError(
                    f"an adapter holds copies of whole experts ('{name}'), of which only one is active; save the "
                    "adapted model with merge_and_unload() and load that"
                )
            stacks.setdefault(match[1], {}).setdefault(int(match[2]), unwrapped_name(name))
    config = text_config(model)
    if not stacks:
        raise _no_experts(model, config.model_type)
    prefix = max(stacks, key=lambda p: len(stacks[p]))
    layers = modules[prefix]
    assert isinstance(layers, nn.ModuleList)
    inner = [unwrap(layer) for layer in layers]
    layers = layers if inner == list(layers) else nn.ModuleList(inner)
    at = sorted(stacks[prefix].items())
    return layers, [_moe_layer(outermost, config, f"{prefix}.{i}", name, i) for i, name in at]


def links_to(root: nn.Module, moe_layers: Iterable[MoELayer]) -> list[tuple[nn.Module, str, nn.Module]]:
    """List what connects a model with the blocks of its layers: a module, the name of a child below it, and the child.

    Returns:
        The connections, each once.
    """
    above = {child: (module, name) for module in root.modules() for name, child in module.named_children()}
    links: dict[nn.Module, tuple[nn.Module, str, nn.Module]] = {}
    for layer in moe_layers:
        module = layer.block
        while module in above and module not in links:
            links[module] = (*above[module], module)
            module = above[module][0]
    return list(links.values())


def changed_layer(
    root: nn.Module, moe_layers: list[MoELayer], links: list[tuple[nn.Module, str, nn.Module]]
) -> int | None:
    """Find a layer that was replaced, or whose router or experts were, since the model was hooked.

    Adding an adapter does that.

    Args:
        root: the transformers model.
        moe_layers: its layers.
        links: what `links_to` returned for them.

    Returns:
        The first such layer's index; None if there is none.
    """
    if any(module._modules.get(name) is not child for module, name, child in links):
        reached = set(root.modules())  # TransformerLens's bridge puts modules between
        if missing := [layer.index for layer in moe_layers if layer.block not in reached]:
            return missing[0]
    for layer in moe_layers:
        present = [original_of_bridge(m) for m in layer.block.children()]
        experts = layer.experts is None or any(unwrap(m) is layer.experts for m in present)
        if not (experts and (layer.router is None or layer.router in present)):
            return layer.index
    return None


def routing_settings(moe_layers: Iterable[MoELayer]) -> list[tuple[str, Any, str, Any]]:
    """List the numbers and words by which the routers choose, such as `top_k`, and their configurations'.

    Returns:
        Where a setting is, in words, what holds it, its name and its value.
    """
    found: list[tuple[str, Any, str, Any]] = []
    configs: dict[int, Any] = {}
    for layer in moe_layers:
        modules = {id(m): m for m in (layer.block, unwrap(layer.router)) if m is not None}
        found += [(f"layer {layer.index}", m, *setting) for m in modules.values() for setting in _settings(m)]
        configs |= {id(c): c for m in modules.values() if (c := getattr(m, "config", None)) is not None}
        configs |= {id(c): c for c in [getattr(layer.experts, "config", None)] if c is not None}
    return found + [("the configuration", c, *setting) for c in configs.values() for setting in _settings(c)]


def _settings(holder: Any) -> list[tuple[str, Any]]:
    plain = [(n, v) for n, v in vars(holder).items() if v is None or isinstance(v, (bool, int, float, str))]
    return [(name, value) for name, value in plain if name[0] != "_" and _SETTING.search(name)]


def unsupported_architecture(name: str, model_type: str) -> UnsupportedModelError:
    """Make the error for a model `name` of an architecture in `adapters.UNSUPPORTED`."""
    return UnsupportedModelError(
        f"{name} cannot be hooked: {UNSUPPORTED[model_type]}; see `moelens info --architectures`"
    )


def read_shape(model: Any, layers: nn.ModuleList, moe_layers: list[MoELayer], score: str) -> MoEShape:
    """Read the sizes of a model from its modules, and from its configuration where the modules lack them.

    Args:
        model: the transformers model.
        layers: its decoder layers, as `find_moe_layers` returns them.
        moe_layers: those of them with experts.
        score: the score function of its routers, or "unknown".
    """
    config, first = text_config(model), moe_layers[0]
    width = _first_int(first.experts, ("intermediate_dim", "intermediate_size", "ffn_hidden_size"))
    n_groups, topk_groups = first.groups if first.groups and first.groups[0] > 1 else (None, None)
    return MoEShape(
        model_type=config.model_type,
        n_layers=len(layers),
        moe_layers=tuple(layer.index for layer in moe_layers),
        n_experts=first.n_experts,
        top_k=first.top_k,
        n_groups=n_groups,
        topk_groups=topk_groups,
        n_shared=0 if first.shared is None else max(1, _first_int(config, _N_SHARED) or 0),
        score=score,
        d_model=config.hidden_size,
        d_expert=width or _first_int(config, ("moe_intermediate_size", "intermediate_size")) or 0,
        vocab_size=config.vocab_size,
    )


def _is_experts(module: nn.Module) -> bool:
    on_interface = all(hasattr(module, a) for a in ("has_gate", "is_transposed"))
    return on_interface or isinstance(module, FP8Experts) or type(module).__name__ in (*ADAPTERS, *PACKED)


def _first_int(source: Any, names: tuple[str, ...]) -> int | None:
    """The first of these attributes that is an integer."""
    values = (getattr(source, name, None) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)


def _no_experts(model: Any, model_type: str) -> UnsupportedModelError:
    name = type(model).__name__
    if model_type in UNSUPPORTED:
        return unsupported_architecture(name, model_type)
    if any("expert" in n.lower() for n, _ in model.named_modules()):
        return UnsupportedModelError(
            f"{name} keeps its experts outside transformers' experts interface, where moelens cannot hook them; "
            "see `moelens info --architectures`"
        )
    return UnsupportedModelError(
        f"{name} has no experts; moelens reads Mixture-of-Experts models, see `moelens info --architectures`"
    )


def _moe_layer(modules: dict[str, Any], config: Any, layer_name: str, name: str, index: int) -> MoELayer:
    """Collect the modules of layer `layer_name`; `name` is that of its experts, or of its block if that holds them."""
    holder = unwrap(modules[name])
    adapter = ADAPTERS.get(type(holder).__name__, Adapter())
    block_name = name if adapter.block_is_experts else name.rsplit(".", 1)[0]
    block, experts = unwrap(modules[block_name]), None if adapter.block_is_experts else holder
    router = _find_router(block)
    top_k = next((k for source in (unwrap(router), block, config) if (k := _first_int(source, _TOP_K))), 1)
    return MoELayer(
        index=index,
        decoder_layer=unwrap(modules[layer_name]),
        block=block,
        block_name=block_name[len(layer_name) + 1 :],
        experts=experts,
        router=router,
        shared=next((m for n, m in block.named_children() if "shared" in n and "gate" not in n), None),
        n_experts=_count_experts(experts, unwrap(router), config),
        top_k=top_k,
        groups=_find_groups(config),
        adapter=adapter,
        refusals={f"experts.{stage}": reason for stage in EXPERT_STAGES if (reason := why_not_inside(experts))},
    )


def _find_router(block: nn.Module) -> nn.Module | None:
    children = [(n, m) for n, m in block.named_children() if "shared" not in n and not _is_experts(unwrap(m))]
    by_class = [m for _, m in children if _ROUTER_CLASS.search(type(unwrap(m)).__name__)]
    by_name = [m for n, m in children if n in ("router", "gate")]
    return next(iter([*by_class, *by_name]), None)


def _find_groups(config: Any) -> tuple[int, int] | None:
    """The number of groups, and of groups from which experts are chosen, where the configuration has both."""
    for n_name, k_name in _GROUPS:
        n, k = getattr(config, n_name, None), getattr(config, k_name, None)
        if n and k:
            return n, k
    return None


def _count_experts(experts: Any, router: Any, config: Any) -> int:
    """The number of experts that the router chooses among, identity experts included."""
    for source, names in (
        (router, ("n_routed_experts", "num_experts")),
        (experts, ("num_experts",)),
        (config, ("num_local_experts", "num_experts", "n_routed_experts")),
    ):
        number = _first_int(source, names)
        if number:
            return number
    raise UnsupportedModelError(
        f"expected the number of experts in {type(experts).__name__}, its router or the configuration, found none; "
        "set num_experts in the configuration"
    )
