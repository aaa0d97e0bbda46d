"""The command line's commands that make, check and pass on recordings."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from moelens.errors import MoeLensError, RecordingError
from moelens.recipes import add_arguments, from_arguments


def add_commands(commands: Any) -> None:
    """`record`, `plan`, `verify`, `export` and `import`."""
    add_record(commands)

    plan = commands.add_parser("plan", help="say what recording would take, before anything is loaded")
    plan.add_argument("model", help="demo, a folder, an architecture such as deepseek_v3, or a hub name")
    plan.add_argument("--gpus", type=int, default=1, help="how many GPUs (%(default)s)")
    plan.add_argument("--gpu-memory", default="80GiB", help="memory of one (%(default)s)")
    plan.add_argument("--dtype", default="bfloat16", help="of the weights: bfloat16, float16, float32 or fp8")
    plan.add_argument("--tokens", default="1M", help="of the corpus, such as 100M (%(default)s)")
    plan.add_argument("--capture", nargs="+", default=["routes"], help="as in record (routes)")
    plan.set_defaults(run=run_plan)

    verify = commands.add_parser("verify", help="compare every file of a recording with its manifest")
    verify.add_argument("recording", help="folder or fsspec URL")
    verify.set_defaults(run=run_verify)

    export = commands.add_parser("export", help="write a recording in another format")
    export.add_argument("recording", help="folder or fsspec URL")
    export.add_argument("--to", required=True, metavar="FORMAT", help="datasets, safetensors, npz or csv")
    export.add_argument("--out", type=Path, help="folder to write (named by recording, table and format)")
    export.add_argument("--table", default="tokens", help="tokens, with the routes, or logits, neurons, expert_outputs,"
                        " shared or residuals (%(default)s)")  # fmt: skip
    export.add_argument("--layers", type=int, nargs="+", help="layers to export (all)")
    export.add_argument("--labels", nargs="+", default=[], metavar="FAMILY", help="families of labels beside them")
    export.add_argument("--split", default="", help="shares of the documents, such as train:0.8,test:0.2")
    export.add_argument("--force", action="store_true", help="replace an export that is there")
    export.set_defaults(run=run_export)

    take = commands.add_parser("import", help="make a recording of routes that something else computed")
    take.add_argument("source", help=".npz of arrays, or .jsonl of responses of SGLang or vLLM")
    take.add_argument("--out", required=True, help="folder or fsspec URL to write")
    take.add_argument("--from", dest="kind", default="", metavar="KIND", help="npz, sglang or vllm")
    take.add_argument("--model", default="unknown", help="name of the model")
    take.add_argument("--layers", type=int, nargs="+", help="which layers they are (0, 1, …)")
    take.add_argument("--experts", type=int, help="experts in a layer (one more than the largest id)")
    take.add_argument("--shape", type=int, nargs=2, metavar=("LAYERS", "K"), help="of SGLang's responses")
    take.add_argument("--force", action="store_true", help="replace a recording that is there")
    take.set_defaults(run=run_import)


def add_record(commands: Any) -> None:
    record = commands.add_parser("record", help="run a model over a corpus and keep what it did")
    record.add_argument("model", help="demo, a folder or a hub name")
    record.add_argument("corpus", help="demo, a .txt, .jsonl[.gz] or .parquet file, or a data set's owner/name")
    record.add_argument("--out", required=True, help="folder or fsspec URL to write")
    record.add_argument("--capture", nargs="+", default=["routes"], metavar="NAME", help="routes, margin, logits[:N],"
                        " expert_norms, neurons[:N], expert_outputs, shared, residuals[:pre|mid] (routes)")  # fmt: skip
    record.add_argument("--layers", type=int, nargs="+", help="layers to capture (all with experts)")
    record.add_argument("--experts", type=int, nargs="+", help="experts whose neurons and outputs to capture (all)")
    record.add_argument("--numbers", default="float16", help="how numbers are kept: float16, bfloat16 or float32")
    record.add_argument("--generate", type=int, default=0, metavar="N", help="tokens to write after each document")
    record.add_argument("--context", type=int, help="longest window in tokens (the model's)")
    record.add_argument("--overlap", type=int, default=0, help="tokens a window repeats (%(default)s)")
    record.add_argument("--batch-tokens", type=int, default=4096, help="tokens that run together (%(default)s)")
    record.add_argument("--text-column", default="text", help="key of the text (%(default)s)")
    record.add_argument("--license", default="", help="of the texts, for the dataset card")
    record.add_argument("--dtype", default="auto", help="of the weights (the model's own)")
    record.add_argument("--revision", help="commit, tag or branch of the model on the hub")
    record.add_argument("--device-map", help="auto: over all GPUs, the CPU and disk, for a model that needs it")
    record.add_argument("--offload-folder", help="where --device-map puts what fits nowhere else")
    shared = record.add_mutually_exclusive_group()
    shared.add_argument("--tensor-parallel", action="store_true", help="shard the model over torchrun's processes")
    shared.add_argument("--expert-parallel", action="store_true", help="shard its experts over torchrun's processes")
    record.add_argument("--force", action="store_true", help="replace a recording that is there")
    add_arguments(record)
    record.set_defaults(run=run_record)


def run_record(args: argparse.Namespace) -> None:
    import moelens
    from moelens.recording import Corpus

    corpus = Corpus.of(args.corpus, args.text_column, args.license)
    model = moelens.load(args.model, dtype=args.dtype, revision=args.revision, **placement(args))
    with model.hooks(fwd_hooks=from_arguments(args, model)):
        recording = moelens.record(
            model, corpus, args.out, capture=args.capture, layers=args.layers, experts=args.experts, dtype=args.numbers,
            generate=args.generate, context=args.context, overlap=args.overlap, batch_tokens=args.batch_tokens,
            force=args.force,
        )  # fmt: skip
    if int(os.environ.get("RANK", "0")) == 0:
        print(recording)


def placement(args: argparse.Namespace) -> dict[str, Any]:
    """Where the model goes, as options of `load`."""
    from moelens.recording import parallel

    several = parallel.start()
    if args.tensor_parallel or args.expert_parallel:
        if not several:
            raise MoeLensError(
                "a model is sharded over processes; start them with torchrun --nproc_per_node N -m moelens"
            )
        return {"distributed_config": parallel.sharding(by_expert=args.expert_parallel)}
    if args.device_map:
        return {"device_map": args.device_map, "offload_folder": args.offload_folder}
    return {"device_map": parallel.local_device()} if parallel.local_device() != "cpu" else {}


def run_plan(args: argparse.Namespace) -> None:
    import moelens

    print(
        moelens.plan(
            args.model, gpus=args.gpus, gpu_memory=args.gpu_memory, dtype=args.dtype, tokens=args.tokens,
            capture=args.capture,
        )
    )  # fmt: skip


def run_verify(args: argparse.Namespace) -> None:
    import moelens

    found = moelens.verify(args.recording)
    if not found:
        raise RecordingError("\nmoelens: ".join(found.damage))
    print(found)


def run_export(args: argparse.Namespace) -> None:
    import moelens

    print(
        moelens.export(
            args.recording, args.to, args.out, table=args.table, layers=args.layers, labels=args.labels,
            split=args.split, force=args.force,
        )
    )  # fmt: skip


def run_import(args: argparse.Namespace) -> None:
    import moelens

    print(
        moelens.import_routes(
            args.source, args.out, kind=args.kind, model=args.model, layers=args.layers, n_experts=args.experts,
            shape=None if args.shape is None else tuple(args.shape), force=args.force,
        )
    )  # fmt: skip
