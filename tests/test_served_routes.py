"""Routes that engines served: from real generations of the bundled model to the counts of a recording."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import engine as forms
from helpers.engine import CHAT_TEMPLATE, Engine, Generation
from helpers.results import result_of

import moelens
from moelens import MoeLensError, Recording, import_routes
from moelens.analysis import Specialization
from moelens.analysis.measures import counts_of
from moelens.commands.command_line import main
from moelens.errors import RecordingError, UnknownNameError
from moelens.models.loading import DEMO
from moelens.recording.route_inputs import Answer, Part
from moelens.recording.route_texts import Places, place_rows
from moelens.views.cards import card_html

PROMPTS = [
    "先生がこちらへいらっしゃったので、私は",
    "お客様に資料をお渡しして、",
    "明日の朝、母が駅まで",
    "ご注文の品をお届けに",
    "雨がやんだら、少し歩いて",
]
TOKENS = 9  # generated, of which the last is not run


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = moelens.load("demo")
    model.tokenizer.chat_template = CHAT_TEMPLATE
    return Engine(model)


@pytest.fixture(scope="module")
def single(engine: Engine) -> list[Generation]:
    return [engine.generate(prompt, TOKENS) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def recorded(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    out = tmp_path_factory.mktemp("recorded") / "run"
    return moelens.record(engine.model, PROMPTS, out, generate=TOKENS - 1, progress=False)


def write(folder: Path, lines: Sequence[Any]) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
    return path


def without(answer: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in names}


def require_same(made: Recording, own: Recording) -> None:
    """The same tokens at the same characters with the same routes, and so the same counts of labels."""
    for name in ("doc", "pos", "token_id", "char_start", "char_end", "partial"):
        np.testing.assert_array_equal(made.column(name), own.column(name), name)
    np.testing.assert_array_equal(made.indices(), own.indices())
    assert made.documents() == own.documents()
    for recording in (made, own):
        moelens.label(recording, processes=1)
    for family in ("pos", "honorifics"):
        a, b = counts_of(made, family), counts_of(own, family)
        assert a.names == b.names
        np.testing.assert_array_equal(a.count, b.count)
        np.testing.assert_array_equal(a.label_tokens, b.label_tokens)
    assert counts_of(made, "pos").count.sum() > 100


# One turn: by the name of the form, the engine, the response, and whether the prompts have to be given.
SINGLE: dict[str, tuple[str, Callable[[Generation], Any], bool]] = {
    "sglang /generate": ("sglang", forms.sglang_generate, True),
    "sglang /generate with prompt_token_ids": (
        "sglang",
        lambda g: forms.sglang_generate(g) | {"prompt_token_ids": g.prompt_ids},
        False,
    ),
    "sglang /generate without a tokenizer": ("sglang", lambda g: without(forms.sglang_generate(g), "text"), True),
    "sglang /generate of the first versions": (
        "sglang",
        lambda g: (
            (a := forms.sglang_generate(g)) | {"meta_info": a["meta_info"] | {"routed_experts": g.routes.tolist()}}
        ),
        True,
    ),
    "sglang /generate in a batch": ("sglang", lambda g: forms.sglang_batch([g]), True),
    "sglang /v1/completions": ("sglang", lambda g: forms.sglang_completions([g]), True),
    "sglang /v1/completions with ids": ("sglang", lambda g: forms.sglang_completions([g], token_ids=True), False),
    "sglang /v1/completions, sgl_ext": ("sglang", lambda g: forms.sglang_choices([g]), False),
    "sglang /v1/chat/completions": ("sglang", lambda g: forms.sglang_chat([g]), False),
    "vllm offline": ("vllm", lambda g: forms.vllm_offline([g]), False),
    "vllm /v1/completions": ("vllm", lambda g: forms.vllm_completions([g]), False),
    "vllm /v1/chat/completions": ("vllm", lambda g: forms.vllm_chat([g]), False),
    "vllm /v1/chat/completions of 0.21": ("vllm", lambda g: forms.vllm_chat([g], split=True), False),
    "vllm /inference/v1/generate": (
        "vllm",
        lambda g: {"request": {"token_ids": g.prompt_ids}, "response": forms.vllm_generate([g])},
        False,
    ),
    "a batch file": (
        "vllm",
        lambda g: {
            "custom_id": "1",
            "request": {"body": {"prompt": g.prompt}},
            "response": {"status_code": 200, "body": forms.vllm_completions([g])},
            "error": None,
        },
        False,
    ),
}


@pytest.mark.parametrize("form", SINGLE)
def test_one_turn(tmp_path: Path, single: list[Generation], recorded: Recording, form: str) -> None:
    kind, answer, ask = SINGLE[form]
    path = write(tmp_path, [answer(g) for g in single])
    made = import_routes(path, tmp_path / "run", kind=kind, model="demo", texts=PROMPTS if ask else None)
    require_same(made, recorded)
    assert made.tokens(["phase"]) == recorded.tokens(["phase"])
    assert made.manifest["tokenizer"]["sha256"] == recorded.manifest["tokenizer"]["sha256"]
    made.verify()


def test_the_commands_find_what_a_recording_finds(tmp_path: Path, engine: Engine) -> None:
    prompts = [document.text[:24] for document in moelens.Corpus.of("demo")][:24]
    write(tmp_path, [forms.sglang_generate(engine.generate(prompt, TOKENS)) for prompt in prompts])
    corpus = tmp_path / "prompts.jsonl"
    corpus.write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    answers = str(tmp_path / "answers.jsonl")
    results = []
    for command in (
        ["import", answers, "--from", "sglang", "--model", "demo", "--texts", str(corpus)],
        ["record", "demo", str(corpus), "--generate", str(TOKENS - 1)],
    ):
        out = f"{tmp_path}/{command[0]}"
        assert main([*command, "--out", out]) == 0
        assert main(["label", out]) == 0
        assert main(["analyze", out, "--family", "pos", "--permutations", "19", "--out", f"{out}.json"]) == 0
        results.append(Specialization.open(f"{out}.json"))
    served, own = results
    assert served.names == own.names
    np.testing.assert_array_equal(served.counts.count, own.counts.count)
    np.testing.assert_array_equal(served.counts.expert_tokens, own.counts.expert_tokens)
    np.testing.assert_array_equal(served.q, own.q)


# Several choices

CHOICES: dict[str, tuple[str, Callable[[list[Generation]], Any]]] = {
    "sglang /generate": ("sglang", forms.sglang_batch),
    "sglang sgl_ext": ("sglang", forms.sglang_choices),
    "sglang chat": ("sglang", forms.sglang_chat),
    "vllm offline": ("vllm", forms.vllm_offline),
    "vllm completions": ("vllm", forms.vllm_completions),
    "vllm chat": ("vllm", forms.vllm_chat),
    "vllm chat of 0.21": ("vllm", lambda gs: forms.vllm_chat(gs, split=True)),
}


@pytest.fixture(scope="module")
def sampled(engine: Engine) -> list[list[Generation]]:
    return [[engine.generate(prompt, TOKENS, seed=seed) for seed in range(3)] for prompt in PROMPTS[:2]]


@pytest.mark.parametrize("form", CHOICES)
def test_choices_are_documents_of_their_own(
    tmp_path: Path, engine: Engine, sampled: list[list[Generation]], form: str
) -> None:
    kind, answer = CHOICES[form]
    requests = [{"text": prompt, "sampling_params": {"n": 3}} for prompt in PROMPTS[:2]]
    path = write(tmp_path, [answer(generations) for generations in sampled])
    made = import_routes(path, tmp_path / "run", kind=kind, model="demo", texts=requests)
    every = [g for generations in sampled for g in generations]
    expected = np.concatenate([g.routes[:, 1:] for g in every])
    np.testing.assert_array_equal(made.indices(), expected)
    assert made.documents()["text"].to_pylist() == [g.prompt for g in every]
    ids = [(g.prompt_ids + g.output_ids)[:-1] for g in every]
    assert made.column("token_id").tolist() == [i for one in ids for i in one]
    # Read as texts, the same tokens have the same routes and labels.
    texts = list(made.texts())
    own = moelens.record(engine.model, texts, tmp_path / "own", progress=False)
    if own.column("token_id").tolist() == made.column("token_id").tolist():
        np.testing.assert_array_equal(own.column("char_end"), made.column("char_end"))
        np.testing.assert_array_equal(counts_of(own, "pos").count, counts_of(made, "pos").count)


def test_several_prompts_in_one_request(tmp_path: Path, single: list[Generation], recorded: Recording) -> None:
    answer = forms.vllm_completions(single)
    answer["usage"] = {"prompt_tokens": 999, "completion_tokens": 999}  # of all prompts and choices
    for choice in answer["choices"]:
        del choice["prompt_token_ids"]
    path = write(tmp_path, [{"request": {"prompt": PROMPTS}, "response": answer}])
    require_same(import_routes(path, tmp_path / "run", kind="vllm", model="demo"), recorded)


def kept(docs: Any, numbers: np.ndarray) -> np.ndarray:
    """The documents of rows that are among some documents."""
    of_rows: np.ndarray = np.asarray(docs)
    return of_rows[np.isin(of_rows, numbers)]


def test_sglang_returns_the_first_choice_alone(tmp_path: Path, sampled: list[list[Generation]]) -> None:
    answers = [forms.sglang_completions(generations, token_ids=True) for generations in sampled]
    options: dict[str, Any] = {"kind": "sglang", "model": "demo", "texts": PROMPTS[:2]}
    path = write(tmp_path, answers)
    with pytest.raises(MoeLensError, match=r"expected routed_experts in document 1 \(answers.jsonl line 1 choice 1\),"):
        import_routes(path, tmp_path / "run", **options)
    made = import_routes(path, tmp_path / "run", **options, skip_uncaptured=True)
    np.testing.assert_array_equal(made.indices(), np.concatenate([gs[0].routes[:, 1:] for gs in sampled]))
    assert made.n_documents == 6
    assert sorted(set(made.column("doc").tolist())) == [0, 3]
    assert made.n_uncaptured == sum(len(g.routes) for gs in sampled for g in gs[1:])
    assert sorted(set(made.uncaptured()["doc"].to_pylist())) == [1, 2, 4, 5]
    for sample in (made.sample(5, seed) for seed in range(6)):
        numbers = np.asarray(sample.drawn.numbers)  # type: ignore[union-attr]
        assert np.array_equal(numbers[sample.uncaptured()["doc"].to_numpy()], kept(made.uncaptured()["doc"], numbers))
        assert np.array_equal(numbers[sample.column("doc")], kept(made.column("doc"), numbers))
        assert sample.n_uncaptured == len(sample.uncaptured())
    empty = next(seed for seed in range(20) if np.random.default_rng(seed).permutation(6)[0] in (1, 2, 4, 5))
    with pytest.raises(MoeLensError, match="expected documents with tokens, got 1 document without any; draw more"):
        made.sample(1, empty)


# Conversations

USER = ["ご予約はお済みですか。", "では、お席へご案内します。"]


@pytest.fixture(scope="module")
def turns(engine: Engine) -> list[Generation]:
    messages: list[dict[str, str]] = []
    found = []
    for said in USER:
        messages.append({"role": "user", "content": said})
        g = engine.chat(messages, TOKENS)
        found.append(g)
        messages.append({"role": "assistant", "content": g.text})
    return found


def chat_request(turns: list[Generation], n: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": USER[0]}]
    if n:
        messages += [{"role": "assistant", "content": turns[0].text}, {"role": "user", "content": USER[1]}]
    return {"model": "demo", "messages": messages}


@pytest.mark.parametrize(
    "kind, answer, asked",
    [
        ("sglang", forms.sglang_chat, False),
        ("vllm", forms.vllm_chat, False),
        ("sglang", lambda gs: forms.sglang_completions(gs) | {"object": "chat.completion"}, True),
    ],
    ids=["sglang", "vllm", "rendered by the chat template"],
)
def test_each_turn_of_a_chat(
    tmp_path: Path, engine: Engine, turns: list[Generation], kind: str, answer: Any, asked: bool
) -> None:
    path = write(tmp_path, [answer([g]) for g in turns])
    requests = [chat_request(turns, n) for n in range(2)] if asked else None
    made = import_routes(path, tmp_path / "run", kind=kind, model="demo", tokenizer=engine.tokenizer, texts=requests)
    texts = [g.prompt.removeprefix("<s>") for g in turns]
    own = moelens.record(engine.model, texts, tmp_path / "own", generate=TOKENS - 1, progress=False)
    require_same(made, own)
    assert made.tokens(["phase"]) == own.tokens(["phase"])


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize(
    "kind, answer, name",
    [
        ("sglang", forms.sglang_chat, "routed_experts_start_len"),
        ("sglang", lambda gs, start: forms.sglang_generate(gs[0], start), "routed_experts_start_len"),
        ("vllm", forms.vllm_chat, "routed_experts_prompt_start"),
        ("vllm", lambda gs, start: forms.vllm_chat(gs, start, split=True), "routed_experts_prompt_start"),
    ],
    ids=["sglang chat", "sglang /generate", "vllm chat", "vllm chat of 0.21"],
)
def test_rows_from_a_start_are_joined(
    tmp_path: Path, engine: Engine, turns: list[Generation], kind: str, answer: Any, name: str, stated: bool
) -> None:
    """The second response has the rows of the new turn alone; the recording has the whole conversation once."""
    start = len(turns[0].routes)
    assert turns[1].prompt_ids[:start] == [*turns[0].prompt_ids, *turns[0].output_ids][:start]
    lines = [answer([turns[0]], 0), answer([turns[1]], start)]
    requests = [chat_request(turns, n) | ({name: start * n} if stated else {}) for n in range(2)]
    path = write(tmp_path, lines)
    made = import_routes(path, tmp_path / "run", kind=kind, model="demo", tokenizer=engine.tokenizer, texts=requests)
    own = moelens.record(
        engine.model, [turns[1].prompt.removeprefix("<s>")], tmp_path / "own", generate=TOKENS - 1, progress=False
    )
    require_same(made, own)
    decode = np.array(made.tokens(["phase"])["phase"].to_pylist()) == "decode"
    n = len(turns[0].prompt_ids)
    expected = np.zeros(len(decode), np.bool_)
    expected[n:start] = expected[len(turns[1].prompt_ids) :] = True  # generated in the first turn and in the second
    np.testing.assert_array_equal(decode, expected)


def test_rows_from_a_start_without_the_earlier_turn(tmp_path: Path, engine: Engine, turns: list[Generation]) -> None:
    start = len(turns[0].routes)
    other = engine.generate(PROMPTS[0], TOKENS)
    path = write(tmp_path, [forms.vllm_completions([other]), forms.vllm_chat([turns[1]], start)])
    made = import_routes(path, tmp_path / "run", kind="vllm", model="demo")
    second = made.column("doc") == 1
    assert made.column("pos")[second].tolist() == list(range(start, len(turns[1].routes)))
    np.testing.assert_array_equal(made.indices()[second], turns[1].routes[start:, 1:])
    text = made.documents()["text"].to_pylist()[1] + made.documents()["generated"].to_pylist()[1]
    first, last = (made.column(name)[second] for name in ("char_start", "char_end"))
    assert text[first[0] : last[-1]] == text[first[0] :]
    moelens.label(made, processes=1)
    out = moelens.export(made, "csv", tmp_path / "csv", family="pos")  # positions do not begin at 0
    with open(out / "tokens.csv", encoding="utf-8-sig", newline="") as file:  # a token may be a line feed
        assert len(list(csv.reader(file))) == made.n_tokens + 1


def test_a_conversation_that_was_changed_is_not_joined(tmp_path: Path, engine: Engine, turns: list[Generation]) -> None:
    """Two second turns after one first turn: one continues it, and no token is counted twice."""
    start = len(turns[0].routes)
    again = engine.chat([*chat_request(turns, 1)["messages"][:2], {"role": "user", "content": "また明日。"}], TOKENS)
    lines = [forms.vllm_chat([turns[0]]), forms.vllm_chat([turns[1]], start), forms.vllm_chat([again], start)]
    made = import_routes(write(tmp_path, lines), tmp_path / "run", kind="vllm", model="demo")
    assert made.n_documents == 2
    assert made.n_tokens == len(turns[1].routes) + len(again.routes) - start
    assert made.column("pos")[made.column("doc") == 1][0] == start


# Texts and tokenizers


@pytest.fixture
def answers(tmp_path: Path, single: list[Generation]) -> Path:
    return write(tmp_path, [forms.sglang_generate(g) for g in single])


SERVED: dict[str, Any] = {"kind": "sglang", "shape": (5, 4), "layers": [1, 2, 3, 4], "n_experts": 32}


@pytest.mark.parametrize(
    "options, reason",
    [
        ({}, "no tokenizer was given"),
        ({"model": "owner/name"}, "no tokenizer was given, and that of 'owner/name' cannot be loaded"),
        ({"tokenizer": "demo"}, "answers.jsonl line 1 has neither the token ids nor the text of the prompt"),
    ],
)
def test_what_cannot_be_aligned_is_not_labelled(
    tmp_path: Path, answers: Path, options: dict[str, Any], reason: str
) -> None:
    made = import_routes(answers, tmp_path / "run", **SERVED, **options)
    assert made.manifest["alignment"] == {"unaligned_documents": 5, "reason": reason}
    assert f"not aligned with texts: {reason})" in repr(made)
    assert moelens.measure(made, "load").values.shape == (4, 32)  # needs no texts
    views: dict[str, Callable[[], Any]] = {
        "label": lambda: moelens.label(made),
        "analyze": lambda: moelens.analyze(made, "pos", given=None),
        "report": lambda: moelens.report(made, tmp_path / "report.html"),
        "explore": lambda: moelens.explore(made),
        "probe": lambda: moelens.probe(made, "pos"),
        "card": lambda: card_html(result_of(4, 32), 3, 5, made),
    }
    for name, view in views.items():
        with pytest.raises(RecordingError) as error:
            view()
        message = str(error.value)
        assert message.startswith("expected tokens that are aligned with their texts, got"), name
        assert f"where those of 5 of 5 documents are not ({reason}); import the routes again with" in message
    assert main(["label", str(tmp_path / "run")]) == 2


def test_one_document_that_cannot_be_aligned(tmp_path: Path, single: list[Generation]) -> None:
    lines = [forms.sglang_generate(g) | {"prompt": g.prompt} for g in single]
    del lines[3]["prompt"]
    made = import_routes(write(tmp_path, lines), tmp_path / "run", kind="sglang", model="demo")
    with pytest.raises(RecordingError, match=r"those of 1 of 5 documents are not \(answers.jsonl line 4 has neither"):
        moelens.label(made)


def test_token_ids_of_a_text(tmp_path: Path, single: list[Generation], recorded: Recording) -> None:
    """An OpenAI client that asked for no token ids: the tokenizer gives them, if it gives as many as were counted."""
    lines = [forms.sglang_completions([g]) for g in single]
    made = import_routes(write(tmp_path, lines), tmp_path / "run", kind="sglang", model="demo", texts=PROMPTS)
    assert made.manifest["tokenizer"]["documents_by_ids"] == {"tokenizer": 5}
    np.testing.assert_array_equal(made.column("token_id"), recorded.column("token_id"))
    lines[1]["choices"][0]["text"] += "、あれこれ"
    made = import_routes(write(tmp_path, lines), tmp_path / "other", kind="sglang", model="demo", texts=PROMPTS)
    reason = "answers.jsonl line 2 has no token ids of the completion, and its text has another number of tokens"
    assert made.manifest["alignment"] == {"unaligned_documents": 1, "reason": reason}


def other_tokenizer(folder: Path) -> str:
    """Save a tokenizer that numbers the tokens of the bundled one in another way."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((DEMO / name).read_text("utf-8"), "utf-8")
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = state["model"]["vocab"]
    first, last = sorted(vocabulary.values())[300], sorted(vocabulary.values())[-1]
    state["model"]["vocab"] = {t: i if i < first else last - (i - first) for t, i in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    return str(folder)


def test_the_tokenizer_of_another_model(tmp_path: Path, answers: Path, single: list[Generation]) -> None:
    other = other_tokenizer(tmp_path)
    with pytest.raises(
        MoeLensError, match=r"expected the completion '.*' from its token ids in answers.jsonl line 1, got"
    ):
        import_routes(answers, tmp_path / "run", **SERVED, tokenizer=other, texts=PROMPTS)
    path = write(tmp_path, [forms.vllm_offline([g]) for g in single])
    options = {**SERVED, "kind": "vllm"}
    with pytest.raises(
        MoeLensError, match=r"expected the token ids in answers.jsonl line 1 to be those of the text '先生"
    ):
        import_routes(path, tmp_path / "run", **options, tokenizer=other)
    lines = [forms.vllm_offline([g]) for g in single]
    lines[0]["outputs"][0]["token_ids"] = [6000, *single[0].output_ids[1:]]
    with pytest.raises(
        MoeLensError, match=r"expected token ids below 6000, the size of the tokenizer's vocabulary, in ans"
    ):
        import_routes(write(tmp_path, lines), tmp_path / "run", **options, tokenizer="demo")
    with pytest.raises(UnknownNameError, match="unknown tokenizer 'nowhere'"):
        import_routes(path, tmp_path / "run", **options, tokenizer="nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "texts, message",
    [
        (
            PROMPTS[::-1],
            "expected 11 tokens of the prompt 'ご注文の品をお届けに' in answers.jsonl line 2, got 7 from the",
        ),
        (PROMPTS[:4], "expected a text for each line or document of answers.jsonl, got only 4; give them in the same"),
        ([*PROMPTS, "雨"], "expected a text for each line or document of answers.jsonl, got more than 5; give them in"),
        ([5] * 5, "expected a prompt in answers.jsonl line 1, which is a text or a list of token ids, got 5; give the"),
        ([["雨", "雪"]] * 5, "expected as many responses to each of 2 prompts in answers.jsonl line 1, got 1 in all;"),
        ("nowhere.txt", "no such file of texts: 'nowhere.txt'; give a .txt, .jsonl or .parquet file"),
    ],
)
def test_texts_that_do_not_fit(tmp_path: Path, answers: Path, texts: Any, message: str) -> None:
    with pytest.raises(MoeLensError) as error:
        import_routes(answers, tmp_path / "run", kind="sglang", model="demo", texts=texts)
    assert str(error.value).startswith(message)


def test_arrays_with_their_texts(tmp_path: Path, engine: Engine, single: list[Generation]) -> None:
    own = moelens.record(engine.model, PROMPTS, tmp_path / "own", progress=False)
    arrays = {
        "expert_ids": own.indices(),
        "gate_weights": own.weights(),
        "sequence_lengths": np.bincount(own.column("doc")),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", **arrays, token_ids=own.column("token_id"))
    for name, texts in (("a", PROMPTS), ("b", None), ("b", PROMPTS)):
        made = import_routes(tmp_path / f"{name}.npz", tmp_path / "run", model="demo", texts=texts, force=True)
        require_same(made, own)
        np.testing.assert_array_equal(made.weights(), own.weights())
    with pytest.raises(MoeLensError, match=r"expected \d+ tokens of the prompt"):
        import_routes(tmp_path / "a.npz", tmp_path / "run", model="demo", texts=PROMPTS[::-1], force=True)
    with pytest.raises(MoeLensError, match=r"expected the text of a document in text 0, got 5; give it as a string"):
        import_routes(tmp_path / "a.npz", tmp_path / "run", model="demo", texts=[5] * 5, force=True)  # type: ignore[list-item]


@pytest.mark.parametrize(
    "line, message",
    [
        (
            {"object": "chat.completion.chunk", "choices": []},
            "expected a whole response in answers.jsonl line 1, got {'ob",
        ),
        (
            {"error": {"message": "overloaded"}},
            "expected a whole response in answers.jsonl line 1, got {'error': {'messa",
        ),
        ({"response": None, "error": {"code": 500}}, "expected a response, which is a JSON object, in answers.jsonl"),
        (
            {"text": "雨", "meta_info": {}},
            "expected routed_experts in document 0 (answers.jsonl line 1), got none; name",
        ),
    ],
)
def test_lines_that_are_no_answers(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(MoeLensError) as error:
        import_routes(write(tmp_path, [line]), tmp_path / "run", kind="sglang", model="demo")
    assert str(error.value).startswith(message)


def streamed(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer as a stream sends it before its end."""
    for place in [answer.get("meta_info", {}), *answer.get("choices", [])]:
        place["finish_reason"] = None
    return answer | ({"finished": False} if "finished" in answer else {})


@pytest.mark.parametrize(
    "kind, answer",
    [
        ("sglang", lambda g: streamed(forms.sglang_generate(g))),
        ("sglang", lambda g: [forms.sglang_generate(g), streamed(forms.sglang_generate(g))]),
        ("sglang", lambda g: streamed(forms.sglang_completions([g]))),
        ("vllm", lambda g: streamed(forms.vllm_completions([g]))),
        ("vllm", lambda g: streamed(forms.vllm_offline([g]))),
        ("vllm", lambda g: {"request": {"token_ids": [1]}, "response": streamed(forms.vllm_generate([g]))}),
    ],
)
def test_pieces_of_a_stream(tmp_path: Path, single: list[Generation], kind: str, answer: Any) -> None:
    path = write(tmp_path, [answer(single[0])])
    with pytest.raises(MoeLensError, match=r"expected a whole response in answers.jsonl line 1, got .*; request it"):
        import_routes(path, tmp_path / "run", kind=kind, model="demo", skip_uncaptured=True)


def test_an_aborted_request_has_the_tokens_that_were_run(tmp_path: Path, single: list[Generation]) -> None:
    """After some tokens, and before the first."""
    g = single[0]
    some, none = forms.vllm_completions([g]), forms.vllm_completions([g])
    for answer, n in ((some, 3), (none, 0)):
        choice, n_prompt = answer["choices"][0], len(g.prompt_ids)
        rows = g.routes[: n_prompt + max(n - 1, 0)]
        choice |= {"finish_reason": "abort", "token_ids": g.output_ids[:n], "routed_experts": forms.npy_base64(rows)}
        choice["text"] = ""
        answer["usage"] = {"prompt_tokens": n_prompt, "completion_tokens": n}
    made = import_routes(write(tmp_path, [some, none]), tmp_path / "run", kind="vllm", model="demo")
    lengths = np.bincount(made.column("doc"))
    assert lengths.tolist() == [len(g.prompt_ids) + 2, len(g.prompt_ids)]
    assert made.tokens(["phase"])["phase"].to_pylist().count("decode") == 2


def test_the_prompt_is_counted_in_all_responses_or_in_none(tmp_path: Path, single: list[Generation]) -> None:
    lines = [forms.vllm_offline([g]) for g in single[:2]]
    lines[1] = {"outputs": [{"routed_experts": single[1].routes.tolist()}]}
    with pytest.raises(
        MoeLensError, match=r"expected the number of prompt tokens in all responses of answers.jsonl or in"
    ):
        import_routes(write(tmp_path, lines), tmp_path / "run", kind="vllm", model="demo")


# Numbers of tokens

P, C = Part(tokens=5), Part(tokens=4)


@pytest.mark.parametrize(
    "prompt, completion, start, rows, expected",
    [
        (P, C, None, 8, Places(0, 5, 9)),
        (P, C, None, 9, Places(0, 5, 9)),  # the last token was run too
        (P, C, None, 3, Places(5, 5, 9)),
        (P, C, 2, 6, Places(2, 5, 9)),
        (P, Part(), None, 8, Places(0, 5, 9)),
        (P, Part(), 2, 6, Places(2, 5, 9)),
        (Part(), C, None, 8, Places(0, 5, 9)),
        (Part(), Part(), None, 8, Places(0, None, 9)),
        (Part(ids=[1] * 5), Part(ids=[1] * 4), None, 8, Places(0, 5, 9)),
        (P, None, None, 5, Places(0, None, 5)),
        (P, C, None, None, Places(0, 5, 9)),
    ],
)
def test_where_rows_belong(
    prompt: Part, completion: Part | None, start: int | None, rows: int | None, expected: Places
) -> None:
    assert place_rows(Answer(at="", routes=None, start=start, prompt=prompt, completion=completion), rows) == expected


@pytest.mark.parametrize(
    "completion, start, rows", [(C, None, 10), (C, None, 2), (C, 2, 5), (C, 6, 2), (Part(), None, 3)]
)
def test_rows_that_do_not_fit(completion: Part, start: int | None, rows: int) -> None:
    answer = Answer(at="a.jsonl line 1", routes=None, start=start, prompt=P, completion=completion)
    with pytest.raises(
        MoeLensError, match=r"expected rows of experts for the 5 prompt and .* generated tokens in a.json"
    ):
        place_rows(answer, rows)
