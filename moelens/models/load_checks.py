"""What is checked when a model is hooked, on a short input, before anything is recorded.

Each check compares two ways to the same number. A model whose numbers contradict each other is refused. A hook point
that would not show what the model computes is not offered, with the reason, and the others work.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moelens.errors import CheckError
from moelens.models.decisions import ObservedRouting
from moelens.models.identification import Identified, identify_router
from moelens.models.points import EXPERT_STAGES, ROUTER_STAGES, first_tensor
from moelens.models.routers import RouterRule
from moelens.models.running import evaluating
from moelens.models.structure import input_device, text_config
from moelens.models.taps import Tap

_BATCH, _POS = 2, 8


@dataclass(frozen=True)
class Check:
    """The result of one check at load.

    Attributes:
        name: what was checked.
        passed: whether what was checked is as it should be, in all layers. Hook points that would not show what the
            model computes are then refused, and the model's others work.
        detail: what was found, and in which layers points are refused.

    Example:
        >>> print(Check("routes", True, "58 layers: ids in range, weights finite"))
        ok     routes: 58 layers: ids in range, weights finite
    """

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'failed'} {self.name}: {self.detail}"


@dataclass(kw_only=True)
class LayerRun:
    """What the modules of one layer took and returned on the short input.

    Attributes:
        inputs: the layer's input.
        output: its output.
        norms: inputs of the layer's norms, by the norm's name.
        block_output: the output of the block.
        block_again: its output when the input was run again.
        times: how often the block ran.
        experts_output: the output of the experts module.
        slots: the unweighted outputs of the chosen experts, `[token, slot, d_model]`.
        recomputed: the block's output as moelens computes it, where an adapter replaces the block's forward.
    """

    inputs: Tensor | None = None
    output: Tensor | None = None
    norms: dict[str, Tensor] = field(default_factory=dict)
    block_output: Tensor | None = None
    block_again: Tensor | None = None
    times: int = 0
    experts_output: Tensor | None = None
    slots: Tensor | None = None
    recomputed: Tensor | None = None


def run_short_input(model: Any, layers: nn.ModuleList, taps: dict[int, Tap]) -> dict[int, LayerRun]:
    """Run a model three times on a short input: twice as it is, and with hooks inside the experts.

    Args:
        model: the transformers model.
        layers: its decoder layers.
        taps: the taps of the layers with experts, by layer; their `observed` is set.

    Returns:
        What each layer computed, by layer.
    """
    runs = {i: LayerRun() for i in range(len(layers))}
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    ids = _short_input(model)
    with ExitStack() as undo:
        for context in (evaluating(model), torch.no_grad(), torch.random.fork_rng(devices)):
            undo.enter_context(context)
        for tap in taps.values():
            undo.callback(tap.points.experts.hook_out.remove_hooks, "both")
        with ExitStack() as hooks:
            for i, tap in taps.items():
                hooks.callback(tap.layer.block.register_forward_hook(_save_output(runs[i], "block_again")).remove)
            model(input_ids=ids)
        with ExitStack() as hooks:
            _watch_layers(runs, layers, taps, hooks)
            model(input_ids=ids)
        for i, tap in taps.items():
            tap.points.experts.hook_out.add_hook(_save_slots(runs[i]))
            if tap.layer.adapter.block_forward is not None:
                tap.observed = ObservedRouting()
                handle = tap.layer.block.register_forward_hook(_save_output(runs[i], "recomputed"))
                undo.callback(handle.remove)
        model(input_ids=ids)
    return runs


def _short_input(model: Any) -> Tensor:
    """A batch of token ids `[2, 8]`, spread over the vocabulary and always the same."""
    vocab = text_config(model).vocab_size
    ids: Tensor = (torch.arange(_BATCH * _POS) * 7919 + 11) % max(vocab - 8, 1) + 4
    batch: Tensor = ids.clamp(max=vocab - 1).view(_BATCH, _POS)
    return batch.to(input_device(model))


def _watch_layers(runs: dict[int, LayerRun], layers: nn.ModuleList, taps: dict[int, Tap], hooks: ExitStack) -> None:
    """Register torch hooks that save what the modules of each layer take and return; closing `hooks` removes them."""
    for i, layer in enumerate(layers):
        hooks.callback(layer.register_forward_pre_hook(_save_input(runs[i], None), with_kwargs=True).remove)
        hooks.callback(layer.register_forward_hook(_save_output(runs[i], "output")).remove)
        for name, child in layer.named_children():
            if "norm" in type(child).__name__.lower():
                hooks.callback(child.register_forward_pre_hook(_save_input(runs[i], name), with_kwargs=True).remove)
    for i, tap in taps.items():
        # A block whose forward an adapter replaces runs its own code in this pass, for comparison.
        tap.observed = ObservedRouting() if tap.layer.adapter.block_forward is None else None
        hooks.callback(tap.layer.block.register_forward_hook(_save_output(runs[i], "block_output")).remove)
        hooks.callback(tap.layer.block.register_forward_pre_hook(_count(runs[i])).remove)
        if tap.layer.router is not None:
            hooks.callback(tap.layer.router.register_forward_pre_hook(_save_call(tap), with_kwargs=True).remove)
        if tap.layer.experts is not None:
            hooks.callback(tap.layer.experts.register_forward_hook(_save_output(runs[i], "experts_output")).remove)


def _save_input(run: LayerRun, norm: str | None) -> Callable[..., None]:
    """A forward pre-hook of a layer (`norm` is None) or of one of its norms."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = args[0] if args else next(iter(kwargs.values()))
        if norm is None:
            run.inputs = tensor.detach().clone()
            run.norms.clear()  # of a time before, in a looped model
        elif norm not in run.norms and isinstance(tensor, Tensor):
            run.norms[norm] = tensor.detach().clone()

    return hook


def _count(run: LayerRun) -> Callable[..., None]:
    return lambda module, args: setattr(run, "times", run.times + 1)


def _save_call(tap: Tap) -> Callable[..., None]:
    """A forward pre-hook of a router, which saves its arguments."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if tap.observed is not None:
            tap.observed.call = (args, kwargs)

    return hook


def _save_output(run: LayerRun, name: str) -> Callable[..., None]:
    return lambda module, args, output: setattr(run, name, first_tensor(output).detach().clone())


def _save_slots(run: LayerRun) -> Callable[..., None]:
    return lambda tensor, hook: setattr(run, "slots", tensor.detach().flatten(0, 1).clone())


def check_routing(taps: dict[int, Tap]) -> Check:
    """Check that expert ids are in range and that logits and weights are finite.

    Args:
        taps: by layer, with the observed routing; the number of chosen experts is set from it.

    Raises:
        CheckError: they are not.
    """
    for i, tap in taps.items():
        seen, n_experts = tap.observed, tap.layer.n_experts
        if seen is None or seen.indices is None or seen.weights is None:
            raise CheckError(
                f"expected every MoE layer to choose experts on a short input, got none from layer {i}; "
                "this model cannot be recorded"
            )
        if not torch.isfinite(seen.weights).all() or (seen.logits is not None and torch.isnan(seen.logits).any()):
            raise CheckError(
                f"expected finite numbers on a short input, got NaN or infinity in the router of layer {i}; "
                "check the weights and the dtype"
            )
        low, high = int(seen.indices.min()), int(seen.indices.max())
        if low < 0 or high >= n_experts:
            raise CheckError(
                f"expected experts 0 to {n_experts - 1} in layer {i}, got expert {low if low < 0 else high}; "
                "check the model's configuration"
            )
        tap.layer.top_k = seen.indices.shape[-1]
    return Check("routes", True, f"{len(taps)} layers: ids in range, weights finite")


def check_repeat(runs: dict[int, LayerRun]) -> Check:
    """Check that the model computes the same for the same input, and each layer once in a forward pass.

    Args:
        runs: by layer, what `run_short_input` returned.
    """
    same: list[Tensor] = []
    looped: dict[int, list[int]] = {}
    for i, run in runs.items():
        if run.times > 1:
            looped.setdefault(run.times, []).append(i)
        if run.block_output is not None and run.block_again is not None:
            first, second = run.block_output.float(), run.block_again.float()
            tolerance = (1e-3 if run.block_output.dtype == torch.float32 else 5e-2) * first.abs().max()
            same.append(((first - second).abs() <= tolerance).all(-1).flatten())
    share = float(torch.cat([s.float().cpu() for s in same]).mean()) if same else 1.0
    detail = "the same outputs when the input is run twice"
    if share < 1:
        detail = f"the same outputs for {share:.0%} of tokens when the input is run twice, because the model draws lots"
    for times, layers in looped.items():
        detail += f"; layers {layers} run {times} times in a forward pass, of which recordings keep the last"
    return Check("repeat", share == 1 and not looped, detail)


def check_sums(taps: dict[int, Tap], runs: dict[int, LayerRun]) -> Check:
    """Check that the sum of weight x output over the chosen experts is what the experts module returned.

    Args:
        taps: by layer, with the observed routing.
        runs: by layer, what `run_short_input` returned.
    """
    worst, failed = 0.0, []
    for i, tap in taps.items():
        if "experts.hook_out" in tap.layer.refusals:  # packed experts
            continue
        seen, run = tap.observed, runs[i]
        replaced = tap.layer.adapter.block_forward is not None
        target = run.block_output if replaced else run.experts_output
        if seen is None or seen.weights is None or run.slots is None or target is None:
            failed.append(i)
            continue
        if replaced and run.recomputed is not None:
            total = run.recomputed.float()
        else:
            total = (run.slots.float() * seen.weights.float().unsqueeze(-1)).sum(1)
        error = float((total - target.reshape(total.shape).float()).abs().max() / (total.abs().max() + 1e-12))
        worst = max(worst, error)
        if error > (1e-4 if target.dtype == torch.float32 else 5e-2):
            failed.append(i)
    reason = "the sum of weight x output differs from what the experts module returned (see model.checks)"
    for i in failed:
        taps[i].layer.refusals |= {f"experts.{stage}": reason for stage in EXPERT_STAGES}
    refused = f"; refused in layers {failed}" if failed else ""
    return Check("sums", not failed, f"sum of weight x output equals the experts' output (worst {worst:.1e}){refused}")


def check_replay(taps: dict[int, Tap]) -> Check:
    """Find the rule by which each router chooses, and check that it gives the router's own choice.

    Args:
        taps: by layer, with the observed routing; their `rule` is set.
    """
    failed: list[int] = []
    tied: dict[str, list[int]] = {}
    for i, tap in taps.items():
        layer, seen, tap.observed = tap.layer, tap.observed, None
        found = Identified() if seen is None else identify_router(layer, seen)
        tap.rule, tap.rule_in_training = found.rule, found.in_training
        if found.ties:
            tied.setdefault(" or ".join(map(str, (found.rule, *found.ties))), []).append(i)
        if found.logits_module is not None:
            tap.read_logits_from(found.logits_module)
        elif found.returns_scores:
            layer.refusals["hook_router_logits"] = "this router returns scores in place of logits"
        if tap.rule is None:
            failed.append(i)
            reason = "no known rule gives this router's choice from its logits"
            layer.refusals |= dict.fromkeys(("replay", *ROUTER_STAGES[1:]), reason)
            if seen is None or seen.logits is None:
                layer.refusals["hook_router_logits"] = "this router returns no logits"
    rules = "; ".join(sorted({str(tap.rule) for tap in taps.values() if tap.rule is not None}))
    detail = (rules or "none found") + (f"; not in layers {failed}" if failed else "")
    detail += "".join(f"; layers {layers} could also follow {rule}" for rule, layers in tied.items())
    return Check("replay", not (failed or tied), detail)


def check_configuration(model: Any, taps: dict[int, Tap]) -> Check:
    """Check that the routers follow the rule that the model's configuration states, as far as it states one.

    Args:
        model: the transformers model.
        taps: by layer, with the routers' rules.
    """
    config, wrong = text_config(model), set[str]()
    stated = {name: getattr(config, name, None) for name in _STATEMENTS}
    stated = {name: value for name, value in stated.items() if value is not None}
    for rule in {tap.rule for tap in taps.values() if tap.rule is not None}:
        for name, value in stated.items():
            follows = _STATEMENTS[name].get(value) if isinstance(value, str | bool) else None
            if follows is not None and not follows(rule, config):
                wrong.add(f"{name} is {value!r}, but a router follows {rule}")
    detail = "; ".join(sorted(wrong)) or "; ".join(f"{name} {value}" for name, value in stated.items())
    return Check("configuration", not wrong, detail or "states no rule")


def _is_score(name: str) -> Callable[[RouterRule, Any], bool]:
    return lambda rule, config: rule.score == name


def _is_normalised(value: bool) -> Callable[[RouterRule, Any], bool]:
    # The softmax of the chosen experts' logits has the sum 1 whatever the configuration says (Cohere).
    return lambda rule, config: (
        rule.normalised is value or rule.jitter is not None or getattr(config, "expert_selection_fn", "") == "softmax"
    )


def _is_grouped(by: str) -> Callable[[RouterRule, Any], bool]:
    return lambda rule, config: (
        (getattr(config, "n_group", None) or 1) <= 1 or (rule.groups > 1 and rule.group_score == by)
    )


_SCORE_STATEMENTS = {name: _is_score(name) for name in ("softmax", "sigmoid", "sqrtsoftplus")}
_STATEMENTS: dict[str, dict[Any, Callable[[RouterRule, Any], bool]]] = {
    **dict.fromkeys(
        ("scoring_func", "score_function", "score_func", "expert_selection_fn", "moe_router_activation_func"),
        _SCORE_STATEMENTS,
    ),
    **{
        key: {value: _is_normalised(value) for value in (True, False)}
        for key in ("norm_topk_prob", "moe_renormalize", "route_norm")
    },
    "topk_method": {
        "greedy": lambda rule, config: rule.groups == 1,
        "group_limited_greedy": _is_grouped("max"),
        "noaux_tc": _is_grouped("top2"),
    },
}
"""What configurations state of a router's rule: by setting and value, whether a rule follows it."""


def check_residual(taps: dict[int, Tap], runs: dict[int, LayerRun]) -> tuple[Check, dict[int, str], set[int]]:
    """Find the norm whose input plus the block's output is the layer's output: `hook_resid_mid` is its input.

    Args:
        taps: by layer.
        runs: by layer, what `run_short_input` returned.

    Returns:
        The check, the name of that norm by layer, and the layers whose stream is not `[batch, pos, d_model]`.
    """
    norms: dict[int, str] = {}
    irregular = {i for i, run in runs.items() if run.inputs is None or run.inputs.ndim != 3}
    for i, tap in taps.items():
        if i not in irregular and tap.layer.block is not tap.layer.decoder_layer:
            name = _norm_before_block(runs[i])
            if name is not None:
                norms[i] = name
    detail = f"hook_resid_mid found in {len(norms)} of {len(taps)} MoE layers"
    return Check("residual stream", len(norms) == len(taps), detail), norms, irregular


def _norm_before_block(run: LayerRun) -> str | None:
    """The first norm of a layer whose input plus the block's output is the layer's output."""
    if run.output is None or run.block_output is None:
        return None
    for name, middle in run.norms.items():
        if middle.numel() == run.block_output.numel() == run.output.numel():
            expected = middle.float() + run.block_output.reshape(middle.shape).float()
            scale = run.output.abs().max().float() + 1e-12
            if (expected - run.output.reshape(middle.shape)).abs().max() / scale < 1e-2:
                return name
    return None


def check_encoder(last: int, reason: str) -> Check:
    """Report a model whose hook points are those of an encoder that is read through its keys and values alone.

    Args:
        last: the number of the encoder's last layer.
        reason: why nothing reads that layer's output.
    """
    detail = f"the hook points are those of the encoder, and the decoder has none; in layer {last}, {reason}, so edits"
    return Check("encoder", False, f"{detail} and gradients after its attention have no effect")


def check_tokenizer(model: Any, tokenizer: Any) -> Check:
    """Check that a tokenizer belongs to a model, by the number of tokens.

    Args:
        model: the transformers model.
        tokenizer: a tokenizer. If it has far fewer tokens than the model embeds, the check does not pass.

    Raises:
        CheckError: it has more tokens than the model embeds.
    """
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if tokens > rows:
        raise CheckError(
            f"expected a tokenizer of at most {rows:,} tokens, which the model embeds, got one of {tokens:,}; "
            f"load the one that comes with {getattr(model.config, '_name_or_path', '') or 'the model'}"
        )
    passed = tokens > 0.8 * rows
    textless = "" if passed else f"; {rows - tokens:,} ids have no text, so it may be that of another model"
    return Check("tokenizer", passed, f"{tokens:,} tokens for {rows:,} embeddings{textless}")
