"""Unusual texts, with both analysers: nothing raises, and the offsets are exact."""

from __future__ import annotations

import importlib.util
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moelens.errors import UnknownNameError
from moelens.japanese import honorifics, parse_morphemes, register
from moelens.japanese.families import character_labels
from moelens.japanese.morphology import POS, provenance

WHITE = " \t\n\r\v\f\u3000\x85\xa0\u2028\u2029\x1c\x1d\x1e\x1f"
ODD = {
    "empty": "",
    "white space": " \n\t　",
    "symbols": "★♪→※〒…‥〜!?",
    "emoji": "👨‍👩‍👧がいらっしゃる🇯🇵✨",
    "half-width kana": "ﾊﾝｶｸｶﾅﾃﾞｺﾞｻﾞｲﾏｽ。",
    "old kana": "さういふことでゐらつしやいませう。ゐゑヰヱ",
    "mixed scripts": "Dr.김先生がЯпонияへ行かれました",
    "lone surrogate": "お\ud800茶\udfff",
    "control characters": "お\x00客\x07様\x1b[31m",
    "HTML": '<p class="x">お客様が&nbsp;いらっしゃる</p><script>1</script>',
    "combining marks": "か\u3099き\u3099 e\u0301",
    "four bytes": "𠮟る𩸽を召し上がる",
}
ANY = st.text(
    st.sampled_from("御客様がいらっしゃれるごはん食べ御覧。、「」『』ー０9aZ \n\t　\x00😀か\u3099\ud800ｶﾞ<&>")
    | st.characters()
)


def assert_exact(text: str, analyser: str) -> None:
    morphemes = parse_morphemes(text, analyser)
    end = 0
    for m in morphemes:
        assert end <= m.start < m.end <= len(text)
        assert text[end : m.start].strip(WHITE) == ""
        assert m.surface == text[m.start : m.end]
        end = m.end
    assert text[end:].strip(WHITE) == ""
    spans = honorifics(text, morphemes)
    assert all(s.surface == text[s.start : s.end] for s in spans)
    assert "ruby" in spans._repr_html_() if spans else "<div" in spans._repr_html_()


def analyser(name: str) -> object:
    missing = name == "sudachi" and importlib.util.find_spec("sudachipy") is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="pip install sudachipy sudachidict-core"))


ANALYSERS = [analyser("fugashi"), analyser("sudachi")]


@pytest.mark.parametrize("analyser", ANALYSERS)
@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_texts(text: str, analyser: str) -> None:
    assert_exact(text, analyser)
    assert len(character_labels(text, analyser).has) == len(text)
    assert all(s.start < s.end for s in register(text))


@pytest.mark.parametrize("analyser", ANALYSERS)
@settings(deadline=None, max_examples=60)
@given(text=ANY)
@example(text="\u3000\x85お\x1f茶")
def test_any_text(text: str, analyser: str) -> None:
    assert_exact(text, analyser)


@pytest.mark.parametrize("analyser", ANALYSERS)
def test_a_hundred_thousand_characters_without_a_full_stop(analyser: str) -> None:
    text = ("お客様がいらっしゃいまして" * 10_000)[:100_000]
    begun = time.perf_counter()
    assert_exact(text, analyser)
    assert time.perf_counter() - begun < 30


@pytest.mark.parametrize("analyser", ANALYSERS)
def test_both_analysers_have_the_same_interface(analyser: str) -> None:
    morphemes = parse_morphemes("先生がいらっしゃいました", analyser)
    assert [m.pos[0] for m in morphemes] == ["名詞", "助詞", "動詞", "助動詞", "助動詞"]
    assert {m.pos[0] for m in morphemes} <= set(POS)
    assert [m.surface for m in morphemes] == ["先生", "が", "いらっしゃい", "まし", "た"]
    assert "尊敬語" in honorifics("先生がいらっしゃいました", morphemes)[0].classes
    assert list(provenance(analyser)) == ["analyser", "dictionary"]


def test_unknown_analyser() -> None:
    with pytest.raises(UnknownNameError) as error:
        parse_morphemes("雨", "mecab")
    assert str(error.value) == "unknown analyser 'mecab'; allowed: fugashi, sudachi"


def test_a_missing_analyser_is_reported_with_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from moelens.errors import MoeLensError
    from moelens.japanese import morphology

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(morphology, "import_module", missing)
    morphology._sudachi.cache_clear()
    with pytest.raises(MoeLensError) as error:
        parse_morphemes("雨", "sudachi")
    morphology._sudachi.cache_clear()
    assert str(error.value) == (
        "analyser 'sudachi' is not installed; install it with pip install sudachipy sudachidict-core"
    )


def test_html() -> None:
    html = honorifics("お<客>様\nがいらっしゃる")._repr_html_()
    assert "&lt;" in html
    assert "<br>" in html
    assert 'title="rule: sonkei-verb; raises: subject; plain: 行く, 来る, いる"' in html
    assert "<rt" in parse_morphemes("敬語")._repr_html_()
    assert "ケイゴ" in parse_morphemes("敬語")._repr_html_()
