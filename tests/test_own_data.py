"""Corpora as people have them: tables, Japanese encodings, and one long text."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

import moelens
from moelens.commands.command_line import main
from moelens.errors import MoeLensError
from moelens.recording import Corpus, Recording, record
from moelens.recording.splitting import split_corpus

NOVEL = (
    "吾輩は猫である。名前はまだ無い。\nどこで生れたか頓と見当がつかぬ。\n\n「はい。」と先生がおっしゃった。\n \n終わり"
)


@pytest.fixture(scope="module")
def demo() -> Any:
    return moelens.load("demo")


def read(path: Path, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(document.text, dict(document.metadata)) for document in Corpus.of(path, **options)]


@pytest.mark.parametrize("suffix, separator", [(".csv", ","), (".tsv", "\t"), (".csv.gz", ",")])
def test_tables(tmp_path: Path, suffix: str, separator: str) -> None:
    rows = [("話者", "発話"), ("客", '"はい、""どうも""\nです"'), ("", ""), ("友人", "行く？")]
    data = "\ufeff" + "".join(separator.join(row) + "\r\n" for row in rows)
    path = tmp_path / f"talk{suffix}"
    path.write_bytes(gzip.compress(data.encode()) if suffix.endswith(".gz") else data.encode())
    assert read(path, text_column="発話") == [
        ('はい、"どうも"\nです', {"話者": "客"}),
        ("", {"話者": ""}),
        ("行く？", {"話者": "友人"}),
    ]


def test_a_field_may_be_a_book(tmp_path: Path) -> None:
    (tmp_path / "book.csv").write_text(f"text\n{'雨' * 200_000}\n", "utf-8")
    assert len(read(tmp_path / "book.csv")[0][0]) == 200_000


@pytest.mark.parametrize(
    "data, message",
    [
        ("id,text\n1,雨\n2,雪,晴\n", "expected 2 fields in c.csv line 3, as in the first row of the file, got 3; put"),
        ('text\n雨\n"雪\n晴\n', "expected rows with complete quotation marks in c.csv line 3, got another ("),
        ("text,text\n雨,雪\n", "c.csv line 1: two columns have the name 'text'; rename one of them"),
        ("body\n雨\n", "unknown text column 'text'; allowed: body (c.csv line 2; choose with text_column or --text"),
        ("text\n", "expected documents in corpus "),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, data: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(data, "utf-8")
    with pytest.raises(MoeLensError) as refused:
        read(tmp_path / "c.csv")
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "encoding, codec",
    [("shift-jis", "cp932"), ("SJIS", "shift_jis"), ("euc-jp", "euc_jis_2004"), ("iso-2022-jp",) * 2, ("utf-16",) * 2],
)
def test_encodings_of_texts(tmp_path: Path, encoding: str, codec: str) -> None:
    words = "先生①がいらっしゃった" if codec in ("cp932", "euc_jis_2004", "utf-16") else "先生がいらっしゃった"
    (tmp_path / "c.txt").write_bytes(f"{words}\r\n雨\n".encode(codec))
    assert [text for text, _ in read(tmp_path / "c.txt", encoding=encoding)] == [words, "雨"]


def test_a_torn_file_of_wide_characters(tmp_path: Path) -> None:
    data = gzip.compress("先生がいらっしゃった\n".encode("utf-16") * 9, mtime=0)
    (tmp_path / "c.txt.gz").write_bytes(data[:-9])
    with pytest.raises(MoeLensError, match=r"c\.txt\.gz cannot be read after line \d+ \(.*\); download it again"):
        read(tmp_path / "c.txt.gz", encoding="utf-16")


def test_the_hint_names_the_encoding_that_fits(tmp_path: Path) -> None:
    for codec, name in (("euc_jis_2004", "EUC-JP"), ("euc_jp", "EUC-JP"), ("cp932", "CP932")):
        words = "①番の先生が来る\n" if codec != "euc_jp" else "先生が来る\n"
        (tmp_path / "c.txt").write_bytes(words.encode(codec))
        with pytest.raises(MoeLensError, match=f"got what looks like {name}; give encoding='{name.lower()}'"):
            read(tmp_path / "c.txt")
        assert read(tmp_path / "c.txt", encoding=name) == [(words.strip(), {})]
    (tmp_path / "c.txt").write_text("先生が来る\n", "utf-8")
    with pytest.raises(
        MoeLensError, match=r"expected euc_jp in c.txt line 1, got what looks like UTF-8; give encoding="
    ):
        read(tmp_path / "c.txt", encoding="euc-jp")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("c.txt", {"encoding": "shift-jls"}, "unknown encoding 'shift-jls'; did you mean 'shift-jis'?"),
        ("c.txt", {"encoding": "base64"}, "unknown encoding 'base64'; allowed: utf-8, shift-jis, cp932, "),
        ("c.parquet", {"encoding": "cp932"}, "expected a text file with encoding (--encoding), got 'c.parquet'"),
        ("c.txt", {"split_documents": "sentence"}, "expected split_documents (--split-documents) to be 'paragraph' or"),
        ("c.txt", {"split_documents": 0}, "expected split_documents (--split-documents) to be 'paragraph' or"),
    ],
)
def test_options_of_reading_are_checked(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_text("雨\n", "utf-8")
    with pytest.raises(MoeLensError) as refused:
        Corpus.of(tmp_path / name, **options)
    assert str(refused.value).startswith(message)


def test_options_of_reading_are_for_sources(demo: Any, tmp_path: Path) -> None:
    with pytest.raises(MoeLensError, match=r"got a Corpus; give them to Corpus\.of"):
        record(demo, Corpus.of(["雨"]), tmp_path / "run", encoding="cp932")


def test_a_long_text_in_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(NOVEL, "utf-8")
    corpus = split_corpus(Corpus.of(tmp_path / "novel.txt", split_documents="paragraph"), None)
    first, second, third = [(d.text, d.metadata["source_document"], d.metadata["part"]) for d in corpus]
    assert first[0].endswith("つかぬ。")
    assert "\n" in first[0]
    assert (second, third) == (("「はい。」と先生がおっしゃった。", 0, 1), ("終わり", 0, 2))


def test_a_long_text_in_parts_of_tokens(demo: Any) -> None:
    rows = [{"text": NOVEL, "author": "漱石"}, {"text": "短い。", "author": "x"}]
    parts = list(split_corpus(Corpus.of(rows, split_documents="12"), demo.tokenizer))
    assert [(d.metadata["source_document"], d.metadata["author"]) for d in parts][-1] == (1, "x")
    texts = [d.text for d in parts if d.metadata["source_document"] == 0]
    assert len(texts) > 2
    assert "".join("".join(texts).split()) == "".join(NOVEL.split())
    assert all(text.endswith(("。", "」", "り")) for text in texts)
    counts = [len(demo.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert all(count <= 14 or text.count("。") == 1 for count, text in zip(counts, texts, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "雨です。|風が強い！|はい",
        "雨です.|風が強い．|はい",
        "雨です.| 風が強い.\n|はい",
        "「雨です.」|と言った...|はい",
        "気温は3.5度、湿度は３．５です.|はい",
        "www.example.comとA.B.社とMr. 田中です。|はい",
        "雨です(小雨).|はい｡|いいえ",
        "1. 初めに|",
    ],
)
def test_what_ends_a_sentence_of_a_divided_text(demo: Any, text: str) -> None:
    parts = split_corpus(Corpus.of([text.replace("|", "")], split_documents="1"), demo.tokenizer)
    assert [d.text for d in parts] == [part.strip("\n") for part in text.split("|") if part]


def test_conversations_are_not_split(demo: Any) -> None:
    corpus = Corpus.of([{"messages": [{"role": "user", "content": "雨"}]}], split_documents=5)
    with pytest.raises(MoeLensError, match="expected texts to split, got a conversation; leave split_documents"):
        list(split_corpus(corpus, demo.tokenizer))


def test_record_command_reads_a_novel_in_shift_jis(tmp_path: Path, capsys: Any) -> None:
    path, out = tmp_path / "neko.txt", tmp_path / "run"
    path.write_bytes(NOVEL.encode("cp932"))
    words = [
        "record",
        "demo",
        str(path),
        "--out",
        str(out),
        "--encoding",
        "shift-jis",
        "--split-documents",
        "paragraph",
    ]
    assert main(words) == 0
    recording = Recording.open(out)
    assert recording.documents()["text"].to_pylist()[1] == "「はい。」と先生がおっしゃった。"
    assert recording.metadata == ("source_document", "part")
    capsys.readouterr()
    assert main(["export", str(out), "--to", "parquet"]) == 2
    assert "which is" not in (error := capsys.readouterr().err)
    assert error.startswith(
        f"moelens: expected another format than parquet, got a recording that is Parquet already; "
        f"read '{out}/tokens/*.parquet'"
    )
