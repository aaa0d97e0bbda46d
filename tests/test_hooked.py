"""The hooked model: names, stages, edits, gradients, memory, errors, and restoring the model."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from helpers.tiny import logits_of, tiny_model
from torch import nn

import moelens
from moelens import HookedMoE, MoeLensError
from moelens.errors import CheckError, UnknownNameError, UnsupportedModelError
from moelens.models.adapters import _PATCHED
from moelens.models.experts import LISTENERS

L = 2  # an MoE layer of the tiny DeepSeek-V3


def at(name: str, layer: int = L) -> str:
    return f"blocks.{layer}.mlp.{name}"


def test_shape_and_names(deepseek: HookedMoE) -> None:
    shape = deepseek.shape
    assert (shape.model_type, shape.n_layers, shape.n_experts, shape.top_k) == ("deepseek_v3", 4, 8, 2)
    assert (shape.n_groups, shape.topk_groups, shape.n_shared, shape.score) == (2, 1, 1, "sigmoid")
    assert shape.moe_layers == (1, 2, 3)
    assert "blocks.0.mlp.hook_out" in deepseek.hook_dict
    assert "blocks.0.mlp.hook_router_logits" not in deepseek.hook_dict
    assert all(check.passed for check in deepseek.checks), deepseek.checks
    assert "8 experts + 1 shared, top-2" in repr(deepseek)


def test_routing_stages_equal_a_float64_recomputation(deepseek: HookedMoE, ids: torch.Tensor) -> None:
    _, cache = deepseek.run_with_cache(ids)
    gate = deepseek.hf_model.model.layers[L].mlp.gate
    hidden: dict[str, torch.Tensor] = {}
    handle = gate.register_forward_pre_hook(lambda m, a: hidden.update(x=a[0]))
    deepseek(ids)
    handle.remove()

    x = hidden["x"].double().reshape(-1, deepseek.shape.d_model)
    logits = x @ gate.weight.double().T
    scores = 1 / (1 + torch.exp(-logits))
    biased = scores + gate.e_score_correction_bias.double()
    groups = biased.view(-1, 2, 4)
    best = groups.topk(2, -1).values.sum(-1).argmax(-1)
    selection = torch.full_like(groups, float("-inf"))
    rows = torch.arange(len(groups))
    selection[rows, best] = groups[rows, best]
    selection = selection.view(-1, 8)
    indices = selection.topk(2, -1).indices
    weights = scores.gather(-1, indices)
    weights = weights / weights.sum(-1, keepdim=True) * gate.routed_scaling_factor

    assert gate.e_score_correction_bias.abs().max() > 0.05
    assert not torch.equal(logits.topk(2, -1).indices.sort(-1).values, indices.sort(-1).values), "the case is too easy"
    for name, expected in (
        ("logits", logits),
        ("scores", scores),
        ("biased", biased),
        ("selection", selection),
    ):
        got = cache[at(f"hook_router_{name}")].flatten(0, 1).double()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    got = cache[at("hook_expert_indices")].flatten(0, 1)
    assert torch.equal(got.sort(-1).values, indices.sort(-1).values)
    dense = torch.zeros(len(x), 8, dtype=torch.float64).scatter(-1, indices, weights)
    torch.testing.assert_close(cache[at("hook_expert_weights")].flatten(0, 1).double(), dense, atol=1e-5, rtol=1e-5)


def block_by_hand(block: Any, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The MoE block, expert by expert, in plain float64 arithmetic."""
    x, out = x.double().reshape(-1, x.shape[-1]), torch.zeros(x.numel() // x.shape[-1], x.shape[-1]).double()
    for t in range(len(x)):
        for e, w in zip(indices[t].tolist(), weights[t].tolist(), strict=True):
            gate, up = (block.experts.gate_up_proj[e].double() @ x[t]).chunk(2)
            out[t] += w * (block.experts.down_proj[e].double() @ (nn.functional.silu(gate) * up))
    s = block.shared_experts
    shared = (nn.functional.silu(x @ s.gate_proj.weight.double().T) * (x @ s.up_proj.weight.double().T)) @ (
        s.down_proj.weight.double().T
    )
    return out + shared


@pytest.mark.parametrize(
    "case", ["indices", "topk_weights", "expert_weights", "new expert", "logits", "scores", "biased", "selection"]
)
def test_an_edit_of_the_routing_changes_the_output_as_by_hand(
    deepseek: HookedMoE, ids: torch.Tensor, case: str
) -> None:
    block = deepseek.hf_model.model.layers[L].mlp
    seen: dict[str, torch.Tensor] = {}
    handle = block.register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
    _, clean = deepseek.run_with_cache(ids)
    scores = clean[at("hook_router_scores")].flatten(0, 1).double()
    indices = clean[at("hook_expert_indices")].flatten(0, 1)
    weights = clean[at("hook_topk_weights")].flatten(0, 1).double()
    scale = block.gate.routed_scaling_factor

    def normalised(ids: torch.Tensor, s: torch.Tensor = scores) -> torch.Tensor:
        w = s.gather(-1, ids)
        return w / w.sum(-1, keepdim=True) * scale

    name, edit, indices, weights = {
        "indices": ("hook_expert_indices", lambda t: (t + 1) % 8, (indices + 1) % 8, normalised((indices + 1) % 8)),
        "topk_weights": ("hook_topk_weights", lambda t: t * 0.5, indices, weights * 0.5),
        "expert_weights": ("hook_expert_weights", lambda t: t * 2, indices, weights * 2),
        "new expert": (
            "hook_expert_weights",
            lambda t: torch.cat([torch.full_like(t[..., :1], 0.25), t[..., 1:]], -1),
            torch.cat([torch.zeros_like(indices[:, :1]), indices], 1),
            torch.cat([torch.full_like(weights[:, :1], 0.25), weights.masked_fill(indices == 0, 0)], 1),
        ),
        "logits": (
            "hook_router_logits",
            lambda t: t.clone().fill_(-20).index_fill(-1, torch.tensor([0, 3]), 20.0),
            torch.tensor([[0, 3]]).expand(24, 2),
            torch.full((24, 2), 0.5 * scale, dtype=torch.float64),
        ),
        "scores": (
            "hook_router_scores",
            lambda t: torch.zeros_like(t).index_fill(-1, torch.tensor([5, 6]), 9.0),
            torch.tensor([[5, 6]]).expand(24, 2),
            torch.full((24, 2), 0.5 * scale, dtype=torch.float64),
        ),
        "biased": (  # 5 is best; 4 is in its group, while 1 has more than 4
            "hook_router_biased",
            lambda t: torch.zeros_like(t).index_copy(
                -1, torch.tensor([5, 4, 1]), t.new_tensor([9, 1, 2]).expand(2, 12, 3)
            ),
            torch.tensor([[5, 4]]).expand(24, 2),
            normalised(torch.tensor([[5, 4]]).expand(24, 2)),
        ),
        "selection": (
            "hook_router_selection",
            lambda t: torch.zeros_like(t).index_fill(-1, torch.tensor([1, 7]), 1.0),
            torch.tensor([[1, 7]]).expand(24, 2),
            normalised(torch.tensor([[1, 7]]).expand(24, 2)),
        ),
    }[case]
    with deepseek.hooks([(at(name), lambda t, hook: edit(t))]):
        logits, cache = deepseek.run_with_cache(ids, names_filter=at("hook_out"))
    handle.remove()
    expected = block_by_hand(block, seen["x"], indices, weights)
    torch.testing.assert_close(cache[at("hook_out")].flatten(0, 1).double(), expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(logits, deepseek(ids))
    assert torch.equal(deepseek(ids), deepseek(ids)), "the edit left something behind"


@pytest.mark.parametrize("inference", [False, True])
def test_an_edit_in_place_counts(deepseek: HookedMoE, ids: torch.Tensor, inference: bool) -> None:
    def push(t: torch.Tensor, hook: Any) -> None:
        t[..., 4] = 100.0

    with torch.inference_mode(inference), deepseek.hooks([(at("hook_router_logits"), push)]):
        _, cache = deepseek.run_with_cache(ids, names_filter=at("hook_expert_indices"))
    chosen = (cache[at("hook_expert_indices")] == 4).any(-1).float().mean()
    assert chosen > 0.5


@pytest.mark.parametrize(
    "name",
    ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "mlp.hook_out", "mlp.shared.hook_out"]
    + [f"mlp.experts.{n}" for n in ("hook_pre", "hook_post", "hook_out")],
)
def test_an_edit_elsewhere_takes_effect(deepseek: HookedMoE, ids: torch.Tensor, name: str) -> None:
    names = [f"blocks.{L}.hook_resid_mid", at("hook_out"), f"blocks.{L}.hook_resid_post"]
    _, clean = deepseek.run_with_cache(ids, names_filter=names)
    with deepseek.hooks([(f"blocks.{L}.{name}", lambda t, hook: t * 1.5)]):
        _, cache = deepseek.run_with_cache(ids, names_filter=names)
    before, after = clean[names[2]], cache[names[2]]
    assert not torch.allclose(before, after)
    if name == "hook_resid_mid":  # written into the stream: the skip connection carries the edit too
        expected = clean[names[0]] * 1.5 + cache[names[1]]
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
    if name == "mlp.hook_out":
        torch.testing.assert_close(after, clean[names[0]] + 1.5 * clean[names[1]], atol=1e-5, rtol=1e-5)


def test_without_logits_asked_for_none_but_the_last_are_computed(deepseek: HookedMoE, ids: torch.Tensor) -> None:
    seen, points = [], [f"blocks.{L}.hook_resid_post", at("hook_expert_indices")]
    handle = deepseek.hf_model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    _, whole = deepseek.run_with_cache(ids, names_filter=points)
    nothing, cache = deepseek.run_with_cache(ids, names_filter=points, return_type=None)
    handle.remove()
    assert nothing is None
    assert seen == [ids.shape[1], 1]
    for name in points:
        assert torch.equal(cache[name], whole[name])


def test_gradients_reach_every_point(deepseek: HookedMoE, ids: torch.Tensor) -> None:
    grads: dict[str, torch.Tensor] = {}
    names = [n for n in deepseek.hook_dict if n.startswith(f"blocks.{L}.") and "indices" not in n]

    def keep(t: torch.Tensor, hook: Any) -> None:
        grads[hook.name] = t.detach().clone()

    with deepseek.hooks(bwd_hooks=[(n, keep) for n in names]):
        deepseek(ids, return_type="loss").backward()
    missing = [n for n in names if n not in grads or not grads[n].abs().sum() > 0]
    selecting = [at("hook_router_biased"), at("hook_router_selection")]
    assert missing == selecting, "only what is selected by, and passes on no value, has no gradient"


def test_weight_gradient_equals_contribution(deepseek: HookedMoE, ids: torch.Tensor) -> None:
    """d loss / d weight of a slot = <d loss / d block output, output of that expert>."""
    store: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda t, hook: store.__setitem__(name, t.detach().clone())

    with deepseek.hooks(
        [(at("experts.hook_out"), keep("outputs"))],
        [(at("hook_topk_weights"), keep("weights")), (at("hook_out"), keep("out"))],
    ):
        deepseek(ids, return_type="loss").backward()
    expected = torch.einsum("bpd,bpkd->bpk", store["out"], store["outputs"])
    torch.testing.assert_close(store["weights"], expected, atol=1e-6, rtol=1e-4)


def test_only_what_was_asked_for_is_held(deepseek: HookedMoE) -> None:
    ids = torch.randint(5, 150, (8, 64))
    for names in ([at("hook_router_logits", i) for i in (1, 2, 3)], [at("experts.hook_out")]):
        _, cache = deepseek.run_with_cache(ids, names_filter=names)
        assert list(cache.keys()) == names
        stated = sum(t.numel() * t.element_size() for t in cache.values())
        gc.collect()
        held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.values()}.values())
        assert stated <= held <= 1.1 * stated


def test_positions_are_sliced_where_they_are(deepseek: HookedMoE, ids: torch.Tensor) -> None:
    _, whole = deepseek.run_with_cache(ids)
    _, last = deepseek.run_with_cache(ids, pos_slice=slice(-1, None))
    for name in (at("hook_router_logits"), at("experts.hook_post")):
        assert torch.equal(last[name], whole[name][:, -1:])


def test_unhook_gives_the_model_back(ids: torch.Tensor) -> None:
    model, patched = tiny_model("deepseek_v3"), dict(_PATCHED)  # other tests may have left hooked models
    config, plain = dict(vars(model.config)), logits_of(model(ids))
    hooked = moelens.hook(model)
    hooked.add_hook(at("hook_router_logits"), lambda t, hook: t + 1, is_permanent=True)
    assert not torch.equal(hooked(ids), plain)
    assert hooked.unhook() is model
    assert torch.equal(logits_of(model(ids)), plain)
    assert vars(model.config) == config
    for module in model.modules():
        assert not module._forward_hooks, module
        assert not module._forward_pre_hooks, module
    assert not any(m in LISTENERS for m in model.modules())
    assert patched == _PATCHED
    with pytest.raises(MoeLensError, match=r"unhooked; call moelens.hook\(model, tokenizer\) again"):
        hooked(ids)


def test_a_failed_hook_leaves_nothing(ids: torch.Tensor) -> None:
    model = tiny_model("deepseek_v3")
    with torch.no_grad():
        model.model.layers[2].mlp.gate.weight.fill_(float("nan"))
    with pytest.raises(
        CheckError,
        match="expected finite numbers on a short input, got NaN or infinity in the router of layer 2; check the",
    ):
        moelens.hook(model)
    assert not any(m._forward_hooks for m in model.modules())
    assert model.config._experts_implementation != "moelens"


def test_two_hooked_models_of_one_class_are_independent(ids: torch.Tensor) -> None:
    patched = dict(_PATCHED)
    first, second = moelens.hook(tiny_model("llama4")), moelens.hook(tiny_model("llama4", seed=1))
    plain = second(ids)
    first.unhook()
    assert torch.equal(second(ids), plain)
    second.unhook()
    assert patched == _PATCHED


def test_eager_stays_eager(ids: torch.Tensor) -> None:
    model = tiny_model("mixtral")
    model.set_experts_implementation("eager")
    plain = logits_of(model(ids))
    hooked = moelens.hook(model)
    assert hooked.experts_implementation == "eager"
    assert torch.equal(hooked(ids), plain)


def test_generate_runs_with_hooks(deepseek: HookedMoE, ids: torch.Tensor) -> None:
    shapes: list[tuple[int, ...]] = []
    with deepseek.hooks([(at("hook_expert_indices"), lambda t, hook: shapes.append(tuple(t.shape)))]):
        out = deepseek.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert out.shape == (2, 15)
    assert shapes == [(2, 12, 2), (2, 1, 2), (2, 1, 2)]


def test_slots_are_known_where_hooks_are_inside(ids: torch.Tensor) -> None:
    hooked = moelens.hook(tiny_model("qwen3_moe"))

    def look(tensor: torch.Tensor, hook: Any) -> None:
        assert hooked.running.slots[2].shape == tensor.shape[:3]
        with pytest.raises(
            MoeLensError, match=r"running.slots has no layer 1, because no hook is inside its experts; add"
        ):
            hooked.running.slots[1]

    hooked.run_with_hooks(ids, fwd_hooks=[("blocks.2.mlp.experts.hook_out", look)])


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_transformer_bridge_has_our_points(name: str, ids: torch.Tensor) -> None:
    hooked = moelens.hook(tiny_model(name))
    layer = hooked.shape.moe_layers[-1]
    logits, ours = hooked.run_with_cache(ids)
    bridge = hooked.to_transformer_bridge()
    assert set(hooked.hook_dict) <= set(bridge.hook_dict)
    with torch.no_grad():
        again, cache = bridge.run_with_cache(ids)
        edited = bridge.run_with_hooks(ids, fwd_hooks=[(at("experts.hook_post", layer), lambda t, hook: t * 0)])
    torch.testing.assert_close(again, logits, atol=1e-4, rtol=1e-4)
    for point in ("hook_router_logits", "hook_router_scores", "experts.hook_post"):
        torch.testing.assert_close(cache[at(point, layer)], ours[at(point, layer)], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(edited, again)


def test_an_architecture_that_the_bridge_lacks() -> None:
    hooked = moelens.hook(tiny_model("dots1"))
    with pytest.raises(UnsupportedModelError, match="has no adapter for Dots1ForCausalLM; use the HookedMoE itself"):
        hooked.to_transformer_bridge()


class Tokens:
    """A tokenizer of another model."""

    pad_token = None

    def __len__(self) -> int:
        return 5000

    def __call__(self, texts: list[str], return_tensors: str) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.zeros(len(texts), 0, dtype=torch.long)}


ERRORS = [
    (
        "blocks.2.mlp.hook_router_logit",
        UnknownNameError,
        "unknown hook .*mean 'blocks.2.mlp.hook_router_logits'",
    ),
    ("blocks.9.mlp.hook_router_logits", UnknownNameError, "unknown layer '9'; allowed: 0, 1, 2, 3"),
    ("blocks.0.mlp.hook_router_logits", UnknownNameError, "layer 0 is dense; the MoE layers are 1 to 3"),
]


@pytest.mark.parametrize("name, error, text", ERRORS)
def test_unknown_hook_names(deepseek: HookedMoE, ids: torch.Tensor, name: str, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        deepseek.add_hook(name, lambda t, hook: t)
    with pytest.raises(error, match=text):
        deepseek.run_with_cache(ids, names_filter=name)
    with pytest.raises(error, match=text):
        deepseek.run_with_hooks(ids, fwd_hooks=[(name, lambda t, hook: t)])


def test_other_errors(deepseek: HookedMoE, ids: torch.Tensor) -> None:
    with pytest.raises(MoeLensError, match=r"this model is hooked already; call .unhook\(\) on the HookedMoE"):
        moelens.hook(deepseek.hf_model)
    with pytest.raises(MoeLensError, match="no tokenizer; pass token ids"):
        deepseek("先生がいらっしゃいました。")
    with pytest.raises(CheckError, match=r"expert 8 at .* does not exist; allowed: 0 to 7"):
        deepseek.run_with_hooks(ids, fwd_hooks=[(at("hook_expert_indices"), lambda t, hook: t * 0 + 8)])
    with pytest.raises(
        CheckError, match="tokenizer of at most 160 tokens, which the model embeds, got one of 5,000; load the one"
    ):
        moelens.hook(tiny_model("mixtral"), Tokens())
    dense = tiny_model("mixtral")
    dense.model.layers = nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match="has no experts; moelens reads Mixture-of-Experts models"):
        moelens.hook(dense)


def test_texts_that_cannot_be_run(deepseek: HookedMoE) -> None:
    deepseek.tokenizer = Tokens()
    with pytest.raises(
        MoeLensError, match="expected a text with at least one token, got ''; give one that is not empty"
    ):
        deepseek("")
    with pytest.raises(MoeLensError, match="the tokenizer has no padding token; run texts one by one, or set"):
        deepseek(["はい。", "いいえ、違います。"])


def test_a_number_of_experts_that_is_wrong_or_missing() -> None:
    model = tiny_model("mixtral")
    model.model.layers[2].mlp.gate.num_experts = 3
    with pytest.raises(CheckError, match="expected experts 0 to 2 in layer 2, got expert 7; check the model's conf"):
        moelens.hook(model)
    for part in (model.model.layers[2].mlp.gate, model.model.layers[2].mlp.experts):
        part.num_experts = None
    model.config.num_local_experts = 0
    missing = "expected the number of experts in MixtralExperts, its router or the configuration, found none; set"
    with pytest.raises(UnsupportedModelError, match=missing):
        moelens.hook(model)


def test_a_layer_that_chooses_no_experts() -> None:
    model = tiny_model("mixtral")
    model.model.layers[2].mlp.forward = lambda hidden_states: hidden_states
    with pytest.raises(CheckError, match="choose experts on a short input, got none from layer 2; this model cannot"):
        moelens.hook(model)


def test_without_checks_stages_are_refused(ids: torch.Tensor) -> None:
    hooked = moelens.hook(tiny_model("mixtral"), check=False)
    hooked.run_with_cache(ids, names_filter=at("hook_router_logits"))
    with pytest.raises(MoeLensError, match="the checks at load were switched off"):
        hooked.run_with_hooks(ids, fwd_hooks=[(at("hook_router_logits"), lambda t, hook: t + 1)])
    with pytest.raises(MoeLensError, match=r"this model does not offer '.*': the checks at load were switched off"):
        hooked.add_hook(at("hook_router_scores"), lambda t, hook: t)
