"""Imported routes that cannot be true are refused; those that were not captured are left out on request."""

from __future__ import annotations

import base64
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import engine as forms
from helpers.routes import EXPERTS, LAYERS, SLOTS, TRUE, generation, npz, routes
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens import MoeLensError, Recording, import_routes
from moelens.commands.command_line import main
from moelens.errors import RecordingError
from moelens.models.routers import RouterRule
from moelens.recording.route_checks import RouteChecks
from moelens.recording.route_inputs import ARRAYS, FIELDS


def changed(at: Any, value: Any, base: np.ndarray = TRUE, dtype: Any = np.int64) -> np.ndarray:
    """Return routes of which some are replaced."""
    array = base.astype(dtype)
    array[at] = value
    return array


FALSE: dict[str, tuple[np.ndarray, str]] = {
    "below 0": (
        changed((8, 1, 0), -3),
        "document 1 (r.npz), row 1, layer 5: expected experts from 0 to 15, got -3; give",
    ),
    "too large": (changed((3, 2, 1), 16), "document 0 (r.npz), row 3, layer 9: expected experts from 0 to 15, got 16;"),
    "64 bits": (
        changed((3, 2, 1), 2**63 + 5, dtype=np.uint64),
        "document 0 (r.npz), row 3, layer 9: expected experts from 0 to 15, got 9223372036854775813; give",
    ),
    "twice": (
        changed((11, 0), [7, 7]),
        "document 1 (r.npz), row 4, layer 2: expected different experts in one token, got [7, 7]; correct the",
    ),
    "a row of zeros": (
        changed((2, 1), 0),
        "document 0 (r.npz), row 2, layer 5: expected 2 experts, got only zeros, as from a kernel that returned",
    ),
    "rows of -1": (
        changed(slice(5, 7), -1),
        "document 0 (r.npz), row 5, layer 2: expected routes, got 2 rows in all that are marked as not captured; leave",
    ),
    "a row of 255": (
        changed(9, 255, dtype=np.uint8),
        "document 1 (r.npz), row 2, layer 2: expected routes, got 1 rows in all that are marked as not captured; leave",
    ),
    "-1 in one layer": (
        changed((4, 2), -1),
        "document 0 (r.npz), row 4, layer 9: expected routes in all layers of a row or in none, got a layer that is",
    ),
    "a dense layer of zeros": (
        changed((slice(None), 0), 0),
        "document 0 (r.npz), rows 0 to 6, layer 2: expected layers with experts, got only placeholders in layers 2;"
        " keep the others with layers= (--layers 5 9)",
    ),
    "a dense layer of -1": (
        changed((slice(None), slice(0, 2)), -1),
        "document 0 (r.npz), rows 0 to 6, layer 2: expected layers with experts, got only placeholders in layers 2, 5;",
    ),
}


@pytest.mark.parametrize("case", FALSE)
def test_what_cannot_be_true(tmp_path: Path, case: str) -> None:
    array, message = FALSE[case]
    out = tmp_path / "run"
    before = import_routes(npz(tmp_path), out, n_experts=EXPERTS, layers=[2, 5, 9])
    with pytest.raises(MoeLensError) as error:
        import_routes(npz(tmp_path, expert_ids=array), out, n_experts=EXPERTS, layers=[2, 5, 9], force=True)
    assert str(error.value).startswith(message)
    np.testing.assert_array_equal(Recording.open(out).indices(), before.indices())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_only_what_is_false_is_refused(data: st.DataObject) -> None:
    """Against a plain reading of every row: refused if and only if some row and layer is no set of experts."""
    slots, experts = data.draw(st.integers(1, 3)), data.draw(st.integers(3, 300))
    array = routes(6, 2, slots, experts, data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(0, 2))):
        at = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
        array[at] = data.draw(st.sampled_from([-1, 0, 1, 255, experts - 1, experts, 2**31]))
    true = all(set(row) <= set(range(experts)) and len(set(row)) == slots for token in array.tolist() for row in token)
    checks = RouteChecks(layers=[0, 1], n_experts=experts)
    try:
        assert checks.captured(array, "document 0").all()
        accepted = True
    except MoeLensError:
        accepted = False
    assert accepted == true


WEIGHTS = np.random.default_rng(1).dirichlet(np.ones(SLOTS), (12, LAYERS))


@pytest.mark.parametrize(
    "weights, message",
    [
        (
            changed((7, 1, 1), np.nan, WEIGHTS, np.float32),
            "document 1 (r.npz), row 0, layer 5: expected routing weights",
        ),
        (
            changed((7, 1, 1), -0.5, WEIGHTS, np.float32),
            "document 1 (r.npz), row 0, layer 5: expected routing weights fr",
        ),
        (
            changed((0, 2, 0), np.inf, WEIGHTS, np.float32),
            "document 0 (r.npz), row 0, layer 9: expected routing weights",
        ),
        (
            changed((0, 2, 0), 7e4, WEIGHTS, np.float32),
            "document 0 (r.npz), row 0, layer 9: expected routing weights fr",
        ),
        (
            changed((3, 0, 0), 0.0, WEIGHTS, np.float32),
            "document 0 (r.npz), row 3, layer 2: expected routing weights with a sum of 1, got a sum of 0.",
        ),
    ],
    ids=["nan", "negative", "inf", "beyond float16", "another sum"],
)
def test_weights_that_cannot_be_true(tmp_path: Path, weights: np.ndarray, message: str) -> None:
    options: dict[str, Any] = {"n_experts": EXPERTS, "layers": [2, 5, 9]}
    made = import_routes(npz(tmp_path, gate_weights=WEIGHTS * 2.5), tmp_path / "run", **options)
    np.testing.assert_allclose(made.weights().sum(-1), 2.5, rtol=1e-3)
    with pytest.raises(MoeLensError) as error:
        import_routes(npz(tmp_path, gate_weights=weights), tmp_path / "other", **options)
    assert str(error.value).startswith(message)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "rule, sums, accepted",
    [
        (RouterRule(score="sigmoid", top_k=8, normalised=True, scale=2.5), [2.5, 2.51, 2.49], True),
        (RouterRule(score="sigmoid", top_k=8, normalised=True, scale=2.5), [2.5, 1.0], False),
        (RouterRule(score="softmax", top_k=8), [0.4, 0.9, 1.0], True),
        (RouterRule(score="softmax", top_k=8, scale=16.0), [0.4, 15.9], True),
        (RouterRule(score="softmax", top_k=8), [0.4, 1.2], False),
        (RouterRule(score="sigmoid", top_k=2), [1.9], True),
        (RouterRule(score="sigmoid", top_k=2), [2.2], False),
        (None, [1.0] * 6 + [0.5, 0.7], False),
        (None, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 4.0], True),
        (None, [1.0] * 9 + [np.nan], True),
    ],
)
def test_the_rule_of_the_sums(rule: RouterRule | None, sums: list[float], accepted: bool) -> None:
    checks = RouteChecks(layers=[4], n_experts=None, rule=rule)
    with (
        nullcontext() if accepted else pytest.raises(MoeLensError, match=r"document 0, row \d+, layer 4: expected rout")
    ):
        checks.check_sums([np.array(sums)[:, None]], ["document 0"])


# Responses


def lines(path: Path, *answers: Any) -> Path:
    (path / "a.jsonl").write_text("\n".join(map(json.dumps, answers)), "utf-8")
    return path / "a.jsonl"


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_a_buffer_of_another_integer_width(tmp_path: Path, dtype: Any) -> None:
    """SGLang's bytes are int32 unless the response says otherwise."""
    g = generation(rows=8, slots=4)
    answer = forms.sglang_generate(g)
    answer["meta_info"]["routed_experts"] = base64.b64encode(g.routes.astype(dtype).tobytes()).decode()
    for n_experts in (None, 16):
        with pytest.raises(
            MoeLensError, match=r"expected (experts from 0 to|rows of experts for) .*a.jsonl line 1|line 1\)"
        ):
            import_routes(lines(tmp_path, answer), tmp_path / "run", kind="sglang", shape=(3, 4), n_experts=n_experts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_a_stated_integer_width(tmp_path: Path, dtype: str) -> None:
    g = generation()
    answer = forms.sglang_generate(g)
    answer["meta_info"] |= {
        "routed_experts": base64.b64encode(g.routes.astype(dtype).tobytes()).decode(),
        "routed_experts_dtype": dtype,
    }
    made = import_routes(lines(tmp_path, answer), tmp_path / "run", kind="sglang", shape=(3, 2))
    np.testing.assert_array_equal(made.indices(), g.routes)
    answer["meta_info"]["routed_experts_dtype"] = "float8"
    with pytest.raises(MoeLensError, match="unknown routed_experts_dtype 'float8'"):
        import_routes(lines(tmp_path, answer), tmp_path / "run", kind="sglang", shape=(3, 2), force=True)


def with_rows(value: Any, *at: Any) -> dict[str, Any]:
    g = generation()
    g.routes[at] = value
    return forms.vllm_completions([g])


def test_more_rows_than_tokens(tmp_path: Path) -> None:
    answer = forms.sglang_generate(generation())
    answer["meta_info"]["prompt_tokens"] = 3
    with pytest.raises(
        MoeLensError, match=r"expected rows of experts for the 3 prompt and 4 generated tokens in a.jsonl"
    ):
        import_routes(lines(tmp_path, answer), tmp_path / "run", kind="sglang", shape=(3, 2))


# Rows that were not captured


@pytest.mark.parametrize("form", [forms.sglang_generate, lambda g: forms.vllm_completions([g])])
def test_uncaptured_rows_are_left_out_on_request(tmp_path: Path, form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """int32 −1 from SGLang, and uint8 255 from vLLM."""
    g, h = generation(seed=1), generation(rows=6, seed=2)
    g.routes[1:4] = -1
    path = lines(tmp_path, form(g), form(h))
    kind = "sglang" if form is forms.sglang_generate else "vllm"
    argv = ["import", str(path), "--from", kind, "--shape", "3", "2", "--experts", "16", "--out", f"{tmp_path}/run"]
    assert main(argv) == 2
    assert (
        "document 0 (a.jsonl line 1), row 1, layer 0: expected routes, got 3 rows in all that"
        in capsys.readouterr().err
    )
    assert main([*argv, "--skip-uncaptured"]) == 0
    assert "11 tokens and 3 tokens without routes of 2 documents" in capsys.readouterr().out
    made = Recording.open(tmp_path / "run")
    kept = [0, 4, 5, 6, 7]
    np.testing.assert_array_equal(made.indices(), np.concatenate([g.routes[kept], h.routes]))
    assert made.column("pos").tolist() == [*kept, *range(6)]
    assert made.uncaptured().select(["doc", "pos"]).to_pylist() == [{"doc": 0, "pos": i} for i in (1, 2, 3)]
    ids = [-1] * 3 if kind == "sglang" else [11, 12, 13]  # SGLang does not return those of the prompt
    assert made.uncaptured()["token_id"].to_pylist() == ids
    assert made.uncaptured()["phase"].to_pylist() == ["prefill"] * 3
    assert made.manifest["uncaptured"]["rows"] == 3
    made.verify()
    (tmp_path / "run" / made.manifest["uncaptured"]["path"]).unlink()
    with pytest.raises(RecordingError, match="is missing"):
        made.verify()


def test_nothing_captured_at_all(tmp_path: Path) -> None:
    with pytest.raises(
        MoeLensError, match=r"expected responses or documents with routes in a.jsonl, got none; leave empty"
    ):
        import_routes(lines(tmp_path, with_rows(-1, ...)), tmp_path / "run", kind="vllm", skip_uncaptured=True)
    (tmp_path / "a.jsonl").write_text("", "utf-8")
    with pytest.raises(
        MoeLensError, match=r"expected responses or documents with routes in a.jsonl, got none; leave empty"
    ):
        import_routes(tmp_path / "a.jsonl", tmp_path / "run", kind="vllm")


def test_a_recording_without_such_tokens(tmp_path: Path) -> None:
    made = import_routes(npz(tmp_path), tmp_path / "run", skip_uncaptured=True)
    assert made.n_uncaptured == 0
    with pytest.raises(
        RecordingError, match=r"expected a recording with tokens without routes, got '.*' with the routes of"
    ):
        made.uncaptured()


def test_marks_that_are_experts(tmp_path: Path) -> None:
    """Expert 255 of 256 is no mark, not even in top-1 routing."""
    array = np.full((3, 1, 1), 255, np.uint8)
    made = import_routes(npz(tmp_path, expert_ids=array, sequence_lengths=[3]), tmp_path / "run", n_experts=256)
    assert made.indices().ravel().tolist() == [255] * 3
    with pytest.raises(MoeLensError, match="got 3 rows in all that are marked as not captured"):
        import_routes(npz(tmp_path, expert_ids=array, sequence_lengths=[3]), tmp_path / "other", n_experts=128)


# What each input may be

WRONG = {
    "ids": [5, "12", [1.5], [True], [-1], [2**31], [[1]]],
    "count": [-1, 1.0, "5", True, 2**40, [1]],
    "text": [5, ["a"], "\ud800"],
    "object": [5, "a", ["a"]],
    "objects": [5, {"a": 1}, ["a"]],
}
REQUESTED = ("messages", "tools", "template", "sampling", "request", "responses")


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in REQUESTED])
def test_fields_of_another_kind(tmp_path: Path, name: str) -> None:
    field = FIELDS[name]
    for value in [5, [5, "a"], {"a": 1}] if name == "prompt_text" else WRONG[field.kind]:
        answer = forms.sglang_generate(generation())
        meta = answer["meta_info"]
        field_name = field.names[0]
        place = meta if name in ("prompt_tokens", "tokens", "start", "dtype") else answer
        for other in field.names:
            place.pop(other, None)
        place[field_name] = value
        with pytest.raises(MoeLensError, match=rf"expected a.* (as {field_name} )?in a.jsonl line 1"):
            import_routes(lines(tmp_path, answer), tmp_path / "run", kind="sglang", shape=(3, 2))


@pytest.mark.parametrize(
    "arrays, message",
    [
        (
            {"expert_ids": TRUE * 1.0},
            "expected integers 'expert_ids' [token, layer, slot] in r.npz, got [12, 3, 2] of f",
        ),
        ({"gate_weights": WEIGHTS[:, :2]}, "expected numbers 'gate_weights' [12, 3, 2] in r.npz, got [12, 2, 2] of"),
        (
            {"token_ids": np.arange(11)},
            "expected integers 'token_ids' [12] in r.npz, got [11] of int64; save them under",
        ),
        (
            {"token_ids": np.full(12, 2**31)},
            "expected 'token_ids' from 0 to 2147483647 in r.npz, got 2147483648; correct",
        ),
        ({"token_ids": np.full(12, -5)}, "expected 'token_ids' from 0 to 2147483647 in r.npz, got -5; correct them"),
        ({"sequence_lengths": [13, -1]}, "expected 'sequence_lengths' 0 or more in r.npz, got -1; correct them"),
        ({"sequence_lengths": [12.0]}, "expected integers 'sequence_lengths' [document] in r.npz, got [1] of float64"),
        ({"sequence_lengths": [[12]]}, "expected integers 'sequence_lengths' [document] in r.npz, got [1, 1] of int64"),
        ({"sequence_lengths": [5, 6]}, "expected sequence_lengths that sum to the 12 tokens in r.npz, got a sum of 11"),
        (
            {"expert_ids": TRUE[:, :, :0]},
            "expected 3 layers in ascending order in r.npz, got 3 layers and 0 slots; give",
        ),
    ],
)
def test_arrays_of_another_kind(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(MoeLensError) as error:
        import_routes(npz(tmp_path, **arrays), tmp_path / "run")
    assert str(error.value).startswith(message)
    assert {"expert_ids", "gate_weights", "token_ids", "sequence_lengths"} == {a.names[0] for a in ARRAYS.values()}
