"""Every architecture: edits at all points, returned, in place and by hand in float64; gradients; modes; padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import by_hand
from helpers.tiny import ARCHITECTURES, NO_IDS, tiny_inputs, tiny_model
from torch import Tensor

import moelens
from moelens import HookedMoE
from moelens.models.routers import expert_vector


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Iterator[HookedMoE]:
    hooked = moelens.hook(tiny_model(request.param), name=request.param)
    yield hooked
    hooked.unhook()


def points(model: HookedMoE, layer: int) -> list[str]:
    """The points of a layer that can be edited."""
    names = [n for n in model.hook_dict if n.startswith(f"blocks.{layer}.")]
    ruled = () if layer in model.rules else ("hook_router_logits", "hook_expert_indices")
    return [n for n in names if not n.endswith(ruled)] if ruled else names


def edited(model: HookedMoE, name: str, t: Tensor) -> Tensor:
    """Another value for what passes a point; the same for every token, so that batches do not matter."""
    if not t.is_floating_point():
        return (t + 1) % model.shape.n_experts
    if name.endswith("hook_expert_weights"):
        return t * 0.8  # no expert more, so that the slots stay
    return t * 0.9 + 0.05 * torch.arange(t.shape[-1]).cos().to(t)


@dataclass
class Run:
    """One run with edits at all points of a layer: what each hook was given and left, by the points' last names."""

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    given: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    experts: dict[str, Tensor] = field(default_factory=dict)


def run(model: HookedMoE, layer: int, inputs: dict[str, Tensor], *, in_place: bool = False) -> Run:
    done, start = Run(), len(f"blocks.{layer}.")
    rows = inputs["input_ids"].numel()

    def look(seen: dict[str, Tensor]) -> Callable[..., None]:
        return lambda t, hook: seen.__setitem__(hook.name[start:].removeprefix("mlp."), t.detach().clone())

    def edit(t: Tensor, hook: Any) -> Tensor | None:
        new = edited(model, hook.name, t)
        if not in_place:
            return new
        t.copy_(new)
        return None

    def before(module: Any, args: Any, kwargs: Any) -> None:
        done.experts["input"] = (args[0] if args else kwargs["hidden_states"]).detach().reshape(rows, -1)

    hooks = [(n, f) for n in points(model, layer) for f in (look(done.given), edit, look(done.left))]
    experts = model._installation.taps[layer].layer.experts
    torch.manual_seed(7)  # diffusion_gemma starts from noise
    with ExitStack() as stack:
        if experts is not None:
            stack.callback(experts.register_forward_pre_hook(before, with_kwargs=True).remove)
            output = experts.register_forward_hook(lambda m, a, out: done.experts.update(output=out.detach()))
            stack.callback(output.remove)
        done.logits = model.run_with_hooks(**inputs, fwd_hooks=hooks).detach()
    return done


def close(actual: Tensor, expected: Tensor, where: str) -> None:
    expected = expected.reshape(actual.shape)
    torch.testing.assert_close(actual.double(), expected, atol=2e-4, rtol=2e-4, msg=lambda m: f"{where}: {m}")


@pytest.mark.tried("Edits", "edits at every point of every architecture", "equal to a recomputation by hand in float64")
def test_edits_at_all_points_are_what_they_are_by_hand(model: HookedMoE) -> None:
    """Each stage is computed again in float64 from what the hooks left of the stages before."""
    layer, inputs = model.shape.moe_layers[-1], tiny_inputs(model.hf_model)
    with torch.no_grad():
        done = run(model, layer, inputs)
    block, rule = model._installation.taps[layer].layer.block, model.rules.get(layer)
    given, left = ({n: t.flatten(0, 1) for n, t in seen.items()} for seen in (done.given, done.left))
    wide = {n: t.double() if t.is_floating_point() else t.long() for n, t in left.items()}
    where = f"{model.name}, layer {layer}, "
    if rule is not None:
        scores, ids = wide["hook_router_scores"], wide["hook_expert_indices"]
        if "hook_router_logits" in wide:
            logits = wide["hook_router_logits"]
            close(given["hook_router_scores"], by_hand.SCORES[rule.score](logits), where + "scores")
        bias = expert_vector(block, rule.bias)
        close(given["hook_router_biased"], by_hand.biased(rule, scores, bias), where + "biased")
        selection = by_hand.selection(rule, wide["hook_router_biased"])
        close(given["hook_router_selection"], selection, where + "selection")
        chosen = by_hand.chosen(rule, wide["hook_router_selection"])
        assert torch.equal(given["hook_expert_indices"].long().sort().values, chosen.sort().values), where
        weights = by_hand.weights(rule, scores, ids, expert_vector(block, rule.expert_scale))
        close(given["hook_topk_weights"], weights, where + "weights")
        dense = torch.zeros_like(wide["hook_expert_weights"]).scatter_add(-1, ids, wide["hook_topk_weights"])
        close(given["hook_expert_weights"], dense, where + "weights by expert")
    experts = model._installation.taps[layer].layer.experts
    if model.name in NO_IDS or rule is None:
        return
    weights = wide["hook_expert_weights"].gather(-1, ids)
    real = (ids < experts.gate_up_proj.shape[0] if hasattr(experts, "gate_up_proj") else ids >= 0).unsqueeze(-1)
    real &= (ids < getattr(experts, "num_routed_experts", model.shape.n_experts)).unsqueeze(-1)  # others are identities
    held = ids.masked_fill(~real.squeeze(-1), 0)
    pre = by_hand.project(
        experts, "gate_up_proj" if hasattr(experts, "gate_up_proj") else "up_proj", held, done.experts["input"]
    )
    close(given["experts.hook_pre"] * real, pre * real, where + "pre")
    close(given["experts.hook_post"] * real, by_hand.activate(experts, wide["experts.hook_pre"]) * real, where + "post")
    out = by_hand.project(experts, "down_proj", held, wide["experts.hook_post"])
    if getattr(experts, "has_post_expert_norm", False):
        out = experts.post_expert_norm(out.float()).double()
    out = torch.where(real, out, done.experts["input"].double().unsqueeze(1))
    close(given["experts.hook_out"], out, where + "outputs")
    close(done.experts["output"], (wide["experts.hook_out"] * weights.unsqueeze(-1)).sum(1), where + "sum")


@pytest.mark.tried(
    "Edits",
    "the same in place, under `no_grad`, `inference_mode` and with gradients",
    "equal to those that are returned",
)
def test_edits_in_place_equal_those_that_are_returned(model: HookedMoE) -> None:
    layer, inputs = model.shape.moe_layers[-1], tiny_inputs(model.hf_model)
    with torch.no_grad():
        returned, in_place = run(model, layer, inputs), run(model, layer, inputs, in_place=True)
        assert not torch.allclose(returned.logits, clean(model, inputs), atol=1e-3), "the edits do nothing"
    with torch.inference_mode():
        inferred = run(model, layer, inputs, in_place=True)
    graded = [run(model, layer, inputs), run(model, layer, inputs, in_place=True)]
    for other in (in_place, inferred, *graded):
        torch.testing.assert_close(
            other.logits, returned.logits, atol=1e-5, rtol=1e-5, msg=lambda m: f"{model.name}: {m}"
        )
        for point in returned.given:
            torch.testing.assert_close(
                other.given[point], returned.given[point], atol=1e-5, rtol=1e-5, msg=lambda m, p=point: f"{p}: {m}"
            )


def clean(model: HookedMoE, inputs: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(7)
    with torch.no_grad():
        return model(**inputs)


def cached(model: HookedMoE, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
    torch.manual_seed(7)
    with torch.no_grad():
        return model.run_with_cache(**inputs)


@pytest.mark.tried("Edits", "texts padded on the left", "the logits of the plain model; `cache.mask` tells padding")
def test_left_padding(model: HookedMoE) -> None:
    """The logits of padded texts are those of the plain model, and edits of one sequence do not touch another."""
    inputs = tiny_inputs(model.hf_model)
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    inputs["attention_mask"][0, :5] = 0
    logits, cache = cached(model, inputs)
    torch.testing.assert_close(logits, clean(model, inputs), atol=1e-5, rtol=1e-5, equal_nan=True)
    assert torch.equal(cache.mask, inputs["attention_mask"].bool())


def test_autocast(model: HookedMoE) -> None:
    inputs = tiny_inputs(model.hf_model)
    if model.name == "dbrx":
        pytest.skip("transformers' own code adds bfloat16 to float32 and fails")
    with torch.autocast("cpu", torch.bfloat16):
        expected = clean(model, inputs).float()
        logits, _ = cached(model, inputs)
    scale = float(expected.abs().max())
    wrong = ((logits.float() - expected).abs() > 3e-2 * scale).any(-1).float().mean()
    assert wrong <= 0.25, f"{model.name}: {wrong:.0%} of tokens differ"  # some choose other experts, by rounding


def test_training_mode(model: HookedMoE) -> None:
    """What is measured is measured in evaluation mode, whatever mode the model is in."""
    inputs = tiny_inputs(model.hf_model)
    expected, want = cached(model, inputs)
    first = next(iter(model.hf_model.modules()))
    model.hf_model.train()
    kept = list(model.hf_model.modules())[-1]
    kept.training = False
    try:
        logits, cache = cached(model, inputs)
        assert first.training
        assert not kept.training
        assert all(m.training for m in model.hf_model.modules() if m is not kept)
    finally:
        model.hf_model.eval()
    assert torch.equal(logits, expected)
    for point in want:
        assert torch.equal(cache[point], want[point]), point


def gradients(model: HookedMoE, inputs: dict[str, Tensor], hooks: list[Any]) -> dict[str, Tensor]:
    model.hf_model.zero_grad()
    torch.manual_seed(7)
    logits = model.run_with_hooks(**inputs, fwd_hooks=hooks)
    logits.float().sin().sum().backward()
    return {n: p.grad.clone() for n, p in model.hf_model.named_parameters() if p.grad is not None}


@pytest.mark.tried(
    "Gradients", "hooks at every point while parameter gradients are computed", "those of the plain model"
)
def test_parameter_gradients_do_not_depend_on_hooks(model: HookedMoE) -> None:
    inputs = tiny_inputs(model.hf_model)
    plain = gradients(model, inputs, [])
    looking = gradients(model, inputs, [(n, lambda t, hook: None) for n in model.hook_dict])
    model.hf_model.zero_grad()
    assert looking.keys() == plain.keys()
    for name, gradient in plain.items():
        scale = float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(
            looking[name] / scale, gradient / scale, atol=2e-4, rtol=0, msg=lambda m, n=name: f"{model.name}, {n}: {m}"
        )
