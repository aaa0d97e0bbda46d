"""`import_counts`: counts of experts from the tables that people publish and engines write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moelens.analysis.count_files import read_columns, read_json, read_table
from moelens.analysis.count_rows import FileCounts, check_size
from moelens.analysis.counts import Counts
from moelens.analysis.engine_counts import is_moe_trace, read_moe_trace, read_sglang
from moelens.errors import CheckError, MoeLensError, unknown
from moelens.recording.route_inputs import LAYER_NUMBERS, NUMBER_OF_EXPERTS, OptionInput, read_option
from moelens.version import __version__

_Array = NDArray[Any]
Sources = str | Path | Sequence[str | Path | tuple[str, str | Path]] | Mapping[str, str | Path]
"""A file, several files, or files with the name of their group."""
_READERS: Mapping[str, Callable[[Path, str], FileCounts]] = {
    "json": read_json,
    "table": read_table,
    "sglang": read_sglang,
    "moe-trace": read_moe_trace,
}
_TEXT = OptionInput(what="a text", types=(str,), optional=False, empty=True)
OPTIONS = {
    "out": OptionInput(what="the path of a file", types=(str, Path)),
    "kind": _TEXT,
    "groups": OptionInput(
        what="a list of names of groups",
        types=(list, tuple),
        check=lambda names: all(isinstance(name, str) and name for name in names),
    ),
    "total": _TEXT,
    "model": _TEXT,
    "layers": LAYER_NUMBERS,
    "n_experts": NUMBER_OF_EXPERTS,
    "top_k": NUMBER_OF_EXPERTS,
    "tolerance": OptionInput(
        what="a number from 0 to 1, without 1,",
        types=(int, float, np.number),
        optional=False,
        check=lambda x: 0 <= x < 1,
    ),
}
"""The arguments of `import_counts` besides the files."""


def import_counts(
    sources: Sources,
    out: str | Path | None = None,
    *,
    kind: str = "",
    groups: Sequence[str] | None = None,
    total: str = "",
    model: str = "",
    layers: Sequence[int] | None = None,
    n_experts: int | None = None,
    top_k: int | None = None,
    tolerance: float = 0.001,
) -> Counts:
    """Make `Counts` of the tables that people publish and engines write: how often each expert was chosen.

    Each group of text, such as a language, is a label of the counts. Tables of fractions are taken for sums of gate
    weights ("mass"), of which each token adds 1 to each layer. Counts have no documents, so nothing of them can be
    tested; see `Counts.specialization`.

    Args:
        sources: a file, several files, or files by the name of their group, as a mapping or pairs; files of the same
            group are added up. Each is of one of these kinds:

            - JSON, nested by layer and expert and possibly by group, with numbers or objects of a count and a sum of
              gate weights;
            - CSV, TSV or Parquet with columns `layer`, `expert`, `count` and possibly `group` and `gates`, or with a
              column for each layer or for each expert;
            - an `.npz` with such columns, or with an array `count` `[layer, expert, group]`;
            - a dump of SGLang's expert distribution recorder (`.pt`);
            - the CSV of llama.cpp's `llama-moe-trace`, whose groups are "prefill" and "decode".
        out: file to which the counts are saved, `.json` or `.parquet`.
        kind: "json", "table", "sglang" or "moe-trace"; by default what the files look like.
        groups: groups to keep.
        total: the group that holds all tokens, if the others overlap; by default the groups are parts of the text and
            are added up.
        model: name of the model; by default that in the files.
        layers: layers to keep. Layers in which all counts are 0, as dense layers have them, are left out.
        n_experts: number of experts in each layer; by default the largest number plus one.
        top_k: experts chosen for each token; by default that in the files, or the sums over the stated tokens.
        tolerance: how much the sum of a layer may differ from that of the tokens, relative to it.

    Returns:
        The counts. Their `provenance` says how much the sums of the layers differed, and what was left out.

    Raises:
        CheckError: a file cannot be read, or its numbers contradict each other.
        UnknownNameError: there is no such kind, group or layer.
        MoeLensError: there is no such file, or the number of experts for each token is not known.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "counts.csv"
        ...     lines = ["layer,expert,group,count", "0,0,ja,30", "0,1,ja,10", "0,0,en,10", "0,1,en,50"]
        ...     _ = path.write_text("\\n".join(lines))
        ...     counts = import_counts(path, top_k=1)
        >>> counts.names, counts.label_tokens.tolist(), counts.lift()[0, :, 0].tolist()
        (('ja', 'en'), [40, 60], [1.875, 0.4166666666666667])
    """
    given: dict[str, Any] = {"out": out, "kind": kind, "groups": groups, "total": total, "model": model}
    given |= {"tolerance": tolerance, "layers": layers, "n_experts": n_experts, "top_k": top_k}
    checked = {option: read_option(option, value, OPTIONS) for option, value in given.items()}
    layers, n_experts, top_k = checked["layers"], checked["n_experts"], checked["top_k"]
    named = _named(sources)
    table = _selected(_joined(_read(Path(path), name, kind) for name, path in named), groups, layers)
    if model:
        table = replace(table, model=model)
    if n_experts is not None:
        table = _with_experts(table, n_experts)
    counts = _checked(table, top_k, total, tolerance, [str(path) for _, path in named])
    if out is not None:
        counts.save(out)
    return counts


def _named(sources: Sources) -> list[tuple[str, str | Path]]:
    """Return the name of each file's group, empty for that of the file, and the file.

    Raises:
        MoeLensError: `sources` are something else.
    """
    if isinstance(sources, Mapping):
        pairs: list[Any] = list(sources.items())
    else:
        listed = sources if isinstance(sources, (list, tuple)) else [sources]
        pairs = [source if isinstance(source, tuple) else ("", source) for source in listed]
    wrong = (p for p in pairs if not (len(p) == 2 and isinstance(p[0], str) and isinstance(p[1], (str, Path))))
    for pair in wrong:
        raise MoeLensError(
            f"expected paths of files, or names of groups with them, as sources, got {ascii(pair)[:60]}; correct it"
        )
    return pairs


def _read(path: Path, name: str, kind: str) -> FileCounts:
    if kind and kind not in _READERS:
        raise unknown("kind of counts", kind, _READERS, "kind= (--from)")
    if not path.is_file():
        raise MoeLensError(f"expected a file of counts, got '{path}', which is no file; give an existing one")
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if not kind and suffix == ".csv" and path.suffix != ".gz" and is_moe_trace(path):
        kind = "moe-trace"
    if not kind:
        dump = suffix == ".pt" or (suffix == ".npz" and "logical_count" in read_columns(path))
        kind = "sglang" if dump else "json" if suffix == ".json" else "table"
    table = _READERS[kind](path, name if kind == "moe-trace" else name or path.name.split(".")[0])
    if name and kind != "moe-trace" and len(table.groups) > 1:
        groups = tuple(f"{name} {group}" for group in table.groups)
        tokens = {f"{name} {group}": n for group, n in table.tokens.items()}
        table = replace(table, groups=groups, tokens=tokens)
    return table


def _joined(tables: Iterable[FileCounts]) -> FileCounts:
    """Put the tables of several files together; groups of the same name are added up."""
    tables = list(tables)
    if not tables:
        raise MoeLensError("expected one or more files of counts, got none; give their paths")
    layers = tuple(sorted({layer for t in tables for layer in t.layers}))
    groups = tuple(dict.fromkeys(group for t in tables for group in t.groups))
    shape = len(layers), max(t.count.shape[1] for t in tables), len(groups)
    check_size(shape, "the files together")
    count = np.zeros(shape, np.result_type(*(t.count.dtype for t in tables)))
    gates = np.zeros(shape) if all(t.gates is not None for t in tables) else None
    tokens: dict[str, float] = {}
    for t in tables:
        at = np.ix_(
            [layers.index(layer) for layer in t.layers],
            range(t.count.shape[1]),
            [groups.index(group) for group in t.groups],
        )
        count[at] += t.count
        if gates is not None and t.gates is not None:
            gates[at] += t.gates
        for group, n in t.tokens.items():
            tokens[group] = tokens.get(group, 0.0) + n
    top_ks = {t.top_k for t in tables if t.top_k is not None}
    if len(top_ks) > 1:
        raise CheckError(
            f"expected files of one model, got {' and '.join(map(str, sorted(top_ks)))} experts for each token; "
            "import them separately"
        )
    return FileCounts(
        count=count,
        groups=groups,
        layers=layers,
        gates=gates,
        tokens=tokens if all(group in t.tokens for t in tables for group in t.groups) else {},
        top_k=next(iter(top_ks), None),
        model=next((t.model for t in tables if t.model), ""),
        notes=tuple(dict.fromkeys(note for t in tables for note in t.notes)),
    )


def _selected(table: FileCounts, groups: Sequence[str] | None, layers: Sequence[int] | None) -> FileCounts:
    """Keep the given groups and layers, and of the layers those with counts."""
    for what, wanted, known in (("group", groups, table.groups), ("layer", layers, table.layers)):
        for item in wanted or ():
            if item not in known:
                raise unknown(what, item, known)
    at_groups = [table.groups.index(g) for g in (groups or table.groups)]
    at_layers = [table.layers.index(x) for x in (layers or table.layers)]
    count = table.count[at_layers][:, :, at_groups]
    used = np.asarray(count.any((1, 2)))
    empty = [table.layers[i] for i, is_used in zip(at_layers, used, strict=True) if not is_used]
    if not used.any():
        raise CheckError("expected counts above 0, got none; give files in which experts were chosen")
    note = f"layers without counts, left out: {', '.join(map(str, empty))}"
    return replace(
        table,
        count=count[used],
        gates=None if table.gates is None else table.gates[at_layers][:, :, at_groups][used],
        groups=tuple(table.groups[i] for i in at_groups),
        layers=tuple(table.layers[i] for i, is_used in zip(at_layers, used, strict=True) if is_used),
        notes=(*table.notes, *([note] if empty else [])),
    )


def _with_experts(table: FileCounts, n_experts: int) -> FileCounts:
    """Add experts that no file names, with counts of 0."""
    missing = n_experts - table.count.shape[1]
    if missing < 0:
        raise CheckError(
            f"expected {n_experts} experts in each layer, got counts of expert {table.count.shape[1] - 1}; "
            "give the number of experts of the model"
        )
    check_size((len(table.layers), n_experts, len(table.groups)), "the files together")
    pad = ((0, 0), (0, missing), (0, 0))
    return replace(
        table, count=np.pad(table.count, pad), gates=None if table.gates is None else np.pad(table.gates, pad)
    )


def _checked(table: FileCounts, top_k: int | None, total: str, tolerance: float, sources: Sequence[str]) -> Counts:
    """Make `Counts` of a table whose layers agree with each other and with the stated tokens."""
    mass = table.count.dtype.kind == "f"
    sums = table.count.sum(1)  # [layer, group]
    if mass and not table.tokens and np.allclose(sums, 1, atol=tolerance):
        raise CheckError(
            "expected counts, or sums of gate weights, got shares that sum to 1 in every layer; "
            "multiply them by the number of tokens"
        )
    k = table.top_k if top_k is None else top_k
    tokens = np.array([table.tokens.get(group, np.nan) for group in table.groups])
    if k is None and not mass and (tokens > 0).all():
        k = int(np.rint(np.median(sums / tokens)))
    if k is None or k < 1:
        raise MoeLensError(
            "expected the number of experts for each token, which the files do not state, got none; "
            "give it with top_k= (--top-k)"
        )
    per_token = 1 if mass else k
    tokens = np.where(np.isnan(tokens), np.median(sums, axis=0) / per_token, tokens)
    off = _deviation(sums, tokens * per_token, table, tolerance)
    _require_single_choices(table, tokens, tolerance)
    whole = np.rint(tokens)
    tokens = whole.astype(np.int64) if (np.abs(tokens - whole) <= tolerance * np.maximum(tokens, 1)).all() else tokens
    if total and total not in table.groups:
        raise unknown("group", total, table.groups, "total= (--total)")
    of_all = [table.groups.index(total)] if total else list(range(len(table.groups)))
    labels = [i for i, group in enumerate(table.groups) if group != total]
    about = {
        "model": table.model,
        "sources": ", ".join(Path(source).name for source in sources),
        "layer_sums_off_by": off,
        "tolerance": tolerance,
        "notes": list(table.notes),
        "moelens": __version__,
    }
    return Counts(
        cells=table.count[:, :, labels][None],
        experts=table.count[:, :, of_all].sum(2)[None],
        labels=tokens[labels][None],
        tokens=tokens[of_all].sum()[None],
        names=tuple(table.groups[i] for i in labels),
        layers=table.layers,
        top_k=k,
        gates=None if table.gates is None else table.gates[:, :, labels].astype(float)[None],
        mass=mass,
        provenance=about,
    )


def _require_single_choices(table: FileCounts, tokens: _Array, tolerance: float) -> None:
    """Raise `CheckError` if an expert has more than the tokens of a group, each of which chooses it once at most."""
    over = table.count / tokens
    if over.max() > 1 + tolerance:
        layer, expert, group = np.unravel_index(np.argmax(over), over.shape)
        raise CheckError(
            f"expected at most {tokens[group]:,.0f} for an expert, the tokens of group {table.groups[group]!r}, got "
            f"{table.count[layer, expert, group]:,.0f} for expert {expert} of layer {table.layers[layer]}; "
            "correct top_k"
        )


def _deviation(sums: _Array, expected: _Array, table: FileCounts, tolerance: float) -> float:
    """Return the largest relative difference between the sums of layers and the expected ones.

    Raises:
        CheckError: a group is empty, or a layer differs by more than `tolerance`.
    """
    if not expected.all():
        raise CheckError(
            f"expected tokens in every group, got none in {table.groups[int(np.argmin(expected))]!r}; leave it out "
            "with groups= (--groups)"
        )
    off = np.abs(sums / expected - 1)
    if off.max() > tolerance:
        layer, group = np.unravel_index(np.argmax(off), off.shape)
        raise CheckError(
            f"expected the same sum in every layer, {expected[group]:,.0f} for group {table.groups[group]!r}, got "
            f"{sums[layer, group]:,.0f} in layer {table.layers[layer]} ({off[layer, group]:.2%} off, tolerance "
            f"{tolerance:.2%}); correct top_k, leave the layer or the group out with layers= and groups= (--layers, "
            "--groups), or allow more with tolerance= (--tolerance)"
        )
    return float(off.max())
