"""`moelens.report` and `moelens report`: one file about any recording, without a network."""

from __future__ import annotations

import re
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_model

import moelens
from moelens.commands.command_line import main
from moelens.japanese import Labels
from moelens.recording.parallel import Ranks
from moelens.views.live import LiveView

TEXTS = ["社長がいらっしゃいました。<script>alert(1)</script>", "資料をお送りいたします。", "雨が降っていた。"] * 12


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> moelens.Recording:
    out = tmp_path_factory.mktemp("report") / "run"
    return moelens.record(moelens.load("demo"), TEXTS, out, progress=False)


def test_a_report_of_a_recording(recording: moelens.Recording, tmp_path: Path) -> None:
    out = moelens.report(recording, tmp_path / "made" / "report.html", permutations=50, notes=["Few texts."])
    page = out.read_text(encoding="utf-8")
    assert (Path(recording.path) / "labels" / "honorifics.parquet").exists(), "labels are written where none were"
    left_out = "Left out, honorifics within token"
    for words in ("36 documents", "尊敬語", "Left out, pos within token", left_out, "Few texts.", "50 draws"):
        assert words in re.sub("<[^>]*>", "", page)
    assert "<script>alert" not in page
    assert not re.search(r"https?://", page)


def test_a_report_leaves_no_widgets_behind(recording: moelens.Recording, tmp_path: Path) -> None:
    from ipywidgets.widgets.widget import _instances

    before = set(_instances)
    moelens.report(recording, tmp_path / "report.html", permutations=50)
    assert [_instances[name] for name in set(_instances) - before if isinstance(_instances[name], LiveView)] == []


def test_given_results_are_shown_as_they_are(recording: moelens.Recording, tmp_path: Path) -> None:
    labels = moelens.label(recording)
    result = moelens.analyze(recording, "script", labels=labels, given=None, permutations=50)
    page = moelens.report(recording, tmp_path / "r.html", labels, results={"script": result}, title="A & B").read_text()
    assert "<h1>A &amp; B</h1>" in page
    assert "Scripts, without control: layers and experts" in page
    assert "Honorifics" not in page


def test_effects_have_a_section(recording: moelens.Recording, tmp_path: Path) -> None:
    from moelens.interventions import remove

    found = moelens.effect(moelens.load("demo"), "control-noun", remove(4, [7]), controls=None, texts=())
    without = moelens.report(recording, tmp_path / "r.html", permutations=50).read_text(encoding="utf-8")
    page = moelens.report(recording, tmp_path / "r.html", effects=[found], permutations=50).read_text(encoding="utf-8")
    assert "<b>EFFECT</b>" not in without
    assert "Nothing in this report is causal" in without
    section = page.partition("<b>EFFECT</b>")[2].partition("</section>")[0]
    assert "remove E7 in layer 4" in section
    assert "control-noun" in section
    assert "Nothing in this report is causal" not in page


class _OwnLabels(Labels):
    """Labels that are not those in the folder of the recording."""


def test_the_command_is_the_function(
    recording: moelens.Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(recording.path), "--out", str(out), "--permutations", "50"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = out.read_text(encoding="utf-8")
    assert "<b>LIMITS</b>" in page
    printed = re.findall(r"<pre>(moelens report .*?)</pre>", page)
    out.unlink()
    assert main(shlex.split(unescape(printed[0]))[1:]) == 0
    assert out.read_text(encoding="utf-8") == page, "the command on the page makes it again"
    in_folder = moelens.label(recording)
    for labels, commands in ((in_folder, 1), (_OwnLabels(in_folder.path), 0)):
        page = moelens.report(recording, out, labels, permutations=50).read_text(encoding="utf-8")
        assert page.count("<pre>moelens report ") == commands, "no command for a page with labels of one's own"
    capsys.readouterr()
    assert main(["report", str(recording.path), "--out", str(tmp_path)]) == 2  # a folder
    assert f"expected a file to write, got the folder '{tmp_path}'; give one such as" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", str(out)]) == 2
    assert "is not a recording" in capsys.readouterr().err


def test_nothing_to_report(tmp_path: Path) -> None:
    single = moelens.record(moelens.load("demo"), ["雨が降っていた。"], tmp_path / "one", progress=False)
    with pytest.raises(
        moelens.MoeLensError, match="in which some label can be tested, got none: honorifics within token: expected "
    ):
        moelens.report(single, tmp_path / "report.html")


def test_the_report_begins_with_what_was_found_and_what_was_not(
    demo_recording: moelens.Recording, tmp_path: Path
) -> None:
    results = {
        "honorifics within token": moelens.analyze(demo_recording, permutations=99, progress=False),
        "honorifics": moelens.analyze(demo_recording, given=None, permutations=99, progress=False),
    }
    out = moelens.report(demo_recording, tmp_path / "r.html", results=results, baseline=True, progress=False)
    page = re.sub("<[^>]*>", "", out.read_text(encoding="utf-8"))
    first = results["honorifics within token"]
    size = f"{(first.significant & (first.lift_given > 1)).sum()} of {np.isfinite(first.p).sum()} tested pairs"
    for words in (
        "ound (honorifics): ",
        f"Given token, {size} of an expert and a label are above chance",
        "without this",
    ):
        assert words in page
    assert re.search(r"A random model of this shape gives \d+ of [\d,]+\.", page)
    assert re.search(r"random model of this shape\d+ of [\d,]+ cells above chance \(seed 0\)", page)
    assert "Nothing was removed from the model" in page
    assert page.index("ound (honorifics)") < page.index("OVERVIEW") < page.index("Honorifics, without control")


def test_what_cannot_be_compared_or_shown_is_refused_before_the_analyses(
    demo_recording: moelens.Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = moelens.record(moelens.load("demo"), ["雨が降る。"], tmp_path / "other", layers=[1], progress=False)
    monkeypatch.setattr("moelens.workflows.reporting.analyze_families", lambda *_: pytest.fail("it was analysed"))
    with pytest.raises(moelens.errors.RecordingError, match="expected two recordings with the same layers"):
        moelens.report(demo_recording, tmp_path / "r.html", compare=other)
    refused = "expected a result of effect, causes or prefer in effects .--effects., got Recording; give one, or a file"
    with pytest.raises(moelens.MoeLensError, match=refused):
        moelens.report(demo_recording, tmp_path / "r.html", effects=[other.path])


def test_analyze_and_explore_say_what_a_random_model_gives(
    demo_recording: moelens.Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = str(demo_recording.path), tmp_path / "found.json"
    given = ["--permutations", "19", "--baseline"]
    assert main(["analyze", folder, *given, "--min-tokens", "30", "--out", str(file)]) == 0
    line = r"a random model of this shape gives (\d+) of ([\d,]+) tested cells above chance; here \d+ of [\d,]+ are"
    above, tested = re.search(line, capsys.readouterr().out).groups()
    saved = moelens.open(file)
    assert saved.provenance["random_model"] == {"above": int(above), "tested": int(tested.replace(",", "")), "seed": 0}
    assert main(["explore", folder, *given, "--out", str(tmp_path / "e.html")]) == 0
    assert re.search(line, (tmp_path / "e.html").read_text(encoding="utf-8"))
    assert "a random model" not in str(moelens.explore(demo_recording, permutations=19).sections)


def test_a_baseline_is_of_the_recorded_model_and_one_process(
    demo_recording: moelens.Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = moelens.analyze(demo_recording, permutations=19, progress=False)
    with pytest.raises(moelens.MoeLensError, match="expected the model that made the recording, 'demo', got 'tiny'"):
        moelens.with_baseline(result, demo_recording, moelens.hook(tiny_model("deepseek_v3"), name="tiny"))
    monkeypatch.setattr(Ranks, "of", classmethod(lambda cls, model: cls(size=2)))
    refused = "expected one process for a baseline, got 2; analyse in one process"
    with pytest.raises(moelens.MoeLensError, match=refused):
        moelens.with_baseline(result, demo_recording)


def test_a_file_of_an_effect_is_shown_and_said(recording: moelens.Recording, tmp_path: Path) -> None:
    found = moelens.effect(
        moelens.load("demo"), "control-noun", moelens.remove(4, [7]), controls=None, texts=(), off_target=False
    )
    found.save(tmp_path / "effect.json")
    assert moelens.open(tmp_path / "effect.json").interventions == found.interventions
    given = ["report", str(recording.path), "--out", str(tmp_path / "r.html"), "--permutations", "19"]
    assert main([*given, "--effects", str(tmp_path / "effect.json")]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Remove E7 in layer 4: the model prefers what the context licenses" in page
    assert f"--out {tmp_path / 'r.html'} --permutations 19 --effects {tmp_path / 'effect.json'}" in page


def test_open(recording: moelens.Recording, tmp_path: Path) -> None:
    result = moelens.analyze(recording, given=None, permutations=19, progress=False)
    for name in ("found.json", "found.parquet"):
        assert moelens.open(result.save(tmp_path / name)).names == result.names
    assert moelens.open(recording.path).n_documents == len(TEXTS)
    (tmp_path / "other.json").write_text("[1]")
    refused = r"expected a result that moelens saved, got '.*', which is none"
    for name in ("other.json", "missing.parquet"):
        with pytest.raises(moelens.MoeLensError, match=refused):
            moelens.open(tmp_path / name)


def test_effects_and_baseline_need_the_recording(recording: moelens.Recording, tmp_path: Path) -> None:
    found = moelens.analyze(recording, given=None, permutations=19, progress=False)
    refused = "expected a recording with --effects, --baseline, --compare or --documents, got counts or a result;"
    for option in ({"baseline": True}, {"effects": "remove"}, {"compare": recording}, {"documents": 5}):
        with pytest.raises(moelens.MoeLensError, match=refused):
            moelens.report(found, tmp_path / "r.html", **option)


def test_a_report_compares_two_models(recording: moelens.Recording, tmp_path: Path) -> None:
    tuned = moelens.load("demo")
    tuned.name = "tuned"
    with torch.no_grad():
        for name, parameter in tuned.hf_model.named_parameters():
            if "mlp.gate" in name:
                parameter.mul_(torch.linspace(0.5, 2, len(parameter))[:, None])
    other = moelens.record(tuned, TEXTS, tmp_path / "tuned", progress=False)
    out = tmp_path / "r.html"
    command = ["report", "--compare", str(recording.path), str(other.path), "--out", str(out), "--permutations", "50"]
    assert main(command) == 0
    page = out.read_text(encoding="utf-8")
    assert "Compared with demo, tuned chooses other experts for " in page
    section = page.partition("<b>COMPARE</b>")[2].partition("</section>")[0]
    assert section.startswith("What differs from demo")
    assert "demo → tuned" in section
    assert f"--compare {recording.path}" in page.partition("<b>REPRODUCE</b>")[2]


def test_a_model_that_did_not_make_the_recording_is_refused(recording: moelens.Recording, tmp_path: Path) -> None:
    other = moelens.hook(tiny_model("deepseek_v3"), name="tiny")
    with pytest.raises(
        moelens.MoeLensError, match=r"expected the model that made the recording, 'demo', got 'tiny', wh"
    ):
        moelens.explore(recording, other)
    model = moelens.load("demo")
    with torch.no_grad():
        for name, parameter in model.hf_model.named_parameters():
            if "mlp.gate" in name:
                parameter.copy_(torch.randn_like(parameter))
    with pytest.raises(moelens.MoeLensError, match=r"chooses the recorded experts in only .* of .* tokens"):
        moelens.report(recording, tmp_path / "r.html", model=model, baseline=True)


@pytest.mark.e2e
def test_the_report_is_alive_without_a_kernel(recording: moelens.Recording, tmp_path: Path, browser: Any) -> None:
    out = moelens.report(recording, tmp_path / "report.html", permutations=50)
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: faults.append(request.url) if request.url.startswith(("http", "ws")) else None)
    page.goto(out.as_uri())
    figure = page.locator("#live-0")
    canvas = figure.get_by_role("application")
    canvas.wait_for()
    assert not figure.locator(".static").is_visible()
    before = figure.locator("output").inner_text(), figure.locator(".card:visible").inner_text()
    canvas.press("ArrowRight")
    canvas.press("ArrowDown")
    assert before[0] != figure.locator("output").inner_text()
    assert figure.locator(".card:visible").count() == 1
    assert before[1] != figure.locator(".card:visible").inner_text()
    figure.get_by_title("metric").select_option("share")
    assert "share" in figure.locator("output").inner_text()
    assert "share relative to chance" in figure.locator(".moelens-heading").inner_text()
    page.emulate_media(media="print")
    assert figure.locator(".static").is_visible()
    assert not canvas.is_visible()
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    page.close()
    assert all("example.org" in fault for fault in faults), "there was no other attempt"


@pytest.mark.e2e
def test_the_report_without_scripts_shows_pictures(recording: moelens.Recording, tmp_path: Path, browser: Any) -> None:
    out = moelens.report(recording, tmp_path / "report.html", permutations=50)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(out.as_uri())
    assert page.locator("#live-0 img").first.is_visible()
    assert page.locator("#live-0 .card:visible").count() == 0
    context.close()
