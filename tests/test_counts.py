"""Counts that others published, and those that engines write: read, checked, measured, shown, saved."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moelens
from moelens.analysis import (
    Counts,
    coverage,
    exclusive_experts,
    import_counts,
    jaccard,
    jensen_shannon,
    label_committee,
    mean_gate,
    measure,
    usage,
    usage_entropy,
)
from moelens.commands.command_line import main
from moelens.errors import CheckError, MoeLensError, UnknownNameError
from moelens.models.loading import DEMO

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "routing"
LAYERS, EXPERTS, TOP_K = (3, 7), 4, 2
COUNT = np.array(
    [[[30, 2], [20, 8], [6, 10], [4, 20]], [[1, 20], [29, 0], [10, 19], [20, 1]]]
)  # [layer, expert, group]
GATE = COUNT * 0.25
TOKENS = [30, 20]


def nested(count: Any = COUNT, group: int = 0) -> dict[str, Any]:
    return {
        str(layer): {str(e): int(count[x, e, group]) for e in range(EXPERTS) if count[x, e, group]}
        for x, layer in enumerate(LAYERS)
    }


def rows(gates: bool = False) -> dict[str, list[Any]]:
    found = [
        (layer, e, group, int(COUNT[x, e, g]), float(GATE[x, e, g]))
        for x, layer in enumerate(LAYERS)
        for e in range(EXPERTS)
        for g, group in enumerate(("ja", "en"))
        if COUNT[x, e, g]
    ]
    names = ("layer", "expert", "group", "count", "gate_sum")
    return dict(zip(names[: 5 if gates else 4], map(list, zip(*found, strict=True)), strict=False))


def csv(columns: dict[str, list[Any]], delimiter: str = ",") -> str:
    lines = [delimiter.join(columns), *(delimiter.join(map(str, r)) for r in zip(*columns.values(), strict=True))]
    return "\n".join(lines) + "\n"


def as_json(folder: Path) -> Any:
    (folder / "all.json").write_text(
        json.dumps({"model": "m", "top_k": 2, "routing": {"ja": nested(), "en": nested(group=1)}})
    )
    return folder / "all.json"


def as_json_each(folder: Path) -> Any:
    """As Qwen3's files: an object of count and gate sum for each expert; a file for each language."""
    for g, name in enumerate(("ja", "en")):
        layers = {
            f"layers.{layer}.mlp": {
                str(e): {"activation_tokens": int(COUNT[x, e, g]), "gate_values_sum": float(GATE[x, e, g])}
                for e in range(EXPERTS)
            }
            for x, layer in enumerate(LAYERS)
        }
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(layers).encode()))
    return {name: folder / f"{name}.json.gz" for name in ("ja", "en")}


def as_csv_rows(folder: Path) -> Any:
    (folder / "rows.csv").write_text(csv(rows()))
    return folder / "rows.csv"


def as_tsv_gates(folder: Path) -> Any:
    (folder / "rows.tsv").write_text(csv(rows(gates=True), "\t"))
    return folder / "rows.tsv"


def as_parquet(folder: Path) -> Any:
    pyarrow.parquet.write_table(pa.table(rows()), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_layer_columns(folder: Path) -> Any:
    for g, name in enumerate(("ja", "en")):
        wide = {f"layer_{layer}": COUNT[x, :, g].tolist() for x, layer in enumerate(LAYERS)}
        (folder / f"{name}.csv").write_text(csv(wide))
    return [folder / "ja.csv", folder / "en.csv"]


def as_expert_columns(folder: Path) -> Any:
    wide = {"layer": list(LAYERS) * 2, "language": ["ja", "ja", "en", "en"]}
    wide |= {f"expert_{e}": [int(COUNT[x, e, g]) for g in (0, 1) for x in (0, 1)] for e in range(EXPERTS)}
    (folder / "wide.csv").write_text(csv(wide))
    return folder / "wide.csv"


def as_npz(folder: Path) -> Any:
    np.savez(folder / "all.npz", count=COUNT, layers=LAYERS, groups=["ja", "en"], tokens=TOKENS, gates=GATE)
    return folder / "all.npz"


def as_npz_groups_first(folder: Path) -> Any:
    np.savez(folder / "all.npz", count=np.moveaxis(COUNT, 2, 0), layers=LAYERS, groups=["ja", "en"], top_k=2)
    return folder / "all.npz"


FORMS = (
    as_json,
    as_json_each,
    as_csv_rows,
    as_tsv_gates,
    as_parquet,
    as_layer_columns,
    as_expert_columns,
    as_npz,
    as_npz_groups_first,
)


@pytest.mark.parametrize("write", FORMS, ids=lambda f: f.__name__)
def test_every_form_gives_the_same_counts(write: Any, tmp_path: Path) -> None:
    counts = import_counts(write(tmp_path), tmp_path / "counts.json", top_k=None if "npz" in write.__name__ else TOP_K)
    assert (counts.names, counts.layers, counts.top_k) == (("ja", "en"), LAYERS, TOP_K)
    np.testing.assert_array_equal(counts.count, COUNT)
    assert counts.label_tokens.tolist() == TOKENS
    assert counts.n_tokens == 50
    if counts.gates is not None:
        np.testing.assert_allclose(mean_gate(counts)[COUNT > 0], 0.25)
    again = Counts.open(tmp_path / "counts.json")
    np.testing.assert_array_equal(again.count, COUNT)
    assert (again.gates is None) == (counts.gates is None)
    assert dict(again.provenance) == dict(counts.provenance)


def test_masses_may_differ_within_the_tolerance_and_say_by_how_much(tmp_path: Path) -> None:
    mass = COUNT / TOP_K * np.array([1, 1.0004])[:, None, None]
    np.savez(tmp_path / "mass.npz", count=mass, groups=["ja", "en"])
    counts = import_counts(tmp_path / "mass.npz", top_k=2)
    assert counts.mass
    assert counts.provenance["layer_sums_off_by"] == pytest.approx(0.0002, rel=0.01)
    assert "by at most 0.02 % (tolerance 0.1 %)" in counts.table()
    np.testing.assert_allclose(usage(counts), COUNT / COUNT.sum(1, keepdims=True), rtol=1e-6)
    with pytest.raises(CheckError, match="expected the same sum in every layer, 30 for group 'ja', got 30 in layer 1"):
        import_counts(tmp_path / "mass.npz", top_k=2, tolerance=1e-5)


def test_files_of_the_same_group_add_up_and_a_group_of_all_tokens_is_no_label(tmp_path: Path) -> None:
    path = as_csv_rows(tmp_path)
    twice = import_counts([("ja", path), ("ja", path)], top_k=2, groups=["ja ja"])
    np.testing.assert_array_equal(twice.count[:, :, 0], 2 * COUNT[:, :, 0])
    (tmp_path / "of.json").write_text(json.dumps({"all": nested(COUNT.sum(2, keepdims=True)), "ja": nested()}))
    counts = import_counts(tmp_path / "of.json", top_k=2, total="all")
    assert (counts.names, counts.n_tokens) == (("ja",), 50)
    np.testing.assert_array_equal(counts.expert_tokens, COUNT.sum(2))


def test_experts_that_no_file_names_and_layers_without_counts(tmp_path: Path) -> None:
    (tmp_path / "pandas.csv").write_text(",layer,expert,count\n0,3,0,5.0\n1,3,1,7.0\n")
    counts = import_counts(tmp_path / "pandas.csv", top_k=1)
    assert (counts.mass, counts.provenance["notes"]) == (False, ["columns left out: one without a name"])
    np.savez(tmp_path / "a.npz", count=np.concatenate([np.zeros((1, 4, 1), int), COUNT[:, :, :1]]), top_k=2)
    counts = import_counts(tmp_path / "a.npz", n_experts=6)
    assert (counts.n_experts, counts.layers) == (6, (1, 2))
    assert counts.provenance["notes"] == ["layers without counts, left out: 0"]
    assert "layers without counts, left out: 0" in counts.table()


# --- engines


def test_sglang_dumps(tmp_path: Path) -> None:
    """Counts of experts in both kinds of dump; replicas of an expert are added up."""
    logical = torch.tensor(np.stack([COUNT[:, :, 0], COUNT[:, :, 1]]))  # [step, layer, expert]
    torch.save({"rank": 0, "logical_count": logical}, tmp_path / "stat.pt")
    counts = import_counts(tmp_path / "stat.pt", top_k=2)
    np.testing.assert_array_equal(counts.count[:, :, 0], COUNT.sum(2))
    replicas = torch.tensor([[0, 1, 2, 3, 0]] * 2)
    records = []
    for g, mode in enumerate((1, 2)):
        physical = np.concatenate([COUNT[:, :, g], np.zeros((2, 1), int)], axis=1)
        physical[:, 4], physical[:, 0] = physical[:, 0] // 2, physical[:, 0] - physical[:, 0] // 2
        records.append({"forward_mode": mode, "global_physical_count": torch.tensor(physical)})
    torch.save({"records": records, "last_physical_to_logical_map": replicas}, tmp_path / "token.pt")
    counts = import_counts(tmp_path / "token.pt", top_k=2)
    assert counts.names == ("prefill", "decode")
    np.testing.assert_array_equal(counts.count, COUNT)
    torch.save({"weights": replicas}, tmp_path / "other.pt")
    with pytest.raises(CheckError, match="expected logical_count, or records with last_physical_to_logical_map"):
        import_counts(tmp_path / "other.pt", top_k=2)
    short = {"records": [{"global_physical_count": replicas[:, :3]}], "last_physical_to_logical_map": replicas}
    torch.save(short, tmp_path / "short.pt")
    with pytest.raises(CheckError, match="of the shape of the map from replicas to experts"):
        import_counts(tmp_path / "short.pt", top_k=2)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"logical_count": Path}))
    with pytest.raises(CheckError, match="expected a dump of SGLang's recorder"):
        import_counts(tmp_path / "pickle.pt", top_k=2)


def test_moe_traces(tmp_path: Path) -> None:
    lines = ["-2,3,0,1", "-2,7,1,2", "-1,3,0,2", "-1,7,3,1", "0,3,1,3", "0,7,0,2"]
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    counts = import_counts(tmp_path / "trace.csv")
    assert (counts.names, counts.layers, counts.top_k) == (("prefill", "decode"), LAYERS, 2)
    assert counts.label_tokens.tolist() == [2, 1]
    assert counts.count[:, :, 0].tolist() == [[2, 1, 1, 0], [0, 2, 1, 1]]
    (tmp_path / "trace.csv").write_text("-1,0,1,2\n0,0,1,3\n")  # the first line is no header of layers
    assert import_counts(tmp_path / "trace.csv").count[0, :, 0].tolist() == [0, 1, 1, 0]
    for text, error in (
        ("-1,3,0,1\n-1,7,1\n", "expected lines pos,layer,id,id,… of equal length in trace.csv"),
        ("-1,3,0,1\n-1,7,a,2\n", "expected lines of integers pos,layer,id,id,… in trace.csv"),
        ("-1,3,0,1\n-1,7,2,2\n", r"expected different experts for a token in trace.csv, got \[2, 2\] in line 2"),
    ):
        (tmp_path / "trace.csv").write_text(text)
        with pytest.raises(CheckError, match=error):
            import_counts(tmp_path / "trace.csv")


# --- what cannot be true

BAD_JSON = {
    "expected JSON in a.json": "{",
    "expected counts nested by layer and expert in a.json, such as": '{"a": 1, "b": 2}',
    "expected a field for the count of an expert in a.json": '{"0": {"0": {"x": 1, "y": 2}}}',
    "expected counts of 0 or more and below 2..53 in a.json, got -1": '{"0": {"0": -1, "1": 3}}',
    "expected counts above 0, got none; give files": '{"0": {"0": 0, "1": 0}}',
    "expected expert numbers from 0 to 65535 in a.json, got 99999": '{"0": {"99999": 1}}',
    "expected at most 67,108,864 cells in a.json": json.dumps({str(x): {"60000": 1} for x in range(1200)}),
    "expected counts, or sums of gate weights, got shares that sum to 1": '{"0": {"0": 0.25, "1": 0.75}}',
    "expected the same sum in every layer": '{"0": {"0": 4}, "1": {"0": 6}}',
    "expected tokens in every group, got none in 'ja'": '{"ja": {"0": {"0": 0}}, "en": {"0": {"0": 2}}}',
}


@pytest.mark.parametrize("error", BAD_JSON)
def test_json_that_cannot_be_true(error: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(BAD_JSON[error])
    with pytest.raises(CheckError, match=error):
        import_counts(tmp_path / "a.json", top_k=1)


BAD_CSV = {
    "expected columns layer, expert and count, or a column for each layer, in a.csv, got a, b": "a,b\n1,2\n",
    "expected numbers as counts in a.csv, got 'x'; write plain numbers": "layer,expert,count\n0,0,x\n",
    "expected one row for each layer, expert and group in a.csv": "layer,expert,count\n0,0,1\n0,0,2\n",
    "expected layer numbers from 0 to 4095 in a.csv, got -1": "layer,expert,count\n-1,0,1\n",
    "expected rows of counts in a.csv, got none": "layer,expert,count\n",
    "expected counts of 0 or more and below 2..53 in a.csv, got nan": "layer,expert,count\n0,0,1.5\n0,1,nan\n",
    "expected a readable .csv file": "layer,expert,count\n0,0\n",
    "expected each column once in a.csv, got 'layer' twice": "layer,Layer,expert,count\n0,0,0,1\n",
    "the name of a group in every row of a.csv, got no name in row 2;": "layer,expert,lang,count\n0,0,a,1\n0,1,,1",
}


@pytest.mark.parametrize("error", BAD_CSV)
def test_csv_that_cannot_be_true(error: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(BAD_CSV[error])
    with pytest.raises(CheckError, match=error):
        import_counts(tmp_path / "a.csv", top_k=1)


def test_lists_are_no_names_of_groups(tmp_path: Path) -> None:
    table = {"layer": [0, 0], "expert": [0, 1], "count": [3, 4], "group": [["a", "b"], ["c", "d"]]}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(CheckError, match=r"every row of a\.parquet, got no name in row 1"):
        import_counts(tmp_path / "a.parquet", top_k=1)


def test_what_was_asked_for_is_not_there(tmp_path: Path) -> None:
    path = as_csv_rows(tmp_path)
    (tmp_path / "a.txt").write_text("")
    np.savez(tmp_path / "shape.npz", count=COUNT, groups=["ja"])
    (tmp_path / "k.json").write_text(json.dumps({"top_k": 1, "routing": nested()}))
    cases: tuple[tuple[Any, dict[str, Any], type[MoeLensError], str], ...] = (
        (tmp_path / "none.csv", {}, MoeLensError, "expected a file of counts, got"),
        ([], {}, MoeLensError, "expected one or more files of counts, got none"),
        (tmp_path / "a.txt", {}, CheckError, "expected a file of counts that ends in"),
        (
            path,
            {"kind": "xml"},
            UnknownNameError,
            "unknown kind of counts 'xml'; allowed: json, table, sglang, moe-",
        ),
        (path, {"groups": ["de"]}, UnknownNameError, "unknown group 'de'"),
        (path, {"total": "de", "top_k": 2}, UnknownNameError, "unknown group 'de'"),
        (path, {}, MoeLensError, "expected the number of experts for each token, which the files do not state"),
        (path, {"top_k": 4}, CheckError, "expected at most 15 for an expert, the tokens of group 'ja', got 30 for exp"),
        (path, {"top_k": 2, "n_experts": 3}, CheckError, "expected 3 experts in each layer, got counts of expert 3"),
        (tmp_path / "shape.npz", {"top_k": 2}, CheckError, r"expected count \[layer, expert, group\] in shape.npz"),
        ([tmp_path / "k.json", as_json(tmp_path)], {}, CheckError, "expected files of one model, got 1 and 2 experts"),
    )
    for sources, options, kind, error in cases:
        with pytest.raises(kind, match=error):
            import_counts(sources, **options)


def test_arrays_that_contradict_each_other(tmp_path: Path) -> None:
    good: dict[str, Any] = {"count": COUNT, "groups": ["ja", "en"], "top_k": 2}
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"gates": GATE[:, :2]}, r"expected gates of the shape of count, \[2, 4, 2\], in a.npz, got \[2, 2, 2\]"),
        ({"tokens": [30]}, "expected a number of tokens for each of 2 groups in a.npz, got 1; correct them"),
        ({"top_k": 2.5}, "expected a number of experts for each token from 1 to 65536 in a.npz, got array"),
        ({"count": np.zeros((1, 70_000, 1)), "groups": ["ja"]}, "expected at most 67,108,864 cells in a.npz, got 1 l"),
    )
    for changed, error in cases:
        np.savez(tmp_path / "a.npz", **(good | changed))
        with pytest.raises(CheckError, match=error):
            import_counts(tmp_path / "a.npz")
    columns = {"layer": np.zeros(3, int), "expert": np.arange(2), "count": np.ones(2)}
    np.savez(tmp_path / "a.npz", **columns)
    with pytest.raises(CheckError, match=r"expected columns of one length in a.npz, got shapes \[2\], \[3\]; save"):
        import_counts(tmp_path / "a.npz", top_k=1)
    for wrong, error in (
        (torch.ones(4), r"expected logical_count \[step, layer, expert\] in a.pt, got \[4\]; dump"),
        (torch.full((2, 4), 0.5), "expected whole numbers as counts in a.pt, got fractions; dump the recorder again"),
        (
            torch.eye(2).to_sparse(),
            "expected dense tensors of counts in a.pt, got one of layout torch.sparse_coo; dump",
        ),
        (torch.ones(2, 4, device="meta"), "expected dense tensors of counts in a.pt, got one without numbers; dump"),
    ):
        torch.save({"logical_count": wrong}, tmp_path / "a.pt")
        with pytest.raises(CheckError, match=error):
            import_counts(tmp_path / "a.pt", top_k=1)


def test_whole_numbers_with_a_point_are_counts_and_gates_follow_their_groups(tmp_path: Path) -> None:
    arrays = {"count": np.moveaxis(COUNT, 2, 0) * 1.0, "gates": np.moveaxis(GATE, 2, 0), "groups": ["ja", "en"]}
    np.savez(tmp_path / "a.npz", **arrays, top_k=2)
    counts = import_counts(tmp_path / "a.npz")
    assert not counts.mass
    np.testing.assert_array_equal(counts.count, COUNT)
    assert counts.gates is not None
    np.testing.assert_array_equal(counts.gates[0], GATE)


# --- measures


@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_measures_against_their_definitions(seed: int, experts: int, labels: int) -> None:
    count = np.random.default_rng(seed).integers(1, 50, (1, experts, labels))
    counts = Counts.from_table(count, count.sum(2), count.sum((0, 1)), [f"l{i}" for i in range(labels)], [0], 1)
    p = count[0] / count[0].sum(0)
    np.testing.assert_allclose(usage(counts)[0], p)
    np.testing.assert_allclose(usage_entropy(counts)[0], -(p * np.log2(p)).sum(0))
    n = experts // 2
    np.testing.assert_allclose(coverage(p, n), [sum(sorted(column)[-n:]) for column in p.T])
    best = [set(np.argsort(-column, kind="stable")[:n].tolist()) for column in p.T]
    np.testing.assert_allclose(jaccard(p, n), [[len(a & b) / len(a | b) for b in best] for a in best])
    m = (p[:, :1] + p[:, 1:2]) / 2
    expected = sum(0.5 * (q * np.log2(q / m[:, 0])).sum() for q in (p[:, 0], p[:, 1]))
    assert jensen_shannon(p)[0, 1] == pytest.approx(expected, abs=1e-12)


def test_measures_by_name_tables_and_refusals(tmp_path: Path) -> None:
    counts = import_counts(as_csv_rows(tmp_path), top_k=2, out=tmp_path / "counts.json")
    pairs = measure(counts, "jaccard", top_n=2)
    assert pairs.values.shape == (2, 2, 2)
    assert [row[1:3] for row in pairs.top(9)] == [("ja", "en")] * 2, "each pair once, and none with itself"
    np.testing.assert_allclose(measure(tmp_path / "counts.json", "share").values, counts.share())
    assert label_committee(counts).shape == (2, 4)
    first = exclusive_experts(counts)[1]
    assert (first.layer, first.expert, first.label, first.tokens, first.other_share) == (7, 1, "ja", 29, 0)
    assert "not tested: counts have no documents" in counts.table()
    with pytest.raises(CheckError, match="expected a number of most used experts from 1 to 4, got 5"):
        measure(counts, "coverage", top_n=5)
    with pytest.raises(CheckError, match="expected counts with sums of gate weights, got counts without"):
        mean_gate(counts)
    with pytest.raises(MoeLensError, match="expected a recording for coactivation, which needs the routes of single"):
        measure(counts, "coactivation")
    with pytest.raises(MoeLensError, match="expected a recording, got counts, which have no documents to test"):
        moelens.analyze(counts)  # type: ignore[arg-type]


def test_counts_go_to_every_view_without_intervals(tmp_path: Path) -> None:
    counts = import_counts(as_csv_rows(tmp_path), top_k=2, model="m<b>")
    result = counts.specialization("language")
    assert result.evidence == "none"
    assert not np.isfinite(result.low).any()
    page = moelens.report(counts, tmp_path / "report.html").read_text("utf-8")
    assert "m<b>" not in page
    assert "counts have no documents" in page
    assert "not tested" in result.table()


def test_the_command_imports_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [f"{name}={path}" for name, path in as_json_each(tmp_path).items()]
    out = str(tmp_path / "counts.json")
    main(["import-counts", *sources, "--top-k", "2", "--model", "tiny", "--out", out])
    assert "tiny · 2 layers × 4 experts, top-2 · 50 tokens" in capsys.readouterr().out
    main(["measure", out, "jensen_shannon"])
    assert "jensen_shannon" in capsys.readouterr().out
    main(["report", out, "--out", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").exists()


# --- published numbers


def published(*names: str) -> list[Path]:
    found = [PUBLISHED / name for name in names]
    if not all(path.exists() for path in found):
        pytest.skip(f"the published routing is not at {PUBLISHED}")
    return found


def test_command_a_plus_as_published() -> None:
    """All 55 Jaccard indices and the coverage of arXiv 2606.25092."""
    mass, summary = published("command-a-plus/atlas_mass.json", "command-a-plus/atlas_summary.json")
    counts, stated = import_counts(mass), json.loads(summary.read_text())
    assert counts.mass
    mean = usage(counts).mean(0)
    index = {name: i for i, name in enumerate(counts.names)}
    alike = jaccard(mean, 64)
    pairs = stated["cross_category_top64_jaccard"]
    assert len(pairs) == 55
    for pair, value in pairs.items():
        a, b = pair.split("|")
        assert round(float(alike[index[a], index[b]]), 3) == value, pair
    for name, by_n in stated["per_category_cov_mass"].items():
        for n, value in by_n.items():
            assert coverage(mean, int(n))[index[name]] == pytest.approx(value, rel=1e-9), (name, n)


def test_qwen3_experts_for_japanese() -> None:
    files = published(*(f"qwen3-30b-a3b-mgsm/mgsm_{name}.json" for name in ("ja", "en", "zh")))
    counts = import_counts(dict(zip(("ja", "en", "zh"), files, strict=True)), top_k=8)
    assert (len(counts.layers), counts.n_experts) == (48, 128)
    np.testing.assert_allclose(counts.share()[47, 7].round(3), [0.949, 0.004, 0.02], atol=0.02)
    assert usage_entropy(counts)[47, :2].round(2).tolist() == [4.64, 6.15]
    assert (46, 125, "ja") in {(e.layer, e.expert, e.label) for e in exclusive_experts(counts)}
    assert counts.provenance["layer_sums_off_by"] < 0.001


def test_the_page_of_published_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its script turns a pickle into a table of token types, and its commands run."""
    page = (Path(__file__).parents[1] / "docs" / "howto" / "published-counts.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    text = "先生がお越しになります。\n私が資料をお持ちします。\n"
    (tmp_path / "corpus.txt").write_text(text, "utf-8")
    ids = moelens.load("demo").tokenizer(text)["input_ids"]
    table: dict[int, dict[int, Counter[int]]] = {layer: {0: Counter(), 1: Counter()} for layer in range(2)}
    for layer in table:
        for i in ids:
            table[layer][i % 2][i] += 1
    (tmp_path / "table.pkl").write_bytes(pickle.dumps(table))
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    subprocess.run([sys.executable, "-c", script, "table.pkl", "types.parquet"], check=True)
    assert Counts.of_types("types.parquet", top_k=1).n_tokens == len(ids)
    for g, name in enumerate(("ja", "en")):
        (tmp_path / f"mgsm_{name}.json").write_text(json.dumps(nested(group=g)))
    commands = re.findall(r"^\$ moelens (.*)$", page, re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        assert main(shlex.split(command.replace("TOKENIZER", str(DEMO)).replace("--top-k 8", "--top-k 2"))) == 0, (
            command
        )
    assert "bounds" in (tmp_path / "report.html").read_text("utf-8")
