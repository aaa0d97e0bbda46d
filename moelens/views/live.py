"""What live views share: one slice of data at a time, by a kernel or, in a file, without one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from moelens.views.frontend import source
from moelens.views.page import Page


class Live(anywidget.AnyWidget):
    """A view that draws in the browser and asks Python for one slice of its data at a time.

    A subclass names in `ASKS` the traits that choose the slice, and gives `slice` and `every`.
    """

    ASKS: ClassVar[tuple[str, ...]] = ()
    MODULE: ClassVar[str]
    _css = source("live.css")
    heading = traitlets.Unicode().tag(sync=True)

    def __init__(self, **state: Any) -> None:
        super().__init__(**state, **self.slice(*(state[name] for name in self.ASKS)))
        self.observe(self._asked, self.ASKS)

    def slice(self, *asked: Any) -> dict[str, Any]:
        """The traits that depend on what was asked, by the values of `ASKS`."""
        raise NotImplementedError

    def every(self) -> Iterator[tuple[Any, ...]]:
        """All values of `ASKS` that the reader can choose."""
        raise NotImplementedError

    def static_html(self) -> str:
        """The same without life, for a notebook that is read and not run."""
        raise NotImplementedError

    def _asked(self, change: Any) -> None:
        with self.hold_sync():
            for name, value in self.slice(*(getattr(self, name) for name in self.ASKS)).items():
                setattr(self, name, value)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live view, and its static face for where no kernel answers."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, "text/html": self.static_html()}, metadata

    def state(self) -> dict[str, Any]:
        """The traits of the view itself, as the browser gets them."""
        ours = {name for kind in type(self).__mro__ if issubclass(kind, Live) for name in vars(kind)}
        return {name: getattr(self, name) for name in self.trait_names(sync=True) if name in ours and name[0] != "_"}

    def in_file(self) -> dict[str, Any]:
        """Traits that differ in a file, where no kernel answers."""
        return {}

    def cards(self) -> Iterable[tuple[str, str]]:
        """For a file: pairs of the value of `selected`, joined by commas, and the HTML it shows; "" for any other."""
        return ()

    def save_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML file in which the view is alive without a kernel. Returns the file.

        moelens.trace(model, text).explore().save_html("trace.html")
        """
        page = Page()
        path = Path(path)
        path.write_text(page.html(self.heading, page.live(self)), encoding="utf-8")
        return path
