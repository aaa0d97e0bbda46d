"""Read counts that inference engines write: SGLang's expert distribution recorder and llama.cpp's moe-trace."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from moelens.analysis.count_rows import FileCounts, check_size, checked_ids, checked_numbers
from moelens.errors import CheckError
from moelens.recording.array_files import read_npz_arrays

_Array = NDArray[Any]
_FORWARD_MODES = {1: "prefill", 2: "decode", 3: "mixed"}  # of SGLang's ForwardMode: extend, decode, both in one batch


def read_sglang(path: Path, group: str) -> FileCounts:
    """Read a dump of SGLang's expert distribution recorder.

    The modes `stat` and `stat_approx` write `logical_count` `[step, layer, expert]`; `per_pass` and `per_token` write a
    record for each forward pass with `global_physical_count` `[layer, replica]`, which the map from replicas to experts
    turns into counts. In `per_token` each record says whether it is of prefill or of decoding, which become groups; in
    the other modes all tokens are one group. The file is read without unpickling anything but tensors.

    Args:
        path: the file, `.pt`, or an `.npz` with `logical_count`.
        group: name of the group where the file does not tell prefill from decoding.

    Raises:
        CheckError: the file is no such dump.
    """
    data = _load_dump(path)
    if "logical_count" in data:
        count = _array(data["logical_count"], path.name)
        count = count.sum(0) if count.ndim == 3 else count
        if count.ndim != 2:
            raise CheckError(
                f"expected logical_count [step, layer, expert] in {path.name}, got {list(count.shape)}; dump SGLang's "
                "expert distribution recorder again"
            )
        return _of_groups({group: count}, path.name)
    records, replicas = data.get("records"), data.get("last_physical_to_logical_map")
    is_recorded = isinstance(records, (list, tuple)) and all(_is_record(record) for record in records)
    if not is_recorded or not records or replicas is None:
        raise CheckError(
            f"expected logical_count, or records with last_physical_to_logical_map, in {path.name}, got "
            f"{', '.join(map(str, data))[:80] or 'nothing'}; dump SGLang's expert distribution recorder again"
        )
    experts = checked_ids(_array(replicas, path.name), "expert", path.name)
    n_experts = int(experts.max(initial=-1)) + 1
    totals: dict[str, _Array] = {}
    for record in records:
        physical = _array(record["global_physical_count"], path.name)
        if physical.shape != experts.shape or physical.ndim != 2:
            raise CheckError(
                f"expected counts [layer, replica] of the shape of the map from replicas to experts in {path.name}, "
                f"{list(experts.shape)}, got {list(physical.shape)}; dump the recorder again"
            )
        name = _FORWARD_MODES.get(record["forward_mode"], "other") if "forward_mode" in record else group
        check_size((len(experts), n_experts, len(totals) + 1), path.name)
        total = totals.setdefault(name, np.zeros((len(experts), n_experts), np.int64))
        np.add.at(total, (np.arange(len(experts))[:, None], experts), physical)
    return _of_groups(totals, path.name)


def _load_dump(path: Path) -> Mapping[str, Any]:
    """Return what a dump holds, by name."""
    import torch

    try:
        if path.suffix == ".npz":
            return read_npz_arrays(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what it meets: UnpicklingError, EOFError, KeyError, …
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:80]
        raise CheckError(
            f"expected a dump of SGLang's recorder, got {path.name!r}, which cannot be read ({reason}); dump it again"
        ) from error
    return data if isinstance(data, Mapping) else {}


def _is_record(record: Any) -> bool:
    """Whether a value is the record of a forward pass."""
    return (
        isinstance(record, Mapping)
        and "global_physical_count" in record
        and isinstance(record.get("forward_mode", 0), int)
    )


def _array(value: Any, name: str) -> _Array:
    """Return a tensor or array of whole numbers as int64.

    Raises:
        CheckError: it holds other values.
    """
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_meta:
            kind = "without numbers" if value.is_meta else f"of layout {value.layout}"
            raise CheckError(f"expected dense tensors of counts in {name}, got one {kind}; dump the recorder again")
        value = value.numpy() if not value.dtype.is_floating_point and not value.dtype.is_complex else value.tolist()
    array = checked_numbers(value, name)
    if array.dtype.kind == "f":
        raise CheckError(f"expected whole numbers as counts in {name}, got fractions; dump the recorder again")
    return array


def _of_groups(counts: Mapping[str, _Array], name: str) -> FileCounts:
    """Put a table `[layer, expert]` for each group together."""
    count = np.stack(list(counts.values()), axis=2)
    check_size(count.shape, name)
    return FileCounts(count=count, groups=tuple(counts), layers=tuple(range(len(count))))


def is_moe_trace(path: Path) -> bool:
    """Return whether a CSV file is a trace, which has no header: its first line holds integers only.

    A header of layer numbers also does; it counts up from one column to the next, and from 0 or more.
    """
    with path.open("rb") as file:
        fields = file.readline(4096).split(b",")
    try:
        numbers = [int(field) for field in fields]
    except ValueError:
        return False
    return len(numbers) > 2 and (numbers[0] < 0 or any(b - a != 1 for a, b in pairwise(numbers)))


def read_moe_trace(path: Path, group: str) -> FileCounts:
    """Read the CSV that llama.cpp's `llama-moe-trace` writes: `pos,layer,id,id,…`, without a header.

    Positions below 0 are tokens of the prompt, the others are generated tokens; they become the groups "prefill" and
    "decode". Traces may be concatenated.

    Args:
        path: the file.
        group: what the names of the groups begin with; empty for nothing.

    Raises:
        CheckError: the file is no such trace.
    """
    try:
        options = pyarrow.csv.ReadOptions(autogenerate_column_names=True)
        columns = [column.to_numpy() for column in pyarrow.csv.read_csv(path, read_options=options).columns]
    except (pa.ArrowException, OSError) as error:
        raise CheckError(
            f"expected lines pos,layer,id,id,… of equal length in {path.name}, got other lines "
            f"({next(iter(str(error).splitlines()), '')[:80]}); trace again"
        ) from error
    if len(columns) < 3 or any(column.dtype.kind != "i" for column in columns):
        raise CheckError(
            f"expected lines of integers pos,layer,id,id,… in {path.name}, got "
            f"{ascii(','.join(str(column[0]) for column in columns))[:60]}; give the file that llama-moe-trace wrote"
        )
    rows = np.stack(columns, axis=1)
    position, layer = rows[:, 0], checked_ids(rows[:, 1], "layer", path.name)
    ids = checked_ids(rows[:, 2:], "expert", path.name)
    chosen = np.sort(ids, axis=1)
    if (twice := (chosen[:, 1:] == chosen[:, :-1]).any(1)).any():
        line = int(np.argmax(twice))
        raise CheckError(
            f"expected different experts for a token in {path.name}, got {ids[line].tolist()} in line {line + 1}; "
            "trace again"
        )
    layers, at = np.unique(layer, return_inverse=True)
    n_experts = int(ids.max()) + 1
    groups = {"prefill": position < 0, "decode": position >= 0}
    check_size((len(layers), n_experts, len(groups)), path.name)
    count = np.zeros((len(layers), n_experts, 2), np.int64)
    for g, rows_of_group in enumerate(groups.values()):
        keys = at.reshape(-1)[rows_of_group, None] * n_experts + ids[rows_of_group]
        count[:, :, g] = np.bincount(keys.ravel(), minlength=len(layers) * n_experts).reshape(len(layers), n_experts)
    present = [g for g, rows_of_group in enumerate(groups.values()) if rows_of_group.any()]
    names = [f"{group} {name}".strip() for name in groups]
    return FileCounts(
        count=count[:, :, present],
        groups=tuple(names[g] for g in present),
        layers=tuple(layers.tolist()),
        top_k=ids.shape[1],
    )
