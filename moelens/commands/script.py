"""`run_script`: run a file of probes and effects, resume an earlier run, and check the results against expectations."""

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
from moelens.interventions import Effect, effect
from moelens.interventions.items import as_items
from moelens.interventions.operations import operation_by_name
from moelens.japanese import Labels
from moelens.models.hooked import HookedMoE
from moelens.models.loading import load
from moelens.probes import ProbeResult, probe
from moelens.recipes import load_hooks
from moelens.recording import Recording, record
from moelens.recording.parallel import Ranks
from moelens.saved import json_values
from moelens.text_files import read_text
from moelens.views.style import japanese_font

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_SETTINGS = ("model", "recording", "corpus", "capture", "out", "seed", "probe", "effect")
_ENTRY_SETTINGS = {
    "probe": ("name", "family", "features", "layers", "probes", "folds", "control_draws", "seed", "expect"),
    "effect": (
        *("name", "pairs", "operation", "layer", "experts", "value", "at", "phase"),
        *("controls", "draws", "half", "seed", "expect"),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one entry of a script.

    Attributes:
        name: name of the entry.
        path: JSON file of the result.
        failed: the expectations that the result does not meet, in words.
        resumed: whether the result is from an earlier run.
    """

    name: str
    path: Path
    failed: tuple[str, ...]
    resumed: bool

    def __str__(self) -> str:
        state = "; ".join(self.failed) or ("as expected" if not self.resumed else "as expected, from an earlier run")
        return f"{'FAILED ' if self.failed else 'ok     '} {self.name}: {state} ({self.path})"


@dataclass(frozen=True)
class Script:
    """A TOML file of probes and effects, such as the one below. Its relative paths are relative to the file. ::

        model = "demo"
        corpus = "demo"                 # or recording = "runs/demo"
        out = "runs/probes"

        [[probe]]
        name = "pos"
        family = "pos"
        features = ["experts", "paths"]
        expect = ["selectivity > 0.1"]  # of the most accurate row

        [[effect]]
        name = "remove-17"
        pairs = "style-agreement"         # or a .jsonl file
        operation = "remove"
        layer = 3
        experts = [17]
        expect = ["change < 0", "p < 0.05"]   # of the first kind of pair

    Attributes:
        path: the file.
        settings: its content.
        hooks: a recipe whose hooks the model runs with.
        options: options of the recipe.
    """

    path: Path
    settings: Mapping[str, Any]
    hooks: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path, hooks: Path | None = None, options: Mapping[str, Any] | None = None) -> Script:
        """Read a script and check it before anything runs.

        Args:
            path: the file.
            hooks: a recipe whose hooks the model runs with.
            options: options of the recipe.

        Raises:
            UnknownNameError: the file or a setting does not exist.
            MoeLensError: the file is not TOML, lacks a setting, or uses a name twice; or hooks are given although the
                probes are of a finished recording.
        """
        path = Path(path)
        if not path.is_file():
            raise UnknownNameError(f"no script at '{path}'; give a TOML file with [[probe]] and [[effect]] entries")
        try:
            settings = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise MoeLensError(f"'{path}' is not valid TOML: {error}") from error
        script = cls(path, settings, hooks, options or {})
        script._check()
        return script

    def _check(self) -> None:
        path, settings = self.path, self.settings
        for key in settings:
            if key not in _SETTINGS:
                raise unknown("setting", key, _SETTINGS, f"in '{path}'")
        names = [entry.get("name", "") for _, entry in self.entries]
        if not names or "out" not in settings:
            raise MoeLensError(f"'{path}' needs out = \"FOLDER\" and at least one [[probe]] or [[effect]]")
        for kind, entry in self.entries:
            if not re.fullmatch(r"[\w.-]+", str(entry.get("name", ""))) or names.count(entry["name"]) > 1:
                raise MoeLensError(
                    f"'{path}': every [[{kind}]] needs a unique name of letters, digits, '.', '-' and '_'"
                )
            for key in entry:
                if key not in _ENTRY_SETTINGS[kind]:
                    raise unknown("setting", key, _ENTRY_SETTINGS[kind], f"of [[{kind}]] {entry['name']!r} in '{path}'")
            for expectation in _expectations(entry):
                _parse_expectation(expectation)
        if any(kind == "probe" for kind, _ in self.entries) and not {"recording", "corpus"} & set(settings):
            raise MoeLensError(
                f"'{path}' has probes, which need recording = \"FOLDER\", or model and corpus to make one"
            )
        if self.hooks and "probe" in settings and "recording" in settings:
            raise MoeLensError(
                f"'{path}' has probes of a finished recording, which the recipe '{self.hooks}' cannot change; "
                "give model and corpus instead of recording"
            )

    @property
    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """The kind ("probe" or "effect") and the settings of each entry."""
        return [(kind, entry) for kind in ("probe", "effect") for entry in self.settings.get(kind, [])]

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.path.parent / str(self.settings["out"])

    def resolve(self, value: str) -> str:
        """Return a path relative to the script as it is from here; other names, such as "demo", stay as they are."""
        path = self.path.parent / value
        return str(path) if path.exists() else value

    def digest(self, entry: Mapping[str, Any]) -> str:
        """Return a checksum of all that the result of an entry depends on; if it changes, the entry runs again."""
        common = {k: v for k, v in self.settings.items() if k not in _ENTRY_SETTINGS and k != "out"}
        plain = {k: v for k, v in entry.items() if k != "expect"}
        files = [self._contents(name) for name in (self.settings.get("corpus"), entry.get("pairs"), self.hooks)]
        known = json.dumps([common, plain, files, dict(self.options)], sort_keys=True, default=str)
        return hashlib.sha256(known.encode()).hexdigest()

    @property
    def recording_folder(self) -> Path:
        """The folder of the recording that the script makes; another model, corpus or recipe has another folder."""
        settings = {k: self.settings.get(k) for k in ("model", "corpus", "capture")}
        return self.out / f"recording-{Script(self.path, settings, self.hooks, self.options).digest({})[:8]}"

    def _contents(self, name: str | Path | None) -> str | None:
        """The checksum of a file of the script; None if there is no such file."""
        file = self.path.parent / (name or "")
        if not file.is_file():
            return None
        with file.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()


def _expectations(entry: Mapping[str, Any]) -> list[str]:
    given = entry.get("expect", [])
    return [given] if isinstance(given, str) else list(given)


def _parse_expectation(expectation: str) -> tuple[str, str, float]:
    """Name, comparison and number.

    >>> _parse_expectation("selectivity > 0.1")
    ('selectivity', '>', 0.1)
    """
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*", expectation)
    if not match:
        raise MoeLensError(
            f"expected NAME > NUMBER (or <, >=, <=) in expect, got {expectation!r}; write for example selectivity > 0.1"
        )
    return match[1], match[2], float(match[3])


def unmet_expectations(expected: list[str], values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the expectations that values do not meet, in words.

    Args:
        expected: expectations such as "selectivity > 0.1".
        values: the summary of a result. None is a value that is not defined; it meets no expectation.

    Raises:
        UnknownNameError: there is no such value.

    Example:
        >>> unmet_expectations(["pairs >= 2", "p < 0.05"], {"pairs": 40, "p": 0.3})
        ('expected p < 0.05, got 0.3',)
    """
    failed = []
    for expectation in expected:
        name, sign, bound = _parse_expectation(expectation)
        if name not in values:
            raise unknown("expected value", name, [k for k, v in values.items() if isinstance(v, (int, float))])
        value = values[name]
        if value is None or not _COMPARISONS[sign](value, bound):
            failed.append(f"expected {expectation}, got {'an undefined value' if value is None else f'{value:.4g}'}")
    return tuple(failed)


def run_script(
    path: str | Path,
    *,
    hooks: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> tuple[Outcome, ...]:
    """Run the probes and effects of a script; entries whose results exist already are not run again.

    Writes `NAME.json`, `NAME.parquet` (the rows of the result) and `NAME.png` for each entry into the folder `out` of
    the script, and a folder `recording-…` if it has to record. Under `accelerate launch`, the entries are divided among
    the processes; each process returns its own outcomes when all of them have finished.

    Args:
        path: the script, a TOML file; see `Script` in `moelens.commands.script`.
        hooks: a recipe whose hooks the model runs with, see `moelens.load_hooks`.
        options: options of the recipe.
        progress: whether to show progress bars; None shows them in terminals and notebooks.

    Returns:
        The outcome of each entry.

    Raises:
        UnknownNameError: the file, a setting or a name in it does not exist.
        MoeLensError: the script is not valid, or one of its entries cannot be run.

    Example:
        >>> all(not outcome.failed for outcome in run_script("probes.toml"))  # doctest: +SKIP
    """
    script = Script.open(path, Path(hooks).absolute() if hooks else None, options)
    recipe = load_hooks(script.hooks, **script.options) if script.hooks else None
    ranks = Ranks.of(None)
    runner = _Runner(script, recipe, progress if ranks.first else False)
    script.out.mkdir(parents=True, exist_ok=True)
    if any(kind == "probe" for kind, _ in script.entries):
        runner.recording()  # all processes record together
        ranks.run_on_first(runner.label)
    outcomes = tuple(runner.run(kind, entry) for kind, entry in script.entries[ranks.rank :: ranks.size])
    ranks.wait()  # a process that exits because of a failed expectation would end the others
    return outcomes


class _Runner:
    """Runs the entries of a script; the model and the recording are opened when the first entry needs them."""

    def __init__(self, script: Script, recipe: Callable[[HookedMoE], Any] | None, progress: bool | None) -> None:
        self.script, self.recipe, self.progress = script, recipe, progress
        self._model: HookedMoE | None = None
        self._recording: Recording | None = None

    def model(self) -> HookedMoE:
        if self._model is None:
            if "model" not in self.script.settings:
                raise MoeLensError(f"'{self.script.path}' needs model = \"NAME\" to record or to intervene")
            self._model = load(self.script.resolve(self.script.settings["model"]))
            for name, function in self.recipe(self._model) if self.recipe else ():
                self._model.add_hook(name, function)
        return self._model

    def recording(self) -> Recording:
        """The recording of the script, which is made from its corpus if it names none."""
        if self._recording is None:
            settings, folder = self.script.settings, self.script.recording_folder
            if "recording" in settings:
                self._recording = Recording.open(self.script.resolve(settings["recording"]))
            elif (folder / "manifest.json").exists():
                self._recording = Recording.open(folder)
            else:
                options = {"capture": settings["capture"]} if "capture" in settings else {}
                corpus = self.script.resolve(settings["corpus"])
                self._recording = record(self.model(), corpus, folder, progress=self.progress, **options)
        return self._recording

    def label(self) -> None:
        """Label the recording if it is not labelled yet."""
        Labels.open_or_create(self.recording())

    def run(self, kind: str, entry: Mapping[str, Any]) -> Outcome:
        path = self.script.out / f"{entry['name']}.json"
        digest = self.script.digest(entry)
        stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
        resumed = stored.get("digest") == digest
        if not resumed:
            options = {k: v for k, v in entry.items() if k not in ("name", "expect")}
            options.setdefault("seed", self.script.settings.get("seed", 0))
            make_result = self.probe if kind == "probe" else self.effect
            stored = {"digest": digest, "settings": dict(entry)} | make_result(options, path)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(stored, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)  # at once, so that an interrupted run leaves no incomplete file
        failed = unmet_expectations(_expectations(entry), stored["summary"])
        return Outcome(str(entry["name"]), path, failed, resumed)

    def probe(self, options: dict[str, Any], path: Path) -> dict[str, Any]:
        result = probe(self.recording(), options.pop("family"), progress=self.progress, **options)
        _write_rows_and_figure(path, result)
        best = asdict(result.best) | {"majority": result.majority, "per_token": result.per_token}
        stored: dict[str, Any] = json_values({"summary": best, "result": result.to_dict()})
        return stored

    def effect(self, options: dict[str, Any], path: Path) -> dict[str, Any]:
        fields = ("operation", "layer", "experts", "value", "at", "phase")
        intervention = {k: options.pop(k) for k in fields if k in options}
        for required in ("operation", "layer", "experts"):
            if required not in intervention:
                raise MoeLensError(f"[[effect]] {path.stem!r} needs {required}, such as layer = 3, experts = [5]")
        pairs = as_items(self.script.resolve(options.pop("pairs")))
        if options.get("controls") in ("none", "") or intervention["experts"] == "shared":
            options["controls"] = None
        result = effect(self.model(), pairs, operation_by_name(**intervention), progress=self.progress, **options)
        _write_rows_and_figure(path, result)
        text = {} if result.text is None else {"kl": result.text.kl, "perplexity_after": result.text.perplexity_after}
        summary = asdict(result.kinds[0]) | text
        stored: dict[str, Any] = json_values({"summary": summary, "result": result.to_dict()})
        return stored


def _write_rows_and_figure(path: Path, result: ProbeResult | Effect) -> None:
    """Write the rows of a result as Parquet and its figure as PNG, next to its JSON file."""
    result.save(path.with_suffix(".parquet"))
    with japanese_font():  # matplotlib draws text when it writes the file
        figure = result.plot().figure
        figure.savefig(path.with_suffix(".png"), dpi=150, bbox_inches="tight")
    plt.close(figure)
