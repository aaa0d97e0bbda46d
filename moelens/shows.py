"""The one place where result objects reach their views, so that what computes imports nothing that draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Face:
    """Gives an object its face in a notebook; the views are imported on first use."""

    __slots__ = ()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        from moelens.views.faces import html

        return html(self)


class Shows(Face):
    """Gives a result object `plot` as well."""

    def plot(self, *what: Any, ax: Axes | None = None, **options: Any) -> Any:
        """Draw the result with matplotlib; what may be said of it is told by its function in `moelens.views`."""
        from moelens.views.faces import plot

        return plot(self, *what, ax=ax, **options)
