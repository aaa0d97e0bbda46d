"""A picture of a live view beside it in a notebook, for readers who open the notebook without a kernel.

JupyterLab shows nothing of an output with a widget if the widget is gone, not even the HTML in the same output. So the
picture is an output of its own. It is drawn again when the view has changed and rests; the notebook then has the last
state, once it is saved. The live view hides it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from IPython import get_ipython
from IPython.display import DisplayHandle, display

from moelens.texts import Texts

REST_SECONDS = 1.5  # without a change, after which the picture is drawn again
CLASS = "moelens-kept"
# Where a widget is gone, the view's or a progress bar's before it, JupyterLab writes an error message as the only
# content of its place.
_HIDES_ERROR = f".jp-OutputArea:has(.{CLASS}) .jupyter-widgets:not(:has(*)) {{ display: none }}"


def show_with_picture(
    bundle: Any, name: str, draw: Callable[[], str], watched: Sequence[Any], text: str, say: Texts
) -> None:
    """Show a picture of a view and then the view itself, and keep the picture up to date.

    Args:
        bundle: the mime bundle of the view.
        name: the class by which the view hides the picture.
        draw: returns HTML of the present state, which works without JavaScript.
        watched: the widgets whose changes change the picture.
        text: the view in one line, for terminals.
        say: the language of the note below the picture.
    """
    if getattr(get_ipython(), "kernel", None) is None:
        print(text)
        return
    handle = DisplayHandle()

    def picture() -> dict[str, str]:
        note = f"<p><small>{say('kept.note')}</small></p>"
        html = f'<style>{_HIDES_ERROR}</style><div class="{CLASS} {name}">{draw()}{note}</div>'
        return {"text/html": html, "text/plain": text}

    handle.display(picture(), raw=True)
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    display({key: value for key, value in data.items() if key != "text/html"}, metadata=metadata, raw=True)
    waiting: list[asyncio.TimerHandle] = []

    def changed(change: Any) -> None:
        for timer in waiting:
            timer.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop to wait in
            return
        waiting[:] = [loop.call_later(REST_SECONDS, lambda: handle.update(picture(), raw=True))]

    for widget in watched:
        widget.observe(changed)
