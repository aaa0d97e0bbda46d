"""Compare the analysis of honorifics with gold data of others.

    python -m benchmarks.honorifics FOLDER [--json]

FOLDER contains the files of any split, which are recognised by their names: `keico_*.csv` (KeiCO: levels of
honorifics), `cocoa_mt_ja_*/` (CoCoA-MT: formal and informal references), `j_unimorph_*.tsv` (J-UniMorph: verb forms),
`keigo_transfer_*.csv` (sentences that annotators made more polite, with the classes that they added) and `*gsd*.conllu`
(UD Japanese-GSD: short units of UniDic). A part without a file is skipped.

"Left out" means that the lists of words in the rules lack the words on which the rules are judged: for J-UniMorph, one
lemma at a time; for KeiCO, the words that occur in no other tenth of its fields.

The raters of KeiCO and 敬語の指針 differ: of the development sentences rated 3 or 4, 263 have a form that the guideline
calls 尊敬語 or 謙譲語I all the same (お話, お会いする). "Guideline's forms compatible" counts a sentence as right if
one of the rules in GUIDELINE_FORMS decides its register; it is an upper bound.

"Beyond polite" means the register "honorific": 尊敬語 or 謙譲語 that raises someone, or words that go with it (恐縮,
申し訳ありません). Set phrases (ありがとうございます, お元気ですか) and いかが are polite. KeiCO rates some similar
sentences 2 and others 3.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import moelens
from moelens.japanese import HonorificSpan, honorifics, parse_morphemes, register
from moelens.japanese.rules import words_left_out

REGISTERS = ("plain", "polite", "honorific")  # of a sentence, the highest last
# The rules of the general constructions of the guideline, which name no words: お名前, お会いする, お待ちください, …
GUIDELINE_FORMS = ("prefix", "o-suru", "o-kudasaru", "o-ni-naru", "o-itadaku", "o-desu", "o-adjective")
FOLDS = 10  # of the fields of KeiCO
SHOWN = 25  # how many disagreements are listed for each measure
Scores = dict[str, Any]


def scores(texts: Sequence[str], predicted: Sequence[bool], gold: Sequence[bool]) -> Scores:
    """Return precision, recall and F1, and texts for which prediction and gold differ."""
    hits = sum(p and g for p, g in zip(predicted, gold, strict=True))
    n_predicted, n_gold = sum(predicted), sum(gold)
    too_many = [t for t, p, g in zip(texts, predicted, gold, strict=True) if p and not g]
    missed = [t for t, p, g in zip(texts, predicted, gold, strict=True) if g and not p]
    return {
        "precision": round(hits / max(n_predicted, 1), 4),
        "recall": round(hits / max(n_gold, 1), 4),
        "f1": round(2 * hits / max(n_predicted + n_gold, 1), 4),
        "n": len(gold),
        "gold": n_gold,
        "predicted, not gold": [len(too_many), *too_many[:SHOWN]],
        "gold, not predicted": [len(missed), *missed[:SHOWN]],
    }


def level(text: str) -> int:
    """Return the highest register of the sentences of a text: 0 plain, 1 polite, 2 honorific."""
    return max((REGISTERS.index(sentence.register) for sentence in register(text)), default=0)


def keico(folder: Path) -> Iterator[tuple[str, Scores]]:
    """Yield the scores on KeiCO."""
    rows = [row for path in folder.glob("keico_*.csv") for row in csv.DictReader(path.open(encoding="utf-8-sig"))]
    texts, gold = [row["本文"] for row in rows], [int(row["Level"]) for row in rows]
    found = [level(text) for text in texts]
    yield "KeiCO: any honorific, Level <= 3", scores(texts, [f >= 1 for f in found], [g <= 3 for g in gold])
    beyond, honoured = [f >= 2 for f in found], [g <= 2 for g in gold]
    yield "KeiCO: beyond polite, Level <= 2", scores(texts, beyond, honoured)
    general = [f and uses_general_form(text) for f, text in zip(beyond, texts, strict=True)]
    lenient = [h or g for h, g in zip(honoured, general, strict=True)]
    yield "KeiCO: beyond polite, guideline's forms compatible", scores(texts, beyond, lenient)
    yield "KeiCO: beyond polite, by field", by_field([row["フィールド"] for row in rows], beyond, honoured)
    without = levels_without_fields(texts, [row["フィールド"] for row in rows])
    yield "KeiCO: beyond polite, fields left out", scores(texts, [f >= 2 for f in without], honoured)


def uses_general_form(text: str) -> bool:
    """Whether one of the general constructions decides the register of a sentence."""
    return any(span.rule in GUIDELINE_FORMS for sentence in register(text) for span in sentence.evidence)


def by_field(fields: Sequence[str], predicted: Sequence[bool], gold: Sequence[bool]) -> Scores:
    """Return the distribution of F1 over the fields of KeiCO."""
    f1 = {}
    for field in dict.fromkeys(fields):
        chosen = [i for i, name in enumerate(fields) if name == field]
        of_field = scores([field] * len(chosen), [predicted[i] for i in chosen], [gold[i] for i in chosen])
        f1[field] = of_field["f1"]
    ordered = sorted(f1, key=f1.__getitem__)
    return {
        "fields": len(f1),
        "median F1": f1[ordered[len(ordered) // 2]],
        "lowest tenth F1": f1[ordered[len(ordered) // 10]],
        "lowest": [f"{field} {f1[field]}" for field in ordered[:10]],
    }


def levels_without_fields(texts: Sequence[str], fields: Sequence[str]) -> list[int]:
    """Return the level of each text, found without the words that only its tenth of the fields has."""
    fold = [hashlib.sha256(field.encode()).digest()[0] % FOLDS for field in fields]
    lemmas = [{m.lemma for m in parse_morphemes(text)} for text in texts]
    found = [0] * len(texts)
    for number in range(FOLDS):
        inside = [i for i, f in enumerate(fold) if f == number]
        elsewhere = set().union(*(lemmas[i] for i, f in enumerate(fold) if f != number))
        with words_left_out(set().union(*(lemmas[i] for i in inside)) - elsewhere):
            for i in inside:
                found[i] = level(texts[i])
    return found


def transfer(folder: Path) -> Iterator[tuple[str, Scores]]:
    """Yield the recall of the classes that annotators of the keigo transfer task added to sentences."""
    rows = [r for path in folder.glob("keigo_transfer_*.csv") for r in csv.DictReader(path.open(encoding="utf-8-sig"))]
    for name in ("尊敬語", "謙譲語", "丁寧語"):
        chosen = [row for row in rows if name in row["labels"]]
        missed = [r["converted"] for r in chosen if count(r["converted"], name) <= count(r["source"], name)]
        yield (
            f"Keigo transfer: {name} added",
            {
                "recall": round(1 - len(missed) / max(len(chosen), 1), 4),
                "n": len(chosen),
                "gold, not predicted": [len(missed), *missed[:SHOWN]],
            },
        )


def count(text: str, name: str) -> int:
    """Return how many honorifics of a class a text has; 謙譲語 stands for both of its kinds."""
    return sum(any(c.startswith(name) for c in span.classes) for span in honorifics(text))


def cocoa(folder: Path) -> Iterator[tuple[str, Scores]]:
    """Yield the scores on CoCoA-MT."""
    texts: list[str] = []
    gold: list[bool] = []
    formal: list[tuple[str, str]] = []
    for path in sorted(folder.glob("cocoa_mt_ja_*/*.formal.annotated")):
        references = [p.read_text("utf-8").splitlines() for p in (path, informal_of(path))]
        for is_formal, lines in zip((True, False), references, strict=True):
            texts += ["".join(pieces(line)) for line in lines]
            gold += [is_formal] * len(lines)
        formal += zip(*references, strict=True)
    yield "CoCoA-MT: formal against informal", scores(texts, [level(text) >= 1 for text in texts], gold)
    spans = [span for pair in formal for span in formal_spans(*pair)]
    for name, chosen in (
        ("all", spans),
        ("those that differ from the informal reference", [span for span in spans if not span[3]]),
    ):
        missed = [f"{text}: {line}" for text, line, touched, _ in chosen if not touched]
        yield (
            f"CoCoA-MT: [F] spans touched, {name}",
            {
                "recall": round(1 - len(missed) / max(len(chosen), 1), 4),
                "n": len(chosen),
                "untouched that the informal reference has word for word": sum(s and not t for _, _, t, s in chosen),
                "gold, not predicted": [len(missed), *missed[:SHOWN]],
            },
        )


def informal_of(path: Path) -> Path:
    """Return the file of the informal references that belongs to a file of formal ones."""
    return path.with_name(path.name.replace(".formal.", ".informal."))


def pieces(line: str) -> list[str]:
    """Split a reference at its marks; every second piece was marked."""
    return re.split(r"\[/?F\]", line)


def formal_spans(formal: str, informal: str) -> Iterator[tuple[str, str, bool, bool]]:
    """Yield the marked spans of a formal reference.

    Each item is the span, the reference, whether an honorific overlaps the span, and whether the informal reference has
    the same span marked. Such a span (食べる) is usually not an honorific, so not all spans can overlap one.
    """
    cut = pieces(formal)
    unmarked = pieces(informal)[1::2]
    found = honorifics("".join(cut))
    at = 0
    for i, piece in enumerate(cut):
        start, at = at, at + len(piece)
        if i % 2:
            touched = any(s.classes and s.start < at and s.end > start for s in found)
            yield piece, formal, touched, piece in unmarked


def unimorph(folder: Path) -> Iterator[tuple[str, Scores]]:
    """Yield the scores on J-UniMorph."""
    tags: dict[str, set[str]] = defaultdict(set)  # a form can be both passive and honorific
    lemma_of = {}
    for path in folder.glob("j_unimorph_*.tsv"):
        for line in path.read_text("utf-8").splitlines()[1:]:
            lemma, form, label, _ = line.split("\t")
            lemma_of[form] = lemma
            tags[form] |= set(label.split(";"))
    forms, found = list(tags), [honorifics(form) for form in tags]
    without = found_without_lemmas(forms, lemma_of)
    for tag, has in (("HUMB", humble), ("POL", polite), ("ELEV", elevated)):
        gold = [tag in tags[form] for form in forms]
        strict = [has(spans) for spans in found]
        if tag == "ELEV":
            lenient = [g if ambiguous(f) else s for s, g, f in zip(strict, gold, found, strict=True)]
            yield "J-UniMorph: ELEV, ambiguous (ら)れる compatible", scores(forms, lenient, gold)
        yield f"J-UniMorph: {tag}", scores(forms, strict, gold)
        yield f"J-UniMorph: {tag}, lemma left out", scores(forms, [has(spans) for spans in without], gold)


def found_without_lemmas(forms: Sequence[str], lemma_of: Mapping[str, str]) -> list[Sequence[HonorificSpan]]:
    """Return the honorifics of each form, found without the lemma that it is a form of."""
    found: dict[str, Sequence[HonorificSpan]] = {}
    for lemma in dict.fromkeys(lemma_of.values()):
        with words_left_out({lemma, *(m.lemma for m in parse_morphemes(lemma))}):
            found |= {form: honorifics(form) for form in forms if lemma_of[form] == lemma}
    return [found[form] for form in forms]


def humble(spans: Iterable[HonorificSpan]) -> bool:
    """Whether a span is 謙譲語I or 謙譲語II."""
    return any({"謙譲語I", "謙譲語II"} & set(span.classes) for span in spans)


def polite(spans: Iterable[HonorificSpan]) -> bool:
    """Whether a span is です, ます or a request with ください, which the gold counts as polite."""
    return any("丁寧語" in span.classes or "ください" in span.surface for span in spans)


def elevated(spans: Iterable[HonorificSpan]) -> bool:
    """Whether a span is 尊敬語, except a request with ください alone, which the gold does not count as elevating."""
    return any("尊敬語" in span.classes and span.tells == "honorific" for span in spans)


def ambiguous(spans: Iterable[HonorificSpan]) -> bool:
    """Whether a span may be read as respectful."""
    return any("尊敬" in span.readings for span in spans)


def gsd(folder: Path) -> Iterator[tuple[str, Scores]]:
    """Yield the accuracy of the part of speech on UD Japanese-GSD."""
    right = both = gold_words = found_words = 0
    wrong: list[str] = []
    for path in folder.glob("*gsd*.conllu"):
        for block in path.read_text("utf-8").strip().split("\n\n"):
            text = re.findall(r"^# text = (.*)$", block, re.M)[0]
            rows = [line.split("\t") for line in block.splitlines() if line[0].isdigit()]
            gold, at = {}, 0
            for row in rows:
                at = text.index(row[1], at)
                gold[at, at + len(row[1])] = "-".join(row[4].split("-")[:2])
                at += len(row[1])
            found = {
                (m.start, m.end): "-".join(level for level in m.pos[:2] if level != "*") for m in parse_morphemes(text)
            }
            shared = gold.keys() & found.keys()
            both, gold_words, found_words = both + len(shared), gold_words + len(gold), found_words + len(found)
            right += sum(gold[span].startswith(found[span].split("-")[0]) for span in shared)
            wrong += [
                f"{text[slice(*span)]}: {found[span]}, gold {gold[span]}"
                for span in shared
                if gold[span] != found[span]
            ]
    accuracy = {
        "accuracy": round(right / max(both, 1), 4),
        "segmentation F1": round(2 * both / max(1, gold_words + found_words), 4),
    }
    yield (
        "UD Japanese-GSD: part of speech of rightly cut words",
        accuracy | {"n": both, "differing": [len(wrong), *wrong[:SHOWN]]},
    )


def speed(folder: Path, repeat: int = 7) -> Iterator[tuple[str, Scores]]:
    """Yield the speed on one core: the morphological analyser alone, and with honorifics and alignment.

    The unit is sentences per second, and all features of the analyser are read.
    """
    import fugashi
    import unidic_lite

    from moelens.models.tokens import token_spans

    rows = [row for path in folder.glob("keico_*.csv") for row in csv.DictReader(path.open(encoding="utf-8-sig"))]
    texts = [row["本文"] for row in rows][:4000]
    tokenizer = moelens.load("demo").tokenizer
    ids = tokenizer(texts)["input_ids"]
    tagger = fugashi.Tagger(f'-r "{unidic_lite.DICDIR}/mecabrc" -d "{unidic_lite.DICDIR}"')

    def bare() -> None:
        for text in texts:
            [(node.surface, *node.feature) for node in tagger(text)]

    def ours() -> None:
        for text, tokens in zip(texts, ids, strict=True):
            honorifics(text, parse_morphemes(text))
            token_spans(tokenizer, text, tokens)

    times = [(timed(bare), timed(ours)) for _ in range(repeat)]
    seconds = {"bare": min(t for t, _ in times), "ours": min(t for _, t in times)}
    rates = {name: len(texts) / taken for name, taken in seconds.items()}
    yield (
        "Speed: analysis, honorifics and alignment",
        {
            "ratio": round(rates["ours"] / rates["bare"], 3),
            "sentences/s": round(rates["ours"]),
            "analyser alone, sentences/s": round(rates["bare"]),
            "n": len(texts),
        },
    )


def timed(run: Callable[[], None]) -> float:
    """Return the processor time of a call in seconds, which does not depend on other load on the machine."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the gold data")
    parser.add_argument("--json", action="store_true", help="print all figures and disagreements as JSON")
    parser.add_argument("--no-speed", action="store_true", help="do not measure the speed")
    args = parser.parse_args()
    parts = {
        "keico_*.csv": keico,
        "cocoa_mt_ja_*": cocoa,
        "j_unimorph_*.tsv": unimorph,
        "keigo_transfer_*.csv": transfer,
        "*gsd*.conllu": gsd,
    }
    measures = {
        name: s for pattern, part in parts.items() if any(args.folder.glob(pattern)) for name, s in part(args.folder)
    }
    if not args.no_speed and any(args.folder.glob("keico_*.csv")):
        measures |= dict(speed(args.folder))
    if args.json:
        print(json.dumps(measures, ensure_ascii=False, indent=1))
        return
    for name, measured in measures.items():
        print(name + ":", ", ".join(f"{key} {value}" for key, value in measured.items() if not isinstance(value, list)))


if __name__ == "__main__":
    main()
