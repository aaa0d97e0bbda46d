"""Experts of a label out to other tools and back, and prefill compared with decoding."""

from __future__ import annotations

import csv
import json
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fuzz import ANY_JSON, replace_somewhere
from helpers.results import result_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moelens
from moelens.analysis import Counts, ExpertList, Measure, found_experts, jensen_shannon, phase_values, read_experts
from moelens.analysis.expert_lists import check_file
from moelens.analysis.result import Specialization
from moelens.commands.command_line import main
from moelens.errors import CheckError, MoeLensError, RecordingError, UnknownNameError
from moelens.interventions import listed_interventions
from moelens.interventions.listed_experts import found_interventions, read_listed

BIAS = ExpertList(form="bias", biases=((1, 2, 0.5), (3, 0, 0.25)), layers=(1, 3), n_experts=4, label="L", model="m")
KEEP = ExpertList(form="keep", biases=((1, 2, 1.0), (1, 3, 1.0), (3, 0, 1.0), (3, 1, 1.0)), layers=(1, 3), n_experts=4)


@pytest.mark.parametrize("suffix", [".json", ".csv", ".f32", ".safetensors"])
def test_biases_come_back_from_every_form(suffix: str, tmp_path: Path) -> None:
    again = read_experts(BIAS.save(tmp_path / f"experts{suffix}"), n_experts=4)
    assert again.biases == BIAS.biases
    assert again.form == "bias"
    assert str(listed_interventions(again, "remove", n_experts=4)) == str(listed_interventions(BIAS, "remove"))


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_experts_to_keep_come_back(suffix: str, tmp_path: Path) -> None:
    again = read_experts(KEEP.save(tmp_path / f"experts{suffix}"))
    assert (again.form, again.biases, again.layers) == ("keep", KEEP.biases, KEEP.layers)


def test_files_are_as_other_tools_read_them(tmp_path: Path) -> None:
    """Each form is read without moelens, as the tools that take it do."""
    with BIAS.save(tmp_path / "b.csv").open(newline="") as file:
        assert next(csv.DictReader(file)) == {"layer": "1", "expert": "2", "bias": "0.5"}
    assert json.loads(KEEP.save(tmp_path / "k.json").read_text())["layers"] == {"1": [2, 3], "3": [0, 1]}
    flat = struct.unpack("<16f", BIAS.save(tmp_path / "b.f32").read_bytes())
    assert [i for i, value in enumerate(flat) if value] == [1 * 4 + 2, 3 * 4 + 0]
    from safetensors.numpy import load_file

    vectors = load_file(BIAS.save(tmp_path / "b.safetensors"))
    assert vectors["model.layers.1.mlp.gate.e_score_correction_bias"].tolist() == [0, 0, 0.5, 0]


@pytest.mark.parametrize(
    ("data", "form"),
    [
        ({"1": [2, 3], "3": [0, 1]}, "keep"),
        ({"layers": {"1": {"keep_experts": [2, 3]}, "3": {"keep_experts": [0, 1]}}}, "keep"),
        ({"model": "m", "layers": {"1": {"retained_experts": [2, 3]}, "3": {"experts": [0, 1]}}}, "keep"),
        ([{"layer": 1, "expert": 2, "bias": 0.5}, {"layer": 3, "expert": 0, "bias": 0.25}], "bias"),
    ],
)
def test_lists_of_other_tools(data: Any, form: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(data))
    found = read_experts(tmp_path / "list.json", n_experts=4)
    assert (found.form, found.biases) == (form, (KEEP if form == "keep" else BIAS).biases)


BAD = {
    '{"1": {"experts_x": [1]}}': "expected layers and experts, with or without biases, in list.json, got",
    '{"1": ["2"]}': "expected layers and experts, with or without biases",
    "[1, 2]": "expected layers and experts, with or without biases",
    "{": "expected layers and experts, with or without biases",
    '{"1": []}': "expected one or more experts in list.json, got none; write it again",
    '{"1": [7]}': "expected experts from 0 to 3 with finite biases in list.json, got layer 1, expert 7",
    '[{"layer": 1, "expert": 2, "bias": NaN}]': "with finite biases in list.json, got layer 1, expert 2, bias nan",
    '{"5000": [2]}': "expected layers from 0 to 4095, those of all experts among them, in list.json, got 5000; give",
    '{"moe_layers": [2], "bias": [{"layer": 1, "expert": 2, "bias": 1}]}': "expected layers from 0 to 4095, those of",
    '{"1": [2, 2]}': "expected each expert once in list.json, got expert 2 of layer 1 twice; leave one out",
}


@pytest.mark.parametrize("text", BAD)
def test_lists_that_cannot_be_true(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(CheckError, match=BAD[text]):
        read_experts(tmp_path / "list.json", n_experts=4)


def ends_well(path: Path) -> None:
    """A list whose experts can be acted on and that comes back from its own file, or an error of one line."""
    try:
        found = read_experts(path, n_experts=4)
    except MoeLensError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert found.matrix().shape == (max(found.layers) + 1, 4)
    again = read_experts(found.save(path.parent / "again.json"), n_experts=4)
    assert (again.form, again.biases) == (found.form, found.biases)


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_lists_and_their_negations(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        experts = data.draw(st.sampled_from([BIAS, KEEP]))
        path = experts.save(Path(folder) / "list.json")
        value = json.loads(path.read_text())
        for _ in range(data.draw(st.integers(0, 2))):
            replace_somewhere(data, value, ANY_JSON)
        path.write_text(json.dumps(value), "utf-8")
        ends_well(path)


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_files_of_lists_with_other_bytes(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = BIAS.save(Path(folder) / f"list{data.draw(st.sampled_from(['.json', '.csv', '.f32', '.safetensors']))}")
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 0]))])
        ends_well(path)


def test_what_a_list_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "b.f32").write_bytes(b"\0" * 12)
    unsized = ExpertList(form="bias", biases=((1, 2, 0.5),), layers=(1,))
    steered = "expected a list of biases for shift, got a list of experts to keep"
    cases: tuple[tuple[Any, type[MoeLensError], str], ...] = (
        (
            lambda: KEEP.save(tmp_path / "k.f32"),
            MoeLensError,
            "got experts to keep; write these to a .json or .csv file",
        ),
        (
            lambda: BIAS.save(tmp_path / "k.txt"),
            UnknownNameError,
            "expected a file of experts that ends in .json, .csv",
        ),
        (lambda: unsized.matrix(), MoeLensError, "expected a list with its number of experts, got one without"),
        (lambda: read_experts(tmp_path / "none.json"), MoeLensError, "expected a file of experts, got '"),
        (lambda: read_experts(tmp_path / "b.f32"), MoeLensError, "expected the number of experts for '"),
        (lambda: read_experts(tmp_path / "b.f32", 4), CheckError, "which are no rows of 4 experts"),
        (lambda: listed_interventions(KEEP, "shift"), MoeLensError, steered),
        (
            lambda: listed_interventions(ExpertList(form="keep", biases=((1, 2, 1.0),), layers=(1,)), "remove"),
            MoeLensError,
            "expected the number of experts of the model for a list of experts to keep",
        ),
    )
    for attempt, kind, error in cases:
        with pytest.raises(kind, match=error):
            attempt()
    assert read_listed(tmp_path / "b.f32") == tmp_path / "b.f32"


def test_experts_that_are_not_kept_are_acted_on() -> None:
    assert [str(i) for i in listed_interventions(KEEP, "reroute")] == [
        "reroute E0, E1 in layer 1",
        "reroute E2, E3 in layer 3",
    ]
    assert [str(i) for i in listed_interventions(BIAS, "shift", 2)] == [
        "shift by 1 E2 in layer 1",
        "shift by 0.5 E0 in layer 3",
    ]


def bounded() -> Any:
    """Two labels, of which the first has expert 0 of layer 5 to itself."""
    count = np.array([[[40, 0], [10, 10], [5, 30], [5, 40]]])
    counts = Counts.from_table(count, count.sum(2), [60, 80], ["a", "b"], [5], 1)
    lift = counts.lift()
    return Specialization.of_counts(counts, "f", "not tested", (lift, lift), np.ones(lift.shape))


def test_experts_found_by_bounds() -> None:
    found = found_experts(bounded(), "a")
    assert found.of_layer(5)[0] == 0
    (bias,) = [b for _, expert, b in found.biases if expert == 0]
    assert bias == pytest.approx(40 / 60 - 0 / 80)
    kept = found_experts(bounded(), "b", "keep", 3)
    assert kept.of_layer(5) == (1, 2, 3)


def test_experts_that_cannot_be_found() -> None:
    result = bounded()
    count = np.full((1, 4, 1), 10)
    even = Counts.from_table(count, count.sum(2), [40], ["a"], [5], 1).specialization()
    with pytest.raises(MoeLensError, match="expected a label whose experts to list, got none; choose one of a, b"):
        found_experts(result)
    with pytest.raises(MoeLensError, match="expected experts that prefer a, got none that does significantly"):
        found_experts(even)
    tested = result_of(1, 8)
    none = np.ones_like(tested.q)
    controlled = replace(tested, given=("token",), q=none, p_family=none)
    with pytest.raises(
        MoeLensError, match=r"within token, got none that does significantly; analyze without this cont"
    ):
        found_experts(controlled, tested.names[0])
    rare = replace(tested, p=np.full_like(tested.p, np.nan), q=none, p_family=none)
    with pytest.raises(MoeLensError, match=r"expected a label that was tested, got .*, which was not \("):
        found_experts(rare, tested.names[0])
    with pytest.raises(MoeLensError, match="expected from 1 experts to keep, as many as a token chooses, to 4, got 9"):
        found_experts(result, "a", "keep", 9)
    with pytest.raises(UnknownNameError, match="unknown form of a list of experts 'prune'"):
        check_file("a.json", "prune")


# --- on the bundled model


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> moelens.Recording:
    model = moelens.load("demo")
    texts = [document.text[:24] for document in moelens.Corpus.of("demo")][:24]
    folder = tmp_path_factory.mktemp("generated") / "run"
    return moelens.record(model, texts, folder, generate=12, progress=False)


def test_phases_against_their_definition(generated: moelens.Recording) -> None:
    values = phase_values(generated, draws=19, progress=False)
    assert values.shape == (len(generated.layers), 2, 3)
    decode = generated.column("phase") == "decode"
    text = generated.column("char_end") > generated.column("char_start")
    for layer in range(len(generated.layers)):
        routes = np.concatenate([np.asarray(chosen[layer]) for _, chosen in generated.parts()])
        p, q = (
            np.bincount(routes[text & part].ravel(), minlength=generated.n_experts) / routes[text & part].size
            for part in (~decode, decode)
        )
        assert values[layer, 0, 0] == pytest.approx(np.minimum(p, q).sum())
        assert values[layer, 1, 0] == pytest.approx(jensen_shannon(np.stack([p, q], 1))[0, 1])
    assert (values[..., 1] <= values[..., 2]).all()


def test_compare_phases_is_a_measure(generated: moelens.Recording, tmp_path: Path, capsys: Any) -> None:
    result = moelens.compare(generated, phase="prefill,decode", permutations=9)
    assert list(result.axes) == ["layer", "label", "value"]
    np.testing.assert_array_equal(result.values, phase_values(generated, 9, progress=False))
    assert result.plot().get_ylabel() == "overlap as a share, divergence in bits"
    folder = str(generated.folder.location)
    out = tmp_path / "phases.json"
    assert main(["compare", folder, "--phase", "prefill,decode", "--permutations", "9", "--out", str(out)]) == 0
    header = capsys.readouterr().out.splitlines()[1].split()
    assert header == ["layer", "overlap", "by", "chance", "divergence", "by", "chance"]
    np.testing.assert_array_equal(Measure.open(out).values, result.values)


def test_phases_that_cannot_be_compared(generated: moelens.Recording, tmp_path: Path) -> None:
    other = moelens.record(moelens.load("demo"), ["先生が来ます。"], tmp_path / "run", progress=False)
    with pytest.raises(UnknownNameError, match="unknown phase 'encode'"):
        moelens.compare(generated, phase="prefill,encode")
    with pytest.raises(MoeLensError, match="expected two phases to compare, got prefill; give prefill,decode"):
        moelens.compare(generated, phase="prefill")
    with pytest.raises(MoeLensError, match="expected one recording with phase, got '"):
        moelens.compare(generated, other, phase="prefill,decode")
    with pytest.raises(MoeLensError, match="expected two recordings, got one; give another, or phase='prefill,decode'"):
        moelens.compare(generated)  # type: ignore[call-overload]
    with pytest.raises(RecordingError, match="expected a recording with prefill and decoding, got"):
        moelens.compare(other, phase="prefill,decode")
    with pytest.raises(MoeLensError, match="expected 2 or more shifts of the phases, got 1"):
        moelens.compare(generated, phase=["prefill", "decode"], permutations=1)


@pytest.mark.slow
def test_analyze_exports_and_effect_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = moelens.load("demo")
    texts = [document.text for document in moelens.Corpus.of("demo")][:40]
    moelens.record(model, texts, tmp_path / "run", progress=False)
    run, out = str(tmp_path / "run"), tmp_path / "polite.csv"
    base = ["analyze", run, "--given", "none", "--permutations", "99", "--export-experts"]
    assert main([*base, str(out), "--label", "丁寧語"]) == 0
    result = moelens.analyze(run, given=None, permutations=99, progress=False)
    np.testing.assert_allclose(read_experts(out).biases, found_experts(result, "丁寧語").biases)
    assert main([*base, str(tmp_path / "keep.json"), "--label", "丁寧語", "--form", "keep"]) == 0
    assert read_experts(tmp_path / "keep.json").form == "keep"
    assert main([*base, str(out)]) == 2
    assert "expected --label LABEL with --export-experts, got none" in capsys.readouterr().err
    row = {"id": "1", "kind": "k", "frame": "f", "context": "明日は学校へ", "good": "行きます。", "bad": "行く。"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    for operation, experts in (("shift", out), ("reroute", tmp_path / "keep.json")):
        arguments = ["--pairs", str(tmp_path / "pairs.jsonl"), "--operation", operation, "--experts", str(experts)]
        assert main(["effect", "demo", *arguments, "--draws", "0"]) == 0
    assert "shift" in capsys.readouterr().out


def test_effect_takes_up_what_analyze_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [document.text for document in moelens.Corpus.of("demo")][:40]
    recording = moelens.record(moelens.load("demo"), texts, tmp_path / "run", progress=False)
    found = moelens.analyze(recording, given=None, permutations=99, progress=False)
    findings = str(found.save(tmp_path / "findings.json"))
    best = [f for f in found.top(2, "丁寧語") if f.certain]
    words = ["effect", "--from", findings, "--label", "teineigo", "--top", "2", "--draws", "0"]
    assert main([*words, "--out", str(tmp_path / "e.json")]) == 0
    effect = moelens.open(tmp_path / "e.json")
    layers = sorted({f.layer for f in best})
    experts = {layer: "+".join(f"E{f.expert}" for f in best if f.layer == layer) for layer in layers}
    assert len(effect.interventions) == len(layers)
    for name, layer in zip(effect.interventions, layers, strict=True):
        assert f"layer {layer}" in name
        assert all(expert in name for expert in experts[layer].split("+"))
    assert effect.kinds[0].kind == "style-agreement"
    assert capsys.readouterr().out
    with pytest.raises(
        MoeLensError, match="expected 1 or more experts to take, got top=0 \\(--top\\); give a larger number"
    ):
        found_interventions(found, top=0)
    result = moelens.analyze(recording, "pos", given=None, permutations=99, progress=False)
    for arguments, message in (
        ([], "expected the experts in --experts, or a result of analyze in --from, got neither; give one of them"),
        (["--from", findings, "--experts", "3"], "got both; give one of them"),
        (["--from", findings, "--label", "keigo"], "unknown label"),
        (
            ["other", "--from", findings],
            "', 'demo', got 'other'; leave the model out, or analyze a recording of this one",
        ),
        (
            ["--from", str(result.save(tmp_path / "pos.json"))],
            ", which no kind of contrasts tests, got none; give a kind",
        ),
    ):
        assert main(["effect", *arguments]) == 2
        assert message in capsys.readouterr().err
    nothing = replace(found, p_family=np.ones_like(found.q), q=np.ones_like(found.q)).save(tmp_path / "none.json")
    assert main(["effect", "--from", str(nothing)]) == 2
    assert "expected experts that prefer any label, got none that does significantly; choose" in capsys.readouterr().err
