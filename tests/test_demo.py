"""The bundled model and the main job, end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import moelens
from moelens.demo.texts import TrainingRows, build_tokenizer, encode, read_documents, row_starts
from moelens.demo.train import Recipe, TrainingStep, build_model, main, run_training
from moelens.demo.trigram import trigram_nats
from moelens.errors import RecordingError
from moelens.models.loading import DEMO
from moelens.recording import Corpus
from moelens.workflows.demo_run import run_demo

ROOT = Path(__file__).parents[1]


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
    assert sum(f.stat().st_size for f in DEMO.iterdir()) < 30e6


def test_the_card_keeps_its_promises(demo: moelens.HookedMoE) -> None:
    card = json.loads((DEMO / "training.json").read_text(encoding="utf-8"))
    text = (DEMO / "README.md").read_text(encoding="utf-8")
    assert card["seen_tokens"] >= 45e6
    for source in ("works", "dialogues"):
        measured = card["held_out"][source]
        assert measured["bits_per_character"] <= measured["trigram_bits_per_character"] - 0.25
        assert np.array(measured["load"]).min() > 0
        for name in ("bits_per_character", "trigram_bits_per_character"):
            assert f"{measured[name]:.3f}" in text
    share = card["recipe"]["dialogue_share"]
    works, dialogues = (np.array(card["held_out"][source]["load"]) for source in ("works", "dialogues"))
    assert ((1 - share) * works + share * dialogues).max() < 2
    assert works.max() < 2
    assert "CC BY 4.0" in text
    assert "megagonlabs/asdc" in (ROOT / "NOTICE").read_text(encoding="utf-8")
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
    assert len(page) < 4.5e6
    assert "丁寧語" in str(found)
    assert moelens.Specialization.open(out / "honorifics.json").n_tokens > 4000
    best = found.results["honorifics"].top(1, "丁寧語")[0]
    assert best.significant
    assert best.lift > 3

    with pytest.raises(
        RecordingError, match=r"expected a new or empty folder, got .*; give another folder with --out, or --force"
    ):
        run_demo(out, progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("do not delete")
    with pytest.raises(
        RecordingError, match=r"expected the folder of an earlier demo run, got .* which has other files"
    ):
        run_demo(tmp_path / "other", force=True, progress=False)
    (out / "note.txt").write_text("mine")
    run_demo(out, force=True, lang="ja", progress=False)
    assert (out / "note.txt").read_text() == "mine"
    assert "a token carries" not in (out / "report.html").read_text(encoding="utf-8")  # the facts are in Japanese too


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


SENTENCES = [
    "春の朝、庭に小さな鳥が来ました。",
    "店主は静かに戸を閉めて、明かりを消した。",
    "お茶をどうぞ。今日は寒うございますね。",
]
TURNS = [
    {"role": "customer", "text": "禁煙の部屋はありますか?"},
    {"role": "operator", "text": "はい、ございます。"},
]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of works and one of dialogues, each with a part held out."""
    folder = tmp_path_factory.mktemp("corpora")
    for name, rows in {
        "works": [{"text": SENTENCES[i % 3] * (60 + i % 7)} for i in range(60)],
        "dialogues": [{"turns": TURNS * (1 + i % 3)} for i in range(400)],
    }.items():
        (folder / name).mkdir()
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / name / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        (folder / name / "valid.jsonl").write_text("\n".join(lines[:200]), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_training_ends_in_a_model_and_its_card(corpora: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    folders = ["--works", str(corpora / "works"), "--dialogues", str(corpora / "dialogues"), "--out", str(out)]
    main([*folders, "--steps", "3", "--rows", "4", "--no-compile", "--no-bf16"])
    report = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert report["seen_tokens"] == 3 * 4 * 255
    assert set(report["held_out"]) == {"works", "dialogues"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in card
    assert f"{report['held_out']['dialogues']['bits_per_character']:.3f}" in card
    assert moelens.load(str(out)).shape.n_experts == 32


def test_a_dialogue_becomes_lines_that_name_the_speaker(corpora: Path, tmp_path: Path) -> None:
    first = read_documents(corpora / "dialogues", "train")[0]
    assert first == "客：禁煙の部屋はありますか？\n係：はい、ございます。"
    with pytest.raises(SystemExit, match=r"expected test\*\.jsonl or test\*\.jsonl\.gz in '.*', found none"):
        read_documents(tmp_path, "test")


def small_run(corpora: Path, steps: int) -> tuple[TrainingStep, TrainingRows, Recipe]:
    recipe = Recipe(steps=steps, rows=2, context=32, vocab_size=300)
    texts = [read_documents(corpora / name, "train")[:20] for name in ("works", "dialogues")]
    tokenizer = build_tokenizer(texts[0] + texts[1], recipe.vocab_size)
    streams = [encode(tokenizer, own) for own in texts]
    starts = [row_starts(stream, tokenizer, 31) for stream in streams]
    rows = TrainingRows(streams, starts, (0.5, 0.5), recipe.steps * recipe.rows, 31, recipe.seed)
    return TrainingStep(build_model(recipe), recipe, bf16=False, compiled=False), rows, recipe


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The same sums in the same order: with several threads, the order in which they add is left to chance."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_was_stopped_ends_where_the_whole_one_does(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rows, _ = small_run(corpora, 4)
    run_training(whole, rows, tmp_path / "whole")
    stopped, _, _ = small_run(corpora, 4)

    def batch(number: int, n: int) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return TrainingRows.batch(rows, number, n)

    monkeypatch.setattr(rows, "batch", batch)
    with pytest.raises(KeyboardInterrupt):
        run_training(stopped, rows, tmp_path / "part", save_every=1)
    monkeypatch.undo()
    again, _, _ = small_run(corpora, 4)
    run_training(again, rows, tmp_path / "part", save_every=1)
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_padded_experts_equal_those_of_transformers(corpora: Path) -> None:
    """With room for every token the training step's experts compute what `grouped_mm` does."""
    recipe = Recipe(vocab_size=300, capacity=32.0)
    model, ids = build_model(recipe), torch.arange(64).reshape(2, 32)
    expected = model(ids).logits
    step = TrainingStep(model, recipe, bf16=False, compiled=False)
    torch.testing.assert_close(step.model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_rows_read_a_source_whole_before_they_repeat_it(demo: moelens.HookedMoE) -> None:
    texts = [document.text for document in Corpus.of("demo")]
    stream = encode(demo.tokenizer, texts)
    starts = row_starts(stream, demo.tokenizer, 15)
    assert (np.diff(starts) <= 15).all(), "no token is left out"
    total = 2 * len(starts)
    rows = TrainingRows(
        [stream, stream[:400]], [starts, row_starts(stream[:400], demo.tokenizer, 15)], (0.5, 0.5), total, 15, 7
    )
    first = np.concatenate([rows.batch(step, 4) for step in range(total // 4)])
    again = np.concatenate([rows.batch(step, 4) for step in range(total // 4)])
    assert (first == again).all()
    assert (first[:, 0] == 0).all()
    seen = {row.tobytes() for row in first[:, 1:]}
    whole = {stream[at : at + 15].tobytes() for at in starts}
    assert len(whole - seen) <= 4, "all but the last rows, which fill no batch"
