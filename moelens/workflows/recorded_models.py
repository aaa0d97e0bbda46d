"""The model of a recording: found, compared with the recording, and the same shape with random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moelens.errors import CheckError, MoeLensError
from moelens.models.loading import load
from moelens.recording import Recording

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

_DEMO = "demo"
_COMPARED_TOKENS = 128
_LEAST_AGREEMENT = 0.8
"""Models in a narrower dtype choose other experts for some tokens; other models agree about as often as chance."""


def recorded_model(recording: Recording, model: HookedMoE | str | None = None) -> HookedMoE:
    """Return the model that made a recording, after a comparison of its routes with the recorded ones.

    Args:
        recording: the recording.
        model: the model, or its name; None for the bundled model if the recording is of it.

    Raises:
        MoeLensError: no model is given for a recording of another model than the bundled one.
        CheckError: the model did not make the recording.
    """
    recorded = recording.manifest["model"]["name"]
    if model is None and recorded != _DEMO:
        raise MoeLensError(
            f"expected the model that made the recording, {recorded!r}, got None; give it with model= or --model"
        )
    loaded = load(model or _DEMO) if model is None or isinstance(model, str) else model
    _require_same_model(recording, loaded)
    return loaded


def _require_same_model(recording: Recording, model: HookedMoE) -> None:
    """Check that a model chooses the experts that a recording holds, for the first tokens of the first document.

    Raises:
        CheckError: layers, experts or token ids do not fit, or the routes differ.
    """
    name, shape = recording.manifest["model"]["name"], model.shape
    told = f"expected the model that made the recording, {name!r}, got {model.name!r}, which "
    advice = "; give the recorded model, or record the corpus with this one"
    known, given = (recording.n_experts, recording.top_k), (shape.n_experts, shape.top_k)
    if known != given or not set(recording.layers) <= set(shape.moe_layers):
        layers = f"layers {list(shape.moe_layers)} with {given[1]} of {given[0]} experts"
        raise CheckError(
            f"{told}has {layers} instead of {list(recording.layers)} with {known[1]} of {known[0]}{advice}"
        )
    doc = recording.column("doc")
    rows = np.flatnonzero(doc == doc[0])[:_COMPARED_TOKENS]
    agreement = _agreement(recording, model, rows)
    if agreement < _LEAST_AGREEMENT:
        raise CheckError(f"{told}chooses the recorded experts in only {agreement:.0%} of {len(rows)} tokens{advice}")


def _agreement(recording: Recording, model: HookedMoE, rows: np.ndarray[Any, Any]) -> float:
    """The share of recorded choices that the model makes too; 0 if it has no such tokens."""
    import torch

    ids = recording.column("token_id")[rows].astype(np.int64)
    if ids.max() >= model.hf_model.get_input_embeddings().num_embeddings:
        return 0.0
    names = [f"blocks.{layer}.mlp.hook_expert_indices" for layer in recording.layers]
    _, cache = model.run_with_cache(torch.as_tensor(ids)[None], names_filter=names)
    made = np.stack([cache[name].cpu().numpy().reshape(len(rows), -1) for name in names], 1)
    kept = recording.indices()[rows].astype(np.int64)
    return float((kept[..., :, None] == made[..., None, :]).any(-1).mean())


def random_model_findings(
    recording: Recording, model: HookedMoE | str | None = None, *, seed: int = 0, **options: Any
) -> dict[str, int]:
    """Return how many specialists a model of the same shape with random weights would give.

    The texts of the recording run through a model with the same configuration and tokenizer whose weights are drawn
    anew, and are analysed in the same way. What is found there comes from the text and the test alone.

    Args:
        recording: the recording.
        model: the recorded model, or its name; None for the bundled model if the recording is of it.
        seed: seed of the weights.
        options: arguments of `analyze`.

    Returns:
        `above`, the cells significantly above chance, and `tested`, all tested cells.

    Example:
        >>> from moelens.workflows.recorded_models import random_model_findings
        >>> found = random_model_findings(demo_recording, permutations=20, progress=False)
        >>> found["above"] < found["tested"]
        True
    """
    import torch

    from moelens.analysis import analyze
    from moelens.models.hooked import HookedMoE
    from moelens.recording import record

    original = recorded_model(recording, model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = type(original.hf_model)(original.hf_model.config).eval()
    hooked = HookedMoE(drawn, original.tokenizer, name=f"random {original.name}", check=False)
    with tempfile.TemporaryDirectory() as folder:
        rows = _documents(recording)
        made = record(hooked, rows, Path(folder) / "run", layers=list(recording.layers), progress=False)
        result = analyze(made, **options)
    above = result.significant & (result.lift_given > 1)
    return {"above": int(above.sum()), "tested": int(np.isfinite(result.p).sum()), "seed": seed}


def _documents(recording: Recording) -> list[dict[str, Any]]:
    """The texts of a recording with their columns, without what the model generated."""
    table = recording.documents(["text", *recording.metadata])
    return list(table.to_pylist())
