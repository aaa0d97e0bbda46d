"""`%load_ext moelens` in a real IPython shell."""

from __future__ import annotations

from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import moelens


@pytest.fixture(scope="module")
def shell() -> Any:
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "moelens")
    return shell


def test_info(shell: Any) -> None:
    info = shell.run_line_magic("moe", "info demo")
    assert info.shape.n_experts == 32
    assert "hook points" in repr(info)


def test_trace_of_a_cell(shell: Any) -> None:
    trace = shell.run_cell_magic("moe", "trace", "先生がいらっしゃいました。\n")
    assert "".join(trace.tokens) == "先生がいらっしゃいました。"
    assert {label for _, _, label in trace.spans} == {"尊敬語", "丁寧語"}
    assert trace.experts.shape == (len(trace.tokens), 4, 4)
    html = trace._repr_html_()
    assert "いらっしゃ" in html
    assert "<script" not in html
    assert "尊敬語" in repr(trace)


def test_trace_equals_the_cache() -> None:
    model = moelens.load("demo")
    trace = moelens.trace(model, "お客様がお見えになりました。")
    _, cache = model.run_with_cache("お客様がお見えになりました。")
    for at, layer in enumerate(trace.layers):
        assert (trace.experts[:, at] == cache[f"blocks.{layer}.mlp.hook_expert_indices"][0].numpy()).all()
    assert trace.select([3]).experts.shape[1] == 1
    with pytest.raises(moelens.MoeLensError, match="unknown layer '0'; allowed: 1, 2, 3, 4"):
        trace.select([0])
    with pytest.raises(moelens.MoeLensError, match="tokens to trace; at most 512"):
        moelens.trace(model, "雨が降る。" * 400)


def test_a_model_in_a_variable(shell: Any) -> None:
    shell.user_ns["mine"] = moelens.load("demo")
    assert shell.run_line_magic("moe", "info mine").name == "demo"


MISTAKES = [
    ("trase", "text", "unknown %moe command 'trase'; did you mean 'trace'"),
    ("trace", " ", "%%moe trace has no text; write it in the lines below"),
    ("info a b", None, r"%moe info takes one model, not \['a', 'b'\]"),
]


@pytest.mark.parametrize("line, cell, text", MISTAKES)
def test_mistakes_are_one_line(shell: Any, line: str, cell: str | None, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        shell.run_line_magic("moe", line) if cell is None else shell.run_cell_magic("moe", line, cell)


def test_help(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("moe", "--help")
    assert "%%moe trace [MODEL]" in capsys.readouterr().out
