"""The card of the bundled model, written by the script that trained it from what it measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """What was done and what was measured. Loads are relative to the mean of their layer (1 = even)."""

    corpus: str
    documents: tuple[int, int]
    train_tokens: int
    seen_tokens: int
    parameters: int
    recipe: dict[str, Any]
    held_out_tokens: int
    characters_per_token: float
    nats_per_token: float
    bits_per_character: float
    trigram_nats_per_token: float
    trigram_bits_per_character: float
    trigram_nats_per_token_same_number: float
    trigram_bits_per_character_same_number: float
    load_max: list[float]
    load_min: list[float]


CARD = """---
license: apache-2.0
language: ja
library_name: transformers
tags: [mixture-of-experts, deepseek_v3, interpretability]
---
# moelens demo model

A {millions:.1f} M parameter Mixture-of-Experts language model of DeepSeek-V3's architecture, trained from scratch to
show what moelens does without a download. It has learnt Japanese word forms and sentence endings; it is far too small
to write sense, and nothing found in it says anything about a large model.

- **Shape**: 5 layers (the first dense), 32 routed experts of width 96 and one shared expert in each of 4 MoE layers,
  top-4 within 2 of 4 groups, sigmoid scores with a selection bias, MLA attention, hidden size 192, tied embeddings,
  byte-level BPE of {vocab_size:,} tokens within runs of one script. Weights are stored in bfloat16, run in float32.
- **Data**: {corpus}
  {train_docs:,} works for training ({train_tokens:,} tokens, at most {max_chars:,} characters of each work),
  {held_docs} other works held out.
- **Training**: {steps:,} steps of {rows} rows of {context} tokens ({seen_tokens:,} tokens), seed {seed}; Muon for
  matrices, AdamW for the rest; balanced by moving each expert's selection bias against its load, no auxiliary loss.
  `python -m moelens.demo.train --corpus FOLDER` repeats it.

Held-out text, {held_out_tokens:,} tokens of {characters_per_token:.2f} characters:

| | nats a token | bits a character |
|---|---|---|
| this model (windows of {context} tokens, half overlapping) | {nats_per_token:.3f} | {bits_per_character:.3f} |
| interpolated Kneser-Ney trigram, as many tokens as the model saw | {trigram_same} |
| interpolated Kneser-Ney trigram, all {train_tokens:,} training tokens | {trigram_all} |

Load of the experts on the held-out text, relative to the mean of the layer:

| layer | largest | smallest |
|---|---|---|
{load}
"""


def write_card(report: Report, folder: Path) -> None:
    """Write `README.md` and `training.json` beside the weights."""
    rows = [
        f"| {i + 1} | {high:.2f} | {low:.2f} |"
        for i, (high, low) in enumerate(zip(report.load_max, report.load_min, strict=True))
    ]
    values = asdict(report) | report.recipe
    text = CARD.format(
        millions=report.parameters / 1e6,
        train_docs=report.documents[0],
        held_docs=report.documents[1],
        load="\n".join(rows),
        trigram_all=f"{report.trigram_nats_per_token:.3f} | {report.trigram_bits_per_character:.3f}",
        trigram_same=f"{report.trigram_nats_per_token_same_number:.3f} | "
        f"{report.trigram_bits_per_character_same_number:.3f}",
        **{k: v for k, v in values.items() if k != "recipe"},
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
