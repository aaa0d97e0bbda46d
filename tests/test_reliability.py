"""What docs/reliability.md promises of imports and of damaged files."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import engine as forms
from helpers.fuzz import ANY_ARRAY, ANY_JSON, replace_somewhere
from helpers.routes import TRUE, generation, npz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moelens import MoeLensError, import_routes
from moelens.recording.route_inputs import ARRAYS, OPTIONS

# Imports: whatever is in the file, the end is a recording that holds it or an error of moelens, and no folder is left

GOOD = {
    "expert_ids": st.integers(0, 9).map(lambda seed: np.random.default_rng(seed).permuted(TRUE, axis=0)),
    "gate_weights": st.just(np.full(TRUE.shape, 0.5, np.float32)),
    "sequence_lengths": st.integers(0, 12).map(lambda n: np.array([n, 12 - n])),
    "token_ids": arrays.arrays(np.int64, 12, elements=st.integers(0, 2**31 - 1)),
}


def ends_well(path: Path, arrays_in_it: dict[str, Any] | None = None, **options: Any) -> None:
    out = path.parent / "run"
    try:
        made = import_routes(path, out, **options)
    except MoeLensError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert not out.exists()
        return
    if arrays_in_it is not None:
        np.testing.assert_array_equal(made.indices(), arrays_in_it["expert_ids"])
        if "token_ids" in arrays_in_it:
            np.testing.assert_array_equal(made.column("token_id"), arrays_in_it["token_ids"])
    made.verify()


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_arrays_and_their_negations(data: st.DataObject) -> None:
    assert set(GOOD) == {a.names[0] for a in ARRAYS.values()}
    file = {name: data.draw(good) for name, good in GOOD.items() if name == "expert_ids" or data.draw(st.booleans())}
    for name in data.draw(st.sets(st.sampled_from(sorted(file)), max_size=2)):
        file[name] = data.draw(ANY_ARRAY)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/r.npz", **file)
        ends_well(Path(folder) / "r.npz", file)


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_responses_and_their_negations(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["sglang", "vllm"]))
    answer: Any = forms.sglang_generate(generation()) if kind == "sglang" else forms.vllm_completions([generation()])
    answer = json.loads(json.dumps(answer))
    for _ in range(data.draw(st.integers(1, 2))):
        replace_somewhere(data, answer, ANY_JSON)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.jsonl").write_text(json.dumps(answer), "utf-8")
        ends_well(Path(folder) / "a.jsonl", kind=kind, shape=(3, 2), skip_uncaptured=data.draw(st.booleans()))


@pytest.mark.parametrize("name", OPTIONS)
def test_arguments_of_another_kind(tmp_path: Path, name: str) -> None:
    wrong: list[Any] = [True, b"x", {"a": 1}]
    wrong += [[1.5], ["a"], [-1], [10**9], "a", 2.0] if OPTIONS[name].high is not None else []
    wrong += [0, -1, 10**9] if name == "n_experts" else [(0, 2), (1,), (1, 2, 3)] if name == "shape" else []
    wrong += [np.array([[1]]), range(10**9)] if name == "layers" else []
    for value in wrong:
        given = {"source": npz(tmp_path), "out": tmp_path / "run"} | {name: value}
        with pytest.raises(MoeLensError, match=rf"^expected .* as {name}, got .*; correct it$"):
            import_routes(**given)
    assert not (tmp_path / "run").exists()


def with_header(shape: tuple[int, ...], body: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": shape})
    return file.getvalue() + body


@pytest.mark.parametrize("shape", [(10**15, 2, 2), (2**62, 2**62, 2), (-1, 2, 2), (0, 10**9, 2)])
def test_headers_that_lie(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = with_header(shape, b"")
    with zipfile.ZipFile(tmp_path / "r.npz", "w") as archive:
        archive.writestr("expert_ids.npy", data)
    with pytest.raises(MoeLensError, match=r"expected an .npz of plain arrays, got r.npz|expected at most 4096 layers"):
        import_routes(tmp_path / "r.npz", tmp_path / "run")
    answer = forms.vllm_completions([generation()])
    answer["choices"][0]["routed_experts"] = base64.b64encode(data).decode()
    (tmp_path / "a.jsonl").write_text(json.dumps(answer), "utf-8")
    with pytest.raises(MoeLensError, match=r"expected base64 of an .npy array|expected at most|expected rows"):
        import_routes(tmp_path / "a.jsonl", tmp_path / "run", kind="vllm")
    assert not (tmp_path / "run").exists()


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of zeros in 64 KiB, with a limit of 1 MiB in the place of 1 GiB."""
    monkeypatch.setattr("moelens.recording.array_files._MOST_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "r.npz", expert_ids=np.zeros((1 << 21, 2, 2), np.int64))
    with pytest.raises(
        MoeLensError, match=r"its arrays take .* bytes, more than 1 GiB and 64 times the size of the file"
    ):
        import_routes(tmp_path / "r.npz", tmp_path / "run")


@pytest.mark.parametrize("n", [2**24 + 1, 2**31 - 1])
def test_numbers_of_tokens_that_lie(tmp_path: Path, n: int) -> None:
    answer = forms.sglang_generate(generation())
    answer["meta_info"] |= {"prompt_tokens": n, "routed_experts": None}
    (tmp_path / "a.jsonl").write_text(json.dumps(answer), "utf-8")
    with pytest.raises(MoeLensError, match="expected a number of tokens, at most 16777216, as prompt_tokens"):
        import_routes(tmp_path / "a.jsonl", tmp_path / "run", kind="sglang", shape=(3, 2), skip_uncaptured=True)
