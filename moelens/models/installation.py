"""Attaching hook points to a transformers model, and removing everything again."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from moelens.errors import CheckError, MoeLensError
from moelens.models import adapters, experts, load_checks
from moelens.models.load_checks import Check
from moelens.models.packed import PACKED, why_not_inside
from moelens.models.points import ROUTER_STAGES, CheckedHookPoint, HookBranch, layer_branch
from moelens.models.residual import ResidualTap, missing_points
from moelens.models.running import RunningPass
from moelens.models.structure import MoELayer, input_device, routing_settings
from moelens.models.taps import Tap
from moelens.models.wrappers import require_not_compiled


class Installation:
    """Everything that is attached to a transformers model while it is hooked.

    Args:
        layers: the model's decoder layers.
        moe_layers: those of them with experts.
        running: what the taps read the layout of the running forward pass from.

    Attributes:
        points: the hook points of each decoder layer, in order.
        taps: the taps of the layers with experts, by layer.
        checks: the results of the checks.
        refused: the hook points that are not offered, by name, with the reason.
    """

    def __init__(self, layers: nn.ModuleList, moe_layers: list[MoELayer], running: RunningPass) -> None:
        self.layers = layers
        self.checks: tuple[Check, ...] = ()
        self.refused: dict[str, str] = {}
        by_index = {moe_layer.index: moe_layer for moe_layer in moe_layers}
        self.points: list[HookBranch] = [
            layer_branch(routed=i in by_index, shared=i in by_index and by_index[i].shared is not None)
            for i in range(len(layers))
        ]
        self.taps: dict[int, Tap] = {
            i: Tap(layer=moe_layer, points=self.points[i].mlp, running=running) for i, moe_layer in by_index.items()
        }
        self._residuals: list[ResidualTap] = []
        self._configs: list[Any] = []
        self._settings = routing_settings(moe_layers)

    def install(self, hf_model: Any, tokenizer: Any, *, check: bool) -> None:
        """Attach the taps, check the model and take away the hook points that it cannot offer.

        Args:
            hf_model: the transformers model.
            tokenizer: its tokenizer, or None.
            check: whether to run the checks; a model without weights is not checked.

        Raises:
            CheckError: the model's numbers contradict each other, or the tokenizer belongs to another model.
        """
        self._attach_taps()
        norms: dict[int, str] = {}
        irregular: set[int] = set()
        if not check:
            for tap in self.taps.values():
                tap.layer.refusals |= dict.fromkeys(ROUTER_STAGES[1:], "the checks at load were switched off")
        elif input_device(hf_model).type != "meta":
            norms, irregular = self._check(hf_model, tokenizer)
        self._attach_residuals(norms, irregular)

    def remove(self) -> None:
        """Detach everything and restore the model's configuration."""
        for residual in self._residuals:
            residual.detach()
        for tap in self.taps.values():
            tap.detach()
        while self._configs:
            config = self._configs.pop()
            installed = config._experts_implementation_internal
            if isinstance(installed, experts.Installed):
                installed.users -= 1
                if installed.users <= 0:
                    config._experts_implementation_internal = installed.native

    def require_installed(self) -> None:
        """Raise `MoeLensError` if a router's settings or the experts' code were changed since hooking.

        The rules that were found by trying are those of the settings of then, and hooks inside the experts run in
        moelens's implementation.
        """
        for where, holder, name, value in self._settings:
            if (changed := getattr(holder, name, None)) != value:
                raise MoeLensError(
                    f"{name} of {where} was changed from {value!r} to {changed!r} after the model was hooked, and its "
                    "hook points show the routing of then; unhook it, set it, hook it again"
                )
        for tap in self.taps.values():
            for module in (tap.layer.decoder_layer, tap.layer.block, tap.layer.experts, tap.layer.router):
                if module is not None:
                    require_not_compiled(module)
            if tap.patched is not None or why_not_inside(tap.layer.experts):
                continue
            if (now := tap.layer.experts.config._experts_implementation) != experts.IMPLEMENTATION:
                raise MoeLensError(
                    f"the experts implementation was set to {now!r} after "
                    "the model was hooked, and hooks inside the experts would not run; unhook it, set it, hook it again"
                )

    def _attach_taps(self) -> None:
        """Attach the taps to the experts that adapters compute, and moelens's implementation to all others."""
        experts.register_implementation()
        for tap in self.taps.values():
            layer = tap.layer
            holder = layer.block if layer.adapter.block_is_experts else layer.experts
            if type(holder).__name__ in adapters.ADAPTERS:
                patched = layer.experts if layer.adapter.block_forward is None else layer.block
                adapters.install_forward(patched, layer.adapter)
                tap.patched = patched
            elif type(holder).__name__ in PACKED:
                tap.native = PACKED[type(holder).__name__][0]
            else:
                tap.native = self._install(layer.experts.config) or "eager"
            tap.attach()

    def _install(self, config: Any) -> str | None:
        """Put moelens's implementation into a configuration, once; return the one that it stands in for."""
        installed = config._experts_implementation_internal
        if not isinstance(installed, experts.Installed):
            installed = config._experts_implementation_internal = experts.Installed(installed)
        if not any(config is other for other in self._configs):  # other models may share it
            self._configs.append(config)
            installed.users += 1
        return installed.native

    def _check(self, hf_model: Any, tokenizer: Any) -> tuple[dict[int, str], set[int]]:
        """Run the checks; return the norms before the blocks, and the layers with an irregular residual stream."""
        try:
            runs = self._run_short_input(hf_model)
            checks = [
                load_checks.check_routing(self.taps),
                load_checks.check_repeat(runs),
                load_checks.check_sums(self.taps, runs),
                load_checks.check_replay(self.taps),
                load_checks.check_configuration(hf_model, self.taps),
            ]
            residual, norms, irregular = load_checks.check_residual(self.taps, runs)
            checks.append(residual)
            if unread := self._why_unread(len(self.layers) - 1):
                checks.append(load_checks.check_encoder(len(self.layers) - 1, unread))
            if tokenizer is not None:
                checks.append(load_checks.check_tokenizer(hf_model, tokenizer))
            self.checks = tuple(checks)
        finally:
            for tap in self.taps.values():
                tap.observed = None
        return norms, irregular

    def _run_short_input(self, hf_model: Any) -> dict[int, load_checks.LayerRun]:
        """Run the model on the short input; an error that is not moelens's own becomes a `CheckError`."""
        try:
            return load_checks.run_short_input(hf_model, self.layers, self.taps)
        except MoeLensError:
            raise
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise CheckError(
                f"expected the model to run on a short input, got {text}; check that it runs before it is hooked"
            ) from error

    def _why_unread(self, index: int) -> str:
        """Say why nothing reads a layer's output; "" where the model does read it."""
        last = index == len(self.layers) - 1
        return adapters.KEYS_ONLY.get(type(self.layers[index]).__name__, "") if last else ""

    def _attach_residuals(self, norms: dict[int, str], irregular: set[int]) -> None:
        """Connect every layer's residual stream, and refuse the points that the layers do not offer.

        Args:
            norms: by layer, the name of the norm before the block. Layers without experts are taken to have the one
                that most layers have.
            irregular: layers whose stream is not `[batch, pos, d_model]`.
        """
        common = Counter(norms.values()).most_common(1)[0][0] if norms else ""
        block_names = {tap.layer.block_name for tap in self.taps.values()}
        for i, layer in enumerate(self.layers):
            tap, points = self.taps.get(i), self.points[i]
            norm_name = norms.get(i, common if tap is None else "")
            norm = getattr(layer, norm_name, None) if norm_name else None
            dense = None
            if tap is None:
                dense = next((m for n in block_names if n and (m := getattr(layer, n, None))), None)
            moe_layer = None if tap is None else tap.layer
            if tap is not None:
                mlp: Any = points.mlp
                mlp.hook_expert_indices.no_gradient = "it holds the ids of experts"
                if tap.rule is None:
                    mlp.hook_router_logits.no_gradient = tap.layer.refusals.get("replay", "no rule")
            for name, reason in missing_points(moe_layer, irregular=i in irregular, norm=norm, dense=dense).items():
                if points.remove_point(name):
                    self.refused[f"blocks.{i}.{name}"] = reason
            if unread := self._why_unread(i):
                for name, point in points.named_modules():
                    if isinstance(point, CheckedHookPoint) and name != "hook_resid_pre":
                        point.no_gradient = point.no_gradient or unread
            self._residuals.append(ResidualTap(points, layer, norm, dense))
