"""The command line: each command is one call of a public function, and a mistake is one line."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from moelens import __version__
from moelens.errors import MoeLensError
from moelens.interventions.command import add_command as effect_command
from moelens.probes.command import add_command as probe_command
from moelens.recording.commands import add_commands as recording_commands

HOW_TO_READ = """\
lift: how many times as often tokens of the label go to the expert as tokens do on the whole
lift | token: the same among tokens that are the same; near 1, the word explains it
left: share of the excess over chance that remains when the token is known
q: false discovery rate, p family: family-wise, both over all layers, experts and labels; *: one of them is below .05"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    main = Parser(prog="moelens", description="See which experts of a Mixture-of-Experts model handle which Japanese.")
    main.add_argument("--version", action="version", version=f"moelens {__version__}")
    main.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    demo = commands.add_parser("demo", help="run the main job on the bundled model and corpus")
    demo.add_argument("--out", type=Path, default=Path("moelens-demo"), help="folder to write (%(default)s)")
    demo.add_argument("--force", action="store_true", help="replace what an earlier run left there")
    demo.set_defaults(run=run_demo)

    info = commands.add_parser("info", help="show what a model is made of")
    info.add_argument("model", nargs="?", help="demo, a folder, an architecture such as deepseek_v3, or a hub name")
    info.add_argument("--architectures", action="store_true", help="list the architectures and how they are reached")
    info.set_defaults(run=run_info)

    recording_commands(commands)

    label = commands.add_parser("label", help="label a recording's tokens, from morphology to register")
    label.add_argument("recording", type=Path)
    label.add_argument("--policy", default="last", help="token's morpheme: last, majority or any (%(default)s)")
    label.add_argument("--analyser", default="fugashi", help="fugashi or sudachi (%(default)s)")
    label.add_argument("--processes", type=int, default=os.cpu_count(), help="that share the work (%(default)s)")
    label.set_defaults(run=run_label)

    analyze = commands.add_parser("analyze", help="find which experts specialise in a family of labels")
    analyze.add_argument("recording", type=Path)
    analyze.add_argument("--labels", default="honorifics", metavar="FAMILY", help="family of labels (%(default)s)")
    analyze.add_argument(
        "--given", metavar="CONTROL", help="compare within: token, position, a family, or token,script"
    )
    analyze.add_argument("--permutations", type=int, default=1000, help="of documents, for the test (%(default)s)")
    analyze.add_argument("--seed", type=int, default=0)
    analyze.add_argument("--top", type=int, default=15, help="findings to print (%(default)s)")
    analyze.add_argument("--out", type=Path, help="JSON or .parquet file to write the whole result to")
    analyze.set_defaults(run=run_analyze)

    effect_command(commands)
    probe_command(commands)

    report = commands.add_parser("report", help="write one HTML file about a recording: where, what, how sure")
    report.add_argument("recording", help="folder of a recording")
    report.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (%(default)s)")
    report.add_argument("--permutations", type=int, default=1000, help="of documents, in each test (%(default)s)")
    report.set_defaults(run=run_report)
    return main


def run_demo(args: argparse.Namespace) -> None:
    from moelens.demo.run import run_demo

    print(run_demo(args.out, force=args.force))


def run_info(args: argparse.Namespace) -> None:
    from moelens.models.info import info
    from moelens.models.loading import architectures

    if args.architectures:
        print("\n".join(f"{name:<24} {how}" for name, how in architectures().items()))
    elif args.model is None:
        raise MoeLensError("which model? give a folder, a name, 'demo', or --architectures for what is supported")
    else:
        print(info(args.model))


def run_label(args: argparse.Namespace) -> None:
    import moelens

    recording = moelens.Recording.open(args.recording)
    print(moelens.label(recording, args.policy, args.analyser, args.processes))


def run_analyze(args: argparse.Namespace) -> None:
    import moelens
    from moelens.recording.parallel import Ranks

    first = Ranks.of(None).first
    recording = moelens.Recording.open(args.recording)
    result = moelens.specialization(
        recording,
        moelens.Labels.open(recording),
        args.labels,
        given=args.given and tuple(args.given.split(",")),
        permutations=args.permutations,
        seed=args.seed,
        progress=first,
    )
    if first:
        print(result.table(args.top), HOW_TO_READ, sep="\n\n")
        if args.out:
            result.save(args.out)


def run_report(args: argparse.Namespace) -> None:
    import moelens

    print(moelens.report(args.recording, args.out, permutations=args.permutations, progress=True))


def quiet() -> None:
    """No network for what is at hand, and no chatter of libraries around our own lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character is told its number
        sys.stdout.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 2 for a mistake, 130 if interrupted."""
    args: Any = parser().parse_args(argv)
    quiet()
    try:
        args.run(args)
    except MoeLensError as error:
        if args.debug:
            raise
        print(f"moelens: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("moelens: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has enough
        sys.stderr.close()
    finally:
        leave()
    return 0


def leave() -> None:
    """Close the ties between processes: left open, their threads can abort the interpreter as it exits."""
    dist = sys.modules.get("torch.distributed")  # a command that did without torch need not load it now
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
