"""The table of commands, from which the command line (`moelens COMMAND`) and the magics (`%moe COMMAND`) are built.

The two interfaces differ only in how they find a model or a recording by its name; see `Session`.
"""

from __future__ import annotations

import os
from argparse import BooleanOptionalAction
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from moelens.commands import analysis_actions, intervention_actions, printing, recording_actions
from moelens.commands.definitions import Command, at_least, number_or_all, option, positional
from moelens.commands.session import DEFAULTS
from moelens.texts import LANGUAGES

_MODEL = positional("model", "demo, a folder, a hub name, or a variable of the notebook", "model", nargs="?")
_RECORDING = positional("recording", "folder or fsspec URL of a recording, or a variable of the notebook", "recording")
_SOURCE = positional("recording", "recording, a file of counts or of a result, or a variable of the notebook", "source")
_PAIRS = option(
    "--pairs",
    help=f"kind of the bundled contrasts and pairs, or a .jsonl file ({DEFAULTS['pairs']})",
    completes="pairs",
)
_FAMILY = option("--family", metavar="FAMILY", help=f"family of labels ({DEFAULTS['family']})", completes="family")
_GIVEN = option(
    "--given",
    metavar="CONTROL",
    default="token",
    help="control: token, position, a family of labels, a column of the corpus, several such as token,script, or none "
    "(%(default)s)",
    completes="given",
)
_TOP = option(
    "--top", type=at_least(1), default=15, help="number of findings to print, the strongest first (%(default)s)"
)
_MODEL_NAME = option("--model", help="name of the model (that in the files)")
_N_EXPERTS = option("--experts", type=int, help="number of experts in each layer (the largest id plus one)")
_TOP_K = option("--top-k", type=int, help="experts chosen for each token (what the counts say)")
_LAYERS = option("--layers", type=int, nargs="+", help="numbers of the layers (all)")
_SEED = option("--seed", type=at_least(0), help=f"seed of all random draws ({DEFAULTS['seed']})")
_FORCE = option("--force", action="store_true", help="permission to replace existing output")
SAVE = option("--out", type=Path, help=".json or .parquet file for the result")
_HOOKS = (
    option("--hooks", type=Path, metavar="FILE", help="recipe whose hooks the model runs with, see hooks/README.md"),
    option("--set", action="append", default=[], metavar="NAME=VALUE", help="option of the recipe"),
)
_CAPTURE = option(
    "--capture",
    nargs="+",
    default=["routes"],
    metavar="NAME",
    completes="capture",
    help="routes, margin, logits[:N], expert_norms, neurons[:N], expert_outputs, shared, residuals[:pre|mid] (routes)",
)
_STORE_DTYPE = option(
    "--store-dtype", default="float16", help="dtype of stored numbers: float16, bfloat16 or float32 (%(default)s)"
)
_PERMUTATIONS = option(
    "--permutations", type=int, default=1000, help="number of permutations of the labels in each test (%(default)s)"
)
_DOCUMENTS = option(
    "--documents",
    type=number_or_all,
    metavar="N",
    help="number of documents to compute from, drawn at random, or all (20000, or those of 2 million tokens)",
)
_LANG = option(
    "--lang",
    help=f"language of headings and sentences: en or ja ({DEFAULTS['lang']})",
    choices=LANGUAGES,
    metavar="LANG",
    completes="lang",
)
_DRAWS = option("--draws", type=at_least(0), default=100, help="number of matched controls, 0 for none (%(default)s)")
_RECORDED_MODEL = option(
    "--model",
    help="model that made the recording, to remove experts from or for --baseline (demo, for a recording of it)",
    completes="model",
)
_BASELINE = option(
    "--baseline",
    action="store_true",
    help="number of specialists that a model of the same shape with random weights gives",
)
_PLACEMENT = (
    option(
        "--dtype",
        default="auto",
        choices=("auto", "bfloat16", "float16", "float32", "float64"),
        metavar="DTYPE",
        help="dtype of the weights: bfloat16, float16, float32 or float64 (that of the checkpoint)",
    ),
    option("--revision", help="commit, tag or branch of the model on the hub"),
    option("--device-map", help="auto, to spread the model over all GPUs, the CPU and disk"),
    option("--offload-folder", help="folder for the weights that --device-map puts on disk"),
)

COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        command.name: command
        for command in (
            Command(
                name="demo",
                help="record, label and analyse the bundled corpus with the bundled model, and write a report",
                function="run_demo",
                run=recording_actions.demo_command,
                arguments=(
                    option("--out", type=Path, default=Path("moelens-demo"), help="folder to write (%(default)s)"),
                    _FORCE,
                    _LANG,
                ),
                example="demo --out moelens-demo",
            ),
            Command(
                name="load",
                help="load and hook a model, which later commands of the notebook then use by default",
                function="load",
                run=recording_actions.load_command,
                arguments=(_MODEL, *_PLACEMENT),
                example="load demo",
                interfaces=("magics",),
            ),
            Command(
                name="info",
                help="show the layers, experts, router and hook points of a model",
                function="info",
                run=recording_actions.info_command,
                arguments=(
                    positional("model", "model, or an architecture such as deepseek_v3", "model", nargs="?"),
                    option("--architectures", action="store_true", help="list of the supported architectures instead"),
                ),
                example="info deepseek_v3",
            ),
            Command(
                name="plan",
                help="estimate the memory, devices and disk space of a recording without loading the model",
                function="plan",
                run=recording_actions.plan_command,
                arguments=(
                    positional("model", "demo, a folder, an architecture such as deepseek_v3, or a hub name"),
                    option("--gpus", type=int, default=1, help="number of GPUs (%(default)s)"),
                    option("--gpu-memory", default="80GiB", help="memory of each GPU (%(default)s)"),
                    option(
                        "--dtype",
                        default="bfloat16",
                        help="dtype of the weights: bfloat16, float16, float32 or fp8 (%(default)s)",
                    ),
                    option("--tokens", default="1M", help="number of tokens of the corpus, such as 100M (%(default)s)"),
                    _CAPTURE,
                    _STORE_DTYPE,
                ),
                example="plan deepseek_v3 --gpus 8 --gpu-memory 141GiB --dtype fp8",
            ),
            Command(
                name="record",
                help="run a model over a corpus and store which experts it chose",
                function="record",
                run=recording_actions.record_command,
                arguments=(
                    _MODEL,
                    positional(
                        "corpus",
                        "demo, a .txt file (each line is a document), a .csv, .tsv, .jsonl or .parquet file, "
                        "OWNER/NAME of a dataset, or a variable of the notebook",
                        "corpus",
                        nargs="?",
                    ),
                    option("--out", help=f"folder or fsspec URL to write ({DEFAULTS['out']})"),
                    _CAPTURE,
                    _LAYERS,
                    option(
                        "--experts",
                        type=int,
                        nargs="+",
                        help="ids of the experts whose neurons and outputs are stored (all)",
                    ),
                    _STORE_DTYPE,
                    option(
                        "--generate",
                        type=int,
                        default=0,
                        metavar="N",
                        help="number of tokens to generate after each document (%(default)s)",
                    ),
                    option("--context", type=int, help="length of the longest window in tokens (that of the model)"),
                    option(
                        "--overlap",
                        type=int,
                        default=0,
                        help="number of tokens that successive windows share (%(default)s)",
                    ),
                    option("--batch-tokens", type=int, default=4096, help="number of tokens in a batch (%(default)s)"),
                    option("--text-column", default="text", help="key or column of the text or messages (%(default)s)"),
                    option(
                        "--encoding",
                        default="utf-8",
                        help="encoding of a text file, such as shift-jis or euc-jp (%(default)s)",
                    ),
                    option(
                        "--split-documents",
                        metavar="PARAGRAPH|TOKENS",
                        help="how to divide a long text into documents: paragraph, at empty lines, or a number of "
                        "tokens, at ends of sentences; a .txt file is then one text",
                    ),
                    option(
                        "--add-special-tokens",
                        action=BooleanOptionalAction,
                        default=None,
                        help="whether the tokenizer adds BOS and other special tokens (unless the text has them)",
                    ),
                    option("--license", default="", help="license of the texts, for the dataset card"),
                    *_PLACEMENT,
                    option(
                        "--tensor-parallel",
                        action="store_true",
                        help="sharding of the model over the processes of torchrun",
                    ),
                    option(
                        "--expert-parallel",
                        action="store_true",
                        help="sharding of the experts over the processes of torchrun",
                    ),
                    _FORCE,
                    *_HOOKS,
                ),
                example="record demo corpus.txt --out runs/corpus --capture routes margin",
                cell="one document per line",
                show=printing.show_text_once,
                timed=True,
            ),
            Command(
                name="verify",
                help="compare every file of a recording with its manifest",
                function="verify",
                run=recording_actions.verify_command,
                arguments=(_RECORDING,),
                example="verify runs/corpus",
            ),
            Command(
                name="label",
                help="label the tokens of a recording with morphology, honorifics and register",
                function="label",
                run=recording_actions.label_command,
                arguments=(
                    _RECORDING,
                    option(
                        "--policy",
                        default="ends",
                        help="labels that a token carries: of what ends in it (ends), its last character (last), "
                        "or of all (any) or most (majority) of its characters (%(default)s)",
                    ),
                    option(
                        "--analyser", default="fugashi", help="morphological analyser: fugashi or sudachi (%(default)s)"
                    ),
                    option(
                        "--processes",
                        type=int,
                        default=os.cpu_count(),
                        help="number of processes (the number of cores)",
                    ),
                ),
                example="label runs/corpus",
                timed=True,
            ),
            Command(
                name="analyze",
                help="find the experts that specialise in a family of labels",
                function="analyze",
                run=analysis_actions.analyze_command,
                arguments=(
                    _RECORDING,
                    _FAMILY,
                    _GIVEN,
                    option(
                        "--min-tokens",
                        type=int,
                        default=20,
                        help="labels and experts with fewer tokens are not tested (%(default)s)",
                    ),
                    option(
                        "--max-share",
                        type=float,
                        default=0.1,
                        help="largest share of the tokens that a document may have; longer ones are cut (%(default)s)",
                    ),
                    _PERMUTATIONS,
                    _SEED,
                    _TOP,
                    option(
                        "--label",
                        help="label whose findings are printed and exported, such as 丁寧語 or teineigo (all)",
                        completes="label",
                    ),
                    option(
                        "--export-experts",
                        type=Path,
                        metavar="FILE",
                        help=".json, .csv, .f32 or .safetensors file for the experts found for the label",
                    ),
                    option(
                        "--form",
                        default="bias",
                        help="form of these experts: bias for a router, or keep for pruning (%(default)s)",
                    ),
                    option("--keep", type=int, help="number of experts to keep in each layer (as few as possible)"),
                    _BASELINE,
                    _RECORDED_MODEL,
                    SAVE,
                    _LANG,
                ),
                example="analyze runs/corpus --given none --label 丁寧語 --export-experts polite.csv",
                show=printing.show_findings,
                timed=True,
            ),
            Command(
                name="measure",
                help="compute a measure of routing, such as load, coactivation or npmi",
                function="measure",
                run=analysis_actions.measure_command,
                arguments=(
                    _SOURCE,
                    positional("name", "name of the measure", "measure"),
                    _FAMILY,
                    option("--top-n", type=int, help="number of most used experts in coverage and jaccard (half)"),
                    SAVE,
                ),
                example="measure runs/corpus load",
            ),
            Command(
                name="compare",
                help="test how routing differs between two models, two corpora, or prefill and decoding",
                function="compare",
                run=analysis_actions.compare_command,
                arguments=(
                    positional("a", "recording of the first model or corpus", "recording"),
                    positional("b", "recording of the second one; none with --phase", "recording", nargs="?"),
                    _FAMILY,
                    option(
                        "--given",
                        metavar="CONTROL",
                        default="token",
                        help="control for two corpora: token, position, a family of labels, several such as "
                        "token,script, or none (%(default)s)",
                        completes="given",
                    ),
                    option(
                        "--phase", help="prefill,decode, to compare these phases of one recording", completes="phase"
                    ),
                    option(
                        "--permutations",
                        type=int,
                        help="number of permutations (1000), or of shifts of the phases (99)",
                    ),
                    _SEED,
                    SAVE,
                    _LANG,
                ),
                example="compare runs/base runs/tuned",
                show=printing.show_table,
                timed=True,
            ),
            Command(
                name="trace",
                help="show the experts chosen for each token of a text",
                function="trace",
                run=intervention_actions.trace_command,
                arguments=(
                    positional("text", "text as typed; with %%%%moe trace, the model", "model", nargs="*"),
                    option(
                        "--model", help="demo, a folder, a hub name, or a variable of the notebook", completes="model"
                    ),
                ),
                example="trace 先生がいらっしゃいました。 --model demo",
                cell="the text",
                takes_text=True,
            ),
            Command(
                name="prefer",
                help="show whether a model prefers what the context licenses, in contrasts or minimal pairs",
                function="prefer",
                run=intervention_actions.prefer_command,
                arguments=(_MODEL, _PAIRS, *_HOOKS, SAVE, _LANG),
                example="prefer demo --pairs respectful-humble",
                show=printing.show_table,
                cell="one pair per line: context | better text | worse text",
            ),
            Command(
                name="causes",
                help="find experts that cause a preference, by attribution, removal and matched controls",
                function="causes",
                run=intervention_actions.causes_command,
                arguments=(
                    _MODEL,
                    _PAIRS,
                    option("--top", type=at_least(1), default=5, help="number of experts to remove (%(default)s)"),
                    option(
                        "--draws",
                        type=at_least(0),
                        default=100,
                        help="number of matched controls, 20 or more (%(default)s)",
                    ),
                    option(
                        "--doses",
                        type=at_least(1),
                        nargs="*",
                        default=[1, 2, 4, 8, 16],
                        help="numbers of experts to remove together, the first of each ranking (%(default)s)",
                    ),
                    option(
                        "--corpora",
                        nargs="+",
                        metavar="CORPUS",
                        help="texts on which the experts are ranked too (the dialogues and the other texts of demo)",
                        completes="corpus",
                    ),
                    _SEED,
                    *_HOOKS,
                    SAVE,
                    _LANG,
                ),
                example="causes demo --pairs respectful-humble",
                show=printing.show_table,
                timed=True,
            ),
            Command(
                name="effect",
                help="measure how an intervention on given experts changes a preference, with matched controls",
                function="effect",
                run=intervention_actions.effect_command,
                arguments=(
                    _MODEL,
                    _PAIRS,
                    option(
                        "--operation",
                        default="remove",
                        completes="operation",
                        help="operation: remove, remove_renorm, reroute, force, scale, swap or shift (%(default)s)",
                    ),
                    option("--layer", type=int, help="number of the layer, for ids of experts"),
                    option(
                        "--experts", help="ids of experts such as 5,9, shared, or a file of analyze --export-experts"
                    ),
                    option(
                        "--from",
                        dest="findings",
                        metavar="FINDINGS",
                        help="result of analyze --out, instead of --experts: the strongest experts of a label, in the "
                        "model of the findings, with the contrasts that test the label",
                    ),
                    option(
                        "--label",
                        help="label of --from, such as 尊敬語 or sonkeigo (that of the strongest finding)",
                        completes="label",
                    ),
                    option(
                        "--top", type=at_least(1), default=5, help="number of experts of --from, at most (%(default)s)"
                    ),
                    option("--value", type=float, help="factor of scale, or strength of shift"),
                    _DRAWS,
                    _SEED,
                    *_HOOKS,
                    SAVE,
                    _LANG,
                ),
                example="effect --from findings.json --label 尊敬語",
                show=printing.show_table,
                timed=True,
            ),
            Command(
                name="steer",
                help="write text while experts are steered by growing strengths, and measure its style and fluency",
                function="steer",
                run=intervention_actions.steer_command,
                arguments=(
                    _MODEL,
                    option(
                        "--experts",
                        required=True,
                        help="LAYER:EXPERT such as 3:5,4:21, or a file of analyze --export-experts",
                    ),
                    option(
                        "--strengths",
                        type=float,
                        nargs="+",
                        default=[-0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4],
                        help="what is added to the selection scores (%(default)s)",
                    ),
                    option("--new-tokens", type=int, default=48, help="tokens to write after a prompt (%(default)s)"),
                    option("--controls", type=int, default=4, help="number of matched control sets (%(default)s)"),
                    _SEED,
                    *_HOOKS,
                    SAVE,
                    _LANG,
                ),
                show=printing.show_table,
                example="steer demo --experts 3:17,4:5 --strengths -0.2 0 0.2",
                cell="one prompt per line, instead of the bundled ones",
                timed=True,
            ),
            Command(
                name="probe",
                help="train probes on a recording, or run a script of probes and effects; exit with 1 if one fails",
                function="probe",
                run=analysis_actions.probe_command,
                arguments=(
                    positional(
                        "recording", "recording, or a .toml file with [[probe]] and [[effect]] entries", "recording"
                    ),
                    positional("family", "family of labels, or one label (honorifics)", "family or label", nargs="?"),
                    option(
                        "--features",
                        nargs="+",
                        default=["experts"],
                        help="experts, weights, paths, logits or others (experts)",
                    ),
                    _SEED,
                    *_HOOKS,
                    SAVE,
                ),
                example="probe probes.toml",
                show=printing.show_outcomes,
                timed=True,
            ),
            Command(
                name="export",
                help="write a recording in another format",
                function="export",
                run=recording_actions.export_command,
                arguments=(
                    _RECORDING,
                    option(
                        "--to",
                        required=True,
                        metavar="FORMAT",
                        help="format: datasets, safetensors, npz or csv",
                        completes="format",
                    ),
                    option("--out", type=Path, help="folder to write (named after recording, table and format)"),
                    option(
                        "--table",
                        default="tokens",
                        help="table: tokens, logits, neurons, expert_outputs, shared or residuals (%(default)s)",
                    ),
                    _LAYERS,
                    option(
                        "--family",
                        nargs="+",
                        default=[],
                        metavar="FAMILY",
                        help="families of labels to add as columns",
                        completes="family",
                    ),
                    option(
                        "--split", default="", help="names and shares of splits by document, such as train:0.8,test:0.2"
                    ),
                    _FORCE,
                ),
                example="export runs/corpus --to csv --split train:0.8,test:0.2",
                timed=True,
            ),
            Command(
                name="import",
                help="make a recording from routes that another program computed",
                function="import_routes",
                run=recording_actions.import_command,
                arguments=(
                    positional("source", ".npz file of arrays, or .jsonl file of responses of SGLang or vLLM"),
                    option("--out", required=True, help="folder or fsspec URL to write"),
                    option(
                        "--from",
                        dest="kind",
                        default="",
                        metavar="KIND",
                        help="format: npz, sglang or vllm (npz for a .npz file)",
                    ),
                    option(
                        "--model",
                        default="unknown",
                        help="name of the model; its tokenizer and configuration are used if available (%(default)s)",
                        completes="model",
                    ),
                    option("--tokenizer", metavar="NAME", help="tokenizer: demo, a folder or a hub name (the model's)"),
                    option("--texts", metavar="FILE", help="prompts or requests, in the order of the responses"),
                    option(
                        "--layers",
                        type=int,
                        nargs="+",
                        help="numbers of the layers in the source (the model's, or 0, 1, …)",
                    ),
                    option(
                        "--experts",
                        type=int,
                        help="number of experts in each layer (the model's, or the largest id plus one)",
                    ),
                    option(
                        "--shape",
                        type=int,
                        nargs=2,
                        metavar=("LAYERS", "K"),
                        help="numbers of layers and experts per token in the responses of SGLang (the model's)",
                    ),
                    option(
                        "--skip-uncaptured",
                        action="store_true",
                        help="tokens that were not captured are kept without routes",
                    ),
                    _FORCE,
                ),
                example="import answers.jsonl --from sglang --model demo --texts prompts.txt --out runs/served",
                timed=True,
            ),
            Command(
                name="import-counts",
                help="import how often each expert was chosen, from tables that others published or engines wrote",
                function="import_counts",
                run=analysis_actions.import_counts_command,
                arguments=(
                    positional(
                        "sources",
                        "files, or NAME=FILE: JSON, CSV, Parquet, npz, SGLang's .pt, or the CSV of llama-moe-trace",
                        nargs="+",
                    ),
                    SAVE,
                    option(
                        "--from",
                        dest="kind",
                        default="",
                        metavar="KIND",
                        help="format: json, table, sglang or moe-trace (what the files look like)",
                    ),
                    option("--groups", nargs="+", metavar="GROUP", help="groups to keep (all)"),
                    option("--total", default="", metavar="GROUP", help="group of all tokens, if the others overlap"),
                    _MODEL_NAME,
                    _LAYERS,
                    _N_EXPERTS,
                    _TOP_K,
                    option(
                        "--tolerance",
                        type=float,
                        default=0.001,
                        help="relative difference that the sums of layers may have (%(default)s)",
                    ),
                ),
                example="import-counts ja=mgsm_ja.json en=mgsm_en.json --out counts.json",
            ),
            Command(
                name="import-types",
                help="find specialised experts from counts of token types and the text that was counted, with bounds",
                function="Counts.from_types",
                run=analysis_actions.import_types_command,
                arguments=(
                    positional("types", ".npz, .parquet or .csv file with layer, expert, token_id and count"),
                    option("--text", type=Path, help=".txt file of the text that was counted"),
                    option("--tokenizer", help="name or folder of the tokenizer of the model"),
                    option("--recording", help="labelled recording of the same text, instead", completes="recording"),
                    _FAMILY,
                    _MODEL_NAME,
                    _N_EXPERTS,
                    _TOP_K,
                    _TOP,
                    SAVE,
                    _LANG,
                ),
                example="import-types types.npz --text corpus.txt --tokenizer llm-jp/llm-jp-3-8x1.8b",
                show=printing.show_findings,
                timed=True,
            ),
            Command(
                name="report",
                help="write an HTML report on a recording, or on counts: experts, example sentences and limits",
                function="report",
                run=analysis_actions.report_command,
                arguments=(
                    _SOURCE,
                    option("--out", type=Path, default=Path("report.html"), help="file to write (%(default)s)"),
                    _PERMUTATIONS,
                    _DOCUMENTS,
                    option(
                        "--effects",
                        nargs="*",
                        metavar="FILE",
                        help="removal of the strongest expert of each honorific class, with matched controls; or files "
                        "of effect, causes and prefer to show",
                    ),
                    option(
                        "--compare",
                        metavar="OTHER",
                        help="recording of another model on this text, or of this one on another text, to compare with",
                        completes="recording",
                    ),
                    _BASELINE,
                    _RECORDED_MODEL,
                    _LANG,
                ),
                example="report runs/corpus --effects --baseline --out report.html",
                timed=True,
            ),
            Command(
                name="explore",
                help="open a view of a recording in which to choose labels and experts and read their sentences",
                function="explore",
                run=analysis_actions.explore_command,
                arguments=(
                    _RECORDING,
                    _FAMILY,
                    _GIVEN,
                    option("--label", help="label to show first, such as 尊敬語 or sonkeigo", completes="label"),
                    _BASELINE,
                    _RECORDED_MODEL,
                    _PERMUTATIONS,
                    _DOCUMENTS,
                    _LANG,
                    option("--out", type=Path, default=None, help="HTML file to write (explorer.html in a terminal)"),
                ),
                example="explore runs/corpus --out explorer.html",
                show=printing.show_explorer_path,
            ),
            Command(
                name="hooks",
                help="load the hooks of a recipe, for model.hooks(fwd_hooks=…)",
                function="load_hooks",
                run=intervention_actions.hooks_command,
                arguments=(positional("file", "recipe, a Python file"), _MODEL, _HOOKS[1]),
                example="hooks hooks/remove_experts.py --set layer=3 --set experts=[5]",
                interfaces=("magics",),
            ),
        )
    }
)
