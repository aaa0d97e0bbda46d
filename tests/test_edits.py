"""Running a hooked model: edits that are refused, what a failed run leaves, threads, arguments, loss, text, cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import ARCHITECTURES, logits_of, tiny_inputs, tiny_model
from torch import Tensor

import moelens
from moelens import HookedMoE, MoeLensError
from moelens.errors import UnknownNameError, UnsupportedModelError
from moelens.models.arguments import TRANSFORMER_LENS
from moelens.models.caches import REFUSED
from moelens.models.running import Turns

ROUTING = ("router_logits", "router_scores", "router_biased", "router_selection", "expert_indices", "topk_weights")
TEXTS = ["先生がいらっしゃいました。", "はい。"]


def at(name: str) -> str:
    return f"blocks.2.mlp.{name}"


@pytest.fixture(scope="module")
def demo() -> Iterator[HookedMoE]:
    model = moelens.load("demo", dtype=torch.float32)
    yield model
    model.unhook()


# What a hook returns


def test_a_hook_that_returns_another_shape_is_refused_everywhere(deepseek: HookedMoE, ids: Tensor) -> None:
    """The mean over the batch would be broadcast in silence."""
    for name in deepseek.select(lambda n: n.startswith("blocks.2.")):
        hook = (name, lambda t, hook: t[:1])
        with pytest.raises(
            MoeLensError, match=rf"expected a hook at '{name}' to return None or a tensor \[2, 12, .*\] of \w+, "
        ):
            deepseek.run_with_hooks(ids, fwd_hooks=[hook])


@pytest.mark.tried(
    "Edits", "a hook that returns another shape, dtype or device, a number or a tuple", "refused with both"
)
@pytest.mark.parametrize(
    "returned, got",
    [
        (lambda t: t.mean(0, keepdim=True), r"\[1, 12, 8\] of float32"),
        (lambda t: t.double(), r"\[2, 12, 8\] of float64"),
        (lambda t: t[..., 0], r"\[2, 12\] of float32"),
        (lambda t: t.to("meta"), r"\[2, 12, 8\] of float32 \(meta\)"),
        (lambda t: t.to_sparse(), r"\[2, 12, 8\] of float32 \(sparse_coo\)"),
        (lambda t: 0.5, "float"),
        (lambda t: (t, t), "tuple"),
    ],
)
def test_what_a_hook_may_not_return(deepseek: HookedMoE, ids: Tensor, returned: Any, got: str) -> None:
    text = rf"tensor \[2, 12, 8\] of float32, got {got}; return one of the same shape and dtype"
    point = at("hook_router_scores")
    with pytest.raises(MoeLensError, match=text):
        deepseek.run_with_hooks(ids, fwd_hooks=[(point, lambda t, hook: returned(t))])
    with pytest.raises(MoeLensError, match=text), deepseek.hooks(bwd_hooks=[(point, lambda t, hook: returned(t))]):
        deepseek(ids, return_type="loss").backward()


@pytest.mark.tried(
    "Edits",
    "a hook that runs the model, or generates with it, while the model runs",
    "the interrupted pass goes on as it was; its hooks see its own batch, positions and ids",
)
def test_a_pass_within_a_pass(deepseek: HookedMoE, ids: Tensor) -> None:
    other, seen, inner = torch.tensor([[9, 10, 11]]), [], []
    points = [at(n) for n in ("hook_router_scores", "hook_topk_weights", "experts.hook_out")]

    def look(t: Tensor, hook: Any) -> None:
        running = deepseek.running
        assert running.ids is not None
        seen.append((tuple(t.shape), running.batch, running.pos, running.start, running.ids.tolist()))

    def interrupt(t: Tensor, hook: Any) -> Tensor:
        if not inner:
            inner.append(len(seen))
            deepseek(other)
            deepseek.generate(other, max_new_tokens=2, do_sample=False)
            inner.append(len(seen))
        return t * 1.5

    edits = [(n, look) for n in points]
    expected = deepseek.run_with_hooks(ids, fwd_hooks=[(at("hook_router_logits"), lambda t, hook: t * 1.5), *edits])
    plain, _ = seen.copy(), seen.clear()
    logits = deepseek.run_with_hooks(ids, fwd_hooks=[(at("hook_router_logits"), interrupt), *edits])
    assert torch.equal(logits, expected)
    assert len(inner) == 2
    assert seen[: inner[0]] + seen[inner[1] :] == plain
    assert inner[1] > inner[0]
    assert deepseek.running.prompt is None


# What is changed while the model is hooked, and what a failed run leaves


@pytest.mark.tried("Edits", "`set_experts_implementation` after hooking", "the next pass is refused")
def test_another_implementation_of_the_experts_is_noticed(ids: Tensor) -> None:
    model = moelens.hook(tiny_model("deepseek_v3"))
    model.hf_model.set_experts_implementation("eager")
    for run in (model, model.run_with_cache, lambda ids: model.generate(ids, max_new_tokens=1)):
        with pytest.raises(
            MoeLensError, match=r"implementation was set to 'eager' after the model was hooked, .*; unhook it"
        ):
            run(ids)
    plain = model.unhook()
    assert plain.config._experts_implementation == "eager"
    assert moelens.hook(plain).experts_implementation == "eager"


@pytest.mark.tried("Edits", "an exception in a hook", "leaves nothing behind")
@pytest.mark.parametrize(
    "name", [*(f"hook_{n}" for n in ROUTING), "hook_expert_weights", "experts.hook_post", "hook_out"]
)
def test_an_error_in_a_hook_leaves_nothing(deepseek: HookedMoE, ids: Tensor, name: str) -> None:
    def fail(t: Tensor, hook: Any) -> None:
        raise KeyError("mine")

    shift = [(at("hook_expert_indices"), lambda t, hook: (t + 1) % 8)]
    with torch.no_grad():
        plain, edited = deepseek(ids), deepseek.run_with_hooks(ids, fwd_hooks=shift)
        for shape in (ids, ids[:1, :5]):
            scale = [(at("hook_router_logits"), lambda t, hook: t * -1)]
            with pytest.raises(KeyError, match="mine"):
                deepseek.run_with_hooks(shape, fwd_hooks=[*scale, (at(name), fail)])
            assert torch.equal(deepseek.run_with_hooks(ids, fwd_hooks=shift), edited)
            assert torch.equal(deepseek(ids), plain)
    assert not deepseek.running.decisions


@pytest.mark.tried(
    "Edits",
    "a router's setting (`top_k`, groups, scaling) or that of the configuration is changed after hooking",
    "the next pass is refused; names the setting",
)
@pytest.mark.parametrize("where, name", [("router", "top_k"), ("configuration", "num_experts_per_tok")])
def test_changed_settings_of_routers_are_noticed(where: str, name: str) -> None:
    model = moelens.hook(tiny_model("qwen3_moe"))
    hf_model, ids = model.hf_model, torch.tensor([[5, 6, 7]])
    holder = hf_model.model.layers[-1].mlp.gate if where == "router" else hf_model.config
    before = getattr(holder, name)
    setattr(holder, name, before + 1)
    expected = rf"{name} of (layer \d|the configuration) was changed from {before} to {before + 1} after the model was"
    with pytest.raises(MoeLensError, match=expected):
        model(ids)
    setattr(holder, name, before)
    assert model(ids).shape[1] == 3
    model.unhook()
    setattr(holder, name, before + 1)
    assert moelens.hook(hf_model)(ids).shape[1] == 3, "it can be set without hooks"


# Threads


@pytest.mark.tried("Edits", "several threads that call `run_with_cache`", "take turns; each gets its own cache")
def test_threads_get_caches_of_their_own(deepseek: HookedMoE) -> None:
    inputs = [torch.randint(5, 150, (1, 4 + n)) for n in range(16)]
    alone = [deepseek.run_with_cache(i, return_type=None)[1] for i in inputs]
    found: dict[int, Any] = {}

    def run(first: int) -> None:
        for n in range(first, 16, 4):
            found[n] = deepseek.run_with_cache(inputs[n], return_type=None)[1]

    run_all([threading.Thread(target=run, args=(first,)) for first in range(4)])
    for n, cache in enumerate(alone):
        assert list(found[n]) == list(cache)
        assert all(torch.equal(found[n][point], cache[point]) for point in cache)


def test_the_hooks_of_one_thread_do_not_run_in_another(deepseek: HookedMoE, ids: Tensor) -> None:
    with torch.no_grad():
        plain, inside, results = deepseek(ids), threading.Event(), {}
    scale = [(at("hook_topk_weights"), lambda t, hook: t * 2)]

    def edit() -> None:
        with torch.no_grad(), deepseek.hooks(scale):
            inside.set()
            results["edited"] = deepseek(ids)

    def look() -> None:
        inside.wait()
        with torch.no_grad():
            results["plain"] = deepseek(ids)

    run_all([threading.Thread(target=edit), threading.Thread(target=look)])
    assert torch.equal(results["plain"], plain)
    assert not torch.equal(results["edited"], plain)


@pytest.mark.tried(
    "Edits",
    "a pass of `hf_model` itself in another thread, during `with model.hooks(…)`",
    "waits, and is refused after 10 s; the hooks do not run in it",
)
def test_a_pass_of_the_transformers_model_takes_its_turn(
    deepseek: HookedMoE, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Turns, "patience", 0.1)
    refused: list[BaseException] = []

    def look() -> None:
        try:
            deepseek.hf_model(ids)
        except MoeLensError as error:
            refused.append(error)

    ran: list[int] = []
    with torch.no_grad():
        plain = deepseek(ids)
        with deepseek.hooks([(at("hook_topk_weights"), lambda t, hook: ran.append(1))]):
            run_all([threading.Thread(target=look)])
            assert not ran
            deepseek.hf_model(ids)
        assert len(ran) == 1
        assert str(refused[0]).startswith("expected one thread at a time to run this model, but for 0.1 s another one")
        run_all([threading.Thread(target=look)])
        assert len(refused) == 1, "the lock is free after the block"
        assert torch.equal(deepseek(ids), plain)


def test_an_interrupted_pass_keeps_no_turn(deepseek: HookedMoE, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "patience", 0.1)

    def interrupt(tensor: Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deepseek.run_with_hooks(ids, fwd_hooks=[(at("hook_topk_weights"), interrupt)])
    found: list[Any] = []
    run_all([threading.Thread(target=lambda: found.append(deepseek.hf_model(ids)))])
    assert len(found) == 1


@pytest.mark.tried("Edits", "a pass that is interrupted from the keyboard", "later passes see their own batch and mask")
@pytest.mark.parametrize("within", ["nothing", "a pass", "a block"])
@pytest.mark.parametrize("direct", [True, False], ids=["hf_model", "hooked"])
def test_what_follows_an_interrupted_pass(deepseek: HookedMoE, ids: Tensor, direct: bool, within: str) -> None:
    other, shapes = ids[:1, :4], []

    def interrupt(tensor: Tensor, hook: Any) -> None:
        if within == "a pass" and not shapes:
            shapes.append(tensor.shape)
            (deepseek.hf_model if direct else deepseek)(ids)
        raise KeyboardInterrupt

    def stop() -> None:
        deepseek.add_hook(at("hook_topk_weights"), interrupt)
        with pytest.raises(KeyboardInterrupt):
            (deepseek.hf_model if direct else deepseek)(ids)
        deepseek.reset_hooks()

    found: list[Any] = []
    with deepseek.hooks() if within == "a block" else nullcontext():
        stop()
        _, cache = deepseek.run_with_cache(other)
        assert cache.mask.shape == other.shape
        seen: list[Any] = []
        look = (at("hook_topk_weights"), lambda t, hook: seen.append(deepseek.running.prompt))
        with deepseek.hooks([look]):
            deepseek.generate(other, max_new_tokens=2, do_sample=False)
        assert seen == [4, 4]
        deepseek.hf_model(other)
    run_all([threading.Thread(target=lambda: found.append(deepseek.hf_model(ids)))])
    assert len(found) == 1


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)


# Training mode


@pytest.mark.tried(
    "Edits", "a model in training mode, with jitter and dropout", "measured in evaluation mode; the mode is put back"
)
@pytest.mark.parametrize("name", ["mixtral", "phimoe"])
def test_jitter_and_dropout_do_not_reach_what_is_measured(name: str, ids: Tensor) -> None:
    jitter = "router_jitter_noise"
    model = moelens.hook(tiny_model(name, **{jitter: 0.5, "attention_dropout": 0.5}))
    expected = model.run_with_cache(ids)[1]
    model.hf_model.train()
    with torch.no_grad():
        assert not torch.equal(model(ids), model(ids)), "the case is too easy"
    for _ in range(2):
        cache = model.run_with_cache(ids)[1]
        assert all(torch.equal(cache[point], expected[point]) for point in expected)
    assert all(m.training for m in model.hf_model.modules())
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, **options))
    assert model.hf_model.training


def test_a_rule_that_training_mode_does_not_follow(ids: Tensor) -> None:
    """PhiMoE chooses at random in training mode."""
    model = moelens.hook(tiny_model("phimoe"))
    model.hf_model.train()
    edit = [(at("hook_router_logits"), lambda t, hook: t + 1)]
    with pytest.raises(
        MoeLensError, match=r"in training mode this router follows no known rule, while model.hf_model.eval\(\)"
    ):
        model.run_with_hooks(ids, fwd_hooks=edit)
    model.hf_model.eval()
    model.run_with_hooks(ids, fwd_hooks=edit)


# Arguments


@pytest.mark.tried(
    "Inputs",
    "arguments of TransformerLens that are not offered, and misspelled ones",
    "refused with the reason, or with the nearest name",
)
@pytest.mark.parametrize("name", list(TRANSFORMER_LENS))
def test_arguments_of_transformer_lens_are_refused_with_the_reason(deepseek: HookedMoE, ids: Tensor, name: str) -> None:
    for run in (deepseek, deepseek.run_with_cache, deepseek.run_with_hooks):
        with pytest.raises(MoeLensError, match=f"the argument '{name}' of TransformerLens is not offered: .+"):
            run(ids, **{name: None})


def test_arguments_that_nobody_has(deepseek: HookedMoE, ids: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="unknown argument 'atention_mask'; did you mean 'attention_mask'"):
        deepseek(ids, atention_mask=torch.ones_like(ids))
    with pytest.raises(UnknownNameError, match="unknown return_type 'logit'; did you mean 'logits'"):
        deepseek(ids, return_type="logit")
    for allowed in (
        {"use_cache": False},
        {"position_ids": torch.arange(12).expand(2, -1)},
        {"output_hidden_states": True},
    ):
        deepseek(ids, attention_mask=torch.ones_like(ids), **allowed)


# Loss


@pytest.mark.tried("Inputs", "a loss of texts padded on the left", "leaves out the first token after the padding")
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_the_loss_leaves_out_padding(deepseek: HookedMoE, ids: Tensor, side: str) -> None:
    """Each row's loss is that of its tokens alone; positions are those of the padded row."""
    mask = torch.ones_like(ids)
    first, last = (4 if side != "right" else 0), (9 if side != "left" else 12)
    mask[0, :first] = mask[0, last:] = 0
    with torch.no_grad():
        logits, loss = deepseek(ids, attention_mask=mask, return_type="both")
    real = []
    for row, (a, b) in enumerate([(first, last), (0, 12)]):
        log = logits[row].double().log_softmax(-1)
        real += [-float(log[t - 1, ids[row, t]]) for t in range(a + 1, b)]
    assert float(loss) == pytest.approx(sum(real) / len(real), rel=1e-5)


def test_a_loss_without_tokens_or_logits(deepseek: HookedMoE, ids: Tensor) -> None:
    with pytest.raises(MoeLensError, match="a loss needs token ids and the logits of every position; give ids without"):
        deepseek(ids, return_type="loss", logits_to_keep=1)
    labels = ids.clone()
    labels[:, :6] = -100
    expected = deepseek.hf_model(input_ids=ids, labels=labels).loss.detach()
    assert float(deepseek(ids, return_type="loss", labels=labels).detach()) == pytest.approx(float(expected))


# Text


@pytest.mark.tried("Generation", "a list of texts of different lengths", "continued as each alone")
def test_texts_in_generate_are_continued_as_each_alone(demo: HookedMoE) -> None:
    options = {"max_new_tokens": 6, "do_sample": False}
    together = demo.generate(TEXTS, **options)
    assert together == [demo.generate(text, **options) for text in TEXTS]
    assert all(whole.startswith(text) and len(whole) > len(text) for whole, text in zip(together, TEXTS, strict=True))


@pytest.mark.parametrize("text", ["先生がいらっしゃいました。", "𠮷野家🍜で敬語を、\n使う", "ＡＢＣ　ｶﾞ"])
def test_tokens_as_text(demo: HookedMoE, text: str) -> None:
    tokens = demo.to_str_tokens(text)
    assert len(tokens) == demo.to_tokens(text).shape[1]
    left = text
    for token in tokens:  # tokens that share a character each give the whole of it
        if left.startswith(token):
            left = left[len(token) :]
        else:
            assert token in text or token in demo.tokenizer.all_special_tokens, token
    assert left == ""


# The cache


def test_short_names_and_accumulated_residuals(demo: HookedMoE) -> None:
    _, cache = demo.run_with_cache(TEXTS[0])
    last = demo.shape.n_layers - 1
    assert torch.equal(cache["resid_post", -1], cache[f"blocks.{last}.hook_resid_post"])
    assert torch.equal(cache["expert_indices", 3, "mlp"], cache["blocks.3.mlp.hook_expert_indices"])
    stack, labels = cache.accumulated_resid(-1, return_labels=True)
    assert stack.shape == (demo.shape.n_layers + 1, *cache["resid_post", 0].shape)
    assert torch.equal(stack[-1], cache["resid_post", -1])
    assert len(labels) == len(stack)


@pytest.mark.parametrize("method", list(REFUSED))
def test_methods_that_the_cache_does_not_offer(deepseek: HookedMoE, ids: Tensor, method: str) -> None:
    _, cache = deepseek.run_with_cache(ids, names_filter=at("hook_out"))
    with pytest.raises(MoeLensError, match=f"ActivationCache.{method} is not offered: it needs .+"):
        getattr(cache, method)()


def test_every_public_method_of_the_cache_works_or_is_refused() -> None:
    from transformer_lens import ActivationCache

    works = {"accumulated_resid", "apply_slice_to_batch_dim", "items", "keys", "values", "remove_batch_dim", "to"}
    works |= {"stack_activation", "toggle_autodiff", "get_full_resid_decomposition"}
    public = {n for n in dir(ActivationCache) if not n.startswith("_") and callable(getattr(ActivationCache, n))}
    assert public <= works | REFUSED.keys()


def test_padding_in_a_cache_can_be_told(demo: HookedMoE) -> None:
    _, cache = demo.run_with_cache(TEXTS)
    lengths = [demo.to_tokens(text).shape[1] for text in TEXTS]
    assert cache.mask.sum(-1).tolist() == lengths
    assert cache.mask.shape == cache["resid_post", 0].shape[:2]
    assert cache.apply_slice_to_batch_dim(1).mask.sum() == lengths[1]
    _, ends = demo.run_with_cache(TEXTS, pos_slice=slice(-2, None))
    assert ends.mask.tolist() == cache.mask[:, -2:].tolist()
    _, one = demo.run_with_cache(TEXTS[0], remove_batch_dim=True)
    assert one.mask.shape == one["resid_post", 0].shape[:1]
    assert demo.run_with_cache(TEXTS[0])[1].remove_batch_dim().mask.ndim == 1


# Layers that run several times


@pytest.mark.tried("Edits", "a layer that runs several times in a pass", "the cache keeps each time; a check says so")
@pytest.mark.skipif("inkling2_loop" not in ARCHITECTURES, reason="this version has no looped Inkling")
def test_every_time_of_a_looped_layer_is_kept() -> None:
    model = moelens.hook(tiny_model("inkling2_loop"))
    inputs, seen = tiny_inputs(model.hf_model), {}
    with model.hooks([(n, lambda t, hook: seen.setdefault(hook.name, []).append(t.clone())) for n in model.hook_dict]):
        model(**inputs)
    times = {len(tensors) for tensors in seen.values()}
    assert max(times) > 1
    _, cache = model.run_with_cache(**inputs)
    for name, tensors in seen.items():
        kept = [cache[f"{name}@{i}"] for i in range(1, len(tensors))] + [cache[name]]
        assert all(torch.equal(a, b) for a, b in zip(kept, tensors, strict=True)), name
    repeat = next(check for check in model.checks if check.name == "repeat")
    assert not repeat.passed
    assert "times in a forward pass, of which recordings keep the last" in repeat.detail


# Generation


@pytest.mark.tried(
    "Generation",
    "`running.ids` and `running.start` under beams and prompt lookup",
    "those of the sequences that the cache holds",
)
@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {}], ids=["beams", "lookup", "greedy"]
)
def test_the_running_sequences_are_those_that_the_cache_holds(deepseek: HookedMoE, options: dict[str, int]) -> None:
    """Each pass of `generate` is compared with a pass over the whole of what `running.ids` says."""
    prompt = torch.tensor([[7, 8, 9, 7, 8, 9, 7, 8]])
    steps: list[tuple[Tensor, int, Tensor]] = []

    def look(t: Tensor, hook: Any) -> None:
        assert deepseek.running.ids is not None
        steps.append((deepseek.running.ids.clone(), deepseek.running.start, t.clone()))

    with deepseek.hooks([("blocks.3.hook_resid_post", look)]):
        deepseek.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0, **options)
    assert len(steps) > 2
    assert deepseek.running.ids is None
    for ids, start, resid in steps:
        assert ids.shape[1] == start + resid.shape[1]
        _, cache = deepseek.run_with_cache(ids, names_filter="blocks.3.hook_resid_post")
        torch.testing.assert_close(cache["blocks.3.hook_resid_post"][:, start:], resid, atol=1e-4, rtol=1e-4)


# TransformerLens's bridge


@pytest.mark.tried(
    "Copies and wrappers",
    "`to_transformer_bridge()`",
    "documented names are moelens's points; `unhook()` takes its modules out",
)
def test_the_names_of_the_bridge_mean_our_points() -> None:
    model = moelens.hook(tiny_model("granitemoe"))
    inputs = tiny_inputs(model.hf_model)
    _, ours = model.run_with_cache(**inputs)
    bridge = model.to_transformer_bridge()
    with torch.no_grad():
        plain, cache = bridge.run_with_cache(inputs["input_ids"])
        for name in ours:
            assert cache[name].dtype == ours[name].dtype, name
            torch.testing.assert_close(cache[name], ours[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        shift = [(at("hook_expert_indices"), lambda t, hook: (t + 1) % 8)]
        edited = bridge.run_with_hooks(inputs["input_ids"], fwd_hooks=shift)
    assert not torch.allclose(edited, plain, atol=1e-3)
    left = model.unhook()
    assert not any("bridge" in type(m).__module__ for m in left.modules())
    with torch.no_grad():
        torch.testing.assert_close(logits_of(left(**inputs)), plain, atol=1e-4, rtol=1e-4)


def test_a_bridge_that_transformer_lens_cannot_build(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge.sources import _bridge_builder

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyError("its reason")

    model = moelens.hook(tiny_model("mixtral"))
    monkeypatch.setattr(_bridge_builder, "build_bridge_from_module", fail)
    text = "TransformerLens cannot build its bridge around MixtralForCausalLM .KeyError: 'its reason'.; use the"
    with pytest.raises(UnsupportedModelError, match=text):
        model.to_transformer_bridge()


@pytest.mark.tried("Inputs", "a loss of a model without a head", "refused; hidden states are no logits")
def test_a_model_without_a_head_has_no_loss(ids: Tensor) -> None:
    model = moelens.hook(tiny_model("mixtral").model)
    assert model(ids).shape[-1] == model.shape.d_model
    for kind in ("loss", "both"):
        with pytest.raises(MoeLensError, match="MixtralModel has no head that predicts tokens, so there is no loss; "):
            model(ids, return_type=kind)


@pytest.mark.tried("Inputs", "numbers, nothing, arrays or bytes where a text or token ids belong", "refused")
def test_what_is_neither_text_nor_ids(demo: HookedMoE) -> None:
    for wrong in (torch.zeros(1, 3), torch.zeros(1, 1, 3, dtype=int), torch.zeros(1, 0, dtype=int)):
        with pytest.raises(MoeLensError, match=r"expected token ids as integers \[batch, pos\] or \[pos\], got \["):
            demo(wrong)
    for other in ([], [1, 2], ["はい。", None], b"t5", 3, np.array([[1, 2]])):
        with pytest.raises(MoeLensError, match="expected a text, a list of texts or a tensor of token ids, got "):
            demo(other)
