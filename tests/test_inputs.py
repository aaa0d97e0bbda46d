"""Corpora, files and metadata that cannot be recorded as they are, and what happens to them before the model runs."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.known_model import BOS, Model, tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

import moelens
from moelens.errors import MoeLensError
from moelens.interventions.items import as_items, read_pair_lines
from moelens.recording import Corpus, Recording, record
from moelens.recording.conversations import with_chat_template
from moelens.text_files import read_json_lines, read_lines, read_text, split_lines

ROWS = [{"text": "先生", "id": 1}, {"text": "行く", "id": 2}]


def documents(source: Any, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(d.text, dict(d.metadata)) for d in Corpus.of(source, **options)]


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the error that a call raises."""
    with pytest.raises(MoeLensError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# Tables and mappings


def frame(**options: Any) -> Any:
    return pytest.importorskip("pandas").DataFrame(ROWS, **options)


TABLES = [
    pytest.param(frame, marks=pytest.mark.tried("Inputs", "a pandas DataFrame as corpus", "its rows are documents")),
    pytest.param(lambda: frame()[lambda f: f.id > 0].set_axis([5, 7]), id="an index without a name is no column"),
    pytest.param(lambda: frame().set_index("id")[["text"]], id="an index with a name is one"),
    pytest.param(lambda: pytest.importorskip("polars").DataFrame(ROWS), id="polars"),
    pytest.param(lambda: pa.Table.from_pylist(ROWS), id="arrow"),
    pytest.param(lambda: pa.RecordBatch.from_pylist(ROWS), id="batch"),
    pytest.param(lambda: pytest.importorskip("datasets").Dataset.from_list(ROWS), id="dataset"),
    pytest.param(
        lambda: {"text": ["先生", "行く"], "id": np.array([1, 2])},
        marks=pytest.mark.tried("Inputs", "a dict of lists as corpus", "its rows are documents"),
    ),
]


@pytest.mark.parametrize("make", TABLES)
def test_a_table_gives_rows(make: Callable[[], Any]) -> None:
    corpus = Corpus.of(make())
    for _ in range(2):
        assert [(d.text, dict(d.metadata)) for d in corpus] == [("先生", {"id": 1}), ("行く", {"id": 2})]


def splits(name: str) -> Any:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    part = data.to_iterable_dataset() if name.startswith("Iterable") else data
    return getattr(datasets, name)(train=part, test=part)


@pytest.mark.parametrize(
    "make, message",
    [
        pytest.param(
            lambda: splits("DatasetDict"),
            "expected documents, or a table with a column 'text' or 'messages', got a DatasetDict of train, test;"
            " give one of these, as in corpus[NAME]",
            marks=pytest.mark.tried("Inputs", "a `DatasetDict` as corpus", "refused; the message names its splits"),
        ),
        (lambda: splits("IterableDatasetDict"), "got an IterableDatasetDict of train, test; give one of these"),
        (lambda: {"train": ["一"], "test": ["二"]}, "got a dict of train, test; give one of these"),
        (dict, "got a dict of nothing; give one of these"),
        (
            lambda: {"text": "先生", "id": 1},
            "expected a table with one list for each column, all of the same length, got text: no list, id: no list;"
            " correct them, or put a single document into a list",
        ),
        (lambda: {"text": ["一", "二"], "id": [1]}, "all of the same length, got text: 2, id: 1; correct them"),
        pytest.param(
            lambda: io.StringIO("先生\n行く\n"),
            "expected texts, or dicts with a text, got StringIO; give a list, or the path of a file",
            marks=pytest.mark.tried("Inputs", "an open file as corpus", "refused; its lines would keep their ends"),
        ),
        pytest.param(
            lambda: {"一", "二"},
            "expected documents in an order, got a set, whose order differs from run to run; give a list, as with",
            marks=pytest.mark.tried("Inputs", "a set of texts as corpus", "refused; its order differs from run to run"),
        ),
        (lambda: 3, "expected texts, or dicts with a text, got int; give a list"),
        (lambda: None, "expected texts, or dicts with a text, got NoneType; give a list"),
        (lambda: b"ab", "document 0: expected a string or a dict with a text, got int; convert it"),
        (lambda: np.array([["一"]]), "document 0: expected a string or a dict with a text, got ndarray; convert it"),
        (
            lambda: frame(columns=["id", "body"]).assign(body=[1, "x"]),
            "expected a table whose columns each hold values of one type, got DataFrame that Arrow cannot read (",
        ),
        (
            lambda: frame(columns=["id"]),
            "unknown text column 'text'; allowed: id (row 0; choose with text_column or --text-column)",
        ),
        (
            lambda: pa.table([pa.array(["一"]), pa.array(["二"])], names=["text", "text"]),
            "row 0: two columns have the name 'text'; rename one of them",
        ),
    ],
)
def test_what_is_no_corpus(make: Callable[[], Any], message: str) -> None:
    assert message in refusal(lambda: documents(make()))


# Text that people write


@pytest.mark.tried("Inputs", "U+2028, U+0085 or form feeds in a text file", "part of the text; only `\\n` ends a line")
def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    texts = ["一\u2028二", "三\x85四", "五\x0b六\x0c七\x1c八", "九\r十"]
    path = tmp_path / "c.txt"
    path.write_bytes("\n".join(texts).encode())
    assert documents(path) == [(text, {}) for text in texts]
    assert record(Model(), path, tmp_path / "run", progress=False).documents()["text"].to_pylist() == texts
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts)
    (tmp_path / "c.jsonl").write_bytes(lines.encode("utf-8-sig"))
    assert documents(tmp_path / "c.jsonl") == [(text, {}) for text in texts]


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\n\r\0\x1b\ufeff", exclude_categories=["Cs"]), min_size=1), min_size=1
    )
)
def test_lines_come_back(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    assert split_lines("\r\n".join(lines)) == lines
    for name, write in (("c.txt", Path.write_bytes), ("c.txt.gz", lambda p, data: p.write_bytes(gzip.compress(data)))):
        path = tmp_path_factory.mktemp("lines") / name
        write(path, "\n".join(lines).encode("utf-8-sig"))
        assert [line for line, _ in read_lines(path)] == lines
        assert read_text(path) == "\n".join(lines)


JAPANESE = "いち\n先生がいらっしゃる。\n"
ENCODINGS = [
    pytest.param(
        JAPANESE.encode("cp932"),
        1,
        "CP932",
        marks=pytest.mark.tried("Inputs", "a file in CP932", "refused; names file and line, and how to convert it"),
    ),
    pytest.param(
        JAPANESE.encode("utf-16"),
        1,
        "UTF-16",
        marks=pytest.mark.tried("Inputs", "a file in UTF-16, with or without a byte order mark", "refused likewise"),
    ),
    (JAPANESE.encode("utf-16-le"), 1, "UTF-16"),
    (JAPANESE.encode("utf-16-be"), 1, "UTF-16"),
    (b"a\n" + "先生\n".encode("euc_jp"), 2, "EUC-JP"),
    pytest.param(
        b"a\n\n" + "先生\n".encode("iso2022_jp"),
        3,
        "ISO-2022-JP",
        marks=pytest.mark.tried("Inputs", "a file in ISO-2022-JP, whose bytes are valid UTF-8", "refused likewise"),
    ),
]


def readers(path: Path) -> dict[str, Callable[[], object]]:
    """What reads text that people write, by the suffix of the file."""
    from moelens.commands.script import Script

    return {
        ".txt": lambda: documents(path),
        ".jsonl": lambda: documents(path),
        ".pairs.jsonl": lambda: as_items(str(path)),
        ".toml": lambda: Script.open(path),
    }


CORPORA = (".txt", ".jsonl")  # other files have no option for their encoding


@pytest.mark.parametrize("suffix", [*CORPORA, ".pairs.jsonl", ".toml"])
@pytest.mark.parametrize("data, line, encoding", ENCODINGS)
def test_other_encodings_are_named(tmp_path: Path, suffix: str, data: bytes, line: int, encoding: str) -> None:
    if suffix != ".txt":  # the lines before are valid
        data = data.replace(b"a\n", b"\n")
    path = tmp_path / f"c{suffix}"
    path.write_bytes(data)
    option = f"give encoding='{encoding.lower()}' (--encoding {encoding.lower()}), or " if suffix in CORPORA else ""
    assert refusal(readers(path)[suffix]) == (
        f"expected UTF-8 in c{suffix} line {line}, got what looks like {encoding}; "
        f"{option}convert the file, as with iconv -f {encoding} -t UTF-8"
    )


def test_damaged_utf8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes("一\n先生が".encode() + b"\xff" + "来る。\n".encode())
    message = "expected UTF-8 in c.txt line 2, got the byte 0xff at byte 10 of the line; correct or remove it"
    assert refusal(lambda: documents(path)) == message


@pytest.mark.parametrize(
    "line, message",
    [
        pytest.param(
            '{"text": "一", "text": "二"}',
            "has the key 'text' twice in one object; keep one of the two",
            marks=pytest.mark.tried(
                "Inputs", "a key twice in an object of JSON lines", "refused; the last one does not win"
            ),
        ),
        ('{"text": "一", "m": {"a": 1, "a": 2}}', "has the key 'a' twice in one object; keep one of the two"),
        ('{"text": "一", "m": ' + "9" * 5000 + "}", "has a number that is too long to be read; write it as a string"),
        ('\ufeff{"text": "一"}', "is not JSON (Unexpected UTF-8 BOM (decode using utf-8-sig), column 1); write one"),
    ],
)
def test_json_that_is_not_what_it_seems(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "はい"}\n' + line + "\n", "utf-8")
    for read in (lambda: documents(path), lambda: list(read_json_lines(path))):
        assert refusal(read).startswith(f"c.jsonl line 2 {message}")


PAIR = {"id": 1, "kind": "k", "frame": "f", "context": "明日は\u2028", "good": "行きます。", "bad": "行く。"}
CONTRAST = {"id": 1, "kind": "k", "frame": "f", "context_a": "a", "context_b": "b", "x": "行きます。", "y": "行く。"}


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_pairs_of_a_file(tmp_path: Path, name: str) -> None:
    lines = "\n\n".join(json.dumps(PAIR | {"id": i}, ensure_ascii=False) for i in range(2)).encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    pairs = as_items(str(tmp_path / name))
    assert [(p.id, p.context, p.good) for p in pairs] == [(i, "明日は\u2028", "行きます。") for i in "01"]


@pytest.mark.parametrize(
    "row, message",
    [
        pytest.param(
            PAIR | {"good": None},
            "expected 'good' in p.jsonl line 2 to be a string of valid Unicode, got None; correct it",
            marks=pytest.mark.tried(
                "Inputs", "a pair whose text is null or a number", 'refused; it is not read as "None"'
            ),
        ),
        (
            PAIR | {"context": 3},
            "expected 'context' in p.jsonl line 2 to be a string of valid Unicode, got 3; correct it",
        ),
        (
            PAIR | {"bad": "\ud83d"},
            "expected 'bad' in p.jsonl line 2 to be a string of valid Unicode, got '\\ud83d'; correct",
        ),
        (
            CONTRAST | {"x": 3},
            "expected 'x' in p.jsonl line 2 to be a string of valid Unicode, got 3; correct it",
        ),
        (
            {"id": 1},
            "expected rows with id, kind, frame, context, good, bad, got p.jsonl line 2 without 'kind'; add this field",
        ),
        (
            {"id": 1, "kind": "k", "frame": "f", "context_a": "a"},
            "expected rows with id, kind, frame, context_a, context_b, x, y, got p.jsonl line 2 without 'context_b'",
        ),
        (
            [1],
            "expected rows with id, kind, frame, context, good, bad, got p.jsonl line 2 without 'id'; add this field",
        ),
    ],
)
def test_pairs_that_are_none(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n{json.dumps(row)}\n", "utf-8")
    assert refusal(lambda: as_items(str(path))).startswith(message)
    if isinstance(row, dict):
        assert refusal(lambda: as_items([PAIR, row])).startswith(message.replace("p.jsonl line 2", "row 1"))


def test_lines_of_pairs_in_a_cell() -> None:
    (pair,) = read_pair_lines("　明日は\u2028学校へ　|　行きます。 ｜ 行く。\r\n\n")
    assert (pair["context"], pair["good"], pair["bad"]) == ("明日は\u2028学校へ", "行きます。", "行く。")


# Metadata


def deep(n: int) -> Any:
    return json.loads("[" * n + "1" + "]" * n)


METADATA = [
    pytest.param(
        [1, 2**63],
        1,
        "int 9223372036854775808 (Python int too large",
        marks=pytest.mark.tried(
            "Inputs",
            "metadata with an integer beyond 64 bits",
            "refused before the model runs; names document and column",
        ),
    ),
    ([1, -(2**64)], 1, "int -18446744073709551616 (Python int too large"),
    ([10**5000], 0, "int (Python int too large"),
    pytest.param(
        ["a", "x\ud83d"],
        1,
        "str 'x\\ud83d' ('utf-8' codec can't encode",
        marks=pytest.mark.tried("Inputs", "metadata with half a surrogate pair", "refused likewise"),
    ),
    ([["a"], ["x\ud83d"]], 1, "list ['x\\ud83d'] ('utf-8' codec can't encode"),
    ([1, "x"], 1, "str 'x' (Could not convert 'x' with type str"),
    ([1, True], 1, "bool True (Expected integer, got bool"),
    pytest.param(
        [{"a": {}}],
        0,
        "dict {'a': {}} (Cannot write struct type 'a' with no child",
        marks=pytest.mark.tried(
            "Inputs", "metadata with empty or very deep nesting, which Parquet cannot hold", "refused likewise"
        ),
    ),
    ([1, deep(200)], 1, "list [[["),
    ([deep(200)], 0, "list [[["),
    ([{"a": 1}, {"a": {"b": 1}}], 1, "dict {'a': {'b': 1}} ("),
    ([{1: 2}], 0, "dict {1: 2} ("),
    ([object()], 0, "object <object object at"),
    pytest.param(
        ["a", b"\xff"],
        1,
        "bytes b'\\xff' (it would be stored as b'a'",
        marks=pytest.mark.tried(
            "Inputs",
            "metadata that would be stored as another value: nanoseconds, bytes beside strings, zones beside none",
            "refused likewise",
        ),
    ),
    (
        [datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1)],
        1,
        "datetime datetime.datetime(2020, 1, 1, 0, 0) (it would",
    ),
    ([2**53 + 1, 2.5], 1, "float 2.5 (Integer value 9007199254740993 is outside of the range"),
    ([2**53 + 1] * 1025 + [2.5], 1025, "float 2.5 (Integer value 9007199254740993 is outside of the range"),
    (["a"] * 1025 + [b"b"], 1025, "bytes b'b' (it would be stored as b'a'"),
]


@pytest.mark.parametrize("values, at, shown", METADATA)
def test_metadata_that_cannot_be_stored(tmp_path: Path, values: list[Any], at: int, shown: str) -> None:
    model = Model()
    rows = ["はい", *({"text": "はい", "column": value} for value in values)]
    message = refusal(lambda: record(model, rows, tmp_path / "run", progress=False))
    begin = f"document {at + 1}: expected values of one type that Parquet holds in metadata column 'column', got "
    assert message.startswith(begin + shown)
    assert message.endswith("); convert it, or leave the column out")
    assert not model.runs
    assert not list(tmp_path.iterdir())


def test_metadata_that_can_be_stored(tmp_path: Path) -> None:
    values = {
        "nested": [{"a": 1, "b": [{"c": "x"}]}, {"a": 2, "d": None}],
        "empty": [{"a": {}}, {"a": {"x": 1}}],
        "dates": [date(1, 1, 1), date(9999, 12, 31)],
        "numbers": [1, float("inf")],
        "bytes": [b"\xff", None],
        "numpy": [np.int64(3), np.int64(2**62)],
        "nulls": [None, {}],
        "名前": [[], ["尊敬語"]],
    }
    rows = [{"text": "はい"} | {name: value[i] for name, value in values.items()} for i in range(2)]
    stored = record(Model(), rows, tmp_path / "run", progress=False).documents().to_pydict()
    assert stored["nested"] == [{"a": 1, "b": [{"c": "x"}], "d": None}, {"a": 2, "b": None, "d": None}]
    assert stored["empty"] == [{"a": {"x": None}}, {"a": {"x": 1}}]
    for name in ("dates", "numbers", "bytes", "numpy", "名前"):
        assert stored[name] == values[name]
    assert stored["nulls"] == [None, None]


INVALID_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"a\xff\xfe")]
)


@pytest.mark.parametrize(
    "column, message",
    [
        pytest.param(
            INVALID_UTF8,
            "c.parquet row 1: column 'm' has a value that cannot be read ('utf-8' codec",
            marks=pytest.mark.tried(
                "Inputs", "a Parquet file with invalid UTF-8", "refused before the model runs; names row and column"
            ),
        ),
        pytest.param(
            pa.array([1, 10**7], pa.date32()),
            "c.parquet row 1: column 'm' has a value that cannot be read (date value out of range); correct it",
            marks=pytest.mark.tried("Inputs", "a Parquet file with a date after the year 9999", "refused likewise"),
        ),
        (pa.array([1, 10**15], pa.timestamp("ms")), "c.parquet row 1: column 'm' has a value that cannot be read ("),
        (
            pa.array([1, 2**63], pa.uint64()),
            "c.parquet row 1: expected values of one type that Parquet holds in metadata",
        ),
        (pa.array([0, 1], pa.timestamp("ns")), "c.parquet row 1: expected values of one type that Parquet holds in"),
    ],
)
def test_values_of_a_parquet_file_that_cannot_be_read(tmp_path: Path, column: Any, message: str) -> None:
    pq.write_table(pa.table({"text": ["はい", "いいえ"], "m": column}), tmp_path / "c.parquet")
    model = Model()
    assert refusal(lambda: record(model, tmp_path / "c.parquet", tmp_path / "run", progress=False)).startswith(message)
    assert not model.runs


def test_a_parquet_file_with_a_name_twice(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["一"]), pa.array(["二"])], names=["text", "text"]), tmp_path / "c.parquet")
    message = "c.parquet row 0: two columns have the name 'text'; rename one of them"
    assert refusal(lambda: documents(tmp_path / "c.parquet")) == message


@pytest.mark.tried("Inputs", "a metadata column called `generated`", "refused; the model's text is not replaced")
@pytest.mark.parametrize("name", ["generated", "doc"])
def test_metadata_named_like_a_column_of_recordings(tmp_path: Path, name: str) -> None:
    message = f"document 1: metadata {name!r} has the name of a column of recordings; rename it"
    rows = ["はい", {"text": "はい", name: "x"}]
    assert refusal(lambda: record(Model(), rows, tmp_path / "run", progress=False)) == message


# Conversations

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
THINKING = (  # as Qwen3's: the reasoning of an answer has a place of its own
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}<think>"
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[0].split('<think>')[-1] }}{% endif %}</think>"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
MESSAGES = [
    {"role": "system", "content": "user"},
    {"role": "user", "content": " 先生は来ますか。\n"},
    {"role": "assistant", "content": "はい"},
    {"role": "user", "content": "はい"},
]


def with_template(template: str | None) -> Any:
    """The tokenizer of the known model, with a chat template."""
    found = tokenizer().__copy__() if hasattr(tokenizer(), "__copy__") else type(tokenizer()).__new__(type(tokenizer()))
    found.__dict__.update(tokenizer().__dict__)
    found.chat_template = template
    return found


def turns(messages: list[dict[str, Any]], template: str, generate: bool = False) -> list[Any]:
    """Who speaks, and what of the rendered text is theirs."""
    (document,) = with_chat_template(Corpus.of([{"messages": messages}]), with_template(template), generate)
    return [turn and (turn.role, document.text[turn.start : turn.end]) for turn in document.turns]


@pytest.mark.tried(
    "Inputs",
    "a corpus of chat messages",
    "read through the tokenizer's chat template; `role` and `turn` are labels of tokens",
)
def test_messages_go_through_the_chat_template(tmp_path: Path) -> None:
    model = Model(tokenizer=with_template(CHATML))
    rows = [{"messages": MESSAGES, "id": i} for i in range(2)] + [{"messages": MESSAGES[1:], "id": 2}]
    recording = record(model, rows, tmp_path / "run", progress=False)
    text = recording.documents()["text"][0].as_py()
    assert text == "".join(f"<|{m['role']}|>\n{m['content'].strip()}<|end|>\n" for m in MESSAGES)
    assert recording.documents()["id"].to_pylist() == [0, 1, 2]
    first = recording.column("doc") == 0
    start, end, role, turn = (recording.column(n)[first] for n in ("char_start", "char_end", "role", "turn"))
    for number, message in enumerate(MESSAGES):
        at = turn == number
        assert text[start[at].min() : end[at].max()] == message["content"].strip()
        assert set(role[at]) == {message["role"]}
    assert set(role[turn < 0]) == {""}
    assert (recording.column("token_id") > 0).all(), "the template writes the special tokens"
    about = recording.manifest["tokenizer"]
    assert about["documents_by_special_tokens"] == {"none": 3}
    assert len(about["chat_template_sha256"]) == 64
    labels = moelens.label(recording)
    assert labels.families[-2:] == ("role", "turn")
    names, has = labels.matrix("role")
    assert names == ("system", "user", "assistant")
    assert (has.argmax(1)[has.any(1)] == [names.index(r) for r in recording.column("role") if r]).all()
    names, has = labels.matrix("turn", slice(0, int(first.sum())))
    assert names == ("0", "1", "2", "3")
    assert has.sum(0).tolist() == [(turn == n).sum() for n in range(4)]
    result = moelens.analyze(recording, "role", given="turn", permutations=19, min_tokens=1, progress=False)
    assert set(result.names) == {"system", "user", "assistant"}


def test_generated_tokens_are_a_turn_of_the_assistant(tmp_path: Path) -> None:
    model = moelens.load("demo")
    model.tokenizer.chat_template = CHATML
    recording = record(model, [{"messages": MESSAGES[:2]}], tmp_path / "run", generate=3, progress=False)
    assert recording.documents()["text"][0].as_py().endswith("<|end|>\n<|assistant|>\n")
    decoded = recording.column("phase") == "decode"
    assert set(recording.column("role")[decoded]) == {"assistant"}
    assert set(recording.column("turn")[decoded]) == {2}


def test_later_turns_share_a_label(tmp_path: Path) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "はい"} for i in range(13)]
    model = Model(tokenizer=with_template(CHATML))
    recording = record(model, [{"messages": messages}], tmp_path / "run", progress=False)
    names, has = moelens.label(recording).matrix("turn")
    assert names == (*map(str, range(10)), "10+")
    assert has[:, -1].sum() == (recording.column("turn") >= 10).sum() > 0


@pytest.mark.parametrize(
    "messages, template, expected",
    [
        (MESSAGES, CHATML, [(m["role"], m["content"].strip()) for m in MESSAGES]),
        ([MESSAGES[1] | {"content": ""}], CHATML, [("user", "")]),
        ([MESSAGES[1] | {"content": None}], CHATML.replace("m.content", "(m.content or '')"), [None]),
        (
            MESSAGES[:2],
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            [None, ("user", MESSAGES[1]["content"])],
        ),
        (
            [{"role": "assistant", "content": "<think>先</think>来ます"}, MESSAGES[3]],
            THINKING,
            [("assistant", "先</think>来ます"), ("user", "はい")],
        ),
        ([{"role": "user", "content": "\ue000外字\ue001"}], CHATML, [("user", "\ue000外字\ue001")]),
    ],
    ids=["trimmed", "empty", "no content", "left out", "reasoning", "private use"],
)
def test_messages_are_found_in_the_text(messages: list[Any], template: str, expected: list[Any]) -> None:
    assert turns(messages, template) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "assistant"]), st.text("user|end先生<>\n ", max_size=8)),
        min_size=1,
        max_size=5,
    )
)
def test_any_contents_are_found(said: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in said]
    assert turns(messages, CHATML, generate=True) == [(role, content.strip()) for role, content in said]


@pytest.mark.parametrize(
    "rows, template, message",
    [
        (
            [{"messages": MESSAGES}],
            None,
            "document 0: expected a tokenizer with a chat template for a conversation, got",
        ),
        (
            [{"messages": MESSAGES}],
            "{{ raise_exception('Roles must alternate') }}",
            "document 0: expected messages that the chat template takes, got an error from it (Roles must alternate);",
        ),
        (
            [{"messages": MESSAGES}],
            "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}",
            "document 0: expected a chat template that writes each message once and in order, got another; apply it",
        ),
        (["はい", {"messages": MESSAGES}], CHATML, "document 1: expected only texts or only conversations, got both;"),
        (
            [{"messages": [{"from": "human", "value": "はい"}]}],
            CHATML,
            "document 0, message 0: expected a dict with 'role' and 'content', got",
        ),
        (
            [{"messages": [{"role": "user", "content": [{"text": "はい"}]}]}],
            CHATML,
            "document 0, message 0: expected 'content' to be a string, got list; join the text of its parts",
        ),
        (
            [{"messages": [{"role": "user", "content": "\ud83d"}]}],
            CHATML,
            "document 0, message 0: expected valid Unicode, got half a surrogate pair",
        ),
        (
            [{"messages": []}],
            CHATML,
            "document 0: expected 'messages' to be a string or a list of messages, got an empty list; convert it",
        ),
    ],
)
def test_conversations_that_cannot_be_recorded(tmp_path: Path, rows: list[Any], template: str, message: str) -> None:
    model = Model(tokenizer=with_template(template))
    assert refusal(lambda: record(model, rows, tmp_path / "run", progress=False)).startswith(message)
    assert not model.runs
    assert not list(tmp_path.iterdir())


# Special tokens


def ids_of(text: str, tok: Any, add: bool | None, out: Path) -> tuple[list[int], list[tuple[int, int]], dict[str, Any]]:
    recording = record(Model(tokenizer=tok), [text], out, add_special_tokens=add, progress=False)
    spans = zip(recording.column("char_start").tolist(), recording.column("char_end").tolist(), strict=True)
    return recording.column("token_id").tolist(), list(spans), recording.manifest["tokenizer"]


@pytest.mark.tried(
    "Inputs",
    "a text that begins with BOS already",
    "gets no second one, unless `add_special_tokens` says so; the manifest says which",
)
@pytest.mark.parametrize("add, n, how", [(None, 1, "text"), (True, 2, "tokenizer"), (False, 1, "none")])
def test_a_text_with_bos(tmp_path: Path, add: bool | None, n: int, how: str) -> None:
    ids, spans, about = ids_of(f"{BOS}はい", tokenizer(), add, tmp_path / "run")
    assert ids[:n] == [0] * n
    assert ids[n:] == [i for i in ids if i]
    assert len(ids) == n + 6
    assert (3, 4) in spans
    assert (0, 3) in spans
    assert about["add_special_tokens"] is add
    assert about["documents_by_special_tokens"] == {how: 1}


def test_special_tokens_at_both_ends(tmp_path: Path) -> None:
    tok = with_template(None)
    backend = type(tok.backend_tokenizer).from_str(tok.backend_tokenizer.to_str())
    backend.add_special_tokens(["</s>"])
    end = backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing(f"{BOS} $A </s>", special_tokens=[(BOS, 0), ("</s>", end)])
    both = type(tok)(tokenizer_object=backend, bos_token=BOS, eos_token="</s>")
    plain = ids_of("はい", both, None, tmp_path / "plain")[0]
    for i, text in enumerate((f"{BOS}はい", "はい</s>", f"{BOS}はい</s>")):
        ids, spans, about = ids_of(text, both, None, tmp_path / str(i))
        assert ids == plain
        assert about["documents_by_special_tokens"] == {"text": 1}
        assert spans[0] == ((0, 3) if text.startswith(BOS) else (0, 0))
        assert spans[-1] == ((len(text) - 4, len(text)) if text.endswith("</s>") else (len(text), len(text)))
    assert ids_of(f"{BOS}はい", both, False, tmp_path / "none")[0] == plain[:-1]


def test_the_command_line_passes_it_on(tmp_path: Path) -> None:
    from moelens.commands.command_line import main

    (tmp_path / "c.txt").write_text(f"{moelens.load('demo').tokenizer.bos_token}はい", "utf-8")
    for flag, n in (((), 1), (("--add-special-tokens",), 2), (("--no-add-special-tokens",), 1)):
        out = tmp_path / "-".join(("run", *flag))
        assert main(["record", "demo", str(tmp_path / "c.txt"), "--out", str(out), *flag]) == 0
        assert (Recording.open(out).column("token_id") == 0).sum() == n
