"""`moelens effect`: attribution, exact removal and matched controls in one command. To be added it loads no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moelens.errors import MoeLensError
from moelens.recipes import add_arguments, from_arguments


def add_command(commands: Any) -> None:
    """Add `moelens effect` to the subparsers of the command line."""
    command = commands.add_parser("effect", help="find the experts that cause a preference, and test them by removal")
    command.add_argument("model", help="demo, a folder or a hub name")
    command.add_argument("--pairs", required=True, help="kind of the bundled minimal pairs, or a .jsonl file")
    command.add_argument("--top", type=int, default=5, help="experts to remove (%(default)s)")
    command.add_argument("--draws", type=int, default=20, help="matched controls for each (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of halves, controls and intervals (%(default)s)")
    command.add_argument(
        "--operation", help="such as remove, reroute or force: do this instead, to --experts of --layer"
    )
    command.add_argument("--layer", type=int)
    command.add_argument("--experts", help="ids such as 5,9, or shared")
    command.add_argument("--value", type=float, help="factor of scale, strength of steer")
    add_arguments(command)
    command.add_argument("--out", type=Path, help="JSON file to write the whole result to")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import moelens
    from moelens.interventions.causal import causes, read_pairs

    model, pairs = moelens.load(args.model), read_pairs(args.pairs)
    options = {"draws": args.draws, "seed": args.seed, "progress": True}
    with model.hooks(fwd_hooks=from_arguments(args, model)):
        result: Any = (
            one(args, model, pairs, options) if args.operation else causes(model, pairs, top=args.top, **options)
        )
    print(result)
    if args.out:
        result.save(args.out)


def one(args: argparse.Namespace, model: Any, pairs: Any, options: dict[str, Any]) -> Any:
    """The effect of the intervention that the arguments name."""
    from moelens.interventions.effects import effect
    from moelens.interventions.operations import named

    if args.layer is None or not args.experts:
        raise MoeLensError(f"--operation {args.operation} needs --layer and --experts, such as --layer 3 --experts 5,9")
    shared = args.experts == "shared"
    try:
        experts: Any = "shared" if shared else [int(e) for e in args.experts.split(",")]
    except ValueError as error:
        raise MoeLensError(f"--experts {args.experts} are not ids; give some such as 5,9, or shared") from error
    doing = named(args.operation, args.layer, experts, args.value)
    return effect(model, pairs, doing, controls=None if shared else "matched", **options)
