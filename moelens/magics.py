"""`%load_ext moelens`: `%moe COMMAND …` and `%%moe COMMAND …`, each one call of a public function."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from traitlets import Int, Unicode

import moelens
from moelens.errors import MoeLensError, unknown
from moelens.magic_arguments import Mistake, build_parser, completions, integers, split
from moelens.recipes import parse_options

LONG = ("record", "label", "analyze", "compare", "remove", "effect", "probe", "export", "report")
CELLS = ("trace", "pairs", "record")


@magics_class
class MoeMagics(Magics):  # type: ignore[misc]
    """Defaults of the moelens magics; `%config MoeMagics` lists them, `%config MoeMagics.model = "…"` sets one."""

    model = Unicode("demo", help="model that is used where none is given: demo, a folder or a hub name").tag(
        config=True
    )
    out = Unicode("moelens-recording", help="folder that %moe record writes").tag(config=True)
    pairs = Unicode("respectful-humble", help="kind of minimal pairs").tag(config=True)
    labels = Unicode("honorifics", help="family of labels").tag(config=True)
    seed = Int(0, help="of tests, halves, controls and folds").tag(config=True)

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.loaded: dict[str, Any] = {}
        self.parser, self.commands = build_parser()

    @no_var_expand  # type: ignore[untyped-decorator]
    @line_cell_magic  # type: ignore[untyped-decorator]
    def moe(self, line: str, cell: str | None = None) -> Any:
        """See which experts of a Mixture-of-Experts model handle which Japanese.

        %moe load MODEL                  load and hook a model; the others then use it
        %moe info [MODEL]                what a model is made of
        %moe record CORPUS               run it over a corpus and keep what it did
        %%moe record [MODEL]             the same, each line of the cell a document
        %moe label RECORDING             label its tokens, from morphology to register
        %moe analyze RECORDING           which experts specialise in a family of labels
        %moe compare A B                 what differs between two models that read the same text
        %moe trace TEXT                  which experts a text takes, token by token
        %%moe trace [MODEL]              the same of the text in the cell
        %%moe pairs                      which text the model prefers: context | better | worse, one pair a line
        %moe effect                      find the experts that cause a preference, and test them by removal
        %moe remove                      what removing --experts of a --layer changes, beside matched controls
        %moe probe RECORDING LABEL       what can be read from the routes; or a file of probes and effects
        %moe export RECORDING FORMAT     datasets, safetensors, npz or csv
        %moe report RECORDING            one HTML file that holds everything it shows
        %moe hooks FILE                  a recipe's hooks, for model.hooks(fwd_hooks=…)

        %moe COMMAND --help shows a command's arguments. -o NAME puts the result into a variable. A variable of the
        notebook may stand for any model, recording or corpus.
        """
        words = split(line)
        if words[:1] == ["help"] and len(words) > 1:
            words = [words[1], "--help"]
        if not words or words[0] in ("--help", "-h", "help"):
            print("\n".join(row[8:] for row in (MoeMagics.moe.__doc__ or "").rstrip().splitlines()[1:]).strip())
            return None
        try:
            if words[0] not in self.commands:
                raise unknown("%moe command", words[0], self.commands, "%moe --help lists them")
            args = self.parser.parse_args(words)
            if cell is not None and args.command not in CELLS:
                raise MoeLensError(f"%%moe {args.command} takes no cell; write %moe {args.command} on one line")
            if args.output and not args.output.isidentifier():
                raise MoeLensError(f"-o {args.output} is no name for a variable; give one such as -o result")
            began = time.perf_counter()
            result = getattr(self, f"run_{args.command}")(args, cell)
        except MoeLensError as error:
            raise Mistake(str(error)) from error
        except SystemExit:  # the help of a command has been printed
            return None
        if args.command in LONG:
            summary = f"{len(result)} results" if isinstance(result, tuple) else str(result).splitlines()[0]
            print(f"{args.command}: {summary} ({time.perf_counter() - began:.1f} s)")
        if args.output:
            self.shell.user_ns[args.output] = result
        return result

    def complete(self, shell: Any, event: Any) -> list[str]:
        """For the Tab key."""
        held = self.shell.user_ns.items()
        models = [*self.loaded, *(n for n, v in held if isinstance(v, moelens.HookedMoE))]
        recordings = [n for n, v in held if isinstance(v, moelens.Recording)]
        line = event.text_until_cursor
        commands = {n: c for n, c in self.commands.items() if n in CELLS or not line.startswith("%%")}
        return completions(line, commands, models, recordings)

    # What arguments stand for

    def variable(self, name: str | None, *types: type) -> Any:
        """What the notebook holds under a name, if it is of one of these types."""
        value = self.shell.user_ns.get(name) if name else None
        return value if isinstance(value, types) else None

    def hooked(self, name: str | None) -> Any:
        """A model by variable or name, loaded once; without a name the one that was loaded last."""
        given = self.variable(name, moelens.HookedMoE)
        if given is not None:
            return given
        name = name or next(reversed(self.loaded), self.model)
        if name not in self.loaded:
            self.loaded[name] = moelens.load(name)
        return self.loaded[name]

    def recording(self, name: str) -> Any:
        return moelens.Recording.open(self.variable(name, moelens.Recording) or name)

    def with_hooks(self, args: Namespace, model: Any) -> Any:
        """The model with a recipe's hooks, while the `with` lasts."""
        options = parse_options(args.set)
        return model.hooks(fwd_hooks=moelens.load_hooks(args.hooks, **options)(model) if args.hooks else [])

    # Commands

    def run_load(self, args: Namespace, cell: str | None) -> Any:
        name = args.model or self.model
        self.loaded.pop(name, None)  # the last is the default
        options = {"device_map": args.device_map, "dtype": args.dtype or "auto", "revision": args.revision}
        self.loaded[name] = moelens.load(name, **options)
        return self.loaded[name]

    def run_info(self, args: Namespace, cell: str | None) -> Any:
        given = self.variable(args.model, moelens.HookedMoE)
        return moelens.info(given or args.model or next(reversed(self.loaded.values()), self.model))

    def run_record(self, args: Namespace, cell: str | None) -> Any:
        corpus: Any = [line for line in (cell or "").splitlines() if line.strip()]
        if cell is None:
            given = self.shell.user_ns.get(args.corpus)
            corpus = args.corpus if given is None else given
        if not corpus:
            raise MoeLensError("nothing to record; write one document a line in the cell, or %moe record CORPUS")
        model = self.hooked(args.model or (args.corpus if cell is not None else None))
        with self.with_hooks(args, model):
            return moelens.record(
                model, corpus, args.out or self.out, capture=args.capture, layers=args.layers, generate=args.generate,
                force=args.force,
            )  # fmt: skip

    def run_label(self, args: Namespace, cell: str | None) -> Any:
        return moelens.label(self.recording(args.recording), args.policy, args.analyser)

    def run_analyze(self, args: Namespace, cell: str | None) -> Any:
        recording = self.recording(args.recording)
        return moelens.specialization(
            recording, moelens.Labels.open(recording), args.labels or self.labels, permutations=args.permutations,
            given=args.given and tuple(args.given.split(",")), seed=self.seed, progress=True,
        )  # fmt: skip

    def run_compare(self, args: Namespace, cell: str | None) -> Any:
        a, b = self.recording(args.a), self.recording(args.b)
        return moelens.compare(a, b, moelens.Labels.open(b), args.labels or self.labels, seed=self.seed)

    def run_trace(self, args: Namespace, cell: str | None) -> Any:
        text = cell.strip() if cell is not None else " ".join(args.text)
        if not text:
            raise MoeLensError(
                "nothing to trace; write the text below %%moe trace in the same cell, or %moe trace TEXT"
            )
        named = args.model or (" ".join(args.text) if cell is not None else None)
        return moelens.trace(self.hooked(named), text)

    def run_pairs(self, args: Namespace, cell: str | None) -> Any:
        from moelens.interventions.causal import read_pairs
        from moelens.interventions.preference import read_lines

        pairs: Any = read_pairs(args.pairs or self.pairs) if cell is None else read_lines(cell)
        model = self.hooked(args.model)
        with self.with_hooks(args, model):
            return moelens.prefer(model, pairs)

    def run_effect(self, args: Namespace, cell: str | None) -> Any:
        from moelens.interventions.causal import causes, read_pairs

        pairs = read_pairs(args.pairs or self.pairs)
        options = {"top": args.top, "draws": args.draws, "seed": self.seed, "progress": True}
        return causes(self.hooked(args.model), pairs, **options)

    def run_remove(self, args: Namespace, cell: str | None) -> Any:
        from moelens.interventions import remove
        from moelens.interventions.causal import read_pairs

        experts: Any = "shared" if args.experts == "shared" else integers(args.experts)
        return moelens.effect(
            self.hooked(args.model), read_pairs(args.pairs or self.pairs), remove(args.layer, experts),
            controls="matched" if args.draws and experts != "shared" else None, draws=args.draws or 20,
            seed=self.seed, progress=True,
        )  # fmt: skip

    def run_probe(self, args: Namespace, cell: str | None) -> Any:
        if args.recording.endswith(".toml"):
            from moelens.probes.script import run_script

            return run_script(args.recording, hooks=args.hooks, options=parse_options(args.set))
        if args.hooks:
            raise MoeLensError(f"recipe '{args.hooks}' cannot change what is recorded; give it to %moe record")
        return moelens.probe(self.recording(args.recording), args.label or self.labels, args.features, seed=self.seed)

    def run_export(self, args: Namespace, cell: str | None) -> Any:
        return moelens.export(
            self.recording(args.recording), args.format, args.out, labels=args.labels or (), split=args.split,
            force=args.force,
        )  # fmt: skip

    def run_report(self, args: Namespace, cell: str | None) -> Any:
        return moelens.report(self.recording(args.recording), args.out, progress=True)

    def run_hooks(self, args: Namespace, cell: str | None) -> Any:
        return moelens.load_hooks(args.file, **parse_options(args.set))(self.hooked(args.model))
