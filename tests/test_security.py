"""What SECURITY.md promises: no pickle, no network, no code that was not named, nothing outside a folder."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.damage import write_manifest

import moelens
from moelens.analysis.type_labels import TypeLabels
from moelens.commands.command_line import main
from moelens.errors import RecordingError
from moelens.models.loading import DEMO, load_tokenizer
from moelens.recording import Recording
from moelens.recording.storage import Folder

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for room in ("moelens", "hooks", "benchmarks") for p in (ROOT / room).rglob("*.py"))

# Before the demo: every socket that is not within this machine is refused, and said.
OFFLINE = """
import socket, sys
def refuse(self, address):
    raise AssertionError(f"a connection to {address}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *args, **options: refuse(None, args)
from moelens.commands.command_line import main
sys.exit(main(sys.argv[1:]))
"""


PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}


def unpickling(source: str) -> list[str]:
    """The statements of a program that import or call what unpickles, without those that read tensors only."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = names if isinstance(node, ast.Import) else [node.module or "", *names]
            bad = bool(PICKLES & {name.partition(".")[0] for name in names})
            bad |= isinstance(node, ast.ImportFrom) and node.module == "torch" and bool({"load", "save"} & {*names})
        elif isinstance(node, ast.Call):
            options = {k.arg: isinstance(k.value, ast.Constant) and k.value.value for k in node.keywords}
            called = ast.unparse(node.func)
            bad = called == "torch.save" or (called == "torch.load" and options.get("weights_only") is not True)
            bad |= called.endswith("read_pickle")
            bad |= any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
        else:
            continue
        if bad:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle(path: Path) -> None:
    assert unpickling(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source, unpickles",
    [
        ("import os, pickle", True),
        ("from pickle import loads", True),
        ("from torch import load", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("torch.save(x, path)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("print('import pickle')", False),  # a text for the reader
    ],
)
def test_what_counts_as_unpickling(source: str, unpickles: bool) -> None:
    assert bool(unpickling(source)) == unpickles


@pytest.mark.slow
def test_the_demo_needs_no_network(tmp_path: Path) -> None:
    """With every connection refused, and no cache of a hub to fall back on."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, "demo", "--out", str(tmp_path / "demo")],
        env=environment | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "report.html").exists()


def test_import_opens_no_socket_and_switches_telemetry_off() -> None:
    code = (
        "import socket, os; socket.socket.connect = socket.getaddrinfo = None; import moelens; "
        "moelens.load; moelens.record; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("name", ["../secret.parquet", "/etc/passwd", "tokens/../../secret", r"..\secret", "C:/secret"])
def test_paths_of_a_manifest_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    made = moelens.record(moelens.load("demo"), ["はい。"], tmp_path / "run", progress=False)
    manifest = json.loads((made.path / "manifest.json").read_text("utf-8"))
    manifest["shards"][0]["path"] = name
    write_manifest(made.path, manifest)
    with pytest.raises(RecordingError, match=re.escape(f"file {name!r} is not within '{made.path}'; do not use a")):
        Recording.open(made.path).tokens()
    assert main(["verify", str(made.path)]) == 2


def test_names_within_a_folder() -> None:
    folder = Folder.at("memory://security")
    assert folder.full_path("tokens/a..b.parquet").endswith("security/tokens/a..b.parquet")


REMOTE = """
import pathlib
pathlib.Path({ran!r}).touch()
from transformers import LlamaConfig, PreTrainedTokenizer
class Config(LlamaConfig):
    model_type = "x"
Model = Tokenizer = Processor = Config
"""
CALLS: dict[str, Callable[[str, Path], object]] = {
    "load": lambda model, out: moelens.load(model),
    "load, trust undecided": lambda model, out: moelens.load(model, trust_remote_code=None),  # type: ignore[arg-type]
    "tokenizer of load": lambda model, out: moelens.load("demo", tokenizer=model),
    "load_tokenizer": lambda model, out: load_tokenizer(model),
    "info": lambda model, out: moelens.info(model),
    "moelens info": lambda model, out: main(["info", model]),
    "moelens plan": lambda model, out: main(["plan", model]),
    "moelens record": lambda model, out: main(["record", model, "demo", "--out", str(out)]),
    "token types": lambda model, out: TypeLabels.of_text("はい。", model, 9),
}


def with_code_of_its_own(folder: Path, **options: Any) -> Path:
    """Make a checkpoint whose configuration names code, and return the file that the code would write."""
    ran = folder / "ran"
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoProcessor": "evil.Processor"}
    code = {"auto_map": names | {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (folder / "config.json").write_text(json.dumps({"model_type": "x"} | code | options), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Tokenizer"} | code), "utf-8")
    (folder / "evil.py").write_text(REMOTE.format(ran=str(ran)), "utf-8")
    return ran


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("answers", ["y\n" * 20, None], ids=["y is waiting", "input is closed"])
def test_code_of_a_model_runs_only_when_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, answers: str | None
) -> None:
    stdin = io.StringIO(answers or "")
    if answers is None:
        stdin.close()
    monkeypatch.setattr("sys.stdin", stdin)
    ran = with_code_of_its_own(tmp_path)
    with contextlib.suppress(moelens.MoeLensError):
        assert CALLS[name](str(tmp_path), tmp_path / "run") == 2
    assert not ran.exists()
    assert answers is None or stdin.tell() == 0  # nobody asked
    assert not (tmp_path / "run").exists()


HOSTILE: dict[str, dict[str, Any]] = {
    "the configuration of a known type": {"config.json": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}},
    "the tokenizer": {
        "tokenizer_config.json": {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    },
    "a processor": {"processor_config.json": {"processor_class": "P", "auto_map": {"AutoProcessor": "evil.P"}}},
    "an adapter": {
        "adapter_config.json": {
            "peft_type": "LORA",
            "base_model_name_or_path": ".",
            "auto_mapping": {"base_model_class": "Model", "parent_library": "evil"},
            "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        }
    },
    "the generation": {"generation_config.json": {"custom_generate": ".", "trust_remote_code": True}},
    "trust in the configuration": {"config.json": {"trust_remote_code": True, "auto_map": {"AutoConfig": "evil.C"}}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_beside_a_whole_model_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The bundled model with files that name code."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    for place in ("evil.py", "custom_generate/generate.py", "__init__.py"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(REMOTE.format(ran=str(tmp_path / "ran")), "utf-8")
    for file, change in HOSTILE[name].items():
        content = json.loads((folder / file).read_text("utf-8")) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps(content | change), "utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    with contextlib.suppress(moelens.MoeLensError):
        moelens.load(str(folder))
    with contextlib.suppress(moelens.MoeLensError):
        load_tokenizer(str(folder))
    assert main(["plan", str(folder)]) in (0, 2)
    assert sys.stdin.tell() == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_experts_implementation"])
def test_kernels_of_a_configuration_are_not_downloaded(tmp_path: Path, key: str) -> None:
    config = json.loads((DEMO / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {key: "owner/kernel"}), "utf-8")
    for call in (moelens.load, moelens.info, moelens.plan):
        with pytest.raises(
            moelens.MoeLensError, match=rf"^expected a configuration without code to download in .*, got {key} 'owner/k"
        ):
            call(str(tmp_path))


def test_a_tokenizer_with_code_says_how_to_trust_it(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    with_code_of_its_own(folder)
    (folder / "config.json").write_text((DEMO / "config.json").read_text("utf-8"), "utf-8")
    with pytest.raises(
        moelens.MoeLensError, match=r"expected a tokenizer without code of its own, got that of .*; if you"
    ):
        moelens.load(str(folder))


def test_trusted_code_runs(tmp_path: Path) -> None:
    ran = with_code_of_its_own(tmp_path)
    with pytest.raises(moelens.MoeLensError):
        moelens.load(str(tmp_path), trust_remote_code=True)
    assert ran.exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_call_says_whether_code_is_trusted(path: Path) -> None:
    """transformers asks on standard input where it is not said."""
    for call in (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("from_pretrained", "from_config", "pipeline"):
            said = [keyword.value for keyword in call.keywords if keyword.arg == "trust_remote_code"]
            assert said, f"{path}:{call.lineno} does not pass trust_remote_code"
            assert not isinstance(said[0], ast.Constant) or said[0].value is False, f"{path}:{call.lineno}"
