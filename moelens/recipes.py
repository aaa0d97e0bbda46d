"""Ready-made hooks in files of their own, loaded by path: see `hooks/README.md`."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moelens.errors import MoeLensError, UnknownNameError, unknown

Hooks = list[tuple[str, Callable[..., Any]]]


def load_hooks(path: str | Path, **options: Any) -> Callable[[Any], Hooks]:
    """Load a recipe: a Python file with a function `hooks(model, **options)`. The file is executed.

    Args:
        path: the file. Only a path given here is ever executed.
        options: passed to the recipe.

    Returns:
        A function from a hooked model to `[(hook_name, function), …]`, as `model.hooks` takes them.

    Raises:
        UnknownNameError: no such file, or an option the recipe does not have.
        MoeLensError: the file defines no `hooks`.

    Example:
        >>> recipe = moelens.load_hooks("hooks/remove_experts.py", layer=3, experts=[5])  # doctest: +SKIP
        >>> with model.hooks(fwd_hooks=recipe(model)):                                  # doctest: +SKIP
        ...     logits = model("先生がいらっしゃいました。")
    """
    path = Path(path)
    if not path.is_file():
        raise UnknownNameError(f"no recipe at '{path}'; give the path of a Python file")
    spec = importlib.util.spec_from_file_location(f"moelens_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hooks = getattr(module, "hooks", None)
    if not callable(hooks):
        raise MoeLensError(f"'{path}' defines no function hooks(model, **options); see hooks/README.md")
    allowed = list(inspect.signature(hooks).parameters)[1:]
    for name in options:
        if name not in allowed:
            raise unknown("option", name, allowed, f"of recipe {path.name}")

    def build(model: Any) -> Hooks:
        made: Hooks = hooks(model, **options)
        return made

    return build


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Values as Python writes them, or plain text.

    >>> parse_options(["strength=2.0", "experts=[5, 9]", "text=先生が来た。"])
    {'strength': 2.0, 'experts': [5, 9], 'text': '先生が来た。'}
    """
    parsed = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name.isidentifier():
            raise MoeLensError(f"option {option!r} is not NAME=VALUE, such as strength=2.0")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[name] = value
    return parsed
