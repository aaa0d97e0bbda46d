"""Find what experts of real models are for, in routing that others published.

    python -m benchmarks.real_models FOLDER [--out FILE] [--picture FILE]

`FOLDER` holds the public files that `FILES` lists, with where each is to be had; `--list` prints the list. What each
file holds is checked by SHA-256 before it is used. Parts whose files are absent are left out, and the result says so.
The files of Drop-Upcycling are pickles, which moelens does not open: opening a pickle runs code that is in it. Turn
them into .npz files with the script that `--list` prints, on a machine that holds nothing else. `--page` puts the
tables into `docs/real-models.md`, between the comments that mark them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moelens.analysis import (
    Counts,
    Specialization,
    TypeLabels,
    TypeRows,
    coverage,
    exclusive_experts,
    family_information,
    gate_score,
    import_counts,
    jaccard,
    jensen_shannon,
    read_type_rows,
    token_score,
    usage,
    usage_entropy,
)
from moelens.errors import MoeLensError

TRAININGS = {"FS": "from scratch", "DU-0.5": "drop-upcycled", "NU": "naively upcycled"}
FAMILIES = ("honorifics", "pos", "reference")
LEAST_TOKENS = 100
DIVERGENCE, TOLD = "divergence of Japanese and English in bits", "bits that the token id tells of a choice"
_DROP = "https://github.com/Taishi-N324/Drop-Upcycling, analysis/routing_output"
_TOKENIZER = "https://huggingface.co/llm-jp/llm-jp-13b-v2.0 (llm-jp-tokenizer ver2.2), the files of its tokenizer"
_ESFT = "https://github.com/deepseek-ai/ESFT, results/expert_scores/intent"
_ROWS = ("layer", "expert", "token_id", "count")
PAGE = Path(__file__).parents[1] / "docs" / "real-models.md"
BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"
CONVERT = """\
import pickle, sys, numpy as np
table = pickle.load(open(sys.argv[1], "rb"))  # runs code of the file
rows = [(x, e, t, n) for x, a in table.items() for e, b in a.items() for t, n in b.items()]
columns = dict(zip(("layer", "expert", "token_id", "count"), np.array(sorted(rows)).T))
np.savez_compressed(sys.argv[2], **columns)
"""
FILES: Mapping[str, tuple[str, str]] = {
    "llm-jp-8x1.5b/DU-0.5_c4.npz": (
        f"{_DROP}/llm-jp/DU-0.5-8x1.5B/eid2token/c4.pkl, converted",
        "8a5dff827cd07e23568048e7e7e7d016c13ef68bb30011c7683a8fbb0856c799",
    ),
    "llm-jp-8x1.5b/DU-0.5_ja_mc4.npz": (
        f"{_DROP}/llm-jp/DU-0.5-8x1.5B/eid2token/ja_mc4.pkl, converted",
        "d372424aefa5649e152b845725b36f78817cf28ebe633831c848ebb4cfb06237",
    ),
    "llm-jp-8x1.5b/FS_c4.npz": (
        f"{_DROP}/llm-jp/FS-8x1.5B/eid2token/c4.pkl, converted",
        "d39d14986def6a0b273c1c790737bd87464b9f5f31ee78b25962645c98c96644",
    ),
    "llm-jp-8x1.5b/FS_ja_mc4.npz": (
        f"{_DROP}/llm-jp/FS-8x1.5B/eid2token/ja_mc4.pkl, converted",
        "6f4151477aea516ee6e4e5a401dbaff5b23ea9869b2246d6920b50a9df920a93",
    ),
    "llm-jp-8x1.5b/NU_c4.npz": (
        f"{_DROP}/llm-jp/NU-8x1.5B/eid2token/c4.pkl, converted",
        "908efd0108b461c4aa5f316d6a2e0b1ce0feaeff8ca0425eb50f859f44bff525",
    ),
    "llm-jp-8x1.5b/NU_ja_mc4.npz": (
        f"{_DROP}/llm-jp/NU-8x1.5B/eid2token/ja_mc4.pkl, converted",
        "fa20ba2eaf64daea7b1b66cf0c7a05f124bc57727bf48e045fc1e0376e7dd303",
    ),
    "llm-jp-8x1.5b/ja_mc4_texts.txt.gz": (
        f"{_DROP}/text/ja_mc4_texts.txt, compressed with gzip",
        "292140089331be3507be86571eeeb784054da921e99f26e04cbc28e05ce7d978",
    ),
    "llm-jp-8x1.5b/special_tokens_map.json": (
        _TOKENIZER,
        "12d8611c5c954e65cc6bd58fc9ee86efd3ddbf2a91d256f6ee44a988a8f87856",
    ),
    "llm-jp-8x1.5b/tokenizer.json": (
        _TOKENIZER,
        "f3907dacc84f5aa53304063e73ce9fbc601acf173bad706793707a4f54dc5a6e",
    ),
    "llm-jp-8x1.5b/tokenizer_config.json": (
        _TOKENIZER,
        "f2e7afd6c9316cfa59b7262ec4f5f4b2e55f90faf3e91c1e739a63850d7fb6e7",
    ),
    "qwen3-30b-a3b-mgsm/mgsm_ja.json": (
        "https://github.com/conctsai/Multilingualism-in-Mixture-of-Experts-LLMs, routing/mgsm_result/mgsm_ja.json",
        "f40ad569ec25f0932443fcf4060b506da2d7cbe308db337d83166d59d73c5f53",
    ),
    "qwen3-30b-a3b-mgsm/mgsm_en.json": (
        "https://github.com/conctsai/Multilingualism-in-Mixture-of-Experts-LLMs, routing/mgsm_result/mgsm_en.json",
        "1217dcb292b1f2eabe501a046630cb4a4a4f8d58e303e47dbad64e14fcc10757",
    ),
    "qwen3-30b-a3b-mgsm/mgsm_zh.json": (
        "https://github.com/conctsai/Multilingualism-in-Mixture-of-Experts-LLMs, routing/mgsm_result/mgsm_zh.json",
        "e53a3b4fc542f52dd4a13f3c42833c02dee1ed11d565722fb6f8fc07893cce0a",
    ),
    "command-a-plus/atlas_mass.json": (
        "https://github.com/transformerlab/exp-command-a-plus-moe-modularity, atlas/atlas_mass.json",
        "1673ef10ca1cb1819675e3da0b640fdce4ef24abb90355f99d650727f24822ce",
    ),
    "command-a-plus/atlas_summary.json": (
        "https://github.com/transformerlab/exp-command-a-plus-moe-modularity, atlas/atlas_summary.json",
        "8dcc737eec28bdfff03fac0bd5ea663d7009b212e65c26c520dc6af760724df9",
    ),
    "esft_intent.npz": (
        f"{_ESFT}, its rows as expert_ids [token, layer, slot] and gate_weights",
        "06c952b8aec80a8e145a70c56f9ad73ab47acd6f1662f128678f0631abb906e5",
    ),
    "esft_intent_published_scores.json": (
        f"{_ESFT}, its summary of token and gate scores",
        "5d83196b5fff3236e99bf1d729af8579a249a4ea31b671732aac7c5477f10244",
    ),
}
"""Name of each file in the folder: where it is to be had, and the SHA-256 of what it holds; see `content_hash`."""
PARTS: Mapping[str, str] = {
    "llm_jp": "llm-jp-8x1.5b/",
    "qwen3": "qwen3-30b-a3b-mgsm/",
    "command_a_plus": "command-a-plus/",
    "esft": "esft_intent",
}


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file: of the decompressed bytes of `.gz`, of the arrays in `.npz`, however compressed."""
    digest = hashlib.sha256()
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in sorted(file.files)}
        if set(arrays) == set(_ROWS):  # rows, in whatever order they were written
            rows = np.stack([arrays[name].astype("<i8") for name in _ROWS], axis=1)
            arrays = {"rows": rows[np.lexsort(rows.T[::-1])]}
        for name, array in arrays.items():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    else:
        digest.update(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    return digest.hexdigest()


def missing_files(folder: Path, part: str) -> list[str]:
    """Return the files of a part that are absent.

    Raises:
        MoeLensError: a file holds something else than the published one.
    """
    needed = [name for name in FILES if name.startswith(PARTS[part])]
    absent = [name for name in needed if not (folder / name).is_file()]
    for name in needed if not absent else ():
        if content_hash(folder / name) != FILES[name][1]:
            raise MoeLensError(f"expected the published content in '{folder / name}', got another; get it again")
    return absent


def llm_jp(folder: Path) -> dict[str, Any]:
    """Measure the specialists of every label in three trainings of LLM-jp 8×1.5B, and Japanese beside English."""
    folder = folder / "llm-jp-8x1.5b"
    rows = {name: read_type_rows(folder / f"{name}_ja_mc4.npz", n_experts=8) for name in TRAININGS}
    labels = _labels(folder, rows["FS"].n_tokens)
    found: dict[str, Any] = {"tokens": rows["FS"].n_tokens, "trainings": {}}
    for name, of_training in rows.items():
        results = {family: bounded(folder / f"{name}_ja_mc4.npz", labels, family, name) for family in FAMILIES}
        specialists = [s for family in FAMILIES for s in strongest(results[family], of_training, labels, folder)]
        certain = sum(int((r.low > 1).any((0, 1)).sum()) for r in results.values())
        both = import_counts(
            {"ja": folder / f"{name}_ja_mc4.npz", "en": folder / f"{name}_c4.npz"}, top_k=2, n_experts=8
        )
        share = usage(both)
        found["trainings"][name] = {
            "specialists": specialists,
            "labels with an expert above chance by its bounds": certain,
            "median of the largest lift": float(np.median([s["lift"] for s in specialists])),
            "largest share of choices on Japanese text": [round(float(v), 4) for v in share[:, :, 0].max(1)],
            DIVERGENCE: [round(float(v), 4) for v in jensen_shannon(share)[:, 0, 1]],
            "usage entropy of Japanese in bits": [round(float(v), 4) for v in usage_entropy(both)[:, 0]],
            TOLD: [
                round(float(v), 4)
                for v in family_information(Counts.of_types(folder / f"{name}_ja_mc4.npz", n_experts=8, top_k=2))
            ],
        }
    return found


def bounded(types: Path, labels: TypeLabels, family: str, training: str) -> Specialization:
    """Return the estimates and bounds of one family of labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the text lacks one token, which the bounds allow for
        model = f"LLM-jp 8×1.5B, {TRAININGS[training]}"
        return Counts.from_types(types, labels, family=family, n_experts=8, model=model)


def strongest(result: Specialization, rows: TypeRows, labels: TypeLabels, folder: Path) -> list[dict[str, Any]]:
    """Return for each label the expert with the largest lower bound of the lift, of those with 20 % of its tokens."""
    of_family = labels.count(result.family, rows.n_tokens)
    load = result.counts.expert_tokens / result.counts.n_tokens
    tokenizer = _tokenizer(folder)
    found = []
    for at, label in enumerate(result.names):
        if result.label_tokens[at] < LEAST_TOKENS:
            continue
        low = np.where(result.share[:, :, at] >= 0.2, np.nan_to_num(result.low[:, :, at]), 0)
        layer, expert = np.unravel_index(int(np.argmax(low)), low.shape)
        cell = layer, expert, at
        here = (rows.layer == layer) & (rows.expert == expert)
        ids, count = rows.token_id[here], rows.count[here]
        known = ids < len(of_family.tokens)
        ids, count = ids[known], count[known]
        labelled = count * of_family.labelled[ids, at] / np.maximum(of_family.tokens[ids], 1)
        examples = [tokenizer.decode([int(i)]).strip() for i in ids[np.argsort(-labelled)[:6]]]
        found.append(
            {
                "family": result.family,
                "label": label,
                "layer": result.layers[layer],
                "expert": int(expert),
                "share": round(float(result.share[cell]), 4),
                "load": round(float(load[layer, expert]), 4),
                "lift": round(float(result.lift[cell]), 3),
                "bounds": [round(float(result.low[cell]), 3), round(float(result.high[cell]), 3)],
                "exact": round(float(result.exact[cell]), 4) if result.exact is not None else None,
                "tokens": int(result.label_tokens[at]),
                "examples": [e for e in examples if e and "\ufffd" not in e],
            }
        )
    return found


@cache
def _labels(folder: Path, n_tokens: int) -> TypeLabels:
    text = gzip.decompress((folder / "ja_mc4_texts.txt.gz").read_bytes()).decode()
    return TypeLabels.of_text(text, folder, n_tokens)


@cache
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def qwen3(folder: Path) -> dict[str, Any]:
    """Measure which experts of Qwen3-30B-A3B are for Japanese, by depth, against English and Chinese."""
    folder, names = folder / "qwen3-30b-a3b-mgsm", ("ja", "en", "zh")
    counts = import_counts({name: folder / f"mgsm_{name}.json" for name in names}, top_k=8, model="Qwen3-30B-A3B")
    divergence, alone = jensen_shannon(usage(counts)), exclusive_experts(counts)
    thirds = np.array_split(np.arange(len(counts.layers)), 3)
    return {
        "tokens": dict(zip(names, map(int, counts.label_tokens), strict=True)),
        "exclusive experts": {
            f"layers {x[0]}–{x[-1]}": {n: sum(e.label == n and e.layer in x for e in alone) for n in names}
            for x in thirds
        },
        "of Japanese": [
            {"layer": e.layer, "expert": e.expert, "share": round(e.share, 4), "largest other": round(e.other_share, 4)}
            for e in alone
            if e.label == "ja"
        ][:10],
        "divergence in bits": {
            f"{a}–{b}": [round(float(v), 4) for v in divergence[:, names.index(a), names.index(b)]]
            for a, b in (("ja", "zh"), ("ja", "en"), ("zh", "en"))
        },
        "usage entropy in bits": {
            n: [round(float(v), 4) for v in usage_entropy(counts)[:, i]] for i, n in enumerate(names)
        },
        "layer sums off by": counts.provenance["layer_sums_off_by"],
    }


def command_a_plus(folder: Path) -> dict[str, Any]:
    """Reproduce the overlaps and coverage that were published for Command A+, and put Japanese beside the others."""
    folder = folder / "command-a-plus"
    counts = import_counts(folder / "atlas_mass.json")
    stated = json.loads((folder / "atlas_summary.json").read_text("utf-8"))
    mean, at = usage(counts).mean(0), {name: i for i, name in enumerate(counts.names)}
    alike = jaccard(mean, 64)
    pairs = {tuple(pair.split("|")): value for pair, value in stated["cross_category_top64_jaccard"].items()}
    covered = {
        (name, int(n)): value for name, by_n in stated["per_category_cov_mass"].items() for n, value in by_n.items()
    }
    return {
        "indices reproduced": sum(round(float(alike[at[a], at[b]]), 3) == v for (a, b), v in pairs.items()),
        "indices published": len(pairs),
        "coverages reproduced": sum(
            bool(np.isclose(coverage(mean, n)[at[name]], v, rtol=1e-9)) for (name, n), v in covered.items()
        ),
        "coverages published": len(covered),
        "Japanese and": {name: round(float(alike[at["ja"], i]), 3) for name, i in at.items() if name != "ja"},
        "exclusive experts": {n: sum(e.label == n for e in exclusive_experts(counts)) for n in counts.names},
        "usage entropy of the last layer in bits": {
            n: round(float(usage_entropy(counts)[-1, i]), 3) for n, i in at.items()
        },
    }


def esft(folder: Path) -> dict[str, Any]:
    """Reproduce the expert scores that were published with ESFT."""
    published = json.loads((folder / "esft_intent_published_scores.json").read_text("utf-8"))
    with np.load(folder / "esft_intent.npz", allow_pickle=False) as data:
        ids, weights = data["expert_ids"], data["gate_weights"]
    ours = {"token_scores": token_score(ids, 64), "gate_scores": gate_score(ids, weights, 64)}
    stated = {n: np.array([[published[n][str(x)][str(e)] for e in range(64)] for x in range(1, 27)]) for n in ours}
    return {
        name: {"reproduced": int(np.isclose(scores.round(4), stated[name], atol=1e-9).sum()), "published": scores.size}
        for name, scores in ours.items()
    }


def draw(folder: Path, path: Path) -> None:
    """Draw the map of 丁寧語 in each of the three trainings of LLM-jp 8×1.5B."""
    from matplotlib.figure import Figure

    from moelens.views import expert_map

    folder, label = folder / "llm-jp-8x1.5b", "丁寧語"
    labels = _labels(folder, read_type_rows(folder / "FS_ja_mc4.npz").n_tokens)
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    for axes, (name, training) in zip(figure.subplots(1, 3, squeeze=False)[0], TRAININGS.items(), strict=True):
        result = bounded(folder / f"{name}_ja_mc4.npz", labels, "honorifics", name)
        expert_map(result, label, ax=axes)
        axes.set_title(training, loc="left", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def tables(found: Mapping[str, Any]) -> str:
    """Return the tables of the page, in Markdown."""
    trainings = found["llm_jp"]["trainings"]
    lines = ["| label (tokens) | training | expert | share | load | lift | bounds | exact | its tokens of the label |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for by_training in zip(*(trainings[name]["specialists"] for name in TRAININGS), strict=True):
        for name, s in zip(TRAININGS, by_training, strict=True):
            row = [f"{s['label']} ({s['tokens']:,})", TRAININGS[name], "none with 20 % of its tokens", *[""] * 6]
            if s["bounds"][0] > 1:
                row[2:] = [
                    f"L{s['layer']} E{s['expert']}",
                    f"{s['share']:.0%}",
                    f"{s['load']:.1%}",
                    f"{s['lift']:.2f}",
                    f"{s['bounds'][0]:.2f}–{s['bounds'][1]:.2f}",
                    f"{s['exact']:.0%}",
                    " ".join(e.replace("|", "\\|") for e in s["examples"] if "`" not in e),
                ]
            lines.append(f"| {' | '.join(row)} |")
    header = ["", *TRAININGS.values()]
    return "\n".join([*lines, "", *_summary(header, trainings), "", *_by_layer(header, trainings)])


def _summary(header: Sequence[str], trainings: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of single numbers for each training."""
    names = ("labels with an expert above chance by its bounds", "median of the largest lift")
    rows = [[name, *(f"{trainings[t][name]:.3g}" for t in TRAININGS)] for name in names]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _by_layer(header: Sequence[str], trainings: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of what is measured by layer: first the divergence, then the information."""
    columns = [trainings[t][name] for name in (DIVERGENCE, TOLD) for t in TRAININGS]
    rows = [[f"L{x}", *(f"{v:.3f}" for v in values)] for x, values in enumerate(zip(*columns, strict=True))]
    names = ["layer", *(f"{what}, {t}" for what in ("divergence", "token id") for t in header[1:])]
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]


def put_into_page(found: Mapping[str, Any], page: str) -> str:
    """Return the page with new tables."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{tables(found)}\n{END}{rest.split(END)[1]}"


MEASURES: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "llm_jp": llm_jp,
    "qwen3": qwen3,
    "command_a_plus": command_a_plus,
    "esft": esft,
}


def measure_all(folder: Path, parts: Sequence[str] = tuple(MEASURES)) -> dict[str, Any]:
    """Return what each part found, or which of its files are absent."""
    found = {}
    for part in parts:
        absent = missing_files(folder, part)
        found[part] = {"absent": absent} if absent else MEASURES[part](folder)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of the public files")
    parser.add_argument("--list", action="store_true", help="print where each file is to be had")
    parser.add_argument("--part", choices=list(MEASURES), action="append", help="part to measure (all)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/real-models.md")
    parser.add_argument("--picture", type=Path, help="picture to draw")
    args = parser.parse_args(arguments)
    if args.list or args.folder is None:
        for name, (where, digest) in FILES.items():
            print(f"{name}\n    {where}\n    sha256 of its content {digest}")
        print(f"\nFrom a pickle to .npz:\n\n{CONVERT}")
        return
    found = measure_all(args.folder, args.part or tuple(MEASURES))
    text = json.dumps(found, ensure_ascii=False, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    if args.page and "trainings" in found.get("llm_jp", {}):
        PAGE.write_text(put_into_page(found, PAGE.read_text("utf-8")), encoding="utf-8")
    if args.picture is not None and not missing_files(args.folder, "llm_jp"):
        draw(args.folder, args.picture)


if __name__ == "__main__":
    main()
