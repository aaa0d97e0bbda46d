"""The models, recordings and corpora that names stand for when a command runs, and the defaults of options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from moelens.errors import MoeLensError

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE
    from moelens.recording import Recording

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"out": "moelens-recording", "pairs": "respectful-humble", "family": "honorifics", "seed": 0, "lang": "en"}
)


class Session:
    """Finds what the arguments of a command stand for, on the command line.

    A name is a path or the name of a model, and nothing is kept from one command to the next. The magics have a
    subclass that finds variables of the notebook and keeps models.
    """

    def default(self, option: str) -> Any:
        """Return the value of an option that is not given."""
        return DEFAULTS[option]

    def find_model(self, name: str | None, *, fresh: bool = False, **options: Any) -> HookedMoE:
        """Return the model of this name.

        Args:
            name: demo, a folder or a hub name.
            fresh: whether to load the model again, even if it is loaded already.
            options: further arguments of `moelens.load`.
        """
        from moelens.models.loading import load

        return load(self.find_name(name), **options)

    def find_name(self, name: str | None) -> Any:
        """Return the name of a model, or the model itself.

        Raises:
            MoeLensError: `name` is None, and there is no default.
        """
        if name is None:
            raise MoeLensError("expected a MODEL, got none; give demo, a folder or a hub name")
        return name

    def find_recording(self, name: str, *, checked: bool = True) -> Recording:
        """Open the recording in this folder, without a look at its files if they are to be verified."""
        from moelens.recording import Recording

        return Recording.open(name) if checked else Recording.open_unchecked(name)

    def find_source(self, name: str) -> Any:
        """Return the recording in this folder, or the path of a file with counts or a result."""
        return name if Path(name).suffix in (".json", ".parquet") else self.find_recording(name)

    def find_corpus(self, name: str) -> Any:
        """Return the corpus of this name, in a form that `Corpus.of` takes."""
        return name
