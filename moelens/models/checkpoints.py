"""The files of a checkpoint: whether they are whole, and whether a model got its weights from them.

transformers draws weights that a checkpoint lacks at random and goes on. Random routers and experts choose and compute
something, so no check of the model's own numbers finds them. They are found in transformers' report on loading.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from moelens.errors import CheckError, MoeLensError
from moelens.models.load_checks import Check
from moelens.models.structure import MoELayer, find_moe_layers
from moelens.models.wrappers import unwrap

_POINTER = b"version https://git-lfs.github.com/spec/"
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.([^.]+)")
_STACK = re.compile(r"(.*?layers|.*?blocks|.*?h)\.(\d+)\.(.*)")
# Parts of checkpoints that text models leave out on purpose: other modalities, and heads that predict several tokens.
_LEFT_OUT = re.compile(r"vision|visual|image|audio|multi_modal|talker|code2wav|(^|\.)mtp|nextn|inv_freq")
_MOST_NAMED = 4


def require_whole_files(folder: Path) -> None:
    """Refuse a folder with files that are Git LFS pointers, or with weights that are incomplete.

    Args:
        folder: the folder of a checkpoint.

    Raises:
        MoeLensError: a file is a pointer, is shorter than it says, or is named in the index and missing.
    """
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with path.open("rb") as file:
            if path.stat().st_size < 1024 and file.read(len(_POINTER)) == _POINTER:
                raise MoeLensError(
                    f"'{path}' is a Git LFS pointer, which stands in for a file that was not downloaded; run "
                    "`git lfs pull` in the folder"
                )
    for index in sorted(folder.glob("*.index.json")):
        for shard in _shards(index):
            if not (folder / shard).exists():
                raise MoeLensError(f"'{index.name}' names '{shard}', which is not in '{folder}'; download it")
    for path in sorted(folder.glob("*.safetensors")):
        expected, size = _length(path), path.stat().st_size
        if not expected:
            raise MoeLensError(
                f"'{path}' has no readable header, so it is no safetensors file or is damaged; download it again"
            )
        if expected != size:
            raise MoeLensError(
                f"expected {expected:,} bytes in '{path}', as its header says, got {size:,}; download it again"
            )
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise MoeLensError(
                f"'{path}' has a header that cannot be true ({' '.join(str(error).split())[:120]}); download it again"
            ) from error


def _shards(index: Path) -> list[str]:
    """The names of the files in the index of a checkpoint.

    Raises:
        MoeLensError: it is no index, or names a file that is not in its folder.
    """
    try:
        named = {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MoeLensError(f"'{index}' is damaged, or is not the index of a checkpoint; download it again") from error
    for name in sorted(named):
        if Path(name).is_absolute() or "\\" in name or ".." in Path(name).parts:
            raise MoeLensError(f"'{index}' names {name!r}, which is not in its folder; do not use this checkpoint")
    return sorted(named)


def _length(path: Path) -> int:
    """The length in bytes that a safetensors file says it has; 0 where its header cannot be read."""
    with path.open("rb") as file:
        start = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(start, path.stat().st_size)))
            ends = [int(t["data_offsets"][1]) for n, t in header.items() if n != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
            return 0
    return 8 + start + max(ends, default=0)


def weight_files(source: str, revision: str | None = None) -> list[Path]:
    """Find the safetensors files of a folder, or of a hub repository in the cache; none where there are none."""
    if Path(source).is_dir():
        return sorted(Path(source).glob("*.safetensors"))
    options = {"revision": revision, "local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    for name in ("model.safetensors.index.json", "model.safetensors"):
        try:
            found = cached_file(source, name, **options)
        except OSError:
            return []
        if found is not None:
            return sorted(Path(found).parent.glob("*.safetensors"))
    return []


def stored_names(source: str, revision: str | None = None) -> list[str]:
    """List the tensors that a checkpoint says it has, before its weights are read.

    Args:
        source: a folder, or a hub repository, of which the index alone is downloaded.
        revision: as in transformers' `from_pretrained`.

    Returns:
        The names; none for a repository without an index.
    """
    try:
        found = cached_file(
            source, "model.safetensors.index.json", revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if found is not None:
            return sorted(json.loads(Path(found).read_text("utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError):
        return []  # what is wrong with it is said where the weights are read
    names: list[str] = []
    for path in weight_files(source, revision):
        with safe_open(path, "pt") as file:
            names += file.keys()
    return names


@contextmanager
def kept_report() -> Iterator[list[str]]:
    """Keep the reports that transformers logs about loading, whatever its verbosity is."""
    logger, reports = logging.getLogger("transformers.modeling_utils"), list[str]()

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reports.append(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))

    keeper, level, propagate = Keeper(logging.WARNING), logger.level, logger.propagate
    logger.addHandler(keeper)
    if logger.getEffectiveLevel() > logging.WARNING:
        logger.propagate = False
        logger.setLevel(logging.WARNING)
    try:
        yield reports
    finally:
        logger.removeHandler(keeper)
        logger.setLevel(level)
        logger.propagate = propagate


def incomplete_weights(model: str, reports: Iterable[str]) -> CheckError | None:
    """Make the error for weights that transformers could not put together from their parts; None if there are none."""
    text = "\n".join(reports)
    names = re.findall(r"^(\S.*?)\s+\| CONVERSION", text, re.MULTILINE)
    if not names:
        return None
    reason = re.search(r"^(.+)\nError: ", text, re.MULTILINE)
    return CheckError(
        f"expected the checkpoint of {model!r} to hold every expert in a form that transformers can unpack, but "
        f"{_listed(names)} cannot be put together from its parts ({reason[1] if reason else 'no reason given'}); "
        "download the checkpoint again, correct the names in it, or use the model in another format"
    )


def check_weights(
    model: str, hf_model: Any, report: dict[str, Any], files: list[Path], *, refuse: bool = True
) -> Check:
    """Check that a model's weights are those of its checkpoint.

    Args:
        model: the model's name.
        hf_model: the transformers model.
        report: what `from_pretrained` returned with `output_loading_info`.
        files: the checkpoint's safetensors files.
        refuse: whether to refuse a model whose routers or experts are not those of the checkpoint.

    Returns:
        The check. It fails for weights elsewhere that are missing, have another shape or are not used.

    Raises:
        CheckError: weights of routers, experts or shared experts are missing, have another shape, are not used, or are
            numbered with gaps.
    """
    prefix, moe_layers, n_layers = _stack(hf_model)
    problems: dict[str, list[str]] = {
        "missing, and drawn at random": sorted(report["missing_keys"]),
        "of another shape, and drawn at random": sorted(name for name, *_ in report["mismatched_keys"]),
        "not used": sorted(report["unexpected_keys"]),
        "missing from the numbers of its layer": sorted(_gaps(files)),
        "set by transformers to other numbers than the checkpoint's": sorted(
            _replaced(hf_model, moe_layers.values(), files)
        ),
    }
    inside = {
        what: [n for n in names if _belongs_to_experts(n, prefix, moe_layers, n_layers)]
        for what, names in problems.items()
    }
    if refuse and any(inside.values()):
        raise CheckError(
            f"expected the checkpoint of {model!r} to hold the weights of all routers and experts, but {_told(inside)}"
            "; download the checkpoint again, or correct its names or configuration"
        )
    left_out = [n for n in problems["not used"] if _LEFT_OUT.search(n) and n not in inside["not used"]]
    problems["not used"] = [n for n in problems["not used"] if n not in left_out]
    text = _told(problems)
    other = f"; {len(left_out)} of other parts are not used" if left_out else ""
    n_weights = len(list(hf_model.parameters()))
    return Check("weights", not text, (text or f"all {n_weights} tensors come from the checkpoint") + other)


def _told(problems: dict[str, list[str]]) -> str:
    """The problems in words: which weights are what."""
    found = [(names, what) for what, names in problems.items() if names]
    return "; ".join(f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {what}" for names, what in found)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:_MOST_NAMED]) + more


def _stack(hf_model: Any) -> tuple[str, dict[int, MoELayer], int]:
    """The path of the decoder layers, the layers with experts by number, and the number of layers."""
    layers, moe_layers = find_moe_layers(hf_model)
    prefix = next(name for name, module in hf_model.named_modules() if module is layers)
    return prefix, {layer.index: layer for layer in moe_layers}, len(layers)


def _belongs_to_experts(name: str, prefix: str, moe_layers: dict[int, MoELayer], n_layers: int) -> bool:
    """Whether a weight is one of a router, of experts or of shared experts in a layer that the model has."""
    if name.startswith("blk."):  # of a GGUF file
        return re.search(r"_exps|_shexp|ffn_gate_inp|exp_probs", name) is not None
    match = _STACK.match(name)
    if match is None or int(match[2]) >= n_layers or not f".{prefix}".endswith(f".{match[1]}"):
        return False
    layer, rest = moe_layers.get(int(match[2])), match[3]
    if layer is None:
        return re.search(r"experts\.|\brouter\b|\bgate\.", rest) is not None
    if layer.block is not layer.decoder_layer:
        return rest.startswith(f"{layer.block_name}.")
    parts = [m for m in (unwrap(layer.router), layer.experts, layer.shared) if m is not None]
    inside = [n for n, m in layer.decoder_layer.named_modules() if m in parts]
    return rest.startswith(tuple(f"{n}." for n in inside))


def _gaps(files: list[Path]) -> set[str]:
    """Experts that are stored one by one and whose numbers, in one layer, do not go from 0 on without gaps."""
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for path in files:
        with safe_open(path, "pt") as file:
            for match in filter(None, map(_EXPERT.match, file.keys())):
                numbers[match[1], match[3]].add(int(match[2]))
    return {
        f"{experts}.{number}.{part}"
        for (experts, part), having in numbers.items()
        for number in set(range(max(having) + 1)) - having
    }


def _replaced(hf_model: Any, moe_layers: Iterable[MoELayer], files: list[Path]) -> set[str]:
    """Weights of routers that differ from those of the same name in the files."""
    held: dict[str, Tensor] = {}
    for module in {unwrap(layer.router) for layer in moe_layers if layer.router is not None}:
        name = next(n for n, m in hf_model.named_modules() if m is module)
        tensors = [*module.named_parameters(), *module.named_buffers()]
        held |= {f"{name}.{n}": t for n, t in tensors if type(t.data) is Tensor and not t.is_meta}
    differing = set()
    for path in files:
        with safe_open(path, "pt") as file:
            for name in held.keys() & set(file.keys()):
                stored, tensor = file.get_tensor(name), held[name]
                plain = all(t.is_floating_point() and t.element_size() > 1 for t in (stored, tensor))
                comparable = plain and stored.shape == tensor.shape
                if comparable and not torch.equal(stored.to(tensor.dtype), tensor.detach().cpu()):
                    differing.add(name)
    return differing
