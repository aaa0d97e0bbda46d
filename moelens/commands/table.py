"""The commands: for each its name, arguments, help and example, and the one public function that it calls.

The command line (`moelens COMMAND`) and the magics (`%moe COMMAND`) are both built from `COMMANDS`, and differ only in
how they find a model or a recording by its name; see `Session`.
"""

from __future__ import annotations

import os
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moelens.commands import actions
from moelens.commands.session import DEFAULTS, Session

BOTH = ("command line", "magics")


@dataclass(frozen=True)
class Argument:
    """An argument of a command.

    Attributes:
        names: a positional's name, or the flags of an option.
        help: one phrase.
        options: further arguments of `ArgumentParser.add_argument`.
        completes: what its values name, for the Tab key: "model", "recording", "corpus", "pairs", "family", …
    """

    names: tuple[str, ...]
    help: str
    options: Mapping[str, Any] = field(default_factory=dict)
    completes: str = ""

    @property
    def dest(self) -> str:
        """Where argparse puts the value."""
        return str(self.options.get("dest", self.names[0].lstrip("-").replace("-", "_")))


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command.

    Attributes:
        name: what a person types.
        help: one line.
        function: the public function of `moelens` that it calls.
        run: calls it with what the arguments stand for, and returns its result.
        arguments: in the order of the help.
        example: a whole command line, without `moelens`.
        faces: "command line", "magics" or both.
        cell: what the lines of a cell below `%%moe` are; empty where it takes no cell.
        show: what the command line prints of the result.
        takes_text: whether its first argument is a text; after `%moe` it is the rest of the line, as typed.
        timed: whether `%moe` prints how long it took.
    """

    name: str
    help: str
    function: str
    run: Callable[[Session, Namespace, str | None], Any]
    arguments: tuple[Argument, ...]
    example: str
    faces: tuple[str, ...] = BOTH
    cell: str = ""
    show: Callable[[Any, Namespace], str | None] = actions.show_text
    takes_text: bool = False
    timed: bool = False


def _positional(name: str, help: str, completes: str = "", **options: Any) -> Argument:
    return Argument((name,), help, MappingProxyType(options), completes)


def _option(*flags: str, help: str, completes: str = "", **options: Any) -> Argument:
    return Argument(flags, help, MappingProxyType(options), completes)


_MODEL = _positional("model", "demo, a folder, a hub name, or a variable of the notebook", "model", nargs="?")
_RECORDING = _positional("recording", "folder or fsspec URL of a recording, or a variable of the notebook", "recording")
_PAIRS = _option(
    "--pairs", help=f"kind of the bundled minimal pairs, or a .jsonl file ({DEFAULTS['pairs']})", completes="pairs"
)
_FAMILY = _option("--family", metavar="FAMILY", help=f"family of labels ({DEFAULTS['family']})", completes="family")
_LAYERS = _option("--layers", type=int, nargs="+", help="layers by number (all)")
_SEED = _option("--seed", type=int, help=f"of everything that is drawn at random ({DEFAULTS['seed']})")
_FORCE = _option("--force", action="store_true", help="replace what is there")
_SAVE = _option("--out", type=Path, help=".json or .parquet file to write the whole result to")
_HOOKS = (
    _option("--hooks", type=Path, metavar="FILE", help="recipe to run the model with, see hooks/README.md"),
    _option("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the recipe"),
)
_CAPTURE = _option(
    "--capture", nargs="+", default=["routes"], metavar="NAME", completes="capture",
    help="routes, margin, logits[:N], expert_norms, neurons[:N], expert_outputs, shared, residuals[:pre|mid] (routes)",
)  # fmt: skip
_STORE_DTYPE = _option(
    "--store-dtype", default="float16", help="how numbers are kept: float16, bfloat16 or float32 (%(default)s)"
)
_PERMUTATIONS = _option("--permutations", type=int, default=1000, help="of documents, in each test (%(default)s)")
_DRAWS = _option("--draws", type=int, default=20, help="matched controls for each intervention (%(default)s)")
_PLACEMENT = (
    _option("--dtype", default="auto", help="of the weights (the model's own)"),
    _option("--revision", help="commit, tag or branch of the model on the hub"),
    _option("--device-map", help="auto: over all GPUs, the CPU and disk, for a model that needs it"),
    _option("--offload-folder", help="where --device-map puts what fits nowhere else"),
)

COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        command.name: command
        for command in (
            Command(
                name="demo",
                help="run the main job on the bundled model and corpus",
                function="run_demo",
                run=actions.demo,
                arguments=(
                    _option("--out", type=Path, default=Path("moelens-demo"), help="folder to write (%(default)s)"),
                    _FORCE,
                ),
                example="demo --out moelens-demo",
            ),
            Command(
                name="load",
                help="load and hook a model; the other commands of the notebook then use it",
                function="load",
                run=actions.load,
                arguments=(_MODEL, *_PLACEMENT),
                example="load demo",
                faces=("magics",),
            ),
            Command(
                name="info",
                help="show what a model is made of",
                function="info",
                run=actions.info,
                arguments=(
                    _positional("model", "a model, or an architecture such as deepseek_v3", "model", nargs="?"),
                    _option("--architectures", action="store_true", help="list the supported architectures"),
                ),
                example="info deepseek_v3",
            ),
            Command(
                name="plan",
                help="say what recording would take, before anything is loaded",
                function="plan",
                run=actions.plan,
                arguments=(
                    _positional("model", "demo, a folder, an architecture such as deepseek_v3, or a hub name"),
                    _option("--gpus", type=int, default=1, help="how many GPUs (%(default)s)"),
                    _option("--gpu-memory", default="80GiB", help="memory of one (%(default)s)"),
                    _option("--dtype", default="bfloat16", help="of the weights: bfloat16, float16, float32 or fp8"),
                    _option("--tokens", default="1M", help="of the corpus, such as 100M (%(default)s)"),
                    _CAPTURE,
                    _STORE_DTYPE,
                ),
                example="plan deepseek_v3 --gpus 8 --gpu-memory 141GiB --dtype fp8",
            ),
            Command(
                name="record",
                help="run a model over a corpus and keep what it did",
                function="record",
                run=actions.record,
                arguments=(
                    _MODEL,
                    _positional(
                        "corpus",
                        "demo, a .txt, .jsonl[.gz] or .parquet file, a data set's owner/name, or a variable",
                        "corpus",
                        nargs="?",
                    ),
                    _option("--out", help=f"folder or fsspec URL to write ({DEFAULTS['out']})"),
                    _CAPTURE,
                    _LAYERS,
                    _option("--experts", type=int, nargs="+", help="experts whose neurons and outputs to keep (all)"),
                    _STORE_DTYPE,
                    _option("--generate", type=int, default=0, metavar="N", help="tokens to write after each document"),
                    _option("--context", type=int, help="longest window in tokens (the model's)"),
                    _option("--overlap", type=int, default=0, help="tokens a window repeats (%(default)s)"),
                    _option("--batch-tokens", type=int, default=4096, help="tokens that run together (%(default)s)"),
                    _option("--text-column", default="text", help="key of the text or messages (%(default)s)"),
                    _option(
                        "--add-special-tokens",
                        action=BooleanOptionalAction,
                        default=None,
                        help="whether the tokenizer adds BOS and the like (unless the text has them)",
                    ),
                    _option("--license", default="", help="of the texts, for the dataset card"),
                    *_PLACEMENT,
                    _option("--tensor-parallel", action="store_true", help="shard the model over torchrun's processes"),
                    _option("--expert-parallel", action="store_true", help="shard its experts over these processes"),
                    _FORCE,
                    *_HOOKS,
                ),
                example="record demo corpus.txt --out runs/corpus --capture routes margin",
                cell="a document a line; the line of %%moe record names the model",
                show=actions.show_first,
                timed=True,
            ),
            Command(
                name="verify",
                help="compare every file of a recording with its manifest",
                function="verify",
                run=actions.verify,
                arguments=(_RECORDING,),
                example="verify runs/corpus",
            ),
            Command(
                name="label",
                help="label a recording's tokens, from morphology to register",
                function="label",
                run=actions.label,
                arguments=(
                    _RECORDING,
                    _option(
                        "--policy",
                        default="last",
                        help="which characters of a token decide: last, majority or any (%(default)s)",
                    ),
                    _option("--analyser", default="fugashi", help="fugashi or sudachi (%(default)s)"),
                    _option(
                        "--processes",
                        type=int,
                        default=os.cpu_count(),
                        help="that share the work (as many as there are cores)",
                    ),
                ),
                example="label runs/corpus",
                timed=True,
            ),
            Command(
                name="analyze",
                help="find which experts specialise in a family of labels",
                function="analyze",
                run=actions.analyze,
                arguments=(
                    _RECORDING,
                    _FAMILY,
                    _option(
                        "--given",
                        metavar="CONTROL",
                        help="compare within: token, position, a family, or token,script",
                        completes="given",
                    ),
                    _PERMUTATIONS,
                    _SEED,
                    _option("--top", type=int, default=15, help="findings to print (%(default)s)"),
                    _SAVE,
                ),
                example="analyze runs/corpus --family honorifics --given token",
                show=actions.show_findings,
                timed=True,
            ),
            Command(
                name="measure",
                help="measure the routing: load, coactivation, npmi and others",
                function="measure",
                run=actions.measure,
                arguments=(_RECORDING, _positional("name", "of the measure", "measure"), _FAMILY, _SAVE),
                example="measure runs/corpus load",
            ),
            Command(
                name="compare",
                help="test what differs between two models that read the same text",
                function="compare",
                run=actions.compare,
                arguments=(
                    _positional("a", "recording of one model", "recording"),
                    _positional("b", "recording of the other", "recording"),
                    _FAMILY,
                    _PERMUTATIONS,
                    _SEED,
                    _SAVE,
                ),
                example="compare runs/base runs/tuned",
                timed=True,
            ),
            Command(
                name="trace",
                help="show which experts a text takes, token by token",
                function="trace",
                run=actions.trace,
                arguments=(
                    _positional("text", "the text as typed; above a cell with the text, the model", "model", nargs="*"),
                    _option("--model", help="demo, a folder, a hub name or a variable", completes="model"),
                ),
                example="trace 先生がいらっしゃいました。 --model demo",
                cell="the text; the line of %%moe trace names the model",
                takes_text=True,
            ),
            Command(
                name="prefer",
                help="show which text of each pair the model prefers",
                function="prefer",
                run=actions.prefer,
                arguments=(_MODEL, _PAIRS, *_HOOKS, _SAVE),
                example="prefer demo --pairs respectful-humble",
                cell="context | better | worse, one pair a line",
            ),
            Command(
                name="causes",
                help="find the experts that cause a preference: attribution, removal, matched controls",
                function="causes",
                run=actions.causes,
                arguments=(
                    _MODEL,
                    _PAIRS,
                    _option("--top", type=int, default=5, help="experts to remove (%(default)s)"),
                    _DRAWS,
                    _SEED,
                    *_HOOKS,
                    _SAVE,
                ),
                example="causes demo --pairs respectful-humble",
                timed=True,
            ),
            Command(
                name="effect",
                help="measure what one intervention on given experts changes, beside matched controls",
                function="effect",
                run=actions.effect,
                arguments=(
                    _MODEL,
                    _PAIRS,
                    _option(
                        "--operation",
                        default="remove",
                        completes="operation",
                        help="remove, remove_renorm, reroute, force, scale, swap or steer (%(default)s)",
                    ),
                    _option("--layer", type=int, required=True, help="number of the layer"),
                    _option("--experts", required=True, help="ids such as 5,9, or shared"),
                    _option("--value", type=float, help="factor of scale, strength of steer"),
                    _DRAWS,
                    _SEED,
                    *_HOOKS,
                    _SAVE,
                ),
                example="effect demo --pairs polite-ending --layer 3 --experts 17",
                timed=True,
            ),
            Command(
                name="probe",
                help="train probes on a recording, or run a file of probes and effects; exit 1 if one fails",
                function="probe",
                run=actions.probe,
                arguments=(
                    _positional(
                        "recording", "a recording, or a .toml file with [[probe]] and [[effect]] entries", "recording"
                    ),
                    _positional("family", "family of labels, or one label", "family", nargs="?"),
                    _option("--features", nargs="+", default=["experts"], help="experts, weights, paths, logits …"),
                    _SEED,
                    *_HOOKS,
                    _SAVE,
                ),
                example="probe probes.toml",
                show=actions.show_outcomes,
                timed=True,
            ),
            Command(
                name="export",
                help="write a recording in another format",
                function="export",
                run=actions.export,
                arguments=(
                    _RECORDING,
                    _option(
                        "--to",
                        required=True,
                        metavar="FORMAT",
                        help="datasets, safetensors, npz or csv",
                        completes="format",
                    ),
                    _option("--out", type=Path, help="folder to write (named by recording, table and format)"),
                    _option(
                        "--table",
                        default="tokens",
                        help="tokens, or logits, neurons, expert_outputs, shared, residuals (%(default)s)",
                    ),
                    _LAYERS,
                    _option(
                        "--family",
                        nargs="+",
                        default=[],
                        metavar="FAMILY",
                        help="families of labels to put beside",
                        completes="family",
                    ),
                    _option("--split", default="", help="shares of the documents, such as train:0.8,test:0.2"),
                    _FORCE,
                ),
                example="export runs/corpus --to csv --split train:0.8,test:0.2",
                timed=True,
            ),
            Command(
                name="import",
                help="make a recording of routes that something else computed",
                function="import_routes",
                run=actions.import_routes,
                arguments=(
                    _positional("source", ".npz of arrays, or .jsonl of responses of SGLang or vLLM"),
                    _option("--out", required=True, help="folder or fsspec URL to write"),
                    _option("--from", dest="kind", default="", metavar="KIND", help="npz, sglang or vllm"),
                    _option("--model", default="unknown", help="name of the model"),
                    _option("--layers", type=int, nargs="+", help="which layers they are (0, 1, …)"),
                    _option("--experts", type=int, help="experts in a layer (one more than the largest id)"),
                    _option("--shape", type=int, nargs=2, metavar=("LAYERS", "K"), help="of SGLang's responses"),
                    _FORCE,
                ),
                example="import responses.jsonl --from sglang --shape 58 8 --out runs/served",
                timed=True,
            ),
            Command(
                name="report",
                help="write one HTML file about a recording: where, what, how sure",
                function="report",
                run=actions.report,
                arguments=(
                    _RECORDING,
                    _option("--out", type=Path, default=Path("report.html"), help="file to write (%(default)s)"),
                    _PERMUTATIONS,
                ),
                example="report runs/corpus --out report.html",
                timed=True,
            ),
            Command(
                name="explore",
                help="look at a recording: choose a label, see its experts, read their sentences",
                function="explore",
                run=actions.explore,
                arguments=(
                    _RECORDING,
                    _FAMILY,
                    _option("--label", help="to begin with, such as 尊敬語"),
                    _option("--model", help="model to remove experts from", completes="model"),
                    _PERMUTATIONS,
                    _option("--out", type=Path, default=None, help="HTML file to write (explorer.html in a terminal)"),
                ),
                example="explore runs/corpus --out explorer.html",
                show=actions.show_saved_explorer,
            ),
            Command(
                name="hooks",
                help="load a recipe's hooks, for model.hooks(fwd_hooks=…)",
                function="load_hooks",
                run=actions.load_hooks,
                arguments=(_positional("file", "the recipe, a Python file"), _MODEL, _HOOKS[1]),
                example="hooks hooks/remove_experts.py --set layer=3 --set experts=[5]",
                faces=("magics",),
            ),
        )
    }
)
