"""`HookedMoE`: a transformers model with TransformerLens hook points at its routers and experts."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.slice import Slice

from moelens.errors import MoeLensError, unknown
from moelens.models import experts
from moelens.models.arguments import forward_arguments, require_arguments
from moelens.models.caches import MoECache
from moelens.models.copies import TorchHook, drop_copied_hooks
from moelens.models.formats import Format, describe_format
from moelens.models.installation import Installation
from moelens.models.load_checks import Check
from moelens.models.routers import RouterRule, widen
from moelens.models.running import RunningPass, Turns, evaluating
from moelens.models.structure import MoEShape, changed_layer, find_moe_layers, input_device, links_to, read_shape
from moelens.models.tokens import token_spans
from moelens.models.wrappers import hooked_already, require_not_compiled, transformers_model


class SupportsHooks(Protocol):
    """What `HookedMoE.intervene` applies, such as a `moelens.interventions.Intervention`."""

    def hooks(self, model: HookedMoE) -> list[tuple[str, Callable[..., Any]]]:
        """Return hook names with their functions, as `HookedMoE.hooks` takes them."""
        ...


class HookedMoE(HookedRootModule):  # type: ignore[misc]
    """A transformers Mixture-of-Experts model whose routing and experts can be read and edited by name.

    The model underneath, `hf_model`, keeps its own code and weights. For layer `l`:

        blocks.{l}.hook_resid_pre, hook_resid_mid, hook_resid_post   [batch, pos, d_model]
        blocks.{l}.mlp.hook_router_logits                            [batch, pos, expert]  raw
        blocks.{l}.mlp.hook_router_scores                            [batch, pos, expert]  after softmax or sigmoid
        blocks.{l}.mlp.hook_router_biased                            [batch, pos, expert]  scores + selection bias
        blocks.{l}.mlp.hook_router_selection                         [batch, pos, expert]  after the choice of groups
        blocks.{l}.mlp.hook_expert_indices                           [batch, pos, k]
        blocks.{l}.mlp.hook_topk_weights                             [batch, pos, k]       by slot
        blocks.{l}.mlp.hook_expert_weights                           [batch, pos, expert]  by expert, 0 if not chosen
        blocks.{l}.mlp.experts.hook_pre, hook_post, hook_out         [batch, pos, k, ·]    projections, neurons, outputs
        blocks.{l}.mlp.shared.hook_out                               [batch, pos, d_model] before a shared gate
        blocks.{l}.mlp.hook_out                                      [batch, pos, d_model]

    An edit at any of them takes effect on everything downstream. After an edit of logits or scores, experts are chosen
    again; edited indices get the weights that the router's rule gives them. A point that would not show what the model
    computes is absent, and `refused` holds the reason. Points without hooks cost nothing.

    `copy.deepcopy` copies the transformers model and hooks the copy, with the hooks that `add_hook` added.

    Args:
        hf_model: a Mixture-of-Experts model of transformers, or PEFT's or `DataParallel`'s wrapper around one.
        tokenizer: its tokenizer, so that the model can be given text.
        name: the model's name in recordings and reports.
        check: whether to compare the model with itself on a short input.

    Attributes:
        hf_model: the transformers model, without a wrapper around it; PEFT's adapters are inside it.
        tokenizer: its tokenizer, or None.
        name: the model's name in recordings and reports.
        shape: the model's sizes.
        running: how the tokens of the running forward pass are laid out, for hooks that need to know.
        checks: the results of the checks at load.
        refused: the hook points that this model does not offer, by name, with the reason.
        stored_format: the key in `moelens.models.formats.FORMATS` of the format of the files; "" where there are none.
        hook_dict: the hook points by name.

    Example:
        >>> demo_model.shape.top_k
        4
        >>> _, cache = demo_model.run_with_cache("先生がいらっしゃいました。")
        >>> cache["blocks.3.mlp.hook_expert_indices"].shape  # doctest: +ELLIPSIS
        torch.Size([1, ..., 4])
    """

    def __init__(self, hf_model: Any, tokenizer: Any = None, *, name: str = "", check: bool = True) -> None:
        super().__init__()
        self._given = (hf_model, check)
        self._restore_modules: list[Callable[[], None]] = []
        hf_model = transformers_model(hf_model)
        drop_copied_hooks(hf_model)
        layers, moe_layers = find_moe_layers(hf_model)
        if any(m in experts.LISTENERS for layer in moe_layers for m in (layer.experts, layer.block)):
            raise hooked_already()
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.name = name or getattr(hf_model.config, "_name_or_path", "") or type(hf_model).__name__
        self.stored_format = ""
        self.running = RunningPass()
        self._turns = Turns()
        self._links = links_to(hf_model, moe_layers)
        self._arguments = forward_arguments(hf_model)
        self._handles = [
            hf_model.register_forward_pre_hook(TorchHook(self._note_pass), with_kwargs=True),
            hf_model.register_forward_hook(TorchHook(lambda *_: self._leave_pass()), always_call=True),
        ]
        self._installation = Installation(layers, moe_layers, self.running)
        self.blocks = nn.ModuleList(self._installation.points)
        try:
            self._installation.install(hf_model, tokenizer, check=check)
        except BaseException:
            self.unhook()
            raise
        self.checks: tuple[Check, ...] = self._installation.checks
        self.refused: dict[str, str] = self._installation.refused
        self.setup()
        score = next((rule.score for rule in self.rules.values()), "unknown")
        self.shape: MoEShape = read_shape(hf_model, layers, moe_layers, score)

    def setup(self) -> None:
        """Name the hook points and collect them in `hook_dict`, as TransformerLens expects."""
        named = [(f"blocks.{n}", m) for n, m in self.blocks.named_modules() if n]
        self.mod_dict = dict(named)
        self.hook_dict = {n: m for n, m in named if isinstance(m, HookPoint)}
        for name, point in self.hook_dict.items():
            point.name = name

    def __deepcopy__(self, memo: dict[int, Any]) -> HookedMoE:
        given, check = self._given
        made = type(self)(copy.deepcopy(given, memo), self.tokenizer, name=self.name, check=check)
        made.checks, made.stored_format = self.checks, self.stored_format
        for name, point in self.hook_dict.items():
            for direction, handles in (("fwd", point.fwd_hooks), ("bwd", point.bwd_hooks)):
                for handle in (h for h in handles if not h.context_level):  # others belong to a running `with` block
                    made.hook_dict[name].add_hook(handle.user_hook, direction, handle.is_permanent, level=0)
        return made

    def __reduce__(self) -> Any:
        raise MoeLensError(
            "a hooked model cannot be pickled or copied shallowly; save model.hf_model, which is a plain model in the "
            "file, and hook it again, or use copy.deepcopy"
        )

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
            input: a text, texts (padded on the right) or token ids `[batch, pos]` or `[pos]`.
            return_type: what to return. With None only the logits of the last position are computed, where the model
                can do so.
            kwargs: further arguments of the transformers model, such as `attention_mask`.

        Returns:
            For "logits" the logits `[batch, pos, vocab]` (the last hidden state of a model without a head), for "loss"
            the mean cross-entropy of the next token, for "both" the two, and None for None. The loss is that of the
            tokens which follow another token, so not of padding and not of the first token after it; with `labels` it
            is the transformers model's own.

        Raises:
            UnknownNameError: an argument that neither this method nor the transformers model has.
            MoeLensError: the input is a text that the model cannot take, there is no loss, or the model was unhooked.

        Example:
            >>> demo_model(torch.tensor([[5, 6, 7]])).shape[:2]
            torch.Size([1, 3])
        """
        self._require_hooked()
        if return_type not in (None, "logits", "loss", "both"):
            raise unknown("return_type", return_type, ("logits", "loss", "both"), "or None")
        require_arguments(kwargs, self._arguments)
        inputs = (self.to_inputs(input) if input is not None else {}) | kwargs
        if return_type is None and "logits_to_keep" in self._arguments:
            inputs = {"logits_to_keep": 1} | inputs
        with self._turns:
            output = self.hf_model(**inputs)
        if return_type is None:
            return None
        logits = output.logits if hasattr(output, "logits") else output[0]
        if return_type == "logits":
            return logits
        if "labels" not in inputs and self.hf_model.get_output_embeddings() is None:
            raise MoeLensError(
                f"{type(self.hf_model).__name__} has no head that predicts tokens, so there is no loss; hook the model "
                "with its head, as moelens.load does"
            )
        loss = output.loss if "labels" in inputs else _next_token_loss(logits, inputs)
        return loss if return_type == "loss" else (logits, loss)

    def to_inputs(
        self, input: str | Sequence[str] | Tensor, *, padding_side: Literal["right", "left"] = "right"
    ) -> dict[str, Tensor]:
        """Make the inputs of the transformers model, on its device.

        Args:
            input: a text, texts or token ids `[batch, pos]` or `[pos]`.
            padding_side: where texts are padded.

        Returns:
            `input_ids` `[batch, pos]` and, for texts, `attention_mask`.

        Raises:
            MoeLensError: there is no tokenizer, it cannot pad, or a text has no tokens.

        Example:
            >>> sorted(demo_model.to_inputs(["はい。", "いいえ、違います。"]))
            ['attention_mask', 'input_ids']
        """
        if isinstance(input, Tensor):
            if input.is_floating_point() or input.ndim not in (1, 2) or not input.numel():
                kind = str(input.dtype).removeprefix("torch.")
                raise MoeLensError(
                    f"expected token ids as integers [batch, pos] or [pos], got {list(input.shape)} of {kind}; give "
                    "at least one id"
                )
            return {"input_ids": (input if input.ndim > 1 else input.unsqueeze(0)).to(self.device)}
        if self.tokenizer is None:
            raise MoeLensError(
                "this model has no tokenizer; pass token ids, or give one to moelens.hook(model, tokenizer)"
            )
        texts = [input] if isinstance(input, str) else [*input] if isinstance(input, Sequence) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise MoeLensError(
                f"expected a text, a list of texts or a tensor of token ids, got {input!r:.80}; give one"
            )
        padding = len(texts) > 1
        if padding and self.tokenizer.pad_token is None:
            raise MoeLensError("the tokenizer has no padding token; run texts one by one, or set tokenizer.pad_token")
        options: dict[str, Any] = {"padding": True, "padding_side": padding_side} if padding else {}
        encoded = self.tokenizer(texts, return_tensors="pt", **options)
        if encoded["input_ids"].shape[-1] == 0:
            raise MoeLensError(f"expected a text with at least one token, got {texts[0]!r}; give one that is not empty")
        return {k: encoded[k].to(self.device) for k in ("input_ids", "attention_mask")}

    def to_tokens(self, text: str | Sequence[str]) -> Tensor:
        """Return the token ids `[batch, pos]` of a text, with the special tokens that the tokenizer adds.

        Args:
            text: a text, or texts, which are padded on the right.

        Example:
            >>> tokens = demo_model.to_tokens("先生がいらっしゃいました。")
            >>> tokens.dtype, tokens.ndim
            (torch.int64, 2)
        """
        return self.to_inputs(text)["input_ids"]

    def to_str_tokens(self, text: str) -> list[str]:
        """Return what each token of a text stands for in it.

        A character that several tokens share belongs to each of them. A token that stands for nothing in the text, such
        as a special token, is given as the tokenizer writes it.

        Args:
            text: a text.

        Example:
            >>> demo_model.to_str_tokens("先生が")[-1]
            'が'
        """
        ids = self.to_tokens(text)[0].tolist()
        spans = token_spans(self.tokenizer, text, ids)
        written = self.tokenizer.convert_ids_to_tokens(ids)
        return [text[a:b] or token for a, b, token in zip(spans.start, spans.end, written, strict=True)]

    @torch.no_grad()
    def generate(self, input: str | Sequence[str] | Tensor, **kwargs: Any) -> Any:
        """Continue texts with transformers' `generate`, in evaluation mode; hooks run in every step.

        Args:
            input: a text, texts (padded on the left) or token ids `[batch, pos]` or `[pos]`.
            kwargs: arguments of transformers' `generate`, such as `max_new_tokens`.

        Returns:
            For a text the whole text, prompt included, without special tokens; for texts a list of them; for ids what
            `generate` returns.

        Example:
            >>> text = demo_model.generate("先生が", max_new_tokens=3, do_sample=False)
            >>> text.startswith("先生が")
            True
        """
        self._require_hooked()
        inputs = self.to_inputs(input, padding_side="left")
        prompt = inputs["input_ids"].shape[1]
        turns, running = self._turns, self.running
        with turns, evaluating(self.hf_model), running.generation(self.hf_model, prompt, outer=turns.passes):
            output = self.hf_model.generate(**inputs, **kwargs)
        if isinstance(input, Tensor):
            return output
        texts = self.tokenizer.batch_decode(getattr(output, "sequences", output), skip_special_tokens=True)
        return texts[0] if isinstance(input, str) else texts

    # Hooks

    def run_with_cache(self, *args: Any, return_cache_object: bool = True, **kwargs: Any) -> Any:
        """Run the model in evaluation mode and keep what passes its hook points, as TransformerLens's method does.

        Args:
            args: as in `forward`.
            return_cache_object: whether to return the cache as an `ActivationCache`; else as a dict.
            kwargs: as in `forward`, and TransformerLens's: `names_filter` (names or a function of a name; default all),
                `pos_slice`, `device`, `remove_batch_dim`, `incl_bwd`.

        Returns:
            What `forward` returns, and the cache by hook name; its `mask` says which tokens are not padding. Of a layer
            that runs several times in a pass (a looped model) the cache holds the last time under the plain name, and
            the times before under the name with "@1", "@2", ….

        Example:
            >>> logits, cache = demo_model.run_with_cache(
            ...     "先生がいらっしゃいました。", names_filter="blocks.3.mlp.hook_expert_weights"
            ... )
            >>> list(cache), cache["blocks.3.mlp.hook_expert_weights"].shape[-1] == demo_model.shape.n_experts
            (['blocks.3.mlp.hook_expert_weights'], True)
        """
        self._require_hooked()
        with self._turns, evaluating(self.hf_model):
            output, cache = super().run_with_cache(*args, **kwargs)
            mask = self.running.whole_mask()
        if not return_cache_object:
            return output, cache
        mask = Slice.unwrap(kwargs.get("pos_slice")).apply(mask, dim=1)
        remove = bool(kwargs.get("remove_batch_dim")) and len(mask) == 1
        return output, MoECache(cache, self, mask[0] if remove else mask, not remove)

    def get_caching_hooks(
        self,
        names_filter: Any = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
        """Make the hooks of `run_with_cache`, as TransformerLens's method of this name does.

        It slices positions on the second axis, which is that of positions at every point of this model.

        Args:
            names_filter: a name, names, or a function of a name that says whether to keep the point; None keeps all.
            incl_bwd: keep gradients too.
            device: where to keep the tensors; None leaves them where they are.
            remove_batch_dim: leave out the axis of the batch, which has to be of size 1.
            cache: a dictionary to write to; None makes one.
            pos_slice: the positions to keep; None for all.

        Returns:
            The dictionary, which a pass with the hooks fills with tensors `[batch, pos, …]` by name; the forward hooks;
            and the backward hooks.
        """
        saved: dict[str, Tensor] = {} if cache is None else cache
        positions = Slice.unwrap(pos_slice)
        times: Counter[str] = Counter()

        def save(tensor: Tensor, hook: Any, suffix: str = "") -> None:
            value = positions.apply(tensor.detach(), dim=1)
            # A copy, as later hooks may edit the tensor in place, and a view would keep all of it in memory.
            value = value.clone() if device is None else value.to(device, copy=True)
            name = hook.name + suffix
            if times[name]:
                saved[f"{name}@{times[name]}"] = saved[name]
            times[name] += 1
            saved[name] = value[0] if remove_batch_dim and len(value) == 1 else value

        names = self.select(names_filter)
        differentiable = [n for n in names if not self.hook_dict[n].no_gradient] if incl_bwd else []
        backward = [(n, lambda t, hook: save(t, hook, "_grad")) for n in differentiable]
        return saved, [(n, save) for n in names], backward

    def select(self, names_filter: str | list[str] | Callable[[str], bool] | None) -> list[str]:
        """Return the hook names that a TransformerLens `names_filter` selects.

        Args:
            names_filter: a name, names, a function that is true for the wanted names, or None for all.

        Raises:
            UnknownNameError: a name does not exist; the message suggests those most like it.
            MoeLensError: this model does not offer a point.

        Example:
            >>> demo_model.select(lambda name: name.endswith("2.mlp.hook_expert_indices"))
            ['blocks.2.mlp.hook_expert_indices']
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
            raise MoeLensError(f"this model does not offer '{name}': {self.refused[name]}")
        if name not in self.hook_dict:
            moe_layers = self._installation.taps
            layer = name.split(".")[1] if name.startswith("blocks.") and name.count(".") else ""
            if layer.isdigit() and int(layer) >= len(self.blocks):
                raise unknown("layer", layer, range(len(self.blocks)), f"in hook name {name!r}")
            if layer.isdigit() and int(layer) not in moe_layers and "mlp" in name:
                first, last = min(moe_layers), max(moe_layers)
                raise unknown("hook", name, [], f"layer {layer} is dense; the MoE layers are {first} to {last}")
            raise unknown("hook", name, self.hook_dict)

    def add_hook(self, name: Any, hook: Any, *args: Any, **kwargs: Any) -> None:
        """Add a hook that stays until `reset_hooks`, as TransformerLens's method of this name does.

        Args:
            name: a hook name, or a function that is true for the wanted names.
            hook: a function `f(tensor, hook)`. It returns a tensor to edit the computation, or None.
            args: as in TransformerLens.
            kwargs: as in TransformerLens.

        Raises:
            UnknownNameError: the name does not exist.
            MoeLensError: this model does not offer the point.

        Example:
            >>> demo_model.add_hook("blocks.3.mlp.hook_topk_weights", lambda weights, hook: print(hook.name))
            >>> _ = demo_model("はい。")
            blocks.3.mlp.hook_topk_weights
            >>> demo_model.reset_hooks()
        """
        if isinstance(name, str):
            self._require_point(name)
        super().add_hook(name, hook, *args, **kwargs)

    @contextmanager
    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Iterator[HookedMoE]:
        """Run with hooks that are removed at the end of the `with` block, as TransformerLens's method does.

        Args:
            fwd_hooks: pairs of a hook name and a function `f(tensor, hook)`, which returns a tensor to edit the
                computation, or None.
            bwd_hooks: the same for gradients.
            args: as in TransformerLens.
            kwargs: as in TransformerLens.

        Raises:
            UnknownNameError: a name does not exist.
            MoeLensError: this model does not offer a point.

        Example:
            Halve the weights of all chosen experts of a layer:

            >>> halve = ("blocks.3.mlp.hook_topk_weights", lambda weights, hook: weights * 0.5)
            >>> with demo_model.hooks(fwd_hooks=[halve]):
            ...     edited = demo_model("先生がいらっしゃいました。")
            >>> torch.equal(edited, demo_model("先生がいらっしゃいました。"))
            False
        """
        for name, _ in (*fwd_hooks, *bwd_hooks):
            if isinstance(name, str):
                self._require_point(name)
        with self._turns, super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **kwargs):
            yield self

    @contextmanager
    def intervene(self, *interventions: SupportsHooks) -> Iterator[HookedMoE]:
        """Run with interventions, such as experts removed or forced; the `with` block's end restores the model.

        Args:
            interventions: see `moelens.interventions`. They act in the order of the computation (selection, weights,
                outputs). At the same point of it they act in the order given, those of an outer `intervene` first.

        Example:
            >>> from moelens.interventions import remove
            >>> with demo_model.intervene(remove(layer=3, experts=[5])):
            ...     _, cache = demo_model.run_with_cache("先生がいらっしゃいました。")
            >>> cache["blocks.3.mlp.hook_expert_weights"][..., 5].any().item()
            False
        """
        with self.hooks(fwd_hooks=[pair for i in interventions for pair in i.hooks(self)]):
            yield self

    # The model underneath

    @property
    def device(self) -> torch.device:
        """The device that token ids are moved to."""
        return input_device(self.hf_model)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights."""
        dtype: torch.dtype = self.hf_model.dtype
        return dtype

    @property
    def format(self) -> Format:
        """The format of the weights in memory, what is captured in it and what is not."""
        return describe_format(self.hf_model, self.stored_format)

    @property
    def revision(self) -> str | None:
        """The commit of the hub repository that the model came from; None for other models."""
        return getattr(self.hf_model.config, "_commit_hash", None)

    @property
    def context_length(self) -> int | None:
        """The length of the longest input in tokens; None where the configuration does not say."""
        config = self.hf_model.config
        return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)

    @property
    def cfg(self) -> SimpleNamespace:
        """What TransformerLens's `ActivationCache` reads of a model's configuration."""
        return SimpleNamespace(n_layers=self.shape.n_layers, d_model=self.shape.d_model)

    @property
    def rules(self) -> dict[int, RouterRule]:
        """The rules by which the routers choose, by layer, without layers whose router follows no known rule."""
        return {layer: tap.rule for layer, tap in self._installation.taps.items() if tap.rule}

    @property
    def rule(self) -> str:
        """The rule of the first router that has one, in words; "" if none has."""
        return next((str(rule) for rule in self.rules.values()), "")

    @property
    def experts_implementation(self) -> str:
        """The implementation that computes the experts while there are no hooks inside them."""
        return next(iter(self._installation.taps.values())).native

    def _leave_pass(self) -> None:
        if self._turns.in_pass():
            self.running.leave(self._turns.passes - 1)
            self._turns.end_pass()

    def _note_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._turns.begin_pass(sys._getframe(2))  # torch's call of the model, which calls `TorchHook`
        self.running.enter(self._turns.passes - 1)
        self._installation.require_installed()
        ids = kwargs.get("input_ids", args[0] if args else None)
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        moe_layers = [tap.layer for tap in self._installation.taps.values()]
        if (layer := changed_layer(module, moe_layers, self._links)) is not None:
            raise MoeLensError(
                f"layer {layer}, its router or its experts were replaced after the model was hooked, as adding an "
                "adapter does; call .unhook() and hook the model again"
            )
        cache: Any = kwargs.get("cache", kwargs.get("past_key_values"))
        if isinstance(ids, Tensor):
            self.running.begin(
                ids.shape[0],
                ids.shape[1],
                ids if ids.ndim == 2 else None,
                mask=kwargs.get("attention_mask"),
                start=int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0,
            )

    def _require_hooked(self) -> None:
        if not self._handles:
            raise MoeLensError("this model was unhooked; call moelens.hook(model, tokenizer) again")
        require_not_compiled(self.hf_model)

    def unhook(self) -> Any:
        """Restore the transformers model, without hooks and with its own configuration.

        Returns:
            The model that was hooked, with its wrapper if it has one.
        """
        if hasattr(self, "hook_dict"):
            self.reset_hooks(including_permanent=True)
        self._installation.remove()
        while self._handles:
            self._handles.pop().remove()
        while self._restore_modules:
            self._restore_modules.pop()()
        return self._given[0]

    def to_transformer_bridge(self) -> Any:
        """Return TransformerLens's `TransformerBridge` on the same weights, with these hook points in its `hook_dict`.

        The bridge puts components of its own into the transformers model; `unhook` takes them out again.

        Raises:
            UnsupportedModelError: TransformerLens has no adapter for the architecture.
        """
        from moelens.models.bridge import build_bridge

        self._require_hooked()
        bridge, restore = build_bridge(self.hf_model, self.hook_dict, tokenizer=self.tokenizer, name=self.name)
        self._restore_modules.append(restore)
        return bridge

    def __repr__(self) -> str:
        s = self.shape
        shared = f" + {s.n_shared} shared" if s.n_shared else ""
        return (
            f"HookedMoE({self.name!r}: {s.model_type}, {s.n_layers} layers, {len(s.moe_layers)} MoE x {s.n_experts} "
            f"experts{shared}, top-{s.top_k}, {len(self.hook_dict)} hook points)"
        )


def _next_token_loss(logits: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """The mean cross-entropy of the tokens that follow another token, neither of them padding."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None or logits.shape[:2] != ids.shape:
        raise MoeLensError(
            "a loss needs token ids and the logits of every position; give ids without logits_to_keep, or labels"
        )
    said = ids[:, 1:].to(logits.device)
    if mask is not None and mask.ndim == 2:
        said = said.masked_fill(((mask[:, 1:] == 0) | (mask[:, :-1] == 0)).to(said.device), -100)
    return nn.functional.cross_entropy(widen(logits[:, :-1]).flatten(0, 1), said.flatten())


def hook(hf_model: Any, tokenizer: Any = None, *, name: str = "", check: bool = True) -> HookedMoE:
    """Hook a transformers model in place; `HookedMoE.unhook` gives it back unchanged.

    Args:
        hf_model: a Mixture-of-Experts model of transformers, on any device or dispatched by accelerate.
        tokenizer: its tokenizer, so that the model can be given text.
        name: the model's name in recordings and reports; by default that of the transformers model.
        check: whether to compare the model with itself on a short input; without it no router's rule is known.

    Returns:
        The hooked model.

    Raises:
        UnsupportedModelError: the model has no experts, or moelens cannot reach them.
        CheckError: a router returns NaN or experts that do not exist, or the tokenizer belongs to another model.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> config = MixtralConfig(vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                        num_attention_heads=4, num_key_value_heads=2)
        >>> model = hook(MixtralForCausalLM(config), name="tiny")
        >>> model
        HookedMoE('tiny': mixtral, 2 layers, 2 MoE x 8 experts, top-2, 28 hook points)
        >>> type(model.unhook()).__name__
        'MixtralForCausalLM'
    """
    return HookedMoE(hf_model, tokenizer, name=name, check=check)
