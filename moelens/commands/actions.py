"""What each command does: one call of a public function with what the arguments stand for. See `commands.table`."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from moelens.commands.session import Session
from moelens.errors import MoeLensError, RecordingError
from moelens.recipes import load_hooks as _load_recipe
from moelens.recipes import parse_options
from moelens.text_files import split_lines

HOW_TO_READ = """\
lift: how many times as often tokens of the label go to the expert as tokens do on the whole
lift | token: the same among tokens that are the same; near 1, the word explains it
left: share of the excess over chance that remains when the token is known
q: false discovery rate, p family: family-wise, both over all layers, experts and labels; *: one of them is below .05"""


def _or_default(session: Session, args: Namespace, *options: str) -> list[Any]:
    """The values of options, or the session's defaults where they are not given."""
    given = (getattr(args, option) for option in options)
    return [session.default(o) if value is None else value for o, value in zip(options, given, strict=True)]


def _recipe_options(args: Namespace) -> dict[str, Any]:
    """The options in `--set`, which need the recipe in `--hooks`."""
    if args.hooks is None and args.set:
        raise MoeLensError(f"--set {args.set[0]} is an option of a recipe; give its file with --hooks")
    return parse_options(args.set)


def _recipe(args: Namespace, model: Any) -> Any:
    """A context in which the model runs with the hooks of the recipe in `--hooks`."""
    options = _recipe_options(args)
    return model.hooks(fwd_hooks=[] if args.hooks is None else _load_recipe(args.hooks, **options)(model))


def _saved(result: Any, args: Namespace) -> Any:
    """The result, written to the file in `--out`."""
    if args.out and _is_first():
        result.save(args.out)
    return result


def _is_first() -> bool:
    """Whether this process prints and writes for all; a scheduler may set RANK for a process that works alone."""
    return os.environ.get("WORLD_SIZE", "1") in ("", "0", "1") or os.environ.get("RANK", "0") == "0"


def demo(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.workflows.demo_run import run_demo

    return run_demo(args.out, force=args.force)


def load(session: Session, args: Namespace, cell: str | None) -> Any:
    options = {"dtype": args.dtype, "revision": args.revision, **_placement(args)}
    return session.find_model(args.model, fresh=True, **options)


def info(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.models.loading import architectures
    from moelens.models.summary import info

    if args.architectures:
        return "\n".join(f"{name:<24} {how}" for name, how in architectures().items())
    if args.model is None and type(session) is Session:
        raise MoeLensError("which model? give a folder, a name, 'demo', or --architectures for what is supported")
    return info(session.find_name(args.model))


def plan(session: Session, args: Namespace, cell: str | None) -> Any:
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


def record(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.recording import Corpus, record

    name, corpus = args.model, args.corpus
    if cell is not None:
        corpus = [line for line in split_lines(cell) if line.strip()]
    else:
        if corpus is None:  # the one name on the line is the corpus
            name, corpus = None, name
        corpus = None if corpus is None else session.find_corpus(corpus)
    if corpus is None or (isinstance(corpus, (str, list)) and not corpus):
        raise MoeLensError("nothing to record; give a corpus, or write one document a line in the cell of %%moe record")
    source = Corpus.of(corpus, args.text_column, args.license)
    model = session.find_model(name, dtype=args.dtype, revision=args.revision, **_placement(args))
    with _recipe(args, model):
        return record(
            model,
            source,
            args.out or session.default("out"),
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
    """Where the model goes, as options of `load`."""
    from moelens.recording import parallel

    several = parallel.join_processes()
    by_tensor, by_expert = getattr(args, "tensor_parallel", False), getattr(args, "expert_parallel", False)
    if by_tensor and by_expert:
        raise MoeLensError("expected --tensor-parallel or --expert-parallel, got both; give one of them")
    if by_tensor or by_expert:
        if not several:
            raise MoeLensError(
                "a model is sharded over processes; start them with torchrun --nproc_per_node N -m moelens"
            )
        return {"distributed_config": parallel.sharding(by_expert=by_expert)}
    if args.device_map:
        return {"device_map": args.device_map, "offload_folder": args.offload_folder}
    return {"device_map": parallel.local_device()} if parallel.local_device() != "cpu" else {}


def verify(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.recording import verify

    found = verify(session.find_recording(args.recording))
    if not found:
        raise RecordingError("\nmoelens: ".join(found.damage))
    return found


def label(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.recording import label

    return label(session.find_recording(args.recording), args.policy, args.analyser, args.processes)


def analyze(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import analyze
    from moelens.recording.parallel import Ranks

    recording = session.find_recording(args.recording)
    family, seed = _or_default(session, args, "family", "seed")
    result = analyze(
        recording,
        family,
        given=args.given and tuple(args.given.split(",")),
        permutations=args.permutations,
        seed=seed,
        progress=None if Ranks.of(None).first else False,
    )
    return _saved(result, args)


def measure(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import measure

    (family,) = _or_default(session, args, "family")
    return _saved(measure(session.find_recording(args.recording), args.name, family), args)


def compare(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import compare

    a, b = session.find_recording(args.a), session.find_recording(args.b)
    family, seed = _or_default(session, args, "family", "seed")
    return _saved(compare(a, b, family, permutations=args.permutations, seed=seed), args)


def trace(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.tracing import trace

    words = " ".join(args.text)
    text, name = (words, args.model) if cell is None else (cell.strip("\r\n"), args.model or words or None)
    if not text.strip():
        raise MoeLensError("nothing to trace; write the text below %%moe trace in the same cell, or %moe trace TEXT")
    return trace(session.find_model(name), text)


def prefer(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.interventions import prefer
    from moelens.interventions.preference import read_lines

    pairs: Any = read_lines(cell) if cell is not None else _or_default(session, args, "pairs")[0]
    model = session.find_model(args.model)
    with _recipe(args, model):
        return _saved(prefer(model, pairs), args)


def causes(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.interventions import causes
    from moelens.interventions.readout import as_pairs

    pairs, seed = _or_default(session, args, "pairs", "seed")
    pairs = as_pairs(pairs)  # a mistake in them is found before the model is loaded
    model = session.find_model(args.model)
    with _recipe(args, model):
        return _saved(causes(model, pairs, top=args.top, draws=args.draws, seed=seed), args)


def effect(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.interventions import effect
    from moelens.interventions.operations import named
    from moelens.interventions.readout import as_pairs

    pairs, seed = _or_default(session, args, "pairs", "seed")
    pairs, experts = as_pairs(pairs), _expert_ids(args.experts)
    intervention = named(args.operation, args.layer, experts, args.value)
    controls: Any = None if experts == "shared" or not args.draws else "matched"
    model = session.find_model(args.model)
    with _recipe(args, model):
        found = effect(model, pairs, intervention, controls=controls, draws=args.draws or 20, seed=seed)
        return _saved(found, args)


def _expert_ids(text: str) -> Any:
    """`shared`, or ids such as `5,9`."""
    try:
        return "shared" if text == "shared" else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise MoeLensError(f"--experts {text!r} are not ids; give some such as 5,9, or shared") from error


def probe(session: Session, args: Namespace, cell: str | None) -> Any:
    if str(args.recording).endswith(".toml"):
        from moelens.commands.script import run_script

        return run_script(args.recording, hooks=args.hooks, options=_recipe_options(args))
    from moelens.probes import probe

    if args.hooks:
        raise MoeLensError(f"recipe '{args.hooks}' cannot change what is recorded; give it to record")
    family, seed = _or_default(session, args, "family", "seed")
    return _saved(probe(session.find_recording(args.recording), family, args.features, seed=seed), args)


def export(session: Session, args: Namespace, cell: str | None) -> Any:
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


def import_routes(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.recording import import_routes

    return import_routes(
        args.source,
        args.out,
        kind=args.kind,
        model=args.model,
        layers=args.layers,
        n_experts=args.experts,
        shape=None if args.shape is None else tuple(args.shape),
        force=args.force,
    )


def report(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.workflows.reporting import report

    return report(session.find_recording(args.recording), args.out, permutations=args.permutations)


def explore(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.workflows.exploration import explore

    (family,) = _or_default(session, args, "family")
    model = None if args.model is None else session.find_name(args.model)
    recording = session.find_recording(args.recording)
    found = explore(recording, model, args.label, family=family, permutations=args.permutations)
    if args.out:
        found.save_html(args.out)
    return found


def load_hooks(session: Session, args: Namespace, cell: str | None) -> Any:
    return _load_recipe(args.file, **parse_options(args.set))(session.find_model(args.model))


# What the command line prints


def show_text(result: Any, args: Namespace) -> str | None:
    return str(result)


def show_first(result: Any, args: Namespace) -> str | None:
    return str(result) if _is_first() else None


def show_findings(result: Any, args: Namespace) -> str | None:
    return f"{result.table(args.top)}\n\n{HOW_TO_READ}" if _is_first() else None


def show_outcomes(result: Any, args: Namespace) -> str | None:
    """Of a script, a line for each entry; exits with 1 where one is not as expected."""
    if not isinstance(result, tuple):
        return str(result)
    if any(outcome.failed for outcome in result):
        print("\n".join(map(str, result)))
        sys.exit(1)
    return "\n".join(map(str, result))


def show_saved_explorer(result: Any, args: Namespace) -> str | None:
    return str(args.out or result.save_html(Path("explorer.html")))
