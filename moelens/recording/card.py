"""The dataset card of a recording, `README.md`, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moelens.recording.captures import SLOT_TABLES, TABLES
from moelens.recording.storage import Folder
from moelens.recording.writer import layer_label

HEADER = """---
pretty_name: Expert activations of {model}
tags: [mixture-of-experts, interpretability, moelens]
configs:
{configs}
---
# What the experts of {model} did

{n_tokens:,} tokens of {n_documents:,} documents (corpus: {corpus}), in layers
{layers}, {top_k} of {n_experts} experts a token. Captured: {captures}. Recorded with moelens {version};
`manifest.json` says how.

| | |
|---|---|
{facts}

`tokens/*.parquet` holds one row a token, in the order of the documents:

| column | type | |
|---|---|---|
| `doc`, `pos` | int32 | row of the document in `documents.parquet`; position of the token in it |
| `token_id` | int32 | |
| `char_start`, `char_end` | int32 | characters of the document's text; equal for a special token |
| `partial` | bool | the token holds only a part of a character |
"""

COLUMNS = {
    "routes": "| `experts_{first}`, … | {index}[{top_k}] | experts chosen in this layer, slot by slot |\n"
    "| `weights_{first}`, … | {number}[{top_k}] | their routing weights |\n",
    "margin": "| `margin_{first}`, … | {number} | selection score of the last expert chosen minus that of the next |\n",
    "expert_norms": "| `expert_norms_{first}`, … | {number}[{top_k}] | length of each chosen expert's output, before"
    " weighting |\n",
}
PHASE = (
    "| `phase` | dictionary | `prefill`: read; `decode`: written by the model, characters count on from the text |\n"
)
TABLE = {
    "logits": "the router's raw logits (`values`; `experts` says whose, where only the largest are kept)",
    "neurons": "activations inside each chosen expert (`values`; `neurons` says whose, where few are kept)",
    "expert_outputs": "output of each chosen expert, before weighting",
    "shared": "output of the shared expert",
    "residuals": "residual stream of the layer",
}
USE = """
```python
datasets.load_dataset("parquet", data_files="tokens/*.parquet")
{use}
```

{license}
"""


def card(manifest: Mapping[str, Any]) -> str:
    """The card: what was recorded, of what, with what, and how to read it."""
    shape, capture = manifest["shape"], manifest["capture"]
    names = [c.split(":")[0] for c in capture["captures"]]
    layers = capture["layers"]
    values = {
        "first": layer_label(layers[0]),
        "index": capture["index_dtype"],
        "top_k": shape["top_k"],
        "number": capture["stored_as"],
    }
    folders = ["tokens", *(n for n in names if n in TABLES)]
    configs = [f"- config_name: {n}\n  data_files: {n}/*.parquet" for n in folders]
    configs[0] += "\n  default: true"
    if manifest.get("documents"):
        configs.append("- config_name: documents\n  data_files: documents.parquet")
    text = HEADER.format(
        model=manifest["model"]["name"], configs="\n".join(configs), n_tokens=manifest["n_tokens"],
        n_documents=manifest["n_documents"], corpus=manifest["corpus"], layers=", ".join(map(str, layers)),
        n_experts=shape["n_experts"], top_k=shape["top_k"], captures=", ".join(capture["captures"]),
        version=manifest["moelens"], facts="\n".join(f"| {k} | {v} |" for k, v in facts(manifest).items()),
    )  # fmt: skip
    text += PHASE if capture.get("generate") else ""
    text += "".join(COLUMNS[n].format(**values) for n in names if n in COLUMNS)
    for name in folders[1:]:
        slot = ", `slot`, `expert`" if name in SLOT_TABLES else ""
        text += f"\n`{name}/*.parquet`: {TABLE[name]}. `doc`, `pos`, `layer`{slot}, `values` ({values['number']}).\n"
    use = 'moelens.Recording.open(".")'
    if "routes" in names:
        use = (
            f"duckdb.sql(\"select unnest(experts_{values['first']}) as expert, count(*) from 'tokens/*.parquet'"
            f' group by 1")\n{use}.indices()  # [token, layer, slot]'
        )
    return text + USE.format(use=use, license=license_line(manifest))


def facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a reader must know to make the recording again."""
    model, engine, tokenizer = manifest["model"], manifest.get("engine", {}), manifest.get("tokenizer", {})
    libraries = ", ".join(f"{k} {v}" for k, v in manifest.get("libraries", {}).items())
    found = {
        "model": model["name"],
        "revision": model.get("revision"),
        "dtype": model.get("dtype"),
        "engine": " ".join(str(engine[k]) for k in ("name", "version", "experts", "device") if engine.get(k)),
        "tokenizer": " ".join(filter(None, (tokenizer.get("class"), tokenizer.get("sha256", "")[:12]))),
        "numbers": manifest["capture"]["dtype"],
        "libraries": libraries,
        "licence of the texts": manifest.get("license"),
    }
    return {k: str(v) for k, v in found.items() if v}


def license_line(manifest: Mapping[str, Any]) -> str:
    stated = manifest.get("license")
    if stated:
        return f"The texts are under {stated}."
    return "The texts in `documents.parquet` stay under the licences of their sources."


def write_card(folder: Folder, manifest: Mapping[str, Any]) -> None:
    folder.write("README.md", card(manifest).encode())
