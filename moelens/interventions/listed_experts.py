"""Interventions on experts that `analyze` found, or that are in a list of `--export-experts` or of another tool."""

from __future__ import annotations

from pathlib import Path

from moelens.analysis.expert_lists import ExpertList, no_experts, read_experts
from moelens.analysis.result import Specialization
from moelens.errors import MoeLensError
from moelens.interventions.intervention import Intervention
from moelens.interventions.operations import operation_by_name


def read_listed(path: str | Path) -> ExpertList | Path:
    """Read a file of experts, to find what is wrong with it before a model is loaded; a `.f32` file needs the model."""
    return Path(path) if Path(path).suffix == ".f32" else read_experts(path)


def listed_interventions(
    experts: ExpertList | str | Path,
    operation: str = "shift",
    value: float | None = None,
    *,
    n_experts: int | None = None,
) -> tuple[Intervention, ...]:
    """Make interventions on the experts of a list.

    `shift` adds `value` times the bias of each expert to its selection score. The other operations act on the experts
    with a bias above 0. Of a list of experts to keep, they act on all the others, which a pruned model lacks; `reroute`
    then chooses as the pruned model does.

    Args:
        experts: a list, or its file.
        operation: one of `moelens.interventions.operations.OPERATIONS` but `swap`.
        value: the strength of `shift`, 1 by default; or the factor of `scale`.
        n_experts: number of experts in each layer, for a file that does not state it.

    Returns:
        The interventions, for `model.intervene` and `moelens.effect`.

    Raises:
        UnknownNameError: there is no such operation.
        MoeLensError: the list does not have what the operation needs.
        CheckError: the file holds something else.

    Example:
        >>> from moelens.analysis import ExpertList
        >>> listed = ExpertList(form="bias", biases=((3, 5, 0.5), (3, 9, -0.25)), layers=(3,), n_experts=32)
        >>> listed_interventions(listed, "shift", 2.0)
        (shift by 1 E5 in layer 3, shift by -0.5 E9 in layer 3)
        >>> listed_interventions(listed, "remove")
        (remove E5 in layer 3,)
    """
    if not isinstance(experts, ExpertList):
        experts = read_experts(experts, n_experts)
    if operation == "shift":
        if experts.form == "keep":
            raise MoeLensError(
                "expected a list of biases for shift, got a list of experts to keep; use remove or reroute"
            )
        strength = 1.0 if value is None else value
        return tuple(
            operation_by_name("shift", layer, [expert], strength * bias) for layer, expert, bias in experts.biases
        )
    total = experts.n_experts or n_experts or 0
    if experts.form == "keep" and not total:
        raise MoeLensError(
            "expected the number of experts of the model for a list of experts to keep, got none; give it"
        )
    found = []
    for layer in experts.layers:
        listed = experts.of_layer(layer)
        chosen = sorted(set(range(total)) - set(listed)) if experts.form == "keep" else list(listed)
        if chosen:
            found.append(operation_by_name(operation, layer, chosen, value))
    return tuple(found)


def found_interventions(
    result: Specialization,
    label: str | None = None,
    operation: str = "remove",
    value: float | None = None,
    *,
    top: int = 5,
) -> tuple[str, tuple[Intervention, ...]]:
    """Make interventions on the strongest experts that were found for a label.

    Args:
        result: a result of `analyze`.
        label: the label; None for that of the strongest finding.
        operation: one of `moelens.interventions.operations.OPERATIONS` but `swap`.
        value: the factor of `scale`, or the strength of `shift`.
        top: the largest number of experts.

    Returns:
        The label, and one intervention for each layer that has such experts.

    Raises:
        UnknownNameError: there is no such label or operation.
        MoeLensError: no expert was found for the label, or `top` is less than 1.

    Example:
        >>> result = moelens.analyze(demo_recording, given=None, permutations=99, progress=False)
        >>> label, made = found_interventions(result, "teineigo", top=1)
        >>> label, len(made)
        ('丁寧語', 1)
    """
    if top < 1:
        raise MoeLensError(f"expected 1 or more experts to take, got top={top} (--top); give a larger number")
    found = [f for f in result.top(top, label) if f.certain]
    if not found:
        raise no_experts(result, None if label is None else result.names[result.label_index(label)])
    name = found[0].label
    by_layer: dict[int, list[int]] = {}
    for finding in (f for f in result.top(top, name) if f.certain):
        by_layer.setdefault(finding.layer, []).append(finding.expert)
    made = (operation_by_name(operation, layer, experts, value) for layer, experts in sorted(by_layer.items()))
    return name, tuple(made)
