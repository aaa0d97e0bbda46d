"""The dataset card of a recording, `README.md`, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moelens.recording.captures import SLOT_TABLES, TABLES
from moelens.recording.storage import Folder
from moelens.recording.writer import layer_label

FRONT = """---
pretty_name: Expert activations of {model}
tags: [mixture-of-experts, interpretability, moelens]
configs:
{configs}
---
"""
ABOUT = """# What the experts of {model} did

{n_tokens:,} tokens of {n_documents:,} documents (corpus: {corpus}), in layers
{layers}, {top_k} of {n_experts} experts a token. Captured: {captures}. Recorded with moelens {version};
`{how}` says how.

| | |
|---|---|
{facts}

"""
TOKENS = """{what} one row a token, in the order of the documents:

| column | type | |
|---|---|---|
| `doc`, `pos` | int32 | {doc}; position of the token in it |
| `token_id` | int32 | |
| `char_start`, `char_end` | int32 | characters of the document's text; equal for a special token |
| `partial` | bool | the token holds only a part of a character |
"""
ARRAYS = "\nThe layers are put together, `experts` and `weights` [token, layer, slot]; `layers` says which they are.\n"

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

"""


def card(manifest: Mapping[str, Any]) -> str:
    """The card: what was recorded, of what, with what, and how to read it."""
    capture = manifest["capture"]
    names = [c.split(":")[0] for c in capture["captures"]]
    folders = ["tokens", *(n for n in names if n in TABLES)]
    configs = [f"- config_name: {n}\n  data_files: {n}/*.parquet" for n in folders]
    configs[0] += "\n  default: true"
    if manifest.get("documents"):
        configs.append("- config_name: documents\n  data_files: documents.parquet")
    text = FRONT.format(model=manifest["model"]["name"], configs="\n".join(configs)) + about(manifest, "manifest.json")
    text += tokens(manifest, "`tokens/*.parquet` holds", "row of the document in `documents.parquet`")
    for name in folders[1:]:
        text += f"\n`{name}/*.parquet`: {vectors(manifest, name)}"
    use = 'moelens.Recording.open(".")'
    if "routes" in names:
        use = (
            f'duckdb.sql("select unnest(experts_{layer_label(capture["layers"][0])}) as expert, count(*) from'
            f" 'tokens/*.parquet' group by 1\")\n{use}.indices()  # [token, layer, slot]"
        )
    return text + USE.format(use=use) + license_line(manifest)


def export_card(manifest: Mapping[str, Any], to: str, table: str, how: str) -> str:
    """The card of an export of the tokens, or of a table of vectors, in the format `to`; the file `how` says more."""
    text = about(manifest, how)
    if table != "tokens":
        text += f"This {to} export holds {table}: {vectors(manifest, table)}"
    else:
        text += tokens(manifest, f"This {to} export holds", "number of the document in the corpus")
        text += ARRAYS if to in ("npz", "safetensors") else ""
    return text + "\n" + license_line(manifest)


def about(manifest: Mapping[str, Any], how: str) -> str:
    shape, capture = manifest["shape"], manifest["capture"]
    return ABOUT.format(
        model=manifest["model"]["name"], n_tokens=manifest["n_tokens"], n_documents=manifest["n_documents"],
        corpus=manifest["corpus"], layers=", ".join(map(str, capture["layers"])), n_experts=shape["n_experts"],
        top_k=shape["top_k"], captures=", ".join(capture["captures"]), version=manifest["moelens"], how=how,
        facts="\n".join(f"| {k} | {v} |" for k, v in facts(manifest).items()),
    )  # fmt: skip


def tokens(manifest: Mapping[str, Any], what: str, doc: str) -> str:
    """The columns of the tokens, as a table."""
    capture = manifest["capture"]
    values = {
        "first": layer_label(capture["layers"][0]),
        "index": capture["index_dtype"],
        "top_k": manifest["shape"]["top_k"],
        "number": capture["stored_as"],
    }
    text = TOKENS.format(what=what, doc=doc) + (PHASE if capture.get("generate") else "")
    names = [c.split(":")[0] for c in capture["captures"]]
    return text + "".join(COLUMNS[n].format(**values) for n in names if n in COLUMNS)


def vectors(manifest: Mapping[str, Any], name: str) -> str:
    slot = ", `slot`, `expert`" if name in SLOT_TABLES else ""
    return f"{TABLE[name]}. `doc`, `pos`, `layer`{slot}, `values` ({manifest['capture']['stored_as']}).\n"


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
        return f"The texts are under {stated}.\n"
    return "The texts stay under the licences of their sources.\n"


def write_card(folder: Folder, manifest: Mapping[str, Any]) -> None:
    folder.write("README.md", card(manifest).encode())
