"""`ExpertList`: experts of a label in files that tools for pruning and steering take, and back from them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moelens.analysis import wording
from moelens.analysis.label_measures import risk_difference
from moelens.analysis.result import Specialization
from moelens.display import Displayed
from moelens.errors import CheckError, MoeLensError, UnknownNameError, unknown
from moelens.files import writing
from moelens.recording.route_inputs import MAX_LAYERS
from moelens.texts import Texts

Form = Literal["bias", "keep"]
FORMAT = "moelens.experts/1"
SUFFIXES = (".json", ".csv", ".f32", ".safetensors")
"""The endings of files of experts."""
_FORMS = ("bias", "keep")
_ROUTER_BIAS = "model.layers.{}.mlp.gate.e_score_correction_bias"
_LAYER_IN_NAME = re.compile(r".*\blayers?\.(\d+)\..*")
_KEPT = ("keep_experts", "kept_experts", "retained_experts", "experts")


@dataclass(frozen=True, kw_only=True, repr=False)
class ExpertList(Displayed):
    """Experts of a label, either with a bias for the router or as those to keep when a model is pruned.

    Attributes:
        form: "bias" or "keep".
        biases: layer, expert and bias, in this order; the bias of an expert to keep is 1.
        layers: numbers of the layers that the list is about.
        n_experts: number of experts in each layer; 0 where a file does not state it.
        label: the label; empty where a file does not state it.
        model: the model; empty where a file does not state it.

    Example:
        >>> ExpertList(form="bias", biases=((3, 17, 0.3),), layers=(3,), n_experts=32, label="丁寧語")
        ExpertList(bias of 1 expert in 1 layer for 丁寧語: L3 E17 +0.3)
    """

    form: Form
    biases: tuple[tuple[int, int, float], ...]
    layers: tuple[int, ...]
    n_experts: int = 0
    label: str = ""
    model: str = ""

    def of_layer(self, layer: int) -> tuple[int, ...]:
        """Return the experts of a layer with a bias above 0, in ascending order.

        Args:
            layer: number of the layer.

        Example:
            >>> experts = ExpertList(form="bias", biases=((3, 17, 0.3), (3, 5, -0.1)), layers=(3,), n_experts=32)
            >>> experts.of_layer(3)
            (17,)
        """
        return tuple(sorted(expert for at, expert, bias in self.biases if at == layer and bias > 0))

    def matrix(self) -> NDArray[np.float32]:
        """Return the biases as `[layer, expert]` for all layers of the model up to the last of the list.

        Raises:
            MoeLensError: the number of experts is not known.
        """
        if not self.n_experts:
            raise MoeLensError("expected a list with its number of experts, got one without; give n_experts=")
        biases = np.zeros((max(self.layers) + 1, self.n_experts), np.float32)
        for layer, expert, bias in self.biases:
            biases[layer, expert] = bias
        return biases

    def save(self, path: str | Path) -> Path:
        """Write the list to a file.

        Args:
            path: a name that ends in one of

                - `.csv`: columns `layer`, `expert` and, for biases, `bias`;
                - `.json`: for experts to keep, `layers` with the list of each layer, as scripts around REAP and
                  llm-compressor take it; for biases, `bias` with objects of layer, expert and bias;
                - `.f32`: the flat little-endian matrix `[layer, expert]` of ds4's `--expert-steering-file`;
                - `.safetensors`: a vector of biases for each layer, under the name of DeepSeek-V3's selection bias,
                  which vLLM and SGLang load.

        Returns:
            The path.

        Raises:
            UnknownNameError: the name ends otherwise.
            MoeLensError: `.f32` and `.safetensors` hold biases, and this list has experts to keep.
        """
        path = check_file(path, self.form)
        with writing(path) as partial:
            if path.suffix == ".csv":
                with partial.open("w", encoding="utf-8", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    columns = ("layer", "expert", "bias")[: 3 if self.form == "bias" else 2]
                    writer.writerow(columns)
                    writer.writerows(row[: len(columns)] for row in self.biases)
            elif path.suffix == ".json":
                partial.write_text(json.dumps(self._json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            elif path.suffix == ".f32":
                partial.write_bytes(self.matrix().astype("<f4").tobytes())
            else:
                from safetensors.numpy import save_file

                matrix = self.matrix()
                save_file({_ROUTER_BIAS.format(layer): matrix[layer] for layer in self.layers}, partial)
        return path

    def _json(self) -> dict[str, Any]:
        about = {
            "format": FORMAT,
            "form": self.form,
            "label": self.label,
            "model": self.model,
            "n_experts": self.n_experts,
        }
        if self.form == "keep":
            kept = {str(layer): list(self.of_layer(layer)) for layer in self.layers}
            return about | {"keep": max(map(len, kept.values())), "layers": kept}
        rows = [dict(zip(("layer", "expert", "bias"), row, strict=True)) for row in self.biases]
        return about | {"moe_layers": list(self.layers), "bias": rows}

    def __repr__(self) -> str:
        experts, layers = len(self.biases), len({layer for layer, _, _ in self.biases})
        first = ", ".join(f"L{x} E{y}" + f" {b:+.3g}" * (self.form == "bias") for x, y, b in self.biases[:5])
        size = f"{experts} expert{'s' * (experts != 1)} in {layers} layer{'s' * (layers != 1)}"
        more = ", …" if experts > 5 else ""
        return f"ExpertList({self.form} of {size}{f' for {self.label}' if self.label else ''}: {first}{more})"


def check_file(path: str | Path, form: str = "bias") -> Path:
    """Return the path if its name is that of a file for experts of this form.

    Raises:
        UnknownNameError: the name ends otherwise, or there is no such form.
        MoeLensError: such a file holds biases only.
    """
    path = Path(path)
    if form not in _FORMS:
        raise unknown("form of a list of experts", form, _FORMS)
    if path.suffix not in SUFFIXES:
        raise UnknownNameError(
            f"expected a file of experts that ends in {', '.join(SUFFIXES)}, got '{path}'; rename it"
        )
    if form == "keep" and path.suffix in (".f32", ".safetensors"):
        raise MoeLensError(f"expected biases for '{path}', got experts to keep; write these to a .json or .csv file")
    return path


def found_experts(
    result: Specialization, label: str | None = None, form: Form = "bias", keep: int | None = None
) -> ExpertList:
    """List the experts that were found for a label: those that prefer it significantly, or with certainty by bounds.

    The bias of an expert is the risk difference P(expert | label) − P(expert | not label), as in SteerMoE
    (arXiv 2509.09660); multiply it by a strength when you steer. Experts to keep are as many in each layer: those that
    were found, and then those that take the largest shares of the label's tokens.

    Args:
        result: a result of `analyze` or of counts.
        label: the label; None for the only one.
        form: "bias" or "keep".
        keep: number of experts to keep in each layer; by default the least that keeps all that were found, and at least
            the number that is chosen for each token.

    Returns:
        The experts, by layer and expert.

    Raises:
        UnknownNameError: there is no such label or form.
        MoeLensError: no label is given and there are several, no expert was found, or `keep` is out of range.

    Example:
        >>> result = moelens.analyze(demo_recording, given=None, permutations=99, progress=False)
        >>> experts = found_experts(result, "丁寧語")
        >>> experts.form, experts.label, experts.biases[0][2] > 0
        ('bias', '丁寧語', True)
    """
    if label is None:
        if len(result.names) > 1:
            raise MoeLensError(
                f"expected a label whose experts to list, got none; choose one of {', '.join(result.names)} "
                "with label= (--label)"
            )
        label = result.names[0]
    at = result.label_index(label)
    label = result.names[at]
    found = result.certain[:, :, at] & (result.lift_given[:, :, at] > 1)
    if not found.any():
        raise no_experts(result, label)
    about: dict[str, Any] = {"layers": result.layers, "n_experts": result.n_experts, "label": label}
    model = str(result.provenance.get("model") or "")
    if form == "bias":
        bias = risk_difference(result.counts)[:, :, at]
        rows = tuple((result.layers[x], y, float(bias[x, y])) for x, y in np.argwhere(found).tolist())
        return ExpertList(form="bias", biases=rows, model=model, **about)
    least, most = result.top_k, result.n_experts
    n = max(int(found.sum(1).max()), least) if keep is None else keep
    if not least <= n <= most:
        raise MoeLensError(
            f"expected from {least} experts to keep, as many as a token chooses, to {most}, got {n}; give another keep"
        )
    ranked = np.argsort(-(np.nan_to_num(result.share[:, :, at]) + 2 * found), axis=1, kind="stable")[:, :n]
    rows = tuple((result.layers[x], y, 1.0) for x, experts in enumerate(ranked) for y in sorted(experts.tolist()))
    return ExpertList(form="keep", biases=rows, model=model, **about)


def no_experts(result: Specialization, label: str | None) -> MoeLensError:
    """Return the error for a result in which no expert prefers a label, or any label if it is None."""
    name, otherwise = label or "any label", "choose another label, or record more text"
    if label in result.too_rare:
        why = wording.why_untested(result, name, Texts())
        return MoeLensError(f"expected a label that was tested, got {name}, which was not ({why}); {otherwise}")
    if result.given:
        within = wording.given_names(result.given, Texts(), " and ")
        return MoeLensError(
            f"expected experts that prefer {name} within {within}, got none that does significantly; analyze without "
            f"this control (given=None, --given none), {otherwise}"
        )
    return MoeLensError(f"expected experts that prefer {name}, got none that does significantly; {otherwise}")


def read_experts(path: str | Path, n_experts: int | None = None) -> ExpertList:
    """Read a list of experts: one that `ExpertList.save` wrote, or one of another tool in these forms.

    JSON may also be a map from layers to lists of experts to keep, alone or under `layers`, with or without an object
    `keep_experts` around each list; or a list of objects of layer, expert and bias.

    Args:
        path: a file that ends in `.json`, `.csv`, `.f32` or `.safetensors`.
        n_experts: number of experts in each layer. A `.f32` file needs it; others are checked against it.

    Raises:
        UnknownNameError: the name ends otherwise.
        MoeLensError: there is no such file.
        CheckError: the file holds something else, or experts that do not exist.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> experts = ExpertList(form="keep", biases=((3, 17, 1.0),), layers=(3,), n_experts=32)
        >>> with TemporaryDirectory() as folder:
        ...     read_experts(experts.save(f"{folder}/keep.csv"), n_experts=32).of_layer(3)
        (17,)
    """
    path = check_file(path)
    if not path.is_file():
        raise MoeLensError(f"expected a file of experts, got '{path}', which is no file; give an existing one")
    try:
        if path.suffix == ".json":
            found = _of_json(json.loads(path.read_text("utf-8")), n_experts or 0)
        elif path.suffix == ".csv":
            found = _of_csv(path, n_experts or 0)
        else:
            found = _of_matrix(_read_matrix(path, n_experts))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, csv.Error) as error:
        reason = " ".join(ascii(str(error))[1:-1].split())[:80] or type(error).__name__
        raise CheckError(
            f"expected layers and experts, with or without biases, in {path.name}, got something else ({reason}); "
            "write it as moelens analyze --export-experts does"
        ) from error
    return _checked(found, n_experts or found.n_experts, path.name)


def _checked(found: ExpertList, n_experts: int, name: str) -> ExpertList:
    """Return the list if its experts exist, none is named twice, and biases are finite."""
    cells = [(layer, expert) for layer, expert, _ in found.biases]
    if not cells:
        raise CheckError(f"expected one or more experts in {name}, got none; write it again")
    for (layer, expert), (*_, bias) in zip(cells, found.biases, strict=True):
        if layer < 0 or expert < 0 or (n_experts and expert >= n_experts) or not math.isfinite(bias):
            limit = f" to {n_experts - 1}" if n_experts else " on"
            raise CheckError(
                f"expected experts from 0{limit} with finite biases in {name}, got layer {layer}, expert {expert}, "
                f"bias {bias}; give the list of this model"
            )
    layers = {*found.layers, *(layer for layer, _ in cells)}
    if max(layers) >= MAX_LAYERS or min(layers) < 0 or len(layers) > len(set(found.layers)):
        raise CheckError(
            f"expected layers from 0 to {MAX_LAYERS - 1}, those of all experts among them, in {name}, got "
            f"{', '.join(map(str, sorted(layers)))[:60]}; give the list of this model"
        )
    if len(set(cells)) < len(cells):
        twice = next(cell for cell in cells if cells.count(cell) > 1)
        raise CheckError(
            f"expected each expert once in {name}, got expert {twice[1]} of layer {twice[0]} twice; leave one out"
        )
    return found


def _of_json(data: Any, n_experts: int) -> ExpertList:
    """Read a JSON value in one of the forms of `read_experts`."""
    about = data if isinstance(data, Mapping) else {}
    stated = {"label": str(about.get("label", "")), "model": str(about.get("model", ""))}
    n_experts = _whole(about.get("n_experts", n_experts))
    rows = about["bias"] if "bias" in about else data if isinstance(data, list) else None
    if rows is not None:
        biases = [(_whole(r["layer"]), _whole(r["expert"]), float(r["bias"])) for r in rows]
        layers = map(_whole, about.get("moe_layers", sorted({layer for layer, _, _ in biases})))
        return ExpertList(form="bias", biases=tuple(biases), layers=tuple(layers), n_experts=n_experts, **stated)
    kept = {int(key): _kept(value) for key, value in about.get("layers", about).items()}
    biases = [(layer, _whole(expert), 1.0) for layer, experts in sorted(kept.items()) for expert in experts]
    return ExpertList(form="keep", biases=tuple(biases), layers=tuple(sorted(kept)), n_experts=n_experts, **stated)


def _kept(value: Any) -> Iterable[Any]:
    """Return the list of experts to keep of one layer."""
    if isinstance(value, Mapping):
        value = next((value[name] for name in _KEPT if name in value), None)
    if not isinstance(value, list):
        raise TypeError(f"a layer with {value!r}")
    return value


def _whole(value: Any) -> int:
    """Return a whole number; neither text nor a fraction is one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"the number {value!r}")
    return value


def _of_csv(path: Path, n_experts: int) -> ExpertList:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    form: Form = "bias" if rows and "bias" in rows[0] else "keep"
    biases = tuple((int(r["layer"]), int(r["expert"]), float(r["bias"]) if form == "bias" else 1.0) for r in rows)
    layers = tuple(sorted({layer for layer, _, _ in biases}))
    return ExpertList(form=form, biases=biases, layers=layers, n_experts=n_experts)


def _read_matrix(path: Path, n_experts: int | None) -> dict[int, NDArray[Any]]:
    """Return the biases of each layer."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            vectors = load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        numbered = {_LAYER_IN_NAME.fullmatch(name): vector for name, vector in vectors.items()}
        return {int(match[1]): vector for match, vector in numbered.items() if match and vector.ndim == 1}
    if not n_experts:
        raise MoeLensError(f"expected the number of experts for '{path}', got none; give it with n_experts=")
    flat = np.frombuffer(path.read_bytes(), "<f4")
    if len(flat) % n_experts:
        raise ValueError(f"{len(flat)} numbers, which are no rows of {n_experts} experts")
    return dict(enumerate(flat.reshape(-1, n_experts)))


def _of_matrix(rows: Mapping[int, NDArray[Any]]) -> ExpertList:
    """Take the biases that are not 0."""
    if len({len(row) for row in rows.values()}) != 1:
        raise ValueError("layers of different lengths, or none")
    biases = [
        (layer, int(expert), float(row[expert]))
        for layer, row in sorted(rows.items())
        for expert in np.flatnonzero(row)
    ]
    n_experts = len(next(iter(rows.values())))
    return ExpertList(form="bias", biases=tuple(biases), layers=tuple(sorted(rows)), n_experts=n_experts)
