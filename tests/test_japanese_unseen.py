"""Honorifics in sentences that no rule was written for, and in the examples of the guideline."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from moelens.japanese import HonorificSpan, honorifics

HUMBLE = {"謙譲語I", "謙譲語II"}
with (Path(__file__).parent / "data" / "honorific_triplets.tsv").open(encoding="utf-8") as file:
    TRIPLETS = list(csv.DictReader(file, delimiter="\t"))


def classes(text: str) -> set[str]:
    return {name for span in honorifics(text) for name in span.classes}


def respectful(span: HonorificSpan) -> bool:
    return "尊敬語" in span.classes and "subject" in span.raises


def test_sentences_with_the_same_content_in_three_classes():
    """A respectful sentence raises its subject and is not humble, a humble one is humble, a polite one is neither."""
    wrong = []
    for row in TRIPLETS:
        right = (
            any(map(respectful, honorifics(row["respectful"]))) and not classes(row["respectful"]) & HUMBLE,
            classes(row["humble"]) & HUMBLE,
            classes(row["polite"]) == {"丁寧語"},
        )
        if not all(right):
            wrong.append(row)
    assert len(TRIPLETS) == 60
    assert len(wrong) <= 3, wrong


# The examples of 文化審議会『敬語の指針』 (2007), chapter 2, by class.
GUIDELINE = {
    "尊敬語": "いらっしゃる おっしゃる なさる 召し上がる お使いになる 御利用になる お導き 御出席 お名前 御住所"
    " お忙しい 御立派 御覧になる 下さる くださる お見えになる お休みになる お召し上がりになる"
    " お読みください 御指導くださる 御結婚なさる お読みくださる 御説明くださる お早い 御心配 御研究"
    " 御尊父 御令息 貴社 芳名 玉稿 御尽力 貴信拝見 先生が運転される 先生からの御説明 先生の話された内容"
    " お元気で御活躍 先生が来られる 先生は辞書をお使いだ 社長が御出発だ",
    "謙譲語I": "伺う 申し上げる 存じ上げる 差し上げる 頂く お目に掛かる お目に掛ける 御覧に入れる 拝見する 拝借する"
    " 拝聴する お届けする 御案内する お伺いする お伺いいたす お伺い申し上げる 先生へのお手紙"
    " 先生への御説明 お読みいただく 御指導いただく お送りさせていただく お待ちする 拝顔",
    "謙譲語II": "参る 申す いたす 明日は家におります 存じる 拙著 小社 弊社 愚息 利用いたす",
    "丁寧語": "次は来月十日です 六時に起きます 山田でございます 高うございます",
    "美化語": "お酒 お料理 お菓子 お茶 御祝儀",
}


@pytest.mark.parametrize(
    "example, name", [(example, name) for name, listed in GUIDELINE.items() for example in listed.split()]
)
def test_examples_of_the_guideline(example, name):
    assert name in classes(example)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("先生からの御説明", {"尊敬語"}),
        ("先生への御説明", {"謙譲語I"}),
        ("先生へのお手紙", {"謙譲語I"}),
        ("荷物をお預かりさせていただく", {"謙譲語I"}),
        ("明日はお休みさせていただく", {"謙譲語I"}),
        ("昨日うかがった話だ", {"謙譲語I"}),
        ("明日うかがわせてください", {"謙譲語I", "尊敬語"}),
        ("よろしくお頼み申します", {"謙譲語I", "謙譲語II", "丁寧語"}),
        ("神の心をお告げする", {"謙譲語I"}),
        ("お釣りになります", {"丁寧語"}),
        ("こちらがお席になります", {"美化語", "丁寧語"}),
        ("お子様ランチになります", {"美化語", "丁寧語"}),
        ("五百円のお返しになります", {"謙譲語I", "丁寧語"}),
        ("先生は本をお返しになりました", {"尊敬語", "丁寧語"}),
        ("ケーキをお二つですね", {"美化語", "丁寧語"}),
        ("拙者は旅の者でござる", {"丁寧語"}),
        ("帝は歌を詠みたまふ", {"尊敬語"}),
        ("先生が来はった", {"尊敬語"}),
        ("先生が書きなはった", {"尊敬語"}),
        ("いかがなされた", {"尊敬語"}),
        ("この書状をご覧なされ", {"尊敬語"}),
        ("お申し出された方", {"尊敬語"}),
        ("私が家におるときに来てください", {"謙譲語II", "尊敬語"}),
        ("わしは家におるぞ", set()),
        ("お断りさせていただく", {"謙譲語I"}),
        ("先生、何してはんの", {"尊敬語"}),
        ("先生はもう行っとられる", {"尊敬語"}),
        ("ようこそおいでやす", {"尊敬語"}),
        ("殿がそう言わっしゃった", {"尊敬語"}),
        ("翁かくのたまふ", {"尊敬語"}),
        ("明日参り候。", {"丁寧語"}),
        ("承り候", {"謙譲語I", "丁寧語"}),
        ("こちらがご案内になります", {"丁寧語"}),
        ("先生は会場をご案内になります", {"尊敬語", "丁寧語"}),
    ],
)
def test_constructions(text, expected):
    assert classes(text) == expected


@pytest.mark.parametrize(
    "text, marked",
    [
        ("お釣りになります。", "になり"),
        ("お席になります。", "になり"),
        ("八百円のお返しになります。", "になり"),
        ("お子様ランチになります。", "になり"),
        ("こちらがメニューになります。", "になり"),
        ("お会計のほうになります。", "ほうになり"),
        ("ご注文の品になります。", "品になり"),
        ("ご注文は以上でよろしかったでしょうか。", "よろしかった"),
    ],
)
def test_manual_honorifics_are_marked_as_such(text, marked):
    assert [span.surface for span in honorifics(text) if span.manual] == [marked]


@pytest.mark.parametrize("text", ["お手紙の件です。", "ご連絡は金曜日までです。"])
def test_what_the_sentence_does_not_decide_has_readings_and_no_class(text):
    first = honorifics(text)[0]
    assert (first.classes, first.readings) == ((), ("尊敬語", "謙譲語I"))
