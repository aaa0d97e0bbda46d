"""Tests of effects, controls and attribution against plain recomputation, and on a planted case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import erf
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import moelens
from moelens import HookedMoE, MoeLensError
from moelens.interventions import TextContrast, TextPair, attribute, effect, expert_lens, remove, scale, swap
from moelens.interventions.attribution import contributions
from moelens.interventions.controls import ExpertUsage, balance_lines, control_sets, expert_usage, is_balanced
from moelens.interventions.effects import _weighted_effects
from moelens.interventions.items import as_items, half_of, pairs_within
from moelens.interventions.off_target import measure_off_target
from moelens.interventions.scoring import margins, mean_interval, pair_texts, share_interval, text_batches
from moelens.japanese import contrasts

L = 3
CONTEXTS = [
    "明日は学校へ行",
    "母と町へ行",
    "夏には海へ行",
    "毎朝駅へ行",
    "友達と山へ行",
    "来週東京へ行",
    "今から店へ行",
    "兄は大阪へ行",
]


def pairs_of(prefix: str, kind: str, good: str) -> list[TextPair]:
    return [
        TextPair(id=f"{prefix}{i}", kind=kind, frame=c, context=c, good=good, bad="く。")
        for i, c in enumerate(CONTEXTS)
    ]


POLITE = pairs_of("p", "plain-polite", "きます。")
TENSE = pairs_of("t", "tense", "った。")
PLAIN = ["雨が降る。", "山は高い。"]


def characters(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters, with ids from 5."""
    vocabulary = {c: i + 5 for i, c in enumerate(sorted(set("".join(texts))))} | {"[pad]": 0, "[unk]": 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[pad]", unk_token="[unk]")


@pytest.fixture
def model() -> Iterator[HookedMoE]:
    hooked = moelens.hook(tiny_model("deepseek_v3"), characters([*pair_texts([*POLITE, *TENSE]), *PLAIN]), name="tiny")
    yield hooked
    hooked.unhook()


def margin_by_hand(model: HookedMoE, pair: Any) -> float:
    total = 0.0
    for text, sign in ((pair.context + pair.good, 1), (pair.context + pair.bad, -1)):
        ids = model.to_tokens(text)
        with torch.no_grad():
            logp = model(ids)[0].double().log_softmax(-1)
        total += sign * sum(logp[i - 1, ids[0, i]].item() for i in range(1, ids.shape[1]))
    return total


def test_margins_and_batches(model: HookedMoE) -> None:
    pairs = [*POLITE, *TENSE]
    by_hand = [margin_by_hand(model, p) for p in pairs]
    for batch_tokens in (1, 30, 4096):
        np.testing.assert_allclose(margins(model, pairs, batch_tokens), by_hand, atol=1e-4)
    rows = [r for b in text_batches(model, pair_texts(pairs), 30, group_size=2) for r in b.rows]
    assert sorted(rows) == list(range(32))
    assert all(len(b.ids) == 2 or b.ids.numel() <= 30 for b in text_batches(model, pair_texts(pairs), 30, group_size=2))


def test_effect_equals_a_plain_recomputation(model: HookedMoE) -> None:
    removal = remove(L, [2])
    result = effect(model, [*POLITE, *TENSE], removal, draws=20, texts=PLAIN, off_target=False)
    assert [k.kind for k in result.kinds] == ["plain-polite", "tense"]
    polite = result.kinds[0]
    before = np.array([margin_by_hand(model, p) for p in POLITE])
    with model.intervene(removal):
        after = np.array([margin_by_hand(model, p) for p in POLITE])
    assert (polite.before, polite.after) == pytest.approx((before.mean(), after.mean()), abs=1e-4)
    assert polite.change == pytest.approx((after - before).mean(), abs=1e-4)
    assert polite.low <= polite.change <= polite.high
    assert polite.flip == ((after > 0) != (before > 0)).mean()
    assert len(set(result.controls)) == 20
    assert str(removal) not in result.controls
    assert 1 / 21 <= polite.p <= 1

    ids = model.to_tokens(PLAIN[0])
    p = model(ids)[0].log_softmax(-1)
    with model.intervene(removal):
        q = model(ids)[0].log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)[:-1].mean().item()
    alone = effect(model, POLITE, removal, controls=None, texts=PLAIN[:1], off_target=False)
    assert alone.text is not None
    assert alone.text.kl == pytest.approx(kl, rel=1e-3)
    assert alone.text.perplexity_after == pytest.approx(
        torch.exp(-q[:-1].gather(1, ids[0, 1:, None]).mean()).item(), rel=1e-3
    )
    assert np.isnan(alone.kinds[0].p)
    first, again = (effect(model, POLITE, removal, draws=20, texts=PLAIN, off_target=False) for _ in range(2))
    assert first.to_dict() == again.to_dict()
    assert "remove E2 in layer 3 · all items · 20 matched controls · seed 0" in repr(result)
    assert "unrelated text (2 texts, 8 tokens): KL" in repr(result)


@pytest.mark.parametrize("name", ["deepseek_v3", "mixtral", "gpt_oss"])
def test_contributions_of_a_layer_sum_to_the_directional_derivative(name: str) -> None:
    """The derivative is that of the margin by a factor of all outputs of a layer, at 1."""
    model = moelens.hook(tiny_model(name), characters(pair_texts(POLITE)))
    found = contributions(model, POLITE[:3])
    for i, layer in enumerate(model.shape.moe_layers):
        factor = torch.ones((), requires_grad=True)
        names = [f"blocks.{layer}.mlp.experts.hook_out", f"blocks.{layer}.mlp.shared.hook_out"]
        hooks = [(n, lambda t, hook, a=factor: t * a) for n in names if n in model.hook_dict]
        total = torch.zeros(())
        with model.hooks(hooks):
            for text, sign in zip(pair_texts(POLITE[:3]), [1, -1] * 3, strict=True):
                ids = model.to_tokens(text)
                total = total + sign * model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()
        (derivative,) = torch.autograd.grad(total, factor)
        assert found[:, i].sum() == pytest.approx(derivative.item(), rel=2e-3, abs=1e-4)
    assert np.abs(found).sum() > 0
    for parameter in model.hf_model.parameters():
        assert parameter.grad is None
    frozen = contributions(model, POLITE[:3])
    model.hf_model.requires_grad_(False)
    np.testing.assert_allclose(contributions(model, POLITE[:3]), frozen, atol=1e-6)
    model.unhook()


def test_a_contribution_is_weight_times_gradient_times_output(model: HookedMoE) -> None:
    pair, point = POLITE[0], f"blocks.{L}.mlp."
    expected = np.zeros(9)
    for text, sign in ((pair.context + pair.good, 1), (pair.context + pair.bad, -1)):
        ids, kept = model.to_tokens(text), {}
        with model.hooks(
            bwd_hooks=[(point + "hook_out", lambda g, hook, kept=kept: kept.update(g=g.detach().clone()))]
        ):
            logits, cache = model.run_with_cache(ids)
            logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum().backward()
        outputs, weights = cache[point + "experts.hook_out"], cache[point + "hook_topk_weights"]
        terms = weights * torch.einsum("bpd,bpkd->bpk", kept["g"], outputs)
        for expert, term in zip(
            cache[point + "hook_expert_indices"].flatten().tolist(), terms.flatten().tolist(), strict=True
        ):
            expected[expert] += sign * term
        expected[8] += sign * (kept["g"] * cache[point + "shared.hook_out"]).sum().item()
    np.testing.assert_allclose(contributions(model, [pair])[0, model.shape.moe_layers.index(L)], expected, atol=1e-4)


def plant(model: HookedMoE, expert: int = 5) -> int:
    """Make the last layer route 行 to one expert whose output raises き over く."""
    block, head = model.hf_model.model.layers[L].mlp, model.hf_model.lm_head.weight
    inputs: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda m, args: inputs.append(args[0][0, -1].detach()))
    for pair in POLITE:
        model(pair.context)
    handle.remove()
    mean = torch.stack(inputs).mean(0)
    き, く = model.tokenizer.convert_tokens_to_ids(["き", "く"])
    direction = head[き] - head[く]
    with torch.no_grad():
        block.gate.weight[expert] = 4 * mean / mean.square().sum()
        gate, up = (torch.stack(inputs) @ block.experts.gate_up_proj[expert].T).chunk(2, -1)
        reading = torch.linalg.pinv(torch.nn.functional.silu(gate) * up) @ torch.ones(len(inputs))
        block.experts.down_proj[expert] = 3 * torch.outer(direction / direction.norm(), reading)
    return expert


def test_only_the_planted_expert_is_found_and_confirmed(model: HookedMoE) -> None:
    expert = plant(model)
    found = attribute(model, POLITE, top=6)
    assert (found.top[0].layer, found.top[0].expert) == (L, expert)
    assert found.top[0].attributed > 2 * abs(found.top[1].attributed)
    assert found.top[0].high < 0
    assert found.top[0].change == min(c.change for c in found.top)
    assert found.pairs == (4, 4)
    split = [replace(p, split="test" if i < 2 else "discovery") for i, p in enumerate(POLITE)]
    assert [p.id for p in half_of(split, "test")] == ["p0", "p1"], "pairs with a split stay in their half"

    result = effect(model, POLITE, remove(L, [expert]), half="test", draws=20, texts=PLAIN)
    (planted,) = result.kinds
    assert planted.change == pytest.approx(found.top[0].change, abs=1e-4)
    assert planted.p == pytest.approx(1 / 21)
    assert abs(planted.control) < 0.2 * abs(planted.change)
    assert "found on 4 pairs, verified on 4 of other frames" in repr(found)
    assert f"L3 E{expert}" in repr(found)


def test_the_lens_equals_a_plain_recomputation(model: HookedMoE) -> None:
    expert = plant(model)
    lens = expert_lens(model, CONTEXTS[0], L, contrast=("き", "く"), top=3)
    assert (lens.parts[0].name, lens.parts[-1].name) == ("all", "shared")
    by_name = {p.name: p for p in lens.parts}
    assert by_name[f"E{expert}"].contrast == max(p.contrast for p in lens.parts if p.name.startswith("E"))
    assert by_name["all"].agreement == pytest.approx(1)
    logits = model(CONTEXTS[0])[0, -1]
    head, norm = model.hf_model.lm_head, model.hf_model.model.norm
    _, cache = model.run_with_cache(CONTEXTS[0])
    before = head(norm(cache[f"blocks.{L}.hook_resid_mid"][0, -1]))
    き, く = model.tokenizer.convert_tokens_to_ids(["き", "く"])
    change = logits - before
    assert by_name["all"].contrast == pytest.approx((change[き] - change[く]).item(), abs=1e-4)
    assert f"after '行', layer {L}" in repr(lens)
    with pytest.raises(
        MoeLensError, match="expected two single tokens as contrast, got '行き', which is 2 tokens of this model"
    ):
        expert_lens(model, CONTEXTS[0], L, contrast=("行き", "く"))


def test_a_block_that_scales_its_output_has_no_lens(model: HookedMoE) -> None:
    model.add_hook(f"blocks.{L}.mlp.hook_out", lambda tensor, hook: tensor * 2)
    message = r"to be the sum of its experts' outputs, got something else \(the block scales or normalises them"
    with pytest.raises(MoeLensError, match=message):
        expert_lens(model, CONTEXTS[0], L)
    model.reset_hooks()


def test_a_model_that_changes_its_logits_has_no_lens(model: HookedMoE) -> None:
    def soften(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits.tanh()
        return output

    handle = model.hf_model.register_forward_hook(soften)
    with pytest.raises(
        MoeLensError, match="to be its last norm and output embedding of the residual stream, got others"
    ):
        expert_lens(model, CONTEXTS[0], L)
    handle.remove()


def test_expert_usage_equals_a_plain_recomputation(model: HookedMoE) -> None:
    texts = [p.context for p in POLITE[:3]]
    found = expert_usage(model, texts)
    load, weight, added = np.zeros(8), np.zeros(8), np.zeros(8)
    for text in texts:
        _, cache = model.run_with_cache(text)
        at = f"blocks.{L}.mlp."
        rows: list[Tensor] = [cache[at + n] for n in ("hook_expert_indices", "hook_topk_weights", "experts.hook_out")]
        for e, w, o in zip(rows[0].flatten().tolist(), rows[1].flatten().tolist(), rows[2].flatten(0, 2), strict=True):
            load[e], weight[e], added[e] = load[e] + 1, weight[e] + w, added[e] + w * o.norm().item()
    tokens, i = sum(model.to_tokens(t).shape[1] for t in texts), found.layers.index(L)
    np.testing.assert_allclose(found.load[i], load / tokens)
    np.testing.assert_allclose(found.weight[i], weight / tokens, rtol=1e-4)
    np.testing.assert_allclose(found.norm[i], added / tokens, rtol=1e-4)


def random_usage(seed: int, layers: int = 2, experts: int = 32) -> ExpertUsage:
    rng = np.random.default_rng(seed)
    return ExpertUsage(tuple(range(1, 1 + 3 * layers, 3)), *np.exp(rng.normal(0, 1, (3, layers, experts))))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sets(st.integers(0, 31), min_size=1, max_size=3), st.booleans())
def test_controls_are_distinct_and_never_the_experts_themselves(seed: int, experts: set[int], matched: bool) -> None:
    found = random_usage(seed)
    groups = [(4, tuple(sorted(experts))), (1, (5,))]
    changed = {(layer, e) for layer, of in groups for e in of}
    for wanted in (groups, groups[:1]):
        sets, balance, weights = control_sets(found, wanted, 20, seed, matched)
        assert len({frozenset((layer, e) for layer, of in drawn for e in of) for drawn in sets}) == 20
        for drawn in sets:
            members = [(layer, e) for layer, of in drawn for e in of]
            assert [len(of) for _, of in drawn] == [len(of) for _, of in wanted]
            assert len(set(members)) == len(members)
            assert not set(members) & {(layer, e) for layer, of in wanted for e in of}
        assert (sets, balance) == control_sets(found, wanted, 20, seed, matched)[:2]
        by_hand = [
            sum(found.weight[found.layers.index(layer), list(of)].sum() for layer, of in s) for s in (wanted, *sets)
        ]
        np.testing.assert_allclose(weights, by_hand)
    assert changed


@pytest.mark.parametrize("groups", [[(1, (7,))], [(1, (7, 9)), (4, (0, 1, 2))]])
def test_matched_controls_are_balanced_and_random_ones_are_not(groups: list[tuple[int, tuple[int, ...]]]) -> None:
    found = random_usage(1, experts=128)
    extreme = np.argsort(found.weight[0])[[-48, -49]]  # in the upper third
    wanted = [(layer, tuple(extreme[: len(of)].tolist()) if layer == 1 else of) for layer, of in groups]
    _, matched, _ = control_sets(found, wanted, 20, 0)
    _, drawn, _ = control_sets(found, wanted, 20, 0, matched=False)
    assert is_balanced(matched)
    assert not is_balanced(drawn)
    assert all(b.control_low <= b.control <= b.control_high for b in (*matched, *drawn))
    by_hand = sum(found.weight[found.layers.index(layer), list(of)].sum() for layer, of in wanted)
    assert matched[0].changed == pytest.approx(by_hand)


def test_sets_are_found_that_random_ones_do_not_reach() -> None:
    """Eight experts of each layer do twenty times as much as the others; two of them are changed in each."""
    found = random_usage(3)
    found.weight[:, :8] *= 20
    found.norm[:], found.load[:] = 2 * found.weight, 3 * found.weight
    middle = np.argsort(found.weight, axis=1)[:, [-5, -4]].tolist()
    wanted = [(layer, (e,)) for layer, experts in zip(found.layers, middle, strict=True) for e in experts]
    sets, balance, _ = control_sets(found, wanted, 20, 0)
    assert is_balanced(balance)
    assert [[layer for layer, _ in drawn] for drawn in sets] == [[1, 1, 4, 4]] * 20
    assert np.mean([e < 8 for drawn in sets for _, (e,) in drawn]) > 0.5
    alone = random_usage(3, layers=3)
    alone.weight[0] /= 1e3  # the experts of the first layer have no like there
    alone.weight[0, 3:5] = 1.0
    alone.norm[:], alone.load[:] = 2 * alone.weight, 3 * alone.weight
    others, balance, _ = control_sets(alone, [(1, (3,)), (1, (4,))], 20, 0)
    assert all(any(layer in (4, 7) for layer, _ in drawn) for drawn in others)
    assert is_balanced(balance)


def test_without_balanced_controls_effects_are_given_per_unit_of_weight(model: HookedMoE) -> None:
    plant(model)
    result = effect(model, CROSSED, remove(L, [5]), draws=20, texts=(), off_target=False)
    assert not is_balanced(result.balance)
    (weighted,) = result.per_weight
    assert weighted.change == pytest.approx(result.kinds[0].change / result.balance[0].changed)
    usage = expert_usage(model, pair_texts([p for c in CROSSED for p in pairs_within(c)]))
    by_hand = []
    before = margins(model, CROSSED).mean()
    for name in result.controls:
        expert, layer = (int(word.strip("E")) for word in name.split() if word.strip("E").isdigit())
        with model.intervene(remove(layer, [expert])):
            change = margins(model, CROSSED).mean() - before
        if weight := usage.weight[usage.layers.index(layer), expert]:
            by_hand.append(change / weight)
    assert weighted.control == pytest.approx(np.mean(by_hand), rel=1e-3, abs=1e-5)
    assert f"per unit of routed weight, style changes by {result.per_weight[0].change:+.3f}"[:60] in repr(result)


def test_experts_that_are_never_chosen_have_no_effect_per_unit_of_weight() -> None:
    changes = np.repeat([[-0.5], [0.2], [1e-7], [0.4]], 2, axis=1)
    items = as_items(POLITE[:2])
    (found,) = _weighted_effects(items, changes, np.array([0.5, 0.1, 0.0, 0.2]))
    assert (found.change, found.control, found.p) == (-1.0, 2.0, 1.0)
    for weights in ([0.0, 0.1, 0.2, 0.3], [0.5, 0.0, 0.0, 0.0]):
        (none,) = _weighted_effects(items, changes, np.array(weights))
        assert np.isnan([none.change, none.control, none.p]).all()


def test_where_no_like_expert_exists_it_is_said() -> None:
    found = random_usage(2)
    found.weight[0, 3] = 1e4
    _, balance, _ = control_sets(found, [(1, (3,))], 20, 0)
    assert balance[0].difference > 2
    assert balance_lines(balance)[0].startswith("no balanced controls exist; the nearest: routed weight 10000 ")


@pytest.mark.parametrize("frames", [4, 6, 7, 12])
def test_intervals_over_frames_cover_what_they_say(frames: int) -> None:
    """Items of a frame vary together; the truth is 0, or the share of a normal variable above -1."""
    rng, runs = np.random.default_rng(frames), 600
    mean, share = 0, 0
    truth = 0.5 * (1 + erf(1 / 2))
    for _ in range(runs):
        frame = np.repeat(np.arange(frames), rng.integers(5, 9, frames))
        values = rng.normal(0, 1, frames)[frame] + rng.normal(0, 1, len(frame))
        low, high = mean_interval(values, frame)
        mean += low <= 0 <= high
        low, high = share_interval((values > -1).astype(float), frame)
        share += low <= truth <= high
    assert 0.925 <= mean / runs <= 0.975
    assert share / runs >= 0.93


def test_no_interval_over_fewer_than_four_frames() -> None:
    values, frame = np.array([1.0, 2.0, 3.0, 4.0]), ["a", "a", "b", "c"]
    assert np.isnan([*mean_interval(values, frame), *share_interval(values / 4, frame)]).all()
    low, high = share_interval(np.ones(12), np.repeat(np.arange(6), 2))
    assert 0.4 < low < high == 1, "all of six frames are not all there are"


CROSSED = [
    TextContrast(
        id=f"c{i}", kind="style", frame=c, context_a=c + "き、", context_b=c + "って、", x="きます。", y="く。"
    )
    for i, c in enumerate(CONTEXTS)
]


def test_a_contrast_is_the_interaction_of_four_texts(model: HookedMoE) -> None:
    def log_p(text: str, context: str) -> float:
        ids, start = model.to_tokens(context + text), model.to_tokens(context).shape[1]
        with torch.no_grad():
            logp = model(ids)[0].double().log_softmax(-1)
        return sum(logp[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))

    by_hand = [
        log_p(c.x, c.context_a) - log_p(c.y, c.context_a) - log_p(c.x, c.context_b) + log_p(c.y, c.context_b)
        for c in CROSSED
    ]
    np.testing.assert_allclose(margins(model, CROSSED), by_hand, atol=1e-4)
    mixed = margins(model, [POLITE[0], CROSSED[2], POLITE[1]])
    np.testing.assert_allclose(
        mixed, [margin_by_hand(model, POLITE[0]), by_hand[2], margin_by_hand(model, POLITE[1])], atol=1e-4
    )
    summed = contributions(model, CROSSED).sum(-1)
    parts = [contributions(model, [pair]).sum(-1)[0] for pair in pairs_within(CROSSED[0])]
    np.testing.assert_allclose(summed[0], parts[0] + parts[1], atol=1e-5)
    found = moelens.prefer(model, CROSSED)
    assert found.kinds[0].accuracy == (np.array(by_hand) > 0).mean()
    assert type(found).from_dict(found.to_dict()).to_dict() == found.to_dict()
    result = effect(model, CROSSED, remove(L, [2]), controls=None, texts=(), off_target=False)
    assert (result.kinds[0].items, result.kinds[0].frames) == (8, 8)


def test_what_changes_off_target_is_measured(model: HookedMoE) -> None:
    result = effect(model, CROSSED, remove(L, [2]), controls=None, texts=())
    assert result.off_target is not None
    chosen = list(contrasts("control-tense"))
    before = margins(model, chosen)
    with model.intervene(remove(L, [2])):
        change = margins(model, chosen) - before
    assert result.off_target.changes[result.off_target.kinds.index("control-tense")] == pytest.approx(
        change.mean(), abs=1e-5
    )
    expected = np.mean(np.abs(result.off_target.changes)) / abs(result.kinds[0].change)
    assert result.off_target.ratio == pytest.approx(expected)
    assert result.off_target.selective == (expected <= 1 / 3)
    assert np.isnan(result.off_target.text_ratio)
    with_text = effect(model, CROSSED, remove(L, [2]), controls=None, texts=PLAIN)
    assert with_text.off_target is not None
    assert with_text.text is not None
    assert with_text.off_target.text_ratio == pytest.approx(with_text.text.kl / abs(with_text.kinds[0].change))
    assert not replace(with_text.off_target, ratio=0.1, text_ratio=0.5).selective
    assert replace(with_text.off_target, ratio=0.1, text_ratio=0.2).selective
    unchanged = [measure_off_target(model, {"style": 0.0}, (), "all", text, 2048) for text in (None, with_text.text)]
    assert [(np.isinf(o.ratio), np.isinf(o.text_ratio), o.selective) for o in unchanged if o is not None] == [
        (True, False, False),
        (True, True, False),
    ], "nothing changes on target"
    own = effect(model, contrasts("control-tense")[:24], remove(L, [2]), controls=None, texts=())
    assert own.off_target is not None
    assert "control-tense" not in own.off_target.kinds


def test_halves_share_no_frame() -> None:
    pairs = [*POLITE, *TENSE, *POLITE]
    discovery, test = half_of(pairs, "discovery", 3), half_of(pairs, "test", 3)
    assert sorted(p.id for p in (*discovery, *test)) == sorted(p.id for p in pairs)
    for kind in ("plain-polite", "tense"):
        frames = [{p.frame for p in half if p.kind == kind} for half in (discovery, test)]
        assert frames[0].isdisjoint(frames[1])
        assert {len(f) for f in frames} == {4}
    assert half_of(pairs, "discovery", 3) != half_of(pairs, "discovery", 4)


ERRORS: dict[str, tuple[Any, str]] = {
    "no pairs": (
        lambda m: effect(m, [], remove(L, [1])),
        "expected one or more pairs or contrasts, got none; give pairs with id, kind, frame, context",
    ),
    "field": (
        lambda m: as_items([{"id": "1", "kind": "k"}]),
        "expected rows with id, kind, frame, context, good, bad, got row 0 without 'frame'; add this",
    ),
    "same": (
        lambda m: as_items([TextPair(id="a", kind="k", frame="f", context="c", good="x", bad="x")]),
        "expected two different texts in 'a', got 'x' twice; change",
    ),
    "half": (
        lambda m: effect(m, POLITE, remove(L, [1]), half="first"),
        "unknown half 'first'; allowed: all, discovery, test",
    ),
    "one frame": (
        lambda m: attribute(m, POLITE[:1]),
        "expected two or more frames of kind 'plain-polite' to split into halves, got one, '明日は学校へ行'; add",
    ),
    "draws": (
        lambda m: effect(m, POLITE, remove(L, [1]), draws=5),
        "expected 20 or more control draws, since fewer cannot reach p = .05, got 5; give more",
    ),
    "doses": (
        lambda m: moelens.causes(m, POLITE, doses=(2, 0)),
        "expected doses of 1 or more experts, got 0; give numbers such as 1, 2 and 4",
    ),
    "controls": (
        lambda m: effect(m, POLITE, remove(L, [1]), controls="match"),
        "unknown controls 'match'; did you mean 'matched'",
    ),
    "shared": (
        lambda m: effect(m, POLITE, remove(L, "shared")),
        "expected an intervention on routed experts of one layer for the controls, got 'remove shared",
    ),
    "too many": (
        lambda m: effect(m, POLITE, remove(L, [1]), draws=40),
        "expected 40 or more sets of 1 other experts for the controls, got 23; give fewer draws",
    ),
    "no such layer": (lambda m: effect(m, POLITE, remove(9, [1])), "unknown layer '9'; allowed: 1, 2, 3"),
    "no such expert": (lambda m: effect(m, POLITE, remove(L, [99])), "expected experts from 0 to 7, got 99; give"),
    "layer": (lambda m: expert_lens(m, "行", 0), "unknown layer '0'; allowed: 1, 2, 3"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(model: HookedMoE, case: str) -> None:
    call, message = ERRORS[case]
    with pytest.raises(MoeLensError, match=message):
        call(model)


def test_rows_of_a_dataset_are_pairs(model: HookedMoE) -> None:
    rows = [
        {
            "id": 1,
            "kind": "k",
            "frame": "f",
            "context": "毎朝駅へ行",
            "good": "きます。",
            "bad": "く。",
            "labels": ["丁寧語"],
        }
    ]
    assert effect(model, rows, scale(L, [1], 1.0), controls=None, texts=[]).kinds[0].change == 0
    both = effect(model, rows, [swap(L, 1, 2), swap(L, 1, 2)], controls=None, texts=[])
    assert both.kinds[0].change == pytest.approx(0, abs=1e-5)
