"""Tokenizers that come with models, and folders that have none."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.utils import cached_file

from moelens.errors import MoeLensError
from moelens.models.load_checks import Check

_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")


def find_tokenizer(given: Any, source: str, options: dict[str, Any]) -> tuple[Any, Check | None]:
    """Find a model's tokenizer.

    Args:
        given: a tokenizer, or the folder or name to load it from; None for the one that comes with the model.
        source: the model's folder or hub name.
        options: arguments of transformers' `from_pretrained`.

    Returns:
        The tokenizer, or None and a check that failed where the model comes without one. For such a model transformers
        makes an empty tokenizer.

    Raises:
        MoeLensError: transformers cannot load the tokenizer.
    """
    if given is not None and not isinstance(given, str):
        return given, None
    if given is not None:
        source, options = given, {n: v for n, v in options.items() if n == "trust_remote_code"}
    options = dict(options)
    trusted = bool(options.pop("trust_remote_code", False))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trusted, **options)
    except Exception as error:
        if given is None and not _has_files(source, _FILES, options):
            return None, _absent()
        if "trust_remote_code" in str(error):
            raise MoeLensError(
                f"expected a tokenizer without code of its own, got that of {source!r}; if you trust the code, use"
                " moelens.load(…, trust_remote_code=True), or give another tokenizer with tokenizer="
            ) from error
        text = " ".join(str(error).split())[:300]
        raise MoeLensError(
            f"the tokenizer of {source!r} cannot be loaded ({text}); give another one with tokenizer="
        ) from error
    own_files = tuple(type(tokenizer).vocab_files_names.values())
    if "gguf_file" not in options and own_files and not _has_files(source, (*_FILES, *own_files), options):
        return None, _absent()
    return tokenizer, None


def _has_files(source: str, names: tuple[str, ...], options: dict[str, Any]) -> bool:
    """Whether a folder or hub repository has a file of one of these names."""
    for name in names:
        try:
            found = cached_file(
                source, name, revision=options.get("revision"), _raise_exceptions_for_missing_entries=False
            )
        except OSError:
            found = None
        if found is not None:
            return True
    return False


def _absent() -> Check:
    return Check("tokenizer", False, "it comes without tokenizer files; give token ids, or load with tokenizer=")
