"""One HTML file with live views in it that asks the network for nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, ClassVar, Protocol

from moelens.views.frontend import source

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{css}</style>{scripts}</head>
<body>
{body}
</body></html>
"""
# Our own script, by its hash, and the modules it carries; no address on any network, whatever a text may hold.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; base-uri 'none'; "
    "form-action 'none'"
)


class LiveView(Protocol):
    """What a page needs of a live view, see `moelens.views.live.Live`."""

    ASKS: ClassVar[tuple[str, ...]]
    MODULE: ClassVar[str]
    _esm: Any

    def slice(self, *asked: Any) -> dict[str, Any]: ...
    def every(self) -> Iterator[tuple[Any, ...]]: ...
    def state(self) -> dict[str, Any]: ...
    def in_file(self) -> dict[str, Any]: ...
    def cards(self) -> Iterable[tuple[str, str]]: ...
    def static_html(self) -> str: ...


class Page:
    """A file that is being written: `live` gives the HTML of a view, `html` the whole."""

    def __init__(self) -> None:
        self.views: list[dict[str, Any]] = []
        self.modules: dict[str, str] = {}

    def live(self, view: LiveView, static: str | None = None) -> str:
        """The place of a live view, with its static face for paper and for readers without scripts."""
        at = len(self.views)
        self.modules[view.MODULE] = view._esm
        slices = {compact(asked): view.slice(*asked) for asked in view.every()}
        state = {**view.state(), **view.in_file()}
        self.views.append({"module": view.MODULE, "state": state, "asks": view.ASKS, "slices": slices})
        cards = "".join(
            f'<div class="card" data-cell="{escape(cell)}"{" hidden" * bool(cell)}>{html}</div>'
            for cell, html in view.cards()
        )
        face = view.static_html() if static is None else static
        return f'<figure id="live-{at}"><div class="live"></div>{cards}<div class="static">{face}</div></figure>'

    def html(self, title: str, body: str) -> str:
        script, scripts, allowed = source("page.js"), "", "'none'"
        if self.views:
            data = compact({"modules": self.modules, "views": self.views})
            packed = base64.urlsafe_b64encode(gzip.compress(data.encode(), mtime=0)).decode("ascii")
            scripts = (
                f'<script type="application/octet-stream" id="moelens-data">{packed}</script>'
                f'<script type="module">{script}</script>'
            )
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
            allowed = f"'sha256-{digest}' blob:"
        css = source("report.css") + source("live.css")
        return HEAD.format(
            policy=POLICY.format(scripts=allowed), title=escape(title), css=css, scripts=scripts, body=body
        )


def compact(value: Any) -> str:
    """JSON as `JSON.stringify` writes it; bytes in base64."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_bytes)


def _bytes(value: Any) -> dict[str, str]:
    return {"$bytes": base64.b64encode(value).decode("ascii")}
