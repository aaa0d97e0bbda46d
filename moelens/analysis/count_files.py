"""Read counts from the files in which people have them: JSON, CSV, Parquet, npz."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from moelens.analysis.count_rows import (
    COUNT_NAMES,
    GATE_NAMES,
    FileCounts,
    check_size,
    checked_numbers,
    checked_top_k,
    table_of_rows,
)
from moelens.errors import CheckError
from moelens.recording.array_files import read_npz_arrays

_Array = NDArray[Any]
_LAYER = re.compile(r"(?:.*\b(?:layers?|blk|block|h)[._ -]?|[Ll])?(\d{1,9})(?:[._]\D.*)?")
_EXPERT = re.compile(r"(?:experts?[._ -]?|[Ee])?(\d{1,9})")
_LAYER_NAMES = ("layer", "layer_id", "layer_idx", "layer_index")
_EXPERT_NAMES = ("expert", "expert_id", "expert_idx", "expert_index")
_GROUP_NAMES = ("group", "label", "language", "lang", "category", "domain", "dataset", "task", "phase")
_TOKEN_NAMES = ("token_id", "token")
_TOTAL_NAMES = ("total_tokens", "n_tokens", "tokens", "total")
_TOP_K_NAMES = ("top_k", "topk", "num_experts_per_tok", "k")
_MODEL_NAMES = ("model", "model_name")
_MOST_BYTES = 1 << 30


def read_json(path: Path, group: str) -> FileCounts:
    """Read counts that are nested by layer and expert, and possibly by group around them.

    The value of an expert is a number, or an object with a count and possibly a sum of gate weights. A layer may be a
    list of numbers. Facts may surround the counts: model, top_k, layers.

    Args:
        path: the file, `.json` or `.json.gz`.
        group: name of the group where the file has one group only.

    Raises:
        CheckError: the file is not JSON, is not nested so, or holds values that cannot be true.
    """
    try:
        data = json.loads(_bytes_of(path))
    except (ValueError, RecursionError, OSError, EOFError) as error:
        raise CheckError(f"expected JSON in {path.name}, got other data ({_reason(error)}); save it as JSON") from error
    body, about = _unwrap(data, path.name)
    groups = {group: body} if _is_layers(body) else body
    numbers = about.get("layers")
    rows: list[tuple[int, int, str, Any, Any]] = []
    tokens: dict[str, float] = {}
    for name, layers in groups.items():
        for layer, experts in _layer_items(layers, numbers):
            for expert, value in _expert_items(experts, path.name):
                rows.append((layer, expert, name, *_count_and_gate(value, path.name)))
            stated = [experts[t] for t in _TOTAL_NAMES if isinstance(experts, Mapping) and t in experts]
            if stated:
                tokens[name] = float(checked_numbers(stated[:1], path.name)[0])
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], [], []]
    gates = None if None in columns[4] else columns[4]
    table = table_of_rows(path.name, columns[0], columns[1], columns[2], columns[3], gates)
    top_k, model = _first_of(about, _TOP_K_NAMES), about.get("model")
    return replace(
        table,
        tokens=tokens,
        top_k=None if top_k is None else checked_top_k(top_k, path.name),
        model=model if isinstance(model, str) else "",
    )


def _unwrap(data: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """Return the counts in a JSON value, and the facts around them."""
    if _is_layers(data) or _is_groups(data):
        return data, {}
    inside = {k: v for k, v in data.items() if _is_layers(v) or _is_groups(v)} if isinstance(data, Mapping) else {}
    if len(inside) != 1:
        got = f"an object with {', '.join(map(str, data))[:80]}" if isinstance(data, Mapping) else type(data).__name__
        raise CheckError(
            f'expected counts nested by layer and expert in {name}, such as {{"3": {{"17": 42}}}}, got {got}; '
            "write one such object for each group"
        )
    ((key, body),) = inside.items()
    return body, {k: v for k, v in data.items() if k != key}


def _is_experts(node: Any) -> bool:
    """Whether a JSON value maps experts to counts."""
    if isinstance(node, list):
        return bool(node) and all(_is_count(v) for v in node)
    return (
        isinstance(node, Mapping)
        and any(_EXPERT.fullmatch(str(k)) for k in node)
        and all(k in _TOTAL_NAMES or (_EXPERT.fullmatch(str(k)) and _is_count(v)) for k, v in node.items())
    )


def _is_count(value: Any) -> bool:
    """Whether a JSON value is a number, or an object of named numbers."""
    if isinstance(value, Mapping):
        return bool(value) and not any(_EXPERT.fullmatch(str(k)) for k in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_layers(node: Any) -> bool:
    if isinstance(node, list):
        return bool(node) and all(_is_experts(v) for v in node)
    return (
        isinstance(node, Mapping)
        and bool(node)
        and all(_LAYER.fullmatch(str(k)) and _is_experts(v) for k, v in node.items())
    )


def _is_groups(node: Any) -> bool:
    return isinstance(node, Mapping) and bool(node) and all(_is_layers(v) for v in node.values())


def _layer_items(layers: Any, numbers: Any) -> Iterator[tuple[int, Any]]:
    """Yield the number of each layer and its experts; `numbers` are those of a list of layers, if they are stated."""
    if isinstance(layers, Mapping):
        yield from ((_numbered(_LAYER, key), experts) for key, experts in layers.items())
    else:
        stated = isinstance(numbers, list) and len(numbers) == len(layers)
        yield from zip(numbers if stated else range(len(layers)), layers, strict=True)


def _expert_items(experts: Any, name: str) -> Iterator[tuple[int, Any]]:
    if isinstance(experts, Mapping):
        yield from ((_numbered(_EXPERT, key), value) for key, value in experts.items() if key not in _TOTAL_NAMES)
    else:
        yield from enumerate(experts)


def _numbered(pattern: re.Pattern[str], key: Any) -> int:
    found = pattern.fullmatch(str(key))
    assert found is not None
    return int(found[1])


def _count_and_gate(value: Any, name: str) -> tuple[Any, Any]:
    """Return a count and its sum of gate weights, or None for the latter, of the JSON value of an expert."""
    if not isinstance(value, Mapping):
        return value, None
    gate, count = _first_of(value, GATE_NAMES), _first_of(value, COUNT_NAMES)
    others = [v for k, v in value.items() if k not in GATE_NAMES]
    if count is None and len(others) == 1:
        count = others[0]
    if count is None:
        raise CheckError(
            f"expected a field for the count of an expert in {name}, one of {', '.join(COUNT_NAMES)}, got "
            f"{', '.join(map(str, value))[:80]}; rename it"
        )
    return count, gate


def _first_of(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((values[n] for n in names if n in values), None)


def read_columns(path: Path) -> dict[str, _Array]:
    """Read the columns of a `.csv`, `.tsv`, `.parquet` or `.npz` file, with their names in lower case.

    Raises:
        CheckError: the file cannot be read.
    """
    readers: Mapping[str, Callable[[Path], Iterable[tuple[str, _Array]]]] = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
        ".npz": lambda file: read_npz_arrays(file).items(),
    }
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in readers:
        raise CheckError(
            f"expected a file of counts that ends in .json, .csv, .tsv, .parquet, .npz or .pt, got {path.name!r}; "
            "rename it, or say what it is with kind= (--from)"
        )
    try:
        columns = [(str(name).strip().lower(), column) for name, column in readers[suffix](path)]
    except (pa.ArrowException, ValueError, OSError, EOFError) as error:
        raise CheckError(
            f"expected a readable {suffix} file, got {path.name!r}, which cannot be read "
            f"({_reason(error)}); write it again"
        ) from error
    names = [name for name, _ in columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckError(f"expected each column once in {path.name}, got {twice[:40]!r} twice; rename one of them")
    return dict(columns)


def _reason(error: Exception) -> str:
    """Return the first line of what an error says, or its name."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:80]


def _read_csv(path: Path) -> Iterable[tuple[str, _Array]]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    options = pyarrow.csv.ParseOptions(delimiter=delimiter)
    return _arrays(pyarrow.csv.read_csv(pa.BufferReader(_bytes_of(path)), parse_options=options))


def _read_parquet(path: Path) -> Iterable[tuple[str, _Array]]:
    return _arrays(pyarrow.parquet.read_table(path))


def _arrays(table: pa.Table) -> list[tuple[str, _Array]]:
    return [(name, column.to_numpy()) for name, column in zip(table.column_names, table.columns, strict=True)]


def _bytes_of(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 30} GiB")
    return data


def read_table(path: Path, group: str) -> FileCounts:
    """Read counts from the columns of a file.

    The file has a row for each layer, expert and group; or a row for each expert and a column for each layer; or a row
    for each layer and a column for each expert. Rows of several token ids are added up. An `.npz` may hold an array
    `count` `[layer, expert]` or `[layer, expert, group]`, with `groups`, `layers`, `gates`, `tokens` and `top_k`.

    Args:
        path: the file.
        group: name of the group where the file has one group only.

    Raises:
        CheckError: the file does not hold such columns, or holds values that cannot be true.
    """
    columns = read_columns(path)
    arrays = [name for name in COUNT_NAMES if columns.get(name, np.zeros(0)).ndim > 1]
    if arrays:
        return _of_arrays(columns, columns[arrays[0]], path.name, group)
    layer, expert, value, by_group, token = (
        next((n for n in names if n in columns), None)
        for names in (_LAYER_NAMES, _EXPERT_NAMES, COUNT_NAMES, _GROUP_NAMES, _TOKEN_NAMES)
    )
    check_lengths(columns, path.name)
    groups = _group_names(columns, by_group, group, path.name)
    used = {layer, expert, value, by_group, token}
    if layer is not None and expert is not None and value is not None:
        gate = next((n for n in GATE_NAMES if n in columns), None)
        table = table_of_rows(
            path.name,
            columns[layer],
            columns[expert],
            groups,
            columns[value],
            None if gate is None else columns[gate],
            add=token is not None,
        )
        used.add(gate)
    else:
        pattern, index = (_EXPERT, layer) if layer is not None else (_LAYER, expert)
        wide = {n: c for n, c in columns.items() if n not in used and pattern.fullmatch(n)}
        if not wide:
            raise CheckError(
                f"expected columns layer, expert and count, or a column for each layer, in {path.name}, got "
                f"{', '.join(columns)[:80] or 'none'}; name them so"
            )
        table = _of_wide(wide, pattern, None if index is None else columns[index], groups, path.name)
        used |= set(wide)
    unused = [n for n in columns if n not in used]
    return replace(
        table, notes=(f"columns left out: {', '.join(n or 'one without a name' for n in unused)}",) if unused else ()
    )


def check_lengths(columns: Mapping[str, _Array], name: str) -> None:
    """Raise `CheckError` if columns are not lists of one length."""
    shapes = {column.shape for column in columns.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        found = ", ".join(sorted(str(list(shape)) for shape in shapes))[:60]
        raise CheckError(f"expected columns of one length in {name}, got shapes {found}; save them so")


def _group_names(columns: Mapping[str, _Array], by_group: str | None, group: str, name: str) -> list[str]:
    """Return the group of each row: that in the column, or the group of the file."""
    if by_group is None:
        return [group] * len(next(iter(columns.values()), []))
    names = columns[by_group].tolist()
    nested = (np.ndarray, list, dict)  # of Parquet
    wrong = (i for i, value in enumerate(names) if isinstance(value, nested) or value in (None, "") or value != value)
    if (row := next(wrong, None)) is not None:
        raise CheckError(
            f"expected the name of a group in every row of {name}, got no name in row {row + 1}; correct it"
        )
    return list(map(str, names))


def _of_wide(
    wide: Mapping[str, _Array], pattern: re.Pattern[str], index: _Array | None, groups: list[str], name: str
) -> FileCounts:
    """Put columns that are named by layer, or by expert if `index` holds layers, into tables.

    Without an index, the rows of each group are experts from 0 on.
    """
    if index is None:
        seen: dict[str, int] = {}
        counted = []
        for group in groups:
            counted.append(seen.get(group, 0))
            seen[group] = counted[-1] + 1
        index = np.array(counted, np.int64)
    across = np.repeat([_numbered(pattern, n) for n in wide], len(index))
    down = np.tile(index, len(wide))
    values = np.concatenate([checked_numbers(column, name) for column in wide.values()])
    layers, experts = (down, across) if pattern is _EXPERT else (across, down)
    return table_of_rows(name, layers, experts, groups * len(wide), values)


def _of_arrays(columns: Mapping[str, _Array], count: _Array, name: str, group: str) -> FileCounts:
    """Read arrays `[layer, expert]` or `[layer, expert, group]`, or `[group, layer, expert]` if the names say so."""
    stated = next((columns[n] for n in ("groups", "names", "labels", "categories") if n in columns), None)
    groups = (group,) if stated is None else tuple(map(str, np.ravel(stated).tolist()))
    by_group = count.ndim == 3 and len(groups) == len(count) != count.shape[2]
    gates = next((columns[n] for n in GATE_NAMES if n in columns), None)
    if gates is not None and gates.shape != count.shape:
        raise CheckError(
            f"expected gates of the shape of count, {list(count.shape)}, in {name}, got {list(gates.shape)}; save them "
            "so, or leave them out"
        )
    if by_group:
        count, gates = np.moveaxis(count, 0, 2), None if gates is None else np.moveaxis(gates, 0, 2)
    shape = (*count.shape, 1) if count.ndim == 2 else count.shape
    layers = np.ravel(columns.get("layers", np.arange(len(count))))
    if len(shape) != 3 or shape[2] != len(groups) or len(layers) != shape[0]:
        raise CheckError(
            f"expected count [layer, expert, group] in {name}, with groups and layers of the same lengths, got shape "
            f"{list(count.shape)}, {len(groups)} groups and {len(layers)} layers; save them so"
        )
    check_size(shape, name)
    at_layer, expert, at_group = np.indices(shape).reshape(3, -1)
    table = table_of_rows(
        name,
        layers[at_layer],
        expert,
        [groups[i] for i in at_group],
        count.ravel(),
        None if gates is None else gates.ravel(),
        n_experts=shape[1],
    )
    top_k = _first_of(columns, _TOP_K_NAMES)
    return replace(
        table,
        tokens=_stated_tokens(columns, groups, name),
        top_k=None if top_k is None else checked_top_k(top_k, name),
    )


def _stated_tokens(columns: Mapping[str, _Array], groups: Sequence[str], name: str) -> dict[str, float]:
    """Return the tokens of each group, if arrays state them.

    Raises:
        CheckError: they are not one number for each group.
    """
    tokens = next((columns[n] for n in ("tokens", "label_tokens", "n_tokens", "total_tokens") if n in columns), None)
    if tokens is None:
        return {}
    if tokens.size != len(groups):
        raise CheckError(
            f"expected a number of tokens for each of {len(groups)} groups in {name}, got {tokens.size}; correct them"
        )
    return dict(zip(groups, checked_numbers(np.ravel(tokens), name).astype(float).tolist(), strict=True))
