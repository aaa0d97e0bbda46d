"""The one place where result objects reach their views, so that analysis imports no plotting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moelens.analysis.result import Specialization
    from moelens.recording import Recording


class Shows:
    """Gives a result object `plot` and its face in a notebook; the views are imported on first use."""

    def plot(self, label: str, *, value: str = "lift", ax: Axes | None = None) -> Any:
        """Draw the map of `label`, see `moelens.views.expert_map`."""
        from moelens.views import expert_map

        return expert_map(cast("Specialization", self), label, value=value, ax=ax)

    def explore(self, recording: Recording | None = None) -> Any:
        """The live map with the card of the chosen expert; with a `recording`, its words and sentences too."""
        from moelens.views.explore import Explorer

        return Explorer(cast("Specialization", self), recording)

    def _repr_html_(self) -> str:
        from moelens.views.tables import findings_html

        return findings_html(cast("Specialization", self))
