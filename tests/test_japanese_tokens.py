"""Which labels a token carries: one policy for recordings, traces, interventions and probes."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, islice, pairwise
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moelens
from moelens.errors import UnknownNameError
from moelens.interventions.token_masks import label_mask
from moelens.japanese import Labels, honorifics
from moelens.japanese.families import COLUMNS, WHOLE, character_labels
from moelens.japanese.label_tables import label_groups, with_register
from moelens.japanese.morphology import Analyser
from moelens.japanese.token_labels import completed, policy_in_words, token_labels
from moelens.models.tokens import token_spans


def tokens_of(marked: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Return a text divided at "|", and the starts and the ends of its tokens."""
    ends = list(accumulate(map(len, marked.split("|")), initial=0))
    return marked.replace("|", ""), np.array(ends[:-1]), np.array(ends[1:])


def labels_of(marked: str, family: str = "honorifics") -> list[str]:
    text, start, end = tokens_of(marked)
    has = token_labels(character_labels(text), start, end)
    columns = [i for i, c in enumerate(COLUMNS) if c.startswith(f"{family}.")]
    return ["+".join(COLUMNS[i].partition(".")[2] for i in columns if row[i]) for row in has]


@pytest.mark.parametrize(
    "marked, expected",
    [
        ("来|ました", ["", "丁寧語"]),
        ("来|ません|でした", ["", "丁寧語", "丁寧語"]),
        ("雨|でしょうか", ["", "丁寧語"]),
        ("確認|いたしました", ["", "謙譲語II+丁寧語"]),
        ("お届け|いた|し|ます", ["", "", "謙譲語I+謙譲語II", "丁寧語"]),
        ("いら|っしゃ|い|ます", ["", "", "尊敬語", "丁寧語"]),
        ("お客|様|が", ["", "尊敬語", ""]),
        ("お茶を|飲む", ["美化語", ""]),
        ("先生がいらっしゃいました。", ["尊敬語+丁寧語"]),
    ],
)
def test_a_token_carries_what_ends_in_it(marked, expected):
    assert labels_of(marked) == expected


@pytest.mark.parametrize(
    "marked, family, expected",
    [
        ("お|客様", "honorific_form", ["prefix", ""]),
        ("ました。雨", "register", ["plain+polite"]),
        ("雨です|。|風", "register", ["polite", "polite", "plain"]),
        ("まし|た", "pos", ["助動詞", "助動詞"]),
    ],
)
def test_other_families(marked, family, expected):
    assert labels_of(marked, family) == expected


def test_of_tokens_that_share_a_character_the_last_completes_it():
    start, end = np.array([0, 0, 0, 1, 1, 3, 3]), np.array([0, 1, 2, 2, 3, 3, 4])
    assert completed(start, end).tolist() == [0, 0, 1, 1, 3, 3, 4]
    labels = character_labels("です")
    has = token_labels(labels, np.array([0, 1, 1]), np.array([2, 2, 2]))
    assert has[:, COLUMNS.index("honorifics.丁寧語")].tolist() == [False, False, True]


def test_a_zero_width_character_after_a_word_is_not_its_end():
    assert labels_of("来ま|す|\u200b|。") == ["", "丁寧語", "", ""]


def test_unknown_policy():
    with pytest.raises(UnknownNameError) as error:
        token_labels(character_labels("雨"), np.array([0]), np.array([1]), "first")
    assert str(error.value) == "unknown label policy 'first'; allowed: ends, last, any, majority"
    assert policy_in_words("ends") == "ends (a token carries the labels of every morpheme and span that ends in it)"


@given(st.text("お客様がいらっしゃいました。です申し上げ\n\u200bｶﾞか\u3099", max_size=40), st.data())
@settings(deadline=None, max_examples=60)
def test_every_label_ends_in_one_token_at_most(text, data):
    """However a text is cut, each morpheme and span labels the one token that holds its last character."""
    labels = character_labels(text)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)))) & set(range(1, len(text))))
    edges = [0, *cuts, len(text)]
    start, end = (np.array(side) for side in zip(*pairwise(edges), strict=True))
    has = token_labels(labels, start, end)
    for row, a, b in zip(has, start, end, strict=True):
        np.testing.assert_array_equal(row, labels.ends[a:b].any(0))
    for morpheme in labels.morphemes:
        column = COLUMNS.index(f"pos.{morpheme.pos[0]}")
        holders = [i for i in range(len(start)) if start[i] < morpheme.end and end[i] > morpheme.start]
        assert has[holders, column].any()


def test_recording_trace_and_intervention_mark_the_same_tokens(tmp_path):
    text = "先生がいらっしゃいました。お届けいたします。"
    model = moelens.load("demo")
    labels = moelens.label(moelens.record(model, [text], tmp_path / "run"))
    names, recorded = labels.matrix("honorifics")
    trace = moelens.trace(model, text)
    traced = np.zeros_like(recorded)
    for first, last, name in trace.spans:
        traced[first:last, names.index(name)] = True
    np.testing.assert_array_equal(traced, recorded)
    ids = model.to_tokens(text)
    for i, name in enumerate(names):
        mask = label_mask(model, ids, name)
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask[0].numpy(), recorded[:, i])
    assert "underlined: tokens in which an honorific ends" in trace.html()
    card = (tmp_path / "run" / "README.md").read_text("utf-8")
    assert f"| policy | {policy_in_words('ends')} |" in card
    assert "| normalized | nothing |" in card


def test_all_polite_forms_of_the_bundled_corpus_are_labelled(tmp_path):
    model = moelens.load("demo")
    recording = moelens.record(model, "demo", tmp_path / "run")
    names, has = Labels.create(recording, processes=1).matrix("honorifics")
    polite = has[:, names.index("丁寧語")]
    doc, ids = recording.column("doc"), recording.column("token_id")
    completing = labelled = 0
    for number, text in enumerate(recording.texts()):
        rows = np.flatnonzero(doc == number)
        spans = token_spans(model.tokenizer, text, ids[rows].tolist())
        ends = [s.end for s in honorifics(text) if "丁寧語" in s.classes]
        holds = [any(a < e <= b for e in ends) for a, b in zip(spans.start, spans.end, strict=True)]
        completing += sum(holds)
        labelled += int(polite[rows][holds].sum())
    assert completing > 200
    assert labelled == completing == polite.sum()


def test_labels_of_a_whole_sentence_apply_to_each_of_its_tokens():
    text, start, end = tokens_of("いら|っしゃ|い|ます|。")
    has = token_labels(character_labels(text), start, end)
    for family in WHOLE:
        columns = [i for i, c in enumerate(COLUMNS) if c.partition(".")[0] == family]
        assert has[:, columns].sum(1).tolist() == [1] * 5


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_tokens_before_one_without_characters_keep_their_labels(kind: type) -> None:
    """The places of a recording are int32, and many tokenizers end a text with a special token."""
    start, end = np.array([0, 1, 4], kind), np.array([1, 4, 4], kind)
    assert completed(start, end).tolist() == [1, 4, 4]
    has = token_labels(character_labels("来ました"), start, end)[:, COLUMNS.index("honorifics.丁寧語")]
    assert has.tolist() == [False, True, False]


@pytest.mark.parametrize("analyser", ["fugashi", "sudachi"])
@pytest.mark.parametrize("characters", [23, 60])
def test_a_long_document_is_labelled_in_pieces(
    analyser: Analyser, characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels are those of the document as a whole, also where a token or a word crosses a sentence end."""
    odd = "モーニング娘。が好き。はい。食べて\nいる人。「来ます。そうか。」と言った。ｶﾞｷﾞ。w.com に３．５人。。。"
    odd += "\n\n　次。\nA. B\nC 。"
    demo = [document.text for document in islice(moelens.Corpus.of("demo"), 12)]
    texts = ["".join(demo[:4]) + odd * 2, normalize("NFD", "".join(demo[4:8])), "\n".join(demo[8:]), "。" * 50]
    documents = []
    for text in texts:
        edges = [0, *(i for i in range(1, len(text)) if (i * 7919) % 5 < 2), len(text)]  # tokens of some characters
        special = [0], [len(text)]
        start, end = (np.array([*special[0], *at, *special[1]], np.int32) for at in (edges[:-1], edges[1:]))
        documents.append((text, start, end))

    def labelled() -> tuple[pa.Table, Counter[str], int]:
        tables, waiting, normalized = [], [], Counter[str]()
        found = list(label_groups(iter([(documents, "ends", analyser)]), 1))
        for item in found:
            waiting.append(item.table)
            normalized.update(item.normalized)
            if item.register is not None:
                tables += [with_register(table, item.register) for table in waiting]
                waiting = []
        return pa.concat_tables(tables), normalized, len(found)

    whole, counts, _ = labelled()
    monkeypatch.setattr("moelens.japanese.label_tables._PIECE_CHARACTERS", characters)
    table, found_counts, pieces = labelled()
    assert pieces > 3
    assert found_counts == counts
    assert table.to_pydict() == whole.to_pydict()
