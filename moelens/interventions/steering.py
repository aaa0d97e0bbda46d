"""`steer`: what a model writes while the selection scores of given experts are raised or lowered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from moelens.analysis.arrays import Floats
from moelens.analysis.expert_lists import ExpertList, read_experts
from moelens.analysis.tables import number, plain_table
from moelens.bars import progress_bar
from moelens.display import Plotted
from moelens.errors import MoeLensError
from moelens.interventions.controls import control_interventions, expert_usage
from moelens.interventions.intervention import Intervention
from moelens.interventions.operations import shift
from moelens.interventions.scoring import Batch, share_interval
from moelens.japanese.bundled_prompts import prompts as bundled_prompts
from moelens.japanese.sentence_register import register
from moelens.models.hooked_check import require_hooked
from moelens.models.running import evaluating
from moelens.recording.generation import Greedy, generate_tokens
from moelens.saved import SavedRows
from moelens.texts import Texts

if TYPE_CHECKING:
    from moelens.models.hooked import HookedMoE

STRENGTHS = (-0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4)
"""What is added to the selection scores by default. Sigmoid and softmax scores are between 0 and 1."""
_CONTROL_DRAWS = 20
_TOP_P = 0.9
_NAMED = 8
_ENDS = "。！？!?」』\n"


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of sentences.

    Attributes:
        share: mean over prompts of the share of the sentences written after the prompt.
        low, high: 95 % interval over prompts (Wilson's, with their effective number).
        control: the same mean for matched control sets, averaged over them.
        control_low, control_high: the smallest and the largest of the control sets.
    """

    share: float
    low: float
    high: float
    control: float
    control_low: float
    control_high: float


@dataclass(frozen=True, kw_only=True)
class Steered:
    """What a model writes at one strength.

    Attributes:
        strength: what is added to the selection scores, times the bias of an expert where a list gives biases.
        sentences: number of complete sentences written.
        polite: the share whose last predicate is polite (敬体: です, ます, ください).
        honorific: the share with an honorific beyond です and ます, by `moelens.japanese.register`.
        perplexity: perplexity of the written tokens for the model without steering; it rises as the text gets worse.
        control_perplexity: the same for the control sets.
        example: a prompt and what was written after it.
    """

    strength: float
    sentences: int
    polite: Share
    honorific: Share
    perplexity: float
    control_perplexity: float
    example: str


@dataclass(frozen=True, repr=False, kw_only=True)
class Steering(Plotted, SavedRows):
    """The dose–response of steering: styles of what is written by strength, beside matched sets of other experts.

    Attributes:
        model: name of the model.
        experts: layer, id and bias of each expert.
        controls: number of control sets.
        prompts: number of prompts.
        new_tokens: number of tokens written after each prompt, at most.
        seed: seed of the sampling and of the control sets.
        steps: what is written at each strength.
    """

    FORMAT: ClassVar[str] = "moelens.steering/1"

    model: str
    experts: tuple[tuple[int, int, float], ...]
    controls: int
    prompts: int
    new_tokens: int
    seed: int
    steps: tuple[Steered, ...]

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each strength."""
        rows = []
        for step in self.steps:
            row = asdict(step)
            for name in ("polite", "honorific"):
                row |= {name if key == "share" else f"{name}_{key}": v for key, v in row.pop(name).items()}
            rows.append(row)
        return rows

    def table(self, lang: str | Texts = "en") -> str:
        """Return a plain table with a row for each strength, in English ("en") or "ja"."""
        say = Texts(lang)
        named = ", ".join(f"L{layer} E{expert}" for layer, expert, _ in self.experts[:_NAMED])
        if (more := len(self.experts) - _NAMED) > 0:
            named = say("steering.more", named=named, n=more)
        share = ("interval", "controls")
        columns = ("strength", "sentences", "polite", *share, "honorific", *share, "perplexity", "controls")
        rows = [
            (
                f"{s.strength:+g}",
                f"{s.sentences:,}",
                *_share_cells(s.polite),
                *_share_cells(s.honorific),
                number(s.perplexity),
                number(s.control_perplexity),
            )
            for s in self.steps
        ]
        size = {"prompts": f"{self.prompts:,}", "tokens": f"{self.new_tokens:,}"}
        head = say("steering.head", model=self.model, named=named, **size)
        table = plain_table([say(f"steering.{name}") for name in columns], rows)
        return f"{head}\n{table}\n{say('steering.about', controls=self.controls)}"

    def __repr__(self) -> str:
        return self.table()


def _share_cells(share: Share) -> tuple[str, str, str]:
    interval = f"{number(share.low)}–{number(share.high)}" if np.isfinite(share.low) else "–"
    controls = f"{number(share.control_low)}–{number(share.control_high)}" if np.isfinite(share.control) else "–"
    return number(share.share), interval, controls


def steer(
    model: HookedMoE,
    prompts: Iterable[str] | None,
    experts: ExpertList | str | Path | Iterable[Sequence[float]],
    strengths: Sequence[float] = STRENGTHS,
    *,
    controls: int = 4,
    new_tokens: int = 48,
    seed: int = 0,
    progress: bool | None = None,
) -> Steering:
    """Write continuations of prompts while the selection scores of experts are changed, and measure their style.

    For each strength, `strength` is added to the selection score of the experts in every forward pass, the model writes
    (sampling from the most likely 90 %, with the same random numbers at each strength), and the tagger finds the share
    of polite and of honorific sentences. The same is done with sets of other experts that do as much on the prompts.

    Args:
        model: the hooked model, with a tokenizer.
        prompts: beginnings of sentences; None uses `moelens.japanese.prompts()`.
        experts: pairs of a layer and an expert, or triples with a bias; or a list of biases that
            `moelens analyze --export-experts` wrote, or its file.
        strengths: what to add to the selection scores, times the bias of an expert where there are biases.
        controls: number of matched control sets, up to 20; 0 for none.
        new_tokens: the largest number of tokens to write after each prompt.
        seed: seed of the sampling and of the control sets.
        progress: show a progress bar; None shows it in a terminal or notebook.

    Returns:
        What was written at each strength, in order.

    Raises:
        UnknownNameError: the model has no such layer with experts.
        MoeLensError: there are no prompts, experts or strengths, the model has no such expert, or it cannot generate.

    Example:
        >>> result = moelens.steer(demo_model, ["今日は", "先生は"], [(3, 5)], [0.0, 0.2], controls=0, new_tokens=8)
        >>> [step.strength for step in result.steps]
        [0.0, 0.2]
    """
    require_hooked(model)
    given = steered_experts(experts, model.shape.n_experts)
    texts = list(bundled_prompts() if prompts is None else prompts)
    require_steering(texts, given, strengths, controls, new_tokens)
    unit = tuple(shift(layer, [expert], bias) for layer, expert, bias in given)
    for intervention in unit:
        intervention.require(model)
    sets = [unit]
    if controls:
        sets += control_interventions(expert_usage(model, texts), unit, _CONTROL_DRAWS, seed)[0][:controls]
    writer = _Writer(model, texts, new_tokens, seed)
    runs = [(strength, interventions) for strength in strengths for interventions in sets]
    written = [
        writer.write([replace(i, value=i.value * strength) for i in interventions])
        for strength, interventions in progress_bar(runs, desc="steering", show=progress)
    ]
    steps = tuple(
        _summarise(strength, written[at * len(sets) : (at + 1) * len(sets)]) for at, strength in enumerate(strengths)
    )
    return Steering(
        model=model.name,
        experts=given,
        controls=len(sets) - 1,
        prompts=len(texts),
        new_tokens=new_tokens,
        seed=seed,
        steps=steps,
    )


def require_steering(
    prompts: Sequence[str] | None,
    experts: Sequence[object],
    strengths: Sequence[float],
    controls: int,
    new_tokens: int,
) -> None:
    """Raise `MoeLensError` if an argument of `steer` is empty or out of its range; None stands for bundled prompts."""
    if not (experts and len(strengths) and (prompts is None or len(prompts))):
        raise MoeLensError("expected one or more prompts, experts and strengths, got none of one of them; give it")
    if not 0 <= controls <= _CONTROL_DRAWS:
        raise MoeLensError(f"expected 0 to {_CONTROL_DRAWS} control sets, got {controls}; give another number")
    if new_tokens < 1:
        raise MoeLensError(f"expected new_tokens to be at least 1, got {new_tokens}; give a number such as 48")
    if not all(math.isfinite(strength) for strength in strengths):
        raise MoeLensError(f"expected finite strengths, got {[*strengths]}; give numbers such as 0.2")


def steered_experts(experts: Any, n_experts: int) -> tuple[tuple[int, int, float], ...]:
    """Return layer, id and bias of each expert that `steer` is given, for a model with so many experts in each layer.

    Raises:
        MoeLensError: it is a list of experts to keep.
        CheckError: the file holds something else.
    """
    if isinstance(experts, (str, Path)):
        experts = read_experts(experts, n_experts)
    if isinstance(experts, ExpertList):
        if experts.form != "bias":
            raise MoeLensError("expected a list of biases to steer by, got a list of experts to keep; export biases")
        return tuple(experts.biases)
    return tuple((int(e[0]), int(e[1]), float(e[2]) if len(e) > 2 else 1.0) for e in experts)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What was written in one run: `[prompt]` shares, NaN without a complete sentence, and log-probabilities."""

    polite: Floats
    honorific: Floats
    sentences: int
    perplexity: float
    example: str


class _Writer:
    """Writes after prompts and measures what is written."""

    def __init__(self, model: HookedMoE, prompts: Sequence[str], new_tokens: int, seed: int) -> None:
        self._model, self._prompts, self._seed = model, prompts, seed
        self._settings = Greedy.of(model).configuration(new_tokens)
        self._settings.do_sample, self._settings.top_p, self._settings.top_k = True, _TOP_P, 0
        ids = [model.to_tokens(prompt)[0].cpu() for prompt in prompts]
        width = max(map(len, ids))
        self._ids = torch.full((len(ids), width), self._settings.pad_token_id)
        self._mask = torch.zeros_like(self._ids)
        for row, prompt in enumerate(ids):
            self._ids[row, width - len(prompt) :] = prompt
            self._mask[row, width - len(prompt) :] = 1

    @torch.no_grad()
    def write(self, interventions: Sequence[Intervention]) -> _Written:
        model = self._model
        with torch.random.fork_rng(), model.intervene(*[i for i in interventions if i.value]):
            torch.manual_seed(self._seed)
            new = torch.from_numpy(generate_tokens(model, self._ids, self._mask, self._settings))
        ends = torch.isin(new, torch.tensor(self._settings.eos_token_id or [-1]))
        keep = (ends.cumsum(1) == 0).long()
        texts = [
            model.tokenizer.decode(row[kept.bool()].tolist(), skip_special_tokens=True)
            for row, kept in zip(new, keep, strict=True)
        ]
        shares = np.array([_styles(prompt, text) for prompt, text in zip(self._prompts, texts, strict=True)], float)
        with np.errstate(invalid="ignore", divide="ignore"):
            polite, honorific = shares[:, 0] / shares[:, 2], shares[:, 1] / shares[:, 2]
        return _Written(
            polite=polite,
            honorific=honorific,
            sentences=int(shares[:, 2].sum()),
            perplexity=self._perplexity(new, keep),
            example=self._prompts[0] + texts[0],
        )

    def _perplexity(self, new: torch.Tensor, keep: torch.Tensor) -> float:
        """Perplexity of the written tokens for the model without interventions."""
        batch = Batch(
            rows=list(range(len(new))),
            ids=torch.cat([self._ids, new], 1).to(self._model.device),
            mask=torch.cat([self._mask, keep], 1).bool().to(self._model.device),
            start=0,
        )
        with evaluating(self._model):
            logits = batch.logits(self._model)[:, self._ids.shape[1] - 1 : -1].float()
        chosen = logits.log_softmax(-1).gather(-1, new.to(logits.device).unsqueeze(-1)).squeeze(-1).cpu() * keep
        return float(torch.exp(-chosen.sum() / keep.sum().clamp(min=1)))


def _styles(prompt: str, text: str) -> tuple[int, int, int]:
    """Return the numbers of polite, of honorific and of all complete sentences that end in `text` after `prompt`."""
    whole = prompt + text
    found = [s for s in register(whole) if s.end > len(prompt) and whole[s.start : s.end].rstrip()[-1:] in _ENDS]
    return sum(s.ending == "敬体" for s in found), sum(s.register == "honorific" for s in found), len(found)


def _summarise(strength: float, written: Sequence[_Written]) -> Steered:
    """Summarise the runs at one strength: the first with the given experts, the others with control sets."""
    first, *others = written

    def share(name: str) -> Share:
        values = getattr(first, name)
        counted = values[np.isfinite(values)]
        low, high = share_interval(counted, range(len(counted)))
        means = [float(np.nanmean(v)) for other in others if np.isfinite(v := getattr(other, name)).any()]
        return Share(
            share=float(counted.mean()) if len(counted) else float("nan"),
            low=low,
            high=high,
            control=float(np.mean(means)) if means else float("nan"),
            control_low=min(means, default=float("nan")),
            control_high=max(means, default=float("nan")),
        )

    return Steered(
        strength=float(strength),
        sentences=first.sentences,
        polite=share("polite"),
        honorific=share("honorific"),
        perplexity=first.perplexity,
        control_perplexity=float(np.mean([o.perplexity for o in others])) if others else float("nan"),
        example=first.example,
    )
