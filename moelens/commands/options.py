"""What the arguments of several commands stand for, and what becomes of their results."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from moelens.commands.session import Session
from moelens.errors import MoeLensError, UnknownNameError
from moelens.recipes import load_hooks, parse_options

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE


def or_default(session: Session, args: Namespace, *options: str) -> list[Any]:
    """The values of options; those that are not given have the defaults of the session."""
    values = {option: getattr(args, option) for option in options}
    return [session.default(option) if value is None else value for option, value in values.items()]


def recipe_options(args: Namespace) -> dict[str, Any]:
    """The options in `--set`, after a check that `--hooks` gives a recipe for them."""
    if args.hooks is None and args.set:
        raise MoeLensError(f"expected --hooks FILE with --set, got --set {args.set[0]} alone; give the recipe's file")
    return parse_options(args.set)


def recipe_context(args: Namespace) -> Callable[[HookedMoE], AbstractContextManager[HookedMoE]]:
    """A function that gives a context in which a model runs with the hooks of the recipe in `--hooks`."""
    options = recipe_options(args)
    recipe = None if args.hooks is None else load_hooks(args.hooks, **options)
    return lambda model: model.hooks(fwd_hooks=[] if recipe is None else recipe(model))


def described_model(model: Any) -> Any:
    """What can be checked of a model before it is loaded: its name and sizes. A model that is loaded stands for itself.

    None if its configuration does not say them; loading it then says why.

    Raises:
        UnknownNameError: there is no such model; loading it would look for it once more, on the network too.
    """
    from moelens.models.loading import describe_configuration

    if not isinstance(model, str):
        return model
    try:
        return SimpleNamespace(name=model, shape=describe_configuration(model)[0], refused={})
    except MoeLensError as error:
        if isinstance(error, UnknownNameError) and not os.path.exists(model):
            raise
        return None


def require_experts(model: Any, interventions: Any) -> None:
    """Check the layers and experts of interventions before the model is loaded."""
    if (described := described_model(model)) is not None:
        for intervention in interventions if isinstance(interventions, Iterable) else (interventions,):
            intervention.require(described)


def save_result(result: Any, args: Namespace) -> Any:
    """Write the result to the file in `--out`, and return it."""
    if args.out and is_first():
        result.save(args.out)
    return result


def is_first() -> bool:
    """Whether this process is the one that prints and writes, among those that run together.

    A scheduler may set RANK for a process that works alone.
    """
    return os.environ.get("WORLD_SIZE", "1") in ("", "0", "1") or os.environ.get("RANK", "0") == "0"


def read_controls(given: str) -> tuple[str, ...] | None:
    """The controls in `--given`; None for `none`."""
    return None if given == "none" else tuple(given.split(","))
