"""What a recording would take, said before anything is loaded: memory, devices, disk, and how to start it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from moelens.display import Displayed
from moelens.errors import MoeLensError, unknown
from moelens.models.loading import DEMO, architectures, auto_class, build_on_meta, interrupted_download
from moelens.models.structure import MoEShape, find_moe_layers, read_shape, text_config
from moelens.recording.captures import STORED, Capture, Wanted, bytes_per_token

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
WIDTHS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1 + 4 / 128**2}
ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "float8": "fp8"}
USABLE = 0.9  # of a device's memory for weights, as accelerate plans; the rest is for activations


@dataclass(frozen=True, repr=False)
class Plan(Displayed):
    """What recording with a model would take.

    Attributes:
        parameters: how many; weights: their bytes.
        devices: bytes of weights on each GPU, and `spilled` those that stay on the CPU or disk.
        device_map: where each module goes: a GPU's number, or "cpu".
        gpus_needed: the fewest GPUs of this memory that hold all weights.
        kv_cache: bytes for each token in the cache while generating.
        token_bytes: bytes a token of each capture, before compression; disk: of all of them for the corpus.
        command: how to start it.
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
        return self.spilled == 0

    @property
    def disk(self) -> int:
        return sum(self.token_bytes.values()) * self.tokens

    def __repr__(self) -> str:
        n, memory = len(self.devices), gib(self.gpu_memory)
        room = gib(int(n * self.gpu_memory * USABLE))
        if self.fits:
            verdict = f"fits on {n} x {memory} (at most {gib(max(self.devices, default=0))} of weights on one)"
        else:
            verdict = (
                f"does not fit on {n} x {memory}: {gib(self.spilled)} too much for the {room} that weights may take;"
                f" it would fit on {self.gpus_needed}"
            )
        lines = [
            f"{self.model} in {self.dtype}: {self.parameters / 1e9:.1f} B parameters, {gib(self.weights)}, {verdict}",
            *(f"  {where:<9} {what}" for where, what in places(self.device_map, self.devices, self.spilled)),
            f"  cache     {self.kv_cache:,} bytes a token in it, only while generating",
            *(f"  {name:<9} {size:,} bytes a token" for name, size in self.token_bytes.items()),
            f"  disk      {amount(self.disk)} for {self.tokens:,} tokens, before compression",
            f"  start     {self.command}",
        ]
        return "\n".join(lines)


def plan(
    model: str,
    *,
    gpus: int = 1,
    gpu_memory: int | str = "80GiB",
    dtype: str = "bfloat16",
    tokens: int | str = "1M",
    capture: str | list[str] = "routes",
    store_dtype: str = "float16",
) -> Plan:
    """Say what recording would take; no weights are read, and 671 B parameters take seconds.

    Args:
        model: "demo", a folder, an architecture such as "deepseek_v3" at its default size, or a hub name.
        gpus, gpu_memory: how many devices, and the memory of one, in bytes or as "141GiB".
        dtype: of the weights: bfloat16, float16, float32 or fp8 (blocks of 128 x 128, as DeepSeek-V3's own).
        tokens: of the corpus, as a number or "100M".
        capture: as in `record`.
        store_dtype: how captured numbers are kept, as in `record`.

    Raises:
        UnknownNameError: no such model, element type or capture.

    Example:
        >>> print(moelens.plan("deepseek_v3", gpus=8, gpu_memory="141GiB", dtype="fp8"))  # doctest: +SKIP
    """
    dtype = ALIASES.get(dtype, dtype)
    if dtype not in WIDTHS:
        raise unknown("dtype", dtype, WIDTHS)
    if store_dtype not in STORED:
        raise unknown("store_dtype", store_dtype, STORED)
    if gpus < 1:
        raise MoeLensError(f"gpus is {gpus}; give 1 or more")
    memory, n_tokens = quantity(gpu_memory), quantity(tokens)
    meta = without_weights(model)
    layers, sites = find_moe_layers(meta)
    shape = read_shape(meta, layers, sites, "unknown")
    sizes = units(meta, layers, dtype)
    room = int(memory * USABLE)
    groups, spilled = spread(sizes, gpus, room)
    needed = next((n for n in range(1, len(sizes) + 1) if not spread(sizes, n, room)[1]), 0)
    where: dict[str, int | str] = {name: i for i, group in enumerate(groups) for name in group}
    where |= dict.fromkeys(spilled, "cpu")
    texts = [capture] if isinstance(capture, str) else capture
    wanted = Wanted(tuple(map(Capture.parse, texts)), tuple(shape.moe_layers), shape.moe_layers, None, store_dtype)
    return Plan(
        model=model,
        dtype=dtype,
        shape=shape,
        parameters=sum(p.numel() for p in meta.parameters()),
        weights=sum(sizes.values()),
        gpu_memory=memory,
        devices=tuple(sum(sizes[n] for n in group) for group in groups),
        spilled=sum(sizes[n] for n in spilled),
        device_map=where,
        gpus_needed=needed,
        kv_cache=cache_bytes(text_config(meta)),
        token_bytes=bytes_per_token(wanted, shape),
        tokens=n_tokens,
        command=launch(model, gpus, one=sum(sizes.values()) <= room, fits=not spilled, captures=texts),
    )


def without_weights(model: str) -> Any:
    """The model on the meta device, from its configuration alone."""
    if model in architectures() and not Path(model).is_dir():
        return build_on_meta(model)
    try:
        config = transformers.AutoConfig.from_pretrained(str(DEMO) if model == "demo" else model)
    except (OSError, ValueError) as error:
        if broken_off := interrupted_download(model, error):
            raise broken_off from error
        raise unknown("model", model, ["demo"], "give a folder, an architecture or a hub name") from error
    with torch.device("meta"):
        return auto_class(config)._model_mapping[type(config)](config)


def units(model: Any, layers: Any, dtype: str) -> dict[str, int]:
    """Bytes of what is not split over devices: each decoder layer, and what is before and after them, in order."""
    names = dict(model.named_modules())
    prefix = next(n for n, m in names.items() if m is layers)
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        inside = name.startswith(prefix + ".")
        parts = name.split(".")
        unit = ".".join(parts[: prefix.count(".") + 2]) if inside else name.rsplit(".", 1)[0]
        width = WIDTHS[dtype]
        if dtype == "fp8" and not (inside and tensor.ndim > 1 and not re.search(r"norm|router|\.gate\.", name)):
            width = WIDTHS["bfloat16"]
        sizes[unit] = sizes.get(unit, 0) + int(tensor.numel() * width)
    return sizes


def spread(sizes: dict[str, int], gpus: int, room: int) -> tuple[list[list[str]], list[str]]:
    """Successive units on each GPU, evenly if all fit into `room` bytes each; and those that do not fit."""

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

    if fill(room)[1]:
        return fill(room)
    low, high = max(sizes.values()), room
    while high - low > room // 1000:
        middle = (low + high) // 2
        low, high = (low, middle) if not fill(middle)[1] else (middle, high)
    return fill(high)


def cache_bytes(config: Any) -> int:
    """Keys and values of one token in all layers, two bytes a number, as transformers keeps them."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if getattr(config, "kv_lora_rank", None):  # latent attention; transformers caches the expanded keys and values
        width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    else:
        width = 2 * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return int(config.num_hidden_layers * heads * width * 2)


def launch(model: str, gpus: int, *, one: bool, fits: bool, captures: list[str]) -> str:
    """The command line that starts the recording on these devices."""
    rest = f"moelens record {model} CORPUS --out DIR" + (
        f" --capture {' '.join(captures)}" if captures != ["routes"] else ""
    )
    if one:
        return f"accelerate launch --num_processes {gpus} -m {rest}" if gpus > 1 else rest
    if fits:
        return f"torchrun --nproc_per_node {gpus} -m {rest} --expert-parallel"
    return f"{rest} --device-map auto"


def places(where: dict[str, int | str], devices: tuple[int, ...], spilled: int) -> list[tuple[str, str]]:
    """For each device, what goes there and how much it is."""
    lines = []
    for device in [*range(len(devices)), "cpu"]:
        names = [n for n, d in where.items() if d == device]
        if names:
            size = spilled if device == "cpu" else devices[int(device)]
            span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            lines.append((device if isinstance(device, str) else f"gpu {device}", f"{gib(size):>10}  {span}"))
    return lines


def quantity(text: int | str) -> int:
    """A number with a unit: decimal (`100M`, `80GB`) or binary (`141GiB`).

    >>> quantity("100M"), quantity("1KiB")
    (100000000, 1024)
    """
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*([\d.,]+)\s*([KMGT]?I?)B?\s*", text.upper())
    if not found:
        raise MoeLensError(f"{text!r} is not an amount; write it as 100M, 80GB or 141GiB")
    return int(float(found[1].replace(",", "")) * UNITS[found[2]])


def gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def amount(size: int) -> str:
    """Bytes in the largest decimal unit that they fill."""
    unit = next((u for u in "TGMK" if size >= UNITS[u]), "")
    return f"{size / UNITS[unit]:.1f} {unit}B"
