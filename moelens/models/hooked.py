"""`HookedMoE`: a transformers model with TransformerLens hook points at its routers and experts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint

from moelens.errors import CheckError, MoeLensError, unknown
from moelens.models import adapters, checks, experts
from moelens.models.checks import Check
from moelens.models.routers import Replay
from moelens.models.structure import MoEShape, Site, describe, find_sites, input_device
from moelens.models.taps import INSIDE, ROUTER_STAGES, Grid, Points, Residual, Tap

ROUTING = (*ROUTER_STAGES, "hook_expert_indices", "hook_topk_weights", "hook_expert_weights", "hook_out")
RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")


class Intervenes(Protocol):
    """What `HookedMoE.intervene` applies, such as a `moelens.interventions.Intervention`."""

    def hooks(self, model: Any) -> list[tuple[str, Callable[..., Any]]]:
        """Hook names with their functions, as `HookedMoE.hooks` takes them."""
        ...


class HookedMoE(HookedRootModule):  # type: ignore[misc]
    """A transformers Mixture-of-Experts model whose routing and experts can be read and edited by name.

    The model underneath, `hf_model`, keeps its own code and weights. For layer `l`:

        blocks.{l}.hook_resid_pre, hook_resid_mid, hook_resid_post   [batch, pos, d_model]
        blocks.{l}.mlp.hook_router_logits                            [batch, pos, expert]  raw
        blocks.{l}.mlp.hook_router_scores                            [batch, pos, expert]  after softmax or sigmoid
        blocks.{l}.mlp.hook_router_biased                            [batch, pos, expert]  scores + selection bias
        blocks.{l}.mlp.hook_router_selection                         [batch, pos, expert]  the same, groups left out
        blocks.{l}.mlp.hook_expert_indices                           [batch, pos, k]
        blocks.{l}.mlp.hook_topk_weights                             [batch, pos, k]       by slot
        blocks.{l}.mlp.hook_expert_weights                           [batch, pos, expert]  by expert, 0 if not chosen
        blocks.{l}.mlp.experts.hook_pre, hook_post, hook_out         [batch, pos, k, ·]    projections, neurons, outputs
        blocks.{l}.mlp.shared.hook_out                               [batch, pos, d_model] before a shared gate
        blocks.{l}.mlp.hook_out                                      [batch, pos, d_model]

    An edit at any of them takes effect on everything downstream: an edited logit, score or selection is selected upon
    again, edited indices get the weights the router's rule gives them. Points that a model cannot offer truly are
    absent, with the reason in `refused`. A point nobody listens to costs nothing.

    Attributes:
        hf_model: the transformers model.
        tokenizer: its tokenizer, or None.
        shape: what it is made of.
        running: how the tokens of the running forward pass are laid out, for hooks that need to know.
        checks: what was compared at load, and came out.
        refused: hook names this model does not offer, with the reason.

    Example:
        >>> model = moelens.load("demo")                                          # doctest: +SKIP
        >>> _, cache = model.run_with_cache("先生がいらっしゃいました。")           # doctest: +SKIP
        >>> cache["blocks.3.mlp.hook_router_logits"].shape                        # doctest: +SKIP
        torch.Size([1, 6, 32])
    """

    def __init__(self, hf_model: Any, tokenizer: Any = None, *, name: str = "", check: bool = True) -> None:
        super().__init__()
        layers, sites = find_sites(hf_model)
        if any(s.experts in experts.LISTENERS or s.block in experts.LISTENERS for s in sites):
            raise MoeLensError("this model is hooked already; call .unhook() on the HookedMoE that holds it first")
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.name = name or getattr(hf_model.config, "_name_or_path", "") or type(hf_model).__name__
        self.checks: tuple[Check, ...] = ()
        self.refused: dict[str, str] = {}
        self.running = Grid()
        self._handles = [hf_model.register_forward_pre_hook(self._note_grid, with_kwargs=True)]
        self._configs: list[tuple[Any, str | None]] = []
        self._taps: dict[int, Tap] = {}
        self._residuals: list[Residual] = []
        self.blocks = nn.ModuleList(self._branch(i, sites) for i in range(len(layers)))
        try:
            self._install(sites)
            norms: dict[int, str] = {}
            streams: set[int] = set()
            if check and input_device(hf_model).type != "meta":
                norms, streams = self._check(layers)
            elif not check:
                for site in sites:
                    site.refusals |= dict.fromkeys(ROUTER_STAGES[1:], "the checks at load were switched off")
            self._attach_residuals(layers, norms, streams)
        except BaseException:
            self.unhook()
            raise
        self.setup()
        scores = (tap.replay.score for tap in self._taps.values() if tap.replay)
        self.shape: MoEShape = describe(hf_model, layers, sites, next(scores, "unknown"))

    # Building

    def _branch(self, index: int, sites: list[Site]) -> Points:
        site = next((s for s in sites if s.index == index), None)
        block = Points(*RESIDUAL)
        block.mlp = Points(*(ROUTING if site else ("hook_out",)))
        if site:
            block.mlp.experts = Points(*INSIDE)
            if site.shared is not None:
                block.mlp.shared = Points("hook_out")
            self._taps[index] = Tap(site, block.mlp, self.running)
        return block

    def _install(self, sites: list[Site]) -> None:
        experts.register()
        for site in sites:
            tap, module = self._taps[site.index], site.experts
            own = site.row.block_forward is not None
            if type(site.experts if not site.row.block_is_experts else site.block).__name__ in adapters.ADAPTED:
                patched = site.block if own else module
                adapters.install(patched, site.row)
                tap.patched = patched
            else:
                config = module.config
                if not any(c is config for c, _ in self._configs):
                    self._configs.append((config, config._experts_implementation_internal))
                tap.native = next(n for c, n in self._configs if c is config) or "eager"
            tap.attach()
        for config, _ in self._configs:
            config._experts_implementation_internal = experts.NAME

    def _check(self, layers: nn.ModuleList) -> tuple[dict[int, str], set[int]]:
        try:
            runs = checks.observe(self.hf_model, layers, self._taps)
            found = [checks.check_routes(self._taps), checks.check_sums(self._taps, runs)]
            found.append(checks.check_replay(self._taps))
            residual, norms, streams = checks.check_residual(self._taps, runs)
            found.append(residual)
            if self.tokenizer is not None:
                found.append(checks.check_tokenizer(self.hf_model, self.tokenizer))
            self.checks = tuple(found)
        finally:
            for tap in self._taps.values():
                tap.observed = None
        return norms, streams

    def _attach_residuals(self, layers: nn.ModuleList, norms: dict[int, str], streams: set[int]) -> None:
        common = max(set(norms.values()), key=list(norms.values()).count) if norms else ""
        blocks = {t.site.block_name for t in self._taps.values()}
        for i, layer in enumerate(layers):
            points, tap = self.blocks[i], self._taps.get(i)
            middle = norms.get(i, common if tap is None else "")
            norm = getattr(layer, middle, None) if middle else None
            dense = next((m for n in blocks if n and (m := getattr(layer, n, None))), None) if tap is None else None
            missing = dict(tap.site.refusals) if tap else {}
            if i in streams:
                reason = "this layer's residual stream is not [batch, pos, d_model]"
                missing |= {f"../{n}": reason for n in RESIDUAL}
            elif norm is None:
                missing["../hook_resid_mid"] = (
                    "no point was found where the stream plus the block is the layer's output"
                )
            if tap is None and dense is None:
                missing["hook_out"] = "this layer has no block where the others have their experts"
            if tap is not None and tap.site.block is tap.site.layer:
                missing["hook_out"] = "the experts are part of the layer itself; read hook_resid_post"
            for name, reason in missing.items():
                self._refuse(points, i, name, reason)
            residual = Residual(points)
            residual.attach(layer, norm, dense)
            self._residuals.append(residual)

    def _refuse(self, points: Any, layer: int, name: str, reason: str) -> None:
        """Take a point away; `name` is relative to the layer's `mlp`, or to the layer with ../ before it."""
        above = name.startswith("../")
        path = name[3:] if above else f"mlp.{name}"
        holder, _, last = path.rpartition(".")
        branch = points.get_submodule(holder) if holder else points
        if hasattr(branch, last):
            delattr(branch, last)
            self.refused[f"blocks.{layer}.{path}"] = reason

    def setup(self) -> None:
        """Name the hook points; the model's own modules are left as they are."""
        named = [(f"blocks.{n}", m) for n, m in self.blocks.named_modules() if n]
        self.mod_dict = dict(named)
        self.hook_dict = {n: m for n, m in named if isinstance(m, HookPoint)}
        for name, point in self.hook_dict.items():
            point.name = name

    # Running

    def forward(
        self,
        input: str | list[str] | Tensor | None = None,
        *,
        return_type: Literal["logits", "loss", "both"] | None = "logits",
        **kwargs: Any,
    ) -> Any:
        """Run the model.

        Args:
            input: text, texts (padded on the right) or token ids `[batch, pos]` or `[pos]`; everything else that the
                transformers model takes goes by keyword.
            return_type: "logits" `[batch, pos, vocab]`, "loss" (mean next-token cross-entropy), "both", or None; for
                None the logits of the last position alone are computed, where the model can do so.
        """
        self._require_hooked()
        inputs = self.to_inputs(input) if input is not None else {}
        inputs |= kwargs
        if return_type in ("loss", "both") and "labels" not in inputs:
            labels = inputs["input_ids"]
            mask = inputs.get("attention_mask")
            inputs["labels"] = labels if mask is None else labels.masked_fill(mask == 0, -100)
        if return_type is None:
            last = "logits_to_keep" in inspect.signature(self.hf_model.forward).parameters
            self.hf_model(**({"logits_to_keep": 1} if last else {}) | inputs)
            return None
        output = self.hf_model(**inputs)
        logits = output.logits if hasattr(output, "logits") else output[0]
        return {"logits": logits, "loss": output.get("loss"), "both": (logits, output.get("loss"))}[return_type]

    def to_inputs(self, input: str | list[str] | Tensor) -> dict[str, Tensor]:
        """`input_ids` `[batch, pos]` and, for texts, `attention_mask`, on the model's device."""
        if isinstance(input, Tensor):
            return {"input_ids": (input if input.ndim > 1 else input.unsqueeze(0)).to(self.device)}
        if self.tokenizer is None:
            raise MoeLensError(
                "this model has no tokenizer; pass token ids, or give one to moelens.hook(model, tokenizer)"
            )
        texts = [input] if isinstance(input, str) else list(input)
        padding = len(texts) > 1
        if padding and self.tokenizer.pad_token is None:
            raise MoeLensError("the tokenizer has no padding token; run texts one by one, or set tokenizer.pad_token")
        options: dict[str, Any] = {"padding": True, "padding_side": "right"} if padding else {}
        encoded = self.tokenizer(texts, return_tensors="pt", **options)
        if encoded["input_ids"].shape[-1] == 0:
            raise MoeLensError(f"no tokens in {texts[0]!r}; give a text that is not empty")
        return {k: encoded[k].to(self.device) for k in ("input_ids", "attention_mask")}

    def to_tokens(self, text: str | list[str]) -> Tensor:
        """Token ids `[batch, pos]` of a text, special tokens as the tokenizer adds them."""
        return self.to_inputs(text)["input_ids"]

    def to_str_tokens(self, text: str) -> list[str]:
        """The text's tokens as the tokenizer writes them."""
        return list(self.tokenizer.convert_ids_to_tokens(self.to_tokens(text)[0].tolist()))

    @torch.no_grad()
    def generate(self, input: str | Tensor, **kwargs: Any) -> Any:
        """transformers' `generate`, with hooks. Text gives text (the prompt included), ids give ids."""
        self._require_hooked()
        inputs = self.to_inputs(input)
        with self.running.generation(inputs["input_ids"].shape[1]):
            ids = self.hf_model.generate(**inputs, **kwargs)
        return self.tokenizer.decode(ids[0], skip_special_tokens=True) if isinstance(input, str) else ids

    def run_with_cache(self, *args: Any, return_cache_object: bool = True, **kwargs: Any) -> Any:
        """As TransformerLens's: the output, and an `ActivationCache` of what `names_filter` names (default: all)."""
        output, cache = super().run_with_cache(*args, **kwargs)
        return output, ActivationCache(cache, self) if return_cache_object else cache

    def get_caching_hooks(
        self,
        names_filter: Any = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
        """As TransformerLens's, with positions sliced where they are in every point of ours: the second axis."""
        kept: dict[str, Tensor] = {} if cache is None else cache
        position = getattr(pos_slice, "slice", pos_slice)

        def save(tensor: Tensor, hook: Any, suffix: str = "") -> None:
            value = tensor.detach()
            if isinstance(position, (slice, int)):
                value = value[:, position].clone()  # a view would hold the whole tensor
            value = value.to(device) if device is not None else value
            kept[hook.name + suffix] = value[0] if remove_batch_dim and len(value) == 1 else value

        names = self.select(names_filter)
        backward = [(n, lambda t, hook: save(t, hook, "_grad")) for n in names] if incl_bwd else []
        return kept, [(n, save) for n in names], backward

    def select(self, names_filter: str | list[str] | Callable[[str], bool] | None) -> list[str]:
        """Hook names that a TransformerLens `names_filter` means.

        Raises:
            UnknownNameError: a name that does not exist, with the nearest ones.
        """
        if names_filter is None:
            return list(self.hook_dict)
        if callable(names_filter):
            return [n for n in self.hook_dict if names_filter(n)]
        names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        for name in names:
            self._require_point(name)
        return names

    def _require_point(self, name: str) -> None:
        if name in self.refused:
            raise MoeLensError(f"'{name}' is not offered by this model: {self.refused[name]}")
        if name not in self.hook_dict:
            layer = name.split(".")[1] if name.startswith("blocks.") and name.count(".") else ""
            if layer.isdigit() and int(layer) >= len(self.blocks):
                raise unknown("layer", layer, range(len(self.blocks)), f"in hook name {name!r}")
            if layer.isdigit() and int(layer) not in self._taps and "mlp" in name:
                routed = sorted(self._taps)
                raise unknown(
                    "hook", name, [], f"layer {layer} is dense; the MoE layers are {routed[0]} to {routed[-1]}"
                )
            raise unknown("hook", name, self.hook_dict)

    def add_hook(self, name: Any, hook: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(name, str):
            self._require_point(name)
        super().add_hook(name, hook, *args, **kwargs)

    @contextmanager
    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Iterator[HookedMoE]:
        for name, _ in (*fwd_hooks, *bwd_hooks):
            if isinstance(name, str):
                self._require_point(name)
        with super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **kwargs):
            yield self

    @contextmanager
    def intervene(self, *interventions: Intervenes) -> Iterator[HookedMoE]:
        """Run with experts removed, forced, patched…, see `moelens.interventions`; the model is restored at the end.

        They act in the order of the computation (selection, weights, outputs) and, at the same point of it, in the
        order given, those of an outer `intervene` first.

        >>> from moelens.interventions import remove              # doctest: +SKIP
        >>> with model.intervene(remove(layer=3, experts=[5])):   # doctest: +SKIP
        ...     logits = model("先生がいらっしゃいました。")
        """
        with self.hooks(fwd_hooks=[pair for i in interventions for pair in i.hooks(self)]):
            yield self

    # The model underneath

    @property
    def device(self) -> torch.device:
        return input_device(self.hf_model)

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.hf_model.dtype
        return found

    @property
    def revision(self) -> str | None:
        """Commit of the hub repository the model came from, if it came from one."""
        return getattr(self.hf_model.config, "_commit_hash", None)

    @property
    def context_length(self) -> int | None:
        """Longest input in tokens, or None where the configuration does not say."""
        config = self.hf_model.config
        return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)

    @property
    def rules(self) -> dict[int, Replay]:
        """How the routers choose, by layer; without the layers that no known rule explains."""
        return {layer: tap.replay for layer, tap in self._taps.items() if tap.replay}

    @property
    def rule(self) -> str:
        """How the routers choose, in words; "" where no known rule explains them."""
        return next((rule.describe() for rule in self.rules.values()), "")

    @property
    def experts_implementation(self) -> str:
        """The implementation that computes the experts while nobody listens inside."""
        return next(iter(self._taps.values())).native

    def _note_grid(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        if isinstance(ids, Tensor):
            self.running.begin(ids.shape[0], ids.shape[1], ids if ids.ndim == 2 else None)

    def _require_hooked(self) -> None:
        if not self._handles:
            raise MoeLensError("this model was unhooked; call moelens.hook(model, tokenizer) again")

    def unhook(self) -> Any:
        """Give the transformers model back as it was: no hook, no changed configuration. Returns it."""
        if hasattr(self, "hook_dict"):
            self.reset_hooks(including_permanent=True)
        for residual in self._residuals:
            residual.detach()
        for tap in self._taps.values():
            tap.detach()
        for config, implementation in self._configs:
            config._experts_implementation_internal = implementation
        self._configs.clear()
        while self._handles:
            self._handles.pop().remove()
        return self.hf_model

    def to_transformer_bridge(self) -> Any:
        """TransformerLens's `TransformerBridge` on the same weights, with these hook points in its `hook_dict`."""
        from moelens.models.bridge import to_transformer_bridge

        return to_transformer_bridge(self)

    def __repr__(self) -> str:
        s = self.shape
        shared = f" + {s.n_shared} shared" if s.n_shared else ""
        return (
            f"HookedMoE({self.name!r}: {s.model_type}, {s.n_layers} layers, {len(s.moe_layers)} MoE x {s.n_experts} "
            f"experts{shared}, top-{s.top_k}, {len(self.hook_dict)} hook points)"
        )


def hook(hf_model: Any, tokenizer: Any = None, *, name: str = "", check: bool = True) -> HookedMoE:
    """Hook a transformers model in place; `.unhook()` gives it back unchanged.

    Args:
        hf_model: a Mixture-of-Experts model of transformers, on any device or dispatched by accelerate.
        tokenizer: its tokenizer, so that text can be given.
        name: how to call it in recordings and reports.
        check: compare the model with itself on a short input; without it no router can be replayed.

    Raises:
        UnsupportedModelError: no experts, or experts that moelens cannot reach.
        CheckError: NaN in a router, ids out of range, a tokenizer of another model.
    """
    return HookedMoE(hf_model, tokenizer, name=name, check=check)


__all__ = ["CheckError", "HookedMoE", "hook"]
