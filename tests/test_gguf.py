"""GGUF files, the format of llama.cpp: configuration, tokenizer and weights from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import logits_of, tiny_model

import moelens
from moelens.errors import MoeLensError, UnsupportedModelError

gguf = pytest.importorskip("gguf")

from gguf import GGMLQuantizationType, GGUFWriter  # noqa: E402
from helpers import gguf_files  # noqa: E402

POINTS = ("hook_router_logits", "hook_expert_indices", "hook_topk_weights", "experts.hook_post", "hook_out")


def tiny(name: str) -> Any:
    """A tiny model whose sizes a GGUF file can state."""
    return tiny_model(name, **({"norm_topk_prob": True} if name == "qwen3_moe" else {}))  # as llama.cpp always does


@pytest.mark.tried(
    "Formats", "a GGUF file without a config.json beside it", "configuration, tokenizer and weights come from the file"
)
@pytest.mark.parametrize("quantisation", [None, GGMLQuantizationType.Q8_0], ids=["F32", "Q8_0"])
@pytest.mark.parametrize("name", ["qwen3_moe", "qwen2_moe", "minimax_m2"])
def test_a_gguf_file_alone(tmp_path: Path, ids: torch.Tensor, name: str, quantisation: Any) -> None:
    """Logits and points are those of the model with the values that the file's tensors stand for."""
    model, architecture = tiny(name), gguf_files.ARCHITECTURES[name]
    tensors = gguf_files.named_as_in_llama_cpp(model, architecture)
    meant = gguf_files.write(model, tmp_path / "model.gguf", architecture, tensors, quantisation)
    gguf_files.put_back(model, architecture, meant)
    loaded = moelens.load(str(tmp_path), gguf_file="model.gguf", dtype=torch.float32)
    assert [str(c) for c in loaded.checks if not c.passed] == []
    assert loaded.format.title.startswith("GGUF")
    with torch.no_grad():
        expected = logits_of(model(ids))
        logits, cache = loaded.run_with_cache(ids)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    _, want = moelens.hook(model).run_with_cache(ids)
    for point in POINTS:
        at = f"blocks.2.mlp.{point}"
        torch.testing.assert_close(cache[at], want[at], atol=1e-4, rtol=1e-4, msg=lambda m, p=at: f"{p}: {m}")
    assert loaded.to_str_tokens("ab") == ["ab"]
    assert loaded.to_tokens("ab").tolist() == [[159]]


def test_qwen35(tmp_path: Path, ids: torch.Tensor) -> None:
    """An architecture with linear attention, whose norms and decay the file holds in another form."""
    model = tiny_model("qwen3_5_moe", layer_types=["linear_attention"] * 3 + ["full_attention"])
    gguf_files.write(model, tmp_path / "q.gguf", "qwen35moe", gguf_files.qwen35_tensors(model))
    loaded = moelens.load(str(tmp_path / "q.gguf"), dtype=torch.float32)
    assert [str(c) for c in loaded.checks if not c.passed] == []
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids), logits_of(model(ids)), atol=1e-4, rtol=1e-4)


def written(folder: Path, architecture: str = "qwen3moe", **fields: int) -> Path:
    """A GGUF file without tensors."""
    writer = GGUFWriter(str(folder / "m.gguf"), architecture)
    writer.add_expert_count(8)
    for name, value in fields.items():
        writer.add_uint16(name.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


@pytest.mark.tried(
    "Formats", "GGUF of an architecture that transformers does not read, or a damaged file", "refused by name"
)
def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    with pytest.raises(MoeLensError, match=r"has no file 'n.gguf'; its GGUF files: 'm.gguf'"):
        moelens.load(str(tmp_path), gguf_file="n.gguf")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(MoeLensError, match=r"is damaged, incomplete or no GGUF file .*; download it again"):
        moelens.load(str(path))
    with pytest.raises(MoeLensError, match=r"'m.gguf' is one of 3 parts, .* llama-gguf-split --merge"):
        moelens.load(str(written(tmp_path, split__count=3)))
    for architecture, what in (
        ("llama", "reads it as a model without experts"),
        ("gpt-oss", "does not read its experts"),
    ):
        with pytest.raises(
            UnsupportedModelError, match=f"architecture '{architecture}', and transformers {what}; use the"
        ):
            moelens.load(str(written(tmp_path, architecture)))
    monkeypatch.setattr("moelens.models.formats.find_spec", lambda name: None)
    with pytest.raises(MoeLensError, match=r"in the format GGUF, which needs packages .* run `pip install gguf`"):
        moelens.load(str(path))


def test_a_rotary_embedding_that_is_not_read(tmp_path: Path) -> None:
    model = tiny("qwen3_moe")
    tensors = gguf_files.named_as_in_llama_cpp(model, "qwen3moe")
    own = GGUFWriter.write_header_to_file

    def with_scaling(kind: str) -> Any:
        def write(self: Any, *args: Any) -> None:
            self.add_rope_scaling_type(gguf.RopeScalingType(kind))
            self.add_rope_scaling_factor(4.0)
            own(self, *args)

        return write

    for kind in ("yarn", "longrope"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GGUFWriter, "write_header_to_file", with_scaling(kind))
            gguf_files.write(model, tmp_path / f"{kind}.gguf", "qwen3moe", tensors)
    loaded = moelens.load(str(tmp_path / "yarn.gguf"), dtype=torch.float32)
    assert loaded.hf_model.config.rope_parameters["rope_type"] == "yarn"
    assert loaded.hf_model.config.rope_parameters["factor"] == 4.0
    with pytest.raises(
        UnsupportedModelError, match="scales its rotary embedding by 'longrope', which is not read from GGUF"
    ):
        moelens.load(str(tmp_path / "longrope.gguf"))
