"""One HTML file with live views in it. The file makes no network request."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, ClassVar, Protocol

from moelens.views.frontend import static_text

_DOCUMENT = """<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{css}</style>{scripts}</head>
<body>
{body}
</body></html>
"""
# The browser runs our own script, named by its hash, and the modules in the page; it loads nothing from a network,
# whatever the texts of a corpus may contain.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; base-uri 'none'; "
    "form-action 'none'"
)


class _PageView(Protocol):
    """The part of `moelens.views.live.LiveView` that a page uses."""

    SLICE_TRAITS: ClassVar[tuple[str, ...]]
    MODULE: ClassVar[str]
    _esm: Any

    def slice(self, *chosen: Any) -> dict[str, Any]: ...
    def all_choices(self) -> Iterator[tuple[Any, ...]]: ...
    def state(self) -> dict[str, Any]: ...
    def state_in_file(self) -> dict[str, Any]: ...
    def cards(self) -> Iterable[tuple[str, str]]: ...
    def static_html(self) -> str: ...


class Page:
    """Builds an HTML file with live views: `add` puts a view into it, `html` returns the text of the file.

    Args:
        lang: language of the page, for the browser.

    Attributes:
        views: for each live view its module, state and slices.
        modules: the JavaScript modules by name.
    """

    def __init__(self, lang: str = "en") -> None:
        self.lang = lang
        self.views: list[dict[str, Any]] = []
        self.modules: dict[str, str] = {}

    def add(self, view: _PageView, static: str | None = None) -> str:
        """Put a live view into the page.

        Args:
            view: the view.
            static: HTML for print and for readers without JavaScript; None for that of the view.

        Returns:
            HTML of the place where the view appears, for the body of the page.
        """
        at = len(self.views)
        self.modules[view.MODULE] = view._esm
        slices = {_compact_json(chosen): view.slice(*chosen) for chosen in view.all_choices()}
        state = {**view.state(), **view.state_in_file()}
        self.views.append({"module": view.MODULE, "state": state, "asks": view.SLICE_TRAITS, "slices": slices})
        cards = "".join(
            f'<div class="card" data-cell="{escape(cell)}"{" hidden" if cell else ""}>{html}</div>'
            for cell, html in view.cards()
        )
        fallback = view.static_html() if static is None else static
        return f'<figure id="live-{at}"><div class="live"></div>{cards}<div class="static">{fallback}</div></figure>'

    def html(self, title: str, body: str) -> str:
        """Return the text of the file.

        Args:
            title: plain text.
            body: HTML; each view appears where the string that `add` returned for it is inserted.
        """
        script, scripts, allowed = static_text("page.js"), "", "'none'"
        if self.views:
            data = _compact_json({"modules": self.modules, "views": self.views})
            packed = base64.urlsafe_b64encode(gzip.compress(data.encode(), mtime=0)).decode("ascii")
            scripts = (
                f'<script type="application/octet-stream" id="moelens-data">{packed}</script>'
                f'<script type="module">{script}</script>'
            )
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
            allowed = f"'sha256-{digest}' blob:"
        css = static_text("report.css") + static_text("live.css")
        return _DOCUMENT.format(
            lang=self.lang,
            policy=_POLICY.format(scripts=allowed),
            title=escape(title),
            css=css,
            scripts=scripts,
            body=body,
        )


def _compact_json(value: Any) -> str:
    """JSON as `JSON.stringify` writes it; bytes in base64."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_bytes_json)


def _bytes_json(value: Any) -> dict[str, str]:
    return {"$bytes": base64.b64encode(value).decode("ascii")}
