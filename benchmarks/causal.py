"""Test for every kind of crossed contrast whether the experts found by attribution cause the model's preference.

    python -m benchmarks.causal demo --per-frame 2 --corpora aozora=FILE --out benchmarks/results/causal-demo

For each kind, attribution on one half of the frames finds the experts with the largest contributions. On the other half
they are removed together, beside sets of as many matched experts. p is corrected over the honorific kinds (Holm), and
apart from them over the kinds that are controls (tense, polarity, animacy, noun), in which no honorific expert should
matter. Off target is the mean absolute change of the controls over the change of the kind itself.

Where an honorific class sets the continuations apart, the experts are also ranked on corpora, by how much more often
the tokens of this class choose them than others do, and as many of each ranking as attribution found are removed. The
corpora are the dialogues and the other texts that come with the package, and those given with --corpora.

A small model runs fastest with small batches in one thread: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import moelens
from benchmarks.machine import machine
from moelens.analysis.tables import number, signed_interval, signed_number
from moelens.interventions import Attribution, Effect
from moelens.interventions.causal import first_of, holm_correction
from moelens.interventions.controls import imbalance
from moelens.interventions.corpus_ranking import (
    Agreement,
    CorpusRanking,
    agreements,
    bundled_corpora,
    corpus_rankings,
    distinguishing_class,
)
from moelens.japanese import Contrast, contrast_kinds, contrasts
from moelens.recording import Corpus

RANKING_HEADER = (
    "kind",
    "class",
    "corpus",
    "tokens",
    "rank correlation with attribution",
    "in both",
    "with the other corpora",
    "removing its first",
    "95 %",
)
KINDS = list(contrast_kinds())
CONTROLS = {c.kind for c in contrasts() if c.control}
HEADER = (
    "kind",
    "items (frames)",
    "accuracy",
    "interaction",
    "experts",
    "removing them",
    "95 %",
    "accuracy then",
    "controls",
    "95 %",
    "p",
    "p Holm",
    "off target",
    "KL",
    "imbalance",
    "p per weight",
)


def chosen_items(kind: str, per_frame: int) -> list[Contrast]:
    """Return at most `per_frame` contrasts of each frame of a kind, evenly spread over its words; 0 for all."""
    frames: dict[str, list[Contrast]] = {}
    for contrast in contrasts(kind):
        frames.setdefault(contrast.frame, []).append(contrast)
    steps = {frame: max(1, len(found) // per_frame) if per_frame else 1 for frame, found in frames.items()}
    return [c for frame, found in frames.items() for c in found[:: steps[frame]][: per_frame or None]]


@dataclass(frozen=True)
class Found:
    """What was found for one kind."""

    attribution: Attribution
    effect: Effect
    rankings: tuple[CorpusRanking, ...]
    agreements: tuple[Agreement, ...]
    removed: tuple[Effect, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, with the controls counted instead of named."""
        effect = self.effect.to_dict()
        return {
            "attribution": self.attribution.to_dict(),
            "effect": effect | {"controls": len(effect["controls"])},
            "rankings": [asdict(r) | {"excess": r.excess.round(4).tolist()} for r in self.rankings],
            "agreements": [asdict(a) for a in self.agreements],
            "removed": [e.to_dict() for e in self.removed],
        }


def find_causes(
    model: moelens.HookedMoE, kind: str, corpora: Mapping[str, Corpus], settings: argparse.Namespace
) -> Found:
    """Find the experts of a kind of contrast by attribution and on corpora, and remove the first of each ranking."""
    options = {"seed": settings.seed, "batch_tokens": settings.batch_tokens}
    items = chosen_items(kind, settings.per_frame)
    attribution = moelens.attribute(model, items, top=settings.top, **options)
    removals = [moelens.remove(c.layer, [c.expert]) for c in attribution.top if c.expert is not None]
    effect = moelens.effect(model, items, removals, draws=settings.draws, half="test", **options)
    label = distinguishing_class(items)
    rankings = corpus_rankings(model, corpora, label, **options) if label else ()
    removed = tuple(
        moelens.effect(
            model,
            items,
            first_of(model, r.excess, len(removals)),
            controls=None,
            half="test",
            texts=(),
            off_target=False,
            **options,
        )
        for r in rankings
    )
    ranked = {"attribution": attribution.routed} | {r.corpus: r.excess for r in rankings}
    return Found(attribution, effect, rankings, agreements(ranked), removed)


def table(found: dict[str, Found]) -> list[tuple[str, ...]]:
    """Return a row for each kind of pair, in the columns of `HEADER`."""
    corrected: dict[str, float] = {}
    for family in ([k for k in found if k not in CONTROLS], [k for k in found if k in CONTROLS]):
        corrected |= zip(family, holm_correction([found[k].effect.kinds[0].p for k in family]), strict=True)
    rows: list[tuple[str, ...]] = []
    for kind, f in found.items():
        e, top = f.effect, [c.name for c in f.attribution.top if c.expert is not None]
        k = e.kinds[0]
        rows.append(
            (
                kind,
                f"{k.items} ({k.frames})",
                number(k.accuracy),
                signed_number(k.before),
                ", ".join(top),
                signed_number(k.change),
                signed_interval(k.low, k.high),
                number(k.accuracy_after),
                signed_number(k.control),
                signed_interval(k.control_low, k.control_high),
                number(k.p),
                number(corrected[kind]),
                number(e.off_target.ratio) if e.off_target else "–",
                number(e.off_target.text_ratio) if e.off_target else "–",
                number(imbalance(e.balance)),
                number(e.per_weight[0].p) if e.per_weight else "–",
            )
        )
    return rows


def ranking_table(found: dict[str, Found]) -> list[tuple[str, ...]]:
    """Return a row for each kind and corpus, in the columns of `RANKING_HEADER`."""
    rows: list[tuple[str, ...]] = []
    for kind, f in found.items():
        between = {frozenset((a.first, a.second)): a for a in f.agreements}
        for ranking, removed in zip(f.rankings, f.removed, strict=True):
            k = removed.kinds[0]
            with_attribution = between[frozenset(("attribution", ranking.corpus))]
            others = [between[frozenset((r.corpus, ranking.corpus))] for r in f.rankings if r is not ranking]
            rows.append(
                (
                    kind,
                    ranking.label,
                    ranking.corpus,
                    f"{ranking.tokens:,}",
                    signed_number(with_attribution.spearman),
                    f"{with_attribution.shared} of {with_attribution.top}",
                    ", ".join(signed_number(a.spearman) for a in others),
                    signed_number(k.change),
                    signed_interval(k.low, k.high),
                )
            )
    return rows


def markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Format a table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows))


def markdown(found: dict[str, Found], result: dict[str, Any]) -> str:
    """Format the results as a Markdown page."""
    rows, settings = table(found), result["settings"]
    honorific = [row for row in rows if row[0] not in CONTROLS]
    significant = sum(float(row[HEADER.index("p Holm")]) < 0.05 for row in honorific)
    draws = settings["draws"]
    least = number(min(1.0, len(honorific) / (draws + 1)))
    of_frame = f"at most {settings['per_frame']} items of each frame" if settings["per_frame"] else "all items"
    head = (
        f"{settings['model']}, seed {settings['seed']}, {of_frame}. For each kind of contrast, the routed experts "
        f"among the {settings['top']} largest contributions are removed together, beside {draws} matched sets. "
        f"Interactions and changes are in nats, means over the test half; intervals are over frames. With {draws} "
        f"sets, p cannot be smaller than 1/{draws + 1}, or {least} after Holm's correction over {len(honorific)} "
        "honorific kinds; the controls are corrected among themselves. "
        f"{significant} of {len(honorific)} corrected "
        "p values of honorific kinds are below .05. Off target: mean absolute change of the control kinds over the "
        "change of the kind; KL: that on unrelated text, in nats a token, over the same change (selective at a third "
        "or less of both). Imbalance: the largest standardised difference between the removed set and the matched sets "
        "in routed weight, output norm and load; above .25, p per weight compares changes per unit of routed weight."
        "\n\n"
        f"Measured on {result['machine']}."
    )
    parts = [head, markdown_table(HEADER, rows)]
    if compared := [f for f in found.values() if f.agreements]:
        f = compared[0]
        agreement, n = f.agreements[0], f.attribution.routed.size
        parts.append(
            "Experts ranked on corpora by how much more often tokens of the class that sets the continuations apart "
            f"choose them, in up to 200 passages. In both: of the first {agreement.top} of {n} experts, those that "
            f"attribution has there too ({agreement.chance:.3g} by chance). As many of each ranking as attribution "
            "found are removed together."
        )
        parts.append(markdown_table(RANKING_HEADER, ranking_table(found)))
    return "\n\n".join(parts) + "\n"


def corpus_of(text: str) -> tuple[str, Corpus]:
    """Read NAME=FILE."""
    name, _, path = text.partition("=")
    return name, Corpus.of(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo", help="demo, a folder or a hub name (%(default)s)")
    parser.add_argument("--top", type=int, default=5, help="largest contributions to consider (%(default)s)")
    parser.add_argument("--draws", type=int, default=300, help="sets of matched experts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=512, help="tokens that run together (%(default)s)")
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="kinds of contrasts (all)")
    parser.add_argument("--corpora", nargs="+", type=corpus_of, default=[], metavar="NAME=FILE", help="further corpora")
    parser.add_argument("--per-frame", type=int, default=0, help="items of each frame, 0 for all (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    args = parser.parse_args()
    model = moelens.load(args.model)
    corpora = bundled_corpora() | dict(args.corpora)
    found = {kind: find_causes(model, kind, corpora, args) for kind in tqdm(args.kinds, desc="kinds")}
    result = {
        "machine": machine(),
        "settings": vars(args) | {"corpora": list(corpora), "json": None, "out": None},
        "kinds": {kind: f.to_dict() for kind, f in found.items()},
    }
    data, text = json.dumps(result, ensure_ascii=False), markdown(found, result)
    print(data if args.json else text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")
        args.out.with_suffix(".json").write_text(data + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
