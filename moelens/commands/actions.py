"""What each command runs: one call of a public function with what the arguments stand for.

`NAME_command` runs the command of this name, and `show_…` returns the text that the command line prints of its result.
See `moelens.commands.table`.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from moelens.commands.session import Session
from moelens.errors import MoeLensError, RecordingError
from moelens.recipes import load_hooks, parse_options
from moelens.text_files import split_lines

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_LIFT = "lift: share of the label's tokens that go to the expert, divided by the share of all tokens that do"
_LEGENDS = {
    "test": f"""\
{_LIFT}
lift given token: the same among tokens of one id; near 1, the token explains the preference
the strongest first: significant ones, by the share of the label's tokens that go to the expert beyond chance
q: false discovery rate, p family: family-wise p, both over all layers, experts and labels; *: one is below .05""",
    "bounds": f"""\
{_LIFT}
bounds: between which the lift lies, whichever tokens of a type went to the expert; *: they exclude 1
exact: share of the tokens for which both bounds are the same""",
    "none": _LIFT,
}


def _or_default(session: Session, args: Namespace, *options: str) -> list[Any]:
    """The values of options; those that are not given have the defaults of the session."""
    values = {option: getattr(args, option) for option in options}
    return [session.default(option) if value is None else value for option, value in values.items()]


def _recipe_options(args: Namespace) -> dict[str, Any]:
    """The options in `--set`, after a check that `--hooks` gives a recipe for them."""
    if args.hooks is None and args.set:
        raise MoeLensError(f"expected --hooks FILE with --set, got --set {args.set[0]} alone; give the recipe's file")
    return parse_options(args.set)


def _recipe(args: Namespace) -> Callable[[HookedMoE], AbstractContextManager[HookedMoE]]:
    """A function that gives a context in which a model runs with the hooks of the recipe in `--hooks`."""
    options = _recipe_options(args)
    recipe = None if args.hooks is None else load_hooks(args.hooks, **options)
    return lambda model: model.hooks(fwd_hooks=[] if recipe is None else recipe(model))


def _described(model: Any) -> Any:
    """What can be checked of a model before it is loaded: its name and sizes. A model that is loaded stands for itself.

    None if its configuration does not say them; loading it then says why.
    """
    from moelens.models.loading import describe_configuration

    if not isinstance(model, str):
        return model
    try:
        return SimpleNamespace(name=model, shape=describe_configuration(model)[0], refused={})
    except MoeLensError:
        return None


def _require_experts(model: Any, interventions: Any) -> None:
    """Check the layers and experts of interventions before the model is loaded."""
    if (described := _described(model)) is not None:
        for intervention in interventions if isinstance(interventions, Iterable) else (interventions,):
            intervention.require(described)


def _save_result(result: Any, args: Namespace) -> Any:
    """Write the result to the file in `--out`, and return it."""
    if args.out and _is_first():
        result.save(args.out)
    return result


def _is_first() -> bool:
    """Whether this process is the one that prints and writes, among those that run together.

    A scheduler may set RANK for a process that works alone.
    """
    return os.environ.get("WORLD_SIZE", "1") in ("", "0", "1") or os.environ.get("RANK", "0") == "0"


def demo_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.workflows.demo_run import run_demo

    (lang,) = _or_default(session, args, "lang")
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

    require_dtype(args.dtype)
    read_captures(args.capture, args.store_dtype)
    recipe, out = _recipe(args), args.out or session.default("out")
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
    next(iter(source), None)  # a column that is missing is reported before the model is loaded
    if (described := _described(session.find_name(name))) is not None and args.revision is None:
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


def analyze_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import analyze
    from moelens.recording.parallel import Ranks
    from moelens.workflows.recorded_models import with_baseline

    if args.export_experts is not None:
        _check_export(args)
    recording = session.find_recording(args.recording)
    family, seed = _or_default(session, args, "family", "seed")
    model = _baseline_model(session, args, recording)
    result = analyze(
        recording,
        family,
        given=_controls(args.given),
        permutations=args.permutations,
        min_tokens=args.min_tokens,
        max_share=args.max_share,
        seed=seed,
        progress=None if Ranks.of(None).first else False,
    )
    if args.label is not None:
        result.label_index(args.label)
    if args.baseline:
        result = with_baseline(result, recording, model)
    _save_result(result, args)
    if args.export_experts is not None and _is_first():
        _export_experts(result, args)
    return result


def _baseline_model(session: Session, args: Namespace, recording: Any) -> Any:
    """The model for `--baseline`, refused before the analysis if it did not make the recording."""
    from moelens.workflows.recorded_models import recorded_model, require_one_process

    if not args.baseline:
        return None
    require_one_process()
    return recorded_model(recording, None if args.model is None else session.find_name(args.model))


def _controls(given: str) -> tuple[str, ...] | None:
    """The controls in `--given`; None for `none`."""
    return None if given == "none" else tuple(given.split(","))


def _check_export(args: Namespace) -> None:
    """Check what can be checked of `--export-experts` before the analysis."""
    from moelens.analysis.expert_lists import check_file

    check_file(args.export_experts, args.form)
    if args.label is None:
        raise MoeLensError(
            "expected --label LABEL with --export-experts, got none; name the label whose experts to list"
        )


def _export_experts(result: Any, args: Namespace) -> None:
    """Write the experts that were found; if there are none, print what was found before the error."""
    from moelens.analysis import found_experts

    try:
        found_experts(result, args.label, args.form, args.keep).save(args.export_experts)
    except MoeLensError:
        print(show_findings(result, args))
        raise


def measure_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import measure

    (family,) = _or_default(session, args, "family")
    source = session.find_source(args.recording)
    return _save_result(measure(source, args.name, family, top_n=args.top_n), args)


def compare_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import compare

    a = session.find_recording(args.a)
    b = None if args.b is None else session.find_recording(args.b)
    family, seed = _or_default(session, args, "family", "seed")
    if args.phase is not None:
        result: Any = compare(a, b, phase=args.phase, permutations=args.permutations, seed=seed)
    else:
        options: Any = {"given": _controls(args.given), "permutations": args.permutations, "seed": seed}
        result = compare(a, b, family, **options)  # type: ignore[arg-type]
    return _save_result(result, args)


def trace_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.tracing import trace

    words = " ".join(args.text)
    text, name = (words, args.model) if cell is None else (cell.strip("\r\n"), args.model or words or None)
    if not text.strip():
        raise MoeLensError(
            "expected a text to trace, got none; write it below %%moe trace in the same cell, or as %moe trace TEXT"
        )
    return trace(session.find_model(name), text)


def prefer_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.interventions import prefer
    from moelens.interventions.items import as_items, read_pair_lines

    pairs: Any = read_pair_lines(cell) if cell is not None else as_items(_or_default(session, args, "pairs")[0])
    recipe = _recipe(args)
    model = session.find_model(args.model)
    with recipe(model):
        return _save_result(prefer(model, pairs), args)


def causes_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.interventions import causes
    from moelens.interventions.controls import require_draws
    from moelens.interventions.items import as_items
    from moelens.recording import Corpus

    pairs, seed = _or_default(session, args, "pairs", "seed")
    pairs, recipe = as_items(pairs), _recipe(args)  # checked before the model is loaded, as all that can be
    require_draws(args.draws)
    corpora = None if args.corpora is None else {name: Corpus.of(name) for name in args.corpora}
    model = session.find_model(args.model)
    options = {"top": args.top, "draws": args.draws, "corpora": corpora, "doses": args.doses, "seed": seed}
    with recipe(model):
        return _save_result(causes(model, pairs, **options), args)


def effect_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.interventions import effect
    from moelens.interventions.controls import require_draws
    from moelens.interventions.items import as_items

    if (args.experts is None) == (args.findings is None):
        raise MoeLensError(
            "expected the experts in --experts, or a result of analyze in --from, got "
            f"{'neither' if args.experts is None else 'both'}; give one of them"
        )
    if args.findings is not None:
        chosen: _ChosenExperts = _experts_of_findings(session, args)
    else:
        chosen = _experts_of_option(args)
    (seed,) = _or_default(session, args, "seed")
    pairs = as_items(chosen.pairs or _or_default(session, args, "pairs")[0])  # checked before the model is loaded
    controls: Any = None if args.experts == "shared" or not args.draws else "matched"
    if controls:
        require_draws(args.draws)
    recipe = _recipe(args)
    if (described := _described(session.find_name(chosen.model))) is not None:
        _require_experts(described, chosen.interventions(described.shape.n_experts))
    model = session.find_model(chosen.model)
    interventions = chosen.interventions(model.shape.n_experts)
    with recipe(model):
        result = effect(model, pairs, interventions, controls=controls, draws=args.draws or 100, seed=seed)
        return _save_result(result, args)


@dataclass(frozen=True)
class _ChosenExperts:
    """What `effect` intervenes on.

    Attributes:
        model: the name of the model; None for the default.
        pairs: the kind or file of pairs; None for the default.
        interventions: makes the interventions for a model with so many experts in each layer.
    """

    model: str | None
    pairs: str | None
    interventions: Callable[[int], Any]


def _experts_of_option(args: Namespace) -> _ChosenExperts:
    """The experts in `--experts`: ids, `shared`, or a file of `--export-experts`."""
    from moelens.analysis.expert_lists import SUFFIXES
    from moelens.interventions import listed_interventions
    from moelens.interventions.listed_experts import read_listed
    from moelens.interventions.operations import operation_by_name

    if Path(args.experts).suffix in SUFFIXES:
        listed = read_listed(args.experts)
        return _ChosenExperts(
            args.model, args.pairs, lambda n: listed_interventions(listed, args.operation, args.value, n_experts=n)
        )
    experts = _expert_ids(args.experts)
    if args.layer is None:
        raise MoeLensError("expected --layer with ids of experts, got none; give the number of their layer")
    made = operation_by_name(args.operation, args.layer, experts, args.value)
    return _ChosenExperts(args.model, args.pairs, lambda _: made)


def _experts_of_findings(session: Session, args: Namespace) -> _ChosenExperts:
    """The strongest experts that `analyze` found for a label, the model in which it did, and what tests the label."""
    from moelens.analysis import Specialization
    from moelens.interventions.listed_experts import found_interventions
    from moelens.japanese.crossed_contrasts import KIND_OF_LABEL

    found = Specialization.open(args.findings)
    label, made = found_interventions(found, args.label, args.operation, args.value, top=args.top)
    recorded = str(found.provenance.get("model") or "")
    if args.model is not None and recorded and recorded != args.model and type(session) is Session:
        raise MoeLensError(
            f"expected the model of the findings in '{args.findings}', {recorded!r}, got {args.model!r}; leave the "
            "model out, or analyze a recording of this one"
        )
    pairs = args.pairs or KIND_OF_LABEL.get(label)
    if pairs is None:
        raise MoeLensError(
            f"expected --pairs for the label {label}, which no kind of contrasts tests, got none; give a kind or a file"
        )
    return _ChosenExperts(args.model or recorded or None, pairs, lambda _: made)


def steer_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis.expert_lists import SUFFIXES
    from moelens.interventions import shift, steer
    from moelens.interventions.listed_experts import read_listed
    from moelens.interventions.steering import require_steering

    (seed,) = _or_default(session, args, "seed")
    listed, recipe = Path(args.experts).suffix in SUFFIXES, _recipe(args)
    experts: Any = read_listed(args.experts) if listed else _expert_places(args.experts)
    require_steering(args.strengths, args.controls, args.new_tokens)
    _require_experts(
        session.find_name(args.model), () if listed else (shift(layer, [expert], 1.0) for layer, expert in experts)
    )
    prompts = None if cell is None else [line for line in cell.splitlines() if line.strip()]
    model = session.find_model(args.model)
    with recipe(model):
        result = steer(
            model,
            prompts,
            experts,
            args.strengths,
            controls=args.controls,
            new_tokens=args.new_tokens,
            seed=seed,
        )
    return _save_result(result, args)


def _expert_places(text: str) -> list[tuple[int, int]]:
    """Layers and ids of experts such as `3:5,3:9`."""
    try:
        return [(int(layer), int(expert)) for layer, expert in (part.split(":") for part in text.split(","))]
    except ValueError as error:
        raise MoeLensError(
            f"expected --experts with LAYER:EXPERT such as 3:5,4:21, or a file of experts, got {text!r}; "
            "separate them with commas"
        ) from error


def _expert_ids(text: str) -> Any:
    """`shared`, or ids such as `5,9`."""
    try:
        return "shared" if text == "shared" else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise MoeLensError(
            f"expected --experts with ids such as 5,9, the word shared or a file of experts, got {text!r}; separate "
            "ids with commas"
        ) from error


def probe_command(session: Session, args: Namespace, cell: str | None) -> Any:
    if str(args.recording).endswith(".toml"):
        from moelens.commands.script import run_script

        return run_script(args.recording, hooks=args.hooks, options=_recipe_options(args))
    from moelens.probes import probe

    if args.hooks:
        raise MoeLensError(
            f"expected a recording without --hooks, got --hooks '{args.hooks}', which cannot change a finished "
            "recording; give the recipe to moelens record"
        )
    family, seed = _or_default(session, args, "family", "seed")
    return _save_result(probe(session.find_recording(args.recording), family, args.features, seed=seed), args)


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


def import_counts_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import import_counts

    return import_counts(
        [_named_source(source) for source in args.sources],
        args.out,
        kind=args.kind,
        groups=args.groups,
        total=args.total,
        model=args.model or "",
        layers=args.layers,
        n_experts=args.experts,
        top_k=args.top_k,
        tolerance=args.tolerance,
    )


def _named_source(source: str) -> Any:
    """A file, or the name of its group and the file, of NAME=FILE."""
    name, equals, path = source.partition("=")
    return (name, path) if equals and not Path(source).exists() else source


def import_types_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import Counts

    (family,) = _or_default(session, args, "family")
    result = Counts.from_types(
        args.types,
        text=args.text,
        tokenizer=args.tokenizer,
        recording=None if args.recording is None else session.find_recording(args.recording),
        family=family,
        n_experts=args.experts,
        top_k=args.top_k,
        model=args.model or "",
    )
    return _save_result(result, args)


def report_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.workflows.reporting import report

    (lang,) = _or_default(session, args, "lang")
    return report(
        session.find_source(args.recording),
        args.out,
        effects="remove" if args.effects == [] else args.effects or (),
        baseline=args.baseline,
        compare=None if args.compare is None else session.find_recording(args.compare),
        model=None if args.model is None else session.find_name(args.model),
        permutations=args.permutations,
        lang=lang,
    )


def explore_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.workflows.exploration import explore

    family, lang = _or_default(session, args, "family", "lang")
    model = None if args.model is None else session.find_name(args.model)
    recording = session.find_recording(args.recording)
    explorer = explore(
        recording,
        model,
        args.label,
        family=family,
        given=_controls(args.given),
        baseline=args.baseline,
        permutations=args.permutations,
        lang=lang,
    )
    if args.out:
        explorer.save_html(args.out)
    return explorer


def hooks_command(session: Session, args: Namespace, cell: str | None) -> Any:
    return load_hooks(args.file, **parse_options(args.set))(session.find_model(args.model))


def show_text(result: Any, args: Namespace) -> str | None:
    """The printed form of a result."""
    return str(result)


def show_table(result: Any, args: Namespace) -> str | None:
    """The printed form of an effect, causes or preferences, in the language that was asked for."""
    return str(result.table(args.lang or "en"))


def show_text_once(result: Any, args: Namespace) -> str | None:
    """The printed form of a result, from the first of several processes only."""
    return str(result) if _is_first() else None


def show_findings(result: Any, args: Namespace) -> str | None:
    """The strongest findings with a legend, from the first of several processes only."""
    label = getattr(args, "label", None)
    text = f"{result.table(args.top, label=label)}\n\n{_LEGENDS[result.evidence]}"
    return text if _is_first() else None


def show_outcomes(result: Any, args: Namespace) -> str | None:
    """A line for each entry of a script; exits with status 1 if an entry does not meet its expectations."""
    if not isinstance(result, tuple):
        return str(result)
    if any(outcome.failed for outcome in result):
        print("\n".join(map(str, result)))
        sys.exit(1)
    return "\n".join(map(str, result))


def show_explorer_path(result: Any, args: Namespace) -> str | None:
    """The path of the HTML file of an explorer, which is written here if `--out` did not name one."""
    return str(args.out or result.save_html(Path("explorer.html")))
