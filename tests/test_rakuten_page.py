"""The commands of docs/rakuten-ai-3.md and notebook 7 are read out of them and run on the bundled model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from helpers.engine import Engine, serving, sglang_generate, vllm_completions

import moelens
from moelens.commands.command_line import main

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "rakuten-ai-3.md", ROOT / "notebooks" / "07_rakuten_ai_3.ipynb")
STAND_INS = {
    "Rakuten/RakutenAI-3.0": "demo",
    "deepseek-ai/DeepSeek-V3": "demo",
    "--shape 61 8 --layers $(seq 3 60) --experts 256": "--shape 5 4 --layers $(seq 1 4) --experts 32",
    "--top 5": "--top 1",
    "--layer 30": "--layer 3",
    "--nproc_per_node 8": "--nproc_per_node 2",
    "HOST": "127.0.0.1",
    "/shared/rakuten": "shared-rakuten",
    '"max_new_tokens": 65': '"max_new_tokens": 9',
}
"""What the bundled model has in place of the real one, and this machine in place of eight GPUs."""
ENGINES = {"sglang.launch_server", "vllm"}  # for which the bundled model answers

pytestmark = pytest.mark.slow


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The language and the content of each block of code in the text of a page or a notebook, with the stand-ins."""
    text = page.read_text("utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join(c.source for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "markdown")
    for real, stand_in in STAND_INS.items():
        text = text.replace(real, stand_in)
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    yield from (("", command) for command in re.findall(r"`(moelens [a-z]+ [^`]*)`", text))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the corpus, the prompts, and answers of both engines."""
    texts = [document.text for document in moelens.Corpus.of("demo")][:60]
    corpus = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "corpus.jsonl").write_text(corpus, "utf-8")
    (tmp_path / "prompts.txt").write_text("\n".join(text[:20] for text in texts[:30]), "utf-8")
    engine = Engine(moelens.load("demo"))
    generations = [engine.generate(text[:20], 9) for text in texts[:30]]
    vllm = [vllm_completions([g]) for g in generations]
    sglang = [{"request": {"text": g.prompt}, "response": sglang_generate(g)} for g in generations]
    for name, answers in (("vllm-answers", vllm), ("answers", sglang)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, answers)), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_processes(words: list[str]) -> None:
    """Run a command of torchrun, or one of accelerate for every machine that it names."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if words[0] == "torchrun":
        commands = [[sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]]]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", "--main_process_port", port]
        at = words.index("--machine_rank") + 1
        machines = range(int(words[words.index("--num_machines") + 1]))
        commands = [[*launch, *words[2:at], str(rank), *words[at + 1 :]] for rank in machines]
    running = [
        subprocess.Popen(c, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for c in commands
    ]
    for process in running:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


def run_line(line: str) -> str:
    """Run one command; returns its first words."""
    line = re.sub(r"\$\(seq (\d+) (\d+)\)", lambda m: " ".join(map(str, range(int(m[1]), int(m[2]) + 1))), line)
    words = shlex.split(line)
    if "record" in words:  # the page shows several ways to make one recording
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    if words[0] == "moelens":
        assert main(words[1:]) == 0, line
        return f"moelens {words[1]}"
    if words[0] in ("torchrun", "accelerate"):
        run_processes(words)
        return words[0]
    assert words[2 if words[0] == "python" else 0] in ENGINES, f"not run: {line}"
    return "engine"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_command_runs(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if page.suffix == ".md":
        (folder / "answers.jsonl").unlink()  # its own code writes them; in the notebook, a cell does
    ran = []
    with serving(Engine(moelens.load("demo"))) as address:
        for language, content in blocks(page):
            if language == "python":
                exec(content.replace("http://localhost:30000", address), {})
                continue
            for line in re.sub(r"\\\n\s*", "", content).strip().splitlines():
                ran.append(run_line(line))
    if page.suffix == ".md":
        assert ran.count("engine") == 2
        assert {"torchrun", "accelerate", "moelens plan", "moelens import", "moelens label", "moelens report"} < set(
            ran
        )
        served, stated = (moelens.Recording.open(f"rakuten-{name}") for name in ("served", "stated"))
        assert served.tokens() == stated.tokens()
        assert served.n_documents == 30
        assert "experts kept: " in capsys.readouterr().out
    else:
        assert ran == ["torchrun", "moelens label", "moelens analyze", "moelens import"]
