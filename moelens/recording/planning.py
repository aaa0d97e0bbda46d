"""`plan`: the memory, devices and disk space that a recording needs, computed without loading the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from moelens.display import Displayed
from moelens.errors import MoeLensError, unknown
from moelens.models.loading import model_without_weights
from moelens.models.structure import MoEShape, find_moe_layers, read_shape, text_config
from moelens.recording.captures import CaptureRequest, bytes_per_token, read_captures

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1 + 4 / 128**2}
_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "float8": "fp8"}
_WEIGHTS_SHARE = 0.9  # of the memory of a device, as accelerate plans; the rest is for activations


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan(Displayed):
    """What a recording with a model needs. Sizes are in bytes.

    Attributes:
        model: Name of the model.
        dtype: Element type of the weights.
        shape: Layers and experts of the model.
        parameters: Number of parameters.
        weights: Size of all weights.
        gpu_memory: Memory of one GPU.
        devices: Size of the weights on each GPU.
        spilled: Size of the weights that do not fit on the GPUs and stay in memory of the CPU or on disk.
        device_map: Device of each module: the number of a GPU, or "cpu".
        gpus_needed: The smallest number of such GPUs that hold all weights; 0 if a layer does not fit on one.
        kv_cache: Size of the key-value cache per token while generating.
        token_bytes: Size of each capture per token, before compression.
        tokens: Number of tokens of the corpus.
        command: Command that starts the recording.
    """

    model: str
    dtype: str
    shape: MoEShape
    parameters: int
    weights: int
    gpu_memory: int
    devices: tuple[int, ...]
    spilled: int
    device_map: dict[str, int | str]
    gpus_needed: int
    kv_cache: int
    token_bytes: dict[str, int]
    tokens: int
    command: str

    @property
    def fits(self) -> bool:
        """Whether all weights fit on the GPUs."""
        return self.spilled == 0

    @property
    def disk(self) -> int:
        """Size of all captures of the corpus, before compression."""
        return sum(self.token_bytes.values()) * self.tokens

    def __repr__(self) -> str:
        n, memory = len(self.devices), _gib(self.gpu_memory)
        usable = _gib(int(n * self.gpu_memory * _WEIGHTS_SHARE))
        if self.fits:
            verdict = f"fits on {n} x {memory} (at most {_gib(max(self.devices, default=0))} of weights on one)"
        else:
            needed = f"{self.gpus_needed} GPUs are needed" if self.gpus_needed else "a layer does not fit on one GPU"
            verdict = (
                f"does not fit on {n} x {memory}: the weights exceed the usable {usable} by {_gib(self.spilled)};"
                f" {needed}"
            )
        lines = [
            f"{self.model} in {self.dtype}: {self.parameters / 1e9:.1f} B parameters, {_gib(self.weights)}, {verdict}",
            *(f"  {device:<9} {content}" for device, content in self._device_rows()),
            f"  cache     {self.kv_cache:,} bytes per token, only while generating",
            *(f"  {name:<9} {size:,} bytes per token" for name, size in self.token_bytes.items()),
            f"  disk      {_decimal_size(self.disk)} for {self.tokens:,} tokens, before compression",
            f"  start     {self.command}",
        ]
        return "\n".join(lines)

    def _device_rows(self) -> list[tuple[str, str]]:
        """Return each device that holds weights, with their size and the names of the first and the last module."""
        rows = []
        for device in [*range(len(self.devices)), "cpu"]:
            names = [name for name, place in self.device_map.items() if place == device]
            if names:
                size = self.spilled if device == "cpu" else self.devices[int(device)]
                span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
                rows.append((device if isinstance(device, str) else f"gpu {device}", f"{_gib(size):>10}  {span}"))
        return rows


def plan(
    model: str,
    *,
    gpus: int = 1,
    gpu_memory: int | str = "80GiB",
    dtype: str = "bfloat16",
    tokens: float | str = "1M",
    capture: str | list[str] = "routes",
    store_dtype: str = "float16",
) -> Plan:
    """Compute what a recording needs, without reading weights; for 671 billion parameters, this takes seconds.

    Args:
        model: "demo", a folder, an architecture such as "deepseek_v3" at its default size, or a name on the hub.
        gpus: Number of GPUs.
        gpu_memory: Memory of one GPU, in bytes or with a unit ("141GiB").
        dtype: Element type of the weights: "bfloat16", "float16", "float32" or "fp8" (in blocks of 128 x 128 as in
            DeepSeek-V3).
        tokens: Number of tokens of the corpus, possibly with a unit ("100M").
        capture: As in `record`.
        store_dtype: As in `record`.

    Raises:
        UnknownNameError: If there is no such model, element type or capture.
        MoeLensError: If a number is out of range or cannot be read.

    Example:
        >>> import moelens
        >>> demo = moelens.plan("demo", tokens="10K", capture=["routes", "neurons:8"])
        >>> demo.fits, demo.tokens, list(demo.token_bytes)
        (True, 10000, ['routes', 'neurons:8'])
    """
    dtype = _ALIASES.get(dtype, dtype)
    if dtype not in _BYTES_PER_WEIGHT:
        raise unknown("dtype", dtype, _BYTES_PER_WEIGHT)
    captures = [str(c) for c in read_captures(capture, store_dtype)]
    if gpus < 1:
        raise MoeLensError(f"expected gpus to be at least 1, got {gpus}; give another number")
    memory, n_tokens = _parse_amount(gpu_memory), _parse_amount(tokens)
    meta = model_without_weights(model)
    layers, sites = find_moe_layers(meta)
    shape = read_shape(meta, layers, sites, "unknown")
    sizes = _unit_sizes(meta, layers, dtype)
    usable = int(memory * _WEIGHTS_SHARE)
    groups, spilled = _assign_units(sizes, gpus, usable)
    needed = next((n for n in range(1, len(sizes) + 1) if not _assign_units(sizes, n, usable)[1]), 0)
    device_map: dict[str, int | str] = {name: i for i, group in enumerate(groups) for name in group}
    device_map |= dict.fromkeys(spilled, "cpu")
    request = CaptureRequest.of_shape(shape, capture, None, None, store_dtype)
    return Plan(
        model=model,
        dtype=dtype,
        shape=shape,
        parameters=sum(p.numel() for p in meta.parameters()),
        weights=sum(sizes.values()),
        gpu_memory=memory,
        devices=tuple(sum(sizes[n] for n in group) for group in groups),
        spilled=sum(sizes[n] for n in spilled),
        device_map=device_map,
        gpus_needed=needed,
        kv_cache=_cache_bytes(text_config(meta)),
        token_bytes=bytes_per_token(request, shape),
        tokens=n_tokens,
        command=_command(model, gpus, fits_one=sum(sizes.values()) <= usable, fits_all=not spilled, captures=captures),
    )


def _unit_sizes(model: nn.Module, layers: nn.ModuleList, dtype: str) -> dict[str, int]:
    """Return the sizes of the modules that stay on one device, in order: decoder layers, and modules outside them."""
    prefix = next(name for name, module in model.named_modules() if module is layers)
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        in_layer = name.startswith(prefix + ".")
        unit = ".".join(name.split(".")[: prefix.count(".") + 2]) if in_layer else name.rsplit(".", 1)[0]
        quantised = in_layer and tensor.ndim > 1 and not re.search(r"norm|router|\.gate\.", name)
        width = _BYTES_PER_WEIGHT["bfloat16" if dtype == "fp8" and not quantised else dtype]
        sizes[unit] = sizes.get(unit, 0) + int(tensor.numel() * width)
    return sizes


def _assign_units(sizes: Mapping[str, int], gpus: int, usable: int) -> tuple[list[list[str]], list[str]]:
    """Assign successive units to GPUs, as evenly as possible if all fit.

    Args:
        sizes: The units with their sizes.
        gpus: Number of GPUs.
        usable: Bytes of weights that a GPU can hold.

    Returns:
        The units on each GPU, and those that do not fit.
    """

    def fill(limit: int) -> tuple[list[list[str]], list[str]]:
        groups: list[list[str]] = [[]]
        used, names = 0, list(sizes)
        for i, name in enumerate(names):
            if used + sizes[name] > limit:
                if len(groups) == gpus or sizes[name] > limit:
                    return groups, names[i:]
                groups.append([])
                used = 0
            groups[-1].append(name)
            used += sizes[name]
        return groups, []

    if fill(usable)[1]:
        return fill(usable)
    low, high = max(sizes.values()), usable
    while high - low > usable // 1000:
        middle = (low + high) // 2
        low, high = (low, middle) if not fill(middle)[1] else (middle, high)
    return fill(high)


def _cache_bytes(config: Any) -> int:
    """Return the size of the keys and values of a token in all layers, in two bytes per number as in transformers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if getattr(config, "kv_lora_rank", None):  # latent attention: transformers caches the expanded keys and values
        width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    else:
        width = 2 * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return int(config.num_hidden_layers * heads * width * 2)


def _command(model: str, gpus: int, *, fits_one: bool, fits_all: bool, captures: Sequence[str]) -> str:
    """Return the command line that starts the recording.

    Args:
        model: Name of the model.
        gpus: Number of GPUs.
        fits_one: Whether the weights fit on one GPU.
        fits_all: Whether the weights fit on all GPUs together.
        captures: The captures.
    """
    command = f"moelens record {model} CORPUS --out DIR"
    if list(captures) != ["routes"]:
        command += f" --capture {' '.join(captures)}"
    if fits_one:
        return f"accelerate launch --num_processes {gpus} -m {command}" if gpus > 1 else command
    if fits_all:
        return f"torchrun --nproc_per_node {gpus} -m {command} --expert-parallel"
    return f"{command} --device-map auto"


def _parse_amount(text: float | str) -> int:
    """Read a number with a decimal (`100M`, `80GB`) or binary unit (`141GiB`).

    >>> _parse_amount("100M"), _parse_amount("1KiB")
    (100000000, 1024)
    """
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(\d[\d,]*(?:\.\d*)?)\s*([KMGT]?I?)B?\s*", str(text).upper())
    if not found:
        raise MoeLensError(f"expected an amount such as 100M, 80GB or 141GiB, got {text!r}; write a number and a unit")
    return int(float(found[1].replace(",", "")) * _FACTORS[found[2]])


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _decimal_size(size: int) -> str:
    """Return a number of bytes in the largest decimal unit that is not larger."""
    unit = next((u for u in "TGMK" if size >= _FACTORS[u]), "")
    return f"{size / _FACTORS[unit]:.1f} {unit}B"
