"""Measure how the time and the memory of every command grow with the size of the corpus.

    python -m benchmarks.growth --json
    python -m benchmarks.growth --documents 2000 20000 200000 --long 2000000 --folder growth

The corpora are sentences of the bundled corpus in an order drawn at random, one document each, and with `--long` one
document of so many characters. Every command runs in a process of its own. The result is the processor time in seconds
and the peak of resident memory in GB of each command, and the exponent of its growth between the smallest and the
largest number of documents: 1 is a straight line. The start of the interpreter is part of both. With `--folder`, the
corpora, the recordings and what was measured are kept there, and commands that were measured are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import moelens
from benchmarks.machine import machine

COMMANDS = {
    "record": "record demo {corpus} --out {run}",
    "verify": "verify {run}",
    "label": "label {run} --processes 1",
    "analyze": "analyze {run} --permutations 100",
    "measure": "measure {run} load",
    "compare": "compare {run} {run} --permutations 100",
    "export": "export {run} --to csv --out {run}-csv",
    "report": "report {run} --out {run}.html --permutations 100",
    "explore": "explore {run} --out {run}-explore.html --permutations 100",
}


def write_corpus(path: Path, documents: int, joined: int = 0) -> None:
    """Write sentences of the bundled corpus as documents, or as one document of `joined` characters."""
    texts = [document.text for document in moelens.Corpus.of("demo")]
    sentences = sorted({s for text in texts for s in re.findall(r"[^。！？\n]+[。！？]", text)})
    draw = random.Random(0)
    if not joined:
        path.write_text("".join(f"{draw.choice(sentences)}\n" for _ in range(documents)), encoding="utf-8")
        return
    text = "".join(draw.choice(sentences) for _ in range(joined // min(map(len, sentences)) + 1))[:joined]
    path.write_text(text + "\n", encoding="utf-8")


def run_command(words: list[str], timeout: float) -> dict[str, Any]:
    """Return the processor time and the peak memory of a command, or why there are none."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([sys.executable, "-m", "moelens", *words], stdout=subprocess.DEVNULL, stderr=errors)
        ended, deadline = (0, 0, None), time.monotonic() + timeout
        while not ended[0]:
            ended = os.wait4(process.pid, os.WNOHANG)
            if not ended[0] and time.monotonic() > deadline:
                process.kill()
                os.wait4(process.pid, 0)
                return {"did not end": f"within {timeout:.0f} s"}
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            return {"failed": (lines or ["no reason given"])[-1]}
    usage: Any = ended[2]
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": round(usage.ru_utime + usage.ru_stime, 2), "GB": round(usage.ru_maxrss * unit / 1e9, 3)}


def measure_corpus(
    folder: Path, documents: int, joined: int, commands: list[str], timeout: float
) -> dict[str, dict[str, Any]]:
    """Run all commands, one after the other, on a corpus."""
    corpus, run = folder / f"{documents}-{joined}.txt", folder / f"run-{documents}-{joined}"
    kept = folder / f"measured-{documents}-{joined}.json"
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    if not corpus.exists():
        write_corpus(corpus, documents, joined)
    for name in commands:
        if "seconds" in found.get(name, {}):
            continue
        found[name] = run_command(COMMANDS[name].format(corpus=corpus, run=run).split(), timeout)
        kept.write_text(json.dumps(found))
        print(f"{documents:,} documents, {name}: {found[name]}", file=sys.stderr)
    return {name: found[name] for name in commands}


def exponents(sizes: dict[int, dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return the exponent of the growth of each figure between the smallest and the largest number of documents."""
    few, many = min(sizes), max(sizes)
    found: dict[str, dict[str, float]] = {}
    for name in sizes[few]:
        a, b = sizes[few][name], sizes[many][name]
        if few < many and "seconds" in a and "seconds" in b:
            found[name] = {unit: round(math.log(b[unit] / a[unit]) / math.log(many / few), 2) for unit in a}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--documents", type=int, nargs="+", default=[2000, 20000], help="sizes of the corpora")
    parser.add_argument("--long", type=int, default=0, metavar="N", help="also one document of N characters")
    parser.add_argument(
        "--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="commands to run; record comes first"
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds after which a command is ended")
    parser.add_argument("--folder", type=Path, help="folder to keep everything in")
    args = parser.parse_args()
    commands = ["record", *(name for name in args.commands if name != "record")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {n: measure_corpus(folder, n, 0, commands, args.timeout) for n in sorted(args.documents)}
        long = measure_corpus(folder, 1, args.long, commands, args.timeout) if args.long else None
    result: dict[str, Any] = {"machine": machine(), "documents": sizes, "exponent": exponents(sizes)}
    if long:
        result[f"one document of {args.long:,} characters"] = long
    print(json.dumps(result, indent=1) if args.json else table(result))


def table(result: dict[str, Any]) -> str:
    """Format the result as text."""
    lines = [result["machine"]]
    for size, commands in result["documents"].items():
        lines += [f"{size:>10,} documents  {name:<8} {figures}" for name, figures in commands.items()]
    return "\n".join([*lines, *(f"exponent {name:<8} {found}" for name, found in result["exponent"].items())])


if __name__ == "__main__":
    main()
