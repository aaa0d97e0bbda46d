"""What the commands on models and recordings run; see `moelens.commands.table`.

`NAME_command` runs the command of this name: one call of a public function with what the arguments stand for.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from moelens.commands.options import described_model, or_default, recipe_context
from moelens.commands.session import Session
from moelens.errors import MoeLensError, RecordingError
from moelens.text_files import split_lines


def demo_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.workflows.demo_run import run_demo

    (lang,) = or_default(session, args, "lang")
    return run_demo(args.out, force=args.force, lang=lang)


def load_command(session: Session, args: Namespace, cell: str | None) -> Any:
    options = {"dtype": args.dtype, "revision": args.revision, **_placement(args)}
    return session.find_model(args.model, fresh=True, **options)


def info_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.models.summary import info, list_supported

    if args.architectures:
        return list_supported()
    if args.model is None and type(session) is Session:
        raise MoeLensError(
            "expected a model or --architectures, got neither; give a folder, a hub name, an architecture or 'demo'"
        )
    return info(session.find_name(args.model))


def plan_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.recording import plan

    return plan(
        args.model,
        gpus=args.gpus,
        gpu_memory=args.gpu_memory,
        dtype=args.dtype,
        tokens=args.tokens,
        capture=args.capture,
        store_dtype=args.store_dtype,
    )


def record_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.models.loading import require_dtype
    from moelens.recording import Corpus, record
    from moelens.recording.captures import CaptureRequest, read_captures
    from moelens.recording.passes import RunSettings
    from moelens.recording.progress import require_place
    from moelens.recording.storage import Folder
    from moelens.recording.survey import survey_corpus

    require_dtype(args.dtype)
    read_captures(args.capture, args.store_dtype)
    recipe, out = recipe_context(args), args.out or session.default("out")
    require_place(Folder.at(out), args.force)
    RunSettings(args.batch_tokens, args.context, args.overlap, args.generate).validate()
    name, corpus = args.model, args.corpus
    if cell is not None:
        corpus = [line for line in split_lines(cell) if line.strip()]
    else:
        if corpus is None:  # a single name is that of the corpus
            name, corpus = None, name
        corpus = None if corpus is None else session.find_corpus(corpus)
    if corpus is None or (isinstance(corpus, (str, list)) and not corpus):
        raise MoeLensError(
            "expected a corpus to record, got none; "
            "give one, or write one document per line in the cell of %%moe record"
        )
    reading = {"encoding": args.encoding, "split_documents": args.split_documents}
    source = Corpus.of(corpus, args.text_column, args.license, **reading)
    if isinstance(corpus, str) and Path(corpus).is_file():
        survey_corpus(source)  # what cannot be read is reported before the model is loaded
    else:  # which is read once: on the hub, or in memory
        next(iter(source), None)
    if args.revision is None and (described := described_model(session.find_name(name))) is not None:
        CaptureRequest.of_shape(described.shape, args.capture, args.layers, args.experts, args.store_dtype)
    model = session.find_model(name, dtype=args.dtype, revision=args.revision, **_placement(args))
    with recipe(model):
        return record(
            model,
            source,
            out,
            capture=args.capture,
            layers=args.layers,
            experts=args.experts,
            store_dtype=args.store_dtype,
            generate=args.generate,
            context=args.context,
            overlap=args.overlap,
            batch_tokens=args.batch_tokens,
            add_special_tokens=args.add_special_tokens,
            force=args.force,
        )


def _placement(args: Namespace) -> dict[str, Any]:
    """The devices of the model, as options of `load`."""
    from moelens.recording import parallel

    several = parallel.join_processes()
    by_tensor, by_expert = getattr(args, "tensor_parallel", False), getattr(args, "expert_parallel", False)
    if by_tensor and by_expert:
        raise MoeLensError("expected --tensor-parallel or --expert-parallel, got both; give one of them")
    if by_tensor or by_expert:
        if not several:
            raise MoeLensError(
                "expected several processes to shard the model over, got 1; "
                "start them with torchrun --nproc_per_node N -m moelens"
            )
        return {"distributed_config": parallel.sharding(by_expert=by_expert)}
    if args.device_map:
        return {"device_map": args.device_map, "offload_folder": args.offload_folder}
    return {"device_map": parallel.local_device()} if parallel.local_device() != "cpu" else {}


def verify_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.recording import verify

    verification = verify(session.find_recording(args.recording, checked=False))
    if not verification:
        raise RecordingError("\nmoelens: ".join(verification.damage))
    return verification


def label_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.recording import label

    return label(session.find_recording(args.recording), args.policy, args.analyser, args.processes)


def export_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.recording import export

    return export(
        session.find_recording(args.recording),
        args.to,
        args.out,
        table=args.table,
        layers=args.layers,
        family=args.family,
        split=args.split,
        force=args.force,
    )


def import_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.recording import import_routes

    return import_routes(
        args.source,
        args.out,
        kind=args.kind,
        model=args.model,
        tokenizer=args.tokenizer,
        texts=args.texts,
        layers=args.layers,
        n_experts=args.experts,
        shape=None if args.shape is None else tuple(args.shape),
        skip_uncaptured=args.skip_uncaptured,
        force=args.force,
    )
