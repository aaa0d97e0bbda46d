"""The hooks of one layer's routing decision, from the router's logits to the weights of the chosen experts.

An edit of a stage is followed by the later stages, which are computed again by the router's rule. The tokens that no
hook has changed keep the router's own choice and weights, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moelens.errors import CheckError, MoeLensError
from moelens.models.points import ROUTER_STAGES, has_hooks, is_only_read, run_hooks
from moelens.models.routers import RouterRule, expert_vector
from moelens.models.running import RunningPass
from moelens.models.structure import MoELayer


@dataclass(kw_only=True)
class ObservedRouting:
    """The routing of one layer in a forward pass of the checks at load.

    Attributes:
        logits: the router's logits, `[token, expert]`.
        indices: the ids that the experts were given, `[token, slot]`.
        weights: the weights that the experts were given, `[token, slot]`.
        call: positional and keyword arguments of the router.
    """

    logits: Tensor | None = None
    indices: Tensor | None = None
    weights: Tensor | None = None
    call: tuple[tuple[Any, ...], dict[str, Any]] | None = None


@dataclass(kw_only=True)
class Decision:
    """A running decision, kept from the router to the experts.

    Attributes:
        logits: `[token, expert]`, as the hooks left them, like all that follows.
        scores: `[token, expert]`; None if no stage has hooks, like all that follows.
        biased: the scores with the selection bias.
        selection: those after the choice of groups.
        changed: the tokens of which a hook has changed a stage, bool `[token]`.
    """

    logits: Tensor
    scores: Tensor | None = None
    biased: Tensor | None = None
    selection: Tensor | None = None
    changed: Tensor | None = None


class _HeldSelection(torch.autograd.Function):
    """Weights that were selected by tensors and take no value from them: the gradient of those is zero."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *selected_by: Tensor) -> Tensor:
        ctx.selected_by = [(t.shape, t.dtype) for t in selected_by]
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(gradient.new_zeros(shape, dtype=dtype) for shape, dtype in ctx.selected_by)


@dataclass(kw_only=True)
class RoutingHooks:
    """Runs the hooks of one layer's routing decision.

    Attributes:
        layer: the layer's modules.
        points: the layer's hook points, those at `blocks.{l}.mlp`.
        running: the running forward pass.
        rule: the router's rule; None where no known rule explains the router.
        rule_in_training: whether the rule also holds in training mode.
        observed: what the checks at load observe; None outside them.
    """

    layer: MoELayer
    points: Any
    running: RunningPass
    rule: RouterRule | None = None
    rule_in_training: bool = True
    observed: ObservedRouting | None = None

    def rule_now(self) -> RouterRule | None:
        """Return the router's rule if it holds in the mode that the router is in."""
        router = self.layer.block if self.layer.router is None else self.layer.router
        return self.rule if self.rule_in_training or not router.training else None

    def require_rule(self, point: str) -> RouterRule:
        """Return the router's rule, which `point` needs; raise `MoeLensError` where there is none."""
        rule = self.rule_now()
        if rule is None:
            reason = self.layer.refusals.get("replay", "the checks at load were switched off")
            if self.rule is not None:
                reason = "in training mode this router follows no known rule, while model.hf_model.eval() gives it one"
            raise MoeLensError(
                f"an edit at 'blocks.{self.layer.index}.mlp.{point}' cannot take effect: {reason}; "
                f"edit hook_topk_weights or hook_expert_weights instead"
            )
        return rule

    def has_hooks(self, *names: str) -> bool:
        """Whether one of these points has hooks."""
        return any(has_hooks(getattr(self.points, name, None)) for name in names)

    def decide(self, logits: Tensor) -> Tensor:
        """Run the hooks of the stages of a routing decision; `choose` then chooses by what they leave.

        Args:
            logits: `[token, expert]`.

        Returns:
            The logits as the hooks left them.
        """
        if self.observed is not None:
            self.observed.logits = logits
        if not self.has_hooks(*ROUTER_STAGES):
            if self.has_hooks("hook_expert_indices"):
                self.running.decisions[self.layer.index] = Decision(logits=logits)
            return logits
        rule = self.rule_now()
        if rule is None:
            self._require_no_edit(logits)
            return logits
        decision = self._run_stages(rule, logits)
        self.running.decisions[self.layer.index] = decision
        return decision.logits

    def choose(self, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Run the hooks of the chosen experts and of their weights, by slot and by expert.

        Args:
            indices: ids of the chosen experts, `[token, slot]`.
            weights: their weights, `[token, slot]`.

        Returns:
            The ids and weights to give to the experts.
        """
        if self.observed is not None:
            self.observed.indices, self.observed.weights = indices, weights
        self.running.times[self.layer.index] += 1
        decision = self.running.decisions.pop(self.layer.index, None)
        if decision is not None and decision.changed is not None:
            indices, weights = self._replay(decision, indices, weights)
        edited, changed = self._run_hooks_on_tokens("hook_expert_indices", indices)
        if changed is not None and changed.any():
            self._require_experts(edited)
            rule, indices = self.require_rule("hook_expert_indices"), edited
            assert decision is not None  # `decide` keeps one where hook_expert_indices has hooks
            scores = rule.scores(decision.logits) if decision.scores is None else decision.scores
            replayed = self._weigh(rule, scores, indices.long()).to(weights.dtype)
            weights = torch.where(changed.unsqueeze(-1), replayed, weights)
        weights, _ = self._run_hooks_on_tokens("hook_topk_weights", weights)
        if self.has_hooks("hook_expert_weights"):
            indices, weights = self._choose_by_expert(indices, weights)
        return indices, weights

    def _require_no_edit(self, logits: Tensor) -> None:
        """Run the hooks of a router that follows no known rule; raise `MoeLensError` for those that need one."""
        for name in ROUTER_STAGES:
            if self.has_hooks(name) and (name != ROUTER_STAGES[0] or self.points.hook_router_logits.bwd_hooks):
                self.require_rule(name)
        # No gradient could come back to these logits, so they do not ask for one.
        _, changed = self._run_hooks_on_tokens(ROUTER_STAGES[0], logits.detach())
        if changed is not None and changed.any():
            self.require_rule(ROUTER_STAGES[0])

    def _run_stages(self, rule: RouterRule, logits: Tensor) -> Decision:
        names, changes = iter(ROUTER_STAGES), []

        def run(tensor: Tensor) -> Tensor:
            left, changed = self._run_hooks_on_tokens(next(names), tensor)
            changes.append(changed)
            return left

        logits = run(logits)
        scores = run(rule.scores(logits))
        known = logits
        if rule.on_logits and changes[-1] is not None:
            known = torch.where(changes[-1].unsqueeze(-1), scores.clamp(0, 1).logit(), logits)
        bias = expert_vector(self.layer.block, rule.bias)
        biased = run(rule.biased(scores, None if bias is None else bias.detach(), known))
        selection = run(rule.selection(biased))
        edits = [each for each in changes if each is not None]  # none where all hooks only read
        changed = torch.stack(edits).any(0) if edits else None
        return Decision(logits=logits, scores=scores, biased=biased, selection=selection, changed=changed)

    def _replay(self, decision: Decision, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Put the replayed choice in place of the model's own, for the tokens that hooks have changed.

        Where gradients are computed, the weights of all tokens are those of the replay, with the model's own values:
        so gradients flow through the tensors that the hooks saw.
        """
        rule, scores, biased, selection = self.rule, decision.scores, decision.biased, decision.selection
        assert rule is not None
        assert scores is not None
        assert biased is not None
        assert selection is not None
        assert decision.changed is not None
        stages = (decision.logits, scores, biased, selection)
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in stages)
        if not differentiable and not decision.changed.any():
            return indices, weights
        changed = decision.changed.unsqueeze(-1)
        own = indices.long() if rule.skip is None else indices.long().masked_fill(weights == 0, rule.skip)
        chosen = torch.where(changed, rule.indices(selection, decision.logits), own) if changed.any() else own
        replayed = self._weigh(rule, scores, chosen)
        if differentiable:
            replayed = _HeldSelection.apply(replayed, biased, selection)  # type: ignore[no-untyped-call]
        chosen, replayed = rule.without_skips(chosen, replayed)
        if differentiable:
            weights = weights.detach() + (replayed - replayed.detach()).to(weights.dtype)
        return chosen.to(indices.dtype), torch.where(changed, replayed.to(weights.dtype), weights)

    def _choose_by_expert(self, indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Run the hooks of the weights by expert; where an edit gives weight to more experts, there are more slots."""
        slots = indices.long()
        dense = weights.new_zeros(len(weights), self.layer.n_experts).scatter_add(-1, slots, weights)
        dense, changed = self._run_hooks_on_tokens("hook_expert_weights", dense)
        if changed is None or not changed.any():
            if dense.requires_grad:
                by_slot = _by_slot(dense, slots)
                weights = weights.detach() + (by_slot - by_slot.detach())
            return indices, weights
        k, wanted = slots.shape[-1], int((dense != 0).sum(-1).max())
        outside = (dense.scatter(-1, slots, 0) != 0).any(-1)
        if outside.any():
            k = max(k, wanted)
            slots, weights = (nn.functional.pad(t, (0, k - t.shape[-1])) for t in (slots, weights))
            slots = torch.where(outside.unsqueeze(-1), dense.abs().topk(k, dim=-1).indices, slots)
        weights = torch.where(changed.unsqueeze(-1), _by_slot(dense, slots), weights)
        return slots.to(indices.dtype), weights

    def _run_hooks_on_tokens(self, name: str, flat: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the hooks of a point on `[token, ·]`, which they see as `[batch, pos, ·]`.

        Returns:
            What they leave, and the tokens that they changed, bool `[token]`; None without hooks, or if all only read.
        """
        point = getattr(self.points, name, None)
        if not has_hooks(point):
            return flat, None
        shown = flat.reshape(*self.running.shape(flat.shape[0]), flat.shape[-1])
        left = run_hooks(point, shown, owned=is_only_read(point)).reshape(flat.shape)
        if is_only_read(point):
            return flat, None
        different = (left != flat) & ~(left.isnan() & flat.isnan())
        return left, different.any(-1)

    def _weigh(self, rule: RouterRule, scores: Tensor, indices: Tensor) -> Tensor:
        return rule.weights(scores, indices, expert_vector(self.layer.block, rule.expert_scale))

    def _require_experts(self, indices: Tensor) -> None:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.layer.n_experts:
            raise CheckError(
                f"expert {low if low < 0 else high} at 'blocks.{self.layer.index}.mlp.hook_expert_indices' does not "
                f"exist; allowed: 0 to {self.layer.n_experts - 1}"
            )


def _by_slot(dense: Tensor, slots: Tensor) -> Tensor:
    """Weights by expert `[token, expert]` as weights by slot `[token, slot]`.

    The weight of an expert with several slots goes to the first.
    """
    again = (slots.unsqueeze(-1) == slots.unsqueeze(-2)).tril(-1).any(-1)
    return dense.gather(-1, slots).masked_fill(again, 0)
