"""Japanese: morphemes, honorifics, and what each token of a recording belongs to.

>>> from moelens.japanese import honorifics
>>> [(span.surface, span.classes) for span in honorifics("先生がいらっしゃいました。")]
[('いらっしゃい', ('尊敬語',)), ('まし', ('丁寧語',))]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Imported at once, since the function takes the name of its module; both modules are light.
from moelens.japanese.honorifics import CLASSES, HonorificSpan, honorifics
from moelens.japanese.morphology import Morpheme, analyze

if TYPE_CHECKING:
    from moelens.japanese.labels import Labels, label

__all__ = ["CLASSES", "HonorificSpan", "Labels", "Morpheme", "analyze", "honorifics", "label"]


def __getattr__(name: str) -> Any:
    if name in ("Labels", "label"):  # these need pyarrow
        from moelens.japanese import labels

        return getattr(labels, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
