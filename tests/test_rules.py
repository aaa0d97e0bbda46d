"""Routers' rules: told apart by wide evidence, held against the configuration, kept by edits that change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.tiny import ARCHITECTURES, tiny_model
from torch import Tensor, nn

import moelens
from moelens import HookedMoE
from moelens.models import identification
from moelens.models.points import CHOICE, ROUTER_STAGES

FAST = ("deepseek_v2", "deepseek_v3", "gpt_oss", "phimoe")
TOKENS = 4000
PUBLISHED_V2 = {"n_routed_experts": 160, "n_group": 8, "topk_group": 3, "num_experts_per_tok": 6}


def check(model: HookedMoE, name: str) -> Any:
    return next(c for c in model.checks if c.name == name)


def scale_routers(model: HookedMoE, factor: float) -> None:
    with torch.no_grad():
        for tap in model._installation.taps.values():
            router = tap.layer.router if tap.layer.router is not None else tap.layer.block.router
            for weight in (p for p in router.parameters() if p.ndim == 2):
                weight.mul_(factor)


def routes(model: HookedMoE, edit: Any = None) -> list[Tensor]:
    """The experts and weights of all layers for 4,000 tokens, with an edit at every stage of the decision."""
    found: list[Tensor] = []
    ids = torch.randint(5, 150, (TOKENS // 40, 40), generator=torch.Generator().manual_seed(2))
    stages = [n for n in model.hook_dict if n.endswith((*ROUTER_STAGES, *CHOICE)) and edit is not None]
    last = [n for n in model.hook_dict if n.endswith("hook_topk_weights")]
    chosen = [n for n in model.hook_dict if n.endswith("hook_expert_indices")]
    hooks = [(n, lambda t, hook: edit(t)) for n in stages]
    hooks += [(n, lambda t, hook: found.append(t.clone())) for n in chosen + last]
    torch.manual_seed(7)  # diffusion_gemma starts from noise
    with torch.no_grad():
        model.run_with_hooks(ids, return_type=None, fwd_hooks=hooks)
    return found


def scaled_routers(model: HookedMoE) -> Iterator[float]:
    """Multiply the routers' weights by each of three numbers: the rules meet close scores and scores far apart."""
    factor = 1.0
    for scale in (0.2, 1.0, 5.0):
        scale_routers(model, scale / factor)
        factor = scale
        yield scale


@pytest.mark.tried(
    "Routers' rules",
    "hooks that return `t.clone()` at every stage, 4,000 tokens, every architecture, router weights times 0.2, 1, 5",
    "changes no route",
)
@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.exhaustive) for n in ARCHITECTURES]
)
def test_an_edit_that_changes_nothing_changes_no_route(name: str) -> None:
    model = moelens.hook(tiny_model(name), name=name)
    for scale in scaled_routers(model):
        for edited, plain in zip(routes(model, lambda t: t.clone()), routes(model), strict=True):
            assert torch.equal(edited, plain), f"{name}, router weights times {scale}"


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.exhaustive) for n in ARCHITECTURES]
)
def test_the_rule_gives_the_routes_of_many_tokens(name: str) -> None:
    """Logits that every hook has changed by less than rounding give the model's own experts, by the rule alone."""
    model = moelens.hook(tiny_model(name), name=name)
    for scale in scaled_routers(model):
        for layer, tap in model._installation.taps.items():
            if tap.rule is not None and f"blocks.{layer}.mlp.hook_router_logits" in model.hook_dict:
                assert replayed(model, layer) <= 0.005, f"{name}, layer {layer}, router weights times {scale}"


def replayed(model: HookedMoE, layer: int) -> float:
    """The share of tokens to which the rule gives other experts than the router."""
    at = f"blocks.{layer}.mlp."
    seen: dict[str, Tensor] = {}

    def look(t: Tensor, hook: Any) -> None:
        seen[hook.name.removeprefix(at)] = t.detach().clone().flatten(0, 1)

    ids = torch.randint(5, 150, (TOKENS // 40, 40), generator=torch.Generator().manual_seed(2))
    torch.manual_seed(7)
    with (
        torch.no_grad(),
        model.hooks([(at + n, look) for n in ("hook_router_selection", "hook_expert_indices", "hook_topk_weights")]),
    ):
        model(ids, return_type=None)
    rule = model.rules[layer]
    want = rule.indices(seen["hook_router_selection"])
    own = seen["hook_expert_indices"].long()
    if rule.skip is not None:
        own = own.masked_fill(seen["hook_topk_weights"] == 0, rule.skip)
    scores = seen["hook_router_selection"]
    a, b = (scores.gather(-1, i).sort(-1).values for i in (want, own))
    return float((~torch.isclose(a, b, rtol=1e-5, atol=1e-30).all(-1)).float().mean())


@pytest.mark.tried(
    "Routers' rules",
    "group scores by maximum or by the two largest, which agree on most tokens",
    "told apart on random hidden states of wide spread",
)
@pytest.mark.parametrize("spread", [2.4, 4.8])
def test_the_published_routing_of_deepseek_v2(spread: float) -> None:
    """160 experts, top-6 in 3 of 8 groups by their maximum: the two largest give other groups for few tokens."""
    for seed in range(2):
        plain = tiny_model("deepseek_v2", seed=seed, **PUBLISHED_V2)
        with torch.no_grad():
            for block in (layer.mlp for layer in plain.model.layers if hasattr(layer.mlp, "gate")):
                block.gate.weight.mul_(spread)
        model = moelens.hook(plain)
        assert {str(rule) for rule in model.rules.values()} == {
            "softmax, top-6 in 3 of 8 groups by their maximum, times 2.5"
        }
        assert check(model, "replay").passed
        for edited, own in zip(routes(model, lambda t: t.clone()), routes(model), strict=True):
            assert torch.equal(edited, own)


@pytest.mark.tried("Routers' rules", "GPT-OSS with a router bias of 0 or 0.001", "not taken for a selection bias")
@pytest.mark.parametrize("size", [0.0, 0.001, 0.3])
def test_the_bias_of_gpt_oss_is_no_selection_bias(size: float) -> None:
    plain = tiny_model("gpt_oss")
    with torch.no_grad():
        for layer in plain.model.layers:
            layer.mlp.router.bias.normal_().mul_(size)
    model = moelens.hook(plain)
    assert {(rule.bias, rule.expert_scale) for rule in model.rules.values()} == {("", "")}
    assert len(model.rules) == model.shape.n_layers
    assert check(model, "replay").passed


def test_the_scale_of_gemma_4_is_no_selection_bias() -> None:
    model = moelens.hook(tiny_model("gemma4"))
    assert {rule.bias for rule in model.rules.values()} == {""}
    assert all(rule.expert_scale for rule in model.rules.values())
    ids = torch.randint(5, 150, (2, 12))
    _, cache = model.run_with_cache(ids, names_filter=lambda n: "router" in n)
    logits, scores = (cache[f"blocks.2.mlp.hook_router_{n}"] for n in ("logits", "scores"))
    assert logits.min() < 0
    torch.testing.assert_close(logits.softmax(-1), scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_jetmoe_has_its_rule_in_every_dtype(dtype: torch.dtype) -> None:
    model = moelens.hook(tiny_model("jetmoe").to(dtype))
    assert len(model.rules) == len(model.shape.moe_layers)
    assert model.rule == "softmax, top-2, normalised"


@pytest.mark.tried("Routers' rules", "rules that cannot be told apart", "a failed check names them")
def test_rules_that_cannot_be_told_apart_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the random hidden states, the short input leaves the group score open."""
    kinds: set[str] = set()
    monkeypatch.setattr(identification.RouterProbe, "run", lambda self: iter(()))
    for seed in range(6):
        model = moelens.hook(tiny_model("deepseek_v2", seed=seed, **PUBLISHED_V2))
        replay = check(model, "replay")
        if "could also follow" in replay.detail:
            assert not replay.passed
            kinds.add(replay.detail)
    assert kinds, "the short input told the rules apart in every layer"
    assert all("by their maximum" in text and " or softmax, top-6" in text for text in kinds), kinds


DISAGREEING = [
    (
        "qwen3_moe",
        {"norm_topk_prob": False},
        "norm_topk_prob is False, but a router follows softmax, top-2, normalised",
    ),
    (
        "deepseek_v3",
        {"topk_method": "group_limited_greedy"},
        "topk_method is 'group_limited_greedy', but a router follows sig",
    ),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax', but a router follows sigmoid"),
]


@pytest.mark.tried(
    "Routers' rules", "a configuration that states another rule than the router follows", "a failed check"
)
@pytest.mark.parametrize("name, stated, text", DISAGREEING)
def test_a_configuration_that_states_another_rule(name: str, stated: dict[str, Any], text: str) -> None:
    plain = tiny_model(name, **({"norm_topk_prob": True} if name == "qwen3_moe" else {}))
    for key, value in stated.items():
        setattr(plain.config, key, value)  # the modules keep what they read when they were built
    found = check(moelens.hook(plain), "configuration")
    assert not found.passed
    assert text in found.detail


def test_configurations_agree_with_the_rules_found() -> None:
    assert "norm_topk_prob True" in check(moelens.hook(tiny_model("deepseek_v3")), "configuration").detail


def test_a_model_that_draws_lots_is_reported() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    plain = tiny_model("mixtral")
    plain.model.layers[1].post_attention_layernorm = nn.Sequential(
        plain.model.layers[1].post_attention_layernorm, Noise()
    )
    repeat = check(moelens.hook(plain), "repeat")
    assert not repeat.passed
    assert repeat.detail.endswith("of tokens when the input is run twice, because the model draws lots")


def test_the_architectures_that_info_describes() -> None:
    assert "the architecture as transformers configures it by default" in repr(moelens.info("deepseek_v2"))
    assert "or none" in moelens.info("zaya").router
