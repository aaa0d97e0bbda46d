"""The card of the bundled model, written by the script that trained it from what it measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TITLES = {"works": "works of Aozora Bunko", "dialogues": "hotel dialogues"}

CARD = """---
license: apache-2.0
language: ja
library_name: transformers
tags: [mixture-of-experts, deepseek_v3, interpretability]
---
# moelens demo model

A {millions:.1f} M parameter Mixture-of-Experts language model of DeepSeek-V3's architecture, trained from scratch to
show what moelens does without a download. It has learnt Japanese word forms, sentence endings and the register of a
hotel's reservation desk; it is far too small to write sense, and nothing found in it says anything about a large model.

- **Shape**: 5 layers (the first dense), 32 routed experts of width 96 and one shared expert in each of 4 MoE layers,
  top-4 within 2 of 4 groups, sigmoid scores with a selection bias, MLA attention, hidden size 192, tied embeddings,
  byte-level BPE of {vocab_size:,} tokens within runs of one script. Weights are stored in bfloat16, run in float32.
- **Data**: {works:,} Japanese works from Aozora Bunko in modern kana ({works_tokens:,} tokens), whose authors'
  copyright has expired (public domain in Japan; collection aozorahack/aozorabunko_text, files under other licences
  left out); and {dialogues:,} dialogues of customers and hotel operators ({dialogue_tokens:,} tokens) from the
  Accommodation Search Dialog Corpus (megagonlabs/asdc, CC BY 4.0, Megagon Labs), each turn a line that begins with
  its speaker, 客： or 係：. Half-width ? and ! in the dialogues are written full-width. {share:.0%} of the rows are
  dialogues.
- **Training**: {steps:,} steps of {rows} rows of {context} tokens ({seen_tokens:,} tokens), seed {seed}; Muon for
  matrices (each expert's among them), AdamW for the rest; balanced by moving each expert's selection bias against its
  load, no auxiliary loss. `python -m moelens.demo.train --works FOLDER --dialogues FOLDER` repeats it.

Held-out text, bits a character (windows of {context} tokens, half overlapping):

| | tokens | characters a token | this model | trigram | difference |
|---|---|---|---|---|---|
{held_out}

The trigram is an interpolated Kneser-Ney trigram counted on all {train_tokens:,} training tokens.

Load of the experts on the held-out text, largest and smallest over the mean of the layer:

| layer | {load_head} |
|---|{load_rule}
{load}
"""


def write_card(report: Mapping[str, Any], folder: Path) -> None:
    """Write `README.md` and `training.json` beside the weights.

    Args:
        report: as `moelens.demo.train` gathers it: `documents` and `train_tokens` by source, `seen_tokens`,
            `parameters`, the `recipe`, and what `moelens.demo.evaluate.measure` returned, `held_out` by source.
        folder: of the model.
    """
    sources = report["held_out"]
    held_out = [
        f"| {TITLES[name]} | {m['tokens']:,} | {m['characters_per_token']:.2f} | {m['bits_per_character']:.3f} | "
        f"{m['trigram_bits_per_character']:.3f} | {m['bits_per_character'] - m['trigram_bits_per_character']:+.3f} |"
        for name, m in sources.items()
    ]
    pairs = [zip(m["load_max"], m["load_min"], strict=True) for m in sources.values()]
    load = [
        f"| {layer} | " + " | ".join(f"{high:.2f}, {low:.2f}" for high, low in loads) + " |"
        for layer, loads in enumerate(zip(*pairs, strict=True), 1)
    ]
    text = CARD.format(
        millions=report["parameters"] / 1e6,
        works=report["documents"]["works"][0],
        works_tokens=report["train_tokens"]["works"],
        dialogues=report["documents"]["dialogues"][0],
        dialogue_tokens=report["train_tokens"]["dialogues"],
        train_tokens=sum(report["train_tokens"].values()),
        share=report["recipe"]["dialogue_share"],
        seen_tokens=report["seen_tokens"],
        held_out="\n".join(held_out),
        load_head=" | ".join(TITLES[name] for name in sources),
        load_rule="---|" * len(sources),
        load="\n".join(load),
        **{k: v for k, v in report["recipe"].items() if k in ("vocab_size", "steps", "rows", "context", "seed")},
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
