"""How a result finds its views: a registry by class, which does not import the views.

`moelens.views` registers a `View` for each class of results. The package gives this module a function that imports the
views (`set_loader`); it is called when a result is first shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from moelens.errors import MoeLensError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class View:
    """The functions that show objects of one class. Each takes the object as its first argument.

    Attributes:
        html: returns a string of HTML with inline styles only, for notebooks.
        plot: draws on matplotlib axes (`ax=…`) and returns them.
        explore: returns a live widget.
    """

    html: Callable[..., str] | None = None
    plot: Callable[..., Any] | None = None
    explore: Callable[..., Any] | None = None


_VIEWS: dict[type, View] = {}
_loaders: list[Callable[[], object]] = []


def register_view(cls: type, view: View) -> None:
    """Show objects of a class with `view`.

    Args:
        cls: the class. Its subclasses are shown in the same way, unless they have a view of their own.
        view: the functions that show it.

    Example:
        >>> class Answer(Displayed):
        ...     pass
        >>> register_view(Answer, View(html=lambda answer: "<b>42</b>"))
        >>> Answer()._repr_html_()
        '<b>42</b>'
    """
    _VIEWS[cls] = view


def set_loader(load: Callable[[], object]) -> None:
    """Have `load` called when an object is first shown; it registers the views."""
    _loaders.append(load)


def find_view(cls: type, what: Literal["html", "plot", "explore"]) -> Callable[..., Any]:
    """Find the function that shows objects of a class, among those of the class and of its bases.

    Args:
        cls: the class.
        what: the kind of view.

    Returns:
        The function that is registered for the class itself or for the nearest base class.

    Raises:
        MoeLensError: no such view is registered for the class or its bases.
    """
    while _loaders:
        _loaders.pop()()
    for base in cls.__mro__:
        function: Callable[..., Any] | None = getattr(_VIEWS.get(base), what, None)
        if function is not None:
            return function
    raise MoeLensError(
        f"expected a class with a view for {what}, got {cls.__name__}; "
        "register one with moelens.display.register_view(class, View(…))"
    )


class Displayed:
    """Base class of objects that notebooks show as HTML."""

    __slots__ = ()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        return str(find_view(type(self), "html")(self))


class Plotted(Displayed):
    """Base class of results that also have a plot."""

    def plot(self, *what: Any, ax: Axes | None = None, title: str | None = None, **options: Any) -> Any:
        """Draw the result with matplotlib.

        Args:
            what: what to draw of it. For this and the options see this type's function in `moelens.views`.
            ax: axes to draw on; None makes a new figure.
            title: title of the axes; None for what is shown.
            options: passed on to the function.

        Returns:
            The axes.
        """
        return find_view(type(self), "plot")(self, *what, ax=ax, title=title, **options)
