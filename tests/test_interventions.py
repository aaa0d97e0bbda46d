"""Tests of interventions: against DeepSeek-V3's routing in float64, other routers, masks, order, restoration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_inputs, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import moelens
from moelens import HookedMoE, MoeLensError
from moelens.interventions import (
    Intervention,
    force,
    patch_outputs,
    patch_routes,
    recorded_tensors,
    remove,
    remove_renorm,
    replay,
    reroute,
    scale,
    steer,
    swap,
)
from moelens.japanese.families import require_label

L = 2
ROUTERS = ["mixtral", "gpt_oss", "deepseek_v2", "deepseek_v3", "minimax_m2", "phimoe", "kolibri1", "llama4"]


def at(name: str, layer: int = L) -> str:
    return f"blocks.{layer}.mlp.{name}"


def dense(weights: list[dict[int, float]]) -> Tensor:
    table = torch.zeros(len(weights), 8, dtype=torch.float64)
    for t, row in enumerate(weights):
        for expert, weight in row.items():
            table[t, expert] = weight
    return table


def route(
    scores: list[float], bias: list[float], scale: float, change: Callable[[list[float]], None]
) -> dict[int, float]:
    """Route one token as DeepSeek-V3 does, to 2 of 8 experts from 1 of 2 groups, in plain Python (arXiv 2412.19437)."""
    biased = [s + b for s, b in zip(scores, bias, strict=True)]
    change(biased)
    groups = [sum(sorted(biased[g : g + 4])[-2:]) for g in (0, 4)]
    start = 4 * groups.index(max(groups))
    chosen = sorted(range(start, start + 4), key=lambda e: biased[e])[-2:]
    total = sum(scores[e] for e in chosen)
    return {e: scores[e] / total * scale for e in chosen}


def setting(value: float, *experts: int) -> Callable[[list[float]], None]:
    def change(biased: list[float]) -> None:
        for e in experts:
            biased[e] = value

    return change


def adding(value: float, *experts: int) -> Callable[[list[float]], None]:
    def change(biased: list[float]) -> None:
        for e in experts:
            biased[e] += value

    return change


def without(row: dict[int, float], *experts: int) -> dict[int, float]:
    return {e: w for e, w in row.items() if e not in experts}


def renormalised(row: dict[int, float], *experts: int) -> dict[int, float]:
    left = without(row, *experts)
    return {e: w * sum(row.values()) / sum(left.values()) for e, w in left.items()}


def block_by_hand(block: Any, x: Tensor, weights: Tensor, shared: float = 1.0) -> Tensor:
    """Compute the MoE block, expert by expert, in float64."""
    x, out = x.double().reshape(-1, x.shape[-1]), torch.zeros(len(weights), x.shape[-1], dtype=torch.float64)
    for e in range(8):
        gate, up = (x @ block.experts.gate_up_proj[e].double().T).chunk(2, -1)
        out += weights[:, [e]] * ((nn.functional.silu(gate) * up) @ block.experts.down_proj[e].double().T)
    s = block.shared_experts
    gate, up = x @ s.gate_proj.weight.double().T, x @ s.up_proj.weight.double().T
    return out + shared * (nn.functional.silu(gate) * up) @ s.down_proj.weight.double().T


BIG = 1e6
CASES: dict[str, tuple[Intervention, Callable[[list[float]], None], Callable[[dict[int, float]], dict[int, float]]]] = {
    "remove": (remove(L, [1, 6]), lambda b: None, lambda r: without(r, 1, 6)),
    "remove_renorm": (remove_renorm(L, [1]), lambda b: None, lambda r: renormalised(r, 1)),
    "scale": (
        scale(L, [1, 6], 3.0),
        lambda b: None,
        lambda r: {e: w * (3 if e in (1, 6) else 1) for e, w in r.items()},
    ),
    "swap": (swap(L, 1, 6), lambda b: None, lambda r: {{1: 6, 6: 1}.get(e, e): w for e, w in r.items()}),
    "reroute": (reroute(L, [1, 6]), setting(-BIG, 1, 6), lambda r: r),
    "force": (force(L, [3]), setting(BIG, 3), lambda r: r),
    "force both": (force(L, [4, 7]), setting(BIG, 4, 7), lambda r: r),
    "steer": (steer(L, [2, 5], 0.3), adding(0.3, 2, 5), lambda r: r),
}


@pytest.mark.parametrize("case", CASES)
def test_each_operation_equals_a_plain_recomputation(deepseek: HookedMoE, ids: Tensor, case: str) -> None:
    intervention, change, after = CASES[case]
    block = deepseek.hf_model.model.layers[L].mlp
    gate, seen = block.gate, {}
    handle = block.register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
    clean = deepseek(ids)
    with deepseek.intervene(intervention):
        logits, cache = deepseek.run_with_cache(ids)
    handle.remove()

    x = seen["x"].double().reshape(-1, 64)
    scores = (1 / (1 + torch.exp(-x @ gate.weight.double().T))).tolist()
    bias = gate.e_score_correction_bias.double().tolist()
    chosen = [route(s, bias, gate.routed_scaling_factor, change) for s in scores]
    weights = dense([after(row) for row in chosen])
    own = dense([route(s, bias, gate.routed_scaling_factor, lambda b: None) for s in scores])
    assert not torch.allclose(weights, own), "the case is too easy"
    torch.testing.assert_close(cache[at("hook_expert_weights")].flatten(0, 1).double(), weights, atol=1e-5, rtol=1e-5)
    expected = block_by_hand(block, x, weights)
    torch.testing.assert_close(cache[at("hook_out")].flatten(0, 1).double(), expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(logits, clean)
    assert torch.equal(deepseek(ids), clean), "the model was not restored"


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_interventions_on_the_shared_expert(deepseek: HookedMoE, ids: Tensor, factor: float) -> None:
    block = deepseek.hf_model.model.layers[L].mlp
    names = [at("hook_expert_weights"), at("hook_out"), f"blocks.{L}.hook_resid_mid"]
    _, clean = deepseek.run_with_cache(ids, names_filter=names)
    with deepseek.intervene(remove(L, "shared") if factor == 0 else scale(L, "shared", factor)):
        _, cache = deepseek.run_with_cache(ids, names_filter=names)
    x = deepseek.hf_model.model.layers[L].post_attention_layernorm(clean[names[2]])
    expected = block_by_hand(block, x.detach(), clean[names[0]].flatten(0, 1).double(), factor)
    assert torch.equal(cache[names[0]], clean[names[0]]), "the weights are not renormalised"
    torch.testing.assert_close(cache[names[1]].flatten(0, 1).double(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_family(name: str) -> None:
    """Each operation has the documented effect on the choice of experts in models with different routers."""
    model = moelens.hook(tiny_model(name, **({"num_experts_per_tok": 2} if name == "llama4" else {})))
    inputs, layer = tiny_inputs(model.hf_model), model.shape.moe_layers[-1]
    points = [at("hook_expert_weights", layer), at("hook_expert_indices", layer)]

    def run(*interventions: Intervention) -> tuple[Tensor, Tensor]:
        with model.intervene(*interventions):
            _, cache = model.run_with_cache(**inputs, names_filter=points)
        return cache[points[0]], cache[points[1]]

    weights, indices = run()
    often = int(torch.bincount(indices.flatten(), minlength=8).argmax())
    gone = weights.index_fill(-1, torch.tensor([often]), 0)
    torch.testing.assert_close(run(remove(layer, [often]))[0], gone, atol=0, rtol=0)
    renormed = run(remove_renorm(layer, [often]))[0]
    alone = gone.sum(-1) == 0
    torch.testing.assert_close(renormed.sum(-1)[~alone], weights.sum(-1)[~alone])
    assert not (run(reroute(layer, [often]))[1] == often).any()
    assert (run(force(layer, [5]))[1] == 5).any(-1).all()
    torch.testing.assert_close(run(steer(layer, [often], 0.0))[0], weights)
    unused = ~(indices == often).any(-1)
    torch.testing.assert_close(run(reroute(layer, [often]))[0][unused], weights[unused])
    model.unhook()


def test_a_router_that_cannot_be_replayed_is_refused() -> None:
    model = moelens.hook(tiny_model("inkling"))
    inputs, layer = tiny_inputs(model.hf_model), model.shape.moe_layers[-1]
    for operation in (reroute(layer, [1]), force(layer, [1]), steer(layer, [1], 0.1)):
        wanted = (
            rf"expected a router that can be replayed for {operation.operation}, got one that cannot in layer {layer}: "
            r"no known rule .*; use remove, remove_renorm, scale, swap or patch_routes"
        )
        with pytest.raises(MoeLensError, match=wanted):
            operation.hooks(model)
    clean = model(**inputs)
    with model.intervene(remove(layer, list(range(8)))):
        assert not torch.allclose(model(**inputs), clean)


def test_masks_and_labels_select_tokens(ids: Tensor) -> None:
    model = moelens.load("demo")
    layer, text = 3, "先生がいらっしゃいました。"
    experts = list(range(model.shape.n_experts))
    point = at("hook_expert_weights", layer)

    def kept(intervention: Intervention, *inputs: Any, **kwargs: Any) -> Tensor:
        with model.intervene(intervention):
            _, cache = model.run_with_cache(*(inputs or (text,)), **kwargs, names_filter=point)
        return cache[point].sum(-1) > 0

    tokens = model.to_str_tokens(text)
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    mask[[1, 2]] = True
    assert torch.equal(kept(remove(layer, experts, at=mask))[0], ~mask)
    assert torch.equal(kept(remove(layer, experts, at=lambda m, ids: ids % 2 == 0)), model.to_tokens(text) % 2 == 1)
    short = kept(remove(layer, experts, at=mask), model.to_tokens(text).repeat(2, 3))
    assert torch.equal(short, ~torch.nn.functional.pad(mask, (0, 2 * len(mask))).expand(2, -1))

    both = kept(remove(layer, experts, at="尊敬語"), [text, "犬がいます。"])
    piece = tokens.index(next(t for t in tokens if "ました" in model.tokenizer.convert_tokens_to_string([t])))
    assert both[1].all()
    assert not both[0].all()
    assert both[0, piece], "ました is 丁寧語 only"
    assert torch.equal(both[0, : len(tokens)], kept(remove(layer, experts, at="honorifics.尊敬語"))[0])


def test_phases_and_positions_through_generate() -> None:
    model = moelens.load("demo")
    layer, prompt = 3, model.to_tokens("先生が")
    experts, n = list(range(model.shape.n_experts)), prompt.shape[1]
    mask = torch.zeros(n + 4, dtype=torch.bool)
    mask[[0, n + 1]] = True
    for use_cache in (True, False):
        for where, gone in (
            ({"phase": "prefill"}, range(n)),
            ({"phase": "generation"}, range(n, n + 3)),
            ({"at": mask}, [0, n + 1]),
            ({"at": mask, "phase": "generation"}, [n + 1]),
        ):
            seen: dict[int, bool] = {}

            def look(weights: Tensor, hook: Any, seen: dict[int, bool] = seen) -> None:
                for i, row in enumerate(weights[0]):
                    seen[model.running.start + i] = bool(row.sum() > 0)

            hooks = [*remove(layer, experts, **where).hooks(model), (at("hook_expert_weights", layer), look)]  # type: ignore[arg-type]
            with model.hooks(hooks):
                model.generate(prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=use_cache)
            assert seen == {i: i not in gone for i in range(n + 3)}, (use_cache, where)
    assert not model.running.generating


def test_order(deepseek: HookedMoE, ids: Tensor) -> None:
    """At one hook point, operations apply in the given order, outer contexts first; otherwise, in that of the model."""

    def weights(*interventions: Intervention) -> Tensor:
        with deepseek.intervene(*interventions):
            return deepseek.run_with_cache(ids, names_filter=at("hook_expert_weights"))[1][at("hook_expert_weights")]

    first, second = scale(L, [3], 2.0), swap(L, 3, 5)
    assert not torch.equal(weights(first, second), weights(second, first))
    with deepseek.intervene(first):
        nested = weights(second)
    assert torch.equal(nested, weights(first, second))
    assert torch.equal(weights(remove(L, [3]), force(L, [3])), weights(force(L, [3]), remove(L, [3])))
    assert (weights(reroute(L, [3]), force(L, [3]))[..., 3] > 0).all(), "the later operation applies"
    assert (weights(force(L, [3]), reroute(L, [3]))[..., 3] == 0).all()
    assert torch.equal(weights(force(L, [3]), remove(L, [3]))[..., 3], torch.zeros(2, 12))


RESTORED = moelens.hook(tiny_model("deepseek_v3"))
OTHER = RESTORED.run_with_cache(torch.arange(31, 19, -1)[None])[1]
OPERATIONS = st.sampled_from(
    [remove(L, [1]), remove_renorm(1, [0, 5]), reroute(L, [4]), force(3, [2]), scale(L, [6], 0.5), swap(1, 0, 3)]
    + [steer(L, [7], 0.2), remove(3, "shared"), patch_routes(OTHER), patch_outputs(OTHER)]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(OPERATIONS, min_size=1, max_size=4), st.booleans())
def test_leaving_the_context_restores_the_model_exactly(interventions: list[Intervention], fails: bool) -> None:
    model, ids = RESTORED, torch.arange(20, 32)[None]
    clean, hooks = model(ids), {n: list(p.fwd_hooks) for n, p in model.hook_dict.items()}
    try:
        with model.intervene(*interventions), model.intervene(*interventions[:1]):
            model(ids)
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(model(ids), clean)
    assert {n: list(p.fwd_hooks) for n, p in model.hook_dict.items()} == hooks
    assert model.context_level == 0


def test_an_exception_inside_the_model_restores_it_too(deepseek: HookedMoE, ids: Tensor) -> None:
    clean = deepseek(ids)
    with (
        pytest.raises(MoeLensError, match="expected 2 or more other experts for each token, got fewer after 'reroute"),
        deepseek.intervene(reroute(L, list(range(7)))),
    ):
        deepseek(ids)
    assert torch.equal(deepseek(ids), clean)


def test_patching_everything_gives_the_other_run(deepseek: HookedMoE, ids: Tensor) -> None:
    """With routes and outputs of another run, every MoE output equals that of the other run."""
    other = ids.flip(1)
    _, source = deepseek.run_with_cache(other)
    with deepseek.intervene(patch_routes(source, L), patch_outputs(source, L), patch_outputs(source, L, "shared")):
        _, cache = deepseek.run_with_cache(ids)
    torch.testing.assert_close(cache[at("hook_out")], source[at("hook_out")])
    with deepseek.intervene(patch_routes(source)):
        _, cache = deepseek.run_with_cache(ids)
    for layer in deepseek.shape.moe_layers:
        name = at("hook_expert_weights", layer)
        assert torch.equal(cache[name], source[name])


def test_patched_outputs_are_those_of_the_same_expert(deepseek: HookedMoE, ids: Tensor) -> None:
    _, source = deepseek.run_with_cache(ids.flip(1))
    _, clean = deepseek.run_with_cache(ids)
    expert = int(clean[at("hook_expert_indices")][0, 0, 0])
    with deepseek.intervene(patch_outputs(source, L, [expert])):
        _, cache = deepseek.run_with_cache(ids)
    ours, theirs = (c[at("hook_expert_indices")] for c in (clean, source))
    outputs = clean[at("experts.hook_out")].clone()
    patched = 0
    for b, p, slot in np.ndindex(*ours.shape):
        there = (theirs[b, p] == ours[b, p, slot]).nonzero().flatten().tolist()
        if ours[b, p, slot] == expert and there:
            outputs[b, p, slot] = source[at("experts.hook_out")][b, p, there[0]]
            patched += 1
    assert patched
    assert torch.equal(cache[at("experts.hook_out")], outputs)


class Recorded:
    """A recording made from the cache of a run: two documents of 12 and 5 tokens."""

    n_documents = 2

    def __init__(self, cache: Any, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self._cache = {n: torch.stack([cache[at(n, layer)] for layer in layers], 2) for n in (INDICES, WEIGHTS)}

    def _rows(self, name: str) -> Any:
        return torch.cat([self._cache[name][0], self._cache[name][1, :5]]).numpy()

    def column(self, name: str) -> Any:
        return np.repeat([0, 1], [12, 5])

    def indices(self) -> Any:
        return self._rows(INDICES).astype(np.uint8)

    def weights(self) -> Any:
        return self._rows(WEIGHTS).astype(np.float16).astype(np.float32)


INDICES, WEIGHTS = "hook_expert_indices", "hook_topk_weights"


def test_replay_of_a_recording(deepseek: HookedMoE, ids: Tensor) -> None:
    clean, cache = deepseek.run_with_cache(ids)
    recorded = Recorded(cache, deepseek.shape.moe_layers)
    with deepseek.intervene(replay(recorded, [0, 1])):
        torch.testing.assert_close(deepseek(ids), clean, atol=2e-2, rtol=1e-2)  # weights are kept as float16
    with deepseek.intervene(replay(recorded, [1, 0])):
        _, other = deepseek.run_with_cache(ids)
    for layer in deepseek.shape.moe_layers:
        name = at("hook_expert_weights", layer)
        for ours, theirs, n in ((0, 1, 5), (1, 0, 12)):
            torch.testing.assert_close(other[name][ours, :n], cache[name][theirs, :n], atol=1e-3, rtol=1e-3)
    assert torch.equal(other[at("hook_expert_weights", 1)][0, 5:], cache[at("hook_expert_weights", 1)][0, 5:])
    with pytest.raises(MoeLensError, match="unknown document '7'; allowed: 0, 1"):
        replay(recorded, [7])


@pytest.mark.slow
def test_outputs_and_routes_of_a_real_recording(tmp_path: Any) -> None:
    """Patches from a recording give the MoE outputs of the recorded text, and a replay gives its logits."""
    model = moelens.load("demo")
    texts = ["先生がいらっしゃいました。", "犬がいました。"]
    options = {"capture": ["routes", "expert_outputs"], "store_dtype": "float32", "progress": False}
    recording = moelens.record(model, texts, tmp_path / "r", **options)
    source, layer = recorded_tensors(recording, [1], outputs=True), recording.layers[-1]
    _, other = model.run_with_cache(texts[1])
    n = other[at("hook_expert_indices", layer)].shape[1]
    with model.intervene(patch_routes(source, layer), patch_outputs(source, layer)):
        _, cache = model.run_with_cache(texts[0])
    routed = (cache[at("hook_out", layer)] - cache[at("shared.hook_out", layer)])[:, :n]
    expected = other[at("hook_out", layer)] - other[at("shared.hook_out", layer)]
    torch.testing.assert_close(routed, expected, atol=2e-3, rtol=2e-2)  # weights are kept as float16
    clean = model(texts)
    with model.intervene(replay(recording, [0, 1])):
        torch.testing.assert_close(model(texts), clean, atol=5e-2, rtol=5e-2)


ERRORS: dict[str, tuple[Callable[[], Intervention], str]] = {
    "layer": (lambda: remove(0, [1]), r"unknown layer '0'; allowed: 1, 2, 3 \(layers of 'tiny' with experts\)"),
    "expert": (lambda: remove(L, [8]), "expected experts from 0 to 7, got 8; give an expert of 'tiny'"),
    "none": (
        lambda: remove(L, []),
        r"expected different expert ids, one or more, got \[\]; give some such as \[5, 9\]",
    ),
    "twice": (lambda: swap(L, 1, 1), r"expected different expert ids, one or more, got \[1, 1\]; give"),
    "word": (
        lambda: remove(L, "routed"),
        r"expected a list of expert ids or 'shared', got 'routed'; give ids such as \[5, 9\]",
    ),  # type: ignore[arg-type]
    "phase": (lambda: remove(L, [1], phase="decode"), "unknown phase 'decode'; allowed: all, prefill, generation"),  # type: ignore[arg-type]
    "shared": (
        lambda: remove_renorm(L, "shared"),
        "expected ids of routed experts for remove_renorm, got 'shared': every token uses the shared expert, and the "
        "router gives it no weight; use remove, scale or patch_outputs",
    ),
    "label": (lambda: remove(L, [1], at="尊敬"), "unknown label '尊敬'; did you mean '尊敬語'"),
    "too many": (
        lambda: force(L, [0, 1, 2]),
        "fit into the 2 experts from 1 groups of a token, got 'force .*'; force fewer",
    ),
    "two groups": (
        lambda: force(L, [0, 4]),
        "expected experts that fit into the 2 experts from 1 groups of a token, got",
    ),
    "mask": (
        lambda: remove(L, [1], at=torch.ones(3, 12).bool()),
        r"expected a mask bool \[pos\] or \[2, pos\], got bool \[3, 12\]; give one row for each of the 2 sequences",
    ),
    "source": (
        lambda: patch_routes({}, L),
        "expected a source with 'blocks.2.mlp.hook_expert_indices' for patch_routes, got one without; cache this",
    ),
    "sequences": (
        lambda: patch_routes({at("hook_expert_indices"): torch.zeros(3, 12, 2)}, L),
        "expected a source of 1 or 2 sequences for patch_routes, got 3; run the source on as many",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(deepseek: HookedMoE, ids: Tensor, case: str) -> None:
    make, message = ERRORS[case]
    with pytest.raises(MoeLensError, match=message), deepseek.intervene(make()):
        deepseek(ids)


def test_a_model_without_a_shared_expert() -> None:
    model = moelens.hook(tiny_model("mixtral"), name="tiny")
    with pytest.raises(
        MoeLensError, match="expected a model with a shared expert, got 'tiny', which has none; give ids of routed"
    ):
        remove(L, "shared").hooks(model)


def test_a_label_of_several_families() -> None:
    with pytest.raises(MoeLensError, match="got '連用', which several families have; write a"):
        require_label("連用", ["a.連用", "b.連用"])


def test_a_label_needs_tokens(deepseek: HookedMoE, ids: Tensor) -> None:
    embedded = deepseek.hf_model.get_input_embeddings()(ids).detach()
    message = (
        "expected a run on token ids or text, which a label or a function of the tokens needs, got embeddings; run"
    )
    with deepseek.intervene(remove(L, [1], at="尊敬語")), pytest.raises(MoeLensError, match=message):
        deepseek(None, inputs_embeds=embedded)


def test_an_intervention_prints_as_words() -> None:
    assert str(remove(3, [5, 9], at="尊敬語", phase="prefill")) == "remove E5, E9 in layer 3 at 尊敬語 in prefill"
    assert str(scale(3, "shared", 0.5)) == "scale by 0.5 shared expert in layer 3"
    assert str(patch_routes({})) == "patch_routes in all layers"
