"""Load recipes: hooks in Python files of their own, see `hooks/README.md`."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelens.errors import MoeLensError, UnknownNameError, unknown

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_Hooks = list[tuple[str, Callable[..., Any]]]


def load_hooks(path: str | Path, **options: Any) -> Callable[[HookedMoE], _Hooks]:
    """Load a recipe: a Python file with a function `hooks(model, **options)`. The file is executed.

    Args:
        path: the file. Only a file given here is executed.
        options: options of the recipe, passed to its function.

    Returns:
        A function from a hooked model to `[(hook_name, function), …]`, as `model.hooks` takes them.

    Raises:
        UnknownNameError: there is no such Python file, or the recipe does not have an option.
        MoeLensError: the file is not Python, or defines no function `hooks`.

    Example:
        >>> recipe = moelens.load_hooks("hooks/remove_experts.py", layer=3, experts=[5])
        >>> with demo_model.hooks(fwd_hooks=recipe(demo_model)):
        ...     logits = demo_model("先生がいらっしゃいました。")
    """
    path = Path(path)
    if not path.is_file():
        raise UnknownNameError(f"expected the path of a recipe, got '{path}', which does not exist; give a Python file")
    spec = importlib.util.spec_from_file_location(f"moelens_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UnknownNameError(f"expected the path of a recipe, got '{path}', which is no Python file; give one")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise MoeLensError(f"expected a recipe in Python, got '{path}' ({error}); correct it") from error
    hooks = getattr(module, "hooks", None)
    if not callable(hooks):
        raise MoeLensError(
            f"expected a recipe with a function hooks(model, **options), got '{path}' without one; see hooks/README.md"
        )
    allowed = list(inspect.signature(hooks).parameters)[1:]
    for name in options:
        if name not in allowed:
            raise unknown("option", name, allowed, f"of recipe {path.name}")

    def build(model: HookedMoE) -> _Hooks:
        built: _Hooks = hooks(model, **options)
        return built

    return build


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Parse options of a recipe, each NAME=VALUE; a value is a Python literal or plain text.

    Raises:
        MoeLensError: an option is not of this form.

    Example:
        >>> parse_options(["strength=2.0", "experts=[5, 9]", "text=先生が来た。"])
        {'strength': 2.0, 'experts': [5, 9], 'text': '先生が来た。'}
    """
    parsed = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name.isidentifier():
            raise MoeLensError(f"expected an option NAME=VALUE, got {option!r}; write it such as strength=2.0")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[name] = value
    return parsed
