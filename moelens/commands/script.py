"""`run_script`: a file of probes and effects, run unattended, resumed where it stopped, held to expectations."""

from __future__ import annotations

import hashlib
import json
import operator
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from moelens.errors import MoeLensError, UnknownNameError, unknown
from moelens.interventions import effect
from moelens.interventions.operations import named
from moelens.interventions.readout import as_pairs
from moelens.japanese import Labels
from moelens.models.loading import load
from moelens.probes import probe
from moelens.recipes import load_hooks
from moelens.recording import Recording, record
from moelens.recording.parallel import Ranks
from moelens.saved import json_values
from moelens.text_files import read_text
from moelens.views.style import japanese_font

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
TOP = ("model", "recording", "corpus", "capture", "out", "seed", "probe", "effect")
KEYS = {
    "probe": ("name", "family", "features", "layers", "probes", "folds", "seed", "expect"),
    "effect": (
        *("name", "pairs", "operation", "layer", "experts", "value", "at", "phase"),
        *("controls", "draws", "half", "seed", "expect"),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """One entry of a script: where its result is, and which expectations it did not meet, in words."""

    name: str
    path: Path
    failed: tuple[str, ...]
    resumed: bool

    def __str__(self) -> str:
        state = "; ".join(self.failed) or ("as expected" if not self.resumed else "as expected, from an earlier run")
        return f"{'FAILED ' if self.failed else 'ok     '} {self.name}: {state} ({self.path})"


@dataclass(frozen=True)
class Script:
    """A file of probes and effects.

        model = "demo"
        corpus = "demo"                 # or recording = "runs/demo", labelled
        out = "runs/probes"

        [[probe]]
        name = "pos"
        family = "pos"
        features = ["experts", "paths"]
        expect = ["selectivity > 0.1"]  # of the most accurate row

        [[effect]]
        name = "remove-17"
        pairs = "polite-ending"         # or a .jsonl file
        operation = "remove"
        layer = 3
        experts = [17]
        expect = ["change < 0", "p < 0.05"]   # of the first kind of pair

    Relative paths are relative to the file.
    """

    path: Path
    settings: Mapping[str, Any]
    hooks: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path, hooks: Path | None = None, options: Mapping[str, Any] | None = None) -> Script:
        """Read and check a script, before anything runs.

        Raises:
            UnknownNameError: no such file, or a setting that does not exist.
            MoeLensError: it is not TOML, lacks something, or uses a name twice; hooks for probes of a recording.
        """
        path = Path(path)
        if not path.is_file():
            raise UnknownNameError(f"no script at '{path}'; give a TOML file with [[probe]] and [[effect]] entries")
        try:
            settings = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise MoeLensError(f"'{path}' is not TOML: {error}") from error
        script = cls(path, settings, hooks, options or {})
        for key in settings:
            if key not in TOP:
                raise unknown("setting", key, TOP, f"in '{path}'")
        names = [entry.get("name", "") for _, entry in script.entries]
        if not names or "out" not in settings:
            raise MoeLensError(f"'{path}' needs out = \"FOLDER\" and at least one [[probe]] or [[effect]]")
        for kind, entry in script.entries:
            if not re.fullmatch(r"[\w.-]+", str(entry.get("name", ""))) or names.count(entry["name"]) > 1:
                raise MoeLensError(f"'{path}': every [[{kind}]] needs a name of its own, of letters, digits, - and _")
            for key in entry:
                if key not in KEYS[kind]:
                    raise unknown("setting", key, KEYS[kind], f"of [[{kind}]] {entry['name']!r} in '{path}'")
            for expectation in expectations(entry):
                parse(expectation)
        if any(kind == "probe" for kind, _ in script.entries) and not {"recording", "corpus"} & set(settings):
            raise MoeLensError(f"'{path}' has probes and needs recording = \"FOLDER\", or model and corpus to make one")
        if hooks and "probe" in settings and "recording" in settings:
            raise MoeLensError(
                f"'{path}' has probes of a recording, which '{hooks}' cannot change; give model and corpus in its place"
            )
        return script

    @property
    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        return [(kind, entry) for kind in ("probe", "effect") for entry in self.settings.get(kind, [])]

    @property
    def out(self) -> Path:
        return self.path.parent / str(self.settings["out"])

    def place(self, value: str) -> str:
        """A path of the script, or a name such as "demo" that is none."""
        beside = self.path.parent / value
        return str(beside) if beside.exists() else value

    def digest(self, entry: Mapping[str, Any]) -> str:
        """What an entry's result depends on; a result with another digest is made anew."""
        common = {k: v for k, v in self.settings.items() if k not in KEYS and k != "out"}
        plain = {k: v for k, v in entry.items() if k != "expect"}
        files = [self._contents(name) for name in (self.settings.get("corpus"), entry.get("pairs"), self.hooks)]
        known = json.dumps([common, plain, files, dict(self.options)], sort_keys=True, default=str)
        return hashlib.sha256(known.encode()).hexdigest()

    @property
    def recorded(self) -> Path:
        """Where the recording that this script makes is: another folder for another model, corpus or recipe."""
        of = {k: self.settings.get(k) for k in ("model", "corpus", "capture")}
        return self.out / f"recording-{Script(self.path, of, self.hooks, self.options).digest({})[:8]}"

    def _contents(self, name: str | Path | None) -> str | None:
        """The checksum of a file of the script; None where `name` names no file."""
        file = self.path.parent / (name or "")
        if not file.is_file():
            return None
        with file.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()


def expectations(entry: Mapping[str, Any]) -> list[str]:
    found = entry.get("expect", [])
    return [found] if isinstance(found, str) else list(found)


def parse(expectation: str) -> tuple[str, str, float]:
    """Name, comparison and number.

    >>> parse("selectivity > 0.1")
    ('selectivity', '>', 0.1)
    """
    found = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*", expectation)
    if not found:
        raise MoeLensError(
            f"expectation {expectation!r} is not NAME > NUMBER (or <, >=, <=), such as selectivity > 0.1"
        )
    return found[1], found[2], float(found[3])


def unmet(expected: list[str], values: Mapping[str, Any]) -> tuple[str, ...]:
    """The expectations that `values` do not meet, each with the value; one of nothing (None) is not met."""
    failed = []
    for expectation in expected:
        name, sign, bound = parse(expectation)
        if name not in values:
            raise unknown("expected value", name, [k for k, v in values.items() if isinstance(v, (int, float))])
        value = values[name]
        if value is None or not COMPARISONS[sign](value, bound):
            failed.append(f"{expectation} was expected, and it is {'undefined' if value is None else f'{value:.4g}'}")
    return tuple(failed)


def run_script(
    path: str | Path,
    *,
    hooks: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> tuple[Outcome, ...]:
    """Run every probe and effect of a script, but those whose result is there already.

    Writes `NAME.json`, `NAME.parquet` (a row for each row of the result) and `NAME.png` into the script's `out`; where
    it has to record, a folder `recording-…`. Under `accelerate launch` the entries are dealt out over the processes,
    and each returns its own when all are done.

    Args:
        hooks: a recipe that the model runs with, see `moelens.load_hooks`; options: the recipe's.

    Raises:
        MoeLensError: the script is wrong, or one of its entries cannot be run.

    Example:
        >>> all(not outcome.failed for outcome in run_script("probes.toml"))  # doctest: +SKIP
    """
    script = Script.open(path, Path(hooks).absolute() if hooks else None, options)
    recipe = load_hooks(script.hooks, **script.options) if script.hooks else None
    ranks = Ranks.of(None)
    runner = Runner(script, recipe, progress if ranks.first else False)
    script.out.mkdir(parents=True, exist_ok=True)
    if any(kind == "probe" for kind, _ in script.entries):
        runner.recording()  # all processes record together
        ranks.run_on_first(runner.label)
    outcomes = tuple(runner.run(kind, entry) for kind, entry in script.entries[ranks.rank :: ranks.size])
    ranks.wait()  # a process that exits because of an expectation would end the others
    return outcomes


class Runner:
    """Runs entries; the model and the recording are opened when the first of them needs it."""

    def __init__(self, script: Script, hooks: Callable[[Any], Any] | None, progress: bool | None) -> None:
        self.script, self.hooks, self.progress = script, hooks, progress
        self._model: Any = None
        self._recording: Any = None

    def model(self) -> Any:
        if self._model is None:
            if "model" not in self.script.settings:
                raise MoeLensError(f"'{self.script.path}' needs model = \"NAME\" to record or to intervene")
            self._model = load(self.script.place(self.script.settings["model"]))
            for name, function in self.hooks(self._model) if self.hooks else ():
                self._model.add_hook(name, function)
        return self._model

    def recording(self) -> Any:
        """The script's recording, or one made of its corpus."""
        settings, made = self.script.settings, self.script.recorded
        if self._recording is None and "recording" in settings:
            self._recording = Recording.open(self.script.place(settings["recording"]))
        elif self._recording is None and (made / "manifest.json").exists():
            self._recording = Recording.open(made)
        elif self._recording is None:
            options = {"capture": settings["capture"]} if "capture" in settings else {}
            corpus = self.script.place(settings["corpus"])
            self._recording = record(self.model(), corpus, made, progress=self.progress, **options)
        return self._recording

    def label(self) -> None:
        """Label the recording, where it is not labelled yet."""
        Labels.open_or_create(self.recording())

    def run(self, kind: str, entry: Mapping[str, Any]) -> Outcome:
        path = self.script.out / f"{entry['name']}.json"
        digest = self.script.digest(entry)
        stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
        resumed = stored.get("digest") == digest
        if not resumed:
            options = {k: v for k, v in entry.items() if k not in ("name", "expect")}
            options.setdefault("seed", self.script.settings.get("seed", 0))
            stored = {"digest": digest, "settings": dict(entry)} | getattr(self, kind)(options, path)
            whole = path.with_suffix(".tmp")
            whole.write_text(json.dumps(stored, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            whole.replace(path)  # complete or not at all, so that a run that breaks off is resumed here
        return Outcome(str(entry["name"]), path, unmet(expectations(entry), stored["summary"]), resumed)

    def probe(self, options: dict[str, Any], path: Path) -> dict[str, Any]:
        result = probe(self.recording(), options.pop("family"), progress=self.progress, **options)
        write(path, result)
        best = asdict(result.best) | {"majority": result.majority, "per_token": result.per_token}
        found: dict[str, Any] = json_values({"summary": best, "result": result.to_dict()})
        return found

    def effect(self, options: dict[str, Any], path: Path) -> dict[str, Any]:
        doing = {k: options.pop(k) for k in ("operation", "layer", "experts", "value", "at", "phase") if k in options}
        for needed in ("operation", "layer", "experts"):
            if needed not in doing:
                raise MoeLensError(f"[[effect]] {path.stem!r} needs {needed}, such as layer = 3, experts = [5]")
        pairs = as_pairs(self.script.place(options.pop("pairs")))
        if options.get("controls") in ("none", "") or doing["experts"] == "shared":
            options["controls"] = None
        result = effect(self.model(), pairs, named(**doing), progress=self.progress, **options)
        write(path, result)
        text = {} if result.text is None else {"kl": result.text.kl, "perplexity_after": result.text.perplexity_after}
        found: dict[str, Any] = json_values({"summary": asdict(result.kinds[0]) | text, "result": result.to_dict()})
        return found


def write(path: Path, result: Any) -> None:
    """The rows and the figure of a result, beside its JSON file."""
    result.save(path.with_suffix(".parquet"))
    with japanese_font():  # text is drawn when the file is written
        figure = result.plot().figure
        figure.savefig(path.with_suffix(".png"), dpi=150, bbox_inches="tight")
    plt.close(figure)
