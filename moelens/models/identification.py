"""Finding the rule that a router follows.

A rule is not looked up by the model's name but found: every combination of the parts of a `RouterRule` is tried on what
the router makes of hidden states. Those of one short text are too few, because different rules agree on them. So the
router is also run on random hidden states of many sizes, and with other values for the vectors that it may add to its
scores or multiply its weights by, until one rule is left, or those that are left cannot be told apart.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moelens.models.decisions import ObservedRouting
from moelens.models.routers import GROUP_SCORES, SCORES, RouterRule, expert_vector, router_output_parts
from moelens.models.running import evaluating
from moelens.models.structure import MoELayer

_SPREADS = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 30.0)
"""Standard deviations that the logits of the random hidden states have (where the router does not norm its input)."""
_TOKENS = 128
"""Random hidden states of each spread."""
_EPSILONS = (1e-20, 1e-12, 1e-9, 1e-6)
"""What routers add to the sum that they divide weights by; it counts where all chosen experts have tiny scores."""
_FAILURES = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a router raises that cannot be run alone."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a router did for some tokens.

    Attributes:
        logits: `[token, expert]`.
        indices: the ids of the chosen experts, `[token, slot]`.
        weights: their weights, `[token, slot]`.
        vectors: the values of vectors with a number for each expert, where they were not those of the model, by their
            attribute paths below the block.
    """

    logits: Tensor
    indices: Tensor
    weights: Tensor
    vectors: Mapping[str, Tensor]

    @property
    def is_low(self) -> bool:
        """Whether the router computes in less than float32."""
        return any(t.dtype not in (torch.float32, torch.float64) for t in (self.logits, self.weights))

    @property
    def tolerance(self) -> float:
        """The relative error that its weights may have."""
        return 2e-2 if self.is_low else 1e-4


@dataclass(frozen=True, kw_only=True)
class Identified:
    """What was found out about a router.

    Attributes:
        rule: its rule; None where no known rule explains it.
        ties: other rules that explain it as well.
        in_training: whether the rule also holds in training mode.
        logits_module: the part of the router whose output the logits are, where the router itself returns their scores.
        returns_scores: whether the router returns scores in place of logits.
    """

    rule: RouterRule | None = None
    ties: tuple[RouterRule, ...] = ()
    in_training: bool = True
    logits_module: nn.Module | None = None
    returns_scores: bool = False


@torch.no_grad()
def identify_router(layer: MoELayer, observed: ObservedRouting) -> Identified:
    """Find the rule by which a router chooses.

    Args:
        layer: the modules of the layer.
        observed: its routing in a forward pass.

    Returns:
        What was found out. The rule is that which explains most tokens, and nearly all of them: it chooses the same
        experts, and gives weights that are equal up to one constant factor.
    """
    logits, indices, weights = observed.logits, observed.indices, observed.weights
    if logits is None or indices is None or weights is None:
        return Identified()
    probe = None if observed.call is None else RouterProbe(layer, observed.call)
    if probe is not None and probe.logits_module is not None and probe.natural is not None:
        logits = probe.natural.logits
    own = Evidence(logits=logits, indices=indices, weights=weights, vectors={})
    synthetic = list(_synthetic_evidence(layer, own, probe))
    rule, ties = _find_rule(layer, own, synthetic)
    in_training = rule is None or probe is None
    if rule is not None and probe is not None:
        in_training = _unexplained(layer, rule, list(probe.run_in_training()), _allowed(own))[0] is not None
    scores = probe is not None and probe.returns_scores
    return Identified(
        rule=rule,
        ties=ties,
        in_training=in_training,
        logits_module=probe.logits_module if probe is not None else None,
        returns_scores=scores,
    )


def _synthetic_evidence(layer: MoELayer, own: Evidence, probe: RouterProbe | None) -> Iterator[Evidence]:
    if layer.adapter.route is None:
        yield from () if probe is None else probe.run()
        return
    generator = torch.Generator().manual_seed(0)
    vectors: dict[str, Tensor] = {}
    for spread in _SPREADS:
        logits = (torch.randn(_TOKENS, own.logits.shape[-1], generator=generator) * spread).to(own.logits)
        indices, weights = layer.adapter.route(layer.block, logits)
        yield Evidence(logits=logits, indices=indices, weights=weights, vectors=vectors)


class RouterProbe:
    """Runs a router alone.

    Args:
        layer: the modules of its layer.
        call: the positional and keyword arguments of a call of the router in the model.

    Attributes:
        natural: what the router does for these arguments; None if it cannot be run alone.
        logits_module: as in `Identified`.
        returns_scores: as in `Identified`.
    """

    def __init__(self, layer: MoELayer, call: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        assert layer.router is not None
        self._layer, self._router, (self._args, self._kwargs) = layer, layer.router, call
        self._generator = torch.Generator().manual_seed(0)
        self.logits_module: nn.Module | None = None
        self.returns_scores = False
        tensors = [t for t in (*self._args, *self._kwargs.values()) if isinstance(t, Tensor)]
        self._hidden = next((t for t in tensors if t.ndim >= 2 and t.is_floating_point()), None)
        self.natural = None if self._hidden is None else self._run(self._hidden, 1, {})
        if self.natural is not None:
            self._find_logits()

    def run(self) -> Iterator[Evidence]:
        """Run the router on random hidden states, with its own vectors and with others."""
        if self.natural is None or self._hidden is None:
            return
        own: dict[str, Tensor] = {}
        for spread in _SPREADS:
            yield from self._run_random(spread, own)
        for spread, size in ((0.5, 0.5), (2.0, 0.5), (1.0, 2.0 / self.natural.logits.shape[-1])):
            vectors = self._other_vectors(size)
            if vectors:
                yield from self._run_random(spread, vectors)

    def run_in_training(self) -> Iterator[Evidence]:
        """Run the router in training mode."""
        with evaluating(self._router):
            for module in self._router.modules():
                module.training = True
            try:
                for spread in (0.5, 2.0):
                    yield from self._run_random(spread, {})
            finally:
                for module in self._router.modules():
                    module.training = False

    def _run_random(self, spread: float, vectors: Mapping[str, Tensor]) -> Iterator[Evidence]:
        assert self._hidden is not None
        assert self.natural is not None
        hidden, natural = self._hidden, self.natural.logits.float()
        now = float((natural - natural.mean(-1, keepdim=True)).std())
        times = max(_TOKENS // hidden[..., 0].numel(), 1)
        shape = (*hidden.shape[:-2], hidden.shape[-2] * times, hidden.shape[-1])
        size = float(hidden.float().std()) * spread / max(now, 1e-6)
        random = torch.randn(shape, generator=self._generator) * size
        found = self._run(random.to(hidden), times, vectors)
        if found is not None:
            finite = found.logits.isfinite().all(-1) & found.weights.isfinite().all(-1)
            logits, indices, weights = (t[finite] for t in (found.logits, found.indices, found.weights))
            if len(logits):
                yield Evidence(logits=logits, indices=indices, weights=weights, vectors=vectors)

    def _run(self, hidden: Tensor, times: int, vectors: Mapping[str, Tensor]) -> Evidence | None:
        """Run the router on other hidden states, which are `times` as many as those it was given in the model."""
        leading = () if self._hidden is None else self._hidden.shape[:-1]

        def other(value: Any) -> Any:
            if value is self._hidden:
                return hidden.clone()  # routers may change it in place
            if not isinstance(value, Tensor):
                return value
            for path, vector in vectors.items():
                if _is_same(value, _read(self._layer.block, path)):
                    return vector
            if value.shape[: len(leading)] != leading:
                return value
            repeats = [1] * value.ndim
            repeats[len(leading) - 1] = times
            return value.repeat(repeats)

        args = tuple(map(other, self._args))
        kwargs = {name: other(value) for name, value in self._kwargs.items()}
        raw: list[Tensor] = []
        with ExitStack() as stack:
            if self.logits_module is not None:
                handle = self.logits_module.register_forward_hook(lambda m, a, output: raw.append(output))
                stack.callback(handle.remove)
            stack.enter_context(_holding(self._router, self._inside(vectors)))
            try:
                output = self._router(*args, **kwargs)
            except _FAILURES:
                return None
        parts = router_output_parts(output, self._layer.n_experts)
        if {"logits", "weights", "indices"} - set(parts):
            return None
        logits, indices, weights = (output[parts[n]].flatten(0, -2) for n in ("logits", "indices", "weights"))
        return Evidence(
            logits=raw[0].flatten(0, -2) if raw else logits, indices=indices, weights=weights, vectors=vectors
        )

    def _inside(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the vectors that belong to the router itself, by their paths below it."""
        name = next(n for n, m in self._layer.block.named_modules() if m is self._router)
        return {path[len(name) + 1 :]: v for path, v in vectors.items() if path.startswith(f"{name}.")}

    def _other_vectors(self, size: float) -> dict[str, Tensor]:
        """Random values for the vectors with a number for each expert, except those that are offloaded or divided."""
        assert self.natural is not None
        found = {}
        for path in _expert_vectors(self._layer.block, self.natural.logits.shape[-1]):
            now = _read(self._layer.block, path)
            if not (now.is_meta or isinstance(now, DTensor)):
                found[path] = (torch.randn(now.shape, generator=self._generator) * size).to(now)
        return found

    def _find_logits(self) -> None:
        """See whether the router returns scores, and find the part of it that computes the logits."""
        assert self._hidden is not None
        assert self.natural is not None
        returned, outputs = self.natural.logits, []
        with ExitStack() as stack:
            for module in list(self._router.modules())[1:]:
                hook = module.register_forward_hook(lambda m, a, output: outputs.append((m, output)))
                stack.callback(hook.remove)
            self._run(self._hidden, 1, {})
        tensors = [(m, t) for m, t in outputs if isinstance(t, Tensor) and t.numel() == returned.numel()]
        for module, tensor in tensors:
            scores = (SCORES[name](tensor.reshape(returned.shape)) for name in ("softmax", "sigmoid"))
            if any(torch.allclose(s, returned.to(s), rtol=1e-2, atol=1e-4) for s in scores):
                self.logits_module = module
        sums = returned.float().sum(-1)
        self.returns_scores = bool((returned >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-2))
        if self.logits_module is not None:
            self.natural = self._run(self._hidden, 1, {})


def _read(block: nn.Module, path: str) -> Any:
    """The parameter or buffer at an attribute path."""
    holder, _, name = path.rpartition(".")
    return getattr(block.get_submodule(holder), name)


def _is_same(value: Tensor, vector: Tensor) -> bool:
    """Whether an argument is a vector of the block; where weights are offloaded, each reading makes another tensor."""
    return value is vector or (value.shape == vector.shape and not value.is_meta and torch.equal(value, vector))


@contextmanager
def _holding(router: nn.Module, vectors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a router hold other vectors, by their paths below it.

    The tables of its tensors are replaced: where they are an offloading cache, as those of compressed-tensors, a value
    that is put into them is written over the model's own.
    """
    with ExitStack() as stack:
        for path, vector in vectors.items():
            holder, _, name = path.rpartition(".")
            owner = router.get_submodule(holder)
            table = "_parameters" if name in owner._parameters else "_buffers"
            held = getattr(owner, table)
            stack.callback(setattr, owner, table, held)
            setattr(owner, table, {**held, name: vector})
        yield


def _expert_vectors(block: nn.Module, n_experts: int) -> list[str]:
    """List the attribute paths, below a block, of vectors with a number for each expert.

    Args:
        block: the block; the experts' own weights do not count.
        n_experts: the number of columns of the logits.
    """
    named = [*block.named_buffers(), *block.named_parameters()]
    shapes = ((n_experts,), (1, n_experts))
    vectors = (n for n, t in named if t.shape in shapes and "experts." not in n and t.is_floating_point())
    return list(dict.fromkeys(vectors))


def _candidates(layer: MoELayer, columns: int, top_k: int) -> Iterator[RouterRule]:
    """Yield the rules to try, the most specific first."""
    skip = layer.n_experts if columns == layer.n_experts + 1 else None
    jitter = next(
        (j for m in layer.block.children() if (j := getattr(m, "router_jitter_noise", None)) is not None), None
    )
    if jitter is not None:
        yield RouterRule(score="identity", top_k=top_k, jitter=2 * jitter)
    vectors = _expert_vectors(layer.block, columns)
    for bias in (*vectors, ""):
        for grouping, score, normalised, expert_scale, on_logits in product(
            _groupings(layer, columns, top_k, biased=bool(bias)),
            SCORES,
            (True, False),
            ("", *(v for v in vectors if v != bias)),
            (False, True) if bias else (False,),
        ):
            if on_logits and score != "sigmoid":
                continue
            yield RouterRule(
                score=score,
                top_k=top_k,
                bias=bias,
                normalised=normalised,
                on_logits=on_logits,
                expert_scale=expert_scale,
                skip=skip,
                **grouping,
            )


def _groupings(layer: MoELayer, columns: int, top_k: int, *, biased: bool) -> list[dict[str, Any]]:
    groups, kept = layer.groups or (1, 1)
    if groups <= 1 or columns % groups or kept > groups or kept * (columns // groups) < top_k:
        return [{}]
    # Scores are positive, so without a bias 0 and minus infinity are the same to a router; published code has 0 then
    # (DeepSeek-V2), and minus infinity with a bias (DeepSeek-V3).
    fills = (float("-inf"), 0.0) if biased else (0.0, float("-inf"))
    by = [name for name in GROUP_SCORES if name != "top2" or columns // groups > 1]
    shape = {"groups": groups, "kept_groups": kept}
    grouped = [shape | {"group_score": name, "fill": fill} for name, fill in product(by, fills)]
    return [*grouped, {}]


def _find_rule(
    layer: MoELayer, own: Evidence, synthetic: Sequence[Evidence]
) -> tuple[RouterRule | None, tuple[RouterRule, ...]]:
    """Find the rule that explains what a router did.

    Args:
        layer: the modules of its layer.
        own: what the experts were given in a forward pass.
        synthetic: what the router did when it was run alone.

    Returns:
        The rule that explains most tokens, or None; and other rules that explain as many, but would do something else
        for tokens that were not tried.
    """
    synthetic = _merged(synthetic)
    found: list[tuple[int, RouterRule]] = []
    for rule in _candidates(layer, own.logits.shape[-1], own.indices.shape[-1]):
        wrong, scale = _unexplained(layer, rule, [own], 0.1 if own.is_low else 0.0)
        if wrong is None:
            continue
        scaled = replace(rule, scale=_nearest(layer.router, scale, own.tolerance))
        for epsilon in _EPSILONS if rule.normalised else _EPSILONS[:1]:
            more, _ = _unexplained(layer, replace(rule, epsilon=epsilon), synthetic, _allowed(own))
            if more is not None:
                found.append((wrong + more, replace(scaled, epsilon=epsilon)))
            if more == 0:
                break
    fewest = min((wrong for wrong, _ in found), default=0)
    best = [rule for wrong, rule in found if wrong == fewest]
    if not best:
        return None, ()
    ties = {_effect(rule): rule for rule in best[1:] if _effect(rule) != _effect(best[0])}
    return best[0], tuple(ties.values())


def _merged(evidence: Sequence[Evidence]) -> list[Evidence]:
    """The same evidence in fewer parts, those with the same vectors together."""
    parts: dict[int, list[Evidence]] = {}
    for e in evidence:
        parts.setdefault(id(e.vectors), []).append(e)
    return [
        Evidence(
            logits=torch.cat([e.logits for e in part]),
            indices=torch.cat([e.indices for e in part]),
            weights=torch.cat([e.weights for e in part]),
            vectors=part[0].vectors,
        )
        for part in parts.values()
    ]


def _allowed(e: Evidence) -> float:
    """The share of tokens that a rule may leave unexplained, because of rounding."""
    return 0.03 if e.is_low else 0.002


def _nearest(router: nn.Module | None, scale: float, tolerance: float) -> float:
    """The factor that a router states, where the one that was found is equal to it up to rounding."""
    stated = [v for v in vars(router).values() if isinstance(v, float)] if router is not None else []
    return next((v for v in (1.0, *stated) if abs(v - scale) <= tolerance * abs(scale)), scale)


def _effect(rule: RouterRule) -> RouterRule:
    """A rule without the parts that make no difference."""
    group_score = "" if rule.kept_groups == rule.groups else rule.group_score
    return replace(rule, scale=1.0, epsilon=0.0, fill=0.0, group_score=group_score)


def _unexplained(
    layer: MoELayer, rule: RouterRule, evidence: Sequence[Evidence], allowed: float
) -> tuple[int | None, float]:
    """See how many tokens a rule does not explain.

    Of experts whose selection scores are equal, up to rounding, a router may choose any.

    Args:
        layer: the modules of the layer.
        rule: the rule.
        evidence: what the router did.
        allowed: the share of tokens that may be left.

    Returns:
        The number, or None if it is larger than allowed, and the constant factor between the rule's weights and the
        router's.
    """

    def vector(e: Evidence, path: str) -> Tensor | None:
        return e.vectors[path].reshape(-1) if path in e.vectors else expert_vector(layer.block, path)

    most = allowed * sum(len(e.logits) for e in evidence)
    scores = [rule.scores(e.logits) for e in evidence]
    own = [e.indices.long() for e in evidence]
    if rule.skip is not None:
        own = [i.masked_fill(e.weights == 0, rule.skip) for i, e in zip(own, evidence, strict=True)]
    replayed = [
        rule.without_skips(i, rule.weights(s, i, vector(e, rule.expert_scale)))[1].double()
        for s, i, e in zip(scores, own, evidence, strict=True)
    ]
    actual = [e.weights.double() for e in evidence]
    square = sum(float(r.square().sum()) for r in replayed)
    scale = sum(float((r * w).sum()) for r, w in zip(replayed, actual, strict=True)) / square if square else 1.0
    explained = [
        torch.isclose(r * scale, w, rtol=e.tolerance, atol=e.tolerance * abs(scale)).all(-1)
        for r, w, e in zip(replayed, actual, evidence, strict=True)
    ]
    if sum(int((~x).sum()) for x in explained) > most:
        return None, scale
    wrong = 0
    for e, s, i, x in zip(evidence, scores, own, explained, strict=True):
        selection = rule.selection(rule.biased(s, vector(e, rule.bias), e.logits))
        chosen = selection.gather(-1, i).sort(-1, descending=True).values
        best = selection.topk(rule.top_k, dim=-1).values
        size = best.masked_fill(best.isinf(), 0).abs().amax(-1, keepdim=True)
        near = (chosen == best) | ((chosen - best).abs() <= size * (1e-2 if e.is_low else 2e-6))
        wrong += int((~(near.all(-1) & x)).sum())
    return wrong if wrong <= most else None, scale


@torch.no_grad()
def identify_untrained_router(layer: MoELayer) -> RouterRule | None:
    """Find the rule of a router that has no weights, by giving a copy of it random ones.

    Args:
        layer: the modules of its layer, on the meta device.

    Returns:
        The rule; None where no known rule explains the router, or it cannot be run alone.
    """
    generator = torch.Generator().manual_seed(0)
    if layer.adapter.route is not None:
        logits = torch.randn(32, layer.n_experts, generator=generator)
        indices, weights = layer.adapter.route(layer.block, logits)
        return identify_router(layer, ObservedRouting(logits=logits, indices=indices, weights=weights)).rule
    if layer.router is None:
        return None
    router = copy.deepcopy(layer.router).to_empty(device="cpu").float().eval()
    block = nn.Module()
    block.add_module("router", router)
    arguments = list(inspect.signature(router.forward).parameters)[1:]
    for name in (a for a in arguments if "bias" in a):  # the block holds it and passes it to the router
        block.register_buffer(name, torch.empty(layer.n_experts))
    width = next((p.shape[-1] for p in router.parameters() if p.ndim == 2), 0)
    for tensor in (*block.parameters(), *block.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    for shape in ((32, width), (2, 16, width)):
        call = ((torch.randn(shape, generator=generator),), dict(block.named_buffers(recurse=False)))
        alone = replace(layer, block=block, router=router)
        natural = RouterProbe(alone, call).natural
        if natural is not None:
            observed = ObservedRouting(
                logits=natural.logits, indices=natural.indices, weights=natural.weights, call=call
            )
            return identify_router(alone, observed).rule
    return None
