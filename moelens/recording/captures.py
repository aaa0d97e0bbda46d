"""Captures: the quantities that a recording can keep, and the hook points that give them.

A capture with one value per slot or token (`TOKEN_COLUMNS`) becomes one column per layer in the table of tokens. A
capture of vectors (`TABLES`) becomes a table of its own, with one row per token and layer or, for vectors of experts
(`SLOT_TABLES`), one row per token, layer and chosen expert.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moelens.errors import MoeLensError, UnknownNameError, unknown

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE
    from moelens.models.structure import MoEShape

#: Captures that become columns of the tokens, with their hook points.
TOKEN_COLUMNS = {
    "routes": "mlp.hook_topk_weights",
    "margin": "mlp.hook_router_selection",
    "expert_norms": "mlp.experts.hook_out",
}
#: Captures that become tables with one row per token, layer and chosen expert.
SLOT_TABLES = {"neurons": "mlp.experts.hook_post", "expert_outputs": "mlp.experts.hook_out"}
#: Captures that become tables.
TABLES = SLOT_TABLES | {
    "logits": "mlp.hook_router_logits",
    "shared": "mlp.shared.hook_out",
    "residuals": "hook_resid_post",
}
#: All captures, with their hook points.
CAPTURE_POINTS = TOKEN_COLUMNS | TABLES
#: The hook point of the chosen experts.
INDICES_POINT = "mlp.hook_expert_indices"
#: The names of captured numbers in error messages.
QUANTITIES = {
    "routes": "routing weights",
    "margin": "margins",
    "expert_norms": "expert norms",
    "neurons": "neurons",
    "expert_outputs": "expert outputs",
    "logits": "logits",
    "shared": "shared outputs",
    "residuals": "residuals",
}
#: Element types by name. Parquet has no bfloat16; such numbers are kept exactly in float32.
STORE_DTYPES = ("float16", "bfloat16", "float32")

_LIMITED = ("logits", "neurons")  # the captures that may keep only the N largest values
_RESIDUAL_PLACES = ("pre", "mid", "post")


@dataclass(frozen=True)
class Capture:
    """A quantity to capture.

    Attributes:
        name: One of `CAPTURE_POINTS`.
        top: How many of the largest values of a row to keep (`logits:8`, `neurons:32`); None for all.
        place: Where in the layer residuals are taken ("pre", "mid" or "post"); "" for other captures.

    Example:
        >>> Capture.parse("neurons:32")
        Capture(name='neurons', top=32, place='')
    """

    name: str
    top: int | None = None
    place: str = ""

    @classmethod
    def parse(cls, text: str) -> Capture:
        """Read a capture as it is written in arguments: a name, and possibly a colon and a parameter.

        Raises:
            UnknownNameError: If there is no such capture or place of residuals.
            MoeLensError: If the capture does not take this parameter.
        """
        name, _, parameter = text.partition(":")
        if name not in CAPTURE_POINTS:
            raise unknown("capture", name, CAPTURE_POINTS)
        if name == "residuals":
            if parameter and parameter not in _RESIDUAL_PLACES:
                raise unknown("place of residuals", parameter, _RESIDUAL_PLACES, "as in residuals:mid")
            return cls(name, place=parameter or "post")
        if parameter and (name not in _LIMITED or not re.fullmatch("[1-9][0-9]*", parameter)):
            raise MoeLensError(
                f"expected a capture such as {name}, logits:N or neurons:N with N at least 1, got {text!r};"
                " correct or leave out its parameter"
            )
        return cls(name, int(parameter) if parameter else None)

    @property
    def point(self) -> str:
        """The hook point, without the prefix of the layer."""
        return f"hook_resid_{self.place}" if self.name == "residuals" else CAPTURE_POINTS[self.name]

    def __str__(self) -> str:
        parameter = self.top or ("" if self.place == "post" else self.place)
        return f"{self.name}:{parameter}" if parameter else self.name


def read_captures(capture: str | Sequence[str], dtype: str) -> tuple[Capture, ...]:
    """Read the captures and check the element type, as far as this is possible without a model.

    Raises:
        UnknownNameError: If a capture or the element type does not exist.
        MoeLensError: If there is no capture, or one is named twice.
    """
    captures = tuple(Capture.parse(text) for text in ([capture] if isinstance(capture, str) else capture))
    names = [c.name for c in captures]
    if not names or len(set(names)) < len(names):
        raise MoeLensError(
            f"expected at least one capture, each once, got {names}; name some such as routes or neurons:32"
        )
    if dtype not in STORE_DTYPES:
        raise unknown("store_dtype", dtype, STORE_DTYPES)
    return captures


@dataclass(frozen=True, kw_only=True)
class CaptureRequest:
    """The captures of a recording, with the layers, experts and element type to keep.

    Attributes:
        captures: The captures.
        layers: The layers to capture.
        moe_layers: Those of `layers` that have experts.
        experts: The experts whose vectors are kept; None for all chosen ones.
        dtype: One of `STORE_DTYPES`.
    """

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
    ) -> CaptureRequest:
        """Build a request from the arguments of `moelens.record`, and compare it with the model.

        Raises:
            UnknownNameError: If a capture, layer, expert or element type does not exist.
            MoeLensError: If the model does not offer a capture, or a capture is named twice.
        """
        request = cls.of_shape(model.shape, capture, layers, experts, dtype)
        request._require_points(model)
        return request

    @classmethod
    def of_shape(
        cls,
        shape: MoEShape,
        capture: str | Sequence[str],
        layers: Sequence[int] | None,
        experts: Sequence[int] | None,
        dtype: str,
    ) -> CaptureRequest:
        """Build a request from the arguments of `moelens.record`, and compare it with the sizes of a model.

        Raises:
            UnknownNameError: If a capture, layer, expert or element type does not exist.
            MoeLensError: If a capture is named twice, or no layer has it.
        """
        captures = read_captures(capture, dtype)
        names = [c.name for c in captures]
        chosen = _choose_layers(layers, names, shape)
        for expert in experts or ():
            if expert not in range(shape.n_experts):
                raise unknown("expert", expert, range(shape.n_experts))
        if experts is not None and not set(names) & SLOT_TABLES.keys():
            raise MoeLensError(
                f"expected a capture that experts={[*experts]} applies to, got {', '.join(names)};"
                f" capture {' or '.join(SLOT_TABLES)}"
            )
        request = cls(
            captures=captures,
            layers=chosen,
            moe_layers=tuple(layer for layer in chosen if layer in shape.moe_layers),
            experts=None if experts is None else tuple(sorted(set(experts))),
            dtype=dtype,
        )
        for each in captures:
            if not request.layers_of(each):
                raise MoeLensError(
                    f"expected layers with experts for capture {each}, got {[*chosen]};"
                    f" choose from {[*shape.moe_layers]}"
                )
        return request

    def _require_points(self, model: HookedMoE) -> None:
        """Raise `MoeLensError` if the model does not offer a hook point, with the reason."""
        for capture in self.captures:
            for layer in self.layers_of(capture):
                name = f"blocks.{layer}.{capture.point}"
                if name not in model.hook_dict:
                    reason = model.refused.get(name, "it has no such module")
                    raise MoeLensError(
                        f"capture {capture} needs hook point '{name}', which this model does not offer: {reason};"
                        " leave the capture out"
                    )

    def layers_of(self, capture: Capture) -> tuple[int, ...]:
        """Return the layers in which a capture is taken."""
        return self.layers if capture.name == "residuals" else self.moe_layers

    def __contains__(self, name: str) -> bool:
        return any(c.name == name for c in self.captures)

    @property
    def needs_indices(self) -> bool:
        """Whether a capture needs to know the chosen experts."""
        return any(c.name == "routes" or c.name in SLOT_TABLES for c in self.captures)

    def to_dict(self) -> dict[str, Any]:
        """Return the request as the manifest keeps it."""
        return {
            "captures": [str(c) for c in self.captures],
            "layers": [*self.layers],
            "experts": None if self.experts is None else [*self.experts],
            "dtype": self.dtype,
            "stored_as": "float16" if self.dtype == "float16" else "float32",
        }


def _choose_layers(layers: Sequence[int] | None, names: Sequence[str], shape: MoEShape) -> tuple[int, ...]:
    """Return the layers to capture, in order: those asked for, or all that have the captures."""
    default = range(shape.n_layers) if names == ["residuals"] else shape.moe_layers
    with_residuals = "residuals" in names
    for layer in layers or ():
        if layer not in range(shape.n_layers if with_residuals else max(shape.moe_layers) + 1):
            raise unknown("layer", layer, default)
        if layer not in shape.moe_layers and not with_residuals:
            raise UnknownNameError(
                f"expected layers with experts, got dense layer {layer}; choose from {[*shape.moe_layers]}"
            )
    return tuple(sorted(set(default if layers is None else layers)))


def bytes_per_token(request: CaptureRequest, shape: MoEShape) -> dict[str, int]:
    """Return the size of each capture of a request: bytes per token over its layers, before compression.

    If vectors of only some experts are kept, their number is that of evenly distributed routing.
    """
    width = 2 if request.dtype == "float16" else 4
    index = 1 if shape.n_experts <= 256 else 2
    share = 1.0 if request.experts is None else len(request.experts) / shape.n_experts
    slots = shape.top_k * share
    values = {
        "routes": shape.top_k * (index + width),
        "margin": width,
        "expert_norms": shape.top_k * width,
        "logits": shape.n_experts * width,
        "neurons": slots * shape.d_expert * width,
        "expert_outputs": slots * shape.d_model * width,
        "shared": shape.d_model * width,
        "residuals": shape.d_model * width,
    }
    top = {"logits": index + width, "neurons": slots * (2 + width)}
    return {
        str(c): round((top[c.name] * c.top if c.top else values[c.name]) * len(request.layers_of(c)))
        for c in request.captures
    }


def index_type(n_experts: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest integer type that holds the id of an expert.

    Raises:
        MoeLensError: If none of 16 bits does.
    """
    if n_experts > 1 << 16:
        raise MoeLensError(
            f"expected at most {1 << 16} experts in a layer, whose ids are stored in 16 bits, got {n_experts};"
            " give the number of experts of the model"
        )
    return np.uint8 if n_experts <= 256 else np.uint16


def value_column(capture: str) -> str:
    """Return the name of the column with the numbers of a capture."""
    return {"routes": "weights", "margin": "margin", "expert_norms": "expert_norms"}.get(capture, "values")
