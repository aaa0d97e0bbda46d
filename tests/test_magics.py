"""`%load_ext moelens` in a real IPython shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import moelens
from moelens.commands.table import COMMANDS

HOOKS = Path(__file__).parents[1] / "hooks"
TEXTS = ["先生がいらっしゃいました。", "私が参ります。", "明日は雨が降る。", "社長はお帰りになりました。"] * 6


@pytest.fixture(scope="module")
def shell() -> Any:
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "moelens")
    return shell


@pytest.fixture(scope="module")
def run(shell: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A labelled recording, made by magics."""
    out = tmp_path_factory.mktemp("magics") / "run"
    shell.run_line_magic("moe", f"record demo --out {out} -o rec")
    shell.run_line_magic("moe", "label rec -o labels")
    return str(out)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_load_and_info(shell: Any) -> None:
    model = shell.run_line_magic("moe", "load demo -o model")
    assert shell.user_ns["model"] is model
    info = shell.run_line_magic("moe", "info")
    assert info.shape.n_experts == 32
    assert "hook points" in repr(info)
    assert shell.run_line_magic("moe", "info model").name == "demo"
    assert shell.run_line_magic("moe", "info deepseek_v3").shape.n_experts == 256


@pytest.mark.parametrize("text", ["先生がいらっしゃいました。", "値段は{x}円と$yです。"])
def test_trace_of_a_cell_leaves_the_text_alone(shell: Any, text: str) -> None:
    shell.user_ns["x"] = shell.user_ns["y"] = "wrong"
    for trace in (shell.run_cell_magic("moe", "trace", text + "\n"), shell.run_line_magic("moe", f"trace {text}")):
        assert "".join(trace.tokens) == text
        assert trace.experts.shape == (len(trace.tokens), 4, 4)


def test_record_label_analyze(shell: Any, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.user_ns["rec"].n_documents > 200
    result = shell.run_line_magic("moe", "analyze rec --family honorifics --permutations 50 --given none")
    again = shell.run_line_magic("moe", f"analyze {run} --permutations 50")
    assert result.given == ()
    assert again.given == ("token",)
    assert capsys.readouterr().out.count("analyze: ") == 2, "long work ends in a printed summary"


def test_record_a_cell(shell: Any, here: Path) -> None:
    made = shell.run_cell_magic("moe", "record --out one --capture routes margin", "はい。\n\n先生が来られた。\n")
    assert made.documents()["text"].to_pylist() == ["はい。", "先生が来られた。"]
    assert made.captures == ("routes", "margin")


def test_compare(shell: Any, run: str) -> None:
    assert shell.run_line_magic("moe", f"compare rec {run}").overlap[0, 0] == 1


def test_pairs_of_a_cell(shell: Any) -> None:
    found = shell.run_cell_magic(
        "moe", "prefer", "明日は学校へ | 行きます。 | 行きるです。\n｜雨が降る。｜雨降るが。\n"
    )
    assert [p.context for p in found.items] == ["明日は学校へ", ""]
    assert found.kinds[0].accuracy == 1
    assert len(shell.run_line_magic("moe", "prefer --pairs style-agreement").items) > 20


@pytest.mark.slow
def test_effect_and_remove(shell: Any) -> None:
    removed = shell.run_line_magic("moe", "effect --layer 3 --experts 5,9 --draws 0 -o removed")
    assert removed.interventions == ("remove E5, E9 in layer 3",)
    assert shell.user_ns["removed"] is removed
    found = shell.run_line_magic("moe", "causes --pairs style-agreement --top 1 --draws 20")
    assert len(found.attribution.top) == 1


@pytest.mark.slow
def test_probe(shell: Any, run: str, here: Path) -> None:
    assert shell.run_line_magic("moe", "probe rec 尊敬語 --features experts") is not None
    script = 'out = "probes"\nrecording = "{}"\n[[probe]]\nname = "keigo"\nfamily = "尊敬語"\n'
    (here / "probes.toml").write_text(script.format(run), "utf-8")
    assert len(shell.run_line_magic("moe", "probe probes.toml")) == 1
    recipe = f"--hooks {HOOKS / 'remove_experts.py'} --set layer=3 --set experts=[5]"
    for given, message in (
        (
            "probes.toml",
            "has probes of a finished recording, which the recipe '.*' cannot change; give model and corpus",
        ),
        (
            "rec 尊敬語",
            "expected a recording without --hooks, got --hooks '.*', which cannot change a finished recording",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            shell.run_line_magic("moe", f"probe {given} {recipe}")


def test_export_and_report(shell: Any, run: str, here: Path) -> None:
    assert (shell.run_line_magic("moe", "export rec --to npz --out out") / "README.md").exists()
    assert shell.run_line_magic("moe", "report rec --out r.html").stat().st_size > 10_000


def test_hooks_of_a_recipe(shell: Any) -> None:
    file = HOOKS / "remove_experts.py"
    hooks = shell.run_line_magic("moe", f"hooks {file} --set layer=3 --set experts=[5]")
    assert all(name.startswith("blocks.3.") for name, _ in hooks)
    line = f"prefer --pairs respectful-humble --hooks {file} --set layer=3 --set experts=[5]"
    edited = shell.run_line_magic("moe", line)
    assert (edited.margins != shell.run_line_magic("moe", "prefer --pairs respectful-humble").margins).any()


def test_defaults(shell: Any) -> None:
    shell.run_line_magic("config", "MoeMagics.pairs = 'humble-object'")
    assert {p.kind for p in shell.run_line_magic("moe", "prefer").items} == {"humble-object"}
    shell.run_line_magic("config", "MoeMagics.pairs = 'respectful-humble'")


def test_help(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run_line_magic("moe", "--help") is None
    overview = capsys.readouterr().out
    for command in (name for name, c in COMMANDS.items() if "magics" in c.interfaces):
        assert f"moe {command}" in overview
        assert shell.run_line_magic("moe", f"{command} --help") is None
        assert f"%moe {command}" in capsys.readouterr().out
    assert "`%moe --help` lists the commands" in shell.object_inspect("%moe")["docstring"]
    assert shell.run_line_magic("moe", "help compare") is None
    assert capsys.readouterr().out.startswith("usage: %moe compare")


COMPLETIONS = [
    ("%moe an", ["analyze"]),
    ("%%moe pre", ["prefer"]),
    ("%%moe ", ["prefer", "record", "steer", "trace"]),
    ("%moe analyze rec --given tok", ["token"]),
    ("%moe record --ca", ["--capture"]),
    ("%moe record --capture ne", ["neurons"]),
    ("%moe load de", ["demo"]),
    ("%moe info mod", ["model"]),
    ("%moe label re", ["rec"]),
    ("%%moe trace mo", ["model"]),
    ("%moe export rec --to n", ["npz"]),
    ("%moe effect --pairs respectful-", ["respectful-humble", "respectful-humble-object"]),
    ("%moe analyze rec --family honorifics", ["honorifics"]),
    ("%moe report runs/", ["runs/one"]),
]


@pytest.mark.parametrize("line, expected", COMPLETIONS)
def test_completion(shell: Any, run: str, here: Path, line: str, expected: list[str]) -> None:
    shell.user_ns["model"] = moelens.load("demo")
    (here / "runs" / "one").mkdir(parents=True)
    (here / "runs" / "one" / "manifest.json").write_text("{}")
    assert shell.complete(None, line, len(line))[1] == expected


MISTAKES = [
    ("trase", "text", "unknown %moe command 'trase'; did you mean 'trace'"),
    ("--version", None, "unknown %moe command '--version'"),
    ("trace", " ", "expected a text to trace, got none; write it after the command, or below %%moe trace in the same"),
    ("info", "text", "%%moe info takes no cell; write %moe info on one line"),
    ("record", "\n", "expected a corpus to record, got none; give one, or write one document per line in the cell"),
    ("prefer", "行く | 行きます", "expected context | better | worse in line 1, got '行く | 行きます'; separate"),
    ("load missing/model", None, "unknown model 'missing/model'; allowed: demo"),
    ("label nowhere", None, "expected a variable or the folder of a recording, got 'nowhere', which is neither"),
    (
        "effect --layer 3 --experts five",
        None,
        "expected --experts with ids such as 5,9, the word shared or a file of experts, got 'five'",
    ),
    ("effect --layer three", None, "%moe effect: argument --layer: invalid int value: 'three'; see %moe effect --help"),
    ("trace modle", "雨が降る。", "unknown model 'modle'"),
    ("record modle", "雨が降る。", "unknown model 'modle'"),
    ("info demo -o 2x", None, "-o '2x' is not a valid variable name; give one such as -o result"),
    ("label 'open", None, 'No closing quotation in "label \'open"; close the quotation mark'),
    ("trace --modle demo 雨", None, "unknown option '--modle'; did you mean '--model'? (write -- before a text that"),
    ("trace 雨が降る。 -o 2x", None, "-o '2x' is not a valid variable name; give one such as -o result"),
]

AS_TYPED = [
    '先生は"敬語"を使う。',
    "\\100",
    "-5度まで冷える。",
    "C:\\runs\\先生 'a' don't  # 雨",
    "　字下げ",
    "a\u2028b",
    "- 箇条書き",
]


@pytest.mark.tried(
    "Magics", "`%moe trace` of a text with quotes, backslashes, dashes", "the rest of the line is the text, as typed"
)
@pytest.mark.parametrize("text", AS_TYPED)
def test_the_rest_of_the_line_is_the_text(shell: Any, text: str) -> None:
    for line in (
        f"trace {text}",
        f"trace --model demo {text} -o found",
        f"trace -o found --model=demo {text}",
        f"trace {text} --model demo",
    ):
        assert shell.run_line_magic("moe", line).text == text
    assert shell.user_ns["found"].text == text
    assert shell.run_line_magic("moe", f"trace -- {text} -o x").text == f"{text} -o x"
    assert shell.run_cell_magic("moe", "trace demo", f"{text}\n").text == text


def test_cells_keep_what_is_no_line_end(shell: Any, here: Path) -> None:
    made = shell.run_cell_magic("moe", "record demo --out one", "一\u2028二\x85三\r\n　四\n")
    assert made.documents()["text"].to_pylist() == ["一\u2028二\x85三", "　四"]


@pytest.mark.parametrize("line, cell, message", MISTAKES)
def test_a_mistake_is_one_line(shell: Any, line: str, cell: str | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        shell.run_cell_magic("moe", line, cell) if cell else shell.run_line_magic("moe", line)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_fails_the_cell(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert not shell.run_cell("%moe label nowhere").success
    assert (
        capsys.readouterr()
        .out.strip()
        .startswith("MagicError: expected a variable or the folder of a recording, got 'nowhere'")
    )


def test_an_interrupted_recording_goes_on(shell: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed stays, the model has no hooks left, and the same line finishes it."""
    from moelens.recording import recorder

    monkeypatch.setattr(recorder, "SHARD_CHARACTERS", 40)
    model = shell.user_ns["model"] = moelens.load("demo")
    shell.user_ns["texts"] = TEXTS
    passes = []

    def interrupt(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 5:
            raise KeyboardInterrupt

    handle = model.hf_model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        shell.run_line_magic("moe", "record model texts --out cut")
    handle.remove()
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    with pytest.raises(moelens.MoeLensError, match="is an unfinished recording; repeat the command"):
        moelens.Recording.open("cut")
    made = shell.run_line_magic("moe", "record model texts --out cut")
    whole = moelens.record(model, TEXTS, "whole", progress=False)
    assert (made.indices() == whole.indices()).all()
    assert len(passes) == 5, "the hook is gone"


def test_trace_equals_the_cache() -> None:
    model = moelens.load("demo")
    trace = moelens.trace(model, "お客様がお見えになりました。")
    _, cache = model.run_with_cache("お客様がお見えになりました。")
    for at, layer in enumerate(trace.layers):
        assert (trace.experts[:, at] == cache[f"blocks.{layer}.mlp.hook_expert_indices"][0].numpy()).all()
    assert {label for _, _, label in trace.spans} == {"尊敬語", "丁寧語"}
    assert "<script" not in trace._repr_html_()
    assert trace.select([3]).experts.shape[1] == 1
    with pytest.raises(moelens.MoeLensError, match="unknown layer '0'; allowed: 1, 2, 3, 4"):
        trace.select([0])
    with pytest.raises(moelens.MoeLensError, match="expected a text of at most 512 tokens, got"):
        moelens.trace(model, "雨が降る。" * 400)
