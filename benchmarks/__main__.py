"""Run all benchmarks one after another; print one table and write one JSON file.

    python -m benchmarks --data FOLDER --out benchmarks/results/all.json

Each part runs in its own process. You can also run it alone, for example with `python -m benchmarks.capture --json`. If
a part cannot run on this machine, the result contains the reason. FOLDER holds the data that are not part of moelens
(`INPUTS`); without it, the parts use what they can make themselves. `causal` takes an hour and more, and runs only if
you name it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.machine import machine

PARTS = ("start", "capture", "gpu", "recording", "analysis", "honorifics", "contrasts", "causal")
INPUTS = {
    "recording": {"--routing": "routing/esft_intent.npz"},
    "analysis": {"--routing": "routing/esft_intent.npz"},
    "honorifics": {"": "honorifics"},
    "contrasts": {"--works": "aozora", "--dialogues": "asdc"},
}
"""The arguments of each part that name data, with the place of these data in the folder."""
SHELL = "from IPython.core.interactiveshell import InteractiveShell as S; shell = S.instance()"
STARTS = {
    "import moelens": ("", "import moelens"),
    "%load_ext moelens": (SHELL, "shell.run_line_magic('load_ext', 'moelens')"),
    "moelens info demo": (
        "import subprocess, sys",
        "subprocess.run([sys.executable, '-m', 'moelens', 'info', 'demo'])",
    ),
}


def start_times(rounds: int = 7) -> dict[str, Any]:
    """Return the median time in seconds of each statement of `STARTS` in a fresh interpreter."""
    found = {}
    for name, (before, statement) in STARTS.items():
        code = f"{before}\nimport time; began = time.perf_counter()\n{statement}\nprint(time.perf_counter() - began)"
        taken = [float(stdout_of([sys.executable, "-c", code]).split()[-1]) for _ in range(rounds)]
        found[f"{name}, s"] = round(statistics.median(taken), 3)
    return found


def stdout_of(command: list[str]) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def data_arguments(part: str, data: Path | None) -> list[str]:
    """Return the arguments that give a part its data, as far as the folder has them."""
    found = {option: data / place for option, place in INPUTS.get(part, {}).items()} if data else {}
    return [word for option, path in found.items() if path.exists() for word in (option, str(path)) if word]


def run_part(part: str, data: Path | None) -> Any:
    """Return the result of a part, or the reason why it did not run."""
    if part == "start":
        return start_times()
    command = [sys.executable, "-m", f"benchmarks.{part}", "--json", *data_arguments(part, data)]
    try:
        return json.loads(stdout_of(command))
    except subprocess.CalledProcessError as error:
        return {"did not run": (error.stderr.strip().splitlines() or ["no reason given"])[-1]}


def figures(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Return every figure with its path of keys; a list of cases is replaced by their number."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in figures(item, f"{name} / {key}" if name else str(key))]
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return [(name, f"{len(value)} cases")]
    if isinstance(value, list) and len({type(item) for item in value}) > 1:
        return [(name, f"{value[0]} cases")]  # the list begins with the number of cases
    if isinstance(value, list):
        return [(name, ", ".join(map(str, value)))]
    return [(name, f"{value:.4g}" if isinstance(value, float) else str(value))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"parts to run: {', '.join(PARTS)} (default: all except causal)")
    parser.add_argument("--data", type=Path, help="folder with routing/, honorifics/, aozora/ and asdc/")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    result: dict[str, Any] = {"machine": machine()}
    for part in tqdm(args.parts or PARTS[:-1], desc="benchmarks"):
        result[part] = run_part(part, args.data)
    for name, value in figures(result):
        print(f"{name:<100} {value}")
    if args.out:
        args.out.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
