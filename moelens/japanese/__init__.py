"""Japanese text analysis: morphemes, honorifics, register, minimal pairs, and the labels of a recording's tokens.

Example:
    >>> from moelens.japanese import honorifics
    >>> [(span.surface, span.classes) for span in honorifics("先生がいらっしゃいました。")]
    [('いらっしゃい', ('尊敬語',)), ('まし', ('丁寧語',))]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moelens.japanese.bundled_prompts import prompts
from moelens.japanese.crossed_contrasts import Contrast, contrast_kinds, contrasts
from moelens.japanese.honorific_spans import HonorificSpan, honorifics
from moelens.japanese.minimal_pairs import Pair, pairs
from moelens.japanese.morphology import Morpheme, disagreement, parse_morphemes
from moelens.japanese.person_references import Reference, references
from moelens.japanese.rules import CLASSES
from moelens.japanese.sentence_register import Sentence, register

if TYPE_CHECKING:
    from moelens.japanese.labels import Labels

__all__ = [
    "CLASSES",
    "Contrast",
    "HonorificSpan",
    "Labels",
    "Morpheme",
    "Pair",
    "Reference",
    "Sentence",
    "contrast_kinds",
    "contrasts",
    "disagreement",
    "honorifics",
    "pairs",
    "parse_morphemes",
    "prompts",
    "references",
    "register",
]


def __getattr__(name: str) -> Any:
    """Import `Labels` on first use, because it needs pyarrow; the other modules are light."""
    if name == "Labels":
        from moelens.japanese.labels import Labels

        return Labels
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
