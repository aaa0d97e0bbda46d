"""How a result reaches its views without importing them: a registry by type.

`moelens.views` registers a `View` for each class of results. The package tells this module how to load the views
(`set_loader`); they are loaded when a result is first shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moelens.errors import MoeLensError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class View:
    """What can be shown of one class of objects; each function takes the object first.

    Attributes:
        html: a string of HTML with inline styles only, for notebooks.
        plot: draws on matplotlib axes (`ax=…`) and returns them.
        explore: returns a live widget.
    """

    html: Callable[..., str] | None = None
    plot: Callable[..., Any] | None = None
    explore: Callable[..., Any] | None = None


_VIEWS: dict[type, View] = {}
_loaders: list[Callable[[], object]] = []


def register(kind: type, view: View) -> None:
    """Use `view` for objects of class `kind` and of its subclasses that have none of their own."""
    _VIEWS[kind] = view


def set_loader(load: Callable[[], object]) -> None:
    """Call `load`, which registers views, when an object is first shown."""
    _loaders.append(load)


def find_view(kind: type, what: str) -> Callable[..., Any]:
    """The function that shows objects of class `kind`: its own, or that of the nearest base class.

    Args:
        kind: the class.
        what: "html", "plot" or "explore".

    Raises:
        MoeLensError: no such view is registered for the class or its bases.
    """
    while _loaders:
        _loaders.pop()()
    for base in kind.__mro__:
        found: Callable[..., Any] | None = getattr(_VIEWS.get(base), what, None)
        if found is not None:
            return found
    raise MoeLensError(
        f"expected a class with a view for {what}, got {kind.__name__}; "
        "register one with moelens.display.register(class, View(…))"
    )


class Displayed:
    """Gives an object rich output in notebooks; the views are loaded on first use."""

    __slots__ = ()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        return str(find_view(type(self), "html")(self))


class Plotted(Displayed):
    """Gives a result object `plot` as well."""

    def plot(self, *what: Any, ax: Axes | None = None, **options: Any) -> Any:
        """Draw the result with matplotlib and return the axes; the options are those of its function in `views`."""
        return find_view(type(self), "plot")(self, *what, ax=ax, **options)
