"""The model of a recording: found, compared with the recording, and the same shape with random weights."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moelens.analysis import analyze
from moelens.errors import CheckError, MoeLensError
from moelens.models.hooked_check import require_hooked
from moelens.recording import Recording
from moelens.tracing.passages import Excerpt

if TYPE_CHECKING:
    from moelens.analysis import Specialization
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
    from moelens.models.loading import load

    recorded = recording.manifest["model"]["name"]
    if model is None and recorded != _DEMO:
        raise MoeLensError(
            f"expected the model that made the recording, {recorded!r}, got None; give it with model= or --model"
        )
    loaded = load(model or _DEMO) if model is None or isinstance(model, str) else model
    require_hooked(loaded)
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
    first = Excerpt(recording, _COMPARED_TOKENS)
    tokens = int((first.column("doc") == first.column("doc")[0]).sum())
    agreement = _agreement(first, model, tokens)
    if agreement < _LEAST_AGREEMENT:
        raise CheckError(f"{told}chooses the recorded experts in only {agreement:.0%} of {tokens} tokens{advice}")


def _agreement(first: Excerpt, model: HookedMoE, tokens: int) -> float:
    """The share of recorded choices of the first tokens that the model makes too; 0 if it has no such tokens."""
    import torch

    ids = first.column("token_id")[:tokens].astype(np.int64)
    if ids.max() >= model.hf_model.get_input_embeddings().num_embeddings:
        return 0.0
    names = [f"blocks.{layer}.mlp.hook_expert_indices" for layer in first.recording.layers]
    _, cache = model.run_with_cache(torch.as_tensor(ids)[None], names_filter=names)
    made = np.stack([cache[name].cpu().numpy().reshape(tokens, -1) for name in names], 1)
    kept = first.indices()[:tokens].astype(np.int64)
    return float((kept[..., :, None] == made[..., None, :]).any(-1).mean())


def with_baseline(
    result: Specialization,
    recording: Recording | str | Path,
    model: HookedMoE | str | None = None,
    *,
    weights_seed: int = 0,
) -> Specialization:
    """Return a result that says how many specialists a model of the same shape with random weights gives.

    The texts of the recording run through a model with the same configuration and tokenizer whose weights are drawn
    anew, and are analysed in the same way. What is found there comes from the text and the test alone. The reports,
    explorers and tables of the returned result have a line about it.

    Args:
        result: a result of `analyze` on the recording.
        recording: the recording, or its folder.
        model: the recorded model, or its name; None for the bundled model if the recording is of it.
        weights_seed: seed of the weights.

    Returns:
        The result with `provenance["random_model"]`: `above`, the cells significantly above chance, `tested`, all
        tested cells, and `seed`.

    Raises:
        CheckError: the model did not make the recording.
        MoeLensError: there are several processes, or no model is given for a recording of another than the bundled one.

    Example:
        >>> result = moelens.analyze(demo_recording, permutations=20, progress=False)
        >>> found = moelens.with_baseline(result, demo_recording).provenance["random_model"]
        >>> found["above"] < found["tested"]
        True
    """
    import torch

    from moelens.models.hooked import HookedMoE
    from moelens.recording import record

    require_one_process()
    recording = Recording.open(recording)
    original, about = recorded_model(recording, model), result.provenance
    with torch.random.fork_rng():
        torch.manual_seed(weights_seed)
        drawn = type(original.hf_model)(original.hf_model.config).eval()
    hooked = HookedMoE(drawn, original.tokenizer, name=f"random {original.name}", check=False)
    names = ("permutations", "seed", "min_tokens", "max_share")
    options: Any = {name: about[name] for name in names if name in about}
    with tempfile.TemporaryDirectory() as folder:
        rows = _documents(recording)
        made = record(hooked, rows, Path(folder) / "run", layers=list(recording.layers), progress=False)
        random = analyze(made, result.family, given=result.given or None, progress=False, **options)
    above = int((random.significant & (random.lift_given > 1)).sum())
    found = {"above": above, "tested": int(np.isfinite(random.p).sum()), "seed": weights_seed}
    return replace(result, provenance={**about, "random_model": found})


def require_one_process() -> None:
    """Refuse a baseline in one of several processes, each of which would record a part of the texts."""
    from moelens.recording.parallel import Ranks

    if (size := Ranks.of(None).size) > 1:
        raise MoeLensError(f"expected one process for a baseline, got {size}; analyse in one process")


def _documents(recording: Recording) -> list[dict[str, Any]]:
    """The texts of a recording with their columns, without what the model generated."""
    table = recording.documents(["text", *recording.metadata])
    return list(table.to_pylist())
