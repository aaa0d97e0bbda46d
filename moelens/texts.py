"""The texts of reports, explorers and verdicts in every language, from one table: `texts.toml`.

A row has a key and a column for each language. A function that writes text is given the language, or the `Texts` of it;
nothing here is set for the whole process.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from moelens.errors import unknown

LANGUAGES = ("en", "ja")
"""The columns of the table; the first is the default everywhere."""


class Texts:
    """The texts in one language.

    Args:
        lang: one of `LANGUAGES`, or other texts, whose language is taken.

    Attributes:
        lang: the language.

    Raises:
        UnknownNameError: there is no such language.

    Example:
        >>> Texts("ja")("map.layer")
        '層'
        >>> Texts()("result.untested_given", given="token")
        'the same within each token'
    """

    def __init__(self, lang: str | Texts = "en") -> None:
        self.lang: str = lang.lang if isinstance(lang, Texts) else lang
        if self.lang not in LANGUAGES:
            raise unknown("language", self.lang, LANGUAGES)

    def __call__(self, key: str, **values: object) -> str:
        """Return the text of a row, with values in place of the names in braces."""
        return text_rows()[key][self.lang].format(**values)

    def name(self, part: str, name: str) -> str:
        """Return the text of the row `part.name`, or the name itself if there is none, as for labels of one's own."""
        row = text_rows().get(f"{part}.{name}")
        return name if row is None else row[self.lang]

    def value(self, value: object) -> str:
        """Return the value of a setting as text, in which the phrases of the part `value` are in this language."""
        text = str(value)
        for phrase in self.part("value").items() if self.lang != LANGUAGES[0] else ():
            text = text.replace(*phrase)
        return text

    @property
    def glossed(self) -> bool:
        """Whether Japanese labels are given with their English gloss."""
        return self.lang != "ja"

    def part(self, part: str) -> dict[str, str]:
        """Return all texts of a part by the rest of their keys, as a view in the browser needs them."""
        found = ((key.removeprefix(f"{part}."), row) for key, row in text_rows().items() if key.startswith(f"{part}."))
        return {key: row[self.lang] for key, row in found}


@cache
def text_rows() -> Mapping[str, Mapping[str, str]]:
    """Return the table: for each key the text in every language."""
    table = tomllib.loads(files("moelens").joinpath("texts.toml").read_text("utf-8"))
    return {f"{part}.{name}": row for part, rows in table.items() for name, row in rows.items()}
