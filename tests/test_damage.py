"""What docs/reliability.md promises of damaged files, and of files that are whole and wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.damage import copied, flip, paths_in, replaced, rewrite, write_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moelens
from moelens import MoeLensError, Recording
from moelens.checksums import file_checksums, same_file
from moelens.errors import RecordingError
from moelens.japanese import Labels
from moelens.probes import probe
from moelens.recording.manifest import _FIELDS, seal

DIALOGUE = [{"role": "user", "content": "先生がいらっしゃる。"}, {"role": "assistant", "content": "はい。"}]
TOKENS, DOCUMENTS, VECTORS = "tokens/tokens-00000.parquet", "documents.parquet", "residuals/residuals-L01-00000.parquet"


@pytest.fixture(scope="module")
def model() -> moelens.HookedMoE:
    return moelens.load("demo")


@pytest.fixture(scope="module")
def labelled(model: moelens.HookedMoE, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    out = tmp_path_factory.mktemp("labelled") / "run"
    texts = ["先生がいらっしゃる。", "私が参る。"] * 8
    made = moelens.record(model, texts, out, progress=False, capture=["routes", "residuals"], layers=[1])
    moelens.label(made, processes=1)
    return made


@pytest.fixture(scope="module")
def conversation(model: moelens.HookedMoE, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    out = tmp_path_factory.mktemp("conversation") / "run"
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    made = moelens.record(model, [{"messages": DIALOGUE}] * 2, out, progress=False, layers=[1])
    moelens.label(made, processes=1)
    return made


def contents(path: Path) -> list[Any]:
    made = Recording.open(path)
    vectors = [made.vectors("residuals", layer) for layer in made.layers if "residuals" in made.captures]
    return [made.tokens(), made.documents(), *made.texts(), *vectors]


def everything(path: Path) -> list[Any]:
    labels = Labels.open(Recording.open(path))
    return [*contents(path), *map(labels.table, labels.families)]


READERS: dict[str, Callable[[Path], Any]] = {
    "open": lambda path: everything(path),
    "analyze": lambda path: moelens.analyze(path, permutations=19, min_tokens=1),
    "label": lambda path: moelens.label(path, processes=1),
    "measure": lambda path: moelens.measure(path, "load"),
    "compare": lambda path: moelens.compare(path, path, permutations=19),
    "report": lambda path: moelens.report(path, path.parent / "report.html", permutations=19, progress=False),
    "explore": lambda path: moelens.explore(path, permutations=19),
    "export": lambda path: moelens.export(path, "csv", path.parent / "csv", family="honorifics"),
    "export of vectors": lambda path: moelens.export(path, "npz", path.parent / "npz", table="residuals"),
    "verify": lambda path: moelens.verify(path),
    "show": lambda path: repr(Recording.open(path)),
    "probe": lambda path: probe(
        path, "honorifics", ["residuals"], layers=[1], folds=2, control_draws=1, progress=False
    ),
}
READS = {
    TOKENS: ("open", "analyze", "label", "measure", "compare", "report", "explore", "export", "probe"),
    DOCUMENTS: ("open", "analyze", "label", "measure", "compare", "export"),
    VECTORS: ("open", "export of vectors", "probe"),
    "labels/honorifics.parquet": ("open", "analyze", "report", "explore", "export", "probe"),
    "manifest.json": ("open", "analyze", "label", "export"),
}


@pytest.mark.parametrize("name, reader", [(name, reader) for name, readers in READS.items() for reader in readers])
def test_every_reader_notices_a_flipped_byte(labelled: Recording, tmp_path: Path, name: str, reader: str) -> None:
    path = copied(labelled, tmp_path / "run").path
    flip(path / name, 0.4)
    with pytest.raises(RecordingError, match="damaged"):
        READERS[reader](path)
    if name != "manifest.json":
        assert not moelens.verify(path)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_flipped_byte_is_noticed(
    labelled: Recording, conversation: Recording, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    made = data.draw(st.sampled_from([labelled, conversation]))
    path = copied(made, tmp_path_factory.mktemp("copy") / "run").path
    names = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.suffix in (".parquet", ".json"))
    name = data.draw(st.sampled_from(names))
    damaged = bytearray((path / name).read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]))
    want = everything(path)
    (path / name).write_bytes(damaged)
    try:
        found = everything(path)
    except RecordingError:
        return
    assert name.endswith(".json")  # a space that became another one, or a checksum that was not needed
    assert found == want
    if name == "manifest.json":
        fields = {field: value for field, value in Recording.open(path).manifest.items() if len(field) != len("sha256")}
        assert fields.items() <= made.manifest.items()


def test_unchanged_files_are_read_through_once(labelled: Recording, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"moelens")
    expected = file_checksums(path)
    assert same_file(path, expected)
    assert not same_file(path, expected | {"xxh3": "0" * 32})
    assert same_file(path, {"sha256": expected["sha256"]})
    path.write_bytes(b"moelenz")  # at once: the clock of the file system may not have ticked
    assert not same_file(path, expected)


def test_a_file_of_another_size_is_noticed_when_opened(labelled: Recording, tmp_path: Path) -> None:
    path = copied(labelled, tmp_path / "run").path
    with (path / VECTORS).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(RecordingError, match=rf"'{VECTORS}' of recording .* is damaged: it has \d+ bytes instead of"):
        Recording.open(path)
    assert any("SHA-256" in sentence for sentence in moelens.verify(path).damage)
    (path / VECTORS).unlink()  # somebody who needs no vectors may leave them out
    assert Recording.open(path).tokens().num_rows == labelled.n_tokens
    assert ["is missing" in sentence for sentence in moelens.verify(path).damage] == [True]


def test_files_elsewhere_are_compared_too(model: moelens.HookedMoE) -> None:
    out = "memory://damage/run"
    made = moelens.record(model, ["はい。"], out, progress=False, force=True)
    assert made.tokens() == Recording.open(out).tokens()
    data = bytearray(made.folder.read(TOKENS))
    data[len(data) // 2] ^= 1
    made.folder.write(TOKENS, bytes(data))
    with pytest.raises(RecordingError, match="is damaged: its checksum differs"):
        Recording.open(out).tokens()


def test_labels_are_verified(labelled: Recording, conversation: Recording, tmp_path: Path) -> None:
    for made in (labelled, conversation):
        path = copied(made, tmp_path / made.path.parent.name).path
        names = [p.name for p in (path / "labels").glob("*.parquet")]
        assert ("conversation.parquet" in names) == (made is conversation)
        for name in names:
            whole = (path / "labels" / name).read_bytes()
            flip(path / "labels" / name, 0.5)
            assert [name in sentence for sentence in moelens.verify(path).damage] == [True]
            with pytest.raises(
                RecordingError, match=r"is missing or damaged \(.*\); create it again with moelens.label"
            ):
                everything(path)
            (path / "labels" / name).write_bytes(whole)
        assert moelens.verify(path)
        (path / "labels" / "checksums.json").write_text("[]", "utf-8")
        assert "it lists no checksums" in moelens.verify(path).damage[0]
        (path / "labels" / "checksums.json").unlink()
        assert "checksums.json' is missing or damaged" in moelens.verify(path).damage[0]


def test_damaged_labels_are_not_replaced_in_silence(labelled: Recording, tmp_path: Path) -> None:
    """They may be of another analyser or policy than the labels that would be made."""
    made = copied(labelled, tmp_path / "run")
    flip(made.path / "labels" / "honorifics.parquet", 0.5)
    with pytest.raises(RecordingError, match="create it again"):
        Labels.open_or_create(made)


def test_labels_of_another_recording(model: moelens.HookedMoE, labelled: Recording, tmp_path: Path) -> None:
    """It has as many tokens."""
    other = moelens.record(model, ["先生がいらっしゃる。", "私が行く。"] * 8, tmp_path / "run", progress=False)
    assert other.n_tokens == labelled.n_tokens
    shutil.copytree(labelled.path / "labels", other.path / "labels")
    with pytest.raises(
        RecordingError, match=r"expected labels of this recording in .*, got those of another recording"
    ):
        Labels.open(other)
    assert "another recording" in moelens.verify(other).damage[0]


def test_a_folder_in_the_place_of_a_file(labelled: Recording, tmp_path: Path) -> None:
    for name in (TOKENS, DOCUMENTS, VECTORS, "labels/honorifics.parquet", "labels/checksums.json", "manifest.json"):
        path = copied(labelled, tmp_path / Path(name).stem).path
        (path / name).unlink()
        (path / name).mkdir()
        with pytest.raises(RecordingError, match="damaged"):
            everything(path)
        if name != "manifest.json":
            assert "is not a file" in moelens.verify(path).damage[0] or "labels" in moelens.verify(path).damage[0]


# The manifest

NEW: list[Any] = [..., None, 5, -1, 1.5, 2**70, 10**15, math.inf, "x", "\ud800", "", [], [5], ["x"], [[]], {}, {"a": 1}]


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_manifest_ends_in_an_error_of_moelens(
    labelled: Recording, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Each field removed or replaced, with and without the right checksum."""
    manifest = {name: value for name, value in labelled.manifest.items() if name != "sha256"}
    field = data.draw(st.sampled_from(list(paths_in(manifest))))
    manifest = replaced(manifest, field, data.draw(st.sampled_from(NEW)))
    path = copied(labelled, tmp_path_factory.mktemp("copy") / "run").path
    manifest = manifest if data.draw(st.booleans()) else seal(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    for name in ("open", "analyze", "label", "export", "export of vectors", "verify", "show"):
        try:
            READERS[name](path)
        except MoeLensError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("new", [None, ...], ids=["null", "missing"])
def test_a_manifest_of_what_has_to_be_in_it(labelled: Recording, tmp_path: Path, new: Any) -> None:
    """Other programs write fields without a value as null, or leave them out."""
    optional = [tuple(field[:-1].split(".")) for field in reversed(_FIELDS) if field.endswith("?")]
    for reader, without in (("measure", True), ("label", False), ("show", True), ("export of vectors", True)):
        made = copied(labelled, tmp_path / reader)
        manifest = made.manifest | {"alignment": {"unaligned_documents": 0, "reason": ""}, "uncaptured": {}}
        for field in optional:
            if (without or field != ("documents",)) and field in set(paths_in(manifest)):
                manifest = replaced(manifest, field, new)
        write_manifest(made.path, manifest)
        READERS[reader](made.path)
        moelens.export(made.path, "csv", tmp_path / f"{reader} csv")


@pytest.mark.parametrize(
    "field, value",
    [
        ("n_tokens", "5"),
        ("n_tokens", -1),
        ("n_documents", 15),
        ("shards", {}),
        ("shards", [5]),
        ("shape", None),
        ("capture", []),
        ("tables", 1),
        ("corpus", 5),
        ("alignment", {"unaligned_documents": 5}),
    ],
)
def test_a_manifest_of_other_types(labelled: Recording, tmp_path: Path, field: str, value: Any) -> None:
    write_manifest(tmp_path, labelled.manifest | {field: value})
    with pytest.raises(
        RecordingError, match=rf"manifest.json' is damaged: its {field}.* is missing or not as it should be; copy it"
    ):
        Recording.open(tmp_path)


def test_a_changed_value_in_a_manifest(labelled: Recording, tmp_path: Path) -> None:
    changed = replaced(labelled.manifest, ("model", "name"), "other")
    (tmp_path / "manifest.json").write_text(json.dumps(changed), "utf-8")
    with pytest.raises(RecordingError, match=r"manifest\.json' is damaged: it differs from its checksum; copy"):
        Recording.open(tmp_path)


# Files that are whole, and hold what they must not


def with_column(name: str, change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    """Return a change of a table: of one column, as a list of Python values."""

    def changed(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        values = table[name].to_pylist()
        return table.set_column(table.schema.get_field_index(name), field, pa.array(change(values), field.type))

    return changed


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


def last(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:-1], value]


WRONG: dict[str, tuple[str, Callable[[pa.Table], pa.Table], str]] = {
    "documents in another order": (TOKENS, with_column("doc", lambda v: v[::-1]), "'doc' that are not in ascending"),
    "a document too many": (TOKENS, with_column("doc", last(16)), "not below 16"),
    "a document below 0": (TOKENS, with_column("doc", first(-1)), "'doc' that are not in ascending order"),
    "no document": (TOKENS, with_column("doc", first(None)), "rows without 'doc'"),
    "positions twice": (TOKENS, with_column("pos", first(1)), "positions in 'pos' that are not in ascending order"),
    "characters beyond the text": (TOKENS, with_column("char_end", last(99)), "for a token of document 15, beyond its"),
    "characters before the text": (TOKENS, with_column("char_start", first(-2)), "for a token of document 0, beyond"),
    "an expert too many": (
        TOKENS,
        with_column("experts_L01", first([0, 1, 2, 32])),
        "expert 32 in 'experts_L01', of",
    ),
    "weights that are no numbers": (TOKENS, with_column("weights_L01", first([math.nan] * 4)), "are not finite"),
    "infinite weights": (
        TOKENS,
        with_column("weights_L01", last([-math.inf] * 4)),
        "in 'weights_L01' that are",
    ),
    "no weights": (TOKENS, with_column("weights_L01", first([None] * 4)), "rows without 'weights_L01'"),
    "a column less": (TOKENS, lambda table: table.drop_columns(["pos"]), "has no column 'pos'"),
    "another type": (
        TOKENS,
        lambda table: table.set_column(0, "doc", table["doc"].cast(pa.int64())),
        "has column 'doc' of int64 instead of int32",
    ),
    "a token less": (TOKENS, lambda table: table[:-1], "n_tokens is missing or not as it should be"),
    "a document less": (DOCUMENTS, lambda table: table[:-1], "n_documents is missing or not as it should be"),
    "no texts": (DOCUMENTS, lambda table: table.drop_columns(["text"]), "has no column 'text'"),
    "texts that are numbers": (
        DOCUMENTS,
        lambda table: table.set_column(1, "text", table["doc"]),
        "has column 'text' of int32 instead of string",
    ),
    "shorter texts": (DOCUMENTS, with_column("text", first("先")), "for a token of document 0, beyond its text"),
    "documents with other numbers": (
        DOCUMENTS,
        with_column("doc", first(7)),
        "number its documents from 0 on",
    ),
    "vectors of a document too many": (VECTORS, with_column("doc", last(16)), "not below 16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_are_held_to_the_schema(labelled: Recording, tmp_path: Path, case: str) -> None:
    name, change, message = WRONG[case]
    made = copied(labelled, tmp_path / "run")
    rewrite(made, name, change)
    with pytest.raises(RecordingError, match=message):
        contents(made.path)
    if "n_" in message:  # the manifest contradicts itself
        return
    assert any(message in sentence for sentence in moelens.verify(made.path).damage)


def test_shards_follow_one_another(labelled: Recording) -> None:
    entry = labelled.manifest["shards"][0]
    doubled = labelled.manifest | {"shards": [entry, entry], "n_tokens": 2 * labelled.n_tokens}
    with pytest.raises(RecordingError, match="is damaged: it begins with document 0, after document 15"):
        Recording(labelled.folder, doubled).column("doc")


def test_a_manifest_with_more_rows_than_memory(labelled: Recording, tmp_path: Path) -> None:
    made = copied(labelled, tmp_path / "run")
    many = 10**15
    manifest = replaced(made.manifest, ("shards", 0, "rows"), many) | {"n_tokens": many}
    write_manifest(made.path, manifest)
    with pytest.raises(RecordingError, match=f"rows instead of {many}"):
        Recording.open(made.path).indices()


def test_labels_with_other_columns(labelled: Recording, tmp_path: Path) -> None:
    made = copied(labelled, tmp_path / "run")
    path = made.path / "labels" / "honorifics.parquet"
    shutil.copy(made.path / "labels" / "register.parquet", path)
    sums = json.loads((path.parent / "checksums.json").read_text("utf-8"))
    (path.parent / "checksums.json").write_text(json.dumps(sums | {path.name: file_checksums(path)}), "utf-8")
    with pytest.raises(RecordingError, match=r"it has no column honorifics\.尊敬語 of labels"):
        Labels.open(made)
    assert np.array_equal(Labels.open(labelled).matrix("honorifics")[1].shape, (labelled.n_tokens, 5))
