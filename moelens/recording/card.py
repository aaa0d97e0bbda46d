"""The dataset card of a recording or an export, `README.md`, made from the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moelens.recording.captures import SLOT_TABLES, TABLES
from moelens.recording.storage import Folder
from moelens.recording.writer import layer_label

_FRONT_MATTER = """---
pretty_name: Expert activations of {model}
tags: [mixture-of-experts, interpretability, moelens]
configs:
{configs}
---
"""
_ABOUT = """# Expert activations of {model}

{n_tokens:,} tokens of {documents} (corpus: {corpus}), in layers
{layers}, with {top_k} of {n_experts} experts per token. Captured: {captures}. Recorded with moelens {version};
`{settings_file}` holds all settings.

| | |
|---|---|
{facts}

"""
_TOKENS = """{subject} one row per token, in the order of the documents:

| column | type | |
|---|---|---|
| `doc`, `pos` | int32 | {doc}; position of the token in it |
| `token_id` | int32 | |
| `char_start`, `char_end` | int32 | characters of the document's text; equal for a special token |
| `partial` | bool | whether the token holds only a part of a character |
"""
_PHASE = (
    "| `phase` | dictionary | `prefill` for a token of the text; `decode` for a generated token, whose characters"
    " follow those of the text |\n"
)
_TOKEN_COLUMNS = {
    "routes": "| `experts_{first}`, … | {index}[{top_k}] | experts chosen in this layer, by slot |\n"
    "| `weights_{first}`, … | {number}[{top_k}] | their routing weights |\n",
    "margin": "| `margin_{first}`, … | {number} | selection score of the last chosen expert minus that of the next |\n",
    "expert_norms": "| `expert_norms_{first}`, … | {number}[{top_k}] | length of each chosen expert's output, before"
    " weighting |\n",
}
_STACKED_LAYERS = (
    "\nThe layers are stacked: `experts` and `weights` are `[token, layer, slot]`, and `layers` lists the layers.\n"
)
_TABLE_CONTENTS = {
    "logits": "the raw logits of the router (`values`; `experts` holds their experts if only the largest are kept)",
    "neurons": "activations inside each chosen expert (`values`; `neurons` holds their neurons if only the largest are"
    " kept)",
    "expert_outputs": "output of each chosen expert, before weighting",
    "shared": "output of the shared expert",
    "residuals": "residual stream of the layer",
}
_USE = """
```python
datasets.load_dataset("parquet", data_files="tokens/*.parquet")
{use}
```

"""


def recording_facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return what is needed to make a recording again, by name: model, engine, tokenizer, libraries and licence."""
    model = manifest["model"]
    engine, tokenizer, versions = (manifest.get(name) or {} for name in ("engine", "tokenizer", "libraries"))
    libraries = ", ".join(f"{k} {v}" for k, v in versions.items())
    facts = {
        "model": model["name"],
        "revision": model.get("revision"),
        "dtype": model.get("dtype"),
        "engine": " ".join(str(engine[k]) for k in ("name", "version", "experts", "device") if engine.get(k)),
        "tokenizer": " ".join(filter(None, (tokenizer.get("class"), (tokenizer.get("sha256") or "")[:12]))),
        "numbers": manifest["capture"]["dtype"],
        "libraries": libraries,
        "licence of the texts": manifest.get("license"),
    }
    return {k: str(v) for k, v in facts.items() if v}


def write_card(folder: Folder, manifest: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> None:
    """Write the card of a recording to its folder.

    Args:
        folder: The folder of the recording.
        manifest: Its manifest.
        labels: How its labels were made, `Labels.metadata`; None if it has none.
    """
    folder.write("README.md", _recording_card(manifest, labels).encode())


def export_card(
    manifest: Mapping[str, Any], to: str, table: str, settings_file: str, labels: Mapping[str, str] | None = None
) -> str:
    """Return the card of an export.

    Args:
        manifest: The manifest of the recording.
        to: The format of the export.
        table: "tokens", or the name of a table of vectors.
        settings_file: The name of the file with all settings.
        labels: How the labels in the export were made, `Labels.metadata`; None if there are none.
    """
    text = _about(manifest, settings_file)
    if table != "tokens":
        text += f"This {to} export holds {table}: {_describe_table(manifest, table)}"
    else:
        doc = "number of the document in the " + ("sample" if manifest.get("sample") else "corpus")
        text += _describe_tokens(manifest, f"This {to} export holds", doc)
        text += _STACKED_LAYERS if to in ("npz", "safetensors") else ""
    return text + _describe_labels("The label columns hold", labels) + "\n" + _license_line(manifest)


def _recording_card(manifest: Mapping[str, Any], labels: Mapping[str, str] | None) -> str:
    capture = manifest["capture"]
    names = [c.split(":")[0] for c in capture["captures"]]
    folders = ["tokens", *(n for n in names if n in TABLES)]
    configs = [f"- config_name: {n}\n  data_files: {n}/*.parquet" for n in folders]
    configs[0] += "\n  default: true"
    if manifest.get("documents"):
        configs.append("- config_name: documents\n  data_files: documents.parquet")
    text = _FRONT_MATTER.format(model=manifest["model"]["name"], configs="\n".join(configs))
    text += _about(manifest, "manifest.json")
    text += _describe_tokens(manifest, "`tokens/*.parquet` holds", "row of the document in `documents.parquet`")
    for name in folders[1:]:
        text += f"\n`{name}/*.parquet`: {_describe_table(manifest, name)}"
    text += _describe_labels("`labels/*.parquet` holds", labels)
    use = 'moelens.Recording.open(".")'
    if "routes" in names:
        column = f"experts_{layer_label(capture['layers'][0])}"
        use = (
            f"duckdb.sql(\"select unnest({column}) as expert, count(*) from 'tokens/*.parquet' group by 1\")\n"
            f"{use}.indices()  # [token, layer, slot]"
        )
    return text + _USE.format(use=use) + _license_line(manifest)


def _about(manifest: Mapping[str, Any], settings_file: str) -> str:
    shape, capture, drawn = manifest["shape"], manifest["capture"], manifest.get("sample")
    documents = f"{manifest['n_documents']:,} documents"
    if drawn:
        documents = f"{documents} of {drawn['of']:,}, drawn at random with seed {drawn['seed']}"
    return _ABOUT.format(
        model=manifest["model"]["name"],
        n_tokens=manifest["n_tokens"],
        documents=documents,
        corpus=manifest["corpus"],
        layers=", ".join(map(str, capture["layers"])),
        n_experts=shape["n_experts"],
        top_k=shape["top_k"],
        captures=", ".join(capture["captures"]),
        version=manifest["moelens"],
        settings_file=settings_file,
        facts="\n".join(f"| {k} | {v} |" for k, v in recording_facts(manifest).items()),
    )


def _describe_tokens(manifest: Mapping[str, Any], subject: str, doc: str) -> str:
    """Return the columns of the tokens as a table; `subject` begins the sentence before it."""
    capture = manifest["capture"]
    values = {
        "first": layer_label(capture["layers"][0]),
        "index": capture["index_dtype"],
        "top_k": manifest["shape"]["top_k"],
        "number": capture["stored_as"],
    }
    text = _TOKENS.format(subject=subject, doc=doc) + (_PHASE if capture.get("generate") else "")
    names = [c.split(":")[0] for c in capture["captures"]]
    return text + "".join(_TOKEN_COLUMNS[n].format(**values) for n in names if n in _TOKEN_COLUMNS)


def _describe_table(manifest: Mapping[str, Any], name: str) -> str:
    slot = ", `slot`, `expert`" if name in SLOT_TABLES else ""
    number = manifest["capture"]["stored_as"]
    return f"{_TABLE_CONTENTS[name]}. Columns: `doc`, `pos`, `layer`{slot}, `values` ({number}).\n"


def _describe_labels(subject: str, labels: Mapping[str, str] | None) -> str:
    if labels is None:
        return ""
    facts = "".join(f"| {name} | {value} |\n" for name, value in labels.items())
    return f"\n{subject} the labels of the tokens, row by row:\n\n| | |\n|---|---|\n{facts}"


def _license_line(manifest: Mapping[str, Any]) -> str:
    stated = manifest.get("license")
    if stated:
        return f"The licence of the texts is {stated}.\n"
    return "The licences of the sources apply to the texts.\n"
