"""Untidy and very long text: the same words have the same labels, however they are encoded and wherever pieces end."""

from __future__ import annotations

import importlib.util
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.japanese import CORPUS, FakeRecording
from hypothesis import given, settings
from hypothesis import strategies as st

from moelens.errors import MoeLensError
from moelens.japanese import Labels, honorifics, morphology, parse_morphemes, register
from moelens.japanese.families import character_labels
from moelens.japanese.normalization import _CONTINUING, normalize

TEXT = "ご多忙のところ恐れ入りますが、どうぞご覧ください。お客様がロビーでお待ちでいらっしゃいます。"
SENTENCES = st.lists(st.sampled_from([row["text"] for row in CORPUS]), min_size=1, max_size=3).map("".join)
SEPARATORS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def needs_sudachi(name: str) -> object:
    missing = importlib.util.find_spec("sudachipy") is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="pip install sudachipy sudachidict-core"))


ANALYSERS = ["fugashi", needs_sudachi("sudachi")]


def half_width(text: str) -> str:
    """Return a text with punctuation and katakana in half width."""
    table = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF61, 0xFFA0)}
    narrow = {wide: c for c, wide in table.items() if len(wide) == 1}
    decomposed = "".join(unicodedata.normalize("NFD", c) if "ァ" <= c <= "ヺ" else c for c in text)
    marks = {"\u3099": "ﾞ", "\u309a": "ﾟ", "ー": "ｰ"}
    ascii_width = {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)}
    return "".join((ascii_width | narrow | marks).get(c, c) for c in decomposed)


def zero_width(text: str) -> str:
    return "\u200b".join(text)


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


VARIANTS = {"NFD": nfd, "half width": half_width, "full width": full_width, "zero-width": zero_width}


def shown(text: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(normalize(s.surface).text, s.classes, s.readings) for s in honorifics(text)]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("row", CORPUS[::6], ids=lambda row: row["id"])
def test_the_same_words_have_the_same_honorifics(row, variant):
    text = row["text"]
    assert shown(variant(text)) == shown(text)
    assert [s.register for s in register(variant(text))] == [s.register for s in register(text)]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@settings(deadline=None, max_examples=20)
@given(text=SENTENCES)
def test_labels_of_characters_do_not_depend_on_their_form(variant, text):
    """Each character of a variant has the labels of the character of the uniform copy that it stands for."""
    expected, found = (character_labels(t) for t in (normalize(text).text, variant(text)))
    copy = normalize(variant(text))
    assert copy.text == normalize(text).text
    for i in range(len(copy.text)):
        for at in range(copy.starts[i], copy.ends[i]):
            np.testing.assert_array_equal(found.has[at], expected.has[i])


#: Passages of many spellings, in any order.
SPELLINGS = st.lists(
    st.sampled_from(
        [*"｜先様生召が〜すでまょゎをりや戴きてついた。ｶ㍿a \u3000\n\u200b\u3099"]
        + [
            "《せんせい》",
            "（さま）",
            "（め）",
            "し上",
            "ぃ",
            "くださ",
            "ぉ",
            "ーー",
            "せう",
            "いらつし",
            "御座居",
            "仰有",
        ]
    ),
    max_size=12,
).map("".join)


@given(st.text(max_size=60) | SPELLINGS)
@settings(deadline=None, max_examples=300)
def test_normalisation_maps_every_character(text):
    copy = normalize(text)
    assert len(copy.starts) == len(copy.text) + 1
    assert len(copy.ends) == len(copy.text)
    covered = [False] * len(text)
    for start, end in zip(copy.starts, copy.ends, strict=False):
        assert start < end
        covered[start:end] = [True] * (end - start)
    assert all(covered)
    assert list(copy.starts) == sorted(copy.starts)  # several may stand for one character: 1⁄4 for ¼
    assert list(copy.ends) == sorted(copy.ends)
    assert normalize(nfd(text)).text == normalize(unicodedata.normalize("NFC", text)).text
    assert normalize(copy.text).text == copy.text or "\ufffd" in copy.text


@pytest.mark.parametrize(
    "text, word",
    [("　｜頁《ページ》を", "｜頁《ページ》"), ("｜客《きゃく》", "｜客《きゃく》"), ("\n｜お茶《おちゃ》", "｜お")],
)
def test_a_mark_of_ruby_after_white_space_belongs_to_the_word_after_it(text, word):
    assert word in [m.surface for m in parse_morphemes(text)]


def test_a_word_that_goes_on_after_katakana_is_kept_whole():
    assert "".join(m.surface for m in parse_morphemes("シマスり㍿")) == "シマスり㍿"


def test_the_characters_that_compose_are_all_known():
    """The starters that compose with the character before them, from the Unicode data of Python."""
    composing = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    for code in range(0x110000):
        parts = unicodedata.normalize("NFD", chr(code))
        if len(parts) > 1 and unicodedata.normalize("NFC", chr(code)) == chr(code):
            composing |= {c for c in parts[1:] if not unicodedata.combining(c)}
    import re

    known = re.compile(f"[{_CONTINUING}]")
    assert {c for c in composing if not known.match(c)} == set()


@pytest.mark.parametrize(
    "text, copy, counts",
    [
        ("お客様が来る。", "お客様が来る。", {}),
        ("ｺﾞ確認ください!", "ゴ確認ください！", {"width": 3}),
        ("か\u3099くせい", "がくせい", {"decomposed": 2}),
        ("か゛くせい", "がくせい", {"decomposed": 2}),
        ("ご\u200b覧\ufeffください", "ご覧ください", {"zero-width": 2}),
        ("葛\U000e0100城市", "葛城市", {"zero-width": 1}),
        ("㍿青葉 ㎏", "株式会社青葉 kg", {"compatibility": 2}),
        ("ＡＢＣ１２", "ABC12", {"width": 5}),
        ("待って…", "待って…", {}),
        ("\u3000\u00a0\u200b ", "\u3000\u00a0\u200b ", {}),
        ("お\x00茶\ud800", "お\ufffd茶\ufffd", {"unreadable": 2}),
        ("先生《せんせい》が｜来客《きゃく》と", "先生が来客と", {"ruby": 12}),
        ("召(め)し上(あ)がる", "召し上がる", {"width": 4, "ruby": 6}),
        ("最高（です）ね。新刊《ノルウェー》（緑）", "最高（です）ね。新刊《ノルウェー》（緑）", {}),
        ("｜頁《ページ》と｜ロンドン《ろんどん》", "頁とロンドン", {"ruby": 13}),
        ("先" + "《せん》" * 2000, "先", {"ruby": 8000}),
        ("東京（まで）行く。参加（する）人（または）代理人", "東京（まで）行く。参加（する）人（または）代理人", {}),
        ("お　知　ら　せ", "お知らせ", {"spaced": 3}),
        ("あ、い う えお", "あ、い う えお", {}),
        ("ぉ願いですょ。ゎたしにくださぃ", "お願いですよ。わたしにください", {"small kana": 4}),
        ("ねぇ、うぉーいファッション、ちょっとティー", "ねぇ、うぉーいファッション、ちょっとティー", {}),
        ("雨でーす。行きま〜す！くださーい、おはよーー", "雨です。行きます！ください、おはよう", {"drawn out": 5}),
        ("ありがと〜う、おはよーうございます", "ありがとう、おはようございます", {"drawn out": 4}),
        ("東京〜大阪、デースとマースとデータ", "東京〜大阪、デースとマースとデータ", {}),
        ("いらつしやいませう", "いらっしゃいましょう", {"former": 3}),
        ("なすつた、下さつて、をり、家にをりました", "なすった、下さって、をり、家におりました", {"former": 3}),
        ("人を悩ませうる", "人を悩ませうる", {}),
        ("いつしか、いくつたべる", "いつしか、いくつたべる", {}),
        ("御座居ます、仰有る、見て戴く", "御座います、仰言る、見て頂く", {"former": 3}),
    ],
)
def test_normalisation(text, copy, counts):
    assert normalize(text).text == copy
    assert normalize(text).counts == counts


@pytest.mark.parametrize(
    "text, expected",
    [
        ("オハヨウゴザイマス。", [("ゴザイマス", ("丁寧語",))]),
        ("ｵﾊﾖｳｺﾞｻﾞｲﾏｽ｡", [("ゴザイマス", ("丁寧語",))]),
        ("先生がオッシャッタ。", [("オッシャッ", ("尊敬語",))]),
        ("ヨロシクオネガイシマス。", [("オネガイシ", ("謙譲語I",)), ("マス", ("丁寧語",))]),
        ("お願いシマス。", [("お願いシ", ("謙譲語I",)), ("マス", ("丁寧語",))]),
        ("ワタシ ハ ロボット デス", [("デス", ("丁寧語",))]),
        ("ワタシハガクセイデス。", [("デス", ("丁寧語",))]),
        ("ナニヲメシアガリマスカ？", [("メシアガリ", ("尊敬語",)), ("マス", ("丁寧語",))]),
        ("頑張りマショウ！", [("マショウ", ("丁寧語",))]),
        ("本当デスカ？", [("デス", ("丁寧語",))]),
        ("明日テストシマスネ。", [("マス", ("丁寧語",))]),
        ("クリスマスにデスクを買う。", []),
        ("トーマスとアルキメデスが、マシンガンの話をした。", []),
        ("冥王ハデスの国へ行く。", []),
        ("マスクを忘れたカマスクラブの人。", []),
    ],
)
def test_honorifics_in_katakana(text, expected):
    assert [(normalize(s.surface).text, s.classes) for s in honorifics(text)] == expected


# The same sentence in an untidy and in the usual spelling.
SPELLED = [
    ("先生《せんせい》がいらっしゃる。", "先生がいらっしゃる。"),
    ("｜お客様《おきゃくさま》がお見《み》えになりました。", "お客様がお見えになりました。"),
    ("どうぞご覧（らん）ください。", "どうぞご覧ください。"),
    ("申（もう）し上げます。", "申し上げます。"),
    ("これを見てくださぃ。", "これを見てください。"),
    ("ぃらっしゃぃませ。", "いらっしゃいませ。"),
    ("ありがとうございま〜す♪", "ありがとうございます♪"),
    ("よろしくお願いしまーす。", "よろしくお願いします。"),
    ("お　客　様　が　い　ら　っ　し　ゃ　い　ま　し　た", "お客様がいらっしゃいました"),
    ("さうでございませう。", "さうでございましょう。"),
    ("先生がいらつしやいました。", "先生がいらっしゃいました。"),
    ("お帰りなすつたさうだ。", "お帰りなすったさうだ。"),
    ("お手紙を読んで戴きました。", "お手紙を読んで頂きました。"),
    ("いらっ\u00adしゃいました。", "いらっしゃいました。"),
    ("ゴ案内シマス。", "ご案内します。"),
    ("オ客サマガイラッシャイマシタ。", "お客さまがいらっしゃいました。"),
]


@pytest.mark.parametrize("untidy, usual", SPELLED)
def test_honorifics_do_not_depend_on_the_spelling(untidy, usual):
    found, expected = (honorifics(text) for text in (untidy, usual))
    assert [(s.rule, s.classes) for s in found] == [(s.rule, s.classes) for s in expected]
    assert [s.register for s in register(untidy)] == [s.register for s in register(usual)]
    assert all(s.surface == untidy[s.start : s.end] == s.surface.strip() for s in found)


@pytest.mark.parametrize("separator", [*SEPARATORS, "\r\n", "｡", "。", "!", "？", ".", "．", ". "])
def test_what_ends_a_sentence(separator):
    assert [s.register for s in register(f"雨です{separator}風が強い")] == ["polite", "plain"]


@pytest.mark.parametrize(
    "text", ["気温は3.5度です", "www.example.comを見た", "比率は３．５です", "Mr. 田中です", "1. はじめます"]
)
def test_a_point_inside_a_number_or_a_name_ends_no_sentence(text):
    assert len(register(text)) == 1


@pytest.mark.parametrize("analyser", ANALYSERS)
@pytest.mark.parametrize("window", [60, 137, 400])
def test_labels_do_not_depend_on_where_pieces_end(monkeypatch, analyser, window):
    text = "".join(row["text"] for row in CORPUS[:20]).replace("。", "、") + "。" + CORPUS[0]["text"]
    expected = character_labels(text, analyser)
    monkeypatch.setattr(morphology, "_WINDOW", window)
    monkeypatch.setattr(morphology, "_OVERLAP", window // 2)
    found = character_labels(text, analyser)
    assert [(m.start, m.end, m.lemma) for m in found.morphemes] == [
        (m.start, m.end, m.lemma) for m in expected.morphemes
    ]
    np.testing.assert_array_equal(found.has, expected.has)


@pytest.mark.parametrize("analyser", ANALYSERS)
def test_labels_of_a_sentence_do_not_depend_on_the_text_before_it(analyser):
    alone = character_labels(TEXT, analyser)
    for before in ("雨。", "雨\n", "お客様が\r\n", "㍿。", "!?"):
        after = character_labels(before + TEXT, analyser)
        columns = [i for i in range(alone.has.shape[1]) if alone.has[:, i].sum() < len(TEXT)]  # not of the document
        np.testing.assert_array_equal(after.has[len(before) :, columns], alone.has[:, columns])


@pytest.mark.parametrize("analyser", ANALYSERS)
def test_no_honorific_is_lost_at_the_end_of_a_window(analyser):
    for filler in range(1980, 2002):
        text = "あの" * (filler // 2) + "ね" * (filler % 2) + "いらっしゃいました。"
        found = honorifics(text, parse_morphemes(text, analyser))
        assert [s.surface for s in found] == ["いらっしゃい", "まし"], filler


@pytest.mark.slow
@pytest.mark.parametrize("analyser", ANALYSERS)
@pytest.mark.parametrize(
    "text",
    [
        "".join(row["text"] for row in CORPUS) * 40,
        "1,2.5,東京,お客様,はい\n" * 14_000,
        "1,2.5,東京,お客様,はい," * 14_000,
        "⠿⠛" * 70_000,
        "㍿" * 12_000,
        "ﷺ" * 12_000,
        "a" * 200_000,
        " " * 300_000,
        nfd(TEXT) * 2_000,
    ],
    ids=["prose", "lines", "one line", "braille", "㍿", "ﷺ", "a", "spaces", "NFD"],
)
def test_very_long_texts(text, analyser):
    end = 0
    for m in parse_morphemes(text, analyser):
        assert end <= m.start < m.end
        assert m.surface == text[m.start : m.end]
        end = m.end


def test_what_was_normalised_is_counted_in_the_metadata(tmp_path):
    recording = FakeRecording(tmp_path, "ｺﾞ覧|ください!", "か\u3099|くせい\u200b", "オハヨウ|ゴザイマス。")
    labels = Labels.create(recording, processes=1)
    assert labels.metadata["normalized"] == "decomposed 2, katakana 3, width 3, zero-width 1"


class Broken(ProcessPoolExecutor):
    """A pool whose processes die."""

    def map(self, *args, **kwargs):
        from concurrent.futures.process import BrokenProcessPool

        raise BrokenProcessPool("a process died")


def test_a_process_that_dies_is_named_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moelens.japanese.label_tables._GROUP_CHARACTERS", 2)
    recording = FakeRecording(tmp_path, "雨が|降る", "風が|強い")
    monkeypatch.setattr("moelens.japanese.label_tables.ProcessPoolExecutor", Broken)
    with pytest.raises(MoeLensError) as error:
        Labels.create(recording, processes=2)
    assert str(error.value) == (
        "expected 2 processes to label the documents, but one ended early (often for lack of memory);"
        " use processes=1 (--processes 1), or divide the longest documents"
    )
    assert list(tmp_path.iterdir()) == []


def test_labels_that_fail_leave_the_old_ones(tmp_path, monkeypatch):
    recording = FakeRecording(tmp_path, "雨が|降る")
    before = Labels.create(recording, processes=1).matrix("pos")[1]

    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr("moelens.japanese.label_tables._label_documents", fail)
    with pytest.raises(MemoryError):
        Labels.create(recording, processes=1)
    np.testing.assert_array_equal(Labels.open(recording).matrix("pos")[1], before)
    assert not list((tmp_path / "labels").glob(".*"))
