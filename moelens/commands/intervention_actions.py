"""What the commands on traces, preferences and interventions run; see `moelens.commands.table`.

`NAME_command` runs the command of this name: one call of a public function with what the arguments stand for.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moelens.commands.options import described_model, or_default, recipe_context, require_experts, save_result
from moelens.commands.session import Session
from moelens.errors import MoeLensError
from moelens.recipes import load_hooks, parse_options


def trace_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.tracing import trace

    words = " ".join(args.text)
    text, name = (words, args.model) if cell is None else (cell.strip("\r\n"), args.model or words or None)
    if not text.strip():
        raise MoeLensError(
            "expected a text to trace, got none; write it after the command, or below %%moe trace in the same cell"
        )
    return trace(session.find_model(name), text)


def prefer_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.interventions import prefer
    from moelens.interventions.items import as_items, read_pair_lines

    pairs: Any = read_pair_lines(cell) if cell is not None else as_items(or_default(session, args, "pairs")[0])
    recipe = recipe_context(args)
    model = session.find_model(args.model)
    with recipe(model):
        return save_result(prefer(model, pairs), args)


def causes_command(session: Session, args: Namespace, cell: str | None) -> Any:
    from moelens.interventions import causes
    from moelens.interventions.causal import require_causes
    from moelens.interventions.controls import require_draws
    from moelens.interventions.items import as_items
    from moelens.recording import Corpus

    pairs, seed = or_default(session, args, "pairs", "seed")
    pairs, recipe = as_items(pairs), recipe_context(args)  # checked before the model is loaded, as all that can be
    require_draws(args.draws)
    corpora = None if args.corpora is None else {name: Corpus.of(name) for name in args.corpora}
    require_causes(pairs, corpora, args.doses)
    model = session.find_model(args.model)
    options = {"top": args.top, "draws": args.draws, "corpora": corpora, "doses": args.doses, "seed": seed}
    with recipe(model):
        return save_result(causes(model, pairs, **options), args)


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
    (seed,) = or_default(session, args, "seed")
    pairs = as_items(chosen.pairs or or_default(session, args, "pairs")[0])  # checked before the model is loaded
    controls: Any = None if args.experts == "shared" or not args.draws else "matched"
    if controls:
        require_draws(args.draws)
    recipe = recipe_context(args)
    if (described := described_model(session.find_name(chosen.model))) is not None:
        require_experts(described, chosen.interventions(described.shape.n_experts))
    model = session.find_model(chosen.model)
    interventions = chosen.interventions(model.shape.n_experts)
    with recipe(model):
        result = effect(model, pairs, interventions, controls=controls, draws=args.draws or 100, seed=seed)
        return save_result(result, args)


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
    from moelens.interventions.steering import require_steering, steered_experts

    (seed,) = or_default(session, args, "seed")
    listed, recipe = Path(args.experts).suffix in SUFFIXES, recipe_context(args)
    experts: Any = read_listed(args.experts) if listed else _expert_places(args.experts)
    prompts = None if cell is None else [line for line in cell.splitlines() if line.strip()]
    if (described := described_model(session.find_name(args.model))) is not None:
        experts = steered_experts(experts, described.shape.n_experts)
        require_experts(described, (shift(layer, [expert], bias) for layer, expert, bias in experts))
    require_steering(prompts, (experts,), args.strengths, args.controls, args.new_tokens)
    model = session.find_model(args.model)
    options = {"controls": args.controls, "new_tokens": args.new_tokens, "seed": seed}
    with recipe(model):
        return save_result(steer(model, prompts, experts, args.strengths, **options), args)


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


def hooks_command(session: Session, args: Namespace, cell: str | None) -> Any:
    return load_hooks(args.file, **parse_options(args.set))(session.find_model(args.model))
