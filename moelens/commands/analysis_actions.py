"""What the commands on analyses and their views run; see `moelens.commands.table`.

`NAME_command` runs the command of this name: one call of a public function with what the arguments stand for.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from moelens.commands.options import is_first, or_default, read_controls, recipe_options, save_result
from moelens.commands.printing import show_findings
from moelens.commands.session import Session
from moelens.errors import MoeLensError
from moelens.files import require_file


def analyze_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import analyze

    if args.export_experts is not None:
        _check_export(args)
    recording = session.find_recording(args.recording)
    family, seed = or_default(session, args, "family", "seed")
    if args.label is not None:
        _require_label(recording, family, args.label)
    model = _baseline_model(session, args, recording)
    result = analyze(
        recording,
        family,
        given=read_controls(args.given),
        permutations=args.permutations,
        min_tokens=args.min_tokens,
        max_share=args.max_share,
        seed=seed,
        progress=None if is_first() else False,
    )
    if args.baseline:
        from moelens.workflows.recorded_models import with_baseline  # imports torch, which analyses do not need

        result = with_baseline(result, recording, model)
    save_result(result, args)
    if args.export_experts is not None and is_first():
        _export_experts(result, args)
    return result


def _require_label(recording: Any, family: str, label: str) -> None:
    """Check that a family of the recording has a label, before the analysis."""
    from moelens.analysis.samples import label_names
    from moelens.japanese import Labels
    from moelens.japanese.families import require_name

    names = label_names(recording, Labels.open_or_create(recording), family)
    require_name(label, names, f"family '{family}'")


def _baseline_model(session: Session, args: Namespace, recording: Any) -> Any:
    """The model for `--baseline`, refused before the analysis if it did not make the recording.

    What is wrong in the other arguments is refused before the model is loaded.
    """
    if not args.baseline:
        return None
    from moelens.analysis.specialize import find_names, require_settings
    from moelens.workflows.recorded_models import recorded_model, require_one_process

    (family,) = or_default(session, args, "family")
    require_settings(args.permutations, args.min_tokens, args.max_share)
    find_names(recording, family, None, read_controls(args.given))
    require_one_process()
    return recorded_model(recording, None if args.model is None else session.find_name(args.model))


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

    (family,) = or_default(session, args, "family")
    source = session.find_source(args.recording)
    return save_result(measure(source, args.name, family, top_n=args.top_n), args)


def compare_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.analysis import compare

    a = session.find_recording(args.a)
    b = None if args.b is None else session.find_recording(args.b)
    family, seed = or_default(session, args, "family", "seed")
    if args.phase is not None:
        result: Any = compare(a, b, phase=args.phase, permutations=args.permutations, seed=seed)
    else:
        options: Any = {"given": read_controls(args.given), "permutations": args.permutations, "seed": seed}
        result = compare(a, b, family, **options)  # type: ignore[arg-type]
    return save_result(result, args)


def probe_command(session: Session, args: Namespace, cell: str | None) -> Any:
    if str(args.recording).endswith(".toml"):
        from moelens.commands.script import run_script

        return run_script(args.recording, hooks=args.hooks, options=recipe_options(args))
    from moelens.probes import probe

    if args.hooks:
        raise MoeLensError(
            f"expected a recording without --hooks, got --hooks '{args.hooks}', which cannot change a finished "
            "recording; give the recipe to moelens record"
        )
    family, seed = or_default(session, args, "family", "seed")
    return save_result(probe(session.find_recording(args.recording), family, args.features, seed=seed), args)


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

    (family,) = or_default(session, args, "family")
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
    return save_result(result, args)


def report_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.workflows.reporting import report

    (lang,) = or_default(session, args, "lang")
    return report(
        session.find_source(args.recording),
        args.out,
        effects="remove" if args.effects == [] else args.effects or (),
        baseline=args.baseline,
        compare=None if args.compare is None else session.find_recording(args.compare),
        model=None if args.model is None else session.find_name(args.model),
        permutations=args.permutations,
        documents=args.documents,
        lang=lang,
    )


def explore_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.workflows.exploration import explore

    family, lang = or_default(session, args, "family", "lang")
    if args.out is not None:
        require_file(args.out, "explorer.html")
    model = None if args.model is None else session.find_name(args.model)
    recording = session.find_recording(args.recording)
    explorer = explore(
        recording,
        model,
        args.label,
        family=family,
        given=read_controls(args.given),
        baseline=args.baseline,
        permutations=args.permutations,
        documents=args.documents,
        lang=lang,
    )
    if args.out:
        explorer.save_html(args.out)
    return explorer
