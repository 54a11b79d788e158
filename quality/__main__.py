"""Runs the quality benches and writes their pages: ``python -m quality methods``, ``... aim`` and
``... search``; ``... cut`` runs a small part and says whether all is well.

What was run before is kept and not run again; a run that is stopped goes on from there.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from merge.evidence import NOT_YET
from quality.adapters import AdapterBench
from quality.aim import agreement, grid
from quality.aim_page import Grid, write_aim
from quality.bench import Bench, Held
from quality.cache import DEFAULT
from quality.cut import cut
from quality.encoder import EncoderBench
from quality.evidence import outcome_of, write_evidence
from quality.fronts import PROBLEMS, Compared, compared
from quality.llm import AnswerBench, LlmBench
from quality.page import write_quality
from quality.runner import NotRunYet, Runner
from quality.search_page import Proof, write_proof
from quality.tiny import TinyBench
from quality.tuner import Tuner
from quality.tunings import tunings
from quality.vision import VisionBench

BENCHES: Mapping[str, Callable[..., Bench]] = {
    "a": EncoderBench,
    "b": TinyBench,
    "c": LlmBench,
    "d": VisionBench,
    "e": AdapterBench,
}
HELD: Mapping[str, Callable[..., Held]] = {"b": TinyBench, "c": AnswerBench, "e": AdapterBench}


def main() -> None:
    """Parses the command line and runs one command."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "cut":
        _cut(options.cache.expanduser())
    elif options.command == "methods":
        _methods(options)
    elif options.command == "search":
        _search(options)
    else:
        _aim(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m quality", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, benches, about in (
        (
            "methods",
            list(BENCHES),
            "every method; writes docs/quality.md and merge/evidence.json",
        ),
        ("aim", ["b", "c"], "AIM beside its control; writes docs/aim.md"),
        (
            "search",
            list(HELD),
            "every search method, tuned on validation and held against the untuned merge on test items, and "
            "MAP's fronts beside a grid's; writes docs/search-proof.md",
        ),
    ):
        sub = commands.add_parser(name, help=about)
        known = HELD if name == "search" else BENCHES
        sub.add_argument("--benches", nargs="+", choices=known, default=benches)
        sub.add_argument("--seeds", type=int, choices=(1, 2, 3), default=3)
        about = "run nothing; write the pages from what is kept (searches: on as many seeds as all have)"
        sub.add_argument("--kept", action="store_true", help=about)
    commands.add_parser("cut", help="a minute of bench A; ends with 1 if a merge is not where it should be")
    for sub in commands.choices.values():
        sub.add_argument("--cache", type=Path, default=DEFAULT, help="where models and results are kept")
        sub.add_argument("--threads", type=int, default=1)
    for name in ("methods", "search"):
        commands.choices[name].add_argument(
            "--only", nargs="+", default=[], help="run these methods, write nothing"
        )
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


def _search(options: argparse.Namespace) -> None:
    proofs, fronts = [], list[Compared]()
    for name in options.benches:
        bench = HELD[name](options.cache.expanduser(), say=_say)
        seeds = range(options.seeds)
        proofs.append(_proof(bench, seeds, options))
        if name == "b" and not options.only:
            fronts = _fronts(Tuner(Runner(bench, seeds, _say, only_kept=options.kept), bench))
    if not options.only:
        write_proof(proofs, fronts, "make quality-search")


def _proof(bench: Held, seeds: range, options: argparse.Namespace) -> Proof:
    """Every search; of what is kept, on as many seeds as all of them have."""
    tuner = Tuner(Runner(bench, seeds, _say, only_kept=options.kept), bench)
    wanted = [each for each in tunings(bench) if not options.only or each.method in options.only]
    tuned = tuple(tuner.tuned(each) for each in wanted)
    if options.kept and len(seeds) > 1 and any(each.why_not == NOT_YET for each in tuned):
        return _proof(bench, seeds[:-1], options)
    return Proof(bench, tuple(seeds), tuned)


def _fronts(tuner: Tuner) -> list[Compared]:
    """MAP beside a grid on every problem and seed; what was not run is left out."""
    found = []
    for problem in PROBLEMS:
        for seed in tuner.runner.seeds:
            try:
                found.append(compared(tuner, problem, seed))
            except NotRunYet:
                continue
    return found


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
