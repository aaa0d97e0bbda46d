"""`manifest.json`: what it has to hold, and the checksum by which damage to it is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from moelens.errors import MoeLensError
from moelens.recording.captures import Capture
from moelens.recording.route_inputs import MAX_EXPERTS, MAX_LAYERS, is_text

FORMAT = 1
"""The format of recordings; a change that older versions of moelens cannot read gets a new number."""

_COUNT, _ONE_OR_MORE = range(2**53), range(1, MAX_EXPERTS + 1)
_FIELDS: dict[str, Any] = {
    "format": range(1, FORMAT + 1),
    "moelens": str,
    "corpus": str,
    "license?": str,
    "created?": str,
    "corpus_sha256?": str,
    "n_tokens": _COUNT,
    "n_documents": _COUNT,
    "shards": list,
    "tables": dict,
    "documents?": dict,
    "uncaptured?": dict,
    "model": dict,
    "model.name": str,
    "model.revision?": str,
    "model.dtype?": str,
    "model.format?": str,
    "model.checks?": list,
    "shape": dict,
    "shape.n_experts": _ONE_OR_MORE,
    "shape.top_k": _ONE_OR_MORE,
    "shape.moe_layers": "layers",
    "shape.n_layers?": _COUNT,
    "shape.d_model?": _COUNT,
    "shape.d_expert?": _COUNT,
    "shape.vocab_size?": _COUNT,
    "shape.n_groups?": _COUNT,
    "capture": dict,
    "capture.captures": "captures",
    "capture.layers": "layers",
    "capture.dtype": str,
    "capture.stored_as": str,
    "capture.index_dtype": str,
    "capture.weights?": bool,
    "capture.generate?": _COUNT,
    "capture.experts?": list,
    "engine?": dict,
    "libraries?": dict,
    "generation?": dict,
    "token_labels?": list,
    "tokenizer?": dict,
    "tokenizer.class?": str,
    "tokenizer.sha256?": str,
    "tokenizer.documents_by_spans?": dict,
    "alignment?": dict,
    "alignment.unaligned_documents": _COUNT,
    "alignment.reason": str,
}
"""The fields by their path, with a type, the range of an integer, or a name of `_is_of_kind`.

A field with a question mark may be null or missing, and so may the fields below it.
"""
_ENTRY = {"path": str, "rows": _COUNT, "sha256": str, "bytes?": _COUNT, "xxh3?": str, "layer?": range(MAX_LAYERS)}
_SEAL = "sha256"  # of the other fields


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the SHA-256 of its other fields, so that a changed value is noticed when it is read.

    Example:
        >>> is_unchanged(seal({"n_tokens": 5})), is_unchanged(seal({"n_tokens": 5}) | {"n_tokens": 6})
        (True, False)
    """
    fields = {name: value for name, value in manifest.items() if name != _SEAL}
    text = json.dumps(fields, sort_keys=True)
    return fields | {_SEAL: hashlib.sha256(text.encode()).hexdigest()}


def is_unchanged(manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest has the SHA-256 that it states; one that states none, as of other programs, has."""
    return _SEAL not in manifest or manifest[_SEAL] == seal(manifest)[_SEAL]


def wrong_field(manifest: Any) -> str:
    """Return the name of the first field of a manifest that is missing or not as described; "" if there is none."""
    if not isinstance(manifest, dict):
        return "contents"
    if not is_text(json.dumps(manifest, ensure_ascii=False)):
        return "text"
    wrong = _wrong_in(manifest, _FIELDS)
    if wrong:
        return wrong
    if not all(isinstance(entries, list) for entries in manifest["tables"].values()):
        return "tables"
    listed = {"shards": manifest["shards"], "tables": [e for found in manifest["tables"].values() for e in found]}
    listed |= {name: [manifest[name]] for name in ("documents", "uncaptured") if manifest.get(name)}
    for name, entries in listed.items():
        for entry in entries:
            if not isinstance(entry, dict) or _wrong_in(entry, _ENTRY):
                return name
    if sum(entry["rows"] for entry in manifest["shards"]) != manifest["n_tokens"]:
        return "n_tokens"
    if not set(manifest["capture"]["layers"]) & set(manifest["shape"]["moe_layers"]) and _needs_experts(manifest):
        return "capture.layers"
    documents = manifest.get("documents")
    if documents and documents["rows"] != manifest["n_documents"]:
        return "n_documents"
    return ""


def _needs_experts(manifest: Mapping[str, Any]) -> bool:
    return any(Capture.parse(capture).name != "residuals" for capture in manifest["capture"]["captures"])


def _wrong_in(values: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """Return the path of the first field that is missing or not as described; "" if there is none."""
    for path, kind in fields.items():
        *parents, name = path.removesuffix("?").split(".")
        at: Any = values
        for parent in parents:
            at = None if at is None else at.get(parent)
        value = None if at is None else at.get(name)
        missing = value is None and (at is None or path.endswith("?"))
        if not missing and not _is_of_kind(value, kind):
            return path.removesuffix("?")
    return ""


def _is_of_kind(value: Any, kind: Any) -> bool:
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if kind == "layers":
        return (
            isinstance(value, list)
            and bool(value)
            and all(type(layer) is int and layer in range(MAX_LAYERS) for layer in value)
        )
    if kind == "captures":
        return isinstance(value, list) and bool(value) and all(map(_is_capture, value))
    return is_text(value) if kind is str else isinstance(value, kind)


def _is_capture(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(Capture.parse(value))
    except MoeLensError:
        return False
