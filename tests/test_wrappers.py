"""Copies of hooked models, adapters (PEFT), data parallelism, and models that cannot be hooked where they are."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import logits_of, tiny_inputs, tiny_model
from torch import nn
from transformers.quantizers.base import SequentialLlama4TextExperts

import moelens
from moelens import HookedMoE, MoeLensError
from moelens.errors import CheckError, UnsupportedModelError
from moelens.models.adapters import _PATCHED
from moelens.models.copies import TorchHook
from moelens.models.experts import LISTENERS
from moelens.models.wrappers import transformers_model

peft = pytest.importorskip("peft")


patched_before: dict[type, Any] = {}


@pytest.fixture(autouse=True)
def _remember_what_is_patched() -> None:
    """Tests of other files may have left hooked models."""
    patched_before.clear()
    patched_before.update(_PATCHED)


def nothing_left(model: Any) -> bool:
    """Whether no torch hook, listener or replaced forward of moelens is at a model."""
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    listened = any(m in LISTENERS for m in model.modules())
    return not any(isinstance(h, TorchHook) for h in hooks) and not listened and patched_before == _PATCHED


def zeroed(model: HookedMoE, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits with the neurons of one layer's experts set to 0."""
    point = f"blocks.{model.shape.moe_layers[-1]}.mlp.experts.hook_post"
    with torch.no_grad():
        return model.run_with_hooks(**inputs, fwd_hooks=[(point, lambda t, hook: t * 0)])


# Copies


@pytest.fixture(params=["deepseek_v3", "llama4"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[HookedMoE, HookedMoE]]:
    """A hooked model and its deep copy."""
    model = moelens.hook(tiny_model(request.param))
    copied = copy.deepcopy(model)
    yield model, copied
    model.unhook()
    copied.unhook()
    assert nothing_left(model.hf_model)
    assert nothing_left(copied.hf_model)


@pytest.mark.tried("Copies and wrappers", "`copy.deepcopy` of a hooked model", "hooked on its own, with every point")
def test_a_deep_copy_is_hooked_on_its_own(pair: tuple[HookedMoE, HookedMoE]) -> None:
    model, copied = pair
    inputs = tiny_inputs(model.hf_model)
    assert copied.hf_model is not model.hf_model
    assert list(copied.hook_dict) == list(model.hook_dict)
    assert (copied.shape, copied.refused, copied.checks) == (model.shape, model.refused, model.checks)
    with torch.no_grad():
        assert torch.equal(copied(**inputs), model(**inputs))
        assert torch.equal(zeroed(copied, inputs), zeroed(model, inputs))
        assert not torch.allclose(zeroed(copied, inputs), copied(**inputs))
        copied.hf_model.get_output_embeddings().weight.zero_()
        assert not torch.equal(copied(**inputs), model(**inputs))


def test_hooks_are_copied_unless_they_belong_to_a_with_block() -> None:
    model = moelens.hook(tiny_model("mixtral"))
    inputs = tiny_inputs(model.hf_model)
    with torch.no_grad():
        plain = model(**inputs)
        with model.hooks([("blocks.1.mlp.hook_topk_weights", lambda t, hook: t * 2)]):
            assert torch.equal(copy.deepcopy(model)(**inputs), plain)
        model.add_hook("blocks.1.mlp.hook_topk_weights", lambda t, hook: t * 2)
        edited, copied = model(**inputs), copy.deepcopy(model)
        assert not torch.equal(edited, plain)
        assert torch.equal(copied(**inputs), edited)
        copied.reset_hooks()
        assert torch.equal(copied(**inputs), plain)
        assert torch.equal(model(**inputs), edited)


@pytest.mark.tried("Copies and wrappers", "a copy of its `hf_model`", "a plain model, which can be hooked")
@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_a_copy_of_the_transformers_model_is_plain_and_can_be_hooked(implementation: str) -> None:
    model = tiny_model("qwen3_moe")
    model.set_experts_implementation(implementation)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        plain, hooked = logits_of(model(**inputs)), moelens.hook(model)
        with hooked.hooks([("blocks.1.mlp.hook_topk_weights", lambda t, hook: t * 2)]):
            copied = copy.deepcopy(model)
        assert torch.equal(logits_of(copied(**inputs)), plain)
        again = moelens.hook(copied)
        assert again.experts_implementation == implementation
        assert torch.equal(again(**inputs), plain)
        assert torch.equal(zeroed(again, inputs), zeroed(hooked, inputs))
        assert again.unhook().config._experts_implementation == implementation
        assert type(copied.config._experts_implementation) is str


@pytest.mark.tried("Copies and wrappers", "two hooked models of one configuration object", "independent of each other")
def test_two_models_of_one_configuration() -> None:
    first = tiny_model("qwen3_moe")
    second = type(first)(first.config).eval()
    one, two = moelens.hook(first), moelens.hook(second)
    inputs = tiny_inputs(first)
    expected = zeroed(two, inputs)
    one.unhook()
    assert torch.equal(zeroed(two, inputs), expected), "the other model's unhook() took the implementation away"
    third = moelens.hook(type(first)(first.config).eval())
    two.unhook()
    assert not torch.allclose(zeroed(third, inputs), third(**inputs))
    third.unhook()
    assert first.config._experts_implementation == "grouped_mm"


def test_a_pickled_transformers_model_has_no_hooks() -> None:
    hooked = moelens.hook(tiny_model("mixtral"))
    inputs = tiny_inputs(hooked.hf_model)
    left = pickle.loads(pickle.dumps(hooked.hf_model))
    with torch.no_grad():
        assert torch.equal(logits_of(left(**inputs)), hooked(**inputs))


@pytest.mark.tried(
    "Copies and wrappers",
    "a hooked model through `pickle`, `torch.save` or `copy.copy`",
    "refused; `pickle` and `torch.save` take its `hf_model`, which is a plain model then",
)
def test_a_hooked_model_is_not_pickled() -> None:
    hooked = moelens.hook(tiny_model("mixtral"))
    for save in (pickle.dumps, copy.copy, lambda model: torch.save(model, io.BytesIO())):
        with pytest.raises(MoeLensError, match=r"cannot be pickled or copied shallowly; save model.hf_model, which"):
            save(hooked)


@pytest.mark.tried(
    "Copies and wrappers",
    "a layer, its block or the list of layers is replaced while the model is hooked",
    "the next pass is refused; hooks would not run",
)
@pytest.mark.parametrize("replaced", ["block", "layer", "layers"])
def test_layers_that_are_replaced_are_noticed(replaced: str) -> None:
    model, other = moelens.hook(tiny_model("mixtral")), tiny_model("mixtral", seed=1)
    inner = model.hf_model.model
    if replaced == "block":
        inner.layers[1].mlp = other.model.layers[1].mlp
    elif replaced == "layer":
        inner.layers[1] = other.model.layers[1]
    else:
        inner.layers = inner.layers[:2]
    with pytest.raises(MoeLensError, match=r"layer \d, its router or its experts were replaced after the model was"):
        model(**tiny_inputs(model.hf_model))


# Adapters

EXPERTS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
ADAPTED = [
    ("qwen3_moe", EXPERTS),
    ("qwen2_moe", {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}),
    ("qwen2_moe", {"target_modules": "all-linear"}),
    ("qwen3_moe", {"target_modules": [], "target_parameters": ["mlp.gate.weight"]}),
    ("deepseek_v3", {"target_modules": "all-linear", "target_parameters": ["mlp.experts.down_proj"]}),
    ("gpt_oss", {"target_modules": "all-linear", "target_parameters": ["mlp.experts.gate_up_proj"]}),
    ("llama4", {"target_modules": ["q_proj"], "target_parameters": ["feed_forward.experts.gate_up_proj"]}),
    ("longcat_flash", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    ("jetmoe", {"target_modules": "all-linear"}),
    ("jetmoe", {"target_modules": [], "target_parameters": ["mlp.input_linear.weight", "mlp.output_linear.weight"]}),
    ("dbrx", {"target_modules": "all-linear"}),
]


def adapted(name: str, **options: Any) -> Any:
    """A tiny model with random adapters, in PEFT's wrapper."""
    torch.manual_seed(1)
    return peft.get_peft_model(tiny_model(name), peft.LoraConfig(r=4, init_lora_weights=False, **options)).eval()


@pytest.mark.tried(
    "Copies and wrappers",
    "PEFT on experts (`target_parameters`), all linear layers or the router; switched on and off",
    "every point holds the adapter's effect, as with merged weights",
)
@pytest.mark.parametrize("name, options", ADAPTED)
def test_the_effect_of_adapters_is_in_what_is_recorded(name: str, options: dict[str, Any]) -> None:
    """All points equal those of a plain model into whose weights the adapters were merged, and of the base model."""
    model = adapted(name, **options)
    inputs = tiny_inputs(model)
    base = moelens.hook(tiny_model(name))
    merged = moelens.hook(copy.deepcopy(model).merge_and_unload())
    hooked = moelens.hook(model)
    assert list(hooked.hook_dict) == list(base.hook_dict), "points vanished"
    assert hooked.shape == base.shape
    assert [c.passed for c in hooked.checks] == [c.passed for c in base.checks]
    with torch.no_grad():
        for expected, context in ((merged, nullcontext()), (base, model.disable_adapter()), (merged, nullcontext())):
            logits, want = expected.run_with_cache(**inputs)
            with context:
                got, cache = hooked.run_with_cache(**inputs)
                edited = zeroed(hooked, inputs)
            torch.testing.assert_close(got, logits, atol=2e-4, rtol=1e-3)
            torch.testing.assert_close(edited, zeroed(expected, inputs), atol=2e-4, rtol=1e-3)
            for point in want:
                torch.testing.assert_close(
                    cache[point].float(), want[point].float(), atol=2e-4, rtol=1e-3, msg=lambda m, p=point: f"{p}: {m}"
                )
        assert not torch.allclose(merged(**inputs), base(**inputs), atol=1e-3), "the adapters do nothing"
    assert hooked.unhook() is model
    models = [base.unhook(), merged.unhook(), model]
    assert all(map(nothing_left, models))


def test_several_adapters_are_switched_while_hooked() -> None:
    model = adapted("qwen3_moe", **EXPERTS)
    model.add_adapter("second", peft.LoraConfig(r=4, init_lora_weights=False, **EXPERTS))
    hooked, inputs, seen = moelens.hook(model), tiny_inputs(model), []
    point = "blocks.1.mlp.experts.hook_out"
    for adapter in ("default", "second"):
        model.set_adapter(adapter)
        with torch.no_grad():
            logits, cache = hooked.run_with_cache(**inputs, names_filter=point)
            assert torch.equal(logits, logits_of(model(**inputs)))
        seen.append(cache[point])
    assert not torch.allclose(*seen)


def test_a_router_that_is_trained_whole() -> None:
    """PEFT keeps a copy of a module in `modules_to_save` beside the original."""
    model = adapted("deepseek_v3", target_modules=["q_a_proj"], modules_to_save=["gate"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    hooked, inputs = moelens.hook(model), tiny_inputs(model)
    point = "blocks.2.mlp.hook_router_logits"
    _, on = hooked.run_with_cache(**inputs, names_filter=point)
    with model.disable_adapter():
        _, off = hooked.run_with_cache(**inputs, names_filter=point)
    gate = model.get_base_model().model.layers[2].mlp.gate
    assert not torch.allclose(gate.original_module.weight, gate.modules_to_save["default"].weight)
    assert not torch.allclose(on[point], off[point])


@pytest.mark.tried(
    "Copies and wrappers", "an adapter added to router or experts while hooked", "the next pass is refused"
)
def test_an_adapter_that_is_added_while_hooked_is_noticed() -> None:
    hooked = moelens.hook(tiny_model("qwen3_moe"))
    inputs = tiny_inputs(hooked.hf_model)
    peft.get_peft_model(hooked.hf_model, peft.LoraConfig(target_modules=[], target_parameters=["mlp.gate.weight"]))
    with pytest.raises(
        MoeLensError, match="layer 0, its router or its experts were replaced after the model was hooked, as"
    ):
        hooked(**inputs)
    hooked.unhook()
    assert nothing_left(hooked.hf_model)


def test_adapters_that_cannot_be_hooked() -> None:
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(UnsupportedModelError, match="puts virtual tokens before the input, where moelens would count"):
        moelens.hook(peft.get_peft_model(tiny_model("mixtral"), prompt))
    whole = adapted("mixtral", target_modules=["q_proj"], modules_to_save=["mlp"])
    with pytest.raises(
        UnsupportedModelError, match=r"an adapter holds copies of whole experts .*; save the adapted model"
    ):
        moelens.hook(whole)
    broken = adapted("llama4", target_modules="all-linear")  # PEFT takes Llama 4's router for a linear layer
    with pytest.raises(
        CheckError, match=r"expected the model to run on a short input, got AttributeError: .*; check that"
    ):
        moelens.hook(broken)
    assert nothing_left(broken)


def test_a_deep_copy_of_an_adapted_model() -> None:
    hooked = moelens.hook(adapted("qwen3_moe", **EXPERTS))
    inputs, copied = tiny_inputs(hooked.hf_model), copy.deepcopy(hooked)
    assert torch.equal(zeroed(copied, inputs), zeroed(hooked, inputs))
    assert isinstance(copied.unhook(), peft.PeftModel)


def test_generation_with_an_adapted_model() -> None:
    model = adapted("qwen3_moe", **EXPERTS)
    ids, expected = torch.tensor([[5, 6, 7]]), {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    plain = model.generate(input_ids=ids, **expected)
    hooked, starts = moelens.hook(model), []
    with hooked.hooks([("blocks.0.hook_resid_pre", lambda t, hook: starts.append(hooked.running.start))]):
        assert torch.equal(hooked.generate(ids, **expected), plain)
    assert starts == [0, 3, 4]


# Llama 4 in packed formats has a module for each expert


def test_llama_4_with_a_module_for_each_expert() -> None:
    model = tiny_model("llama4")
    inputs, hooked = tiny_inputs(model), moelens.hook(model)
    _, want = hooked.run_with_cache(**inputs)
    hooked.unhook()
    with torch.no_grad():
        for layer in model.model.layers:
            fused, apart = layer.feed_forward.experts, SequentialLlama4TextExperts(model.config)
            for i, expert in enumerate(apart):
                gate, up = fused.gate_up_proj[i].T.chunk(2)
                for part, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", fused.down_proj[i].T)):
                    getattr(expert, part).weight.copy_(weight)
            layer.feed_forward.experts = apart
    _, cache = moelens.hook(model).run_with_cache(**inputs)
    assert list(cache) == list(want)
    for point in want:
        torch.testing.assert_close(cache[point], want[point], atol=1e-5, rtol=1e-5)


# Wrappers of whole models


@pytest.mark.tried("Copies and wrappers", "`DataParallel`", "looked through")
def test_data_parallel_is_looked_through() -> None:
    inner = tiny_model("mixtral")
    hooked = moelens.hook(nn.DataParallel(inner))
    assert hooked.hf_model is inner
    assert isinstance(hooked.unhook(), nn.DataParallel)


def test_gradient_checkpointing_wrappers_are_looked_through() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    model = tiny_model("mixtral")
    inputs, base = tiny_inputs(model), moelens.hook(tiny_model("mixtral"))
    layers = tuple(model.model.layers)
    apply_activation_checkpointing(model, check_fn=lambda m: m in layers)
    hooked = moelens.hook(model)
    assert list(hooked.hook_dict) == list(base.hook_dict)
    with torch.no_grad():
        assert torch.equal(hooked(**inputs), base(**inputs))


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.tried("Copies and wrappers", "FSDP and DeepSpeed", "refused by name")
@pytest.mark.usefixtures("one_process")
def test_models_whose_weights_are_divided() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model = tiny_model("mixtral")
    assert transformers_model(nn.parallel.DistributedDataParallel(model)) is model
    for layer in model.model.layers:
        fully_shard(layer)
    with pytest.raises(
        UnsupportedModelError, match=r"divides its weights among processes \(FSDP\), where moelens cannot"
    ):
        moelens.hook(model)
    with pytest.raises(
        UnsupportedModelError, match=r"divides its weights among processes \(FSDP\), where moelens cannot"
    ):
        moelens.hook(FullyShardedDataParallel(tiny_model("mixtral"), device_id=torch.device("cpu")))
    DeepSpeedEngine = type("DeepSpeedEngine", (nn.Module,), {})
    with pytest.raises(UnsupportedModelError, match=r"may divide its weights among processes \(DeepSpeed\)"):
        moelens.hook(DeepSpeedEngine())


@pytest.mark.tried(
    "Copies and wrappers",
    "a model, or its `forward` alone, compiled before or after it is hooked",
    "refused with the reason",
)
def test_compiled_models() -> None:
    compiled = torch.compile(tiny_model("mixtral"))
    with pytest.raises(
        MoeLensError, match=r"was compiled by torch.compile, and compiled code does not run hooks; hook"
    ):
        moelens.hook(compiled)
    in_place = tiny_model("mixtral")
    in_place.model.layers[1].compile()
    with pytest.raises(MoeLensError, match=r"was compiled by torch.compile"):
        moelens.hook(in_place)
    of_forward = tiny_model("mixtral")
    of_forward.forward = torch.compile(of_forward.forward)
    with pytest.raises(MoeLensError, match=r"was compiled by torch.compile"):
        moelens.hook(of_forward)
    hooked = moelens.hook(compiled._orig_mod)
    for module in (hooked.hf_model, hooked.hf_model.model.layers[1]):
        module.compile()
        with pytest.raises(MoeLensError, match=r"was compiled by torch.compile"):
            hooked(torch.tensor([[5, 6, 7]]))
        module._compiled_call_impl = None
    assert hooked(torch.tensor([[5, 6, 7]])).shape[1] == 3


def test_what_is_no_transformers_model() -> None:
    hooked = moelens.hook(tiny_model("mixtral"))
    with pytest.raises(MoeLensError, match=r"this model is hooked already; call .unhook\(\)"):
        moelens.hook(hooked)
    pipeline = SimpleNamespace(model=tiny_model("mixtral"))
    with pytest.raises(
        MoeLensError, match="expected a transformers model, got SimpleNamespace; pass its attribute `model`"
    ):
        moelens.hook(pipeline)
    with pytest.raises(MoeLensError, match="expected a transformers model, got str; load one"):
        moelens.hook("demo")
    with pytest.raises(MoeLensError, match="got Linear, which has no configuration; load one"):
        moelens.hook(nn.Linear(2, 2))
