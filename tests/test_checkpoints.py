"""Checkpoints that are not whole: weights that are missing, damaged or renamed, and folders without a tokenizer."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.tiny import save_tiny, tiny_model
from safetensors.torch import load_file, save_file

import moelens
from moelens.errors import CheckError, MoeLensError, MoeLensWarning
from moelens.models.load_checks import Check
from moelens.models.loading import load_tokenizer

Weights = dict[str, torch.Tensor]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234567\n"
LAYER = "model.layers.1.mlp."


def checkpoint(folder: Path, change: Callable[[Weights], Weights], name: str = "deepseek_v3") -> str:
    """Write a small checkpoint with changed weights; returns the folder's name."""
    save_tiny(tiny_model(name), folder)
    weights = change(dict(load_file(folder / "model.safetensors")))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def without(pattern: str) -> Callable[[Weights], Weights]:
    return lambda weights: {n: t for n, t in weights.items() if not re.search(pattern, n)}


def also(**tensors: torch.Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {n.replace("__", "."): t for n, t in tensors.items()}


def failed(model: moelens.HookedMoE) -> list[str]:
    return [str(check) for check in model.checks if not check.passed]


REFUSED = [
    (
        "router",
        without(r"layers\.1\.mlp\.gate\.weight"),
        "'model.layers.1.mlp.gate.weight' is missing, and drawn at random",
    ),
    (
        "selection bias",
        without("layers.1.mlp.gate.e_score"),
        "'model.layers.1.mlp.gate.e_score_correction_bias' is missing",
    ),
    ("an expert", without(r"layers\.1\.mlp\.experts\.3\."), "'model.layers.1.mlp.experts.3.down_proj'"),
    (
        "all experts",
        without(r"layers\.1\.mlp\.experts"),
        "'model.layers.1.mlp.experts.gate_up_proj' are missing, and drawn",
    ),
    (
        "one matrix",
        without(r"experts\.3\.gate_proj"),
        "mlp.experts.gate_up_proj' cannot be put together from its parts",
    ),
    (
        "shared experts",
        without("shared_experts.up"),
        "'model.layers.1.mlp.shared_experts.up_proj.weight'.* are missing",
    ),
    (
        "shape",
        also(model__layers__1__mlp__gate__weight=torch.zeros(9, 64)),
        "gate.weight' is of another shape, and drawn",
    ),
    (
        "unused",
        also(model__layers__1__mlp__gate__bias=torch.zeros(8)),
        "'model.layers.1.mlp.gate.bias' is not used; downl",
    ),
    (
        "experts in a dense layer",
        also(model__layers__0__mlp__gate__weight=torch.zeros(8, 64)),
        "layers.0.mlp.gate.weight' is",
    ),
    ("other names", lambda w: {"x." + n: t for n, t in w.items()}, "and 17 more are missing, and drawn at random; "),
]


@pytest.mark.tried(
    "Checkpoints",
    "weights of routers, experts or shared experts that are missing, of another shape or not used",
    "refused by name; transformers would draw them at random",
)
@pytest.mark.parametrize("change, text", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_routers_and_experts_that_are_not_those_of_the_checkpoint(
    tmp_path: Path, change: Callable[[Weights], Weights], text: str
) -> None:
    with pytest.raises(CheckError, match=text) as raised:
        moelens.load(checkpoint(tmp_path, change))
    assert str(raised.value).startswith(f"expected the checkpoint of '{tmp_path}' to hold ")
    with pytest.raises(CheckError, match=text):
        moelens.info(str(tmp_path))


def test_experts_whose_numbers_have_a_gap(tmp_path: Path) -> None:
    """As many experts as there should be, but the last one has the number after: all would be loaded without a word."""

    def shifted(weights: Weights) -> Weights:
        return {n.replace(f"{LAYER}experts.7.", f"{LAYER}experts.8."): t for n, t in weights.items()}

    with pytest.raises(
        CheckError, match=r"'model.layers.1.mlp.experts.7.down_proj', .* are missing from the numbers of its"
    ):
        moelens.load(checkpoint(tmp_path, shifted))


OTHERS = [
    ("head", without("lm_head"), "'lm_head.weight' is missing, and drawn at random"),
    (
        "attention",
        without(r"layers\.1\..*q_a_proj"),
        "'model.layers.1.self_attn.q_a_proj.weight' is missing, and drawn",
    ),
    ("shape", also(lm_head__weight=torch.zeros(9, 64)), "'lm_head.weight' is of another shape, and drawn at random"),
    (
        "layers beyond",
        also(model__layers__7__mlp__gate__weight=torch.zeros(8, 64)),
        "'model.layers.7.mlp.gate.weight' is not",
    ),
]


@pytest.mark.tried("Checkpoints", "other weights that are missing or not used", "a failed check and a warning")
@pytest.mark.parametrize("change, text", [case[1:] for case in OTHERS], ids=[case[0] for case in OTHERS])
def test_other_weights_are_a_failed_check(tmp_path: Path, change: Callable[[Weights], Weights], text: str) -> None:
    with pytest.warns(MoeLensWarning, match=text):
        model = moelens.load(checkpoint(tmp_path, change))
    assert [line.startswith("failed weights: ") and text in line for line in failed(model)] == [True]
    assert "failed weights: " in repr(moelens.info(model))


def test_a_checkpoint_with_parts_of_other_modalities_passes(tmp_path: Path) -> None:
    change = also(model__mtp__layers__0__mlp__gate__weight=torch.zeros(8, 64), visual__weight=torch.zeros(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = moelens.load(checkpoint(tmp_path, change))
    assert model.checks[-1] == Check(
        "weights", True, "all 60 tensors come from the checkpoint; 2 of other parts are not used"
    )


def test_without_checks_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.warns(MoeLensWarning, match="'model.layers.1.mlp.gate.weight' is missing"):
        model = moelens.load(checkpoint(tmp_path, without(r"layers\.1\.mlp\.gate\.weight")), check=False)
    assert [check.name for check in model.checks] == ["weights"]


def test_what_was_found_is_in_the_manifest(tmp_path: Path) -> None:
    with pytest.warns(MoeLensWarning):
        model = moelens.load(checkpoint(tmp_path / "model", without("lm_head")), dtype=torch.float32)
    moelens.record(model, ["t5 t6 t7"], tmp_path / "run", progress=False)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    found = {check["name"]: check for check in manifest["model"]["checks"]}
    assert found["weights"] == {
        "name": "weights",
        "passed": False,
        "detail": "'lm_head.weight' is missing, and drawn at random",
    }
    assert found["routes"]["passed"]
    assert manifest["model"]["format"] == "float32"


@pytest.mark.tried(
    "Checkpoints", "the command line, which hides transformers' report on loading", "says on stderr what is missing"
)
@pytest.mark.slow
def test_the_command_line_says_what_transformers_would(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, without("lm_head"))
    done = subprocess.run([sys.executable, "-m", "moelens", "info", folder], capture_output=True, text=True)
    assert done.returncode == 0
    assert f"moelens: {folder}: 'lm_head.weight' is missing, and drawn at random\n" in done.stderr


def test_the_report_is_read_however_loud_transformers_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, logger = (
        checkpoint(tmp_path, without(r"experts\.3\.up_proj")),
        logging.getLogger("transformers.modeling_utils"),
    )
    for loud in (transformers.logging.set_verbosity_error, transformers.logging.set_verbosity_warning):
        loud()
        before = (logger.level, logger.propagate, list(logger.handlers))
        try:
            with pytest.raises(CheckError, match=r"cannot be put together from its parts .Sizes of tensors must match"):
                moelens.load(folder)
        finally:
            assert (logger.level, logger.propagate, list(logger.handlers)) == before
            transformers.logging.set_verbosity_error()


@pytest.mark.filterwarnings("ignore::moelens.errors.MoeLensWarning")
def test_a_router_that_transformers_writes_over(tmp_path: Path) -> None:
    """Loading sets the last of Zaya's biases, whatever the checkpoint says."""
    folder = checkpoint(tmp_path, lambda weights: weights, "zaya")
    with pytest.raises(
        CheckError, match=r"balancing_biases'.* are set by transformers to other numbers than the checkpoint's"
    ):
        moelens.load(folder)
    weights = load_file(tmp_path / "model.safetensors")
    for name in (n for n in weights if n.endswith("balancing_biases")):
        weights[name][-1] = -1.0
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert not any("weights" in text for text in failed(moelens.load(folder)))


# Damaged files


@pytest.mark.tried("Checkpoints", "a Git LFS pointer in place of a file", "refused; names the file")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_git_lfs_pointers(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path, lambda weights: weights)
    (tmp_path / name).write_text(POINTER)
    for call in (moelens.load, moelens.info):
        with pytest.raises(MoeLensError, match=f"{name}' is a Git LFS pointer, .*; run `git lfs pull` in the folder"):
            call(folder)


@pytest.mark.tried(
    "Checkpoints", "a safetensors file that is truncated", "refused; names the file, with expected and actual size"
)
@pytest.mark.parametrize(
    "length, text",
    [
        (-100, r"expected [\d,]+ bytes in '.*model.safetensors', as its header says, got [\d,]+; download it again"),
        (
            100,
            "model.safetensors' has no readable header, so it is no safetensors file or is damaged; download it again",
        ),
        (0, "model.safetensors' has no readable header"),
    ],
)
def test_incomplete_weights(tmp_path: Path, length: int, text: str) -> None:
    folder, path = checkpoint(tmp_path, lambda weights: weights), tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    for call in (moelens.load, moelens.info):
        with pytest.raises(MoeLensError, match=text):
            call(folder)


def test_weights_in_several_files(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe")
    save_tiny(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert not failed(moelens.load(str(tmp_path)))
    shards[1].rename(tmp_path / "elsewhere")
    with pytest.raises(MoeLensError, match=f"'model.safetensors.index.json' names '{shards[1].name}', which is not in"):
        moelens.load(str(tmp_path))


def with_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a safetensors file."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def of_first(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    """Change the fields of the first tensor in a header."""
    return lambda header: header[next(n for n in header if n != "__metadata__")].update(fields)


@pytest.mark.parametrize(
    "change, text",
    [
        (of_first(shape=[2**40] * 3), "has a header that cannot be true .*overflow"),
        (of_first(shape=[-1]), "has a header that cannot be true .*-1"),
        (of_first(shape=[1]), "has a header that cannot be true .*; download it again"),
        (of_first(dtype="Q9"), "has a header that cannot be true .*Q9"),
        (of_first(data_offsets=["a", "b"]), "has no readable header"),
        (of_first(data_offsets=None), "has no readable header"),
        (lambda header: b"[" * 100_000, "has no readable header"),
        (lambda header: b"[1]", "has no readable header"),
        (lambda header: b"\xff\xfe{}", "has no readable header"),
    ],
    ids=["overflow", "negative", "size", "type", "offsets", "no offsets", "nested", "a list", "bytes"],
)
def test_headers_that_lie(tmp_path: Path, change: Any, text: str) -> None:
    folder = checkpoint(tmp_path, lambda weights: weights)
    with_header(tmp_path / "model.safetensors", change)
    with pytest.raises(MoeLensError, match=f"model.safetensors' {text}"):
        moelens.load(folder)


@pytest.mark.parametrize(
    "index, text",
    [
        ({"weight_map": {"a": "../model.safetensors"}}, "names '../model.safetensors', which is not in its folder; do"),
        ({"weight_map": {"a": "/etc/passwd"}}, "names '/etc/passwd', which is not in its folder; do not use this"),
        ({"weight_map": {"a": "x/../../y"}}, "names 'x/../../y', which is not in its folder"),
        ({"weight_map": ["a"]}, "is damaged, or is not the index of a checkpoint; download it again"),
        ({}, "is damaged, or is not the index of a checkpoint"),
        ([1], "is damaged, or is not the index of a checkpoint"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_lies(tmp_path: Path, name: str, index: Any, text: str) -> None:
    folder = checkpoint(tmp_path, lambda weights: weights)
    (tmp_path / f"{name}.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(MoeLensError, match=f"{name}.index.json' {text}"):
        moelens.load(folder)


def test_pickled_weights(tmp_path: Path) -> None:
    """A file that would run a command when it is unpickled, and one of random bytes."""

    class Command:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    folder = checkpoint(tmp_path, lambda weights: weights)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"x": Command()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MoeLensError, match=r"expected safetensors weights in .*, got files that have to be unpickled"):
        moelens.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", ['{"model_type": 5}', "[1]", "{", "\xff", "[" * 100_000, '{"model_type": "mixtral", "hidden_size": "x"}']
)
def test_a_configuration_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    for call in (moelens.load, moelens.info, moelens.plan, load_tokenizer):
        with pytest.raises(MoeLensError):
            call(str(tmp_path))


# Tokenizers


@pytest.mark.tried("Checkpoints", "a folder without tokenizer files", "a model without a tokenizer, and a failed check")
@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe", "mixtral"])
def test_a_folder_without_tokenizer_files(tmp_path: Path, name: str) -> None:
    tiny_model(name).save_pretrained(tmp_path)
    with pytest.warns(
        MoeLensWarning, match="it comes without tokenizer files; give token ids, or load with tokenizer="
    ):
        model = moelens.load(str(tmp_path))
    assert model.tokenizer is None
    assert [line.split(":")[0] for line in failed(model)] == ["failed tokenizer"]
    with pytest.raises(MoeLensError, match="no tokenizer; pass token ids, or give one"):
        model("はい")
    assert model(torch.tensor([[5, 6]])).shape[:2] == (1, 2)


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    save_tiny(tiny_model("qwen3_moe"), tmp_path / "whole")
    tiny_model("qwen3_moe").save_pretrained(tmp_path / "bare")
    given = moelens.load(str(tmp_path / "bare"), tokenizer=str(tmp_path / "whole"))
    assert given.to_str_tokens("t5 t6") == ["t5", "t6"]
    again = moelens.load(str(tmp_path / "bare"), tokenizer=given.tokenizer)
    assert again.tokenizer is given.tokenizer
    assert not failed(again)


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, lambda weights: weights)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(
        MoeLensError, match=r"the tokenizer of '.*' cannot be loaded \(.*\); give another one with tokenizer="
    ):
        moelens.load(folder)


def test_a_tokenizer_with_fewer_tokens_than_the_model() -> None:
    class Tokens:
        def __len__(self) -> int:
            return 125

    model: Any = moelens.hook(tiny_model("mixtral"), Tokens())
    expected = (
        "failed tokenizer: 125 tokens for 160 embeddings; 35 ids have no text, so it may be that of another model"
    )
    assert failed(model) == [expected]
    assert not model.refused
