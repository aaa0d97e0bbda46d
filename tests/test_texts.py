"""The table of texts: two whole columns, every row in use, and a report and an explorer in Japanese without English."""

from __future__ import annotations

import ast
import json
import re
from html import unescape
from pathlib import Path
from string import Formatter

import pytest
from helpers.results import result_of

import moelens
from moelens.analysis.wording import settings
from moelens.commands.command_line import main
from moelens.errors import UnknownNameError
from moelens.japanese.classes import label_text
from moelens.models.routers import RouterRule
from moelens.texts import LANGUAGES, Texts, text_rows
from moelens.views.answers import answer
from moelens.views.explorer import Explorer, verdict

PACKAGE = Path(moelens.__file__).parent
JAPANESE = re.compile(r"[ぁ-んァ-ヶ一-龠]")
SAME = {"comparison.none", "effects.to"}  # 0, and an arrow
LOOKED_UP = (
    "family",
    "fact",
    "given",
    "metric",
    "section",
    "value",
    "map",
    "trace",
    "effect",
    "ranking",
    "setting",
    "kind",
    "live",
    "labelling",
    "register",
    "check",
    "label",
)  # by name, or sent whole


def names(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize("key", text_rows())
def test_a_row_has_every_language_and_the_same_names(key: str) -> None:
    row = text_rows()[key]
    assert tuple(row) == LANGUAGES
    assert all(row.values())
    assert names(row["en"]) == names(row["ja"])
    assert not JAPANESE.search(row["en"])
    assert JAPANESE.search(row["ja"]) or key in SAME or not re.search("[a-zA-Z]{2}", re.sub("{.*?}", "", row["en"]))


def used() -> set[str]:
    """The keys in the source, and those of the parts that are looked up by name; `x_{y}` stands for all that fit."""
    keys = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in text_rows():
                keys.add(node.value)
            if isinstance(node, ast.JoinedStr):
                pattern = "".join(
                    re.escape(p.value) if isinstance(p, ast.Constant) else r"[\w .]+" for p in node.values
                )
                if re.match(r"\w+\\\.", pattern):
                    keys |= {key for key in text_rows() if re.fullmatch(pattern, key)}
    return keys | {key for key in text_rows() if key.partition(".")[0] in LOOKED_UP}


def test_every_row_is_used() -> None:
    assert set(text_rows()) - used() == set()


def test_the_browser_is_sent_every_text_that_it_uses() -> None:
    for view in ("map", "trace", "effect"):
        script = (PACKAGE / "views" / "static" / f"{view}.js").read_text(encoding="utf-8")
        wanted = set(re.findall(r"texts\.(\w+)", script))
        assert wanted
        assert wanted <= set(Texts("ja").part(view))


def test_an_unknown_language_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownNameError, match=re.escape("unknown language 'fr'; allowed: en, ja")):
        moelens.report(tmp_path, lang="fr")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--lang", "fr"])
    assert "--lang" in capsys.readouterr().err


def english() -> set[str]:
    """The pieces of the English column that are sentences or phrases of three words or more, but names in commands."""
    rows = [row for key, row in text_rows().items() if not key.startswith("kind.")]
    pieces = {piece for row in rows for piece, *_ in Formatter().parse(row["en"]) if piece}
    return {piece.strip(" .,:;()") for piece in pieces if len(re.findall("[a-z]{2,}", piece)) > 2}


def shown(page: str) -> str:
    return unescape(re.sub(r"<style>.*?</style>|<script.*?</script>|<[^>]*>", "\n", page, flags=re.DOTALL))


SENTENCE = re.compile(r"(?:[A-Za-z][A-Za-z',.-]*[ \t]+){3,}[A-Za-z][A-Za-z',.-]*")
QUOTED = {"Mixture of Experts language models", "special tokens left out"}  # a name, and a setting of the analysis


def assert_japanese(text: str) -> None:
    """No piece of the English column, and no four English words in a row, wherever they come from."""
    assert [piece for piece in english() if piece in text] == []
    assert [run for run in SENTENCE.findall(text) if run not in QUOTED] == []


def test_a_report_in_japanese_has_no_english_text(demo_recording: moelens.Recording, tmp_path: Path) -> None:
    from moelens.interventions import remove

    model = moelens.load("demo")
    items = moelens.japanese.contrasts("kin-terms")[::4]
    effect = moelens.effect(model, items, remove(4, [17]), draws=20, texts=(), off_target=False, progress=False)
    effects = [effect, moelens.prefer(model, items)]
    texts = [row["text"] for row in demo_recording.documents(["text"]).to_pylist()][:60]
    other = moelens.record(model, [*texts, *texts[:5]], tmp_path / "other", progress=False)  # some documents are copies
    given = {"effects": effects, "compare": other, "baseline": True, "permutations": 50, "lang": "ja"}
    out = moelens.report(demo_recording, tmp_path / "r.html", **given)
    page = out.read_text(encoding="utf-8")
    assert page.startswith('<!doctype html>\n<html lang="ja">')
    assert_japanese(shown(page))
    for heading in re.findall(r"<h[123]>(.*?)</h[123]>|<t[hd] [^>]*>(lift|label|tokens)<|<dt>(.*?)</dt>", page):
        text = re.sub("<[^>]*>", "", "".join(heading))
        assert JAPANESE.search(text), text
    assert "層4のE17を除去" in page
    assert "セルが偶然を上回る(シード0)" in re.sub("<[^>]*>", "", page)
    moelens.report(other, tmp_path / "copies.html", permutations=50, lang="ja")
    copies = (tmp_path / "copies.html").read_text(encoding="utf-8")
    assert_japanese(shown(copies))
    assert "5文書がほかの文書の写し" in copies


def test_settings_labels_and_rules_in_words() -> None:
    say = Texts("ja")
    about = {"labels": "analyser fugashi 1.5, rules 6, alignment bytes: 3, offsets: 4, normalized nothing"}
    about |= {"given": "token × script", "effective_documents": 337.2024, "own": "x", "shortened_documents": 0}
    assert dict(settings(about, say)) == {
        "ラベルの作成方法": (
            "解析器: fugashi 1.5、規則の版: 6、位置合わせの方法と文書数: bytes: 3, offsets: 4、正規化した文字: なし"
        ),
        "統制": "トークン × script",
        "実効文書数": "337.2",
        "own": "x",
        "上限まで短くした文書数": "0",
    }
    drawn = {"given": "nothing", "sample": {"documents": 1000, "of": 5000, "seed": 0}}
    assert dict(settings(drawn, Texts())) == {"control": "nothing", "sample": "1,000 of 5,000 documents (seed 0)"}
    rule = RouterRule(score="sigmoid", top_k=4, bias="b", groups=4, kept_groups=2, normalised=True)
    assert str(rule) == "sigmoid + bias, top-4 in 2 of 4 groups, normalised"
    assert rule.in_words("ja") == "sigmoid + バイアス、4グループ中2グループから上位4個、正規化あり"
    assert label_text("begin", gloss=False) == "語頭 (begin)"


def test_an_explorer_in_japanese(demo_recording: moelens.Recording, tmp_path: Path) -> None:
    explorer = moelens.explore(demo_recording, baseline=True, permutations=50, lang="ja")
    assert explorer.sections[0][1].startswith("層とエキスパート · 同じ形で重みがランダムなモデルでは")
    headings = [child.value for child in explorer.children if hasattr(child, "value")]
    assert [re.sub("<[^>]*>", "", text) for text in headings] == [
        f"どこで {explorer.sections[0][1]}",
        "何を ラベルのトークンでこのエキスパートが選ばれる文",
        "効果 エキスパートを除去すると何が変わるか",
    ]
    for view in (explorer.map, explorer.trace, explorer.effect):
        assert_japanese(json.dumps([view.heading, view.texts], ensure_ascii=False))
    assert_japanese(explorer.card.value)
    explorer.effect.clicks = 1
    assert "を除くと、選好は" in explorer.effect.message
    assert_japanese(explorer.effect.message)
    assert_japanese(shown(explorer.save_html(tmp_path / "explorer.html").read_text(encoding="utf-8")))
    assert '<html lang="ja">' in explorer.trace.save_html(tmp_path / "trace.html").read_text(encoding="utf-8")
    explorer.close()


def test_verdicts_and_answers_say_the_same_in_japanese() -> None:
    row = {"target": "L4 · E21", "change": -0.31, "low": -0.44, "high": 0.1, "p": 0.01, "before": -1.0}
    assert verdict(row, 3, "ja") == (
        "L4 · E21を除くと、選好は0.310ナット下がります(95 %信頼区間は0を含む)。条件をそろえた対照群より大きな変化です"
        "(p = 0.0300、3回の除去について補正)。なお、このモデルはもともと、ここでは不適切な表現のほうを好みます。"
    )
    found, left, removed = answer({"honorifics": result_of(2, 8)}, lang="ja")
    assert found.startswith("見つかったこと(labels): 尊敬語はL")
    assert "検定したエキスパートとラベルの組" in left
    assert removed.startswith("モデルからは何も除去していません。")


def test_a_notebook_shows_results_in_its_language(demo_recording: moelens.Recording) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "moelens")
    result = moelens.analyze(demo_recording, permutations=20, progress=False)
    english_html = shell.display_formatter.format(result)[0]["text/html"]
    shell.run_line_magic("config", "MoeMagics.lang = 'ja'")
    try:
        shown_html = shell.display_formatter.format(result)[0]["text/html"]
        assert "トークンの同一性を統制" in shown_html
        comparison = moelens.compare(demo_recording, demo_recording, permutations=19)
        assert "両モデルで同一" in shell.display_formatter.format(comparison)[0]["text/plain"]
        shell.user_ns["rec"] = demo_recording
        explorer = shell.run_line_magic("moe", "explore rec --permutations 20")
        assert isinstance(explorer, Explorer)
        assert explorer.say.lang == "ja"
    finally:
        shell.run_line_magic("config", "MoeMagics.lang = 'en'")
    assert shell.display_formatter.format(result)[0]["text/html"] == english_html


def test_the_option_lang_is_for_one_result_of_a_notebook(
    demo_recording: moelens.Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "moelens")
    shell.user_ns["rec"] = demo_recording

    def shown(line: str) -> dict[str, str]:
        bundle: dict[str, str] = shell.display_formatter.format(shell.run_line_magic("moe", line))[0]
        return bundle

    bundle = shown("analyze rec --permutations 20 --lang ja")
    assert all("トークンの同一性を統制" in bundle[form] for form in ("text/plain", "text/html"))
    assert "エキスパート" in capsys.readouterr().out  # the line with the time
    assert "token identity the same in both" in shown("compare rec rec --permutations 19")["text/plain"]
    assert "両モデルで同一" in shown("compare rec rec --permutations 19 --lang ja")["text/plain"]
    shell.run_line_magic("config", "MoeMagics.lang = 'ja'")
    try:
        assert "token identity controlled" in shown("analyze rec --permutations 20 --lang en")["text/plain"]
        assert "トークンの同一性を統制" in shown("analyze rec --permutations 20")["text/plain"]
    finally:
        shell.run_line_magic("config", "MoeMagics.lang = 'en'")


def test_commands_print_findings_in_japanese(
    demo_recording: moelens.Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--permutations", "20", "--top", "2", "--lang", "ja"]
    assert main(["analyze", str(demo_recording.path), *options]) == 0
    *_, lift, _, _, corrected = capsys.readouterr().out.rstrip().split("\n")
    assert lift.startswith("リフト: ")
    assert corrected.startswith("q: 偽発見率")
