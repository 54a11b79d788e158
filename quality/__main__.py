"""Runs the quality benches and writes their pages: ``python -m quality methods`` and ``... aim``; ``... cut``
runs a small part and says whether all is well.

What was run before is kept and not run again; a run that is stopped goes on from there.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from quality.aim import agreement, grid
from quality.aim_page import Grid, write_aim
from quality.bench import Bench
from quality.cache import DEFAULT
from quality.cut import cut
from quality.encoder import EncoderBench
from quality.evidence import outcome_of, write_evidence
from quality.llm import LlmBench
from quality.page import write_quality
from quality.runner import Runner
from quality.tiny import TinyBench
from quality.vision import VisionBench

BENCHES: Mapping[str, Callable[..., Bench]] = {
    "a": EncoderBench,
    "b": TinyBench,
    "c": LlmBench,
    "d": VisionBench,
}


def main() -> None:
    """Parses the command line and runs one command."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "cut":
        _cut(options.cache.expanduser())
    elif options.command == "methods":
        _methods(options)
    else:
        _aim(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m quality", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, benches, about in (
        (
            "methods",
            ["a", "b", "d"],
            "every method; writes docs/quality.md and merge/evidence.json",
        ),
        ("aim", ["b", "c"], "AIM beside its control; writes docs/aim.md"),
    ):
        sub = commands.add_parser(name, help=about)
        sub.add_argument("--benches", nargs="+", choices=BENCHES, default=benches)
        sub.add_argument("--seeds", type=int, choices=(1, 2, 3), default=3)
        about = "run nothing; write the pages from what is kept"
        sub.add_argument("--kept", action="store_true", help=about)
    commands.add_parser("cut", help="a minute of bench A; ends with 1 if a merge is not where it should be")
    for sub in commands.choices.values():
        sub.add_argument("--cache", type=Path, default=DEFAULT, help="where models and results are kept")
        sub.add_argument("--threads", type=int, default=1)
    commands.choices["methods"].add_argument("--only", nargs="+", default=[], help="run these, write nothing")
    return parser


def _say(text: str) -> None:
    print(text, flush=True)


def _runner(name: str, options: argparse.Namespace) -> Runner:
    bench = BENCHES[name](options.cache.expanduser(), say=_say)
    return Runner(bench, range(options.seeds), _say, only_kept=options.kept)


def _methods(options: argparse.Namespace) -> None:
    outcomes = [outcome_of(_runner(name, options), options.only) for name in options.benches]
    if options.only:
        return
    write_evidence(outcomes, "make quality")
    write_quality(outcomes, "make quality")


def _cut(cache: Path) -> None:
    wrong = cut(cache, _say)
    for line in wrong:
        _say(f"wrong: {line}")
    _say("the cut of bench A is " + ("not what it should be" if wrong else "as it should be"))
    sys.exit(bool(wrong))


def _aim(options: argparse.Namespace) -> None:
    grids = []
    for name in options.benches:
        runner = _runner(name, options)
        variants = tuple(grid(runner))
        grids.append(
            Grid(runner.bench, runner.seeds, tuple(runner.bounds(s) for s in runner.seeds), variants)
        )
    tiny = _runner("b", options).bench
    write_aim(grids, agreement(tiny, tiny.family(0)), "make quality-llm")


if __name__ == "__main__":
    main()
