"""Gradients at hook points equal finite differences in float64, with the selection of experts held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.tiny import ARCHITECTURES, tiny_inputs, tiny_model
from torch import Tensor

import moelens
from moelens import HookedMoE, MoeLensError

FAST = ("deepseek_v3", "gpt_oss", "longcat_flash", "llama4", "gemma4", "phimoe", "diffusion_gemma")
STEPS = (1e-2, 1e-3, 1e-4)  # norms and routers compute in float32, also in a float64 model


# With seed 0 the scores of two experts are so near that every step of the differences changes the choice.
SEEDS = {"nemotron_h": 1}
# SparseMixer leaves out experts whose logits are far from the best one's; larger steps change which those are.
FINER = {"phimoe": STEPS[1:]}


@pytest.mark.tried(
    "Gradients",
    "gradients at every point of every architecture",
    "equal to finite differences in float64 with the selection held; points without a gradient refuse backward hooks",
)
@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.exhaustive) for n in ARCHITECTURES]
)
def test_gradients_equal_finite_differences(name: str) -> None:
    model = moelens.hook(in_float64(tiny_model(name, SEEDS.get(name, 0))), name=name)
    layer, inputs = model.shape.moe_layers[-1], tiny_inputs(model.hf_model)
    points = [n for n, p in model.hook_dict.items() if n.startswith(f"blocks.{layer}.") and not p.no_gradient]
    values: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    base, ids = objective(model, inputs, [(n, saving(values)) for n in points], [(n, saving(found)) for n in points])
    base.backward()
    assert not [n for n in points if n not in found], "no gradient came to these points"
    for point in points:
        direction = torch.randn(values[point].shape, generator=torch.Generator().manual_seed(3)).to(values[point])
        finite = values[point].isfinite()
        if point.endswith("hook_expert_weights"):
            finite &= values[point] != 0  # another expert would be another selection
        direction = torch.where(finite, direction * values[point][finite].std(), 0.0)
        expected = difference(model, inputs, point, direction, ids)
        got = float((torch.where(finite, found[point], 0.0) * direction).sum())
        size = float(found[point][finite].norm() * direction.norm())
        assert abs(got - expected) <= 1e-2 * abs(expected) + 2e-3 * size + 1e-7, f"{name}, {point}: {got}, {expected}"
        if point.endswith(("hook_router_biased", "hook_router_selection")):
            assert size == 0, "what only selects passes on no value"


def in_float64(model: Any) -> Any:
    """The same model in float64, where its own code lets it: transformers' grouped product, and some norms, do not."""
    try:
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")
        with torch.no_grad():
            model.double()(**tiny_inputs(model))
    except RuntimeError:
        model.float()
    return model


def saving(into: dict[str, Tensor]) -> Callable[..., None]:
    return lambda t, hook: into.__setitem__(hook.name, t.detach().clone())


def objective(
    model: HookedMoE, inputs: dict[str, Tensor], fwd_hooks: list[Any], bwd_hooks: tuple[Any, ...] | list[Any] = ()
) -> tuple[Tensor, list[Tensor]]:
    """A number that depends on all logits, and the experts that all layers chose."""
    chosen: list[Tensor] = []
    look = [
        (n, lambda t, hook: chosen.append(t.sort().values))
        for n in model.hook_dict
        if n.endswith("hook_expert_indices")
    ]
    torch.manual_seed(7)  # diffusion_gemma starts from noise
    # The backward hooks stay while the gradient is computed.
    for name, hook in bwd_hooks:
        model.add_hook(name, hook, dir="bwd")
    with model.hooks([*fwd_hooks, *look]):
        logits = model(**inputs).double()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).to(logits)
    return (logits * weights).sum(), chosen


def difference(model: HookedMoE, inputs: dict[str, Tensor], point: str, direction: Tensor, ids: list[Tensor]) -> float:
    """The central difference along a direction, of the largest step that lets every layer choose the same experts."""
    model.reset_hooks()
    for step in FINER.get(model.name, STEPS):
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                ends.append(objective(model, inputs, [(point, lambda t, hook, s=sign * step: t + s * direction)]))
        if all(torch.equal(a, b) for _, chosen in ends for a, b in zip(chosen, ids, strict=True)):
            return float(ends[0][0] - ends[1][0]) / (2 * step)
    raise AssertionError(f"at {point} every step changes the experts")


def test_a_tensor_of_a_forward_hook_keeps_its_gradient(deepseek: HookedMoE, ids: Tensor) -> None:
    """`retain_grad` at the stages and weights, as notebooks use it."""
    kept: dict[str, Tensor] = {}

    def keep(t: Tensor, hook: Any) -> None:
        t.retain_grad()
        kept[hook.name.rpartition("hook_")[2]] = t

    names = ("router_logits", "router_scores", "router_biased", "router_selection", "topk_weights", "expert_weights")
    with deepseek.hooks([(f"blocks.2.mlp.hook_{n}", keep) for n in names]):
        deepseek(ids, return_type="loss").backward()
    assert {n for n in names if kept[n].grad is not None} == set(names)
    chosen = kept["expert_weights"] != 0
    dense = kept["expert_weights"].grad.masked_fill(~chosen, 0)
    torch.testing.assert_close(dense.sum(-1), kept["topk_weights"].grad.sum(-1), atol=1e-6, rtol=1e-4)
    assert kept["router_scores"].grad.abs().sum() > 0


def test_points_without_a_gradient_say_so(deepseek: HookedMoE, ids: Tensor) -> None:
    with pytest.raises(
        MoeLensError, match="hook_expert_indices' has no gradient: it holds the ids of experts; use a forw"
    ):
        deepseek.add_hook("blocks.2.mlp.hook_expert_indices", lambda t, hook: None, dir="bwd")
    _, cache = deepseek.run_with_cache(ids, return_type="loss", incl_bwd=True)
    assert "blocks.2.mlp.hook_topk_weights_grad" in cache
    assert "blocks.2.mlp.hook_expert_indices_grad" not in cache


@pytest.mark.tried(
    "Gradients",
    "a backward hook in the last layer of DiffusionGemma's encoder, whose output nothing reads",
    "refused with the reason; `model.checks` says it too",
)
def test_a_layer_that_nothing_reads_refuses_backward_hooks() -> None:
    model = moelens.hook(tiny_model("diffusion_gemma"))
    last = model.shape.moe_layers[-1]
    for point in (n for n in model.hook_dict if n.startswith(f"blocks.{last}.") and not n.endswith("hook_resid_pre")):
        with pytest.raises(MoeLensError, match=r"' has no gradient: .*; use a forward hook"):
            model.add_hook(point, lambda t, hook: None, dir="bwd")
    with pytest.raises(MoeLensError, match="the decoder reads this layer's keys and values, and nothing reads"):
        model.add_hook(f"blocks.{last}.mlp.experts.hook_out", lambda t, hook: None, dir="bwd")
    found = next(c for c in model.checks if c.name == "encoder")
    assert not found.passed
    assert "edits and gradients after its attention have no effect" in found.detail
    plain, inputs = [], tiny_inputs(model.hf_model)
    for edit in (False, True):
        torch.manual_seed(7)
        hooks = [(f"blocks.{last}.mlp.experts.hook_out", lambda t, hook: t * 2)] if edit else []
        with torch.no_grad():
            plain.append(model.run_with_hooks(**inputs, fwd_hooks=hooks))
    assert torch.equal(*plain), "the check says that edits have no effect"


def test_the_loss_of_a_float64_model_is_in_float64(ids: Tensor) -> None:
    model = moelens.hook(in_float64(tiny_model("mixtral")))
    assert model.dtype == model(ids, return_type="loss").dtype == torch.float64
