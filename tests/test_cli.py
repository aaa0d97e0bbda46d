"""The command line: what it prints, and how a mistake looks."""

from __future__ import annotations

import os
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
    (
        ("effect", "demo", "--layer", "3"),
        "moelens: expected the experts in --experts, or a result of analyze in --from, got neither; give one of them",
    ),
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


# What is wrong in each of them can be seen without the model; `RUN` stands for a finished recording.
WITHOUT_THE_MODEL = [
    ("record demo C --context 0", "expected context to be None or at least 1, got 0"),
    ("record demo C --dtype float17", "argument --dtype: invalid choice: 'float17'"),
    ("record demo C --store-dtype float17", "unknown store_dtype 'float17'"),
    ("record demo C --capture nonsense", "unknown capture 'nonsense'"),
    ("record demo C --layers 99", "unknown layer '99'"),
    ("record demo C --layers 0", "expected layers with experts, got dense layer 0"),
    ("record demo C --experts 999 --capture neurons", "unknown expert '999'"),
    ("record demo C --experts 1", "expected a capture that experts=[1] applies to"),
    ("record demo C --out /proc/x", "argument --out: cannot write to '/proc/x'"),
    ("record demo C --out EMPTY", "argument --out: expected a path, got an empty text"),
    ("record demo C --out C", "which exists and is not a recording"),
    ("record demo C --out nope://x", "cannot open 'nope://x'"),
    ("record demo C --hooks nowhere.py", "expected the path of a recipe, got 'nowhere.py'"),
    ("record demo C --hooks C", "which is no Python file; give one"),
    ("record demo C --set a=1", "expected --hooks FILE with --set"),
    ("record demo J --text-column words", "words"),
    ("record demo BAD", "bad.jsonl line 2: expected 'text' to be a string or a list of messages, got int"),
    ("record demo DEEP", "deep.jsonl line 2"),
    ("record nowhere C", "unknown model 'nowhere'; allowed: demo"),
    ("record demo LONG", "no such file: '先生がいらっしゃる。"),
    ("steer LONG --experts 3:1", "unknown model '先生がいらっしゃる。"),
    ("prefer demo --pairs nonsense", "unknown kind of contrasts or pairs 'nonsense'"),
    ("prefer demo --hooks nowhere.py", "expected the path of a recipe"),
    ("causes demo --top 0", "argument --top: expected an integer of at least 1, got '0'; give another number"),
    ("causes demo --draws 5", "expected 20 or more control draws"),
    ("causes demo --seed -1", "argument --seed: expected an integer of at least 0, got '-1'; give another number"),
    ("effect demo --layer 99 --experts 1", "unknown layer '99'"),
    ("effect demo --layer 3 --experts 999", "expected experts from 0 to 31, got 999"),
    ("effect demo --layer 3 --experts 1 --draws 5", "expected 20 or more control draws"),
    ("effect demo --layer 3 --experts 1 --operation scale --value nan", "expected a finite value for scale, got nan"),
    ("steer demo --experts 99:1", "unknown layer '99'"),
    ("steer demo --experts 3:999", "expected experts from 0 to 31, got 999"),
    ("steer demo --experts 3:1 --new-tokens 0", "expected new_tokens to be at least 1, got 0"),
    ("steer demo --experts 3:1 --strengths inf", "expected finite strengths, got [inf]; give numbers such as 0.2"),
    ("steer demo --experts 3:1 --controls 99", "expected 0 to 20 control sets, got 99"),
    ("report RUN --permutations 0 --effects", "expected 19 or more permutations"),
    ("explore RUN --model demo --permutations 0", "expected 19 or more permutations"),
    ("explore RUN --baseline --family nonsense", "unknown label family 'nonsense'"),
    ("explore RUN --baseline --given nonsense", "unknown control 'nonsense'"),
    ("explore RUN --baseline --label nonsense", "unknown label 'nonsense'"),
    ("explore RUN --out ..", "expected a file to write, got the folder '..'"),
    ("explore RUN --documents none", "argument --documents: expected a number of at least 1, or all, got 'none'"),
    ("analyze RUN --baseline --family nonsense", "unknown label family 'nonsense'"),
    ("analyze RUN --baseline --given nonsense", "unknown control 'nonsense'"),
    ("analyze RUN --baseline --label nonsense", "unknown label 'nonsense'"),
    ("analyze RUN --baseline --permutations 5", "expected 19 or more permutations"),
    ("analyze RUN --min-tokens 0", "expected min_tokens (--min-tokens) to be at least 1, got 0; give such a number"),
    (
        "analyze RUN --max-share nan",
        "expected max_share (--max-share) above 0 and at most 1, got nan; give such a share",
    ),
    ("compare RUN RUN --permutations 3", "expected 19 or more permutations"),
    ("explore RUN --model demo --out /proc/x", "argument --out: cannot write to '/proc/x'"),
]


@pytest.mark.parametrize("line, text", WITHOUT_THE_MODEL, ids=lambda value: value if " " in value else "")
def test_what_can_be_refused_without_the_model_is(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    demo_recording: moelens.Recording,
    line: str,
    text: str,
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("moelens.models.hooked.HookedMoE.__init__", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.txt").write_text("先生がいらっしゃいました。", "utf-8")
    (tmp_path / "j.jsonl").write_text('{"text": "はい"}', "utf-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "はい"}\n{"text": 5}', "utf-8")
    (tmp_path / "deep.jsonl").write_text('{"text": "はい"}\n{"text": "はい", "n": "\\ud800"}', "utf-8")
    words = {
        "C": "c.txt",
        "J": "j.jsonl",
        "BAD": "bad.jsonl",
        "DEEP": "deep.jsonl",
        "RUN": str(demo_recording.path),
        "EMPTY": "",
        "LONG": "先生がいらっしゃる。" * 20,
    }
    argv = [words.get(word, word) for word in line.split()]
    status, _, err = run(capsys, *argv, *(["--out", "new"] if argv[0] == "record" and "--out" not in argv else []))
    assert status == 2
    assert text in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"c.txt", "j.jsonl", "bad.jsonl", "deep.jsonl"}


def test_a_model_of_which_only_a_revision_is_there_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, *, revision: str | None, **_: object) -> None:
        raise moelens.MoeLensError(f"{name} is loaded at {revision}")

    monkeypatch.setattr("moelens.models.loading.load", load)
    (tmp_path / "c.txt").write_text("はい", "utf-8")
    options = ["--revision", "abc", "--out", str(tmp_path / "new")]
    status, _, err = run(capsys, "record", "nowhere", str(tmp_path / "c.txt"), *options)
    assert (status, err) == (2, "moelens: nowhere is loaded at abc\n")


def test_standard_output_that_is_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, demo_recording: moelens.Recording
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("a device that is always full is needed")
    full = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(full, "w", closefd=False) as out:
        monkeypatch.setattr(sys, "stdout", out)
        status = main(["measure", str(demo_recording.path), "load"])
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full)  # where the rest goes
    assert status == 2
    assert capsys.readouterr().err.startswith("moelens: no space is left in 'standard output'")


@pytest.mark.parametrize(
    "line", ["record demo C --out BAD", "report RUN --out BAD", "explore RUN --out BAD", "verify BAD", "demo --out BAD"]
)
def test_paths_that_are_no_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, demo_recording: moelens.Recording, line: str
) -> None:
    (tmp_path / "c.txt").write_text("はい", "utf-8")
    words = {"C": str(tmp_path / "c.txt"), "RUN": str(demo_recording.path), "BAD": str(tmp_path / "x\udcff")}
    status, _, err = run(capsys, *[words.get(word, word) for word in line.split()])
    assert status == 2
    assert "expected a path in UTF-8, got" in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]
