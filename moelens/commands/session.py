"""What names stand for when a command runs: models, recordings and corpora, and the defaults of options."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from moelens.errors import MoeLensError

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE
    from moelens.recording import Recording

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"out": "moelens-recording", "pairs": "respectful-humble", "family": "honorifics", "seed": 0}
)


class Session:
    """The command line's: a name is a path or the name of a model, and nothing is kept from one command to the next."""

    def default(self, option: str) -> Any:
        """What an option means where it is not given."""
        return DEFAULTS[option]

    def find_model(self, name: str | None, *, fresh: bool = False, **options: Any) -> HookedMoE:
        """The model of this name; `options` are those of `moelens.load`, and `fresh` loads it again."""
        from moelens.models.loading import load

        return load(self.find_name(name), **options)

    def find_name(self, name: str | None) -> Any:
        """The name of a model, or the model itself.

        Raises:
            MoeLensError: no name is given.
        """
        if name is None:
            raise MoeLensError("expected a MODEL; give demo, a folder or a hub name")
        return name

    def find_recording(self, name: str) -> Recording:
        """The recording in this folder."""
        from moelens.recording import Recording

        return Recording.open(name)

    def find_corpus(self, name: str) -> Any:
        """What `Corpus.of` takes."""
        return name
