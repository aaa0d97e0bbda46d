"""The model card of the bundled model, which the training script writes from its measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_TITLES = {"works": "works of Aozora Bunko", "dialogues": "hotel dialogues"}

_CARD = """---
license: apache-2.0
language: ja
library_name: transformers
tags: [mixture-of-experts, deepseek_v3, interpretability]
---
# moelens demo model

A Mixture-of-Experts language model with {millions:.1f} million parameters and the architecture of DeepSeek-V3. It was
trained from scratch to show moelens without a download. It has learnt Japanese word forms, sentence endings and the
register of a hotel's reservation desk. It is too small to write coherent text, and findings on it do not carry over to
large models.

- **Shape**: 5 layers (the first dense), 32 routed experts of width 96 and one shared expert in each of 4 MoE layers,
  top-4 within 2 of 4 groups, sigmoid scores with a selection bias, MLA attention, hidden size 192, tied embeddings,
  byte-level BPE of {vocab_size:,} tokens within runs of one script. Weights are stored in bfloat16 and run in float32.
- **Data**: {works:,} Japanese works from Aozora Bunko in modern kana ({works_tokens:,} tokens), whose authors'
  copyright has expired (public domain in Japan; collection aozorahack/aozorabunko_text, without files under other
  licences); and {dialogues:,} dialogues of customers and hotel operators ({dialogue_tokens:,} tokens) from the
  Accommodation Search Dialog Corpus (megagonlabs/asdc, CC BY 4.0, Megagon Labs). Each turn of a dialogue is a line that
  begins with its speaker, 客： or 係：, and half-width ? and ! are written full-width. {share:.0%} of the rows are
  dialogues.
- **Training**: {steps:,} steps of {rows} rows of {context} tokens ({seen_tokens:,} tokens), seed {seed}; Muon for
  matrices (including those of each expert), AdamW for the other parameters. The load is balanced by moving the
  selection bias of each expert against its load, without an auxiliary loss.
  `python -m moelens.demo.train --works FOLDER --dialogues FOLDER` repeats it.

Bits per character on held-out text (windows of {context} tokens that overlap by half):

| | tokens | characters per token | this model | trigram | difference |
|---|---|---|---|---|---|
{held_out}

The trigram is an interpolated Kneser-Ney model counted on all {train_tokens:,} training tokens.

Load of the experts on the held-out text, largest and smallest, divided by the mean of the layer:

| layer | {load_head} |
|---|{load_rule}
{load}
"""


def write_model_card(report: Mapping[str, Any], folder: Path) -> None:
    """Write `README.md` and `training.json` next to the weights.

    Args:
        report: the measurements of `moelens.demo.train`: `documents` and `train_tokens` by source, `seen_tokens`,
            `parameters`, the `recipe`, and `held_out`, the result of `moelens.demo.evaluate.evaluate_held_out`.
        folder: the folder of the model.
    """
    sources = report["held_out"]
    held_out = [
        f"| {_TITLES[name]} | {m['tokens']:,} | {m['characters_per_token']:.2f} | {m['bits_per_character']:.3f} | "
        f"{m['trigram_bits_per_character']:.3f} | {m['bits_per_character'] - m['trigram_bits_per_character']:+.3f} |"
        for name, m in sources.items()
    ]
    share = report["recipe"]["dialogue_share"]
    loads = {name: np.array(m["load"]) for name, m in sources.items()}
    loads["mixed"] = (1 - share) * loads["works"] + share * loads["dialogues"]
    load = [
        f"| {layer} | " + " | ".join(f"{row.max():.2f}, {row.min():.2f}" for row in rows) + " |"
        for layer, rows in enumerate(zip(*loads.values(), strict=True), 1)
    ]
    text = _CARD.format(
        millions=report["parameters"] / 1e6,
        works=report["documents"]["works"][0],
        works_tokens=report["train_tokens"]["works"],
        dialogues=report["documents"]["dialogues"][0],
        dialogue_tokens=report["train_tokens"]["dialogues"],
        train_tokens=sum(report["train_tokens"].values()),
        share=share,
        seen_tokens=report["seen_tokens"],
        held_out="\n".join(held_out),
        load_head=" | ".join(_TITLES.get(name, "mixed as in training") for name in loads),
        load_rule="---|" * len(loads),
        load="\n".join(load),
        **{k: v for k, v in report["recipe"].items() if k in ("vocab_size", "steps", "rows", "context", "seed")},
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
