"""What loading a model makes sure of, on a short input, before anything is recorded.

Each check compares two ways to the same number. A model whose numbers contradict themselves is refused; a point that
cannot be offered truly is left out, with its reason, and the rest works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moelens.errors import CheckError
from moelens.models.routers import identify
from moelens.models.structure import input_device, text_config
from moelens.models.taps import ROUTER_STAGES, Observed, Tap, first

BATCH, POS = 2, 8


@dataclass(frozen=True)
class Check:
    """One thing that was compared at load, and what came out; what does not pass is refused, as `detail` says.

    >>> print(Check("routes", True, "58 layers: ids in range, weights finite"))
    ok      routes: 58 layers: ids in range, weights finite
    """

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok     ' if self.passed else 'refused'} {self.name}: {self.detail}"


@dataclass
class LayerRun:
    """What one layer took in and gave out in the check's forward pass."""

    inputs: Tensor | None = None
    output: Tensor | None = None
    norms: dict[str, Tensor] = field(default_factory=dict)
    block_output: Tensor | None = None
    experts_output: Tensor | None = None
    slots: Tensor | None = None
    recomputed: Tensor | None = None


def probe_ids(model: Any) -> Tensor:
    """A short batch `[2, 8]` of token ids, the same for every run and spread over the vocabulary."""
    vocab = text_config(model).vocab_size
    ids: Tensor = (torch.arange(BATCH * POS) * 7919 + 11) % max(vocab - 8, 1) + 4
    batch: Tensor = ids.clamp(max=vocab - 1).view(BATCH, POS)
    return batch.to(input_device(model))


def observe(model: Any, layers: nn.ModuleList, taps: dict[int, Tap]) -> dict[int, LayerRun]:
    """Run the model twice, as it is and with the inside of the experts captured, and keep what passed by."""
    runs = {i: LayerRun() for i in range(len(layers))}
    handles: list[Any] = []

    def keep_input(run: LayerRun, name: str | None) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensor = args[0] if args else next(iter(kwargs.values()))
            if name is None:
                run.inputs = tensor.detach().clone()
            elif name not in run.norms and isinstance(tensor, Tensor):
                run.norms[name] = tensor.detach().clone()

        return hook

    def keep_output(run: LayerRun, name: str) -> Any:
        return lambda module, args, output: setattr(run, name, first(output).detach().clone())

    for i, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(keep_input(runs[i], None), with_kwargs=True))
        handles.append(layer.register_forward_hook(keep_output(runs[i], "output")))
        for name, child in layer.named_children():
            if "norm" in type(child).__name__.lower():
                handles.append(child.register_forward_pre_hook(keep_input(runs[i], name), with_kwargs=True))
    for i, tap in taps.items():
        # A block that moelens computes itself runs its own code first, to be compared with.
        tap.observed = Observed() if tap.site.row.block_forward is None else None
        handles.append(tap.site.block.register_forward_hook(keep_output(runs[i], "block_output")))
        if tap.site.experts is not None:
            handles.append(tap.site.experts.register_forward_hook(keep_output(runs[i], "experts_output")))
    training = model.training
    try:
        model.eval()
        devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
        with torch.no_grad(), torch.random.fork_rng(devices):
            model(input_ids=probe_ids(model))
            for handle in handles:
                handle.remove()
            for i, tap in taps.items():
                tap.points.experts.hook_out.add_hook(keep_slots(runs[i]))
                if tap.site.row.block_forward is not None:
                    tap.observed = Observed()
                    handles.append(tap.site.block.register_forward_hook(keep_output(runs[i], "recomputed")))
            model(input_ids=probe_ids(model))
    finally:
        for handle in handles:
            handle.remove()
        for tap in taps.values():
            tap.points.experts.hook_out.remove_hooks("both")
        model.train(training)
    return runs


def keep_slots(run: LayerRun) -> Any:
    return lambda tensor, hook: setattr(run, "slots", tensor.detach().flatten(0, 1).clone())


def check_routes(taps: dict[int, Tap]) -> Check:
    """Ids in range, logits and weights finite: else nothing read from this model means anything."""
    for i, tap in taps.items():
        seen = tap.observed
        if seen is None or seen.indices is None or seen.weights is None:
            raise CheckError(f"layer {i} computed no routes on a short input; it cannot be recorded")
        if not torch.isfinite(seen.weights).all() or (seen.logits is not None and torch.isnan(seen.logits).any()):
            raise CheckError(f"NaN in the router of layer {i} on a short input; check the weights and the dtype")
        low, high = int(seen.indices.min()), int(seen.indices.max())
        if low < 0 or high >= tap.site.n_experts:
            raise CheckError(f"layer {i} chose expert {high}, of {tap.site.n_experts}; the model is inconsistent")
        tap.site.top_k = seen.indices.shape[-1]
    return Check("routes", True, f"{len(taps)} layers: ids in range, weights finite")


def check_sums(taps: dict[int, Tap], runs: dict[int, LayerRun]) -> Check:
    """Sum of weight x output over the chosen experts equals what the experts module returned."""
    worst, failed = 0.0, []
    for i, tap in taps.items():
        seen, run = tap.observed, runs[i]
        own = tap.site.row.block_forward is not None
        target = run.block_output if own else run.experts_output
        if seen is None or seen.weights is None or run.slots is None or target is None:
            failed.append(i)
            continue
        if own and run.recomputed is not None:
            total = run.recomputed.float()
        else:
            total = (run.slots.float() * seen.weights.float().unsqueeze(-1)).sum(1)
        error = float((total - target.reshape(total.shape).float()).abs().max() / (total.abs().max() + 1e-12))
        worst = max(worst, error)
        if error > (1e-4 if target.dtype == torch.float32 else 5e-2):
            failed.append(i)
    for i in failed:
        for stage in ("hook_pre", "hook_post", "hook_out"):
            taps[i].site.refusals[f"experts.{stage}"] = (
                "the sum of weight x output is not what the experts module returned (see model.checks)"
            )
    where = f"; refused in layers {failed}" if failed else ""
    return Check("sums", not failed, f"sum of weight x output equals the experts' output (worst {worst:.1e}){where}")


def check_replay(taps: dict[int, Tap]) -> Check:
    """Our own replay of each router chooses what the engine chose."""
    failed = []
    for i, tap in taps.items():
        seen = tap.observed
        if seen is not None and seen.logits is not None and seen.indices is not None and seen.weights is not None:
            tap.replay = identify(tap.site.block, seen.logits, seen.indices, seen.weights, tap.site.groups)
        if tap.replay is None:
            failed.append(i)
            reason = "no known rule leads from this router's logits to its choice"
            for name in ("replay", *ROUTER_STAGES[1:]):
                tap.site.refusals[name] = reason
            if seen is None or seen.logits is None:
                tap.site.refusals["hook_router_logits"] = "this router returns no logits"
    rules = {t.replay.describe() for t in taps.values() if t.replay is not None}
    rule = "; ".join(sorted(rules)) or "none found"
    return Check("replay", not failed, rule + (f"; not in layers {failed}" if failed else ""))


def check_residual(taps: dict[int, Tap], runs: dict[int, LayerRun]) -> tuple[Check, dict[int, str], set[int]]:
    """Find the norm whose input plus the block's output is the layer's output: there the stream can be read midway.

    Returns:
        The check, the name of that norm by layer, and the layers whose stream is not `[batch, pos, d_model]`.
    """
    norms: dict[int, str] = {}
    other = {i for i, run in runs.items() if run.inputs is None or run.inputs.ndim != 3}
    for i, tap in taps.items():
        run = runs[i]
        if i in other or run.output is None or run.block_output is None or tap.site.block is tap.site.layer:
            continue
        for name, middle in run.norms.items():
            if middle.numel() == run.block_output.numel() == run.output.numel():
                expected = middle.float() + run.block_output.reshape(middle.shape).float()
                scale = run.output.abs().max().float() + 1e-12
                if (expected - run.output.reshape(middle.shape)).abs().max() / scale < 1e-2:
                    norms[i] = name
                    break
    detail = f"hook_resid_mid found in {len(norms)} of {len(taps)} MoE layers"
    return Check("residual stream", len(norms) == len(taps), detail), norms, other


def check_tokenizer(model: Any, tokenizer: Any) -> Check:
    """A tokenizer with more tokens than the model embeds belongs to another model; one with far fewer may."""
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if tokens > rows:
        raise CheckError(
            f"the tokenizer has {tokens:,} tokens and the model embeds {rows:,}: it belongs to another model; "
            f"load the one that comes with {getattr(model.config, '_name_or_path', '') or 'the model'}"
        )
    return Check("tokenizer", tokens > 0.8 * rows, f"{tokens:,} tokens for {rows:,} embeddings")
