"""The command line: what it prints, and how a mistake looks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import moelens
from moelens.commands.command_line import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        status = main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_version_by_both_names() -> None:
    done = subprocess.run([sys.executable, "-m", "moelens", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"moelens {moelens.__version__}\n"


def test_info_of_an_architecture_at_full_size(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "info", "deepseek_v3")
    assert status == 0
    for line in (
        "layers        61, of which 58 have experts (3-60)",
        "experts       256 in each of them, top-8, from 4 of 8 groups, and 1 shared",
        "score         sigmoid",
        "blocks.{l}.mlp.hook_router_selection          l = 3-60",
        "not run: they need the weights",
    ):
        assert line in out


def test_info_of_the_demo_shows_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "info", "demo")
    assert status == 0
    assert "ok     replay: sigmoid + bias, top-4 in 2 of 4 groups, normalised" in out
    assert "ok     sums: sum of weight x output equals the experts' output" in out


def test_architectures_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "info", "--architectures")
    names, _, formats = out.partition("\n\n")
    rows = dict(line.split(maxsplit=1) for line in names.splitlines())
    assert rows["mixtral"] == "experts interface"
    assert rows["jetmoe"] == "adapter"
    assert rows["nllb_moe"].startswith("no: ")
    assert "format GGUF; needs gguf" in formats


def test_record_label_analyze(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    texts = [
        "社長がいらっしゃいました。",
        "明日、資料をお送りいたします。",
        "雨が降っていた。",
        "どうぞ召し上がってください。",
    ]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(texts * 8), encoding="utf-8")
    out = str(tmp_path / "run")
    assert run(capsys, "record", "demo", str(corpus), "--out", out)[0] == 0
    assert run(capsys, "label", out)[0] == 0
    file = tmp_path / "result.json"
    status, printed, _ = run(
        capsys, "analyze", out, "--given", "none", "--permutations", "50", "--out", str(file), "--top", "3"
    )
    assert status == 0
    assert "specialists of honorifics" in printed
    assert printed.endswith("*: one is below .05\n")
    assert moelens.Specialization.open(file).names == moelens.japanese.CLASSES


MISTAKES = [
    (("inf",), "moelens: argument COMMAND: invalid choice: 'inf'"),
    (("info",), "moelens: expected a model or --architectures, got neither; give a folder, a hub name"),
    (("info", "nllb_moe"), "moelens: nllb_moe cannot be hooked: it is an encoder-decoder translation model"),
    (("record", "demo", "none.txt", "--out", "x"), "moelens: no such file: 'none.txt'"),
    (("label", "nowhere"), "moelens: 'nowhere' is not a recording"),
    (
        ("record", "demo", "demo", "--tensor-parallel", "--expert-parallel"),
        "moelens: expected --tensor-parallel or --expert-parallel, got both; give one of them",
    ),
    (("record", "demo"), "moelens: expected a MODEL, got none; give demo, a folder or a hub name"),
    (("effect", "demo", "--layer", "3"), "moelens effect: the following arguments are required: --experts"),
]


@pytest.mark.parametrize("argv, text", MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_a_mistake_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], text: str
) -> None:
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert err.startswith(text)
    assert err.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(moelens.MoeLensError):
        main(["--debug", "label", "nowhere"])
