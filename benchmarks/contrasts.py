"""Measure what a model prefers on the crossed contrasts and minimal pairs, with a trigram of its training text beside.

    python -m benchmarks.contrasts [MODEL] [--works FOLDER --dialogues FOLDER] [--split test] [--json]

Accuracy is the share of contrasts with a positive interaction, [log P(X|A) − log P(Y|A)] − [log P(X|B) − log P(Y|B)];
of pairs, with log P(good) above log P(bad). Chance is 0.5, and intervals are over frames (`moelens.prefer`). With the
two folders, an interpolated Kneser-Ney trigram counted on all training tokens of the bundled model is measured too:
what a trigram also gets right is not grammar.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import moelens
from moelens.analysis.tables import number, plain_table, signed_number
from moelens.interventions import Preferences
from moelens.interventions.scoring import pair_texts, split_items
from moelens.japanese import contrasts, pairs

HEADER = ("kind", "items", "frames", "accuracy", "95 %", "margin", "95 %")


def trigram_preferences(tokenizer: Any, folders: dict[str, Path], items: Sequence[Any]) -> Preferences:
    """Measure what a trigram counted on the training texts prefers."""
    from moelens.demo.texts import encode, read_documents
    from moelens.demo.trigram import trigram_nats

    train = np.concatenate([encode(tokenizer, read_documents(folder, "train")) for folder in folders.values()])
    scored, owner = split_items(items)
    ids = [np.array([0, 0, *tokenizer(text, add_special_tokens=False)["input_ids"]]) for text in pair_texts(scored)]
    nats = np.append(np.zeros(2), trigram_nats(train, np.concatenate(ids), len(tokenizer)))
    ends = np.cumsum([len(text) for text in ids])
    logs = np.array([-nats[end - len(text) + 2 : end].sum() for text, end in zip(ids, ends, strict=True)])
    margins = np.bincount(owner, weights=logs[0::2] - logs[1::2], minlength=len(items)).astype(float)
    return Preferences("trigram", tuple(items), margins.round(9))  # what cancels but for rounding is a tie


def rows(found: Preferences) -> list[tuple[str, ...]]:
    """Return a row for each kind, in the columns of `HEADER`."""
    return [
        (
            k.kind,
            str(k.items),
            str(k.frames),
            number(k.accuracy),
            f"{number(k.accuracy_low)}–{number(k.accuracy_high)}",
            signed_number(k.margin),
            f"{signed_number(k.margin_low)} to {signed_number(k.margin_high)}",
        )
        for k in found.kinds
    ]


def honorific_mean(found: Preferences) -> float:
    """Return the mean accuracy over the kinds of honorific contrasts."""
    honorific = {c.kind for c in contrasts() if not c.control}
    return float(np.mean([k.accuracy for k in found.kinds if k.kind in honorific]))


def shown(name: str, half: str, found: Preferences) -> str:
    """Return the mean and a plain table."""
    mean = f"{name}, {half}: mean accuracy over the honorific kinds of contrasts {number(honorific_mean(found))}"
    return f"{mean}\n{plain_table(HEADER, rows(found))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo", help="demo, a folder or a hub name (%(default)s)")
    parser.add_argument("--works", type=Path, help="training works of the bundled model, for the trigram")
    parser.add_argument("--dialogues", type=Path, help="its training dialogues, for the trigram")
    parser.add_argument("--split", choices=("discovery", "test"), help="use only this half of the frames")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    args = parser.parse_args()
    model = moelens.load(args.model)
    bundled: list[Any] = [*contrasts(), *pairs()]
    items = [item for item in bundled if args.split in (None, item.split)]
    found = {"model": moelens.prefer(model, items)}
    if args.works and args.dialogues:
        folders = {"works": args.works, "dialogues": args.dialogues}
        found["trigram"] = trigram_preferences(model.tokenizer, folders, items)
    half = args.split or "all"
    figures = {n: {"honorific mean": honorific_mean(p), "kinds": [vars(k) for k in p.kinds]} for n, p in found.items()}
    result = json.dumps({"name": args.model, "split": half, **figures}, ensure_ascii=False, indent=1)
    print(result if args.json else "\n\n".join(shown(name, half, p) for name, p in found.items()))
    if args.out:
        args.out.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
