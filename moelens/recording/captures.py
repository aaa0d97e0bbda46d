"""What can be kept of a token, and how each of it is taken from a model's hook points.

What has one value a slot or a token (`TOKEN_COLUMNS`) becomes a column of the tokens for each layer; what has a vector
(`TABLES`) becomes a table of its own, a row for each token and layer, or for each token, layer and chosen expert.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moelens.errors import MoeLensError, UnknownNameError, unknown

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

Array = NDArray[Any]

TOKEN_COLUMNS = {"routes": "mlp.hook_topk_weights", "margin": "mlp.hook_router_selection",
                 "expert_norms": "mlp.experts.hook_out"}  # fmt: skip
SLOT_TABLES = {"neurons": "mlp.experts.hook_post", "expert_outputs": "mlp.experts.hook_out"}
TABLES = SLOT_TABLES | {"logits": "mlp.hook_router_logits", "shared": "mlp.shared.hook_out",
                        "residuals": "hook_resid_post"}  # fmt: skip
POINTS = TOKEN_COLUMNS | TABLES
INDICES = "mlp.hook_expert_indices"
TOP = ("logits", "neurons")
RESIDUALS = ("pre", "mid", "post")
WHAT = {"routes": "routing weight", "margin": "margin", "expert_norms": "expert norm", "neurons": "neuron",
        "expert_outputs": "expert output", "logits": "logit", "shared": "shared output",
        "residuals": "residual"}  # fmt: skip

STORED = ("float16", "bfloat16", "float32")
"""Element types by name. Parquet has no bfloat16: its numbers are kept, exactly, in float32."""


@dataclass(frozen=True)
class Capture:
    """One thing to keep: `name`, and after a colon how many (`logits:8`, `neurons:32`) or where (`residuals:mid`).

    >>> Capture.parse("neurons:32")
    Capture(name='neurons', top=32, at='')
    """

    name: str
    top: int | None = None
    at: str = ""

    @classmethod
    def parse(cls, text: str) -> Capture:
        """Raises `UnknownNameError` for another name, `MoeLensError` for a parameter that it does not take."""
        name, _, parameter = text.partition(":")
        if name not in POINTS:
            raise unknown("capture", name, POINTS)
        if name == "residuals":
            if parameter and parameter not in RESIDUALS:
                raise unknown("place of residuals", parameter, RESIDUALS, "as in residuals:mid")
            return cls(name, at=parameter or "post")
        if parameter and (name not in TOP or not re.fullmatch("[1-9][0-9]*", parameter)):
            raise MoeLensError(
                f"capture {text!r} is not understood; allowed: {name}, logits:N, neurons:N with N from 1"
            )
        return cls(name, int(parameter) if parameter else None)

    @property
    def point(self) -> str:
        return f"hook_resid_{self.at}" if self.name == "residuals" else POINTS[self.name]

    def __str__(self) -> str:
        parameter = self.top or ("" if self.at == "post" else self.at)
        return f"{self.name}:{parameter}" if parameter else self.name


@dataclass(frozen=True)
class Wanted:
    """What a recording keeps: captures, of these layers; vectors of experts, of these experts (None: of all chosen)."""

    captures: tuple[Capture, ...]
    layers: tuple[int, ...]
    moe_layers: tuple[int, ...]
    experts: tuple[int, ...] | None = None
    dtype: str = "float16"

    @classmethod
    def of(
        cls,
        model: HookedMoE,
        capture: str | Sequence[str],
        layers: Sequence[int] | None,
        experts: Sequence[int] | None,
        dtype: str,
    ) -> Wanted:
        """What was asked for, compared with what the model has.

        Raises:
            UnknownNameError: a capture, layer, expert or element type that does not exist.
            MoeLensError: a capture that the model does not offer, or one that is named twice.
        """
        captures = tuple(Capture.parse(text) for text in ([capture] if isinstance(capture, str) else capture))
        names = [c.name for c in captures]
        if not names or len(set(names)) < len(names):
            raise MoeLensError(f"captures are {names}; name at least one, each once, such as routes or neurons:32")
        if dtype not in STORED:
            raise unknown("store_dtype", dtype, STORED)
        shape = model.shape
        only_residuals = names == ["residuals"]
        default = range(shape.n_layers) if only_residuals else shape.moe_layers
        for layer in layers or ():
            if layer not in range(shape.n_layers if "residuals" in names else max(shape.moe_layers) + 1):
                raise unknown("layer", layer, default)
            if layer not in shape.moe_layers and "residuals" not in names:
                raise UnknownNameError(f"layer {layer} is dense; the layers with experts are {[*shape.moe_layers]}")
        for expert in experts or ():
            if expert not in range(shape.n_experts):
                raise unknown("expert", expert, range(shape.n_experts))
        if experts is not None and not set(names) & SLOT_TABLES.keys():
            raise MoeLensError(f"experts={[*experts]} chooses of {', '.join(SLOT_TABLES)}; capture one of them")
        chosen = tuple(sorted(set(default if layers is None else layers)))
        found = cls(captures, chosen, tuple(x for x in chosen if x in shape.moe_layers),
                    None if experts is None else tuple(sorted(set(experts))), dtype)  # fmt: skip
        found.require(model)
        return found

    def require(self, model: HookedMoE) -> None:
        """Raise `MoeLensError` for a hook point that the model does not offer, with its reason."""
        points = getattr(model, "hook_dict", None)
        for capture in self.captures if points is not None else ():
            if not self.layers_of(capture):
                raise MoeLensError(f"{capture} is taken of layers with experts, and layers={[*self.layers]} has none")
            for layer in self.layers_of(capture):
                name = f"blocks.{layer}.{capture.point}"
                if name not in model.hook_dict:
                    reason = model.refused.get(name, "this model has no such module")
                    raise MoeLensError(f"capture {capture} needs '{name}', which is not offered: {reason}")

    def layers_of(self, capture: Capture) -> tuple[int, ...]:
        return self.layers if capture.name == "residuals" else self.moe_layers

    def __contains__(self, name: str) -> bool:
        return any(c.name == name for c in self.captures)

    @property
    def needs_indices(self) -> bool:
        return any(c.name == "routes" or c.name in SLOT_TABLES for c in self.captures)

    def to_dict(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        return {
            "captures": [str(c) for c in self.captures],
            "layers": [*self.layers],
            "experts": None if self.experts is None else [*self.experts],
            "dtype": self.dtype,
            "stored_as": "float16" if self.dtype == "float16" else "float32",
        }


def bytes_per_token(wanted: Wanted, shape: Any) -> dict[str, int]:
    """Raw size of each capture: bytes a token over its layers, ids and numbers, before compression.

    Vectors of chosen experts only are counted as if routing were even.
    """
    width = 2 if wanted.dtype == "float16" else 4
    index = 1 if shape.n_experts <= 256 else 2
    share = 1.0 if wanted.experts is None else len(wanted.experts) / shape.n_experts
    slots = shape.top_k * share
    values = {
        "routes": shape.top_k * (index + width),
        "margin": width,
        "expert_norms": shape.top_k * width,
        "logits": shape.n_experts * width,
        "neurons": slots * getattr(shape, "d_expert", 0) * width,
        "expert_outputs": slots * getattr(shape, "d_model", 0) * width,
        "shared": getattr(shape, "d_model", 0) * width,
        "residuals": getattr(shape, "d_model", 0) * width,
    }
    top = {"logits": index + width, "neurons": slots * (2 + width)}
    return {
        str(c): round((top[c.name] * c.top if c.top else values[c.name]) * len(wanted.layers_of(c)))
        for c in wanted.captures
    }


def index_type(n_experts: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds an expert id."""
    return np.uint8 if n_experts <= 256 else np.uint16


def value_column(capture: str) -> str:
    """The column that holds a capture's numbers."""
    return {"routes": "weights", "margin": "margin", "expert_norms": "expert_norms"}.get(capture, "values")
