"""Every architecture: hooked equals unhooked, and the cache holds what the engine computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny import ADAPTED, ARCHITECTURES, NO_IDS, logits_of, tiny_inputs, tiny_model

import moelens
from moelens.models.loading import architectures
from moelens.models.structure import find_moe_layers


def run(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(7)  # diffusion_gemma starts from noise
    with torch.no_grad():
        return logits_of(model(**inputs)).float()


def watch(model: Any) -> tuple[dict[int, dict[str, torch.Tensor]], list[Any]]:
    """Register torch hooks on the unhooked model that save what each experts module is given and returns."""
    seen: dict[int, dict[str, torch.Tensor]] = {}
    handles = []
    for site in find_moe_layers(model)[1]:
        if site.experts is None:
            continue

        def before(module: Any, args: Any, kwargs: Any, layer: int = site.index) -> None:
            names = ("hidden_states", "top_k_index", "top_k_weights")
            seen[layer] = dict(zip(names, args, strict=False)) | kwargs

        def after(module: Any, args: Any, output: torch.Tensor, layer: int = site.index) -> None:
            seen[layer]["output"] = output

        handles += [
            site.experts.register_forward_pre_hook(before, with_kwargs=True),
            site.experts.register_forward_hook(after),
        ]
    return seen, handles


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name: str) -> None:
    model = tiny_model(name)
    if name not in ADAPTED:
        model.set_experts_implementation("grouped_mm")
    inputs = tiny_inputs(model)
    seen, handles = watch(model)
    plain = run(model, inputs)
    for handle in handles:
        handle.remove()

    hooked = moelens.hook(model)
    torch.manual_seed(7)
    with torch.no_grad():
        logits, cache = hooked.run_with_cache(**inputs)
    torch.testing.assert_close(logits.float(), plain, atol=1e-5, rtol=1e-5, msg=lambda m: f"{name}: {m}")

    assert hooked.shape.moe_layers, name
    for layer in hooked.shape.moe_layers:
        at, where = f"blocks.{layer}.mlp.", f"{name}, layer {layer}"
        indices, weights = (
            cache[at + "hook_expert_indices"].flatten(0, 1),
            cache[at + "hook_topk_weights"].flatten(0, 1),
        )
        outputs, dense = cache[at + "experts.hook_out"].flatten(0, 1), cache[at + "hook_expert_weights"].flatten(0, 1)
        assert 0 <= indices.min() <= indices.max() < hooked.shape.n_experts, where
        torch.testing.assert_close(dense, torch.zeros_like(dense).scatter_add(-1, indices.long(), weights), msg=where)
        if name not in NO_IDS:
            engine = seen[layer]
            assert torch.equal(indices, engine["top_k_index"]), where
            exact = {} if name in ADAPTED else {"atol": 0, "rtol": 0}  # other sums upstream: rounding differs there
            torch.testing.assert_close(weights, engine["top_k_weights"], **exact, msg=where)
            total = (outputs * weights.unsqueeze(-1)).sum(1)
            target = engine["output"].reshape(total.shape)
            torch.testing.assert_close(total, target, atol=1e-5, rtol=1e-4, msg=lambda m, w=where: f"{w}: {m}")

    assert torch.equal(run(hooked.unhook(), inputs), plain), f"{name}: unhook() left something behind"


def test_every_architecture_of_the_installed_transformers_is_tested() -> None:
    supported = {n for n, how in architectures().items() if not how.startswith(("no: ", "text model: "))}
    assert supported == set(ARCHITECTURES)


@pytest.mark.skipif("inkling" not in ARCHITECTURES, reason="this version has no Inkling")
def test_a_router_that_no_rule_explains_is_refused_by_name() -> None:
    hooked = moelens.hook(tiny_model("inkling"))
    layer = hooked.shape.moe_layers[-1]
    with pytest.raises(moelens.MoeLensError, match="no known rule gives this router's choice from its logits"):
        hooked.add_hook(f"blocks.{layer}.mlp.hook_router_scores", lambda t, hook: t)
    with pytest.raises(moelens.MoeLensError, match=r"cannot take effect: .*; edit hook_topk_weights or"):
        hooked.run_with_hooks(
            fwd_hooks=[(f"blocks.{layer}.mlp.hook_router_logits", lambda t, hook: t + 1)],
            **tiny_inputs(hooked.hf_model),
        )
