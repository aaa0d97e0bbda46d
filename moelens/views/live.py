"""The base class of live views, which send the browser one slice of their data at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from moelens.files import writing
from moelens.texts import Texts
from moelens.views.frontend import static_text
from moelens.views.kept import show_with_picture
from moelens.views.page import Page


class LiveView(anywidget.AnyWidget):
    """A widget that draws in the browser and gets one slice of its data at a time from Python.

    A subclass names in `SLICE_TRAITS` the traits that choose the slice, in `MODULE` and `_esm` its JavaScript, and
    defines `slice`, `all_choices` and `static_html`.
    """

    SLICE_TRAITS: ClassVar[tuple[str, ...]] = ()
    MODULE: ClassVar[str]
    say = Texts()  # the language; views with texts have their own
    _css = static_text("live.css")
    heading = traitlets.Unicode().tag(sync=True)
    kept = traitlets.Unicode().tag(sync=True)  # the class of the picture that the view hides

    def __init__(self, **state: Any) -> None:
        super().__init__(**state, **self.slice(*(state[name] for name in self.SLICE_TRAITS)))
        self.observe(self._update_slice, self.SLICE_TRAITS)

    def slice(self, *chosen: Any) -> dict[str, Any]:
        """Return the traits that depend on the choice, by name.

        Args:
            chosen: values of `SLICE_TRAITS`, in this order.
        """
        raise NotImplementedError

    def all_choices(self) -> Iterator[tuple[Any, ...]]:
        """Return all values of `SLICE_TRAITS` that the reader can choose."""
        raise NotImplementedError

    def static_html(self) -> str:
        """Return HTML without JavaScript, for a notebook that is read without a kernel, and for print."""
        raise NotImplementedError

    def _update_slice(self, change: Any) -> None:
        with self.hold_sync():
            for name, value in self.slice(*(getattr(self, name) for name in self.SLICE_TRAITS)).items():
                setattr(self, name, value)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live view, and static HTML for a notebook without a kernel."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, "text/html": self.static_html()}, metadata

    def _ipython_display_(self, **kwargs: Any) -> None:
        """Show the live view, and a picture of its last state for a notebook that is opened without a kernel."""
        self.kept = f"moelens-kept-{self.model_id}"
        text = self.heading or type(self).__name__
        show_with_picture(self._repr_mimebundle_(), self.kept, self.static_html, [self], text, self.say)

    def state(self) -> dict[str, Any]:
        """Return the synchronised traits that the view itself defines, without those of ipywidgets."""
        ours = {name for cls in type(self).__mro__ if issubclass(cls, LiveView) for name in vars(cls)}
        return {name: getattr(self, name) for name in self.trait_names(sync=True) if name in ours and name[0] != "_"}

    def state_in_file(self) -> dict[str, Any]:
        """Return the traits that have another value in a file, where there is no kernel."""
        return {}

    def cards(self) -> Iterable[tuple[str, str]]:
        """Return the cards that a file shows below the view, as pairs of a cell and HTML.

        A cell is the value of `selected`, joined by commas; the card of the cell "" is shown for all other cells.
        """
        return ()

    def save_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML file in which the view works without a kernel.

        Args:
            path: file to write.

        Returns:
            The path.

        Example:
            >>> view = moelens.trace(demo_model, "先生がいらっしゃいました。").explore()
            >>> view.save_html("trace.html")  # doctest: +SKIP
            PosixPath('trace.html')
        """
        page = Page(self.say.lang)
        path = Path(path)
        with writing(path) as partial:
            partial.write_text(page.html(self.heading, page.add(self)), encoding="utf-8")
        return path
