"""A recording's files: their columns, how they are written, and how they come to stand in their place."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moelens.errors import RecordingError
from moelens.models.tokens import TokenSpans

Array = NDArray[Any]

FORMAT = 1
MANIFEST = "manifest.json"
SHARD_ROWS = 1 << 19

CARD = """---
pretty_name: Expert routes of {model}
tags: [mixture-of-experts, interpretability, moelens]
configs:
- config_name: tokens
  data_files: tokens/*.parquet
  default: true
- config_name: documents
  data_files: documents.parquet
---
# Expert routes of {model}

Which experts `{model}` chose for each of {n_tokens:,} tokens of {n_documents:,} documents (corpus: {corpus}), in layers
{layers}, {top_k} of {n_experts} experts a token. Recorded with moelens {version}; `manifest.json` says how.

`tokens/*.parquet` holds one row a token, in the order of the documents:

| column | type | |
|---|---|---|
| `doc`, `pos` | int32 | row of the document in `documents.parquet`; position of the token in it |
| `token_id` | int32 | |
| `char_start`, `char_end` | int32 | characters of the document's text; equal for a special token |
| `partial` | bool | the token holds only a part of a character |
| `experts_L00`, … | {index}[{top_k}] | experts chosen in this layer, slot by slot |
| `weights_L00`, … | float16[{top_k}] | their routing weights |

```python
datasets.load_dataset("parquet", data_files="tokens/*.parquet")
duckdb.sql("select unnest(experts_{first}) as expert, count(*) from 'tokens/*.parquet' group by 1")
moelens.Recording.open(".").indices()  # [token, layer, slot]
```

The texts in `documents.parquet` stay under the licences of their sources.
"""


@dataclass(frozen=True)
class Shard:
    """One Parquet file; `path` is relative to the recording."""

    path: str
    rows: int
    sha256: str


def layer_label(layer: int) -> str:
    """`L03`, as columns call a layer."""
    return f"L{layer:02d}"


def index_type(n_experts: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds an expert id."""
    return np.uint8 if n_experts <= 256 else np.uint16


def token_columns(
    doc: Array,
    pos: Array,
    ids: Array,
    spans: Sequence[TokenSpans],
    layers: Sequence[int],
    indices: Array,
    weights: Array,
) -> dict[str, Array]:
    """The columns of tokens: `[token]`, and for each layer of `indices` and `weights` `[layer, token, slot]` two."""
    columns = {"doc": doc, "pos": pos, "token_id": ids}
    for name, attribute in (("char_start", "start"), ("char_end", "end"), ("partial", "partial")):
        columns[name] = np.concatenate([getattr(s, attribute) for s in spans])
    for layer, chosen, weight in zip(layers, indices, weights, strict=True):
        columns |= {f"experts_{layer_label(layer)}": chosen, f"weights_{layer_label(layer)}": weight}
    return columns


class TokenWriter:
    """Writes columns of tokens to shards of about `SHARD_ROWS` rows, a row group a call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[Shard] = []
        self._file: pq.ParquetWriter | None = None
        self._rows = 0
        (folder / "tokens").mkdir()

    @property
    def _path(self) -> Path:
        return self._folder / "tokens" / f"tokens-{len(self._shards):05d}.parquet"

    def write(self, columns: dict[str, Array]) -> None:
        """Append rows: `[token]` columns, and `[token, slot]` ones as fixed-size lists."""
        table = pa.table({name: as_column(values) for name, values in columns.items()})
        if not len(table):
            return
        if self._file is None:
            self._file = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._file.write_table(table)
        self._rows += len(table)
        if self._rows >= SHARD_ROWS:
            self._end_shard()

    def close(self) -> list[Shard]:
        self._end_shard()
        return self._shards

    def _end_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._shards.append(shard(self._folder, self._path, self._rows))
            self._file, self._rows = None, 0


def as_column(values: Array) -> pa.Array:
    flat = pa.array(values.ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def shard(folder: Path, path: Path, rows: int) -> Shard:
    return Shard(path.relative_to(folder).as_posix(), rows, checksum(path))


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: dict[str, Any], tokens: Sequence[Shard], documents: Shard) -> None:
    """The dataset card and, last of all, the manifest: a folder without one is no recording."""
    manifest |= {
        "n_documents": documents.rows,
        "n_tokens": sum(s.rows for s in tokens),
        "shards": [asdict(s) for s in tokens],
        "documents": asdict(documents),
    }
    shape, layers = manifest["shape"], manifest["shape"]["moe_layers"]
    card = CARD.format(
        model=manifest["model"]["name"],
        n_tokens=manifest["n_tokens"],
        n_documents=documents.rows,
        corpus=manifest["corpus"],
        layers=", ".join(map(str, layers)),
        first=layer_label(layers[0]),
        top_k=shape["top_k"],
        n_experts=shape["n_experts"],
        index=manifest["capture"]["index_dtype"],
        version=manifest["moelens"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@contextmanager
def replacing(out: Path, force: bool) -> Iterator[Path]:
    """A new folder that takes the place of `out` when the block ends, and vanishes when it fails.

    Raises:
        RecordingError: `out` holds a recording and `force` is not set, or holds something else.
    """
    if out.exists() and not (out / MANIFEST).exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecordingError(
            f"'{out}' is in the way and is not a recording; choose another folder, or remove it yourself"
        )
    if (out / MANIFEST).exists() and not force:
        raise RecordingError(
            f"'{out}' holds a recording already; choose another folder, or replace it with force=True (--force)"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent, ignore_cleanup_errors=True) as beside:
        folder = Path(beside) / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            out.rename(Path(beside) / "old")
        folder.rename(out)
