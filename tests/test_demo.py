"""The bundled model and the main job, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import moelens
from moelens.demo.train import Recipe, batch, main, sentence_starts
from moelens.demo.trigram import trigram_nats
from moelens.errors import RecordingError
from moelens.models.loading import DEMO
from moelens.recording import Corpus
from moelens.workflows.demo_run import run_demo


@pytest.fixture(scope="module")
def demo() -> moelens.HookedMoE:
    return moelens.load("demo")


def test_the_bundled_model_is_what_it_should_be(demo: moelens.HookedMoE) -> None:
    shape = demo.shape
    assert type(demo.hf_model).__name__ == "DeepseekV3ForCausalLM"
    assert len(shape.moe_layers) >= 4
    assert shape.n_experts >= 32
    assert shape.top_k >= 4
    assert (shape.n_groups, shape.topk_groups, shape.n_shared, shape.score) == (4, 2, 1, "sigmoid")
    assert all(c.passed for c in demo.checks), demo.checks
    assert sum(f.stat().st_size for f in DEMO.iterdir()) < 20e6


def test_the_card_keeps_its_promises(demo: moelens.HookedMoE) -> None:
    card = json.loads((DEMO / "training.json").read_text(encoding="utf-8"))
    assert card["bits_per_character"] < card["trigram_bits_per_character"]
    assert card["bits_per_character"] < card["trigram_bits_per_character_same_number"]
    assert max(card["load_max"]) < 2
    assert min(card["load_min"]) > 0
    text = (DEMO / "README.md").read_text(encoding="utf-8")
    assert f"{card['bits_per_character']:.3f}" in text
    assert f"{card['trigram_bits_per_character']:.3f}" in text
    assert demo.hf_model.config.vocab_size == card["recipe"]["vocab_size"]


def test_the_selection_bias_survived_the_rounding(demo: moelens.HookedMoE) -> None:
    bias = demo.hf_model.model.layers[1].mlp.gate.e_score_correction_bias
    assert bias.dtype == torch.float32
    assert bias.abs().max() > 0


def test_generate_continues_a_text(demo: moelens.HookedMoE) -> None:
    text = demo.generate("むかしむかし、", max_new_tokens=8, do_sample=False)
    assert text.startswith("むかしむかし、")
    assert len(text) > len("むかしむかし、")


def test_tokens_never_mix_scripts() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("御覧になります。ABC").ids) == "御覧になります。ABC"
    pieces = [p for p, _ in tokenizer.pre_tokenizer.pre_tokenize_str("先生がいらっしゃる。")]
    assert len(pieces) == 3  # kanji, hiragana, full stop


def test_main_job(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    found = run_demo(out, progress=False)
    assert (out / "recording" / "manifest.json").exists()
    assert list((out / "recording" / "tokens").glob("*.parquet"))
    assert (out / "figures" / "map-1.png").stat().st_size > 5000
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "尊敬語" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert len(page) < 3e6
    assert "丁寧語" in str(found)
    assert moelens.Specialization.open(out / "honorifics.json").n_tokens > 4000
    best = found.results["honorifics"].top(1, "丁寧語")[0]
    assert best.significant
    assert best.lift > 3

    with pytest.raises(RecordingError, match=r"is already there; give another folder with --out, or --force"):
        run_demo(out, progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("do not delete")
    with pytest.raises(RecordingError, match="holds something else than a demo run"):
        run_demo(tmp_path / "other", force=True, progress=False)
    (out / "note.txt").write_text("mine")
    run_demo(out, force=True, progress=False)
    assert (out / "note.txt").read_text() == "mine"


def test_trigram_equals_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    train, held_out, v, d = rng.integers(0, 4, 60), rng.integers(0, 4, 20), 4, 0.75
    trigrams: dict[tuple[int, int, int], int] = {}
    for t in zip(train[:-2].tolist(), train[1:-1].tolist(), train[2:].tolist(), strict=True):
        trigrams[t] = trigrams.get(t, 0) + 1
    continuation = {bc: len({t for t in trigrams if t[1:] == bc}) for bc in {t[1:] for t in trigrams}}
    unigram = [sum(1 for bc in continuation if bc[1] == c) + 0.5 for c in range(v)]

    def p(a: int, b: int, c: int) -> float:
        p1 = unigram[c] / sum(unigram)
        n_b = sum(n for (x, _), n in continuation.items() if x == b)
        types_b = sum(1 for x, _ in continuation if x == b)
        p2 = (max(continuation.get((b, c), 0) - d, 0) + d * types_b * p1) / n_b if n_b else p1
        n_ab = sum(n for t, n in trigrams.items() if t[:2] == (a, b))
        types_ab = sum(1 for t in trigrams if t[:2] == (a, b))
        return (max(trigrams.get((a, b, c), 0) - d, 0) + d * types_ab * p2) / n_ab if n_ab else p2

    expected = [-np.log(p(*t)) for t in zip(*(held_out[i : 18 + i].tolist() for i in range(3)), strict=True)]
    np.testing.assert_allclose(trigram_nats(train, held_out, v), expected, rtol=1e-12)


@pytest.mark.slow
def test_training_runs_resumes_and_reports(tmp_path: Path) -> None:
    texts = [
        "春の朝、庭に小さな鳥が来ました。",
        "店主は静かに戸を閉めて、明かりを消した。",
        "お茶をどうぞ。今日は寒うございますね。",
    ]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = [json.dumps({"text": texts[i % 3] * (60 + i % 7)}, ensure_ascii=False) for i in range(60)]
    (corpus / "all.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "model"
    main(["--corpus", str(corpus), "--out", str(out), "--steps", "3"])
    card = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert card["seen_tokens"] == 3 * 16 * 127
    hooked = moelens.load(str(out))
    assert hooked.shape.n_experts == 32


def test_batches_depend_on_seed_and_step_alone(demo: moelens.HookedMoE) -> None:
    texts = [document.text for document in Corpus.of("demo")]
    stream, recipe = (
        np.concatenate([np.array(demo.tokenizer(t)["input_ids"]) for t in texts]),
        Recipe(rows=4, context=16),
    )
    starts = sentence_starts(stream, demo.tokenizer)
    first, again = (batch(stream, starts, 5, recipe) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, batch(stream, starts, 6, recipe))
    assert (first[:, 0] == 0).all()
    joined = "".join(texts)
    for row in first:
        before = joined.partition(demo.tokenizer.decode(row[1:8]))[0]
        assert before == "" or before.endswith(("。", "」", "！", "？", "\n", *(t[-1] for t in texts)))
